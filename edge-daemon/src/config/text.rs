//! Durations, sizes, rates and networks as people write them.

use std::time::Duration;

use edge_common::Rate;
use edge_policy::{list::NetFault, rate::RateFault};
use ipnet::IpNet;

/// Reads `250ms`, `10s`, `5m`, `24h` or `90d`.
///
/// # Errors
/// Says what would be right.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (count, unit) = split(text);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("a number and its unit, ms, s, m, h or d: \"10s\"".to_owned()),
    };
    let millis = parse(count, millis).ok_or("a number and its unit, not above 36500d")?;
    if millis > 36_500 * 86_400_000 {
        return Err("not above 36500d".to_owned());
    }
    Ok(Duration::from_millis(millis))
}

/// Reads `512B`, `64KiB`, `10MiB` or `1GiB`, in bytes.
///
/// # Errors
/// Says what would be right.
pub fn size(text: &str) -> Result<u64, String> {
    let (count, unit) = split(text);
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("a number and its unit, B, KiB, MiB or GiB: \"64KiB\"".to_owned()),
    };
    parse(count, bytes).ok_or_else(|| "a whole number and its unit: \"64KiB\"".to_owned())
}

/// Reads `100/s`, `600/m`, `5000/h`, `10000/d` or `off`; `burst` defaults to the count.
///
/// # Errors
/// Says what would be right.
pub fn rate(text: &str, burst: Option<u64>) -> Result<Rate, String> {
    edge_policy::rate::parse(text, burst).map_err(|fault| {
        let help = match fault {
            RateFault::Form | RateFault::Unit => "a count per s, m, h or d: \"600/m\", or \"off\"",
            RateFault::Count => "at least 1; \"off\" switches the limit off",
            RateFault::Burst => "a burst of at least 1",
            RateFault::Range => "at most 125000000/s, and a burst that refills within 12 days",
        };
        help.to_owned()
    })
}

/// Bytes that may come at once, at the least: the largest packet and some more.
pub const BYTE_BURST_MIN: u64 = 128 << 10;

/// Reads `10MiB/s`, `1GiB/m` or `off`; `burst`, in bytes, defaults to the size.
///
/// # Errors
/// Says what would be right.
pub fn byte_rate(text: &str, burst: Option<u64>) -> Result<Rate, String> {
    if text == "off" {
        return Ok(Rate::OFF);
    }
    let form = "a size per s, m, h or d: \"10MiB/s\", or \"off\"";
    let (bytes, unit) = text.split_once('/').ok_or(form)?;
    let bytes = size(bytes)?;
    let period = match unit {
        "s" | "m" | "h" | "d" => duration(&format!("1{unit}"))?,
        _ => return Err(form.to_owned()),
    };
    let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
    let burst = burst.unwrap_or(bytes);
    if burst < BYTE_BURST_MIN {
        return Err("a burst of 128KiB at least, or the largest packet would never pass".to_owned());
    }
    Rate::of_bytes(bytes, period_ns, burst)
        .ok_or_else(|| "above zero, and a burst that refills within an hour".to_owned())
}

/// Reads `53` or `1024-65535`.
#[must_use]
pub fn range(text: &str) -> Option<[u32; 2]> {
    let number = |text: &str| match split(text) {
        (digits, "") => digits.parse().ok(),
        _ => None,
    };
    match text.split_once('-') {
        Some((from, to)) => Some([number(from)?, number(to)?]),
        None => number(text).map(|only| [only, only]),
    }
}

/// Reads a network or an address, and says whether bits beyond the prefix were cleared.
///
/// # Errors
/// Says what would be right.
pub fn net(text: &str) -> Result<(IpNet, bool), String> {
    match edge_policy::list::parse_net(text) {
        Ok(net) => Ok((net, false)),
        Err(NetFault::HostBits(net)) => Ok((net, true)),
        Err(NetFault::NotANetwork) => Err("an address or a network: \"192.0.2.0/24\"".to_owned()),
        Err(NetFault::CoversIpv4) => {
            Err("it contains all of IPv4; 2000::/3 is the IPv6 internet".to_owned())
        }
    }
}

/// The largest unit that shows a size exactly.
#[must_use]
pub fn show_size(size: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let exact = units.into_iter().find(|(unit, _)| size != 0 && size.is_multiple_of(*unit));
    let (unit, name) = exact.unwrap_or((1, "B"));
    format!("{}{name}", size / unit)
}

/// The largest unit that shows a duration exactly.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let exact = units.into_iter().find(|(unit, _)| millis != 0 && millis.is_multiple_of(*unit));
    let (unit, name) = exact.unwrap_or((1, "ms"));
    format!("{}{name}", millis / unit)
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

fn parse(count: &str, unit: u64) -> Option<u64> {
    count.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown_alike() {
        for text in ["250ms", "10s", "5m", "24m", "90d", "7h", "0ms", "90s"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        assert_eq!(duration("24h"), duration("1d"));
        for text in ["", "10", "s", "-1s", "1.5s", "10 s", "1w", "36501d", "99999999999999999999s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_have_a_burst() {
        assert_eq!(rate("600/m", Some(100)), Ok(Rate::new(600, 60_000_000_000, 100).unwrap()));
        assert_eq!(rate("10/s", None).unwrap().burst(), 10);
        for text in ["", "10", "/s", "0/s", "10/w", "10/ s", "-1/s", "999999999/s", "1/d/d"] {
            assert!(rate(text, None).is_err(), "{text}");
        }
        assert!(rate("1/d", Some(13)).is_err());
    }

    #[test]
    fn rates_of_bytes_hold_the_largest_packet() {
        let read = byte_rate("10MiB/s", Some(1 << 20)).unwrap();
        assert_eq!(read, Rate::of_bytes(10 << 20, 1_000_000_000, 1 << 20).unwrap());
        assert_eq!(byte_rate("6GiB/m", None), byte_rate("6GiB/m", Some(6 << 30)));
        assert_eq!(byte_rate("off", Some(1 << 20)), Ok(Rate::OFF));
        for text in ["", "10", "10MiB", "10MiB/w", "10MB/s", "10/s", "0B/s", "127KiB/s", "1MiB/d"] {
            assert!(byte_rate(text, None).is_err(), "{text}");
        }
        assert!(byte_rate("1MiB/s", Some(1 << 16)).is_err());
    }

    #[test]
    fn ranges_have_two_ends() {
        assert_eq!((range("53"), range("1-65535")), (Some([53, 53]), Some([1, 65_535])));
        assert_eq!(range("9-1"), Some([9, 1]));
        for text in ["", "-", "1-", "-1", "1-2-3", "+1", "0x1", " 1", "99999999999"] {
            assert_eq!(range(text), None, "{text}");
        }
    }

    #[test]
    fn networks_lose_their_host_bits() {
        assert_eq!(net("192.0.2.7"), Ok(("192.0.2.7/32".parse().unwrap(), false)));
        assert_eq!(net("192.0.2.7/24"), Ok(("192.0.2.0/24".parse().unwrap(), true)));
        assert_eq!(net("2001:db8::/32"), Ok(("2001:db8::/32".parse().unwrap(), false)));
        assert!(net("192.0.2.0/33").is_err() && net("eth0").is_err() && net("").is_err());
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("10MiB"), Ok(10 << 20));
        assert_eq!(size("7B"), Ok(7));
        for text in ["", "10", "10MB", "10kb", "1.5MiB", "99999999999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
