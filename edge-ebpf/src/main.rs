//! The kernel programs: one judges packets, one follows sockets.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod cookies;
mod frame;
mod limits;
mod lists;
mod lookup;
mod packet;
mod report;
mod services;
mod signatures;
mod sockets;
mod tables;

use core::ops::ControlFlow::{self, Break, Continue};

use aya_ebpf::{
    bindings::xdp_action, helpers::bpf_ktime_get_boot_ns, macros::xdp, programs::XdpContext,
};
use edge_common::{
    Reason, Source,
    map::{FactFlag, Facts, Kind},
};

use crate::{
    frame::Frame,
    tables::{Knobs, Slot, fact, setting},
};

/// Judges one packet.
#[xdp(frags)]
pub fn edged(ctx: XdpContext) -> u32 {
    run(&ctx, false)
}

/// Judges a packet of the daemon's own, by `BPF_PROG_TEST_RUN`, without a trace: it charges nobody,
/// counts nothing, tells nobody, and leaves what it found in `TWIN_FACTS`.
#[xdp(frags)]
pub fn edged_twin(ctx: XdpContext) -> u32 {
    run(&ctx, true)
}

#[inline(always)]
fn run(ctx: &XdpContext, is_twin: bool) -> u32 {
    let (Some(knobs), Some(slot)) = (tables::knobs(), tables::slot(is_twin)) else {
        return xdp_action::XDP_ABORTED;
    };
    let facts = slot.clear(if is_twin { FactFlag::TWIN } else { 0 });
    facts.ifindex = ctx.ingress_ifindex() as u32;
    let read = read(ctx, knobs, facts);
    // The facts lie in a table, of which the verifier remembers nothing: however a packet was
    // read, the rest of the program is walked once.
    let reason = match read {
        Break(reason) if !goes_on(knobs, &slot, reason) => reason,
        _ => match judge(ctx, knobs, &slot) {
            Break(reason) => reason,
            Continue(()) if is_spared(slot.flags()) => Reason::AllowList,
            Continue(()) => Reason::Pass,
        },
    };
    report::settle(ctx, knobs, &slot, reason)
}

/// Whether a packet that could not be read to its end is judged by what is known of it: its source,
/// but no transport header. Monitoring that refusal shall not switch off the others.
#[inline(always)]
fn goes_on(knobs: Knobs, slot: &Slot, reason: Reason) -> bool {
    matches!(reason, Reason::MalformedPacket | Reason::UnparsedPacket)
        && fact!(slot, now_ns) != 0
        && refuse(knobs, reason, slot.would()).is_continue()
}

/// Reads the packet, and judges its source as soon as it is known: nothing deeper can save it.
#[inline(always)]
fn read(ctx: &XdpContext, knobs: Knobs, facts: &mut Facts) -> ControlFlow<Reason> {
    let mut frame = Frame::new(ctx);
    let header = packet::source(&mut frame, facts)?;
    lists::judge(knobs, facts)?;
    // A banned or flooding neighbour must still be found, or the router itself may be lost.
    packet::neighbour_discovery(&frame, &header, facts)?;
    facts.now_ns = boot_ns();
    let client = facts.source.client(setting!(knobs, client));
    facts.client_hash = client.hash(setting!(knobs, seed));
    banned(knobs, &client, facts)?;
    packet::transport(&mut frame, header, facts)
}

/// The rest of the path. Each line settles the packet's reason or hands on.
#[inline(always)]
fn judge(ctx: &XdpContext, knobs: Knobs, slot: &Slot) -> ControlFlow<Reason> {
    signatures::judge(ctx, knobs, slot)?;
    packet::fragment_policy(knobs, slot)?;
    services::judge(ctx, knobs, slot)?;
    limits::judge(knobs, slot, Kind::Packets)?;
    limits::judge(knobs, slot, Kind::Bytes)?;
    match packet::kind(slot) {
        Some(Kind::Connections) => {
            limits::judge(knobs, slot, Kind::Connections)?;
            limits::below_open_max(knobs, slot)?;
        }
        Some(kind) => limits::judge(knobs, slot, kind)?,
        None => {}
    }
    cookies::judge(ctx, knobs, slot)
}

/// Whether no list, ban or limit drops the source's packets.
#[inline(always)]
const fn is_spared(flags: u32) -> bool {
    flags & FactFlag::SPARED != 0
}

#[inline(always)]
fn banned(knobs: Knobs, client: &Source, facts: &mut Facts) -> ControlFlow<Reason> {
    if is_spared(facts.flags) || !tables::may_be_banned(facts.client_hash) {
        return Continue(());
    }
    let Some(ban) = tables::BANS.get_ptr_mut(client) else { return Continue(()) };
    // SAFETY: the lookup gave the address of a whole `Ban`, which stays until the program returns,
    // though the daemon may overwrite it or the kernel give it to another client meanwhile.
    unsafe {
        if facts.now_ns >= tables::peek(&raw const (*ban).until_ns) {
            return Continue(());
        }
        if facts.flags & FactFlag::TWIN == 0 {
            tables::increment(&raw mut (*ban).hits);
            if tables::peek(&raw const (*ban).first_hit_ns) == 0 {
                tables::set_once(&raw mut (*ban).first_hit_ns, facts.now_ns);
            }
        }
    }
    refuse(knobs, Reason::Ban, &mut facts.would)
}

/// Ends the packet for this reason, unless the reason is only monitored: then it goes on, and the
/// first such reason is remembered.
#[inline(always)]
fn refuse(knobs: Knobs, reason: Reason, would: &mut u32) -> ControlFlow<Reason> {
    if !is_monitored(knobs, reason as u32) {
        return Break(reason);
    }
    note(reason as u32, would);
    Continue(())
}

#[inline(always)]
fn is_monitored(knobs: Knobs, reason: u32) -> bool {
    setting!(knobs, monitored) >> (reason & 63) & 1 != 0
}

#[inline(always)]
fn note(reason: u32, would: &mut u32) {
    // SAFETY: a reference is valid and aligned. Volatile, so that it stays in its table, where the
    // verifier does not follow it.
    unsafe {
        let would = &raw mut *would;
        if would.read_volatile() == 0 {
            would.write_volatile(reason + 1);
        }
    }
}

/// Takes back what was noted, of a packet that ends for the same reason.
#[inline(always)]
fn forget(reason: u32, would: &mut u32) {
    // SAFETY: as in `note`.
    unsafe {
        let would = &raw mut *would;
        if would.read_volatile() == reason + 1 {
            would.write_volatile(0);
        }
    }
}

#[inline(always)]
fn boot_ns() -> u64 {
    // SAFETY: the helper takes no argument and only reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
