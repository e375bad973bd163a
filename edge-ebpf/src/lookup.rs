//! Asks the network stack whose packet this is.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie,
    },
    programs::XdpContext,
};
use edge_common::{
    Source,
    cookie::Segment,
    map::{FactFlag, Facts},
};

/// What the stack has for a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// `BPF_TCP_` state, [`NOBODY`] if no socket takes it.
    pub state: u32,
    /// The local port, in host byte order.
    pub port: u16,
    /// Whether the socket talks to this peer alone.
    pub is_connected: bool,
}

/// No socket.
pub const NOBODY: u32 = 0;
/// A connection of which the last packet of the handshake is missing: one that TCP Fast Open made.
pub const SYN_RECV: u32 = 3;
/// Any other such connection, which is no whole socket yet.
pub const NEW_SYN_RECV: u32 = 12;
/// A TCP listener.
pub const LISTEN: u32 = 10;

/// The TCP socket that would take the packet: a connection, also one half open, or a listener.
#[inline(always)]
pub fn tcp(ctx: &XdpContext, facts: &Facts) -> Found {
    find(ctx, facts, bpf_skc_lookup_tcp, Found::NOBODY, Found::of)
}

/// The UDP socket that would take the packet.
#[inline(always)]
pub fn udp(ctx: &XdpContext, facts: &Facts) -> Found {
    find(ctx, facts, bpf_sk_lookup_udp, Found::NOBODY, Found::of)
}

/// Whether the SYN in `segment` finds a listener whose queue is full. If so, the listener takes
/// cookies for the next two minutes.
#[inline(always)]
pub fn has_overflowed(
    ctx: &XdpContext,
    facts: &Facts,
    segment: *mut Segment,
    tcp_bytes: u32,
) -> bool {
    find(ctx, facts, bpf_skc_lookup_tcp, false, |socket| {
        // SAFETY: `find` holds the socket; the segment is a whole one, with so much of a TCP header.
        unsafe {
            let (ip, tcp) = (&raw mut (*segment).ip, &raw mut (*segment).tcp);
            let ip_bytes = size_of_val(&*ip) as u32;
            (*socket).state == LISTEN
                && bpf_tcp_gen_syncookie(socket.cast(), ip.cast(), ip_bytes, tcp.cast(), tcp_bytes)
                    >= 0
        }
    })
}

impl Found {
    const NOBODY: Self = Self { state: NOBODY, port: 0, is_connected: false };

    #[inline(always)]
    fn of(socket: *mut bpf_sock) -> Self {
        // SAFETY: `find` holds the socket.
        unsafe {
            Self {
                state: (*socket).state,
                port: (*socket).src_port as u16,
                is_connected: (*socket).dst_port != 0,
            }
        }
    }
}

type Lookup =
    unsafe fn(*mut core::ffi::c_void, *mut bpf_sock_tuple, u32, u64, u64) -> *mut bpf_sock;

#[inline(always)]
fn find<T>(
    ctx: &XdpContext,
    facts: &Facts,
    lookup: Lookup,
    nobody: T,
    ask: impl FnOnce(*mut bpf_sock) -> T,
) -> T {
    let mut tuple = MaybeUninit::<bpf_sock_tuple>::zeroed();
    // SAFETY: zeros are valid for the union of integers. Each address field gets as many bytes as it
    // has; the helper reads the tuple of the size it is told.
    let (tuple, size) = unsafe {
        let tuple = tuple.assume_init_mut();
        let size = if facts.flags & FactFlag::V4 != 0 {
            let v4 = &mut tuple.__bindgen_anon_1.ipv4;
            v4.saddr = v4_word(facts.source);
            v4.daddr = v4_word(facts.destination);
            v4.sport = facts.source_port.to_be();
            v4.dport = facts.port.to_be();
            size_of_val(v4)
        } else {
            let v6 = &mut tuple.__bindgen_anon_1.ipv6;
            v6.saddr = v6_words(facts.source);
            v6.daddr = v6_words(facts.destination);
            v6.sport = facts.source_port.to_be();
            v6.dport = facts.port.to_be();
            size_of_val(v6)
        };
        (tuple, size as u32)
    };
    // SAFETY: the context is the one the kernel called the program with; a socket that is found is
    // asked while it is held, and released.
    unsafe {
        let socket = lookup(ctx.ctx.cast(), tuple, size, BPF_F_CURRENT_NETNS as u64, 0);
        if socket.is_null() {
            return nobody;
        }
        let found = ask(socket);
        bpf_sk_release(socket.cast());
        found
    }
}

#[inline(always)]
fn v4_word(address: Source) -> u32 {
    (address.words()[1] >> 32) as u32
}

#[inline(always)]
fn v6_words(address: Source) -> [u32; 4] {
    let [high, low] = address.words();
    [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]
}
