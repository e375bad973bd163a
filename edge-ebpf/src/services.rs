//! The service policy: only what is offered is reachable from outside.
//!
//! What the host itself asked for comes back: TCP of its connections, UDP to its connected or
//! ephemeral sockets, DHCP, answers of NTP, ICMP errors and answers. What keeps the link alive always passes.

use core::ops::ControlFlow::{self, Continue};

use aya_ebpf::{helpers::generated::bpf_xdp_load_bytes, programs::XdpContext};
use edge_common::{
    Reason,
    map::{FactFlag, Facts, PolicyFlag},
    service::Service,
};

use crate::{
    lookup::{self, LISTEN, NOBODY},
    packet::{
        IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IGMP, IPPROTO_TCP, IPPROTO_UDP, TCP_ACK, TCP_SYN,
    },
    refuse,
    tables::{self, Knobs, Slot, setting},
};

/// Refuses what is neither offered nor an answer, if the policy is on.
#[inline(always)]
pub fn judge(ctx: &XdpContext, knobs: Knobs, slot: &Slot) -> ControlFlow<Reason> {
    if setting!(knobs, flags) & PolicyFlag::SERVICES == 0 {
        return Continue(());
    }
    let facts = slot.facts();
    // A later fragment is of no use without its first one, which is judged.
    if facts.flags & FactFlag::LATER_FRAGMENT != 0 || is_welcome(ctx, knobs, facts) {
        return Continue(());
    }
    refuse(knobs, Reason::NoService, slot.would())
}

#[inline(always)]
fn is_welcome(ctx: &XdpContext, knobs: Knobs, facts: &Facts) -> bool {
    let is_v4 = facts.flags & FactFlag::V4 != 0;
    match facts.protocol {
        IPPROTO_TCP => tables::offers(Service::Tcp(facts.port)) || is_tcp_answer(ctx, knobs, facts),
        IPPROTO_UDP => {
            tables::offers(Service::Udp(facts.port))
                || is_dhcp_answer(facts)
                || is_udp_answer(ctx, knobs, facts)
        }
        IPPROTO_ICMP if is_v4 && !is_request(facts) => true,
        IPPROTO_ICMPV6 if !is_v4 && !is_request(facts) => true,
        // A host that answers no query of its router loses the groups it is in.
        IPPROTO_IGMP if is_v4 => true,
        other => tables::offers(Service::Protocol(other)),
    }
}

/// Whether the packet belongs to a connection, opened here or there.
#[inline(always)]
fn is_tcp_answer(ctx: &XdpContext, knobs: Knobs, facts: &Facts) -> bool {
    if facts.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN {
        return false;
    }
    match lookup::tcp(ctx, facts).state {
        NOBODY => may_be_bound_above(knobs) && is_ephemeral(knobs, facts.port),
        state => state != LISTEN,
    }
}

/// Whether a socket waits for it: one that is connected to just this peer, or that has a port of
/// those which the host takes for its own questions.
#[inline(always)]
fn is_udp_answer(ctx: &XdpContext, knobs: Knobs, facts: &Facts) -> bool {
    let found = lookup::udp(ctx, facts);
    if found.state == NOBODY && !may_be_bound_above(knobs) {
        return false;
    }
    found.is_connected || is_ephemeral(knobs, facts.port) || is_ntp_answer(ctx, facts)
}

/// Whether there may be a socket that no look-up finds: one that is bound to a device above the interface,
/// as every IPv6 connection of a link-local address is. What comes to the ports of the host's own questions is
/// then taken for an answer.
#[inline(always)]
fn may_be_bound_above(knobs: Knobs) -> bool {
    setting!(knobs, flags) & PolicyFlag::BOUND_ABOVE != 0
}

/// Whether the host asks its own questions from this port.
#[inline(always)]
fn is_ephemeral(knobs: Knobs, port: u16) -> bool {
    let [first, last] = setting!(knobs, ephemeral_ports);
    (first..=last).contains(&u32::from(port))
}

/// `ntpd` asks from the port at which servers answer, and at which it is asked itself: only what calls
/// itself an answer, of a server or of a peer, is none of the questions.
#[inline(always)]
fn is_ntp_answer(ctx: &XdpContext, facts: &Facts) -> bool {
    if facts.source_port != NTP || facts.port != NTP {
        return false;
    }
    let mut first = 0_u8;
    // SAFETY: the context is the one the kernel called the program with; `first` is the one byte that is
    // asked for.
    let loaded =
        unsafe { bpf_xdp_load_bytes(ctx.ctx, facts.payload_offset, (&raw mut first).cast(), 1) };
    loaded == 0 && matches!(first & 7, NTP_PASSIVE | NTP_SERVER)
}

/// A DHCP client listens below the stack's sockets.
#[inline(always)]
fn is_dhcp_answer(facts: &Facts) -> bool {
    match facts.flags & FactFlag::V4 {
        0 => facts.source_port == 547 && facts.port == 546 && facts.source.is_link_local(),
        _ => facts.source_port == 67 && facts.port == 68,
    }
}

/// Whether an ICMP message asks for an answer: an echo, the time, the mask, what the host is called.
/// All others tell something to this host.
#[inline(always)]
fn is_request(facts: &Facts) -> bool {
    let kind = facts.port >> 8;
    match facts.protocol {
        IPPROTO_ICMP => matches!(kind, 8 | 13 | 15 | 17 | 42),
        _ => matches!(kind, 128 | 139 | 160),
    }
}

const NTP: u16 = 123;
/// Modes of RFC 5905: an answer to a peer, and to a client.
const NTP_PASSIVE: u8 = 2;
const NTP_SERVER: u8 = 4;
