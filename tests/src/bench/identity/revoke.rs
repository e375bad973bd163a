//! How soon a revoked key is refused, while everybody asks; and whether it stays so after `kill -9`.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    bench::{
        Effort, Goal, Line, Report,
        gateway::{self, Peer},
        need_two_cores,
    },
    client::HOST,
    daemon::Edged,
    lab::{FRIEND, Lab},
    talk::Dial,
};

/// Requests with a key from several connections as fast as they are answered, beside a full load with
/// another key; the key is revoked in the middle. What counts is the last request that was let in: how long
/// after the command had returned it was sent.
pub(in crate::bench) fn last_accepted(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = Peer::upstream(&lab)?;
    let open = r#"{ rate = "1000000/s", burst = 1000000 }"#;
    let mut edged = gateway::edged(&lab)?
        .set(
            "server.https",
            &format!(r#"["127.0.0.1:{}", "{}:443"]"#, gateway::EDGED_PORT, crate::lab::EDGE),
        )
        .set("limits.per_key", open)
        .start()?;
    let loaders = edged.key("load")?;
    let (mut late, mut again) = (Vec::new(), 0);
    for round in 0..effort.rounds {
        let name = format!("victim-{round}");
        let key = edged.key(&name)?;
        let shown = edged.ask("key list")?;
        let entries = shown["entries"].as_array().context("keys")?;
        let id =
            entries.iter().find(|entry| entry["name"] == *name).context("listed")?["id"].clone();
        let id = id.as_str().context("an id")?;
        let header = format!("X-API-Key: {loaders}");
        let (returned, last) = thread::scope(|scope| -> Result<_> {
            let seconds = 3 + effort.seconds;
            let (edge, header) = (&lab.edge, Some(&*header));
            let load = move || gateway::wrk(edge, &gateway::url("/"), header, seconds);
            let load = scope.spawn(load);
            let seen = one_round(&lab, &edged, &key, id)?;
            let said = load.join().expect("no panic")?;
            ensure!(said.contains(" requests in "), "{said}");
            Ok(seen)
        })?;
        late.push(last.saturating_duration_since(returned).as_secs_f64() * 1e3);
        edged.kill9()?;
        edged.start_again()?;
        let status = edged.get(FRIEND, "/").key(&key).send()?.status;
        again += usize::from(status != 401);
    }
    report.add(&Line {
        measure: 6,
        name:
            "key revoked under full load: the last request let in, sent after the command returned"
                .to_owned(),
        rounds: late,
        unit: "ms",
        goal: Goal::AtMost(1.0),
        reference: "none".to_owned(),
    });
    report.add(&Line {
        measure: 6,
        name: "of as many keys, those that were good again after kill -9".to_owned(),
        rounds: vec![again as f64],
        unit: "keys",
        goal: Goal::Exactly(0.0),
        reference: "none".to_owned(),
    });
    Ok(())
}

/// When the command returned, and when the last request that was let in had been sent.
fn one_round(lab: &Lab, edged: &Edged<'_>, key: &str, id: &str) -> Result<(Instant, Instant)> {
    let (line, stop) = (format!("X-API-Key: {key}"), AtomicBool::new(false));
    thread::scope(|scope| {
        let ask = || -> Result<(Instant, u64, u64)> {
            let mut talk = Dial::new(&edged.ca, HOST)?.connect(lab, FRIEND)?;
            let (mut last, mut taken, mut refused) = (Instant::now(), 0, 0);
            while !stop.load(Relaxed) {
                let sent = Instant::now();
                match talk.get(HOST, "/", &[&line])?.status {
                    200 => (last, taken) = (sent, taken + 1),
                    401 => refused += 1,
                    status => anyhow::bail!("{status}"),
                }
            }
            Ok((last, taken, refused))
        };
        let askers: Vec<_> = (0..ASKERS).map(|_| scope.spawn(ask)).collect();
        thread::sleep(Duration::from_secs(1));
        let told = edged.tell(&format!("key revoke {id}"));
        let returned = Instant::now();
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Relaxed);
        told?;
        let mut last = None;
        for asker in askers {
            let (sent, taken, refused) = asker.join().expect("no panic")?;
            ensure!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
            last = last.max(Some(sent));
        }
        Ok((returned, last.context("nobody asked")?))
    })
}

const ASKERS: usize = 4;
