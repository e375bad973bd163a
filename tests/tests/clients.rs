//! Who the client is, when proxies stand in front: what they say is taken from the trusted alone,
//! and what follows from it meets the client and never the proxy.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::{HOST, reaches, until},
    lab::{ATTACKER, CLIENT, EDGE, FRIEND},
    talk::{Answer, Dial},
};
use serde_json::Value;

/// Clients that nobody in the lab is, behind a proxy at [`CLIENT`].
const ONE: &str = "203.0.114.9";
const OTHER: &str = "203.0.114.10";

/// A daemon behind the proxy.
fn behind<'a>(lab: &'a Lab, more: &[(&str, &str)]) -> Result<Edged<'a>> {
    let setup = lab
        .edged()?
        .set("server.trusted_proxies", &format!("[\"{CLIENT}/32\", \"10.0.0.0/8\"]"))
        .append("[[scenario]]\nname = \"brute-force\"\ncapacity = 2")?;
    more.iter().fold(setup, |setup, (key, value)| setup.set(key, value)).start()
}

fn line(client: &str) -> String {
    format!("PROXY TCP4 {client} {EDGE} 50000 443\r\n")
}

/// Version 2 of the same, with an addition.
fn binary(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11".to_vec();
    header.extend(client);
    header.extend([198, 51, 100, 1, 0xc3, 0x50, 1, 0xbb]);
    header.extend([4, 0, 2, 0, 0]);
    header
}

/// A request with a key that is none.
fn misdeed(edged: &Edged<'_>, lab: &Lab, before: &[u8], more: &[&str]) -> Result<Answer> {
    let mut talk = Dial::new(&edged.ca, HOST)?.before(before).connect(lab, CLIENT)?;
    let lines = [more, &["X-API-Key: nonsense"]].concat();
    talk.get(HOST, "/", &lines)
}

/// Whoever else sends from a proxy's network, as the tenants of a CDN do, or claims to.
#[test]
fn what_comes_from_a_proxys_network_reaches_what_is_offered_and_no_more() -> Result<()> {
    let lab = Lab::new()?;
    let once = r#"{ rate = "1/m", burst = 1 }"#;
    let edged = behind(
        &lab,
        &[
            ("kernel.services", r#"{ inbound = ["udp/53"] }"#),
            ("kernel.signature", r#"[{ name = "udp", action = "drop", protocol = "udp" }]"#),
            ("lists.deny", &format!("[\"{CLIENT}/32\"]")),
            ("kernel.connection_rate", once),
            ("kernel.packet_rate", once),
        ],
    )?;
    for _ in 0..3 {
        assert!(reaches(&lab, CLIENT, 443), "no list and no limit is for a proxy");
    }
    assert!(!reaches(&lab, CLIENT, 9), "nobody offers that port");
    let explained = |more: &str| -> Result<[Value; 2]> {
        let mut told = edged.ask(&format!("explain {CLIENT} {more}"))?;
        Ok(["verdict", "source"].map(|key| told[key].take()))
    };
    assert_eq!(explained("--port 443")?, ["allow_list", "trusted_proxies"]);
    assert_eq!(explained("--port 9")?[0], "no_service");
    assert_eq!(explained("--protocol udp --port 53")?[0], "signature");
    edged.tell(&format!("allow add {CLIENT}"))?;
    assert!(reaches(&lab, CLIENT, 9), "an operator's word goes above all");
    assert_eq!(explained("--port 9")?, ["allow_list", "operator"]);
    edged.tell(&format!("allow remove {CLIENT}"))?;
    assert!(!reaches(&lab, CLIENT, 9), "the operator's word is gone");
    assert_eq!(explained("--port 443")?, ["allow_list", "trusted_proxies"]);
    Ok(())
}

#[test]
fn a_proxy_says_who_the_client_is() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let listener = format!("[{{ address = \"{EDGE}:443\", proxy_protocol = true }}]");
    let settings = [("server.https", &*listener), ("route.1.auth", "\"none\"")];
    let edged = behind(&lab, &settings)?;
    let echo = |before: &[u8]| -> Result<String> {
        let mut talk = Dial::new(&edged.ca, HOST)?.before(before).connect(&lab, CLIENT)?;
        let answer = talk.get(HOST, "/echo", &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.body)
    };
    let is_told = |answer: &str, port: u16| {
        answer.to_ascii_lowercase().contains(&format!("\"x-forwarded-port\",\"{port}\""))
    };
    // The port that the client came to is the proxy's.
    let first = echo(line(ONE).replace(" 443", " 8443").as_bytes())?;
    assert!(first.contains(ONE) && !first.contains(CLIENT) && is_told(&first, 8443), "{first}");
    let mut header = binary([203, 0, 114, 10]);
    header[26..28].copy_from_slice(&9443_u16.to_be_bytes());
    let second = echo(&header)?;
    assert!(second.contains(OTHER) && !second.contains(CLIENT), "{second}");
    assert!(is_told(&second, 9443), "{second}");
    // The proxy itself, as its health checks are.
    let own = echo(b"PROXY UNKNOWN\r\n")?;
    assert!(own.contains(CLIENT) && is_told(&own, 443), "{own}");
    let curl = edged.get(CLIENT, "/echo").flag("--haproxy-protocol").send()?;
    assert_eq!(curl.status, 200);

    for before in [&b""[..], b"PROXY TCP4 203.0.114.9\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
        let dial = Dial::new(&edged.ca, HOST)?.before(before);
        assert!(dial.connect(&lab, CLIENT).is_err(), "{before:?}");
    }
    assert!(Dial::new(&edged.ca, HOST)?.before(line(ONE)).connect(&lab, ATTACKER).is_err());
    let metrics = edged.metrics()?;
    assert_eq!(metrics.connections(Reason::ProxyHeaderInvalid), 3.0);
    assert_eq!(metrics.connections(Reason::ProxyUntrusted), 1.0);
    let refused = edged.event("connection_refused", ATTACKER)?;
    assert_eq!(refused["reason"], "proxy_untrusted");
    Ok(())
}

/// A proxy that passes TLS on does not read what is in it: its clients do the writing.
#[test]
fn whoever_comes_by_a_proxy_that_names_nobody_names_nobody_either() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let listener = format!("[{{ address = \"{EDGE}:443\", proxy_protocol = true }}]");
    let settings = [
        ("server.https", &*listener),
        ("server.forwarded_header", "\"x-forwarded-for\""),
        ("route.1.auth", "\"none\""),
    ];
    let edged = behind(&lab, &settings)?;
    let said = format!("X-Forwarded-For: {OTHER}");
    let echo = |before: &[u8]| -> Result<String> {
        let mut talk = Dial::new(&edged.ca, HOST)?.before(before).connect(&lab, CLIENT)?;
        Ok(talk.get(HOST, "/echo", &[&said])?.body)
    };
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let unspecified = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0";
    for before in [&b"PROXY UNKNOWN\r\n"[..], local, unspecified, line(ONE).as_bytes()] {
        let seen = echo(before)?;
        assert!(!seen.contains(OTHER), "{before:?}: {seen}");
    }
    // A proxy that ends TLS may stand before one that does not.
    let seen = echo(line("10.1.2.3").as_bytes())?;
    assert!(seen.contains(OTHER), "{seen}");
    Ok(())
}

#[test]
fn what_clients_say_of_themselves_reaches_no_upstream() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged =
        lab.edged()?.set("route.1.auth", "\"none\"").set("bounds.headers_max", "200").start()?;
    let lines: Vec<_> = CLAIMS.split_whitespace().map(|name| format!("{name}: claimed")).collect();
    let mut lines: Vec<&str> = lines.iter().map(|line| &**line).collect();
    lines.extend(["X-Auth-Token: mine", "X-User-Agent: mine", "X-Tenant-Id: mine"]);
    lines.extend(["X-Scope-OrgID: mine", "X-Subject-Token: mine", "CF-Webhook-Auth: mine"]);
    let mut talk = Dial::new(&edged.ca, HOST)?.connect(&lab, CLIENT)?;
    let answer = talk.get(HOST, "/echo", &lines)?;
    ensure!(answer.status == 200, "{answer:?}");
    let seen: Value = serde_json::from_str(&answer.body)?;
    let said = |what: &str| -> Vec<_> {
        let fields = seen["headers"].as_array().into_iter().flatten();
        fields.filter(|field| field[1] == what).map(|field| field[0].to_string()).collect()
    };
    assert!(said("claimed").is_empty(), "{:?}", said("claimed"));
    assert_eq!(said("mine").len(), 6, "{seen}");
    // Unless the route says so of one of them.
    edged.edit("route.1.keep_headers", "[\"x-user-sub\"]")?;
    edged.tell("reload")?;
    let answer = talk.get(HOST, "/echo", &lines)?;
    assert_eq!(answer.body.matches("claimed").count(), 1, "{answer:?}");
    assert!(answer.body.to_ascii_lowercase().contains("x-user-sub"), "{answer:?}");
    Ok(())
}

/// One of each family that docs/clients.md names, and what other gateways are known to say.
const CLAIMS: &str = "
    Forwarded-For X-Forward-For Http-X-Forwarded-For HTTP-Client-IP Proxy-Client-IP WL-Proxy-Client-IP Incap-Client-IP
    CDN-Src-IP Ali-CDN-Real-IP X-Orig-Client-Ip X-Real-User X-Real-Host X-Real-Port X-Azure-FDID X-Azure-SocketIP Proxy
    Proxy-User X-Proxy-User X-Remote-Addr X-Custom.IP X-Nf-Client-Connection-Ip Fly-Client-IP CF-Visitor CF-IPCountry
    CloudFront-Viewer-Address X-Vercel-Ip-Country X-Akamai-Edgescape Fastly-SSL
    X-ARR-ClientCert X-Tls-Cert X-Clientcert-Dn Ssl-Cert SSL-Session-Id X-Spiffe-Id X-Forwarded-Client-Cert X-Peer-Cert
    X-Mtls-Subject X-Subject-Dn X-Cert-Serial TLS-Client-Cert
    X-Original-URI X-Original-Method X-Envoy-Original-Path X-Envoy-Internal X-Rewrite-Url X-Http-Host-Override
    X-Override-Url X-Url-Scheme X-Host-Override X-Method-Override X-Forwarded-Uri Front-End-Https
    X-Userinfo X-Id-Token X-Email X-Auth-Email X-Auth-Name X-Token-Subject X-Sub X-Verified-User Impersonate-User
    X-Impersonate-Group X-User-Sub X-User.Claims X-Group-Ids X-Roles-All X-Scopes-Granted X-Principal-Name X-Is-Admin
    X-Claims X-Identity-Id X-Permissions-All X-Admin-User X-SSO-User X-Saml-Nameid Saml-Subject Shib-Identity-Provider
    $WSRU $WSCC X-User$ X-RealIP X-ClientIP X-Custom-IP-Authorization OAM-Remote-User Teleport-Jwt-Assertion
    X-Shib-User Iv-User Sm-Userdn Oidc-Access-Token X-Oidc-Sub X-On-Behalf-Of X-Jwt-Payload X-Ms-Token-Aad-Id-Token";

#[test]
fn a_ban_meets_the_client_and_not_its_proxy() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let listener = format!("[{{ address = \"{EDGE}:443\", proxy_protocol = true }}]");
    let mut edged = behind(&lab, &[("server.https", &listener)])?;
    for _ in 0..3 {
        assert_eq!(misdeed(&edged, &lab, line(ONE).as_bytes(), &[])?.status, 401);
    }
    let visit = |edged: &Edged<'_>, client: &str| -> Result<u16> {
        let mut talk = Dial::new(&edged.ca, HOST)?.before(line(client)).connect(&lab, CLIENT)?;
        Ok(talk.get(HOST, "/health", &[])?.status)
    };
    until("it is banned", Duration::from_secs(5), || edged.banned(ONE))?;
    let banned = |edged: &Edged<'_>| visit(edged, ONE).is_err();
    until("its connections are closed", Duration::from_secs(5), || Ok(banned(&edged)))?;
    assert!(edged.metrics()?.connections(Reason::BannedConnection) >= 1.0);
    assert_eq!(visit(&edged, OTHER)?, 200);
    assert!(!edged.banned(CLIENT)?);
    // It outlasts the daemon, as any ban.
    edged.kill9()?;
    edged.start_again()?;
    assert!(banned(&edged));
    assert_eq!(visit(&edged, OTHER)?, 200);
    edged.tell(&format!("ban remove {ONE}"))?;
    assert_eq!(visit(&edged, ONE)?, 200);
    // What goes wrong on the proxy's own account is not held against it.
    for _ in 0..12 {
        assert_eq!(misdeed(&edged, &lab, b"PROXY UNKNOWN\r\n", &[])?.status, 401);
    }
    assert_eq!(visit(&edged, OTHER)?, 200);
    assert!(edged.bans()?.is_empty());
    Ok(())
}

/// How a proxy speaks TLS tells nothing of those behind it.
#[test]
fn the_fingerprint_of_a_proxy_is_nobodys() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("server.trusted_proxies", &format!("[\"{CLIENT}/32\"]"))
        .set("server.forwarded_header", "\"x-forwarded-for\"")
        // Verdicts on fingerprints hold for logins. Who is allowed bears none.
        .set("route.0.login", "{ account = \"header:x-user\" }")
        .set("lists.allow", "[]")
        .start()?;
    let visit = |source: &str, named: &str| -> Result<u16> {
        let mut talk = Dial::new(&edged.ca, HOST)?.connect(&lab, source)?;
        Ok(talk
            .get(HOST, "/health", &[&format!("X-Forwarded-For: {named}"), "X-User: ann"])?
            .status)
    };
    assert_eq!((visit(CLIENT, ONE)?, visit(FRIEND, OTHER)?), (200, 200));
    let metrics = edged.metrics()?;
    let mut seen = metrics.series().map(|(series, _)| series);
    let own = seen
        .find_map(|series| series.strip_prefix("edged_ja4_handshakes{ja4=\"")?.strip_suffix("\"}"));
    edged.tell(&format!("ban add ja4:{} --step 403", own.context("a fingerprint")?))?;
    assert_eq!(visit(FRIEND, OTHER)?, 403, "it spoke for itself");
    assert_eq!((visit(CLIENT, ONE)?, visit(CLIENT, OTHER)?), (200, 200));
    Ok(())
}

#[test]
fn lists_meet_the_client_and_not_its_proxy() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let list = lab.dir().join("feed.txt");
    std::fs::write(&list, "203.0.115.0/24\n")?;
    // Who asks again and again is refused by the lists, and for nothing else.
    let feed = format!(
        "[[scenario]]\nname = \"persistence\"\nenabled = false\n\
         [[feed]]\nname = \"one\"\nurl = \"file:{}\"",
        list.display()
    );
    let listener =
        format!("[\"{EDGE}:443\", {{ address = \"{EDGE}:444\", proxy_protocol = true }}]");
    let edged = lab
        .edged()?
        .set("server.trusted_proxies", &format!("[\"{CLIENT}/32\"]"))
        .set("server.forwarded_header", "\"x-forwarded-for\"")
        .set("server.https", &listener)
        .append(&feed)?
        .start()?;
    let dial = Dial::new(&edged.ca, HOST)?;
    let ask = |client: &str| -> Result<u16> {
        let mut proxy = dial.connect(&lab, CLIENT)?;
        Ok(proxy.get(HOST, "/health", &[&format!("X-Forwarded-For: {client}")])?.status)
    };
    let soon = Duration::from_secs(5);
    until("the feed is in force", soon, || Ok(ask("203.0.115.7")? == 403))?;
    assert_eq!(ask(ONE)?, 200);
    edged.tell(&format!("deny add {ONE}"))?;
    until("its requests are refused", soon, || Ok(ask(ONE)? == 403))?;
    assert_eq!(ask(OTHER)?, 200);
    let visit = |client: &str| -> Result<u16> {
        let dial = Dial::new(&edged.ca, HOST)?.port(444).before(line(client));
        Ok(dial.connect(&lab, CLIENT)?.get(HOST, "/health", &[])?.status)
    };
    assert!(visit(ONE).is_err());
    assert_eq!(visit(OTHER)?, 200);
    assert!(edged.metrics()?.connections(Reason::BannedConnection) >= 1.0);
    // Who is connected itself is the kernel's to judge, and what it says of itself is nothing.
    let mut talk = dial.connect(&lab, ATTACKER)?;
    assert_eq!(talk.get(HOST, "/health", &[&format!("X-Forwarded-For: {ONE}")])?.status, 200);
    // An allow entry wins, and what is removed is gone.
    edged.tell("allow add 203.0.115.7")?;
    until("it is let through", soon, || Ok(ask("203.0.115.7")? == 200))?;
    assert_eq!(ask("203.0.115.8")?, 403);
    edged.tell(&format!("deny remove {ONE}"))?;
    until("it is let through", soon, || Ok(ask(ONE)? == 200))?;
    Ok(())
}

#[test]
fn forwarding_headers_count_from_trusted_peers_alone() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let settings = [
        ("server.forwarded_header", "\"x-forwarded-for\""),
        ("limits.per_source", "{ rate = \"60/m\", burst = 6 }"),
        ("limits.handshakes", "{ rate = \"1/m\", burst = 2 }"),
        ("route.1.auth", "\"none\""),
    ];
    let edged = behind(&lab, &settings)?;
    let dial = Dial::new(&edged.ca, HOST)?;
    let mut proxy = dial.connect(&lab, CLIENT)?;
    let forged = format!("X-Forwarded-For: 192.0.2.66, {ONE}, 10.1.2.3");
    let lines = [&*forged, "True-Client-IP: 192.0.2.68", "Forwarded: for=192.0.2.69"];
    let echo = proxy.get(HOST, "/echo", &lines)?.body;
    assert!(!echo.contains("192.0.2.6") && !echo.contains("10.1.2.3"), "{echo}");
    for name in ["x-forwarded-for", "x-real-ip", "forwarded"] {
        let lower = echo.to_ascii_lowercase();
        let after = lower.split_once(&format!("\"{name}\"")).map_or("", |(_, after)| after);
        assert!(after.starts_with([',', ':']) && after[..60].contains(ONE), "{name}: {echo}");
    }
    // Who is not trusted is who is connected, whatever it says.
    let echo = dial.connect(&lab, ATTACKER)?.get(HOST, "/echo", &[&forged])?.body;
    assert!(echo.contains(ATTACKER) && !echo.contains(ONE), "{echo}");

    // Each client has limits of its own, over one connection; the proxy's handshakes have none.
    let of = |client: &str| format!("X-Forwarded-For: {client}");
    let mut ask = |client: &str| proxy.get(HOST, "/health", &[&of(client)]).map(|a| a.status);
    let statuses = (0..7).map(|_| ask(ONE)).collect::<Result<Vec<_>>>()?;
    assert!(statuses.ends_with(&[429]) && statuses.starts_with(&[200]), "{statuses:?}");
    assert_eq!(ask(OTHER)?, 200);
    assert_eq!(ask("nonsense")?, 400);
    assert_eq!(edged.metrics()?.requests(Reason::ForwardingInvalid), 1.0);
    for _ in 0..4 {
        dial.connect(&lab, CLIENT)?;
    }

    // So has each its own bans.
    edged.edit("limits.per_source", "\"off\"")?;
    edged.tell("reload")?;
    for _ in 0..3 {
        misdeed(&edged, &lab, b"", &[&of(ONE)])?;
    }
    until("it is banned", Duration::from_secs(5), || edged.banned(ONE))?;
    let mut ask = |client: &str| proxy.get(HOST, "/health", &[&of(client)]).map(|a| a.status);
    until("its requests are refused", Duration::from_secs(5), || Ok(ask(ONE)? == 403))?;
    assert_eq!(ask(OTHER)?, 200);
    let plain = |client: &str| {
        edged.get(CLIENT, "http://edge.test/").header("X-Forwarded-For", client).send()
    };
    assert_eq!((plain(ONE)?.status, plain(OTHER)?.status), (403, 308), "over plain HTTP as well");
    assert!(edged.metrics()?.requests(Reason::BannedRequest) >= 2.0);
    assert!(!edged.banned(CLIENT)?);
    Ok(())
}

#[test]
fn the_standard_header_is_taken_if_it_is_the_one() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let settings = [("server.forwarded_header", "\"forwarded\""), ("route.1.auth", "\"none\"")];
    let edged = behind(&lab, &settings)?;
    let mut proxy = Dial::new(&edged.ca, HOST)?.connect(&lab, CLIENT)?;
    let lines = [format!("Forwarded: for=192.0.2.66, for=\"{ONE}:4711\";proto=http")];
    let lines = [&*lines[0], "X-Forwarded-For: 192.0.2.67"];
    let echo = proxy.get(HOST, "/echo", &lines)?.body;
    assert!(echo.contains(ONE) && !echo.contains("192.0.2.6"), "{echo}");
    let open =
        proxy.get(HOST, "/echo", &["Forwarded: for=\"x", &format!("Forwarded: for={ONE}")])?;
    assert_eq!(open.status, 200, "each field stands for itself: {open:?}");
    let joined = format!("Forwarded: for=\"x, for={ONE}");
    assert_eq!(proxy.get(HOST, "/echo", &[&joined])?.status, 400);
    Ok(())
}

#[test]
fn what_is_wrong_is_told_with_its_line() -> Result<()> {
    let lab = Lab::new()?;
    let listener = format!("[{{ address = \"{EDGE}:443\", proxy_protocol = true }}]");
    let config = lab.edged()?.set("server.https", &listener).write()?;
    edge_tests::daemon::certify(lab.dir())?;
    let mut check = lab.edge.command(edge_tests::daemon::binary("edged")?);
    let done = check.arg("check").arg("--config").arg(&config).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(!done.status.success());
    assert!(said.contains("no proxy to take them from") && said.contains("edged.toml:"), "{said}");
    Ok(())
}
