//! Signature rules: what an operator drops, limits or counts in an incident, by what a packet
//! looks like.

use crate::{
    Rate,
    map::{FactFlag, Facts, SIGNATURES_MAX},
};

/// A rule. What it does not ask for matches anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Signature {
    /// How often [`Action::LIMIT`] lets it pass.
    pub rate: Rate,
    /// The payload's first bytes.
    pub payload: [u8; 16],
    /// Bytes of the IP packet, from and to.
    pub length: [u32; 2],
    /// Source ports, from and to.
    pub source_ports: [u16; 2],
    /// Destination ports, from and to.
    pub ports: [u16; 2],
    /// Time to live or hop limit, from and to.
    pub ttl: [u8; 2],
    /// The IP protocol, if `asks` for it.
    pub protocol: u8,
    /// TCP flags that are looked at.
    pub tcp_mask: u8,
    /// What the looked-at TCP flags must be.
    pub tcp_flags: u8,
    /// Bytes of `payload` that must match.
    pub payload_bytes: u8,
    /// [`Ask`]s.
    pub asks: u8,
    /// An [`Action`].
    pub action: u8,
}

/// What a signature asks for.
#[allow(non_snake_case, reason = "a namespace of constants")]
pub mod Ask {
    /// The protocol.
    pub const PROTOCOL: u8 = 1;
    /// A port, a TCP flag or a payload: the transport header must be there.
    pub const TRANSPORT: u8 = 2;
    /// A fragment.
    pub const FRAGMENT: u8 = 4;
    /// No fragment.
    pub const WHOLE: u8 = 8;
    /// The limit is each client's own, not one for all.
    pub const PER_CLIENT: u8 = 16;
    /// It is counted as "would drop" and drops nothing.
    pub const MONITOR: u8 = 32;
}

/// What a signature does with a packet that matches.
#[allow(non_snake_case, reason = "a namespace of constants")]
pub mod Action {
    /// Drops it.
    pub const DROP: u8 = 0;
    /// Drops what comes faster than `rate`.
    pub const LIMIT: u8 = 1;
    /// Counts it.
    pub const COUNT: u8 = 2;
}

impl Signature {
    /// Matches every packet, and counts it.
    pub const ANY: Self = Self {
        rate: Rate::OFF,
        payload: [0; 16],
        length: [0, u32::MAX],
        source_ports: [0, u16::MAX],
        ports: [0, u16::MAX],
        ttl: [0, u8::MAX],
        protocol: 0,
        tcp_mask: 0,
        tcp_flags: 0,
        payload_bytes: 0,
        asks: 0,
        action: Action::COUNT,
    };

    /// Whether a packet looks as the rule says.
    #[inline(always)]
    #[must_use]
    pub fn matches(&self, facts: &Facts) -> bool {
        let asks = |ask| self.asks & ask != 0;
        let has = |flag| facts.flags & flag != 0;
        within(facts.ip_length, self.length)
            && within(facts.ttl, self.ttl)
            && (!asks(Ask::PROTOCOL) || facts.protocol == self.protocol)
            && (!asks(Ask::FRAGMENT) || has(FactFlag::FRAGMENT))
            && (!asks(Ask::WHOLE) || !has(FactFlag::FRAGMENT))
            && (!asks(Ask::TRANSPORT)
                || has(FactFlag::TRANSPORT)
                    && within(facts.source_port, self.source_ports)
                    && within(facts.port, self.ports)
                    && facts.tcp_flags & self.tcp_mask == self.tcp_flags
                    && facts.payload_bytes >= self.payload_bytes
                    && starts(&facts.payload, &self.payload, self.payload_bytes))
    }
}

/// Where the signatures in force lie: one number, so that a packet sees either the old or the new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignaturesInForce {
    /// The index in [`map::SIGNATURES`](crate::map::SIGNATURES) of the first: 0 or [`SIGNATURES_MAX`].
    pub first: u32,
    /// How many; at most [`SIGNATURES_MAX`].
    pub count: u32,
}

impl SignaturesInForce {
    /// As `Settings` keep it.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.first << 16 | self.count
    }

    /// Read back.
    #[inline(always)]
    #[must_use]
    pub const fn of(number: u32) -> Self {
        Self { first: number >> 16 & SIGNATURES_MAX, count: number & 0xffff }
    }
}

#[inline(always)]
fn within<T: PartialOrd + Copy>(value: T, [from, to]: [T; 2]) -> bool {
    from <= value && value <= to
}

/// Whether two payloads begin with the same `bytes` bytes, without a branch for each.
#[inline(always)]
fn starts(found: &[u8; 16], wanted: &[u8; 16], bytes: u8) -> bool {
    let differ = u128::from_be_bytes(*found) ^ u128::from_be_bytes(*wanted);
    let (high, low) = ((differ >> 64) as u64, differ as u64);
    match bytes {
        0 => true,
        1..=8 => high >> (64 - 8 * u32::from(bytes)) == 0,
        9..=15 => high == 0 && low >> (128 - 8 * u32::from(bytes)) == 0,
        _ => high == 0 && low == 0,
    }
}

// No implicit padding, which would differ between writes.
const _: () = assert!(size_of::<Signature>() == 16 * 2 + 8 + 8 + 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> Facts {
        Facts {
            flags: FactFlag::V4 | FactFlag::TRANSPORT,
            ip_length: 100,
            ttl: 64,
            protocol: 17,
            source_port: 53,
            port: 4000,
            payload: *b"abcdefgh01234567",
            payload_bytes: 16,
            ..Facts::default()
        }
    }

    #[test]
    fn each_field_can_spoil_the_match() {
        let whole = Signature {
            length: [100, 100],
            ttl: [64, 64],
            protocol: 17,
            source_ports: [53, 53],
            ports: [4000, 4000],
            payload: *b"abcdefgh0123\0\0\0\0",
            payload_bytes: 12,
            asks: Ask::PROTOCOL | Ask::TRANSPORT | Ask::WHOLE,
            ..Signature::ANY
        };
        assert!(Signature::ANY.matches(&facts()) && whole.matches(&facts()));
        for spoilt in [
            Facts { ip_length: 101, ..facts() },
            Facts { ip_length: 99, ..facts() },
            Facts { ttl: 63, ..facts() },
            Facts { protocol: 6, ..facts() },
            Facts { source_port: 54, ..facts() },
            Facts { port: 3999, ..facts() },
            Facts { payload: *b"abcdefgh012X4567", ..facts() },
            Facts { payload_bytes: 11, ..facts() },
            Facts { flags: FactFlag::V4, ..facts() },
            Facts { flags: facts().flags | FactFlag::FRAGMENT, ..facts() },
        ] {
            assert!(!whole.matches(&spoilt), "{spoilt:?}");
            assert!(Signature::ANY.matches(&spoilt));
        }
    }

    #[test]
    fn tcp_flags_are_looked_at_through_the_mask() {
        let syn_only =
            Signature { tcp_mask: 0x12, tcp_flags: 0x02, asks: Ask::TRANSPORT, ..Signature::ANY };
        for (flags, matches) in [(0x02, true), (0xc2, true), (0x12, false), (0x10, false)] {
            assert_eq!(syn_only.matches(&Facts { tcp_flags: flags, ..facts() }), matches);
        }
    }

    proptest! {
        #[test]
        fn starts_agrees_with_slices(found: [u8; 16], wanted: [u8; 16], same in 0_usize..=16, bytes in 0_u8..=16) {
            let mut wanted = wanted;
            wanted[..same].copy_from_slice(&found[..same]);
            let expected = found[..usize::from(bytes)] == wanted[..usize::from(bytes)];
            prop_assert_eq!(starts(&found, &wanted, bytes), expected);
        }
    }
}
