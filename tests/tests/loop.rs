//! The loop: misbehaviour seen in requests becomes a ban in the kernel, and the ban ends.

use std::time::Duration;

use anyhow::{Context as _, Result};
use edge_common::Reason;
use edge_daemon::clock::unix_ms;
use edge_tests::{
    Edged, Lab, Origin,
    client::{raw_https, reaches, until},
    lab::{ATTACKER, ATTACKER6, CLIENT, FRIEND},
};

/// Guesses keys until the kernel no longer answers; how many guesses were answered.
fn brute_force(edged: &Edged<'_>, source: &str) -> Result<usize> {
    for guess in 0..30 {
        let key = format!("edged_{guess:043}_000000");
        let Ok(response) = edged.get(source, "/").key(&key).arg("--connect-timeout", "2").send()
        else {
            return Ok(guess);
        };
        assert_eq!(response.status, 401);
    }
    Ok(30)
}

/// A scenario of this name with these keys.
fn scenario(name: &str, lines: &str) -> String {
    format!("[[scenario]]\nname = \"{name}\"\n{lines}")
}

#[test]
fn brute_force_is_banned_in_the_kernel_within_milliseconds() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    // The bucket of "brute-force" holds five; of a slow test's, it forgets none.
    let edged = lab.edged()?.append(&scenario("brute-force", "leak = \"1/h\""))?.start()?;
    assert_eq!(brute_force(&edged, ATTACKER)?, 6);
    assert!(!reaches(&lab, ATTACKER, 443));
    let ban = edged.event("ban", ATTACKER)?;
    assert_eq!(ban["reason"], Reason::CredentialInvalid.name());
    assert_eq!((&ban["scenario"], &ban["origin"]), (&"brute-force".into(), &"scenario".into()));
    assert_eq!(ban["strikes"], 1);
    // A fraction of what passes until the writer looks by itself: it was woken. A busy host has a part in the rest.
    assert!(ban["latency_us"].as_u64().is_some_and(|us| us < 500_000), "{ban}");
    assert!(edged.banned(ATTACKER)?);
    let metrics = edged.metrics()?;
    assert!(metrics.packets(Reason::Ban) > 0.0);
    assert_eq!(metrics.value("edged_bans_total"), 1.0);
    assert_eq!(metrics.value("edged_bans_active"), 1.0);
    assert_eq!(metrics.value("edged_ban_latency_seconds_count"), 1.0);
    assert_eq!(edged.get(CLIENT, "/health").send()?.status, 200, "others are untouched");
    Ok(())
}

#[test]
fn an_ipv6_client_is_banned_with_its_whole_prefix() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    brute_force(&edged, ATTACKER6)?;
    let neighbour = "2001:db8:0:66::67";
    lab.attacker.ip(&format!("addr add {neighbour}/32 dev eth0"))?;
    assert!(!reaches(&lab, neighbour, 443));
    Ok(())
}

/// How long at most a busy host keeps a thread from the second of two looks at clocks.
const LOOKS_MS: u64 = 500;

#[test]
fn a_ban_ends_by_itself_and_the_next_lasts_longer() -> Result<()> {
    let lab = Lab::new()?;
    let setup = lab.edged()?.set("verdicts.jitter", "0").set("verdicts.factor", "2");
    let edged = setup.append(&scenario("brute-force", "duration = \"4s\""))?.start()?;
    for (soon, lasts_ms) in [(6, 4_000), (12, 8_000)] {
        brute_force(&edged, ATTACKER)?;
        let ban = edged.bans()?.pop().context("a ban")?;
        let end = |name: &str| ban[name].as_u64().context("a time");
        let (since_ms, until_ms) = (end("since_ms")?, end("until_ms")?);
        // Calendar and boot time are read one after the other.
        assert!((until_ms - since_ms).abs_diff(lasts_ms) < LOOKS_MS, "{ban}");
        until("the ban ends", Duration::from_secs(soon), || Ok(reaches(&lab, ATTACKER, 443)))?;
        assert!(unix_ms() + LOOKS_MS > until_ms, "not before its time");
        assert!(!edged.banned(ATTACKER)?, "the kernel and the list agree");
    }
    let strikes = edged.events()?.into_iter().filter(|e| e["event"] == "ban");
    assert_eq!(strikes.map(|e| e["strikes"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    Ok(())
}

#[test]
fn an_allowlisted_source_is_never_banned() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    assert_eq!(brute_force(&edged, FRIEND)?, 30);
    assert!(reaches(&lab, FRIEND, 443));
    assert!(edged.bans()?.is_empty());
    assert_eq!(edged.metrics()?.value("edged_bans_total"), 0.0);
    Ok(())
}

#[test]
fn an_operator_frees_a_banned_source() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    brute_force(&edged, ATTACKER)?;
    assert!(edged.tell(&format!("explain {ATTACKER}"))?.contains(Reason::Ban.name()));
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    assert!(reaches(&lab, ATTACKER, 443));
    assert!(!edged.banned(ATTACKER)?);
    Ok(())
}

#[test]
fn every_kind_of_misdeed_counts() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("limits.per_source", r#"{ rate = "1/m", burst = 3 }"#)
        .append(&scenario(
            "sum",
            "signals = { malformed_request = 4, source_rate = 1 }\ncapacity = 10\nleak = \"1/m\"\nduration = \"1m\"",
        ))?
        .start()?;
    for _ in 0..2 {
        raw_https(&lab, ATTACKER, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")?;
    }
    edged.get(ATTACKER, "/health").send()?;
    edged.get(ATTACKER, "/health").send_many(3)?;
    let signals = edged.metrics()?;
    assert_eq!(signals.value(r#"edged_signals_total{reason="source_rate"}"#), 3.0);
    until("the bucket overflows", Duration::from_secs(2), || edged.banned(ATTACKER))?;
    let told = edged.tell(&format!("ban show {ATTACKER}"))?;
    assert!(told.contains("sum") && told.contains("malformed_request"), "{told}");
    Ok(())
}
