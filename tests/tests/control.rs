//! edgectl: what each verb does, says and returns.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    process::Output,
    time::Duration,
};

use anyhow::Result;
use edge_tests::{
    Lab, Origin,
    client::{reaches, until},
    daemon::binary,
    issuer::{self, AUDIENCE, ISSUER, Signer, jwks},
    lab::{ATTACKER, CLIENT, DENIED, FRIEND, LISTED, ORIGIN},
};
use serde_json::json;

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

#[test]
fn every_read_verb_speaks_json() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    edged.tell(&format!("deny add {ATTACKER} --ttl 10m --reason noise"))?;
    edged.key("one")?;
    for verb in ["status", "allow list", "deny list", "ban list", "key list"] {
        let answer = edged.ask(verb)?;
        assert!(answer.is_object(), "{verb}: {answer}");
        assert!(!edged.tell(verb)?.is_empty(), "{verb} speaks to people too");
    }
    assert!(edged.ask("status")?.to_string().contains("edge0"));
    assert!(edged.ask("deny list")?.to_string().contains("noise"));
    assert!(edged.ask(&format!("explain {ATTACKER}"))?.to_string().contains("deny_list"));
    Ok(())
}

#[test]
fn what_is_in_force_is_on_one_page() -> Result<()> {
    let lab = Lab::new()?;
    let signer = Signer::new("k1")?;
    std::fs::write(lab.dir().join("issuer.json"), jwks(&[&signer]))?;
    std::fs::write(lab.dir().join("all.cedar"), "permit(principal, action, resource);")?;
    let edged = lab
        .edged()?
        .append(&format!(
            "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
             key_files = [\"issuer.json\"]\n[[policy]]\nname = \"all\"\nfiles = [\"all.cedar\"]\n\
             mode = \"shadow\"\n[[limit]]\nname = \"daily\"\nby = [\"user\"]\n\
             algorithm = \"fixed_window\"\nrate = \"100/d\"\n[[route]]\npath = \"/users\"\n\
             methods = [\"GET\", \"PUT\"]\nauth = [\"key\", \"jwt\"]\nscopes = [\"a\", \"b\"]\n\
             roles = [\"ops\"]\npolicies = [\"all\"]\nupstream = \"api\"\n"
        ))?
        .start()?;
    let made = |line: &str| -> Result<String> {
        let made = edged.ask(&format!("key {line}"))?;
        Ok(made["id"].as_str().unwrap_or_default().to_owned())
    };
    made("create --name soon --expires 2d")?;
    made("create --name forever --expires never")?;
    let (turned, revoked) = (made("create --name turned")?, made("create --name revoked")?);
    made(&format!("rotate {turned}"))?;
    edged.tell(&format!("key revoke {revoked}"))?;
    let shown = edged.key("shown")?;
    assert_eq!(edged.get(FRIEND, &format!("/?k={shown}")).send()?.status, 400);
    edged.tell("token revoke --jti x --issuer own")?;
    edged.tell(&format!("deny add {ATTACKER}"))?;
    until("the key is flagged", Duration::from_secs(10), || {
        Ok(edged.ask("overview")?["keys"]["exposed"] == 1)
    })?;

    let told = edged.ask("overview")?;
    // The successor ends in 90 days, the one that it follows in 7.
    let keys = json!({
        "total": 6, "active": 5, "expiring": 2, "unused": 0, "exposed": 1, "in_grace": 1,
        "without_expiry": 1, "expired": 0, "revoked": 1,
    });
    assert_eq!(told["keys"], keys);
    assert_eq!((&told["denials"], &told["bans"]), (&json!(1), &json!(0)));
    let lists = edged.ask("status")?;
    assert_eq!((&told["allow"], &told["deny"]), (&lists["allow"], &lists["deny"]));
    let routes = told["routes"]["entries"].as_array().cloned().unwrap_or_default();
    assert_eq!(told["routes"]["total"], 3);
    assert_eq!(
        routes[2],
        json!({
            "route": "/users", "methods": ["GET", "PUT"], "auth": ["key", "jwt"], "issuers": [],
            "audience": [], "scopes": ["a", "b"], "any_scope": [], "roles": ["ops"],
            "owner": null, "policies": ["all"], "client_certificate": false, "upstream": "api",
        })
    );
    assert_eq!(routes[0]["auth"], json!([]));
    assert_eq!(told["policies"], json!([{"name": "all", "shadow": true}]));
    let issuer = &told["issuers"][0];
    assert_eq!((&issuer["keys"], &issuer["source"]), (&json!(1), &json!("files")), "{issuer}");
    assert!(issuer["stale_ms"].is_null() && issuer["confirmed_ms"].is_u64(), "{issuer}");
    let limits = told["limits"].to_string();
    assert!(limits.contains(r#""name":"daily","by":["user"],"admits":"100 each 1d""#), "{limits}");
    let listeners = told["listeners"].to_string();
    for kind in ["https", "http", "metrics", "control"] {
        assert!(listeners.contains(&format!("\"kind\":\"{kind}\"")), "{listeners}");
    }
    let now_ms = 1000 * issuer::now_s();
    let ends = told["certificates"]["entries"][0]["ends_ms"].as_u64();
    assert!(ends.is_some_and(|ends| ends > now_ms), "{told}");

    let page = edged.tell("overview")?;
    for line in ["/users", "scopes a,b; a role of ops; policies all", "100 each 1d", "only counted"]
    {
        assert!(page.contains(line), "{line}: {page}");
    }
    assert!(page.contains("keys in force"), "{page}");
    Ok(())
}

#[test]
fn explain_names_the_reason() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    for (source, reason) in [(LISTED, "deny_list"), (FRIEND, "allow_list"), (CLIENT, "pass")] {
        let answer = edged.tell(&format!("explain {source}"))?;
        assert!(answer.contains(reason), "{source}: {answer}");
    }
    assert!(edged.tell(&format!("explain {LISTED}"))?.contains(DENIED));
    Ok(())
}

#[test]
fn exit_codes_mean_something() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.start()?;
    let code = |line: &str| edged.ctl(line).map(|o| o.status.code());
    assert_eq!(code("status")?, Some(0));
    assert_eq!(code("key revoke 0123456789ab")?, Some(1));
    assert_eq!(code("deny remove 198.51.100.250")?, Some(1));
    assert_eq!(code("deny add not-a-network")?, Some(2));
    assert_eq!(code("frobnicate")?, Some(2));
    assert_eq!(code("deny add 198.51.100.9 --ttl soon")?, Some(2));
    edged.kill9()?;
    assert_eq!(edged.ctl("status")?.status.code(), Some(3));
    Ok(())
}

#[test]
fn an_operator_is_not_locked_out_by_mistake() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    lab.edge.ip("route add default via 198.51.100.254 dev edge0")?;
    for network in [ORIGIN, "192.0.2.0/24", "198.51.100.254", "0.0.0.0/0"] {
        let refused = edged.ctl(&format!("deny add {network}"))?;
        assert_eq!(refused.status.code(), Some(1), "{network}: {}", words(&refused));
        assert!(words(&refused).contains("--force"), "{}", words(&refused));
        assert!(!edged.tell("deny list")?.contains(network));
    }
    edged.tell("deny add 192.0.2.0/24 --force")?;
    assert!(edged.tell("deny list")?.contains("192.0.2.0/24"));
    Ok(())
}

#[test]
fn nobody_is_allowed_everything_by_mistake() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    for network in ["0.0.0.0/0", "0.0.0.0/1", "2000::/3"] {
        let refused = edged.ctl(&format!("allow add {network}"))?;
        assert_eq!(refused.status.code(), Some(1), "{network}: {}", words(&refused));
        assert!(words(&refused).contains("--force"), "{}", words(&refused));
        assert!(!edged.tell("allow list")?.contains(network));
    }
    edged.tell("allow add 10.0.0.0/8")?;
    edged.tell("allow add 128.0.0.0/1 --force")?;
    assert!(edged.tell("allow list")?.contains("128.0.0.0/1"));
    Ok(())
}

#[test]
fn the_callers_own_ssh_peer_is_protected() -> Result<()> {
    let lab = Lab::new()?;
    let _edged = lab.edged()?.start()?;
    // As over SSH; and as under sudo, which hands no such variable on.
    let ctl = |env: &str, network: &str| {
        let mut shell = lab.edge.command("sh");
        shell.env("SSH_CONNECTION", format!("{ATTACKER} 50000 198.51.100.1 22"));
        shell.args(["-c", "env $0 \"$@\"; exit $?", env]).arg(binary("edgectl")?);
        shell.arg("--socket").arg(lab.dir().join("control.sock"));
        let done = shell.args(["deny", "add", network]).output()?;
        anyhow::Ok((done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned()))
    };
    for env in ["", "-i"] {
        let (code, why) = ctl(env, "198.51.100.64/28")?;
        assert_eq!(code, Some(1), "{env}: {why}");
        assert!(why.contains("your own SSH session (198.51.100.66)"), "{env}: {why}");
        assert!(reaches(&lab, ATTACKER, 443));
        assert_eq!(ctl(env, "203.0.113.0/25")?.0, Some(0));
    }
    Ok(())
}

#[test]
fn the_socket_is_private() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new()?;
    let _edged = lab.edged()?.start()?;
    let mode = std::fs::metadata(lab.dir().join("control.sock"))?.mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    Ok(())
}

#[test]
fn a_command_of_another_version_is_told_so() -> Result<()> {
    let lab = Lab::new()?;
    let _edged = lab.edged()?.start()?;
    for (command, why) in [
        (r#"{"command":"authz_explain","principal":null,"method":"GET"}"#, "missing field"),
        (r#"{"command":"polish"}"#, "unknown variant `polish`"),
    ] {
        let mut stream = UnixStream::connect(lab.dir().join("control.sock"))?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        assert!(reply.contains("not a command that edged "), "{reply}");
        assert!(reply.contains(why) && reply.contains("of another version?"), "{reply}");
    }
    Ok(())
}

#[test]
fn a_key_lives_until_it_is_revoked_and_is_shown_once() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("short")?;
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
    let list = edged.ask("key list")?;
    assert!(!list.to_string().contains(&key), "a key is shown once");
    let id = list["entries"][0]["id"].as_str().unwrap_or_default();
    edged.tell(&format!("key revoke {id}"))?;
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 401);
    Ok(())
}

#[test]
fn completions_are_printed() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let done =
            std::process::Command::new(binary("edgectl")?).args(["completions", shell]).output()?;
        assert!(done.status.success() && words(&done).contains("edgectl"), "{shell}");
    }
    Ok(())
}

#[test]
fn check_reports_every_mistake_with_its_place() -> Result<()> {
    let lab = Lab::new()?;
    let setup = lab.edged()?;
    let config = setup.write()?;
    let text = std::fs::read_to_string(&config)?;
    let bad = text.replace("factor = 4  ", "facter = 4  ").replace("\"10m\"", "\"10 lightyears\"");
    std::fs::write(&config, bad)?;
    let done =
        lab.edge.command(binary("edged")?).args(["check", "--config"]).arg(&config).output()?;
    assert!(!done.status.success());
    let words = words(&done);
    for part in ["facter", "factor", "10 lightyears", "edged.toml:"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    Ok(())
}
