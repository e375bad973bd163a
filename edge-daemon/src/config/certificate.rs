//! Reads `[[client_certificate]]`: whom client certificates stand for.

use edge_identity::certificate::Mapping;

use super::{
    access::{name, names},
    reader::{Item, Table},
};

/// `[[client_certificate]]`
pub(super) fn mapping(table: &Table<'_>) -> Mapping {
    let word = |key| table.or(key, None, |item| visible(item).map(Some));
    let mapping = Mapping {
        subject: table.or("subject", None, |item| subject(item).map(Some)),
        dns: table.or("dns", None, |item| dns(item).map(Some)),
        uri: table.or("uri", None, |item| uri(item).map(Some)),
        email: word("email"),
        spki_sha256: table.or("spki_sha256", Vec::new(), |item| {
            item.list("an array of SHA-256 digests of public keys, in hexadecimal", digest)
        }),
        id: word("id"),
        name: table.or("name", String::new(), subject),
        scopes: table.or("scopes", Vec::new(), names),
        roles: table.or("roles", Vec::new(), names),
        tier: table.or("tier", None, |item| name(item).map(Some)),
    };
    let asked = ["subject", "dns", "uri", "email", "spki_sha256"];
    if !mapping.asks() && !asked.iter().any(|key| table.is_there(key)) {
        let help = format!("say what a certificate must have: {}", asked.join(", "));
        table.notes.wrong(table.span.clone(), "it would match every certificate", help);
    }
    mapping
}

fn visible(item: &Item<'_>) -> Option<String> {
    item.word(256, "visible characters", |c| c.is_ascii_graphic())
}

fn subject(item: &Item<'_>) -> Option<String> {
    item.word(512, "printable characters", |c| !c.is_control())
}

fn dns(item: &Item<'_>) -> Option<String> {
    let written = visible(item)?.to_ascii_lowercase();
    let bare = written.strip_prefix("*.").unwrap_or(&written);
    if bare.contains('*') || bare.split('.').any(str::is_empty) {
        let what = format!("'dns' cannot be '{written}'");
        return item.wrong(what, "a DNS name; \"*.\" before it stands for any one label");
    }
    Some(written)
}

fn uri(item: &Item<'_>) -> Option<String> {
    let written = visible(item)?;
    let bare = written.strip_suffix("/*").unwrap_or(&written);
    if bare.contains('*') || !bare.contains(':') {
        let what = format!("'uri' cannot be '{written}'");
        return item.wrong(what, "a whole URI; \"/*\" at its end stands for any below it");
    }
    Some(written)
}

fn digest(item: &Item<'_>) -> Option<[u8; 32]> {
    let written = item.text("64 hexadecimal digits")?;
    let hex: String = written.chars().filter(|c| *c != ':').collect();
    match blake3::Hash::from_hex(&hex) {
        Ok(digest) => Some(*digest.as_bytes()),
        Err(_) => item.wrong(format!("not a digest: '{written}'"), "64 hexadecimal digits"),
    }
}
