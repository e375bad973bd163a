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
    let life = table.or("life", minute, |item| item.duration(60 * minute));
    UpstreamIdentity {
        is_signed: table.or("jws", false, Item::flag),
        key: table.or("key", None, |item| item.secret().map(Some)),
        issuer: word("issuer", "edged"),
        audience: word("audience", "upstream"),
        life,
        rotate: table.or("rotate", day, |item| match item.duration(365 * day)? {
            // Published is the key before, not the one before that.
            rotate if rotate < life => item.wrong(
                "tokens would outlive the keys that they are verified by",
                "no less than 'life'",
            ),
            rotate => Some(rotate),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;

    #[test]
    fn no_token_outlives_its_keys() {
        let minimal = include_str!("../../../config/minimal.toml");
        let read = |keys: &str| {
            let text = format!("{minimal}[upstream_identity]\n{keys}\n");
            parse(Path::new("edged.toml"), &text).map(drop)
        };
        assert!(read("life = \"10s\"\nrotate = \"10s\"").is_ok());
        let told = read("rotate = \"9s\"\nlife = \"10s\"").unwrap_err().to_string();
        assert!(told.contains("edged.toml:") && told.contains("outlive the keys"), "{told}");
    }
}
