//! One feed: what is in force of it, and the task that looks after its source.

use std::{
    fs,
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
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
use tokio::time;

use super::{
    Hits, Source,
    kept::{self, Head},
    lock,
    poll::{self, Account, Polled, Polling, Trouble, Turn, doubled},
    put,
};
use crate::{
    clock,
    config::settings::{self, FeedPlace},
    control::feeds::{FaultLine, FeedEntry},
    events::Event,
    fetch::{self, Ask},
    regular,
    request::Edge,
    tls::client,
    verdict::{Listed, Sheet},
};

/// A feed, and how it is doing.
pub struct Feed {
    /// What the configuration says of it.
    pub settings: settings::Feed,
    dir: PathBuf,
    state: Mutex<State>,
    pub(super) polling: Polling,
}

#[derive(Default)]
struct State {
    head: Head,
    sheet: Option<Arc<Sheet>>,
    faults: [u64; Fault::ALL.len()],
    fault_lines: Vec<FaultLine>,
    account: Account,
}

/// What a source says.
enum Fetched {
    Unchanged,
    New(Bytes, Head),
}

impl Feed {
    /// A feed, with the list that is kept of it.
    pub(super) fn new(settings: &settings::Feed, dir: &Path, own: &[IpAddr]) -> Self {
        let this = Self {
            settings: settings.clone(),
            dir: dir.to_owned(),
            state: Mutex::default(),
            polling: Polling::default(),
        };
        let place = this.place();
        if let Some((head, content)) = kept::found(dir, &settings.name, &place, settings.bytes_max)
        {
            let reading = this.read(&content, own);
            if reading.check(None, 100).is_ok() {
                let sheet = this.sheet_of(&reading, head.at_ms);
                this.adopt(head, sheet, &reading);
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

    fn read(&self, content: &str, own: &[IpAddr]) -> Reading {
        feed::read(self.settings.format, content, own)
    }

    fn sheet_of(&self, reading: &Reading, at_ms: u64) -> Arc<Sheet> {
        let since_s = (at_ms / 1000) as u32;
        let entry =
            |(net, line): &_| Listed { net: *net, until_ns: FOREVER, place: *line, since_s };
        let entries = reading.nets.iter().map(entry).collect();
        let from = format!("feed {}", self.settings.name).into();
        let sheet = Sheet::new(from, self.class(), entries, Vec::new());
        let sheet = sheet.because(reading.reasons.clone());
        Arc::new(sheet.after(self.sheet().as_deref()))
    }

    fn adopt(&self, head: Head, sheet: Arc<Sheet>, reading: &Reading) {
        let mut state = lock(&self.state);
        (state.head, state.sheet, state.faults) = (head, Some(sheet), reading.faults);
        let line = |(line, fault, text): &(u32, Fault, String)| {
            let (fault, text) = (fault.name().to_owned(), text.clone());
            FaultLine { line: *line, fault, text }
        };
        state.fault_lines = reading.told.iter().map(line).collect();
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
        let reasons = state.sheet.iter().flat_map(|sheet| sheet.reasons.counts());
        FeedEntry {
            name: self.settings.name.clone(),
            place: self.place(),
            counts_only: self.settings.counts_only,
            networks: state.sheet.as_ref().map_or(0, |sheet| sheet.entries().len() as u64),
            faults: faults.filter(|(_, count)| *count > 0).map(told).collect(),
            fault_lines: state.fault_lines.clone(),
            reasons: reasons.map(|(state, count)| (state.to_owned(), count)).collect(),
            success_ms: (state.head.at_ms > 0).then_some(state.head.at_ms),
            updated: state.account.updated,
            unchanged: state.account.unchanged,
            failed: state.account.failed,
            refused: state.account.refused,
            trouble: state.account.trouble.clone(),
            hits,
        }
    }

    /// Judges what came, and puts it in force if it can be the list.
    async fn take(
        self: &Arc<Self>,
        edge: &Edge,
        content: Bytes,
        head: Head,
        force: bool,
    ) -> Result<String, Trouble> {
        let (this, bytes, own) = (Arc::clone(self), content.clone(), edge.outside.own());
        let read = move || this.read(&String::from_utf8_lossy(&bytes), &own);
        let reading = tokio::task::spawn_blocking(read).await;
        let reading = reading.map_err(|error| Trouble::Failed(error.to_string()))?;
        let shrink_max = if force { 100 } else { self.settings.shrink_max };
        let checked = reading.check(self.networks(), shrink_max);
        checked.map_err(|refused| Trouble::Refused(refused.to_string()))?;
        let sheet = self.sheet_of(&reading, head.at_ms);
        put(edge, Arc::clone(&sheet), None).await.map_err(Trouble::Refused)?;
        self.adopt(head.clone(), sheet, &reading);
        lock(&self.state).account.succeed(true);
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
        let left_out_reasons = reading.reasons.left_out;
        if left_out_reasons > 0 {
            tracing::warn!(feed, left_out_reasons, "some of the reasons of a feed find no room");
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
    regular::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
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
        let first = match self.sheet() {
            Some(_) => {
                let age_ms = clock::unix_ms().saturating_sub(lock(&self.state).head.at_ms);
                self.settings.every.saturating_sub(Duration::from_millis(age_ms))
            }
            None => Duration::ZERO,
        };
        Box::pin(poll::keep(self, edge, first))
    }
}

impl Polled for Feed {
    fn polling(&self) -> &Polling {
        &self.polling
    }

    /// Of failures half a minute, doubling to an hour.
    fn pause(&self, failures: u32) -> Duration {
        let every = self.settings.every;
        if failures == 0 { every } else { doubled(PAUSE_FIRST, failures, PAUSE_MAX).min(every) }
    }

    async fn poll(self: &Arc<Self>, edge: &Edge, turn: Turn) -> Result<String, Trouble> {
        let head = lock(&self.state).head.clone();
        let fetched = match time::timeout(self.settings.timeout, self.fetch(&head)).await {
            Ok(fetched) => fetched.map_err(|error| Trouble::Failed(error.to_string()))?,
            Err(_) => return Err(Trouble::Failed("it took too long".to_owned())),
        };
        match fetched {
            Fetched::Unchanged => {
                let at_ms = clock::unix_ms();
                {
                    let mut state = lock(&self.state);
                    state.head.at_ms = at_ms;
                    state.account.succeed(false);
                }
                if let Err(error) = kept::confirm(&self.dir, &self.settings.name, at_ms) {
                    let feed = &self.settings.name;
                    tracing::warn!(feed, %error, "that the list is still good cannot be kept on disk");
                }
                Ok("it has not changed".to_owned())
            }
            Fetched::New(content, head) => self.take(edge, content, head, turn.force).await,
        }
    }

    fn note(&self, edge: &Edge, trouble: &Trouble) {
        let kept = self.networks().unwrap_or(0);
        lock(&self.state).account.fail(edge, &self.settings.name, trouble, kept);
    }
}

const PAUSE_FIRST: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
