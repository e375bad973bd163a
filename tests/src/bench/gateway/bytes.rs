//! Measure 5: what a byte costs, in long answers and in long bodies.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustls::NamedGroup;

use super::{
    Side, client, compare, on_load_core, open, own_upstream,
    peers::{Duty, Peer},
    sum_of,
};
use crate::{
    bench::{Effort, Report, need_two_cores},
    client::HOST,
    lab::Lab,
    load::{Client, get},
    netns::Netns,
};

/// Down and up, 1 MiB and 100 MiB.
pub(super) fn both_ways(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let edged = open(&lab)?.set("bounds.body_bytes_max", r#""200MiB""#).start()?;
    let nginx = Peer::nginx_proxy(&lab, Duty::Proxy)?;
    let sides = [Side::edged(&edged), nginx.side()];
    let measure = |what: &str, request: &[u8], body: usize, report: &mut Report| {
        compare(
            (5, what, "µs a MiB"),
            &sides,
            &[("nginx", 1.1)],
            (effort, report),
            |side, seconds| {
                let client = client(&edged.ca, side.port, NamedGroup::X25519)?;
                transfers(&lab.edge, &client, request, body, seconds)
            },
        )
    };
    let files = Peer::upstream(&lab)?;
    measure("download of 1 MiB, a byte", &get("/files/1m"), 0, report)?;
    measure("download of 100 MiB, a byte", &get("/files/100m"), 0, report)?;
    drop(files);
    let _sink = own_upstream(&lab)?;
    measure("upload of 1 MiB, a byte", &post(1 << 20), 1 << 20, report)?;
    measure("upload of 100 MiB, a byte", &post(100 << 20), 100 << 20, report)
}

fn post(length: usize) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

/// The same request again and again over several connections, each to its end; MiB that went either way.
fn transfers(
    ns: &Netns,
    client: &Client,
    request: &[u8],
    body: usize,
    seconds: u64,
) -> Result<f64> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let bytes = on_load_core(ns, || async move {
        let client = Rc::new(client.clone());
        let request: Rc<[u8]> = request.into();
        let one = |_| transfer(Rc::clone(&client), Rc::clone(&request), body, end);
        sum_of((0..AT_ONCE).map(one)).await
    })?;
    Ok(bytes as f64 / f64::from(1 << 20))
}

async fn transfer(client: Rc<Client>, request: Rc<[u8]>, body: usize, end: Instant) -> Result<u64> {
    let mut connection = client.connect().await?;
    let (part, mut total) = ([b'x'; PART], 0);
    loop {
        connection.send(&request).await?;
        for _ in 0..body / PART {
            connection.send(&part).await?;
        }
        total += connection.answer().await? + body as u64;
        if Instant::now() >= end {
            return Ok(total);
        }
    }
}

const AT_ONCE: usize = 4;
/// Bytes of a body that are sent at once; the lengths are multiples.
const PART: usize = 64 * 1024;
