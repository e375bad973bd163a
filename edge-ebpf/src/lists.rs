//! The list stage: what the compiled lists say of a source. Its tables are the daemon's to write,
//! all but the hits; their layout is `edge_common::list`.

use core::ops::ControlFlow::{self, Break, Continue};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key},
};
use edge_common::{
    Rate, Reason, Source, limit,
    list::{self, Class, INDEX, Ids, LASTING, Line, Lines, NONE, OVERLAY_MAX, SEVERAL, State, TAG},
    map::{Entry, FOREVER, FactFlag, Facts},
};

use crate::{
    boot_ns, note, refuse,
    tables::{self, Knobs},
};

#[map]
static LISTS: Array<Line> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static LIST_STATE: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static ENTRIES: Array<Entry> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static HITS: PerCpuArray<Hits> = PerCpuArray::with_max_entries(1, 0);
#[map]
static OVERLAY: LpmTrie<[u8; 16], Ids> = LpmTrie::with_max_entries(OVERLAY_MAX, 0);

/// Judges the source by the lists: allow above spare above deny.
#[inline(always)]
pub fn judge(knobs: Knobs, facts: &mut Facts) -> ControlFlow<Reason> {
    let value = listed(facts.source.high(), facts.source.low()) as u32;
    facts.rule = value;
    if value != NONE && facts.flags & FactFlag::TWIN == 0 {
        hit(value & INDEX);
    }
    match value >> TAG {
        ALLOW => Break(Reason::AllowList),
        SPARE => {
            facts.flags |= FactFlag::SPARED;
            Continue(())
        }
        DENY => refuse(knobs, Reason::DenyList, &mut facts.would),
        WATCH => {
            note(Reason::DenyList as u32, &mut facts.would);
            Continue(())
        }
        _ => Continue(()),
    }
}

const ALLOW: u32 = Class::Allow as u32;
const SPARE: u32 = Class::Spare as u32;
const DENY: u32 = Class::Deny as u32;
const WATCH: u32 = Class::Watch as u32;

// The functions below take and give integers only, and are exported: the verifier walks each once,
// by itself, instead of once for every path of the packet that leads to it.

/// The value of the running entry that decides about an address, its [`Class`] and number, or
/// [`NONE`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn listed(high: u64, low: u64) -> u64 {
    let Some(state) = state() else { return NONE.into() };
    let image = Image(state.first_line());
    let value = match (high, low >> 32) {
        (0, 0xffff) => list::v4(&image, low as u32),
        _ => list::v6(&image, high, low),
    };
    // Both at once are rare; one function does for either.
    if state.has_changed() || value >> TAG == SEVERAL {
        overlaid(high, low, value.into(), image.0)
    } else if value & LASTING != 0 || value != NONE && runs((value & INDEX).into()) == RUNS {
        (value & !LASTING).into()
    } else {
        NONE.into()
    }
}

/// As [`listed`], for an address of which the image at this line says `value`, and the overlay may
/// say more.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn overlaid(high: u64, low: u64, value: u64, first_line: u64) -> u64 {
    let address = Source::of(high, low).octets();
    let overlaid = OVERLAY.get(Key::new(128, address)).copied().unwrap_or_default();
    decide(list::ids(&Image(first_line), value as u32), overlaid)
}

/// Searches a tree of the image at this line of the table.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn searched(first_line: u64, tree: u64, nodes: u64, key: u64) -> u64 {
    list::search(&Image(first_line), tree, nodes, key).into()
}

/// The value of the first class of which either names a running entry.
#[inline(always)]
fn decide(named: Ids, overlaid: Ids) -> u64 {
    let mut class = 0;
    while class < Class::COUNT {
        for id in [named[class], overlaid[class]] {
            if runs(id.into()) == RUNS {
                return u64::from((class as u32 + 1) << TAG | id);
            }
        }
        class += 1;
    }
    NONE.into()
}

/// [`RUNS`] if there is such an entry and it has not ended.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn runs(id: u64) -> u64 {
    if id == 0 {
        return 0;
    }
    let Some(entry) = ENTRIES.get_ptr_mut(id as u32) else { return 0 };
    // SAFETY: the lookup gave the address of a whole `Entry` of an array, there for as long as the
    // program.
    let until_ns = unsafe { tables::peek(&raw const (*entry).until_ns) };
    // The clock costs more than all of the rest, and most entries have no end.
    u64::from(until_ns == FOREVER || boot_ns() < until_ns)
}

const RUNS: u64 = 1;

/// Counts a hit of an entry. Those that come faster than [`HITS_RATE`] are drawn, one in
/// [`HITS_SAMPLE`], and each of them stands for as many: a flood from all over a list would bring in
/// a cache line for each packet, only to add one.
#[inline(always)]
fn hit(id: u32) {
    let (Some(own), Some(entry)) = (HITS.get_ptr_mut(0), ENTRIES.get_ptr_mut(id)) else { return };
    // SAFETY: the lookups gave the addresses of this CPU's whole `Hits`, which nobody else uses while
    // XDP runs with bottom halves disabled, and of a whole `Entry` of an array, there for as long as
    // the program; the kernel lets programs write it. The helper only reads a clock.
    unsafe {
        let weight = match limit::charged((*own).bucket, HITS_RATE, bpf_ktime_get_coarse_ns()) {
            Some(charged) => {
                (*own).bucket = charged;
                1
            }
            None => {
                (*own).drawn = (*own).drawn.wrapping_add(GOLDEN);
                if (*own).drawn > u64::MAX / HITS_SAMPLE {
                    return;
                }
                HITS_SAMPLE
            }
        };
        tables::increase(&raw mut (*entry).hits, weight);
    }
}

/// How a CPU counts hits.
#[repr(C)]
struct Hits {
    /// [`limit::charged`], at [`HITS_RATE`].
    bucket: u64,
    /// Turns by the golden ratio, so that one in so many is drawn of any pattern.
    drawn: u64,
}

const HITS_RATE: Rate = match Rate::new(10_000, 1_000_000_000, 10_000) {
    Some(rate) => rate,
    None => Rate::OFF,
};
const HITS_SAMPLE: u64 = 16;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn state() -> Option<State> {
    let state = LIST_STATE.get_ptr(0)?;
    // SAFETY: an array's value is aligned and there for as long as the program. One load: the daemon
    // changes all of it at once.
    Some(State(unsafe { tables::peek(state) }))
}

/// The image in force, by its first line. The daemon rewrites the other one, and not before every
/// packet that was judged by it is through.
struct Image(u64);

impl Lines for Image {
    #[inline(always)]
    fn line(&self, index: u64) -> Option<&Line> {
        LISTS.get((self.0 + index) as u32)
    }

    #[inline(always)]
    fn search(&self, tree: u64, nodes: u64, key: u64) -> u32 {
        searched(self.0, tree, nodes, key) as u32
    }
}
