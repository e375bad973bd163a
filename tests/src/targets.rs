//! What is fuzzed: functions of bytes from strangers, each with what must hold whatever comes.
//!
//! The ordinary tests run them over seeds and damaged seeds, `cargo xtask fuzz` with coverage to guide
//! it: `fuzz/` includes this very file. A target panics when something does not hold.

use std::{net::IpAddr, sync::LazyLock};

use aws_lc_rs::hmac;
use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD,
};
use bytes::Bytes;
use edge_identity::{
    certificate::{self, Certificate, Mapping},
    credential,
    jwt::{
        Algorithm, Issuer, KeySet, Presented, Profile, Unverified, VerifyingKey,
        denylist::Denylist,
        dpop::{Expected, Proof},
    },
    key::{self, Secret},
    signed::{self, Masters, Message, Policy, PublicKey, Signing},
};
use edge_policy::{
    forwarded::{Naming, Trusted},
    head::{self, Bounds, Host},
    http1::{self, Chunk, Chunks, Framing, RequestReader},
    http2::Conduct,
    ja4::{Hello, Ja4},
    lines::Lines,
    proxy,
    target::Target,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

/// What is fuzzed.
pub type Run = fn(&[u8]);

/// Every target by its name, which is also that of its folder in `fuzz/seeds`.
pub const TARGETS: [(&str, Run); 13] = [
    ("jwt", jwt),
    ("jwks", jwks),
    ("signature_fields", signature_fields),
    ("x_signature", x_signature),
    ("certificate", certificate),
    ("key", key),
    ("target", target),
    ("request", request),
    ("chunks", chunks),
    ("frames", frames),
    ("proxy", proxy),
    ("forwarded", forwarded),
    ("hello", hello),
];

/// A token: as it came, and what it says under a signature that is good, so that claims are reached.
pub fn jwt(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (secret, terms) = ([0x5a; 64], terms());
    let key = VerifyingKey::from_secret(&secret, &[Algorithm::Hs256]).expect("long enough");
    let keys = KeySet::new(vec![key]).expect("one key");
    let mac = |input: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        URL_SAFE_NO_PAD.encode(hmac::sign(&key, input.as_bytes()))
    };
    let judge = |token: &str| {
        let unverified = Unverified::parse(token, TOKEN_MAX).ok()?;
        let verified = terms.verify(unverified, &keys).ok()?;
        // What is accepted is what was signed, in one spelling.
        let (input, signature) = token.rsplit_once('.').expect("it was parsed");
        assert_eq!(signature, mac(input), "a signature that is not ours");
        let denylist = Denylist::default();
        let presented = Presented {
            now_ms: NOW_S * 1000,
            denylist: &denylist,
            audience: &[],
            proof_key: None,
            certificate: None,
        };
        let _ = verified.named(&terms);
        terms.admit(&verified, &presented).ok()?;
        let claims = &verified.claims;
        assert!(claims.issuer == ISSUER && claims.audience.iter().any(|one| one == AUDIENCE));
        assert!(claims.expires_ms + terms.leeway_ms >= NOW_S * 1000, "an expired token");
        Some(())
    };
    judge(text);
    let expected = Expected {
        method: "GET",
        authority: "api.example",
        path: "/",
        token: text,
        now_ms: NOW_S * 1000,
        age_max_ms: 60_000,
        leeway_ms: 5_000,
        nonces: None,
    };
    let _ = Proof::check(text, &expected);
    // The first line is a header, the rest a payload.
    let (header, payload) = text.split_once('\n').unwrap_or((HEADER, text));
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    judge(&format!("{input}.{}", mac(&input)));
}

/// A set of keys, and keys in PEM.
pub fn jwks(bytes: &[u8]) {
    if let Ok(set) = KeySet::from_jwks(bytes) {
        assert!((1..=64).contains(&set.keys().len()), "a set without keys, or without bounds");
        let symmetric =
            |key: &VerifyingKey| Algorithm::ALL.iter().any(|a| a.is_symmetric() && key.takes(*a));
        assert!(!set.keys().iter().any(symmetric), "a published key that verifies by secret");
        assert!(KeySet::from_jwks(bytes).is_ok_and(|again| again.is_same(&set)));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = VerifyingKey::from_pem(text);
        let _ = PublicKey::from_pem(text, None);
    }
}

/// HTTP message signatures: headers as they came, and the first line signed as a `Signature-Input`.
pub fn signature_fields(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (input, rest) = text.split_once('\n').unwrap_or((text, ""));
    let mut headers = fields(rest.as_bytes());
    with_message(&headers, |message| assert!(prove(message).is_none(), "nobody signed it"));
    let Some(base) = with_message(&headers, |message| signed::base(input, message)) else { return };
    let signature = STANDARD.encode(hmac::sign(&SIGNER.2, base.as_bytes()));
    for (name, value) in
        [("signature-input", format!("sig={input}")), ("signature", format!("sig=:{signature}:"))]
    {
        let Ok(value) = HeaderValue::from_str(&value) else { return };
        headers.insert(HeaderName::from_static(name), value);
    }
    with_message(&headers, |message| {
        // Whoever signs by `base`, by the key's own algorithm, and is let past the reading has signed what
        // is verified.
        let is_own = !input.contains("alg") || input.contains("alg=\"hmac-sha256\"");
        if let Ok(claimed) = signed::read(message, &policy(), NOW_S)
            && claimed.key_id() == Some(KEY_ID)
            && is_own
        {
            let proven = claimed.prove(message, KEY_ID, &verifier(), b"");
            assert!(proven.is_ok(), "what was signed is not what is verified: {base:?}");
        }
    });
}

/// `X-Signature`: headers as they came, and under a signature that is good.
pub fn x_signature(bytes: &[u8]) {
    let mut headers = fields(bytes);
    with_message(&headers, |message| assert!(prove(message).is_none(), "nobody signed it"));
    let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim().to_owned());
    let (Some(time), Some(nonce), Some(sha256)) =
        (text("x-timestamp"), text("x-nonce"), text("x-content-sha256"))
    else {
        return;
    };
    let canonical = with_message(&headers, |message| {
        signed::canonical(message, &time, &nonce, &sha256.to_ascii_lowercase(), KEY_ID)
    });
    let mac = edge_identity::hex::text(hmac::sign(&SIGNER.2, canonical.as_bytes()).as_ref());
    let Ok(value) = HeaderValue::from_str(&format!("v1={mac}")) else { return };
    headers.insert("x-signature", value);
    with_message(&headers, |message| {
        if let Ok(claimed) = signed::read(message, &policy(), NOW_S) {
            let proven = claimed.prove(message, KEY_ID, &verifier(), b"");
            assert!(proven.is_ok(), "what was signed is not what is verified: {canonical:?}");
        }
    });
}

/// A client certificate and whom it stands for.
pub fn certificate(bytes: &[u8]) {
    let Some(read) = Certificate::read(bytes, [7; 32]) else { return };
    let plain = |names: &[String]| names.iter().all(|n| n.bytes().all(|b| b.is_ascii_graphic()));
    assert!(
        plain(&read.dns) && plain(&read.uris) && plain(&read.emails),
        "a name that hides a part"
    );
    let asks = [
        Mapping::default(),
        Mapping { dns: Some("*.example".into()), ..Mapping::default() },
        Mapping { uri: Some("spiffe://example/*".into()), ..Mapping::default() },
        Mapping { email: Some("a@example".into()), ..Mapping::default() },
    ];
    if let Some(named) = certificate::principal(&asks, &read) {
        let is_said = |names: &[String]| names.contains(&named.id);
        assert!(is_said(&read.dns) || is_said(&read.uris) || is_said(&read.emails));
    }
    let own = Mapping { subject: Some(read.subject.clone()), ..Mapping::default() };
    assert!(certificate::principal(&[own], &read).is_some_and(|named| named.id == read.subject));
}

/// An API key, as it came and as it is minted.
pub fn key(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(!key::well_formed(text, "edged") || key::find_keys(text).eq([text]));
        let path = format!("/{text}");
        let (masked, query) = (credential::masked(&path), Some(text));
        assert!(key::find_keys(&masked).next().is_none(), "a key in a log");
        let _ = credential::keys_in_target(&path, query);
        let headers = fields(bytes);
        let _ = credential::present(&headers, &path, query, &["api_key".to_owned()]);
    }
    let Some((random, rest)) = bytes.split_first_chunk::<32>() else { return };
    let secret = Secret::mint("edged", random);
    assert!(key::well_formed(secret.expose(), "edged"));
    let [at, byte, ..] = *rest else { return };
    let mut damaged = secret.expose().as_bytes().to_vec();
    let at = usize::from(at) % damaged.len();
    if damaged[at] != byte && byte.is_ascii() {
        damaged[at] = byte;
        let damaged = String::from_utf8(damaged).expect("ASCII");
        assert!(!key::well_formed(&damaged, "edged"), "a slip of one character: {damaged}");
    }
}

/// A request target: its normal form is its own normal form.
pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(target) = Target::parse(text, 8_000) else { return };
    let normal = target.path_and_query();
    assert_eq!(Target::parse(&normal, usize::MAX).as_ref(), Ok(&target), "{text:?}");
    let path = &target.path;
    assert!(path.starts_with('/') && !path.contains("//"), "{text:?}: {path:?}");
    assert!(
        !path.split('/').any(|segment| segment == "." || segment == ".."),
        "{text:?}: {path:?}"
    );
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}: {normal:?}");
}

/// The head of a request: at once, byte by byte, and as it goes on to an upstream.
pub fn request(bytes: &[u8]) {
    let whole = RequestReader::default().read(bytes, &BOUNDS);
    let mut slow = RequestReader::default();
    let pieces = (0..=bytes.len()).map(|end| slow.read(&bytes[..end], &BOUNDS));
    let piecewise = pieces.take_while(Result::is_ok).find_map(Result::unwrap_or_default);
    let Ok(Some(read)) = whole else {
        assert_eq!(piecewise, None, "what is no head at once is one in pieces");
        return;
    };
    assert_eq!(piecewise, Some(read), "a head that depends on how it comes");
    let buffer = Bytes::copy_from_slice(bytes);
    let version = read.first.version;
    let Ok(framing) = http1::of_request(version, bytes, slow.fields()) else { return };
    let Ok(headers) = http1::headers(&buffer, slow.fields()) else { return };
    let (Ok(method), Ok(uri)) = (
        Method::from_bytes(read.first.method.of(bytes)),
        Uri::try_from(read.first.target.of(bytes)),
    ) else {
        return;
    };
    let Ok(host) = head::check(&method, &uri, Version::HTTP_11, &headers, &BOUNDS) else { return };
    let text = host.port.map_or_else(|| host.name.clone(), |port| format!("{}:{port}", host.name));
    assert_eq!(text.parse::<Host>().as_ref(), Ok(&host), "a host that is read in two ways");
    let Some(Ok(target)) = uri.path_and_query().map(|t| Target::parse(t.as_str(), 8_000)) else {
        return;
    };
    // What goes on is read again as one request of the same parts.
    let mut out = Vec::new();
    let lines = Lines::default();
    let fields = http1::Fields { lines: &lines, map: &headers, framing, connection: None };
    http1::request(&mut out, &method, &target.path_and_query(), fields);
    let mut again = RequestReader::default();
    let room = Bounds { headers_max: 1_000, header_bytes_max: 1 << 20, uri_bytes_max: 1 << 20 };
    let reread = again.read(&out, &room).expect("ours").expect("whole");
    assert_eq!(reread.length, out.len(), "what goes on holds more than one head");
    assert_eq!(reread.first.target.of(&out), target.path_and_query().as_bytes());
    let reframed = http1::of_request(reread.first.version, &out, again.fields());
    let is_same = match (framing, reframed) {
        (Framing::Empty, Ok(Framing::Empty | Framing::Length(0))) => true,
        (one, other) => other == Ok(one),
    };
    assert!(is_same, "{framing:?} goes on as {reframed:?}");
}

/// A body in chunks: the same content however it comes.
pub fn chunks(bytes: &[u8]) {
    assert_eq!(unchunk(bytes, usize::MAX), unchunk(bytes, 1), "at once, and in pieces");
}

/// A client's frames: the same fault however they come, and nothing of it or behind it goes on.
pub fn frames(bytes: &[u8]) {
    let judge = |step: usize| {
        let mut conduct = Conduct::new(100, 0);
        conduct.received(BEGUN, 0);
        let passed: usize = bytes.chunks(step).map(|part| conduct.received(part, 0)).sum();
        match conduct.fault() {
            None => assert_eq!(passed, bytes.len()),
            Some(_) => assert!(passed < bytes.len() && conduct.received(b"more", 0) == 0),
        }
        conduct.fault()
    };
    assert_eq!(judge(bytes.len().max(1)), judge(1), "at once, and in pieces");
}

/// The preface, and settings.
const BEGUN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The content of a body and whether it ended; `None` if it is no body.
fn unchunk(bytes: &[u8], step: usize) -> Option<(Vec<u8>, bool)> {
    let (mut reader, mut content) = (Chunks::default(), Vec::new());
    let (mut buffer, mut rest) = (Vec::new(), bytes);
    loop {
        let drop = match reader.read(&buffer, &BOUNDS).ok()? {
            Chunk::More { consumed } => {
                if rest.is_empty() {
                    return Some((content, false));
                }
                let (next, left) = rest.split_at(step.min(rest.len()));
                buffer.drain(..consumed);
                buffer.extend_from_slice(next);
                rest = left;
                continue;
            }
            Chunk::Data { skipped, length } => {
                content.extend_from_slice(&buffer[skipped..skipped + length]);
                skipped + length
            }
            Chunk::End { .. } => return Some((content, true)),
        };
        buffer.drain(..drop);
    }
}

/// A PROXY header: known as such with its last byte, and never taken back.
pub fn proxy(bytes: &[u8]) {
    let whole = proxy::read(bytes);
    for end in 0..bytes.len().min(600) {
        match proxy::read(&bytes[..end]) {
            Ok(None) => {}
            Ok(Some(header)) => {
                assert!(header.length <= end);
                assert_eq!(whole, Ok(Some(header)), "a header that grows");
                assert_eq!(header.length, end, "it was whole before");
                break;
            }
            Err(_) => {
                assert!(whole.is_err(), "refused at {end}, and then taken");
                break;
            }
        }
    }
}

/// `Forwarded` and `X-Forwarded-For`: strangers are not asked, and an answer is a plain address.
pub fn forwarded(bytes: &[u8]) {
    let headers = fields(bytes);
    let trusted =
        Trusted::new(vec!["10.0.0.0/8".parse().expect("one"), "fd00::/8".parse().expect("one")]);
    let (proxy, stranger) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
    for naming in [Naming::Off, Naming::XForwardedFor, Naming::Forwarded] {
        assert_eq!(trusted.client(stranger, &headers, naming), Ok(stranger));
        if let Ok(client) = trusted.client(proxy, &headers, naming) {
            assert_eq!(client, client.to_canonical());
        }
    }
}

/// A ClientHello and its fingerprint.
pub fn hello(bytes: &[u8]) {
    let Some(hello) = Hello::read(bytes) else { return };
    let ja4 = hello.ja4();
    assert_eq!(
        Ja4::parse(ja4.as_str()).map(|again| again.as_str().to_owned()),
        Some(ja4.to_string())
    );
    let longer = [bytes, b"more"].concat();
    assert_eq!(Hello::read(&longer), Some(hello), "what follows a hello is none of it");
}

/// Lines of names and values as a map.
fn fields(bytes: &[u8]) -> HeaderMap {
    let pair = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
    };
    let mut map = HeaderMap::new();
    for (name, value) in bytes.split(|byte| *byte == b'\n').take(64).filter_map(pair) {
        map.append(name, value);
    }
    map
}

fn with_message<T>(headers: &HeaderMap, then: impl FnOnce(&Message<'_>) -> T) -> T {
    let host = Host { name: "api.example".to_owned(), port: None };
    let target = Target { path: "/v1/orders".to_owned(), query: Some("b=2&a=1".to_owned()) };
    then(&Message { method: &Method::POST, host: &host, target: &target, headers, has_body: true })
}

fn prove(message: &Message<'_>) -> Option<signed::Proven> {
    let claimed = signed::read(message, &policy(), NOW_S).ok()?;
    let body = if claimed.needs_body() { &b"body"[..] } else { b"" };
    claimed.prove(message, KEY_ID, &verifier(), body).ok()
}

/// The master secret, the key that is derived from it, and its secret.
static SIGNER: LazyLock<(Masters, Signing, hmac::Key)> = LazyLock::new(|| {
    let masters = Masters::new([&[7_u8; 32][..]]);
    let master = masters.current().expect("one").to_owned();
    let secret = masters.secret(&master, KEY_ID).expect("it is known");
    (masters, Signing::Derived(master), hmac::Key::new(hmac::HMAC_SHA256, &*secret))
});

fn verifier() -> signed::Verifier<'static> {
    let (masters, signing, _) = &*SIGNER;
    signing.verifier(masters, KEY_ID).expect("it is known")
}

fn policy() -> Policy {
    Policy {
        rfc9421: true,
        v1: true,
        v0: true,
        window_s: 300,
        leeway_s: 30,
        nonce: false,
        label: None,
        tag: None,
        cover: Vec::new(),
    }
}

fn terms() -> Issuer {
    Issuer {
        name: "main".to_owned(),
        issuer: ISSUER.to_owned(),
        audience: vec![AUDIENCE.to_owned()],
        algorithms: vec![Algorithm::Hs256],
        profile: Profile::Plain,
        leeway_ms: 5_000,
        lifetime_max_ms: 3_600_000,
        scope_claims: vec!["scope".to_owned(), "scp".to_owned()],
        roles_claim: Some("realm.roles".to_owned()),
        tier_claim: Some("tier".to_owned()),
    }
}

const BOUNDS: Bounds = Bounds { uri_bytes_max: 2_000, headers_max: 20, header_bytes_max: 4_000 };
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://api.example";
const KEY_ID: &str = "0123456789ab";
const NOW_S: u64 = 1_800_000_000;
const TOKEN_MAX: usize = 8_192;
