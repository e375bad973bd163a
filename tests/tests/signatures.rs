//! Signature rules, by `BPF_PROG_TEST_RUN`: what each matches, does and counts.

use edge_common::{
    Rate, Reason, Signature,
    map::SIGNATURES_MAX,
    signature::{Action, Ask},
};
use edge_daemon::kernel::Policy;
use edge_tests::{
    packet::{ACK, DESTINATION, HOP_BY_HOP, Packet, RST, SYN, ether, v4, v6},
    plane::{Plane, Verdict},
};

const GOOD: &str = "192.0.2.10";
const GOOD6: &str = "2001:db8:1::5";
const SIGNATURE: Verdict = Verdict::of(Reason::Signature);

fn plane(signatures: Vec<Signature>) -> Plane {
    Plane::new(policy(signatures))
}

fn policy(signatures: Vec<Signature>) -> Policy {
    Policy { signatures, ..Policy::UNLIMITED }
}

const DROP: Signature = Signature { action: Action::DROP, ..Signature::ANY };

const fn of(protocol: u8, rule: Signature) -> Signature {
    Signature { protocol, asks: Ask::PROTOCOL | rule.asks, ..rule }
}

/// A rule that asks for something behind the transport header.
const fn deep(protocol: u8, rule: Signature) -> Signature {
    of(protocol, Signature { asks: Ask::TRANSPORT | rule.asks, ..rule })
}

fn payload(text: &[u8]) -> Signature {
    let mut payload = [0; 16];
    payload[..text.len()].copy_from_slice(text);
    Signature { payload, payload_bytes: text.len() as u8, asks: Ask::TRANSPORT, ..DROP }
}

fn udp(source: &str) -> Packet {
    v4(source).udp()
}

/// A rule, what it matches, and what it does not.
fn rows() -> Vec<(&'static str, Signature, Vec<Packet>, Vec<Packet>)> {
    let first = |p: Packet| p.v4_fragment(0, true);
    let later = |protocol| v4(GOOD).v4_fragment(3, false).protocol(protocol, &[0; 24]);
    let icmp_in_v6 = || v6(GOOD6).protocol(1, &[8, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        (
            "protocol",
            of(17, DROP),
            vec![udp(GOOD), v6(GOOD6).udp(), ether().vlan(7).v4(GOOD).udp(), later(17)],
            vec![v4(GOOD).tcp(SYN), v4(GOOD).icmp(), v6(GOOD6).tcp(ACK), later(6)],
        ),
        ("protocol 58", of(58, DROP), vec![v6(GOOD6).icmpv6(128)], vec![icmp_in_v6()]),
        ("protocol 1", of(1, DROP), vec![v4(GOOD).icmp(), icmp_in_v6()], vec![udp(GOOD)]),
        (
            "ports",
            deep(17, Signature { ports: [50, 53], ..DROP }),
            vec![udp(GOOD), v6(GOOD6).extension(DESTINATION, 3).udp(), first(v4(GOOD)).udp()],
            vec![v4(GOOD).tcp(SYN), later(17)],
        ),
        (
            "other ports",
            deep(6, Signature { ports: [444, 65_535], ..DROP }),
            vec![],
            vec![v4(GOOD).tcp(SYN), udp(GOOD)],
        ),
        (
            "source ports",
            deep(6, Signature { source_ports: [40_000, 40_000], ..DROP }),
            vec![v4(GOOD).tcp(SYN), v6(GOOD6).tcp(ACK)],
            vec![udp(GOOD)],
        ),
        (
            "length",
            Signature { length: [29, 50], ..DROP },
            vec![udp(GOOD).bytes(&[0; 1]), udp(GOOD).bytes(&[0; 22]), v6(GOOD6).udp()],
            vec![udp(GOOD), udp(GOOD).bytes(&[0; 23])],
        ),
        (
            "ttl",
            Signature { ttl: [2, 64], ..DROP },
            vec![udp(GOOD), ether().v6_hops(GOOD6, 2).udp()],
            vec![ether().v6_hops(GOOD6, 1).udp(), ether().v6_hops(GOOD6, 65).udp()],
        ),
        (
            "flags",
            deep(6, Signature { tcp_mask: SYN | ACK, tcp_flags: SYN, ..DROP }),
            vec![v4(GOOD).tcp(SYN), v6(GOOD6).tcp(SYN | RST), first(v4(GOOD)).tcp(SYN)],
            vec![v4(GOOD).tcp(SYN | ACK), v4(GOOD).tcp(ACK), udp(GOOD), later(6)],
        ),
        (
            "fragments",
            Signature { asks: Ask::FRAGMENT, ..DROP },
            vec![first(v4(GOOD)).udp(), later(17), v6(GOOD6).v6_fragment(0, true).udp()],
            vec![udp(GOOD), v6(GOOD6).v6_fragment(0, false).udp()],
        ),
        (
            "no fragments",
            Signature { asks: Ask::WHOLE, ..DROP },
            vec![udp(GOOD), v6(GOOD6).v6_fragment(0, false).udp()],
            vec![first(v4(GOOD)).udp(), later(17)],
        ),
        (
            "payload",
            payload(b"GET /"),
            vec![
                v4(GOOD).tcp(ACK).bytes(b"GET /"),
                udp(GOOD).bytes(b"GET / HTTP/1.1\r\nHost: a"),
                ether().vlan(1).vlan(2).v4(GOOD).udp().bytes(b"GET /"),
                ether().v4_options(GOOD, &[1; 40]).udp().bytes(b"GET /"),
                v6(GOOD6).extension(HOP_BY_HOP, 2).tcp(ACK).bytes(b"GET /index"),
                v4(GOOD).icmp().bytes(b"GET /"),
            ],
            vec![
                udp(GOOD),
                udp(GOOD).bytes(b"GET "),
                udp(GOOD).bytes(b"PUT /"),
                v4(GOOD).protocol(47, b"GET /"),
                later(17).bytes(b"GET /"),
            ],
        ),
    ]
}

#[test]
fn each_field_matches_what_it_says() {
    let mut plane = plane(Vec::new());
    for (name, rule, matching, others) in rows() {
        plane.update(&policy(vec![rule]));
        for frame in matching {
            assert_eq!(plane.judge(&frame.clone().build()), SIGNATURE, "{name}: {frame:?}");
        }
        for frame in others {
            assert_eq!(plane.judge(&frame.clone().build()), Verdict::PASS, "{name}: {frame:?}");
        }
    }
}

#[test]
fn payloads_of_every_length_are_compared_to_their_end() {
    let text = b"0123456789abcdefXYZ";
    let mut plane = plane(Vec::new());
    for wanted in 1..=16 {
        plane.update(&policy(vec![payload(&text[..wanted])]));
        for sent in 0..text.len() {
            let verdict = if sent >= wanted { SIGNATURE } else { Verdict::PASS };
            let frame = udp(GOOD).bytes(&text[..sent]).build();
            // Padding behind the packet is no payload of it.
            let padded = [frame.clone(), text[sent..].to_vec()].concat();
            assert_eq!(plane.kernel.judge(&frame).ok(), Some(verdict.reason.passes()));
            assert_eq!(plane.judge(&padded), verdict, "{wanted} of {sent}");
        }
        let mut spoilt = *text;
        spoilt[wanted - 1] ^= 1;
        assert_eq!(plane.judge(&udp(GOOD).bytes(&spoilt).build()), Verdict::PASS, "{wanted}");
    }
}

#[test]
fn options_are_no_payload_even_where_they_are_cut() {
    let mut plane = plane(vec![payload(b"\x01\x01\x01\x01")]);
    // A header of 24 bytes: four of options, then data.
    let tcp = |p: Packet| p.tcp(ACK).bytes(&[1; 4]).bytes(b"data").patched(46, &[0x60]);
    assert_eq!(plane.judge(&tcp(v4(GOOD))), Verdict::PASS);
    // A first fragment of 24 bytes of TCP whose header says 28: the rest is still to come.
    let first = v4(GOOD).v4_fragment(0, true).tcp(ACK).bytes(&[1; 4]).patched(46, &[0x70]);
    assert_eq!(plane.judge(&first), Verdict::PASS);
    plane.update(&policy(vec![payload(b"data")]));
    assert_eq!(plane.judge(&tcp(v4(GOOD))), SIGNATURE);
}

fn hourly(count: u64) -> Rate {
    Rate::new(count, 3600 * 1_000_000_000, count).expect("in range")
}

#[test]
fn a_limit_is_for_all_or_for_each_client() {
    let all = Signature { action: Action::LIMIT, rate: hourly(6), ..deep(17, Signature::ANY) };
    let each = Signature { rate: hourly(4), asks: all.asks | Ask::PER_CLIENT, ..all };
    let mut plane = plane(vec![each]);
    let passing = |plane: &mut Plane, source: &str| plane.passing(&udp(source).build(), 9);
    assert_eq!((passing(&mut plane, GOOD), passing(&mut plane, "192.0.2.11")), (4, 4));
    assert_eq!(plane.judge(&udp(GOOD).build()), SIGNATURE);
    assert_eq!(plane.judge(&v4(GOOD).tcp(SYN).build()), Verdict::PASS);
    // A /64 is one client.
    let v6_passing: usize =
        (0..9).map(|n| plane.passing(&v6(&format!("2001:db8::{n}")).udp().build(), 1)).sum();
    assert_eq!(v6_passing, 4);
    plane.update(&policy(vec![all]));
    assert_eq!((passing(&mut plane, GOOD), passing(&mut plane, "192.0.2.11")), (6, 0));
}

#[test]
fn rules_are_tried_in_their_order_and_the_first_that_drops_decides() {
    let count = of(17, Signature::ANY);
    let monitored = Signature { asks: Ask::MONITOR, ..of(17, DROP) };
    let monitored = Signature { asks: Ask::PROTOCOL | monitored.asks, ..monitored };
    let mut plane = plane(vec![count, monitored, of(6, DROP), count, of(17, DROP), count]);
    let verdict = Verdict { reason: Reason::Signature, would: Some(Reason::Signature) };
    assert_eq!(plane.judge(&udp(GOOD).build()), verdict);
    assert_eq!(plane.judge(&v4(GOOD).tcp(SYN).build()), SIGNATURE);
    assert_eq!(plane.judge(&v4(GOOD).icmp().build()), Verdict::PASS);
    assert_eq!(plane.hits(), [1, 1, 1, 1, 1, 0]);
    plane.update(&policy(vec![count, monitored]));
    assert_eq!(plane.judge(&udp(GOOD).build()), Verdict::would(Reason::Signature));
}

#[test]
fn sixty_four_rules_are_all_tried() {
    let port = |n| deep(17, Signature { ports: [n, n], ..DROP });
    let rules: Vec<_> = (0..SIGNATURES_MAX as u16).map(port).collect();
    let mut plane = plane(rules.clone());
    for n in 0..SIGNATURES_MAX as u16 {
        let frame = udp(GOOD).patched(36, &n.to_be_bytes());
        assert_eq!(plane.judge(&frame), SIGNATURE, "{n}");
    }
    let beyond = udp(GOOD).patched(36, &(SIGNATURES_MAX as u16).to_be_bytes());
    assert_eq!(plane.judge(&beyond), Verdict::PASS);
    assert_eq!(plane.hits(), [1; SIGNATURES_MAX as usize]);
    // One more is not put in force; the configuration refuses it.
    plane.update(&policy([rules, vec![port(SIGNATURES_MAX as u16)]].concat()));
    assert_eq!(plane.judge(&beyond), Verdict::PASS);
}

#[test]
fn a_reload_keeps_the_hits_of_what_it_keeps() {
    let [udp_only, tcp_only, icmp_only] = [17, 6, 1].map(|protocol| of(protocol, Signature::ANY));
    let mut plane = plane(vec![udp_only, tcp_only]);
    for _ in 0..3 {
        plane.judge(&udp(GOOD).build());
    }
    plane.judge(&v4(GOOD).tcp(SYN).build());
    assert_eq!(plane.hits(), [3, 1]);
    plane.update(&policy(vec![udp_only, tcp_only]));
    assert_eq!(plane.hits(), [3, 1]);
    plane.update(&policy(vec![icmp_only, tcp_only, udp_only]));
    assert_eq!(plane.hits(), [0, 1, 3]);
    plane.judge(&udp(GOOD).build());
    assert_eq!(plane.hits(), [0, 1, 4]);
    let changed = Signature { ttl: [1, 255], ..udp_only };
    plane.update(&policy(vec![tcp_only, changed]));
    assert_eq!(plane.hits(), [1, 0]);
    plane.update(&policy(vec![]));
    assert_eq!(plane.hits(), [0; 0]);
    plane.judge(&udp(GOOD).build());
    plane.update(&policy(vec![udp_only]));
    assert_eq!(plane.hits(), [0]);
}
