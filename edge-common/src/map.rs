//! What lies in the kernel's tables: names, sizes and values, who writes and who reads each.
//!
//! Times are `CLOCK_BOOTTIME` nanoseconds, which go on through suspend and which the kernel
//! programs compare themselves: a ban ends on time while the daemon is dead.

use crate::{limit, reason::Reason};

/// Names the folder of pinned maps; changes whenever a layout below does, so that two versions
/// never read each other's tables.
pub const ABI: &str = "v1";

/// Networks that are never dropped. LPM trie: [`crate::Source`] -> [`Entry`].
pub const ALLOW: &str = "ALLOW";
/// Networks that are dropped. LPM trie: [`crate::Source`] -> [`Entry`].
pub const DENY: &str = "DENY";
/// Clients that are dropped for abuse. Hash: [`crate::Source`] -> [`Ban`].
pub const BANS: &str = "BANS";
/// Packet rates. Array of [`limit::Set`], chosen by the source's hash.
pub const PACKET_CELLS: &str = "PACKET_CELLS";
/// Connection rates. Array of [`limit::Set`], chosen by the source's hash.
pub const CONNECTION_CELLS: &str = "CONNECTION_CELLS";
/// Open connections. Array of [`crate::open::Set`], chosen by the source's hash.
pub const OPEN: &str = "OPEN";
/// Sockets that are counted in [`OPEN`]. Hash: socket address (`u64`) -> the client's hash.
pub const SOCKETS: &str = "SOCKETS";
/// One [`Count`] per reason and CPU; [`REASONS_MAX`] reasons.
pub const COUNTS: &str = "COUNTS";
/// Ring buffer of [`Drop`].
pub const DROPS: &str = "DROPS";
/// One [`limit::Set`] for the rate of drop events.
pub const DROPS_CELL: &str = "DROPS_CELL";
/// One `u64` per CPU: drop events that the rate or a full ring kept back.
pub const DROPS_LOST: &str = "DROPS_LOST";
/// One [`Settings`].
pub const SETTINGS: &str = "SETTINGS";

/// Networks that each list holds at most. The trie allocates on demand.
pub const LIST_MAX: u32 = 2_000_000;
/// Bans at once. The kernel allocates them all at start: 131 072 x ~112 bytes.
pub const BANS_MAX: u32 = 131_072;
/// Sets of the packet limiter, a power of two: 262 144 sources in 2 MiB.
pub const PACKET_SETS: u32 = 65_536;
/// Sets of the connection limiter, a power of two: 262 144 sources in 2 MiB.
pub const CONNECTION_SETS: u32 = 65_536;
/// Sets of the open-connection count, a power of two: 262 144 clients in 2 MiB.
pub const OPEN_SETS: u32 = 32_768;
/// Sockets that the open-connection count follows.
pub const SOCKETS_MAX: u32 = 262_144;
/// Room for reasons in [`COUNTS`]: more than there are, so that a new one keeps the layout.
pub const REASONS_MAX: u32 = 64;
/// Bytes of the drop ring, a power of two and a multiple of the page size.
pub const DROPS_BYTES: u32 = 256 * 1024;

/// [`Entry::until_ns`] and [`Ban::until_ns`] of what never ends.
pub const FOREVER: u64 = u64::MAX;

/// A network on a list. The daemon writes it; the kernel adds the hits, as best it can: those that
/// fall while the daemon writes the entry may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// When it ends.
    pub until_ns: u64,
    /// Packets it decided.
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

/// A dropped packet, as the kernel tells of it. At most `Settings::event_rate` are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Drop {
    /// When.
    pub at_ns: u64,
    /// The packet's source address, whole.
    pub source: crate::Source,
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
    /// Padding, zero.
    pub pad: u8,
}

/// What the kernel programs go by. Written by the daemon, at start and at reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Secret of [`crate::Source::hash`]; drawn once, kept for as long as the maps are.
    pub seed: u64,
    /// The network namespace whose sockets are counted.
    pub netns_cookie: u64,
    /// Packets per client.
    pub packet_rate: limit::Rate,
    /// New TCP connections per client.
    pub connection_rate: limit::Rate,
    /// Drop events in all.
    pub event_rate: limit::Rate,
    /// Open TCP connections per client; 0 switches the limit off.
    pub open_max: u32,
    /// Bits of an IPv6 address that stand for one client, 1 to 64.
    pub ipv6_bits: u32,
    /// Where the fields of a socket lie in the running kernel.
    pub socket: SocketLayout,
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
const _: () = assert!(size_of::<Drop>() == 40);
const _: () = assert!(size_of::<Settings>() == 8 * 2 + 16 * 3 + 4 * 2 + 24);
const _: () = assert!(Reason::COUNT <= REASONS_MAX as usize);

#[cfg(feature = "user")]
mod pod {
    //! SAFETY of each: `repr(C)`, integers only, no padding (asserted above), valid for any bits.
    use super::{Ban, Count, Drop, Entry, Settings, SocketLayout};

    // SAFETY: as above.
    unsafe impl aya::Pod for Entry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Ban {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Count {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Drop {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SocketLayout {}
    // SAFETY: `repr(C)` around an array of bytes.
    unsafe impl aya::Pod for crate::Source {}
}
