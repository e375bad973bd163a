//! Makes a frame such as somebody might send, to ask what would become of it.

use std::{fmt, net::IpAddr};

/// A packet to ask about. Addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// What it carries.
    pub transport: Transport,
    /// Bytes of the whole frame from the Ethernet header on; `None`: no more than its headers.
    pub length: Option<u32>,
}

/// The transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, with these flags in the order of the header's bits.
    Tcp {
        /// The sender's port.
        source_port: u16,
        /// The receiver's port.
        port: u16,
        /// SYN is 2, ACK is 16.
        flags: u8,
    },
    /// UDP.
    Udp {
        /// The sender's port.
        source_port: u16,
        /// The receiver's port.
        port: u16,
    },
    /// An ICMP or ICMPv6 echo request.
    Icmp,
}

/// What is wrong with a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The addresses are of different families.
    Families,
    /// The headers alone are longer, by this.
    TooShort(u32),
    /// Longer than [`FRAME_BYTES_MAX`].
    TooLong,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Families => f.write_str("source and destination are of different families"),
            Self::TooShort(headers) => write!(f, "the headers alone take {headers} bytes"),
            Self::TooLong => write!(f, "a frame has {FRAME_BYTES_MAX} bytes at most"),
        }
    }
}

/// The longest frame.
pub const FRAME_BYTES_MAX: u32 = 9216;

impl Probe {
    /// The frame: Ethernet, IP with a TTL of 64, the transport header, zeros. Checksums are left out;
    /// the filter does not look at them.
    ///
    /// # Errors
    /// [`Fault`] if there is no such frame.
    pub fn frame(&self) -> Result<Vec<u8>, Fault> {
        let transport = self.transport.header(self.source.is_ipv4());
        let ip_bytes = if self.source.is_ipv4() { 20 } else { 40 };
        let headers = ETHERNET_BYTES + ip_bytes + transport.len();
        let length = self.length.map_or(headers, |length| length as usize);
        if length < headers {
            return Err(Fault::TooShort(headers as u32));
        }
        if length > FRAME_BYTES_MAX as usize {
            return Err(Fault::TooLong);
        }
        let packet_bytes = (length - ETHERNET_BYTES) as u16;
        let protocol = self.transport.protocol(self.source.is_ipv4());
        let mut frame = vec![0; ETHERNET_BYTES - 2];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend(packet_bytes.to_be_bytes());
                frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
                frame.extend(source.octets().iter().chain(&destination.octets()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((packet_bytes - 40).to_be_bytes());
                frame.extend([protocol, 64]);
                frame.extend(source.octets().iter().chain(&destination.octets()));
            }
            _ => return Err(Fault::Families),
        }
        frame.extend(&transport);
        frame.resize(length, 0);
        if let Transport::Udp { .. } = self.transport {
            let at = headers - transport.len();
            let bytes = (length - at) as u16;
            frame[at + 4..at + 6].copy_from_slice(&bytes.to_be_bytes());
        }
        Ok(frame)
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, .. } = self;
        match self.transport {
            Transport::Tcp { source_port, port, flags } => {
                let flags = show_tcp_flags(flags);
                write!(
                    f,
                    "tcp {flags} from {source} port {source_port} to {destination} port {port}"
                )
            }
            Transport::Udp { source_port, port } => {
                write!(f, "udp from {source} port {source_port} to {destination} port {port}")
            }
            Transport::Icmp => write!(f, "icmp echo from {source} to {destination}"),
        }
    }
}

impl Transport {
    const fn protocol(self, is_v4: bool) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Icmp if is_v4 => 1,
            Self::Icmp => 58,
        }
    }

    fn header(self, is_v4: bool) -> Vec<u8> {
        let ports =
            |source_port: u16, port: u16| [source_port.to_be_bytes(), port.to_be_bytes()].concat();
        match self {
            Self::Tcp { source_port, port, flags } => {
                let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
                [ports(source_port, port), rest.to_vec()].concat()
            }
            Self::Udp { source_port, port } => [ports(source_port, port), vec![0; 4]].concat(),
            Self::Icmp => vec![if is_v4 { 8 } else { 128 }, 0, 0, 0, 0, 1, 0, 1],
        }
    }
}

/// TCP flags by their names, separated by commas: `syn`, `syn,ack`; `none` for none.
///
/// # Errors
/// Names the word that is no flag.
pub fn tcp_flags(text: &str) -> Result<u8, String> {
    if text == "none" {
        return Ok(0);
    }
    text.split(',').try_fold(0, |flags, word| {
        let bit = FLAGS.iter().position(|name| *name == word);
        let bit = bit.ok_or_else(|| format!("'{word}' is none of {}", FLAGS.join(", ")))?;
        Ok(flags | 1 << bit)
    })
}

/// [`tcp_flags`] as it reads them.
#[must_use]
pub fn show_tcp_flags(flags: u8) -> String {
    let set: Vec<_> = (0..8).filter(|bit| flags >> bit & 1 != 0).map(|bit| FLAGS[bit]).collect();
    if set.is_empty() { "none".to_owned() } else { set.join(",") }
}

/// The name of an IP protocol, if it is one that people name.
#[must_use]
pub fn protocol_name(protocol: u8) -> Option<&'static str> {
    Some(match protocol {
        1 => "icmp",
        2 => "igmp",
        6 => "tcp",
        17 => "udp",
        47 => "gre",
        50 => "esp",
        58 => "icmpv6",
        132 => "sctp",
        _ => return None,
    })
}

const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
const ETHERNET_BYTES: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: Transport = Transport::Tcp { source_port: 40_000, port: 443, flags: 2 };
    const UDP: Transport = Transport::Udp { source_port: 40_000, port: 53 };

    fn probe(source: &str, destination: &str, transport: Transport, length: Option<u32>) -> Probe {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Probe { source, destination, transport, length }
    }

    #[test]
    fn frames_are_as_long_as_they_say() {
        let lengths = [(TCP, 54, 74), (UDP, 42, 62), (Transport::Icmp, 42, 62)];
        for (transport, v4, v6) in lengths {
            let four = probe("192.0.2.1", "192.0.2.2", transport, None).frame().unwrap();
            let six = probe("2001:db8::1", "2001:db8::2", transport, None).frame().unwrap();
            assert_eq!((four.len(), six.len()), (v4, v6));
            assert_eq!(u16::from_be_bytes([four[16], four[17]]) as usize, v4 - 14);
            assert_eq!(u16::from_be_bytes([six[18], six[19]]) as usize, v6 - 54);
        }
        let long = probe("192.0.2.1", "192.0.2.2", UDP, Some(1000)).frame().unwrap();
        let words = "udp from 192.0.2.1 port 40000 to 192.0.2.2 port 53";
        assert_eq!(probe("192.0.2.1", "192.0.2.2", UDP, None).to_string(), words);
        assert_eq!((long.len(), u16::from_be_bytes([long[38], long[39]])), (1000, 966));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let faults = [
            (probe("192.0.2.1", "::1", TCP, None), Fault::Families),
            (probe("192.0.2.1", "192.0.2.2", TCP, Some(53)), Fault::TooShort(54)),
            (probe("192.0.2.1", "192.0.2.2", TCP, Some(9217)), Fault::TooLong),
        ];
        for (probe, fault) in faults {
            assert_eq!(probe.frame(), Err(fault));
        }
    }

    #[test]
    fn flags_are_read_as_they_are_shown() {
        for flags in 0..=255 {
            assert_eq!(tcp_flags(&show_tcp_flags(flags)), Ok(flags));
        }
        assert_eq!((tcp_flags("syn"), tcp_flags("syn,ack")), (Ok(2), Ok(18)));
        assert!(tcp_flags("sin").is_err() && tcp_flags("").is_err());
    }
}
