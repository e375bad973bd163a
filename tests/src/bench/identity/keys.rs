//! API keys: what one costs among a million, what a made-up one costs, and what it all costs a request.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use edge_identity::key::{Grants, KeyRecord, KeyRing, Pepper, Peppers, Rules, Secret, prove};

use super::{micros, resident_bytes};
use crate::{
    bench::{
        Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Report,
        gateway::{self, Peer},
        need_two_cores, pin, pin_self,
        report::median,
    },
    lab::{FRIEND, Lab},
    origin::Origin,
    random::Random,
};

/// A ring of a million keys: a good key, a key that nobody has, and text that is no key; and what
/// the ring occupies. Then a daemon is given made-up keys, and its Argon2id hashes are counted.
pub(in crate::bench) fn checks(effort: Effort, report: &mut Report) -> Result<()> {
    pin_self(MEASURED_CPU)?;
    let count: u64 = if effort.is_quick() { 50_000 } else { 1_000_000 };
    let peppers = Peppers { current: Pepper::of(&[7; 32]), former: Vec::new() };
    let rules = Rules { prefix: "edged".to_owned(), refuse_exposed: false };
    let before = resident_bytes()?;
    let ring = KeyRing::load((0..count).map(|n| (record(&peppers, n), None)));
    ensure!(ring.len() as u64 == count, "two keys share an id");
    let megabytes = resident_bytes()?.saturating_sub(before) as f64 / f64::from(1 << 20);
    let (mut random, mut good, mut unknown) = (Random::new(1), Vec::new(), Vec::new());
    for n in 0..ASKED as u64 {
        good.push(secret(random.next() % count));
        unknown.push(secret(count + n));
    }
    let text = "edged_0123456789012345678901234567890123456789012_000000";
    let ask = |keys: &[Secret], n: usize| {
        prove(&ring, &peppers, &rules, keys[n % ASKED].expose(), NOW_MS)
    };
    let (mut hot, mut ratios) = (Vec::new(), Vec::new());
    let runs = if effort.is_quick() { 100_000 } else { 1_000_000 };
    for _ in 0..effort.rounds {
        hot.push(micros(runs, |n| {
            ask(&good, n).map(|key| drop(black_box(key))).ok().context("refused")
        })?);
        let made_up = micros(runs, |n| {
            ensure!(ask(&unknown, n).is_err(), "a key that nobody has");
            Ok(())
        })?;
        let no_key = micros(runs, |_| {
            ensure!(prove(&ring, &peppers, &rules, black_box(text), NOW_MS).is_err(), "no key");
            Ok(())
        })?;
        let of_good = hot.last().context("just put")?;
        report.note(&format!(
            "good {of_good:.2}, well-formed and unknown {made_up:.2}, no key {no_key:.3} µs"
        ));
        ratios.push(made_up.max(no_key) / of_good);
    }
    let line = |measure, name: String, rounds, unit, goal| Line {
        measure,
        name,
        rounds,
        unit,
        goal: Goal::AtMost(goal),
        reference: "none".to_owned(),
    };
    report.add(&line(1, format!("API key among {count}, proved, CPU"), hot, "us", 1.5));
    report.add(&line(1, format!("memory of {count} keys"), vec![megabytes], "MiB", 256.0));
    report.add(&line(2, "dearest garbage key / good key, CPU".to_owned(), ratios, "ratio", 1.0));
    drop(ring);
    hashes(effort, report)
}

/// Argon2id hashes that a daemon computes for made-up keys.
fn hashes(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let open = r#"{ rate = "1000000/s", burst = 1000000 }"#;
    let edged = lab.edged()?.set("limits.per_source", open).set("limits.global", open).start()?;
    let mut hashed = Vec::new();
    let mut sent = 0;
    for round in 0..effort.rounds as u64 {
        let before = edged.metrics()?.value("edged_key_hashes_total");
        for n in 0..20 {
            let key = secret(round * 100 + n);
            let statuses = edged.get(FRIEND, "/").key(key.expose()).send_many(250)?;
            ensure!(statuses.iter().all(|status| *status == 401), "{statuses:?}");
            sent += statuses.len();
        }
        hashed.push(edged.metrics()?.value("edged_key_hashes_total") - before);
    }
    report.add(&Line {
        measure: 2,
        name: format!("Argon2id hashes for {sent} garbage keys over the wire"),
        rounds: hashed,
        unit: "hashes",
        goal: Goal::Exactly(0.0),
        reference: "none".to_owned(),
    });
    Ok(())
}

/// Requests a second of a saturated core, with a key that is checked and without: the inverse of the CPU
/// that a request costs.
pub(in crate::bench) fn throughput(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = Peer::upstream(&lab)?;
    let route =
        "[[route]]\npath = \"/open\"\nmethods = [\"GET\"]\nauth = \"none\"\nupstream = \"api\"\n";
    let edged = gateway::edged(&lab)?
        // What is measured is who it is, not how much it may.
        .set("limits.per_key", "\"off\"")
        .set("audit.granted", "\"summed\"")
        .append(route)?
        .start()?;
    let key = edged.key("bench")?;
    let (mut ratios, mut costs) = (Vec::new(), [Vec::new(), Vec::new()]);
    for round in 1..=effort.rounds {
        pin(edged.pid(), MEASURED_CPU)?;
        let off = gateway::cost(&lab.edge, edged.pid(), &gateway::url("/open"), None, effort)?;
        let header = format!("X-API-Key: {key}");
        let on = gateway::cost(&lab.edge, edged.pid(), &gateway::url("/"), Some(&header), effort)?;
        report.note(&format!("round {round}: CPU µs a request: off {off:.1}, on {on:.1}"));
        costs[0].push(off);
        costs[1].push(on);
        ratios.push(off / on);
    }
    report.note(&format!("medians: off {:.1}, on {:.1} µs", median(&costs[0]), median(&costs[1])));
    report.add(&Line {
        measure: 4,
        name: "throughput with key auth / without, TLS 1.3 keep-alive, proxy CPU".to_owned(),
        rounds: ratios,
        unit: "ratio",
        goal: Goal::AtLeast(0.97),
        reference: format!("the same daemon, auth = \"none\"; load on core {LOAD_CPU}"),
    });
    Ok(())
}

/// The key of this number.
pub(super) fn secret(number: u64) -> Secret {
    let mut random = [0; 32];
    random[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    random[8..16].copy_from_slice(&number.to_le_bytes());
    Secret::mint("edged", &random)
}

pub(super) fn record(peppers: &Peppers, number: u64) -> KeyRecord {
    let digest = peppers.current.digest(secret(number).expose());
    KeyRecord {
        id: digest.id(),
        digest,
        pepper: peppers.current.id(),
        name: format!("key-{number}"),
        owner: format!("team-{}", number % 1000),
        grants: Grants { scopes: vec![format!("orders:{}", number % 16)], ..Grants::default() },
        created_ms: NOW_MS,
        expires_ms: Some(NOW_MS * 2),
        revoked_ms: None,
        extras: Vec::new(),
    }
}

/// Keys that are asked for: more than a core's cache holds.
const ASKED: usize = 65_536;
pub(super) const NOW_MS: u64 = 1_795_262_400_000;
