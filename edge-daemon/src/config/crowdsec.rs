//! Reads `[crowdsec]`.

use std::time::Duration;

use super::{
    reader::{Item, Table},
    settings::Crowdsec,
};
use crate::{fetch::Url, secret::Origin};

/// What is said of a `CrowdSec`; `None` without a `url`.
pub(super) fn crowdsec(table: &Table<'_>) -> Option<Crowdsec> {
    let url = table.or("url", None, |item| url(item).map(Some));
    let api_key = table.or("api_key", None, |item| item.secret().map(Some));
    let time = |key, usual, most| {
        table.or(key, Duration::from_secs(usual), |item: &Item<'_>| {
            item.duration(Duration::from_secs(most))
        })
    };
    let (every, timeout) = (time("every", 10, 3_600), time("timeout", 60, 600));
    let decisions_max = table
        .or("decisions_max", 200_000, |item| usize::try_from(item.number(1, 10_000_000)?).ok());
    let counts_only =
        table.or("action", false, |item| item.choice(&[("deny", false), ("count", true)]));
    let authorities = table.or("authorities", None, |item| item.path().map(Some));
    let machine = machine(table);
    if table.is_there("url") != table.is_there("api_key") {
        let help = "both, or neither: 'cscli bouncers add edged' makes a key";
        table.notes.wrong(table.span.clone(), "'url' and 'api_key' go together", help);
    }
    let (url, api_key) = (url?, api_key?);
    Some(Crowdsec {
        url,
        api_key,
        every,
        timeout,
        decisions_max,
        counts_only,
        authorities,
        machine,
    })
}

fn machine(table: &Table<'_>) -> Option<(String, Origin)> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = table.or("machine", None, |item| {
        item.word(64, "letters, digits, '-', '_' and '.'", letters).map(Some)
    });
    let password = table.or("password", None, |item| item.secret().map(Some));
    if table.is_there("machine") != table.is_there("password") {
        let help = "both, or neither: 'cscli machines add NAME --auto' makes them";
        table.notes.wrong(table.span.clone(), "'machine' and 'password' go together", help);
    }
    Some((name?, password?))
}

fn url(item: &Item<'_>) -> Option<Url> {
    let text = item.text("a URL")?;
    match text.trim_end_matches('/').parse::<Url>() {
        Ok(url) if url.is_bare() => Some(url),
        Ok(_) => item.wrong(format!("'{text}' has a path"), "\"http://127.0.0.1:8080\""),
        Err(help) => item.wrong(format!("'{text}' cannot be used"), help),
    }
}
