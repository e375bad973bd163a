//! Whether what was decided is what the kernel enforces: compared again and again, on a thread of its
//! own, so that no verdict waits for it. What another hand has changed goes back to how it was decided.
//!
//! The warden only looks, and reports what differs; the writer, who alone knows what has changed
//! meanwhile, looks at each once more and puts it right.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use edge_common::Source;
use edge_policy::list::Class;
use ipnet::IpNet;

use super::{Order, Writer, tell::Lasting};
use crate::{
    clock,
    kernel::{Health, KernelError, Tables},
    metrics::verdicts::Healed,
    request::Edge,
};

/// The comparing thread.
pub struct Warden {
    tables: Tables,
    edge: Arc<Edge>,
    /// How the interfaces are: what the kernel holds takes effect where the program is attached.
    health: Arc<Health>,
}

/// What a look found; each is to be looked at once more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Clients whose bans are missing, are another's, or end at another time.
    clients: Vec<Source>,
    /// Whether the lists in force are not those that were compiled.
    lists: bool,
    /// Networks of which the overlay of the lists says something else.
    overlaid: Vec<IpNet>,
    /// Entries of the lists that end at another time.
    ends: Vec<(Class, IpNet)>,
    /// Whether the settings were another hand's; they are put right already.
    settings: bool,
    /// Interfaces on which the filter was put back.
    links: u64,
    /// Whether no other part of the same look comes after it.
    is_last: bool,
}

impl Warden {
    /// Looks at these tables.
    #[must_use]
    pub fn new(tables: Tables, edge: Arc<Edge>, health: Arc<Health>) -> Self {
        Self { tables, edge, health }
    }

    /// Compares until it is told to stop.
    pub fn run(mut self, stop: &Receiver<()>) {
        let (edge, mut pause) = (Arc::clone(&self.edge), EVERY);
        while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let begun = Instant::now();
            // The writer has its own turn, for which what is found must not wait.
            let Some(turn) = edge.reign.turn() else { return };
            let found = self.look();
            drop(turn);
            match found {
                Ok(found) => {
                    let mut found: Vec<_> =
                        found.into_iter().filter(|found| *found != Suspects::default()).collect();
                    if let Some(last) = found.last_mut() {
                        last.is_last = true;
                    }
                    for suspects in found {
                        let _ = self.edge.orders.send(Order::Heal(Box::new(suspects)));
                    }
                }
                Err(error) => tracing::error!(%error, "what the kernel enforces cannot be read"),
            }
            // A full table takes a tenth of a second; most of the time is the host's.
            pause = EVERY.max(begun.elapsed() * 4);
        }
    }

    /// What differs, in parts: between two of them the writer takes what else waits.
    fn look(&mut self) -> Result<Vec<Suspects>, KernelError> {
        // Decided is read first: what is decided in between is no suspect, what ends is one too many.
        let wanted: HashMap<_, _> = self.edge.penalties.bans().into_iter().collect();
        let mut found: HashMap<_, _> = self.tables.bans.entries()?.into_iter().collect();
        let now_ns = clock::boot_ns();
        let mut missing = Vec::new();
        let (mut held, mut enforced) = (0_u64, 0_u64);
        for (client, until_ns) in &wanted {
            let is_there = found.remove(client).is_some_and(|ban| ban.until_ns == *until_ns);
            if *until_ns > now_ns {
                held += 1;
                enforced += u64::from(is_there);
            }
            if !is_there {
                missing.push(*client);
            }
        }
        // Whoever is nobody's makes room for those who are missing.
        let clients: Vec<_> = found.into_keys().chain(missing).collect();
        let metrics = &self.edge.metrics.verdicts;
        metrics.healed(Healed::Filter, self.tables.bans.mend_filter());
        let lists = self.tables.lists.is_foreign();
        let whole = u64::from(!lists && !self.health.is_any_bare());
        let ratio = (enforced * MILLION).checked_div(held).unwrap_or(MILLION) * whole;
        metrics.enforced_ppm.store(ratio, Relaxed);
        let settings = self.tables.mend_settings()?;
        metrics.healed(Healed::Settings, u64::from(settings));
        let links = self.health.mended.swap(0, Relaxed);
        metrics.healed(Healed::Link, links);
        let mut overlaid = self.tables.lists.doubted()?;
        overlaid.truncate(SUSPECTS_MAX);
        let ends = self.tables.lists.doubted_ends(now_ns, SUSPECTS_MAX);
        let part = |part: &[Source]| Suspects { clients: part.to_vec(), ..Suspects::default() };
        let others = Suspects { lists, overlaid, ends, settings, links, ..Suspects::default() };
        Ok(clients.chunks(SUSPECTS_MAX).map(part).chain([others]).collect())
    }
}

impl Writer {
    /// Looks once more at what the warden found, and puts right what differs. One alarm is for a whole
    /// look. What fails once fails for many: the next look tries them again, in another order.
    pub(super) fn heal(&mut self, suspects: &Suspects) {
        let mut bans = 0;
        for client in &suspects.clients {
            let wanted = self
                .bans
                .get(client)
                .map(|held| super::bans::in_kernel(&held.record, held.until_ns));
            match self.tables.bans.mend(*client, wanted) {
                Ok(changed) => bans += u64::from(changed),
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(%client, error, "a ban that another hand changed stays so");
                    self.alarm_of(&Lasting::Failing(error));
                    break;
                }
            }
        }
        self.mended += bans;
        let metrics = &self.edge.metrics.verdicts;
        metrics.healed(Healed::Ban, bans);
        metrics.healed(Healed::List, u64::from(suspects.lists));
        if suspects.lists {
            self.folding.note(true, Instant::now());
            self.folding.look(&self.tables.lists, Instant::now());
        }
        let overlaid = self.tables.lists.mend_overlay(&suspects.overlaid);
        let overlaid = overlaid.unwrap_or_else(|error| {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, "changes of the lists that another hand changed stay so");
            self.alarm_of(&Lasting::Failing(error));
            0
        });
        let ends = self.tables.lists.mend_ends(&suspects.ends, clock::boot_ns());
        let metrics = &self.edge.metrics.verdicts;
        metrics.healed(Healed::Overlay, overlaid);
        metrics.healed(Healed::End, ends);
        if !suspects.is_last {
            return;
        }
        let bans = std::mem::take(&mut self.mended);
        let whole = |is: bool, what: &str| is.then(|| what.to_owned());
        let count = |n: u64, what: &str| (n > 0).then(|| format!("{n} {what}"));
        let changed: Vec<_> = [
            count(bans, "bans"),
            whole(suspects.lists, "the lists"),
            count(overlaid, "networks of the lists"),
            count(ends, "ends of entries of the lists"),
            whole(suspects.settings, "the settings"),
            count(suspects.links, "links of the filter"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !changed.is_empty() {
            let changed = changed.join(" and ");
            self.alarm(format!("another hand changed {changed} in the kernel; that is put right"));
        }
    }
}

/// How often at the most; a foreign change is found and healed within two seconds.
const EVERY: Duration = Duration::from_millis(500);
/// Of one part, or of the lists in one look: the next finds the others.
const SUSPECTS_MAX: usize = 8_192;
const MILLION: u64 = 1_000_000;
