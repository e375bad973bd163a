//! Reads a frame's headers the way the kernel's own stack will.
//!
//! Anything that stack would read differently is an evasion; what this program cannot follow is
//! dropped, never guessed.

use core::ops::ControlFlow::{self, Break, Continue};

use aya_ebpf::programs::XdpContext;
use edge_common::{Reason, Source};

use crate::report;

/// What was learned of the packet, as far as it was read.
pub struct Facts {
    pub source: Source,
    pub length: u32,
    pub port: u16,
    pub protocol: u8,
}

impl Facts {
    #[inline(always)]
    pub fn new() -> Self {
        Self { source: Source([0; 16]), length: 0, port: 0, protocol: 0 }
    }
}

/// A frame that is read from front to back.
pub struct Frame {
    /// The first byte.
    start: *const u8,
    /// Behind the last byte of the first buffer.
    end: *const u8,
    /// Bytes that were read.
    ///
    /// A number under a bound, not a pointer that moves on: the ways through the extension
    /// headers then meet again for the verifier, instead of multiplying with each header.
    offset: usize,
    /// Bytes from `offset` to the end of what is being read: the frame, later the IP payload.
    left: u32,
    /// Bytes of the whole frame.
    length: u32,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        let length = report::frame_length(ctx);
        let (start, end) = (ctx.data() as *const u8, ctx.data_end() as *const u8);
        Self { start, end, offset: 0, left: length, length }
    }

    /// Reads `N` bytes and moves behind them.
    #[inline(always)]
    fn take<const N: usize>(&mut self) -> ControlFlow<Reason, &'static [u8; N]> {
        if self.left < N as u32 {
            return Break(Reason::MalformedPacket);
        }
        let header = self.start.wrapping_add(self.offset);
        if header.wrapping_add(N) > self.end {
            // The frame goes on in another buffer, where this program does not follow.
            return Break(Reason::UnparsedPacket);
        }
        self.offset += N;
        self.left -= N as u32;
        // SAFETY: `N` bytes lie before `end`, and bytes need no alignment. The kernel lends the frame
        // for the whole run, which no reference outlives; nobody else writes it, nor this program.
        Continue(unsafe { &*header.cast::<[u8; N]>() })
    }

    /// The next byte, if the first buffer holds it.
    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        let next = self.start.wrapping_add(self.offset);
        if next.wrapping_add(1) > self.end {
            return None;
        }
        // SAFETY: as in `take`, for one byte.
        Some(unsafe { *next })
    }

    /// Moves on without reading.
    #[inline(always)]
    fn skip(&mut self, bytes: u32) -> ControlFlow<Reason> {
        if self.left < bytes {
            return Break(Reason::MalformedPacket);
        }
        self.offset += bytes as usize;
        self.left -= bytes;
        if self.offset > OFFSET_MAX {
            return Break(Reason::UnparsedPacket);
        }
        Continue(())
    }

    /// Leaves out the padding behind the IP packet; the packet must be whole.
    #[inline(always)]
    fn narrow(&mut self, bytes: u32) -> ControlFlow<Reason> {
        if bytes > self.left {
            return Break(Reason::MalformedPacket);
        }
        self.left = bytes;
        Continue(())
    }
}

/// An IP header whose source is known and whose rest is still to be checked.
pub enum Header {
    V4(&'static [u8; 20]),
    V6(&'static [u8; 40]),
}

/// What the limits need to know of the payload.
#[derive(Clone, Copy)]
pub struct Segment {
    /// A TCP SYN without ACK.
    pub opens_connection: bool,
}

impl Segment {
    const OTHER: Self = Self { opens_connection: false };
}

/// Reads up to the source address.
#[inline(always)]
pub fn source(frame: &mut Frame, facts: &mut Facts) -> ControlFlow<Reason, Header> {
    facts.length = frame.length;
    match ether_type(frame)? {
        ETH_P_IP => {
            let header = frame.take::<20>()?;
            if header[0] >> 4 != 4 {
                return Break(Reason::MalformedPacket);
            }
            facts.source = Source::v4([header[12], header[13], header[14], header[15]]);
            facts.protocol = header[9];
            Continue(Header::V4(header))
        }
        ETH_P_IPV6 => {
            let header = frame.take::<40>()?;
            if header[0] >> 4 != 6 {
                return Break(Reason::MalformedPacket);
            }
            facts.source = Source(address(header));
            facts.protocol = header[6];
            Continue(Header::V6(header))
        }
        _ => Break(Reason::NotIp),
    }
}

/// Lets ICMPv6 pass that keeps the link itself alive, from whatever address: a hop limit of 255
/// proves that no router forwarded it, and the stack insists on it too.
///
/// It stands right behind the IPv6 header: the stack takes no fragments of it, and no other header
/// before it is of use.
#[inline(always)]
pub fn neighbour_discovery(frame: &Frame, header: &Header) -> ControlFlow<Reason> {
    let Header::V6(header) = header else { return Continue(()) };
    // Protocol and hop limit at once: each branch here is another way for the verifier to walk.
    if u16::from_be_bytes([header[6], header[7]]) != u16::from_be_bytes([IPPROTO_ICMPV6, 255]) {
        return Continue(());
    }
    let payload = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let is_whole = payload >= 8 && payload <= frame.left;
    match frame.peek() {
        Some(133..=137) if is_whole => Break(Reason::Pass),
        _ => Continue(()),
    }
}

/// Reads the rest, as far as the limits need it.
#[inline(always)]
pub fn transport(
    frame: &mut Frame,
    header: Header,
    facts: &mut Facts,
) -> ControlFlow<Reason, Segment> {
    let fragment = match &header {
        Header::V4(header) => options(frame, header)?,
        Header::V6(header) => extensions(frame, header, facts)?,
    };
    // Only the first fragment has a transport header.
    if fragment.is_later {
        return Continue(Segment::OTHER);
    }
    match (facts.protocol, &header) {
        (IPPROTO_TCP, _) => tcp(frame, facts, &fragment),
        (IPPROTO_UDP, Header::V4(_)) => udp(frame, facts, &fragment, false),
        (IPPROTO_UDP, Header::V6(_)) => udp(frame, facts, &fragment, true),
        (IPPROTO_ICMPV6, Header::V6(_)) => {
            frame.take::<8>()?;
            Continue(Segment::OTHER)
        }
        _ => Continue(Segment::OTHER),
    }
}

/// The type of what lies behind the Ethernet header and up to two VLAN tags.
#[inline(always)]
fn ether_type(frame: &mut Frame) -> ControlFlow<Reason, u16> {
    let header = frame.take::<14>()?;
    let mut kind = u16::from_be_bytes([header[12], header[13]]);
    let mut tags = 0;
    while is_vlan(kind) {
        if tags == VLAN_TAGS_MAX {
            return Break(Reason::UnparsedPacket);
        }
        let tag = frame.take::<4>()?;
        kind = u16::from_be_bytes([tag[2], tag[3]]);
        tags += 1;
    }
    Continue(kind)
}

#[inline(always)]
fn is_vlan(kind: u16) -> bool {
    kind == ETH_P_8021Q || kind == ETH_P_8021AD
}

/// Where in a fragmented packet this one belongs.
struct Fragment {
    is_later: bool,
    /// Other fragments follow: lengths in the payload speak of more than this frame.
    has_more: bool,
}

/// Checks an IPv4 header and skips its options.
#[inline(always)]
fn options(frame: &mut Frame, header: &[u8; 20]) -> ControlFlow<Reason, Fragment> {
    let bytes = u32::from(header[0] & 0xf) * 4;
    let total = u32::from(u16::from_be_bytes([header[2], header[3]]));
    if bytes < 20 || total < bytes {
        return Break(Reason::MalformedPacket);
    }
    frame.narrow(total - 20)?;
    frame.skip(bytes - 20)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Continue(Fragment { is_later: fragment & 0x1fff != 0, has_more: fragment & 0x2000 != 0 })
}

/// Checks an IPv6 header and follows its extension headers to the payload.
#[inline(always)]
fn extensions(
    frame: &mut Frame,
    header: &[u8; 40],
    facts: &mut Facts,
) -> ControlFlow<Reason, Fragment> {
    let payload = u32::from(u16::from_be_bytes([header[4], header[5]]));
    // A jumbogram states its length in a hop-by-hop option instead.
    if payload != 0 || header[6] != IPPROTO_HOPOPTS {
        frame.narrow(payload)?;
    }
    let mut fragment = Fragment { is_later: false, has_more: false };
    let mut followed = 0;
    while is_extension(facts.protocol) {
        if followed == EXTENSIONS_MAX {
            return Break(Reason::UnparsedPacket);
        }
        let extension = frame.take::<8>()?;
        let kind = facts.protocol;
        facts.protocol = extension[0];
        let more = match kind {
            IPPROTO_FRAGMENT => {
                let field = u16::from_be_bytes([extension[2], extension[3]]);
                fragment.has_more |= field & 1 != 0;
                fragment.is_later = field & 0xfff8 != 0;
                0
            }
            // In words of 4 bytes, less 2: a length of 0 would be less than the 8 just read.
            IPPROTO_AH if extension[1] == 0 => return Break(Reason::MalformedPacket),
            IPPROTO_AH => u32::from(extension[1]) * 4,
            _ => u32::from(extension[1]) * 8,
        };
        if fragment.is_later {
            return Continue(fragment);
        }
        frame.skip(more)?;
        followed += 1;
    }
    Continue(fragment)
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        IPPROTO_HOPOPTS
            | IPPROTO_ROUTING
            | IPPROTO_FRAGMENT
            | IPPROTO_AH
            | IPPROTO_DSTOPTS
            | IPPROTO_MH
            | IPPROTO_HIP
            | IPPROTO_SHIM6
    )
}

#[inline(always)]
fn tcp(frame: &mut Frame, facts: &mut Facts, fragment: &Fragment) -> ControlFlow<Reason, Segment> {
    let header = frame.take::<20>()?;
    facts.port = u16::from_be_bytes([header[2], header[3]]);
    let bytes = u32::from(header[12] >> 4) * 4;
    if bytes < 20 || (!fragment.has_more && bytes - 20 > frame.left) {
        return Break(Reason::MalformedPacket);
    }
    Continue(Segment { opens_connection: header[13] & (TCP_SYN | TCP_ACK) == TCP_SYN })
}

#[inline(always)]
fn udp(
    frame: &mut Frame,
    facts: &mut Facts,
    fragment: &Fragment,
    may_be_jumbo: bool,
) -> ControlFlow<Reason, Segment> {
    let header = frame.take::<8>()?;
    facts.port = u16::from_be_bytes([header[2], header[3]]);
    let bytes = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let is_jumbo = may_be_jumbo && bytes == 0;
    if !is_jumbo && (bytes < 8 || (!fragment.has_more && bytes - 8 > frame.left)) {
        return Break(Reason::MalformedPacket);
    }
    Continue(Segment::OTHER)
}

/// The source address of an IPv6 header.
#[inline(always)]
fn address(header: &[u8; 40]) -> [u8; 16] {
    // SAFETY: bytes 8 to 24 lie inside the 40, and an array of bytes needs no alignment.
    unsafe { *header.as_ptr().add(8).cast::<[u8; 16]>() }
}

/// Bytes of headers that the program follows: more than a packet of 1500 bytes holds, and little
/// enough for the verifier to see that most ways through a chain end alike.
const OFFSET_MAX: usize = 0x7ff;
const VLAN_TAGS_MAX: u32 = 2;
const EXTENSIONS_MAX: u32 = 8;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;
const IPPROTO_MH: u8 = 135;
const IPPROTO_HIP: u8 = 139;
const IPPROTO_SHIM6: u8 = 140;

const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
