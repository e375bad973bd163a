//! One feed: what is in force of it, and the task that looks after its source.

use std::{
    fs,
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use edge_policy::list::{
    Class, FOREVER,
    feed::{self, Fault, Reading},
};
use http::{
    HeaderValue, StatusCode,
    header::{self, HeaderName},
};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::{
    Hits, Source, jittered,
    kept::{self, Head},
    lock, put,
};
use crate::{
    clock,
    config::settings::{self, FeedPlace},
    control::feeds::FeedEntry,
    decisions::Decision,
    events::Event,
    fetch::{self, Ask},
    request::Edge,
    tls::client,
    verdict::{Listed, Sheet},
};

/// A feed, and how it is doing.
pub struct Feed {
    /// What the configuration says of it.
    pub settings: settings::Feed,
    dir: PathBuf,
    /// Whether the writer has had what is known of it.
    pub(super) is_in_force: AtomicBool,
    own: Arc<[IpAddr]>,
    state: Mutex<State>,
    requests: mpsc::Sender<Request>,
    /// The other end, until the task takes it.
    waiting: Mutex<Option<mpsc::Receiver<Request>>>,
}

/// An operator's wish to have it fetched now, and whether it may shrink.
type Request = (bool, oneshot::Sender<Result<String, String>>);

#[derive(Default)]
struct State {
    head: Head,
    sheet: Option<Arc<Sheet>>,
    faults: [u64; Fault::ALL.len()],
    counts: FeedCounts,
    /// Why the last fetch brought nothing; `None`: it did.
    trouble: Option<String>,
}

/// What came of a feed's fetches.
#[derive(Clone, Copy, Debug, Default)]
struct FeedCounts {
    /// Lists that were taken.
    updated: u64,
    /// Times that it had not changed.
    unchanged: u64,
    /// Times that it could not be had.
    failed: u64,
    /// Lists that were not taken.
    refused: u64,
}

/// What a source says.
enum Fetched {
    Unchanged,
    New(Bytes, Head),
}

/// Why there is no new list.
enum Trouble {
    /// It could not be had.
    Failed(String),
    /// What came cannot be the list.
    Refused(String),
}

impl Feed {
    /// A feed, with the list that is kept of it.
    pub(super) fn new(settings: &settings::Feed, dir: &Path, own: &Arc<[IpAddr]>) -> Self {
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let this = Self {
            settings: settings.clone(),
            dir: dir.to_owned(),
            is_in_force: AtomicBool::new(false),
            own: Arc::clone(own),
            state: Mutex::default(),
            requests,
            waiting: Mutex::new(Some(waiting)),
        };
        let place = this.place();
        if let Some((head, content)) = kept::load(dir, &settings.name, &place, settings.bytes_max) {
            let reading = this.read(&content);
            if reading.check(None, 100).is_ok() {
                this.adopt(head, this.sheet_of(&reading), &reading);
            }
        }
        this
    }

    /// Where it is, in words.
    fn place(&self) -> String {
        match &self.settings.place {
            FeedPlace::Url(url) => url.to_string(),
            FeedPlace::File(path) => format!("file:{}", path.display()),
        }
    }

    fn class(&self) -> Class {
        if self.settings.counts_only { Class::Watch } else { Class::Deny }
    }

    fn read(&self, content: &str) -> Reading {
        feed::read(self.settings.format, content, &self.own)
    }

    fn sheet_of(&self, reading: &Reading) -> Arc<Sheet> {
        let entry = |(net, line): &(_, u32)| Listed { net: *net, until_ns: FOREVER, place: *line };
        let entries = reading.nets.iter().map(entry).collect();
        let from = format!("feed {}", self.settings.name).into();
        Arc::new(Sheet::new(from, self.class(), entries, Vec::new()))
    }

    fn adopt(&self, head: Head, sheet: Arc<Sheet>, reading: &Reading) {
        let mut state = lock(&self.state);
        let (faults, counts) = (reading.faults, state.counts);
        *state = State { head, sheet: Some(sheet), faults, counts, trouble: None };
    }

    fn networks(&self) -> Option<u64> {
        self.sheet().map(|sheet| sheet.entries().len() as u64)
    }

    /// How it is doing.
    pub(super) fn show(&self, hits: &Hits) -> FeedEntry {
        let state = lock(&self.state);
        let hits = state.sheet.as_ref().map_or(0, |sheet| super::hits_of(sheet, hits));
        let faults = Fault::ALL.iter().zip(state.faults);
        let told = |(fault, count): (&Fault, u64)| (fault.name().to_owned(), count);
        FeedEntry {
            name: self.settings.name.clone(),
            place: self.place(),
            counts_only: self.settings.counts_only,
            networks: state.sheet.as_ref().map_or(0, |sheet| sheet.entries().len() as u64),
            faults: faults.filter(|(_, count)| *count > 0).map(told).collect(),
            success_ms: (state.head.at_ms > 0).then_some(state.head.at_ms),
            updated: state.counts.updated,
            unchanged: state.counts.unchanged,
            failed: state.counts.failed,
            refused: state.counts.refused,
            trouble: state.trouble.clone(),
            hits,
        }
    }

    /// Has it fetched now; a sentence about what came of it.
    pub(super) async fn refresh(&self, force: bool) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let asked = self.requests.try_send((force, answer));
        asked.map_err(|_| "it is being asked for already".to_owned())?;
        answered.await.unwrap_or_else(|_| Err("the feed was taken out meanwhile".to_owned()))
    }

    /// Fetches, judges and puts in force; a sentence about it.
    async fn update(self: &Arc<Self>, edge: &Edge, force: bool) -> Result<String, String> {
        let head = lock(&self.state).head.clone();
        let fetched = match time::timeout(self.settings.timeout, self.fetch(&head)).await {
            Ok(fetched) => fetched.map_err(|error| Trouble::Failed(error.to_string())),
            Err(_) => Err(Trouble::Failed("it took too long".to_owned())),
        };
        let done = match fetched {
            Ok(Fetched::Unchanged) => {
                let mut state = lock(&self.state);
                state.head.at_ms = clock::unix_ms();
                state.counts.unchanged += 1;
                state.trouble = None;
                Ok("it has not changed".to_owned())
            }
            Ok(Fetched::New(content, head)) => self.take(edge, content, head, force).await,
            Err(trouble) => Err(trouble),
        };
        done.map_err(|trouble| self.note(edge, &trouble))
    }

    /// Judges what came, and puts it in force if it can be the list.
    async fn take(
        self: &Arc<Self>,
        edge: &Edge,
        content: Bytes,
        head: Head,
        force: bool,
    ) -> Result<String, Trouble> {
        let (this, bytes) = (Arc::clone(self), content.clone());
        let read = move || this.read(&String::from_utf8_lossy(&bytes));
        let reading = tokio::task::spawn_blocking(read).await;
        let reading = reading.map_err(|error| Trouble::Failed(error.to_string()))?;
        let shrink_max = if force { 100 } else { self.settings.shrink_max };
        let checked = reading.check(self.networks(), shrink_max);
        checked.map_err(|refused| Trouble::Refused(refused.to_string()))?;
        let sheet = self.sheet_of(&reading);
        put(edge, Arc::clone(&sheet), None).await.map_err(Trouble::Refused)?;
        self.adopt(head.clone(), sheet, &reading);
        lock(&self.state).counts.updated += 1;
        let (feed, nets, left_out) =
            (self.settings.name.clone(), reading.nets.len() as u64, reading.left_out());
        for (line, fault, text) in &reading.told {
            tracing::debug!(
                feed,
                line,
                fault = fault.name(),
                text,
                "a line is not as it should be"
            );
        }
        edge.events.tell(Event::FeedUpdated { feed, networks: nets, left_out });
        let this = Arc::clone(self);
        let save = move || kept::save(&this.dir, &this.settings.name, head, &content);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(save).await {
            let feed = &self.settings.name;
            tracing::error!(feed, %error, "the list is in force and cannot be kept on disk");
        }
        Ok(format!("{nets} networks are in force, {left_out} lines were left out"))
    }

    /// Counts what went wrong and tells of it; what was in force stays.
    fn note(&self, edge: &Edge, trouble: &Trouble) -> String {
        let kept = self.networks().unwrap_or(0);
        let mut state = lock(&self.state);
        let (result, why) = match trouble {
            Trouble::Failed(why) => {
                state.counts.failed += 1;
                ("failed", why.clone())
            }
            Trouble::Refused(why) => {
                state.counts.refused += 1;
                ("refused", why.clone())
            }
        };
        let feed = self.settings.name.clone();
        // Once a series: a source that is away for a week is told of once.
        if state.trouble.as_ref() != Some(&why) {
            tracing::error!(feed, why, kept, "the feed brought nothing; what was there stays");
            let why = why.clone();
            edge.decisions.tell(Decision::feed(&feed, &why));
            edge.events.tell(Event::FeedFailed { feed, result, why, networks: kept });
        }
        state.trouble = Some(why.clone());
        why
    }

    async fn fetch(self: &Arc<Self>, head: &Head) -> io::Result<Fetched> {
        match &self.settings.place {
            FeedPlace::Url(url) => {
                let mut question = Ask::document(self.settings.bytes_max);
                let known = [
                    (header::IF_NONE_MATCH, &head.etag),
                    (header::IF_MODIFIED_SINCE, &head.last_modified),
                ];
                let values = known.into_iter().filter_map(|(name, value)| {
                    Some((name, HeaderValue::from_str(value.as_ref()?).ok()?))
                });
                question.headers.extend(values);
                // Read again each time: authorities change.
                let tls = client::client(self.settings.authorities.as_deref())?;
                let answer = fetch::ask(url, &tls, question).await?;
                match answer.status {
                    StatusCode::NOT_MODIFIED if self.networks().is_some() => Ok(Fetched::Unchanged),
                    StatusCode::OK => {
                        let text = |name: HeaderName| {
                            let value = answer.headers.get(name)?.to_str().ok()?;
                            Some(value.to_owned())
                        };
                        let (etag, since) = (text(header::ETAG), text(header::LAST_MODIFIED));
                        let head = Head::new(self.place(), clock::unix_ms(), etag, since);
                        Ok(Fetched::New(answer.bytes, head))
                    }
                    status => {
                        let to =
                            answer.headers.get(header::LOCATION).and_then(|to| to.to_str().ok());
                        let to = to.map_or(String::new(), |to| format!(", which is at {to}"));
                        Err(io::Error::other(format!("it answered {status}{to}")))
                    }
                }
            }
            FeedPlace::File(path) => {
                let (path, most, head) = (path.clone(), self.settings.bytes_max, head.clone());
                let place = self.place();
                let read = move || read_file(&path, most, &head, place);
                tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
            }
        }
    }
}

/// Reads a file, unless it is as it was.
fn read_file(path: &Path, most: usize, head: &Head, place: String) -> io::Result<Fetched> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let stamp = Some(format!(
        "{}.{:09} {} {}",
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ino(),
        metadata.len()
    ));
    if stamp == head.etag {
        return Ok(Fetched::Unchanged);
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other("larger than 'bytes_max'"));
    }
    Ok(Fetched::New(bytes.into(), Head::new(place, clock::unix_ms(), stamp, None)))
}

impl Source for Feed {
    fn name(&self) -> String {
        format!("feed {}", self.settings.name)
    }

    fn sheet(&self) -> Option<Arc<Sheet>> {
        lock(&self.state).sheet.clone()
    }

    fn keep(self: Arc<Self>, edge: Arc<Edge>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(keep(self, edge))
    }
}

/// Looks after a feed, for ever.
async fn keep(feed: Arc<Feed>, edge: Arc<Edge>) {
    let Some(mut requests) = lock(&feed.waiting).take() else { return };
    let every = feed.settings.every;
    let mut next = match feed.sheet() {
        Some(sheet) => {
            if !feed.is_in_force.load(Relaxed)
                && let Err(error) = put(&edge, sheet, None).await
            {
                feed.note(&edge, &Trouble::Refused(error));
            }
            let age_ms = clock::unix_ms().saturating_sub(lock(&feed.state).head.at_ms);
            every.saturating_sub(Duration::from_millis(age_ms))
        }
        None => Duration::ZERO,
    };
    let mut failures = 0;
    loop {
        let request = tokio::select! {
            () = time::sleep(next) => None,
            request = requests.recv() => request,
        };
        let force = request.as_ref().is_some_and(|(force, _)| *force);
        let done = feed.update(&edge, force).await;
        failures = if done.is_ok() { 0 } else { failures + 1 };
        next = jittered(if failures == 0 { every } else { pause(failures).min(every) });
        if let Some((_, answer)) = request {
            let _ = answer.send(done);
        }
    }
}

/// After so many failures in a row: half a minute, doubling to an hour.
fn pause(failures: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(PAUSE_MAX)
}

const REQUESTS_MAX: usize = 4;
const PAUSE_FIRST: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
