//! The source of traffic: an address, or the prefix that stands for one client.

/// An IPv6 address or prefix in network byte order; IPv4 sits at `::ffff:0:0/96`.
///
/// One form for both families: one table, one hash, one code path. Two words, each as it lies in
/// memory: the kernel's programs move and compare it by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Source([u64; 2]);

/// How many bits of an address stand for one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ClientWidth {
    /// Of an IPv4 address: 8 to 32.
    pub v4: u32,
    /// Of an IPv6 address: 1 to 64.
    pub v6: u32,
}

impl ClientWidth {
    /// What one client commonly has: an IPv4 address, an IPv6 /64.
    pub const USUAL: Self = Self { v4: 32, v6: 64 };
}

impl Source {
    /// An IPv4 address in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::of(0, 0xffff << 32 | u32::from_be_bytes(octets) as u64)
    }

    /// An IPv6 address in network byte order.
    #[must_use]
    pub const fn v6(octets: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(octets);
        Self::of((bits >> 64) as u64, bits as u64)
    }

    /// By its first and its last 64 bits.
    #[inline(always)]
    #[must_use]
    pub const fn of(high: u64, low: u64) -> Self {
        Self([high.to_be(), low.to_be()])
    }

    /// By two words as a packet has them.
    #[inline(always)]
    #[must_use]
    pub const fn of_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// The words, as a packet has them.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        self.0
    }

    /// In network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        ((self.high() as u128) << 64 | self.low() as u128).to_be_bytes()
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.high() == 0 && self.low() >> 32 == 0xffff
    }

    /// Whether this is an address of the link alone, `fe80::/10`.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(&self) -> bool {
        self.high() >> 54 == 0xfe80 >> 6
    }

    /// The prefix that stands for one client.
    ///
    /// An IPv6 client commonly owns a /64, so limiting single addresses would limit nothing. A
    /// link-local address stands for itself: all hosts of the link, the router among them, share
    /// its prefix.
    #[inline(always)]
    #[must_use]
    pub const fn client(self, width: ClientWidth) -> Self {
        if self.is_v4() {
            return Self::of(0, self.low() & (u64::MAX << (32_u32.wrapping_sub(width.v4) & 63)));
        }
        self.prefix(width.v6)
    }

    /// The first `bits` of an IPv6 address, 1 to 64; a link-local address whole.
    #[inline(always)]
    #[must_use]
    pub const fn prefix(self, bits: u32) -> Self {
        if self.is_link_local() {
            return self;
        }
        Self::of(self.high() & (u64::MAX << (64_u32.wrapping_sub(bits) & 63)), 0)
    }

    /// [`Self::hash`] of the [`Self::prefix`], told from that of a client of the same bits by the
    /// length.
    #[inline(always)]
    #[must_use]
    pub const fn prefix_hash(self, bits: u32, seed: u64) -> u64 {
        self.prefix(bits).hash(seed ^ (bits as u64) << 32)
    }

    /// A 64-bit hash under a secret `seed`, so that nobody outside can choose colliding sources.
    ///
    /// Two rounds of multiply and fold over the halves (the wyhash construction); the kernel has
    /// no wider arithmetic to spend on it.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self, seed: u64) -> u64 {
        let a = fold(self.high() ^ seed, 0x9e37_79b9_7f4a_7c15);
        fold(a ^ self.low(), seed | 1)
    }

    /// The first 64 bits.
    #[inline(always)]
    #[must_use]
    pub const fn high(&self) -> u64 {
        u64::from_be(self.0[0])
    }

    /// The last 64 bits.
    #[inline(always)]
    #[must_use]
    pub const fn low(&self) -> u64 {
        u64::from_be(self.0[1])
    }
}

/// Multiplies and folds without a 128-bit product, which the BPF instruction set lacks.
#[inline(always)]
const fn fold(value: u64, factor: u64) -> u64 {
    let mut x = value.wrapping_mul(factor);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 29)
}

/// By the address, whatever its words look like here.
impl Ord for Source {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.high(), self.low()).cmp(&(other.high(), other.low()))
    }
}

impl PartialOrd for Source {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl From<core::net::IpAddr> for Source {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Source> for core::net::IpAddr {
    fn from(source: Source) -> Self {
        core::net::Ipv6Addr::from(source.octets()).to_canonical()
    }
}

impl core::fmt::Display for Source {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::net::IpAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.7", "2001:db8::1", "0.0.0.0", "::"] {
            assert_eq!(source(text).to_string(), text);
        }
        assert!(source("192.0.2.7").is_v4());
        assert!(!source("2001:db8::1").is_v4());
    }

    fn width(v4: u32, v6: u32) -> ClientWidth {
        ClientWidth { v4, v6 }
    }

    #[test]
    fn a_client_is_its_prefix() {
        assert_eq!(source("2001:db8:1:2:3::4").client(width(32, 64)), source("2001:db8:1:2::"));
        assert_eq!(source("2001:db8:1:2:3::4").client(width(32, 48)), source("2001:db8:1::"));
        assert_eq!(source("192.0.2.7").client(width(32, 64)), source("192.0.2.7"));
        assert_eq!(source("192.0.2.7").client(width(24, 1)), source("192.0.2.0"));
        assert_eq!(source("192.0.2.7").client(width(8, 1)), source("192.0.0.0"));
    }

    #[test]
    fn a_link_local_client_is_itself() {
        for text in ["fe80::1", "fe80::1:2:3:4", "febf:ffff::9"] {
            assert_eq!(source(text).client(ClientWidth::USUAL), source(text));
            assert_eq!(source(text).client(width(8, 1)), source(text));
        }
        for (text, prefix) in [("fe7f:ffff::1", "fe7f:ffff::"), ("fec0::1", "fec0::")] {
            assert_eq!(source(text).client(ClientWidth::USUAL), source(prefix));
        }
        assert!(!source("254.128.0.1").is_link_local());
    }

    #[test]
    fn hashes_spread_neighbours_over_the_table() {
        let mut sets = std::collections::HashSet::new();
        for i in 0..4096_u32 {
            sets.insert(Source::v4((0x0a00_0000 + i).to_be_bytes()).hash(7) % 4096);
        }
        // 4096 balls into 4096 bins leave 1 - 1/e of the bins filled, 2589 of them.
        assert!((2450..2730).contains(&sets.len()), "{}", sets.len());
    }
}
