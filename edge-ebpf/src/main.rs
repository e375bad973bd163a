//! The kernel programs: one judges packets, one follows sockets.
#![no_std]
#![no_main]

mod packet;
mod report;
mod sockets;
mod tables;

use core::ops::ControlFlow::{self, Break, Continue};

use aya_ebpf::{
    bindings::xdp_action, helpers::bpf_ktime_get_boot_ns, macros::xdp, maps::LpmTrie,
    programs::XdpContext,
};
use edge_common::{
    Rate, Reason, Source, Verdict, limit,
    map::{Entry, Settings},
    open,
};

use crate::{
    packet::{Facts, Frame},
    tables::Key,
};

/// Judges one packet.
#[xdp(frags)]
pub fn edged(ctx: XdpContext) -> u32 {
    let Some(settings) = tables::settings() else { return xdp_action::XDP_ABORTED };
    let mut facts = Facts::new();
    let reason = match judge(&ctx, &settings, &mut facts) {
        Break(reason) => reason,
        Continue(()) => Reason::Pass,
    };
    report::settle(&ctx, &settings, reason, &facts)
}

/// The whole path. Each line settles the packet's reason or hands on.
#[inline(always)]
fn judge(ctx: &XdpContext, settings: &Settings, facts: &mut Facts) -> ControlFlow<Reason> {
    let mut frame = Frame::new(ctx);
    let header = packet::source(&mut frame, facts)?;
    // The source is known. What else the packet holds can no longer save it.
    let now_ns = boot_ns();
    let client = facts.source.client(settings.ipv6_bits);
    allowed(&facts.source, now_ns)?;
    denied(&facts.source, now_ns)?;
    // A banned or flooding neighbour must still be found, or the router itself may be lost.
    packet::neighbour_discovery(&frame, &header)?;
    banned(&client, now_ns)?;
    let segment = packet::transport(&mut frame, header, facts)?;
    let hash = client.hash(settings.seed);
    within(charge_packet, hash, settings.packet_rate, now_ns, Reason::PacketRate)?;
    if segment.opens_connection {
        let rate = settings.connection_rate;
        within(charge_connection, hash, rate, now_ns, Reason::ConnectionRate)?;
        below_open_max(hash, settings.open_max)?;
    }
    Continue(())
}

#[inline(always)]
fn allowed(source: &Source, now_ns: u64) -> ControlFlow<Reason> {
    listed(&tables::ALLOW, source, now_ns, Reason::AllowList)
}

#[inline(always)]
fn denied(source: &Source, now_ns: u64) -> ControlFlow<Reason> {
    listed(&tables::DENY, source, now_ns, Reason::DenyList)
}

/// The longest match decides alone: the daemon gives each network the latest end of all that
/// cover it.
#[inline(always)]
fn listed(
    list: &'static LpmTrie<[u8; 16], Entry>,
    source: &Source,
    now_ns: u64,
    reason: Reason,
) -> ControlFlow<Reason> {
    // aya gives a reference; what other CPUs write is reached by its address alone.
    let entry = match list.get(Key::new(128, source.0)) {
        Some(entry) => (&raw const *entry).cast_mut(),
        None => return Continue(()),
    };
    // SAFETY: the lookup gave the address of a whole `Entry`, which stays until the program
    // returns; the kernel lets programs write it.
    unsafe {
        if now_ns >= tables::peek(&raw const (*entry).until_ns) {
            return Continue(());
        }
        tables::increment(&raw mut (*entry).hits);
    }
    Break(reason)
}

#[inline(always)]
fn banned(client: &Source, now_ns: u64) -> ControlFlow<Reason> {
    let Some(ban) = tables::BANS.get_ptr_mut(client) else { return Continue(()) };
    // SAFETY: the lookup gave the address of a whole `Ban`, which stays until the program returns,
    // though the daemon may overwrite it or the kernel give it to another client meanwhile.
    unsafe {
        if now_ns >= tables::peek(&raw const (*ban).until_ns) {
            return Continue(());
        }
        tables::increment(&raw mut (*ban).hits);
        if tables::peek(&raw const (*ban).first_hit_ns) == 0 {
            tables::set_once(&raw mut (*ban).first_hit_ns, now_ns);
        }
    }
    Break(Reason::Ban)
}

#[inline(always)]
fn within(
    charge: extern "C" fn(u64, u64, u64, u64) -> u64,
    hash: u64,
    rate: Rate,
    now_ns: u64,
    reason: Reason,
) -> ControlFlow<Reason> {
    if rate.is_off() || charge(hash, rate.interval, rate.capacity, now_ns) == ADMITTED {
        Continue(())
    } else {
        Break(reason)
    }
}

#[inline(always)]
fn below_open_max(hash: u64, open_max: u32) -> ControlFlow<Reason> {
    if open_max == 0 {
        return Continue(());
    }
    let Some(set) = tables::OPEN.set(hash) else { return Continue(()) };
    if open::count(set, hash) < open_max { Continue(()) } else { Break(Reason::OpenConnections) }
}

// The limiter's functions take and give integers only, and are exported: the verifier walks each
// once, by itself, instead of once for every path of the packet that leads to it.

/// Charges a packet to a client.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn charge_packet(hash: u64, interval: u64, capacity: u64, now_ns: u64) -> u64 {
    charge(tables::PACKET_CELLS.set(hash), hash, Rate { interval, capacity }, now_ns)
}

/// Charges a new connection to a client.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn charge_connection(hash: u64, interval: u64, capacity: u64, now_ns: u64) -> u64 {
    charge(tables::CONNECTION_CELLS.set(hash), hash, Rate { interval, capacity }, now_ns)
}

/// Charges a drop event; all share one bucket.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn charge_event(hash: u64, interval: u64, capacity: u64, now_ns: u64) -> u64 {
    charge(tables::DROPS_CELL.set(hash), hash, Rate { interval, capacity }, now_ns)
}

#[inline(always)]
fn charge(set: Option<&limit::Set>, hash: u64, rate: Rate, now_ns: u64) -> u64 {
    // An array has every index below its length: a missing set cannot be.
    let Some(set) = set else { return ADMITTED };
    match limit::charge(set, hash, rate, now_ns) {
        Verdict::Admit { .. } => ADMITTED,
        Verdict::Refuse { .. } => REFUSED,
    }
}

const REFUSED: u64 = 0;
const ADMITTED: u64 = 1;

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
