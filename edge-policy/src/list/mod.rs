//! Lists of networks: what an operator or a feed wrote, and what the kernel is given of it.
//!
//! An address belongs to every network of a list that covers it, and the latest-ending of them
//! decides. IPv4 and its mapped form `::ffff:0:0/96` are one space, in which IPv6 networks, however
//! wide, have no part.

mod book;
pub mod decisions;
mod ends;
pub mod feed;
mod image;
mod nets;
mod numbers;
mod prefixes;
mod read;
pub mod reasons;
mod table;
mod view;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use book::{Adopted, Book, Change, Refused, Snapshot, Write};
pub use edge_common::list::Class;
pub use ends::{Ends, differs};
pub use image::{Full, Used};
pub use nets::Nets;
pub use numbers::{NoNumber, Numbers};
pub use read::{NetFault, parse_net};
pub use table::{Successor, Table};
pub use view::View;

/// The `until` of an entry that never ends.
pub const FOREVER: u64 = u64::MAX;

/// The network in the one form it has in tables: an IPv4-mapped IPv6 network is IPv4.
#[must_use]
pub fn canonical(net: IpNet) -> IpNet {
    Span::of(net).net()
}

/// Whether two networks have an address in common.
#[must_use]
pub fn overlap(one: IpNet, other: IpNet) -> bool {
    let (one, other) = (canonical(one), canonical(other));
    one.contains(&other) || other.contains(&one)
}

/// A network in the common 128-bit space; ordered by address, then the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    first: u128,
    bits: u8,
}

/// The place of IPv4 in the common space.
const IPV4: Span = Span { first: 0xffff << 32, bits: 96 };

impl Span {
    fn of(net: IpNet) -> Self {
        match net.trunc() {
            IpNet::V4(v4) => Self::from_v4(v4.network().into(), v4.prefix_len()),
            IpNet::V6(v6) => Self { first: v6.network().into(), bits: v6.prefix_len() },
        }
    }

    fn from_v4(first: u32, bits: u8) -> Self {
        Self { first: IPV4.first | u128::from(first), bits: IPV4.bits + bits }
    }

    /// The address and the length of an IPv4 network.
    fn v4(self) -> Option<(u32, u8)> {
        IPV4.contains(self).then(|| (self.first as u32, self.bits - IPV4.bits))
    }

    fn net(self) -> IpNet {
        match self.v4() {
            Some((first, bits)) => Ipv4Net::new_assert(Ipv4Addr::from(first), bits).into(),
            None => Ipv6Net::new_assert(Ipv6Addr::from(self.first), self.bits).into(),
        }
    }

    fn contains(self, other: Self) -> bool {
        self.bits <= other.bits && mask(other.first, self.bits) == self.first
    }

    /// The networks of its family that contain it, itself among them.
    fn covers(self) -> impl Iterator<Item = Self> {
        let widest = if self.v4().is_some() { IPV4.bits } else { 0 };
        (widest..=self.bits).map(move |bits| Self { first: mask(self.first, bits), bits })
    }

    /// Whether this is an IPv6 network that is wider than IPv4 and contains it.
    fn swallows_ipv4(self) -> bool {
        self.bits < IPV4.bits && self.contains(IPV4)
    }
}

/// The first `bits` bits of an address, the others zero.
fn mask(address: u128, bits: u8) -> u128 {
    let host = 128 - u32::from(bits);
    address & u128::MAX.checked_shl(host).unwrap_or(0)
}

#[cfg(test)]
mod tests;
