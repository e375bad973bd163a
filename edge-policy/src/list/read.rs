//! Reading networks as people and feeds write them. Nothing is dropped in silence.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Span, canonical};

/// What a list file held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The networks, in the order of the file, duplicates included.
    pub nets: Vec<IpNet>,
    /// Lines that could not be taken as they stand.
    pub faults: Vec<Fault>,
}

/// A line of a list file that could not be taken as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number, from 1.
    pub line: usize,
    /// What stood there, at most [`TEXT_MAX`] characters of it.
    pub text: String,
    /// What is the matter with it.
    pub what: NetFault,
}

/// Why a text is not taken for a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetFault {
    /// Neither an address nor a CIDR.
    NotANetwork,
    /// Bits are set behind the prefix; this would be the network.
    HostBits(IpNet),
    /// An IPv6 network that contains the mapped addresses, and so would match all of IPv4.
    CoversIpv4,
}

/// Reads an address or a CIDR; an IPv4-mapped IPv6 network is given as IPv4.
///
/// # Errors
/// If it is neither, if bits are set behind the prefix, or if an IPv6 network would cover IPv4.
pub fn parse_net(text: &str) -> Result<IpNet, NetFault> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let net: IpNet = text.parse().map_err(|_| NetFault::NotANetwork)?;
    if Span::of(net).swallows_ipv4() {
        return Err(NetFault::CoversIpv4);
    }
    if net != net.trunc() {
        return Err(NetFault::HostBits(canonical(net)));
    }
    Ok(canonical(net))
}

/// Reads a list file: one address or CIDR a line; what follows `#`, `;` or white space behind it
/// is ignored. A network with host bits is taken without them, and noted.
#[must_use]
pub fn read(text: &str) -> Reading {
    let mut reading = Reading::default();
    // Editors on other systems put a byte order mark in front.
    let text = text.trim_start_matches('\u{feff}');
    for (index, line) in text.lines().enumerate() {
        let content = line.split(['#', ';']).next().unwrap_or_default();
        let Some(word) = content.split_whitespace().next() else { continue };
        let what = match parse_net(word) {
            Ok(net) => {
                reading.nets.push(net);
                continue;
            }
            Err(what) => what,
        };
        if let NetFault::HostBits(net) = what {
            reading.nets.push(net);
        }
        let text = word.chars().take(TEXT_MAX).collect();
        reading.faults.push(Fault { line: index + 1, text, what });
    }
    reading
}

/// Characters of a faulty line that are told.
pub const TEXT_MAX: usize = 80;

impl Fault {
    /// Whether the line was taken all the same, without its host bits.
    #[must_use]
    pub fn is_note(&self) -> bool {
        matches!(self.what, NetFault::HostBits(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: `{}` {}", self.line, self.text.escape_debug(), self.what)
    }
}

impl fmt::Display for NetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANetwork => {
                f.write_str("is neither an address nor a CIDR such as 192.0.2.0/24")
            }
            Self::HostBits(net) => {
                write!(f, "has bits set behind its prefix; the network is {net}")
            }
            Self::CoversIpv4 => f.write_str(
                "would cover all of IPv4 as well; for IPv6 alone, write 2000::/3, and 0.0.0.0/0 for IPv4",
            ),
        }
    }
}

impl std::error::Error for NetFault {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_networks_are_read() {
        assert_eq!(parse_net("192.0.2.7"), Ok(net("192.0.2.7/32")));
        assert_eq!(parse_net("2001:db8::/32"), Ok(net("2001:db8::/32")));
        assert_eq!(parse_net("::ffff:192.0.2.7"), Ok(net("192.0.2.7/32")));
        assert_eq!(parse_net("::ffff:192.0.2.0/120"), Ok(net("192.0.2.0/24")));
        assert_eq!(parse_net("::ffff:0:0/96"), Ok(net("0.0.0.0/0")));
    }

    #[test]
    fn what_is_doubtful_is_refused() {
        assert_eq!(parse_net("192.0.2.7/24"), Err(NetFault::HostBits(net("192.0.2.0/24"))));
        assert_eq!(parse_net("::/0"), Err(NetFault::CoversIpv4));
        assert_eq!(parse_net("::1/64"), Err(NetFault::CoversIpv4));
        assert_eq!(parse_net("::fffe:0:0/95"), Err(NetFault::CoversIpv4));
        for text in ["", "192.0.2", "192.0.2.0/33", "010.0.0.1", "a.example", "1.2.3.4/", " ::1"] {
            assert_eq!(parse_net(text), Err(NetFault::NotANetwork), "{text}");
        }
    }

    #[test]
    fn a_feed_is_read_line_by_line() {
        let feed = "\u{feff}# head\n192.0.2.7\t12\n\n198.51.100.0/24 ; SBL1\r\n203.0.113.9/24\nfoo\n2001:db8::/32#x";
        let reading = read(feed);
        let nets = ["192.0.2.7/32", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"];
        assert_eq!(reading.nets, nets.map(net));
        let lines: Vec<_> = reading.faults.iter().map(|f| (f.line, f.is_note())).collect();
        assert_eq!(lines, [(5, true), (6, false)]);
        assert!(reading.faults[1].to_string().starts_with("line 6: `foo` is neither"));
    }

    proptest! {
        #[test]
        fn every_line_is_a_comment_a_network_or_a_fault(text in "[0-9a-f.:/#; \n]{0,200}") {
            let reading = read(&text);
            let content = |line: &&str| !line.split(['#', ';']).next().unwrap().trim().is_empty();
            let notes = reading.faults.iter().filter(|fault| fault.is_note()).count();
            let told = reading.nets.len() + reading.faults.len() - notes;
            prop_assert_eq!(told, text.lines().filter(content).count());
        }
    }
}
