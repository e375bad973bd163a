//! Rates as an operator writes them: "600/m", with a burst.

use std::fmt;

use edge_common::Rate;
use edge_common::limit::TICK_NS;

use crate::limit::meter::Window;

/// Why a text is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateFault {
    /// Not `COUNT/UNIT`.
    Form,
    /// The count is not a whole number above zero.
    Count,
    /// The unit is none of `s`, `m`, `h` and `d`.
    Unit,
    /// The burst is zero.
    Burst,
    /// The limiter cannot keep it: a unit every 8 ns at most, a burst within 12 days at least.
    Range,
}

/// Reads `COUNT/UNIT` or `off`; `burst` is how many may come at once, by default the count.
///
/// # Errors
/// If it is neither, or out of the limiter's range.
pub fn parse(text: &str, burst: Option<u64>) -> Result<Rate, RateFault> {
    if text == "off" {
        return Ok(Rate::OFF);
    }
    let (count, unit) = split(text)?;
    let period_ns = period_ns(unit).ok_or(RateFault::Unit)?;
    let burst = burst.unwrap_or(count);
    if burst == 0 {
        return Err(RateFault::Burst);
    }
    Rate::new(count, period_ns, burst).ok_or(RateFault::Range)
}

/// Reads `COUNT/WINDOW`: a count, above zero, and a window of the calendar that is a unit, some of
/// them ("100/15m") or a "month".
///
/// # Errors
/// If it is not.
pub fn window(text: &str) -> Result<(u64, Window), RateFault> {
    let (count, window) = split(text)?;
    if window == "month" {
        return Ok((count, Window::Month));
    }
    let unit = window.trim_start_matches(|c: char| c.is_ascii_digit());
    let times = match &window[..window.len() - unit.len()] {
        "" => Some(1),
        times => whole(times),
    };
    let length = times.and_then(|times| times.checked_mul(period_ns(unit)?));
    let length = length.filter(|ns| (1..=WINDOW_NS_MAX).contains(ns)).ok_or(RateFault::Unit)?;
    Ok((count, Window::Ns(length)))
}

/// The count, and what it is a rate of.
fn split(text: &str) -> Result<(u64, &str), RateFault> {
    let (count, unit) = text.split_once('/').ok_or(RateFault::Form)?;
    let count = whole(count).filter(|count| *count > 0).ok_or(RateFault::Count)?;
    Ok((count, unit))
}

fn period_ns(unit: &str) -> Option<u64> {
    UNITS.into_iter().find(|(name, _)| *name == unit).map(|(_, ns)| ns)
}

/// Writes a rate so that [`parse`] would read the same one: "10/s, burst 100" or "off".
#[must_use]
pub fn print(rate: Rate) -> String {
    if rate.is_off() {
        return "off".into();
    }
    let counts = UNITS.map(|(unit, period_ns)| (unit, period_ns / TICK_NS));
    let even = counts.iter().find(|(_, period)| period.is_multiple_of(rate.interval));
    // What does not divide evenly was rounded down by `Rate::new`; the largest count that rounds
    // to the same interval is as good as the one it came from.
    let near = || {
        counts.iter().find(|(_, p)| *p >= rate.interval && p / (p / rate.interval) == rate.interval)
    };
    match even.or_else(near) {
        Some((unit, period)) => {
            format!("{}/{unit}, burst {}", period / rate.interval, rate.burst())
        }
        None => format!("1/{} ns, burst {}", rate.interval * TICK_NS, rate.burst()),
    }
}

const SECOND_NS: u64 = 1_000_000_000;

const UNITS: [(&str, u64); 4] =
    [("s", SECOND_NS), ("m", 60 * SECOND_NS), ("h", 3600 * SECOND_NS), ("d", 86_400 * SECOND_NS)];

/// The longest window that is not a month: a year.
const WINDOW_NS_MAX: u64 = 366 * 86_400 * SECOND_NS;

/// Digits only: `str::parse` would also take a plus sign.
fn whole(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for RateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "is not a rate such as \"600/m\", nor \"off\"",
            Self::Count => "does not count in whole numbers above zero, as \"600/m\" does",
            Self::Unit => "has a unit other than s, m, h and d",
            Self::Burst => "has a burst of zero, which admits nothing",
            Self::Range => {
                "is beyond the limiter: at most 125000000/s, and a burst that drains within 12 days"
            }
        })
    }
}

impl std::error::Error for RateFault {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read() {
        assert_eq!(parse("600/m", Some(100)), Ok(Rate::new(600, 60 * SECOND_NS, 100).unwrap()));
        assert_eq!(parse("5/s", None).unwrap().burst(), 5);
        assert_eq!(parse("off", Some(3)), Ok(Rate::OFF));
        assert_eq!(parse("10000/d", None).unwrap().burst(), 10_000);
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for (text, burst, fault) in [
            ("600", None, RateFault::Form),
            ("", None, RateFault::Form),
            ("0/s", None, RateFault::Count),
            ("+5/s", None, RateFault::Count),
            ("1.5/s", None, RateFault::Count),
            ("/s", None, RateFault::Count),
            ("5/w", None, RateFault::Unit),
            ("5/ s", None, RateFault::Unit),
            ("5/s", Some(0), RateFault::Burst),
            ("1000000000/s", None, RateFault::Range),
            ("1/d", Some(13), RateFault::Range),
            ("5/s", Some(u64::MAX), RateFault::Range),
        ] {
            assert_eq!(parse(text, burst), Err(fault), "{text}");
        }
    }

    #[test]
    fn windows_are_read() {
        assert_eq!(window("100/m"), Ok((100, Window::Ns(60 * SECOND_NS))));
        assert_eq!(window("100/15m"), Ok((100, Window::Ns(900 * SECOND_NS))));
        assert_eq!(window("10000/month"), Ok((10_000, Window::Month)));
        for text in ["1/", "1/0s", "1/1000d", "1/99999999999999999999s", "1/s5", "1/year"] {
            assert_eq!(window(text), Err(RateFault::Unit), "{text}");
        }
    }

    #[test]
    fn rates_are_printed() {
        assert_eq!(print(parse("600/m", Some(100)).unwrap()), "10/s, burst 100");
        assert_eq!(print(parse("30/h", None).unwrap()), "30/h, burst 30");
        assert_eq!(print(Rate::OFF), "off");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_the_same(
            count in 1_u64..10_000_000, unit in 0..4_usize, burst in 1_u64..10_000,
        ) {
            let text = format!("{count}/{}", UNITS[unit].0);
            if let Ok(rate) = parse(&text, Some(burst)) {
                let printed = print(rate);
                let (text, burst) = printed.split_once(", burst ").unwrap();
                prop_assert_eq!(parse(text, Some(burst.parse().unwrap())), Ok(rate));
            }
        }
    }
}
