//! The kernel's tables, as `edge_common::map` names and sizes them.

use core::sync::atomic::AtomicU64;

pub use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf},
};
use edge_common::{
    Source, atomic, limit,
    map::{
        BANS_MAX, Ban, CONNECTION_SETS, Count, DROPS_BYTES, Entry, LIST_MAX, OPEN_SETS,
        PACKET_SETS, REASONS_MAX, SOCKETS_MAX, Settings,
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
pub static COUNTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(REASONS_MAX, 0);
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

/// What the programs go by: a copy, since the daemon may be writing them on another CPU. It may be
/// half old and half new.
#[inline(always)]
pub fn settings() -> Option<Settings> {
    let settings = SETTINGS.get_ptr(0)?;
    // SAFETY: an array's value is aligned and there for as long as the program. What is read while
    // the daemon writes is a mix of two settings, and `Settings` is integers, valid for any bits.
    Some(unsafe { settings.read_volatile() })
}

/// The value of a field that other CPUs may be writing.
///
/// # Safety
/// `field` must be an aligned field of a map value that was looked up in this run.
#[inline(always)]
pub unsafe fn peek(field: *const u64) -> u64 {
    // SAFETY: as the caller promises; any bits are a `u64`, and a word is read at once.
    unsafe { field.read_volatile() }
}

/// Adds one to a counter that other CPUs add to as well.
///
/// As best it can: the daemon may overwrite the value, and the value of a key that it removes may
/// be another key's before this program returns.
///
/// # Safety
/// As for [`peek`].
#[inline(always)]
pub unsafe fn increment(counter: *mut u64) {
    // SAFETY: as the caller promises. The kernel's memory for the value stays until the program
    // returns, also when the key is removed. Programs write the field by atomic instructions only;
    // the daemon's writes are the kernel's own, and no Rust reference covers the field.
    let counter = unsafe { AtomicU64::from_ptr(counter) };
    atomic::add(counter, 1);
}

/// Sets a field that is still zero, as best it can.
///
/// # Safety
/// As for [`peek`].
#[inline(always)]
pub unsafe fn set_once(field: *mut u64, value: u64) {
    // SAFETY: as in `increment`.
    let field = unsafe { AtomicU64::from_ptr(field) };
    let _ = atomic::replace(field, 0, value);
}
