//! Webhooks: decisions and alarms, told to somebody else's server as they come, a signed document
//! each.
//!
//! The verdict writer knows nothing of it. What it decides lies in the ring of decisions; one task
//! takes from there what a webhook asks for into a queue of its own, another sends what waits, one
//! after the other, so that documents come in their order. A server that is slow, dead or failing costs
//! a queue that is full, which is counted, and nobody's time.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use tokio::{sync::Notify, time};

use super::{Source, lock};
use crate::{
    clock,
    config::settings,
    decisions::Decision,
    fetch::{self, Ask},
    request::Edge,
    secret::BYTES_MIN,
    tls::client,
    verdict::Sheet,
};

/// A webhook, and how it is doing.
pub struct Webhook {
    /// What the configuration says of it.
    pub settings: settings::Webhook,
    /// What this edge is called.
    edge: String,
    /// Whether it is told of all that was decided since the start, and not from now on.
    pub(super) is_from_start: AtomicBool,
    /// What the ids of this process's documents begin with, as no other's do.
    run: u64,
    queue: Mutex<VecDeque<Waiting>>,
    came: Notify,
    counts: Counts,
}

/// What is counted of a webhook.
#[derive(Default)]
struct Counts {
    delivered: AtomicU64,
    refused: AtomicU64,
    expired: AtomicU64,
    lost: AtomicU64,
    attempts_failed: AtomicU64,
}

/// A decision on its way.
struct Waiting {
    number: u64,
    decision: Arc<Decision>,
    since: Instant,
}

/// What is sent.
#[derive(Serialize)]
struct Document<'a> {
    id: &'a str,
    edge: &'a str,
    time: String,
    #[serde(flatten)]
    decision: &'a Decision,
}

/// What became of an attempt that brought nothing.
enum Fault {
    /// It may do later.
    Later(String),
    /// It never will.
    Never(StatusCode),
}

/// How a webhook is doing, for the metrics.
pub struct Account {
    /// What became of documents, by a word.
    pub results: [(&'static str, u64); 4],
    /// Attempts that brought nothing.
    pub attempts_failed: u64,
    /// Documents that wait.
    pub waiting: u64,
}

impl Webhook {
    pub(super) fn new(settings: &settings::Webhook, edge: String) -> Self {
        Self {
            settings: settings.clone(),
            edge,
            is_from_start: AtomicBool::new(false),
            run: getrandom::u64().unwrap_or_else(|_| clock::unix_ms()),
            queue: Mutex::default(),
            came: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// How it is doing.
    #[must_use]
    pub fn account(&self) -> Account {
        let counts = &self.counts;
        Account {
            results: [
                ("delivered", &counts.delivered),
                ("refused", &counts.refused),
                ("expired", &counts.expired),
                ("lost", &counts.lost),
            ]
            .map(|(name, count)| (name, count.load(Relaxed))),
            attempts_failed: counts.attempts_failed.load(Relaxed),
            waiting: lock(&self.queue).len() as u64,
        }
    }

    /// Takes from the ring what is asked for, for ever.
    async fn gather(&self, edge: &Edge) {
        let mut from = if self.is_from_start.load(Relaxed) { 0 } else { edge.decisions.next() };
        loop {
            edge.decisions.wait(from).await;
            let since = edge.decisions.since(from, PAGE);
            let first = since.next - since.decisions.len() as u64;
            from = since.next;
            let mut lost = since.missed;
            for (number, decision) in (first..).zip(since.decisions) {
                if self.settings.events.contains(&decision.what) {
                    lost += u64::from(!self.push(number, decision));
                }
            }
            self.counts.lost.fetch_add(lost, Relaxed);
            // What comes faster than this is read page by page, others' turns in between.
            tokio::task::yield_now().await;
        }
    }

    /// Whether there was room. The newest is lost, not the oldest: what an attack began with tells
    /// more than the hundredth of its bans.
    fn push(&self, number: u64, decision: Arc<Decision>) -> bool {
        let mut queue = lock(&self.queue);
        let has_room = queue.len() < self.settings.queue;
        if has_room {
            queue.push_back(Waiting { number, decision, since: Instant::now() });
            self.came.notify_one();
        }
        has_room
    }

    /// Sends what waits, for ever.
    async fn deliver(&self) {
        let mut is_failing = false;
        loop {
            let next = lock(&self.queue).pop_front();
            let Some(waiting) = next else {
                self.came.notified().await;
                continue;
            };
            let (count, trouble) = match self.send(&waiting, &mut is_failing).await {
                Ok(()) => (&self.counts.delivered, None),
                Err(Fault::Never(status)) => (&self.counts.refused, Some(refusal(status))),
                Err(Fault::Later(why)) => (&self.counts.expired, Some(why)),
            };
            count.fetch_add(1, Relaxed);
            self.note(trouble.as_deref(), &mut is_failing);
        }
    }

    /// Tells of trouble once a series.
    fn note(&self, trouble: Option<&str>, is_failing: &mut bool) {
        let (webhook, before) =
            (&self.settings.name, std::mem::replace(is_failing, trouble.is_some()));
        match trouble {
            Some(why) if !before => tracing::error!(webhook, why, "a webhook cannot be told"),
            None if before => tracing::info!(webhook, "a webhook can be told again"),
            _ => {}
        }
    }

    /// Tries until it is taken, refused for good, or too old.
    async fn send(&self, waiting: &Waiting, is_failing: &mut bool) -> Result<(), Fault> {
        let end = waiting.since + self.settings.give_up;
        let mut pause = PAUSE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let attempt = time::timeout(self.settings.timeout.min(left), self.attempt(waiting));
            let why = match attempt.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Fault::Never(status))) => return Err(Fault::Never(status)),
                Ok(Err(Fault::Later(why))) => why,
                Err(_) => "it took too long".to_owned(),
            };
            self.counts.attempts_failed.fetch_add(1, Relaxed);
            self.note(Some(&why), is_failing);
            let next = super::jittered(pause);
            if Instant::now() + next >= end {
                return Err(Fault::Later(why));
            }
            time::sleep(next).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, waiting: &Waiting) -> Result<(), Fault> {
        let answer = self.ask(waiting).await.map_err(|error| Fault::Later(error.to_string()))?;
        match answer.status {
            status if status.is_success() => Ok(()),
            status if status.is_server_error() || AGAIN.contains(&status) => {
                Err(Fault::Later(refusal(status)))
            }
            status => Err(Fault::Never(status)),
        }
    }

    async fn ask(&self, waiting: &Waiting) -> io::Result<fetch::Answer> {
        let id = format!("{:016x}-{}", self.run, waiting.number);
        let time = clock::rfc3339(waiting.decision.at_ms);
        let document =
            Document { id: &id, edge: &self.edge, time, decision: waiting.decision.as_ref() };
        let body = serde_json::to_vec(&document)?;
        let headers = self.sealed(&id, clock::unix_ms() / 1_000, &body)?;
        // Both are read again each time: secrets and authorities change.
        let tls = client::client(self.settings.authorities.as_deref())?;
        let question =
            Ask { method: Method::POST, target: "", headers, body: body.into(), most: ANSWER_MAX };
        fetch::ask(&self.settings.url, &tls, question).await
    }

    /// The headers that prove who sent it, and when.
    fn sealed(&self, id: &str, at_s: u64, body: &[u8]) -> io::Result<HeaderMap> {
        let origin = &self.settings.secret;
        let secret = origin.read().and_then(|secret| secret.without_line_end().at_least(BYTES_MIN));
        let secret = secret.map_err(|fault| io::Error::other(format!("{origin}: {fault}")))?;
        let seal = format!("v1,{}", BASE64_STANDARD.encode(seal(secret.expose(), id, at_s, body)));
        let fields = [
            (header::CONTENT_TYPE, "application/json".to_owned()),
            (HeaderName::from_static("webhook-id"), id.to_owned()),
            (HeaderName::from_static("webhook-timestamp"), at_s.to_string()),
            (HeaderName::from_static("webhook-signature"), seal),
        ];
        let field = |(name, value): (_, String)| {
            Ok((name, HeaderValue::from_str(&value).map_err(io::Error::other)?))
        };
        fields.into_iter().map(field).collect()
    }
}

/// What is signed: which document it is, when it was sent, and what it says.
fn seal(secret: &[u8], id: &str, at_s: u64, body: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(format!("{id}.{at_s}.").as_bytes());
    context.update(body);
    context.sign()
}

fn refusal(status: StatusCode) -> String {
    format!("it answered {status}")
}

impl Source for Webhook {
    fn name(&self) -> String {
        format!("webhook {}", self.settings.name)
    }

    fn sheet(&self) -> Option<Arc<Sheet>> {
        None
    }

    fn keep(self: Arc<Self>, edge: Arc<Edge>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            tokio::join!(self.gather(&edge), self.deliver());
        })
    }
}

/// Statuses below 500 after which it may do later.
const AGAIN: [StatusCode; 3] =
    [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
/// The largest answer, in bytes; nobody reads it.
const ANSWER_MAX: usize = 64 << 10;
const PAGE: usize = 256;
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decisions::What, secret::Origin};

    fn webhook(queue: usize) -> Webhook {
        let settings = settings::Webhook {
            name: "a".into(),
            url: "https://localhost/".parse().unwrap(),
            secret: Origin::Env("EDGED_SURELY_UNSET".into()),
            events: vec![What::Alarm],
            queue,
            timeout: PAUSE,
            give_up: PAUSE,
            authorities: None,
        };
        Webhook::new(&settings, "edge-1".into())
    }

    #[test]
    fn a_full_queue_keeps_what_came_first() {
        let webhook = webhook(2);
        let alarm = || Arc::new(Decision::alarm("x".into()));
        let taken: Vec<_> = (0..4).map(|n| webhook.push(n, alarm())).collect();
        assert_eq!(taken, [true, true, false, false]);
        assert_eq!(lock(&webhook.queue).iter().map(|w| w.number).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_document_without_a_secret_is_not_sent() {
        let error = webhook(1).sealed("1", 1, b"{}").unwrap_err();
        assert!(error.to_string().contains("EDGED_SURELY_UNSET"), "{error}");
    }

    /// As `printf 'msg.7.{}' | openssl dgst -sha256 -hmac key` says.
    #[test]
    fn the_seal_is_an_hmac_of_id_time_and_body() {
        let hex: String =
            seal(b"key", "msg", 7, b"{}").as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "c19c0a8b946fde397d2dc53691fdd1c2751aeca22aa2fb00cf39712d90938139");
    }
}
