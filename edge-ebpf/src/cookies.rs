//! The end of the path of TCP: answers SYNs with cookies while a listener's queue is full, keeps
//! packets of no connection from the stack while they flood, and lets nobody complete a connection
//! who has all that it may.
//!
//! The kernel takes a cookie back only if the listener's queue overflowed within two minutes, which
//! it notes when it makes a cookie itself. `bpf_tcp_gen_syncookie` asks the listener for just that
//! and is refused while its queue has room. So one question is the measure of pressure, and at the
//! same time what keeps cookies valid, for as long as a flood lasts and whether or not the daemon
//! lives.

use core::ops::ControlFlow::{self, Continue};

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{
        bpf_check_mtu, bpf_ktime_get_ns, bpf_tcp_raw_check_syncookie_ipv4,
        bpf_tcp_raw_check_syncookie_ipv6, bpf_tcp_raw_gen_syncookie_ipv4,
        bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_tail, bpf_xdp_load_bytes,
        bpf_xdp_store_bytes,
    },
    programs::XdpContext,
};
use edge_common::{
    Reason,
    cookie::{
        ANSWER_BYTES, ANY_PORT, Listener, MADE_MAX, Made, Offer, PAYLOAD_MIN, Pressure, Segment,
        TCP_BYTES_MAX, UNSOLICITED_SAMPLE, V4_BYTES, V6_BYTES,
    },
    limit,
    map::{FactFlag, PolicyFlag},
    verifier,
};

use crate::{
    limits,
    lookup::{self, LISTEN, NEW_SYN_RECV, NOBODY, SYN_RECV},
    packet::{IPPROTO_TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    refuse,
    tables::{self, Knobs, Slot, fact, setting},
};

/// Answers a SYN to a listener under pressure, and refuses what belongs to no connection while
/// there is too much of it, and what would complete one too many.
///
/// A SYN whose checksum is wrong is answered like any other: that of a neighbour on the same
/// machine is not filled in yet, and whoever forges a SYN can compute it.
#[inline(always)]
pub fn judge(ctx: &XdpContext, knobs: Knobs, slot: &Slot) -> ControlFlow<Reason> {
    if fact!(slot, protocol) != IPPROTO_TCP || slot.flags() & FactFlag::TRANSPORT == 0 {
        return Continue(());
    }
    let asked = match slot.flags() & FactFlag::FRAGMENT {
        0 => setting!(knobs, flags),
        _ => 0,
    };
    if fact!(slot, tcp_flags) & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN {
        syn(ctx, knobs, slot, asked)
    } else {
        other(ctx, knobs, slot, asked)
    }
}

/// A SYN: goes on while its listener has room, is answered when it has not.
#[inline(always)]
fn syn(ctx: &XdpContext, knobs: Knobs, slot: &Slot, asked: u32) -> ControlFlow<Reason> {
    if asked & PolicyFlag::SYN_COOKIES == 0 {
        return Continue(());
    }
    let port = fact!(slot, port).into();
    let Some(pressure) = pressure(slot, port) else { return Continue(()) };
    let now_ns = fact!(slot, now_ns);
    // SAFETY: the lookup gave the address of a whole `Pressure`.
    let (asked_ns, until_ns) = unsafe {
        (
            tables::peek(&raw const (*pressure).asked_ns),
            tables::peek(&raw const (*pressure).until_ns),
        )
    };
    let is_due = now_ns >= until_ns;
    if is_due && (slot.is_twin() || now_ns < asked_ns + ASK_NS) {
        return Continue(());
    }
    let Some((segment, bytes)) = load(ctx, slot) else { return Continue(()) };
    if is_due {
        // SAFETY: as above; a number that another CPU writes at the same time is as good.
        unsafe { (&raw mut (*pressure).asked_ns).write_volatile(now_ns) };
        if !lookup::has_overflowed(ctx, slot.facts(), segment, bytes) {
            return Continue(());
        }
        let until_ns = now_ns + ENGAGED_NS;
        // SAFETY: as above.
        unsafe { (&raw mut (*pressure).until_ns).write_volatile(until_ns) };
        alarm(until_ns);
    } else if lookup::tcp(ctx, slot.facts()).state != LISTEN {
        // A retransmission, or a former connection of the same ports: the stack knows it.
        return Continue(());
    }
    // SAFETY: `load` gave the address of a whole `Segment` of this run's own.
    if !unsafe { &*segment }.can_be_answered(&slot.facts().source) {
        return Continue(());
    }
    // Monitored, it must go on as it came.
    refuse(knobs, Reason::SynCookie, slot.would()).map_break(|reason| {
        if slot.is_twin() || answer(ctx, knobs, slot, segment) { reason } else { Reason::Pass }
    })
}

/// Any other TCP packet: must belong to a connection or bring a valid cookie, in a flood. A client that
/// has as many connections as it may completes no further one: neither by a cookie that it was given
/// before, nor one that it left half open.
#[inline(always)]
fn other(ctx: &XdpContext, knobs: Knobs, slot: &Slot, asked: u32) -> ControlFlow<Reason> {
    let now_ns = fact!(slot, now_ns);
    let is_asked = asked & UNSOLICITED != 0 && asked & PolicyFlag::VRF_ABOVE == 0;
    let is_always = asked & PolicyFlag::UNSOLICITED_ALWAYS != 0;
    let is_refused = is_asked && (is_always || is_alarm(now_ns));
    // The clock's last digits are as good as drawn.
    let is_drawn = (now_ns ^ now_ns >> 7) & (UNSOLICITED_SAMPLE - 1) == 0;
    let is_sampled = is_asked && is_drawn && !slot.is_twin();
    let completes = fact!(slot, tcp_flags) & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_ACK;
    let is_full = completes && limits::is_at_open_max(knobs, slot);
    if !is_refused && !is_sampled && !is_full {
        return Continue(());
    }
    let state = lookup::tcp(ctx, slot.facts()).state;
    if state == NEW_SYN_RECV || state == SYN_RECV {
        return if completes { limits::below_open_max(knobs, slot) } else { Continue(()) };
    }
    if state != NOBODY && state != LISTEN || !is_for_host(slot, asked) {
        return Continue(());
    }
    if state == LISTEN {
        let is_twin = slot.is_twin();
        if has_cookie(ctx, slot) {
            limits::below_open_max(knobs, slot)?;
            is_made(is_twin.into(), (!is_twin).into());
            return Continue(());
        }
        if is_made(is_twin.into(), 0) != 0 {
            return Continue(());
        }
    }
    if is_sampled && are_too_many(knobs, now_ns) {
        alarm(now_ns + ALARM_NS);
    }
    // A link-local connection is bound to the device above, where no look-up finds it.
    let is_unknown = asked & PolicyFlag::BOUND_ABOVE != 0 && slot.facts().source.is_link_local();
    if !is_refused || is_unknown {
        return Continue(());
    }
    refuse(knobs, Reason::Unsolicited, slot.would())
}

/// Whether the packet would find its socket here, if it had one. What is only routed through would
/// not; nor may what comes to a port that is not protected, where sockets can be bound to a device above.
#[inline(always)]
fn is_for_host(slot: &Slot, asked: u32) -> bool {
    pressure(slot, fact!(slot, port).into()).is_some()
        || asked & PolicyFlag::BOUND_ABOVE == 0 && pressure(slot, ANY_PORT).is_some()
}

/// The state of the listener at this port that the packet is for, if it is one that is protected: an
/// address of this host.
#[inline(always)]
fn pressure(slot: &Slot, port: u64) -> Option<*mut Pressure> {
    let listener = Listener { address: fact!(slot, destination), port };
    tables::LISTENERS.get_ptr_mut(&listener)
}

/// Copies the headers to where the helpers can read them, and tells the bytes of the TCP one;
/// `None` for IP headers with more than the usual, which the cookie helpers do not take.
#[inline(always)]
fn load(ctx: &XdpContext, slot: &Slot) -> Option<(*mut Segment, u32)> {
    let segment = tables::SEGMENTS.get_ptr_mut(u32::from(slot.is_twin()))?;
    let (ip_at, tcp_at) = (fact!(slot, ip_offset), fact!(slot, transport_offset));
    let ip_bytes = tcp_at.wrapping_sub(ip_at);
    let bytes = fact!(slot, payload_offset).wrapping_sub(tcp_at);
    if !(20..=TCP_BYTES_MAX as u32).contains(&bytes) {
        return None;
    }
    // SAFETY: a whole `Segment` of this run's own, of which each field is loaded in its bounds.
    let result = unsafe {
        let (macs, ip) = (&raw mut (*segment).macs, &raw mut (*segment).ip);
        let tcp = &raw mut (*segment).tcp;
        let loaded = match (slot.flags() & FactFlag::V4 != 0, ip_bytes as usize) {
            (true, V4_BYTES) => bpf_xdp_load_bytes(ctx.ctx, ip_at, ip.cast(), V4_BYTES as u32),
            (false, V6_BYTES) => bpf_xdp_load_bytes(ctx.ctx, ip_at, ip.cast(), V6_BYTES as u32),
            _ => return None,
        };
        loaded
            | bpf_xdp_load_bytes(ctx.ctx, 0, macs.cast(), 12)
            | bpf_xdp_load_bytes(ctx.ctx, tcp_at, tcp.cast(), bytes)
    };
    (result == 0).then_some((segment, bytes))
}

/// Turns the frame into a SYN-ACK; whether it could.
#[inline(always)]
fn answer(ctx: &XdpContext, knobs: Knobs, slot: &Slot, segment: *mut Segment) -> bool {
    let is_v4 = slot.flags() & FactFlag::V4 != 0;
    let mut mtu = 0_u32;
    // SAFETY: the context is the one the kernel called the program with; 0 is its own interface.
    unsafe { bpf_check_mtu(ctx.as_ptr(), 0, &raw mut mtu, 0, 0) };
    let bytes = write_answer(u64::from(is_v4), mtu.into(), setting!(knobs, cookie_keep).into());
    let ip_at = fact!(slot, ip_offset);
    let padded = verifier::opaque(if bytes == 0 { 0 } else { bytes.max(PAYLOAD_MIN as u64) });
    if padded > ANSWER_BYTES as u64 {
        return false;
    }
    let padded = verifier::opaque(padded) as u32;
    if padded == 0 {
        return false;
    }
    let more = (ip_at + padded).wrapping_sub(fact!(slot, length)) as i32;
    // SAFETY: the segment is whole and of this run's own; `padded` bytes lie in the answer behind
    // its start, and in the frame behind the IP header's, once it is long enough.
    unsafe {
        if bpf_xdp_adjust_tail(ctx.ctx, more) != 0 {
            return false;
        }
        let start = if is_v4 { V6_BYTES - V4_BYTES } else { 0 };
        let answer = (&raw mut (*segment).answer).cast::<u8>().add(start);
        let macs = &raw mut (*segment).macs;
        bpf_xdp_store_bytes(ctx.ctx, 0, macs.cast(), 12)
            | bpf_xdp_store_bytes(ctx.ctx, ip_at, answer.cast(), padded)
            == 0
    }
}

/// Makes the cookie and writes the answer of the packet in hand; its bytes, 0 for none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn write_answer(is_v4: u64, mtu: u64, keep: u64) -> u64 {
    let Some(segment) = tables::SEGMENTS.get_ptr_mut(0) else { return 0 };
    let is_v4 = is_v4 != 0;
    // SAFETY: a whole `Segment` of this run's own; the length is within the header's bounds.
    let (made, segment) = unsafe {
        let bytes = u32::from((*segment).tcp[12] >> 4) * 4;
        if !(20..=TCP_BYTES_MAX as u32).contains(&bytes) {
            return 0;
        }
        let (ip, tcp) = (&raw mut (*segment).ip, &raw mut (*segment).tcp);
        let made = if is_v4 {
            bpf_tcp_raw_gen_syncookie_ipv4(ip.cast(), tcp.cast(), bytes)
        } else {
            bpf_tcp_raw_gen_syncookie_ipv6(ip.cast(), tcp.cast(), bytes)
        };
        (made, &mut *segment)
    };
    if made < 0 {
        return 0;
    }
    let headers = 20 + if is_v4 { V4_BYTES } else { V6_BYTES } as u64;
    let mss = mtu.saturating_sub(headers).clamp(MSS_MIN, u16::MAX.into());
    // SAFETY: the helper takes no argument and only reads a clock.
    let now_ms = unsafe { bpf_ktime_get_ns() } / 1_000_000;
    let offer = Offer { cookie: made as u32, mss: mss as u16, keep: keep as u32, now_ms };
    segment.turn_macs();
    segment.write_answer(is_v4, &offer) as u64
}

/// Whether a cookie made the connection of the packet in hand just now; notes that it did, if so told.
/// Only who brings a cookie back is noted.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_made(is_twin: u64, notes: u64) -> u64 {
    let (Some(knobs), Some(slot)) = (tables::knobs(), tables::slot(is_twin != 0)) else { return 0 };
    let ports = u64::from(fact!(slot, source_port)) << 16 | u64::from(fact!(slot, port));
    let source = fact!(slot, source).hash(setting!(knobs, seed));
    let hash = fact!(slot, destination).hash(source ^ ports);
    let Some(made) = tables::MADE.get_ptr_mut(hash as u32 & (MADE_MAX - 1)) else { return 0 };
    let now_ns = fact!(slot, now_ns);
    if notes != 0 {
        // SAFETY: an array's value is aligned and there for as long as the program; a word is written
        // at once.
        unsafe { made.write_volatile(Made::new(hash, now_ns).0) };
    }
    // SAFETY: as above.
    Made(unsafe { tables::peek(made) }).holds(hash, now_ns).into()
}

/// Whether the packet brings back a cookie of this host's.
#[inline(always)]
fn has_cookie(ctx: &XdpContext, slot: &Slot) -> bool {
    let flags = fact!(slot, tcp_flags);
    flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_ACK
        && load(ctx, slot).is_some()
        && check_cookie(slot.is_twin().into(), u64::from(slot.flags() & FactFlag::V4)) != 0
}

/// Whether the packet in hand brings back a cookie.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn check_cookie(is_twin: u64, is_v4: u64) -> u64 {
    let Some(segment) = tables::SEGMENTS.get_ptr_mut((is_twin != 0).into()) else { return 0 };
    // SAFETY: a whole `Segment` of this run's own, of which the helpers read the fixed headers.
    let checked = unsafe {
        let (ip, tcp) = (&raw mut (*segment).ip, &raw mut (*segment).tcp);
        if is_v4 != 0 {
            bpf_tcp_raw_check_syncookie_ipv4(ip.cast(), tcp.cast())
        } else {
            bpf_tcp_raw_check_syncookie_ipv6(ip.cast(), tcp.cast())
        }
    };
    u64::from(checked == 0)
}

/// Charges a packet of no connection; whether there were more than their rate allows. All share one
/// bucket: where two CPUs charge it at once, one of the two may be lost.
#[inline(always)]
fn are_too_many(knobs: Knobs, now_ns: u64) -> bool {
    let rate = setting!(knobs, unsolicited);
    let Some(bucket) = tables::ALARM.get_ptr_mut(BUCKET) else { return false };
    if rate.is_off() {
        return false;
    }
    // SAFETY: an array's value is aligned and there for as long as the program; programs write it by
    // this atomic exchange only.
    unsafe {
        let word = tables::peek(bucket);
        let charged = limit::charged(word, rate, now_ns);
        charged.map(|charged| tables::replace(bucket, word, charged)).is_none()
    }
}

#[inline(always)]
fn is_alarm(now_ns: u64) -> bool {
    let Some(until) = tables::ALARM.get_ptr(UNTIL) else { return false };
    // SAFETY: the lookup gave the address of an aligned word.
    now_ns < unsafe { tables::peek(until) }
}

/// Refuses packets of no connection until then, at least.
#[inline(always)]
fn alarm(until_ns: u64) {
    if let Some(until) = tables::ALARM.get_ptr_mut(UNTIL)
        && !is_alarm(until_ns)
    {
        // SAFETY: as in `is_alarm`. Of CPUs that write at once one may shorten the other's alarm,
        // which is renewed while there is a flood.
        unsafe { until.write_volatile(until_ns) };
    }
}

const UNSOLICITED: u32 = PolicyFlag::UNSOLICITED | PolicyFlag::UNSOLICITED_ALWAYS;
/// A listener with room is asked again so soon: what a flood puts into its queue meanwhile is little.
const ASK_NS: u64 = 1_000_000;
/// One without room is left in peace for so long.
const ENGAGED_NS: u64 = 1_000_000_000;
/// An alarm over packets of no connection lasts so long, and is renewed while they come.
const ALARM_NS: u64 = 5_000_000_000;
/// Every host takes segments of so many bytes.
const MSS_MIN: u64 = 536;
/// Indexes of `ALARM`.
const UNTIL: u32 = 0;
const BUCKET: u32 = 1;
