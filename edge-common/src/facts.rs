//! What the packet program knows of the packet in hand, and tells of one that the twin judged.

use crate::source::Source;

/// What is known of a packet, as far as it was read. It is filled from the top down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Facts {
    /// When it was judged; 0 while nobody needed to know.
    pub now_ns: u64,
    /// The hash of its client.
    pub client_hash: u64,
    /// Its source address, whole.
    pub source: Source,
    /// Its destination address.
    pub destination: Source,
    /// The first bytes behind its transport header, zeros behind its end.
    pub payload: [u8; 16],
    /// Bytes of the whole frame.
    pub length: u32,
    /// Bytes of the IP packet, header included.
    pub ip_length: u32,
    /// Where the IP header begins in the frame.
    pub ip_offset: u32,
    /// Where the transport header begins in the frame.
    pub transport_offset: u32,
    /// Where the payload begins in the frame.
    pub payload_offset: u32,
    /// The interface it came in by.
    pub ifindex: u32,
    /// [`FactFlag`]s.
    pub flags: u32,
    /// The reason for which it ends, by number.
    pub reason: u32,
    /// The reason for which it would have been dropped but for monitor mode, by number plus one;
    /// 0 for none.
    pub would: u32,
    /// What decided: a list entry's value or a signature's index, 0 if nothing of the kind.
    pub rule: u32,
    /// Source port in host byte order.
    pub source_port: u16,
    /// Destination port in host byte order; an ICMP type and code.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// Bytes of `payload` that are the packet's.
    pub payload_bytes: u8,
}

/// Flags of [`Facts`].
#[allow(non_snake_case, reason = "a namespace of constants")]
pub mod FactFlag {
    /// The packet is IPv4; else it is IPv6.
    pub const V4: u32 = 1;
    /// The packet is a fragment.
    pub const FRAGMENT: u32 = 2;
    /// It is a fragment without a transport header.
    pub const LATER_FRAGMENT: u32 = 4;
    /// It is a fragment, and others follow it.
    pub const MORE_FRAGMENTS: u32 = 8;
    /// The transport header was read: ports and flags are known.
    pub const TRANSPORT: u32 = 16;
    /// The twin runs: nothing is charged, counted or told.
    pub const TWIN: u32 = 32;
    /// The source is spared the deny list, bans and limits.
    pub const SPARED: u32 = 64;
}
