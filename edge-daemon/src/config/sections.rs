//! The sections of the file, key by key: names, defaults and ranges.

use std::{net::SocketAddr, time::Duration};

use edge_common::Rate;
use edge_identity::key::PREFIX_LENGTH_MAX;
use edge_policy::{forwarded::Naming, list::feed::is_wide};

use super::{
    answers,
    files::{NOTHING_PROTECTED, WIDE},
    reader::{Item, Table},
    settings::{
        AccessFormat, Audit, Bounds, Control, Events, Granted, HashPolicy, Keys, Level, List,
        ListFile, Lists, Log, Metrics, Server, State,
    },
    tls,
};
use crate::secret::Origin;

pub(super) const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

pub(super) fn lists(table: &Table<'_>) -> Lists {
    let networks = "an array of networks: [\"192.0.2.0/24\"]";
    let allowed = |item: &Item<'_>| match item.net()? {
        net if is_wide(net) => item.wrong(format!("{net} {WIDE}"), NOTHING_PROTECTED),
        net => Some(net),
    };
    let list = |nets, files| List {
        nets: table.or(nets, Vec::new(), |item| {
            let read = if nets == "allow" { &allowed } else { &Item::net as &dyn Fn(&_) -> _ };
            item.list(networks, read)
        }),
        files: table.or(files, Vec::new(), |item| {
            let file =
                |item: &Item<'_>| Some(ListFile { path: item.path()?, ..ListFile::default() });
            item.list("an array of paths", file)
        }),
    };
    Lists {
        allow: list("allow", "allow_files"),
        deny: list("deny", "deny_files"),
        networks_max: table.or("networks_max", 250_000, |item| small(item, 1_000, 10_000_000)),
        shrink_max: table.or("shrink_max", 90, |item| small(item, 0, 100)),
    }
}

pub(super) fn server(table: &Table<'_>) -> Server {
    let listeners = "an array of addresses with ports: [\"0.0.0.0:443\"]";
    let naming = [
        ("off", Naming::Off),
        ("x-forwarded-for", Naming::XForwardedFor),
        ("forwarded", Naming::Forwarded),
    ];
    let proxies = |item: &Item<'_>| match item.net()? {
        net if net.prefix_len() == 0 => {
            item.wrong(format!("{net} trusts everybody"), "the networks of your proxies alone")
        }
        net => Some(net),
    };
    let http = vec![SocketAddr::from(([0, 0, 0, 0], 80))];
    Server {
        https: table.need("https", "[\"0.0.0.0:443\"]", Vec::new(), |item| tls::listeners(item)),
        http: table.or("http", http, |item| item.list(listeners, Item::address)),
        workers: table.or("workers", 0, |item| count(item, 0, 1_024)),
        drain_timeout: table.or("drain_timeout", 10 * SECOND, |item| item.duration(HOUR)),
        aborts_on_close: table.or("abort_on_close", true, Item::flag),
        trusted_proxies: table.or("trusted_proxies", Vec::new(), |item| {
            item.list("an array of networks: [\"192.0.2.0/24\"]", proxies)
        }),
        forwarded_header: table.or("forwarded_header", Naming::Off, |item| item.choice(&naming)),
        security_headers: answers::security_headers(table),
    }
}

pub(super) fn bounds(table: &Table<'_>) -> Bounds {
    let timeout = |key, default| table.or(key, default, |item| item.duration(HOUR));
    let number = |key, default, most| table.or(key, default, |item| count(item, 1, most));
    let size = |key, default, least, most| table.or(key, default, |item| item.size(least, most));
    Bounds {
        connections_max: number("connections_max", 10_000, 10_000_000),
        requests_max: number("requests_max", 4_096, 1_000_000),
        streams_max: table.or("streams_max", 100, |item| small(item, 1, 10_000)),
        source_connections_max: number("source_connections_max", 1_024, 10_000_000),
        memory_max: size("memory_max", 0, 0, 1 << 50),
        http2_waste_max: table.or("http2_waste_max", 500, |item| small(item, 10, 1_000_000)),
        handshakes_max: number("handshakes_max", 1_024, 1_000_000),
        source_handshakes_max: number("source_handshakes_max", 128, 1_000_000),
        handshake_timeout: timeout("handshake_timeout", 5 * SECOND),
        header_timeout: timeout("header_timeout", 10 * SECOND),
        idle_timeout: timeout("idle_timeout", MINUTE),
        uri_bytes_max: narrow(size("uri_bytes_max", 8 * KIB, 64, 64 * KIB)),
        headers_max: number("headers_max", 100, 1_000),
        header_bytes_max: narrow(size("header_bytes_max", 16 * KIB, KIB, MIB)),
        body_bytes_max: size("body_bytes_max", 10 * MIB, 0, 1 << 40),
        tunnel_timeout: timeout("tunnel_timeout", 5 * MINUTE),
        body_rate_min: size("body_rate_min", KIB, 0, 1 << 30),
        answer_rate_min: size("answer_rate_min", KIB, 0, 1 << 30),
        requests_per_connection: number("requests_per_connection", 10_000, 1 << 40) as u64,
    }
}

pub(super) fn keys(table: &Table<'_>) -> Keys {
    let parameters = ["api_key", "apikey", "access_token", "key", "token"];
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let parameter = |item: &Item<'_>| {
        let word = item.word(64, "visible characters but '&', '=' and '#'", |c| {
            c.is_ascii_graphic() && !"&=#".contains(c)
        })?;
        Some(word.to_ascii_lowercase())
    };
    Keys {
        prefix: table.or("prefix", "edged".to_owned(), |item| {
            item.word(PREFIX_LENGTH_MAX, "lower-case letters and digits", alphanumeric)
        }),
        pepper: table.or("pepper", Origin::File("/var/lib/edged/pepper".into()), Item::secret),
        former_peppers: table.or("former_peppers", Vec::new(), |item| {
            let peppers = item.list("an array of references to secrets", Item::secret)?;
            if peppers.len() > FORMER_PEPPERS_MAX {
                return item.wrong(
                    "too many former peppers",
                    format!("{FORMER_PEPPERS_MAX} at most: an unknown key is looked up under each"),
                );
            }
            Some(peppers)
        }),
        hash: table.or("hash_policy", HashPolicy::KeyedAndArgon2id, |item| {
            item.choice(&[
                ("keyed", HashPolicy::Keyed),
                ("keyed+argon2id", HashPolicy::KeyedAndArgon2id),
            ])
        }),
        grace: table.or("grace", 7 * DAY, |item| item.duration(3_650 * DAY)),
        warn_before: table.or("warn_before", 14 * DAY, |item| item.duration(3_650 * DAY)),
        refuse_exposed: table
            .or("exposed", false, |item| item.choice(&[("flag", false), ("refuse", true)])),
        keys_max: table.or("keys_max", 1_000_000, |item| count(item, 1, 10_000_000)),
        expires: table.or("expires", Some(90 * DAY), |item| item.duration_or_never(36_500 * DAY)),
        url_parameters: table.or("url_parameters", parameters.map(str::to_owned).into(), |item| {
            item.list("an array of parameter names", parameter)
        }),
    }
}

/// Each costs a request with an unknown key a digest and a look-up.
const FORMER_PEPPERS_MAX: usize = 4;

pub(super) fn audit(table: &Table<'_>) -> Audit {
    let granted = [("each", Granted::Each), ("summed", Granted::Summed), ("none", Granted::None)];
    Audit {
        dir: table.or("dir", "/var/lib/edged/audit".into(), Item::path),
        key: table.or("key", Origin::File("/var/lib/edged/audit.key".into()), Item::secret),
        granted: table.or("granted", Granted::Each, |item| item.choice(&granted)),
        file_bytes_max: table.or("file_bytes_max", 64 * MIB, |item| item.size(64 * KIB, 1 << 40)),
        files_max: table.or("files_max", 32, |item| count(item, 2, 100_000)),
    }
}

pub(super) fn state(table: &Table<'_>) -> State {
    State { dir: table.or("dir", "/var/lib/edged".into(), Item::path) }
}

pub(super) fn control(table: &Table<'_>) -> Control {
    // What `sockaddr_un` holds, less the closing zero.
    let socket = |item: &Item<'_>| match item.path()? {
        path if path.as_os_str().len() > 107 => {
            item.wrong("the path of the socket is too long", "at most 107 bytes")
        }
        path => Some(path),
    };
    Control { socket: table.or("socket", "/run/edged/control.sock".into(), socket) }
}

pub(super) fn metrics(table: &Table<'_>) -> Metrics {
    let listen = SocketAddr::from(([127, 0, 0, 1], 9_464));
    Metrics { listen: table.or("listen", listen, Item::address) }
}

pub(super) fn log(table: &Table<'_>) -> Log {
    let levels = [
        ("error", Level::Error),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("debug", Level::Debug),
        ("trace", Level::Trace),
    ];
    // A bare word is more likely a misspelt "stdout" than a file in the working directory.
    let events = |item: &Item<'_>| match item.text("\"stdout\" or a path")? {
        "stdout" => Some(Events::Stdout),
        path if path.contains('/') => Some(Events::File(path.into())),
        word => {
            item.wrong(format!("'events' cannot be '{word}'"), "\"stdout\", or a path with a '/'")
        }
    };
    let formats = [("json", AccessFormat::Json), ("combined", AccessFormat::Combined)];
    let access = |item: &Item<'_>| match item.text("\"off\", \"stdout\" or a path")? {
        "off" => Some(None),
        "stdout" => Some(Some(Events::Stdout)),
        path if path.contains('/') => Some(Some(Events::File(path.into()))),
        word => {
            let help = "\"off\", \"stdout\", or a path with a '/'";
            item.wrong(format!("'access' cannot be '{word}'"), help)
        }
    };
    Log {
        access: table.or("access", None, access),
        access_format: table.or("access_format", AccessFormat::Json, |i| i.choice(&formats)),
        level: table.or("level", Level::Info, |item| item.choice(&levels)),
        events: table.or("events", Events::Stdout, events),
    }
}

/// An array of at least one value, none of them twice.
pub(super) fn some_of<'n, T: PartialEq>(
    item: &Item<'n>,
    wanted: &str,
    read: impl Fn(&Item<'n>) -> Option<T>,
) -> Option<Vec<T>> {
    let before = std::cell::RefCell::new(Vec::new());
    let faulty = std::cell::Cell::new(false);
    item.list(wanted, |item| {
        match read(item) {
            Some(value) if before.borrow().contains(&value) => {
                return item.wrong(format!("'{}' names this twice", item.key), "leave one out");
            }
            Some(value) => before.borrow_mut().push(value),
            None => faulty.set(true),
        }
        None::<()>
    })?;
    let values = before.into_inner();
    if values.is_empty() && !faulty.get() {
        return item.wrong(format!("'{}' is empty", item.key), format!("should be {wanted}"));
    }
    Some(values)
}

pub(super) fn rate(
    table: &Table<'_>,
    key: &'static str,
    count: u64,
    period: Duration,
    burst: u64,
) -> Rate {
    let period = u64::try_from(period.as_nanos()).expect("a default period is short");
    let default = Rate::new(count, period, burst).expect("a default rate is in range");
    table.or(key, default, Item::rate)
}

pub(super) fn small(item: &Item<'_>, least: u32, most: u32) -> Option<u32> {
    u32::try_from(item.number(least.into(), most.into())?).ok()
}

pub(super) fn count(item: &Item<'_>, least: u64, most: u64) -> Option<usize> {
    usize::try_from(item.number(least, most)?).ok()
}

/// A size that was checked to be small.
fn narrow(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
