//! Lists of networks: what an operator or a feed wrote, compiled for longest-prefix match.
//!
//! IPv4 and its mapped form `::ffff:0:0/96` are one space here, as they are in the kernel's table.

mod read;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use read::{Fault, NetFault, Reading, parse_net, read};

/// The `until` of an entry that never ends.
pub const FOREVER: u64 = u64::MAX;

/// Compiles entries `(network, until)` into a table for longest-prefix match: looking an address
/// up gives the latest `until` of all entries that cover it.
///
/// So an entry that ends early never shadows a covering one that lasts, and an entry whose cover
/// lasts at least as long is dropped. Networks are not merged with their neighbours: every one in
/// the table was on the list, so that its hits can be told to whoever listed it. The exception is
/// an IPv6 network that contains all of IPv4, which [`parse_net`] refuses: it is split around it.
pub fn compile(entries: impl IntoIterator<Item = (IpNet, u64)>) -> BTreeMap<IpNet, u64> {
    let mut spans: Vec<(Span, u64)> = Vec::new();
    for (net, until) in entries {
        let span = Span::of(net);
        if span.swallows_ipv4() {
            spans.extend(span.around_ipv4().map(|part| (part, until)));
        } else {
            spans.push((span, until));
        }
    }
    // By address, then the widest first, then the latest first: a cover precedes what it covers.
    spans.sort_unstable_by_key(|(span, until)| (*span, std::cmp::Reverse(*until)));
    let mut table = BTreeMap::new();
    let mut covers: Vec<(Span, u64)> = Vec::new();
    for (span, until) in spans {
        while covers.last().is_some_and(|(cover, _)| !cover.contains(span)) {
            covers.pop();
        }
        // What is on the stack lasts longer than all below it, or it would have been dropped.
        if covers.last().is_some_and(|(_, lasts)| *lasts >= until) {
            continue;
        }
        covers.push((span, until));
        table.insert(span.net(), until);
    }
    table
}

/// The longest prefix in a compiled table that covers this address.
#[must_use]
pub fn lookup(table: &BTreeMap<IpNet, u64>, address: IpAddr) -> Option<(IpNet, u64)> {
    let address = address.to_canonical();
    let widest = if address.is_ipv4() { 32 } else { 128 };
    (0..=widest).rev().find_map(|bits| {
        let net = IpNet::new(address, bits).ok()?.trunc();
        table.get(&net).map(|until| (net, *until))
    })
}

/// The network in the one form it has in tables: an IPv4-mapped IPv6 network is IPv4.
#[must_use]
pub fn canonical(net: IpNet) -> IpNet {
    Span::of(net).net()
}

/// A network in the common 128-bit space; ordered by address, then the widest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    first: u128,
    bits: u8,
}

/// The place of IPv4 in the common space.
const IPV4: Span = Span { first: 0xffff << 32, bits: 96 };

impl Span {
    fn of(net: IpNet) -> Self {
        match net.trunc() {
            IpNet::V4(v4) => Self {
                first: IPV4.first | u128::from(u32::from(v4.network())),
                bits: IPV4.bits + v4.prefix_len(),
            },
            IpNet::V6(v6) => Self { first: v6.network().into(), bits: v6.prefix_len() },
        }
    }

    fn net(self) -> IpNet {
        if IPV4.contains(self) {
            let octets = (self.first as u32).to_be_bytes();
            Ipv4Net::new_assert(Ipv4Addr::from(octets), self.bits - IPV4.bits).into()
        } else {
            Ipv6Net::new_assert(Ipv6Addr::from(self.first), self.bits).into()
        }
    }

    fn contains(self, other: Self) -> bool {
        self.bits <= other.bits && mask(other.first, self.bits) == self.first
    }

    /// Whether this is an IPv6 network that is wider than IPv4 and contains it.
    fn swallows_ipv4(self) -> bool {
        self.bits < IPV4.bits && self.contains(IPV4)
    }

    /// This network without IPv4: at every length the half that IPv4 is not in.
    fn around_ipv4(self) -> impl Iterator<Item = Self> {
        (self.bits + 1..=IPV4.bits).map(|bits| {
            let sibling = mask(IPV4.first, bits) ^ (1 << (128 - u32::from(bits)));
            Self { first: sibling, bits }
        })
    }
}

/// The first `bits` bits of an address, the others zero.
fn mask(address: u128, bits: u8) -> u128 {
    let host = 128 - u32::from(bits);
    address & u128::MAX.checked_shl(host).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn table(entries: &[(&str, u64)]) -> Vec<(String, u64)> {
        compile(entries.iter().map(|(n, u)| (net(n), *u)))
            .into_iter()
            .map(|(n, u)| (n.to_string(), u))
            .collect()
    }

    #[test]
    fn what_a_longer_lived_cover_holds_is_dropped() {
        let given = [("10.0.0.0/8", 9), ("10.1.0.0/16", 9), ("10.2.0.0/16", 3), ("10.0.0.0/8", 2)];
        assert_eq!(table(&given), [("10.0.0.0/8".into(), 9)]);
    }

    #[test]
    fn what_outlasts_its_cover_stays_through_several_levels() {
        let given = [("10.0.0.0/8", 5), ("10.1.0.0/16", 3), ("10.1.1.0/24", 4), ("10.1.1.1/32", 9)];
        assert_eq!(table(&given), [("10.0.0.0/8".into(), 5), ("10.1.1.1/32".into(), 9)]);
    }

    #[test]
    fn mapped_networks_are_ipv4() {
        let given = [("::ffff:192.0.2.0/120", 7), ("192.0.2.9/32", 7)];
        assert_eq!(table(&given), [("192.0.2.0/24".into(), 7)]);
    }

    #[test]
    fn an_ipv6_network_never_covers_ipv4() {
        let all = compile([(net("::/0"), FOREVER)]);
        assert_eq!(lookup(&all, "192.0.2.1".parse().unwrap()), None);
        assert_eq!(lookup(&all, "::ffff:192.0.2.1".parse().unwrap()), None);
        for outside in ["2001:db8::1", "::1", "::fffe:1:2", "::1:0:0:0", "ffff::"] {
            let address: IpAddr = outside.parse().unwrap();
            assert_eq!(lookup(&all, address).map(|hit| hit.1), Some(FOREVER), "{outside}");
        }
        assert!(all.keys().all(|n| matches!(n, IpNet::V6(_))));
    }

    #[test]
    fn the_whole_of_ipv4_may_be_listed() {
        assert_eq!(table(&[("0.0.0.0/0", 1)]), [("0.0.0.0/0".into(), 1)]);
        assert_eq!(table(&[("::ffff:0:0/96", 1)]), [("0.0.0.0/0".into(), 1)]);
    }

    /// Few bits vary, so that networks nest and repeat often.
    fn nets() -> impl Strategy<Value = IpNet> {
        let v4 = (0_u32..16, 28_u8..=32).prop_map(|(host, bits)| {
            Ipv4Net::new(Ipv4Addr::from(0xc000_0200 | host), bits).unwrap().into()
        });
        let v6 = (0_u128..8, 0_u8..=128).prop_map(|(host, bits)| {
            Ipv6Net::new(Ipv6Addr::from(0xffff_c000_0200 | host), bits).unwrap().into()
        });
        prop_oneof![v4, v6]
    }

    fn covers(net: IpNet, address: IpAddr) -> bool {
        match (net, address) {
            // A mapped network covers its IPv4 addresses; a wider one covers none of them.
            (IpNet::V6(v6), IpAddr::V4(v4)) => {
                v6.prefix_len() >= 96 && v6.contains(&v4.to_ipv6_mapped())
            }
            (net, address) => net.contains(&address),
        }
    }

    proptest! {
        #[test]
        fn a_lookup_gives_the_latest_of_all_that_cover(
            entries in proptest::collection::vec((nets(), 0_u64..6), 0..40),
        ) {
            let table = compile(entries.iter().copied());
            let v4 = (0..16).map(|host| IpAddr::from(Ipv4Addr::from(0xc000_0200_u32 | host)));
            let v6 = ["::", "::1", "2001:db8::1", "::fffe:c000:200", "::1:ffff:c000:200"];
            for address in v4.chain(v6.iter().map(|text| text.parse().unwrap())) {
                let latest =
                    entries.iter().filter(|(n, _)| covers(*n, address)).map(|(_, u)| *u).max();
                prop_assert_eq!(lookup(&table, address).map(|hit| hit.1), latest);
            }
        }

        #[test]
        fn no_entry_is_redundant_and_order_is_irrelevant(
            entries in proptest::collection::vec((nets(), 0_u64..6), 0..30),
        ) {
            let table = compile(entries.iter().copied());
            for (net, until) in &table {
                let cover = table.iter().filter(|(n, _)| *n != net && n.contains(net));
                prop_assert!(cover.map(|(_, u)| u).all(|u| u < until));
            }
            prop_assert_eq!(&table, &compile(entries.into_iter().rev()));
            prop_assert_eq!(&table, &compile(table.clone()));
        }
    }
}
