//! The one exit: counts every packet, tells of drops, and gives the kernel its answer.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_xdp_get_buff_len},
    maps::RingBuf,
    programs::XdpContext,
};
use aya_log_ebpf::debug;
use edge_common::{
    Reason, limit,
    map::{INTERFACES_MAX, Packet, PolicyFlag, count_index},
    verifier,
};

use crate::{
    boot_ns, is_monitored, note,
    packet::{IPPROTO_TCP, IPPROTO_UDP},
    tables::{self, Knobs, Slot, fact, set_fact, setting},
};

/// Counts the packet under its reason and turns the reason into XDP's answer.
#[inline(always)]
pub fn settle(ctx: &XdpContext, knobs: Knobs, slot: &Slot, reason: Reason) -> u32 {
    set_fact!(slot, reason, reason as u32);
    // Read back: the verifier walks what follows once, and not for each reason.
    let mut reason = fact!(slot, reason);
    if !Reason::passes_by_number(reason) && is_monitored(knobs, reason) {
        note(reason, slot.would());
        reason = Reason::Pass as u32;
        set_fact!(slot, reason, reason);
    }
    if !slot.is_twin() {
        account(reason.into());
        log(ctx, slot, reason);
    }
    answer(reason)
}

/// Counts the packet in hand under this reason, and tells of it. Exported, so that the verifier
/// walks it once and not once for every way to the exit.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn account(reason: u64) -> u64 {
    let (Some(knobs), Some(slot)) = (tables::knobs(), tables::slot(false)) else { return 0 };
    let (reason, would) = (reason as u32, fact!(slot, would));
    let interface = interface(knobs, fact!(slot, ifindex));
    count(count_index(interface, false, reason), &slot);
    if would != 0 {
        count(count_index(interface, true, would - 1), &slot);
    }
    if is_sampled(knobs) {
        tell(&tables::SAMPLES, SAMPLES_LOST, NO_WAKEUP, &slot, reason);
    }
    let is_whole = Reason::passes_by_number(reason) || Reason::answers_by_number(reason);
    if !is_whole {
        tell_drop(knobs, &slot, reason);
    } else if would != 0 {
        tell_drop(knobs, &slot, would - 1);
    }
    0
}

#[inline(always)]
fn answer(reason: u32) -> u32 {
    if Reason::answers_by_number(reason) {
        xdp_action::XDP_TX
    } else if Reason::passes_by_number(reason) {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_DROP
    }
}

/// Where packets of this interface are counted.
#[inline(always)]
fn interface(knobs: Knobs, ifindex: u32) -> u32 {
    let mut place = 0;
    while place < INTERFACES_MAX - 1 {
        let known = setting!(knobs, interfaces[place as usize]);
        if known == ifindex {
            break;
        }
        place = if known == 0 { INTERFACES_MAX - 1 } else { place + 1 };
    }
    verifier::forget(place.into(), ifindex.into()) as u32
}

#[inline(always)]
fn count(index: u32, slot: &Slot) {
    let length = u64::from(fact!(slot, length));
    if let Some(count) = tables::COUNTS.get_ptr_mut(index) {
        // SAFETY: the lookup gave the address of a whole `Count` of this CPU's own. XDP runs with
        // bottom halves disabled, so that no other run on this CPU comes between; the daemon only
        // reads, by the kernel, and at worst finds a packet without its bytes.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += length;
        }
    }
}

#[inline(always)]
fn log(ctx: &XdpContext, slot: &Slot, reason: u32) {
    debug!(
        ctx,
        "{} {:i} protocol {} port {} length {}",
        reason,
        fact!(slot, source).octets(),
        fact!(slot, protocol),
        fact!(slot, port),
        fact!(slot, length)
    );
}

#[inline(always)]
fn is_sampled(knobs: Knobs) -> bool {
    // SAFETY: the helper takes no argument and gives a number.
    setting!(knobs, flags) & PolicyFlag::SAMPLES != 0
        && unsafe { bpf_get_prandom_u32() } & setting!(knobs, sample_mask) == 0
}

/// Tells of a drop, unless there were too many already or none is to be told.
#[inline(always)]
fn tell_drop(knobs: Knobs, slot: &Slot, reason: u32) {
    if setting!(knobs, event_rate).is_off() {
        return;
    }
    if may_tell(knobs) {
        tell(&tables::DROPS, DROPS_LOST, 0, slot, reason);
    } else {
        tables::increment_own(&tables::EVENTS_LOST, DROPS_LOST);
    }
}

/// Whether one more drop may be told; all share one bucket, which the cheap clock is good enough for.
/// Where two CPUs ask at once, one may not.
#[inline(always)]
fn may_tell(knobs: Knobs) -> bool {
    let rate = setting!(knobs, event_rate);
    let Some(bucket) = tables::DROPS_BUCKET.get_ptr_mut(0) else { return false };
    // SAFETY: an array's value is aligned and there for as long as the program; programs write it by
    // this atomic exchange only. The helper takes no argument and only reads a clock.
    unsafe {
        let word = tables::peek(bucket);
        limit::charged(word, rate, bpf_ktime_get_coarse_ns())
            .is_some_and(|charged| tables::replace(bucket, word, charged))
    }
}

/// Writes an event, unless nobody empties the ring.
#[inline(always)]
fn tell(ring: &'static RingBuf, lost: u32, flags: u64, slot: &Slot, reason: u32) {
    let protocol = fact!(slot, protocol);
    let event = Packet {
        at_ns: boot_ns(),
        source: fact!(slot, source),
        reason,
        ifindex: fact!(slot, ifindex),
        length: fact!(slot, length),
        port: match protocol {
            IPPROTO_TCP | IPPROTO_UDP => fact!(slot, port),
            // An ICMP type and code.
            _ => 0,
        },
        protocol,
        would: u8::from(fact!(slot, would) == reason + 1),
    };
    if ring.output::<Packet>(event, flags).is_err() {
        tables::increment_own(&tables::EVENTS_LOST, lost);
    }
}

/// The frame's length, the part beyond the first buffer included.
#[inline(always)]
pub fn frame_length(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the one the kernel called the program with; the helper only reads it.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}

/// Indexes of `EVENTS_LOST`.
const DROPS_LOST: u32 = 0;
const SAMPLES_LOST: u32 = 1;
/// The daemon comes for the samples by its own clock: it is not woken for each.
const NO_WAKEUP: u64 = 1;
