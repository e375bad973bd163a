//! Reads what is done about browsers, by a route: cross-origin sharing, requests with cookies; and by any:
//! security headers.

use std::time::Duration;

use edge_policy::{
    cors::{self, Cors},
    csrf::{Csrf, Token},
    route::Answers,
    shield::{self, Secured},
};
use http::{HeaderName, HeaderValue};

use super::reader::{Item, Table};

/// What a route does; `usual` are the security headers of those that say nothing of them.
pub(super) fn answers(table: &Table<'_>, usual: &shield::Overrides) -> Answers {
    let cors = table.or("cors", None, |item| Some(Some(sharing(item)?)));
    // Whose scripts may send cookies along may well change something with them.
    let trusted = cors.as_ref().filter(|cors| cors.credentials);
    let trusted = trusted.and_then(|cors| cors.origins.clone()).unwrap_or_default();
    let mut csrf = table.or("csrf", Csrf::default(), csrf);
    csrf.origins.extend(trusted);
    let mut headers = security_headers(table);
    let unnamed = usual.iter().filter(|(name, _)| headers.iter().all(|(own, _)| own != name));
    headers.extend(unnamed.cloned().collect::<Vec<_>>());
    Answers {
        cors,
        csrf,
        headers: Secured::new(&headers),
        show_errors: table.or("show_errors", false, Item::flag),
    }
}

/// `cors = { origins = ["https://app.example"], credentials = true }`
fn sharing(item: &Item<'_>) -> Option<Cors> {
    let read = item.inline(|table| {
        let wanted = "[\"https://app.example\"], or \"*\"";
        let origins = table.need("origins", wanted, Some(Vec::new()), |item| {
            if item.is_text() {
                return match item.text(wanted)? {
                    "*" => Some(None),
                    other => item.wrong(format!("'origins' cannot be '{other}'"), wanted),
                };
            }
            item.list(wanted, origin).map(Some)
        });
        let credentials = table.or("credentials", false, |item| match (item.flag()?, &origins) {
            (true, None) => item.wrong(
                "every site's scripts could ask in the name of whoever visits it",
                "list the 'origins' that may, or leave 'credentials' out",
            ),
            (credentials, _) => Some(credentials),
        });
        let max_age = Duration::from_secs(600);
        let max_age = table.or("max_age", max_age, |item| item.duration(DAY));
        let names = |key| table.or(key, Vec::new(), |item| item.list(NAMES, header_name));
        Cors {
            origins,
            headers: names("headers"),
            expose: names("expose"),
            credentials,
            max_age_s: max_age.as_secs(),
        }
    });
    read.or_else(|| item.wrong_kind("a table: { origins = [\"https://app.example\"] }"))
}

/// `true`, `false`, or what differs from the usual: other sites that may, a token to repeat.
fn csrf(item: &Item<'_>) -> Option<Csrf> {
    if item.is_flag() {
        return Some(Csrf { enabled: item.flag()?, ..Csrf::default() });
    }
    let read = item.inline(|table| {
        let origins = table.or("origins", Vec::new(), |item| {
            item.list("an array of origins: [\"https://app.example\"]", origin)
        });
        let header = HeaderName::from_static("x-csrf-token");
        let header = table.or("token_header", header, header_name);
        let cookie = table.or("token_cookie", None, |item| cookie(item).map(Some));
        Csrf { enabled: true, origins, token: cookie.map(|cookie| Token { cookie, header }) }
    });
    read.or_else(|| item.wrong_kind("true, false, or a table: { token_cookie = \"__Host-csrf\" }"))
}

fn origin(item: &Item<'_>) -> Option<String> {
    let written = item.text("an origin: \"https://app.example\"")?;
    if written.contains('*') {
        let what = format!("not an origin: '{written}'");
        return item.wrong(what, "each origin in full; for every one, origins = \"*\"");
    }
    if !cors::is_origin(written) {
        let help = "as a browser sends it: \"https://app.example\", in lower case, with no path \
                    and no usual port";
        return item.wrong(format!("not an origin: '{written}'"), help);
    }
    Some(written.to_owned())
}

pub(super) fn cookie(item: &Item<'_>) -> Option<String> {
    item.word(128, "letters, digits and '-_.'", |c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

pub(super) fn header_name(item: &Item<'_>) -> Option<HeaderName> {
    let written = item.text("the name of a header")?;
    match written.parse() {
        Ok(name) if !written.contains('_') => Some(name),
        _ => item.wrong(format!("not the name of a header: '{written}'"), "such as \"x-version\""),
    }
}

/// `security_headers = { content-security-policy = "default-src 'self'", x-frame-options = false }`
pub(super) fn security_headers(table: &Table<'_>) -> shield::Overrides {
    let wanted = "a table: { x-frame-options = \"SAMEORIGIN\" }";
    table.or("security_headers", Vec::new(), |item| {
        let read = item.inline(|table| {
            let value = |name: &'static str| {
                let name_of = HeaderName::from_static(name);
                let value = table.item(name).and_then(|item| header_value(&item))?;
                Some((name_of, value))
            };
            shield::secured().filter_map(value).collect()
        });
        read.or_else(|| item.wrong_kind(wanted))
    })
}

/// A value, or `false` to leave the header to the upstream.
fn header_value(item: &Item<'_>) -> Option<Option<HeaderValue>> {
    if item.is_flag() {
        return match item.flag()? {
            false => Some(None),
            true => item.wrong(format!("'{}' cannot be true", item.key), "a value, or false"),
        };
    }
    let written = item.text("a value, or false to leave it to the upstream")?;
    match HeaderValue::from_str(written) {
        Ok(value) if !written.is_empty() && written.is_ascii() => Some(Some(value)),
        _ => item.wrong(format!("'{}' cannot be '{written}'", item.key), "visible characters"),
    }
}

const NAMES: &str = "an array of names of headers: [\"x-version\"]";
const DAY: Duration = Duration::from_secs(86_400);
