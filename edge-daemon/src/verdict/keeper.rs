//! Saving bans, and denials that could not be saved at once, on a thread of its own: a slow disk holds up neither verdicts nor the kernel.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, Instant},
};

use edge_identity::jwt::denylist::{Denial, Target};
use edge_policy::verdict::Culprit;

use crate::store::{BanRecord, Fault, Store};

/// The writer's end: the bans that are in the kernel and not yet on disk, one for each culprit, and
/// the denials of tokens that are in force and not on disk.
pub(super) struct Unsaved {
    bans: BTreeMap<Culprit, BanRecord>,
    denials: BTreeMap<(String, Target), Denial>,
    /// Denials that the keeper has.
    given: usize,
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
    Save(Batch),
    /// Removes what ended before this calendar time, bans only so long after it.
    Purge(u64, Duration),
}

#[derive(Default)]
struct Batch {
    bans: Vec<BanRecord>,
    denials: Vec<Denial>,
}

/// What could not be saved, and why; nothing for a purge.
type Outcome = Result<(), (Batch, Fault)>;

impl Keeper {
    /// Does jobs until the writer is gone.
    pub fn run(self) {
        for job in &self.jobs {
            let outcome = match job {
                Job::Save(batch) => self.save(&batch).map_err(|fault| (batch, fault)),
                Job::Purge(now_ms, forget_after) => {
                    let purged = self.store.purge(now_ms, forget_after);
                    purged.map(|_| ()).map_err(|fault| (Batch::default(), fault))
                }
            };
            if self.results.send(outcome).is_err() {
                return;
            }
        }
    }

    fn save(&self, Batch { bans, denials }: &Batch) -> Result<(), Fault> {
        let denied = if denials.is_empty() { Ok(()) } else { self.store.put_denials(denials) };
        let banned = if bans.is_empty() { Ok(()) } else { self.store.put_bans(bans) };
        denied.and(banned)
    }
}

impl Unsaved {
    pub(super) fn new(store: Arc<Store>) -> (Self, Keeper) {
        let ((jobs, jobs_end), (results_end, results)) = (sync_channel(1), sync_channel(1));
        let unsaved = Self {
            bans: BTreeMap::new(),
            denials: BTreeMap::new(),
            given: 0,
            jobs,
            results,
            is_busy: false,
            failures: 0,
            next_try: Instant::now(),
        };
        (unsaved, Keeper { store, jobs: jobs_end, results: results_end })
    }

    /// Notes a ban that is to be saved, in place of an earlier one of the same culprit.
    pub(super) fn put(&mut self, record: BanRecord) {
        self.bans.insert(record.culprit.clone(), record);
    }

    /// Notes a denial that is in force and could not be saved.
    pub(super) fn put_denial(&mut self, denial: Denial) {
        self.denials.insert((denial.issuer.clone(), denial.target.clone()), denial);
    }

    /// Drops a denial, and gives it back if it was to be saved: it is not written from now on.
    pub(super) fn forget_denial(&mut self, key: &(String, Target)) -> Option<Denial> {
        if self.given > 0 {
            self.wait();
        }
        self.denials.remove(key)
    }

    /// How many denials are in force and maybe not on disk.
    pub(super) fn denials(&self) -> usize {
        self.denials.len() + self.given
    }

    /// Hands what waits to the keeper, if it has no job and the last failure is long enough ago.
    pub(super) fn save(&mut self, now: Instant) {
        self.collect();
        let is_due = !self.bans.is_empty() || !self.denials.is_empty();
        if !self.is_busy && is_due && now >= self.next_try {
            let bans = std::mem::take(&mut self.bans).into_values().collect();
            let denials: Vec<_> = std::mem::take(&mut self.denials).into_values().collect();
            self.given = denials.len();
            self.give(Job::Save(Batch { bans, denials }));
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
        self.given = 0;
        let Err((batch, error)) = outcome else {
            if std::mem::take(&mut self.failures) > 0 {
                tracing::info!("the store works again");
            }
            return;
        };
        // Once a series: a full disk would fill the log next.
        if self.failures == 0 {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "the store fails; until this passes bans hold to a reboot, denials to the end"
            );
        }
        self.next_try = Instant::now() + pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        // A later one about the same stands.
        for record in batch.bans {
            self.bans.entry(record.culprit.clone()).or_insert(record);
        }
        for denial in batch.denials {
            let key = (denial.issuer.clone(), denial.target.clone());
            self.denials.entry(key).or_insert(denial);
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
            milder: Vec::new(),
        }
    }

    fn unsaved(dir: &TempDir) -> (Unsaved, Keeper) {
        Unsaved::new(Arc::new(Store::open(dir.path(), 7).unwrap().0))
    }

    /// The test is the keeper: takes a job, and fails it.
    fn fail(keeper: &Keeper) -> usize {
        let Job::Save(batch) = keeper.jobs.try_recv().unwrap() else { panic!("not a save") };
        let (count, fault) = (batch.bans.len(), io::Error::from(io::ErrorKind::StorageFull));
        keeper.results.send(Err((batch, Fault::File("disk".into(), fault)))).unwrap();
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
