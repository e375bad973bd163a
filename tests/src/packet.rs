//! A small language for frames: layers are stacked, and each fills in what the one below says of
//! it (types, protocols, lengths). What a test wants wrong it patches afterwards.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A frame in the making.
#[derive(Clone, Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    next: Next,
    lengths: Vec<(Length, usize)>,
}

/// Where the layer below says what comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    EtherType(usize),
    Protocol(usize),
}

/// A length field that is filled in at the end, with the offset of its header.
#[derive(Clone, Copy, Debug)]
enum Length {
    V4,
    V6,
    Udp,
}

/// TCP's FIN.
pub const FIN: u8 = 0x01;
/// TCP's SYN.
pub const SYN: u8 = 0x02;
/// TCP's RST.
pub const RST: u8 = 0x04;
/// TCP's ACK.
pub const ACK: u8 = 0x10;

/// IPv6's hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// IPv6's routing header.
pub const ROUTING: u8 = 43;
/// IPv6's destination options.
pub const DESTINATION: u8 = 60;
/// IPv6's mobility header.
pub const MOBILITY: u8 = 135;
/// IPv6's host identity header.
pub const HOST_IDENTITY: u8 = 139;

/// An Ethernet header.
#[must_use]
pub fn ether() -> Packet {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend([0, 0]);
    Packet { bytes, next: Next::EtherType(12), lengths: Vec::new() }
}

/// An Ethernet header and an IPv4 header from this source.
#[must_use]
pub fn v4(source: &str) -> Packet {
    ether().v4(source)
}

/// An Ethernet header and an IPv6 header from this source.
#[must_use]
pub fn v6(source: &str) -> Packet {
    ether().v6(source)
}

impl Packet {
    /// A customer's VLAN tag, 802.1Q.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.tag(0x8100, id)
    }

    /// A provider's VLAN tag, 802.1ad.
    #[must_use]
    pub fn provider_vlan(self, id: u16) -> Self {
        self.tag(0x88a8, id)
    }

    fn tag(mut self, ether_type: u16, id: u16) -> Self {
        self.say(ether_type, 0);
        self.bytes.extend(id.to_be_bytes());
        self.next = Next::EtherType(self.bytes.len());
        self.bytes.extend([0, 0]);
        self
    }

    /// An IPv4 header without options.
    #[must_use]
    pub fn v4(self, source: &str) -> Self {
        self.v4_options(source, &[])
    }

    /// An IPv4 header with options, a multiple of four bytes.
    #[must_use]
    pub fn v4_options(mut self, source: &str, options: &[u8]) -> Self {
        let source: Ipv4Addr = source.parse().expect("an IPv4 address");
        self.say(0x0800, 4);
        let at = self.bytes.len();
        let words = 5 + options.len() as u8 / 4;
        self.bytes.extend([0x40 | words, 0, 0, 0, 0, 1, 0, 0, 64, 0, 0, 0]);
        self.bytes.extend(source.octets());
        self.bytes.extend([192, 0, 2, 1]);
        self.bytes.extend(options);
        self.next = Next::Protocol(at + 9);
        self.lengths.push((Length::V4, at));
        self
    }

    /// Makes the IPv4 header below that of a fragment; the offset is in units of eight bytes.
    #[must_use]
    pub fn v4_fragment(mut self, offset: u16, more: bool) -> Self {
        let Next::Protocol(at) = self.next else { panic!("no IPv4 header below") };
        let field = offset | if more { 0x2000 } else { 0 };
        self.bytes[at - 3..at - 1].copy_from_slice(&field.to_be_bytes());
        self
    }

    /// An IPv6 header with a hop limit of 64.
    #[must_use]
    pub fn v6(self, source: &str) -> Self {
        self.v6_hops(source, 64)
    }

    /// An IPv6 header.
    #[must_use]
    pub fn v6_hops(mut self, source: &str, hops: u8) -> Self {
        let source: Ipv6Addr = source.parse().expect("an IPv6 address");
        let target: Ipv6Addr = "2001:db8::1".parse().expect("an IPv6 address");
        self.say(0x86dd, 41);
        let at = self.bytes.len();
        self.bytes.extend([0x60, 0, 0, 0, 0, 0, 59, hops]);
        self.bytes.extend(source.octets());
        self.bytes.extend(target.octets());
        self.next = Next::Protocol(at + 6);
        self.lengths.push((Length::V6, at));
        self
    }

    /// An IPv6 extension header of eight bytes and `more` times eight.
    #[must_use]
    pub fn extension(mut self, kind: u8, more: u8) -> Self {
        self.say(0, kind);
        self.next = Next::Protocol(self.bytes.len());
        // A padding option fills it.
        self.bytes.extend([59, more, 1, 4, 0, 0, 0, 0]);
        self.bytes.extend(vec![0; usize::from(more) * 8]);
        self
    }

    /// An authentication header of `words` times four bytes and eight.
    #[must_use]
    pub fn authentication(mut self, words: u8) -> Self {
        self.say(0, 51);
        self.next = Next::Protocol(self.bytes.len());
        self.bytes.extend([59, words, 0, 0, 0, 0, 0, 1]);
        self.bytes.extend(vec![0; usize::from(words) * 4]);
        self
    }

    /// An IPv6 fragment header; the offset is in units of eight bytes.
    #[must_use]
    pub fn v6_fragment(self, offset: u16, more: bool) -> Self {
        self.v6_fragment_reserved(offset, more, 0)
    }

    /// An IPv6 fragment header with something in its reserved byte.
    #[must_use]
    pub fn v6_fragment_reserved(mut self, offset: u16, more: bool, reserved: u8) -> Self {
        self.say(0, 44);
        self.next = Next::Protocol(self.bytes.len());
        self.bytes.extend([59, reserved]);
        self.bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
        self.bytes.extend([0, 0, 0, 7]);
        self
    }

    /// A TCP header to port 443.
    #[must_use]
    pub fn tcp(mut self, flags: u8) -> Self {
        self.say(0, 6);
        self.bytes.extend(40_000_u16.to_be_bytes());
        self.bytes.extend(443_u16.to_be_bytes());
        self.bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self
    }

    /// A UDP header to port 53.
    #[must_use]
    pub fn udp(mut self) -> Self {
        self.say(0, 17);
        self.lengths.push((Length::Udp, self.bytes.len()));
        self.bytes.extend(40_000_u16.to_be_bytes());
        self.bytes.extend(53_u16.to_be_bytes());
        self.bytes.extend([0, 0, 0, 0]);
        self
    }

    /// An ICMP echo request.
    #[must_use]
    pub fn icmp(self) -> Self {
        self.protocol(1, &[8, 0, 0, 0, 0, 1, 0, 1])
    }

    /// An ICMPv6 message.
    #[must_use]
    pub fn icmpv6(self, kind: u8) -> Self {
        self.protocol(58, &[kind, 0, 0, 0, 0, 0, 0, 0])
    }

    /// Any other protocol.
    #[must_use]
    pub fn protocol(mut self, protocol: u8, bytes: &[u8]) -> Self {
        self.say(0, protocol);
        self.bytes(bytes)
    }

    /// Any other Ethernet payload.
    #[must_use]
    pub fn payload(mut self, ether_type: u16, bytes: &[u8]) -> Self {
        self.say(ether_type, 0);
        self.bytes(bytes)
    }

    /// Bytes that no header speaks of.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// The frame, with all lengths filled in: 0 for one that is beyond its field, as the kernel has it.
    #[must_use]
    pub fn build(mut self) -> Vec<u8> {
        let end = self.bytes.len();
        for (length, at) in self.lengths {
            let (field, value) = match length {
                Length::V4 => (at + 2, end - at),
                Length::V6 => (at + 4, end - at - 40),
                Length::Udp => (at + 4, end - at),
            };
            let value = u16::try_from(value).unwrap_or(0);
            self.bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
        }
        self.bytes
    }

    /// The frame, with other bytes at an offset.
    #[must_use]
    pub fn patched(self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut frame = self.build();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    }

    /// The first bytes of the frame.
    #[must_use]
    pub fn cut(self, length: usize) -> Vec<u8> {
        let mut frame = self.build();
        frame.truncate(length);
        frame
    }

    /// Fills in what comes next, in the terms of the layer below.
    fn say(&mut self, ether_type: u16, protocol: u8) {
        match self.next {
            Next::EtherType(at) => {
                self.bytes[at..at + 2].copy_from_slice(&ether_type.to_be_bytes());
            }
            Next::Protocol(at) => self.bytes[at] = protocol,
        }
    }
}

/// Makes the checksum of a frame's IPv4 header right, or no stack would look any further. A frame
/// without such a header stays as it is.
pub fn sum_v4(frame: &mut [u8]) {
    let mut at = 12;
    while matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    if frame.get(at..at + 2) != Some(&[0x08, 0x00]) {
        return;
    }
    let Some(first) = frame.get(at + 2) else { return };
    let length = usize::from(first & 15) * 4;
    let Some(header) = frame.get_mut(at + 2..at + 2 + length.max(12)) else { return };
    header[10..12].fill(0);
    let sum = !sum(header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Makes the checksum of a TCP segment right, which is all of a frame behind an IPv4 header without
/// options.
pub fn sum_tcp_v4(frame: &mut [u8]) {
    let (header, segment) = frame.split_at_mut(34);
    segment[16..18].fill(0);
    let pseudo = sum(&header[26..34], 6 + segment.len() as u32);
    let sum = !sum(segment, u32::from(pseudo));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// The sum of the internet checksum: of 16-bit words, with the carry brought around.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|w| u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]));
    let mut sum = start + words.map(u32::from).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
