//! Other people's lists: what each of their formats says, which lines are not taken and why, and
//! whether what came can be the list at all.

use std::{borrow::Cow, collections::HashSet, fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;

use super::{
    NetFault, canonical, parse_net,
    reasons::{Gathered, Reasons},
};

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The first word of each line, up to `#` or `;`: addresses and networks, `FireHOL`'s netsets
    /// among them.
    Plain,
    /// As plain, where a second word says on how many lists the address is; those with fewer than
    /// `level` are left out.
    Ipsum {
        /// The least number of lists.
        level: u32,
    },
    /// Spamhaus DROP: a JSON object a line with a `cidr`, and one at the end that tells how many
    /// there are.
    Drop,
    /// Tor's exits: an address a line, or the lines of `exit-addresses`.
    Tor,
}

/// What can be the matter with a line. None but [`Fault::HostBits`] is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is no network.
    Malformed,
    /// It has a part in [`LOCAL`].
    Local,
    /// It holds an address of this host, or of its way out.
    Own,
    /// It is wider than any network that one owner has: a slip that would cut off the world.
    Wide,
    /// An earlier line has it.
    Repeated,
    /// It was taken without the bits behind its prefix.
    HostBits,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 6] =
        [Self::Malformed, Self::Local, Self::Own, Self::Wide, Self::Repeated, Self::HostBits];

    /// The word for it, in metrics and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Local => "local",
            Self::Own => "own",
            Self::Wide => "wide",
            Self::Repeated => "repeated",
            Self::HostBits => "host_bits",
        }
    }
}

/// What a list held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Its networks with their lines, each once, in order.
    pub nets: Vec<(IpNet, u32)>,
    /// Why they are listed, as far as it says.
    pub reasons: Reasons,
    /// Lines with a fault, by [`Fault`].
    pub faults: [u64; Fault::ALL.len()],
    /// The first lines with a fault, at most [`FAULTS_TOLD`]: their numbers and texts.
    pub told: Vec<(u32, Fault, String)>,
    /// How many networks it says that it has, if it says so, and how many were there.
    pub announced: Option<(u64, u64)>,
}

/// Why a list is not taken at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no network in it.
    Empty,
    /// Most of its lines are no networks: a page of an error, another format.
    Foreign {
        /// Lines that are no networks.
        malformed: u64,
        /// Networks.
        nets: u64,
    },
    /// It says that it has more than were there.
    Torn {
        /// What it says.
        announced: u64,
        /// What was there.
        found: u64,
    },
    /// It has lost more than it may at once.
    Shrunk {
        /// Networks before.
        before: u64,
        /// Networks now.
        now: u64,
    },
}

/// Reads a list. `own` are addresses that it must not deny.
#[must_use]
pub fn read(format: Format, text: &str, own: &[IpAddr]) -> Reading {
    let (mut reading, mut seen) = (Reading::default(), HashSet::new());
    let (mut found, mut reasons, mut relay) = (0, Gathered::default(), "");
    // Editors on other systems put a byte order mark in front.
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let (word, why) = match word(format, line) {
            Line::Nothing => continue,
            Line::Count(count) => {
                reading.announced = Some((count, 0));
                continue;
            }
            Line::Relay(fingerprint) => {
                relay = fingerprint;
                continue;
            }
            Line::Net(word, why) => (word, why),
        };
        found += 1;
        let (net, fault) = judge(&word, own);
        let fault = match net {
            Some(net) if fault.is_none_or(|fault| fault == Fault::HostBits) => {
                if seen.insert(net) {
                    reading.nets.push((net, number));
                    match relay {
                        "" => reasons.note(number, &why),
                        relay => reasons.note(number, &format!("relay {relay}")),
                    }
                    fault
                } else {
                    Some(Fault::Repeated)
                }
            }
            _ => fault,
        };
        if let Some(fault) = fault {
            reading.faults[fault as usize] += 1;
            if reading.told.len() < FAULTS_TOLD {
                reading.told.push((number, fault, word.chars().take(TEXT_MAX).collect()));
            }
        }
    }
    if let Some((_, there)) = &mut reading.announced {
        *there = found;
    }
    reading.nets.sort_unstable();
    reading.reasons = reasons.finish();
    reading
}

impl Reading {
    /// Lines of a fault.
    #[must_use]
    pub const fn count(&self, fault: Fault) -> u64 {
        self.faults[fault as usize]
    }

    /// Lines that were not taken.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.faults.iter().sum::<u64>() - self.count(Fault::HostBits)
    }

    /// Whether it can take the place of a list of `before` networks, of which it may lose
    /// `shrink_max` percent.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, before: Option<u64>, shrink_max: u32) -> Result<(), Refused> {
        let (now, malformed) = (self.nets.len() as u64, self.count(Fault::Malformed));
        if malformed > now {
            return Err(Refused::Foreign { malformed, nets: now });
        }
        if now == 0 {
            return Err(Refused::Empty);
        }
        if let Some((announced, found)) = self.announced.filter(|(told, found)| told > found) {
            return Err(Refused::Torn { announced, found });
        }
        match before {
            Some(before) if has_shrunk(before, now, shrink_max) => {
                Err(Refused::Shrunk { before, now })
            }
            _ => Ok(()),
        }
    }
}

/// Whether more than so many percent are gone. 100 percent is any number.
#[must_use]
pub fn has_shrunk(before: u64, now: u64, shrink_max: u32) -> bool {
    let lost = u128::from(before.saturating_sub(now));
    shrink_max < 100 && lost * 100 > u128::from(before) * u128::from(shrink_max)
}

/// What stands in a line.
enum Line<'l> {
    Nothing,
    /// What should be a network, and why it is listed; empty: nobody says.
    Net(Cow<'l, str>, Cow<'l, str>),
    Count(u64),
    /// The relay that the addresses after it are of.
    Relay(&'l str),
}

fn word(format: Format, line: &str) -> Line<'_> {
    if format == Format::Drop {
        return drop_record(line.trim());
    }
    let content = line.split(['#', ';']).next().unwrap_or_default();
    let mut words = content.split_whitespace();
    let Some(first) = words.next() else { return Line::Nothing };
    match (format, first) {
        (Format::Ipsum { level }, net) => {
            // An address without a count is on one list at least.
            let lists = words.next().and_then(|count| count.parse().ok());
            if lists.unwrap_or(1_u32) < level {
                return Line::Nothing;
            }
            let why = lists.map_or(String::new(), |lists| format!("on {lists} lists"));
            Line::Net(net.into(), why.into())
        }
        (Format::Tor, "ExitAddress") => {
            Line::Net(words.next().unwrap_or(first).into(), Cow::default())
        }
        (Format::Tor, "ExitNode") => Line::Relay(words.next().unwrap_or_default()),
        (Format::Tor, "Published" | "LastStatus") => Line::Nothing,
        (_, net) => Line::Net(net.into(), behind(line, net).into()),
    }
}

/// What stands in a line behind its first word.
#[must_use]
pub fn behind<'l>(line: &'l str, word: &str) -> &'l str {
    line.split_once(word).map_or("", |(_, behind)| behind)
}

/// A line of DROP, <https://www.spamhaus.org/blocklists/do-not-route-or-peer/>.
#[derive(Deserialize)]
struct DropRecord {
    cidr: Option<String>,
    /// Of any kind: whatever it is, the network is one.
    sblid: Option<serde_json::Value>,
    r#type: Option<String>,
    records: Option<u64>,
}

fn drop_record(line: &str) -> Line<'_> {
    if line.is_empty() {
        return Line::Nothing;
    }
    match serde_json::from_str(line) {
        Ok(DropRecord { cidr: Some(cidr), sblid, .. }) => {
            let why = sblid.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
            Line::Net(cidr.into(), why.to_owned().into())
        }
        Ok(DropRecord { r#type: Some(kind), records, .. }) if kind == "metadata" => {
            records.map_or(Line::Nothing, Line::Count)
        }
        _ => Line::Net(line.into(), Cow::default()),
    }
}

pub(super) fn judge(word: &str, own: &[IpAddr]) -> (Option<IpNet>, Option<Fault>) {
    let (net, bits) = match parse_net(word) {
        Ok(net) => (net, None),
        Err(NetFault::HostBits(net)) => (net, Some(Fault::HostBits)),
        Err(NetFault::CoversIpv4) => return (None, Some(Fault::Wide)),
        Err(NetFault::NotANetwork) => return (None, Some(Fault::Malformed)),
    };
    let fault = if is_wide(net) {
        Some(Fault::Wide)
    } else if local(net).is_some() {
        Some(Fault::Local)
    } else if own.iter().any(|own| net.contains(&own.to_canonical())) {
        Some(Fault::Own)
    } else {
        bits
    };
    (Some(canonical(net)), fault)
}

/// Whether a network is wider than any that was given out: IPv4 in networks of /8 at the widest, IPv6 of
/// /16, but for those in [`LOCAL`].
#[must_use]
pub fn is_wide(net: IpNet) -> bool {
    let widest = match net {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 16,
    };
    net.prefix_len() < widest && !LOCAL.iter().any(|own| own.contains(&net))
}

/// The network of [`LOCAL`] in which a network has a part, if there is one.
#[must_use]
pub fn local(net: IpNet) -> Option<IpNet> {
    LOCAL.into_iter().find(|own| own.contains(&net) || net.contains(own))
}

/// Networks that a host, its neighbours and its provider live in: loopback, private and shared
/// addresses, the link's own. No packet from afar bears them, and a feed that names them, as lists
/// of unallocated networks do, would cut the host off from its own.
pub const LOCAL: [IpNet; 9] = [
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v6(0, 1, 128),
    v6(0xfc00, 0, 7),
    v6(0xfe80, 0, 10),
];

const fn v4([a, b, c, d]: [u8; 4], bits: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), bits))
}

const fn v6(first: u16, last: u16, bits: u8) -> IpNet {
    let address = std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last);
    IpNet::V6(Ipv6Net::new_assert(address, bits))
}

/// Faulty lines that are told one by one.
pub const FAULTS_TOLD: usize = 5;

/// Characters of a faulty line that are told.
pub const TEXT_MAX: usize = 80;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it has no networks"),
            Self::Foreign { malformed, nets } => write!(
                f,
                "it does not look like the format: {malformed} lines are no networks, {nets} are"
            ),
            Self::Torn { announced, found } => {
                write!(f, "it is cut short: it announces {announced} networks and has {found}")
            }
            Self::Shrunk { before, now } => {
                write!(f, "it has shrunk from {before} networks to {now}")
            }
        }
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(reading: &Reading) -> Vec<(String, u32)> {
        reading.nets.iter().map(|(net, line)| (net.to_string(), *line)).collect()
    }

    fn known<const N: usize>(wanted: [(&str, u32); N]) -> Vec<(String, u32)> {
        wanted.map(|(net, line)| (net.to_owned(), line)).into()
    }

    #[test]
    fn a_plain_list_is_taken_line_by_line() {
        let text = "\u{feff}# head\r\n192.0.2.7\t12\r\n\n198.51.100.0/24 ; SBL1\n; note\n\
                    2001:db8::/32#x\n::ffff:203.0.113.10";
        let reading = read(Format::Plain, text, &[]);
        let wanted = [
            ("192.0.2.7/32", 2),
            ("198.51.100.0/24", 4),
            ("203.0.113.10/32", 7),
            ("2001:db8::/32", 6),
        ];
        assert_eq!(nets(&reading), known(wanted));
        assert_eq!(reading.left_out(), 0);
    }

    #[test]
    fn every_doubtful_line_has_its_fault() {
        let text = "what?\n203.0.113.9/24\n203.0.113.0/24\n10.1.0.0/16\n8.0.0.0/5\nfd00::/8\n\
                    2000::/3\n::/0\n198.51.100.0/24\n8.8.8.8";
        let own = ["198.51.100.1".parse().unwrap()];
        let reading = read(Format::Plain, text, &own);
        assert_eq!(nets(&reading), known([("8.8.8.8/32", 10), ("203.0.113.0/24", 2)]));
        let counts = Fault::ALL.map(|fault| (fault.name(), reading.count(fault)));
        let wanted = [
            ("malformed", 1),
            ("local", 2),
            ("own", 1),
            ("wide", 3),
            ("repeated", 1),
            ("host_bits", 1),
        ];
        assert_eq!(counts, wanted);
        assert_eq!((reading.left_out(), reading.told.len()), (8, FAULTS_TOLD));
        assert_eq!(reading.told[0], (1, Fault::Malformed, "what?".to_owned()));
    }

    fn reasons(reading: &Reading) -> Vec<Option<&str>> {
        reading.nets.iter().map(|(_, line)| reading.reasons.get(*line)).collect()
    }

    #[test]
    fn each_format_says_why() {
        let plain =
            "192.0.2.0/24 ; SBL1\n192.0.3.0/24\n192.0.4.7 # brute \u{1b}[31mforce\n192.0.5.1#x\n";
        let wanted = [Some("SBL1"), None, Some("brute \u{fffd}[31mforce"), Some("x")];
        assert_eq!(reasons(&read(Format::Plain, plain, &[])), wanted);
        let ipsum = read(Format::Ipsum { level: 3 }, "192.0.2.1\t9\n192.0.2.2\t1\n", &[]);
        assert_eq!(reasons(&ipsum), [Some("on 9 lists")]);
        let bare = read(Format::Ipsum { level: 1 }, "192.0.2.1\n", &[]);
        assert_eq!(reasons(&bare), [None]);
        let drop = "{\"cidr\":\"192.0.2.0/24\",\"sblid\":\"SBL\\u001b7\"}\n\
                    {\"cidr\":\"192.0.3.0/24\",\"sblid\":7}\n{\"cidr\":\"192.0.4.0/24\"}\n";
        let drop = read(Format::Drop, drop, &[]);
        assert_eq!(reasons(&drop), [Some("SBL\u{fffd}7"), None, None]);
        let tor = "ExitNode 0011\nExitAddress 192.0.2.1 2026-01-01\nExitAddress 192.0.2.2 2026-01-01\n\
                   ExitNode 22FF\nExitAddress 192.0.2.3 2026-01-01\n";
        let wanted = [Some("relay 0011"), Some("relay 0011"), Some("relay 22FF")];
        assert_eq!(reasons(&read(Format::Tor, tor, &[])), wanted);
        assert_eq!(reasons(&read(Format::Tor, "192.0.2.1\n", &[])), [None]);
    }

    #[test]
    fn ipsum_counts_the_lists() {
        let text = "# IPsum\n192.0.2.1\t9\n192.0.2.2\t3\n192.0.2.3\t1\n192.0.2.4\n";
        let of = |level| read(Format::Ipsum { level }, text, &[]).nets.len();
        assert_eq!([of(1), of(2), of(3), of(4), of(10)], [4, 2, 2, 1, 0]);
    }

    #[test]
    fn drop_tells_how_many_it_has() {
        let line = r#"{"cidr":"192.0.2.0/24","sblid":"SBL1","rir":"ripencc"}"#;
        let end = |records| {
            format!(r#"{{"type":"metadata","timestamp":1,"records":{records},"copyright":"(c)"}}"#)
        };
        let reading = read(Format::Drop, &format!("{line}\n{}\n", end(1)), &[]);
        assert_eq!(nets(&reading), known([("192.0.2.0/24", 1)]));
        assert_eq!(reading.check(None, 90), Ok(()));
        let torn = read(Format::Drop, &format!("{line}\n{}\n", end(1_400)), &[]);
        assert_eq!(torn.check(None, 90), Err(Refused::Torn { announced: 1_400, found: 1 }));
        let page = read(Format::Drop, "<html>\n<body>\n502\n", &[]);
        assert_eq!(page.check(None, 90), Err(Refused::Foreign { malformed: 3, nets: 0 }));
    }

    #[test]
    fn tor_has_two_forms() {
        let bulk = read(Format::Tor, "192.0.2.1\n192.0.2.2\n", &[]);
        let full = "ExitNode 0011\nPublished 2026-01-01 00:00:00\nLastStatus 2026-01-01 00:00:00\n\
                    ExitAddress 192.0.2.1 2026-01-01 00:00:00\nExitAddress 192.0.2.2 2026-01-01\n";
        let full = read(Format::Tor, full, &[]);
        let only = |r: &Reading| r.nets.iter().map(|(net, _)| *net).collect::<Vec<_>>();
        assert_eq!((only(&bulk).len(), only(&bulk)), (2, only(&full)));
        assert_eq!(full.left_out(), 0);
    }

    #[test]
    fn a_list_that_cannot_be_it_is_refused() {
        let text: String = (0..100).map(|i| format!("192.0.2.{i}\n")).collect();
        let reading = read(Format::Plain, &text, &[]);
        assert_eq!(reading.check(Some(1_000), 90), Ok(()));
        assert_eq!(
            reading.check(Some(1_001), 90),
            Err(Refused::Shrunk { before: 1_001, now: 100 })
        );
        assert_eq!(reading.check(Some(1_000_000), 100), Ok(()));
        assert_eq!(read(Format::Plain, "", &[]).check(None, 90), Err(Refused::Empty));
        assert_eq!(read(Format::Plain, "# only\n", &[]).check(None, 100), Err(Refused::Empty));
    }

    proptest! {
        #[test]
        fn every_line_is_a_comment_a_network_or_a_fault(text in "[0-9a-f.:/#; \n]{0,200}") {
            let reading = read(Format::Plain, &text, &[]);
            let content = |line: &&str| !line.split(['#', ';']).next().unwrap().trim().is_empty();
            let told = reading.nets.len() as u64 + reading.left_out();
            prop_assert_eq!(told, text.lines().filter(content).count() as u64);
        }

        #[test]
        fn nothing_that_comes_breaks_a_reader(text in any::<String>()) {
            for format in [Format::Plain, Format::Ipsum { level: 3 }, Format::Drop, Format::Tor] {
                let _ = read(format, &text, &[]).check(Some(10), 50);
            }
        }
    }
}
