//! Lists of networks, and sources inside and outside of them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{bench::bpf::Sources, random::Random};

/// A list of networks that do not overlap.
pub(super) struct List(pub(super) Vec<IpNet>);

impl List {
    /// IPv4 as blocklists have it: seven in ten are single addresses, two are /24, one is /16 to
    /// /23, of which there are not more than the lower part of the space has room for.
    pub(super) fn v4(count: usize) -> Self {
        Self::v4_of(count, 0x5eed)
    }

    /// Another such list for each seed.
    pub(super) fn v4_of(count: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (mut taken, mut nets, mut wide) = (BTreeSet::new(), Vec::new(), 0);
        while nets.len() < count {
            let bits = match random.below(10) {
                0..7 => 32,
                9 if wide < WIDE_MAX => 16 + random.below(8) as u8,
                _ => 24,
            };
            // The wide ones keep to the lower part of the space, one in each /16.
            let (first, span, whole) = if bits < 24 { (1, 80, 16) } else { (81, 142, 24) };
            let address = (first + random.below(span)) << 24 | random.below(1 << 24);
            let is_public = !SPECIAL.contains(&(address >> 24));
            if is_public && taken.insert((whole, address >> (32 - whole))) {
                wide += usize::from(bits < 24);
                let net = Ipv4Net::new(address.into(), bits).expect("at most 32 bits").trunc();
                nets.push(net.into());
            }
        }
        Self(nets)
    }

    /// IPv6 as providers hand it out: one in ten is a /32 of its own; the rest lie in 1000 others
    /// as /48, /64 and single addresses.
    pub(super) fn v6(count: usize) -> Self {
        let mut random = Random::new(0x5eed6);
        let mut nets = BTreeSet::new();
        while nets.len() < count {
            let (bits, provider) = match random.below(10) {
                0 => (32, 0x2400_0000 + random.below(0x0100_0000)),
                1..5 => (48, 0x2a00_0000 + random.below(1000)),
                5..9 => (64, 0x2600_0000 + random.below(1000)),
                _ => (128, 0x2001_0000 + random.below(1000)),
            };
            let rest = u128::from(random.next() >> 32) << 64 | u128::from(random.next());
            let address = Ipv6Addr::from(u128::from(provider) << 96 | rest);
            let net = Ipv6Net::new(address, bits).expect("at most 128 bits").trunc();
            nets.insert(IpNet::from(net));
        }
        Self(nets.into_iter().collect())
    }

    /// One a line, as a file that the configuration names has them.
    pub(super) fn text(&self) -> String {
        self.joined("\n")
    }

    /// All of them with something in between.
    pub(super) fn joined(&self, between: &str) -> String {
        let text = |net: &IpNet| match net.prefix_len() == net.max_prefix_len() {
            true => net.addr().to_string(),
            false => net.to_string(),
        };
        self.0.iter().map(text).collect::<Vec<_>>().join(between)
    }

    /// A list of one address of each network.
    pub(super) fn addresses(&self) -> Self {
        Self(self.0.iter().map(|net| IpNet::from(net.addr())).collect())
    }

    /// The first of the list.
    pub(super) fn first(&self, count: usize) -> Self {
        Self(self.0[..count].to_vec())
    }

    /// Random sources inside the networks.
    pub(super) fn inside(&self) -> Sources {
        let mut random = Random::new(1);
        sources(|| {
            let net = *random.pick(&self.0);
            inside(net, &mut random)
        })
    }

    /// Random IPv6 sources that no network covers: half of them anywhere, half from providers
    /// of listed ones.
    pub(super) fn outside(&self) -> Sources {
        let mut random = Random::new(2);
        let listed: BTreeSet<&IpNet> = self.0.iter().collect();
        let is_listed = |address: IpAddr| {
            [32, 48, 64, 128].iter().any(|bits| {
                let net = IpNet::new(address, *bits).map(|net| net.trunc());
                net.is_ok_and(|net| listed.contains(&net))
            })
        };
        sources(|| {
            loop {
                let near = IpNet::new(random.pick(&self.0).network(), 32).expect("IPv6");
                let anywhere = "2000::/3".parse().expect("a network");
                let net = if random.once_in(2) { near.trunc() } else { anywhere };
                let address = inside(net, &mut random);
                if !is_listed(address) {
                    return address;
                }
            }
        })
    }
}

/// As many sources as the sender draws from; a list's are all of one family.
fn sources(mut draw: impl FnMut() -> IpAddr) -> Sources {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for _ in 0..SOURCES {
        match draw() {
            IpAddr::V4(address) => v4.push(address.octets()),
            IpAddr::V6(address) => v6.push(address.octets()),
        }
    }
    if v6.is_empty() { Sources::V4(v4) } else { Sources::V6(v6) }
}

/// A random address of a network.
fn inside(net: IpNet, random: &mut Random) -> IpAddr {
    let host = u128::from(random.next()) << 64 | u128::from(random.next());
    match net {
        IpNet::V4(net) => (net.network() | (net.hostmask() & Ipv4Addr::from(host as u32))).into(),
        IpNet::V6(net) => (net.network() | (net.hostmask() & Ipv6Addr::from(host))).into(),
    }
}

/// A power of two: the sender masks a random number with it.
const SOURCES: usize = 65_536;
const WIDE_MAX: usize = 10_000;
/// First bytes under which there are private, shared, local and documentation networks.
const SPECIAL: [u32; 9] = [10, 100, 127, 169, 172, 192, 198, 203, 0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_disjoint_and_hold_their_sources() {
        for (list, bytes) in [(List::v4(5_000), 4), (List::v6(5_000), 16)] {
            let mut nets = list.0.clone();
            nets.sort();
            assert!(nets.windows(2).all(|w| !w[0].contains(&w[1]) && !w[1].contains(&w[0])));
            let is_inside = |s: IpAddr| nets.iter().any(|n| n.contains(&s));
            let check = |sources: &Sources, expected: bool| match sources {
                Sources::V4(all) => {
                    assert_eq!(bytes, 4);
                    assert!(all.iter().step_by(997).all(|s| is_inside((*s).into()) == expected));
                }
                Sources::V6(all) => {
                    assert_eq!(bytes, 16);
                    assert!(all.iter().step_by(997).all(|s| is_inside((*s).into()) == expected));
                }
                Sources::AnyV4 => panic!("no list"),
            };
            check(&list.inside(), true);
            if bytes == 16 {
                check(&list.outside(), false);
            }
        }
    }
}
