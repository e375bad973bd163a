//! `[[kernel.signature]]`: what a rule looks for, and whether that makes sense together.

use std::fmt;

use edge_common::{
    Rate, Signature,
    signature::{Action, Ask},
};

use super::{
    reader::{Item, Table, suggest},
    settings::NamedSignature,
};

/// Reads a rule; `before` are those above it.
pub(super) fn signature(table: &Table<'_>, before: &[NamedSignature]) -> NamedSignature {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = table.need("name", "\"dns-answers\"", String::new(), |item| {
        let name = item.word(64, "letters, digits, '-', '_' and '.'", letters)?;
        if before.iter().any(|other| other.name == name) {
            return item.wrong(format!("two signatures are called '{name}'"), "rename one");
        }
        Some(name)
    });
    let mut rule = Signature::ANY;
    read_match(table, &mut rule);
    read_action(table, &mut rule);
    if rule.action == Action::DROP && !ASKS.iter().any(|key| table.is_there(key)) {
        let help = format!("say which by one of: {}", ASKS.join(", "));
        table.notes.wrong(table.span.clone(), "this signature drops every packet", help);
    }
    let hider = before.iter().find(|other| hides(&other.rule, &rule));
    if let Some(hider) = hider.filter(|_| !name.is_empty()) {
        let what = format!("'{name}' never matches: '{}' drops all of it before", hider.name);
        table.notes.doubt(table.span.clone(), what, "put it above, or leave it out");
    }
    NamedSignature { name, rule }
}

fn read_match(table: &Table<'_>, rule: &mut Signature) {
    let ports = |item: &Item<'_>| item.range(0, u16::MAX.into()).map(|r| r.map(|n| n as u16));
    let protocol = table.or("protocol", None, |item| protocol(item).map(Some));
    if let Some(protocol) = protocol {
        rule.protocol = protocol;
        rule.asks |= Ask::PROTOCOL;
    }
    let is_misread = protocol.is_none() && table.is_there("protocol");
    let of_these = |item: &Item<'_>, fitting: &[u8], help: &str| {
        if !is_misread && protocol.is_none_or(|protocol| !fitting.contains(&protocol)) {
            item.wrong::<()>(format!("'{}' without its protocol", item.key), help);
        }
    };
    for (key, range) in [("source_ports", &mut rule.source_ports), ("ports", &mut rule.ports)] {
        *range = table.or(key, *range, |item| {
            of_these(item, &[TCP, UDP], "add protocol = \"tcp\" or \"udp\"");
            rule.asks |= Ask::TRANSPORT;
            ports(item)
        });
    }
    rule.length = table.or("length", rule.length, |item| item.range(0, LENGTH_MAX));
    rule.ttl = table.or("ttl", rule.ttl, |item| {
        item.range(0, u8::MAX.into()).map(|range| range.map(|n| n as u8))
    });
    [rule.tcp_mask, rule.tcp_flags] = table.or("tcp_flags", [0, 0], |item| {
        of_these(item, &[TCP], "add protocol = \"tcp\"");
        rule.asks |= Ask::TRANSPORT;
        tcp_flags(item)
    });
    if let Some(is_fragment) = table.or("fragment", None, |item| item.flag().map(Some)) {
        rule.asks |= if is_fragment { Ask::FRAGMENT } else { Ask::WHOLE };
    }
    (rule.payload, rule.payload_bytes) = table.or("payload", ([0; 16], 0), |item| {
        if protocol.is_some() {
            of_these(item, &[TCP, UDP, ICMP, ICMPV6], "only TCP, UDP and ICMP are read that far");
        }
        rule.asks |= Ask::TRANSPORT;
        payload(item)
    });
}

fn read_action(table: &Table<'_>, rule: &mut Signature) {
    let actions = [("drop", Action::DROP), ("limit", Action::LIMIT), ("count", Action::COUNT)];
    let action = table.need("action", "\"drop\", \"limit\" or \"count\"", None, |item| {
        item.choice(&actions).map(Some)
    });
    rule.action = action.unwrap_or(Action::COUNT);
    let without_limit = |item: &Item<'_>| {
        if action.is_some_and(|action| action != Action::LIMIT) {
            let what = format!("'{}' without a limit", item.key);
            item.wrong::<()>(what, "set action = \"limit\", or leave it out");
        }
    };
    let rate = |item: &Item<'_>| {
        without_limit(item);
        match item.rate()? {
            Rate::OFF => item.wrong("a limit that is off", "a rate: \"100/s\""),
            rate => Some(rate),
        }
    };
    rule.rate = match action {
        Some(Action::LIMIT) => table.need("rate", "\"100/s\"", Rate::OFF, rate),
        _ => table.or("rate", Rate::OFF, rate),
    };
    let per_client = table.or("per", true, |item| {
        without_limit(item);
        item.choice(&[("client", true), ("all", false)])
    });
    if action == Some(Action::LIMIT) && per_client {
        rule.asks |= Ask::PER_CLIENT;
    }
    if table.or("monitor", false, Item::flag) {
        rule.asks |= Ask::MONITOR;
    }
}

fn protocol(item: &Item<'_>) -> Option<u8> {
    if item.is_number() {
        return item.number(0, 255).map(|number| number as u8);
    }
    let written = item.text("a protocol: \"udp\", or its number")?;
    match PROTOCOLS.iter().find(|(name, _)| *name == written) {
        Some((_, number)) => Some(*number),
        None => {
            let names = PROTOCOLS.iter().map(|(name, _)| *name);
            item.wrong(format!("'protocol' cannot be '{written}'"), suggest(written, names))
        }
    }
}

/// The flags that are looked at, and what they must be.
fn tcp_flags(item: &Item<'_>) -> Option<[u8; 2]> {
    let written = item.text("TCP flags: \"syn,!ack\"")?;
    let (mut mask, mut flags) = (0, 0);
    for word in written.split(',').map(str::trim) {
        let name = word.strip_prefix('!').unwrap_or(word);
        let Some((bit, _)) = (0..).zip(TCP_FLAGS).find(|(_, flag)| *flag == name) else {
            let what = format!("not a TCP flag: '{name}'");
            return item.wrong(what, suggest(name, TCP_FLAGS.into_iter()));
        };
        if mask >> bit & 1 != 0 {
            return item.wrong(format!("'{name}' is there twice"), "leave one out");
        }
        mask |= 1 << bit;
        flags |= u8::from(name == word) << bit;
    }
    Some([mask, flags])
}

/// The first bytes, and how many.
fn payload(item: &Item<'_>) -> Option<([u8; 16], u8)> {
    let written = item.text("the payload's first bytes: \"GET /\", or \"hex:16 03 01\"")?;
    let bytes = match written.strip_prefix("hex:") {
        None => written.as_bytes().to_vec(),
        Some(digits) => match hex(digits) {
            Some(bytes) => bytes,
            None => return item.wrong(format!("not bytes: '{written}'"), "pairs of hex digits"),
        },
    };
    if bytes.is_empty() || bytes.len() > 16 {
        return item.wrong(format!("'payload' has {} bytes", bytes.len()), "1 to 16");
    }
    let mut padded = [0; 16];
    padded[..bytes.len()].copy_from_slice(&bytes);
    Some((padded, bytes.len() as u8))
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> =
        digits.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some((high << 4 | low) as u8),
        _ => None,
    });
    pairs.collect()
}

impl fmt::Display for NamedSignature {
    /// What it matches, in a line: "udp from 53 to 1024-65535, length 512-65535, whole".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, .. } = self;
        let asks = |ask| rule.asks & ask != 0;
        let mut text = match PROTOCOLS.iter().find(|(_, number)| *number == rule.protocol) {
            _ if !asks(Ask::PROTOCOL) => "any".to_owned(),
            Some((name, _)) => (*name).to_owned(),
            None => format!("protocol {}", rule.protocol),
        };
        let any = &Signature::ANY;
        let mut add = |is_asked, word: String| {
            if is_asked {
                text += &word;
            }
        };
        add(rule.source_ports != any.source_ports, format!(" from {}", span(rule.source_ports)));
        add(rule.ports != any.ports, format!(" to {}", span(rule.ports)));
        add(rule.length != any.length, format!(", length {}", span(rule.length)));
        add(rule.ttl != any.ttl, format!(", ttl {}", span(rule.ttl)));
        let looked_at = (0..).zip(TCP_FLAGS).filter(|(bit, _)| rule.tcp_mask >> bit & 1 != 0);
        let flags: Vec<_> = looked_at
            .map(
                |(bit, name)| {
                    if rule.tcp_flags >> bit & 1 != 0 { name.into() } else { format!("!{name}") }
                },
            )
            .collect();
        add(!flags.is_empty(), format!(", flags {}", flags.join(",")));
        add(asks(Ask::FRAGMENT), ", fragments".to_owned());
        add(asks(Ask::WHOLE), ", no fragments".to_owned());
        let bytes = &rule.payload[..usize::from(rule.payload_bytes)];
        let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
        add(!bytes.is_empty(), format!(", payload hex:{}", digits.join(" ")));
        f.write_str(&text)
    }
}

/// What a signature does, in a line.
#[must_use]
pub fn action(rule: &Signature) -> String {
    let per = if rule.asks & Ask::PER_CLIENT != 0 { "each client" } else { "all" };
    match rule.action {
        Action::DROP => "drop".to_owned(),
        Action::LIMIT => format!("limit {} to {}", per, edge_policy::rate::print(rule.rate)),
        _ => "count".to_owned(),
    }
}

fn span<T: fmt::Display + PartialEq>([from, to]: [T; 2]) -> String {
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}

/// Whether the upper rule drops whatever the lower one matches.
fn hides(upper: &Signature, lower: &Signature) -> bool {
    fn holds<T: PartialOrd + Copy>(outer: [T; 2], inner: [T; 2]) -> bool {
        outer[0] <= inner[0] && inner[1] <= outer[1]
    }
    let (known, asked) = (usize::from(upper.payload_bytes), usize::from(lower.payload_bytes));
    upper.action == Action::DROP
        && upper.asks & Ask::MONITOR == 0
        && upper.asks & MATCHES & !lower.asks == 0
        && (upper.asks & Ask::PROTOCOL == 0 || upper.protocol == lower.protocol)
        && holds(upper.length, lower.length)
        && holds(upper.ttl, lower.ttl)
        && holds(upper.source_ports, lower.source_ports)
        && holds(upper.ports, lower.ports)
        && upper.tcp_mask & !lower.tcp_mask == 0
        && lower.tcp_flags & upper.tcp_mask == upper.tcp_flags
        && known <= asked
        && upper.payload[..known] == lower.payload[..known]
}

/// The keys that narrow the match.
const ASKS: [&str; 8] =
    ["protocol", "source_ports", "ports", "length", "ttl", "tcp_flags", "fragment", "payload"];

/// What of [`Ask`] narrows the match.
const MATCHES: u8 = Ask::PROTOCOL | Ask::TRANSPORT | Ask::FRAGMENT | Ask::WHOLE;

/// The longest IP packet: an IPv6 header and a payload without a jumbo option.
const LENGTH_MAX: u32 = 40 + 65_535;

/// By the order of their bits.
const TCP_FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

const PROTOCOLS: [(&str, u8); 4] = [("tcp", TCP), ("udp", UDP), ("icmp", ICMP), ("icmpv6", ICMPV6)];
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
