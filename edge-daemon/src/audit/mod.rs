//! The audit log: who tried what, with which outcome, and what operators did, in a chain that
//! tells if it was changed.
//!
//! Requests put their entries in a bounded queue and never wait; one thread writes them, a batch at a
//! time. What a full queue or a failing disk loses is counted, and said in the chain itself.

mod files;
mod grants;
mod kept;
mod relay;
pub mod verify;

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, Sender, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use edge_common::Reason;
use edge_identity::audit::{ChainKey, Link, append};
use http::StatusCode;
use serde::Serialize;

use self::{
    files::Files,
    grants::{AccessLine, Sums},
    relay::Asked,
};
pub use self::{
    grants::{Access, Grants},
    kept::{Kept, PATIENCE},
    relay::Resumption,
};
use crate::{
    clock,
    config::settings::{self, Granted},
    events::Event,
};

/// Whether a request is refused because of who it is from, or because of how it tells.
#[must_use]
pub fn is_about_identity(reason: Reason) -> bool {
    let status = edge_policy::denied::status(reason);
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        && reason != Reason::BannedRequest
        || matches!(reason, Reason::CredentialInUrl | Reason::CredentialInClear)
}

enum Entry {
    Event(u64, Box<Event>),
    /// The same, and who told of it waits until it is on disk.
    Awaited(u64, Box<Event>, SyncSender<bool>),
    /// Requests that were let in.
    Granted(Vec<(u64, Access)>),
    /// How many were, by how it was proved who sends them, and who that is.
    Summed(&'static str, Vec<(String, u64)>),
    /// What the former daemon tells.
    Relayed(u64, Box<serde_json::Value>),
    /// Tells whether all before it is on disk, when that is known.
    Flush(SyncSender<bool>),
    /// The same; then nothing is written until the receiver says how to go on.
    Pause(SyncSender<bool>, Receiver<Resumption>),
}

impl Entry {
    /// How many lines it comes to, at most.
    fn lines(&self) -> usize {
        match self {
            Self::Event(..) | Self::Awaited(..) | Self::Relayed(..) => 1,
            Self::Granted(each) => each.len(),
            Self::Summed(_, sums) => sums.len(),
            Self::Flush(_) | Self::Pause(..) => 0,
        }
    }
}

/// The way to the audit log. Never waits but in [`Audit::flush`] and [`Audit::pause`].
#[derive(Clone)]
pub struct Audit {
    queue: SyncSender<Entry>,
    /// The way to a log that pauses.
    paused: Arc<Mutex<Option<Sender<Resumption>>>>,
    counts: Arc<Counts>,
    granted: Granted,
}

/// What is counted of the audit log.
#[derive(Debug, Default)]
pub struct Counts {
    /// The number of its last line.
    pub last: AtomicU64,
    /// Entries that were lost, since the start.
    pub lost: AtomicU64,
    /// Lines that wait to be written.
    waiting: AtomicUsize,
}

impl Audit {
    /// Opens the log where it ended, and says so in it. It is written once the other end runs.
    ///
    /// # Errors
    /// If its folder, its newest file or its key cannot be used.
    pub fn open(
        settings: &settings::Audit,
        counts: Arc<Counts>,
    ) -> anyhow::Result<(Self, AuditLog)> {
        let key = files::key(&settings.key)?;
        let opened = Files::open(settings, &key)?;
        let (queue, entries) = sync_channel(QUEUE + RESERVE);
        counts.last.store(opened.last.number, Relaxed);
        let (paused, granted) = (Arc::default(), settings.granted);
        let audit = Self { queue, paused, counts: Arc::clone(&counts), granted };
        let log = AuditLog {
            settings: settings.clone(),
            key,
            entries,
            files: opened.files,
            last: opened.last,
            notes: opened.notes,
            counts,
            told_lost: 0,
            sums: Sums::new(),
            is_failing: false,
        };
        Ok((audit, log))
    }

    /// Tells of what happened.
    pub fn tell(&self, event: Event) {
        self.give(Entry::Event(clock::unix_ms(), Box::new(event)));
    }

    fn give(&self, entry: Entry) {
        let lines = entry.lines();
        let before = self.counts.waiting.fetch_add(lines, Relaxed);
        if before + lines > QUEUE || self.queue.try_send(entry).is_err() {
            self.counts.waiting.fetch_sub(lines, Relaxed);
            self.counts.lost.fetch_add(lines as u64, Relaxed);
        }
    }
}

/// The writing end.
pub struct AuditLog {
    settings: settings::Audit,
    key: ChainKey,
    entries: Receiver<Entry>,
    files: Files,
    last: Link,
    /// What is to be said first: how the log was found.
    notes: Vec<Note>,
    counts: Arc<Counts>,
    /// Lost entries that the chain tells of.
    told_lost: u64,
    /// Requests that were let in and are summed up.
    sums: Sums,
    is_failing: bool,
}

/// What the log says of itself.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Note {
    /// A file was begun. The first says so of the chain.
    FileBegun {
        /// Its name.
        file: String,
    },
    /// Entries were lost, to a full queue or to a failing disk.
    Lost {
        /// How many, since the last such line.
        entries: u64,
    },
    /// A file ended in the middle of a line, which lies aside now.
    TornLine {
        /// The file.
        file: String,
        /// Where the line lies now.
        aside: String,
        /// Its bytes.
        bytes: u64,
    },
    /// The last line of a file is not genuine; the chain begins anew.
    ChainBroken {
        /// The file.
        file: String,
        /// What is wrong with its last line.
        why: String,
    },
    /// An old file is removed to make room. It is said first, and done when that is on disk: who
    /// checks the log can tell it from a file that somebody else took away.
    FileRemoved {
        /// The file.
        file: String,
        /// The number of its last line.
        last: u64,
    },
    /// Requests of somebody that were let in, within a second.
    Granted {
        /// Who.
        principal: String,
        /// How that was proved.
        by: &'static str,
        /// How many.
        requests: u64,
    },
}

impl AuditLog {
    /// Writes until nobody can tell of anything any more.
    pub fn run(mut self) {
        let (mut lines, mut next_sync) = (Vec::new(), Instant::now());
        loop {
            let first = match self.entries.recv_timeout(SYNC_EVERY) {
                Ok(first) => Some(first),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            };
            let is_due = Instant::now() >= next_sync;
            let Asked { flushes, pause, mut is_kept } = self.batch(first, is_due, &mut lines);
            if is_due || !flushes.is_empty() {
                is_kept &= self.sync();
                next_sync = Instant::now() + SYNC_EVERY;
            }
            for done in &flushes {
                // Who asked may have stopped waiting.
                let _ = done.try_send(is_kept);
            }
            match pause.map(|pause| pause.recv()) {
                Some(Ok(Resumption::Relay(successor))) => return self.relay(&successor),
                Some(_) => self.reopen(),
                None => {}
            }
            if flushes.is_empty() {
                // Who sends to a thread that does not wait for it makes no system call.
                thread::sleep(GATHER);
            }
        }
        self.batch(None, true, &mut lines);
        if !self.notes.is_empty() {
            self.batch(None, true, &mut lines);
        }
        self.sync();
    }

    /// Writes what waits; who wants to know when it is on disk.
    fn batch(&mut self, first: Option<Entry>, is_due: bool, lines: &mut Vec<u8>) -> Asked {
        let (before, mut asked, mut count) = (self.last, Asked::default(), 0);
        let now_ms = clock::unix_ms();
        lines.clear();
        let notes = std::mem::take(&mut self.notes);
        for note in &notes {
            self.add(lines, now_ms, note);
        }
        let lost = self.counts.lost.load(Relaxed);
        if lost > self.told_lost {
            self.add(lines, now_ms, &Note::Lost { entries: lost - self.told_lost });
        }
        let mut next = first.or_else(|| self.entries.try_recv().ok());
        while let Some(entry) = next {
            let waited = entry.lines();
            self.counts.waiting.fetch_sub(waited, Relaxed);
            match entry {
                Entry::Event(at_ms, event) => self.add(lines, at_ms, &*event),
                Entry::Awaited(at_ms, event, done) => {
                    self.add(lines, at_ms, &*event);
                    asked.flushes.push(done);
                }
                Entry::Granted(each) => each.iter().for_each(|(at_ms, access)| {
                    self.add(lines, *at_ms, &AccessLine::of(access));
                }),
                Entry::Summed(by, sums) => self.sum(by, sums),
                Entry::Relayed(at_ms, entry) => self.add(lines, at_ms, &entry),
                Entry::Flush(done) => asked.flushes.push(done),
                Entry::Pause(done, resumed) => {
                    asked.flushes.push(done);
                    asked.pause = Some(resumed);
                }
            }
            count += waited;
            next = if count < BATCH { self.entries.try_recv().ok() } else { None };
        }
        if is_due || self.sums.values().any(|sums| sums.len() >= SUMS_MAX) {
            for (principal, by, requests) in self.take_sums() {
                self.add(lines, now_ms, &Note::Granted { principal, by, requests });
            }
        }
        let written = if lines.is_empty() { Ok(()) } else { self.files.write(lines) };
        asked.is_kept = written.is_ok();
        match written {
            Ok(()) => {
                self.told_lost = lost;
                self.is_failing = false;
                self.counts.last.store(self.last.number, Relaxed);
                self.clear_away();
                self.rotate();
            }
            Err(error) => {
                // The chain goes on where the file ends.
                (self.last, self.notes) = (before, notes);
                self.counts.lost.fetch_add(count as u64, Relaxed);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(%error, "cannot write the audit log");
                }
            }
        }
        asked
    }

    fn sum(&mut self, by: &'static str, sums: Vec<(String, u64)>) {
        let own = self.sums.entry(by).or_default();
        sums.into_iter().for_each(|(who, requests)| *own.entry(who).or_default() += requests);
    }

    /// Who, how that was proved, and how many requests.
    fn take_sums(&mut self) -> Vec<(String, &'static str, u64)> {
        let sums = self.sums.iter_mut();
        sums.flat_map(|(by, sums)| sums.drain().map(|(who, n)| (who, *by, n))).collect()
    }

    /// Begins the next file if this one is full; what cannot be begun now is tried again.
    fn rotate(&mut self) {
        if !self.files.is_full() {
            return;
        }
        match self.files.rotate(self.last.number + 1) {
            Ok(notes) => self.notes = notes,
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(%error, "the audit log's file is full and the next cannot begin");
                }
            }
        }
    }

    /// Removes the files of which it is told by now that they go.
    fn clear_away(&mut self) {
        if let Err(error) = self.files.clear_away() {
            tracing::error!(%error, "cannot clear away old files of the audit log");
        }
    }

    /// Whether all that is written is on disk.
    fn sync(&mut self) -> bool {
        let synced = self.files.sync();
        if let Err(error) = &synced {
            tracing::error!(%error, "cannot have the audit log on disk");
        }
        synced.is_ok()
    }

    fn add(&mut self, lines: &mut Vec<u8>, at_ms: u64, entry: &impl Serialize) {
        match members(at_ms, entry) {
            Ok(members) => self.last = append(&self.key, self.last, &members, lines),
            Err(error) => {
                self.counts.lost.fetch_add(1, Relaxed);
                tracing::error!(%error, "an audit entry cannot be encoded");
            }
        }
    }
}

/// The members of an entry's object, with the time before them and without braces.
fn members(at_ms: u64, entry: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut members = Vec::with_capacity(256);
    members.extend_from_slice(b"\"time\":\"");
    members.extend_from_slice(clock::rfc3339(at_ms).as_bytes());
    members.extend_from_slice(b"\",");
    let start = members.len();
    serde_json::to_writer(&mut members, entry)?;
    members.remove(start);
    members.pop();
    Ok(members)
}

/// Lines that wait to be written, at most.
const QUEUE: usize = 65_536;
/// Entries beyond them that somebody waits for.
const RESERVE: usize = 64;
/// Lines of one batch, but for what comes with its last entry.
const BATCH: usize = 4_096;
/// How long entries gather before they are written.
const GATHER: Duration = Duration::from_millis(2);
/// How old what is not on disk yet may be.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Principals that are summed up at once.
const SUMS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use tempfile::{TempDir, tempdir};

    use super::{verify::verify, *};
    use crate::secret::Origin;

    fn settings(dir: &TempDir) -> settings::Audit {
        settings::Audit {
            dir: dir.path().join("audit"),
            key: Origin::File(dir.path().join("key")),
            granted: Granted::Each,
            file_bytes_max: 1 << 20,
            files_max: 3,
        }
    }

    /// Opens a log, has `tell` tell it, and lets it end.
    fn write(settings: &settings::Audit, tell: impl FnOnce(&Audit)) {
        let (audit, log) = Audit::open(settings, Arc::default()).unwrap();
        tell(&audit);
        drop(audit);
        log.run();
    }

    fn revoked(n: u32) -> Event {
        Event::KeyRevoked { key_id: format!("{n:012}"), owner: String::new(), uid: 0 }
    }

    fn access(principal: &str) -> Access {
        Access {
            source: "192.0.2.1".parse().unwrap(),
            request_id: "r".into(),
            method: http::Method::GET,
            path: "/a\"b".into(),
            principal: principal.into(),
            by: "key",
        }
    }

    fn grant(audit: &Audit, principal: &str) {
        Grants::new(audit.clone()).tell(principal, "key", || access(principal));
    }

    fn check(settings: &settings::Audit) -> verify::Verdict {
        verify(&settings.dir, &settings.key).unwrap()
    }

    fn only(settings: &settings::Audit) -> PathBuf {
        files::paths(&settings.dir).unwrap().pop().unwrap()
    }

    fn events(settings: &settings::Audit) -> Vec<serde_json::Value> {
        let paths = files::paths(&settings.dir).unwrap();
        let texts = paths.iter().map(|path| fs::read_to_string(path).unwrap());
        let parse = |line: &str| serde_json::from_str(line).unwrap();
        texts.flat_map(|text| text.lines().map(parse).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_chain_goes_on_after_a_restart() {
        let dir = tempdir().unwrap();
        let settings = settings(&dir);
        write(&settings, |audit| (0..5).for_each(|n| audit.tell(revoked(n))));
        write(&settings, |audit| grant(audit, "k1"));
        let whole = check(&settings).unwrap();
        assert_eq!((whole.files, whole.lines, whole.first, whole.last.number), (1, 7, 1, 7));
        let told = events(&settings);
        assert_eq!(
            (&told[0]["event"], &told[5]["key_id"]),
            (&"file_begun".into(), &"000000000004".into())
        );
        assert_eq!(
            (&told[6]["event"], &told[6]["path"]),
            (&"request_granted".into(), &"/a\"b".into())
        );
    }

    #[test]
    fn a_changed_line_is_named_and_the_log_goes_on_in_a_new_file() {
        let dir = tempdir().unwrap();
        let settings = settings(&dir);
        write(&settings, |audit| (0..5).for_each(|n| audit.tell(revoked(n))));
        let text = fs::read_to_string(only(&settings)).unwrap();
        fs::write(only(&settings), text.replacen("000000000003", "000000000009", 1)).unwrap();
        assert_eq!(check(&settings).unwrap_err().line, 5);
        write(&settings, |audit| audit.tell(revoked(7)));
        assert_eq!(check(&settings).unwrap_err().line, 5, "what follows hides nothing");
        // The last line itself: nothing can be added to what is not genuine.
        let text = fs::read_to_string(only(&settings)).unwrap();
        fs::write(only(&settings), text.replacen("000000000007", "000000000008", 1)).unwrap();
        write(&settings, |audit| audit.tell(revoked(8)));
        let last = fs::read_to_string(only(&settings)).unwrap();
        assert!(last.contains("chain_broken") && last.contains("000000000008"), "{last}");
        assert_eq!(files::paths(&settings.dir).unwrap().len(), 2);
    }

    #[test]
    fn a_torn_line_is_set_aside() {
        let dir = tempdir().unwrap();
        let settings = settings(&dir);
        write(&settings, |audit| (0..3).for_each(|n| audit.tell(revoked(n))));
        let text = fs::read(only(&settings)).unwrap();
        for cut in [1, 20, 100] {
            fs::write(only(&settings), &text[..text.len() - cut]).unwrap();
            let whole = check(&settings).unwrap();
            assert!(whole.torn.is_some() && whole.lines == 3, "{whole:?}");
            write(&settings, |audit| audit.tell(revoked(4)));
            let whole = check(&settings).unwrap();
            assert!(whole.torn.is_none() && whole.lines == 5, "{whole:?}");
            assert!(events(&settings).iter().any(|event| event["event"] == "torn_line"));
        }
        let aside = fs::read_dir(&settings.dir).unwrap().count();
        assert!(aside > 1, "the torn lines are kept");
    }

    #[test]
    fn a_full_file_is_followed_by_the_next_and_old_ones_go() {
        let dir = tempdir().unwrap();
        let settings = settings::Audit { file_bytes_max: 2_000, ..settings(&dir) };
        for round in 0..8 {
            write(&settings, |audit| (0..20).for_each(|n| audit.tell(revoked(round * 20 + n))));
        }
        assert_eq!(files::paths(&settings.dir).unwrap().len(), 3);
        let whole = check(&settings).unwrap();
        assert!(whole.first > 1 && whole.last.number > 160, "{whole:?}");
        assert!(events(&settings).iter().any(|event| event["event"] == "file_removed"));
        let first = files::paths(&settings.dir).unwrap().remove(0);
        assert!(verify(&first, &settings.key).unwrap().is_ok(), "a file alone can be checked");
        fs::remove_file(&files::paths(&settings.dir).unwrap()[1]).unwrap();
        assert_eq!(check(&settings).unwrap_err().line, 1);
    }

    /// The log says of each file that it removes that it does: one that is gone without a word was
    /// taken away by somebody.
    #[test]
    fn an_old_file_that_somebody_took_away_is_missed() {
        for rounds in [1, 8] {
            let dir = tempdir().unwrap();
            let settings = settings::Audit { file_bytes_max: 2_000, ..settings(&dir) };
            for round in 0..rounds {
                write(&settings, |audit| (0..20).for_each(|n| audit.tell(revoked(round * 20 + n))));
            }
            assert_eq!(check(&settings).unwrap().first > 1, rounds == 8);
            while files::paths(&settings.dir).unwrap().len() > 1 {
                fs::remove_file(files::paths(&settings.dir).unwrap().remove(0)).unwrap();
                let broken = check(&settings).unwrap_err();
                assert!(broken.line == 1 && broken.why.contains("are missing"), "{broken:?}");
            }
            let alone = only(&settings);
            assert!(verify(&alone, &settings.key).unwrap().is_ok(), "a file alone can be checked");
        }
    }

    /// Whenever the host goes down, the log has said it before a file is gone.
    #[test]
    fn a_file_goes_when_the_log_has_said_so() {
        let dir = tempdir().unwrap();
        let settings = settings::Audit { file_bytes_max: 2_000, files_max: 2, ..settings(&dir) };
        let (audit, mut log) = Audit::open(&settings, Arc::default()).unwrap();
        let mut lines = Vec::new();
        for round in 0..9 {
            (0..20).for_each(|n| audit.tell(revoked(round * 20 + n)));
            log.batch(None, false, &mut lines);
            check(&settings).unwrap();
        }
        assert_eq!(files::paths(&settings.dir).unwrap().len(), 3, "the last is not said yet");
        drop(audit);
        log.run();
        assert_eq!(files::paths(&settings.dir).unwrap().len(), 2);
        check(&settings).unwrap();
    }

    #[test]
    fn what_is_lost_is_said_in_the_chain() {
        let dir = tempdir().unwrap();
        let settings = settings::Audit { file_bytes_max: 1 << 30, ..settings(&dir) };
        let counts = Arc::<Counts>::default();
        let (audit, log) = Audit::open(&settings, Arc::clone(&counts)).unwrap();
        (0..QUEUE as u32 + 7).for_each(|n| audit.tell(revoked(n)));
        grant(&audit, "k1");
        assert_eq!(counts.lost.load(Relaxed), 8);
        drop(audit);
        log.run();
        check(&settings).unwrap();
        let told = events(&settings);
        let lost: Vec<_> = told.iter().filter(|event| event["event"] == "lost").collect();
        assert_eq!((lost.len(), &lost[0]["entries"]), (1, &8.into()));
        assert_eq!(counts.waiting.load(Relaxed), 0);
    }

    #[test]
    fn a_line_that_somebody_waits_for_is_kept_whatever_a_full_queue_loses() {
        let dir = tempdir().unwrap();
        let settings = settings::Audit { file_bytes_max: 1 << 30, ..settings(&dir) };
        let counts = Arc::<Counts>::default();
        let (audit, log) = Audit::open(&settings, Arc::clone(&counts)).unwrap();
        (0..QUEUE as u32 + 7).for_each(|n| audit.tell(revoked(n)));
        let awaited = || audit.tell_kept(Event::KeysImported { keys: 3, uid: 7 });
        let kept = awaited();
        audit.tell(revoked(0));
        assert_eq!(counts.lost.load(Relaxed), 8);
        let writer = thread::spawn(move || log.run());
        assert!(kept.within(Duration::from_secs(60)));
        let told = events(&settings);
        assert_eq!(told.iter().filter(|line| line["event"] == "keys_imported").count(), 1);
        assert!(audit.flush(Duration::from_secs(60)));
        drop(audit);
        writer.join().unwrap();
        check(&settings).unwrap();
        assert_eq!(counts.waiting.load(Relaxed), 0);
    }

    #[test]
    fn no_more_lines_are_waited_for_than_there_is_room_for() {
        let dir = tempdir().unwrap();
        let counts = Arc::<Counts>::default();
        let (audit, log) = Audit::open(&settings(&dir), Arc::clone(&counts)).unwrap();
        (0..QUEUE as u32).for_each(|n| audit.tell(revoked(n)));
        let mut kept: Vec<_> = (0..=RESERVE as u32).map(|n| audit.tell_kept(revoked(n))).collect();
        assert_eq!(counts.lost.load(Relaxed), 1);
        assert!(!kept.pop().unwrap().within(Duration::from_secs(60)));
        // Nobody writes them.
        drop(log);
        assert!(kept.into_iter().all(|kept| !kept.within(Duration::from_secs(60))));
        assert!(!audit.tell_kept(revoked(0)).within(Duration::from_secs(60)));
    }

    #[test]
    fn requests_can_be_summed_up() {
        let dir = tempdir().unwrap();
        let settings = settings::Audit { granted: Granted::Summed, ..settings(&dir) };
        write(&settings, |audit| {
            let grants = Grants::new(audit.clone());
            for n in 0..300 {
                grants.tell(if n % 3 == 0 { "a" } else { "b" }, "key", || unreachable!("a sum"));
            }
        });
        let told = events(&settings);
        let sum = |who: &str| {
            let of = told.iter().filter(|event| event["principal"] == who);
            of.filter_map(|event| event["requests"].as_u64()).sum::<u64>()
        };
        assert_eq!((sum("a"), sum("b")), (100, 200));
        let none = settings::Audit { granted: Granted::None, ..settings };
        let before = check(&none).unwrap().lines;
        write(&none, |audit| {
            Grants::new(audit.clone()).tell("a", "key", || unreachable!("nobody asks"));
        });
        assert_eq!(check(&none).unwrap().lines, before);
    }

    #[test]
    fn another_key_proves_nothing() {
        let dir = tempdir().unwrap();
        let settings = settings(&dir);
        write(&settings, |audit| audit.tell(revoked(1)));
        fs::remove_file(dir.path().join("key")).unwrap();
        assert!(verify(&settings.dir, &settings.key).is_err(), "a check makes no key");
        write(&settings, |audit| audit.tell(revoked(2)));
        assert_eq!(check(&settings).unwrap_err().line, 1);
    }
}
