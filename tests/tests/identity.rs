//! Who a request is from, whichever way it is proved: that nobody passes for another, that no fault lets
//! anybody in, and that every attempt is one line of the audit log.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::{HOST, Request, Response, until},
    daemon::{Setup, binary, certify},
    disk::SmallDisk,
    frames,
    issuer::{AUDIENCE, Answers, ISSUER, KEYS_URL, KeyServer, Signer, encode, jwks},
    lab::FRIEND,
    pki::{Authority, Leaf, SanType},
    talk::{Dial, Talk},
};
use serde_json::{Value, json};

const DAY: i64 = 86_400;

/// A route for each way of proof.
const ROUTES: &str = r#"
[[route]]
path = "/key"
methods = ["GET"]
auth = "key"
upstream = "api"

[[route]]
path = "/signed"
methods = ["GET"]
auth = "signature"
upstream = "api"

[[route]]
path = "/token"
methods = ["GET"]
auth = "jwt"
upstream = "api"

[[route]]
path = "/certificate"
methods = ["GET"]
auth = "mtls"
upstream = "api"

[[client_certificate]]
dns = "billing"
"#;

fn issuer(name: &str, iss: &str, keys: &str) -> String {
    format!(
        "[[issuer]]\nname = \"{name}\"\nissuer = \"{iss}\"\naudience = [\"{AUDIENCE}\"]\n{keys}\n"
    )
}

/// Our own issuer, whose keys [`KeyServer`] has.
fn own() -> String {
    let keys = format!(
        "jwks_url = \"{KEYS_URL}\"\ncooldown = \"1s\"\nwait = \"1s\"\nfetch_timeout = \"1s\""
    );
    issuer("own", ISSUER, &keys)
}

/// A daemon that asks for certificates of this authority and takes all who come as they come.
fn asking<'a>(lab: &'a Lab, authority: &Authority, more: &str) -> Result<Setup<'a>> {
    let crl = authority.revoke("clients.crl", &[])?;
    lab.edged()?
        .append("[[scenario]]\nname = \"brute-force\"\nenabled = false")?
        .set("tls.clients.auth", "\"optional\"")
        .set("tls.clients.ca", &format!("{:?}", authority.ca))
        .set("tls.clients.crl", &format!("[{crl:?}]"))
        .append(more)
}

fn with_certificate<'a>(request: Request<'a>, leaf: &Leaf) -> Request<'a> {
    let path = |path: &Path| path.display().to_string();
    request.arg("--cert", &path(&leaf.chain)).arg("--key", &path(&leaf.key))
}

fn bearer<'a>(edged: &'a Edged<'_>, path: &str, token: &str) -> Request<'a> {
    edged.get(FRIEND, path).header("Authorization", &format!("Bearer {token}"))
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

/// `x5t#S256` of a certificate, as `openssl` has its bytes.
fn thumbprint(leaf: &Leaf) -> Result<String> {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-outform", "der", "-in"]).arg(&leaf.chain);
    let der = openssl.output()?.stdout;
    Ok(encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der).as_ref()))
}

/// A header that the upstream saw.
fn told(response: &Response, name: &str) -> Option<String> {
    let seen = response.json()["headers"].as_array().cloned().unwrap_or_default();
    let is_it = |pair: &&Value| pair[0].as_str().is_some_and(|one| one.eq_ignore_ascii_case(name));
    seen.iter().find(is_it).and_then(|pair| pair[1].as_str().map(str::to_owned))
}

/// RFC 8705, over the wire: a token that is bound to a certificate is good on a connection with that
/// certificate, and worth nothing to who stole it.
#[test]
fn rfc_8705_a_bound_token_is_good_with_its_certificate_alone() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "clients")?;
    let own_leaf = authority.sign("own", &["own"], -60, DAY)?;
    let thiefs = authority.sign("thief", &["thief"], -60, DAY)?;
    let signer = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let edged = asking(&lab, &authority, &format!("{}{ROUTES}", own()))?.start()?;
    let bound = |cnf: Value| signer.token(&with(signer.claims(), "cnf", cnf));
    let digest = thumbprint(&own_leaf)?;
    let token = bound(json!({"x5t#S256": digest}));
    let ask = |leaf: Option<&Leaf>, token: &str| -> Result<u16> {
        let request = bearer(&edged, "/token", token);
        Ok(leaf
            .map_or_else(|| bearer(&edged, "/token", token), |leaf| with_certificate(request, leaf))
            .send()?
            .status)
    };
    assert_eq!(ask(Some(&own_leaf), &token)?, 200);
    assert_eq!(origin.seen(), 1);
    assert_eq!(ask(Some(&thiefs), &token)?, 401, "another certificate, a warm cache");
    assert_eq!(ask(None, &token)?, 401, "no certificate");
    let both = json!({"x5t#S256": digest, "jkt": signer.thumbprint()});
    assert_eq!(ask(Some(&own_leaf), &bound(both))?, 401, "all that is asked must be proved");
    let unknown = json!({"x5t#S256": digest, "x5t#S1": digest});
    assert_eq!(ask(Some(&own_leaf), &bound(unknown))?, 401, "what is not understood is not proved");
    assert_eq!(ask(Some(&own_leaf), &signer.token(&signer.claims()))?, 200, "a free token is free");
    assert_eq!(origin.seen(), 2);
    Ok(())
}

/// A connection with a certificate, in either version of HTTP.
enum Conversation {
    One(Talk),
    Two(Talk, u32),
}

impl Conversation {
    fn both(edged: &Edged<'_>, lab: &Lab, leaf: &Leaf) -> Result<[Self; 2]> {
        let dial =
            |alpn| Dial::with(&edged.ca, HOST, Some(leaf), &[])?.alpn(alpn).connect(lab, FRIEND);
        let mut second = dial("h2")?;
        second.say(&frames::preface())?;
        Ok([Self::One(dial("http/1.1")?), Self::Two(second, 1)])
    }

    fn status(&mut self, path: &str) -> Result<u16> {
        match self {
            Self::One(talk) => Ok(talk.get(HOST, path, &[])?.status),
            Self::Two(talk, stream) => {
                *stream += 2;
                talk.ask_h2(*stream, &frames::get(HOST, path))
            }
        }
    }

    /// Whether the edge has ended it, rather than left a request without an answer.
    fn is_closed(&mut self) -> bool {
        self.status("/certificate").is_err_and(|error| {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            !matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
        })
    }
}

/// A certificate that is revoked ends the connections that it opened, and no others.
#[test]
fn a_revoked_certificate_ends_its_open_connections() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "clients")?;
    let gone = authority.sign("gone", &["billing"], -60, DAY)?;
    let stays = authority.sign("stays", &["billing"], -60, DAY)?;
    let signer = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let edged = asking(&lab, &authority, &format!("{}{ROUTES}", own()))?.start()?;
    let mut doomed = Conversation::both(&edged, &lab, &gone)?;
    let mut others = Conversation::both(&edged, &lab, &stays)?;
    for one in doomed.iter_mut().chain(&mut others) {
        assert_eq!(one.status("/certificate")?, 200);
    }
    authority.revoke("clients.crl", &[&gone])?;
    edged.tell("reload")?;
    for one in &mut doomed {
        assert!(one.is_closed(), "the connection is closed");
    }
    for one in &mut others {
        assert_eq!(one.status("/certificate")?, 200, "the other's is not");
    }
    for mut one in Conversation::both(&edged, &lab, &gone).into_iter().flatten() {
        assert!(one.status("/certificate").is_err());
    }
    assert_eq!(origin.seen(), 6);
    Ok(())
}

/// A certificate is an identity until its own end, on connections that were opened before as well.
#[test]
fn a_certificate_that_ends_ends_its_open_connections() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "clients")?;
    let signer = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    let edged = asking(&lab, &authority, &format!("{}{ROUTES}", own()))?.start()?;
    let signed = Instant::now();
    let short = authority.sign("short", &["billing"], -60, 8)?;
    let stays = authority.sign("stays", &["billing"], -60, DAY)?;
    let mut doomed = Conversation::both(&edged, &lab, &short)?;
    let mut others = Conversation::both(&edged, &lab, &stays)?;
    for one in doomed.iter_mut().chain(&mut others) {
        assert_eq!(one.status("/certificate")?, 200);
    }
    // Its last second is its own.
    std::thread::sleep(Duration::from_millis(9100).saturating_sub(signed.elapsed()));
    for one in &mut doomed {
        assert!(one.is_closed(), "the connection is closed");
    }
    for one in &mut others {
        assert_eq!(one.status("/certificate")?, 200);
    }
    assert_eq!(origin.seen(), 6);
    Ok(())
}

const TWO: &str = r#"
[[policy]]
name = "ours"
files = ["ours.cedar"]

[[route]]
path = "/echo"
methods = ["GET"]
auth = "jwt"
upstream = "api"

[[route]]
path = "/one"
methods = ["GET"]
auth = "jwt"
issuers = ["own"]
upstream = "api"

[[route]]
path = "/policy"
methods = ["GET"]
auth = "jwt"
policies = ["ours"]
upstream = "api"

[[route]]
path = "/few"
methods = ["GET"]
auth = "jwt"
upstream = "api"

[[limit]]
name = "few"
by = ["user"]
routes = ["/few"]
rate = "2/h"
"#;

/// Two issuers may call different people the same; nothing of the one's is the other's.
#[test]
fn two_issuers_that_share_a_subject_share_no_identity() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (signer, other) = (Signer::new("k1")?, Signer::new("k1")?);
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&signer])))?;
    fs::write(lab.dir().join("other.jwks"), jwks(&[&other]))?;
    let ours = "permit(principal == Caller::\"own:alice\", action, resource);\n";
    fs::write(lab.dir().join("ours.cedar"), ours)?;
    let second = issuer("other", "https://other.test", "key_files = [\"other.jwks\"]");
    let access = lab.dir().join("access.log");
    let edged = lab
        .edged()?
        .set("log.access", &format!("{access:?}"))
        .append(&format!("{}{second}{TWO}", own()))?
        .start()?;
    let mine = signer.token(&signer.claims());
    let theirs = other.token(&with(other.claims(), "iss", json!("https://other.test")));
    let status = |path: &str, token: &str| anyhow::Ok(bearer(&edged, path, token).send()?.status);

    let seen = [&mine, &theirs].map(|token| bearer(&edged, "/echo", token).send());
    let [mine_seen, theirs_seen] = seen;
    let (mine_seen, theirs_seen) = (mine_seen?, theirs_seen?);
    assert_eq!(told(&mine_seen, "x-edged-principal").as_deref(), Some("own:alice"));
    assert_eq!(told(&theirs_seen, "x-edged-principal").as_deref(), Some("other:alice"));
    assert_eq!(told(&theirs_seen, "x-edged-issuer").as_deref(), Some("other"));
    assert_eq!(told(&theirs_seen, "x-edged-subject").as_deref(), Some("alice"));
    // Signed by the other's key, for ours: the kid is the same, the key is not.
    assert_eq!(status("/echo", &other.token(&other.claims()))?, 401);
    assert_eq!((status("/one", &mine)?, status("/one", &theirs)?), (200, 401));
    assert_eq!((status("/policy", &mine)?, status("/policy", &theirs)?), (200, 403));
    for token in [&mine, &theirs] {
        let answers = [status("/few", token)?, status("/few", token)?, status("/few", token)?];
        assert_eq!(answers, [200, 200, 429], "each has a quota of its own");
    }
    let explained =
        |who: &str| edged.ask(&format!("authz explain --as {who} --host {HOST} GET /policy"));
    assert_eq!(explained("own:alice")?["is_allowed"], true);
    assert_eq!(explained("other:alice")?["is_allowed"], false);
    assert_eq!(explained("sub:other:alice")?["principal"], "other:alice by jwt");
    let failed = explained("sub:alice").unwrap_err();
    assert!(format!("{failed:#}").contains("whose 'alice'? sub:ISSUER:SUBJECT, of own, other"));
    until("the access log tells them apart", Duration::from_secs(20), || {
        let text = fs::read_to_string(&access)?;
        let told = ["own", "other"].map(|issuer| {
            text.contains(&format!(
                "\"principal\":\"{issuer}:alice\",\"by\":\"jwt\",\"issuer\":\"{issuer}\""
            ))
        });
        Ok(told == [true, true])
    })?;
    edged.tell("token revoke --sub alice --issuer own")?;
    assert_eq!((status("/echo", &mine)?, status("/echo", &theirs)?), (401, 200));

    // Whose alice owns /users/alice must be said.
    let owned = "\n[[route]]\npath = \"/users\"\nmethods = [\"GET\"]\nauth = \"jwt\"\n\
                 owner = { path = \"/users/{id}\", equals = \"sub\" }\nupstream = \"api\"\n";
    let path = lab.dir().join("edged.toml");
    let file = fs::read_to_string(&path)?;
    fs::write(&path, format!("{file}{owned}"))?;
    let refused = edged.ctl("reload")?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("several issuers"), "{words}");
    fs::write(&path, format!("{file}{}", owned.replace("owner", "issuers = [\"own\"]\nowner")))?;
    edged.tell("reload")?;
    let bob = |signer: &Signer, iss: &str| {
        let claims = with(with(signer.claims(), "iss", json!(iss)), "sub", json!("bob"));
        signer.token(&claims)
    };
    assert_eq!(status("/users/bob", &bob(&signer, ISSUER))?, 200);
    assert_eq!(status("/users/alice", &bob(&signer, ISSUER))?, 403);
    assert_eq!(status("/users/bob", &bob(&other, "https://other.test"))?, 401);
    Ok(())
}

/// What is no secret is told before it is used: too short, readable by others, written into the
/// configuration, or an audience that anybody is.
#[test]
fn weak_secrets_and_open_audiences_are_refused_by_check() -> Result<()> {
    let lab = Lab::new()?;
    let secret = |name: &str, bytes: usize, mode: u32| -> Result<String> {
        let path = lab.dir().join(name);
        fs::write(&path, vec![b'x'; bytes])?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(format!("file:{}", path.display()))
    };
    certify(lab.dir())?;
    let (good, short) = (secret("good", 32, 0o600)?, secret("short", 31, 0o600)?);
    let open = secret("open", 32, 0o644)?;
    let check = |secret: &str, audience: &str| -> Result<(bool, String)> {
        let more = format!(
            "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{audience}\"]\n\
             secrets = [\"{secret}\"]\n[[route]]\npath = \"/token\"\nmethods = [\"GET\"]\n\
             auth = \"jwt\"\nupstream = \"api\"\n"
        );
        let config = lab.edged()?.append(&more)?.write()?;
        let mut edged = lab.edge.command(binary("edged")?);
        let done = edged.args(["check", "--config"]).arg(config).output()?;
        let words = [done.stdout, done.stderr].concat();
        Ok((done.status.success(), String::from_utf8_lossy(&words).into_owned()))
    };
    let (is_good, words) = check(&good, AUDIENCE)?;
    assert!(is_good, "{words}");
    for (secret, audience, expected) in [
        (short.as_str(), AUDIENCE, "32"),
        (&open, AUDIENCE, "everyone can read it"),
        ("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", AUDIENCE, "file:"),
        (&good, "*", "audience"),
        (&good, "https://*.example", "audience"),
    ] {
        let (is_good, words) = check(secret, audience)?;
        assert!(!is_good && words.contains(expected), "{secret} {audience}: {words}");
        assert!(!words.contains("xxxxxxxx"), "a secret is not shown: {words}");
    }
    Ok(())
}

const FAULTY: &str = r#"
[[policy]]
name = "sums"
files = ["sums.cedar"]
schema = "claims.cedarschema"

[[route]]
path = "/policy"
methods = ["GET"]
auth = "jwt"
policies = ["sums"]
upstream = "api"
"#;

/// The headers of a request that a key signs.
fn signature(lab: &Lab, id: &str, secret: &str) -> Result<Vec<(String, String)>> {
    let file = lab.dir().join(format!("{id}.hex"));
    fs::write(&file, secret)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let mut sign = Command::new(binary("edgectl")?);
    sign.args(["sign", "--key-id", id, "--url", "https://edge.test/signed", "--headers"]);
    let done = sign.arg("--key-file").arg(&file).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let headers = String::from_utf8(done.stdout)?;
    let pair = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_owned(), v.to_owned()));
    Ok(headers.lines().filter_map(pair).collect())
}

fn signer(edged: &Edged<'_>) -> Result<(String, String)> {
    let key = edged.ask("key create --name signer --signing")?;
    let word = |name: &str| key[name].as_str().map(str::to_owned).context("told");
    Ok((word("id")?, word("signing_secret")?))
}

fn sent(edged: &Edged<'_>, path: &str, headers: &[(String, String)]) -> Result<Response> {
    let start = edged.get(FRIEND, path);
    headers.iter().fold(start, |request, (name, value)| request.header(name, value)).send()
}

/// Whatever breaks while it is found out who somebody is and what they may, nobody is let in: keys of an
/// issuer that cannot be had, a policy that cannot be evaluated, a nonce that cannot be noted.
#[test]
fn a_fault_in_a_check_never_lets_anybody_in() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "clients")?;
    let nonces = lab.dir().join("small");
    let disk = SmallDisk::at(nonces.clone(), 64 << 10)?;
    let by = Signer::new("k1")?;
    let keys = KeyServer::start(&lab, Answers::Status("500 Oops"))?;
    let sums = "permit(principal, action, resource) \
                when { principal.claims has level && principal.claims.level + 1 > 0 };\n";
    fs::write(lab.dir().join("sums.cedar"), sums)?;
    fs::write(lab.dir().join("claims.cedarschema"), "type Claims = { level?: Long };\n")?;
    let edged = asking(&lab, &authority, &format!("{}{ROUTES}{FAULTY}", own()))?
        .set("signing.nonce_file", &format!("{:?}", nonces.join("nonces")))
        .start()?;
    let good = by.token(&by.claims());
    let status = |path: &str, token: &str| anyhow::Ok(bearer(&edged, path, token).send()?.status);
    for answers in [
        Answers::Status("500 Oops"),
        Answers::Nothing,
        Answers::Bytes("{".to_owned()),
        Answers::Bytes("{\"keys\":[]}".to_owned()),
        Answers::Late(Duration::from_secs(3), jwks(&[&by])),
    ] {
        keys.set(answers);
        assert_eq!(status("/token", &good)?, 503);
    }
    assert_eq!(origin.seen(), 0);
    keys.set(Answers::Bytes(jwks(&[&by])));
    until("the keys are there", Duration::from_secs(20), || Ok(status("/token", &good)? == 200))?;

    let level = |level: i64| by.token(&with(by.claims(), "level", json!(level)));
    assert_eq!(status("/policy", &level(1))?, 200);
    let before = origin.seen();
    assert_eq!(status("/policy", &level(i64::MAX))?, 500, "a sum that has no value");
    assert_eq!(status("/policy", &good)?, 403);

    let (id, secret) = signer(&edged)?;
    fs::write(nonces.join("ballast"), vec![0; 1 << 20]).expect_err("it is full");
    for _ in 0..3 {
        let refused = sent(&edged, "/signed", &signature(&lab, &id, &secret)?)?;
        assert_eq!(refused.status, 500, "{refused:?}");
    }
    assert_eq!(origin.seen(), before);
    fs::remove_file(nonces.join("ballast"))?;
    assert_eq!(sent(&edged, "/signed", &signature(&lab, &id, &secret)?)?.status, 200);
    assert!(edged.metrics()?.requests(Reason::InternalError) >= 4.0);
    drop(disk);
    Ok(())
}

/// A certificate stands for somebody by whatever it says, and by its key.
#[test]
fn a_certificate_is_known_by_each_of_its_names() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "clients")?;
    let uri = |uri: &str| anyhow::Ok(SanType::URI(uri.try_into()?));
    let email = |address: &str| anyhow::Ok(SanType::Rfc822Name(address.try_into()?));
    let leaf = |file: &str, names| authority.sign_as(file, file, names);
    let reports = leaf("reports", vec![])?;
    let workload = leaf("workload", vec![uri("spiffe://example/ns/shop")?])?;
    let mail = leaf("mail", vec![email("ops@example.test")?])?;
    let pinned = leaf("pinned", vec![])?;
    let others = [
        leaf("reports2", vec![])?,
        leaf("w2", vec![uri("spiffe://example/other")?])?,
        leaf("m2", vec![email("ops@example.test.evil")?])?,
        leaf("p2", vec![])?,
        // What one kind of name must say, another cannot say for it.
        leaf("ops@example.test", vec![uri("mailto:ops@example.test")?])?,
    ];
    let spki = spki_sha256(&pinned)?;
    let mappings = format!(
        "[[route]]\npath = \"/echo\"\nmethods = [\"GET\"]\nauth = \"mtls\"\nupstream = \"api\"\n\
         [[client_certificate]]\nsubject = \"CN=reports\"\n\
         [[client_certificate]]\nuri = \"spiffe://example/ns/*\"\n\
         [[client_certificate]]\nemail = \"ops@example.test\"\n\
         [[client_certificate]]\nspki_sha256 = [\"{spki}\"]\nid = \"by-key\"\n"
    );
    let edged = asking(&lab, &authority, &format!("{}{ROUTES}{mappings}", own()))?.start()?;
    let ask = |leaf| with_certificate(edged.get(FRIEND, "/echo"), leaf).send();
    for (leaf, who) in [
        (&reports, "mtls:CN%3Dreports"),
        (&workload, "mtls:spiffe://example/ns/shop"),
        (&mail, "mtls:ops@example.test"),
        (&pinned, "mtls:by-key"),
    ] {
        let answer = ask(leaf)?;
        assert_eq!(answer.status, 200, "{who}: {answer:?}");
        assert_eq!(told(&answer, "x-edged-principal").as_deref(), Some(who));
    }
    for leaf in &others {
        assert_eq!(ask(leaf)?.status, 401, "{leaf:?}");
    }
    Ok(())
}

/// SHA-256 of a certificate's `SubjectPublicKeyInfo` in hexadecimal, as `openssl` has its bytes.
fn spki_sha256(leaf: &Leaf) -> Result<String> {
    let mut openssl = Command::new("openssl");
    let pem = openssl.args(["x509", "-noout", "-pubkey", "-in"]).arg(&leaf.chain).output()?.stdout;
    let file = leaf.chain.with_extension("pub");
    fs::write(&file, pem)?;
    let mut openssl = Command::new("openssl");
    let der =
        openssl.args(["pkey", "-pubin", "-outform", "der", "-in"]).arg(&file).output()?.stdout;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Every attempt, by whichever proof and however it ends, is one line of the audit log, found by the id that
/// its answer names.
#[test]
fn every_attempt_is_one_audit_line_whatever_the_proof() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "clients")?;
    let billing = authority.sign("billing", &["billing"], -60, DAY)?;
    let nobody = authority.sign("nobody", &["nobody"], -60, DAY)?;
    let stranger = Authority::new(lab.dir(), "other")?.sign("stranger", &["billing"], -60, DAY)?;
    let by = Signer::new("k1")?;
    let _keys = KeyServer::start(&lab, Answers::Bytes(jwks(&[&by])))?;
    let dumb = issuer("dumb", "https://dumb.test", "jwks_url = \"http://127.0.0.1:9009/jwks\"");
    let edged = asking(&lab, &authority, &format!("{}{dumb}{ROUTES}", own()))?.start()?;
    let (key, (id, secret)) = (edged.key("a")?, signer(&edged)?);
    let good = by.token(&by.claims());
    let signed = signature(&lab, &id, &secret)?;
    let get = |path: &str| edged.get(FRIEND, path);
    let answers = [
        (200, "key", get("/key").key(&key).send()?),
        (401, "", get("/key").key("nonsense").send()?),
        (401, "", get("/key").send()?),
        (200, "jwt", bearer(&edged, "/token", &good).send()?),
        (401, "", bearer(&edged, "/token", &format!("{good}x")).send()?),
        (200, "signature", sent(&edged, "/signed", &signed)?),
        (401, "", sent(&edged, "/signed", &signed)?),
        (200, "mtls", with_certificate(get("/certificate"), &billing).send()?),
        (401, "", with_certificate(get("/certificate"), &nobody).send()?),
        (401, "", get("/certificate").send()?),
        (401, "", with_certificate(get("/certificate"), &billing).key(&key).send()?),
    ];
    assert!(with_certificate(get("/certificate"), &stranger).send().is_err(), "no handshake");
    // So is one that a fault of ours kept from being judged: keys that cannot be had.
    let unjudged = by.token(&with(by.claims(), "iss", json!("https://dumb.test")));
    let unjudged = bearer(&edged, "/token", &unjudged).send()?;
    assert_eq!(unjudged.status, 503);

    let lines = || -> Result<Vec<Value>> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(lab.dir().join("audit"))? {
            let text = fs::read_to_string(entry?.path())?;
            lines.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
        }
        Ok(lines)
    };
    let attempts = || -> Result<Vec<Value>> {
        let is_one = |line: &Value| line["request_id"].is_string();
        Ok(lines()?.into_iter().filter(is_one).collect())
    };
    until("all are told of", Duration::from_secs(20), || Ok(attempts()?.len() > answers.len()))?;
    let all = attempts()?;
    assert_eq!(all.len(), answers.len() + 1, "{all:#?}");
    for (status, by, answer) in &answers {
        assert_eq!(answer.status, *status, "{answer:?}");
        let id = answer.header("x-request-id").context("an id")?;
        let of_it: Vec<_> = all.iter().filter(|line| line["request_id"] == *id).collect();
        let [line] = of_it[..] else { panic!("{answer:?}: {of_it:?}") };
        let event = if *status == 200 { "request_granted" } else { "request_refused" };
        assert_eq!(line["event"], event, "{line}");
        assert_eq!(line["by"].as_str().unwrap_or_default(), *by, "{line}");
    }
    let id_of_it = unjudged.header("x-request-id").context("an id")?;
    let line = all.iter().find(|line| line["request_id"] == *id_of_it).context("its line")?;
    assert_eq!(line["event"], "request_refused", "{line}");
    assert_eq!(line["reason"], "issuer_unavailable", "{line}");
    let principals: Vec<_> = all.iter().filter_map(|line| line["principal"].as_str()).collect();
    for who in ["own:alice", "mtls:billing", &id] {
        assert!(principals.contains(&who), "{who} in {principals:?}");
    }
    let strangers = lines()?.into_iter().filter(|line| line["kind"] == "certificate_refused");
    assert_eq!(strangers.count(), 1, "a certificate that is refused is an attempt as well");
    Ok(())
}
