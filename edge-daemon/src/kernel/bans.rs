//! The clients that are banned, and the filter that spares all others the look-up.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{
        AtomicU64,
        Ordering::{Relaxed, Release},
    },
};

use aya::{
    Ebpf,
    maps::{HashMap, IterableMap as _, MapData},
};
use edge_common::{
    Source,
    map::{self, BAN_BITS, Ban},
};

use super::{
    KernelError,
    mapped::Mapped,
    maps::{absent, again, table_error, take},
};

/// The clients that are dropped for abuse.
pub struct Bans {
    table: HashMap<MapData, Source, Ban>,
    shared: Arc<Shared>,
}

/// What all handles have in common.
struct Shared {
    /// Kept here because the kernel does not tell.
    used: AtomicU64,
    filter: Mapped<1>,
    clients: Mutex<Clients>,
}

/// Who has which bit of the filter.
struct Clients {
    seed: u64,
    /// How many banned clients have each bit.
    counts: Vec<u32>,
}

impl Bans {
    /// Takes the tables; [`Self::screen`] is to follow.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        let table: HashMap<_, _, _> = take(programs, map::BANS)?;
        let clients = Clients { seed: 0, counts: vec![0; BAN_BITS as usize] };
        let shared = Shared {
            used: AtomicU64::new(0),
            filter: Mapped::take(programs, map::BAN_FILTER)?,
            clients: Mutex::new(clients),
        };
        Ok(Self { table, shared: Arc::new(shared) })
    }

    pub(super) fn duplicate(&self) -> Result<Self, KernelError> {
        let table = again(map::BANS, self.table.map())?;
        Ok(Self { table, shared: Arc::clone(&self.shared) })
    }

    /// Sets the filter up for the bans that are there, and for this seed of the clients' hashes. A
    /// running program that goes by it never misses a ban meanwhile.
    pub(super) fn screen(&self, seed: u64) -> Result<(), KernelError> {
        let banned: Vec<_> = self.entries()?.into_iter().map(|(client, _)| client).collect();
        self.shared.used.store(banned.len() as u64, Relaxed);
        self.shared.set_up(seed, &banned);
        Ok(())
    }

    /// Bans a client, in the place of its former ban if it has one.
    ///
    /// # Errors
    /// [`KernelError::Full`] at [`map::BANS_MAX`] bans.
    pub fn ban(&mut self, client: Source, ban: Ban) -> Result<(), KernelError> {
        let is_new = self.lookup(client)?.is_none();
        if is_new {
            self.shared.admit(client);
        }
        let inserted = self.table.insert(client, ban, 0).map_err(table_error(map::BANS));
        match inserted {
            Ok(()) => self.shared.used.fetch_add(u64::from(is_new), Relaxed),
            Err(error) => {
                if is_new {
                    self.shared.dismiss(client);
                }
                return Err(error);
            }
        };
        Ok(())
    }

    /// Lifts a client's ban; whether it had one.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn unban(&mut self, client: Source) -> Result<bool, KernelError> {
        let removed = absent(self.table.remove(&client)).map_err(table_error(map::BANS))?.is_some();
        if removed {
            self.shared.used.fetch_sub(1, Relaxed);
            self.shared.dismiss(client);
        }
        Ok(removed)
    }

    /// A client's ban, also one that has ended and not been removed yet.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn lookup(&self, client: Source) -> Result<Option<Ban>, KernelError> {
        absent(self.table.get(&client, 0)).map_err(table_error(map::BANS))
    }

    /// Every ban, those included that have ended and not been removed yet.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn entries(&self) -> Result<Vec<(Source, Ban)>, KernelError> {
        self.table.iter().map(|item| item.map_err(table_error(map::BANS))).collect()
    }

    /// Makes a client's ban what it was decided to be, where another hand has changed it; whether it had
    /// to. What the filter and the counts know of it is right already.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn mend(&mut self, client: Source, wanted: Option<Ban>) -> Result<bool, KernelError> {
        let found = self.lookup(client)?;
        let is_right = |found: &Ban, wanted: &Ban| {
            (found.until_ns, found.reason, found.strikes)
                == (wanted.until_ns, wanted.reason, wanted.strikes)
        };
        let written = match (found, wanted) {
            (None, None) => return Ok(false),
            (Some(found), Some(wanted)) if is_right(&found, &wanted) => return Ok(false),
            (found, Some(wanted)) => {
                let hits = found.map_or(0, |found| found.hits);
                self.table.insert(client, Ban { hits, ..wanted }, 0)
            }
            (Some(_), None) => self.table.remove(&client),
        };
        written.map(|()| true).map_err(table_error(map::BANS))
    }

    /// Puts the words of the filter right that another hand has changed; how many.
    #[must_use]
    pub fn mend_filter(&self) -> u64 {
        let (mut mended, words) = (0, BAN_BITS as usize / 64);
        // In parts: a ban waits for no more than one of them.
        for first in (0..words).step_by(MENDED) {
            self.shared.with(|clients| {
                let counts = &clients.counts[64 * first..64 * (first + MENDED).min(words)];
                for (word, counts) in (first..).zip(counts.chunks_exact(64)) {
                    let (right, found) = (bits(counts), &self.shared.filter[word][0]);
                    if found.load(Relaxed) != right {
                        found.store(right, Release);
                        mended += 1;
                    }
                }
            });
        }
        mended
    }

    /// Bans in the table, ended ones included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.shared.used.load(Relaxed)
    }

    /// Whether nobody is banned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shared {
    fn set_up(&self, seed: u64, banned: &[Source]) {
        self.with(|clients| {
            clients.seed = seed;
            clients.counts.fill(0);
            for client in banned {
                let bit = clients.bit(*client);
                clients.counts[bit] += 1;
            }
            for (word, counts) in clients.counts.chunks_exact(64).enumerate() {
                self.filter[word][0].store(bits(counts), Release);
            }
        });
    }

    /// Sets the client's bit, which it shares with others.
    fn admit(&self, client: Source) {
        self.with(|clients| {
            let bit = clients.bit(client);
            clients.counts[bit] += 1;
            self.filter[bit / 64][0].fetch_or(1 << (bit % 64), Release);
        });
    }

    /// Takes it away with the last that has it.
    fn dismiss(&self, client: Source) {
        self.with(|clients| {
            let bit = clients.bit(client);
            clients.counts[bit] = clients.counts[bit].saturating_sub(1);
            if clients.counts[bit] == 0 {
                self.filter[bit / 64][0].fetch_and(!(1 << (bit % 64)), Release);
            }
        });
    }

    fn with(&self, change: impl FnOnce(&mut Clients)) {
        change(&mut self.clients.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Words of the filter that are looked at together.
const MENDED: usize = 64;

/// A word of the filter, by how many have each of its bits.
fn bits(counts: &[u32]) -> u64 {
    counts.iter().rev().fold(0, |bits, count| bits << 1 | u64::from(*count > 0))
}

impl Clients {
    fn bit(&self, client: Source) -> usize {
        (client.hash(self.seed) % u64::from(BAN_BITS)) as usize
    }
}
