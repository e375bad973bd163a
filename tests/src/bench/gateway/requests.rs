//! Measures 1, 2 and 4: what a request costs, over kept connections.

use anyhow::Result;

use super::{
    Goals, Side, compare, edged, open,
    peers::{Duty, Peer},
    tools::{h2load_requests, wrk_requests},
};
use crate::{
    bench::{Effort, LOAD_CPU, Report, need_two_cores},
    lab::Lab,
    netns::{Netns, run},
};

/// Keep-alive requests over TLS 1.3 for answers of 1 KiB.
pub(super) fn keep_alive(effort: Effort, report: &mut Report) -> Result<()> {
    plain(
        (1, "TLS 1.3 keep-alive request, 1 KiB answer"),
        &[("nginx", 0.65), ("haproxy", 0.7)],
        (effort, report),
        |edge, url, seconds| wrk_requests(&wrk(edge, url, None, seconds)?),
    )
}

/// The same with an API key, three limits (client, key, everybody), metrics and an access log.
pub(super) fn limited(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = Peer::upstream(&lab)?;
    let log = format!("{:?}", lab.dir().join("edged-access.log"));
    let edged = edged(&lab)?
        .set("limits.per_key", r#"{ rate = "1000000/s", burst = 1000000 }"#)
        .set("log.access", &log)
        // One line for each request, as its peers write, and not one more for the audit.
        .set("audit.granted", "\"summed\"")
        .start()?;
    let (nginx, haproxy) = proxies(&lab, Duty::Limits)?;
    let header = format!("X-API-Key: {}", edged.key("bench")?);
    compare(
        (2, "the same with API key, three limits, metrics and access log", "µs a request"),
        &[Side::edged(&edged), nginx.side(), haproxy.side()],
        &[("nginx", 0.75), ("haproxy", 0.8)],
        (effort, report),
        |side, seconds| wrk_requests(&wrk(&lab.edge, &side.url("/"), Some(&header), seconds)?),
    )
}

/// HTTP/2 requests over 16 connections of 16 streams.
pub(super) fn http2(effort: Effort, report: &mut Report) -> Result<()> {
    plain(
        (4, "HTTP/2 request, 16 connections of 16 streams"),
        &[("nginx", 0.9), ("haproxy", 1.0)],
        (effort, report),
        |edge, url, seconds| h2load_requests(&h2load(edge, url, seconds)?),
    )
}

/// What a request costs those that do nothing but pass it on.
fn plain(
    (measure, what): (u32, &str),
    goals: Goals<'_>,
    (effort, report): (Effort, &mut Report),
    requests: impl Fn(&Netns, &str, u64) -> Result<f64>,
) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = Peer::upstream(&lab)?;
    let edged = open(&lab)?.start()?;
    let (nginx, haproxy) = proxies(&lab, Duty::Proxy)?;
    compare(
        (measure, what, "µs a request"),
        &[Side::edged(&edged), nginx.side(), haproxy.side()],
        goals,
        (effort, report),
        |side, seconds| requests(&lab.edge, &side.url("/"), seconds),
    )
}

fn proxies(lab: &Lab, duty: Duty) -> Result<(Peer, Peer)> {
    Ok((Peer::nginx_proxy(lab, duty)?, Peer::haproxy(lab, duty)?))
}

/// Asks for a URL as fast as it is answered; what `wrk` says of it.
pub(in crate::bench) fn wrk(
    edge: &Netns,
    url: &str,
    header: Option<&str>,
    seconds: u64,
) -> Result<String> {
    let mut wrk = edge.command("taskset");
    wrk.args(["-c", &LOAD_CPU.to_string(), "wrk", "-t1", "-c64", &format!("-d{seconds}s")]);
    run(wrk.args(header.iter().flat_map(|header| ["-H", header])).arg(url))
}

fn h2load(edge: &Netns, url: &str, seconds: u64) -> Result<String> {
    let mut h2load = edge.command("taskset");
    h2load.args(["-c", &LOAD_CPU.to_string(), "h2load", "-t1", "-c16", "-m16"]);
    run(h2load.args(["-D", &seconds.to_string(), url]))
}

/// CPU microseconds that a proxy spends on a request.
pub(in crate::bench) fn cost(
    edge: &Netns,
    pid: u32,
    url: &str,
    header: Option<&str>,
    effort: Effort,
) -> Result<f64> {
    let side = Side { name: "proxy", pid, port: 0 };
    side.spent(effort, |_, seconds| wrk_requests(&wrk(edge, url, header, seconds)?))
}
