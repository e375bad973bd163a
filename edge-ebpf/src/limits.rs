//! What a client may send over time, and what the prefixes around it may together.

use core::ops::ControlFlow::{self, Continue};

use edge_common::{
    Rate, Reason, Verdict,
    limit::{ATTEMPTS, Charge, Mode},
    map::{Cells, FactFlag, Kind, LEVELS},
    open,
};

use crate::{
    refuse,
    tables::{self, Knobs, Slot, fact, setting},
};

/// Charges the packet under a kind, to its client and then to the prefixes around it.
#[inline(always)]
pub fn judge(knobs: Knobs, slot: &Slot, kind: Kind) -> ControlFlow<Reason> {
    if charge_level(knobs, slot, kind, 0, fact!(slot, client_hash)) != ADMITTED {
        refuse(knobs, kind.reason(), slot.would())?;
    }
    if charge_prefixes(knobs, slot, kind) != ADMITTED {
        refuse(knobs, Reason::PrefixRate, slot.would())?;
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
    open_max != 0 && count_open(fact!(slot, client_hash)) >= u64::from(open_max)
}

#[inline(always)]
fn charge_prefixes(knobs: Knobs, slot: &Slot, kind: Kind) -> u64 {
    if slot.flags() & FactFlag::V4 != 0 {
        return ADMITTED;
    }
    let mut level = 1;
    while level < LEVELS {
        let bits = setting!(knobs, prefix_bits[level - 1]);
        if bits != 0 {
            let hash = fact!(slot, source).prefix_hash(bits, setting!(knobs, seed));
            if charge_level(knobs, slot, kind, level, hash) != ADMITTED {
                return REFUSED;
            }
        }
        level += 1;
    }
    ADMITTED
}

/// Charges one level.
#[inline(always)]
fn charge_level(knobs: Knobs, slot: &Slot, kind: Kind, level: usize, hash: u64) -> u64 {
    let rate = setting!(knobs, rates[level][kind as usize]);
    if rate.is_off() {
        return ADMITTED;
    }
    let now_ns = fact!(slot, now_ns);
    let charge = match kind {
        Kind::Bytes => Charge::bytes(rate, fact!(slot, length).into(), now_ns),
        _ => Charge::unit(rate, now_ns),
    };
    settle(slot, kind.cells(), hash, charge)
}

/// Whether a signature's rate is exceeded.
#[inline(always)]
pub fn exceeds(slot: &Slot, cells: Cells, hash: u64, rate: Rate) -> bool {
    let charge = Charge::unit(rate, fact!(slot, now_ns));
    !rate.is_off() && settle(slot, cells, hash, charge) != ADMITTED
}

/// [`Charge::settle`] for the verifier, which walks an attempt once and not once for each.
#[inline(always)]
fn settle(slot: &Slot, cells: Cells, hash: u64, charge: Charge) -> u64 {
    let look = if slot.is_twin() { LOOK } else { 0 };
    let set = u64::from(cells.set(hash)) | look;
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
    // An array has every index below its length: a missing set cannot be.
    let Some(set) = tables::CELLS.get(set as u32) else { return ADMITTED };
    match (Charge { cost, capacity, now }).attempt(set, hash, mode) {
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

/// Beside the index of a set: the twin only looks.
const LOOK: u64 = 1 << 32;
