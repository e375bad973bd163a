//! The vectors of the RFCs, and what an attacker changes.

use std::collections::HashSet;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::HeaderName;
use proptest::prelude::*;
use serde_json::json;
use sfv::{Dictionary, ListEntry, Parser};

use super::fields::Input;
use super::*;
use crate::hex;

/// A request that can be changed, and read as a message.
#[derive(Clone, Debug)]
struct Sent {
    method: Method,
    host: Host,
    target: Target,
    headers: HeaderMap,
    has_body: bool,
}

impl Sent {
    fn new(method: Method, host: &str, target: &str, has_body: bool) -> Self {
        let (host, target) = (host.parse().unwrap(), Target::parse(target, 1000).unwrap());
        Self { method, host, target, headers: HeaderMap::new(), has_body }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers.insert(name, value.parse().unwrap());
        self
    }

    fn and(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers.append(name, value.parse().unwrap());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    fn to(mut self, target: &str) -> Self {
        self.target = Target::parse(target, 1000).unwrap();
        self
    }

    fn message(&self) -> Message<'_> {
        let Self { method, host, target, headers, has_body } = self;
        Message { method, host, target, headers, has_body: *has_body }
    }

    fn proven(&self, policy: &Policy, verifier: &Verifier<'_>) -> Result<Proven, Reason> {
        read(&self.message(), policy, NOW)?.prove(&self.message(), KEY_ID, verifier, b"")
    }
}

const NOW: u64 = 1_800_000_000;
const KEY_ID: &str = "0123456789ab";

fn policy() -> Policy {
    Policy {
        rfc9421: true,
        v1: true,
        v0: false,
        window_s: 300,
        leeway_s: 30,
        nonce: false,
        label: None,
        tag: None,
        cover: Vec::new(),
    }
}

fn secret(bytes: &[u8]) -> Box<hmac::Key> {
    Box::new(hmac::Key::new(hmac::HMAC_SHA256, bytes))
}

fn test_request() -> Sent {
    Sent::new(Method::POST, "example.com", "/foo?param=Value&Pet=dog", true)
        .with("host", "example.com")
        .with("date", "Tue, 20 Apr 2021 02:07:55 GMT")
        .with("content-type", "application/json")
        .with("content-digest", RFC_DIGEST)
        .with("content-length", "18")
}

/// RFC 9421, B.2: a key, what it signs and the signature.
const RFC_VECTORS: [(&str, &str, &str); 5] = [
    (
        RSA_PSS_KEY,
        r#"();created=1618884473;keyid="test-key-rsa-pss";nonce="b3k2pp5k7z-50gnwp.yemd""#,
        "d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q==",
    ),
    (
        RSA_PSS_KEY,
        r#"("@authority" "content-digest" "@query-param";name="Pet");created=1618884473;keyid="test-key-rsa-pss";tag="header-example""#,
        "LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CDfKtjvuJyE5qH7KT8UCMkSowOB4+ECxCmT8rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1rLEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpcAoFqWFQh62s7Cl+H2fjBSpqfZUJcsIk4N6wiKYd4je2U/lankenQ99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh0aaUEb0rQl3/XaVe4bXTugEjHSw==",
    ),
    (
        RSA_PSS_KEY,
        r#"("date" "@method" "@path" "@query" "@authority" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-rsa-pss""#,
        "bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA==",
    ),
    (
        RFC_SECRET,
        r#"("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#,
        "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=",
    ),
    (
        ED25519_KEY,
        r#"("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#,
        "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==",
    ),
];

fn input(text: &str) -> Option<Input> {
    let dictionary: Dictionary = Parser::new(&format!("sig={text}")).parse().ok()?;
    match dictionary.get("sig")? {
        ListEntry::InnerList(list) => Input::read(list),
        ListEntry::Item(_) => None,
    }
}

fn vector_holds(sent: &Sent, (key, text, signature): (&str, &str, &str)) -> bool {
    let public = PublicKey::from_pem(key, None);
    let verifier = match &public {
        Ok(key) => Verifier::Public(key),
        Err(_) => Verifier::Secret(secret(&STANDARD.decode(key).unwrap())),
    };
    let base = input(text).and_then(|input| input.base(&sent.message()));
    let signature = STANDARD.decode(signature).unwrap();
    base.is_some_and(|base| verifier.verifies(base.as_bytes(), &signature))
}

#[test]
fn rfc_9421_b_2_1_to_b_2_6_hold_and_no_mutation_does() {
    for vector in RFC_VECTORS {
        let sent = test_request();
        let (key, text, signature) = vector;
        assert!(vector_holds(&sent, vector), "{text}");
        // What is covered may not change; what is not, may.
        for (covered, changed) in [
            ("\"date\"", sent.clone().with("date", "Tue, 20 Apr 2021 02:07:56 GMT")),
            ("\"@method\"", Sent { method: Method::PUT, ..sent.clone() }),
            ("\"@path\"", sent.clone().to("/fooo?param=Value&Pet=dog")),
            ("\"@query\"", sent.clone().to("/foo?param=Value&Pet=dog&x")),
            ("\"@query", sent.clone().to("/foo?param=Value&Pet=cat")),
            ("\"@authority\"", Sent { host: "example.org".parse().unwrap(), ..sent.clone() }),
            ("\"content-type\"", sent.clone().with("content-type", "text/plain")),
            ("\"content-digest\"", sent.clone().with("content-digest", "sha-256=:AAAA:")),
            ("\"content-length\"", sent.clone().with("content-length", "19")),
            ("\"date\"", sent.clone().and("date", "Tue, 20 Apr 2021 02:07:55 GMT")),
            ("\"content-type\"", sent.clone().without("content-type")),
        ] {
            let holds = vector_holds(&changed, vector);
            assert_eq!(holds, !text.contains(covered), "{text}: {covered}");
        }
        let later = text.replace("1618884473", "1618884474");
        let other = text.replace("keyid=\"t", "keyid=\"T");
        let reordered = text.replace("\"date\" \"@", "\"@date\" \"");
        for text in [&*later, &*other, &*reordered] {
            assert_eq!(vector_holds(&sent, (key, text, signature)), text == vector.1, "{text}");
        }
        // Every bit of the signature counts.
        let bytes = STANDARD.decode(signature).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flipped = STANDARD.encode(flipped);
            assert!(!vector_holds(&sent, (key, text, &flipped)), "{text}: bit {bit}");
        }
    }
}

/// B.2.4 signs an answer, which no client sends; its key and signature serve all the same.
#[test]
fn rfc_9421_b_2_4_verifies() {
    let key = PublicKey::from_pem(P256_KEY, None).unwrap();
    let base = "\"@status\": 200\n\"content-type\": application/json\n\"content-digest\": \
        sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n\
        \"content-length\": 23\n\"@signature-params\": (\"@status\" \"content-type\" \"content-digest\" \
        \"content-length\");created=1618884473;keyid=\"test-key-ecc-p256\"";
    let signature =
        "wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==";
    let signature = STANDARD.decode(signature).unwrap();
    assert!(Verifier::Public(&key).verifies(base.as_bytes(), &signature));
    assert!(!Verifier::Public(&key).verifies(base.replace("200", "201").as_bytes(), &signature));
    assert_eq!(key.algorithm(), Algorithm::EcdsaP256Sha256);
    assert!(input("(\"@status\")").is_none());
}

#[test]
fn each_component_has_its_value() {
    let sent =
        Sent::new(Method::GET, "WWW.Example.com:443", "/a/../path?param=value&b=%2f+x&e=", false)
            .with("x-list", "  a ")
            .and("x-list", "b;c")
            .with("x-empty", "")
            .with("priority", "u=1,    i=?1;x")
            .with("x-dict", " a=1, b=2;x=1;y=2, c=(a b  c);z, d")
            .with("x-raw", "v\u{e9}");
    for (component, value) in [
        ("\"@method\"", Some("GET")),
        ("\"@authority\"", Some("www.example.com")),
        ("\"@scheme\"", Some("https")),
        ("\"@path\"", Some("/path")),
        ("\"@query\"", Some("?param=value&b=%2f+x&e=")),
        ("\"@target-uri\"", Some("https://www.example.com/path?param=value&b=%2f+x&e=")),
        ("\"@request-target\"", Some("/path?param=value&b=%2f+x&e=")),
        ("\"@query-param\";name=\"b\"", Some("%2F%20x")),
        ("\"@query-param\";name=\"e\"", Some("")),
        ("\"@query-param\";name=\"q\"", None),
        ("\"x-list\"", Some("a, b;c")),
        ("\"x-list\";bs", Some(":YQ==:, :Yjtj:")),
        ("\"x-empty\"", Some("")),
        ("\"priority\";sf", Some("u=1, i;x")),
        ("\"x-dict\";key=\"a\"", Some("1")),
        ("\"x-dict\";key=\"b\"", Some("2;x=1;y=2")),
        ("\"x-dict\";key=\"c\"", Some("(a b c);z")),
        ("\"x-dict\";key=\"d\"", Some("?1")),
        ("\"x-dict\";key=\"e\"", None),
        ("\"x-raw\"", None),
        ("\"x-raw\";bs", Some(":dsOp:")),
        ("\"x-none\"", None),
    ] {
        let input = input(&format!("({component})")).expect(component);
        let base = input.base(&sent.message());
        let expected =
            value.map(|v| format!("{component}: {v}\n\"@signature-params\": ({component})"));
        assert_eq!(base, expected, "{component}");
    }
    let twice = sent.to("/?a=1&%61=2");
    assert_eq!(input("(\"@query-param\";name=\"a\")").unwrap().base(&twice.message()), None);
}

#[test]
fn what_has_no_known_meaning_is_no_input() {
    let many = format!("({})", (0..33).map(|n| format!("\"x-{n}\"")).collect::<Vec<_>>().join(" "));
    for text in [
        "(\"@method\" \"@method\")",
        "(\"x\";bs \"x\";bs)",
        "(\"@status\")",
        "(\"@unknown\")",
        "(\"Date\")",
        "(\"\")",
        "(date)",
        "(\"x\";tr)",
        "(\"x\";req)",
        "(\"x\";sf)",
        "(\"x\";bs;sf)",
        "(\"x\";bs=?0)",
        "(\"x\";key=a)",
        "(\"@method\";bs)",
        "(\"@query-param\")",
        "(\"@query-param\";name=a)",
        "(\"@query-param\";name=\"a\";x)",
        "();created=\"1\"",
        "();created=-1",
        "();created=1.5",
        "();nonce=n",
        "();keyid=1",
        "();future=1",
        "\"@method\"",
        "(\"@method\"",
        &many,
    ] {
        assert!(input(text).is_none(), "{text}");
    }
    assert!(
        input("(\"x\" \"x\";bs);created=1;expires=2;nonce=\"n\";alg=\"a\";keyid=\"k\";tag=\"t\"")
            .is_some()
    );
}

/// Signs a request as a client of RFC 9421 does; `parameters` follow `created`.
fn signed(sent: &Sent, components: &str, parameters: &str, created_s: u64) -> Sent {
    let text = format!("({components});created={created_s};keyid=\"{KEY_ID}\"{parameters}");
    let base = input(&text).unwrap().base(&sent.message()).unwrap();
    let signature = STANDARD.encode(hmac::sign(&secret(&[7; 32]), base.as_bytes()));
    sent.clone()
        .with("signature-input", &format!("sig1={text}"))
        .with("signature", &format!("sig1=:{signature}:"))
}

const ENOUGH: &str = "\"@method\" \"@authority\" \"@path\" \"@query\" \"content-digest\"";

fn shared() -> Verifier<'static> {
    Verifier::Secret(secret(&[7; 32]))
}

#[test]
fn an_rfc_9421_signature_must_cover_what_matters() {
    let sent = test_request();
    let good = signed(&sent, ENOUGH, "", NOW);
    let proven = good.proven(&policy(), &shared()).unwrap();
    assert_eq!(proven.once.until_s, NOW + 300);
    let mut check = proven.body.unwrap();
    check.see(b"{\"hello\": ");
    check.see(b"\"world\"}");
    assert!(check.holds());
    assert_eq!(
        good.proven(&policy(), &Verifier::Secret(secret(&[8; 32]))).unwrap_err(),
        Reason::BadSignature
    );

    let holds = |components: &str, sent: &Sent, policy: &Policy| {
        signed(sent, components, "", NOW).proven(policy, &shared()).is_ok()
    };
    for missing in
        ["\"@method\"", "\"@authority\"", "\"@path\"", "\"@query\"", "\"content-digest\""]
    {
        let components = ENOUGH.replace(missing, "").replace("  ", " ");
        assert!(!holds(components.trim(), &sent, &policy()), "{missing}");
    }
    assert!(holds("\"@method\" \"@target-uri\" \"content-digest\"", &sent, &policy()));
    assert!(holds(
        "\"@method\" \"@authority\" \"@request-target\" \"content-digest\";sf",
        &sent,
        &policy()
    ));
    assert!(!holds(
        "\"@method\" \"@target-uri\" \"content-digest\";key=\"sha-512\"",
        &sent,
        &policy()
    ));
    // Without a query or a body there is nothing to cover.
    let bare = Sent { has_body: false, ..sent.clone().to("/foo").without("content-digest") };
    assert!(holds("\"@method\" \"@authority\" \"@path\"", &bare, &policy()));
    let asked = Policy { cover: vec![HeaderName::from_static("content-type")], ..policy() };
    assert!(!holds(ENOUGH, &sent, &asked));
    assert!(holds(&format!("{ENOUGH} \"content-type\""), &sent, &asked));
    assert!(holds(ENOUGH, &sent.clone().without("content-type"), &asked));
}

#[test]
fn an_rfc_9421_signature_has_its_time_and_its_key() {
    let sent = test_request();
    let refused = |parameters: &str, created_s: u64, policy: &Policy| {
        signed(&sent, ENOUGH, parameters, created_s).proven(policy, &shared()).err()
    };
    let bad = Some(Reason::BadSignature);
    let stale = Some(Reason::StaleSignature);
    let (plain, strict) = (policy(), Policy { nonce: true, ..policy() });
    let tagged = Policy { tag: Some("api".into()), ..policy() };
    for (parameters, created_s, policy, expected) in [
        ("", NOW - 300, &plain, None),
        ("", NOW - 301, &plain, stale),
        ("", NOW + 30, &plain, None),
        ("", NOW + 31, &plain, stale),
        (";expires=1800000001", NOW, &plain, None),
        (";expires=1800000000", NOW, &plain, stale),
        (";alg=\"hmac-sha256\"", NOW, &plain, None),
        (";alg=\"ed25519\"", NOW, &plain, bad),
        (";alg=\"none\"", NOW, &plain, bad),
        ("", NOW, &strict, bad),
        (";nonce=\"\"", NOW, &strict, bad),
        (";nonce=\"abc\"", NOW, &strict, None),
        ("", NOW, &tagged, bad),
        (";tag=\"web\"", NOW, &tagged, bad),
        (";tag=\"api\"", NOW, &tagged, None),
    ] {
        assert_eq!(refused(parameters, created_s, policy), expected, "{parameters} {created_s}");
    }
    let off = Policy { rfc9421: false, ..policy() };
    assert_eq!(refused("", NOW, &off), bad);
    // What is signed without a nonce comes once, whatever the signature looks like.
    let once = |parameters: &str| {
        signed(&sent, ENOUGH, parameters, NOW).proven(&policy(), &shared()).unwrap().once
    };
    assert_eq!(once(""), once(""));
    assert_ne!(once(""), once(";tag=\"x\""));
    assert_eq!(once(";nonce=\"a\""), once(";nonce=\"a\";tag=\"x\""));
    assert_ne!(once(";nonce=\"a\""), once(";nonce=\"b\""));
}

#[test]
fn several_signatures_need_a_label() {
    let good = signed(&test_request(), ENOUGH, "", NOW);
    let labelled = |label: &str| Policy { label: Some(label.into()), ..policy() };
    let two = good.clone().and("signature-input", "proxy=()").and("signature", "proxy=:AA==:");
    assert_eq!(two.proven(&policy(), &shared()).err(), Some(Reason::BadSignature));
    assert!(two.proven(&labelled("sig1"), &shared()).is_ok());
    assert!(two.proven(&labelled("proxy"), &shared()).is_err());
    assert!(two.proven(&labelled("other"), &shared()).is_err());
    for broken in [
        good.clone().without("signature"),
        good.clone().without("signature-input"),
        good.clone().with("signature", "other=:AA==:"),
        good.clone().with("signature", "sig1=AA"),
        good.clone().with("signature", "sig1=()"),
        good.clone().with("signature", "sig1=:AA==:;"),
        good.clone().with("signature-input", "sig1"),
        good.clone().with("x-signature", "v1=00"),
    ] {
        assert_eq!(broken.proven(&policy(), &shared()).err(), Some(Reason::BadSignature));
    }
}

/// Signs a request by the edge's own scheme.
fn sealed(sent: &Sent, sha256: &str) -> Sent {
    let time = NOW.to_string();
    let text = canonical(&sent.message(), &time, NONCE, sha256, KEY_ID);
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&secret(&[7; 32]), text.as_bytes()));
    sent.clone()
        .with("x-timestamp", &time)
        .with("x-nonce", NONCE)
        .with("x-signature", &format!("v1={signature}"))
}

const NONCE: &str = "0123456789abcdef";

#[test]
fn v1_signs_the_whole_request() {
    let hello = sha256_hex(b"hello");
    let sent = Sent::new(Method::POST, "Api.Example:8443", "/a//b?z=1&a=2&a=1", true)
        .with("x-content-sha256", &hello);
    let text = canonical(&sent.message(), "1", NONCE, &hello, KEY_ID);
    let lines =
        ["v1", "POST", "api.example:8443", "/a/b", "a=2&a=1&z=1", "1", NONCE, &hello, KEY_ID];
    assert_eq!(text, lines.join("\n"));

    let good = sealed(&sent, &hello);
    let proven = good.proven(&policy(), &shared()).unwrap();
    assert_eq!(proven.once.until_s, NOW + 300);
    let mut check = proven.body.unwrap();
    check.see(b"hello");
    assert!(check.holds());
    // Escapes, parameters in another order, hex: the same request.
    assert!(good.clone().to("/%61/b?a=2&z=1&a=1").proven(&policy(), &shared()).is_ok());
    let value = good.headers["x-signature"].to_str().unwrap().strip_prefix("v1=").unwrap();
    let hex: String =
        URL_SAFE_NO_PAD.decode(value).unwrap().iter().map(|b| format!("{b:02X}")).collect();
    let hexed = good.clone().with("x-signature", &format!("v1={hex}"));
    assert!(hexed.proven(&policy(), &shared()).is_ok());
    let digest = STANDARD.encode(hex::read_any(&hello).unwrap());
    let by_field = good.clone().with("content-digest", &format!("x=:AA==:, sha-256=:{digest}:"));
    assert!(by_field.proven(&policy(), &shared()).is_ok());
    assert!(by_field.without("x-content-sha256").proven(&policy(), &shared()).is_ok());
    for changed in [
        Sent { method: Method::PUT, ..good.clone() },
        Sent { host: "api.example".parse().unwrap(), ..good.clone() },
        good.clone().to("/a/c?z=1&a=2&a=1"),
        good.clone().to("/a/b?z=1&a=1&a=2"),
        good.clone().to("/a/b?z=1&a=2"),
        good.clone().to("/a/b"),
        good.clone().with("x-timestamp", "1800000001"),
        good.clone().with("x-timestamp", "+1800000000"),
        good.clone().with("x-timestamp", ""),
        good.clone().and("x-timestamp", "1800000000"),
        good.clone().with("x-nonce", "0123456789abcdeF"),
        good.clone().with("x-nonce", "short"),
        good.clone().without("x-nonce"),
        good.clone().with("x-content-sha256", &sha256_hex(b"hallo")),
        good.clone().with("x-content-sha256", &hello[1..]),
        good.clone().without("x-content-sha256"),
        good.clone().with("content-digest", "sha-256=:AAAA:"),
        good.clone().with("content-digest", "md5=:AAAA:"),
        good.clone().with("x-signature", "v1="),
        good.clone().with("x-signature", "v2=00"),
        good.clone().with("x-signature", &hexed.headers["x-signature"].to_str().unwrap()[3..]),
    ] {
        assert_eq!(
            changed.proven(&policy(), &shared()).err(),
            Some(Reason::BadSignature),
            "{changed:?}"
        );
    }
    let emptied = Sent { has_body: false, ..good.clone() };
    assert_eq!(emptied.proven(&policy(), &shared()).err(), Some(Reason::BodyDigest));
    let off = Policy { v1: false, ..policy() };
    assert!(good.proven(&off, &shared()).is_err());
    let other = read(&good.message(), &policy(), NOW).unwrap();
    assert!(other.prove(&good.message(), "0123456789ac", &shared(), b"").is_err());
    assert_eq!(read(&good.message(), &policy(), NOW + 301).err(), Some(Reason::StaleSignature));
    assert_eq!(read(&good.message(), &policy(), NOW - 31).err(), Some(Reason::StaleSignature));
}

#[test]
fn v0_signs_a_body_and_is_off_unless_asked_for() {
    let sent = Sent::new(Method::POST, "a", "/", true).with("x-timestamp", "1800000000");
    let tag = hmac::sign(&secret(&[7; 32]), b"body");
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let old = Policy { v0: true, ..policy() };
    for value in [hex.clone(), format!("v0={hex}")] {
        let sent = sent.clone().with("x-signature", &value);
        assert_eq!(read(&sent.message(), &policy(), NOW).err(), Some(Reason::BadSignature));
        let proven = |body: &[u8]| {
            let claimed = read(&sent.message(), &old, NOW).unwrap();
            assert!(claimed.needs_body());
            claimed.prove(&sent.message(), KEY_ID, &shared(), body)
        };
        assert!(proven(b"body").unwrap().body.is_none());
        assert_eq!(proven(b"body").unwrap().once, proven(b"body").unwrap().once);
        assert_eq!(proven(b"bodY").err(), Some(Reason::BadSignature));
        assert_eq!(read(&sent.message(), &old, NOW + 301).err(), Some(Reason::StaleSignature));
    }
}

/// The bodies of RFC 9530, 2 and appendix B: whole, in part, in another coding, and none. The digest is of
/// what is sent, whatever that is a part or a coding of.
#[test]
fn rfc_9530_digests_are_compared() {
    let holds = |value: &str, body: &[u8]| {
        let sent = Sent::new(Method::POST, "a", "/", true).with("content-digest", value);
        let mut check = BodyCheck::content_digest(&sent.headers).ok()??;
        for part in body.chunks(3) {
            check.see(part);
        }
        Some(check.holds())
    };
    let hello = b"{\"hello\": \"world\"}\n";
    let sha256 = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
    let sha512 = "sha-512=:YMAam51Jz/jOATT6/zvHrLVgOYTGFy1d6GJiOHTohq4yP+pgk4vf2aCsyRZOtw8MjkM7iw7yZ/WkppmM44T3qg==:";
    assert_eq!(holds(sha256, hello), Some(true));
    assert_eq!(holds(sha512, hello), Some(true));
    assert_eq!(holds(&format!("{sha256}, {sha512}"), hello), Some(true));
    assert_eq!(holds(&format!("md5=:AAAA:, unixsum=1, {sha256}"), hello), Some(true));
    assert_eq!(holds(sha256, b"{\"hello\": \"world\"}"), Some(false));
    // Appendix B.3: bytes 10 to 18, which are sent alone.
    let part = "sha-256=:jjcgBDWNAtbYUXI37CVG3gRuGOAjaaDRGpIUFsdyepQ=:";
    assert_eq!(holds(part, &hello[10..]), Some(true));
    assert_eq!(holds(sha256, &hello[10..]), Some(false), "of the whole, for a part");
    assert_eq!(holds(part, hello), Some(false), "of a part, for the whole");
    // In Brotli. What the RFC prints has other first bytes and lacks what the digest is of (erratum 8890).
    let coded = "sha-256=:d435Qo+nKZ+gLcUHn7GQtQ72hiBVAgqoLsZnZPiTGPk=:";
    let brotli = [b"\x0b\x09\x80", &hello[..], b"\x03"].concat();
    assert_eq!(holds(coded, &brotli), Some(true));
    assert_eq!(holds(coded, hello), Some(false), "of the coding, for what it stands for");
    assert_eq!(holds(sha256, &brotli), Some(false));
    let printed = [b"\x8b\x08\x80", &hello[..], b"\x03"].concat();
    assert_eq!(holds(coded, &printed), Some(false));
    let empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:, sha-512=:z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==:";
    assert_eq!(holds(empty, b""), Some(true));
    assert_eq!((holds(empty, hello), holds(sha256, b"")), (Some(false), Some(false)));
    // Each digest that is known must hold, not only the best: in section 2 one is of the coding, one of
    // what it stands for.
    assert_eq!(holds(&format!("{coded}, {sha512}"), hello), Some(false));
    let wrong = sha256.replace("RK/0", "RK/1");
    assert_eq!(holds(&format!("{wrong}, {sha512}"), hello), Some(false));
    let over = sha256.replace("Dg=:", "Dg==:");
    for unusable in [
        "",
        "sha-256",
        "sha-256=1",
        "sha-256=:AAAA:",
        "sha=:AAAA:",
        "sha-256=:",
        "sha-256=()",
        &over,
    ] {
        assert_eq!(holds(unusable, hello), None, "{unusable}");
    }
}

#[test]
fn public_keys_are_read_and_fix_their_algorithm() {
    let read =
        |text: &str, algorithm| PublicKey::from_pem(text, algorithm).map(|key| key.algorithm());
    assert_eq!(read(ED25519_KEY, None), Ok(Algorithm::Ed25519));
    assert_eq!(read(RSA_PSS_KEY, None), Ok(Algorithm::RsaPssSha512));
    assert_eq!(read(RSA_PSS_KEY, Some(Algorithm::RsaV1_5Sha256)), Ok(Algorithm::RsaV1_5Sha256));
    assert_eq!(read(ED25519_KEY, Some(Algorithm::RsaV1_5Sha256)), Err(KeyFault::Algorithm));
    assert_eq!(read(P256_KEY, Some(Algorithm::EcdsaP384Sha384)), Err(KeyFault::Algorithm));
    assert_eq!(read("", None), Err(KeyFault::NotPem));
    assert_eq!(read("-----BEGIN PRIVATE KEY-----\n", None), Err(KeyFault::Private));
    let cut = ED25519_KEY.replace("D0bs=", "");
    assert!(read(&cut, None).is_err());
    assert_eq!(read(WEAK_RSA_KEY, None), Err(KeyFault::Weak));
    let key = PublicKey::from_pem(P256_KEY, None).unwrap();
    let text = serde_json::to_string(&Signing::Public(key)).unwrap();
    assert!(
        text.starts_with(r#"{"public":{"algorithm":"ecdsa-p256-sha256","key":"BKiF"#),
        "{text}"
    );
    let back: Signing = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
}

#[test]
fn every_curve_verifies_its_own_signatures() {
    let random = SystemRandom::new();
    for (algorithm, id, name) in [
        (
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            "3059301306072a8648ce3d020106082a8648ce3d030107034200",
            "ecdsa-p256-sha256",
        ),
        (
            &ECDSA_P384_SHA384_FIXED_SIGNING,
            "3076301006072a8648ce3d020106052b81040022036200",
            "ecdsa-p384-sha384",
        ),
    ] {
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        let key = pem_of(id, pair.public_key().as_ref());
        assert_eq!(key.algorithm().name(), name);
        let signature = pair.sign(&random, b"x").unwrap();
        assert!(Verifier::Public(&key).verifies(b"x", signature.as_ref()));
        assert!(!Verifier::Public(&key).verifies(b"y", signature.as_ref()));
    }
    let pair = Ed25519KeyPair::generate().unwrap();
    let key = pem_of("302a300506032b6570032100", pair.public_key().as_ref());
    assert!(Verifier::Public(&key).verifies(b"x", pair.sign(b"x").as_ref()));
}

fn pem_of(prefix: &str, key: &[u8]) -> PublicKey {
    let der = [&hex::read_any(prefix).unwrap(), key].concat();
    let pem =
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    PublicKey::from_pem(&pem, None).unwrap()
}

/// A key is as good where it is read from a store or from a line to be imported as from a PEM file.
#[test]
fn a_weak_key_is_refused_wherever_it_is_read() {
    let read = |algorithm: &str, key: &[u8]| {
        let written = json!({"algorithm": algorithm, "key": STANDARD.encode(key)});
        serde_json::from_value::<PublicKey>(written).map_err(|fault| fault.to_string())
    };
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let good = pair.public_key().as_ref().to_vec();
    assert!(read("rsa-pss-sha512", &good).is_ok());
    // SEQUENCE { modulus, 65537 } becomes SEQUENCE { modulus, 3 }.
    let (modulus, exponent) = good.split_at(good.len() - 5);
    assert_eq!(exponent, [2, 3, 1, 0, 1]);
    let mut cubic = [modulus, &[2, 1, 3]].concat();
    cubic[3] -= 2;
    assert!(read("rsa-pss-sha512", &cubic).unwrap_err().contains("weak exponent"));
    assert!(read("rsa-v1_5-sha256", &cubic).unwrap_err().contains("weak exponent"));
    assert!(read("ed25519", &good).is_err() && read("ed25519", &[1; 31]).is_err());
    assert!(read("ecdsa-p256-sha256", &[4; 65]).is_err(), "not on the curve");
    assert!(read("hmac-sha256", &[1; 32]).is_err(), "no public key");
}

#[test]
fn secrets_are_derived_from_the_master_that_made_them() {
    let (old, new) = ([1_u8; 32], [2_u8; 32]);
    let before = Masters::new([&old[..]]);
    let after = Masters::new([&new[..], &old[..]]);
    let (first, second) = (before.current().unwrap(), after.current().unwrap());
    assert_ne!(first, second);
    let secret = |masters: &Masters, master: &str, id: &str| masters.secret(master, id).map(|s| *s);
    assert_eq!(secret(&before, first, KEY_ID), secret(&after, first, KEY_ID));
    let all = [
        secret(&after, first, KEY_ID),
        secret(&after, second, KEY_ID),
        secret(&after, first, "0123456789ac"),
        secret(&after, second, "0123456789ac"),
    ];
    assert_eq!(all.iter().flatten().collect::<HashSet<_>>().len(), 4);
    assert_eq!(secret(&before, second, KEY_ID), None);
    assert!(!format!("{after:?}").contains(first) && !after.knows("") && after.knows(first));
    let signing = Signing::Derived(first.to_owned());
    let key = hmac::Key::new(hmac::HMAC_SHA256, &all[0].unwrap());
    let verifier = signing.verifier(&after, KEY_ID).unwrap();
    assert!(verifier.verifies(b"x", hmac::sign(&key, b"x").as_ref()));
    assert!(Signing::Derived("gone".into()).verifier(&after, KEY_ID).is_none());
    assert!(Masters::default().current().is_none());
}

/// What the canonical text must tell apart, in a form that two requests share if they mean the same.
fn meaning(parts: &Parts) -> (String, String, String, Vec<(String, Vec<String>)>) {
    let sent = parts.sent();
    let mut pairs: Vec<(String, Vec<String>)> = Vec::new();
    for pair in sent.target.query.as_deref().unwrap_or_default().split('&') {
        let name = pair.split('=').next().unwrap().to_owned();
        match pairs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(pair.to_owned()),
            None => pairs.push((name, vec![pair.to_owned()])),
        }
    }
    pairs.sort();
    (sent.method.to_string(), sent.message().authority(), sent.target.path, pairs)
}

#[derive(Clone, Debug)]
struct Parts {
    method: &'static str,
    host: String,
    path: String,
    query: String,
}

impl Parts {
    fn sent(&self) -> Sent {
        let method = Method::from_bytes(self.method.as_bytes()).unwrap();
        Sent::new(method, &self.host, &format!("{}?{}", self.path, self.query), false)
    }

    fn canonical(&self) -> String {
        canonical(&self.sent().message(), "1", NONCE, "", KEY_ID)
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let method = prop_oneof![Just("GET"), Just("POST")];
    (method, "[aA](:443|:44)?", "/[ab]{0,2}(/[ab%6162]{0,0})?", "([ab]=?[12]?&?){0,4}")
        .prop_map(|(method, host, path, query)| Parts { method, host, path, query })
}

proptest! {
    /// Two requests sign alike if and only if they mean the same.
    #[test]
    fn the_canonical_text_is_injective_on_what_matters(one in parts(), other in parts()) {
        prop_assert_eq!(one.canonical() == other.canonical(), meaning(&one) == meaning(&other));
    }

    /// Whatever is read as an input is written into the base in one form that reads the same.
    #[test]
    fn an_input_prints_as_it_reads(
        text in "\\(( ?\"(@method|@path|date|x-a)\"(;bs|;key=\"a\")?){0,4} ?\\)(;(created|expires)=[0-9]{1,9}|;(nonce|tag)=\"[a-z ]{0,5}\"){0,4}",
    ) {
        if let Some(once) = input(&text) {
            let again = input(&once.parameters).unwrap();
            prop_assert_eq!(&once.parameters, &again.parameters);
            prop_assert_eq!(once.created_s, again.created_s);
        }
    }

    /// Nothing that a client sends breaks a parser.
    #[test]
    fn no_text_breaks_a_parser(one in "[ -~]{0,80}", other in "[ -~]{0,80}") {
        let _ = input(&one);
        let _ = PublicKey::from_pem(&format!("-----BEGIN PUBLIC KEY-----{one}-----END PUBLIC KEY-----"), None);
        let fields = test_request().with("signature-input", &one).with("signature", &other);
        prop_assert!(fields.proven(&policy(), &shared()).is_err());
        let own = test_request().with("x-signature", &one).with("x-timestamp", &other);
        prop_assert!(own.with("content-digest", &one).proven(&policy(), &shared()).is_err());
    }

    #[test]
    fn no_der_breaks_its_reader(der in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = (pem::spki(&der), pem::rsa(&der), pem::element(&der));
    }
}

const RFC_DIGEST: &str = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";

/// RFC 9421, B.1.5.
const RFC_SECRET: &str =
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

/// RFC 9421, B.1.2, as `openssl pkey -pubout` writes it.
const RSA_PSS_KEY: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAr4tmm3r20Wd/PbqvP1s2
+QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct+Lh1GH45x28Rw3Ry53mm+
oAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHq
gDsznjPFmTOtCEcN2Z1FpWgchwuYLPL+Wokqltd11nqqzi+bJ9cvSKADYdUAAN5W
Utzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4
aOT9v6d+nb4bnNkQVklLQ3fVAvJm+xdDOp9LCNCN48V2pnDOkFV6+U9nV5oyc6XI
2wIDAQAB
-----END PUBLIC KEY-----
";

/// RFC 9421, B.1.3.
const P256_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf
w0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==
-----END PUBLIC KEY-----
";

/// RFC 9421, B.1.4.
const ED25519_KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----
";

/// 512 bits.
const WEAK_RSA_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAN/VSdpgqMwGCwZV1m7IO5MXMcyXsH0O
lmELhc0b/NqdFGysIaef+KitHSvm2m+aTa8oRrtcxxS8d3qO5t9ObwMCAwEAAQ==
-----END PUBLIC KEY-----
";
