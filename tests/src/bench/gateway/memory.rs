//! Measure 7: the memory of a connection: of one that has shaken hands and says nothing, and of one whose request waits for
//! its upstream, which has a connection for it too.

use std::{cell::RefCell, fs, rc::Rc, time::Duration};

use anyhow::{Context, Result, bail};
use rustls::NamedGroup;

use super::{
    DESCRIPTORS, Side, client, on_load_core, open, own_upstream,
    peers::{Duty, Peer},
};
use crate::{
    bench::{Effort, Goal, Line, Report, report::median, version},
    daemon::{Edged, certify},
    lab::Lab,
    load::{Client, Connection, descriptors, get},
    upstream::Upstream,
};

/// Edged, with what its peers take beside it for the record.
pub(super) fn connections(effort: Effort, report: &mut Report) -> Result<()> {
    descriptors(DESCRIPTORS)?;
    let lab = Lab::new()?;
    certify(lab.dir())?;
    let upstream = own_upstream(&lab)?;
    let count = if effort.is_quick() { 900 } else { 3_000 };
    // Each round with processes of its own: what was once taken is not given back.
    let mut all = [const { [const { Vec::new() }; 2] }; 3];
    for round in 1..=effort.rounds {
        for (turn, each) in all.iter_mut().enumerate() {
            let [idle, active] = match turn {
                0 => {
                    let edged = daemon(&lab)?;
                    held(&lab, &upstream, Side::edged(&edged), count)?
                }
                1 => {
                    let nginx = Peer::nginx_proxy(&lab, Duty::Proxy)?;
                    held(&lab, &upstream, nginx.side(), count)?
                }
                _ => {
                    let haproxy = Peer::haproxy(&lab, Duty::Proxy)?;
                    held(&lab, &upstream, haproxy.side(), count)?
                }
            };
            each[0].push(idle);
            each[1].push(active);
        }
        let line = all.each_ref().map(|each| (each[0][round - 1], each[1][round - 1]));
        report
            .note(&format!("round {round}: KiB idle and active: edged, nginx, haproxy {line:.1?}"));
    }
    let [ours, nginx, haproxy] = all;
    let names = [("idle", 10.0), ("active, with its upstream connection", 25.0)];
    for (n, ((name, goal), rounds)) in names.into_iter().zip(ours).enumerate() {
        let theirs = [(&nginx[n], "nginx"), (&haproxy[n], "haproxy")]
            .map(|(values, peer)| format!("{:.1} KiB for {}", median(values), version(peer)));
        report.add(&Line {
            measure: 7,
            name: format!("memory of a TLS connection, {name}; {count} of them"),
            rounds,
            unit: "KiB",
            goal: Goal::AtMost(goal),
            reference: theirs.join(", "),
        });
    }
    Ok(())
}

/// A daemon that takes every connection of the bench.
fn daemon(lab: &Lab) -> Result<Edged<'_>> {
    open(lab)?
        .set("bounds.source_connections_max", "20000")
        .set("bounds.header_timeout", r#""10m""#)
        .set("bounds.idle_timeout", r#""10m""#)
        .set("upstream.0.requests_max", "10000")
        .set("upstream.0.server_requests_max", "10000")
        .set("upstream.0.response_timeout", r#""10m""#)
        .start()
}

/// KiB for each of so many connections, idle and then active.
fn held(lab: &Lab, upstream: &Upstream, side: Side, count: usize) -> Result<[f64; 2]> {
    let client = client(&lab.dir().join("ca.pem"), side.port, NamedGroup::X25519)?;
    on_load_core(&lab.edge, || async move {
        // Those of whoever was measured before are gone with it, if not earlier.
        holds(upstream, 0).await?;
        // What is taken once and for all is no connection's.
        let mut first = client.connect().await?;
        first.ask(&get("/")).await?;
        drop(first);
        tokio::time::sleep(SETTLED).await;
        // The first third may find room that was there before.
        let third = count / 3;
        let each = |[less, more]: [f64; 2]| (more - less) / (count - third) as f64;
        let mut idle = [0.0; 2];
        let mut connections = Vec::new();
        for (pss, wanted) in idle.iter_mut().zip([third, count]) {
            connections.extend(many(&client, wanted - connections.len()).await?);
            tokio::time::sleep(SETTLED).await;
            *pss = proportional(side.pid)?;
        }
        let (mut active, mut asked) = ([0.0; 2], 0);
        for (pss, wanted) in active.iter_mut().zip([third, count]) {
            for connection in &mut connections[asked..wanted] {
                connection.send(&get("/hold")).await?;
            }
            asked = wanted;
            holds(upstream, asked).await?;
            tokio::time::sleep(SETTLED).await;
            *pss = proportional(side.pid)?;
        }
        let idle = each(idle);
        Ok([idle, idle + each(active)])
    })
}

/// Waits until so many requests have come to the upstream.
async fn holds(upstream: &Upstream, count: usize) -> Result<()> {
    for _ in 0..1200 {
        if upstream.held() == count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("{} requests wait at the upstream, not {count}", upstream.held())
}

/// So many connections, several of them shaking hands at once.
async fn many(client: &Client, count: usize) -> Result<Vec<Connection>> {
    let (made, client) = (Rc::new(RefCell::new(Vec::new())), Rc::new(client.clone()));
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|n| {
            let (made, client) = (Rc::clone(&made), Rc::clone(&client));
            let own = count / AT_ONCE + usize::from(n < count % AT_ONCE);
            tokio::task::spawn_local(async move {
                for _ in 0..own {
                    let connection = client.connect().await?;
                    made.borrow_mut().push(connection);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(made.take())
}

/// KiB of a process, with its part of what it shares.
fn proportional(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    share(&text).context("no Pss")
}

fn share(rollup: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

const AT_ONCE: usize = 32;
/// By then what a handshake took is given back, if it is.
const SETTLED: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_process_is_read() {
        let text = "5500-7ff0 ---p 0 00:00 0 [rollup]\nRss:   4800 kB\nPss:       3142 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(share(text), Some(3142.0));
        assert_eq!(share("Rss: 1 kB\n"), None);
    }
}
