//! Debian's real `CrowdSec` decides, the kernel drops; and what the edge bans, `CrowdSec` hears. Debian's
//! real fail2ban bans by `edgectl`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use edge_tests::{
    Edged, Lab, Origin,
    client::{reaches, until},
    crowdsec::{CrowdSec, LAPI, MACHINE},
    daemon::{binary, root},
    fail2ban::{Fail2ban, Jail},
    lab::{ATTACKER, CLIENT},
    web::{Answer, Web},
};
use serde_json::{Value, json};

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
    // It lasts until it was fetched and seen, also on a busy host.
    crowdsec.cscli(&["decisions", "add", "-i", ATTACKER, "-d", "12s"])?;
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
        if edged.get(ATTACKER, "/").key(&key).arg("--connect-timeout", "2").send().is_err() {
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
    // So it is with the words of an operator, the one after the other, and who is banned again meanwhile.
    let known = |wanted: usize| {
        let what = format!("CrowdSec knows of {wanted}");
        until(&what, Duration::from_secs(15), || Ok(crowdsec.decisions()?.len() == wanted))
    };
    let mut ctl = lab.edge.command(edge_tests::daemon::binary("edgectl")?);
    ctl.arg("--socket").arg(lab.dir().join("control.sock"));
    let reason = ["--reason", "seen & told: 100% of it"];
    assert!(ctl.args(["ban", "add", ATTACKER]).args(reason).status()?.success());
    edged.tell("ban add 198.51.100.201 --ttl 1h")?;
    known(2)?;
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    edged.tell("ban remove 198.51.100.201")?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    known(1)?;
    assert_eq!(crowdsec.decisions()?[0]["value"], ATTACKER);
    Ok(())
}

/// What this edge told `CrowdSec`, nobody else takes back there.
#[test]
fn a_lift_of_another_edge_is_told_there() -> Result<()> {
    use edge_identity::fleet::{Act, Record, Seal};
    let lab = Lab::new()?;
    let hub = edge_tests::fleet::Hub::start(&[&lab])?;
    let crowdsec = CrowdSec::start(&lab.edge, lab.dir())?;
    let sections = crowdsec.section("every = \"1s\"") + "\n" + &hub.section(0, &lab, "")?;
    let edged = lab.edged()?.append(&sections)?.start()?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    until(
        "CrowdSec knows of it",
        Duration::from_secs(15),
        || Ok(crowdsec.decisions()?.len() == 1),
    )?;
    let now_ms = edge_daemon::clock::unix_ms();
    let (at_ms, until_ms, node) = (now_ms + 1_000, now_ms + 3_600_000, "other".to_owned());
    let lift = Record { client: ATTACKER.parse()?, act: Act::Lift, at_ms, until_ms, node };
    let seal = Seal::new("edged", &std::fs::read(lab.dir().join("fleet.secret"))?);
    hub.cli(&["XADD", "edged:stream", "*", "r", &lift.seal(&seal)])?;
    until("it is free", Duration::from_secs(10), || Ok(edged.bans()?.is_empty()))?;
    until("it is taken back", Duration::from_secs(15), || Ok(crowdsec.decisions()?.is_empty()))?;
    Ok(())
}

/// A hundred thousand decisions, as many as its central list and a few others come to.
#[test]
fn a_hundred_thousand_decisions_come_in_force_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let crowdsec = CrowdSec::start(&lab.edge, lab.dir())?;
    let address = |i: u32| std::net::Ipv4Addr::from(0x0b00_0000 + i * 2_003);
    let lines = (0..99_999).map(|i| format!("24h,bulk,Ip,ban,{}\n", address(i)));
    let bulk = format!("duration,reason,scope,type,value\n24h,bulk,Ip,ban,{ATTACKER}\n");
    let file = lab.dir().join("bulk.csv");
    fs::write(&file, lines.fold(bulk, |text, line| text + &line))?;
    crowdsec.cscli(&["decisions", "import", "-i", &file.display().to_string()])?;
    let section = crowdsec.section("");
    let edged = lab.edged()?.set("log.level", "\"debug\"").append(&section)?.start()?;
    let begun = Instant::now();
    until(
        "all are in force",
        Duration::from_secs(60),
        || Ok(told(&edged)?["networks"] == 100_000),
    )?;
    println!("in force {:?} after the start", begun.elapsed());
    let log = edged.log();
    let ours = log.lines().filter(|line| line.contains("decisions are in force"));
    ours.for_each(|line| println!("{line}"));
    assert!(!reaches(&lab, ATTACKER, 443));
    Ok(())
}

/// A delta is in force whole or not at all: what has no room leaves nothing of itself behind.
#[test]
fn a_delta_without_room_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let decisions = |third: u8, count: u32| {
        let of = |i: u32| {
            let value = format!("11.{third}.{}.{}", i / 250, i % 250);
            json!({"duration": "1h", "scope": "Ip", "type": "ban", "value": value, "origin": "lists", "scenario": "bulk"})
        };
        Answer::ok(json!({ "new": (0..count).map(of).collect::<Vec<_>>() }).to_string())
    };
    let web = Web::start(&lab.edge, LAPI, move |asked| {
        if asked.target.contains("startup=true") { decisions(0, 600) } else { decisions(1, 0) }
    })?;
    fs::write(lab.dir().join("bouncer.key"), "k".repeat(32))?;
    fs::set_permissions(lab.dir().join("bouncer.key"), fs::Permissions::from_mode(0o600))?;
    let section = format!(
        "[crowdsec]\nurl = \"http://{LAPI}\"\napi_key = \"file:bouncer.key\"\nevery = \"1s\""
    );
    let edged = lab.edged()?.set("lists.networks_max", "1000").append(&section)?.start()?;
    until("it is in force", Duration::from_secs(10), || Ok(told(&edged)?["networks"] == 600))?;
    let before = edged.ask("deny list")?["total"].clone();
    web.set(move |asked| {
        if asked.target.contains("startup=true") {
            Answer::status("503 Service Unavailable")
        } else {
            decisions(1, 900)
        }
    });
    until("the next is refused", Duration::from_secs(15), || {
        Ok(told(&edged)?["trouble"].as_str().is_some_and(|why| why.contains("503")))
    })?;
    assert!(edged.log().contains("ENTRIES"), "{}", edged.log());
    assert_eq!(edged.ask("deny list")?["total"], before);
    assert_eq!(edged.ask("explain 11.1.0.0")?["verdict"], "pass", "the first that had room");
    assert_eq!(edged.ask("explain 11.0.0.0")?["source"], "crowdsec: bulk (lists)");
    Ok(())
}

#[test]
fn fail2ban_bans_by_edgectl() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let log = lab.dir().join("auth.log");
    fs::write(&log, "")?;
    let (edgectl, socket) = (binary("edgectl")?, lab.dir().join("control.sock"));
    let call =
        format!("edged[name=test, edgectl={}, socket={}]", edgectl.display(), socket.display());
    let jail = Jail {
        log: &log,
        failure: "^.* no entry for <HOST>$",
        failures: 3,
        action: &root().join("config/fail2ban/edged.conf"),
        call: &call,
    };
    let fail2ban = Fail2ban::start(&lab.edge, lab.dir(), &jail)?;
    let attack = || -> Result<serde_json::Value> {
        let mut file = fs::File::options().append(true).open(&log)?;
        let now = std::process::Command::new("date").arg("+%Y-%m-%d %H:%M:%S").output()?;
        let now = String::from_utf8_lossy(&now.stdout).trim().to_owned();
        for _ in 0..3 {
            writeln!(file, "{now} host: no entry for {ATTACKER}")?;
        }
        dropped(&lab, true)?;
        let ban = edged.bans()?.remove(0);
        assert_eq!((&ban["reason"], &ban["origin"]), (&"fail2ban test".into(), &"operator".into()));
        fail2ban.set("unbanip", ATTACKER)?;
        dropped(&lab, false)?;
        Ok(ban)
    };
    let length_s = |ban: &serde_json::Value| {
        let at = |key: &str| ban[key].as_u64().context("a time");
        anyhow::Ok((at("until_ms")? - at("since_ms")? + 500) / 1_000)
    };
    let ban = attack().with_context(|| fail2ban.log())?;
    assert_eq!(length_s(&ban)?, 600, "{ban}");
    fail2ban.set("bantime", "-1")?;
    let ban = attack().with_context(|| fail2ban.log())?;
    assert_eq!(length_s(&ban)?, 365 * 86_400, "for ever is a year: {ban}");
    Ok(())
}
