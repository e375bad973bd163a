//! The kernel's tables, as `edge_common::map` names and sizes them.

use core::sync::atomic::AtomicU64;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use edge_common::{
    Signature, Source, atomic,
    cookie::{LISTENERS_MAX, Listener, MADE_MAX, Pressure, Segment},
    limit,
    map::{
        BAN_BITS, BANS_MAX, Ban, CELLS_MAX, Count, FactFlag, Facts, INTERFACES_MAX, OPEN_SETS,
        REASONS_MAX, RING_BYTES, SIGNATURES_MAX, SOCKETS_MAX, Settings,
    },
    open,
    service::{self, Service},
};

#[map]
pub static BANS: HashMap<Source, Ban> = HashMap::with_max_entries(BANS_MAX, 0);
#[map]
static BAN_FILTER: Array<u64> = Array::with_max_entries(BAN_BITS / 64, BPF_F_MMAPABLE);
#[map]
pub static CELLS: Array<limit::Set> = Array::with_max_entries(CELLS_MAX, 0);
#[map]
pub static OPEN: Table<open::Set, OPEN_SETS> = Table::new();
#[map]
pub static SOCKETS: HashMap<u64, u64> = HashMap::with_max_entries(SOCKETS_MAX, 0);
#[map]
pub static UNCOUNTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static COUNTS: PerCpuArray<Count> =
    PerCpuArray::with_max_entries(INTERFACES_MAX * 2 * REASONS_MAX, 0);
#[map]
pub static DROPS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
#[map]
pub static DROPS_BUCKET: Array<u64> = Array::with_max_entries(1, 0);
#[map]
pub static SAMPLES: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
#[map]
pub static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub static SIGNATURES: Array<Signature> = Array::with_max_entries(2 * SIGNATURES_MAX, 0);
#[map]
pub static SIGNATURE_HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2 * SIGNATURES_MAX, 0);
#[map]
pub static SERVICES: Array<u64> = Array::with_max_entries(service::WORDS, 0);
#[map]
pub static LISTENERS: HashMap<Listener, Pressure> = HashMap::with_max_entries(LISTENERS_MAX, 0);
#[map]
pub static ALARM: Array<u64> = Array::with_max_entries(2, 0);
#[map]
pub static MADE: Array<u64> = Array::with_max_entries(MADE_MAX, 0);
#[map]
pub static SEGMENTS: PerCpuArray<Segment> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub static FACTS: PerCpuArray<Facts> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static TWIN_FACTS: Array<Facts> = Array::with_max_entries(1, 0);
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

/// What the programs go by. The daemon may be writing it on another CPU: each field is read on its
/// own, by [`setting!`], and may be old or new.
#[derive(Clone, Copy)]
pub struct Knobs(*const Settings);

#[inline(always)]
pub fn knobs() -> Option<Knobs> {
    SETTINGS.get_ptr(0).map(Knobs)
}

impl Knobs {
    #[inline(always)]
    pub fn pointer(self) -> *const Settings {
        self.0
    }
}

/// Reads one field of the settings, or an element of one.
macro_rules! setting {
    ($knobs:expr, $($field:tt)+) => {
        // SAFETY: an array's value is aligned and there for as long as the program, and `Settings`
        // is integers, valid for any bits.
        unsafe { (&raw const (*$knobs.pointer()).$($field)+).read_volatile() }
    };
}
pub(crate) use setting;

/// Reads one of the facts.
macro_rules! fact {
    ($slot:expr, $field:ident) => {
        // SAFETY: a `Slot` is the address of whole, aligned `Facts` of this run's own, which are
        // integers, valid for any bits.
        unsafe { (&raw const (*$slot.pointer()).$field).read_volatile() }
    };
}
pub(crate) use fact;

/// Writes one of the facts.
macro_rules! set_fact {
    ($slot:expr, $field:ident, $value:expr) => {
        // SAFETY: as in `fact`.
        unsafe { (&raw mut (*$slot.pointer()).$field).write_volatile($value) }
    };
}
pub(crate) use set_fact;

/// Where the facts of the packet in hand lie: this CPU's own, or the twin's.
#[derive(Clone, Copy)]
pub struct Slot(*mut Facts);

#[inline(always)]
pub fn slot(is_twin: bool) -> Option<Slot> {
    if is_twin { TWIN_FACTS.get_ptr_mut(0) } else { FACTS.get_ptr_mut(0) }.map(Slot)
}

impl Slot {
    /// Starts a packet: all zeros but the flags.
    #[inline(always)]
    pub fn clear(&self, flags: u32) -> &'static mut Facts {
        // SAFETY: the lookup gave the address of whole `Facts`, aligned, of this run's own: the twin
        // runs for one caller at a time, and no packet comes between on one CPU. The reference goes
        // before the slot is used again. `Facts` are integers without gaps, and zeros are valid;
        // word by word, because the compiler would call a loop over bytes.
        let facts = unsafe {
            let mut word = 0;
            while word < size_of::<Facts>() / 8 {
                self.0.cast::<u64>().add(word).write_volatile(0);
                word += 1;
            }
            &mut *self.0
        };
        facts.flags = flags;
        facts
    }

    /// The facts, until one is written again.
    #[inline(always)]
    pub fn facts(&self) -> &Facts {
        // SAFETY: as in `clear`; whoever holds the reference writes no fact.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    pub fn pointer(self) -> *mut Facts {
        self.0
    }

    /// The reason that was only monitored.
    #[inline(always)]
    pub fn would(&self) -> &mut u32 {
        // SAFETY: as in `clear`.
        unsafe { &mut (*self.0).would }
    }

    #[inline(always)]
    pub fn flags(&self) -> u32 {
        fact!(self, flags)
    }

    #[inline(always)]
    pub fn is_twin(&self) -> bool {
        self.flags() & FactFlag::TWIN != 0
    }
}

/// Whether a client of this hash may be banned: most are told that they are not by a table that is
/// small enough to be at hand.
#[inline(always)]
pub fn may_be_banned(hash: u64) -> bool {
    let bit = hash as u32 % BAN_BITS;
    let Some(word) = BAN_FILTER.get_ptr(bit / 64) else { return true };
    // SAFETY: an array's value is aligned and there for as long as the program.
    unsafe { peek(word) >> (bit % 64) & 1 != 0 }
}

/// Whether this is offered to the outside.
#[inline(always)]
pub fn offers(service: Service) -> bool {
    let (word, bit) = service.place();
    let Some(word) = SERVICES.get_ptr(word) else { return false };
    // SAFETY: an array's value is aligned and there for as long as the program.
    unsafe { peek(word) & bit != 0 }
}

/// Adds one to a counter of this CPU's own.
#[inline(always)]
pub fn increment_own(counters: &'static PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: an aligned word of this CPU's own, which nobody else writes while XDP runs with
        // bottom halves disabled.
        unsafe { *counter += 1 };
    }
}

/// Counts a socket that could not be counted.
#[inline(always)]
pub fn add_uncounted() {
    if let Some(count) = UNCOUNTED.get_ptr_mut(0) {
        // SAFETY: the lookup gave the address of this CPU's whole word.
        unsafe { increment(count) };
    }
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
    // SAFETY: as the caller promises.
    unsafe { increase(counter, 1) };
}

/// As [`increment`], by so much.
///
/// # Safety
/// As for [`peek`].
#[inline(always)]
pub unsafe fn increase(counter: *mut u64, more: u64) {
    // SAFETY: as the caller promises. The kernel's memory for the value stays until the program
    // returns, also when the key is removed. Programs write the field by atomic instructions only;
    // the daemon's writes are the kernel's own, and no Rust reference covers the field.
    let counter = unsafe { AtomicU64::from_ptr(counter) };
    atomic::add(counter, more);
}

/// Puts `to` in the place of `from`; whether it still was `from`.
///
/// # Safety
/// As for [`peek`].
#[inline(always)]
pub unsafe fn replace(field: *mut u64, from: u64, to: u64) -> bool {
    // SAFETY: as in `increment`.
    atomic::replace(unsafe { AtomicU64::from_ptr(field) }, from, to)
}

/// Sets a field that is still zero, as best it can.
///
/// # Safety
/// As for [`peek`].
#[inline(always)]
pub unsafe fn set_once(field: *mut u64, value: u64) {
    // SAFETY: as the caller promises.
    let _ = unsafe { replace(field, 0, value) };
}
