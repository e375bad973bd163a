//! Measure 3: full handshakes, each on a connection of its own that carries one request, so that none is half done.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustls::NamedGroup;

use super::{
    Side, client, compare, interleaved, on_load_core, open,
    peers::{Duty, Peer},
    ratios, sum_of, turn,
};
use crate::{
    bench::{Effort, Goal, Line, Report, need_two_cores},
    client::HOST,
    lab::Lab,
    load::Client,
    netns::Netns,
};

/// Against both peers in X25519, and X25519MLKEM768 against that on edged alone.
pub(super) fn full(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = Peer::upstream(&lab)?;
    let edged = open(&lab)?.start()?;
    let nginx = Peer::nginx_proxy(&lab, Duty::Proxy)?;
    let haproxy = Peer::haproxy(&lab, Duty::Proxy)?;
    let shake = |side: &Side, group, seconds| {
        let client = client(&edged.ca, side.port, group)?;
        connections(&lab.edge, &client, seconds)
    };
    compare(
        (3, "full TLS 1.3 handshake (ECDSA P-256, X25519) and one request", "µs a connection"),
        &[Side::edged(&edged), nginx.side(), haproxy.side()],
        &[("nginx", 0.55), ("haproxy", 0.55)],
        (effort, report),
        |side, seconds| shake(side, NamedGroup::X25519, seconds),
    )?;
    let side = Side::edged(&edged);
    let spent = |group| side.spent(effort, |side, seconds| shake(side, group, seconds));
    let turns = [
        turn("X25519MLKEM768", || spent(NamedGroup::X25519MLKEM768)),
        turn("X25519", || spent(NamedGroup::X25519)),
    ];
    let [hybrid, classic] = interleaved(&turns, "CPU µs a connection", effort, report)?;
    report.add(&Line {
        measure: 3,
        name: "handshake in X25519MLKEM768 / in X25519, edged, proxy CPU".to_owned(),
        rounds: ratios(&hybrid, &classic),
        unit: "ratio",
        goal: Goal::AtMost(1.3),
        reference: "the same daemon".to_owned(),
    });
    Ok(())
}

/// Connects again and again from several tasks; how many connections carried their request.
fn connections(ns: &Netns, client: &Client, seconds: u64) -> Result<f64> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let counts = on_load_core(ns, || async move {
        let client = Rc::new(client.clone());
        let tasks = (0..AT_ONCE).map(|_| {
            let (client, request) = (Rc::clone(&client), request.clone());
            async move {
                let mut count = 0_u32;
                while Instant::now() < end {
                    client.connect().await?.ask(request.as_bytes()).await?;
                    count += 1;
                }
                Ok(count)
            }
        });
        sum_of(tasks).await
    })?;
    Ok(f64::from(counts))
}

const AT_ONCE: u32 = 16;
