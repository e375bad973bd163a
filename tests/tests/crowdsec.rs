//! Debian's real `CrowdSec` decides, the kernel drops; and what the edge bans, `CrowdSec` hears.

use std::time::Duration;

use anyhow::Result;
use edge_tests::{
    Edged, Lab, Origin,
    client::{reaches, until},
    crowdsec::{CrowdSec, MACHINE},
    lab::{ATTACKER, CLIENT},
};
use serde_json::Value;

fn told(edged: &Edged<'_>) -> Result<Value> {
    Ok(edged.ask("feed list")?["entries"][0].clone())
}

fn dropped(lab: &Lab, wanted: bool) -> Result<Duration> {
    let what = if wanted { "it is dropped" } else { "it is let through" };
    until(what, Duration::from_secs(15), || Ok(reaches(lab, ATTACKER, 443) != wanted))
}

#[test]
fn decisions_are_enforced_until_they_end_or_are_deleted() -> Result<()> {
    let lab = Lab::new()?;
    let mut crowdsec = CrowdSec::start(&lab.edge, lab.dir())?;
    crowdsec.cscli(&["decisions", "add", "-i", ATTACKER, "-d", "1h", "-R", "ssh-bf"])?;
    crowdsec.cscli(&["decisions", "add", "-i", CLIENT, "-d", "1h", "-t", "captcha"])?;
    crowdsec.cscli(&["decisions", "add", "-r", "203.0.112.0/22", "-d", "1h"])?;
    let section = crowdsec.section("every = \"1s\"");
    let mut edged = lab.edged()?.append(&section)?.start()?;
    dropped(&lab, true)?;
    assert!(reaches(&lab, CLIENT, 443), "a captcha is no ban");
    let why = edged.ask(&format!("explain {ATTACKER}"))?;
    assert_eq!(why["source"], "crowdsec: ssh-bf (cscli)", "{why}");
    assert!(why["until_ms"].is_u64());
    let now = told(&edged)?;
    assert_eq!((&now["networks"], &now["faults"]["type"]), (&2.into(), &1.into()), "{now}");
    assert!(now["hits"].as_u64() > Some(0));
    assert_eq!(edged.metrics()?.sum("edged_feed_networks", &[("feed", "crowdsec")]), 2.0);
    // A delta lifts it, another brings it back for a while.
    crowdsec.cscli(&["decisions", "delete", "-i", ATTACKER])?;
    dropped(&lab, false)?;
    crowdsec.cscli(&["decisions", "add", "-i", ATTACKER, "-d", "4s"])?;
    dropped(&lab, true)?;
    dropped(&lab, false)?;
    // Without its server the last good holds, also through a restart.
    crowdsec.cscli(&["decisions", "add", "-i", ATTACKER, "-d", "1h"])?;
    dropped(&lab, true)?;
    edged.tell("feed refresh crowdsec")?;
    crowdsec.kill();
    until("that is noticed", Duration::from_secs(10), || Ok(told(&edged)?["trouble"].is_string()))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    edged.kill9()?;
    edged.start_again()?;
    assert!(!reaches(&lab, ATTACKER, 443));
    // What was deleted while nobody could hear is gone when it is back.
    crowdsec.start_again()?;
    crowdsec.cscli(&["decisions", "delete", "-i", ATTACKER])?;
    dropped(&lab, false)?;
    // Another key, and it says what is wrong.
    crowdsec.secret("bouncer", "wrong")?;
    until("the key is refused", Duration::from_secs(15), || {
        Ok(told(&edged)?["trouble"].as_str().is_some_and(|why| why.contains("know the key")))
    })?;
    Ok(())
}

#[test]
fn our_own_bans_are_told_and_taken_back() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let crowdsec = CrowdSec::start(&lab.edge, lab.dir())?;
    let section = crowdsec.section("every = \"1s\"");
    let edged = lab.edged()?.append(&section)?.start()?;
    for guess in 0..30 {
        let key = format!("edged_{guess:043}_000000");
        if edged.get(ATTACKER, "/").key(&key).arg("--max-time", "1").send().is_err() {
            break;
        }
    }
    assert!(edged.banned(ATTACKER)?);
    let mut found = Vec::new();
    until("CrowdSec knows of it", Duration::from_secs(15), || {
        found = crowdsec.decisions()?;
        Ok(!found.is_empty())
    })?;
    let scenario = format!("edged/{MACHINE}/credential_invalid");
    let told_of = ["value", "type", "scope", "scenario"].map(|key| found[0][key].as_str());
    assert_eq!(told_of, [Some(ATTACKER), Some("ban"), Some("Ip"), Some(scenario.as_str())]);
    // What we told it ourselves does not come back to us as its own.
    until("it was heard", Duration::from_secs(10), || {
        Ok(told(&edged)?["faults"]["own"].as_u64() > Some(0))
    })?;
    assert_eq!(told(&edged)?["networks"], 0);
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    until("it is taken back", Duration::from_secs(15), || Ok(crowdsec.decisions()?.is_empty()))?;
    assert!(reaches(&lab, ATTACKER, 443));
    Ok(())
}
