//! The SYN-flood defence: which listeners it protects, and what it may promise in their name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, MapData},
};
use edge_common::{
    Rate,
    cookie::{ANY_PORT, Keep, LISTENERS_MAX, Listener, Pressure, UNSOLICITED_SAMPLE},
    map::{self, PolicyFlag, Settings},
};
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    sys::socket::SockaddrStorage,
};

use crate::clock::boot_ns;

use super::{KernelError, maps, pins::path_error, vlan};

/// What is done against floods of SYNs and of TCP packets that belong to no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defence {
    /// Whether SYNs are answered with cookies.
    pub syn_cookies: When,
    /// Whether TCP packets of no connection are refused.
    pub unsolicited: When,
    /// How many of those a second are a flood.
    pub unsolicited_rate: Rate,
    /// What is protected; the unspecified address stands for every one of its family.
    pub listeners: Vec<SocketAddr>,
    /// The guarded interfaces, by name.
    pub interfaces: Vec<String>,
}

/// When a defence is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Never.
    Off,
    /// While there is a flood.
    Auto,
    /// Always.
    Always,
}

impl Defence {
    /// None.
    pub const OFF: Self = Self {
        syn_cookies: When::Off,
        unsolicited: When::Off,
        unsolicited_rate: Rate::OFF,
        listeners: Vec::new(),
        interfaces: Vec::new(),
    };

    /// Writes the defence's part of the settings; the flags to set.
    pub(super) fn write(&self, settings: &mut Settings) -> u32 {
        settings.unsolicited = self.unsolicited_rate.sampled(UNSOLICITED_SAMPLE);
        let flags = [
            (self.syn_cookies != When::Off, PolicyFlag::SYN_COOKIES),
            (self.unsolicited == When::Auto, PolicyFlag::UNSOLICITED),
            (self.unsolicited == When::Always, PolicyFlag::UNSOLICITED_ALWAYS),
        ];
        flags.iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag)
    }

    /// Checks that the host can do what is asked of it.
    pub(super) fn check(&self) -> Result<(), KernelError> {
        if self.syn_cookies != When::Off {
            match number("tcp_syncookies")? {
                found if found != 2 && self.syn_cookies == When::Always => {
                    return Err(KernelError::SynCookies { found });
                }
                0 => tracing::warn!("net.ipv4.tcp_syncookies is 0: there will be no SYN cookies"),
                _ if number("tcp_timestamps")? != SHOWN => tracing::warn!(
                    "net.ipv4.tcp_timestamps is not 2: connections that SYN cookies make have no window scaling, SACK and ECN"
                ),
                _ => {}
            }
        }
        Ok(())
    }

    /// What the host says to it.
    pub(super) fn survey(&self) -> Result<Survey, KernelError> {
        Ok(Survey { keep: keep()?, protected: self.protected()? })
    }

    /// What it protects on the addresses that the host has now.
    fn protected(&self) -> Result<Protected, KernelError> {
        let vlans = match self.syn_cookies {
            When::Off => BTreeMap::new(),
            _ => vlan::hidden(&self.interfaces).map_err(KernelError::Vlans)?,
        };
        let (mut seen, mut unseen) = (BTreeSet::new(), BTreeSet::new());
        for (interface, address) in addresses().map_err(KernelError::Addresses)? {
            let is_hidden = vlans.contains_key(&interface);
            if is_hidden { &mut unseen } else { &mut seen }.insert(address);
        }
        let mut listeners = self.expand(&seen);
        let hidden = self.expand(&unseen).difference(&listeners).count();
        seen.append(&mut unseen);
        let room = (LISTENERS_MAX as usize).saturating_sub(listeners.len());
        if self.unsolicited != When::Off && seen.len() <= room && !is_translated() {
            let any_port = |a: &IpAddr| Listener { address: (*a).into(), port: ANY_PORT };
            listeners.extend(seen.iter().map(any_port));
        }
        Ok(Protected { listeners, hidden, vlans })
    }

    /// What is protected on a host of these addresses.
    fn expand(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<Listener> {
        let on = |listener: &SocketAddr| {
            let (ip, port) = (listener.ip(), listener.port());
            let matches = move |address: &&IpAddr| {
                **address == ip || ip.is_unspecified() && address.is_ipv4() == ip.is_ipv4()
            };
            let listener = move |a: &IpAddr| Listener { address: (*a).into(), port: port.into() };
            addresses.iter().filter(matches).map(listener)
        };
        self.listeners.iter().flat_map(on).collect()
    }
}

/// What the host says to a defence.
pub(super) struct Survey {
    /// What SYN-ACKs may agree to.
    pub(super) keep: u32,
    pub(super) protected: Protected,
}

/// What a defence protects, by the addresses of the host.
pub(super) struct Protected {
    /// With [`ANY_PORT`] among them for each address at which packets of no connection are refused whatever
    /// their port.
    listeners: BTreeSet<Listener>,
    /// Listeners that are left out: they are on VLANs whose tags are hidden.
    hidden: usize,
    /// Those VLANs, each with the interface that hides its tags.
    vlans: BTreeMap<String, String>,
}

/// The listeners in the kernel's table.
pub struct Listeners {
    table: HashMap<MapData, Listener, Pressure>,
    alarm: Array<MapData, u64>,
    left_out: LeftOut,
}

/// How many listeners are not protected, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The table has no room for them.
    pub full: usize,
    /// They are on VLANs whose tags the card hides.
    pub hidden: usize,
}

impl Listeners {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        let table = maps::take(programs, map::LISTENERS)?;
        Ok(Self { table, alarm: maps::take(programs, map::ALARM)?, left_out: LeftOut::default() })
    }

    pub(super) fn duplicate(&self) -> Result<Self, KernelError> {
        let table = maps::again(map::LISTENERS, self.table.map())?;
        let alarm = maps::again(map::ALARM, self.alarm.map())?;
        Ok(Self { table, alarm, left_out: self.left_out })
    }

    /// Protects what the defence names on the addresses that the host has now, and nothing else.
    /// What does not fit the table is left to the kernel's own cookies.
    ///
    /// # Errors
    /// [`KernelError::Addresses`] if the host does not tell them, [`KernelError::Table`] if the
    /// kernel refuses.
    pub fn follow(&mut self, defence: &Defence) -> Result<(), KernelError> {
        self.protect(&defence.protected()?)
    }

    pub(super) fn protect(&mut self, protected: &Protected) -> Result<(), KernelError> {
        let Protected { listeners: wanted, hidden, vlans } = protected;
        let held = self.table.keys().collect::<Result<BTreeSet<_>, _>>();
        let held = held.map_err(maps::table_error(map::LISTENERS))?;
        for listener in held.difference(wanted) {
            let removed = maps::absent(self.table.remove(listener));
            removed.map_err(maps::table_error(map::LISTENERS))?;
        }
        let kept = held.intersection(wanted).count();
        let room = (LISTENERS_MAX as usize).saturating_sub(kept);
        for listener in wanted.difference(&held).take(room) {
            let added = self.table.insert(listener, Pressure::default(), 0);
            added.map_err(maps::table_error(map::LISTENERS))?;
        }
        let full = wanted.len().saturating_sub(LISTENERS_MAX as usize);
        self.tell(LeftOut { full, hidden: *hidden }, vlans);
        Ok(())
    }

    /// Logs what has begun or ended.
    fn tell(&mut self, now: LeftOut, vlans: &BTreeMap<String, String>) {
        let before = std::mem::replace(&mut self.left_out, now);
        match (before.full, now.full) {
            (0, 1..) => {
                let room = LISTENERS_MAX;
                tracing::warn!(left_out = now.full, room, "too many listeners to protect them all");
            }
            (1.., 0) => tracing::info!("there is room for all listeners again"),
            _ => {}
        }
        match (before.hidden, now.hidden) {
            (0, 1..) => tracing::warn!(
                left_out = now.hidden,
                ?vlans,
                "no SYN cookies for listeners on VLANs whose tags the card takes off: ethtool -K IFACE rxvlan off"
            ),
            (1.., 0) => tracing::info!("the tags of VLANs are seen: their listeners are protected"),
            _ => {}
        }
    }

    /// Listeners that are not protected.
    #[must_use]
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// Listeners whose SYNs are answered with cookies now.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn engaged(&self) -> Result<Vec<SocketAddr>, KernelError> {
        let (now_ns, mut engaged) = (boot_ns(), Vec::new());
        for item in &self.table {
            let (listener, pressure) = item.map_err(maps::table_error(map::LISTENERS))?;
            if now_ns < pressure.until_ns {
                let port = u16::try_from(listener.port).unwrap_or_default();
                engaged.push(SocketAddr::new(listener.address.into(), port));
            }
        }
        engaged.sort_unstable();
        Ok(engaged)
    }

    /// Whether TCP packets of no connection are refused now, because there are too many.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn is_alarm(&self) -> Result<bool, KernelError> {
        Ok(boot_ns() < self.alarm.get(&0, 0).map_err(maps::table_error(map::ALARM))?)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.table.keys().filter(Result::is_ok).count() as u64
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether connections may end at this host's addresses without a socket of its own: those whose
/// addresses it translates, as for containers, and those that IPVS hands on. Either is followed by a table of
/// this network namespace.
fn is_translated() -> bool {
    let tracked = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    tracked.is_ok_and(|count| count.trim() != "0")
        || Path::new("/proc/thread-self/net/ip_vs").exists()
}

/// The addresses of this host, each with its interface.
///
/// # Errors
/// If the host does not tell them.
pub fn addresses() -> nix::Result<Vec<(String, IpAddr)>> {
    let of = |found: InterfaceAddress| {
        Some((device(&found.interface_name).to_owned(), ip(&found.address?)?))
    };
    Ok(getifaddrs()?.filter_map(of).collect())
}

/// The interface of an address, which may have a label of its own: `eth0:1`.
fn device(label: &str) -> &str {
    label.split_once(':').map_or(label, |(device, _)| device)
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
}

/// What this network namespace lets a SYN-ACK agree to: [`Keep`]s.
///
/// The kernel keeps the sense of its timestamps to itself unless they begin at its own clock.
fn keep() -> Result<u32, KernelError> {
    let scale = window_scale(number("tcp_rmem")?, number("../core/rmem_max").unwrap_or(0));
    let flags = [
        (number("tcp_timestamps")? == SHOWN, Keep::TIMESTAMPS),
        (number("tcp_sack")? != 0, Keep::SACK),
        (number("tcp_window_scaling")? != 0, Keep::WINDOW_SCALE),
        (number("tcp_ecn")? != 0, Keep::ECN),
    ];
    let keep = flags.iter().filter(|(on, _)| *on).fold(0, |keep, (_, flag)| keep | flag);
    Ok(keep | scale << Keep::SCALE_SHIFT)
}

/// Of `tcp_timestamps`: they begin at the kernel's own clock.
const SHOWN: u64 = 2;

/// The window scale that the kernel picks (`tcp_select_initial_window`), by the largest buffers.
fn window_scale(tcp_rmem_max: u64, rmem_max: u64) -> u32 {
    tcp_rmem_max.max(rmem_max).max(1).ilog2().saturating_sub(15).min(14)
}

/// The last number of a setting under `net.ipv4`.
fn number(name: &str) -> Result<u64, KernelError> {
    let path = Path::new("/proc/sys/net/ipv4").join(name);
    let text = fs::read_to_string(&path).map_err(path_error("read", &path))?;
    let number = text.split_whitespace().last().and_then(|word| word.parse().ok());
    number.ok_or_else(|| path_error("understand", &path)(std::io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(listeners: &[&str], addresses: &[&str]) -> Vec<String> {
        let listeners = listeners.iter().map(|text| text.parse().unwrap()).collect();
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let defence = Defence { listeners, ..Defence::OFF };
        let text = |l: &Listener| format!("{} {}", l.address, l.port);
        defence.expand(&addresses).iter().map(text).collect()
    }

    #[test]
    fn an_unspecified_address_is_every_one_of_its_family() {
        let host = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
        assert_eq!(expanded(&["0.0.0.0:443"], &host), ["192.0.2.1 443", "192.0.2.2 443"]);
        assert_eq!(expanded(&["[::]:443"], &host), ["2001:db8::1 443"]);
        assert_eq!(
            expanded(&["192.0.2.2:80", "[::]:22"], &host),
            ["192.0.2.2 80", "2001:db8::1 22"]
        );
    }

    #[test]
    fn an_address_is_its_interfaces_whatever_its_label() {
        assert_eq!(["eth0.7", "eth0.7:1", "lo:"].map(device), ["eth0.7", "eth0.7", "lo"]);
    }

    #[test]
    fn what_is_not_the_hosts_is_not_protected() {
        assert!(expanded(&["192.0.2.9:443"], &["192.0.2.1"]).is_empty());
    }

    #[test]
    fn the_window_scale_is_the_kernels() {
        for (tcp_rmem, rmem, scale) in [
            (6_291_456, 212_992, 7),
            (33_554_432, 4_194_304, 10),
            (65_535, 0, 0),
            (0, 0, 0),
            (u64::MAX, 0, 14),
        ] {
            assert_eq!(window_scale(tcp_rmem, rmem), scale);
        }
    }
}
