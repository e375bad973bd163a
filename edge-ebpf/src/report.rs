//! The one exit: counts every packet, tells of drops, and gives the kernel its answer.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_xdp_get_buff_len, programs::XdpContext};
use aya_log_ebpf::debug;
use edge_common::{
    Reason,
    map::{Drop, Settings},
};

use crate::{packet::Facts, tables};

/// Counts the packet under its reason and turns the reason into XDP's answer.
#[inline(always)]
pub fn settle(ctx: &XdpContext, settings: &Settings, reason: Reason, facts: &Facts) -> u32 {
    count(reason, facts.length);
    debug!(
        ctx,
        "{} {:i} protocol {} port {} length {}",
        reason as u8,
        facts.source.0,
        facts.protocol,
        facts.port,
        facts.length
    );
    if reason.passes() {
        return xdp_action::XDP_PASS;
    }
    tell(ctx, settings, reason, facts);
    xdp_action::XDP_DROP
}

#[inline(always)]
fn count(reason: Reason, length: u32) {
    if let Some(count) = tables::COUNTS.get_ptr_mut(reason as u32) {
        // SAFETY: the lookup gave the address of a whole `Count` of this CPU's own. XDP runs with
        // bottom halves disabled, so that no other run on this CPU comes between; the daemon only
        // reads, by the kernel, and at worst finds a packet without its bytes.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(length);
        }
    }
}

/// Writes a drop event, unless there were too many already or nobody empties the ring.
#[inline(always)]
fn tell(ctx: &XdpContext, settings: &Settings, reason: Reason, facts: &Facts) {
    let at_ns = crate::boot_ns();
    let event = Drop {
        at_ns,
        source: facts.source,
        reason: reason as u32,
        ifindex: ctx.ingress_ifindex() as u32,
        length: facts.length,
        port: facts.port,
        protocol: facts.protocol,
        pad: 0,
    };
    if !may_tell(settings, at_ns) || tables::DROPS.output::<Drop>(event, 0).is_err() {
        if let Some(lost) = tables::DROPS_LOST.get_ptr_mut(0) {
            // SAFETY: an aligned word of this CPU's own, as in `count`.
            unsafe { *lost += 1 };
        }
    }
}

#[inline(always)]
fn may_tell(settings: &Settings, now_ns: u64) -> bool {
    let rate = settings.event_rate;
    rate.is_off() || crate::charge_event(0, rate.interval, rate.capacity, now_ns) == crate::ADMITTED
}

/// The frame's length, the part beyond the first buffer included.
#[inline(always)]
pub fn frame_length(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the one the kernel called the program with; the helper only reads it.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}
