//! The Gregorian calendar in days since 1970, by arithmetic alone.
//!
//! Counted in eras of 400 years that begin on 1 March, so that the leap day is the last of its
//! year (the method of Howard Hinnant's `days_from_civil` and its inverse).

/// A day since 1970 as year, month and day of the month.
#[must_use]
pub const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + EPOCH;
    let (era, of_era) = (shifted / ERA, shifted % ERA);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + (month <= 2) as u64, month, day)
}

/// The day since 1970 of a date, which must not be earlier.
#[must_use]
pub const fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - (month <= 2) as u64;
    let (era, of_era) = (year / 400, year % 400);
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH
}

/// The first day of the month that a day lies in, and of the next one.
#[must_use]
pub const fn month(day: u64) -> (u64, u64) {
    let (year, month, _) = civil(day);
    let next = if month == 12 { days(year + 1, 1, 1) } else { days(year, month + 1, 1) };
    (days(year, month, 1), next)
}

/// `2026-01-31T23:59:59.123Z`, for a time in milliseconds since 1970.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / MS_PER_DAY, unix_ms % MS_PER_DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let mut text = String::with_capacity(24);
    let parts = [
        (year, 4, '-'),
        (month, 2, '-'),
        (day, 2, 'T'),
        (hour, 2, ':'),
        (minute, 2, ':'),
        (second, 2, '.'),
        (ms % 1000, 3, 'Z'),
    ];
    // By hand: every line of every log has one, and formatting costs as much as the rest of a short line.
    for (number, digits, end) in parts {
        let digit = |place| char::from(b'0' + (number / 10_u64.pow(place) % 10) as u8);
        text.extend((0..digits).rev().map(digit));
        text.push(end);
    }
    text
}

/// `31/Jan/2026:23:59:59 +0000`, as the lines of the Common Log Format have it.
#[must_use]
pub fn common(unix_ms: u64) -> String {
    let (days, s) = (unix_ms / MS_PER_DAY, unix_ms % MS_PER_DAY / 1000);
    let (year, month, day) = civil(days);
    let month = MONTHS[month as usize - 1];
    format!("{day:02}/{month}/{year}:{:02}:{:02}:{:02} +0000", s / 3600, s / 60 % 60, s % 60)
}

/// The time in milliseconds since 1970 of a text as [`rfc3339`] writes it.
#[must_use]
pub fn unix_ms(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let [year, month, day] = [number(0, 4)?, number(5, 7)?, number(8, 10)?];
    let [hour, minute, second, ms] =
        [number(11, 13)?, number(14, 16)?, number(17, 19)?, number(20, 23)?];
    let is_one = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    let in_day = ((hour * 60 + minute) * 60 + second) * 1000 + ms;
    is_one.then(|| days(year, month, day) * MS_PER_DAY + in_day)
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const MS_PER_DAY: u64 = 86_400_000;
/// Days in an era.
const ERA: u64 = 146_097;
/// Days from 1 March of the year 0 to 1970.
const EPOCH: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for ms in [0, 951_782_399_999, 1_735_689_599_123, 4_107_542_400_000] {
            assert_eq!(unix_ms(&rfc3339(ms)), Some(ms));
        }
        for text in
            ["", "2026-13-01T00:00:00.000Z", "1969-01-01T00:00:00.000Z", "no time at all here"]
        {
            assert_eq!(unix_ms(text), None, "{text}");
        }
    }

    #[test]
    fn calendar_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_305_599_123), "2026-11-21T23:59:59.123Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(common(0), "01/Jan/1970:00:00:00 +0000");
        assert_eq!(common(1_795_305_599_123), "21/Nov/2026:23:59:59 +0000");
    }

    #[test]
    fn every_day_of_four_centuries_is_itself() {
        const LENGTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut first = 0;
        for year in 1970..2410_u64 {
            let leap = year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
            for (index, length) in LENGTHS.into_iter().enumerate() {
                let length = length + u64::from(leap && index == 1);
                for of_month in 0..length {
                    let date = (year, index as u64 + 1, of_month + 1);
                    assert_eq!(civil(first + of_month), date);
                    assert_eq!(days(date.0, date.1, date.2), first + of_month);
                    assert_eq!(month(first + of_month), (first, first + length));
                }
                first += length;
            }
        }
    }
}
