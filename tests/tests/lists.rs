//! Both lists in the kernel: every address ends as the entries say, before, while and after they
//! change.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::{Duration, Instant},
};

use edge_common::{Reason, map::FOREVER};
use edge_daemon::{
    clock::boot_ns,
    kernel::{
        Draft, InForce, Kernel, KernelError, ListCapacity, Lists, LoadSettings, Policy, detach,
    },
};
use edge_policy::list::Class;
use edge_tests::packet::{v4, v6};
use ipnet::IpNet;

type Listed = Vec<(Class, IpNet, u64)>;

/// The kernel plane without an interface, with room for these lists.
struct Bench {
    kernel: Kernel,
    pin_dir: PathBuf,
}

impl Bench {
    fn new(name: &str, networks: u32, listed: &Listed) -> Self {
        let pin_dir =
            PathBuf::from(format!("/sys/fs/bpf/edged-lists-{}-{name}", std::process::id()));
        let lists = ListCapacity::of(networks, listed.iter().copied());
        let settings = LoadSettings {
            pin_dir: pin_dir.clone(),
            debug: false,
            policy: Policy::UNLIMITED,
            lists,
        };
        Self { kernel: Kernel::load(&settings).unwrap(), pin_dir }
    }

    fn lists(&self) -> Lists {
        self.kernel.tables.lists.clone()
    }

    fn passes(&mut self, address: IpAddr) -> bool {
        let frame = match address {
            IpAddr::V4(address) => v4(&address.to_string()).udp().build(),
            IpAddr::V6(address) => v6(&address.to_string()).udp().build(),
        };
        self.kernel.judge(&frame).unwrap()
    }

    fn counted(&self, reason: Reason) -> u64 {
        self.kernel.tables.counts().unwrap()[reason as usize].packets
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        detach(&self.pin_dir).unwrap();
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn set(lists: &Lists, class: Class, net: &IpNet, until_ns: u64) {
    assert_eq!(lists.set(class, net, until_ns).unwrap(), InForce::Now);
}

/// Numbers that are the same in every run (the splitmix64 construction).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Half of them IPv4; many inside of each other.
    fn net(&mut self) -> IpNet {
        let (a, b) = (self.next(), self.next());
        let net = if a & 1 == 0 {
            let bits = [8, 16, 18, 19, 20, 22, 24, 25, 28, 30, 32, 32][(a >> 8) as usize % 12];
            IpNet::new(Ipv4Addr::from((b as u32) & 0x0303_ffff | 0x0100_0000).into(), bits)
        } else {
            let bits = [20, 29, 32, 36, 48, 56, 63, 64, 65, 96, 127, 128][(a >> 8) as usize % 12];
            let high = 0x2001_0000_0000_0000 | b & 0x000f_000f_0003;
            let address = u128::from(high) << 64 | u128::from(a >> 16 & 0xf000_0000_0007);
            IpNet::new(Ipv6Addr::from(address).into(), bits)
        };
        net.unwrap().trunc()
    }
}

/// Whether a packet passes, by all entries, asked one by one.
fn model(listed: &Listed, address: IpAddr, now_ns: u64) -> bool {
    let covers = |class| {
        listed
            .iter()
            .any(|(of, net, until)| *of == class && now_ns < *until && net.contains(&address))
    };
    covers(Class::Allow) || !covers(Class::Deny)
}

/// The first and the last address of a network, and their neighbours outside.
fn ends(net: &IpNet) -> Vec<IpAddr> {
    match net {
        IpNet::V4(v4) => {
            let (first, last) = (u32::from(v4.network()), u32::from(v4.broadcast()));
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(|address| Ipv4Addr::from(address).into())
                .into()
        }
        IpNet::V6(v6) => {
            let (first, last) = (u128::from(v6.network()), u128::from(v6.broadcast()));
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(|address| Ipv6Addr::from(address).into())
                .into()
        }
    }
}

#[test]
fn the_program_says_what_the_entries_say() {
    let mut random = Random(7);
    let mut listed: Listed = Vec::new();
    let ends_of = |random: &mut Random| [1, FOREVER, FOREVER - 1][random.next() as usize % 3];
    for _ in 0..400 {
        let class = if random.next().is_multiple_of(3) { Class::Allow } else { Class::Deny };
        listed.push((class, random.net(), ends_of(&mut random)));
    }
    let mut bench = Bench::new("model", 2_000, &listed);
    let lists = bench.lists();
    lists.replace(listed.iter().copied()).unwrap();
    for round in 0..3 {
        let nets: Vec<IpNet> = listed.iter().map(|(_, net, _)| *net).collect();
        for address in nets.iter().flat_map(ends) {
            assert_eq!(
                bench.passes(address),
                model(&listed, address, boot_ns()),
                "{address} {round}"
            );
        }
        // Some go, some come; in the second round they are compiled as well.
        for _ in 0..100 {
            let gone = listed.swap_remove(random.next() as usize % listed.len());
            listed.retain(|(class, net, _)| (*class, *net) != (gone.0, gone.1));
            set(&lists, gone.0, &gone.1, 0);
            let (net, until) = (random.net(), ends_of(&mut random));
            listed.retain(|(class, other, _)| (*class, *other) != (Class::Deny, net));
            listed.push((Class::Deny, net, until));
            set(&lists, Class::Deny, &net, until);
        }
        if round == 1 {
            lists.fold(0).unwrap();
            assert_eq!(lists.sizes().overlay, 0);
        }
    }
}

#[test]
fn what_was_compiled_before_there_were_tables_is_what_they_say() {
    let mut random = Random(11);
    let mut listed = |count: usize| -> Listed {
        let mut class = [Class::Allow, Class::Deny].into_iter().cycle();
        let entry = |_| Some((class.next()?, random.net(), FOREVER));
        (0..count).filter_map(entry).collect()
    };
    let (first, then) = (listed(300), listed(50));
    // An image that is as long as the table's is taken as it is, another one is compiled anew.
    for networks in [2_000, 5_000] {
        let mut bench = Bench::new("draft", 2_000, &first);
        let lists = bench.lists();
        // Lists that hold something already are replaced.
        for listed in [&first, &then] {
            lists.fill(Draft::new(networks, listed.iter().copied())).unwrap();
            for address in listed.iter().flat_map(|(_, net, _)| ends(net)) {
                let wanted = model(listed, address, boot_ns());
                assert_eq!(bench.passes(address), wanted, "{address}, {networks}");
            }
            assert!(!lists.is_foreign());
            assert_eq!(lists.doubted_ends(boot_ns(), 9), []);
        }
        set(&lists, Class::Deny, &net("203.0.113.7/32"), FOREVER);
        assert!(!bench.passes("203.0.113.7".parse().unwrap()));
    }
}

#[test]
fn a_new_list_takes_the_place_of_the_former_and_keeps_the_hits() {
    let mut bench = Bench::new("hits", 1_000, &Vec::new());
    let lists = bench.lists();
    let (stays, goes) = (net("203.0.113.0/24"), net("198.51.100.0/24"));
    lists.replace([(Class::Deny, stays, FOREVER), (Class::Deny, goes, FOREVER)]).unwrap();
    let hits = |net| lists.entry(Class::Deny, net).map(|entry| entry.hits);
    assert!(!bench.passes("203.0.113.9".parse().unwrap()));
    assert!(!bench.passes("198.51.100.9".parse().unwrap()));
    assert_eq!((hits(&stays), hits(&goes)), (Some(1), Some(1)));
    lists.replace([(Class::Deny, stays, FOREVER), (Class::Deny, net("10.0.0.0/8"), 1)]).unwrap();
    assert!(!bench.passes("203.0.113.9".parse().unwrap()));
    assert!(bench.passes("198.51.100.9".parse().unwrap()));
    assert!(bench.passes("10.0.0.9".parse().unwrap()), "it has ended");
    assert_eq!((hits(&stays), hits(&goes)), (Some(2), None));
    assert_eq!(lists.sizes().entries, 2);
}

#[test]
fn a_monitored_entry_is_counted_and_drops_nothing() {
    let mut bench = Bench::new("watch", 1_000, &Vec::new());
    let (lists, watched) = (bench.lists(), net("203.0.113.0/24"));
    set(&lists, Class::Watch, &watched, FOREVER);
    for _ in 0..2 {
        assert!(bench.passes("203.0.113.9".parse().unwrap()));
        lists.fold(0).unwrap();
    }
    assert_eq!(lists.entry(Class::Watch, &watched).unwrap().hits, 2);
    assert_eq!(bench.counted(Reason::DenyList), 0);
    set(&lists, Class::Deny, &net("203.0.113.9/32"), FOREVER);
    assert!(!bench.passes("203.0.113.9".parse().unwrap()));
    assert_eq!(bench.counted(Reason::DenyList), 1);
}

#[test]
fn lists_beyond_their_room_leave_the_former_in_force() {
    let mut bench = Bench::new("room", 1_000, &Vec::new());
    let lists = bench.lists();
    lists.replace([(Class::Deny, net("203.0.113.0/24"), FOREVER)]).unwrap();
    let address = |i: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + i)));
    let too_many = (0..2_000).map(|i| (Class::Deny, address(i), FOREVER));
    let error = lists.replace(too_many).unwrap_err().to_string();
    assert!(error.contains("ENTRIES") && error.contains("full"), "{error}");
    assert!(!bench.passes("203.0.113.9".parse().unwrap()));
    for i in 0..999 {
        set(&lists, Class::Deny, &address(i), FOREVER);
    }
    assert!(lists.set(Class::Deny, &address(999), FOREVER).is_err());
    // What has a number can be taken back, without another.
    assert!(lists.set(Class::Watch, &address(1), FOREVER).is_err());
    set(&lists, Class::Deny, &address(1), 0);
    set(&lists, Class::Deny, &address(1), FOREVER);
    assert!(!bench.passes("11.0.0.1".parse().unwrap()));
    set(&lists, Class::Deny, &address(0), 0);
    lists.fold(0).unwrap();
    set(&lists, Class::Deny, &address(999), FOREVER);
    assert!(
        bench.passes("11.0.0.0".parse().unwrap()) && !bench.passes("11.0.3.231".parse().unwrap())
    );
}

#[test]
fn what_no_image_has_room_for_is_refused_until_there_is() {
    // Lone IPv6 addresses take more lines than there are for networks of the ordinary kind.
    let mut bench = Bench::new("lines", 12_000, &Vec::new());
    let lists = bench.lists();
    let address = |i: u32| Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(i) << 64 | 7);
    let deny =
        |i: u32, until_ns| lists.set(Class::Deny, &IpNet::from(IpAddr::from(address(i))), until_ns);
    let small = (0..11_000).take_while(|i| deny(*i, FOREVER).unwrap() == InForce::Now).count();
    assert!(small > 7_100 && small < 11_000, "{small}");
    let full = |error: KernelError| matches!(error, KernelError::Full { table: "LISTS" });
    assert!(full(lists.fold(0).unwrap_err()));
    let next = small as u32 + 1;
    assert!(full(deny(next, FOREVER).unwrap_err()));
    for i in 0..small as u32 {
        deny(i, 0).unwrap();
    }
    lists.fold(0).unwrap();
    assert_eq!(lists.sizes().entries, 1, "the one that was accepted");
    assert!(!bench.passes(address(small as u32).into()));
    assert!(bench.passes(address(next).into()));
    assert_eq!(deny(next, FOREVER).unwrap(), InForce::Now);
    assert!(!bench.passes(address(next).into()));
}

/// While whole lists take each other's place and single networks come and go, a prober that never
/// pauses finds denied what is always denied, and not what never is; and of each pair of neighbours
/// the one that the list in force names.
#[test]
fn a_prober_sees_no_wrong_verdict_while_lists_are_swapped() {
    let count = networks();
    let lists = [0, 1].map(|odd| -> Listed {
        let nets = (0..count).map(|i| IpNet::from(pair(i)[0][odd]));
        let wide = (0..count / 10).map(|i| IpNet::new_assert(pair(i)[1][odd], 64).trunc());
        let always = [
            (Class::Deny, net("203.0.113.0/24"), FOREVER),
            (Class::Allow, net("203.0.113.8/32"), FOREVER),
        ];
        nets.chain(wide).map(|net| (Class::Deny, net, FOREVER)).chain(always).collect()
    });
    let mut bench = Bench::new("swap", count, &lists[0]);
    let kernel = bench.lists();
    kernel.replace(lists[0].iter().copied()).unwrap();
    // Twice the swaps that are done, and one more while the next is under way.
    let phase = AtomicUsize::new(0);
    let (mut slowest, mut slowest_change) = (Duration::ZERO, Duration::ZERO);
    let (probed, settled, swapping) = std::thread::scope(|scope| {
        let prober = scope.spawn(|| probe(&mut bench, count, &phase));
        while !prober.is_finished() {
            let begun = Instant::now();
            let next = (phase.fetch_add(1, SeqCst) / 2 + 1) % 2;
            kernel.replace(lists[next].iter().copied()).unwrap();
            phase.fetch_add(1, SeqCst);
            slowest = slowest.max(begun.elapsed());
            for host in 0..100 {
                let net = IpNet::from(IpAddr::from([198, 51, 100, host]));
                let begun = Instant::now();
                set(&kernel, Class::Deny, &net, FOREVER);
                set(&kernel, Class::Deny, &net, 0);
                slowest_change = slowest_change.max(begun.elapsed() / 2);
            }
        }
        prober.join().unwrap()
    });
    let swaps = phase.load(SeqCst) / 2;
    for pair in (0..count / 10).step_by(10).flat_map(pair) {
        let denied = [swaps % 2, 1 - swaps % 2].map(|odd| !bench.passes(pair[odd]));
        assert_eq!(denied, [true, false], "{pair:?} in the end");
    }
    assert!(swaps > 2 && probed > 1_000, "{swaps} swaps, {probed} probes");
    assert!(settled > 10 && swapping > 10, "{settled} between swaps, {swapping} in them");
    println!(
        "{count} networks: {swaps} swaps, slowest {slowest:?}; slowest change {slowest_change:?}; \
         {probed} probes, {settled} of pairs between swaps, {swapping} of pairs in them"
    );
}

/// Probes for two seconds: how often, and how many pairs between two swaps and in one.
fn probe(bench: &mut Bench, count: u32, phase: &AtomicUsize) -> (u32, u32, u32) {
    let (begun, mut probed, mut settled, mut swapping) = (Instant::now(), 0_u32, 0, 0);
    while begun.elapsed() < Duration::from_secs(2) {
        for (text, passes) in [
            ("203.0.113.7", false),
            ("203.0.113.8", true),
            ("203.0.114.1", true),
            ("198.51.101.1", true),
        ] {
            assert_eq!(bench.passes(text.parse().unwrap()), passes, "{text} after {probed}");
            probed += 1;
        }
        let host = probed.wrapping_mul(0x9e37_79b9);
        for pair in [pair(host % count)[0], pair(host % (count / 10))[1]] {
            let before = phase.load(SeqCst);
            let former = before / 2 % 2;
            let denied = [former, 1 - former].map(|odd| !bench.passes(pair[odd]));
            let after = phase.load(SeqCst);
            probed += 2;
            if before == after && before.is_multiple_of(2) {
                assert_eq!(denied, [true, false], "{pair:?} after {probed}");
                settled += 1;
            } else if after <= (before | 1) + 1 {
                // What the former list does not deny any more, the next one does.
                assert_ne!(denied, [false, false], "{pair:?} after {probed}");
                swapping += 1;
            }
        }
    }
    (probed, settled, swapping)
}

/// Two neighbours of either family, of which each list names one.
fn pair(number: u32) -> [[IpAddr; 2]; 2] {
    let v4 = [0, 1].map(|odd| Ipv4Addr::from((11 << 24) + number * 2 + odd).into());
    let v6 = [0, 1].map(|odd| {
        let network = 0x2001_0db8 << 32 | u128::from(number * 2 + odd);
        Ipv6Addr::from(network << 64 | 7).into()
    });
    [v4, v6]
}

/// How many networks the swapped lists have; `EDGED_LIST_NETWORKS` for the full count.
fn networks() -> u32 {
    std::env::var("EDGED_LIST_NETWORKS").map_or(20_000, |count| count.parse().unwrap())
}
