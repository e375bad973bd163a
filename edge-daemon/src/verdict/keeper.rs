//! Saving bans, on a thread of its own: a slow disk holds up neither verdicts nor the kernel.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, Instant},
};

use edge_policy::verdict::Culprit;

use crate::store::{BanRecord, Fault, Store};

/// The writer's end: the bans that are in the kernel and not yet on disk, one for each culprit.
pub(super) struct Unsaved {
    bans: BTreeMap<Culprit, BanRecord>,
    jobs: SyncSender<Job>,
    results: Receiver<Outcome>,
    /// Whether the keeper is at work; one job at a time.
    is_busy: bool,
    /// Saves that failed since the last that did not.
    failures: u32,
    next_try: Instant,
}

/// The end that waits for the disk.
pub struct Keeper {
    store: Arc<Store>,
    jobs: Receiver<Job>,
    results: SyncSender<Outcome>,
}

enum Job {
    Save(Vec<BanRecord>),
    /// Removes what ended before this calendar time, bans only so long after it.
    Purge(u64, Duration),
}

/// The bans of a job that could not be saved, and why; none for a purge.
type Outcome = Result<(), (Vec<BanRecord>, Fault)>;

impl Keeper {
    /// Does jobs until the writer is gone.
    pub fn run(self) {
        for job in self.jobs {
            let outcome = match job {
                Job::Save(bans) => self.store.put_bans(&bans).map_err(|fault| (bans, fault)),
                Job::Purge(now_ms, forget_after) => {
                    let purged = self.store.purge(now_ms, forget_after);
                    purged.map(|_| ()).map_err(|fault| (Vec::new(), fault))
                }
            };
            if self.results.send(outcome).is_err() {
                return;
            }
        }
    }
}

impl Unsaved {
    pub(super) fn new(store: Arc<Store>) -> (Self, Keeper) {
        let ((jobs, jobs_end), (results_end, results)) = (sync_channel(1), sync_channel(1));
        let (bans, next_try) = (BTreeMap::new(), Instant::now());
        let unsaved = Self { bans, jobs, results, is_busy: false, failures: 0, next_try };
        (unsaved, Keeper { store, jobs: jobs_end, results: results_end })
    }

    /// Notes a ban that is to be saved, in place of an earlier one of the same culprit.
    pub(super) fn put(&mut self, record: BanRecord) {
        self.bans.insert(record.culprit.clone(), record);
    }

    /// Hands what waits to the keeper, if it has no job and the last failure is long enough ago.
    pub(super) fn save(&mut self, now: Instant) {
        self.collect();
        if !self.is_busy && !self.bans.is_empty() && now >= self.next_try {
            let bans = std::mem::take(&mut self.bans).into_values().collect();
            self.give(Job::Save(bans));
        }
    }

    /// Has the store cleared of what is long over; whether the keeper was free for it.
    pub(super) fn purge(&mut self, now_ms: u64, forget_after: Duration) -> bool {
        self.collect();
        let is_free = !self.is_busy;
        if is_free {
            self.give(Job::Purge(now_ms, forget_after));
        }
        is_free
    }

    /// Waits for the keeper's job and drops a culprit's ban: none of it is written from now on.
    pub(super) fn forget(&mut self, culprit: &Culprit) {
        self.wait();
        self.bans.remove(culprit);
    }

    /// Waits until everything is saved, or until it has failed once more.
    pub(super) fn finish(&mut self) {
        self.wait();
        self.next_try = Instant::now();
        self.save(self.next_try);
        self.wait();
    }

    fn give(&mut self, job: Job) {
        self.is_busy = self.jobs.try_send(job).is_ok();
        if !self.is_busy {
            tracing::error!("the thread that saves bans is gone; they hold to a reboot");
        }
    }

    fn wait(&mut self) {
        if self.is_busy {
            let outcome = self.results.recv();
            self.is_busy = false;
            outcome.into_iter().for_each(|outcome| self.settle(outcome));
        }
    }

    fn collect(&mut self) {
        match self.results.try_recv() {
            Ok(outcome) => {
                self.is_busy = false;
                self.settle(outcome);
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        let Err((bans, error)) = outcome else {
            if std::mem::take(&mut self.failures) > 0 {
                tracing::info!("the store works again");
            }
            return;
        };
        // Once a series: a full disk would fill the log next.
        if self.failures == 0 {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the store fails; until this passes bans hold to a reboot");
        }
        self.next_try = Instant::now() + pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        for record in bans {
            // A later ban of the same client stands.
            self.bans.entry(record.culprit.clone()).or_insert(record);
        }
    }
}

/// How long to wait after a failure that followed so many others: a second, doubling to a minute.
fn pause(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(RETRY_MAX)
}

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::io;

    use edge_policy::verdict::{Origin, Step};
    use tempfile::{TempDir, tempdir};

    use super::*;

    fn ban(source: &str, strikes: u32) -> BanRecord {
        BanRecord {
            culprit: source.parse().unwrap(),
            step: Step::Ban,
            since_ms: 1,
            until_ms: u64::MAX,
            strikes,
            reason: "source_rate".into(),
            scenario: "flood".into(),
            origin: Origin::Scenario,
            spared: None,
            evidence: Vec::new(),
        }
    }

    fn unsaved(dir: &TempDir) -> (Unsaved, Keeper) {
        Unsaved::new(Arc::new(Store::open(dir.path(), 7).unwrap().0))
    }

    /// The test is the keeper: takes a job, and fails it.
    fn fail(keeper: &Keeper) -> usize {
        let Job::Save(bans) = keeper.jobs.try_recv().unwrap() else { panic!("not a save") };
        let (count, fault) = (bans.len(), io::Error::from(io::ErrorKind::StorageFull));
        keeper.results.send(Err((bans, Fault::File("disk".into(), fault)))).unwrap();
        count
    }

    #[test]
    fn a_failed_save_is_tried_again_later_and_the_later_ban_stands() {
        let dir = tempdir().unwrap();
        let (mut unsaved, keeper) = unsaved(&dir);
        let start = Instant::now();
        unsaved.put(ban("192.0.2.1", 1));
        unsaved.put(ban("192.0.2.2", 1));
        unsaved.save(start);
        unsaved.put(ban("192.0.2.1", 2));
        unsaved.save(start);
        assert_eq!(fail(&keeper), 2);
        unsaved.save(start);
        assert!(keeper.jobs.try_recv().is_err(), "tried again at once");
        assert_eq!(unsaved.bans.values().map(|ban| ban.strikes).collect::<Vec<_>>(), [2, 1]);
        unsaved.save(Instant::now() + RETRY_FIRST);
        assert_eq!(fail(&keeper), 2);
        unsaved.forget(&"192.0.2.1".parse().unwrap());
        assert_eq!(unsaved.bans.len(), 1);
    }

    #[test]
    fn what_waits_is_saved_before_the_end() {
        let dir = tempdir().unwrap();
        let (mut unsaved, keeper) = unsaved(&dir);
        let store = Arc::clone(&keeper.store);
        let keeper = std::thread::spawn(move || keeper.run());
        unsaved.put(ban("192.0.2.1", 1));
        unsaved.save(Instant::now());
        unsaved.put(ban("192.0.2.2", 1));
        unsaved.finish();
        assert!(unsaved.bans.is_empty());
        assert_eq!(store.load_all().unwrap().bans.len(), 2);
        drop(unsaved);
        keeper.join().unwrap();
    }

    #[test]
    fn pauses_double_to_a_bound() {
        let pauses = [0, 1, 2, 5, 6, 40].map(|failures| pause(failures).as_secs());
        assert_eq!(pauses, [1, 2, 4, 32, 60, 60]);
    }
}
