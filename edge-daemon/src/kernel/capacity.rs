//! How much the lists may hold, and how much they do.

use std::time::Duration;

use aya::EbpfLoader;
use edge_common::{
    list::{FIXED, Line},
    map::{ENTRIES, LISTS},
};
use edge_policy::list::{Class, Successor, Table, Used};
use ipnet::IpNet;

/// How much the lists may hold. The kernel gives the memory when they are loaded: twice 64 bytes a
/// line and twice 16 bytes a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListCapacity {
    /// Networks of both lists.
    pub networks: u32,
    /// Lines of an image.
    pub lines: u32,
}

impl ListCapacity {
    /// Room for so many networks of the ordinary kind, and for twice these.
    #[must_use]
    pub fn of(networks: u32, entries: impl IntoIterator<Item = (Class, IpNet, u64)>) -> Self {
        Draft::new(networks, entries).capacity
    }

    /// Tells the loader how large the tables are to be.
    pub(super) fn size(self, loader: &mut EbpfLoader<'_>) {
        loader.map_max_entries(LISTS, 2 * self.lines);
        // While one list takes the place of another, both have numbers; 0 is none.
        loader.map_max_entries(ENTRIES, 2 * self.networks + 1);
    }
}

/// The lists of a start, compiled before there are tables that hold them: how large these must be is
/// known only then.
pub struct Draft {
    pub(super) next: Successor,
    pub(super) image: Vec<Line>,
    /// The lines of the image that are used.
    pub(super) used: Used,
    /// Room for what is in it, and for as much again.
    pub capacity: ListCapacity,
}

impl Draft {
    /// Of these entries, as [`ListCapacity::of`] makes room for them.
    #[must_use]
    pub fn new(networks: u32, entries: impl IntoIterator<Item = (Class, IpNet, u64)>) -> Self {
        let mut next = Table::succeed(&Table::default(), entries);
        // As the first are numbered. Neighbours of one number would be one range.
        next.number(1..);
        let networks = networks.max(2 * next.table.len() as u32);
        let mut image = vec![[0; 8]; lines_of(networks)];
        let used = loop {
            match next.table.compile(&mut image) {
                Ok(used) => break used,
                Err(edge_policy::list::Full) => image.resize(image.len() * 2, [0; 8]),
            }
        };
        let lines = lines_of(networks).max(2 * used.lines() - FIXED as usize) as u32;
        Self { next, image, used, capacity: ListCapacity { networks, lines } }
    }
}

/// Lines for so many networks, at half a line each: a lone IPv4 address needs an eighth of one, an IPv6 address
/// nearly one and a half, a network that lies among others in a /18 may need four.
fn lines_of(networks: u32) -> usize {
    FIXED as usize + 1_024 + networks as usize / 2
}

/// How the lists are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListSizes {
    /// Entries, of which each network has one in a class.
    pub entries: u64,
    /// Entries that there can be.
    pub entries_max: u64,
    /// Lines of the image in force that are used.
    pub lines: u64,
    /// Lines of an image.
    pub lines_max: u64,
    /// Networks in the overlay.
    pub overlay: u64,
    /// How often an image came in force.
    pub generation: u64,
    /// How long the last one took from its beginning to its last line.
    pub compile: Duration,
    /// Images that could not be made.
    pub failures: u64,
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn there_is_room_for_what_was_measured() {
        let address = |i: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + i)));
        let wide: IpNet = "11.0.0.0/8".parse().unwrap();
        let inside = (0..10_000).map(|i| (Class::Watch, address(i * 128), u64::MAX));
        let listed = || inside.clone().chain([(Class::Deny, wide, u64::MAX)]);
        let capacity = ListCapacity::of(10, listed());
        let mut next = Table::succeed(&Table::default(), listed());
        next.number(1..);
        let used = next.table.compile(&mut vec![[0; 8]; 1 << 18]).unwrap().lines();
        let lines = capacity.lines as usize;
        assert!(lines >= 2 * used - FIXED as usize, "{lines} for {used}");
    }

    /// As config/edged.toml says.
    #[test]
    fn a_lone_address_of_ipv6_takes_the_room_of_three() {
        let lone = |i: u128| Ipv6Addr::from_bits(0x2 << 124 | (i * 0x9e37_79b9_7f4a_7c15) << 30);
        let listed = (1..=10_000).map(|i| (Class::Deny, IpAddr::from(lone(i)).into(), u64::MAX));
        let mut next = Table::succeed(&Table::default(), listed);
        next.number(1..);
        let mut image = vec![[0; 8]; ListCapacity::of(30_000, []).lines as usize];
        next.table.compile(&mut image).unwrap();
    }
}
