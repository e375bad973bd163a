//! The packet program, by `BPF_PROG_TEST_RUN`: a frame in, a reason out.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use edge_common::{
    Rate, Reason, Signature, Source,
    map::{Ban, FOREVER, Kind},
    service::Service,
    signature::Action,
};
use edge_daemon::{
    clock::boot_ns,
    kernel::{InForce, Kernel, KernelError, ListCapacity, LoadSettings, Policy, detach},
};
use edge_policy::list::Class;
use edge_tests::packet::{
    ACK, DESTINATION, HOP_BY_HOP, MOBILITY, Packet, ROUTING, RST, SYN, ether, v4, v6,
};

use nix::poll::{PollFd, PollFlags, PollTimeout};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

const UNLIMITED: Policy = Policy::UNLIMITED;

/// A folder of pins of a test's own.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
        Self(PathBuf::from(format!("/sys/fs/bpf/edged-test-{process}-{next}")))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        detach(&self.0).unwrap();
    }
}

/// The kernel plane without an interface.
struct Bench {
    kernel: Kernel,
    pins: Pins,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        let pins = Pins::new();
        Self { kernel: load(&settings(&pins.0, policy)), pins }
    }

    /// Ends the daemon; its pins stay.
    fn end(self) -> Pins {
        self.pins
    }

    /// Judges a frame; it must be counted exactly once, and under a reason that says what it did.
    fn judge(&mut self, frame: &[u8]) -> Reason {
        let before = self.kernel.tables.counts().unwrap();
        let passes = self.kernel.judge(frame).unwrap();
        let after = self.kernel.tables.counts().unwrap();
        let mut counted = Reason::ALL.iter().filter(|reason| {
            let (before, after) = (before[**reason as usize], after[**reason as usize]);
            let (packets, bytes) = (after.packets - before.packets, after.bytes - before.bytes);
            assert_eq!(bytes, packets * frame.len() as u64);
            assert!(packets <= 1);
            packets == 1
        });
        let reason = *counted.next().expect("counted");
        assert_eq!(counted.next(), None, "counted twice");
        assert_eq!(reason.passes(), passes, "{}", reason.name());
        reason
    }

    fn allow(&mut self, network: &str, until_ns: u64) {
        self.list(Class::Allow, network, until_ns);
    }

    fn deny(&mut self, network: &str, until_ns: u64) {
        self.list(Class::Deny, network, until_ns);
    }

    fn list(&self, class: Class, network: &str, until_ns: u64) {
        let set = self.kernel.tables.lists.set(class, &network.parse().unwrap(), until_ns);
        assert_eq!(set.unwrap(), InForce::Now);
    }

    fn ban(&mut self, client: &str, until_ns: u64) {
        let ban = Ban {
            since_ns: boot_ns(),
            until_ns,
            hits: 0,
            first_hit_ns: 0,
            reason: Reason::CredentialInvalid as u32,
            strikes: 1,
        };
        self.kernel.tables.bans.ban(source(client), ban).unwrap();
    }
}

fn settings(pin_dir: &Path, policy: Policy) -> LoadSettings {
    LoadSettings {
        pin_dir: pin_dir.to_owned(),
        debug: false,
        policy,
        lists: ListCapacity::of(1_000, []),
    }
}

fn load(settings: &LoadSettings) -> Kernel {
    Kernel::load(settings).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn source(text: &str) -> Source {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// Everyone the table below speaks of.
fn populated() -> Bench {
    let mut bench = Bench::new(UNLIMITED);
    bench.deny("198.51.100.0/24", FOREVER);
    bench.deny("2001:db8:bad::/48", FOREVER);
    bench.deny("203.0.113.0/24", boot_ns() + HOUR);
    bench.deny("100.64.0.0/10", 1);
    bench.deny("fe80::bad:0/112", FOREVER);
    bench.allow("198.51.100.7/32", FOREVER);
    bench.allow("2001:db8:bad:1::/64", FOREVER);
    bench.allow("192.88.99.0/24", 1);
    bench.deny("192.88.99.0/24", FOREVER);
    bench.ban("192.0.2.66", boot_ns() + HOUR);
    bench.ban("192.0.2.67", 1);
    bench.ban("2001:db8:5:6::", boot_ns() + HOUR);
    bench.ban("198.51.100.7", boot_ns() + HOUR);
    bench.ban("fe80::66", boot_ns() + HOUR);
    bench
}

const GOOD: &str = "192.0.2.10";
const DENIED: &str = "198.51.100.9";
const ALLOWED: &str = "198.51.100.7";
const GOOD6: &str = "2001:db8:1::5";
const DENIED6: &str = "2001:db8:bad::5";
const ALLOWED6: &str = "2001:db8:bad:1::5";

type Row = (&'static str, Vec<u8>, Reason);

fn ordinary() -> Vec<Row> {
    use Reason::{NotIp, Pass};
    vec![
        ("TCP SYN", v4(GOOD).tcp(SYN).build(), Pass),
        ("TCP ACK with data", v4(GOOD).tcp(ACK).bytes(b"GET /").build(), Pass),
        ("UDP", v4(GOOD).udp().bytes(b"query").build(), Pass),
        ("ICMP", v4(GOOD).icmp().build(), Pass),
        ("GRE", v4(GOOD).protocol(47, &[0; 8]).build(), Pass),
        ("no payload", v4(GOOD).protocol(253, &[]).build(), Pass),
        ("padding behind a short packet", padded(v4(GOOD).tcp(RST).build(), 64), Pass),
        ("IPv4 options", ether().v4_options(GOOD, &[1; 40]).tcp(SYN).build(), Pass),
        ("a first fragment", v4(GOOD).v4_fragment(0, true).udp().bytes(&[0; 16]).build(), Pass),
        ("a later fragment", v4(GOOD).v4_fragment(3, true).protocol(6, &[0; 8]).build(), Pass),
        ("a last fragment", v4(GOOD).v4_fragment(9, false).protocol(6, &[1]).build(), Pass),
        ("one tag", ether().vlan(7).v4(GOOD).tcp(SYN).build(), Pass),
        ("two tags", ether().provider_vlan(7).vlan(8).v4(GOOD).tcp(SYN).build(), Pass),
        ("IPv6 TCP", v6(GOOD6).tcp(SYN).build(), Pass),
        ("IPv6 UDP", v6(GOOD6).udp().build(), Pass),
        ("IPv6 echo", v6(GOOD6).icmpv6(128).build(), Pass),
        ("IPv6 ESP", v6(GOOD6).protocol(50, &[0; 16]).build(), Pass),
        ("IPv6 no next header", v6(GOOD6).build(), Pass),
        ("IPv6 in two tags", ether().vlan(1).vlan(2).v6(GOOD6).tcp(SYN).build(), Pass),
        ("all extension headers", all_extensions(GOOD6).tcp(SYN).build(), Pass),
        ("1 KiB of options", v6(GOOD6).extension(DESTINATION, 127).tcp(SYN).build(), Pass),
        (
            "IPv6 first fragment",
            v6(GOOD6).v6_fragment(0, true).tcp(SYN).bytes(&[0; 4]).build(),
            Pass,
        ),
        ("IPv6 later fragment", v6(GOOD6).v6_fragment(4, false).protocol(6, &[0; 3]).build(), Pass),
        ("IPv6 atomic fragment", v6(GOOD6).v6_fragment(0, false).tcp(SYN).build(), Pass),
        ("ARP", ether().payload(0x0806, &[0; 28]).build(), NotIp),
        ("LLDP", ether().payload(0x88cc, &[0; 20]).build(), NotIp),
        ("ARP in a tag", ether().vlan(7).payload(0x0806, &[0; 28]).build(), NotIp),
        ("802.3 length", ether().payload(0x0026, &[0; 38]).build(), NotIp),
    ]
}

fn verdicts() -> Vec<Row> {
    use Reason::{AllowList, Ban, DenyList, Pass};
    vec![
        ("denied", v4(DENIED).tcp(SYN).build(), DenyList),
        ("denied for an hour", v4("203.0.113.200").udp().build(), DenyList),
        ("denied until a moment ago", v4("100.64.1.1").tcp(SYN).build(), Pass),
        ("allowed inside of denied", v4(ALLOWED).tcp(SYN).build(), AllowList),
        ("beside the allowed", v4("198.51.100.6").tcp(SYN).build(), DenyList),
        ("allowed until a moment ago, denied", v4("192.88.99.1").udp().build(), DenyList),
        ("banned", v4("192.0.2.66").tcp(ACK).build(), Ban),
        ("beside the banned", v4("192.0.2.65").tcp(ACK).build(), Pass),
        ("banned until a moment ago", v4("192.0.2.67").tcp(ACK).build(), Pass),
        ("denied IPv6", v6(DENIED6).tcp(SYN).build(), DenyList),
        ("allowed IPv6 inside of denied", v6(ALLOWED6).udp().build(), AllowList),
        ("banned by its /64", v6("2001:db8:5:6:7::8").udp().build(), Ban),
        ("outside of the banned /64", v6("2001:db8:5:7::8").udp().build(), Pass),
        ("mapped IPv4 in IPv6", v6("::ffff:198.51.100.9").udp().build(), DenyList),
        ("a banned neighbour", v6("fe80::66").udp().build(), Ban),
        ("beside the banned neighbour", v6("fe80::67").udp().build(), Pass),
        ("a banned neighbour's discovery", discovery("fe80::66", 136), Pass),
        ("a banned host's discovery", discovery("2001:db8:5:6::9", 135), Pass),
        ("it from beyond the link", v6("2001:db8:5:6::9").icmpv6(135).build(), Ban),
        ("its echo", discovery("2001:db8:5:6::9", 128), Ban),
        ("its discovery cut short", discovery_of(7, "2001:db8:5:6::9"), Ban),
        ("a denied neighbour's discovery", discovery("fe80::bad:1", 135), DenyList),
        ("an allowed host's discovery", discovery(ALLOWED6, 135), AllowList),
    ]
}

/// ICMPv6 as a neighbour on the link sends it.
fn discovery(source: &str, kind: u8) -> Vec<u8> {
    ether().v6_hops(source, 255).icmpv6(kind).build()
}

/// Neighbour discovery of so many bytes.
fn discovery_of(length: usize, source: &str) -> Vec<u8> {
    let message = [[135].as_slice(), &[0; 30]].concat();
    ether().v6_hops(source, 255).protocol(58, &message[..length]).build()
}

/// How other filters are evaded, each tried by a denied source.
fn evasions() -> Vec<Row> {
    use Reason::{DenyList, UnparsedPacket};
    let tags = |count| (0..count).fold(ether(), Packet::vlan);
    let chain = |count| (0..count).fold(v6(DENIED6), |p, _| p.extension(DESTINATION, 0));
    vec![
        ("one tag", tags(1).v4(DENIED).tcp(SYN).build(), DenyList),
        ("two tags", tags(2).v4(DENIED).tcp(SYN).build(), DenyList),
        ("three tags", tags(3).v4(DENIED).tcp(SYN).build(), UnparsedPacket),
        ("four tags", tags(4).v4(DENIED).tcp(SYN).build(), UnparsedPacket),
        ("a provider's tag", ether().provider_vlan(5).v4(DENIED).udp().build(), DenyList),
        (
            "two providers' tags",
            ether().provider_vlan(5).provider_vlan(6).v6(DENIED6).udp().build(),
            DenyList,
        ),
        ("a priority tag", ether().vlan(0).v6(DENIED6).udp().build(), DenyList),
        ("options", ether().v4_options(DENIED, &[1; 40]).tcp(SYN).build(), DenyList),
        ("a first fragment", v4(DENIED).v4_fragment(0, true).tcp(SYN).build(), DenyList),
        (
            "a tiny first fragment",
            v4(DENIED).v4_fragment(0, true).protocol(6, &[0; 8]).build(),
            DenyList,
        ),
        (
            "a later fragment",
            v4(DENIED).v4_fragment(1, false).protocol(6, &[0; 40]).build(),
            DenyList,
        ),
        ("ICMP", v4(DENIED).icmp().build(), DenyList),
        ("IPIP", v4(DENIED).protocol(4, &v4(GOOD).tcp(SYN).build()[14..]).build(), DenyList),
        ("6in4", v4(DENIED).protocol(41, &v6(GOOD6).udp().build()[14..]).build(), DenyList),
        ("GRE", v4(DENIED).protocol(47, &[0; 8]).build(), DenyList),
        ("ESP", v4(DENIED).protocol(50, &[0; 16]).build(), DenyList),
        ("AH", v4(DENIED).protocol(51, &[6, 4, 0, 0, 0, 0]).build(), DenyList),
        ("SCTP", v4(DENIED).protocol(132, &[0; 12]).build(), DenyList),
        ("protocol 255", v4(DENIED).protocol(255, &[]).build(), DenyList),
        ("a header length of 4", v4(DENIED).udp().patched(14, &[0x41]), DenyList),
        ("a total length of 0", v4(DENIED).udp().patched(16, &[0, 0]), DenyList),
        ("a total length beyond the frame", v4(DENIED).udp().patched(16, &[9, 9]), DenyList),
        ("ICMPv6", v6(DENIED6).icmpv6(128).build(), DenyList),
        ("hop-by-hop", v6(DENIED6).extension(HOP_BY_HOP, 0).tcp(SYN).build(), DenyList),
        ("routing", v6(DENIED6).extension(ROUTING, 2).tcp(SYN).build(), DenyList),
        ("IPv6 fragment", v6(DENIED6).v6_fragment(0, true).tcp(SYN).build(), DenyList),
        (
            "IPv6 later fragment",
            v6(DENIED6).v6_fragment(9, false).protocol(6, &[0; 9]).build(),
            DenyList,
        ),
        (
            "a fragment's reserved byte",
            v6(DENIED6).v6_fragment_reserved(0, false, 255).tcp(SYN).build(),
            DenyList,
        ),
        ("IPv6 AH", v6(DENIED6).authentication(4).tcp(SYN).build(), DenyList),
        ("mobility", v6(DENIED6).extension(MOBILITY, 0).build(), DenyList),
        ("all extension headers", all_extensions(DENIED6).tcp(SYN).build(), DenyList),
        ("a chain of eight", chain(8).tcp(SYN).build(), DenyList),
        ("a chain of nine", chain(9).tcp(SYN).build(), DenyList),
        ("a chain of forty", chain(40).tcp(SYN).build(), DenyList),
        ("a payload length beyond the frame", v6(DENIED6).udp().patched(18, &[9, 9]), DenyList),
        ("a jumbogram", v6(DENIED6).extension(HOP_BY_HOP, 0).udp().patched(18, &[0, 0]), DenyList),
    ]
}

/// Contradictions, from a source that no list speaks of.
fn broken() -> Vec<Row> {
    use Reason::{MalformedPacket, Pass, UnparsedPacket};
    let chain = |count| (0..count).fold(v6(GOOD6), |p, _| p.extension(DESTINATION, 0));
    let tags = |count| (0..count).fold(ether(), Packet::vlan);
    vec![
        ("an Ethernet header alone", v4(GOOD).cut(14), MalformedPacket),
        ("half a tag", ether().vlan(3).cut(16), MalformedPacket),
        ("three tags", tags(3).v4(GOOD).udp().build(), UnparsedPacket),
        ("three tags around ARP", tags(3).payload(0x0806, &[0; 28]).build(), UnparsedPacket),
        ("IPv6 where IPv4 is announced", v4(GOOD).udp().patched(14, &[0x60]), MalformedPacket),
        ("IPv4 where IPv6 is announced", v6(GOOD6).udp().patched(14, &[0x45]), MalformedPacket),
        ("a header length of 4", v4(GOOD).udp().patched(14, &[0x44]), MalformedPacket),
        (
            "a header beyond the packet",
            v4(GOOD).protocol(17, &[]).patched(14, &[0x46]),
            MalformedPacket,
        ),
        ("a total length below the header", v4(GOOD).udp().patched(16, &[0, 19]), MalformedPacket),
        ("a total length beyond the frame", v4(GOOD).udp().patched(16, &[0, 29]), MalformedPacket),
        ("a TCP header cut short", v4(GOOD).protocol(6, &[0; 19]).build(), MalformedPacket),
        ("TCP in padding", padded(v4(GOOD).protocol(6, &[0; 8]).build(), 80), MalformedPacket),
        ("a TCP header of 16 bytes", v4(GOOD).tcp(SYN).patched(46, &[0x40]), MalformedPacket),
        ("TCP options beyond the packet", v4(GOOD).tcp(SYN).patched(46, &[0x60]), MalformedPacket),
        (
            "a tiny first fragment",
            v4(GOOD).v4_fragment(0, true).protocol(6, &[0; 8]).build(),
            MalformedPacket,
        ),
        ("a UDP header cut short", v4(GOOD).protocol(17, &[0; 7]).build(), MalformedPacket),
        ("a UDP length below its header", v4(GOOD).udp().patched(38, &[0, 7]), MalformedPacket),
        ("a UDP length beyond the packet", v4(GOOD).udp().patched(38, &[0, 9]), MalformedPacket),
        ("discovery cut short", discovery_of(7, GOOD6), MalformedPacket),
        ("discovery in padding", padded(discovery_of(0, GOOD6), 80), MalformedPacket),
        ("discovery without its end", discovery("fe80::5", 135)[..60].to_vec(), MalformedPacket),
        ("a UDP length of 0 in IPv6", v6(GOOD6).udp().patched(58, &[0, 0]), Pass),
        (
            "a payload length beyond the frame",
            v6(GOOD6).udp().patched(18, &[0, 9]),
            MalformedPacket,
        ),
        (
            "TCP behind a payload length of 0",
            v6(GOOD6).tcp(SYN).patched(18, &[0, 0]),
            MalformedPacket,
        ),
        (
            "an extension header cut short",
            v6(GOOD6).extension(DESTINATION, 0).cut(60),
            MalformedPacket,
        ),
        (
            "an extension beyond the packet",
            v6(GOOD6).extension(DESTINATION, 0).tcp(SYN).patched(55, &[9]),
            MalformedPacket,
        ),
        ("an AH of 8 bytes", v6(GOOD6).authentication(0).tcp(SYN).build(), MalformedPacket),
        (
            "a first fragment without its chain",
            v6(GOOD6).v6_fragment(0, true).protocol(60, &[6, 3]).build(),
            MalformedPacket,
        ),
        (
            "2 KiB of options",
            v6(GOOD6).extension(DESTINATION, 255).tcp(SYN).build(),
            UnparsedPacket,
        ),
        ("a chain of eight", chain(8).tcp(SYN).build(), Pass),
        ("a chain of nine", chain(9).tcp(SYN).build(), UnparsedPacket),
    ]
}

fn all_extensions(source: &str) -> Packet {
    v6(source)
        .extension(HOP_BY_HOP, 0)
        .extension(DESTINATION, 1)
        .extension(ROUTING, 2)
        .v6_fragment(0, false)
        .authentication(4)
}

fn padded(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.resize(length, 0xaa);
    frame
}

#[test]
fn every_packet_ends_for_its_reason() {
    let mut bench = populated();
    let rows = [ordinary(), verdicts(), evasions(), broken()].concat();
    assert!(rows.len() >= 60, "{}", rows.len());
    let wrong: Vec<_> = rows
        .iter()
        .map(|(name, frame, reason)| (name, *reason, bench.judge(frame)))
        .filter(|(_, expected, found)| expected != found)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn cut_at_any_byte_a_denied_source_never_passes_and_an_allowed_one_always_does() {
    let mut bench = populated();
    for (name, frame, _) in evasions() {
        for length in 14..=frame.len() {
            assert!(!bench.judge(&frame[..length]).passes(), "{name}, cut to {length}");
        }
    }
    for (frame, header_end) in
        [(v4(ALLOWED).tcp(SYN).build(), 34), (all_extensions(ALLOWED6).tcp(SYN).build(), 54)]
    {
        for length in 14..=frame.len() {
            let expected =
                if length < header_end { Reason::MalformedPacket } else { Reason::AllowList };
            assert_eq!(bench.judge(&frame[..length]), expected, "cut to {length}");
        }
    }
}

/// Behind the address anything may follow; a xorshift generator makes the failures repeatable.
#[test]
fn whatever_follows_the_address_the_verdict_on_it_stands() {
    let mut bench = populated();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..5_000 {
        let (denied, allowed, header) = if random() % 2 == 0 {
            (v4(DENIED).build(), v4(ALLOWED).build(), 14..34)
        } else {
            (v6(DENIED6).build(), v6(ALLOWED6).build(), 14..54)
        };
        let noise: Vec<u8> = (0..random() % 120).map(|_| random() as u8).collect();
        let fuzz = |mut frame: Vec<u8>, random: &mut dyn FnMut() -> u64| {
            // Anything in the header but the version and the addresses.
            let fields = if header.len() == 20 { 15..26 } else { 15..22 };
            for at in fields {
                if random().is_multiple_of(3) {
                    frame[at] = random() as u8;
                }
            }
            frame.extend(&noise);
            frame
        };
        let frame = fuzz(denied, &mut random);
        assert_eq!(bench.judge(&frame), Reason::DenyList, "{frame:02x?}");
        let frame = fuzz(allowed, &mut random);
        assert_eq!(bench.judge(&frame), Reason::AllowList, "{frame:02x?}");
    }
}

#[test]
fn a_client_has_its_packet_rate_and_a_v6_client_is_its_prefix() {
    let policy = UNLIMITED.limit(Kind::Packets, Rate::new(5, HOUR, 5).unwrap());
    let mut bench = Bench::new(policy);
    for (first, second, stranger) in [
        (v4("192.0.2.1").udp(), v4("192.0.2.1").tcp(ACK), v4("192.0.2.2").udp()),
        (v6("2001:db8::1").udp(), v6("2001:db8::2").udp(), v6("2001:db8:0:1::1").udp()),
    ] {
        let (first, second) = (first.build(), second.build());
        for frame in [&first, &second, &first, &second, &first] {
            assert_eq!(bench.judge(frame), Reason::Pass);
        }
        assert_eq!(bench.judge(&second), Reason::PacketRate);
        assert_eq!(bench.judge(&first), Reason::PacketRate);
        assert_eq!(bench.judge(&stranger.build()), Reason::Pass);
    }
    // A later fragment has no transport header, but it has a source.
    let fragment = v4("192.0.2.1").v4_fragment(8, false).protocol(17, &[0; 8]).build();
    assert_eq!(bench.judge(&fragment), Reason::PacketRate);
    bench.kernel.tables.update_policy(&UNLIMITED).unwrap();
    assert_eq!(bench.judge(&fragment), Reason::Pass);
}

#[test]
fn only_a_syn_without_ack_opens_a_connection() {
    let policy = UNLIMITED.limit(Kind::Connections, Rate::new(2, HOUR, 2).unwrap());
    let mut bench = Bench::new(policy);
    let opening = [
        v4(GOOD).tcp(SYN).build(),
        ether().vlan(3).v4_options(GOOD, &[1; 8]).tcp(SYN).build(),
        v4(GOOD).v4_fragment(0, true).tcp(SYN).bytes(&[0; 4]).build(),
    ];
    let other = [
        v4(GOOD).tcp(SYN | ACK).build(),
        v4(GOOD).tcp(ACK).build(),
        v4(GOOD).tcp(RST).build(),
        v4(GOOD).udp().build(),
        v4(GOOD).v4_fragment(4, false).protocol(6, &[SYN; 20]).build(),
    ];
    for frame in other.iter().chain(&opening[..2]).chain(&other) {
        assert_eq!(bench.judge(frame), Reason::Pass);
    }
    for frame in &opening {
        assert_eq!(bench.judge(frame), Reason::ConnectionRate);
    }
    assert_eq!(bench.judge(&all_extensions(GOOD6).tcp(SYN).build()), Reason::Pass);
}

#[test]
fn neighbours_find_each_other_during_a_flood() {
    let policy = UNLIMITED.limit(Kind::Packets, Rate::new(1, HOUR, 1).unwrap());
    let mut bench = Bench::new(policy);
    for source in ["fe80::1", GOOD6, "::"] {
        for kind in 133..=137 {
            assert_eq!(bench.judge(&discovery(source, kind)), Reason::Pass);
        }
    }
    assert_eq!(bench.judge(&v6("fe80::1").icmpv6(135).build()), Reason::Pass);
    for frame in [
        // Forwarded by a router, so not from the link.
        ether().v6_hops("fe80::1", 254).icmpv6(135).build(),
        ether().v6_hops("fe80::1", 255).icmpv6(128).build(),
        discovery("fe80::1", 132),
        discovery("fe80::1", 138),
        ether().v6_hops("fe80::1", 255).v6_fragment(0, true).icmpv6(135).build(),
        ether().v6_hops("fe80::1", 255).extension(DESTINATION, 0).icmpv6(135).build(),
    ] {
        assert_eq!(bench.judge(&frame), Reason::PacketRate);
    }
    // One host of the link does not use up what another has.
    assert_eq!(bench.judge(&v6("fe80::2").udp().build()), Reason::Pass);
}

#[test]
fn a_folder_of_pins_is_one_daemons_and_its_last_handles() {
    let bench = Bench::new(UNLIMITED);
    let again = || Kernel::load(&settings(&bench.pins.0, UNLIMITED)).err().expect("refused");
    let error = again();
    assert!(matches!(error, KernelError::InUse { .. }), "{error}");
    let tables = bench.kernel.tables.duplicate().unwrap();
    let Bench { kernel, pins } = bench;
    drop(kernel);
    assert!(Kernel::load(&settings(&pins.0, UNLIMITED)).is_err(), "a handle is left");
    drop(tables);
    drop(load(&settings(&pins.0, UNLIMITED)));
}

#[test]
fn detaching_removes_what_the_daemon_made_and_nothing_else() {
    let bench = Bench::new(UNLIMITED);
    let pin_dir = &bench.pins.0;
    let ours = pin_dir.join(edge_common::map::ABI);
    let foreign = pin_dir.join("other");
    fs::create_dir(&foreign).unwrap();
    let kept = [foreign.join("COUNTS"), ours.join("counts")];
    for pin in &kept {
        fs::hard_link(ours.join("COUNTS"), pin).unwrap();
    }
    let removed = detach(pin_dir).unwrap();
    assert_eq!(removed.removed.len(), 17, "{removed:?}");
    assert!(kept.iter().all(|pin| pin.exists()));
    for pin in &kept {
        fs::remove_file(pin).unwrap();
    }
    fs::remove_dir(&foreign).unwrap();
    detach(pin_dir).unwrap();
    assert!(!pin_dir.exists());
}

#[test]
fn hits_are_counted_where_they_fall() {
    let mut bench = populated();
    for _ in 0..3 {
        bench.judge(&v4(DENIED).udp().build());
        bench.judge(&v4("192.0.2.66").udp().build());
    }
    bench.judge(&v4(ALLOWED).udp().build());
    let tables = &bench.kernel.tables;
    let denied = tables.explain(DENIED.parse().unwrap()).unwrap();
    let (_, network, entry) = denied.network.unwrap();
    assert_eq!((denied.reason, entry.hits), (Reason::DenyList, 3));
    assert_eq!(network, "198.51.100.0/24".parse().unwrap());
    let allowed = tables.explain(ALLOWED.parse().unwrap()).unwrap();
    assert_eq!((allowed.reason, allowed.network.unwrap().2.hits), (Reason::AllowList, 1));
    assert!(allowed.ban.is_some());
    let banned = tables.explain("192.0.2.66".parse().unwrap()).unwrap();
    let ban = banned.ban.unwrap();
    assert_eq!((banned.reason, ban.hits), (Reason::Ban, 3));
    assert!(ban.since_ns <= ban.first_hit_ns && ban.first_hit_ns <= boot_ns());
    bench.judge(&v4("192.0.2.66").udp().build());
    let again = bench.kernel.tables.bans.lookup(source("192.0.2.66")).unwrap().unwrap();
    assert_eq!((again.first_hit_ns, again.hits), (ban.first_hit_ns, 4));
}

#[test]
fn drops_are_told_at_their_rate_and_the_rest_is_counted() {
    let policy = Policy { event_rate: Rate::new(2, HOUR, 2).unwrap(), ..UNLIMITED };
    let mut bench = Bench::new(policy);
    bench.deny("198.51.100.0/24", FOREVER);
    let frame = v4(DENIED).tcp(SYN).build();
    let dns = v4("192.0.2.3").udp().patched(38, &[0, 0]);
    for frame in [&frame, &dns, &frame, &frame, &frame] {
        assert!(!bench.judge(frame).passes());
    }
    let first = bench.kernel.drops.next_drop().unwrap();
    assert_eq!(first.source, source(DENIED));
    assert_eq!(Reason::from_index(first.reason), Some(Reason::DenyList));
    assert_eq!((first.length, first.protocol), (frame.len() as u32, 6));
    assert!(first.at_ns <= boot_ns());
    let second = bench.kernel.drops.next_drop().unwrap();
    assert_eq!(Reason::from_index(second.reason), Some(Reason::MalformedPacket));
    assert_eq!((second.port, second.protocol, second.would), (53, 17, 0));
    assert_eq!(bench.kernel.drops.next_drop(), None);
    assert_eq!(bench.kernel.tables.drops_lost().unwrap(), 3);
}

#[test]
fn what_has_no_port_is_told_of_without_one() {
    let policy = Policy { services: Some(Vec::new()), ..UNLIMITED };
    let mut bench = Bench::new(policy);
    for (frame, protocol) in [(v4(GOOD).icmp().build(), 1), (v6(GOOD6).icmpv6(128).build(), 58)] {
        assert_eq!(bench.judge(&frame), Reason::NoService);
        let told = bench.kernel.drops.next_drop().unwrap();
        assert_eq!((told.protocol, told.port), (protocol, 0), "an ICMP type and code are no port");
    }
}

#[test]
fn no_drop_is_told_at_no_rate_and_none_is_lost() {
    let mut bench = Bench::new(Policy { event_rate: Rate::OFF, ..UNLIMITED });
    bench.deny("198.51.100.0/24", FOREVER);
    assert!(!bench.judge(&v4(DENIED).udp().build()).passes());
    assert_eq!(bench.kernel.drops.next_drop(), None);
    assert_eq!(bench.kernel.tables.drops_lost().unwrap(), 0);
}

#[test]
fn a_full_ring_loses_events_and_says_how_many() {
    let mut bench = Bench::new(UNLIMITED);
    bench.deny("198.51.100.0/24", FOREVER);
    let frame = v4(DENIED).udp().build();
    let offered = 7_000;
    for _ in 0..offered {
        assert!(!bench.kernel.judge(&frame).unwrap());
    }
    let told = std::iter::from_fn(|| bench.kernel.drops.next_drop()).count() as u64;
    let lost = bench.kernel.tables.drops_lost().unwrap();
    assert!(lost > 0 && told > 5_000, "told {told}, lost {lost}");
    assert_eq!(told + lost, offered);
}

#[test]
fn all_of_ipv6_is_not_all_of_ipv4() {
    let mut bench = Bench::new(UNLIMITED);
    let (four, six) = (v4(GOOD).udp().build(), v6(GOOD6).udp().build());
    bench.deny("::/0", FOREVER);
    assert_eq!((bench.judge(&four), bench.judge(&six)), (Reason::Pass, Reason::DenyList));
    bench.deny("0.0.0.0/0", FOREVER);
    assert_eq!((bench.judge(&four), bench.judge(&six)), (Reason::DenyList, Reason::DenyList));
    bench.kernel.tables.lists.fold(boot_ns()).unwrap();
    assert_eq!((bench.judge(&four), bench.judge(&six)), (Reason::DenyList, Reason::DenyList));
    bench.deny("0.0.0.0/0", 0);
    assert_eq!((bench.judge(&four), bench.judge(&six)), (Reason::Pass, Reason::DenyList));
}

#[test]
fn a_successor_finds_everything_as_it_was() {
    let mut bench = populated();
    bench.judge(&v4(DENIED).udp().build());
    let counts = bench.kernel.tables.counts().unwrap();
    let seed = bench.kernel.tables.settings().unwrap().seed;
    let pins = bench.end();
    let mut bench = Bench { kernel: load(&settings(&pins.0, UNLIMITED)), pins };
    let tables = &bench.kernel.tables;
    assert_eq!(tables.counts().unwrap(), counts);
    assert_eq!(tables.settings().unwrap().seed, seed);
    assert_ne!(seed, 0);
    assert_eq!(tables.bans.len(), 5);
    assert_eq!(bench.judge(&v4("192.0.2.66").udp().build()), Reason::Ban);
}

#[test]
fn a_table_of_another_shape_is_refused_by_name() {
    let pins = Bench::new(UNLIMITED).end();
    let folder = pins.0.join(edge_common::map::ABI);
    fs::remove_file(folder.join("COUNTS")).unwrap();
    fs::hard_link(folder.join("OPEN"), folder.join("COUNTS")).unwrap();
    let error = Kernel::load(&settings(&pins.0, UNLIMITED)).err().expect("refused");
    assert!(matches!(error, KernelError::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains("COUNTS"), "{error}");
}

#[test]
fn after_loading_no_verb_needs_a_capability() {
    let mut bench = populated();
    let others = Pins::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
                caps::clear(None, set).unwrap();
            }
            assert!(Kernel::load(&settings(&others.0, UNLIMITED)).is_err(), "still privileged");
            let mut tables = bench.kernel.tables.duplicate().unwrap();
            let network = "10.0.0.0/8".parse().unwrap();
            assert_eq!(tables.lists.set(Class::Deny, &network, FOREVER).unwrap(), InForce::Now);
            assert!(tables.lists.entry(Class::Deny, &network).is_some());
            tables.lists.fold(boot_ns()).unwrap();
            assert_eq!(tables.lists.set(Class::Deny, &network, 0).unwrap(), InForce::Now);
            tables.lists.replace([(Class::Allow, network, FOREVER)]).unwrap();
            let ban = tables.bans.lookup(source("192.0.2.66")).unwrap().unwrap();
            tables.bans.ban(source("192.0.2.99"), ban).unwrap();
            assert_eq!(tables.bans.entries().unwrap().len(), 6);
            assert!(tables.bans.unban(source("192.0.2.99")).unwrap());
            assert!(!tables.bans.unban(source("192.0.2.99")).unwrap());
            tables.update_policy(&UNLIMITED).unwrap();
            tables.counts().unwrap();
            tables.drops_lost().unwrap();
            assert_eq!(tables.occupancy().len(), 5);
            tables.explain(GOOD.parse().unwrap()).unwrap();
            assert!(!is_readable(&bench.kernel.drops));
            assert_eq!(bench.kernel.drops.next_drop(), None);
        });
    });
}

#[test]
fn debugging_logs_a_line_per_packet_and_judges_alike() {
    let mut bench = populated();
    assert!(bench.kernel.debug_log.is_none());
    let pins = bench.end();
    let debugging = LoadSettings { debug: true, ..settings(&pins.0, UNLIMITED) };
    bench = Bench { kernel: load(&debugging), pins };
    // Lists are the daemon's to write again; the former program has its own until this one attaches.
    bench.deny("198.51.100.0/24", FOREVER);
    assert_eq!(bench.judge(&v4(DENIED).udp().build()), Reason::DenyList);
    assert_eq!(bench.judge(&v6(GOOD6).udp().build()), Reason::Pass);
    let log = bench.kernel.debug_log.as_mut().unwrap();
    assert!(is_readable(log));
    log.flush();
    assert!(!is_readable(log));
}

fn is_readable(descriptor: &impl AsFd) -> bool {
    let ready = PollFd::new(descriptor.as_fd(), PollFlags::POLLIN);
    nix::poll::poll(&mut [ready], PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn who_is_spared_meets_all_but_lists_bans_and_limits() {
    let once = Rate::new(1, HOUR, 1).unwrap();
    let far = Signature { action: Action::DROP, ttl: [200, 255], ..Signature::ANY };
    let policy = Policy {
        services: Some(vec![Service::Tcp(443)]),
        drop_fragments: true,
        signatures: vec![far],
        ..UNLIMITED
    };
    let mut bench = Bench::new(Kind::ALL.into_iter().fold(policy, |policy, kind| {
        let rate =
            if kind == Kind::Bytes { Rate::of_bytes(65_536, HOUR, 65_536).unwrap() } else { once };
        policy.limit(kind, rate)
    }));
    let host = format!("{GOOD}/32");
    bench.deny("192.0.0.0/16", FOREVER);
    bench.ban(GOOD, boot_ns() + HOUR);
    bench.list(Class::Spare, &host, FOREVER);
    let syn = v4(GOOD).tcp(SYN).build();
    let mut elsewhere = syn.clone();
    elsewhere[36..38].copy_from_slice(&[0, 22]);
    let mut distant = syn.clone();
    distant[22] = 255;
    let frames = [
        ("offered", syn, Reason::AllowList),
        ("nobody offers it", elsewhere, Reason::NoService),
        ("a signature's", distant, Reason::Signature),
        ("a fragment", v4(GOOD).v4_fragment(0, true).tcp(SYN).build(), Reason::Fragment),
        ("cut", v4(GOOD).tcp(SYN).cut(53), Reason::MalformedPacket),
    ];
    for _ in 0..3 {
        for (name, frame, reason) in &frames {
            assert_eq!(bench.judge(frame), *reason, "{name}");
        }
    }
    // An operator's word for a network around it goes above all of that.
    bench.allow("192.0.2.0/24", FOREVER);
    for (name, frame, _) in &frames {
        assert_eq!(bench.judge(frame), Reason::AllowList, "{name}");
    }
    bench.allow("192.0.2.0/24", 0);
    assert_eq!(bench.judge(&frames[1].1), Reason::NoService);
    bench.list(Class::Spare, &host, 0);
    assert_eq!(bench.judge(&frames[0].1), Reason::DenyList);
}

#[test]
fn the_verifier_walks_no_farther_than_this() {
    let mut bench = Bench::new(UNLIMITED);
    let walked = bench.kernel.verified_instructions().unwrap();
    println!("verified instructions: {walked}");
    assert!((1..=INSTRUCTIONS_MAX).contains(&walked), "{walked}");
}

/// Kernel 6.18 walks some 125 000; the bound of any kernel is a million.
const INSTRUCTIONS_MAX: u32 = 135_000;
