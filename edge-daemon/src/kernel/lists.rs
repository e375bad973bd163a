//! Both lists in the kernel: two images that take turns, the overlay of what has changed since,
//! and the entries with their ends and hits. What to write is `edge_policy::list`'s to decide.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, Release},
        },
    },
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{IterableMap as _, LpmTrie, MapData, lpm_trie::Key},
};
use edge_common::{
    Source,
    list::{Ids, OVERLAY_MAX, State},
    map::{ENTRIES, Entry, LIST_STATE, LISTS, OVERLAY},
};
use edge_policy::list::{Book, Change, Class, Numbers, Refused, Used, View, Write};
use ipnet::{IpNet, Ipv4Net};

use super::{
    KernelError,
    capacity::{Draft, ListSizes},
    mapped::Mapped,
    maps::{absent, again, table_error, take},
};

mod mend;
mod turn;

pub use turn::{Content, Job};

/// Both lists. All handles are to the same.
#[derive(Clone)]
pub struct Lists(Arc<Shared>);

struct Shared {
    tables: Memory,
    /// A handle to the overlay for who only reads it.
    overlay: Overlay,
    inner: Mutex<Inner>,
    numbers: Mutex<Numbers>,
    /// Told when an image is done with.
    written: Condvar,
}

/// The tables that are mapped.
struct Memory {
    lists: Mapped<8>,
    state: Mapped<1>,
    entries: Mapped<2>,
}

struct Inner {
    book: Book,
    overlay: Overlay,
    /// Whether the second image is in force.
    second: bool,
    is_writing: bool,
    /// Whether an image has come in force, and what the former needed is not cleared away yet.
    is_settling: bool,
    sizes: ListSizes,
    /// The lines of the image in force that are used, and their sum as it was compiled.
    used: Used,
    sum: u64,
    /// Changes of what is listed, so far.
    changes: u64,
}

/// The deciding entries of networks that have changed since the image.
type Overlay = LpmTrie<MapData, [u8; 16], Ids>;

/// When a change is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    /// Now.
    Now,
    /// With the next image, which is to be begun.
    WithNextImage,
}

impl Lists {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        let mut overlay: Overlay = take(programs, OVERLAY)?;
        // All of IPv4 lies inside of `::/0` in the kernel's form of addresses; this entry keeps
        // IPv6 networks from reaching into it.
        overlay.insert(&key(&ALL_IPV4), Ids::default(), 0).map_err(table_error(OVERLAY))?;
        let reader = again(OVERLAY, overlay.map())?;
        let tables = Memory {
            lists: Mapped::take(programs, LISTS)?,
            state: Mapped::take(programs, LIST_STATE)?,
            entries: Mapped::take(programs, ENTRIES)?,
        };
        let numbers = Numbers::new(tables.entries.len() as u32);
        let sizes = ListSizes {
            entries_max: numbers.capacity() as u64 / 2,
            lines_max: tables.lists.len() as u64 / 2,
            ..ListSizes::default()
        };
        let book = Book::new(OVERLAY_MAX as usize - 1);
        let inner = Inner {
            book,
            overlay,
            second: false,
            is_writing: false,
            is_settling: false,
            sizes,
            used: Used::default(),
            sum: sum(&[], Used::default()),
            changes: 0,
        };
        let (inner, numbers) = (Mutex::new(inner), Mutex::new(numbers));
        let written = Condvar::new();
        Ok(Self(Arc::new(Shared { tables, overlay: reader, inner, numbers, written })))
    }

    /// Lists a network in a class until a time, [`edge_common::map::FOREVER`] for good, with 0 not
    /// any more. A network that is listed already keeps its hits.
    ///
    /// # Errors
    /// [`KernelError::Full`] if the lists hold as many networks as they may, or if this one takes a
    /// new image and the last had no room.
    pub fn set(&self, class: Class, net: &IpNet, until_ns: u64) -> Result<InForce, KernelError> {
        let mut inner = self.0.inner();
        inner.changes += 1;
        let change = {
            let mut numbers = self.0.numbers();
            let is_new = until_ns > 0 && !inner.book.has_number(class, *net);
            if is_new && numbers.used() as u64 >= inner.sizes.entries_max {
                return Err(KernelError::Full { table: ENTRIES });
            }
            inner.book.set(class, *net, until_ns, &mut numbers)
        };
        let change = change.map_err(|refused| KernelError::Full {
            table: match refused {
                Refused::NoNumber => ENTRIES,
                Refused::NoImage => LISTS,
            },
        })?;
        let (writes, in_force) = match change {
            Change::Small(writes) => (writes, InForce::Now),
            Change::Large(writes) => (writes, InForce::WithNextImage),
        };
        Ok(match self.0.write(&mut inner, &writes) {
            Ok(()) => in_force,
            Err(error) => {
                tracing::warn!(%error, %net, "the next image will have it");
                inner.sizes.failures += 1;
                InForce::WithNextImage
            }
        })
    }

    /// Forgets an entry that has ended.
    pub fn forget(&self, class: Class, net: &IpNet) {
        self.0.inner().book.forget(class, *net);
    }

    /// Begins an image with all changes so far, once no other one is being made.
    #[must_use]
    pub fn begin(&self) -> Job {
        let mut inner = self.0.inner();
        while inner.is_writing {
            inner = self.0.written.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        self.0.begin(&mut inner)
    }

    /// As [`Lists::begin`], without waiting; `None` while another one is being made.
    #[must_use]
    pub fn try_begin(&self) -> Option<Job> {
        let mut inner = self.0.inner();
        (!inner.is_writing).then(|| self.0.begin(&mut inner))
    }

    /// Makes the lists hold exactly these entries, and returns when they do.
    ///
    /// # Errors
    /// As [`Job::make`].
    pub fn replace(
        &self,
        entries: impl IntoIterator<Item = (Class, IpNet, u64)>,
    ) -> Result<(), KernelError> {
        self.begin().make(Content::Entries(entries.into_iter().collect()))
    }

    /// Makes the lists, which hold nothing yet, hold what was compiled before they were there.
    ///
    /// # Errors
    /// As [`Job::make`].
    pub fn fill(&self, draft: Draft) -> Result<(), KernelError> {
        self.begin().make(Content::Draft(draft))
    }

    /// Makes an image of the lists as they are, and returns when it is in force.
    ///
    /// # Errors
    /// As [`Lists::replace`].
    pub fn fold(&self, now_ns: u64) -> Result<(), KernelError> {
        self.begin().make(Content::Changes(now_ns))
    }

    /// The entry of a network in a class.
    #[must_use]
    pub fn entry(&self, class: Class, net: &IpNet) -> Option<Entry> {
        let (until_ns, id) = self.0.inner().book.entry(class, *net)?;
        Some(Entry { until_ns, hits: self.0.hits(id) })
    }

    /// The network of a class that decides about an address at a time, with its entry.
    #[must_use]
    pub fn decides(&self, class: Class, address: IpAddr, now_ns: u64) -> Option<(IpNet, Entry)> {
        let (net, until_ns, id) = self.0.inner().book.decides(class, address)?;
        (now_ns < until_ns).then(|| (net, Entry { until_ns, hits: self.0.hits(id) }))
    }

    /// The network because of which no list, ban or limit is for an address at a time, with its class
    /// and entry.
    #[must_use]
    pub fn allows(&self, address: IpAddr, now_ns: u64) -> Option<(Class, IpNet, Entry)> {
        [Class::Allow, Class::Spare].into_iter().find_map(|class| {
            let (net, entry) = self.decides(class, address, now_ns)?;
            Some((class, net, entry))
        })
    }

    /// What is listed now, and a number that is another one once that has changed.
    #[must_use]
    pub fn view(&self) -> (u64, View) {
        let inner = self.0.inner();
        (inner.changes, inner.book.view())
    }

    /// The number of [`Lists::view`] as it is now.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.0.inner().changes
    }

    /// Packets that each entry decided, of those that decided any.
    #[must_use]
    pub fn hits(&self) -> BTreeMap<(Class, IpNet), u64> {
        let inner = self.0.inner();
        let hits = inner.book.entries().map(|(class, net, id)| ((class, net), self.0.hits(id)));
        hits.filter(|(_, hits)| *hits > 0).collect()
    }

    /// Whether the image that packets are judged by is another than was compiled. The word that says
    /// which one is in force is put right at once.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        let told = || {
            let inner = self.0.inner();
            self.0.publish(&inner);
            (inner.sizes.generation, inner.image(inner.second), inner.used, inner.sum)
        };
        let before = told();
        let (_, image, used, right) = before.clone();
        let differs = sum(&self.0.tables.lists[image], used) != right;
        // An image that came in force meanwhile has another sum.
        differs && told() == before
    }

    /// How the lists are doing.
    #[must_use]
    pub fn sizes(&self) -> ListSizes {
        let inner = self.0.inner();
        let overlay = inner.book.overlaid_len() as u64;
        ListSizes { entries: self.0.numbers().used() as u64, overlay, ..inner.sizes }
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whatever a holder that panicked left half done, the next image does again.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hits(&self, id: u32) -> u64 {
        self.tables.entries[id as usize][1].load(Relaxed)
    }

    /// Tells the programs, in one store, which image to use and whether to ask the overlay.
    fn publish(&self, inner: &Inner) {
        let first = if inner.second { inner.sizes.lines_max as u32 } else { 0 };
        let state = State::new(first, inner.book.has_changed());
        self.tables.state[0][0].store(state.0, Release);
    }

    fn write(&self, inner: &mut Inner, writes: &[Write]) -> Result<(), KernelError> {
        let mut result = Ok(());
        for write in writes {
            let written = match write {
                Write::Until(id, until_ns) => {
                    self.write_end(*id, *until_ns);
                    Ok(())
                }
                Write::Put(net, ids) => inner.overlay.insert(&key(net), *ids, 0),
                Write::Remove(net) if *net == ALL_IPV4 => {
                    inner.overlay.insert(&key(net), Ids::default(), 0)
                }
                Write::Remove(net) => absent(inner.overlay.remove(&key(net))).map(|_| ()),
            };
            // One that fails leaves the others no less true.
            result = result.and(written.map_err(table_error(OVERLAY)));
        }
        self.publish(inner);
        result
    }

    /// An entry without an end so far is new, whoever had its number before.
    fn write_end(&self, id: u32, until_ns: u64) {
        let [until, hits]: &[AtomicU64; 2] = &self.tables.entries[id as usize];
        if until.swap(until_ns, Relaxed) == 0 {
            hits.store(0, Relaxed);
        }
    }
}

/// Returns when every packet that is being judged now is through: a grace period of the kernel's.
pub fn wait_for_packets() {
    // SAFETY: the call takes three integers and touches no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // A kernel with cores that run without a tick has no such call; a packet takes microseconds.
        tracing::debug!(error = %io::Error::last_os_error(), "no membarrier");
        std::thread::sleep(Duration::from_millis(100));
    }
}

const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

impl Inner {
    /// The lines of the first or the second image.
    fn image(&self, second: bool) -> Range<usize> {
        let lines = self.sizes.lines_max as usize;
        let first = if second { lines } else { 0 };
        first..first + lines
    }
}

/// Tells images apart: not a secret, so it finds what was changed and not who knows how to hide it.
fn sum(image: &[[AtomicU64; 8]], used: Used) -> u64 {
    let words = used.parts(image).into_iter().flatten().flatten().map(|word| word.load(Relaxed));
    words.fold(SEED, |sum, word| (sum ^ word).wrapping_mul(SEED).rotate_left(23))
}

/// An odd number without a pattern: 2^64 over the golden ratio.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The network as the kernel keys it.
fn key(net: &IpNet) -> Key<[u8; 16]> {
    let bits = match net {
        IpNet::V4(v4) => u32::from(v4.prefix_len()) + 96,
        IpNet::V6(v6) => u32::from(v6.prefix_len()),
    };
    Key::new(bits, Source::from(net.network()).octets())
}

const ALL_IPV4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
