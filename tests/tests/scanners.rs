//! What other people's scanners say of the TLS that clients meet; docs/tls.md has it in words.

use anyhow::Result;
use edge_tests::{
    Lab,
    client::{HOST, installed},
    lab::EDGE,
    netns::run,
};

#[test]
fn sslscan_finds_nothing_old_and_nothing_weak() -> Result<()> {
    if !installed("sslscan") {
        println!("no sslscan: not run");
        return Ok(());
    }
    let lab = Lab::new()?;
    let _edged = lab.edged()?.set("limits.handshakes", r#""off""#).start()?;
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
