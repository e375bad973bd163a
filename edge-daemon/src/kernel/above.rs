//! Devices above guarded interfaces, such as bridges, bonds, VLANs and VRFs.
//!
//! A program on an interface finds the sockets that are bound to that interface or to none. Those that
//! are bound to a device above it, which is what receives in its place, it cannot find.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use edge_common::map::PolicyFlag;

use super::vlan::{Link, links};

/// What is above the guarded interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Above {
    /// By name.
    pub(super) devices: BTreeSet<String>,
    /// Those that are guarded themselves: the programs on both charge and count what comes by them.
    pub(super) twice: BTreeSet<String>,
    /// Whether one of them is a VRF.
    pub(super) has_vrf: bool,
}

impl Above {
    /// What there is now.
    pub(super) fn find(guarded: &[u32]) -> io::Result<Self> {
        Ok(Self::of(&links()?, guarded))
    }

    fn of(links: &BTreeMap<u32, Link>, guarded: &[u32]) -> Self {
        let mut above = BTreeSet::new();
        loop {
            let is_below = |index: &u32| guarded.contains(index) || above.contains(index);
            let masters = links.iter().filter(|(index, _)| is_below(index));
            let masters = masters.filter_map(|(_, link)| link.master);
            let stacked =
                links.iter().filter(|(_, link)| link.below().is_some_and(|b| is_below(&b)));
            let found: Vec<_> = masters.chain(stacked.map(|(index, _)| *index)).collect();
            let known = above.len();
            above.extend(found);
            if above.len() == known {
                break;
            }
        }
        let found = || above.iter().filter_map(|index| Some((index, links.get(index)?)));
        let name = |(_, link): (&u32, &Link)| link.name.clone();
        Self {
            devices: found().map(name).collect(),
            twice: found().filter(|(index, _)| guarded.contains(index)).map(name).collect(),
            has_vrf: found().any(|(_, link)| link.kind == "vrf"),
        }
    }

    /// What the programs are told of it.
    pub(super) fn flags(&self) -> u32 {
        let bound = if self.devices.is_empty() { 0 } else { PolicyFlag::BOUND_ABOVE };
        bound | if self.has_vrf { PolicyFlag::VRF_ABOVE } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_is_found_however_high_it_stands() {
        let link = |name: &str, kind: &str, on, master| Link {
            name: name.into(),
            kind: kind.into(),
            on,
            master,
        };
        let links = BTreeMap::from([
            // A veth names its other end, on which it does not stand.
            (2, link("eth0", "veth", Some(9), Some(4))),
            (3, link("eth1", "", None, None)),
            (4, link("bond0", "bond", None, None)),
            (5, link("bond0.7", "vlan", Some(4), Some(6))),
            (6, link("blue", "vrf", None, None)),
            (7, link("mac0", "macvlan", Some(3), None)),
            (9, link("peer", "veth", Some(2), None)),
        ]);
        let above = |guarded: &[u32]| {
            let above = Above::of(&links, guarded);
            (above.devices.into_iter().collect::<Vec<_>>().join(" "), above.has_vrf)
        };
        assert_eq!(above(&[2]), ("blue bond0 bond0.7".into(), true));
        assert_eq!(above(&[3]), ("mac0".into(), false));
        // One that is guarded itself is no less above another.
        assert_eq!(above(&[3, 7]), ("mac0".into(), false));
        assert_eq!(Above::of(&links, &[3, 7]).twice, BTreeSet::from(["mac0".to_owned()]));
        assert!(Above::of(&links, &[3, 9]).twice.is_empty());
        assert_eq!(above(&[9]), (String::new(), false));
        assert_eq!(Above::default().flags(), 0);
    }
}
