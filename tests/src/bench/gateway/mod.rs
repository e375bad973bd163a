//! What a TLS reverse proxy costs, beside nginx and HAProxy: all on one core, with the load and the upstream on the other.

mod bytes;
mod handshakes;
mod latency;
mod memory;
mod peers;
mod requests;
mod slow;
mod tools;

use std::{
    iter::Sum,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::Result;

pub(super) use peers::Peer;
pub(super) use requests::{cost, wrk};
use rustls::NamedGroup;

use super::{
    Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Measures, Report, cpu_ns, pin, pin_self,
    rounds::{interleaved, ratios, turn},
    version,
};
use crate::{
    daemon::{Edged, Setup},
    lab::Lab,
    load::{self, Client},
    netns::Netns,
    upstream::Upstream,
};

/// The measures by number.
pub(super) const MEASURES: Measures = &[
    (&[1], requests::keep_alive),
    (&[2], requests::limited),
    (&[3], handshakes::full),
    (&[4], requests::http2),
    (&[5], bytes::both_ways),
    (&[6], latency::steady),
    (&[7], memory::connections),
    (&[8], slow::attacks),
];

/// One of those that are compared.
#[derive(Clone, Copy)]
struct Side {
    name: &'static str,
    pid: u32,
    port: u16,
}

impl Side {
    fn edged(edged: &Edged<'_>) -> Self {
        Self { name: "edged", pid: edged.pid(), port: EDGED_PORT }
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// CPU microseconds that it spends on each of what some work counts; the work is done once before, for a
    /// shorter time, to warm up.
    fn spent(&self, effort: Effort, work: impl Fn(&Self, u64) -> Result<f64>) -> Result<f64> {
        // Threads may have come since it started.
        pin(self.pid, MEASURED_CPU)?;
        work(self, 1)?;
        let before = cpu_ns(self.pid)?;
        let count = work(self, effort.seconds)?;
        Ok((cpu_ns(self.pid)? - before) as f64 / 1000.0 / count)
    }
}

/// What edged has to keep to beside each peer.
type Goals<'a> = &'a [(&'a str, f64)];

/// Lets all sides do the same work in turns, edged first, and adds a line for each peer.
fn compare<const N: usize>(
    (measure, what, unit): (u32, &str, &str),
    sides: &[Side; N],
    goals: Goals<'_>,
    (effort, report): (Effort, &mut Report),
    work: impl Fn(&Side, u64) -> Result<f64>,
) -> Result<()> {
    let work = &work;
    let turns = sides.map(|side| turn(side.name, move || side.spent(effort, work)));
    let all = interleaved(&turns, &format!("CPU {unit}"), effort, report)?;
    for (peer, goal) in goals {
        let place = sides.iter().position(|side| side.name == *peer).unwrap_or_default();
        report.add(&Line {
            measure,
            name: format!("{what}, proxy CPU, edged / {peer}"),
            rounds: ratios(&all[0], &all[place]),
            unit: "ratio",
            goal: Goal::AtMost(*goal),
            reference: format!("{}, 1 worker", version(peer)),
        });
    }
    Ok(())
}

/// A daemon of one worker before the upstream, which no limit slows.
pub(super) fn edged(lab: &Lab) -> Result<Setup<'_>> {
    let open = r#"{ rate = "1000000/s", burst = 1000000 }"#;
    Ok(lab
        .edged()?
        .set("server.https", &format!(r#"["127.0.0.1:{EDGED_PORT}"]"#))
        .set("server.workers", "1")
        .set("tls.ticket_rotation", r#""off""#)
        .set("upstream.0.servers", &format!(r#"["127.0.0.1:{UPSTREAM_PORT}"]"#))
        .set("limits.per_source", open)
        .set("limits.global", open))
}

/// The same, open to everybody and without limits, as its peers are.
fn open(lab: &Lab) -> Result<Setup<'_>> {
    let off = r#""off""#;
    let open = edged(lab)?.set("route.1.auth", r#""none""#);
    Ok(open.set("limits.per_source", off).set("limits.global", off))
}

/// A client of a proxy that offers one group.
fn client(ca: &Path, port: u16, group: NamedGroup) -> Result<Client> {
    Client::new(ca, local(port), group)
}

/// An upstream of our own, for what nginx cannot do as one.
fn own_upstream(lab: &Lab) -> Result<Upstream> {
    // It begins on the core of the load, and stays there.
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            pin_self(LOAD_CPU)?;
            Upstream::start(&lab.edge, local(UPSTREAM_PORT))
        });
        started.join().expect("no panic")
    })
}

/// Runs tasks inside a namespace, on one thread on the core of the load.
fn on_load_core<T: Send, F: Future<Output = Result<T>>>(
    ns: &Netns,
    work: impl FnOnce() -> F + Send,
) -> Result<T> {
    let pinned = || -> Result<T> {
        pin_self(LOAD_CPU)?;
        load::run(ns, work)
    };
    std::thread::scope(|scope| scope.spawn(pinned).join().expect("no panic"))
}

/// Runs tasks beside each other to their ends; the sum of what they counted.
async fn sum_of<T: Sum + 'static>(
    tasks: impl Iterator<Item = impl Future<Output = Result<T>> + 'static>,
) -> Result<T> {
    let tasks: Vec<_> = tasks.map(tokio::task::spawn_local).collect();
    let mut counts = Vec::new();
    for task in tasks {
        counts.push(task.await??);
    }
    Ok(counts.into_iter().sum())
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Where that daemon serves a path.
pub(super) fn url(path: &str) -> String {
    format!("https://127.0.0.1:{EDGED_PORT}{path}")
}

/// Where edged listens.
pub(super) const EDGED_PORT: u16 = 9443;
/// Where the upstream listens.
const UPSTREAM_PORT: u16 = 9080;
const NGINX_PORT: u16 = 9444;
const HAPROXY_PORT: u16 = 9446;
/// Descriptors that a process may have: two for each of the most connections, and some.
const DESCRIPTORS: u64 = 65_536;
