//! The packet policy, by `BPF_PROG_TEST_RUN`: rates by kind and prefix, fragments, monitor mode.

use std::time::{Duration, Instant};

use edge_common::{
    Rate,
    Reason::{self, ByteRate, ConnectionRate, DenyList, IcmpRate, PacketRate, PrefixRate, UdpRate},
    Signature,
    map::Kind,
    reason::{Blame, Plane as Stage},
    signature::{Action, Ask},
};
use edge_daemon::kernel::{Policy, Prefix};
use edge_tests::{
    packet::{ACK, DESTINATION, HOP_BY_HOP, Packet, SYN, ether, v4, v6},
    plane::{Plane, Verdict},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

const HOUR: u64 = 3600 * 1_000_000_000;
const UNLIMITED: Policy = Policy::UNLIMITED;
const GOOD: &str = "192.0.2.10";
const GOOD6: &str = "2001:db8:1::5";

/// So many an hour, all at once: within a test none comes back.
fn hourly(count: u64) -> Rate {
    Rate::new(count, HOUR, count).expect("in range")
}

fn tcp(source: &str) -> Vec<u8> {
    v4(source).tcp(ACK).build()
}

fn udp(source: &str) -> Vec<u8> {
    v4(source).udp().build()
}

#[test]
fn each_kind_has_a_rate_of_its_own_and_takes_its_packets_alone() {
    let policy = UNLIMITED
        .limit(Kind::Udp, hourly(3))
        .limit(Kind::Icmp, hourly(4))
        .limit(Kind::Connections, hourly(5));
    let mut plane = Plane::new(policy);
    let later = |protocol| v4(GOOD).v4_fragment(9, false).protocol(protocol, &[0; 8]).build();
    for (kind, own, admitted, reason) in [
        ("UDP", udp(GOOD), 3, UdpRate),
        ("ICMP", v4(GOOD).icmp().build(), 4, IcmpRate),
        ("SYN", v4(GOOD).tcp(SYN).build(), 5, ConnectionRate),
        ("UDP over IPv6", v6(GOOD6).udp().build(), 3, UdpRate),
        ("ICMPv6", v6(GOOD6).icmpv6(128).build(), 4, IcmpRate),
        ("SYN over IPv6", v6(GOOD6).tcp(SYN).build(), 5, ConnectionRate),
    ] {
        assert_eq!(plane.passing(&own, 20), admitted, "{kind}");
        assert_eq!(plane.judge(&own), Verdict::of(reason), "{kind}");
    }
    for (name, other) in [
        ("an open connection", tcp(GOOD)),
        ("GRE", v4(GOOD).protocol(47, &[0; 8]).build()),
        ("ICMPv6 in IPv4", v4(GOOD).protocol(58, &[128, 0, 0, 0, 0, 0, 0, 0]).build()),
        ("ICMP in IPv6", v6(GOOD6).protocol(1, &[8, 0, 0, 0, 0, 0, 0, 0]).build()),
        ("a later fragment of TCP", later(6)),
        ("a later fragment of ICMPv6 in IPv4", later(58)),
        ("another client's UDP", udp("192.0.2.11")),
    ] {
        assert_eq!(plane.judge(&other), Verdict::PASS, "{name}");
    }
}

#[test]
fn a_later_fragment_counts_as_one_packet_of_its_protocol() {
    let policy = UNLIMITED.limit(Kind::Udp, hourly(5)).limit(Kind::Icmp, hourly(6));
    let later4 = |protocol| v4(GOOD).v4_fragment(9, false).protocol(protocol, &[0; 8]).build();
    let later6 = |protocol| v6(GOOD6).v6_fragment(9, true).protocol(protocol, &[0; 8]).build();
    for (name, first, later, admitted, reason) in [
        ("UDP", v4(GOOD).v4_fragment(0, true).udp().bytes(&[0; 64]), later4(17), 5, UdpRate),
        ("ICMP", v4(GOOD).v4_fragment(0, true).icmp(), later4(1), 6, IcmpRate),
        ("UDP over IPv6", v6(GOOD6).v6_fragment(0, true).udp(), later6(17), 5, UdpRate),
        ("ICMPv6", v6(GOOD6).v6_fragment(0, true).icmpv6(128), later6(58), 6, IcmpRate),
        // The stack goes by the first fragment's word of what it is, and by no later one's.
        ("called TCP", v6(GOOD6).v6_fragment(0, true).udp(), later6(6), 5, UdpRate),
        ("called an option", v6(GOOD6).v6_fragment(0, true).udp(), later6(60), 5, UdpRate),
    ] {
        let mut plane = Plane::new(policy.clone());
        let first = first.build();
        assert_eq!(plane.passing(&first, 2), 2, "{name}");
        assert_eq!(plane.passing(&later, 9), admitted - 2, "{name}");
        assert_eq!(plane.judge(&later), Verdict::of(reason), "{name}");
        assert_eq!(plane.judge(&first), Verdict::of(reason), "{name}");
        assert_eq!(plane.judge(&later4(6)), Verdict::PASS, "{name}");
    }
}

#[test]
fn bytes_are_limited_whatever_the_packets() {
    let burst = 128 << 10;
    let rate = Rate::of_bytes(burst, HOUR, burst).expect("in range");
    let mut plane = Plane::new(UNLIMITED.limit(Kind::Bytes, rate));
    // The Ethernet header counts: 14 + 20 + 8 + 982.
    let kilobyte = |source| v4(source).udp().bytes(&[0; 982]).build();
    assert_eq!(kilobyte(GOOD).len(), 1024);
    assert_eq!(plane.passing(&kilobyte(GOOD), 300), 128);
    assert_eq!(plane.judge(&kilobyte(GOOD)), Verdict::of(ByteRate));
    let large = v4("192.0.2.11").udp().bytes(&[0; 8150]).build();
    assert_eq!(large.len(), 8192);
    assert_eq!(plane.passing(&large, 300), 16);
    assert_eq!(plane.judge(&kilobyte("192.0.2.12")), Verdict::PASS);
}

/// What the kernel's GRO makes of a stream where BIG TCP is on: more than a length field can say.
fn big(packet: Packet) -> Vec<u8> {
    packet.tcp(ACK).bytes(b"GET /").bytes(&[0; 70_000]).build()
}

#[test]
fn a_frame_beyond_the_length_field_is_read_and_charged_like_any_other() {
    let rate = Rate::of_bytes(65_536, HOUR, 65_536).expect("in range");
    let mut payload = [0; 16];
    payload[..5].copy_from_slice(b"GET /");
    let payload = Signature { payload, payload_bytes: 5, asks: Ask::TRANSPORT, ..Signature::ANY };
    for (name, frame) in [
        ("IPv4", big(v4(GOOD))),
        ("IPv6", big(v6(GOOD6))),
        ("an IPv6 jumbogram", big(v6(GOOD6).extension(HOP_BY_HOP, 0))),
    ] {
        let signatures = vec![payload];
        let mut plane = Plane::new(Policy { signatures, ..UNLIMITED }.limit(Kind::Bytes, rate));
        assert_eq!(plane.judge(&frame), Verdict::PASS, "{name}");
        assert_eq!(plane.hits(), [1], "{name}");
        assert_eq!(plane.judge(&frame), Verdict::of(ByteRate), "{name}");
    }
    // No card receives such a thing: a short frame without a length is none.
    let short = v4(GOOD).tcp(ACK).patched(16, &[0, 0]);
    assert_eq!(Plane::new(UNLIMITED).judge(&short), Verdict::of(Reason::MalformedPacket));
}

#[test]
fn a_client_may_be_an_ipv4_network() {
    let mut policy = UNLIMITED.limit(Kind::Packets, hourly(4));
    policy.client.v4 = 24;
    let mut plane = Plane::new(policy);
    let passing: usize = (0..100).map(|n| plane.passing(&udp(&format!("192.0.2.{n}")), 1)).sum();
    assert_eq!(passing, 4);
    assert_eq!(plane.judge(&udp("192.0.2.200")), Verdict::of(PacketRate));
    assert_eq!(plane.judge(&udp("192.0.3.1")), Verdict::PASS);
}

#[test]
fn a_prefix_that_misbehaves_as_a_whole_is_refused_as_a_whole() {
    let prefix = |bits, factor| Some(Prefix { bits, factor });
    let policy = Policy { prefixes: [prefix(56, 2), prefix(48, 5)], ..UNLIMITED }
        .limit(Kind::Packets, hourly(4))
        .limit(Kind::Connections, hourly(2));
    let mut plane = Plane::new(policy);
    let from = |net: u16, sub: u16| v6(&format!("2001:db8:{net:x}:{sub:x}::1"));
    // One /56 holds the subnets 0 to 255: each client sends 2, and 8 is what two may.
    let mut offer = |net, subs: std::ops::Range<u16>| -> usize {
        subs.map(|sub| plane.passing(&from(net, sub).udp().build(), 2)).sum()
    };
    assert_eq!(offer(1, 0..20), 8);
    assert_eq!(offer(1, 256..276), 8);
    // The third /56 finds what is left of the /48's 20.
    assert_eq!(offer(1, 512..532), 4);
    assert_eq!(offer(1, 768..788), 0);
    assert_eq!(offer(2, 0..20), 8);
    assert_eq!(plane.judge(&from(1, 900).udp().build()), Verdict::of(PrefixRate));
    // A client's own limit is told of first.
    assert_eq!(plane.passing(&from(3, 0).udp().build(), 9), 4);
    assert_eq!(plane.judge(&from(3, 0).udp().build()), Verdict::of(PacketRate));
    // Each kind escalates by itself.
    let syn = |sub| from(4, sub).tcp(SYN).build();
    assert_eq!((0..4).map(|sub| plane.passing(&syn(sub), 1)).sum::<usize>(), 4);
    assert_eq!(plane.judge(&syn(5)), Verdict::of(PrefixRate));
    assert_eq!(plane.judge(&from(4, 5).tcp(ACK).build()), Verdict::PASS);
    // IPv4 has no such prefixes, and hosts of the link share none.
    for n in 0..30 {
        assert_eq!(plane.passing(&udp(&format!("198.18.0.{n}")), 1), 1);
        assert_eq!(plane.passing(&v6(&format!("fe80::{n:x}")).udp().build(), 1), 1);
    }
}

#[test]
fn a_flood_under_the_same_limit_frees_nobody_however_small_the_burst() {
    let syn = v4(GOOD).tcp(SYN).build();
    for burst in 1..=2 {
        let mut plane = Plane::new(UNLIMITED.limit(Kind::Connections, hourly(burst)));
        assert_eq!(plane.passing(&syn, 9), burst as usize);
        for _ in 0..burst {
            flood(&mut plane, |packet| packet.tcp(SYN));
        }
        assert_eq!(plane.passing(&syn, 9), 0, "{burst}");
    }
}

/// As many clients as overrun every set of the table, each with one packet.
fn flood(plane: &mut Plane, packet: fn(Packet) -> Packet) {
    // A set has four places: these are enough for each of 65 536 sets.
    for n in 0..400_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        plane.passing(&packet(v4(&format!("10.{a}.{b}.{c}"))).build(), 1);
    }
}

/// A signature's limit on a protocol.
fn limited(protocol: u8, asks: u8, rate: Rate) -> Signature {
    let asks = Ask::PROTOCOL | asks;
    Signature { protocol, asks, action: Action::LIMIT, rate, ..Signature::ANY }
}

#[test]
fn a_flood_under_another_limit_frees_nobody() {
    let fast = Rate::new(1_000, 1_000_000_000, 1_000).expect("in range");
    // One packet under it is farther ahead than all that the offender's limit holds.
    let slow = Rate::new(1, 10 * HOUR, 20).expect("in range");
    let offence = |plane: &mut Plane| plane.passing(&v4(GOOD).tcp(SYN).build(), 9);
    for rate in [fast, slow] {
        let signatures = vec![limited(17, Ask::PER_CLIENT, rate)];
        let policy = Policy { signatures, ..UNLIMITED }.limit(Kind::Connections, hourly(5));
        let mut plane = Plane::new(policy.limit(Kind::Icmp, rate));
        assert_eq!(offence(&mut plane), 5);
        flood(&mut plane, Packet::udp);
        assert_eq!(offence(&mut plane), 0, "a signature of {rate:?}");
        flood(&mut plane, Packet::icmp);
        assert_eq!(offence(&mut plane), 0, "ICMP of {rate:?}");
    }
}

#[test]
fn nor_does_one_under_another_signature() {
    let slow = Rate::new(1, 10 * HOUR, 20).expect("in range");
    let each = limited(6, Ask::PER_CLIENT, hourly(5));
    let all = limited(1, 0, hourly(7));
    let signatures = vec![each, limited(17, Ask::PER_CLIENT, slow), all];
    let mut plane = Plane::new(Policy { signatures, ..UNLIMITED });
    let syn = v4(GOOD).tcp(SYN).build();
    assert_eq!(plane.passing(&syn, 9), 5);
    assert_eq!(plane.passing(&v4(GOOD).icmp().build(), 9), 7);
    flood(&mut plane, Packet::udp);
    assert_eq!(plane.passing(&syn, 9), 0);
    assert_eq!(plane.passing(&v4("192.0.2.11").icmp().build(), 9), 0);
}

/// The bucket is never full again once it is used up, so that it does not matter when who ran: what is admitted is what the
/// bucket held, and the rate from the first packet to the last, which found it empty. The first was sent before `first`, the
/// last after `last`.
#[test]
fn one_source_on_two_cpus_has_its_rate_and_not_a_packet_more() {
    const RATE: u64 = 10_000;
    let cpus: Vec<_> = cpus().into_iter().take(2).collect();
    let rate = Rate::new(RATE, 1_000_000_000, RATE).expect("in range");
    for is_flooded in [false, true] {
        let plane = Plane::new(UNLIMITED.limit(Kind::Packets, rate));
        let (kernel, began) = (&plane.kernel, Instant::now());
        let send = |cpu: usize| {
            let mut only = CpuSet::new();
            only.set(cpu).expect("a CPU");
            sched_setaffinity(Pid::from_raw(0), &only).expect("its own");
            let (frame, mut drawn, mut admitted) = (udp(GOOD), cpu as u64, 0_u64);
            let mut first = None;
            loop {
                let last = began.elapsed();
                let passes = kernel.judge(&frame).expect("judged");
                admitted += u64::from(passes);
                let first = *first.get_or_insert_with(|| began.elapsed());
                if last >= Duration::from_secs(2) && !passes {
                    return (admitted, first, last);
                }
                assert!(last < Duration::from_secs(300), "nothing is ever refused");
                if is_flooded {
                    drawn =
                        drawn.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(2 * cpu as u64 + 1);
                    let [a, b, c, ..] = drawn.to_be_bytes();
                    let stranger = udp(&format!("10.{a}.{b}.{c}"));
                    let _ = kernel.judge(&stranger).expect("judged");
                }
            }
        };
        let sent: Vec<_> = std::thread::scope(|scope| {
            let senders: Vec<_> = cpus.iter().map(|cpu| scope.spawn(|| send(*cpu))).collect();
            senders.into_iter().map(|sender| sender.join().expect("sent")).collect()
        });
        let admitted: u64 = sent.iter().map(|(admitted, ..)| admitted).sum();
        let first = sent.iter().map(|(_, first, _)| *first).min().expect("a CPU");
        let last = sent.iter().map(|(.., last)| *last).max().expect("a CPU");
        let [least, most] = [last.saturating_sub(first), began.elapsed()]
            .map(|time| RATE as f64 * (1.0 + time.as_secs_f64()));
        let is_due = (0.99 * least..=most).contains(&(admitted as f64));
        assert!(is_due, "{admitted}, {least} to {most} are due (flood: {is_flooded})");
    }
}

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let all = sched_getaffinity(Pid::from_raw(0)).expect("its own");
    (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect()
}

fn fragments(source4: &str, source6: &str) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("first", v4(source4).v4_fragment(0, true).udp().bytes(&[0; 16]).build()),
        ("later", v4(source4).v4_fragment(3, true).protocol(17, &[0; 8]).build()),
        ("last", v4(source4).v4_fragment(9, false).protocol(17, &[1]).build()),
        ("IPv6 first", v6(source6).v6_fragment(0, true).tcp(SYN).bytes(&[0; 4]).build()),
        ("IPv6 last", v6(source6).v6_fragment(4, false).protocol(6, &[0; 3]).build()),
        ("in a tag", ether().vlan(7).v4(source4).v4_fragment(3, false).protocol(17, &[0]).build()),
    ]
}

#[test]
fn fragments_pass_or_drop_and_their_source_is_judged_either_way() {
    let whole = [
        ("UDP", udp(GOOD)),
        ("an atomic fragment", v6(GOOD6).v6_fragment(0, false).tcp(SYN).build()),
    ];
    for (drop_fragments, verdict) in [(false, Verdict::PASS), (true, Verdict::of(Reason::Fragment))]
    {
        let mut plane = Plane::new(Policy { drop_fragments, ..UNLIMITED });
        for network in ["198.51.100.0/24", "2001:db8:bad::/48"] {
            plane.deny(network);
        }
        for (name, frame) in fragments(GOOD, GOOD6) {
            assert_eq!(plane.judge(&frame), verdict, "{name}");
        }
        for (name, frame) in fragments("198.51.100.9", "2001:db8:bad::9") {
            assert_eq!(plane.judge(&frame), Verdict::of(DenyList), "{name}");
        }
        for (name, frame) in &whole {
            assert_eq!(plane.judge(frame), Verdict::PASS, "{name}");
        }
    }
}

/// One packet for each reason that the policy below gives.
fn one_of_each() -> Vec<(Reason, Vec<u8>)> {
    vec![
        (DenyList, v4("198.51.100.9").udp().build()),
        (Reason::Signature, v4(GOOD).protocol(99, &[0; 8]).build()),
        (Reason::Fragment, v4("192.0.2.20").v4_fragment(3, true).protocol(6, &[0; 8]).build()),
        (Reason::NoService, v4("192.0.2.21").protocol(47, &[0; 8]).build()),
        (Reason::MalformedPacket, v4("192.0.2.22").protocol(6, &[0; 8]).build()),
        (Reason::UnparsedPacket, (0..3).fold(ether(), Packet::vlan).v4(GOOD).udp().build()),
    ]
}

fn strict(monitored: &[Reason]) -> Plane {
    let signature =
        Signature { protocol: 99, asks: Ask::PROTOCOL, action: Action::DROP, ..Signature::ANY };
    let policy = Policy {
        drop_fragments: true,
        services: Some(Vec::new()),
        signatures: vec![signature],
        monitored: monitored.to_vec(),
        ..UNLIMITED
    };
    let plane = Plane::new(policy);
    plane.deny("198.51.100.0/24");
    plane
}

#[test]
fn monitor_mode_judges_and_counts_everything_and_drops_nothing() {
    let mut plane = strict(&[]);
    for (reason, frame) in one_of_each() {
        assert_eq!(plane.judge(&frame), Verdict::of(reason));
    }
    let refusals = Reason::ALL.iter().copied();
    let refusals = refusals.filter(|r| r.plane() == Stage::Packet && r.blame() == Blame::Client);
    let mut plane = strict(&refusals.collect::<Vec<_>>());
    for (reason, frame) in one_of_each() {
        assert_eq!(plane.judge(&frame), Verdict::would(reason));
        let told = plane.kernel.drops.next_drop().expect("told");
        assert_eq!((Reason::from_index(told.reason), told.would), (Some(reason), 1));
        assert_eq!(plane.kernel.drops.next_drop(), None);
    }
    // A denied fragment that is no service either is counted once, for the first of the three.
    let frame = v4("198.51.100.9").v4_fragment(0, true).udp().bytes(&[0; 16]).build();
    assert_eq!(plane.judge(&frame), Verdict::would(DenyList));
}

#[test]
fn a_reason_that_is_monitored_does_not_spare_from_the_others() {
    let mut plane = strict(&[DenyList]);
    let frame = v4("198.51.100.9").protocol(99, &[0; 8]).build();
    let verdict = Verdict { reason: Reason::Signature, would: Some(DenyList) };
    assert_eq!(plane.judge(&frame), verdict);
    // One packet, one event: that of its end.
    let told = plane.kernel.drops.next_drop().expect("told");
    assert_eq!((Reason::from_index(told.reason), told.would), (Some(Reason::Signature), 0));
    assert_eq!(plane.kernel.drops.next_drop(), None);
    for (reason, frame) in one_of_each().into_iter().skip(1) {
        assert_eq!(plane.judge(&frame), Verdict::of(reason));
    }
}

#[test]
fn a_monitored_limit_lets_all_pass_and_counts_the_excess() {
    let limited = UNLIMITED.limit(Kind::Packets, hourly(3)).limit(Kind::Udp, hourly(5));
    let mut plane = Plane::new(Policy { monitored: vec![PacketRate], ..limited.clone() });
    let frame = udp(GOOD);
    for n in 0..9 {
        let verdict = match n {
            0..3 => Verdict::PASS,
            3..5 => Verdict::would(PacketRate),
            _ => Verdict { reason: UdpRate, would: Some(PacketRate) },
        };
        assert_eq!(plane.judge(&frame), verdict, "{n}");
    }
    plane.update(&limited);
    assert_eq!(plane.judge(&frame), Verdict::of(PacketRate));
}

/// What each client of a /56 would have, or has, of two packets: one floods, then the others come.
fn neighbours(monitored: &[Reason]) -> (Vec<Verdict>, Vec<Verdict>) {
    let prefixes = [Some(Prefix { bits: 56, factor: 2 }), None];
    let policy = Policy { prefixes, monitored: monitored.to_vec(), ..UNLIMITED }
        .limit(Kind::Packets, hourly(4))
        .limit(Kind::Udp, hourly(6));
    let mut plane = Plane::new(policy);
    let from = |sub: u16| v6(&format!("2001:db8:1:{sub:x}::1")).udp().build();
    let flood = (0..40).map(|_| plane.judge(&from(0))).collect();
    let others = (1..4).flat_map(|sub| [from(sub), from(sub)]);
    (flood, others.map(|frame| plane.judge(&frame)).collect())
}

#[test]
fn whoever_monitors_reads_what_enforcement_would_do() {
    let (flood, others) = neighbours(&[]);
    let passed = |verdicts: &[Verdict]| verdicts.iter().filter(|v| **v == Verdict::PASS).count();
    // Of the eight of the prefix, the one has its four, and the others have four of six.
    assert_eq!((passed(&flood), passed(&others)), (4, 4));
    assert_eq!(others[4], Verdict::of(PrefixRate));
    let monitored = neighbours(&[PacketRate, PrefixRate, UdpRate]);
    for (enforced, monitored) in [(flood, monitored.0), (others, monitored.1)] {
        let would = enforced.iter().map(|verdict| match verdict.reason {
            Reason::Pass => Verdict::PASS,
            reason => Verdict::would(reason),
        });
        assert_eq!(monitored, would.collect::<Vec<_>>());
    }
}

#[test]
fn a_monitored_limit_costs_no_neighbour_a_packet() {
    let (flood, others) = neighbours(&[PacketRate]);
    // The limit on UDP is in force, and takes all that comes.
    for verdict in [flood[6], flood[39]] {
        assert_eq!(verdict, Verdict { reason: UdpRate, would: Some(PacketRate) });
    }
    let dropped = others.iter().filter(|verdict| !verdict.reason.passes());
    assert_eq!(dropped.count(), 0, "{others:?}");
    assert_eq!(others[4], Verdict::would(PrefixRate), "so it is told of");
}

#[test]
fn what_cannot_be_parsed_is_still_judged_by_its_source_where_that_is_monitored() {
    let monitored = vec![Reason::UnparsedPacket, Reason::MalformedPacket];
    let deep = (0..9).fold(v6(GOOD6), |packet, _| packet.extension(DESTINATION, 0));
    let deep = deep.udp().build();
    let policy = Policy { monitored, ..UNLIMITED }.limit(Kind::Packets, hourly(2));
    let mut plane = Plane::new(policy.clone());
    for _ in 0..2 {
        assert_eq!(plane.judge(&deep), Verdict::would(Reason::UnparsedPacket));
    }
    let refused = |reason| Verdict { reason, would: Some(Reason::UnparsedPacket) };
    assert_eq!(plane.judge(&deep), refused(PacketRate));
    plane.update(&Policy { services: Some(Vec::new()), ..policy });
    assert_eq!(plane.judge(&deep), refused(Reason::NoService));
}
