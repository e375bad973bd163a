//! The kernel's tables, as `edge_common::map` names and sizes them.

use core::sync::atomic::AtomicU64;

pub use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf},
};
use edge_common::{
    Reason, Source, atomic, limit,
    map::{
        BANS_MAX, Ban, CONNECTION_SETS, Count, DROPS_BYTES, Entry, LIST_MAX, OPEN_SETS,
        PACKET_SETS, SOCKETS_MAX, Settings,
    },
    open,
};

#[map]
pub static ALLOW: LpmTrie<[u8; 16], Entry> = LpmTrie::with_max_entries(LIST_MAX, 0);
#[map]
pub static DENY: LpmTrie<[u8; 16], Entry> = LpmTrie::with_max_entries(LIST_MAX, 0);
#[map]
pub static BANS: HashMap<Source, Ban> = HashMap::with_max_entries(BANS_MAX, 0);
#[map]
pub static PACKET_CELLS: Table<limit::Set, PACKET_SETS> = Table::new();
#[map]
pub static CONNECTION_CELLS: Table<limit::Set, CONNECTION_SETS> = Table::new();
#[map]
pub static OPEN: Table<open::Set, OPEN_SETS> = Table::new();
#[map]
pub static SOCKETS: HashMap<u64, u64> = HashMap::with_max_entries(SOCKETS_MAX, 0);
#[map]
pub static COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Reason::COUNT as u32, 0);
#[map]
pub static DROPS: RingBuf = RingBuf::with_byte_size(DROPS_BYTES, 0);
#[map]
pub static DROPS_CELL: Table<limit::Set, 1> = Table::new();
#[map]
pub static DROPS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// An array of sets, indexed by the lower bits of a hash.
#[repr(transparent)]
pub struct Table<T, const SETS: u32>(Array<T>);

impl<T, const SETS: u32> Table<T, SETS> {
    const fn new() -> Self {
        assert!(SETS.is_power_of_two());
        Self(Array::with_max_entries(SETS, 0))
    }

    /// The set this hash leads to.
    #[inline(always)]
    pub fn set(&'static self, hash: u64) -> Option<&'static T> {
        self.0.get(hash as u32 & (SETS - 1))
    }
}

/// What the programs go by.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Adds one to a counter that other CPUs add to as well.
#[inline(always)]
pub fn increment(counter: *const u64) {
    // SAFETY: `counter` is an aligned field of a map value, which all CPUs write atomically.
    let counter = unsafe { AtomicU64::from_ptr(counter.cast_mut()) };
    atomic::add(counter, 1);
}

/// Sets a field that is still zero.
#[inline(always)]
pub fn set_once(field: *const u64, value: u64) {
    // SAFETY: `field` is an aligned field of a map value, which all CPUs write atomically.
    let field = unsafe { AtomicU64::from_ptr(field.cast_mut()) };
    let _ = atomic::replace(field, 0, value);
}
