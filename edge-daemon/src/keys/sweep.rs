//! What is due now and then: telling of keys that end, saving when keys were used, counting them.
//!
//! The sweep goes around the ring a part at a time: ten thousand keys a second, or a minute for
//! all of them, whichever is more.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use edge_common::Reason;
use edge_identity::key::{BUCKETS, Key, KeyId, Mark, PepperId};

use super::Registry;
use crate::{clock, decisions::Decision, events::Event, metrics::keys::Tally};

/// Where the sweep is, and what it has seen of this round.
#[derive(Default)]
pub(super) struct Sweep {
    next: usize,
    seen: Tally,
    /// Whether a round was done: keys that had ended before the start are not news.
    is_settled: bool,
    /// When uses were last saved; while a round saves them, all of it does.
    saved: Option<Instant>,
    is_saving: bool,
}

impl Registry {
    pub(super) fn sweep(&mut self) {
        let (settings, now_ms) = (self.settings(), clock::unix_ms());
        let pepper = self.edge.peppers.load().current.id();
        let most = KEYS_A_LOOK.max(self.edge.keys.len() / ROUND_LOOKS);
        let (mut looked, mut uses) = (0, Vec::new());
        while looked < most {
            if self.sweep.next == 0 {
                let is_due = self.sweep.saved.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY);
                self.sweep.is_saving = is_due;
            }
            let bucket = self.edge.keys.bucket(self.sweep.next);
            looked += bucket.len();
            for key in &bucket {
                self.look_at(key, now_ms, settings.warn_before, pepper);
                if self.sweep.is_saving {
                    uses.extend(key.take_unsaved().map(|used_s| (*key.id(), used_s)));
                }
            }
            self.sweep.next += 1;
            if self.sweep.next == BUCKETS {
                self.end_round();
                break;
            }
        }
        self.save_uses(&uses);
    }

    fn end_round(&mut self) {
        self.edge.metrics.keys.publish(&std::mem::take(&mut self.sweep.seen));
        self.sweep.next = 0;
        self.sweep.is_settled = true;
        if self.sweep.is_saving {
            self.sweep.saved = Some(Instant::now());
        }
    }

    fn look_at(&mut self, key: &Key, now_ms: u64, warn_before: Duration, pepper: PepperId) {
        let seen = &mut self.sweep.seen;
        seen.exposed += u64::from(key.has(Mark::Exposed));
        match key.check(now_ms, false) {
            Ok(()) => seen.active += 1,
            Err(Reason::CredentialExpired) => {
                if key.mark(Mark::Ended) && self.sweep.is_settled {
                    self.edge.events.tell(Event::KeyExpired { key_id: key.id().to_string() });
                    self.edge.decisions.tell(Decision::key(key, "has ended", None));
                }
                return;
            }
            Err(_) => return,
        }
        seen.former_pepper += u64::from(key.pepper() != pepper);
        let warn_ms = u64::try_from(warn_before.as_millis()).unwrap_or(u64::MAX);
        let ends_ms = key.expires_ms().filter(|end| end.saturating_sub(now_ms) <= warn_ms);
        // Whoever has its successor needs no warning.
        let Some(ends_ms) = ends_ms.filter(|_| !key.has(Mark::Replaced)) else { return };
        seen.expiring += 1;
        if key.mark(Mark::Warned) {
            self.edge.events.tell(Event::KeyExpiring {
                key_id: key.id().to_string(),
                name: key.name().to_owned(),
                owner: key.owner().to_owned(),
                until: clock::rfc3339(ends_ms),
            });
            self.edge.decisions.tell(Decision::key(key, "will end", Some(ends_ms)));
        }
    }

    /// Saves when keys were used, all of them.
    pub(super) fn save_all_uses(&self) {
        let keys = (0..BUCKETS).flat_map(|number| self.edge.keys.bucket(number));
        let uses: Vec<_> = keys.filter_map(|key| Some((*key.id(), key.take_unsaved()?))).collect();
        self.save_uses(&uses);
    }

    fn save_uses(&self, uses: &[(KeyId, u32)]) {
        if uses.is_empty() {
            return;
        }
        if let Err(error) = self.store.put_uses(uses) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, keys = uses.len(), "cannot save when keys were used");
        }
    }

    /// Tries again to keep what holds and is not on disk, up to the first that fails.
    pub(super) fn save_unsaved(&mut self) {
        let now_ms = clock::unix_ms();
        while let Some(id) = self.unsaved.last().copied() {
            let revoke = |record: &mut edge_identity::key::KeyRecord| {
                record.revoked_ms.get_or_insert(now_ms);
            };
            // One that is gone needs none.
            let is_there = self.edge.keys.by_id(&id).is_some();
            if let (true, Err(error)) = (is_there, self.change(&id, revoke)) {
                let error = format!("{error:#}");
                tracing::error!(key = %id, error, "a revocation holds and cannot be kept");
                break;
            }
            self.unsaved.pop();
        }
        while let Some((id, leak, at_ms)) = self.unsaved_leaks.last().copied() {
            if self.edge.keys.by_id(&id).is_some() && self.note_leak(&id, leak, at_ms).is_err() {
                break;
            }
            self.unsaved_leaks.pop();
        }
        self.count_unsaved();
    }

    pub(super) fn count_unsaved(&self) {
        let unsaved = self.unsaved.len() as u64;
        self.edge.metrics.keys.unsaved_revocations.store(unsaved, Relaxed);
    }
}

/// Keys that one look sees at least; and in how many looks a round is done.
const KEYS_A_LOOK: usize = 10_000;
const ROUND_LOOKS: usize = 60;

/// How often it is saved when keys were used.
const SAVE_EVERY: Duration = Duration::from_secs(60);
