//! A set of networks, which is asked for one without a look at all of them.

use ipnet::IpNet;

use super::canonical;

/// Networks, of which none holds another, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nets(Vec<IpNet>);

impl Nets {
    /// Whether one of them holds all of a network, which is in its canonical form.
    #[must_use]
    pub fn hold(&self, net: IpNet) -> bool {
        let before = self.0.partition_point(|own| *own <= net);
        before.checked_sub(1).is_some_and(|last| self.0[last].contains(&net))
    }

    /// Whether they have an address in common with a network, which is in its canonical form.
    #[must_use]
    pub fn overlap(&self, net: IpNet) -> bool {
        let from = self.0.partition_point(|own| *own < net);
        self.hold(net) || self.0.get(from).is_some_and(|next| net.contains(next))
    }
}

impl FromIterator<IpNet> for Nets {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut nets: Vec<_> = nets.into_iter().map(canonical).collect();
        // By address, then the widest first.
        nets.sort_unstable();
        nets.dedup_by(|next, kept| kept.contains(&*next));
        Self(nets)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::{super::overlap, *};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Nets {
        texts.iter().map(|text| net(text)).collect()
    }

    #[test]
    fn ipv4_is_no_part_of_a_wide_ipv6_network() {
        assert!(nets(&["::ffff:192.0.2.0/120"]).hold(net("192.0.2.7/32")));
        let one = nets(&["192.0.2.7/32"]);
        assert_eq!((one.overlap(net("::/8")), one.overlap(net("192.0.2.0/24"))), (false, true));
    }

    proptest! {
        #[test]
        fn a_network_is_held_by_one_that_contains_it(
            v6: bool,
            own in prop::collection::vec((0_u8..=255, 0_u8..=8), 0..6),
            first: u8,
            bits in 0_u8..=8,
        ) {
            // So few bits that they meet.
            let of = |(last, bits): (u8, u8)| {
                let base = if v6 { "2001:db8::" } else { "192.0.2.0" };
                let base: IpAddr = base.parse().unwrap();
                let (address, width): (IpAddr, u8) = match base {
                    IpAddr::V4(v4) => (std::net::Ipv4Addr::from(u32::from(v4) | u32::from(last)).into(), 32),
                    IpAddr::V6(v6) => (std::net::Ipv6Addr::from(u128::from(v6) | u128::from(last)).into(), 128),
                };
                IpNet::new(address, width - 8 + bits).unwrap().trunc()
            };
            let own: Vec<_> = own.into_iter().map(of).collect();
            let (wanted, set) = (of((first, bits)), own.iter().copied().collect::<Nets>());
            prop_assert_eq!(set.hold(wanted), own.iter().any(|net| net.contains(&wanted)));
            prop_assert_eq!(set.overlap(wanted), own.iter().any(|net| overlap(*net, wanted)));
        }
    }
}
