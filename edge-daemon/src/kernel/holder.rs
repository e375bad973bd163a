//! Who else has a program on an interface.

use nix::sys::socket::SockProtocol;

use super::{
    attach::{IFINFO, RTM_GETLINK},
    bpf,
    netlink::{Netlink, attributes, word},
};

/// The XDP programs on an interface, in words, and what `ip link set` calls the mode of the first;
/// best effort, for a message.
pub(super) fn holder(ifindex: u32) -> Option<(String, &'static str)> {
    let mut found = Vec::new();
    let netlink = Netlink::open(SockProtocol::NetlinkRoute, 0).ok()?;
    let asked = netlink.dump(RTM_GETLINK, &[0; IFINFO], |answer| {
        if word(answer, 4) == Some(ifindex) {
            found.extend(programs_of(answer));
        }
    });
    asked.ok()?;
    let (off, _) = *found.first()?;
    let words = found.iter().map(|(_, id)| match bpf::program_name(*id) {
        name if name.is_empty() => format!("id {id}"),
        name => format!("{name}, id {id}"),
    });
    Some((words.collect::<Vec<_>>().join("; "), off))
}

/// The mode and the id of each XDP program that a link message tells of.
fn programs_of(answer: &[u8]) -> Vec<(&'static str, u32)> {
    let Some(about) = answer.get(IFINFO..) else { return Vec::new() };
    let xdp = attributes(about).filter(|(kind, _)| *kind == IFLA_XDP);
    let ids = xdp.flat_map(|(_, nested)| attributes(nested)).filter_map(|(kind, value)| {
        let (_, mode) = IFLA_XDP_IDS.iter().find(|(of, _)| *of == kind)?;
        Some((*mode, word(value, 0)?))
    });
    ids.collect()
}

const IFLA_XDP: u16 = 43;
/// `IFLA_XDP_DRV_PROG_ID` and so on.
const IFLA_XDP_IDS: [(u16, &str); 3] = [(5, "xdpdrv"), (6, "xdpgeneric"), (7, "xdpoffload")];
