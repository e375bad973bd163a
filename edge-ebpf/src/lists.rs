//! The allow and deny lists.

use core::ops::ControlFlow::{self, Break, Continue};

use aya_ebpf::maps::LpmTrie;
use edge_common::{
    Reason,
    map::{Entry, FOREVER, FactFlag, Facts},
};

use crate::{
    boot_ns, refuse,
    tables::{self, Key, Knobs},
};

/// Judges the source by the lists: allow above deny.
#[inline(always)]
pub fn judge(knobs: Knobs, facts: &mut Facts) -> ControlFlow<Reason> {
    if listed(&tables::ALLOW, facts) {
        return Break(Reason::AllowList);
    }
    if listed(&tables::DENY, facts) {
        return refuse(knobs, Reason::DenyList, &mut facts.would);
    }
    Continue(())
}

/// The longest match decides alone: the daemon gives each network the latest end of all that
/// cover it.
#[inline(always)]
fn listed(list: &'static LpmTrie<[u8; 16], Entry>, facts: &Facts) -> bool {
    // aya gives a reference; what other CPUs write is reached by its address alone.
    let entry = match list.get(Key::new(128, facts.source.0)) {
        Some(entry) => (&raw const *entry).cast_mut(),
        None => return false,
    };
    // SAFETY: the lookup gave the address of a whole `Entry`, which stays until the program
    // returns; the kernel lets programs write it.
    unsafe {
        let until_ns = tables::peek(&raw const (*entry).until_ns);
        if until_ns != FOREVER && boot_ns() >= until_ns {
            return false;
        }
        if facts.flags & FactFlag::TWIN == 0 {
            tables::increment(&raw mut (*entry).hits);
        }
    }
    true
}
