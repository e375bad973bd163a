//! How one image takes the place of the other: it is compiled, comes in force, and what the former
//! needed is cleared away.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_common::map::{ENTRIES, LISTS};
use edge_policy::list::{Adopted, Class, Snapshot, Successor, Used};
use ipnet::IpNet;

use super::{Draft, Inner, KernelError, ListSizes, Shared, wait_for_packets};

/// An image to be made, by whatever thread has the time. One that is dropped instead leaves the
/// lists as they are, with all that has changed since.
pub struct Job {
    turn: Turn,
    snapshot: Snapshot,
    image: Range<usize>,
}

/// What an image is made of.
pub enum Content {
    /// The lists as they are, with what has changed, at this time.
    Changes(u64),
    /// These entries and nothing else.
    Entries(Vec<(Class, IpNet, u64)>),
    /// What was compiled at the start.
    Draft(Draft),
}

/// An image that is written and not in force yet.
struct Image {
    turn: Turn,
    next: Successor,
    used: Used,
    took: Duration,
}

/// What is left to do once every packet under way is through.
struct Former {
    turn: Turn,
    /// Numbers with the ends that they have in the image now in force.
    ends: Vec<(u32, u64)>,
    /// Numbers that only the overlay names.
    free: Vec<u32>,
}

/// The right to make an image, which one has at a time; given back when it is dropped, and with
/// it what was begun and did not come in force.
struct Turn {
    shared: Arc<Shared>,
    /// Whether the image had too few lines.
    is_full: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inner = self.shared.inner();
        if inner.book.abandon(self.is_full) {
            inner.sizes.failures += 1;
        }
        (inner.is_writing, inner.is_settling) = (false, false);
        self.shared.written.notify_one();
    }
}

impl Shared {
    pub(super) fn begin(self: &Arc<Self>, inner: &mut Inner) -> Job {
        inner.is_writing = true;
        let image = inner.image(!inner.second);
        let turn = Turn { shared: Arc::clone(self), is_full: false };
        Job { turn, snapshot: inner.book.snapshot(), image }
    }
}

impl Job {
    /// Compiles the lists into the image that is not in force, puts it in force, from one packet
    /// to the next, and clears away what the former needed.
    ///
    /// # Errors
    /// [`KernelError::Full`] if there is no room for so many networks or for so many lines; then
    /// the former stays, with all that has changed since.
    pub fn make(self, content: Content) -> Result<(), KernelError> {
        self.compile(content)?.adopt().settle();
        Ok(())
    }

    fn compile(mut self, content: Content) -> Result<Image, KernelError> {
        let begun = Instant::now();
        let shared = Arc::clone(&self.turn.shared);
        // Nobody may still be judged by the image that is written over.
        wait_for_packets();
        let (mut next, drawn) = match content {
            Content::Changes(now_ns) => (self.snapshot.fold(now_ns), None),
            Content::Entries(entries) => (self.snapshot.replace(entries), None),
            // It has the numbers that are given out first.
            Content::Draft(Draft { next, image, used, .. }) if shared.numbers().used() == 0 => {
                (next, Some((image, used)))
            }
            Content::Draft(Draft { next, .. }) => {
                let entries = next.table.entries();
                let entries = entries.map(|(class, net, until, _)| (class, net, until));
                (self.snapshot.replace(entries), None)
            }
        };
        let lines_max = self.image.len();
        if next.table.len() as u64 > shared.tables.entries.len() as u64 / 2 {
            return Err(KernelError::Full { table: ENTRIES });
        }
        // SAFETY: of the two images this is the one that is not in force, and no packet is left
        // that saw it in force; there is one turn at a time.
        let lines = unsafe { shared.tables.lists.exclusive(self.image.start, lines_max) };
        let count = if drawn.is_some() { next.table.len() } else { next.unnumbered };
        let taken = shared.numbers().take(count);
        let numbers = taken.map_err(|_| KernelError::Full { table: ENTRIES })?;
        let taken = match drawn {
            Some(_) => next.table.numbers().collect(),
            None => next.number(numbers),
        };
        for (id, until_ns) in &taken {
            let [until, hits] = &shared.tables.entries[*id as usize];
            until.store(*until_ns, Relaxed);
            hits.store(0, Relaxed);
        }
        let compiled = match drawn {
            Some((image, used)) if image.len() == lines.len() => {
                let behind = image.len() - used.back;
                lines[..used.front].copy_from_slice(&image[..used.front]);
                lines[behind..].copy_from_slice(&image[behind..]);
                Ok(used)
            }
            _ => next.table.compile(lines),
        };
        match compiled {
            Ok(used) => Ok(Image { turn: self.turn, next, used, took: begun.elapsed() }),
            Err(edge_policy::list::Full) => {
                self.turn.is_full = true;
                shared.numbers().give_back(taken.into_iter().map(|(id, _)| id));
                Err(KernelError::Full { table: LISTS })
            }
        }
    }
}

impl Image {
    /// Puts it in force: from one packet to the next, all of it.
    fn adopt(self) -> Former {
        let Self { turn, next, used, took } = self;
        let shared = &turn.shared;
        let image = {
            let inner = shared.inner();
            inner.image(!inner.second)
        };
        let sum = super::sum(&shared.tables.lists[image], used);
        let mut inner = shared.inner();
        let Adopted { writes, ends, free } = inner.book.adopt(next);
        for (id, until_ns) in &ends {
            shared.tables.entries[*id as usize][0].fetch_max(*until_ns, Relaxed);
        }
        inner.second = !inner.second;
        inner.is_settling = true;
        inner.changes += 1;
        (inner.used, inner.sum) = (used, sum);
        inner.sizes = ListSizes {
            lines: used.lines() as u64,
            compile: took,
            generation: inner.sizes.generation + 1,
            ..inner.sizes
        };
        if let Err(error) = shared.write(&mut inner, &writes) {
            tracing::error!(%error, "what changed while the lists were compiled waits for the next image");
            inner.sizes.failures += 1;
        }
        drop(inner);
        Former { turn, ends, free }
    }
}

impl Former {
    /// Clears it away.
    fn settle(self) {
        let shared = &self.turn.shared;
        wait_for_packets();
        let mut inner = shared.inner();
        let writes = inner.book.settle(self.ends);
        if let Err(error) = shared.write(&mut inner, &writes) {
            // They say what the image says, until the next one clears them away.
            tracing::warn!(%error, "the overlay cannot be cleared");
        }
        inner.is_settling = false;
        drop(inner);
        // A packet under way may have a number from the overlay still.
        wait_for_packets();
        for free in self.free.chunks(SLICE) {
            for id in free {
                shared.tables.entries[*id as usize][0].store(0, Relaxed);
            }
            shared.numbers().give_back(free.iter().copied());
        }
    }
}

/// Numbers that are given back at once: whoever bans needs one meanwhile.
const SLICE: usize = 4_096;
