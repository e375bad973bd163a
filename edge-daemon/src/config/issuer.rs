//! Reads `[[issuer]]` and `[tokens]`: whose tokens are taken, and on which terms.

use std::time::Duration;

use edge_identity::jwt::{Algorithm, Issuer as Terms, Profile};
use edge_policy::{auth::Method, verdict::Culprit};

use super::{
    reader::{Item, Table},
    sections::{SECOND, some_of},
    settings::{Issuer, KeySource, Tokens},
};
use crate::{
    fetch::Url,
    issuers::{KeyFiles, Place, Source},
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn issuer(table: &Table<'_>) -> Issuer {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = table.need("name", "\"main\"", String::new(), |item| {
        let name = item.word(64, "letters, digits, '-', '_' and '.'", letters)?;
        if Method::ALL.iter().any(|method| method.name() == name) {
            return item.wrong(format!("'{name}' is a way of proof"), "another name");
        }
        // "issuer:subject" is how a verdict names a principal: it must not read as anything else.
        let is_principal = |who: &str| matches!(who.parse(), Ok(Culprit::Principal(_)));
        if !["1", ":1"].iter().all(|subject| is_principal(&format!("{name}:{subject}"))) {
            return item
                .wrong(format!("'{name}:…' means something else in a verdict"), "another name");
        }
        Some(name)
    });
    let issuer = table.need("issuer", "\"https://id.example.com\"", String::new(), |item| {
        item.word(512, "visible characters", |c| c.is_ascii_graphic())
    });
    let keys = keys(table, &issuer);
    let is_secret = matches!(&keys, KeySource::Static(files) if !files.secrets.is_empty());
    let terms = Terms {
        name,
        audience: table.need("audience", "[\"https://api.example.com\"]", Vec::new(), |item| {
            some_of(item, "an array of audiences: [\"https://api.example.com\"]", audience)
        }),
        algorithms: algorithms(table, is_secret),
        profile: table.or("profile", Profile::AccessToken, |item| {
            item.choice(&[("access_token", Profile::AccessToken), ("plain", Profile::Plain)])
        }),
        leeway_ms: millis(table.or("leeway", 5 * SECOND, |item| item.duration(5 * MINUTE))),
        lifetime_max_ms: millis(table.or("max_lifetime", DAY, |item| item.duration(3_650 * DAY))),
        scope_claims: table.or("scope_claims", vec!["scope".into(), "scp".into()], |item| {
            item.list("an array of names of claims", claim)
        }),
        roles_claim: table.or("roles_claim", Some("roles".to_owned()), |i| claim(i).map(Some)),
        tier_claim: table.or("tier_claim", Some("tier".to_owned()), |i| claim(i).map(Some)),
        issuer,
    };
    Issuer { terms, keys }
}

pub(super) fn tokens(table: &Table<'_>) -> Tokens {
    let size = |key, default, least, most| {
        usize::try_from(table.or(key, default, |item| item.size(least, most))).unwrap_or(usize::MAX)
    };
    Tokens {
        bytes_max: size("bytes_max", 8 << 10, 256, 64 << 10),
        cache_bytes: size("cache_bytes", 16 << 20, 0, 4 << 30),
        cache_time: table.or("cache_time", MINUTE, |item| item.duration(HOUR)),
        proof_age: table.or("proof_age", MINUTE, |item| item.duration(10 * MINUTE)),
        proof_nonces: table.or("proof_nonces", None, |item| match item.text("a duration")? {
            "off" => Some(None),
            _ => item.duration(10 * MINUTE).map(Some),
        }),
    }
}

/// An audience, whole: tokens for everybody are for nobody.
pub(super) fn audience(item: &Item<'_>) -> Option<String> {
    let text = item.word(512, "visible characters", |c| c.is_ascii_graphic())?;
    if text.contains('*') {
        let what = format!("'audience' cannot be '{text}': it is compared whole");
        return item.wrong(what, "the exact audience that the issuer writes into tokens for you");
    }
    Some(text)
}

/// A name with dots: a claim, or the way to one.
fn claim(item: &Item<'_>) -> Option<String> {
    item.word(128, "visible characters", |c| c.is_ascii_graphic())
}

/// Shared secrets and public keys are never taken of one issuer: which of the two a key is must
/// not depend on a token.
fn algorithms(table: &Table<'_>, is_secret: bool) -> Vec<Algorithm> {
    use Algorithm::{EdDsa, Es256, Hs256, Ps256, Rs256};
    let default = if is_secret { vec![Hs256] } else { vec![Rs256, Ps256, Es256, EdDsa] };
    let words = Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm));
    table.or("algorithms", default, |item| {
        some_of(item, "an array of algorithms: [\"ES256\"]", |item| {
            let found = item.choice(&words)?;
            if found.is_symmetric() == is_secret {
                return Some(found);
            }
            let what = format!("'{}' does not fit the issuer's keys", found.name());
            let help = "HS256, HS384 and HS512 go with 'secrets', all others with public keys";
            item.wrong(what, help)
        })
    })
}

/// Where the keys come from: exactly one way.
fn keys(table: &Table<'_>, issuer: &str) -> KeySource {
    let jwks = table.or("jwks_url", None, |item| url(item).map(Place::Jwks).map(Some));
    let discovery = table.or("discovery", None, |item| discovery(item, issuer));
    let paths = "an array of paths: [\"/etc/edged/issuer.pem\"]";
    let public = table.or("key_files", Vec::new(), |item| some_of(item, paths, Item::path));
    let references = "an array of secrets: [\"file:/etc/edged/secret\"]";
    let secrets = table.or("secrets", Vec::new(), |item| some_of(item, references, Item::secret));
    let source = source(table, jwks.or(discovery));
    let ways = ["jwks_url", "discovery", "key_files", "secrets"];
    let given: Vec<_> = ways.into_iter().filter(|key| table.is_there(key)).collect();
    if given.len() != 1 {
        let what = match given.as_slice() {
            [] => "the issuer has no keys".to_owned(),
            several => format!("the issuer's keys come from {}", several.join(" and ")),
        };
        table.notes.wrong(table.span.clone(), what, format!("one of {}", ways.join(", ")));
    }
    source.map_or(KeySource::Static(KeyFiles { public, secrets }), |source| {
        KeySource::Fetched(Box::new(source))
    })
}

/// `true`: the metadata lies where OpenID Connect says; or the URL of it.
fn discovery(item: &Item<'_>, issuer: &str) -> Option<Option<Place>> {
    let place = |url| Some(Some(Place::Discovery(url, issuer.to_owned())));
    if !item.is_flag() {
        return place(url(item)?);
    }
    if !item.flag()? {
        return item.wrong("'discovery' is false", "leave it out");
    }
    let well_known = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    match well_known.parse() {
        Ok(url) => place(url),
        Err(help) => item.wrong(format!("'{issuer}' leads to no metadata"), help),
    }
}

fn url(item: &Item<'_>) -> Option<Url> {
    let text = item.text("a URL")?;
    text.parse().map_or_else(|help| item.wrong(format!("'{text}' cannot be used"), help), Some)
}

/// How keys are fetched; what is said of it is checked whether or not they are.
fn source(table: &Table<'_>, place: Option<Place>) -> Option<Source> {
    let time = |key, default, most| table.or(key, default, |item: &Item<'_>| item.duration(most));
    let authorities = table.or("authorities", None, |item| item.path().map(Some));
    let fresh = time("fresh", 10 * MINUTE, 30 * DAY);
    let (fresh_min, fresh_max) = (time("fresh_min", MINUTE, DAY), time("fresh_max", DAY, 30 * DAY));
    let (cooldown, stale) = (time("cooldown", 30 * SECOND, HOUR), time("stale", DAY, 30 * DAY));
    let timeout = time("fetch_timeout", 5 * SECOND, MINUTE);
    let wait = time("wait", 2 * SECOND, 10 * SECOND);
    if fresh_min > fresh_max {
        let what = "'fresh_min' is longer than 'fresh_max'";
        table.notes.wrong(table.span.clone(), what, "the least before the most");
    }
    let source = |place| Source {
        place,
        authorities,
        fresh,
        fresh_min,
        fresh_max,
        cooldown,
        stale,
        timeout,
        wait,
    };
    place.map(source)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
