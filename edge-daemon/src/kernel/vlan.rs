//! VLANs on guarded interfaces: whether the program sees their tags.
//!
//! A card may take the tag off a frame before the program gets it. What the program answers by
//! itself then goes out without one, and to nobody.

use std::{collections::BTreeMap, io};

use nix::sys::socket::SockProtocol;

use super::{
    asked::strips_tags,
    attach::{IFINFO, RTM_GETLINK},
    netlink::{Netlink, attributes, word},
};

/// What is known of an interface.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) name: String,
    /// What it is, in the kernel's word; nothing for a card.
    pub(super) kind: String,
    /// The index of the interface that it names as its own.
    pub(super) on: Option<u32>,
    /// The index of the bridge, the bond or the VRF that it is a part of.
    pub(super) master: Option<u32>,
}

impl Link {
    /// The index of the interface that it stands on: its part of what comes in there.
    pub(super) fn below(&self) -> Option<u32> {
        let kinds = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"];
        self.on.filter(|_| kinds.contains(&self.kind.as_str()))
    }
}

/// The interfaces of this network namespace, by index.
pub(super) fn links() -> io::Result<BTreeMap<u32, Link>> {
    let mut links = BTreeMap::new();
    let netlink = Netlink::open(SockProtocol::NetlinkRoute, 0)?;
    netlink.dump(RTM_GETLINK, &[0; IFINFO], |answer| {
        links.extend(word(answer, 4).map(|index| (index, link(answer))));
    })?;
    Ok(links)
}

/// The VLANs of which a guarded interface hides the tags, by name, each with that interface.
pub(super) fn hidden(guarded: &[String]) -> io::Result<BTreeMap<String, String>> {
    // What cannot be asked is no card that does so.
    let hides =
        |name: &str| guarded.iter().any(|g| g == name) && strips_tags(name).unwrap_or_default();
    Ok(resolve(&links()?, hides))
}

fn resolve(links: &BTreeMap<u32, Link>, hides: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let below = |link: &Link| links.get(&link.on.filter(|_| link.kind == "vlan")?);
    let hidden = links.values().filter_map(|link| {
        // A VLAN may be on another.
        let chain = std::iter::successors(below(link), |link| below(link)).take(DEPTH_MAX);
        let by = chain.map(|link| &link.name).find(|name| hides(name))?;
        Some((link.name.clone(), by.clone()))
    });
    hidden.collect()
}

/// What a message tells of an interface.
fn link(answer: &[u8]) -> Link {
    let (mut link, mut is_on_foreign) = (Link::default(), false);
    for (kind, value) in attributes(answer.get(IFINFO..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_LINK => link.on = word(value, 0),
            IFLA_MASTER => link.master = word(value, 0),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, kind)| text(kind)).unwrap_or_default();
            }
            IFLA_LINK_NETNSID => is_on_foreign = true,
            _ => {}
        }
    }
    // That index is another namespace's.
    link.on.take_if(|_| is_on_foreign);
    link
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
/// More VLANs on each other than the kernel allows.
const DEPTH_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_is_hidden_by_whatever_is_below_it() {
        let link = |name: &str, on| {
            let kind = if name == "eth0" { "" } else { "vlan" };
            Link { name: name.into(), kind: kind.into(), on, master: None }
        };
        let links = BTreeMap::from([
            (2, link("eth0", None)),
            (3, link("eth0.7", Some(2))),
            (4, link("inner", Some(3))),
            (5, link("eth1.7", Some(9))),
            (6, link("ring", Some(6))),
        ]);
        let hidden = resolve(&links, |name| name == "eth0");
        let eth0 = |name: &str| (name.to_owned(), "eth0".to_owned());
        assert_eq!(hidden, BTreeMap::from([eth0("eth0.7"), eth0("inner")]));
        assert!(resolve(&links, |_| false).is_empty());
    }

    #[test]
    fn the_kernel_can_be_asked() {
        assert!(!strips_tags("lo").unwrap());
        assert!(strips_tags("none such").is_err());
        assert!(hidden(&["lo".to_owned()]).unwrap().is_empty());
    }

    #[test]
    fn a_message_names_a_vlan_and_what_it_is_on() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let info = attribute(IFLA_INFO_KIND, b"vlan\0");
        let of = |info: &[u8]| {
            let parts = [
                vec![0; IFINFO],
                attribute(IFLA_IFNAME, b"eth0.7\0"),
                attribute(IFLA_LINK, &2_u32.to_ne_bytes()),
                attribute(IFLA_MASTER, &5_u32.to_ne_bytes()),
                attribute(IFLA_LINKINFO, info),
            ];
            link(&parts.concat())
        };
        assert_eq!((of(&info).name.as_str(), of(&info).below()), ("eth0.7", Some(2)));
        assert_eq!(of(&info).master, Some(5));
        assert_eq!(of(&attribute(IFLA_INFO_KIND, b"veth\0")).below(), None);
        assert_eq!(link(&[0; 3]).below(), None);
    }
}
