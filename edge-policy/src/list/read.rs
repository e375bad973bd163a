//! Reading a network as people and feeds write it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Span, canonical};

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
}
