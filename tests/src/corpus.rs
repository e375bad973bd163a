//! Frames by number: each is built from layers as an attacker would stack them, and then damaged.
//!
//! A frame depends on its number and the corpus's seed alone, so a failure is told by both.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use edge_common::Reason;

use crate::{
    model::{World, standing},
    packet::{ACK, Packet, RST, SYN, ether, sum_v4},
    random::Random,
};

/// An endless row of frames.
#[derive(Clone, Copy, Debug)]
pub struct Corpus {
    /// Decides all of them.
    pub seed: u64,
}

impl Corpus {
    /// The frame of this number, 14 to 9014 bytes long.
    #[must_use]
    pub fn frame(self, number: u64) -> Vec<u8> {
        let mut random = Random::new(self.seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
        // The numbers of neighbouring seeds resemble each other at first.
        random.next();
        let mut frame =
            if random.once_in(50) { garbage(&mut random) } else { stacked(&mut random) };
        // One half stays as it was meant.
        if random.once_in(2) {
            for _ in 0..=random.below(3) {
                damage(&mut frame, &mut random);
            }
        }
        if !random.once_in(8) {
            sum_v4(&mut frame);
        }
        frame.truncate(FRAME_MAX);
        frame.resize(frame.len().max(14), 0);
        frame
    }
}

/// Layers in an order that a stack would follow.
fn stacked(random: &mut Random) -> Vec<u8> {
    let tags = [0, 0, 0, 0, 1, 1, 2, 2, 3, 4];
    let mut packet = ether();
    for _ in 0..*random.pick(&tags) {
        let id = *random.pick(&VLANS);
        packet = if random.once_in(3) { packet.provider_vlan(id) } else { packet.vlan(id) };
    }
    if random.once_in(30) {
        let ether_type = *random.pick(&[0x0806, 0x88cc, 0x8864, 0x9100, 0x0026, 0x8847]);
        return packet.payload(ether_type, &noise(random, 80)).build();
    }
    let packet = if random.once_in(2) { over_v4(packet, random) } else { over_v6(packet, random) };
    packet.build()
}

fn over_v4(packet: Packet, random: &mut Random) -> Packet {
    let options = if random.once_in(4) { random.below(11) as usize * 4 } else { 0 };
    // No operation, end of options, or anything.
    let options = match random.below(3) {
        0 => vec![1; options],
        1 => vec![0; options],
        _ => random.bytes(options),
    };
    let source = source_v4(random).to_string();
    let mut packet = packet.v4_options(&source, &options);
    let mut is_later = false;
    if random.once_in(4) {
        let offset = *random.pick(&FRAGMENT_OFFSETS);
        is_later = offset != 0;
        packet = packet.v4_fragment(offset, random.once_in(2));
    }
    segment(packet, random, is_later, false)
}

fn over_v6(packet: Packet, random: &mut Random) -> Packet {
    let hops = *random.pick(&[64, 64, 255, 1]);
    let source = source_v6(random).to_string();
    let mut packet = packet.v6_hops(&source, hops);
    let mut is_later = false;
    for _ in 0..*random.pick(&[0, 0, 0, 1, 1, 2, 3, 8, 9, 12]) {
        packet = match *random.pick(&EXTENSIONS) {
            44 => {
                let offset = *random.pick(&FRAGMENT_OFFSETS);
                is_later |= offset != 0;
                let reserved = if random.once_in(4) { random.next() as u8 } else { 0 };
                packet.v6_fragment_reserved(offset, random.once_in(2), reserved)
            }
            51 => packet.authentication(*random.pick(&[0, 1, 2, 4, 40])),
            kind => packet.extension(kind, *random.pick(&[0, 0, 0, 1, 2, 30, 127, 255])),
        };
    }
    segment(packet, random, is_later, true)
}

/// What the IP header carries: mostly what a socket would take.
fn segment(packet: Packet, random: &mut Random, is_later: bool, is_v6: bool) -> Packet {
    if is_later && !random.once_in(3) {
        return packet.protocol(*random.pick(&[6, 17, 1, 58]), &noise(random, 64));
    }
    match random.below(12) {
        0..3 => {
            let flags = *random.pick(&[SYN, SYN, ACK, RST, SYN | ACK, 0, 0xff]);
            packet.tcp(flags).bytes(&noise(random, 64))
        }
        3..6 => packet.udp().bytes(&noise(random, 64)),
        6 if is_v6 => packet.icmpv6(*random.pick(&[128, 129, 1, 133, 134, 135, 136, 137])),
        6 => packet.icmp(),
        7 => packet.udp().bytes(&bulk(random, &[1400, 1472, 3400, 3600, 8900])),
        8 => {
            let inner = [over_inner_v4(random), over_inner_v6(random)];
            let (protocol, bytes) = random.pick(&inner);
            packet.protocol(*protocol, bytes)
        }
        9 => {
            let gre = [&[0, 0, 8, 0], &over_inner_v4(random).1[..]].concat();
            packet.protocol(47, &gre)
        }
        10 => packet.protocol(*random.pick(&[50, 132, 2, 89, 253, 255, 136]), &noise(random, 40)),
        _ => packet.protocol(random.next() as u8, &noise(random, 40)),
    }
}

/// IP in IP, from a source that no list names: it must not cover for the outer one.
fn over_inner_v4(random: &mut Random) -> (u8, Vec<u8>) {
    let inner = ether().v4("192.0.2.10").udp().bytes(&noise(random, 16)).build();
    (4, inner[14..].to_vec())
}

fn over_inner_v6(random: &mut Random) -> (u8, Vec<u8>) {
    let inner = ether().v6("2001:db8:1::5").udp().bytes(&noise(random, 16)).build();
    (41, inner[14..].to_vec())
}

fn garbage(random: &mut Random) -> Vec<u8> {
    let mut frame = noise(random, 200);
    frame.resize(frame.len().max(14), 0);
    let ether_type: u16 = *random.pick(&[0x0800, 0x86dd, 0x8100, 0x88a8, 0xffff]);
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    frame
}

fn damage(frame: &mut Vec<u8>, random: &mut Random) {
    let length = frame.len() as u32;
    // What decides stands in front: most blows fall there.
    let reach = if random.once_in(4) { length } else { length.min(90) };
    let at = random.below(reach) as usize;
    match random.below(9) {
        0 => frame[at] = random.next() as u8,
        1 => frame[at] ^= 1 << random.below(8),
        2 => frame[at] = *random.pick(&[0, 1, 0x7f, 0x80, 0xff, 44, 60]),
        3 => frame.truncate(at),
        4 => frame.resize(frame.len() + random.below(60) as usize, random.next() as u8),
        5 => frame.extend(bulk(random, &[1, 500, 1500, 4000])),
        6 => drop(frame.splice(at..at, random.bytes(4))),
        7 => drop(frame.drain(at..(at + 4).min(length as usize))),
        _ => {
            // The length fields, wherever the IP header begins without tags.
            let field = *random.pick(&[16, 18, 38, 58]);
            if field + 2 <= frame.len() {
                let value = *random.pick(&[0, 1, 8, 19, 20, 28, 40, 0xffff]);
                frame[field..field + 2].copy_from_slice(&u16::to_be_bytes(value));
            }
        }
    }
    frame.resize(frame.len().max(14), 0);
}

/// The refused addresses that undamaged frames come from, for filters that take no networks.
#[must_use]
pub fn refused(world: &World) -> BTreeSet<IpAddr> {
    let mut random = Random::new(0);
    let drawn = (0..200_000).flat_map(|_| {
        [IpAddr::V4(source_v4(&mut random)), IpAddr::V6(source_v6(&mut random)).to_canonical()]
    });
    drawn.filter(|a| matches!(standing(world, *a), Some(Reason::DenyList | Reason::Ban))).collect()
}

fn source_v4(random: &mut Random) -> Ipv4Addr {
    let host = random.next() as u8;
    match random.below(9) {
        0..3 => Ipv4Addr::new(203, 0, 113, host),
        3 => Ipv4Addr::new(100, 64 | host & 63, host, 5),
        4 => Ipv4Addr::new(198, 18, 7, 8 + (host & 3)),
        5 => Ipv4Addr::new(203, 0, 113, 7),
        6 => Ipv4Addr::new(192, 0, 2, 66 + (host & 1)),
        7 => Ipv4Addr::new(192, 0, 2, 10),
        _ => Ipv4Addr::from(random.next() as u32),
    }
}

fn source_v6(random: &mut Random) -> Ipv6Addr {
    let host = u16::from(random.next() as u8);
    match random.below(11) {
        0..2 => Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 2 + (host & 3), 0, 0, 0, host),
        2 => Ipv6Addr::new(0x2001, 0xdb8, 0xdead, host & 1, 0, 0, 0, 1),
        3 => Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 6 + (host & 1)),
        4 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xbad, host),
        5 => Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 1, 0, 0, 0, host),
        6 => Ipv6Addr::new(0x2001, 0xdb8, 5, 6 + (host & 1), 0, 0, 0, host),
        7 => source_v4(random).to_ipv6_mapped(),
        8 => *random.pick(&[Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST]),
        9 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5),
        _ => Ipv6Addr::from(u128::from(random.next()) << 64 | u128::from(random.next())),
    }
}

fn noise(random: &mut Random, max: u32) -> Vec<u8> {
    let length = random.below(max) as usize;
    random.bytes(length)
}

fn bulk(random: &mut Random, lengths: &[usize]) -> Vec<u8> {
    let length = *random.pick(lengths);
    random.bytes(length)
}

/// Mostly priority tags, which a stack takes off without an interface for them.
const VLANS: [u16; 4] = [0, 0, 0, 5];

/// First, overlapping it, later, last of all.
const FRAGMENT_OFFSETS: [u16; 6] = [0, 0, 1, 2, 100, 0x1fff];

/// The last ones are protocols to the stack.
const EXTENSIONS: [u8; 10] = [0, 43, 44, 44, 51, 60, 60, 135, 139, 140];

/// Bytes of the longest frame: a jumbo frame's.
const FRAME_MAX: usize = 9014;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::world;

    #[test]
    fn a_frame_is_the_same_every_time_and_no_other() {
        let (one, other) = (Corpus { seed: 1 }, Corpus { seed: 2 });
        assert!((0..100).all(|n| one.frame(n) == one.frame(n)));
        assert!((0..100).filter(|n| one.frame(*n) == other.frame(*n)).count() < 5);
    }

    #[test]
    fn every_verdict_comes_up_often() {
        let (world, mut counts) = (world(), std::collections::BTreeMap::new());
        for number in 0..20_000 {
            let frame = Corpus { seed: 3 }.frame(number);
            assert!((14..=FRAME_MAX).contains(&frame.len()));
            *counts.entry(world.judge(&frame).reason.name()).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 7, "{counts:?}");
        assert!(counts.values().all(|count| *count > 200), "{counts:?}");
    }
}
