//! A second opinion on frames: what must happen to one, read off the standards (IEEE 802.1Q,
//! RFC 791, 792, 768, 9293, 8200, 4302, 4861) and the documented policies, sharing nothing with the
//! kernel program. It takes a frame apart into ever shorter slices.

use std::net::IpAddr;

use edge_common::Reason;
use ipnet::IpNet;

/// Who is listed. Nothing in it ends, and no limit is on.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Who always passes.
    pub allow: Vec<IpNet>,
    /// Whom no list, ban or limit drops.
    pub spare: Vec<IpNet>,
    /// Who never passes.
    pub deny: Vec<IpNet>,
    /// The clients that are banned: an IPv4 address or an IPv6 /64 each.
    pub banned: Vec<IpNet>,
}

/// What must happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Where and why it ends.
    pub reason: Reason,
    /// Who sent it, as far as it can be told.
    pub source: Option<IpAddr>,
    /// What else it says of itself, if it is read to its end and passes.
    pub told: Option<Told>,
}

/// What limits, signatures and services go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The protocol, behind extension headers.
    pub protocol: u8,
    /// Source and destination; of ICMP 0, and type and code. `None` without a transport header.
    pub ports: Option<[u16; 2]>,
    /// TCP's.
    pub tcp_flags: u8,
    /// It is a fragment that is not the first.
    pub is_later: bool,
    /// It is a fragment that is not the last.
    pub has_more: bool,
}

/// A slice of the frame that is left, or the reason for which reading it ends.
type Rest<'a> = Result<&'a [u8], Reason>;

/// What an IP header says of the payload.
#[derive(Clone, Copy)]
struct Payload<'a> {
    protocol: u8,
    bytes: &'a [u8],
    /// Where in the frame they begin; 0 in IPv4, whose headers are short.
    start: usize,
    /// A fragment but the first: nothing is left to read.
    is_later: bool,
    /// More fragments follow, so lengths inside may point beyond these bytes.
    has_more: bool,
    is_v6: bool,
}

impl World {
    /// Judges a whole frame.
    #[must_use]
    pub fn judge(&self, frame: &[u8]) -> Judgement {
        let nobody = |reason| Judgement { reason, source: None, told: None };
        let (ether_type, packet) = match untagged(frame) {
            Ok(found) => found,
            Err(reason) => return nobody(reason),
        };
        let source = match ether_type {
            0x0800 if packet.len() >= 20 && packet[0] >> 4 == 4 => {
                IpAddr::V4(octets::<4>(&packet[12..]).into())
            }
            0x86dd if packet.len() >= 40 && packet[0] >> 4 == 6 => {
                IpAddr::V6(octets::<16>(&packet[8..]).into()).to_canonical()
            }
            0x0800 | 0x86dd => return nobody(Reason::MalformedPacket),
            _ => return nobody(Reason::NotIp),
        };
        let is_near = ether_type == 0x86dd && is_neighbour_discovery(packet);
        let read = self.listed(source).map_or_else(
            || {
                if is_near {
                    // What keeps the link alive is not read any further.
                    Ok(Told {
                        protocol: 58,
                        ports: None,
                        tcp_flags: 0,
                        is_later: false,
                        has_more: false,
                    })
                } else if self.is_banned(source) {
                    Err(Reason::Ban)
                } else {
                    let start = frame.len() - packet.len();
                    let read = if ether_type == 0x0800 { v4(packet) } else { v6(packet, start) };
                    read.and_then(transport)
                }
            },
            Err,
        );
        let is_spared = holds(&self.spare, source) && !is_near;
        let passed = if is_spared { Reason::AllowList } else { Reason::Pass };
        let reason = read.err().unwrap_or(passed);
        Judgement { reason, source: Some(source), told: read.ok() }
    }

    fn listed(&self, source: IpAddr) -> Option<Reason> {
        if holds(&self.allow, source) {
            Some(Reason::AllowList)
        } else if holds(&self.spare, source) {
            None
        } else {
            holds(&self.deny, source).then_some(Reason::DenyList)
        }
    }

    fn is_banned(&self, source: IpAddr) -> bool {
        holds(&self.banned, source) && !holds(&self.spare, source)
    }
}

fn holds(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// What lies behind the Ethernet header and at most two VLAN tags, and its type.
fn untagged(frame: &[u8]) -> Result<(u16, &[u8]), Reason> {
    let (header, mut rest) = frame.split_at_checked(14).ok_or(Reason::MalformedPacket)?;
    let mut ether_type = u16_at(header, 12);
    for tag in 0.. {
        if ether_type != 0x8100 && ether_type != 0x88a8 {
            break;
        }
        if tag == 2 {
            return Err(Reason::UnparsedPacket);
        }
        ether_type = u16_at(whole(rest, 4)?, 2);
        rest = &rest[4..];
    }
    Ok((ether_type, rest))
}

/// RFC 4861: a hop limit of 255 proves that it comes from the link; 8 bytes at least.
fn is_neighbour_discovery(packet: &[u8]) -> bool {
    let length = usize::from(u16_at(packet, 4));
    let message = packet[40..].get(..length).unwrap_or_default();
    packet[6] == 58 && packet[7] == 255 && message.len() >= 8 && (133..=137).contains(&message[0])
}

/// RFC 791.
fn v4(packet: &[u8]) -> Result<Payload<'_>, Reason> {
    let header = usize::from(packet[0] & 15) * 4;
    let stated = usize::from(u16_at(packet, 2));
    let total = if stated == 0 && is_put_together(packet) { packet.len() } else { stated };
    if header < 20 || total < header {
        return Err(Reason::MalformedPacket);
    }
    let bytes = &whole(packet, total)?[header..];
    let fragment = u16_at(packet, 6);
    let (has_more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    let is_later = offset != 0;
    Ok(Payload { protocol: packet[9], bytes, start: 0, is_later, has_more, is_v6: false })
}

/// RFC 8200: the chain of extension headers. `start` bytes of the frame lie before the packet.
fn v6(packet: &[u8], start: usize) -> Result<Payload<'_>, Reason> {
    let (mut protocol, length) = (packet[6], usize::from(u16_at(packet, 4)));
    let mut bytes = &packet[40..];
    // RFC 2675: a jumbogram's length stands in its hop-by-hop options.
    if length != 0 || protocol != 0 && !is_put_together(&packet[40..]) {
        bytes = whole(bytes, length)?;
    }
    let end = start + 40 + bytes.len();
    let (mut is_later, mut has_more) = (false, false);
    for followed in 0.. {
        let kind = protocol;
        if is_later || !matches!(kind, 0 | 43 | 44 | 51 | 60) {
            break;
        }
        if followed == 8 {
            return Err(Reason::UnparsedPacket);
        }
        let header = whole(bytes, 8)?;
        protocol = header[0];
        let size = match kind {
            44 => {
                let field = u16_at(header, 2);
                has_more |= field & 1 == 1;
                is_later = field >> 3 != 0;
                8
            }
            // RFC 4302: a whole header is 12 bytes at least.
            51 if header[1] == 0 => return Err(Reason::MalformedPacket),
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        whole(bytes, size)?;
        bytes = &bytes[size..];
        // The policy: a header that begins beyond byte 2047 of the frame is not looked for.
        if end - bytes.len() > HEADERS_END {
            return Err(Reason::UnparsedPacket);
        }
    }
    let start = end - bytes.len();
    Ok(Payload { protocol, bytes, start, is_later, has_more, is_v6: true })
}

/// Segments that the kernel put together are the only packets beyond their length field; it says 0.
fn is_put_together(longer: &[u8]) -> bool {
    longer.len() > usize::from(u16::MAX)
}

/// RFC 9293, 768, 792 and 4443: whole headers whose lengths the packet has room for.
fn transport(payload: Payload<'_>) -> Result<Told, Reason> {
    let Payload { protocol, bytes, start, is_later, has_more, is_v6 } = payload;
    let told = Told { protocol, ports: None, tcp_flags: 0, is_later, has_more };
    if is_later {
        return Ok(told);
    }
    let (least, stated) = match protocol {
        6 => (20, usize::from(whole(bytes, 20)?[12] >> 4) * 4),
        17 => {
            let stated = usize::from(u16_at(whole(bytes, 8)?, 4));
            // RFC 2675 again: 0 in a jumbogram.
            (8, if is_v6 && stated == 0 { 8 } else { stated })
        }
        1 | 58 if is_v6 == (protocol == 58) => (8, 8),
        _ => return Ok(told),
    };
    whole(bytes, least)?;
    let fits = stated >= least && (has_more || stated <= bytes.len());
    if !fits {
        return Err(Reason::MalformedPacket);
    }
    // The same policy for TCP's options, where they are all in this packet.
    let is_far = protocol == 6 && stated <= bytes.len() && start + stated > HEADERS_END;
    if is_far {
        return Err(Reason::UnparsedPacket);
    }
    let first = u16_at(bytes, 0);
    let ports = if least == 8 && protocol != 17 { [0, first] } else { [first, u16_at(bytes, 2)] };
    let tcp_flags = if protocol == 6 { bytes[13] } else { 0 };
    Ok(Told { ports: Some(ports), tcp_flags, ..told })
}

/// The first `length` bytes, if they are all there.
fn whole(bytes: &[u8], length: usize) -> Rest<'_> {
    bytes.get(..length).ok_or(Reason::MalformedPacket)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn octets<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("the caller looked")
}

/// The policy on long chains of headers: bytes of a frame behind which nothing is looked for.
const HEADERS_END: usize = 2047;

/// The world that the corpus speaks of: nested networks, both families, links.
#[must_use]
pub fn world() -> World {
    let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("a network")).collect();
    World {
        allow: nets(&["203.0.113.7/32", "2001:db8:bad:1::/64"]),
        spare: nets(&["203.0.113.0/26", "2001:db8:bad:2::/64"]),
        deny: nets(&[
            "203.0.113.0/24",
            "100.64.0.0/10",
            "198.18.7.9/32",
            "2001:db8:bad::/48",
            "2001:db8:dead:1::/64",
            "2001:db8:77::7/128",
            "fe80::bad:0/112",
        ]),
        banned: nets(&[
            "192.0.2.66/32",
            "203.0.113.7/32",
            "2001:db8:5:6::/64",
            "2001:db8:bad:2::/64",
        ]),
    }
}

/// What an address is to the world.
#[must_use]
pub fn standing(world: &World, source: IpAddr) -> Option<Reason> {
    world.listed(source).or_else(|| world.is_banned(source).then_some(Reason::Ban))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{SYN, v4, v6};

    #[test]
    fn it_knows_the_plain_cases() {
        let judge = |frame: Vec<u8>| world().judge(&frame).reason;
        assert_eq!(judge(v4("192.0.2.9").tcp(SYN).build()), Reason::Pass);
        assert_eq!(judge(v4("203.0.113.99").tcp(SYN).build()), Reason::DenyList);
        assert_eq!(judge(v4("203.0.113.9").tcp(SYN).build()), Reason::AllowList);
        assert_eq!(judge(v4("203.0.113.9").tcp(SYN).cut(53)), Reason::MalformedPacket);
        assert_eq!(judge(v4("203.0.113.7").tcp(SYN).build()), Reason::AllowList);
        assert_eq!(judge(v6("::ffff:203.0.113.99").udp().build()), Reason::DenyList);
        assert_eq!(judge(v6("2001:db8:5:6::1").udp().build()), Reason::Ban);
        assert_eq!(judge(v4("192.0.2.9").tcp(SYN).cut(53)), Reason::MalformedPacket);
    }
}
