//! Bans and lifts on their way to the other edges.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use edge_identity::fleet::{Act, Record};
use redis::{FromRedisValue, Pipeline, pipe};
use tokio::{sync::mpsc, time};

use super::{
    super::{Told, lock},
    CLIENTS_MAX, Fleet,
    server::{Server, connect, said},
};
use crate::clock;

/// Shares what this edge decides, for ever; from time to time all of it again, so that a server that
/// lost its memory has it back. What is fresh waits for one batch of that at the most.
pub(super) async fn publish(fleet: Arc<Fleet>, told: Option<mpsc::Receiver<Told>>) {
    let Some(mut told) = told else { return };
    let (mut server, mut fresh, mut again) = (None, Vec::<Record>::new(), VecDeque::new());
    let mut ticks = time::interval(AGAIN);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        if fresh.is_empty() && again.is_empty() {
            tokio::select! {
                first = told.recv() => {
                    let Some(first) = first else { return };
                    fresh.extend(record(&fleet, first));
                }
                () = due(&fleet, &mut ticks) => {
                    let (own, now_ms) = (lock(&fleet.own), clock::unix_ms());
                    again.extend(own.iter().filter(|it| it.until_ms > now_ms).cloned());
                }
            }
        }
        while fresh.len() < BATCH_MAX {
            let Ok(more) = told.try_recv() else { break };
            fresh.extend(record(&fleet, more));
        }
        let sent = if fresh.is_empty() {
            let batch = again.len().min(BATCH_MAX);
            let records: Vec<_> = again.iter().take(batch).cloned().collect();
            let sent = restore(&fleet, &mut server, &records).await;
            sent.inspect(|_| drop(again.drain(..batch)))
        } else {
            let sent = send(&fleet, &mut server, &fresh).await;
            sent.inspect(|_| fresh.clear())
        };
        match sent {
            Ok(count) => {
                fleet.counts.published.fetch_add(count, Relaxed);
            }
            Err(error) => {
                let waiting = fresh.len() + again.len();
                tracing::debug!(error, waiting, "the fleet cannot be told");
                server = None;
                time::sleep(PAUSE).await;
            }
        }
    }
}

/// Waits until it is time to share all of it again: now and then, and when a server was found.
async fn due(fleet: &Fleet, ticks: &mut time::Interval) {
    tokio::select! {
        _ = ticks.tick() => {}
        () = fleet.found.notified() => {}
    }
}

/// What a decision of ours is to the others.
pub(super) fn record(fleet: &Fleet, told: Told) -> Option<Record> {
    let now_ms = clock::unix_ms();
    let record = match told {
        Told::Ban { source: client, reason, since_ms: at_ms, until_ms, strikes, .. } => {
            let node = fleet.settings.node.clone();
            Record { client, act: Act::Ban { strikes, reason }, at_ms, until_ms, node }
        }
        // Noted when it was decided.
        Told::Lift { source, reason, is_alone, at_ms, until_ms, .. } => {
            let act = if is_alone { Act::Revoke { reason } } else { Act::Lift };
            return Some(fleet.end_at(source, act, at_ms, until_ms));
        }
    };
    lock(&fleet.own).put(record.clone(), CLIENTS_MAX);
    // So that it is known when it comes back by the stream.
    let _ = lock(&fleet.bans).merge(record.clone(), CLIENTS_MAX);
    (record.until_ms > now_ms).then_some(record)
}

/// Shares records that nobody has yet; how many.
async fn send(
    fleet: &Fleet,
    server: &mut Option<Server>,
    records: &[Record],
) -> Result<u64, String> {
    let seal = fleet.seal()?;
    let mut batch = pipe();
    batch.atomic();
    for record in records {
        let sealed = record.seal(&seal);
        keep(&mut batch, fleet, record, &sealed).ignore();
        announce(&mut batch, fleet, &sealed);
    }
    let over = clock::unix_ms();
    batch.cmd("ZREMRANGEBYSCORE").arg(fleet.key("bans")).arg("-inf").arg(over).ignore();
    ask::<()>(fleet, server, &batch).await?;
    Ok(records.len() as u64)
}

/// Shares records that the server may have; it announces those alone that it had not: to all others they
/// are no news. How many.
async fn restore(
    fleet: &Fleet,
    server: &mut Option<Server>,
    records: &[Record],
) -> Result<u64, String> {
    let seal = fleet.seal()?;
    let sealed: Vec<_> = records.iter().map(|record| record.seal(&seal)).collect();
    let mut batch = pipe();
    for (record, sealed) in records.iter().zip(&sealed) {
        keep(&mut batch, fleet, record, sealed);
    }
    let added: Vec<u64> = ask(fleet, server, &batch).await?;
    let mut batch = pipe();
    let lost: Vec<_> = sealed.iter().zip(added).filter(|(_, added)| *added > 0).collect();
    lost.iter().for_each(|(sealed, _)| announce(&mut batch, fleet, sealed));
    if !lost.is_empty() {
        ask::<()>(fleet, server, &batch).await?;
    }
    Ok(lost.len() as u64)
}

fn keep<'b>(
    batch: &'b mut Pipeline,
    fleet: &Fleet,
    record: &Record,
    sealed: &str,
) -> &'b mut Pipeline {
    batch.cmd("ZADD").arg(fleet.key("bans")).arg(record.until_ms).arg(sealed)
}

fn announce(batch: &mut Pipeline, fleet: &Fleet, sealed: &str) {
    let trim = ["MAXLEN", "~"];
    batch.cmd("XADD").arg(fleet.key("stream")).arg(&trim).arg(STREAM_MAX).arg("*");
    batch.arg("r").arg(sealed).ignore();
}

async fn ask<T: FromRedisValue>(
    fleet: &Fleet,
    server: &mut Option<Server>,
    batch: &Pipeline,
) -> Result<T, String> {
    let connection = match server {
        Some(connection) => connection,
        None => server.insert(connect(fleet, Duration::ZERO).await?),
    };
    said(batch.query_async::<T>(&mut **connection).await)
}

/// Records that one question holds.
const BATCH_MAX: usize = 1_000;
/// Records that the stream holds, about; who misses more catches up from the set.
const STREAM_MAX: u64 = 100_000;
const AGAIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
