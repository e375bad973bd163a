//! What is offered to the outside: one bit for each TCP port, UDP port and other IP protocol.

/// Words of 64 bits: 65 536 TCP ports, as many UDP ports, 256 protocols.
pub const WORDS: u32 = 1024 + 1024 + 4;

/// Something that packets can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// Any other IP protocol, by number. That of ICMP or ICMPv6 stands for requests alone, of which
    /// ping's is the best known: errors, answers and neighbour discovery are always taken.
    Protocol(u8),
}

impl Service {
    /// Its word, and the bit in it.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> (u32, u64) {
        let index = match self {
            Self::Tcp(port) => port as u32,
            Self::Udp(port) => (1 << 16) + port as u32,
            Self::Protocol(number) => (2 << 16) + number as u32,
        };
        (index / 64, 1 << (index % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_a_bit_of_its_own() {
        let tcp = (0..=u16::MAX).map(Service::Tcp);
        let udp = (0..=u16::MAX).map(Service::Udp);
        let other = (0..=u8::MAX).map(Service::Protocol);
        let mut words = [0_u64; WORDS as usize];
        for service in tcp.chain(udp).chain(other) {
            let (word, bit) = service.place();
            assert_eq!(words[word as usize] & bit, 0, "{service:?}");
            words[word as usize] |= bit;
        }
        assert!(words.iter().all(|word| *word == u64::MAX));
    }
}
