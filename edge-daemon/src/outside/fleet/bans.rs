//! The other edges' bans and lifts on their way here, and what is known of them from before.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_identity::fleet::{Act, Change, Record, Seal};
use redis::{Value, cmd, pipe};
use tokio::{sync::oneshot, time};

use super::{
    super::lock,
    CLIENTS_MAX, Fleet, lifts,
    server::{Server, connect, said},
};
use crate::{clock, decisions::Decision, events::Event, request::Edge, verdict::Order};

/// Recalls what is in force from before: what this edge decided or lifted, to be shared again, and what
/// others did, as one of them may have lifted it meanwhile.
pub(super) async fn recall(fleet: &Fleet, edge: &Edge) {
    lifts::load(fleet);
    let (answer, held) = oneshot::channel();
    let node = fleet.settings.node.clone();
    if super::super::send(edge, Order::Recall(node, answer)).await.is_err() {
        return;
    }
    for ban in held.await.unwrap_or_default() {
        if ban.node == fleet.settings.node {
            lock(&fleet.own).put(ban.clone(), CLIENTS_MAX);
        }
        let ended = {
            let mut bans = lock(&fleet.bans);
            let _ = bans.merge(ban.clone(), CLIENTS_MAX);
            bans.ended_by(&ban).cloned()
        };
        // Just before the end, and it is not off the disk yet.
        if let Some(end) = ended {
            let _ = super::super::send(edge, Order::Ended(Box::new(end))).await;
        }
    }
}

/// Follows what the others decide, for ever.
pub(super) async fn follow(fleet: Arc<Fleet>, edge: Arc<Edge>) {
    let mut series = Series::default();
    loop {
        let counts = &fleet.counts;
        let Err(why) = read(&fleet, &edge, &mut series).await;
        if counts.is_connected.swap(false, Relaxed) {
            counts.lost.fetch_add(1, Relaxed);
        }
        if !std::mem::replace(&mut series.is_told, true) {
            tracing::error!(why, "the fleet's server is lost; bans and limits are this edge's own");
            edge.decisions.tell(Decision::fleet(format!("its server is lost: {why}")));
            edge.events.tell(Event::Fleet { result: "lost", why: Some(why) });
        }
        time::sleep(PAUSE.saturating_mul(1 << series.failures.min(6)).min(PAUSE_MAX)).await;
        series.failures += 1;
    }
}

/// Failures since the server was last found, and whether they are told of.
#[derive(Default)]
struct Series {
    failures: u32,
    is_told: bool,
}

/// Catches up and reads on, until something fails.
async fn read(
    fleet: &Fleet,
    edge: &Edge,
    series: &mut Series,
) -> Result<std::convert::Infallible, String> {
    let mut server = connect(fleet, BLOCK).await?;
    let mut is_cut = false;
    loop {
        let seal = fleet.seal()?;
        let last = catch_up(fleet, edge, &seal, &mut server).await?;
        match read_on(fleet, edge, &seal, (&mut server, last), series).await? {
            Ended::Resealed => {
                tracing::info!("the fleet's secret is another one; all bans are read again");
                // What this edge has sealed is worth nothing any more, there and on disk.
                fleet.found.notify_one();
                fleet.is_unsaved.store(true, Relaxed);
            }
            // Once a series, and not as fast as a server can say so.
            Ended::Cut { has_read } => {
                if !std::mem::replace(&mut is_cut, true) || has_read {
                    tracing::warn!(
                        "the fleet's stream was cut before it was read; all bans are read again"
                    );
                }
            }
        }
        time::sleep(PAUSE).await;
    }
}

/// Why the stream is not read on.
enum Ended {
    /// What comes next is not there any more.
    Cut {
        /// Whether anything came before that.
        has_read: bool,
    },
    /// The secret is another one.
    Resealed,
}

/// Reads the set, page by page; the number in the stream to read on from. What ends last comes first: what is
/// over meanwhile moves nothing that is still to be read, and what is added has some of it come twice.
async fn catch_up(
    fleet: &Fleet,
    edge: &Edge,
    seal: &Seal,
    server: &mut Server,
) -> Result<String, String> {
    let (set, stream) = (fleet.key("bans"), fleet.key("stream"));
    let newest = cmd("XREVRANGE").arg(&stream).arg(&["+", "-", "COUNT", "1"]).to_owned();
    let newest = said(newest.query_async::<Value>(&mut **server).await)?;
    let last = entries(newest).pop().map_or("0".to_owned(), |(id, _)| id);
    let mut from = 0;
    loop {
        let page = cmd("ZREVRANGEBYSCORE")
            .arg(&set)
            .arg("+inf")
            .arg(clock::unix_ms())
            .arg("LIMIT")
            .arg(from)
            .arg(PAGE)
            .to_owned();
        let page = said(page.query_async::<Vec<String>>(&mut **server).await)?;
        from += page.len();
        let is_last = page.len() < PAGE;
        for sealed in page {
            take(fleet, edge, seal, (&sealed, false)).await?;
        }
        if from > SET_MAX {
            tracing::warn!(records = from, "the fleet's set of bans is larger than an edge reads");
        }
        if is_last || from > SET_MAX {
            return Ok(last);
        }
    }
}

/// Reads the stream on from a number for as long as that makes sense.
async fn read_on(
    fleet: &Fleet,
    edge: &Edge,
    seal: &Seal,
    (server, mut last): (&mut Server, String),
    series: &mut Series,
) -> Result<Ended, String> {
    let (stream, mut has_read, mut block) = (fleet.key("stream"), false, SOON);
    loop {
        let asked = Instant::now();
        let mut next = pipe();
        next.cmd("XRANGE").arg(&stream).arg(&["-", "+", "COUNT", "1"]);
        next.cmd("XREAD").arg("COUNT").arg(PAGE).arg("BLOCK").arg(block.as_millis() as u64);
        next.arg("STREAMS").arg(&stream).arg(&last);
        let (first, answer) = said(next.query_async::<(Value, Value)>(&mut **server).await)?;
        if entries(first).pop().is_some_and(|(first, _)| is_cut(&last, &first)) {
            return Ok(Ended::Cut { has_read });
        }
        let entries = streamed(answer)?;
        // One that cannot be read for a moment is no other.
        if fleet.seal().is_ok_and(|now| now != *seal) {
            return Ok(Ended::Resealed);
        }
        // Not before: a server may answer one thing and not the next, as fast as it can.
        if !fleet.counts.is_connected.swap(true, Relaxed) {
            *series = Series::default();
            fleet.found.notify_one();
            // The secret may have changed while it was gone.
            fleet.is_unsaved.store(true, Relaxed);
            edge.decisions.tell(Decision::fleet("its server is found".to_owned()));
            edge.events.tell(Event::Fleet { result: "connected", why: None });
        }
        has_read |= !entries.is_empty();
        let mut is_news = false;
        for (id, sealed) in entries {
            if let Some(at_ms) = take(fleet, edge, seal, (&sealed, true)).await? {
                let delay_ms = clock::unix_ms().saturating_sub(at_ms);
                fleet.counts.delay_ms.store(delay_ms, Relaxed);
                is_news = true;
            }
            last = id;
        }
        if !is_news {
            // It was to wait for news, and may not have.
            time::sleep(PAUSE.min(block).saturating_sub(asked.elapsed())).await;
        }
        block = BLOCK;
    }
}

/// Whether a stream that begins with `first` may have lost what came after `last`. One that was empty at
/// first, `last` being 0, has not.
fn is_cut(last: &str, first: &str) -> bool {
    let number = |id: &str| {
        let (ms, n) = id.split_once('-')?;
        Some((ms.parse::<u64>().ok()?, n.parse::<u64>().ok()?))
    };
    matches!((number(last), number(first)), (Some(last), Some(first)) if first > last)
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
        if !matches!(record.act, Act::Ban { .. }) {
            fleet.note_end(&record);
        }
        // What this edge decided itself is known here before it comes back.
        let changes = lock(&fleet.bans).merge(record, CLIENTS_MAX)?;
        Ok((changes, at_ms))
    });
    match merged {
        Ok((changes, _)) if changes.is_empty() => {
            counts.known.fetch_add(1, Relaxed);
            Ok(None)
        }
        Ok((changes, at_ms)) => {
            counts.applied.fetch_add(1, Relaxed);
            for change in changes {
                match change {
                    Change::Ended(end) => super::super::send(edge, Order::Ended(Box::new(end))),
                    Change::Ban(ban) => {
                        super::super::send(edge, Order::Ban(Box::new(ban), is_news))
                    }
                }
                .await?;
            }
            Ok(Some(at_ms))
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

const PAGE: usize = 1_000;
/// Records that are read of the server's set, those that end last: a client's is there anew each time that its
/// ban gets longer.
const SET_MAX: usize = 2 * CLIENTS_MAX;
/// How long the server waits for news before it says that there are none.
const BLOCK: Duration = Duration::from_secs(1);
/// As [`BLOCK`], of the first answer: it is known of the server only then that it is there.
const SOON: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

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
    fn a_stream_that_begins_later_than_what_was_read_was_cut() {
        assert!(!is_cut("0", "7-0") && !is_cut("7-0", "7-0") && !is_cut("7-1", "7-0"));
        assert!(is_cut("7-0", "7-1") && is_cut("9-5", "10-0") && !is_cut("10-0", "9-5"));
    }

    #[test]
    fn faults_have_a_count_each() {
        assert_eq!(Fault::ALL.map(|fault| fault as usize), [0, 1, 2, 3, 4, 5]);
    }
}
