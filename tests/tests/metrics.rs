//! The metrics and the events: well formed, bounded, exact, and without a secret.

use std::time::Duration;

use anyhow::Result;
use edge_common::{Reason, reason::Plane};
use edge_tests::{
    Lab, Origin,
    client::{reaches, until},
    lab::{ATTACKER, CLIENT, FRIEND, LISTED},
};

#[test]
fn the_page_is_well_formed_and_says_what_is_documented() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    edged.get(CLIENT, "/health").send()?;
    let metrics = edged.metrics()?;
    let documented = std::fs::read_to_string(edge_tests::daemon::root().join("docs/metrics.md"))?;
    for family in metrics.families() {
        assert!(family.starts_with("edged_"), "{family}");
        assert!(documented.contains(&format!("`{family}")), "{family} is not in docs/metrics.md");
    }
    assert!(metrics.sum("edged_build_info", &[]) == 1.0);
    Ok(())
}

#[test]
fn requests_are_counted_exactly_once_by_reason() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("counted")?;
    edged.get(FRIEND, "/").key(&key).send_many(20)?;
    edged.get(FRIEND, "/").send_many(7)?;
    edged.get(FRIEND, "/").key("wrong").send_many(5)?;
    edged.get(FRIEND, "/health").method("POST").send_many(3)?;
    let metrics = edged.metrics()?;
    let status = |reason: &str, status: &str| {
        metrics.sum("edged_requests_total", &[("reason", reason), ("status", status)])
    };
    assert_eq!(status("serve", "200"), 20.0);
    assert_eq!(status("credential_missing", "401"), 7.0);
    assert_eq!(status("credential_invalid", "401"), 5.0);
    assert_eq!(status("method_not_allowed", "405"), 3.0);
    assert_eq!(metrics.sum("edged_requests_total", &[]), 35.0);
    assert_eq!(metrics.value("edged_request_duration_seconds_count"), 35.0);
    assert_eq!(origin.seen(), 20);
    Ok(())
}

#[test]
fn packets_are_counted_exactly_once_by_reason() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let total = |name: &str| Ok::<_, anyhow::Error>(edged.metrics()?.sum(name, &[]));
    let socket = lab.attacker.enter(|| std::net::UdpSocket::bind((LISTED, 0)))?;
    let _ = reaches(&lab, LISTED, 9);
    let before = edged.metrics()?;
    for _ in 0..100 {
        socket.send_to(&[0; 58], (edge_tests::lab::EDGE, 9))?;
    }
    let after = edged.metrics()?;
    let rise = |reason: &str, name: &str| {
        let labels = [("reason", reason), ("interface", "edge0")];
        after.sum(name, &labels) - before.sum(name, &labels)
    };
    assert_eq!(rise("deny_list", "edged_packets_total"), 100.0);
    // Ethernet 14, IPv4 20, UDP 8, and 58.
    assert_eq!(rise("deny_list", "edged_packet_bytes_total"), 10_000.0);
    assert!(total("edged_packets_total")? >= 100.0);
    Ok(())
}

#[test]
fn labels_are_bounded_by_what_is_known_beforehand() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let requests = || -> Result<()> {
        for n in 0..5 {
            let path = format!("/odd-{n}-{}", std::process::id());
            edged
                .get(FRIEND, &path)
                .method(&format!("ODD{n}"))
                .header("Host", &path[1..])
                .send()?;
        }
        Ok(())
    };
    requests()?;
    let first = edged.metrics()?.series().count();
    requests()?;
    let page = edged.scrape()?;
    assert_eq!(edged.metrics()?.series().count(), first);
    for odd in ["odd-", "ODD", FRIEND] {
        assert!(!page.contains(odd), "{odd}");
    }
    for (series, _) in edged.metrics()?.series() {
        let Some((_, rest)) = series.split_once("reason=\"") else { continue };
        let word = rest.split('"').next().unwrap_or_default();
        let known = Reason::ALL.iter().find(|r| r.name() == word);
        assert!(known.is_some(), "{series}");
        let packet = series.starts_with("edged_packet");
        assert_eq!(known.map(|r| r.plane() == Plane::Packet), Some(packet), "{series}");
    }
    Ok(())
}

#[test]
fn events_say_who_what_and_why() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let id = edged.get(ATTACKER, "/").key("wrong").send()?.json()["request_id"].clone();
    let event = edged.event("request_refused", ATTACKER)?;
    assert_eq!(event["reason"], "credential_invalid");
    assert_eq!(event["request_id"], id);
    assert!(event["time"].as_str().is_some_and(|t| t.len() >= 20 && t.contains('T')), "{event}");
    let _ = reaches(&lab, LISTED, 443);
    assert_eq!(edged.event("packet_dropped", LISTED)?["reason"], "deny_list");
    Ok(())
}

#[test]
fn no_secret_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let access = lab.dir().join("access.log");
    let edged =
        lab.edged()?.set("log.level", r#""trace""#).set("log.access", &format!("{access:?}"));
    let edged = edged.start()?;
    let key = edged.key("secret")?;
    let (_, body) = key.split_once('_').unwrap_or_default();
    let secret = &body[..20];
    edged.get(CLIENT, "/").key(&key).send()?;
    edged.get(CLIENT, &format!("/?api_key={key}")).send()?;
    edged.get(CLIENT, "/").key(&format!("{key}x")).send()?;
    for target in [
        format!("/v1/{key}.json"),
        format!("/v1/x={key}/y"),
        format!("/v1/{key};v=1"),
        format!("/?x=ApiKey%20{key}"),
        format!("/?x[]=a,{}", key.replace('_', "%5f")),
    ] {
        assert_eq!(edged.get(CLIENT, &target).send()?.status, 400, "{target}");
    }
    let long = "a".repeat(230);
    for referer in
        [format!("https://e/?a={key}"), format!("https://e/{key}"), format!("{long}{key}")]
    {
        let asked = edged.get(CLIENT, "/").header("Referer", &referer);
        asked.arg("--user-agent", &format!("agent/1 ({key})")).send()?;
    }
    edged.get(CLIENT, "/last").send()?;
    let lines = || -> Result<String> { Ok(std::fs::read_to_string(&access)?) };
    until("the last line is there", Duration::from_secs(5), || Ok(lines()?.contains("/last")))?;
    edged.event("request_refused", CLIENT)?;
    let events = std::fs::read_to_string(lab.dir().join("events.jsonl"))?;
    let mut audit = String::new();
    for file in std::fs::read_dir(lab.dir().join("audit"))?.flatten() {
        audit.push_str(&std::fs::read_to_string(file.path())?);
    }
    assert!(audit.contains("key_created"), "{audit}");
    for (place, text) in [
        ("metrics", edged.scrape()?),
        ("events", events),
        ("log", edged.log()),
        ("access log", lines()?),
        ("audit log", audit),
    ] {
        assert!(!text.contains(secret), "in the {place}");
    }
    let mut stored = Vec::new();
    for file in std::fs::read_dir(lab.dir().join("state"))?.flatten() {
        stored.extend(std::fs::read(file.path())?);
    }
    assert!(!stored.windows(secret.len()).any(|w| w == secret.as_bytes()), "in the store");
    Ok(())
}
