//! Reads `[signing]`: which signed requests are taken, and what is remembered of them.

use std::time::Duration;

use edge_identity::signed::Policy;
use http::HeaderName;

use super::{
    reader::{Item, Table},
    sections::{SECOND, small, some_of},
    settings::Signing,
};
use crate::{
    replay::{LEEWAY_S_MAX, WINDOW_S_MAX},
    secret::Origin,
};

/// How a request may be signed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Rfc9421,
    V1,
    V0,
}

pub(super) fn signing(table: &Table<'_>) -> Signing {
    let words = [("v1", Scheme::V1), ("rfc9421", Scheme::Rfc9421), ("v0", Scheme::V0)];
    let schemes = table.or("schemes", vec![Scheme::V1, Scheme::Rfc9421], |item| {
        some_of(item, "an array of schemes: [\"v1\", \"rfc9421\"]", |item| item.choice(&words))
    });
    let seconds = |key, default: u64, most: u64| {
        let most = Duration::from_secs(most);
        table.or(key, default * SECOND.as_secs(), |item| item.duration(most).map(|d| d.as_secs()))
    };
    let word = |item: &Item<'_>| {
        let word = item.word(64, "visible characters but '\"' and '\\'", |c| {
            c.is_ascii_graphic() && !"\"\\".contains(c)
        });
        word.map(Some)
    };
    Signing {
        policy: Policy {
            rfc9421: schemes.contains(&Scheme::Rfc9421),
            v1: schemes.contains(&Scheme::V1),
            v0: schemes.contains(&Scheme::V0),
            window_s: seconds("window", 300, WINDOW_S_MAX),
            leeway_s: seconds("leeway", 30, LEEWAY_S_MAX),
            nonce: table.or("nonce_required", false, Item::flag),
            label: table.or("label", None, label),
            tag: table.or("tag", None, word),
            cover: table.or("cover", Vec::new(), |item| {
                item.list("an array of header names: [\"content-type\"]", field)
            }),
        },
        master: table.or("master", Origin::File("/var/lib/edged/signing".into()), Item::secret),
        former_masters: table.or("former_masters", Vec::new(), |item| {
            item.list("an array of references to secrets", Item::secret)
        }),
        nonces_max: table.or("nonces_max", 1_000_000, |item| small(item, 64, 16_000_000)),
        nonce_file: table.or("nonce_file", "/run/edged/nonces".into(), Item::path),
        v0_body_max: table.or("v0_body_max", 64 << 10, |item| item.size(1, 16 << 20)),
    }
}

/// A key of a structured field (RFC 9651, 3.1.2).
fn label(item: &Item<'_>) -> Option<Option<String>> {
    let word = item.word(64, "lower-case letters, digits, '_', '-', '.' and '*'", |c| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c)
    })?;
    if !word.starts_with(|c: char| c.is_ascii_lowercase() || c == '*') {
        return item.wrong(format!("'label' cannot be '{word}'"), "begin it with a letter");
    }
    Some(Some(word))
}

fn field(item: &Item<'_>) -> Option<HeaderName> {
    let name = item.text("the name of a header")?;
    match name.parse() {
        Ok(name) => Some(name),
        Err(_) => item.wrong(format!("not the name of a header: '{name}'"), "\"content-type\""),
    }
}
