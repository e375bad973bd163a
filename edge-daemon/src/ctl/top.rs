//! Who sends most, drawn again every second.

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use edge_policy::probe::protocol_name;

use super::{Args, DONE, answer, print, say, show};
use crate::control::{
    Command, Reply,
    packets::{InterfaceTraffic, Talker, Top},
};

/// Asks and shows until it is interrupted, nobody reads any more or nobody answers. On a terminal
/// each answer takes the place of the last.
pub(super) fn watch(args: &Args, command: &Command, once: bool) -> u8 {
    let redraws = io::stdout().is_terminal() && !args.json && !once;
    loop {
        let reply = match answer(args, command) {
            Ok(reply) => reply,
            Err(code) => return code,
        };
        let mut text = match &reply {
            Reply::Top(top) if args.json => line(top),
            reply => show(args, reply),
        };
        if redraws {
            text.insert_str(0, HOME_AND_CLEAR);
        } else if !args.json && !once {
            text.push('\n');
        }
        let code = say(text.as_bytes());
        if once || code != DONE {
            return code;
        }
        thread::sleep(EVERY);
    }
}

/// One object on a line of its own.
fn line(top: &Top) -> String {
    let object = serde_json::to_string(top).expect("it holds only text, numbers and lists");
    object + "\n"
}

pub(super) fn text(top: &Top) -> String {
    let mut text = format!(
        "last {:.1} s, one packet in {} sampled, {} samples, {} lost\n",
        top.window_s, top.sampled, top.samples, top.samples_lost
    );
    for interface in &top.interfaces {
        text += &interface_line(interface);
    }
    let head =
        ["SOURCE", "COST", "PACKETS/S", "BYTES/S", "DROPPED", "REASON", "TO", "OPEN", "STANDING"];
    text.push('\n');
    text + &print::table(&head, top.talkers.iter().map(row))
}

fn interface_line(interface: &InterfaceTraffic) -> String {
    let InterfaceTraffic { name, packets_per_s, bytes_per_s, drops_per_s } = interface;
    let mut drops: Vec<_> = drops_per_s.iter().collect();
    drops.sort_by(|a, b| b.1.total_cmp(a.1));
    let drops: Vec<_> = drops.iter().map(|(reason, n)| format!("{reason} {}", rate(**n))).collect();
    let drops = if drops.is_empty() { "nothing".to_owned() } else { drops.join(", ") };
    format!(
        "{name}: {} packets/s, {} bytes/s; dropped: {drops}\n",
        rate(*packets_per_s),
        rate(*bytes_per_s)
    )
}

fn row(talker: &Talker) -> Vec<String> {
    let dropped = talker.drops_per_s / talker.packets_per_s.max(f64::MIN_POSITIVE);
    let standing = match (&talker.listed, talker.banned) {
        (Some(list), true) => format!("{list}, banned"),
        (Some(list), false) => list.clone(),
        (None, true) => "banned".to_owned(),
        (None, false) => String::new(),
    };
    vec![
        talker.source.clone(),
        percent(talker.cost),
        rate(talker.packets_per_s),
        rate(talker.bytes_per_s),
        percent(dropped),
        talker.reason.clone(),
        service(talker.protocol, talker.port),
        talker.open_connections.to_string(),
        standing,
    ]
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// Three digits and a unit: `0.4`, `950`, `12.3k`, `4.56M`.
fn rate(value: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let unit = units.into_iter().find(|(unit, _)| value >= *unit);
    let (unit, name) = unit.unwrap_or((1.0, ""));
    let value = value / unit;
    match value {
        ..10.0 if !name.is_empty() => format!("{value:.2}{name}"),
        ..10.0 => format!("{value:.1}"),
        ..100.0 if !name.is_empty() => format!("{value:.1}{name}"),
        _ => format!("{value:.0}{name}"),
    }
}

fn service(protocol: u8, port: u16) -> String {
    let name = match protocol_name(protocol) {
        Some(name) => name.to_owned(),
        None if protocol == 0 => return "-".to_owned(),
        None => format!("protocol {protocol}"),
    };
    match protocol {
        6 | 17 if port > 0 => format!("{name}/{port}"),
        1 | 58 => format!("{name}/{}", port >> 8),
        _ => name,
    }
}

const EVERY: Duration = Duration::from_secs(1);
const HOME_AND_CLEAR: &str = "\x1b[H\x1b[J";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_digits_and_a_unit() {
        let table = [
            (0.0, "0.0"),
            (9.5, "9.5"),
            (42.4, "42"),
            (999.0, "999"),
            (1_234.0, "1.23k"),
            (56_789.0, "56.8k"),
            (890_123.0, "890k"),
            (4_560_000.0, "4.56M"),
            (7.8e9, "7.80G"),
        ];
        for (value, text) in table {
            assert_eq!(rate(value), text);
        }
    }

    #[test]
    fn a_talker_is_one_line() {
        let talker = |source: &str, banned, listed: Option<&str>| Talker {
            source: source.to_owned(),
            cost: 0.5,
            packets_per_s: 1_000.0,
            bytes_per_s: 64_000.0,
            drops_per_s: 250.0,
            reason: "packet_rate".to_owned(),
            protocol: 17,
            port: 53,
            open_connections: 3,
            banned,
            listed: listed.map(str::to_owned),
        };
        let drops = [("ban", 1.0), ("packet_rate", 1_500.0)];
        let top = Top {
            window_s: 4.96,
            samples: 9_000,
            sampled: 64,
            samples_lost: 0,
            interfaces: vec![InterfaceTraffic {
                name: "eth0".to_owned(),
                packets_per_s: 2_000.0,
                bytes_per_s: 128_000.0,
                drops_per_s: drops.map(|(reason, n)| (reason.to_owned(), n)).into(),
            }],
            talkers: vec![
                talker("192.0.2.1", false, Some("deny")),
                talker("2001:db8::/64", true, None),
            ],
        };
        let wanted = "\
last 5.0 s, one packet in 64 sampled, 9000 samples, 0 lost
eth0: 2.00k packets/s, 128k bytes/s; dropped: packet_rate 1.50k, ban 1.0

SOURCE         COST  PACKETS/S  BYTES/S  DROPPED  REASON       TO      OPEN  STANDING
192.0.2.1      50%   1.00k      64.0k    25%      packet_rate  udp/53  3     deny
2001:db8::/64  50%   1.00k      64.0k    25%      packet_rate  udp/53  3     banned
";
        assert_eq!(text(&top), wanted);
        assert_eq!((line(&top).lines().count(), service(0, 0)), (1, "-".to_owned()));
        assert_eq!((service(17, 0), service(1, 0x0800)), ("udp".to_owned(), "icmp/8".to_owned()));
    }
}
