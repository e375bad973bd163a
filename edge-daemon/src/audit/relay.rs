//! The audit log across a handover: it pauses while another process may write it, and goes on where
//! that left off, or passes its last entries on to it.

use std::{
    io,
    sync::{
        Arc, PoisonError,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    Audit, AuditLog, Entry, Note, SYNC_EVERY,
    files::{Files, Opened},
    grants::AccessLine,
};
use crate::{clock, handover::Successor};

/// How the log goes on after a pause, in which another process may have written it.
pub enum Resumption {
    /// Where the file ends now.
    Reopen,
    /// The other process writes it: entries go there.
    Relay(Arc<Successor>),
}

/// What was asked of the log between entries.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) flushes: Vec<SyncSender<bool>>,
    pub(super) pause: Option<Receiver<Resumption>>,
    /// Whether the entries before are written.
    pub(super) is_kept: bool,
}

impl Audit {
    /// Writes what a former daemon tells.
    pub(crate) fn relay(&self, at_ms: u64, entry: serde_json::Value) {
        self.give(Entry::Relayed(at_ms, Box::new(entry)));
    }

    /// Has the log written to the disk and then left alone; entries wait, as many as there is room for.
    ///
    /// # Errors
    /// If it is not so in time.
    pub fn pause(&self) -> anyhow::Result<()> {
        let ((done, reached), (resume, resumed)) = (sync_channel(1), channel());
        self.queue.send(Entry::Pause(done, resumed)).ok().context("nobody writes it")?;
        // From here on, to forget this end is to go on.
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = Some(resume);
        reached.recv_timeout(PAUSED_WITHIN).map(drop).context("it is still being written")
    }

    /// Goes on after a pause.
    pub fn resume(&self, how: Resumption) {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(paused) = paused {
            // A log that has ended has nothing to go on with.
            let _ = paused.send(how);
        }
    }
}

impl AuditLog {
    /// Goes on where the file ends now.
    pub(super) fn reopen(&mut self) {
        match Files::open(&self.settings, &self.key) {
            Ok(Opened { files, last, notes }) => {
                (self.files, self.last, self.notes) = (files, last, notes);
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the audit log cannot be opened again");
            }
        }
    }

    /// Tells the successor until nobody can tell of anything any more.
    pub(super) fn relay(mut self, successor: &Successor) {
        let mut next_sums = Instant::now() + SYNC_EVERY;
        loop {
            match self.entries.recv_timeout(SYNC_EVERY) {
                Ok(entry) => {
                    self.counts.waiting.fetch_sub(entry.lines(), Relaxed);
                    let passed = self.pass_on(entry, successor);
                    self.note(passed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return self.pass_sums_on(successor);
                }
            }
            if Instant::now() >= next_sums {
                self.pass_sums_on(successor);
                next_sums = Instant::now() + SYNC_EVERY;
            }
        }
    }

    fn pass_on(&mut self, entry: Entry, successor: &Successor) -> io::Result<()> {
        match entry {
            Entry::Event(at_ms, event) => successor.note(at_ms, &event),
            Entry::Awaited(at_ms, event, done) => {
                let passed = successor.note(at_ms, &event);
                let _ = done.try_send(passed.is_ok());
                passed
            }
            Entry::Granted(each) => each
                .iter()
                .try_for_each(|(at_ms, access)| successor.note(*at_ms, &AccessLine::of(access))),
            Entry::Summed(by, sums) => {
                self.sum(by, sums);
                Ok(())
            }
            Entry::Relayed(at_ms, entry) => successor.note(at_ms, &entry),
            Entry::Flush(done) | Entry::Pause(done, _) => {
                self.pass_sums_on(successor);
                // Who asked may have stopped waiting.
                let _ = done.try_send(!self.is_failing);
                Ok(())
            }
        }
    }

    fn pass_sums_on(&mut self, successor: &Successor) {
        for (principal, by, requests) in self.take_sums() {
            let passed =
                successor.note(clock::unix_ms(), &Note::Granted { principal, by, requests });
            self.note(passed);
        }
    }

    fn note(&mut self, passed: io::Result<()>) {
        if let Err(error) = passed {
            self.counts.lost.fetch_add(1, Relaxed);
            if !std::mem::replace(&mut self.is_failing, true) {
                tracing::error!(%error, "entries of the audit log do not reach the successor");
            }
        }
    }
}

/// How long a pause may take to come about.
const PAUSED_WITHIN: Duration = Duration::from_secs(5);
