//! Keys that lie on the edge's host: shared secrets and PEM files of issuers, and the key that signs for
//! upstreams. Each is changed with an overlap, without a restart.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use aws_lc_rs::{
    encoding::AsDer as _,
    hmac,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use edge_tests::{
    Edged, Lab, Origin,
    client::until,
    issuer::{AUDIENCE, ISSUER, encode, now_s},
    lab::FRIEND,
};
use serde_json::{Value, json};

fn claims() -> Value {
    let now = now_s();
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 300})
}

/// A token that `sign` signs.
fn token(algorithm: &str, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let header = json!({"alg": algorithm, "typ": "JWT"}).to_string();
    let input = format!("{}.{}", encode(header.as_bytes()), encode(claims.to_string().as_bytes()));
    format!("{input}.{}", encode(&sign(input.as_bytes())))
}

fn hs256(secret: &[u8], claims: &Value) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    token("HS256", claims, |input| hmac::sign(&key, input).as_ref().to_vec())
}

fn rs256(key: &KeyPair) -> String {
    token("RS256", &claims(), |input| {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature).expect("it signs");
        signature
    })
}

/// An issuer with these keys, and a route for its tokens.
fn terms(keys: &str) -> String {
    format!(
        "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
         profile = \"plain\"\n{keys}\n\
         [[route]]\npath = \"/token\"\nmethods = [\"GET\"]\nauth = \"jwt\"\nupstream = \"api\"\n"
    )
}

fn status(edged: &Edged<'_>, token: &str) -> Result<u16> {
    let request = edged.get(FRIEND, "/token");
    Ok(request.header("Authorization", &format!("Bearer {token}")).send()?.status)
}

/// A file for its owner alone; its reference.
fn secret(lab: &Lab, name: &str, bytes: &[u8]) -> Result<String> {
    let path = lab.dir().join(name);
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(format!("\"file:{}\"", path.display()))
}

/// Why `edged` refuses to start with these keys.
fn refusal(lab: &Lab, keys: &str) -> Result<String> {
    let config = lab.edged()?.append(&terms(keys))?.write()?;
    let edged = edge_tests::daemon::binary("edged")?;
    let checked = lab.edge.command(edged).args(["check", "--config"]).arg(&config).output()?;
    assert!(!checked.status.success());
    Ok(String::from_utf8_lossy(&checked.stderr).into_owned())
}

#[test]
fn secrets_turn_with_an_overlap_and_without_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (a, b, c) = ([b'a'; 32], [b'b'; 32], [b'c'; 32]);
    let (file_a, file_b) = (secret(&lab, "a", &a)?, secret(&lab, "b", &b)?);
    let edged = lab.edged()?.append(&terms(&format!("secrets = [{file_a}]")))?.start()?;
    let by = |secret: &[u8]| hs256(secret, &claims());
    assert_eq!((status(&edged, &by(&a))?, status(&edged, &by(&b))?), (200, 401));
    for both in [format!("[{file_a}, {file_b}]"), format!("[{file_b}, {file_a}]")] {
        edged.edit("issuer.0.secrets", &both)?;
        edged.tell("reload")?;
        let all = [by(&a), by(&b), by(&c)].map(|token| status(&edged, &token));
        let [a, b, c] = all;
        assert_eq!((a?, b?, c?), (200, 200, 401), "{both}");
    }
    // Taken away, it ends, in the cache too.
    let cached = by(&a);
    assert_eq!(status(&edged, &cached)?, 200);
    edged.edit("issuer.0.secrets", &format!("[{file_b}]"))?;
    edged.tell("reload")?;
    assert_eq!((status(&edged, &cached)?, status(&edged, &by(&b))?), (401, 200));
    // A file that changes is read again by itself.
    secret(&lab, "b", &c)?;
    until("the new secret is read", Duration::from_secs(20), || {
        Ok(status(&edged, &by(&c))? == 200)
    })?;
    assert_eq!(status(&edged, &by(&b))?, 401);
    drop(edged);

    let copy = secret(&lab, "copy", &c)?;
    let told = refusal(&lab, &format!("secrets = [{file_b}, {copy}]"))?;
    assert!(told.contains("a key is there twice"), "{told}");
    Ok(())
}

#[test]
fn what_a_secret_signed_is_revoked_by_its_name_and_without_an_end() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let (a, b) = ([b'a'; 32], [b'b'; 32]);
    let (file_a, file_b) = (secret(&lab, "a", &a)?, secret(&lab, "b", &b)?);
    let mut edged =
        lab.edged()?.append(&terms(&format!("secrets = [{file_a}, {file_b}]")))?.start()?;
    let (by_a, by_b) = (hs256(&a, &claims()), hs256(&b, &claims()));
    assert_eq!((status(&edged, &by_a)?, status(&edged, &by_b)?), (200, 200));
    let keys = edged.ask("token keys")?;
    assert_eq!(keys["total"], 2, "{keys}");
    let first = keys["entries"][0]["key"].as_str().context("a name")?.to_owned();
    assert_eq!(keys["entries"][0]["algorithms"], json!(["HS256"]), "{keys}");
    let said = edged.tell(&format!("token revoke --key {first} --issuer own"))?;
    assert!(said.trim_end().ends_with("is revoked"), "{said}");
    for time in ["at once", "after a restart", "in another order"] {
        assert_eq!((status(&edged, &by_a)?, status(&edged, &by_b)?), (401, 200), "{time}");
        let denial = edged.ask("token list")?["entries"][0].clone();
        assert_eq!((&denial["until_ms"], &denial["value"]), (&Value::Null, &json!(first)));
        assert!(edged.tell("token keys")?.contains("revoked"), "{time}");
        edged.kill9()?;
        edged.edit("issuer.0.secrets", &format!("[{file_b}, {file_a}]"))?;
        edged.start_again()?;
    }
    let said = edged.tell("token revoke --kid nobodys --issuer own")?;
    assert!(said.contains("no key of the issuer is called so"), "{said}");

    // A client's token without a subject is revoked by what everybody calls it.
    let mut clients = claims();
    clients["sub"].take();
    clients["client_id"] = json!("app");
    clients.as_object_mut().context("an object")?.remove("sub");
    let clients = hs256(&b, &clients);
    assert_eq!(status(&edged, &clients)?, 200);
    edged.tell("token revoke --sub client:app --issuer own")?;
    assert_eq!((status(&edged, &clients)?, status(&edged, &by_b)?), (401, 200));
    Ok(())
}

/// A PEM file of a new RSA key, and the key.
fn pem(lab: &Lab, name: &str) -> Result<(PathBuf, KeyPair)> {
    let key = KeyPair::generate(KeySize::Rsa2048)?;
    let body = STANDARD.encode(key.public_key().as_der()?.as_ref());
    let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    let text =
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
    let path = lab.dir().join(name);
    fs::write(&path, text)?;
    Ok((path, key))
}

#[test]
fn pem_files_turn_with_an_overlap_and_are_revoked_by_thumbprint() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let ((file_a, a), (file_b, b)) = (pem(&lab, "a.pem")?, pem(&lab, "b.pem")?);
    let keys = format!("key_files = [{file_a:?}]");
    let edged = lab.edged()?.append(&terms(&keys))?.start()?;
    assert_eq!((status(&edged, &rs256(&a))?, status(&edged, &rs256(&b))?), (200, 401));
    edged.edit("issuer.0.key_files", &format!("[{file_a:?}, {file_b:?}]"))?;
    edged.tell("reload")?;
    let (by_a, by_b) = (rs256(&a), rs256(&b));
    assert_eq!((status(&edged, &by_a)?, status(&edged, &by_b)?), (200, 200));
    let listed = edged.ask("token keys")?;
    let first = listed["entries"][0]["key"].as_str().context("a thumbprint")?;
    edged.tell(&format!("token revoke --kid {first} --issuer own"))?;
    assert_eq!((status(&edged, &by_a)?, status(&edged, &by_b)?), (401, 200));
    edged.tell(&format!("token remove --kid {first} --issuer own"))?;
    assert_eq!(status(&edged, &by_a)?, 200);
    edged.edit("issuer.0.key_files", &format!("[{file_b:?}]"))?;
    edged.tell("reload")?;
    assert_eq!((status(&edged, &by_a)?, status(&edged, &by_b)?), (401, 200));
    Ok(())
}

/// The names of the keys that the edge publishes for upstreams.
fn published(lab: &Lab) -> Result<Vec<String>> {
    let curl = ["-s", "http://127.0.0.1:9464/identity/jwks.json"];
    let done = lab.edge.command("curl").args(curl).output()?;
    let set: Value = serde_json::from_slice(&done.stdout)?;
    let keys = set["keys"].as_array().context("keys")?.iter();
    Ok(keys.filter_map(|key| key["kid"].as_str().map(str::to_owned)).collect())
}

#[test]
fn the_key_that_signs_for_upstreams_turns_without_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let file = secret(&lab, "identity", &[1; 32])?;
    let edged = lab
        .edged()?
        .set("upstream_identity.jws", "true")
        .set("upstream_identity.key", &file)
        .start()?;
    let key = edged.key("caller")?;
    let signed_by = || -> Result<String> {
        let echo = edged.get(FRIEND, "/echo").key(&key).send()?;
        let echo = echo.json();
        let headers = echo["headers"].as_array().context("headers")?;
        let token = headers.iter().find(|pair| pair[0] == "x-edged-token").context("a token")?;
        let header = token[1].as_str().and_then(|text| text.split('.').next()).context("a head")?;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header)?;
        let header: Value = serde_json::from_slice(&bytes)?;
        Ok(header["kid"].as_str().context("a kid")?.to_owned())
    };
    let first = signed_by()?;
    assert!(published(&lab)?.contains(&first));
    // The file changes, and then the reference.
    secret(&lab, "identity", &[2; 32])?;
    let mut second = String::new();
    until("the new key signs", Duration::from_secs(20), || {
        second = signed_by()?;
        Ok(second != first)
    })?;
    let names = published(&lab)?;
    assert!(names.contains(&second) && !names.contains(&first), "{names:?}");
    edged.edit("upstream_identity.key", &secret(&lab, "other", &[3; 32])?)?;
    edged.tell("reload")?;
    let third = signed_by()?;
    assert!(third != second && published(&lab)?.contains(&third));
    Ok(())
}
