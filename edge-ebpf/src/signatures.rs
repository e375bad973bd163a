//! An operator's signature rules, in their order; the first that drops decides.

use core::ops::ControlFlow::{self, Continue};

use aya_ebpf::{helpers::generated::bpf_xdp_load_bytes, programs::XdpContext};
use edge_common::{
    Reason,
    map::{FactFlag, PolicyFlag, SIGNATURES_MAX},
    signature::{Action, Ask, Signature, SignaturesInForce},
};

use crate::{
    limits, note, refuse,
    tables::{self, Knobs, Slot, fact, set_fact, setting},
};

/// Judges the packet by the signatures, if there are any.
#[inline(always)]
pub fn judge(ctx: &XdpContext, knobs: Knobs, slot: &Slot) -> ControlFlow<Reason> {
    let SignaturesInForce { first, count } = SignaturesInForce::of(setting!(knobs, signatures));
    if count == 0 {
        return Continue(());
    }
    if setting!(knobs, flags) & PolicyFlag::PAYLOADS != 0 {
        load_payload(ctx, slot);
    }
    let is_twin = u64::from(slot.is_twin());
    let mut index = 0;
    while index < SIGNATURES_MAX {
        if index >= count {
            break;
        }
        match match_signature((first + index).into(), is_twin) {
            DROP => {
                set_fact!(slot, rule, index);
                return refuse(knobs, Reason::Signature, slot.would());
            }
            WOULD_DROP => {
                if fact!(slot, would) == 0 {
                    set_fact!(slot, rule, index);
                }
                note(Reason::Signature as u32, slot.would());
            }
            _ => {}
        }
        index += 1;
    }
    Continue(())
}

/// Copies the first bytes of the payload to where the rules look for them.
#[inline(always)]
fn load_payload(ctx: &XdpContext, slot: &Slot) {
    if slot.flags() & FactFlag::TRANSPORT == 0 {
        return;
    }
    let from = fact!(slot, payload_offset);
    let packet_end = fact!(slot, ip_offset) + fact!(slot, ip_length);
    let bytes = match packet_end.wrapping_sub(from) {
        // Without a payload, or with a packet that ends before its own headers do.
        0 | 0x8000_0000.. => 0,
        bytes @ 1..16 => bytes,
        _ => 16,
    };
    set_fact!(slot, payload_bytes, bytes as u8);
    // Read back, so that the comparison is one which the verifier can follow.
    let bytes = fact!(slot, payload_bytes);
    if bytes == 0 || bytes > 16 {
        return;
    }
    // SAFETY: the address is that of 16 bytes in a table, and `bytes` is 1 to 16.
    let loaded = unsafe {
        let to = &raw mut (*slot.pointer()).payload;
        bpf_xdp_load_bytes(ctx.ctx, from, to.cast(), bytes.into())
    };
    if loaded != 0 {
        set_fact!(slot, payload_bytes, 0);
    }
}

/// What the rule at this place of the table does with the packet in hand. Exported, so that the verifier walks it
/// once and not once for each rule.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn match_signature(place: u64, is_twin: u64) -> u64 {
    let (Some(slot), Some(signature)) =
        (tables::slot(is_twin != 0), tables::SIGNATURES.get(place as u32))
    else {
        return NOTHING;
    };
    if !signature.matches(slot.facts()) {
        return NOTHING;
    }
    if is_twin == 0 {
        tables::increment_own(&tables::SIGNATURE_HITS, place as u32);
    }
    let is_monitored = signature.asks & Ask::MONITOR != 0;
    let all = tables::knobs().map_or(0, |knobs| setting!(knobs, monitored));
    let soft = all >> Reason::Signature as u32 | u64::from(is_monitored);
    match refuses(signature, place as u32 % SIGNATURES_MAX, &slot, soft) {
        false => NOTHING,
        true if is_monitored => WOULD_DROP,
        true => DROP,
    }
}

#[inline(always)]
fn refuses(signature: &Signature, index: u32, slot: &Slot, soft: u64) -> bool {
    match signature.action {
        Action::DROP => true,
        Action::LIMIT => {
            let client =
                if signature.asks & Ask::PER_CLIENT != 0 { fact!(slot, client_hash) } else { 0 };
            let hash = (client ^ SALT).wrapping_mul(2 * u64::from(index) + 1).rotate_left(24);
            limits::exceeds(slot, signature.cells, hash, signature.rate, soft)
        }
        _ => false,
    }
}

/// What [`match_signature`] says.
const NOTHING: u64 = 0;
const WOULD_DROP: u64 = 1;
const DROP: u64 = 2;

/// Keeps a client's marks under one rule apart from those under another that had its cells before.
const SALT: u64 = 0x51c6_a7d2_93e1_0b7f;
