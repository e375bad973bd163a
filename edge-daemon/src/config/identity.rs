//! Reads `[upstream_identity]`: what upstreams are told of a request's sender beside plain headers.

use std::time::Duration;

use super::{
    reader::{Item, Table},
    settings::UpstreamIdentity,
};

/// `[upstream_identity]`
pub(super) fn upstream_identity(table: &Table<'_>) -> UpstreamIdentity {
    let (minute, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
    let word = |key, default: &str| {
        table.or(key, default.to_owned(), |item| {
            item.word(256, "visible characters", |c| c.is_ascii_graphic())
        })
    };
    UpstreamIdentity {
        is_signed: table.or("jws", false, Item::flag),
        key: table.or("key", None, |item| item.secret().map(Some)),
        issuer: word("issuer", "edged"),
        audience: word("audience", "upstream"),
        life: table.or("life", minute, |item| item.duration(60 * minute)),
        rotate: table.or("rotate", day, |item| item.duration(365 * day)),
    }
}
