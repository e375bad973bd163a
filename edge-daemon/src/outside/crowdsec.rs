//! A bouncer of `CrowdSec`: its local API is asked what has changed, and what it decided about
//! addresses and networks is denied in the kernel until it ends.

mod alerts;
mod usage;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use edge_policy::list::{
    Class,
    decisions::{Answer, Decisions, Except, Ignored},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::{sync::mpsc, time};

use super::{
    Hits, Source, Told,
    kept::{self, Head},
    lock,
    poll::{self, Account, Polled, Polling, Trouble, Turn, doubled},
    put,
};
use crate::{
    clock,
    config::settings,
    control::feeds::FeedEntry,
    fetch::{self, Ask},
    request::Edge,
    secret::Secret,
    tls::client,
    verdict::{Listed, Sheet},
};

/// The name under which it is among the feeds.
pub const NAME: &str = "crowdsec";

/// A `CrowdSec`, and how it is doing.
pub struct Crowdsec {
    /// What the configuration says of it.
    pub settings: settings::Crowdsec,
    dir: PathBuf,
    state: Mutex<State>,
    pub(super) polling: Polling,
    /// Our own bans, on their way to it.
    pub(super) told: mpsc::Sender<Told>,
    to_tell: Mutex<Option<mpsc::Receiver<Told>>>,
}

#[derive(Default)]
struct State {
    decisions: Decisions,
    sheet: Option<Arc<Sheet>>,
    success_ms: u64,
    account: Account,
    /// When it was last kept on disk.
    saved: Option<Instant>,
    /// When all of it last came.
    whole: Option<Instant>,
}

impl Crowdsec {
    pub(super) fn new(settings: &settings::Crowdsec, state: &std::path::Path) -> Self {
        let (told, to_tell) = mpsc::channel(TOLD_MAX);
        let this = Self {
            settings: settings.clone(),
            dir: state.join("crowdsec"),
            state: Mutex::default(),
            polling: Polling::default(),
            told,
            to_tell: Mutex::new(Some(to_tell)),
        };
        this.restore();
        this
    }

    /// Takes what was kept, but for what has ended since.
    fn restore(&self) {
        let place = self.settings.url.to_string();
        let Some((head, content)) = kept::found(&self.dir, KEPT, &place, KEPT_BYTES_MAX) else {
            return;
        };
        let (mut decisions, now_ms) = (Decisions::default(), clock::unix_ms());
        for line in content.lines().take(self.settings.decisions_max) {
            let mut words = line.splitn(4, '\t');
            let (Some(Ok(net)), Some(Ok(until_ms)), Some(origin), Some(scenario)) = (
                words.next().map(str::parse),
                words.next().map(str::parse::<u64>),
                words.next(),
                words.next(),
            ) else {
                continue;
            };
            if until_ms > now_ms {
                let note = [origin.to_owned(), scenario.to_owned()];
                decisions.restore(net, clock::boot_ns_at(until_ms), note);
            }
        }
        let mut state = lock(&self.state);
        state.success_ms = head.at_ms;
        state.sheet = Some(self.sheet_of(&decisions, None, head.at_ms));
        state.decisions = decisions;
    }

    /// Keeps what is known.
    fn save(&self, decisions: &Decisions) -> io::Result<()> {
        let line = |(net, held): (&_, &edge_policy::list::decisions::Held)| {
            let clean = |text: &str| text.replace(['\t', '\n'], " ");
            let [origin, scenario] = &decisions.notes()[held.note as usize];
            let until_ms = clock::unix_ms_at(held.until_ns);
            format!("{net}\t{until_ms}\t{}\t{}\n", clean(origin), clean(scenario))
        };
        let content: String = decisions.iter().map(line).collect();
        let place = self.settings.url.to_string();
        kept::save(
            &self.dir,
            KEPT,
            Head::new(place, clock::unix_ms(), None, None),
            content.as_bytes(),
        )
    }

    fn sheet_of(&self, decisions: &Decisions, former: Option<&Sheet>, at_ms: u64) -> Arc<Sheet> {
        let class = if self.settings.counts_only { Class::Watch } else { Class::Deny };
        let entries = decisions.iter().map(|(net, held)| Listed {
            net: *net,
            until_ns: held.until_ns,
            place: held.note,
            since_s: (at_ms / 1000) as u32,
        });
        let note = |[origin, scenario]: &[String; 2]| Arc::from(format!("{scenario} ({origin})"));
        let notes = decisions.notes().iter().map(note).collect();
        Arc::new(Sheet::new(NAME.into(), class, entries.collect(), notes).after(former))
    }

    /// How it is doing.
    pub(super) fn show(&self, hits: &Hits) -> FeedEntry {
        let state = lock(&self.state);
        let ignored = Ignored::ALL.iter().zip(state.decisions.ignored);
        let told = |(why, count): (&Ignored, u64)| (why.name().to_owned(), count);
        let account = &state.account;
        FeedEntry {
            name: NAME.into(),
            place: self.settings.url.to_string(),
            counts_only: self.settings.counts_only,
            networks: state.decisions.len() as u64,
            faults: ignored.filter(|(_, count)| *count > 0).map(told).collect(),
            fault_lines: Vec::new(),
            reasons: BTreeMap::new(),
            success_ms: (state.success_ms > 0).then_some(state.success_ms),
            updated: account.updated,
            unchanged: account.unchanged,
            failed: account.failed,
            refused: account.refused,
            trouble: account.trouble.clone(),
            hits: state.sheet.as_ref().map_or(0, |sheet| super::hits_of(sheet, hits)),
        }
    }

    /// Asks what has changed, or for everything, and puts it in force.
    async fn ask_for(self: &Arc<Self>, edge: &Edge, whole: bool) -> Result<String, String> {
        let begun = Instant::now();
        let asked = time::timeout(self.settings.timeout, self.stream(whole)).await;
        let asked = asked.unwrap_or_else(|_| Err(io::Error::other("it took too long")));
        let bytes = asked.map_err(|error| error.to_string())?;
        let (this, answered, begun) = (Arc::clone(self), begun.elapsed(), Instant::now());
        let own = edge.outside.own();
        let judge = move || this.judge(&bytes, whole, &own);
        let judged = tokio::task::spawn_blocking(judge).await.map_err(|error| error.to_string())?;
        let (decisions, changed) = judged.map_err(|error| format!("its answer: {error}"))?;
        let networks = decisions.len();
        let (is_first, former) = {
            let state = lock(&self.state);
            (state.whole.is_none(), state.sheet.clone())
        };
        if is_first || !changed.is_empty() {
            let sheet = self.sheet_of(&decisions, former.as_deref(), clock::unix_ms());
            // What is on disk may not be in force.
            put(edge, Arc::clone(&sheet), (!is_first).then(|| changed.clone())).await?;
            lock(&self.state).sheet = Some(sheet);
        }
        let took = begun.elapsed();
        let changes = changed.len();
        tracing::debug!(networks, changes, whole, ?answered, ?took, "decisions are in force");
        let mut state = lock(&self.state);
        state.decisions = decisions;
        state.success_ms = clock::unix_ms();
        if whole {
            state.whole = Some(Instant::now());
        }
        state.account.succeed(!changed.is_empty());
        Ok(format!("{networks} networks are in force"))
    }

    /// What an answer makes of what is known, and what changed.
    fn judge(
        &self,
        bytes: &[u8],
        whole: bool,
        own: &[IpAddr],
    ) -> Result<(Decisions, Vec<ipnet::IpNet>), serde_json::Error> {
        let answer: Answer = serde_json::from_slice(bytes)?;
        let former = lock(&self.state).decisions.clone();
        let mut decisions = if whole { Decisions::default() } else { former.clone() };
        let scenario = self.settings.machine.as_ref().map(|(machine, _)| alerts::ours(machine));
        let except = Except { own, scenario: scenario.as_deref().unwrap_or_default() };
        let most = self.settings.decisions_max;
        let mut changed = decisions.apply(answer, except, most, clock::boot_ns());
        if whole {
            changed = decisions.follow(&former);
        }
        Ok((decisions, changed.into_iter().collect()))
    }

    async fn stream(&self, whole: bool) -> io::Result<Bytes> {
        let target = format!("/v1/decisions/stream?startup={whole}&scopes=ip,range");
        let key = read(&self.settings.api_key)?;
        let headers = [(HeaderName::from_static("x-api-key"), sealed("", &key)?)];
        let answer = self.ask(Method::GET, &target, headers, Bytes::new()).await?;
        match answer.status {
            StatusCode::OK => Ok(answer.bytes),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(io::Error::other("it does not know the key: 'cscli bouncers list'"))
            }
            status => Err(io::Error::other(format!("it answered {status}"))),
        }
    }

    async fn ask<const N: usize>(
        &self,
        method: Method,
        target: &str,
        headers: [(HeaderName, HeaderValue); N],
        body: Bytes,
    ) -> io::Result<fetch::Answer> {
        let mut all = HeaderMap::from_iter(headers);
        if !body.is_empty() {
            all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let tls = client::client(self.settings.authorities.as_deref())?;
        let question = Ask { method, target, headers: all, body, most: ANSWER_BYTES_MAX };
        fetch::ask(&self.settings.url, &tls, question).await
    }

    async fn keep_decisions(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let save = move || {
            let decisions = lock(&this.state).decisions.clone();
            this.save(&decisions)
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(save).await {
            tracing::error!(%error, "the decisions are in force and cannot be kept on disk");
        }
    }
}

impl Source for Crowdsec {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn sheet(&self) -> Option<Arc<Sheet>> {
        lock(&self.state).sheet.clone()
    }

    fn keep(
        self: Arc<Self>,
        edge: Arc<Edge>,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let to_tell = lock(&self.to_tell).take();
            let alerts = alerts::tell(Arc::clone(&self), to_tell);
            let usage = usage::tell(Arc::clone(&self), Arc::clone(&edge));
            tokio::join!(poll::keep(self, edge, Duration::ZERO), alerts, usage);
        })
    }
}

impl Polled for Crowdsec {
    fn polling(&self) -> &Polling {
        &self.polling
    }

    fn pause(&self, failures: u32) -> Duration {
        match failures {
            0 => self.settings.every,
            failures => doubled(PAUSE_FIRST, failures, PAUSE_MAX),
        }
    }

    async fn poll(self: &Arc<Self>, edge: &Edge, turn: Turn) -> Result<String, Trouble> {
        let last = lock(&self.state).whole;
        let done = self.ask_for(edge, is_whole(turn, last.map(|last| last.elapsed()))).await;
        let told = done.map_err(Trouble::Failed)?;
        let saved = lock(&self.state).saved;
        if turn.is_afresh || saved.is_none_or(|saved| saved.elapsed() > SAVE_EVERY) {
            lock(&self.state).saved = Some(Instant::now());
            self.keep_decisions().await;
        }
        Ok(told)
    }

    fn note(&self, edge: &Edge, trouble: &Trouble) {
        let mut state = lock(&self.state);
        let kept = state.decisions.len() as u64;
        state.account.fail(edge, NAME, trouble, kept);
    }
}

/// Whether it is asked for everything. After any trouble: what it had deleted meanwhile it may not tell again. And
/// now and then: it tells each key a change once, whoever asks with it, and whether that arrives or not.
fn is_whole(turn: Turn, since: Option<Duration>) -> bool {
    turn.is_afresh || turn.is_wish || since.is_none_or(|since| since >= WHOLE_EVERY)
}

/// A secret as it is now: it may have been changed.
fn read(origin: &crate::secret::Origin) -> io::Result<Secret> {
    let secret = origin.read().map_err(|fault| io::Error::other(format!("{origin}: {fault}")))?;
    Ok(secret.without_line_end())
}

/// A header that no log shows.
fn sealed(scheme: &str, secret: &Secret) -> io::Result<HeaderValue> {
    let bytes = [scheme.as_bytes(), secret.expose()].concat();
    let mut value = HeaderValue::from_bytes(&bytes)
        .map_err(|_| io::Error::other("the secret has characters that no header may have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The largest answer, in bytes: a million decisions.
const ANSWER_BYTES_MAX: usize = 256 << 20;
const KEPT: &str = "decisions";
const KEPT_BYTES_MAX: usize = 1 << 30;
const WHOLE_EVERY: Duration = Duration::from_secs(3_600);
const SAVE_EVERY: Duration = Duration::from_secs(60);
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Bans that wait to be told; more are not.
const TOLD_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_asked_for_at_first_after_trouble_at_a_wish_and_every_hour() {
        let turn = |is_afresh, is_wish| Turn { is_afresh, is_wish, force: false };
        let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
        for (turn, since, wanted) in [
            (turn(false, false), minutes(59), false),
            (turn(false, false), minutes(60), true),
            (turn(false, false), None, true),
            (turn(true, false), minutes(1), true),
            (turn(false, true), minutes(1), true),
        ] {
            assert_eq!(is_whole(turn, since), wanted, "{since:?}");
        }
    }
}
