//! What is reachable from outside, as the configuration names it.

use std::fmt;

use edge_common::service::Service;

/// Something that is reachable from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// TCP ports, first and last.
    Tcp(u16, u16),
    /// UDP ports, first and last.
    Udp(u16, u16),
    /// Echo requests of both families.
    Ping,
    /// Another IP protocol.
    Protocol(u8),
}

impl Offer {
    /// One TCP port.
    #[must_use]
    pub const fn port(port: u16) -> Self {
        Self::Tcp(port, port)
    }

    /// The same, one by one.
    #[must_use]
    pub fn services(self) -> Vec<Service> {
        match self {
            Self::Tcp(first, last) => (first..=last).map(Service::Tcp).collect(),
            Self::Udp(first, last) => (first..=last).map(Service::Udp).collect(),
            Self::Ping => vec![Service::Protocol(1), Service::Protocol(58)],
            Self::Protocol(number) => vec![Service::Protocol(number)],
        }
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(first, last) if first == last => write!(f, "tcp/{first}"),
            Self::Tcp(first, last) => write!(f, "tcp/{first}-{last}"),
            Self::Udp(first, last) if first == last => write!(f, "udp/{first}"),
            Self::Udp(first, last) => write!(f, "udp/{first}-{last}"),
            Self::Ping => f.write_str("ping"),
            Self::Protocol(number) => write!(f, "proto/{number}"),
        }
    }
}
