//! Answers about keys, in words.

use edge_identity::signed::Algorithm;

use super::{left, pairs, table, utc};
use crate::control::keys::{Imported, KeyCreated, KeyEntry, KeyPage};

pub(super) fn created_text(key: &KeyCreated) -> String {
    let mut lines = vec![("id", key.id.clone())];
    if !key.key.is_empty() {
        lines.push(("key", key.key.to_string()));
    }
    lines.extend(key.signing_secret.as_ref().map(|secret| ("signs with", secret.to_string())));
    lines.extend(key.secret.as_ref().map(|secret| ("secret", secret.to_string())));
    lines.push(("expires", key.expires_ms.map_or_else(|| "never".to_owned(), utc)));
    if let Some((id, ends_ms)) = &key.replaces {
        let ends = ends_ms.map_or_else(|| "never".to_owned(), utc);
        lines.push(("replaces", format!("{id}, which ends {ends}")));
    }
    let kept = match (&key.signing_secret, key.key.is_empty()) {
        (Some(_), _) => "The secret is shown this once, and kept nowhere.",
        (None, true) => "Requests name it by its id; only the public key is kept.",
        (None, false) => "The key is shown this once; only its digest is kept.",
    };
    format!("{}\n{kept}\n", pairs(&lines))
}

pub(super) fn list_text(page: &KeyPage, now_ms: u64) -> String {
    let rows = page.entries.iter().map(|key| {
        vec![
            key.id.to_string(),
            key.name.clone(),
            key.owner.clone(),
            key.scopes.join(","),
            utc(key.created_ms),
            ends(key, now_ms),
            key.used_ms.map_or_else(|| "never".to_owned(), utc),
            if key.exposed.is_some() { "EXPOSED".to_owned() } else { String::new() },
        ]
    });
    table(&["ID", "NAME", "OWNER", "SCOPES", "CREATED", "ENDS", "USED", "NOTE"], rows)
}

pub(super) fn entry_text(key: &KeyEntry, now_ms: u64) -> String {
    let words = |words: &[String]| if words.is_empty() { "none".into() } else { words.join(" ") };
    let some = |words: Vec<String>| if words.is_empty() { "any".into() } else { words.join(" ") };
    let kept = if key.argon2id { "keyed BLAKE3, $argon2id$" } else { "keyed BLAKE3" };
    let mut lines = vec![
        ("id", key.id.to_string()),
        ("name", key.name.clone()),
        ("owner", key.owner.clone()),
        ("scopes", words(&key.scopes)),
        ("roles", words(&key.roles)),
        ("tier", key.tier.clone().unwrap_or_else(|| "default".to_owned())),
        ("networks", some(key.networks.iter().map(ToString::to_string).collect())),
        ("routes", some(key.places.iter().map(ToString::to_string).collect())),
        ("created", utc(key.created_ms)),
        ("ends", ends(key, now_ms)),
        ("used", key.used_ms.map_or_else(|| "never".to_owned(), utc)),
        ("kept as", format!("{kept}; {} pepper", key.pepper)),
        ("secret", key.secret.clone().unwrap_or_else(|| "none".to_owned())),
        ("signs by", key.signing.map_or("nothing", Algorithm::name).to_owned()),
    ];
    lines.extend(
        key.exposed.map(|(leak, at_ms)| ("EXPOSED", format!("{}, {}", leak.name(), utc(at_ms)))),
    );
    lines.extend(key.replaced_by.map(|id| ("replaced by", id.to_string())));
    pairs(&lines)
}

fn ends(key: &KeyEntry, now_ms: u64) -> String {
    match key.revoked_ms {
        Some(at) => format!("revoked {}", utc(at)),
        None => left(key.expires_ms, now_ms),
    }
}

pub(super) fn imported_text(imported: &Imported) -> String {
    format!("{} keys are new, {} were known\n", imported.added, imported.known)
}
