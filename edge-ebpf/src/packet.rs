//! Reads a frame's headers the way the kernel's own stack will.
//!
//! Anything that stack would read differently is an evasion; what this program cannot follow is
//! dropped, never guessed.

use core::ops::ControlFlow::{self, Break, Continue};

use edge_common::{
    Reason, Source,
    map::{FactFlag, Facts, Kind, PolicyFlag},
};

use crate::{
    frame::{Frame, forget, long, number, word},
    refuse,
    tables::{Knobs, Slot, fact, setting},
};

/// An IP header whose source is known and whose rest is still to be checked.
pub enum Header {
    V4 {
        /// Bytes, options included.
        bytes: u32,
        /// The field of flags and offset.
        fragment: u16,
    },
    V6,
}

/// Reads up to the source address.
#[inline(always)]
pub fn source(frame: &mut Frame, facts: &mut Facts) -> ControlFlow<Reason, Header> {
    facts.length = frame.length;
    let kind = ether_type(frame)?;
    facts.ip_offset = frame.offset as u32;
    frame.settle(facts);
    match kind {
        ETH_P_IP => {
            let header = frame.take::<20>()?;
            if header[0] >> 4 != 4 {
                return Break(Reason::MalformedPacket);
            }
            facts.source = v4(word::<12, 20>(header));
            facts.destination = v4(word::<16, 20>(header));
            facts.ip_length = match number::<2, 20>(header) {
                0 if frame.left + 20 > LENGTH_MAX => frame.left + 20,
                length => length.into(),
            };
            facts.flags |= FactFlag::V4;
            facts.ttl = header[8];
            facts.protocol = header[9];
            let bytes = u32::from(header[0] & 0xf) * 4;
            let fragment = number::<6, 20>(header);
            Continue(Header::V4 { bytes, fragment })
        }
        ETH_P_IPV6 => {
            let header = frame.take::<40>()?;
            if header[0] >> 4 != 6 {
                return Break(Reason::MalformedPacket);
            }
            facts.source = Source::of_words([long::<8, 40>(header), long::<16, 40>(header)]);
            facts.destination = Source::of_words([long::<24, 40>(header), long::<32, 40>(header)]);
            facts.ttl = header[7];
            facts.protocol = header[6];
            facts.ip_length = 40 + u32::from(number::<4, 40>(header));
            Continue(Header::V6)
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
pub fn neighbour_discovery(frame: &Frame, header: &Header, facts: &Facts) -> ControlFlow<Reason> {
    let is_near = facts.protocol == IPPROTO_ICMPV6 && facts.ttl == 255;
    if matches!(header, Header::V4 { .. }) || !is_near {
        return Continue(());
    }
    let payload = facts.ip_length - 40;
    let is_whole = payload >= 8 && payload <= frame.left;
    match frame.peek() {
        Some(133..=137) if is_whole => Break(Reason::Pass),
        _ => Continue(()),
    }
}

/// Reads the rest, up to the payload.
#[inline(always)]
pub fn transport(frame: &mut Frame, header: Header, facts: &mut Facts) -> ControlFlow<Reason> {
    let fragment = match &header {
        Header::V4 { bytes, fragment } => options(frame, *bytes, *fragment, facts)?,
        Header::V6 => extensions(frame, facts)?,
    };
    frame.settle(facts);
    // Only the first fragment has a transport header.
    if fragment.is_later {
        return Continue(());
    }
    match (facts.protocol, &header) {
        (IPPROTO_TCP, _) => tcp(frame, facts, &fragment)?,
        (IPPROTO_UDP, Header::V4 { .. }) => udp(frame, facts, &fragment, false)?,
        (IPPROTO_UDP, Header::V6) => udp(frame, facts, &fragment, true)?,
        (IPPROTO_ICMP, Header::V4 { .. }) | (IPPROTO_ICMPV6, Header::V6) => icmp(frame, facts)?,
        _ => return Continue(()),
    }
    facts.flags |= FactFlag::TRANSPORT;
    facts.payload_offset = frame.offset as u32;
    Continue(())
}

/// What the packet is limited as, besides packets and bytes.
#[inline(always)]
pub fn kind(slot: &Slot) -> Option<Kind> {
    if slot.flags() & FactFlag::LATER_FRAGMENT != 0 {
        return later_kind(slot);
    }
    if slot.flags() & FactFlag::TRANSPORT == 0 {
        return None;
    }
    match fact!(slot, protocol) {
        IPPROTO_TCP => {
            let flags = fact!(slot, tcp_flags);
            (flags & (TCP_SYN | TCP_ACK) == TCP_SYN).then_some(Kind::Connections)
        }
        IPPROTO_UDP => Some(Kind::Udp),
        _ => Some(Kind::Icmp),
    }
}

/// As what a later fragment is limited. The stack puts IPv4 fragments of one protocol together, but takes
/// only the first IPv6 fragment's word for what all of them are: a later one is UDP whatever it says,
/// unless it says that it is ICMPv6.
#[inline(always)]
fn later_kind(slot: &Slot) -> Option<Kind> {
    match (fact!(slot, protocol), slot.flags() & FactFlag::V4 != 0) {
        (IPPROTO_ICMP, true) | (IPPROTO_ICMPV6, false) => Some(Kind::Icmp),
        (IPPROTO_UDP, _) | (_, false) => Some(Kind::Udp),
        _ => None,
    }
}

/// Refuses fragments, where that is the policy.
#[inline(always)]
pub fn fragment_policy(knobs: Knobs, slot: &Slot) -> ControlFlow<Reason> {
    let is_dropped = setting!(knobs, flags) & PolicyFlag::DROP_FRAGMENTS != 0;
    if is_dropped && slot.flags() & FactFlag::FRAGMENT != 0 {
        return refuse(knobs, Reason::Fragment, slot.would());
    }
    Continue(())
}

/// The type of what lies behind the Ethernet header and up to two VLAN tags.
#[inline(always)]
fn ether_type(frame: &mut Frame) -> ControlFlow<Reason, u16> {
    let header = frame.take::<14>()?;
    let mut kind = number::<12, 14>(header);
    let mut tags = 0;
    while is_vlan(kind) {
        if tags == VLAN_TAGS_MAX {
            return Break(Reason::UnparsedPacket);
        }
        let tag = frame.take::<4>()?;
        kind = number::<2, 4>(tag);
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

impl Fragment {
    /// Keeps in the facts what a header says; what an earlier one said stays.
    #[inline(always)]
    fn note(facts: &mut Facts, is_later: bool, has_more: bool) {
        let later = if is_later { FactFlag::LATER_FRAGMENT | FactFlag::FRAGMENT } else { 0 };
        let more = if has_more { FactFlag::MORE_FRAGMENTS | FactFlag::FRAGMENT } else { 0 };
        facts.flags |= later | more;
    }

    #[inline(always)]
    fn of(facts: &mut Facts) -> Self {
        let known = facts.flags;
        let flags = forget(&mut facts.flags, known);
        Self {
            is_later: flags & FactFlag::LATER_FRAGMENT != 0,
            has_more: flags & FactFlag::MORE_FRAGMENTS != 0,
        }
    }
}

/// Checks an IPv4 header and skips its options.
#[inline(always)]
fn options(
    frame: &mut Frame,
    bytes: u32,
    fragment: u16,
    facts: &mut Facts,
) -> ControlFlow<Reason, Fragment> {
    let total = facts.ip_length;
    if bytes < 20 || total < bytes {
        return Break(Reason::MalformedPacket);
    }
    frame.narrow(total - 20)?;
    frame.skip(bytes - 20)?;
    Fragment::note(facts, fragment & 0x1fff != 0, fragment & 0x2000 != 0);
    Continue(Fragment::of(facts))
}

/// Checks an IPv6 header and follows its extension headers to the payload.
#[inline(always)]
fn extensions(frame: &mut Frame, facts: &mut Facts) -> ControlFlow<Reason, Fragment> {
    let payload = facts.ip_length - 40;
    if payload != 0 || facts.protocol != IPPROTO_HOPOPTS && frame.left <= LENGTH_MAX {
        frame.narrow(payload)?;
    } else {
        // A jumbogram states its length in a hop-by-hop option instead.
        facts.ip_length = 40 + frame.left;
    }
    let mut followed = 0;
    loop {
        frame.settle(facts);
        let kind = forget(&mut facts.rule, facts.protocol.into()) as u8;
        let fragment = Fragment::of(facts);
        if !is_extension(kind) || fragment.is_later {
            facts.rule = 0;
            return Continue(fragment);
        }
        if followed == EXTENSIONS_MAX {
            return Break(Reason::UnparsedPacket);
        }
        let extension = frame.take::<8>()?;
        facts.protocol = extension[0];
        let more = match kind {
            IPPROTO_FRAGMENT => {
                let field = number::<2, 8>(extension);
                Fragment::note(facts, field & 0xfff8 != 0, field & 1 != 0);
                0
            }
            // In words of 4 bytes, less 2: a length of 0 would be less than the 8 just read.
            IPPROTO_AH if extension[1] == 0 => return Break(Reason::MalformedPacket),
            IPPROTO_AH => u32::from(extension[1]) * 4,
            _ => u32::from(extension[1]) * 8,
        };
        frame.skip(more)?;
        followed += 1;
    }
}

/// The headers that the kernel itself follows; it takes any other, of mobility or host identity, for a transport's.
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT | IPPROTO_AH | IPPROTO_DSTOPTS
    )
}

#[inline(always)]
fn tcp(frame: &mut Frame, facts: &mut Facts, fragment: &Fragment) -> ControlFlow<Reason> {
    let header = frame.take::<20>()?;
    ports(facts, header);
    facts.tcp_flags = header[13];
    let bytes = u32::from(header[12] >> 4) * 4;
    if bytes < 20 || (!fragment.has_more && bytes - 20 > frame.left) {
        return Break(Reason::MalformedPacket);
    }
    // Options may go on in fragments that are still to come: then this one has no payload.
    frame.skip((bytes - 20).min(frame.left))
}

#[inline(always)]
fn udp(
    frame: &mut Frame,
    facts: &mut Facts,
    fragment: &Fragment,
    may_be_jumbo: bool,
) -> ControlFlow<Reason> {
    let header = frame.take::<8>()?;
    ports(facts, header);
    let bytes = u32::from(number::<4, 8>(header));
    let is_jumbo = may_be_jumbo && bytes == 0;
    if !is_jumbo && (bytes < 8 || (!fragment.has_more && bytes - 8 > frame.left)) {
        return Break(Reason::MalformedPacket);
    }
    Continue(())
}

/// The stack hands an ICMP message of less than eight bytes to nobody.
#[inline(always)]
fn icmp(frame: &mut Frame, facts: &mut Facts) -> ControlFlow<Reason> {
    let header = frame.take::<8>()?;
    facts.port = number::<0, 8>(header);
    Continue(())
}

#[inline(always)]
fn ports<const N: usize>(facts: &mut Facts, header: &[u8; N]) {
    facts.source_port = number::<0, N>(header);
    facts.port = number::<2, N>(header);
}

/// An IPv4 address, by its word in a header.
#[inline(always)]
fn v4(word: u32) -> Source {
    Source::of_words([0, u64::from(word) << 32 | 0xffff_0000])
}

/// The longest that a length field can say. TCP segments that the kernel put together before generic XDP
/// sees them (BIG TCP) may be longer, and state 0.
const LENGTH_MAX: u32 = 0xffff;
const VLAN_TAGS_MAX: u32 = 2;
const EXTENSIONS_MAX: u32 = 8;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

const IPPROTO_HOPOPTS: u8 = 0;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_IGMP: u8 = 2;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
pub const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_DSTOPTS: u8 = 60;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;
