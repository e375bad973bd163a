//! Reads `[fleet]`.

use std::time::Duration;

use edge_common::ClientWidth;
use edge_identity::fleet::is_word;
use edge_policy::limit::{lease::NODES_MAX, meter::Meter};
use toml::de::DeTable;

use super::{
    reader::{Item, Notes, Table},
    settings::{Fleet, FleetServer, Settings},
    whole::{place, place_nth},
};
use crate::tls::client;

/// What is said of a fleet; `None` without a `server`.
pub(super) fn fleet(table: &Table<'_>, width: ClientWidth) -> Option<Fleet> {
    let server = table.or("server", None, |item| server(item).map(Some));
    let secret = table.or("secret", None, |item| item.secret().map(Some));
    let user = table.or("user", None, |item| name(item).map(Some));
    let password = table.or("password", None, |item| item.secret().map(Some));
    let node = table.or("node", None, |item| name(item).map(Some));
    let is_plain = server.as_ref().is_some_and(|server| !server.is_secure);
    let authorities = table.or("authorities", None, |item| match is_plain {
        true => item.wrong("'authorities' are for TLS", SECURE),
        false => item.path().map(Some),
    });
    let certificate = table.or("client_certificate", None, |item| match is_plain {
        true => item.wrong("a certificate is for TLS", SECURE),
        false => item.path().map(Some),
    });
    let key = table.or("client_key", None, |item| item.secret().map(Some));
    if certificate.is_some() != key.is_some() && !is_plain {
        let missing = if key.is_some() { "client_certificate" } else { "client_key" };
        let what = format!("missing key '{missing}' in [fleet]");
        table.notes.wrong(table.span.clone(), what, "a certificate and its key");
    }
    let client = certificate.zip(key);
    let fleet = Fleet {
        server: FleetServer { authorities, client, ..server.clone().unwrap_or_default() },
        login: (user, password),
        name: table.or("name", "edged".to_owned(), name),
        node: node.unwrap_or_else(host_name),
        secret: secret.clone()?,
        nodes: table.or("nodes", 2, |item| usize::try_from(item.number(1, NODES_MAX as u64)?).ok()),
        timeout: table.or("timeout", Duration::from_millis(500), |item| {
            item.duration(Duration::from_secs(2))
        }),
        bans: table.or("bans", true, Item::flag),
        client: width,
    };
    if !is_word(&fleet.node) {
        let what = format!("this host's name, '{}', cannot be the edge's", fleet.node);
        table.notes.wrong(table.span.clone(), what, "node = \"edge-1\"");
    }
    Some(fleet)
}

/// What this host is called.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Reads what the server is spoken to with once, to tell now what would fail later.
pub(super) fn inspect(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let server = settings.fleet.iter().map(|fleet| &fleet.server).find(|server| server.is_secure);
    let Some(FleetServer { authorities, client: own, .. }) = server else { return };
    let wrong = |key, fault: std::io::Error, help: &str| {
        notes.wrong(place(document, "fleet", key), fault.to_string(), help);
    };
    if let (Some(_), Err(fault)) = (authorities, client::bare(authorities.as_deref(), None)) {
        wrong("authorities", fault, "a PEM file with certificates of authorities");
    } else if let Some((_, key)) = own
        // What is wrong with a secret by itself is told already.
        && key.read().is_ok()
        && let Err(fault) = client::bare(authorities.as_deref(), own.as_ref())
    {
        wrong("client_certificate", fault, "a certificate and its key, both PEM");
    }
}

/// What no single key can tell.
pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let keys = document.get("fleet").and_then(|fleet| fleet.get_ref().as_table());
    if let Some(keys) = keys {
        for key in ["server", "secret"].into_iter().filter(|key| keys.get(*key).is_none()) {
            let span = document.get("fleet").map_or(0..0, toml::Spanned::span);
            notes.wrong(span, format!("missing key '{key}' in [fleet]"), "'server' and 'secret'");
        }
    }
    let shared = settings.limits.iter().filter(|spec| spec.fleet);
    for spec in shared {
        let tables = document.get("limit").and_then(|tables| tables.get_ref().as_array());
        let named = |n: &usize| {
            let table = tables.and_then(|tables| tables.get(*n)?.get_ref().get("name"));
            table.and_then(|name| name.get_ref().as_str()) == Some(&*spec.name)
        };
        let n = (0..tables.map_or(0, |tables| tables.len())).find(named).unwrap_or(0);
        let span = place_nth(document, "limit", n, "scope");
        if settings.fleet.is_none() {
            notes.wrong(span.clone(), "there is no [fleet] to share the limit with", "add one");
        }
        let is_rate = matches!(spec.meter, Some(Meter::TokenBucket(_) | Meter::LeakyBucket(_)));
        if !is_rate || !spec.tiers.is_empty() {
            let what = "a fleet shares rates: a token bucket or a leaky bucket, without tiers";
            notes.wrong(span, what, "another algorithm, or a scope of \"node\"");
        }
    }
}

/// "redis://HOST:PORT/DATABASE", or "rediss://" for TLS.
fn server(item: &Item<'_>) -> Option<FleetServer> {
    let text = item.text("a server: \"redis://127.0.0.1:6379\"")?;
    let parse = || {
        let (scheme, rest) = text.split_once("://")?;
        let is_secure = match scheme {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return None,
        };
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let authority: http::uri::Authority = authority.parse().ok()?;
        let database = if database.is_empty() { Some(0) } else { database.parse::<u8>().ok() };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_plain = !authority.as_str().contains('@') && !host.is_empty();
        let (port, database) = (authority.port_u16().unwrap_or(6379), database?.into());
        let server = FleetServer { host, port, database, is_secure, ..FleetServer::default() };
        is_plain.then_some(server)
    };
    parse().or_else(|| {
        let help = "\"redis://HOST:PORT/DATABASE\", \"rediss://\" for TLS; who logs in is told by 'user' and 'password'";
        item.wrong(format!("'{text}' cannot be used"), help)
    })
}

const SECURE: &str = "\"rediss://HOST\", or leave it out";

fn name(item: &Item<'_>) -> Option<String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    item.word(64, "letters, digits, '-', '_' and '.'", letters)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::parse;

    const MINIMAL: &str = include_str!("../../../config/minimal.toml");

    fn told(lines: &str) -> String {
        match parse(Path::new("edged.toml"), &format!("{MINIMAL}\n{lines}\n")) {
            Ok((settings, _)) => format!("{:?}", settings.fleet),
            Err(mistakes) => mistakes.to_string(),
        }
    }

    #[test]
    fn a_fleet_has_a_server_and_a_secret() {
        let good = "[fleet]\nserver = \"redis://[::1]:7000/3\"\nsecret = \"env:S\"\nnode = \"a\"";
        let server = "host: \"::1\", port: 7000, database: 3, is_secure: false";
        assert!(told(good).contains(server), "{}", told(good));
        let secure = good.replace("redis", "rediss") + "\nauthorities = \"ca.pem\"";
        assert!(told(&secure).contains("is_secure: true, authorities: Some(\"ca.pem\")"));
        assert!(told(&format!("{good}\nauthorities = \"ca.pem\"")).contains("are for TLS"));
        for text in [good, &secure] {
            assert_eq!(told(&text.replace("redis", "valkey")), told(text));
        }
        for (lines, what) in [
            ("[fleet]\nserver = \"redis://h\"\nnode = \"a\"", "missing key 'secret'"),
            ("[fleet]\nsecret = \"env:S\"\nnode = \"a\"", "missing key 'server'"),
            (&format!("{good}\nclient_certificate = \"c\""), "a certificate is for TLS"),
            (&format!("{secure}\nclient_certificate = \"c\""), "missing key 'client_key'"),
            (&format!("{secure}\nclient_key = \"env:K\""), "missing key 'client_certificate'"),
            ("[fleet]\nserver = \"redis://u:p@h\"\nsecret = \"env:S\"", "cannot be used"),
            ("[fleet]\nserver = \"http://h\"\nsecret = \"env:S\"", "cannot be used"),
            ("[[limit]]\nname = \"a\"\nby = []\nrate = \"5/s\"\nscope = \"fleet\"", "no [fleet]"),
        ] {
            assert!(told(lines).contains(what), "{lines}: {}", told(lines));
        }
        for (limit, what) in [
            ("by = [\"source\"]\nrate = \"5/s\"\ntiers = { a = \"9/s\" }", "without tiers"),
            ("by = []\nalgorithm = \"fixed_window\"\nrate = \"5/m\"", "shares rates"),
        ] {
            let lines = format!("{good}\n[[limit]]\nname = \"a\"\nscope = \"fleet\"\n{limit}");
            assert!(told(&lines).contains(what), "{lines}: {}", told(&lines));
        }
    }
}
