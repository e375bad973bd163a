//! The least rate at which a peer may send or take, and how much longer it may keep us waiting.

/// What a peer has moved of a body, and how long we waited for it. Time in which it was not its
/// turn counts for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    bytes: u64,
    waited_ms: u64,
}

impl Pace {
    /// Notes that so many bytes moved after so long a wait.
    #[must_use]
    pub const fn moved(self, bytes: u64, waited_ms: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_add(bytes),
            waited_ms: self.waited_ms.saturating_add(waited_ms),
        }
    }

    /// The same, with nothing held against it so far.
    #[must_use]
    pub const fn forgiven(self) -> Self {
        Self { waited_ms: 0, ..self }
    }

    /// Bytes that have moved.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Milliseconds that it may keep us waiting from now, beyond which it is slower than `rate_min`
    /// bytes a second after a grace.
    #[must_use]
    pub fn left_ms(self, grace_ms: u64, rate_min: u64) -> u64 {
        if rate_min == 0 {
            return u64::MAX;
        }
        let earned = u128::from(self.bytes) * 1000 / u128::from(rate_min);
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        grace_ms.saturating_add(earned).saturating_sub(self.waited_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_buys_time_and_waiting_spends_it() {
        let fresh = Pace::default();
        assert_eq!(fresh.left_ms(5_000, 1_000), 5_000);
        let late = fresh.moved(2_000, 4_000);
        assert_eq!(late.left_ms(5_000, 1_000), 3_000);
        assert_eq!(late.moved(0, 3_000).left_ms(5_000, 1_000), 0);
        assert_eq!(late.moved(0, 9_000).left_ms(5_000, 1_000), 0);
        assert_eq!(late.moved(0, 9_000).forgiven().left_ms(5_000, 1_000), 7_000);
    }

    #[test]
    fn without_a_rate_nothing_is_too_slow() {
        assert_eq!(Pace::default().moved(1, u64::MAX).left_ms(1, 0), u64::MAX);
        assert_eq!(Pace::default().moved(u64::MAX, 1).left_ms(1, 1), u64::MAX - 1);
    }
}
