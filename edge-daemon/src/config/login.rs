//! Reads `[route.login]`: that a route is a login, and how it tells a failure.

use edge_policy::login::{Login, Place};
use http::HeaderName;

use super::{
    reader::{Item, Table},
    sections::some_of,
};

/// `login = { account = "json:username", failure_statuses = [401] }`
pub(super) fn login(item: &Item<'_>) -> Option<Option<Login>> {
    let read = item.inline(|table: &Table<'_>| {
        let header = table.or("failure_header", None, |item| field(item).map(Some));
        let body = table.or("failure_body", None, |item| text(item).map(Some));
        // Where nothing else is said, the status says it.
        let usual = if header.is_none() && body.is_none() { vec![401, 403] } else { Vec::new() };
        Login {
            account: table.need("account", ACCOUNTS, Place::Basic, place),
            statuses: table.or("failure_statuses", usual, |item| {
                some_of(item, "an array of statuses: [401, 403]", |item| {
                    item.number(100, 999).and_then(|status| u16::try_from(status).ok())
                })
            }),
            header,
            body,
        }
    });
    match read {
        Some(login) => Some(Some(login)),
        None => item.wrong_kind("a table: { account = \"json:username\" }"),
    }
}

fn place(item: &Item<'_>) -> Option<Place> {
    let written = item.text(ACCOUNTS)?;
    let what = format!("'account' cannot be '{written}'");
    match written.split_once(':') {
        None if written == "basic" => Some(Place::Basic),
        Some(("json", name)) if !name.is_empty() => Some(Place::Json(name.to_owned())),
        Some(("form", name)) if !name.is_empty() => Some(Place::Form(name.to_owned())),
        Some(("header", name)) => match HeaderName::try_from(name) {
            Ok(name) => Some(Place::Header(name)),
            Err(_) => item.wrong(what, ACCOUNTS),
        },
        _ => item.wrong(what, ACCOUNTS),
    }
}

/// `x-login=failed`
fn field(item: &Item<'_>) -> Option<(HeaderName, String)> {
    let written = item.text("a header field: \"x-login=failed\"")?;
    let parts = written
        .split_once('=')
        .and_then(|(name, value)| Some((HeaderName::try_from(name).ok()?, value.to_owned())));
    parts.or_else(|| item.wrong(format!("'{written}' is no header field"), "\"x-login=failed\""))
}

fn text(item: &Item<'_>) -> Option<String> {
    match item.text("a text of the body")? {
        "" => item.wrong("'failure_body' is empty, so every answer has it", "a text of the page"),
        text => Some(text.to_owned()),
    }
}

const ACCOUNTS: &str = "\"json:username\", \"form:email\", \"header:x-user\" or \"basic\"";
