//! The twin says what the packet program does, and leaves no trace.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::{
    collections::BTreeMap,
    ffi::CString,
    io::Error,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use edge_common::{
    Rate, Reason, Signature, Source,
    cookie::{LISTENERS_MAX, Listener},
    map::{self, Ban, Count, FOREVER, Kind},
    service::Service,
    signature::{Action, Ask},
};
use edge_daemon::{
    clock::boot_ns,
    kernel::{
        Defence, InForce, Kernel, ListCapacity, LoadSettings, Policy, Prefix, Twin, When, detach,
    },
};
use edge_policy::list::Class;
use edge_tests::{
    netns::Netns,
    packet::{ACK, DESTINATION, MOBILITY, ROUTING, RST, SYN, ether, v4, v6},
};

const HOUR: u64 = 3600 * 1_000_000_000;

/// The kernel plane without an interface, and its twin.
struct Bench {
    kernel: Kernel,
    twin: Twin,
    pin_dir: PathBuf,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/edged-twin-{process}-{next}"));
        let settings = LoadSettings {
            pin_dir: pin_dir.clone(),
            debug: false,
            policy,
            lists: ListCapacity::of(1_000, []),
        };
        let mut kernel = Kernel::load(&settings).unwrap();
        let twin = kernel.take_twin().unwrap();
        let mut bench = Self { kernel, twin, pin_dir };
        bench.populate();
        bench
    }

    fn populate(&mut self) {
        let tables = &mut self.kernel.tables;
        for (class, network) in LISTED {
            let set = tables.lists.set(class, &network.parse().unwrap(), FOREVER);
            assert_eq!(set.unwrap(), InForce::Now);
        }
        let ban = Ban {
            since_ns: boot_ns(),
            until_ns: boot_ns() + HOUR,
            hits: 0,
            first_hit_ns: 0,
            reason: Reason::CredentialInvalid as u32,
            strikes: 1,
        };
        tables.bans.ban(source("192.0.2.66"), ban).unwrap();
    }

    fn ask(&mut self, frame: &[u8]) -> (Reason, Option<Reason>) {
        let facts = self.twin.judge(frame, 0).unwrap();
        let would = facts.would.checked_sub(1).and_then(Reason::from_index);
        (Reason::from_index(facts.reason).unwrap(), would)
    }

    /// What the program itself does, and what it would have done, by the counters that rise; and what it
    /// tells of it.
    fn act(&mut self, frame: &[u8]) -> (Reason, Option<Reason>) {
        let tables = &self.kernel.tables;
        let before = (tables.counts().unwrap(), tables.would_drop().unwrap());
        self.kernel.judge(frame).unwrap();
        let risen = |before: &[Count], after: &[Count]| {
            let packets = |counts: &[Count], reason: Reason| counts[reason as usize].packets;
            Reason::ALL.iter().copied().find(|r| packets(before, *r) != packets(after, *r))
        };
        let done = risen(&before.0, &tables.counts().unwrap()).unwrap();
        let would = risen(&before.1, &tables.would_drop().unwrap());
        let told = self.kernel.drops.next_drop();
        assert_eq!(self.kernel.drops.next_drop(), None);
        let told = told.map(|drop| (Reason::from_index(drop.reason), drop.would == 1));
        let drop = (!done.passes()).then_some((Some(done), false));
        assert_eq!(told, drop.or(would.map(|reason| (Some(reason), true))));
        (done, would)
    }

    /// Everything that a packet could leave behind.
    fn traces(&mut self) -> Vec<String> {
        let tables = &self.kernel.tables;
        let lost = (tables.drops_lost().unwrap(), tables.samples_lost().unwrap());
        let told: Vec<_> = std::iter::from_fn(|| self.kernel.drops.next_drop()).collect();
        let sampled: Vec<_> = std::iter::from_fn(|| self.kernel.samples.next_sample()).collect();
        let mut traces = vec![
            format!("{:?}", tables.counts().unwrap()),
            format!("{:?} {lost:?} {told:?} {sampled:?}", tables.bans.entries().unwrap()),
            format!(
                "{:?}",
                LISTED.map(|(class, net)| tables.lists.entry(class, &net.parse().unwrap()))
            ),
        ];
        for (table, entries, bytes) in TABLES {
            let pin = self.pin_dir.join(map::ABI).join(table);
            let words = dump(&pin, entries as usize, bytes).unwrap();
            // Of millions of words, those that somebody wrote.
            let written: Vec<_> =
                words.iter().enumerate().filter(|(_, word)| **word != 0).collect();
            traces.push(format!("{table} {written:?}"));
        }
        traces
    }
}

const LISTED: [(Class, &str); 5] = [
    (Class::Deny, "198.51.100.0/24"),
    (Class::Deny, "2001:db8:bad::/48"),
    (Class::Allow, "198.51.100.7/32"),
    (Class::Watch, "192.0.2.64/31"),
    (Class::Spare, "192.0.2.62/31"),
];

/// Tables that only the program writes: name, entries, and bytes of a value on all CPUs at most.
const TABLES: [(&str, u32, usize); 7] = [
    ("CELLS", map::CELLS_MAX, 32),
    ("OPEN", map::OPEN_SETS, 64),
    ("DROPS_BUCKET", 1, 8),
    ("ALARM", 2, 8),
    ("LISTENERS", LISTENERS_MAX, 16),
    ("COUNTS", map::INTERFACES_MAX * 2 * map::REASONS_MAX, 16 * CPUS_MAX),
    ("SIGNATURE_HITS", 2 * map::SIGNATURES_MAX, 8 * CPUS_MAX),
];
const CPUS_MAX: usize = 64;
/// Bytes of the longest key: a listener's.
const KEY_MAX: usize = size_of::<Listener>();

impl Drop for Bench {
    fn drop(&mut self) {
        detach(&self.pin_dir).unwrap();
    }
}

fn source(text: &str) -> Source {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// All words of a pinned table, in one call.
fn dump(pin: &Path, entries: usize, bytes: usize) -> std::io::Result<Vec<u64>> {
    const OBJ_GET: libc::c_long = 7;
    const MAP_LOOKUP_BATCH: libc::c_long = 24;
    let pin = CString::new(pin.as_os_str().as_bytes())?;
    let call = |command: libc::c_long, words: &mut [u64; 7]| {
        // SAFETY: the kernel copies the words; what they point to lives until the call returns: a path
        // that it reads, keys and values that it writes, as large as the table says.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words))
        };
        if done < 0 { Err(Error::last_os_error()) } else { Ok(done as u64) }
    };
    let table = call(OBJ_GET, &mut [pin.as_ptr() as u64, 0, 0, 0, 0, 0, 0])?;
    let (mut next, mut keys) = (0_u64, vec![0_u8; entries * KEY_MAX]);
    let mut values = vec![0_u64; entries * bytes / 8];
    let count_and_table = entries as u64 | table << 32;
    let mut words = [
        0,
        &raw mut next as u64,
        keys.as_mut_ptr() as u64,
        values.as_mut_ptr() as u64,
        count_and_table,
        0,
        0,
    ];
    let read = call(MAP_LOOKUP_BATCH, &mut words);
    // SAFETY: the descriptor was opened above, and nobody else has it.
    unsafe { libc::close(table as i32) };
    // The end of the table is told as a missing key.
    match read {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(values),
    }
}

/// Numbers that are drawn the same way every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize]
    }

    /// A policy under which a few packets use up what there is, for an hour.
    fn policy(&mut self) -> Policy {
        let mut policy = Policy { drop_fragments: self.one_in(3), ..Policy::UNLIMITED };
        for kind in Kind::ALL {
            let burst = 1 + self.roll(6);
            let rate = match kind {
                Kind::Bytes => Rate::of_bytes(65_536, HOUR, 65_536),
                _ => Rate::new(burst, HOUR, burst),
            };
            if self.one_in(2) {
                policy = policy.limit(kind, rate.unwrap());
            }
        }
        if self.one_in(3) {
            policy.open_max = 1 + self.roll(2) as u32;
        }
        if self.one_in(2) {
            // Nobody listens, so no cookie is sent; and an alarm that ends between two looks would be
            // no difference.
            policy.defence = Defence {
                syn_cookies: self.pick(&[When::Off, When::Auto]),
                unsolicited: self.pick(&[When::Off, When::Always]),
                listeners: vec![([192, 0, 2, 1], 443).into()],
                ..Defence::OFF
            };
        }
        policy.prefixes = [56, 48].map(|bits| self.one_in(2).then_some(Prefix { bits, factor: 2 }));
        if self.one_in(3) {
            policy.services = Some(vec![Service::Tcp(443), Service::Udp(53)]);
        }
        for action in [Action::DROP, Action::LIMIT, Action::COUNT] {
            let asks = if self.one_in(2) { Ask::MONITOR } else { 0 };
            let rate = Rate::new(2, HOUR, 2).unwrap();
            let ttl = if self.one_in(2) { [64, 64] } else { [0, 10] };
            if self.one_in(4) {
                let protocol = self.pick(&[6, 17]);
                let asks = asks | Ask::PROTOCOL;
                let rule = Signature { action, asks, rate, ttl, protocol, ..Signature::ANY };
                policy.signatures.push(rule);
            }
        }
        let packet = |reason: &&Reason| reason.plane() == edge_common::Plane::Packet;
        let refusals = Reason::ALL.iter().filter(packet).filter(|reason| !reason.passes());
        policy.monitored = refusals.copied().filter(|_| self.one_in(8)).collect();
        policy
    }

    fn frame(&mut self) -> Vec<u8> {
        let packet = if self.one_in(2) {
            let near = format!("192.0.2.{}", 60 + self.roll(9));
            let source = self.pick(&["198.51.100.9", "198.51.100.7", "192.0.2.66", &near, &near]);
            let packet = match self.roll(16) {
                0 => ether().vlan(3).v4(source),
                1 => ether().vlan(3).vlan(7).v4(source),
                _ => v4(source),
            };
            if self.one_in(8) { packet.v4_fragment(self.pick(&[0, 9]), true) } else { packet }
        } else {
            let near = format!("2001:db8:1:{:x}::5", self.roll(0x400));
            let packet = v6(self.pick(&["2001:db8:bad::5", "fe80::7", &near, &near]));
            match self.roll(8) {
                0 => packet.extension(self.pick(&[DESTINATION, ROUTING, MOBILITY]), 0),
                1 => packet.v6_fragment(self.pick(&[0, 9]), true),
                _ => packet,
            }
        };
        let packet = match self.roll(8) {
            0 => packet.icmp(),
            1 => packet.icmpv6(128),
            2 => packet.udp(),
            3..6 => packet.tcp(self.pick(&[ACK, RST])),
            _ => packet.tcp(SYN),
        };
        let length = self.pick(&[0, 0, 9, 1400, 3000, 8000]);
        let mut frame = packet.bytes(&vec![7; length]).build();
        if self.one_in(6) {
            frame.truncate(14 + self.roll(40) as usize);
        }
        if self.one_in(6) {
            let at = self.roll(frame.len() as u64) as usize;
            frame[at] = self.roll(256) as u8;
        }
        frame
    }
}

#[test]
fn the_twin_says_what_the_program_does_and_leaves_no_trace() {
    // A host whose address the frames are for: its listeners are protected.
    let ns = Netns::new(&format!("edged-{}-twin", std::process::id()), false).unwrap();
    ns.ip("addr add 192.0.2.1/32 dev lo").unwrap();
    let seen = ns.enter(compare);
    println!("{seen:#?}");
    assert!(seen.len() > 20, "hardly anything was asked: {seen:?}");
    assert!(seen.keys().any(|done| done.contains("Unsolicited")), "{seen:?}");
}

/// How often which of the program's judgements was the twin's.
fn compare() -> BTreeMap<String, u32> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut seen = BTreeMap::new();
    let mut bench = Bench::new(Policy::UNLIMITED);
    for round in 0..ROUNDS {
        let policy = dice.policy();
        bench.kernel.tables.update_policy(&policy).unwrap();
        for step in 0..FRAMES {
            let frame = dice.frame();
            let asked = bench.ask(&frame);
            assert_eq!(bench.ask(&frame), asked, "asking changed the answer");
            let done = bench.act(&frame);
            assert_eq!(asked, done, "round {round}, step {step}, {policy:?}: {frame:02x?}");
            *seen.entry(format!("{done:?}")).or_insert(0) += 1;
        }
        let before = bench.traces();
        for _ in 0..FRAMES {
            bench.ask(&dice.frame());
        }
        for (after, before) in bench.traces().iter().zip(&before) {
            assert!(after == before, "round {round}: {before}\n{after}");
        }
    }
    seen
}

const ROUNDS: u32 = 24;
const FRAMES: u32 = 100;

#[test]
fn buckets_tell_what_still_fits() {
    let policy = Policy::UNLIMITED
        .limit(Kind::Packets, Rate::new(10, HOUR, 10).unwrap())
        .limit(Kind::Udp, Rate::new(4, HOUR, 4).unwrap())
        .limit(Kind::Bytes, Rate::of_bytes(100_000, HOUR, 100_000).unwrap());
    let policy = Policy { prefixes: [Some(Prefix { bits: 56, factor: 2 }), None], ..policy };
    let mut bench = Bench::new(policy);
    let frame = v6("2001:db8:1::5").udp().bytes(&[0; 1000]).build();
    let left = |bench: &mut Bench, frame: &[u8]| -> Vec<_> {
        let facts = bench.twin.judge(frame, 0).unwrap();
        let settings = bench.kernel.tables.settings().unwrap();
        let buckets = bench.twin.buckets(&settings, &facts).unwrap();
        buckets.iter().map(|b| (b.prefix_bits, b.kind, b.left, b.burst)).collect()
    };
    let wide = Some(56);
    let untouched = [
        (None, Kind::Packets, 10, 10),
        (None, Kind::Bytes, 99_999, 99_999),
        (None, Kind::Udp, 4, 4),
        (wide, Kind::Packets, 20, 20),
        (wide, Kind::Bytes, 199_999, 199_999),
        (wide, Kind::Udp, 8, 8),
    ];
    let found = left(&mut bench, &frame);
    for (found, wanted) in found.iter().zip(untouched) {
        assert_eq!((found.0, found.1), (wanted.0, wanted.1));
        assert!(found.2.abs_diff(wanted.2) <= 2 && found.3.abs_diff(wanted.3) <= 2, "{found:?}");
    }
    for _ in 0..3 {
        assert_eq!(bench.act(&frame).0, Reason::Pass);
    }
    let found = left(&mut bench, &frame);
    assert_eq!((found[0].2, found[2].2, found[3].2, found[5].2), (7, 1, 17, 5));
    let bytes = 3 * frame.len() as u64;
    assert!((99_990 - bytes..=100_000 - bytes).contains(&found[1].2), "{found:?}");
    // A neighbour in the same /56 has its own buckets, and shares those around it.
    let neighbour = v6("2001:db8:1:1::5").udp().build();
    let found = left(&mut bench, &neighbour);
    assert_eq!((found[0].2, found[3].2), (10, 17));
    // IPv4 has none around it.
    assert_eq!(left(&mut bench, &v4("192.0.2.1").udp().build()).len(), 3);
}

#[test]
fn without_any_capability_the_twin_still_answers() {
    let mut bench = Bench::new(Policy::UNLIMITED);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
                caps::clear(None, set).unwrap();
            }
            assert_eq!(bench.ask(&v4("198.51.100.9").tcp(SYN).build()).0, Reason::DenyList);
            let settings = bench.kernel.tables.settings().unwrap();
            let facts = bench.twin.judge(&v4("192.0.2.1").udp().build(), 0).unwrap();
            bench.twin.buckets(&settings, &facts).unwrap();
            bench.kernel.tables.counts_apart().unwrap();
            bench.kernel.tables.sample(Some(0)).unwrap();
            bench.kernel.judge(&v4("192.0.2.1").udp().build()).unwrap();
            assert_eq!(bench.kernel.samples.next_sample().unwrap().protocol, 17);
            bench.kernel.tables.sample(None).unwrap();
        });
    });
}

#[test]
fn a_frame_comes_by_the_interface_that_is_asked_about() {
    let mut bench = Bench::new(Policy::UNLIMITED);
    let frame = v4("192.0.2.1").udp().bytes(&[0; 8000]).build();
    let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
    for ifindex in [0, loopback] {
        let facts = bench.twin.judge(&frame, ifindex).unwrap();
        assert_eq!((facts.ifindex, facts.length as usize), (loopback, frame.len()));
    }
    assert!(bench.twin.judge(&frame, 9_999_999).is_err(), "an interface that is gone");
    assert!(bench.twin.judge(&frame[..13], 0).is_err(), "less than an Ethernet header");
    assert!(bench.kernel.take_twin().is_err(), "there is one");
}

#[test]
fn samples_are_drawn_at_their_pace_and_the_lost_are_counted() {
    let mut bench = Bench::new(Policy::UNLIMITED);
    let frame = v4("192.0.2.1").udp().build();
    let mut drawn = |mask, packets| {
        bench.kernel.tables.sample(mask).unwrap();
        let before = bench.kernel.tables.samples_lost().unwrap();
        for _ in 0..packets {
            bench.kernel.judge(&frame).unwrap();
        }
        let told = std::iter::from_fn(|| bench.kernel.samples.next_sample()).count() as u64;
        (told, bench.kernel.tables.samples_lost().unwrap() - before)
    };
    assert_eq!(drawn(None, 1_000), (0, 0));
    assert_eq!(drawn(Some(0), 1_000), (1_000, 0));
    let (told, lost) = drawn(Some(7), 8_000);
    // 1000 on average, with a deviation of 30.
    assert!((850..=1_150).contains(&told) && lost == 0, "{told}, {lost}");
    let (told, lost) = drawn(Some(0), 7_000);
    assert!(told > 5_000 && lost > 0 && told + lost == 7_000, "{told}, {lost}");
}
