//! Bans on their way to the other edges, and theirs on their way here.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use edge_identity::fleet::{Act, Change, Record, Seal};
use edge_policy::verdict::{Culprit, Origin, Step};
use redis::{Value, cmd, pipe};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::{
    super::{Told, lock},
    Fleet,
    server::{Server, connect, said},
};
use crate::{
    clock, decisions::Decision, events::Event, request::Edge, store::BanRecord, verdict::Order,
};

/// Recalls what is in force from before: what this edge decided, to be shared again, and what others
/// did, as one of them may have lifted it meanwhile.
pub(super) async fn recall(fleet: &Fleet, edge: &Edge) {
    let (answer, held) = oneshot::channel();
    if super::super::send(edge, Order::Recall(answer)).await.is_err() {
        return;
    }
    for (told, node) in held.await.unwrap_or_default() {
        let Some(node) = node else {
            record(fleet, told);
            continue;
        };
        if let Told::Ban { source: client, reason, since_ms: at_ms, until_ms, strikes, .. } = told {
            let act = Act::Ban { strikes, reason };
            let other = Record { client, act, at_ms, until_ms, node };
            let _ = lock(&fleet.bans).merge(other, CLIENTS_MAX);
        }
    }
}

/// Shares what this edge decides, for ever; from time to time all of it again, so that a server that
/// lost its memory has it back.
pub(super) async fn publish(fleet: Arc<Fleet>, told: Option<mpsc::Receiver<Told>>) {
    let Some(mut told) = told else { return };
    let (mut server, mut unsent) = (None, Vec::<Record>::new());
    let mut ticks = time::interval(AGAIN);
    loop {
        tokio::select! {
            first = told.recv(), if unsent.is_empty() => {
                let Some(first) = first else { return };
                unsent.extend(record(&fleet, first));
                while unsent.len() < BATCH_MAX {
                    let Ok(more) = told.try_recv() else { break };
                    unsent.extend(record(&fleet, more));
                }
            }
            () = again(&fleet, &mut ticks), if unsent.is_empty() => {
                let now_ms = clock::unix_ms();
                let mut own = lock(&fleet.own);
                own.retain(|_, record| record.until_ms > now_ms);
                unsent.extend(own.values().cloned());
            }
            () = time::sleep(PAUSE), if !unsent.is_empty() => {}
        }
        if unsent.is_empty() {
            continue;
        }
        match send(&fleet, &mut server, &unsent).await {
            Ok(()) => {
                fleet.counts.published.fetch_add(unsent.len() as u64, Relaxed);
                unsent.clear();
            }
            Err(error) => {
                tracing::debug!(error, waiting = unsent.len(), "the fleet cannot be told");
                server = None;
            }
        }
    }
}

/// Waits until it is time to share all of it again: now and then, and when a server was found.
async fn again(fleet: &Fleet, ticks: &mut time::Interval) {
    tokio::select! {
        _ = ticks.tick() => {}
        () = fleet.found.notified() => {}
    }
}

/// What a decision of ours is to the others.
fn record(fleet: &Fleet, told: Told) -> Option<Record> {
    let now_ms = clock::unix_ms();
    let node = fleet.settings.node.clone();
    let record = match told {
        Told::Ban { source: client, reason, since_ms: at_ms, until_ms, strikes, .. } => {
            Record { client, act: Act::Ban { strikes, reason }, at_ms, until_ms, node }
        }
        Told::Lift { source: client, until_ms, .. } => {
            let at_ms = lock(&fleet.bans).after(&client, now_ms);
            // Remembered for a while longer than what it lifts can come again.
            let until_ms = until_ms.saturating_add(LIFT_KEPT_MS);
            Record { client, act: Act::Lift, at_ms, until_ms, node }
        }
    };
    let mut own = lock(&fleet.own);
    if own.len() < CLIENTS_MAX || own.contains_key(&record.client) {
        own.insert(record.client, record.clone());
    }
    drop(own);
    // So that it is known when it comes back by the stream.
    let _ = lock(&fleet.bans).merge(record.clone(), CLIENTS_MAX);
    (record.until_ms > now_ms).then_some(record)
}

async fn send(
    fleet: &Fleet,
    server: &mut Option<Server>,
    records: &[Record],
) -> Result<(), String> {
    let seal = fleet.seal()?;
    let connection = match server {
        Some(connection) => connection,
        None => server.insert(connect(fleet, Duration::ZERO).await?),
    };
    let (set, stream) = (fleet.key("bans"), fleet.key("stream"));
    for records in records.chunks(BATCH_MAX) {
        let mut batch = pipe();
        batch.atomic();
        for record in records {
            let sealed = record.seal(&seal);
            batch.cmd("ZADD").arg(&set).arg(record.until_ms).arg(&sealed).ignore();
            let trim = ["MAXLEN", "~"];
            batch.cmd("XADD").arg(&stream).arg(&trim).arg(STREAM_MAX).arg("*");
            batch.arg("r").arg(&sealed).ignore();
        }
        let over = clock::unix_ms();
        batch.cmd("ZREMRANGEBYSCORE").arg(&set).arg("-inf").arg(over).ignore();
        said(batch.query_async::<()>(&mut **connection).await)?;
    }
    Ok(())
}

/// Follows what the others decide, for ever.
pub(super) async fn follow(fleet: Arc<Fleet>, edge: Arc<Edge>) {
    let (mut failures, mut is_told) = (0_u32, false);
    loop {
        let counts = &fleet.counts;
        let Err(why) = read(&fleet, &edge, &mut failures, &mut is_told).await;
        if counts.is_connected.swap(false, Relaxed) {
            counts.lost.fetch_add(1, Relaxed);
        }
        // Once a series.
        if !is_told {
            is_told = true;
            tracing::error!(why, "the fleet's server is lost; bans and limits are this edge's own");
            edge.decisions.tell(Decision::fleet(format!("its server is lost: {why}")));
            edge.events.tell(Event::Fleet { result: "lost", why: Some(why) });
        }
        time::sleep(PAUSE.saturating_mul(1 << failures.min(6)).min(PAUSE_MAX)).await;
        failures += 1;
    }
}

/// Catches up and reads on, until something fails.
async fn read(
    fleet: &Fleet,
    edge: &Edge,
    failures: &mut u32,
    is_told: &mut bool,
) -> Result<std::convert::Infallible, String> {
    let seal = fleet.seal()?;
    let mut server = connect(fleet, BLOCK).await?;
    let (set, stream) = (fleet.key("bans"), fleet.key("stream"));
    let newest = cmd("XREVRANGE").arg(&stream).arg(&["+", "-", "COUNT", "1"]).to_owned();
    let newest = said(newest.query_async::<Value>(&mut *server).await)?;
    let mut last = entries(newest).pop().map_or("0".to_owned(), |(id, _)| id);
    let mut from = 0;
    loop {
        let page = cmd("ZRANGEBYSCORE")
            .arg(&set)
            .arg(clock::unix_ms())
            .arg("+inf")
            .arg("LIMIT")
            .arg(from)
            .arg(PAGE)
            .to_owned();
        let page = said(page.query_async::<Vec<String>>(&mut *server).await)?;
        from += page.len();
        let is_last = page.len() < PAGE;
        for sealed in page {
            take(fleet, edge, &seal, (&sealed, false)).await?;
        }
        if is_last {
            break;
        }
    }
    fleet.counts.is_connected.store(true, Relaxed);
    fleet.found.notify_one();
    (*failures, *is_told) = (0, false);
    edge.decisions.tell(Decision::fleet("its server is found".to_owned()));
    edge.events.tell(Event::Fleet { result: "connected", why: None });
    loop {
        let next = cmd("XREAD")
            .arg("COUNT")
            .arg(PAGE)
            .arg("BLOCK")
            .arg(BLOCK.as_millis() as u64)
            .arg("STREAMS")
            .arg(&stream)
            .arg(&last)
            .to_owned();
        let answer = said(next.query_async::<Value>(&mut *server).await)?;
        for (id, sealed) in streamed(answer)? {
            let at_ms = take(fleet, edge, &seal, (&sealed, true)).await?;
            let delay_ms = at_ms.map(|at_ms| clock::unix_ms().saturating_sub(at_ms));
            delay_ms.into_iter().for_each(|ms| fleet.counts.delay_ms.store(ms, Relaxed));
            last = id;
        }
        lock(&fleet.bans).expire(clock::unix_ms());
    }
}

/// Takes a record, which came just now or lay there; when it was decided, if it changed anything.
async fn take(
    fleet: &Fleet,
    edge: &Edge,
    seal: &Seal,
    (sealed, is_news): (&str, bool),
) -> Result<Option<u64>, String> {
    let counts = &fleet.counts;
    let merged = Record::open(sealed, seal, clock::unix_ms()).and_then(|record| {
        let at_ms = record.at_ms;
        // What this edge decided itself is known here before it comes back.
        let change = lock(&fleet.bans).merge(record, CLIENTS_MAX)?;
        Ok(change.map(|change| (change, at_ms)))
    });
    match merged {
        Ok(Some((change, at_ms))) => {
            counts.applied.fetch_add(1, Relaxed);
            super::super::send(edge, order(change, is_news)).await?;
            Ok(Some(at_ms))
        }
        Ok(None) => {
            counts.known.fetch_add(1, Relaxed);
            Ok(None)
        }
        Err(fault) => {
            // The first of a kind is told of: somebody else may be writing there.
            if counts.refused[fault as usize].fetch_add(1, Relaxed) == 0 {
                tracing::warn!(fault = fault.name(), "a record of the fleet is not taken");
            }
            Ok(None)
        }
    }
}

/// What the verdict writer is to do about a change.
fn order(change: Change, is_news: bool) -> Order {
    match change {
        Change::Lift(client) => Order::Lift(Culprit::Source(client.into()), Origin::Fleet),
        Change::Ban(Record { client, act, at_ms: since_ms, until_ms, node }) => {
            let (strikes, reason) = match act {
                Act::Ban { strikes, reason } => (strikes, reason),
                Act::Lift => (0, String::new()),
            };
            Order::Ban(
                Box::new(BanRecord {
                    culprit: Culprit::Source(client.into()),
                    step: Step::Ban,
                    since_ms,
                    until_ms,
                    strikes,
                    reason,
                    scenario: format!("edge {node}"),
                    origin: Origin::Fleet,
                    spared: None,
                    evidence: Vec::new(),
                }),
                is_news,
            )
        }
    }
}

/// The entries of an answer to XREVRANGE: their ids, and what they say under `r`.
fn entries(value: Value) -> Vec<(String, String)> {
    let entry = |value: Value| {
        let (id, fields): (String, Vec<String>) = redis::from_redis_value(value).ok()?;
        let place = fields.iter().step_by(2).position(|name| name == "r");
        let sealed = place.and_then(|n| fields.get(2 * n + 1)).cloned();
        Some((id, sealed.unwrap_or_default()))
    };
    match value {
        Value::Array(values) => values.into_iter().filter_map(entry).collect(),
        _ => Vec::new(),
    }
}

/// The entries of an answer to XREAD of one stream; none if nothing came.
fn streamed(value: Value) -> Result<Vec<(String, String)>, String> {
    match value {
        Value::Nil => Ok(Vec::new()),
        Value::Array(streams) => {
            let entry = |stream| match stream {
                Value::Array(mut named) if named.len() == 2 => {
                    entries(named.pop().unwrap_or(Value::Nil))
                }
                _ => Vec::new(),
            };
            Ok(streams.into_iter().flat_map(entry).collect())
        }
        _ => Err("it answers what was not asked".to_owned()),
    }
}

/// Clients of which records are remembered.
const CLIENTS_MAX: usize = 1_000_000;
/// Records that one question and one answer hold.
const BATCH_MAX: usize = 1_000;
const PAGE: usize = 1_000;
/// Records that the stream holds, about; who misses more catches up from the set.
const STREAM_MAX: u64 = 100_000;
/// How long the server waits for news before it says that there are none.
const BLOCK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(60);
const LIFT_KEPT_MS: u64 = 600_000;

#[cfg(test)]
mod tests {
    use edge_identity::fleet::Fault;

    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn answers_are_read_and_nonsense_is_none() {
        let entry = Value::Array(vec![text("1-0"), Value::Array(vec![text("r"), text("x")])]);
        let stream = Value::Array(vec![text("s"), Value::Array(vec![entry])]);
        let read = streamed(Value::Array(vec![stream])).unwrap();
        assert_eq!(read, [("1-0".to_owned(), "x".to_owned())]);
        assert_eq!(streamed(Value::Nil), Ok(Vec::new()));
        for nonsense in [Value::Int(7), Value::Okay, text("PONG")] {
            assert!(streamed(nonsense.clone()).is_err());
            assert!(streamed(Value::Array(vec![nonsense])).unwrap().is_empty());
        }
    }

    #[test]
    fn faults_have_a_count_each() {
        assert_eq!(Fault::ALL.map(|fault| fault as usize), [0, 1, 2, 3, 4]);
    }
}
