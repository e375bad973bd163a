//! The image and the overlay, against the naive model: all entries, asked one by one.

use std::collections::BTreeMap;

use edge_common::list::{self as layout, Ids, Line};
use proptest::prelude::*;

use super::*;

/// What the kernel has, and how it uses it.
struct Kernel {
    image: Vec<Line>,
    overlay: BTreeMap<Span, Ids>,
    ends: Vec<u64>,
}

impl Kernel {
    fn new() -> Self {
        let image = vec![[0; 8]; LINES];
        Self { image, overlay: BTreeMap::new(), ends: vec![0; 4_096] }
    }

    fn write(&mut self, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::Until(id, until) => self.ends[id as usize] = until,
                Write::Put(net, ids) => {
                    self.overlay.insert(Span::of(net), ids);
                }
                Write::Remove(net) => {
                    self.overlay.remove(&Span::of(net)).expect("only what is there is removed");
                }
            }
        }
    }

    /// The latest end of the entries that the tables name, by class; 0: none.
    fn ends(&self, address: u128) -> [u64; Class::COUNT] {
        let span = Span { first: address, bits: 128 };
        let value = match span.v4() {
            Some((v4, _)) => layout::v4(&self.image[..], v4),
            None => layout::v6(&self.image[..], (address >> 64) as u64, address as u64),
        };
        let longest = self.overlay.iter().filter(|(net, _)| net.contains(span));
        // The fence keeps a wide IPv6 network from speaking for IPv4.
        let longest = longest.filter(|(net, _)| span.v4().is_none() || net.v4().is_some());
        let overlaid =
            longest.max_by_key(|(net, _)| net.bits).map_or(Ids::default(), |(_, ids)| *ids);
        let named = layout::ids(&self.image[..], value);
        let end = |id: u32| self.ends[id as usize];
        std::array::from_fn(|class| end(named[class]).max(end(overlaid[class])))
    }
}

/// Everything that is listed, and the kernel's view of it.
struct Lists {
    model: BTreeMap<(Class, Span), u64>,
    book: Book,
    numbers: Numbers,
    kernel: Kernel,
    pending: Option<Successor>,
    /// Whether a change waits for the image in the making.
    large: bool,
}

impl Lists {
    fn new() -> Self {
        Self::with_overlay(64)
    }

    fn with_overlay(max: usize) -> Self {
        Self {
            model: BTreeMap::new(),
            book: Book::new(max),
            numbers: Numbers::new(4_096),
            kernel: Kernel::new(),
            pending: None,
            large: false,
        }
    }

    fn set(&mut self, class: Class, net: IpNet, until: u64) {
        match self.book.set(class, net, until, &mut self.numbers).unwrap() {
            Change::Small(writes) => self.kernel.write(writes),
            Change::Large(writes) => {
                self.kernel.write(writes);
                self.finish();
                self.begin();
                self.large = true;
            }
        }
        match until {
            0 => self.model.remove(&(class, Span::of(net))),
            until => self.model.insert((class, Span::of(net)), until),
        };
    }

    fn begin(&mut self) {
        if self.pending.is_none() {
            self.pending = Some(self.book.snapshot().fold(0));
        }
    }

    fn replace(&mut self, entries: &[(Class, IpNet, u64)]) {
        self.finish();
        let mut next = self.book.snapshot().replace(entries.iter().copied());
        let numbers = self.numbers.take(next.unnumbered).unwrap();
        for (id, until) in next.number(numbers) {
            self.kernel.ends[id as usize] = until;
        }
        self.model.clear();
        for (class, net, until) in entries {
            let end = self.model.entry((*class, Span::of(*net))).or_default();
            *end = (*end).max(*until);
        }
        self.pending = Some(next);
        self.finish();
    }

    fn finish(&mut self) {
        let Some(next) = self.pending.take() else { return };
        self.large = false;
        next.table.compile(&mut self.kernel.image).unwrap();
        let Adopted { writes, ends, free } = self.book.adopt(next);
        for (id, until) in &ends {
            let end = &mut self.kernel.ends[*id as usize];
            *end = (*end).max(*until);
        }
        self.kernel.write(writes);
        let settled = self.book.settle(ends);
        self.kernel.write(settled);
        for id in &free {
            self.kernel.ends[*id as usize] = 0;
        }
        self.numbers.give_back(free);
    }

    fn check(&self, addresses: impl IntoIterator<Item = u128>) -> Result<(), TestCaseError> {
        let found = |id: u32| self.kernel.ends[id as usize];
        let (ends, none) = (self.book.ends(), Vec::new());
        prop_assert_eq!(ends.differing(found, 0).collect::<Vec<_>>(), none);
        // Whoever changes one is found out, unless it has ended either way.
        for (class, span) in self.model.keys() {
            let (until, id) = self.book.end(*class, span.net()).expect("it is listed");
            prop_assert_eq!(until, found(id));
            let other = |of: u32| found(of) ^ u64::from(of == id);
            let differing: Vec<_> = ends.differing(other, 0).collect();
            prop_assert_eq!(differing, [(*class, span.net())]);
            prop_assert_eq!(ends.differing(other, u64::MAX).count(), 0);
        }
        for address in addresses {
            let span = Span { first: address, bits: 128 };
            let is_v4 = span.v4().is_some();
            let ends = Class::ALL.map(|class| {
                let covering = self.model.iter().filter(|((of, net), _)| {
                    *of == class && net.contains(span) && is_v4 == net.v4().is_some()
                });
                covering.map(|(_, until)| *until).max().unwrap_or(0)
            });
            prop_assert_eq!(self.kernel.ends(address), ends, "{:?}", span.net());
            for class in Class::ALL {
                let decides = self.book.decides(class, span.net().addr());
                prop_assert_eq!(decides.map_or(0, |it| it.1), ends[class as usize - 1]);
            }
            let [allow, spare, deny, _] = ends;
            for now in [0, deny.saturating_sub(1), deny] {
                let is_denied = self.book.view().denies(span.net().addr(), now);
                prop_assert_eq!(is_denied, now < deny && now >= allow.max(spare));
            }
        }
        Ok(())
    }
}

fn class() -> impl Strategy<Value = Class> {
    proptest::sample::select(&Class::ALL[..])
}

/// Few bits vary, at both ends, so that networks nest, repeat and lie beside each other.
fn address() -> impl Strategy<Value = u128> {
    let v4 = (prop_oneof![Just(0_u32), Just(10), Just(255)], 0_u32..4, 0_u32..4, 0_u32..256)
        .prop_map(|(a, b, c, d)| IPV4.first | u128::from(a << 24 | b << 14 | c << 8 | d));
    let high = prop_oneof![
        (0_u64..3, 0_u64..3, 0_u64..3).prop_map(|(a, b, c)| 0x2001 << 48 | a << 40 | b << 20 | c),
        Just(0),
        Just(u64::MAX)
    ];
    let low = prop_oneof![
        0_u64..6,
        Just(u64::MAX),
        Just(0xffff_0000_0000),
        0xffff_ffff_u64..0x1_0000_0001
    ];
    prop_oneof![v4, (high, low).prop_map(|(high, low)| u128::from(high) << 64 | u128::from(low))]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), prop_oneof![0_u8..=128, 56_u8..=64, 108_u8..=128]).prop_map(|(address, bits)| {
        let span = Span { first: address, bits: 128 };
        let least = if span.v4().is_some() { IPV4.bits } else { 0 };
        let bits = bits.max(least);
        Span { first: mask(address, bits), bits }.net()
    })
}

/// The ends of a network and what lies just outside of it.
fn ends(net: IpNet) -> [u128; 4] {
    let Span { first, bits } = Span::of(net);
    let last = first | u128::MAX.checked_shr(bits.into()).unwrap_or(0);
    [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
}

#[derive(Clone, Debug)]
enum Step {
    Set(Class, IpNet, u64),
    Begin,
    Finish,
    Replace(Vec<(Class, IpNet, u64)>),
}

fn step() -> impl Strategy<Value = Step> {
    let set =
        (class(), net(), 0_u64..5).prop_map(|(class, net, until)| Step::Set(class, net, until));
    let entries = proptest::collection::vec((class(), net(), 1_u64..5), 0..20);
    prop_oneof![
        12 => set,
        1 => Just(Step::Begin),
        1 => Just(Step::Finish),
        1 => entries.prop_map(Step::Replace)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_says_what_the_entries_say(
        entries in proptest::collection::vec((class(), net(), 1_u64..6), 0..60),
        others in proptest::collection::vec(address(), 20),
    ) {
        let mut lists = Lists::new();
        lists.replace(&entries);
        let boundaries = entries.iter().flat_map(|(_, net, _)| ends(*net));
        lists.check(boundaries.chain(others))?;
        prop_assert_eq!(lists.numbers.used(), lists.model.len());
    }

    #[test]
    fn changes_in_any_order_say_it_too(
        overlay_max in prop_oneof![Just(4_usize), Just(64)],
        steps in proptest::collection::vec(step(), 0..60),
        others in proptest::collection::vec(address(), 8),
    ) {
        let mut lists = Lists::with_overlay(overlay_max);
        let mut seen = Vec::new();
        for step in steps {
            match step {
                Step::Set(class, net, until) => {
                    lists.set(class, net, until);
                    seen.extend(ends(net));
                }
                Step::Begin => lists.begin(),
                Step::Finish => lists.finish(),
                Step::Replace(entries) => lists.replace(&entries),
            }
            if !lists.large {
                lists.check(seen.iter().rev().take(40).copied())?;
            }
        }
        lists.finish();
        lists.begin();
        lists.finish();
        lists.check(seen.into_iter().chain(others))?;
        prop_assert_eq!(lists.kernel.overlay.len(), 0);
        prop_assert_eq!(lists.numbers.used(), lists.model.len());
    }
}

#[test]
fn what_the_overlay_cannot_hold_is_in_the_next_image() {
    let mut lists = Lists::with_overlay(4);
    let nets: Vec<IpNet> =
        (0..5).map(|host| format!("10.0.{host}.1/32").parse().unwrap()).collect();
    for until in [FOREVER, 3, 4] {
        for net in &nets {
            lists.set(Class::Deny, *net, until);
        }
        lists.finish();
        lists.begin();
        lists.finish();
        lists.check(nets.iter().map(|net| Span::of(*net).first)).unwrap();
    }
}

#[test]
fn what_changes_while_a_list_is_replaced_keeps_its_own_end() {
    let mut lists = Lists::new();
    let [former, both, late] =
        ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"].map(|net| net.parse::<IpNet>().unwrap());
    lists.set(Class::Deny, former, FOREVER);
    let entries = [former, both].map(|net| (Class::Deny, net, 5));
    let mut next = lists.book.snapshot().replace(entries);
    let numbers = lists.numbers.take(next.unnumbered).unwrap();
    for (id, until) in next.number(numbers) {
        lists.kernel.ends[id as usize] = until;
    }
    // The second has two numbers then.
    for (net, until) in [(former, 3), (both, 2), (late, FOREVER)] {
        lists.set(Class::Deny, net, until);
    }
    lists.pending = Some(next);
    lists.finish();
    lists.check([former, both, late].map(|net| Span::of(net).first)).unwrap();
    assert_eq!(lists.numbers.used(), 3);
}

#[test]
fn when_no_image_has_room_what_needs_one_is_refused() {
    let mut lists = Lists::with_overlay(4);
    let net = |host: u8| -> IpNet { format!("10.0.{host}.1/32").parse().unwrap() };
    for host in 0..4 {
        lists.set(Class::Deny, net(host), FOREVER);
    }
    let _ = lists.book.snapshot();
    assert!(lists.book.abandon(true));
    let mut set = |host, until| lists.book.set(Class::Deny, net(host), until, &mut lists.numbers);
    assert_eq!(set(4, FOREVER), Err(Refused::NoImage));
    // What leaves the lists makes room.
    assert!(matches!(set(3, 0), Ok(Change::Small(_))));
    assert!(matches!(set(4, FOREVER), Ok(Change::Small(_))));
    assert_eq!(set(5, FOREVER), Err(Refused::NoImage));
    let next = lists.book.snapshot().fold(0);
    let ends = lists.book.adopt(next).ends;
    lists.book.settle(ends);
    let in_force = lists.book.set(Class::Deny, net(5), FOREVER, &mut lists.numbers);
    assert!(matches!(in_force, Ok(Change::Small(_))));
}

/// Lines of a small image.
const LINES: usize = layout::FIXED as usize + 20_000;

#[test]
fn networks_overlap_where_one_contains_the_other() {
    let overlap = |one: &str, other: &str| {
        let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
        assert_eq!(overlap(one, other), overlap(other, one));
        overlap(one, other)
    };
    assert!(overlap("192.0.2.0/24", "192.0.2.7/32") && overlap("192.0.2.7/32", "192.0.2.7/32"));
    assert!(overlap("2001:db8::/32", "2001:db8:1::/64"));
    assert!(overlap("::ffff:192.0.2.0/120", "192.0.2.7/32"));
    assert!(!overlap("192.0.2.0/25", "192.0.2.128/25") && !overlap("::/0", "192.0.2.7/32"));
}
