//! Keeps an operator from locking out himself, the way out, or what the edge stands in front of.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::kernel;

/// An address that had better not be denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// What it is: "your own SSH session", "the gateway", "the upstream 'api'".
    pub what: String,
    /// The address.
    pub address: IpAddr,
}

/// Says whom denying a network would lock out, if anybody.
#[must_use]
pub fn lockout(net: IpNet, protected: &[Protected]) -> Option<String> {
    let hit: Vec<_> = protected
        .iter()
        .filter(|protected| net.contains(&protected.address.to_canonical()))
        .map(|protected| format!("{} ({})", protected.what, protected.address.to_canonical()))
        .collect();
    (!hit.is_empty())
        .then(|| format!("{net} contains {}; --force denies it nevertheless", hit.join(" and ")))
}

/// The host's default gateways, of both families; those that cannot be read are left out.
#[must_use]
pub fn gateways() -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut gateways = parse_v4(&read("/proc/net/route"));
    gateways.extend(parse_v6(&read("/proc/net/ipv6_route")));
    gateways
}

/// The addresses of this host; none if they cannot be read.
#[must_use]
pub fn addresses() -> Vec<IpAddr> {
    kernel::addresses().into_iter().flatten().map(|(_, address)| address).collect()
}

/// Where the SSH sessions of this host come from, as far as the first of its connections tell: of whoever
/// has a connection to one of these ports, logged in or not.
#[must_use]
pub fn sessions(ports: &[u16]) -> Vec<IpAddr> {
    let read = |path| {
        let mut text = String::new();
        let file = fs::File::open(path).map(|file| file.take(SOCKETS_BYTES_MAX));
        // What was read before a fault, or before a character was cut in two, is good.
        let _ = file.and_then(|mut file| file.read_to_string(&mut text));
        text
    };
    let (v4, v6) = (read("/proc/net/tcp"), read("/proc/net/tcp6"));
    let lines = v4.lines().chain(v6.lines());
    let mut peers: Vec<_> = lines.filter_map(|line| parse_session(line, ports)).collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

/// The peer of an established connection to one of these ports. The kernel prints addresses as words, each
/// as it lies in memory.
fn parse_session(line: &str, ports: &[u16]) -> Option<IpAddr> {
    let fields: Vec<_> = line.split_whitespace().take(4).collect();
    let [_, local, peer, "01"] = fields[..] else { return None };
    let (_, port) = local.split_once(':')?;
    ports.contains(&u16::from_str_radix(port, 16).ok()?).then_some(())?;
    let (peer, _) = peer.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(peer.get(at * 8..at * 8 + 8)?, 16).ok();
    Some(match peer.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?.to_ne_bytes())),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?].map(u32::to_ne_bytes);
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::from(octets).to_canonical()
        }
        _ => return None,
    })
}

/// Some ten thousand connections: SSH's were there before a flood.
const SOCKETS_BYTES_MAX: u64 = 2 << 20;

/// The route is in use (`RTF_UP`) and leads through a gateway (`RTF_GATEWAY`).
const UP_AND_GATEWAY: u32 = 0x1 | 0x2;

fn parse_v4(table: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "00000000", gateway, flags, _, _, _, "00000000", ..] = fields[..] else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        // The kernel prints the address as it lies in memory.
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (flags & UP_AND_GATEWAY == UP_AND_GATEWAY)
            .then(|| IpAddr::from(Ipv4Addr::from(gateway.to_ne_bytes())))
    };
    table.lines().filter_map(line).collect()
}

fn parse_v6(table: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "00", _, _, gateway, _, _, _, flags, ..] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let gateway = u128::from_str_radix(gateway, 16).ok()?;
        (flags & UP_AND_GATEWAY == UP_AND_GATEWAY).then(|| IpAddr::from(Ipv6Addr::from(gateway)))
    };
    table.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protected(what: &str, address: &str) -> Protected {
        Protected { what: what.to_owned(), address: address.parse().unwrap() }
    }

    #[test]
    fn whoever_would_be_locked_out_is_named() {
        let all = [
            protected("your own SSH session", "198.51.100.7"),
            protected("the gateway", "192.0.2.1"),
            protected("the upstream 'api'", "::ffff:192.0.2.9"),
        ];
        let told = |net: &str| lockout(net.parse().unwrap(), &all);
        assert_eq!(told("203.0.113.0/24"), None);
        assert_eq!(told("2001:db8::/32"), None);
        let both = told("192.0.2.0/24").unwrap();
        assert!(both.contains("the gateway (192.0.2.1) and the upstream 'api' (192.0.2.9)"));
        assert!(told("0.0.0.0/0").unwrap().contains("your own SSH session (198.51.100.7)"));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn sessions_are_read_from_the_table_of_connections() {
        let line = |local: &str, peer: &str, state: &str| {
            let line = format!("  12: {local} {peer} {state} 00000000:00000000 02:0009 0 0");
            parse_session(&line, &[22, 2222])
        };
        let peer = line("010200C0:0016", "0764A8C0:C350", "01");
        assert_eq!(peer, Some("192.168.100.7".parse().unwrap()));
        let mapped = "0000000000000000FFFF00000764A8C0:C350";
        let local = "00000000000000000000000000000000:0016";
        assert_eq!(line(local, mapped, "01"), peer);
        assert_eq!(line("010200C0:01BB", "0764A8C0:C350", "01"), None);
        assert_eq!(line("010200C0:08AE", "0764A8C0:C350", "01"), peer);
        assert_eq!(line("010200C0:0016", "0764A8C0:C350", "06"), None);
        assert_eq!(parse_session("  sl  local_address rem_address   st", &[22]), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn gateways_are_read_from_the_routing_tables() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                  eth1\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\ngarbage\n";
        assert_eq!(parse_v4(v4), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let zero = "0".repeat(32);
        let gateway = "fe800000000000000000000000000001";
        let v6 = format!(
            "{zero} 00 {zero} 00 {gateway} 00000400 00000001 00000000 00000003     eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             20010db8{:0<24} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n",
            ""
        );
        assert_eq!(parse_v6(&v6), ["fe80::1".parse::<IpAddr>().unwrap()]);
    }
}
