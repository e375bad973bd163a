//! What lies in the kernel's tables: names, sizes and values, who writes and who reads each.
//!
//! Times are `CLOCK_BOOTTIME` nanoseconds, which go on through suspend and which the kernel
//! programs compare themselves: a ban ends on time while the daemon is dead.

pub use crate::facts::{FactFlag, Facts};
use crate::{
    Rate, Reason,
    reason::Plane,
    source::{ClientWidth, Source},
};

/// Names the folder of pinned maps; changes whenever a layout below does. A version takes over from
/// another the tables that it has under the same name and shape: what changes its meaning but not
/// its shape changes its name. The first two fields of [`Settings`] are the same in every version.
pub const ABI: &str = "v5";

/// Both lists, compiled: two images of [`crate::list`] behind each other. Array of
/// [`crate::list::Line`].
pub const LISTS: &str = "LISTS";
/// One [`crate::list::State`]: which image is in force.
pub const LIST_STATE: &str = "LIST_STATE";
/// What has changed since the image was compiled. LPM trie: [`crate::Source`] ->
/// [`crate::list::Ids`].
pub const OVERLAY: &str = "OVERLAY";
/// The entries of the lists, by number. Array of [`Entry`].
pub const ENTRIES: &str = "ENTRIES";
/// Clients that are dropped for abuse. Hash: [`crate::Source`] -> [`Ban`].
pub const BANS: &str = "BANS";
/// A bit for each client that may be banned, [`BAN_BITS`] of them in words of 64, by the lower bits of
/// the client's hash: whose is not set is not looked up in [`BANS`]. Array of `u64`.
pub const BAN_FILTER: &str = "BAN_FILTER";
/// Rates. Array of [`crate::limit::Set`], of which each limit has its own [`Cells`]: the kinds as
/// [`Kind::cells`] says, then the signatures, as [`crate::signature::share_cells`] gives them out.
pub const CELLS: &str = "CELLS";
/// Open connections. Array of [`crate::open::Set`], chosen by the source's hash.
pub const OPEN: &str = "OPEN";
/// Sockets that are counted in [`OPEN`]. Hash: socket cookie (`u64`) -> the client's hash.
pub const SOCKETS: &str = "SOCKETS";
/// One `u64` per CPU: sockets that found no room in [`OPEN`] or [`SOCKETS`] when they opened.
pub const UNCOUNTED: &str = "UNCOUNTED";
/// One [`Count`] per CPU, at [`count_index`].
pub const COUNTS: &str = "COUNTS";
/// Ring buffer of [`Packet`]: dropped packets.
pub const DROPS: &str = "DROPS";
/// One `u64`, the bucket of drop events: [`crate::limit::charged`].
pub const DROPS_BUCKET: &str = "DROPS_BUCKET";
/// Ring buffer of [`Packet`]: packets drawn at random from all.
pub const SAMPLES: &str = "SAMPLES";
/// Two `u64` per CPU: drop events that the rate or a full ring kept back, and samples that a
/// full ring did.
pub const EVENTS_LOST: &str = "EVENTS_LOST";
/// [`Signature`](crate::Signature) rules: twice [`SIGNATURES_MAX`]. One half is in force, as
/// `Settings::signatures` says, while the other is written.
pub const SIGNATURES: &str = "SIGNATURES";
/// One `u64` per CPU and place in [`SIGNATURES`]: packets that matched.
pub const SIGNATURE_HITS: &str = "SIGNATURE_HITS";
/// Bits of [`crate::service`]: what is offered to the outside.
pub const SERVICES: &str = "SERVICES";
/// What SYN cookies protect, and how it fares. Hash: [`crate::cookie::Listener`] ->
/// [`crate::cookie::Pressure`].
pub const LISTENERS: &str = "LISTENERS";
/// Two `u64`: until when TCP packets of no connection are refused, and the bucket of those that were
/// charged, by [`crate::limit::charged`].
pub const ALARM: &str = "ALARM";
/// Connections that a cookie made just now. Array of [`crate::cookie::Made`].
pub const MADE: &str = "MADE";
/// Two [`crate::cookie::Segment`] per CPU, one for the twin: room for the SYN in hand.
pub const SEGMENTS: &str = "SEGMENTS";
/// One [`Facts`] per CPU: what is known of the packet in hand.
pub const FACTS: &str = "FACTS";
/// One [`Facts`]: what the twin found.
pub const TWIN_FACTS: &str = "TWIN_FACTS";
/// One [`Settings`].
pub const SETTINGS: &str = "SETTINGS";

/// Bans at once. The kernel allocates them all at start: 131 072 x ~112 bytes.
pub const BANS_MAX: u32 = 131_072;
/// Bits of the filter in front of the bans, a power of two: 32 KiB, so that it stays in a cache.
pub const BAN_BITS: u32 = 1 << 18;
/// Sets of each kind, and of all signatures with a limit for each client, a power of two: 262 144
/// sources in 2 MiB.
pub const KIND_SETS: u32 = 65_536;
/// Sets of [`CELLS`], 12 MiB: those of the kinds and of the signatures, and one for each signature with a
/// limit for all.
pub const CELLS_MAX: u32 = SIGNATURES_FIRST + KIND_SETS + SIGNATURES_MAX;
/// The first set of the signatures.
pub const SIGNATURES_FIRST: u32 = Kind::COUNT as u32 * KIND_SETS;
/// Sets of the open-connection count, a power of two: 262 144 clients in 2 MiB.
pub const OPEN_SETS: u32 = 32_768;
/// Sockets that the open-connection count follows.
pub const SOCKETS_MAX: u32 = 262_144;
/// Room for packets' reasons in [`COUNTS`]: more than there are, so that a new one keeps the layout.
pub const REASONS_MAX: u32 = 64;
/// Interfaces that are counted apart; packets of any other count under the last.
pub const INTERFACES_MAX: u32 = 16;
/// Signature rules.
pub const SIGNATURES_MAX: u32 = 64;
/// Bytes of each ring, a power of two and a multiple of the page size.
pub const RING_BYTES: u32 = 256 * 1024;

/// Where in [`COUNTS`] a reason's count lies: `interface` is the index into
/// [`Settings::interfaces`], `would` whether the packet would have been dropped but for monitor
/// mode.
#[inline(always)]
#[must_use]
pub const fn count_index(interface: u32, would: bool, reason: u32) -> u32 {
    (interface * 2 + would as u32) * REASONS_MAX + reason
}

/// What the daemon tells the program `edged_census` to do with a socket: a verb, the socket's cookie
/// and its client's hash, each a `u64`.
pub mod census {
    /// Count it, unless it is counted.
    pub const ADD: u64 = 1;
    /// No longer count it, if it is counted; the hash is not looked at.
    pub const REMOVE: u64 = 2;
}

/// [`Entry::until_ns`] and [`Ban::until_ns`] of what never ends.
pub const FOREVER: u64 = u64::MAX;

/// A network on a list. The daemon writes it; the kernel adds the hits, as best it can: those that
/// fall while the daemon writes the entry may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// When it ends.
    pub until_ns: u64,
    /// Packets it decided. Those that come faster than 10 000 a second on a CPU are drawn, one in
    /// sixteen, and count as sixteen.
    pub hits: u64,
}

/// A banned client. The daemon writes it; the kernel adds the hits and the time of the first, as
/// best it can: those that fall while the daemon writes or removes the ban may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ban {
    /// When it began.
    pub since_ns: u64,
    /// When it ends; never [`FOREVER`].
    pub until_ns: u64,
    /// Packets it dropped.
    pub hits: u64,
    /// When it dropped its first packet; 0 if it has not.
    pub first_hit_ns: u64,
    /// The [`Reason`] of the last signal, by number.
    pub reason: u32,
    /// How many bans this client has had, this one included.
    pub strikes: u32,
}

/// Packets and bytes that ended for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

/// A packet, as the kernel tells of it: a drop, of which at most `Settings::event_rate` are told,
/// or a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// When.
    pub at_ns: u64,
    /// Its source address, whole.
    pub source: Source,
    /// The [`Reason`], by number.
    pub reason: u32,
    /// The interface it came in by.
    pub ifindex: u32,
    /// Its length in bytes.
    pub length: u32,
    /// The destination port in host byte order, 0 if it has none or was not parsed that far.
    pub port: u16,
    /// The IP protocol, 0 if it was not parsed that far.
    pub protocol: u8,
    /// 1 if it would have been dropped but for monitor mode, and was not.
    pub would: u8,
}

/// What is limited per client, in the order of [`Settings::rates`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Packets.
    Packets,
    /// Bytes, from the Ethernet header on; made by [`Rate::of_bytes`].
    Bytes,
    /// UDP packets.
    Udp,
    /// ICMP and ICMPv6 packets.
    Icmp,
    /// New TCP connections.
    Connections,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = 5;
    /// Every kind, in order.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Packets, Self::Bytes, Self::Udp, Self::Icmp, Self::Connections];

    /// The reason for which a client is refused.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Packets => Reason::PacketRate,
            Self::Bytes => Reason::ByteRate,
            Self::Udp => Reason::UdpRate,
            Self::Icmp => Reason::IcmpRate,
            Self::Connections => Reason::ConnectionRate,
        }
    }

    /// Where its buckets lie in [`CELLS`].
    #[inline(always)]
    #[must_use]
    pub const fn cells(self) -> Cells {
        Cells { first: self as u32 * KIND_SETS, mask: KIND_SETS - 1 }
    }
}

/// Sets of [`CELLS`] that are one limit's own. A source is pushed out of its set by who is fuller, and
/// that can only be said within one limit: a single packet under a slow one lies farther ahead than
/// all that a fast one holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cells {
    /// The first.
    pub first: u32,
    /// How many follow: a power of two less one.
    pub mask: u32,
}

impl Cells {
    /// The set that this hash leads to.
    #[inline(always)]
    #[must_use]
    pub const fn set(self, hash: u64) -> u32 {
        self.first + (hash as u32 & self.mask)
    }
}

/// The client itself and the prefixes around it: each has rates of its own.
pub const LEVELS: usize = 3;

/// What the kernel programs go by. Written by the daemon, at start and at reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Secret of [`crate::Source::hash`]; drawn once, kept for as long as the maps are.
    pub seed: u64,
    /// The network namespace whose sockets are counted.
    pub netns_cookie: u64,
    /// Reasons that drop nothing and are counted as "would drop": bit n for the reason of number n.
    pub monitored: u64,
    /// Rates by level and [`Kind`]: of a client, then of the prefixes around it.
    pub rates: [[Rate; Kind::COUNT]; LEVELS],
    /// Drop events in all.
    pub event_rate: Rate,
    /// TCP packets of no connection, as the sampled few are charged: more raise the alarm.
    pub unsolicited: Rate,
    /// The ports from which the host itself asks, first and last.
    pub ephemeral_ports: [u32; 2],
    /// Bits of the IPv6 prefix of each level above the client; 0 switches the level off.
    pub prefix_bits: [u32; LEVELS - 1],
    /// How much of an address stands for one client.
    pub client: ClientWidth,
    /// Open TCP connections per client; 0 switches the limit off.
    pub open_max: u32,
    /// [`SignaturesInForce`](crate::signature::SignaturesInForce), as a number.
    pub signatures: u32,
    /// [`PolicyFlag`]s.
    pub flags: u32,
    /// What a SYN cookie may agree to: [`crate::cookie::Keep`]s.
    pub cookie_keep: u32,
    /// Zero.
    pub padding: u32,
    /// A packet is sampled when a random number has none of these bits; all ones samples nearly none.
    pub sample_mask: u32,
    /// Interfaces that are counted apart, by index; 0 behind the last.
    pub interfaces: [u32; INTERFACES_MAX as usize],
    /// Where the fields of a socket lie in the running kernel.
    pub socket: SocketLayout,
}

/// Flags of [`Settings`].
#[allow(non_snake_case, reason = "a namespace of constants")]
pub mod PolicyFlag {
    /// Only what [`super::SERVICES`] names is reachable.
    pub const SERVICES: u32 = 1;
    /// Fragments are dropped.
    pub const DROP_FRAGMENTS: u32 = 2;
    /// Packets are sampled.
    pub const SAMPLES: u32 = 4;
    /// Some signature asks for the payload.
    pub const PAYLOADS: u32 = 8;
    /// SYNs are answered with cookies while a listener's queue is full.
    pub const SYN_COOKIES: u32 = 16;
    /// TCP packets of no connection are refused while a flood of them or of SYNs lasts.
    pub const UNSOLICITED: u32 = 32;
    /// They always are.
    pub const UNSOLICITED_ALWAYS: u32 = 64;
    /// There are devices above a guarded interface, such as a bridge or a VLAN. A look-up by the interface finds
    /// no socket that is bound to one of them.
    pub const BOUND_ABOVE: u32 = 128;
    /// One of them is a VRF: whatever connects by it is bound to it.
    pub const VRF_ABOVE: u32 = 256;
    /// What the daemon finds by itself, whatever the policy.
    pub const ABOVE: u32 = BOUND_ABOVE | VRF_ABOVE;
}

/// Byte offsets in the running kernel's structures, read from its BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketLayout {
    /// `sock.__sk_common.skc_family`
    pub family: u32,
    /// `sock.sk_protocol`
    pub protocol: u32,
    /// `sock.__sk_common.skc_daddr`
    pub daddr: u32,
    /// `sock.__sk_common.skc_v6_daddr`
    pub v6_daddr: u32,
    /// `sock.__sk_common.skc_net.net`
    pub net: u32,
    /// `net.net_cookie`
    pub net_cookie: u32,
}

// The layouts hold no implicit padding, which would differ between writes.
const _: () = assert!(size_of::<Entry>() == 16);
const _: () = assert!(size_of::<Ban>() == 40);
const _: () = assert!(size_of::<Count>() == 16);
const _: () = assert!(size_of::<Packet>() == 40);
const _: () = assert!(size_of::<Facts>() == 8 * 2 + 16 * 3 + 4 * 10 + 8);
const _: () = assert!(
    size_of::<Settings>()
        == 8 * 3
            + 16 * (Kind::COUNT * LEVELS + 2)
            + 4 * (2 + 2 + 2 + 6 + INTERFACES_MAX as usize + 6)
);
const _: () = {
    let mut i = REASONS_MAX as usize;
    while i < Reason::COUNT {
        assert!(!matches!(Reason::ALL[i].plane(), Plane::Packet), "COUNTS has no room for it");
        i += 1;
    }
};

#[cfg(feature = "user")]
mod pod {
    //! SAFETY of each: `repr(C)`, integers only, no padding (asserted above), valid for any bits.
    use super::{Ban, Count, Entry, Facts, Packet, Settings, SocketLayout};

    // SAFETY: as above.
    unsafe impl aya::Pod for Entry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Ban {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Count {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Packet {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Facts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::Signature {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::cookie::Listener {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::cookie::Pressure {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketLayout {}
    // SAFETY: `repr(C)` around an array of bytes.
    unsafe impl aya::Pod for crate::Source {}
}
