//! TLS as clients meet it: which certificate, which session, who is asked for what.

use std::{
    fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio, sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::{HOST, connect, handshake, installed, until},
    frames,
    lab::{ATTACKER, CLIENT, EDGE, FRIEND},
    pki::{Authority, DAY, Leaf},
    talk::{Answer, Dial},
};
use nix::sys::signal::Signal;
use rustls::{
    ClientConfig, ClientConnection, NamedGroup,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};

const SOON: Duration = Duration::from_secs(10);

/// Certificates as an array of tables, written inline.
fn certificates(all: &[(&Leaf, &str)]) -> String {
    let one = |(leaf, more): &(&Leaf, &str)| {
        format!("{{ chain = {:?}, key = {:?}{more} }}", leaf.chain, leaf.key)
    };
    format!("[{}]", all.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// The common name of the certificate that is shown for a name.
fn shown(lab: &Lab, name: &[&str]) -> Result<String> {
    let said = ask(lab, name)?;
    let subject = said.lines().find_map(|line| line.strip_prefix("subject=CN = "));
    subject.map(str::to_owned).with_context(|| said.clone())
}

/// What `openssl s_client` says of a handshake with these options alone.
fn ask(lab: &Lab, options: &[&str]) -> Result<String> {
    let to = format!("{}:443", edge_tests::lab::EDGE);
    let mut openssl = lab.client.command("openssl");
    openssl.args(["s_client", "-connect", &to]).args(options).stdin(Stdio::null());
    let done = openssl.output()?;
    Ok(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

fn failures(edged: &Edged<'_>, kind: &str) -> Result<f64> {
    metric(edged, &format!("edged_handshake_failures_total{{kind=\"{kind}\"}} "))
}

/// A value of the metrics page by the begin of its line.
fn metric(edged: &Edged<'_>, begin: &str) -> Result<f64> {
    let page = edged.scrape()?;
    let line =
        page.lines().find(|line| line.starts_with(begin)).with_context(|| begin.to_owned())?;
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

#[test]
fn the_name_chooses_the_certificate() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(lab.dir(), "tls")?;
    let first = authority.sign("first", &["first.test"], -60, DAY)?;
    let wild = authority.sign("wild", &["*.wild.test"], -60, DAY)?;
    let exact = authority.sign("exact", &["exact.wild.test"], -60, DAY)?;
    let rsa = authority.sign_rsa("rsa", &["rsa.test", "first.test"])?;
    let all = certificates(&[(&first, ""), (&wild, ""), (&exact, ""), (&rsa, "")]);
    let edged = lab.edged()?.without("tls", "key").set("tls.certificate", &all).start()?;
    for (name, expected) in [
        ("first.test", "first.test"),
        ("a.wild.test", "*.wild.test"),
        ("EXACT.wild.test", "exact.wild.test"),
        ("a.b.wild.test", "first.test"),
        ("unknown.test", "first.test"),
    ] {
        assert_eq!(shown(&lab, &["-servername", name])?, expected, "{name}");
    }
    assert_eq!(shown(&lab, &["-noservername"])?, "first.test");
    // Of two certificates for one name a client is shown the kind that it can check.
    let only_rsa = ["-servername", "first.test", "-sigalgs", "rsa_pss_rsae_sha256"];
    assert_eq!(shown(&lab, &only_rsa)?, "rsa.test");

    edged.edit("tls.unknown_name", "\"refuse\"")?;
    edged.tell("reload")?;
    assert_eq!(shown(&lab, &["-servername", "b.wild.test"])?, "*.wild.test");
    for strange in [&["-servername", "unknown.test"][..], &["-noservername"]] {
        let said = ask(&lab, strange)?;
        assert!(said.contains("unrecognized name"), "{said}");
    }
    assert_eq!(failures(&edged, "unknown_name")?, 2.0);
    assert_eq!(metric(&edged, "edged_connections_total{reason=\"handshake_failed\"}")?, 2.0);
    Ok(())
}

#[test]
fn sessions_are_resumed_until_their_key_is_gone() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("tls.ticket_rotation", "\"4s\"").start()?;
    let dial = Dial::new(&edged.ca, HOST)?;
    let visit = || -> Result<bool> {
        let mut talk = dial.connect(&lab, CLIENT)?;
        // The ticket comes with the answer.
        ensure!(talk.get(HOST, "/health", &[])?.status == 200);
        Ok(talk.is_resumed())
    };
    assert_eq!((visit()?, visit()?), (false, true));
    // A reload that leaves TLS alone ends no session.
    edged.edit("bounds.streams_max", "50")?;
    edged.tell("reload")?;
    assert!(visit()?);
    // Of TLS 1.2, by another client.
    let session = lab.dir().join("session");
    let path = session.to_string_lossy();
    let first = handshake(&lab, &["-tls1_2", "-sess_out", &path])?;
    assert!(first.contains("New, TLSv1.2"), "{first}");
    let resumed = || handshake(&lab, &["-tls1_2", "-sess_in", &path]);
    let again = resumed()?;
    assert!(again.contains("Reused, TLSv1.2"), "{again}");
    // Two rotations later nobody can open the ticket any more.
    until("the ticket's key is gone", Duration::from_secs(30), || {
        Ok(resumed()?.contains("New, TLSv1.2"))
    })?;
    edged.edit("tls.ticket_rotation", "\"off\"")?;
    edged.tell("reload")?;
    assert_eq!((visit()?, visit()?), (false, false));
    Ok(())
}

#[test]
fn post_quantum_exchange_goes_first() -> Result<()> {
    use NamedGroup::{X25519, X25519MLKEM768, secp256r1};
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    for (offered, agreed) in [
        (&[X25519MLKEM768, X25519][..], X25519MLKEM768),
        (&[X25519, X25519MLKEM768], X25519MLKEM768),
        (&[X25519], X25519),
        (&[secp256r1], secp256r1),
    ] {
        let talk = Dial::with(&edged.ca, HOST, None, offered)?.connect(&lab, CLIENT)?;
        assert_eq!(talk.group(), Some(agreed), "{offered:?}");
    }
    // Who has none of the groups is told so.
    let said = handshake(&lab, &["-groups", "ffdhe2048"])?;
    assert!(said.contains("handshake failure"), "{said}");
    assert_eq!(failures(&edged, "no_shared_suite")?, 1.0);
    Ok(())
}

/// A daemon that asks for client certificates of an authority.
struct Asking<'a> {
    edged: Edged<'a>,
    authority: Authority,
}

impl<'a> Asking<'a> {
    fn start(lab: &'a Lab, auth: &str, route: bool) -> Result<Self> {
        let authority = Authority::new(lab.dir(), "clients")?;
        let crl = authority.revoke("clients.crl", &[])?;
        let edged = lab
            .edged()?
            .set("tls.clients.auth", &format!("{auth:?}"))
            .set("tls.clients.ca", &format!("{:?}", authority.ca))
            .set("tls.clients.crl", &format!("[{crl:?}]"))
            .set("route.0.client_certificate", &route.to_string())
            .start()?;
        Ok(Self { edged, authority })
    }

    fn visit(&self, lab: &Lab, own: Option<&Leaf>) -> Result<Answer> {
        let mut talk = Dial::with(&self.edged.ca, HOST, own, &[])?.connect(lab, FRIEND)?;
        talk.get(HOST, "/health", &[])
    }
}

#[test]
fn client_certificates_are_judged_by_authority_list_and_pin() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let asking = Asking::start(&lab, "required", false)?;
    let (edged, authority) = (&asking.edged, &asking.authority);
    let good = authority.sign("good", &["good"], -60, DAY)?;
    let revoked = authority.sign("revoked", &["revoked"], -60, DAY)?;
    let expired = authority.sign("expired", &["expired"], -2 * DAY, -DAY)?;
    let stranger = Authority::new(lab.dir(), "other")?.sign("stranger", &["good"], -60, DAY)?;
    assert_eq!(asking.visit(&lab, Some(&good))?.status, 200);
    assert!(asking.visit(&lab, None).is_err());
    assert!(asking.visit(&lab, Some(&stranger)).is_err());
    assert!(asking.visit(&lab, Some(&expired)).is_err());
    until("failures are counted", Duration::from_secs(5), || {
        let kinds = ["certificate_missing", "certificate_refused"];
        Ok(kinds.map(|kind| failures(edged, kind).unwrap_or(-1.0)) == [1.0, 2.0])
    })?;

    // A session from before the revocation is no way around it.
    let dial = Dial::with(&edged.ca, HOST, Some(&revoked), &[])?;
    let visit = || -> Result<Answer> { dial.connect(&lab, FRIEND)?.get(HOST, "/health", &[]) };
    assert_eq!(visit()?.status, 200);
    authority.revoke("clients.crl", &[&revoked])?;
    until("the list is taken from disk", Duration::from_secs(10), || {
        Ok(metric(edged, "edged_certificate_reloads_total{result=\"ok\"}")? == 1.0)
    })?;
    assert!(visit().is_err());
    assert_eq!(asking.visit(&lab, Some(&good))?.status, 200);
    // A list that cannot be read leaves the former in force.
    fs::write(lab.dir().join("clients.crl"), "nonsense")?;
    until("the list is refused", Duration::from_secs(10), || {
        Ok(metric(edged, "edged_client_trust_stale")? == 1.0)
    })?;
    assert!(visit().is_err());
    assert_eq!(asking.visit(&lab, Some(&good))?.status, 200);
    authority.revoke("clients.crl", &[])?;

    let pin = |leaf: &Leaf| -> Result<()> {
        edged.edit("tls.clients.pins", &format!("[\"sha256:{}\"]", spki_digest(&leaf.chain)?))?;
        edged.tell("reload").map(drop)
    };
    pin(&good)?;
    assert_eq!(asking.visit(&lab, Some(&good))?.status, 200);
    pin(&stranger)?;
    assert!(asking.visit(&lab, Some(&good)).is_err());
    Ok(())
}

/// What `openssl` says the digest of a certificate's key is.
fn spki_digest(chain: &Path) -> Result<String> {
    let line = format!(
        "openssl x509 -in {} -noout -pubkey | openssl pkey -pubin -outform der | sha256sum",
        chain.display()
    );
    let done = std::process::Command::new("sh").args(["-c", &line]).output()?;
    Ok(String::from_utf8(done.stdout)?.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn a_route_may_ask_for_a_certificate_and_a_host_for_its_own_handshake() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let asking = Asking::start(&lab, "optional", true)?;
    let good = asking.authority.sign("good", &["good"], -60, DAY)?;
    assert_eq!(asking.visit(&lab, None)?.status, 403);
    assert_eq!(asking.visit(&lab, Some(&good))?.status, 200);
    let mut talk = Dial::with(&asking.edged.ca, HOST, Some(&good), &[])?.connect(&lab, FRIEND)?;
    assert_eq!(talk.get("other.test", "/health", &[])?.status, 421);
    let metrics = asking.edged.metrics()?;
    assert_eq!(metrics.requests(Reason::CertificateRequired), 1.0);
    assert_eq!(metrics.requests(Reason::MisdirectedRequest), 1.0);
    // Who had to show one is nobody whose answers others may be given.
    let mut talk = Dial::with(&asking.edged.ca, HOST, Some(&good), &[])?.connect(&lab, FRIEND)?;
    talk.say(format!("GET /health HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"hello"))?;
    let head = String::from_utf8_lossy(&heard.bytes).to_ascii_lowercase();
    assert!(head.contains("\r\ncache-control: no-store\r\n"), "{head}");

    // A proxy's own is not that of the clients for which it speaks, named or not.
    asking.edged.edit("server.trusted_proxies", &format!("[\"{FRIEND}/32\"]"))?;
    asking.edged.edit("server.forwarded_header", "\"x-forwarded-for\"")?;
    asking.edged.tell("reload")?;
    let mut proxy = Dial::with(&asking.edged.ca, HOST, Some(&good), &[])?.connect(&lab, FRIEND)?;
    assert_eq!(proxy.get(HOST, "/health", &["X-Forwarded-For: 192.0.2.1"])?.status, 403);
    assert_eq!(proxy.get(HOST, "/health", &[])?.status, 403);
    // Where it names nobody, it is a client like any other.
    asking.edged.edit("server.forwarded_header", "\"off\"")?;
    asking.edged.tell("reload")?;
    assert_eq!(asking.visit(&lab, Some(&good))?.status, 200);
    Ok(())
}

#[test]
fn each_listener_asks_for_itself_and_from_a_reload_on() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "clients")?;
    let own = authority.sign("own", &["own"], -60, DAY)?;
    let https = |second: &str| {
        format!("[\"{EDGE}:443\", {{ address = \"{EDGE}:8443\", client_auth = {second:?} }}]")
    };
    let edged = lab
        .edged()?
        .set("tls.clients.auth", "\"off\"")
        .set("tls.clients.ca", &format!("{:?}", authority.ca))
        .set("server.https", &https("required"))
        .start()?;
    let visit = |dial: &Dial| -> Result<(u16, bool)> {
        let mut talk = dial.connect(&lab, FRIEND)?;
        Ok((talk.get(HOST, "/health", &[])?.status, talk.is_resumed()))
    };
    // A session from where nobody is asked opens nothing where everybody is.
    let stranger = Dial::new(&edged.ca, HOST)?;
    assert_eq!(visit(&stranger)?, (200, false));
    assert_eq!(visit(&stranger)?, (200, true));
    let stranger = stranger.port(8443);
    assert!(visit(&stranger).is_err());
    let member = Dial::with(&edged.ca, HOST, Some(&own), &[])?.port(8443);
    assert_eq!(visit(&member)?.0, 200);

    edged.edit("server.https", &https("optional"))?;
    edged.tell("reload")?;
    assert_eq!(visit(&stranger)?.0, 200);
    let mut before = [stranger.connect(&lab, FRIEND)?, member.connect(&lab, FRIEND)?];
    let many = Dial::new(&edged.ca, HOST)?.port(8443).alpn("h2");
    let mut many = many.connect(&lab, FRIEND)?;
    many.say(&frames::preface())?;
    let heard = frames::frame(frames::SETTINGS, frames::ACK, 0, &[]);
    many.hear(SOON, |bytes| bytes.windows(heard.len()).any(|part| part == heard))?;
    edged.edit("server.https", &https("required"))?;
    edged.tell("reload")?;
    let mut ask = |n: usize| Ok::<_, anyhow::Error>(before[n].get(HOST, "/health", &[])?.status);
    assert_eq!((ask(0)?, ask(1)?), (421, 200));
    assert_eq!(ask(1)?, 200);
    assert!(before[0].hear(SOON, |_| false)?.closed, "it is good for no more");
    let flags = frames::END_HEADERS | frames::END_STREAM;
    many.say(&frames::frame(frames::HEADERS, flags, 1, &frames::get(HOST, "/health")))?;
    let heard = many.hear(SOON, |_| false)?;
    let refused = b"\"status\":421";
    let is_answered = heard.bytes.windows(refused.len()).any(|part| part == refused);
    assert!(is_answered && heard.closed, "{heard:?}");
    // A session from where it was for him to say would go on without the question, and who has got a certificate
    // meanwhile could never show it.
    assert!(!stranger.connect(&lab, FRIEND)?.is_resumed());
    assert!(visit(&stranger).is_err());
    assert_eq!(visit(&member)?.0, 200);
    assert_eq!(visit(&Dial::new(&edged.ca, HOST)?)?.0, 200, "the other listener asks nobody");
    assert_eq!(edged.metrics()?.requests(Reason::MisdirectedRequest), 2.0);
    Ok(())
}

#[test]
fn a_new_certificate_is_served_and_no_connection_is_lost() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "tls")?;
    let leaf = authority.sign("served", &[HOST], -60, DAY)?;
    let path = |path: &Path| format!("{path:?}");
    let edged = lab
        .edged()?
        .set("tls.certificate", &path(&leaf.chain))
        .set("tls.key", &path(&leaf.key))
        .start()?;
    let dial = Dial::new(&authority.ca, HOST)?;
    let mut held = (0..8).map(|_| dial.connect(&lab, CLIENT)).collect::<Result<Vec<_>>>()?;
    let mut ask_all = || -> Result<()> {
        for talk in &mut held {
            ensure!(talk.get(HOST, "/health", &[])?.status == 200);
        }
        Ok(())
    };
    // A client without sessions sees what is served now.
    let current = || -> Result<Vec<u8>> {
        Ok(Dial::new(&authority.ca, HOST)?.connect(&lab, CLIENT)?.certificate())
    };
    ask_all()?;
    let first = current()?;
    authority.sign("served", &[HOST], -60, 2 * DAY)?;
    until("the new one is served", Duration::from_secs(10), || {
        ask_all()?;
        Ok(current()? != first)
    })?;
    ask_all()?;
    let second = current()?;
    let expiry = metric(
        &edged,
        &format!(
            "edged_certificate_expiry_seconds{{use=\"served\",name=\"{HOST}\",key=\"ECDSA\"}}"
        ),
    )?;

    // What is not good never takes its place: another's key, one that has expired, nonsense.
    let refused = |count: f64| {
        until("it is refused", Duration::from_secs(10), || {
            Ok(metric(&edged, "edged_certificate_reloads_total{result=\"refused\"}")? == count)
        })
    };
    let other = authority.sign("other", &[HOST], -60, DAY)?;
    fs::copy(&other.key, &leaf.key)?;
    refused(1.0)?;
    assert_eq!(current()?, second);
    assert_eq!(metric(&edged, "edged_certificate_stale")?, 1.0);
    authority.sign("served", &[HOST], -2 * DAY, -DAY)?;
    refused(2.0)?;
    // Nor does another site's, which is good there.
    authority.sign("served", &["other.test"], -60, DAY)?;
    refused(3.0)?;
    assert_eq!(current()?, second);
    fs::write(&leaf.chain, "nonsense")?;
    refused(4.0)?;
    assert_eq!(current()?, second);
    assert!(edged.ctl("reload")?.status.code() != Some(0), "nor does a reload take it");
    assert_eq!(metric(&edged, "edged_certificate_expiry")?, expiry);
    assert!(edged.log().contains("not good; the former is served"), "{}", edged.log());
    authority.sign("served", &[HOST], -60, 3 * DAY)?;
    until("a good one is taken again", Duration::from_secs(10), || {
        Ok(metric(&edged, "edged_certificate_stale")? == 0.0 && current()? != second)
    })?;
    ask_all()
}

#[test]
fn what_was_not_good_is_taken_once_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(lab.dir(), "tls")?;
    let leaf = authority.sign("served", &[HOST], -60, DAY)?;
    let edged = lab
        .edged()?
        .set("tls.certificate", &format!("{:?}", leaf.chain))
        .set("tls.key", &format!("{:?}", leaf.key))
        .start()?;
    let stale = || metric(&edged, "edged_certificate_stale");
    let ends =
        format!("edged_certificate_expiry_seconds{{use=\"served\",name=\"{HOST}\",key=\"ECDSA\"}}");
    let first = metric(&edged, &ends)?;
    // The daemon is root without the power to read what it may not.
    let mode = |bits| fs::set_permissions(&leaf.key, fs::Permissions::from_mode(bits));
    authority.sign("served", &[HOST], -60, 2 * DAY)?;
    mode(0o000)?;
    until("it cannot be read", SOON, || Ok(stale()? == 1.0))?;
    assert!(edged.log().contains("Permission denied"), "{}", edged.log());
    mode(0o600)?;
    until("it is taken", SOON, || Ok(stale()? == 0.0))?;
    let second = metric(&edged, &ends)?;
    assert!(second > first);

    authority.sign("served", &[HOST], 6, 3 * DAY)?;
    until("it is too early", SOON, || Ok(stale()? == 1.0))?;
    until("a reload takes it in its time", SOON, || {
        edged.tell("reload")?;
        Ok(stale()? == 0.0)
    })?;
    assert!(metric(&edged, &ends)? > second);
    Ok(())
}

#[test]
fn an_ocsp_response_is_stapled() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(lab.dir(), "tls")?;
    let leaf = authority.sign("leaf", &[HOST], -60, DAY)?;
    let response = lab.dir().join("response.der");
    authority.respond(&leaf, &response)?;
    let all = certificates(&[(&leaf, &format!(", ocsp = {response:?}"))]);
    let _edged = lab.edged()?.without("tls", "key").set("tls.certificate", &all).start()?;
    let said = handshake(&lab, &["-status"])?;
    assert!(said.contains("OCSP Response Status: successful"), "{said}");
    assert!(said.contains("Cert Status: good"), "{said}");
    Ok(())
}

#[test]
fn no_ocsp_response_is_stapled_that_is_stale_or_for_another_certificate() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(lab.dir(), "tls")?;
    let leaf = authority.sign("leaf", &[HOST], -60, DAY)?;
    let other = authority.sign("other", &[HOST], -60, DAY)?;
    let response = lab.dir().join("response.der");
    authority.respond_until(&leaf, &response, -5)?;
    let all = certificates(&[(&leaf, &format!(", ocsp = {response:?}"))]);
    let edged = lab.edged()?.without("tls", "key").set("tls.certificate", &all).start()?;
    let is_stapled = || -> Result<bool> {
        let said = handshake(&lab, &["-status"])?;
        ensure!(said.contains("Server certificate"), "{said}");
        Ok(said.contains("OCSP Response Status: successful"))
    };
    let until_stapled = |expected: bool| {
        until("it is as it should be", Duration::from_secs(10), || {
            let is_stale = metric(&edged, "edged_ocsp_stale")? == 1.0;
            Ok(is_stapled()? == expected && is_stale != expected)
        })
    };
    until_stapled(false)?;
    let checked = edged.check()?;
    assert!(checked.contains("response.der has expired on"), "{checked}");
    assert!(checked.contains("edged.toml:"), "{checked}");
    assert!(checked.contains("nothing will be stapled"), "{checked}");

    // A good one is taken, and neither another certificate's nor a stale one takes its place.
    authority.respond(&leaf, &response)?;
    until_stapled(true)?;
    let refused = |count: f64| {
        until("it is refused", Duration::from_secs(10), || {
            Ok(metric(&edged, "edged_certificate_reloads_total{result=\"refused\"}")? == count)
        })
    };
    authority.respond_until(&other, &response, DAY)?;
    refused(1.0)?;
    assert!(is_stapled()? && edged.log().contains("an OCSP response for another certificate"));
    assert!(edged.check()?.contains("an OCSP response for another certificate"));
    authority.respond_until(&leaf, &response, -5)?;
    refused(2.0)?;
    assert!(is_stapled()?);
    assert_eq!(metric(&edged, "edged_certificate_stale")?, 1.0);

    // One that ends while it is served is served no more.
    authority.respond_until(&leaf, &response, 6)?;
    until_stapled(true)?;
    until("a good one is there", Duration::from_secs(10), || {
        Ok(metric(&edged, "edged_certificate_stale")? == 0.0)
    })?;
    until_stapled(false)?;
    assert!(edged.log().contains("response.der has expired on"), "{}", edged.log());
    // A new certificate waits for no response: it is shown without the former's.
    authority.respond(&leaf, &response)?;
    until_stapled(true)?;
    authority.sign("leaf", &[HOST], -60, 2 * DAY)?;
    until_stapled(false)?;
    assert_eq!(metric(&edged, "edged_certificate_stale")?, 0.0);
    Ok(())
}

#[test]
fn a_list_whose_next_one_is_overdue_lets_nobody_in_or_holds_on() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let asking = Asking::start(&lab, "required", false)?;
    let (edged, authority) = (&asking.edged, &asking.authority);
    let good = authority.sign("good", &["good"], -60, DAY)?;
    let is_served = || asking.visit(&lab, Some(&good)).is_ok_and(|answer| answer.status == 200);
    assert!(is_served());
    assert_eq!(metric(edged, "edged_client_trust_stale")?, 0.0);
    // An overdue list does not take the place of one that is not, on disk or by a reload.
    authority.revoke_until("clients.crl", &[], -5)?;
    until("it is refused", Duration::from_secs(10), || {
        Ok(metric(edged, "edged_certificate_reloads_total{result=\"refused\"}")? == 1.0)
    })?;
    assert!(is_served());
    assert_eq!(metric(edged, "edged_client_trust_stale")?, 1.0);
    let checked = edged.check()?;
    assert!(checked.contains("clients.crl has expired on"), "{checked}");
    assert!(checked.contains("edged.toml:"), "{checked}");
    assert!(checked.contains("every client with a certificate"), "{checked}");
    let ends = format!(
        "edged_certificate_expiry_seconds{{use=\"crl\",name=\"{}\"",
        lab.dir().join("clients.crl").display()
    );
    let former = metric(edged, &ends)?;
    let authority_ends = "edged_certificate_expiry_seconds{use=\"client_ca\",\
                          name=\"clients authority\",key=\"ECDSA\"}";
    assert!(metric(edged, authority_ends)? > former);

    // One whose time comes lets nobody in until there is a new one.
    authority.revoke_until("clients.crl", &[], 6)?;
    until("a good one is taken", Duration::from_secs(10), || {
        Ok(metric(edged, &ends)? < former && is_served())
    })?;
    let kept = Dial::with(&edged.ca, HOST, Some(&good), &[])?;
    let resumes = || -> Result<bool> {
        let mut talk = kept.connect(&lab, FRIEND)?;
        ensure!(talk.get(HOST, "/health", &[])?.status == 200);
        Ok(talk.is_resumed())
    };
    assert_eq!((resumes()?, resumes()?), (false, true));
    until("nobody is let in", Duration::from_secs(15), || Ok(!is_served()))?;
    // That is the list's fault, and no client's, of a session from before neither.
    let unknown = failures(edged, "revocation_unknown")?;
    assert!(unknown >= 1.0 && resumes().is_err());
    until("both are counted", SOON, || Ok(failures(edged, "revocation_unknown")? > unknown))?;
    assert_eq!(failures(edged, "certificate_refused")?, 0.0);
    let refused = edged.events()?.into_iter().filter(|e| e["event"] == "connection_refused");
    assert_eq!(refused.count(), 0);
    until("that is told", Duration::from_secs(5), || {
        let told = edged.log().contains("clients.crl has expired on");
        Ok(told && metric(edged, "edged_client_trust_stale")? == 1.0)
    })?;
    authority.revoke("clients.crl", &[])?;
    until("a new list is taken", Duration::from_secs(10), || {
        Ok(is_served() && metric(edged, "edged_client_trust_stale")? == 0.0)
    })?;
    // Who would rather let in whom a newer list may name says so.
    edged.edit("tls.clients.crl_expired", "\"accept\"")?;
    edged.tell("reload")?;
    authority.revoke_until("clients.crl", &[], -5)?;
    until("it is taken, and told", Duration::from_secs(10), || {
        Ok(metric(edged, "edged_client_trust_stale")? == 1.0)
    })?;
    assert!(is_served());
    assert!(edged.check()?.contains("what was revoked since is not known"));
    Ok(())
}

/// JA4 as its description words it, by another hand: what a program of Python makes of a hello.
const REFERENCE: &str = r#"
import sys, hashlib
b = sys.stdin.buffer.read(); m = b''; i = 0
while i < len(b) and b[i] == 22:
    n = b[i+3] << 8 | b[i+4]; m += b[i+5:i+5+n]; i += 5 + n
n = lambda k: int.from_bytes(m[k:k+2], 'big')
p = 4 + 2 + 32; version = n(4); p += 1 + m[p]
suites = [n(k) for k in range(p+2, p+2+n(p), 2)]; p += 2 + n(p); p += 1 + m[p]
end = p + 2 + n(p); p += 2; exts = []; sigs = []; alpn = '00'
while p < end:
    t, l = n(p), n(p+2); exts.append(t); q = p + 4
    if t == 13: sigs = [n(k) for k in range(q+2, q+l, 2)]
    if t == 16: w = m[q+3:q+3+m[q+2]].decode(); alpn = w[0] + w[-1]
    if t == 43: version = max(n(k) for k in range(q+1, q+l, 2) if m[k] & 15 != 10)
    p = q + l
real = lambda v: [x for x in v if x & 0x0f0f != 0x0a0a]
h = lambda s: hashlib.sha256(s.encode()).hexdigest()[:12]
x = lambda v: ','.join('%04x' % k for k in v)
suites, exts = real(suites), real(exts)
print('t%s%s%02d%02d%s_%s_%s' % ({772: '13', 771: '12'}[version], 'd' if 0 in exts else 'i',
    len(suites), len(exts), alpn, h(x(sorted(suites))),
    h(x(sorted(k for k in exts if k not in (0, 16))) + ('_' + x(sigs) if sigs else ''))))
"#;

#[test]
fn fingerprints_are_those_of_an_independent_reading() -> Result<()> {
    let lab = Lab::new()?;
    // A certificate is asked for, so that each connection ends in an event.
    let asking = Asking::start(&lab, "required", false)?;
    let edged = &asking.edged;
    let tap = lab.client.enter(|| std::net::TcpListener::bind("127.0.0.1:4433"))?;
    let programs = [
        "openssl s_client -servername edge.test -connect ADDRESS",
        "openssl s_client -tls1_2 -noservername -connect ADDRESS",
        "openssl s_client -alpn http/1.1 -servername edge.test -connect ADDRESS",
        "curl -sk --connect-to edge.test:443:ADDRESS https://edge.test/",
    ];
    let mut expected = Vec::new();
    for program in programs {
        let run = |address: &str| {
            let line = program.replace("ADDRESS", address);
            let mut words = line.split(' ');
            let mut command = lab.client.command(words.next().unwrap_or_default());
            command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn()
        };
        let mut tapped = run("127.0.0.1:4433")?;
        let (mut stream, _) = tap.accept()?;
        let mut hello = vec![0; 16_384];
        let mut length = 0;
        while length < 5 || length < 5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])) {
            length += std::io::Read::read(&mut stream, &mut hello[length..])?;
        }
        drop(stream);
        tapped.wait()?;
        let mut python = std::process::Command::new("python3")
            .args(["-c", REFERENCE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        python.stdin.take().context("piped")?.write_all(&hello[..length])?;
        let said = String::from_utf8(python.wait_with_output()?.stdout)?;
        expected.push(said.trim().to_owned());
        run(&format!("{}:443", edge_tests::lab::EDGE))?.wait()?;
    }
    until("each was seen", Duration::from_secs(10), || {
        let seen: Vec<_> = edged
            .events()?
            .iter()
            .filter(|e| e["kind"] == "certificate_missing")
            .filter_map(|e| e["ja4"].as_str().map(str::to_owned))
            .collect();
        ensure!(seen.len() < expected.len() || seen == expected, "{seen:?}, not {expected:?}");
        Ok(seen == expected)
    })?;
    // Three kinds of hello, four programs, two of them alike in nothing.
    assert!(expected[0].starts_with("t13d") && expected[1].starts_with("t12i"), "{expected:?}");

    edged.edit("tls.ja4_deny", &format!("[{:?}]", expected[0]))?;
    edged.tell("reload")?;
    handshake(&lab, &[])?;
    assert_eq!(failures(edged, "fingerprint_denied")?, 1.0);
    assert_eq!(edged.metrics()?.connections(Reason::FingerprintDenied), 1.0);
    Ok(())
}

/// The configuration of a daemon that bans nobody for failing to shake hands.
fn without_scenarios() -> String {
    ["flood", "protocol-abuse", "slow-client"]
        .map(|name| format!("[[scenario]]\nname = \"{name}\"\nenabled = false"))
        .join("\n")
}

#[test]
fn handshakes_are_bounded_in_number_rate_and_time() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab
        .edged()?
        .set("bounds.handshakes_max", "4")
        .set("bounds.handshake_timeout", "\"2s\"")
        .set("limits.handshakes", "{ rate = \"1/m\", burst = 12 }")
        .append(&without_scenarios())?
        .start()?;
    let within = Duration::from_secs(5);
    let slow =
        (0..4).map(|_| connect(&lab, ATTACKER, 443, within)).collect::<Result<Vec<_>, _>>()?;
    until("they are all in", within, || Ok(metric(&edged, "edged_handshakes_in_flight")? == 4.0))?;
    let reset = connect(&lab, CLIENT, 443, within)?;
    until("one more is one too many", within, || {
        Ok(edged.metrics()?.connections(Reason::HandshakesFull) == 1.0)
    })?;
    until(
        "they are given up",
        Duration::from_secs(10),
        || Ok(failures(&edged, "timeout")? == 4.0),
    )?;
    drop((slow, reset));
    assert!(handshake(&lab, &[])?.contains("New, TLSv1.3"), "others are served again");
    for _ in 0..12 {
        let mut stream = connect(&lab, ATTACKER, 443, within)?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let _ = std::io::Read::read(&mut stream, &mut [0; 16]);
    }
    until("a source has a budget", within, || {
        Ok(edged.metrics()?.connections(Reason::HandshakeRate) == 4.0)
    })?;
    assert_eq!(failures(&edged, "not_tls")?, 8.0);
    assert!(handshake(&lab, &[])?.contains("New, TLSv1.3"), "of its own");
    Ok(())
}

/// The first flight of a client.
fn first_words(edged: &Edged<'_>) -> Result<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&edged.ca)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut words = Vec::new();
    ClientConnection::new(Arc::new(config), HOST.try_into()?)?.write_tls(&mut words)?;
    Ok(words)
}

#[test]
fn whose_turn_to_shake_hands_does_not_come_in_time_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("bounds.handshake_timeout", "\"20ms\"")
        .set("bounds.source_handshakes_max", "500")
        .append(&without_scenarios())?
        .start()?;
    let (words, within) = (first_words(&edged)?, Duration::from_secs(5));
    until("some had no turn", Duration::from_secs(30), || {
        // All of them are there when it looks.
        edged.signal(Signal::SIGSTOP)?;
        let crowd = (0..500).map(|_| connect(&lab, FRIEND, 443, within));
        let crowd = crowd.collect::<Result<Vec<_>, _>>();
        let said = crowd.iter().flatten().try_for_each(|mut client| client.write_all(&words));
        edged.signal(Signal::SIGCONT)?;
        drop(crowd?);
        said?;
        until("all are done with", within, || {
            Ok(metric(&edged, "edged_handshakes_in_flight")? == 0.0)
        })?;
        Ok(edged.metrics()?.connections(Reason::HandshakesFull) > 0.0)
    })?;
    Ok(())
}

#[test]
fn one_client_leaves_room_for_the_handshakes_of_others() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab
        .edged()?
        .set("bounds.handshakes_max", "6")
        .set("bounds.source_handshakes_max", "2")
        .set("bounds.handshake_timeout", "\"60s\"")
        .start()?;
    let within = Duration::from_secs(5);
    let full = || Ok::<_, anyhow::Error>(edged.metrics()?.connections(Reason::HandshakesFull));
    let silent = |count| {
        let all = (0..count).map(|_| connect(&lab, ATTACKER, 443, within));
        all.collect::<std::io::Result<Vec<_>>>()
    };
    let crowd = silent(8)?;
    until("it has its part, and no more", within, || {
        Ok(full()? == 6.0 && metric(&edged, "edged_handshakes_in_flight")? == 2.0)
    })?;
    assert!(handshake(&lab, &[])?.contains("New, TLSv1.3"), "others have theirs");
    drop(crowd);
    until("they are gone", within, || Ok(metric(&edged, "edged_handshakes_in_flight")? == 0.0))?;
    let again = silent(2)?;
    until("it has its part again", within, || {
        Ok(metric(&edged, "edged_handshakes_in_flight")? == 2.0)
    })?;
    assert_eq!(full()?, 6.0);
    drop(again);
    Ok(())
}

#[test]
fn a_name_whose_certificate_is_still_to_come_is_nobodys_misdeed() -> Result<()> {
    let lab = Lab::new()?;
    let authority = Authority::new(lab.dir(), "tls")?;
    let leaf = authority.sign("there", &["there.test"], -60, DAY)?;
    let edged = lab
        .edged()?
        .set("tls.certificate", &format!("{:?}", leaf.chain))
        .set("tls.key", &format!("{:?}", leaf.key))
        .set("tls.unknown_name", "\"refuse\"")
        // Nobody is there.
        .set("tls.acme", "{ directory = \"https://127.0.0.1:9/dir\", names = [\"acme.test\"] }")
        .start()?;
    for (name, expected) in [("acme.test", [1.0, 0.0]), ("other.test", [1.0, 1.0])] {
        let said = ask(&lab, &["-servername", name])?;
        assert!(said.contains("unrecognized name"), "{said}");
        let counted = ["certificate_awaited", "unknown_name"].map(|kind| failures(&edged, kind));
        let [awaited, unknown] = counted;
        assert_eq!([awaited?, unknown?], expected, "{name}");
    }
    let refused = edged.events()?.into_iter().filter(|e| e["event"] == "connection_refused");
    assert_eq!(refused.count(), 1);
    Ok(())
}

/// Pebble, a small authority, behind the edge, with a DNS of its own that knows one address.
struct Pebble([std::process::Child; 2]);

impl Pebble {
    fn start(lab: &Lab, authority: &Authority) -> Result<Self> {
        use edge_tests::lab::{BACK, ORIGIN};
        let own = authority.sign("pebble", &[ORIGIN], -60, DAY)?;
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("{ORIGIN}:14000"),
            "managementListenAddress": format!("{ORIGIN}:15000"),
            "certificate": own.chain, "privateKey": own.key,
            "httpPort": 80, "tlsPort": 443,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        let path = lab.dir().join("pebble.json");
        fs::write(&path, config.to_string())?;
        let quiet = |command: &mut std::process::Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let mut dns = lab.origin.command("pebble-challtestsrv");
        dns.args(["-defaultIPv4", BACK, "-defaultIPv6", "", "-dns01", "127.0.0.1:8053"]);
        dns.args([
            "-management",
            "127.0.0.1:8055",
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
        ]);
        let mut pebble = lab.origin.command("pebble");
        pebble.arg("-config").arg(&path).args(["-dnsserver", "127.0.0.1:8053"]);
        pebble.env("PEBBLE_VA_NOSLEEP", "1");
        Ok(Self([quiet(&mut dns)?, quiet(&mut pebble)?]))
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_certificate_is_fetched_kept_and_served() -> Result<()> {
    if !installed("pebble") {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "directory")?;
    let pebble = Pebble::start(&lab, &authority)?;
    let listeners =
        format!("[\"{}:443\", \"{}:443\"]", edge_tests::lab::EDGE, edge_tests::lab::BACK);
    let acme = format!(
        "{{ directory = \"https://{}:14000/dir\", names = [\"acme.test\"], ca = {:?} }}",
        edge_tests::lab::ORIGIN,
        authority.ca
    );
    let mut edged = lab
        .edged()?
        .without("tls", "certificate")
        .without("tls", "key")
        .set("tls.acme", &acme)
        .set("server.https", &listeners)
        .start()?;
    let fetched = "edged_certificate_expiry_seconds{use=\"served\",name=\"acme.test\"";
    until("it is fetched", Duration::from_secs(60), || Ok(metric(&edged, fetched).is_ok()))
        .with_context(|| edged.log())?;

    let root = lab.dir().join("root.pem");
    let mut curl = lab.origin.command("curl");
    curl.args(["-sk", "https://192.0.2.2:15000/roots/0", "-o"]).arg(&root);
    ensure!(curl.status()?.success());
    let dial = Dial::new(&root, "acme.test")?;
    let mut talk = dial.connect(&lab, CLIENT)?;
    assert_eq!(talk.get("acme.test", "/health", &[])?.status, 200);
    for secret in ["account.json", "acme.test.pem"] {
        let mode = fs::metadata(lab.dir().join("state/acme").join(secret))?.permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600, "{secret}");
    }
    // It is on disk: a restart needs no authority.
    drop(pebble);
    edged.kill9()?;
    edged.start_again()?;
    assert_eq!(dial.connect(&lab, CLIENT)?.get("acme.test", "/health", &[])?.status, 200);
    // Who asks for a proof while none is due is no authority of ours.
    let said = ask(&lab, &["-servername", "acme.test", "-alpn", "acme-tls/1"])?;
    assert!(said.contains("no application protocol"), "{said}");
    Ok(())
}
