//! Signature rules: what an operator drops, limits or counts in an incident, by what a packet
//! looks like.

use crate::{
    Rate,
    map::{Cells, FactFlag, Facts, KIND_SETS, SIGNATURES_FIRST, SIGNATURES_MAX},
};

/// A rule. What it does not ask for matches anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Signature {
    /// How often [`Action::LIMIT`] lets it pass.
    pub rate: Rate,
    /// Where the buckets of that limit lie; see [`share_cells`].
    pub cells: Cells,
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
        cells: Cells { first: 0, mask: 0 },
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

/// Gives each limit among the signatures cells of its own: one set to a limit for all, and to the
/// limits for each client as many as there are for them together, in equal parts.
pub fn share_cells(signatures: &mut [Signature]) {
    let is_limit = |s: &Signature| s.action == Action::LIMIT;
    let is_per_client = |s: &Signature| s.asks & Ask::PER_CLIENT != 0;
    let sharing = signatures.iter().filter(|s| is_limit(s) && is_per_client(s)).count() as u32;
    let part = KIND_SETS / sharing.next_power_of_two();
    let (mut shared, mut single) = (SIGNATURES_FIRST, SIGNATURES_FIRST + KIND_SETS);
    for signature in signatures {
        signature.cells = Cells::default();
        if is_limit(signature) && is_per_client(signature) {
            signature.cells = Cells { first: shared, mask: part - 1 };
            shared += part;
        } else if is_limit(signature) {
            signature.cells = Cells { first: single, mask: 0 };
            single += 1;
        }
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
const _: () = assert!(size_of::<Signature>() == 16 + 8 + 16 + 8 + 8 + 8);
// The least part is more than nothing, and the table holds them all.
const _: () = assert!(KIND_SETS >= SIGNATURES_MAX && SIGNATURES_MAX.is_power_of_two());

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::map::{CELLS_MAX, Kind};

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
        fn no_two_limits_share_a_set(kinds in proptest::collection::vec(0_u8..4, 0..=64)) {
            let limit = Signature { action: Action::LIMIT, ..Signature::ANY };
            let each = Signature { asks: Ask::PER_CLIENT, ..limit };
            let some = [Signature::ANY, Signature { action: Action::DROP, ..each }, limit, each];
            let mut signatures: std::vec::Vec<_> =
                kinds.iter().map(|kind| some[usize::from(*kind)]).collect();
            share_cells(&mut signatures);
            let kinds = Kind::ALL.map(Kind::cells);
            let limits = signatures.iter().filter(|s| s.action == Action::LIMIT).map(|s| s.cells);
            let mut cells: std::vec::Vec<_> = kinds.into_iter().chain(limits).collect();
            cells.sort_by_key(|cells| cells.first);
            let end = |cells: &Cells| cells.set(u64::MAX) + 1;
            prop_assert!(cells.is_sorted_by(|a, b| end(a) <= b.first));
            prop_assert!(cells.iter().all(|cells| end(cells) <= CELLS_MAX));
            // Limits for each client have at least half of what there is for them.
            let sets = |s: &Signature| s.cells.mask + 1;
            let shared = signatures.iter().filter(|s| s.asks == Ask::PER_CLIENT);
            let shared: u32 = shared.filter(|s| s.action == Action::LIMIT).map(sets).sum();
            prop_assert!(shared == 0 || shared > KIND_SETS / 2);
        }

        #[test]
        fn starts_agrees_with_slices(found: [u8; 16], wanted: [u8; 16], same in 0_usize..=16, bytes in 0_u8..=16) {
            let mut wanted = wanted;
            wanted[..same].copy_from_slice(&found[..same]);
            let expected = found[..usize::from(bytes)] == wanted[..usize::from(bytes)];
            prop_assert_eq!(starts(&found, &wanted, bytes), expected);
        }
    }
}
