//! `edgectl overview`: what is in force, on one page.

use serde::Serialize;

use super::{
    Args, REFUSED, answer, complain, now_ms,
    print::{left, pairs, render, rest, table},
    say,
};
use crate::control::{
    Command, Reply,
    keys::{KeyCommand, KeyEntry},
    overview::{Overview, RouteEntry},
    tokens::TokenCommand,
};

/// All of it.
#[derive(Serialize)]
struct Page {
    #[serde(flatten)]
    of: Overview,
    keys: Keys,
    denials: u64,
    bans: u64,
    allow: u64,
    deny: u64,
}

/// Keys by their state. One may be in several.
#[derive(Default, Serialize)]
struct Keys {
    total: u64,
    /// They would be accepted.
    active: u64,
    /// Of those: they end within 14 days, were never used or not for 90 days, were seen where others
    /// could read them, have a successor.
    expiring: u64,
    unused: u64,
    exposed: u64,
    in_grace: u64,
    without_expiry: u64,
    expired: u64,
    revoked: u64,
}

impl Keys {
    fn add(&mut self, key: &KeyEntry, now_ms: u64) {
        self.total += 1;
        if key.revoked_ms.is_some() {
            self.revoked += 1;
            return;
        }
        if key.expires_ms.is_some_and(|end| end <= now_ms) {
            self.expired += 1;
            return;
        }
        let seen_ms = key.used_ms.unwrap_or(key.created_ms);
        self.active += 1;
        self.expiring += u64::from(key.expires_ms.is_some_and(|end| end - now_ms <= SOON_MS));
        self.unused += u64::from(now_ms.saturating_sub(seen_ms) >= IDLE_MS);
        self.exposed += u64::from(key.exposed.is_some());
        self.in_grace += u64::from(key.replaced_by.is_some());
        self.without_expiry += u64::from(key.expires_ms.is_none());
    }
}

/// Asks for all of it and prints it; what to end with.
pub(super) fn run(args: &Args) -> u8 {
    match gather(args) {
        Ok(page) if args.json => say((render(&page) + "\n").as_bytes()),
        Ok(page) => say(text(&page, now_ms()).as_bytes()),
        Err(code) => code,
    }
}

fn gather(args: &Args) -> Result<Page, u8> {
    let strange = || complain(&"the daemon's answer makes no sense here", REFUSED);
    let Reply::Overview(of) = answer(args, &Command::Overview)? else { return Err(strange()) };
    let Reply::Status(status) = answer(args, &Command::Status)? else { return Err(strange()) };
    let denials = answer(args, &Command::Token(TokenCommand::List))?;
    let Reply::Denials(denials) = denials else { return Err(strange()) };
    let (mut keys, mut after) = (Keys::default(), None);
    loop {
        let Reply::Keys(page) = answer(args, &Command::Key(KeyCommand::List { after }))? else {
            return Err(strange());
        };
        let Some(last) = page.entries.last() else { break };
        after = Some(last.id);
        page.entries.iter().for_each(|key| keys.add(key, now_ms()));
    }
    let (bans, allow, deny) = (status.bans, status.allow, status.deny);
    Ok(Page { of: *of, keys, denials: denials.total, bans, allow, deny })
}

fn text(page: &Page, now_ms: u64) -> String {
    let Overview { listeners, certificates, routes, policies, issuers, limits } = &page.of;
    let listeners = listeners.iter().map(|of| vec![of.kind.clone(), of.address.clone()]);
    let certificates_rows = certificates
        .entries
        .iter()
        .map(|of| vec![of.name.clone(), of.used_for.clone(), left(Some(of.ends_ms), now_ms)]);
    let routes_rows = routes.entries.iter().map(|of| {
        let auth = if of.auth.is_empty() { "none".to_owned() } else { of.auth.join(" or ") };
        let methods = of.methods.join(",");
        vec![of.route.clone(), methods, auth, demands(of), of.upstream.clone()]
    });
    let shadow = |shadow: bool| if shadow { "only counted" } else { "in force" };
    let policies = policies.iter().map(|of| vec![of.name.clone(), shadow(of.shadow).to_owned()]);
    let issuers = issuers.iter().map(|of| {
        let confirmed = of.confirmed_ms.filter(|_| of.stale_ms.is_some());
        let used = confirmed.zip(of.stale_ms).map(|(at, most)| at.saturating_add(most));
        vec![
            of.name.clone(),
            of.issuer.clone(),
            of.keys.to_string(),
            of.source.clone(),
            if of.keys == 0 { "no keys".to_owned() } else { left(used, now_ms) },
            of.failed.to_string(),
        ]
    });
    let limits = limits.iter().map(|of| {
        let by = if of.by.is_empty() { "all".to_owned() } else { of.by.join(" and ") };
        vec![of.name.clone(), by, of.admits.clone(), shadow(of.shadow).to_owned()]
    });
    let keys = &page.keys;
    let counts = [
        ("keys in force", format!("{} of {}", keys.active, keys.total)),
        ("end within 14d", keys.expiring.to_string()),
        ("unused for 90d", keys.unused.to_string()),
        ("exposed", keys.exposed.to_string()),
        ("in their grace", keys.in_grace.to_string()),
        ("without an end", keys.without_expiry.to_string()),
        ("ended", keys.expired.to_string()),
        ("revoked", keys.revoked.to_string()),
        ("tokens denied by", format!("{} denials", page.denials)),
        ("bans", page.bans.to_string()),
        ("allow list", page.allow.to_string()),
        ("deny list", page.deny.to_string()),
    ];
    [
        table(&["LISTENER", "ADDRESS"], listeners),
        table(&["CERTIFICATE", "USE", "ENDS"], certificates_rows) + &rest(certificates),
        table(&["ROUTE", "METHODS", "AUTH", "DEMANDS", "UPSTREAM"], routes_rows) + &rest(routes),
        table(&["POLICIES", "STATE"], policies),
        table(&["ISSUER", "ISS", "KEYS", "FROM", "USED UNTIL", "FAILED"], issuers),
        table(&["LIMIT", "BY", "ADMITS", "STATE"], limits),
        pairs(&counts),
    ]
    .join("\n")
}

/// What a route asks beside a proof.
fn demands(of: &RouteEntry) -> String {
    let words = |name: &str, words: &[String]| {
        (!words.is_empty()).then(|| format!("{name} {}", words.join(",")))
    };
    let all = [
        words("issuers", &of.issuers),
        words("audience", &of.audience),
        words("scopes", &of.scopes),
        words("any scope of", &of.any_scope),
        words("a role of", &of.roles),
        of.owner.clone(),
        words("policies", &of.policies),
        of.client_certificate.then(|| "a client certificate".to_owned()),
    ];
    let all: Vec<_> = all.into_iter().flatten().collect();
    if all.is_empty() { "-".to_owned() } else { all.join("; ") }
}

/// How soon a key ends that is told of.
const SOON_MS: u64 = 14 * 86_400_000;
/// How long a key was not used that is told of.
const IDLE_MS: u64 = 90 * 86_400_000;
