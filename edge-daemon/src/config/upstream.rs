//! Reads `[[upstream]]`: where requests go, and what is done when that fails.

use std::{ops::Range, time::Duration};

use edge_policy::upstream::{
    balance::{Balance, HashBy},
    circuit,
    health::{CheckRule, EjectionRule},
};
use http::StatusCode;
use toml::de::DeTable;

use super::{
    reader::{Item, Notes, Table},
    sections::{SECOND, count, small, some_of},
    settings::{
        Address, Certificate, Check, SYSTEM_CA, Settings, Upstream, UpstreamServer as Server,
        UpstreamTls,
    },
    tls::inspect_pair,
};
use crate::tls::{Connector, Part, UpstreamTlsError};

pub(super) fn upstream(table: &Table<'_>) -> Upstream {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let time = |key, default, most| table.or(key, default, |item| item.duration(most));
    let number = |key, default, most| table.or(key, default, |item| count(item, 0, most));
    Upstream {
        name: table.need("name", "\"api\"", String::new(), |item| {
            item.word(64, "letters, digits, '-', '_' and '.'", letters)
        }),
        servers: table.need("servers", "[\"127.0.0.1:8080\"]", Vec::new(), servers),
        balance: balance(table),
        connect_timeout: time("connect_timeout", 2 * SECOND, HOUR),
        response_timeout: time("response_timeout", 30 * SECOND, DAY),
        body_timeout: time("body_timeout", 30 * SECOND, DAY),
        total_timeout: table.or("total_timeout", None, |item| item.duration_or_never(DAY)),
        requests_max: table.or("requests_max", 1_024, |item| count(item, 1, 65_535)),
        server_requests_max: table.or("server_requests_max", 512, |item| count(item, 1, 65_535)),
        queue_max: number("queue_max", 128, 65_535),
        queue_timeout: time("queue_timeout", SECOND, HOUR),
        idle_max: number("idle_max", 256, 4_096),
        idle_timeout: time("idle_timeout", 4 * SECOND, HOUR),
        age_max: time("age_max", HOUR, 30 * DAY),
        retries_max: table.or("retries_max", 1, |item| small(item, 0, 10)),
        retry_budget: table.or("retry_budget", 20, |item| small(item, 0, 100)),
        retry_statuses: table.or("retry_statuses", Vec::new(), |item| {
            item.list("an array of statuses: [502, 503]", status)
        }),
        slow_start: table.or("slow_start", Duration::ZERO, |item| {
            item.duration_or_never(DAY).map(Option::unwrap_or_default)
        }),
        resolve_every: time("resolve_every", 30 * SECOND, DAY),
        check: table.or("check", None, |item| {
            let read = item.inline(check).map(Some);
            read.or_else(|| item.wrong_kind("a table: { path = \"/health\" }"))
        }),
        ejection: table.table("ejection", ejection),
        circuit: table.table("circuit", circuit),
        http2: table.or("http2", false, Item::flag),
        tls: table.or("tls", None, tls),
    }
}

fn servers(item: &Item<'_>) -> Option<Vec<Server>> {
    let wanted =
        "an array of servers: [\"127.0.0.1:8080\", \"app.internal:80\", \"unix:/run/app.sock\"]";
    let servers = some_of(item, wanted, server)?;
    if servers.len() > SERVERS_MAX {
        let what = format!("{} servers", servers.len());
        return item.wrong(what, format!("at most {SERVERS_MAX} in one upstream"));
    }
    let twice = |n: usize| servers[..n].iter().any(|s| s.address == servers[n].address);
    if let Some(n) = (0..servers.len()).find(|n| twice(*n)) {
        let what = format!("'{}' is there twice", servers[n].address);
        return item.wrong(what, "once, with a 'weight'");
    }
    Some(servers)
}

/// `"127.0.0.1:8080"`, or `{ address = "127.0.0.1:8080", weight = 3 }`.
fn server(item: &Item<'_>) -> Option<Server> {
    if item.is_text() {
        return Some(Server { address: address(item)?, weight: 1 });
    }
    let read = item.inline(|table| {
        let weight = table.or("weight", 1, |item| small(item, 1, 100));
        let address =
            table.need("address", "\"127.0.0.1:8080\"", None, |item| address(item).map(Some));
        address.map(|address| Server { address, weight })
    });
    read.unwrap_or_else(|| item.wrong_kind("a server: \"127.0.0.1:8080\""))
}

/// An address, a name or a unix socket that can be connected to.
fn address(item: &Item<'_>) -> Option<Address> {
    let written = item.text("a server: \"127.0.0.1:8080\"")?;
    if let Some(path) = written.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Some(Address::Unix(path.into())),
            false => {
                item.wrong(format!("no socket: '{written}'"), "such as \"unix:/run/app.sock\"")
            }
        };
    }
    if let Some((name, port)) = written.rsplit_once(':')
        && let Ok(port) = port.parse::<u16>()
        && is_name(name)
    {
        if port == 0 {
            return item.wrong(format!("nothing answers at {written}"), "the server's own port");
        }
        return Some(Address::Name(name.to_ascii_lowercase(), port));
    }
    let address = item.address()?;
    if address.port() == 0 || address.ip().is_unspecified() {
        let help = "a server's own address and port";
        return item.wrong(format!("nothing answers at {address}"), help);
    }
    Some(Address::Ip(address))
}

/// Whether a text is a name in the DNS: the last label of an address would be a number.
fn is_name(text: &str) -> bool {
    let labels = || text.split('.');
    let fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    let last = labels().next_back().unwrap_or_default();
    text.len() <= 253 && labels().all(fits) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

fn balance(table: &Table<'_>) -> Balance {
    let words = [("round_robin", 0), ("least_loaded", 1), ("hash", 2)];
    let word = table.or("balance", 0, |item| item.choice(&words));
    let by = table.or("hash_by", HashBy::Source, |item| {
        if word != 2 {
            return item.wrong("'hash_by' chooses nothing", "it goes with balance = \"hash\"");
        }
        hash_by(item)
    });
    match word {
        0 => Balance::RoundRobin,
        1 => Balance::LeastLoaded,
        _ => Balance::Hash(by),
    }
}

fn hash_by(item: &Item<'_>) -> Option<HashBy> {
    let wanted = "\"source\", \"path\", \"header:x-user\" or \"cookie:sid\"";
    let written = item.text(wanted)?;
    match written.split_once(':').unwrap_or((written, "")) {
        ("source", "") => Some(HashBy::Source),
        ("path", "") => Some(HashBy::Path),
        ("header", name) => match name.parse() {
            Ok(name) => Some(HashBy::Header(name)),
            Err(_) => item.wrong(format!("not the name of a header: '{name}'"), wanted),
        },
        ("cookie", name) if !name.is_empty() => Some(HashBy::Cookie(name.to_owned())),
        _ => item.wrong(format!("'hash_by' cannot be '{written}'"), wanted),
    }
}

fn status(item: &Item<'_>) -> Option<StatusCode> {
    let number = item.number(400, 599)?;
    u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok())
}

fn check(table: &Table<'_>) -> Check {
    let host = |item: &Item<'_>| {
        let written = item.text("a host name")?;
        match written.parse::<edge_policy::head::Host>() {
            Ok(host) => Some(Some(host.to_string())),
            Err(fault) => item.wrong(format!("'{written}' {fault}"), "such as \"app.internal\""),
        }
    };
    let status = table.or("status", [200, 299], |item| item.range(100, 599));
    Check {
        path: table.need("path", "\"/health\"", "/".to_owned(), |item| {
            let path = item.text("a path: \"/health\"")?;
            if path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Some(path.to_owned());
            }
            item.wrong(format!("'path' cannot be '{path}'"), "such as \"/health?deep=1\"")
        }),
        host: table.or("host", None, host),
        interval: table.or("interval", 5 * SECOND, |item| item.duration(HOUR)),
        timeout: table.or("timeout", 2 * SECOND, |item| item.duration(MINUTE)),
        rule: CheckRule {
            fall: table.or("fall", 3, |item| small(item, 1, 100)),
            rise: table.or("rise", 2, |item| small(item, 1, 100)),
        },
        status: status.map(|number| u16::try_from(number).unwrap_or(u16::MAX)),
    }
}

fn ejection(table: &Table<'_>) -> EjectionRule {
    EjectionRule {
        failures: table.or("failures", 5, |item| small(item, 0, 10_000)),
        first_ns: ns(table.or("first", 10 * SECOND, |item| item.duration(DAY))),
        most_ns: ns(table.or("most", 5 * MINUTE, |item| item.duration(DAY))),
        keep_percent: table.or("keep", 50, |item| small(item, 0, 100)),
    }
}

fn circuit(table: &Table<'_>) -> circuit::Rule {
    let off = 101;
    let share = table.or("failures", 50, |item| {
        if item.is_text() { item.choice(&[("off", off)]) } else { item.number(1, 100) }
    });
    circuit::Rule {
        failures_percent: share,
        requests_min: table.or("requests_min", 20, |item| item.number(1, 1_000_000)),
        window_ns: ns(table.or("window", 10 * SECOND, |item| item.duration(HOUR))),
        open_ns: ns(table.or("open", 5 * SECOND, |item| item.duration(HOUR))),
    }
}

/// `true`, or a table of what differs from the usual.
fn tls(item: &Item<'_>) -> Option<Option<UpstreamTls>> {
    let usual =
        || UpstreamTls { ca: SYSTEM_CA.into(), server_name: None, pins: Vec::new(), client: None };
    if item.is_flag() {
        return Some(item.flag()?.then(usual));
    }
    let read = item.inline(|table| {
        let path = |key| table.or(key, None, |item| item.path().map(Some));
        let (certificate, key) = (path("client_certificate"), path("client_key"));
        if certificate.is_some() != key.is_some() {
            let missing = if key.is_some() { "client_certificate" } else { "client_key" };
            let what = format!("missing key '{missing}' in 'tls'");
            table.notes.wrong(table.span.clone(), what, "a certificate and its key");
        }
        UpstreamTls {
            ca: table.or("ca", SYSTEM_CA.into(), Item::path),
            server_name: table.or("server_name", None, |item| {
                item.word(253, "a name in the DNS", |c| {
                    c.is_ascii_alphanumeric() || "-.".contains(c)
                })
                .map(Some)
            }),
            pins: table.or("pins", Vec::new(), |item| item.list("an array of digests", pin)),
            client: certificate.zip(key).map(|(chain, key)| Certificate {
                chain,
                key,
                ocsp: None,
                names: Vec::new(),
            }),
        }
    });
    read.map(Some).or_else(|| item.wrong_kind("true, or a table: { ca = \"/etc/edged/ca.pem\" }"))
}

/// Reads what upstreams are spoken to with once, to tell now what would fail later.
pub(super) fn inspect(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    for (n, upstream) in settings.upstreams.iter().enumerate() {
        let Some(tls) = &upstream.tls else { continue };
        // Files that are named are read as they will be; the rest is said by the reader.
        if upstream.files().any(|path| path.as_os_str().is_empty()) {
            continue;
        }
        let place = |key: &str| place_in_tls(document, n, key);
        if let Some(client) = &tls.client {
            let place =
                |part| place(if part == Part::Key { "client_key" } else { "client_certificate" });
            inspect_pair(client, "servers", place, notes);
        }
        match Connector::load(tls, upstream.http2) {
            // That is told above.
            Ok(_) | Err(UpstreamTlsError::Client(_)) => {}
            Err(fault) => {
                let help = "a PEM file with certificates of authorities";
                notes.wrong(place("ca"), fault.to_string(), help);
            }
        }
    }
}

/// Where a key of the n-th upstream's `tls` stands.
fn place_in_tls(document: &DeTable<'_>, n: usize, key: &str) -> Range<usize> {
    let upstreams = document.get("upstream").and_then(|array| array.get_ref().as_array());
    let upstream = upstreams.and_then(|array| array.get(n)?.get_ref().as_table());
    let tls = upstream.and_then(|upstream| upstream.get("tls"));
    let value = tls.and_then(|tls| tls.get_ref().as_table()?.get(key).or(Some(tls)));
    value.or(tls).map_or(0..0, toml::Spanned::span)
}

/// SHA-256 of a SubjectPublicKeyInfo, in hexadecimal.
fn pin(item: &Item<'_>) -> Option<[u8; 32]> {
    let written = item.text("a digest")?;
    let bytes: Option<Vec<u8>> = (0..written.len() / 2)
        .map(|n| u8::from_str_radix(written.get(2 * n..2 * n + 2)?, 16).ok())
        .collect();
    let pin = bytes.filter(|_| written.len() == 64).and_then(|bytes| bytes.try_into().ok());
    let help = "64 hexadecimal digits: openssl pkey -pubin -outform der | sha256sum";
    pin.or_else(|| item.wrong(format!("not a SHA-256 digest: '{written}'"), help))
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Servers of one upstream: a bit of a word tells of each whether it was tried.
const SERVERS_MAX: usize = 64;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::parse, *};

    /// The upstream with these keys beside its name, of which the first is in line 10.
    fn read(keys: &str) -> Result<Upstream, String> {
        let text = format!(
            "[kernel]\ninterfaces = [\"eth0\"]\n[server]\nhttps = [\"0.0.0.0:443\"]\n[tls]\n\
             certificate = \"c\"\nkey = \"k\"\n[[upstream]]\nname = \"api\"\n{keys}\n"
        );
        let read = parse(Path::new("edged.toml"), &text);
        let upstream = read.map(|(settings, _)| settings.upstreams.into_iter().next());
        upstream.map(|one| one.expect("one")).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn an_upstream_is_read_as_it_is_written() {
        let pin = "ab".repeat(32);
        let keys = format!(
            "servers = [\"10.0.0.1:80\", {{ address = \"App.internal:81\", weight = 3 }}, \
             \"unix:/run/a.sock\", \"[::1]:82\"]\nbalance = \"hash\"\nhash_by = \"cookie:sid\"\n\
             total_timeout = \"1m\"\nretry_statuses = [502]\ncheck = {{ path = \"/h\", status = 204 }}\n\
             circuit = {{ failures = \"off\" }}\n\
             tls = {{ pins = [\"{pin}\"], client_certificate = \"c\", client_key = \"k\" }}"
        );
        let upstream = read(&keys).unwrap();
        let servers: Vec<_> = upstream.servers.iter().map(|s| s.address.to_string()).collect();
        assert_eq!(servers, ["10.0.0.1:80", "app.internal:81", "unix:/run/a.sock", "[::1]:82"]);
        assert_eq!(upstream.servers[1].weight, 3);
        assert_eq!(upstream.balance, Balance::Hash(HashBy::Cookie("sid".into())));
        assert_eq!(upstream.total_timeout, Some(Duration::from_secs(60)));
        assert_eq!(upstream.check.unwrap().status, [204, 204]);
        assert_eq!(upstream.circuit.failures_percent, 101);
        let tls = upstream.tls.unwrap();
        assert_eq!((tls.pins.as_slice(), tls.client.is_some()), (&[[0xab; 32]][..], true));
        let plain = read("servers = [\"10.0.0.1:80\"]\ntls = false").unwrap();
        assert_eq!((plain.tls, plain.check, plain.balance), (None, None, Balance::RoundRobin));
        assert!(read("servers = [\"10.0.0.1:80\"]\ntls = true").unwrap().tls.is_some());
    }

    #[test]
    fn what_cannot_be_an_upstream_is_told_with_its_line() {
        let one = "servers = [\"10.0.0.1:80\"]\n";
        let many: Vec<_> = (0..65).map(|n| format!("\"10.0.1.{n}:80\"")).collect();
        let many = format!("servers = [{}]", many.join(", "));
        for (keys, line, what) in [
            ("servers = [\"unix:run/a.sock\"]", 10, "no socket"),
            ("servers = [\"app.internal\"]", 10, "the port is missing"),
            ("servers = [\"app.internal:0\"]", 10, "nothing answers"),
            ("servers = [\"10.0.0.256:80\"]", 10, "not an address"),
            ("servers = [\"-/x:80\"]", 10, "not an address"),
            ("servers = [\"a.b:80\", { address = \"a.b:80\", weight = 2 }]", 10, "there twice"),
            ("servers = [{ address = \"10.0.0.1:80\", weight = 0 }]", 10, "out of range"),
            ("servers = [{ weight = 2 }]", 10, "missing key 'address'"),
            (&many, 10, "65 servers"),
            (&format!("{one}balance = \"hsh\""), 11, "did you mean 'hash'"),
            (&format!("{one}hash_by = \"path\""), 11, "goes with balance"),
            (&format!("{one}balance = \"hash\"\nhash_by = \"header:a b\""), 12, "name of a header"),
            (&format!("{one}balance = \"hash\"\nhash_by = \"cookie:\""), 12, "cannot be"),
            (&format!("{one}retry_statuses = [200]"), 11, "out of range"),
            (&format!("{one}check = true"), 11, "a table"),
            (&format!("{one}check = {{ path = \"h\" }}"), 11, "'path' cannot be"),
            (&format!("{one}circuit = {{ failures = \"of\" }}"), 11, "did you mean 'off'"),
            (
                &format!("{one}tls = {{ client_key = \"k\" }}"),
                11,
                "missing key 'client_certificate'",
            ),
            (&format!("{one}tls = {{ pins = [\"abc\"] }}"), 11, "not a SHA-256 digest"),
            (&format!("{one}tls = {{ verify = false }}"), 11, "unknown key 'verify'"),
        ] {
            let told = read(keys).unwrap_err();
            assert!(told.contains(&format!("edged.toml:{line}:")), "{keys}\n{told}");
            assert!(told.contains(what), "{keys}\n{told}");
            assert!(told.ends_with("1 mistake"), "{keys}\n{told}");
        }
    }
}
