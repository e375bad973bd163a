//! What other people's scanners say of the TLS that clients meet; docs/tls.md has it in words.

use anyhow::{Context as _, Result};
use edge_tests::{Lab, client::HOST, lab::EDGE, netns::run};
use serde_json::Value;

#[test]
fn sslscan_finds_nothing_old_and_nothing_weak() -> Result<()> {
    let lab = Lab::new()?;
    let _edged = lab.edged()?.start()?;
    let name = format!("--sni-name={HOST}");
    let mut sslscan = lab.client.command("sslscan");
    let said = run(sslscan.args(["--no-colour", &name, &format!("{EDGE}:443")]))?;
    let state = |protocol: &str| {
        let line = said.lines().find(|line| line.split_whitespace().next() == Some(protocol));
        line.and_then(|line| line.split_whitespace().last()).map(str::to_owned)
    };
    for (protocol, expected) in [
        ("SSLv2", "disabled"),
        ("SSLv3", "disabled"),
        ("TLSv1.0", "disabled"),
        ("TLSv1.1", "disabled"),
        ("TLSv1.2", "enabled"),
        ("TLSv1.3", "enabled"),
    ] {
        assert_eq!(state(protocol).as_deref(), Some(expected), "{protocol} in {said}");
    }
    let ciphers =
        said.lines().filter(|line| line.starts_with("Preferred ") || line.starts_with("Accepted "));
    let ciphers: Vec<_> = ciphers.collect();
    assert!(ciphers.len() >= 5, "{said}");
    for cipher in ciphers {
        let is_aead = cipher.contains("GCM") || cipher.contains("CHACHA20");
        let is_forward = cipher.contains("ECDHE") || cipher.contains("TLSv1.3");
        assert!(is_aead && is_forward, "{cipher}");
    }
    assert!(said.contains("not vulnerable to heartbleed"), "{said}");
    Ok(())
}

#[test]
fn testssl_finds_nothing_but_that_clients_choose() -> Result<()> {
    let lab = Lab::new()?;
    let _edged = lab.edged()?.start()?;
    let file = lab.dir().join("findings.json");
    let mut testssl = lab.client.command("testssl");
    testssl.args(["--quiet", "--warnings", "off", "--color", "0", "-p", "-s", "-f", "-P", "-U"]);
    testssl.arg("--jsonfile").arg(&file).args(["--ip", EDGE, &format!("https://{HOST}")]);
    let said = testssl.output().context("start testssl")?;
    let said = String::from_utf8_lossy(&said.stdout);
    let findings: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let named = |finding: &Value| finding["id"].as_str().unwrap_or_default().to_owned();
    // Its own OpenSSL is no concern of ours.
    let is_good = |finding: &Value| {
        matches!(finding["severity"].as_str(), Some("OK" | "INFO"))
            || named(finding) == "engine_problem"
    };
    let marked: Vec<_> = findings.iter().filter(|finding| !is_good(finding)).map(named).collect();
    assert_eq!(marked, ["cipher_order"], "{said}");
    let tried = findings.iter().filter(|finding| finding["cve"].is_string()).count();
    assert!(tried >= 15, "{said}");
    for (id, finding) in [("TLS1", "not offered"), ("TLS1_1", "not offered"), ("PFS", "offered")] {
        let one = findings.iter().find(|finding| named(finding) == id);
        assert!(one.is_some_and(|one| one["finding"] == finding), "{id}: {said}");
    }
    Ok(())
}
