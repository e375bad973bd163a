//! What upstreams are told of a request's sender, as a signed token: verified by npm `jose` with the keys that
//! the edge publishes, as an upstream would.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context, Result};
use edge_tests::{
    Edged, Lab, Origin,
    client::{Response, until},
    issuer::{Node, ran},
    lab::FRIEND,
};
use serde_json::{Value, json};

/// Where the edge publishes its keys: at the listener of the metrics.
const KEYS: &str = "http://127.0.0.1:9464/identity/jwks.json";

/// An upstream that fetches the keys when it first needs them, and never again.
fn verifier(lab: &Lab) -> Result<Node> {
    let (node, ready) = Node::start(&lab.edge, "verify.mjs", &[KEYS, "edged", "upstream"])?;
    assert_eq!(ready, "ready");
    Ok(node)
}

fn verified(upstream: &mut Node, token: &str) -> Result<Value> {
    Ok(serde_json::from_str(&upstream.ask(token)?)?)
}

/// The tokens that reached the upstream with a request.
fn tokens(echo: &Response) -> Vec<String> {
    let headers = echo.json()["headers"].as_array().cloned().unwrap_or_default();
    let pairs = headers.iter().filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?)));
    pairs
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-edged-token"))
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// The one token that a request with this key reaches the upstream with.
fn token(edged: &Edged<'_>, key: &str) -> Result<String> {
    let echo = edged.get(FRIEND, "/echo").key(key).send()?;
    assert_eq!(echo.status, 200, "{echo:?}");
    let [token] = &tokens(&echo)[..] else { panic!("not one token: {echo:?}") };
    Ok(token.clone())
}

#[test]
fn an_upstream_verifies_by_the_published_keys_across_a_rotation_and_a_restart() -> Result<()> {
    if !Node::is_there()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let secret = lab.dir().join("identity.key");
    fs::write(&secret, [0x5a; 32])?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let mut edged = lab
        .edged()?
        .set("upstream_identity.jws", "true")
        .set("upstream_identity.key", &format!("\"file:{}\"", secret.display()))
        .set("upstream_identity.life", "\"8s\"")
        .set("upstream_identity.rotate", "\"24s\"")
        .start()?;
    let made = edged.ask("key create --name caller --scopes orders:read")?;
    let (key, id) = (made["key"].as_str().context("a key")?, &made["id"]);
    let mut upstream = verifier(&lab)?;
    let first = verified(&mut upstream, &token(&edged, key)?)?;
    let claims = &first["claims"];
    for (name, value) in [
        ("sub", id.clone()),
        ("key_id", id.clone()),
        ("name", json!("caller")),
        ("amr", json!(["key"])),
        ("scope", json!("orders:read")),
    ] {
        assert_eq!(claims[name], value, "{name}: {first}");
    }

    // The next key was published before it was used: nobody had to fetch it.
    let mut second = Value::Null;
    until("the key turns", Duration::from_secs(40), || {
        second = verified(&mut upstream, &token(&edged, key)?)?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(second["header"]["kid"] != first["header"]["kid"])
    })?;
    assert_eq!(second["claims"]["sub"], *id, "{second}");
    // Keys follow from the secret and the time, so a restart changes none, unless its turn comes just then.
    until("a restart changes no key", Duration::from_secs(20), || {
        // Whoever fetches the keys once knows two of them.
        upstream = verifier(&lab)?;
        let before = verified(&mut upstream, &token(&edged, key)?)?;
        edged.terminate()?;
        edged.start_again()?;
        let after = verified(&mut upstream, &token(&edged, key)?)?;
        assert_eq!(after["claims"]["sub"], *id, "{after}");
        Ok(after["header"]["kid"] == before["header"]["kid"])
    })?;

    // What a client sends by that name reaches nobody, and is no token of ours.
    let forged = token(&edged, key)?.replace('.', ".e30");
    for name in ["X-Edged-Token", "x-edged-token", "X-EDGED-TOKEN"] {
        let echo = edged.get(FRIEND, "/echo").key(key).header(name, &forged).send()?;
        let [told] = &tokens(&echo)[..] else { panic!("{name}: {echo:?}") };
        let told = verified(&mut upstream, told)?;
        assert_eq!(told["claims"]["sub"], *id, "{name}: {told}");
        assert!(!echo.text().contains(&forged), "{name}: {echo:?}");
    }
    let spelt = edged.get(FRIEND, "/echo").key(key).header("X_Edged_Token", &forged).send()?;
    assert_eq!(spelt.status, 400);
    assert!(verified(&mut upstream, &forged)?["error"].is_string());
    // Nor where the edge signs nothing.
    edged.edit("upstream_identity.jws", "false")?;
    edged.tell("reload")?;
    let echo = edged.get(FRIEND, "/echo").key(key).header("X-Edged-Token", &forged).send()?;
    assert_eq!((echo.status, tokens(&echo)), (200, vec![]));
    ran("npm jose, as an upstream");
    Ok(())
}

/// Without a `key` the secret is that of the process: it outlives a reload, and no restart.
#[test]
fn without_a_key_what_was_published_ends_with_the_process() -> Result<()> {
    if !Node::is_there()? {
        return Ok(());
    }
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.set("upstream_identity.jws", "true").start()?;
    let key = edged.key("caller")?;
    let mut upstream = verifier(&lab)?;
    let first = token(&edged, &key)?;
    assert!(verified(&mut upstream, &first)?["claims"].is_object());
    edged.tell("reload")?;
    assert!(verified(&mut upstream, &token(&edged, &key)?)?["claims"].is_object());

    edged.terminate()?;
    edged.start_again()?;
    let later = token(&edged, &key)?;
    assert_eq!(verified(&mut upstream, &later)?["error"], "ERR_JWKS_NO_MATCHING_KEY");
    let mut fetching = verifier(&lab)?;
    assert!(verified(&mut fetching, &later)?["claims"].is_object(), "who fetches anew verifies");
    assert_eq!(verified(&mut fetching, &first)?["error"], "ERR_JWKS_NO_MATCHING_KEY");
    Ok(())
}
