//! Measure 6: latency at a steady rate. The generator is open-loop: requests are due at fixed times, whatever became of those
//! before, and what counts is the time from when one was due. So a pause is paid for by all that were due in it.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use rustls::NamedGroup;
use tokio::sync::{Notify, mpsc};

use super::{
    Side, client, interleaved, on_load_core, open,
    peers::{Duty, Peer},
    ratios, sum_of, turn,
};
use crate::{
    bench::{Effort, Goal, Line, MEASURED_CPU, Report, need_two_cores, pin, version},
    lab::Lab,
    load::{Client, Connection, get},
    netns::Netns,
};

/// The 99th percentile at 70 % of what nginx can do.
pub(super) fn steady(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = Peer::upstream(&lab)?;
    let edged = open(&lab)?.start()?;
    pin(edged.pid(), MEASURED_CPU)?;
    let nginx = Peer::nginx_proxy(&lab, Duty::Proxy)?;
    let client = |side: Side| client(&edged.ca, side.port, NamedGroup::X25519);
    let most = saturated(&lab.edge, &client(nginx.side())?, effort.seconds)?;
    let rate = most * 0.7;
    report
        .note(&format!("nginx answers {most:.0} requests a second at most; the rate is {rate:.0}"));
    let p99 = |side: Side| -> Result<f64> {
        let client = client(side)?;
        at_rate(&lab.edge, &client, rate, 1)?;
        Ok(percentile(at_rate(&lab.edge, &client, rate, effort.seconds)?, 99.0)? * 1e6)
    };
    let (ours, theirs) = (Side::edged(&edged), nginx.side());
    let turns = [turn(ours.name, || p99(ours)), turn(theirs.name, || p99(theirs))];
    let [ours, theirs] = interleaved(&turns, "µs, p99", effort, report)?;
    report.add(&Line {
        measure: 6,
        name: format!("p99 latency at {rate:.0} requests/s, 70 % of nginx's most, edged / nginx"),
        rounds: ratios(&ours, &theirs),
        unit: "ratio",
        goal: Goal::AtMost(1.0),
        reference: format!("{}, 1 worker; open-loop generator of 64 connections", version("nginx")),
    });
    Ok(())
}

/// Requests a second that are answered to as many connections as ask at once.
fn saturated(ns: &Netns, client: &Client, seconds: u64) -> Result<f64> {
    let length = Duration::from_secs(seconds);
    let answered = on_load_core(ns, || async move {
        let connections = connect(client).await?;
        let end = Instant::now() + length;
        let tasks = connections.into_iter().map(|mut connection| async move {
            let (request, mut count) = (get("/"), 0_u32);
            while Instant::now() < end {
                connection.ask(&request).await?;
                count += 1;
            }
            Ok(count)
        });
        sum_of(tasks).await
    })?;
    Ok(f64::from(answered) / seconds as f64)
}

async fn connect(client: &Client) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(client.connect().await?);
    }
    Ok(connections)
}

/// Requests that are due and that nobody has sent yet.
#[derive(Default)]
struct Due {
    times: RefCell<VecDeque<Instant>>,
    more: Notify,
    is_over: std::cell::Cell<bool>,
}

/// Seconds from when each request was due to the end of its answer, at so many requests a second.
pub(super) fn at_rate(ns: &Netns, client: &Client, rate: f64, seconds: u64) -> Result<Vec<f64>> {
    on_load_core(ns, || async move {
        let due = Rc::new(Due::default());
        let tasks: Vec<_> = connect(client)
            .await?
            .into_iter()
            .map(|connection| tokio::task::spawn_local(send_due(connection, Rc::clone(&due))))
            .collect();
        pace(&due, rate, Duration::from_secs(seconds)).await?;
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await??);
        }
        ensure!(!all.is_empty(), "nothing was due");
        Ok(all)
    })
}

/// Says what is due until all is over, looking at the clock every 100 µs from a thread of its own: the timers of the runtime count
/// in milliseconds. Where the channel is full, what is late is due when it was due.
async fn pace(due: &Due, rate: f64, length: Duration) -> Result<()> {
    let (send, mut receive) = mpsc::channel(1024);
    // It inherits the core of the load.
    let clock = std::thread::spawn(move || {
        let (start, mut number) = (Instant::now(), 0_u32);
        loop {
            let time = start + Duration::from_secs_f64(f64::from(number) / rate);
            if time >= start + length {
                return;
            }
            if time > Instant::now() {
                std::thread::sleep(Duration::from_micros(100));
            } else if send.blocking_send(time).is_ok() {
                number += 1;
            } else {
                return;
            }
        }
    });
    while let Some(time) = receive.recv().await {
        due.times.borrow_mut().push_back(time);
        due.more.notify_one();
    }
    due.is_over.set(true);
    due.more.notify_waiters();
    clock.join().map_err(|_| anyhow!("the clock panicked"))
}

/// Sends what is due over one connection until all is over.
async fn send_due(mut connection: Connection, due: Rc<Due>) -> Result<Vec<f64>> {
    let (request, mut times) = (get("/"), Vec::new());
    loop {
        let next = due.times.borrow_mut().pop_front();
        let Some(time) = next else {
            if due.is_over.get() {
                return Ok(times);
            }
            due.more.notified().await;
            continue;
        };
        connection.ask(&request).await.context("a request that was due")?;
        times.push(time.elapsed().as_secs_f64());
    }
}

/// A percentile of some values.
pub(super) fn percentile(mut values: Vec<f64>, percent: f64) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * percent / 100.0) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().context("no values")
}

const CONNECTIONS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_value_that_so_many_are_below() {
        let values: Vec<f64> = (0..1000).rev().map(f64::from).collect();
        assert_eq!(percentile(values.clone(), 99.0).unwrap(), 990.0);
        assert_eq!(percentile(values, 100.0).unwrap(), 999.0);
        assert!(percentile(Vec::new(), 99.0).is_err());
    }
}
