//! What a client may send over time, and what the prefixes around it may together.

use core::ops::ControlFlow::{self, Break, Continue};

use edge_common::{
    Rate, Reason, Verdict,
    limit::{ATTEMPTS, Charge, Mode},
    map::{Cells, FactFlag, Kind, LEVELS},
    open,
};

use crate::{
    forget, is_spared, note, refuse,
    tables::{self, Knobs, Slot, fact, setting},
};

/// Charges the packet under a kind, to its client and then to the prefixes around it.
///
/// Where the kind is only monitored, so is what its prefixes may: they are so many clients' worth of a
/// limit that nobody is held to.
#[inline(always)]
pub fn judge(knobs: Knobs, slot: &Slot, kind: Kind) -> ControlFlow<Reason> {
    let monitored = setting!(knobs, monitored);
    let soft = monitored >> kind.reason() as u32;
    if charge_level(knobs, slot, kind, 0, fact!(slot, client_hash), soft) != ADMITTED {
        refuse(knobs, kind.reason(), slot.would())?;
    }
    if slot.flags() & FactFlag::V4 != 0 {
        return Continue(());
    }
    let soft = soft | monitored >> Reason::PrefixRate as u32;
    if charge_prefixes(knobs, slot, kind, soft) != ADMITTED {
        if soft & 1 == 0 {
            forget(Reason::PrefixRate as u32, slot.would());
            return Break(Reason::PrefixRate);
        }
        note(Reason::PrefixRate as u32, slot.would());
    }
    Continue(())
}

/// Looks, without charging, whether the client holds as many open connections as it may.
#[inline(always)]
pub fn below_open_max(knobs: Knobs, slot: &Slot) -> ControlFlow<Reason> {
    if !is_at_open_max(knobs, slot) {
        return Continue(());
    }
    refuse(knobs, Reason::OpenConnections, slot.would())
}

#[inline(always)]
pub fn is_at_open_max(knobs: Knobs, slot: &Slot) -> bool {
    let open_max = setting!(knobs, open_max);
    (open_max != 0) & !is_spared(slot.flags())
        && count_open(fact!(slot, client_hash)) >= u64::from(open_max)
}

#[inline(always)]
fn charge_prefixes(knobs: Knobs, slot: &Slot, kind: Kind, soft: u64) -> u64 {
    let mut level = 1;
    while level < LEVELS {
        let bits = setting!(knobs, prefix_bits[level - 1]);
        if bits != 0 {
            let hash = fact!(slot, source).prefix_hash(bits, setting!(knobs, seed));
            if charge_level(knobs, slot, kind, level, hash, soft) != ADMITTED {
                return REFUSED;
            }
        }
        level += 1;
    }
    ADMITTED
}

/// Charges one level.
#[inline(always)]
fn charge_level(knobs: Knobs, slot: &Slot, kind: Kind, level: usize, hash: u64, soft: u64) -> u64 {
    let rate = setting!(knobs, rates[level][kind as usize]);
    // One jump for both: the verifier walks what follows each.
    if rate.is_off() | is_spared(slot.flags()) {
        return ADMITTED;
    }
    let now_ns = fact!(slot, now_ns);
    let charge = match kind {
        Kind::Bytes => Charge::bytes(rate, fact!(slot, length).into(), now_ns),
        _ => Charge::unit(rate, now_ns),
    };
    settle(slot, kind.cells(), hash, charge, soft)
}

/// Whether a signature's rate is exceeded.
#[inline(always)]
pub fn exceeds(slot: &Slot, cells: Cells, hash: u64, rate: Rate, soft: u64) -> bool {
    let charge = Charge::unit(rate, fact!(slot, now_ns));
    !rate.is_off() && settle(slot, cells, hash, charge, soft) != ADMITTED
}

/// [`Charge::settle`] for the verifier, which walks an attempt once and not once for each.
///
/// A limit that is only monitored (`soft` is odd) is not charged what something before it would have dropped: it
/// then counts what it would drop if all of them were in force. One that is in force is charged all that comes.
#[inline(always)]
fn settle(slot: &Slot, cells: Cells, hash: u64, charge: Charge, soft: u64) -> u64 {
    // Arithmetic, because a branch doubles the ways that the verifier walks. 0 is no reason, 64 the last.
    let is_refused = u64::from(fact!(slot, would)) + 63 >> 6;
    let is_twin = u64::from(slot.flags() / FactFlag::TWIN);
    let look = ((is_twin | soft & is_refused) & 1) << LOOK.trailing_zeros();
    let differ = if charge.each == 0 { DIFFER } else { 0 };
    let set = u64::from(cells.set(hash)) | look | differ;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let verdict = attempt_charge(set, hash, charge.cost, charge.capacity, charge.now);
        if verdict != CONTENDED {
            return verdict;
        }
        attempt += 1;
    }
    REFUSED
}

/// One try to charge a hash in a set.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn attempt_charge(set: u64, hash: u64, cost: u64, capacity: u64, now: u64) -> u64 {
    let mode = if set & LOOK == 0 { Mode::Charge } else { Mode::Look };
    let each = if set & DIFFER == 0 { cost } else { 0 };
    // An array has every index below its length: a missing set cannot be.
    let Some(set) = tables::CELLS.get(set as u32) else { return ADMITTED };
    match (Charge { cost, each, capacity, now }).attempt(set, hash, mode) {
        Some(Verdict::Admit { .. }) => ADMITTED,
        Some(Verdict::Refuse { .. }) => REFUSED,
        None => CONTENDED,
    }
}

// Exported functions of integers: the verifier walks each once, by itself, instead of once for
// every path of the packet that leads to it.

/// A client's open connections, by its hash.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_open(hash: u64) -> u64 {
    tables::OPEN.set(hash).map_or(0, |set| u64::from(open::count(set, hash)))
}

/// What [`attempt_charge`] says.
const REFUSED: u64 = 0;
const ADMITTED: u64 = 1;
const CONTENDED: u64 = 2;

/// Beside the index of a set: nothing is charged.
const LOOK: u64 = 1 << 32;
/// Beside it: what is charged under this limit costs now more, now less.
const DIFFER: u64 = 1 << 33;
