//! `[kernel]`, key by key: names, defaults and ranges.

use std::{cell::RefCell, collections::HashSet};

use edge_common::{Blame, ClientWidth, Plane, Rate, Reason, map};

use super::{
    reader::{Item, Table, suggest},
    sections::{SECOND, rate, small, some_of},
    settings::{
        Attach, Fragments, Interface, Kernel, MissingFeatures, NamedSignature, Offer, PrefixLimit,
        SynCookies, When,
    },
    signature, text,
};

pub(super) fn kernel(table: &Table<'_>) -> Kernel {
    let missing =
        [("refuse", MissingFeatures::Refuse), ("run_with_less", MissingFeatures::RunWithLess)];
    let fragments = [("pass", Fragments::Pass), ("drop", Fragments::Drop)];
    let client = ClientWidth {
        v4: table.or("ipv4_prefix", 32, |item| small(item, 8, 32)),
        v6: table.or("ipv6_prefix", 64, |item| small(item, 1, 64)),
    };
    Kernel {
        interfaces: table.need("interfaces", "[\"eth0\"]", Vec::new(), interfaces),
        attach: table.or("attach", Attach::Auto, attach),
        pin_dir: table.or("pin_dir", "/sys/fs/bpf/edged".into(), Item::path),
        missing_features: table
            .or("missing_features", MissingFeatures::Refuse, |item| item.choice(&missing)),
        client,
        packet_rate: rate(table, "packet_rate", 20_000, SECOND, 40_000),
        byte_rate: table.or("byte_rate", Rate::OFF, Item::byte_rate),
        udp_rate: table.or("udp_rate", Rate::OFF, Item::rate),
        icmp_rate: rate(table, "icmp_rate", 100, SECOND, 200),
        connection_rate: rate(table, "connection_rate", 100, SECOND, 200),
        prefix_limits: table
            .or("prefix_limits", usual_prefixes(client.v6), |item| prefix_limits(item, client.v6)),
        open_connections_max: table
            .or("open_connections_max", 512, |item| small(item, 0, map::SOCKETS_MAX)),
        fragments: table.or("fragments", Fragments::Pass, |item| item.choice(&fragments)),
        monitor: table.or("monitor", Vec::new(), monitor),
        services: table.is_there("services").then(|| {
            table.table("services", |table| {
                table.need("inbound", "[\"tcp/22\", \"ping\"]", Vec::new(), inbound)
            })
        }),
        signatures: signatures(table),
        event_rate: rate(table, "event_rate", 100, SECOND, 100),
        debug: table.or("debug", false, Item::flag),
        syn_cookies: table.table("syn_cookies", syn_cookies),
    }
}

fn syn_cookies(table: &Table<'_>) -> SynCookies {
    let words = [("off", When::Off), ("auto", When::Auto), ("always", When::Always)];
    let port = |item: &Item<'_>| u16::try_from(item.number(1, 65_535)?).ok();
    SynCookies {
        mode: table.or("mode", When::Auto, |item| item.choice(&words)),
        ports: table.or("ports", Vec::new(), |item| item.list("an array of ports: [22]", port)),
        unsolicited: table.or("unsolicited", When::Auto, |item| item.choice(&words)),
        unsolicited_rate: rate(table, "unsolicited_rate", 10_000, SECOND, 10_000),
    }
}

fn interfaces(item: &Item<'_>) -> Option<Vec<Interface>> {
    // IFNAMSIZ is 16, of which one is the closing zero.
    let name = |item: &Item<'_>| {
        item.word(15, "printable characters but '/' and ':'", |c| {
            c.is_ascii_graphic() && !"/:".contains(c)
        })
    };
    let interface = |item: &Item<'_>| {
        let table = item.inline(|table| {
            let attach = table.or("attach", None, |item| attach(item).map(Some));
            let name = table.need("name", "\"eth0\"", String::new(), name);
            Some(Interface { name, attach }).filter(|interface| !interface.name.is_empty())
        });
        table.unwrap_or_else(|| Some(Interface { name: name(item)?, attach: None }))
    };
    let help = "an array of interfaces: [\"eth0\", { name = \"eth1\", attach = \"generic\" }]";
    let found = some_of(item, help, interface)?;
    let names: HashSet<_> = found.iter().map(|interface| &interface.name).collect();
    if names.len() < found.len() {
        return item.wrong("'interfaces' names one twice", "leave one out");
    }
    Some(found)
}

fn attach(item: &Item<'_>) -> Option<Attach> {
    // No network card runs a program that looks up sockets and writes to ring buffers.
    if item.is_text() && item.text("a mode") == Some("offload") {
        return item.wrong(
            "a network card cannot hold the packet program: cards have no socket look-ups and no ring buffers",
            "\"native\" is the fastest that there is",
        );
    }
    item.choice(&[("auto", Attach::Auto), ("native", Attach::Native), ("generic", Attach::Generic)])
}

/// The prefixes that providers commonly give to one customer, as far as they are wider than a
/// client.
fn usual_prefixes(client: u32) -> Vec<PrefixLimit> {
    let usual = [PrefixLimit { prefix: 56, factor: 4 }, PrefixLimit { prefix: 48, factor: 16 }];
    usual.into_iter().filter(|limit| limit.prefix < client).collect()
}

fn prefix_limits(item: &Item<'_>, client: u32) -> Option<Vec<PrefixLimit>> {
    let example = "{ prefix = 56, factor = 4 }";
    let above = std::cell::Cell::new(client);
    let limits = item.list(&format!("an array of prefixes: [{example}]"), |item| {
        let limit = item.inline(|table| PrefixLimit {
            prefix: table.need("prefix", "56", 0, |item| small(item, 1, 63)),
            factor: table.need("factor", "4", 0, |item| small(item, 1, 1_000_000)),
        });
        let Some(limit) = limit else { return item.wrong_kind(example) };
        if limit.prefix == 0 || limit.factor == 0 {
            return None;
        }
        let before = above.replace(limit.prefix);
        if limit.prefix >= before {
            let what = format!("a /{} does not lie around a /{before}", limit.prefix);
            return item.wrong(what, "shorter than 'ipv6_prefix', and the narrower first");
        }
        Some(limit)
    })?;
    if limits.len() >= map::LEVELS {
        let most = map::LEVELS - 1;
        return item.wrong(format!("'{}' names too many", item.key), format!("at most {most}"));
    }
    Some(limits)
}

/// The reasons that refuse packets, by their names.
fn refusals() -> impl Iterator<Item = Reason> + Clone {
    let all = Reason::ALL.iter().copied();
    all.filter(|reason| reason.plane() == Plane::Packet && reason.blame() == Blame::Client)
}

fn monitor(item: &Item<'_>) -> Option<Vec<Reason>> {
    if item.is_flag() {
        return item.flag().map(|on| if on { refusals().collect() } else { Vec::new() });
    }
    let wanted = "true, false, or an array of reasons: [\"packet_rate\"]";
    let reason = |item: &Item<'_>| {
        let written = item.text("a reason: \"packet_rate\"")?;
        let found = refusals().find(|reason| reason.name() == written);
        found.or_else(|| {
            let what = format!("no packet is refused for '{written}'");
            item.wrong(what, suggest(written, refusals().map(Reason::name)))
        })
    };
    some_of(item, wanted, reason)
}

fn inbound(item: &Item<'_>) -> Option<Vec<Offer>> {
    item.list("an array of services: [\"tcp/443\", \"ping\"]", offer)
}

fn offer(item: &Item<'_>) -> Option<Offer> {
    let written = item.text("a service: \"tcp/443\"")?;
    let what = format!("not a service: '{written}'");
    if written == "ping" {
        return Some(Offer::Ping);
    }
    let (kind, numbers) = written.split_once('/').unwrap_or((written, ""));
    let offer: fn(u16, u16) -> Offer = match kind {
        "tcp" => Offer::Tcp,
        "udp" => Offer::Udp,
        "proto" => return protocol(item, numbers),
        _ => {
            let kinds = "\"tcp/443\", \"udp/8000-8010\", \"ping\" or \"proto/47\"";
            return item.wrong(what, kinds);
        }
    };
    let help = format!("ports are 1 to 65535: \"{kind}/443\", \"{kind}/8000-8010\"");
    let range = text::range(numbers).filter(|[from, to]| (1..=*to).contains(from));
    match range.map(|range| range.map(u16::try_from)) {
        Some([Ok(from), Ok(to)]) => Some(offer(from, to)),
        _ => item.wrong(what, help),
    }
}

fn protocol(item: &Item<'_>, number: &str) -> Option<Offer> {
    let what = format!("not a protocol: '{number}'");
    match number.parse::<u8>() {
        Ok(1 | 58) => item.wrong(what, "write \"ping\": other ICMP is always taken"),
        Ok(6 | 17) => item.wrong(what, "name the ports: \"tcp/443\", \"udp/53\""),
        Ok(number) => Some(Offer::Protocol(number)),
        Err(_) => item.wrong(what, "0 to 255: \"proto/47\" is GRE"),
    }
}

fn signatures(table: &Table<'_>) -> Vec<NamedSignature> {
    let before = RefCell::new(Vec::<NamedSignature>::new());
    table.tables("signature", |table| {
        let read = signature::signature(table, &before.borrow());
        if before.borrow().len() == map::SIGNATURES_MAX as usize {
            let what = format!("more than {} signatures", map::SIGNATURES_MAX);
            table.notes.wrong(table.span.clone(), what, "every packet is held against each");
        }
        before.borrow_mut().push(read);
    });
    before.into_inner()
}
