//! Quotas on disk: what the limits that outlive a restart have counted.
//!
//! Each such limit has a file in the state folder, saved every ten seconds and at the end. A crash forgets
//! what was counted since the last time; where a file is damaged, or another version's, its limit begins anew. A file says of
//! which tier and window its words are, as they mean nothing to another. Those of a window that is yet to come are kept: the clock
//! may be behind until it is set.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{atomic::Ordering::Relaxed, mpsc::Receiver},
    time::Duration,
};

use edge_policy::limit::{
    Counted, Rule, Rules, Spec,
    meter::{Meter, Now, Window},
};

use crate::{clock, config::Settings, leftovers::QUOTAS, request::Edge, saved};

/// A limit, and what it had counted when it was saved.
struct Kept {
    secret: [u8; 16],
    parts: Vec<Part>,
}

/// What it had counted of the callers of a tier.
struct Part {
    /// Of whom.
    tier: Option<String>,
    /// In which window.
    window_ns: u64,
    /// Words lie where they do in a table of as many sets.
    sets: u64,
    words: Vec<(u32, u128)>,
}

/// A rule as its file left it, or one that begins anew.
///
/// # Errors
/// If there is no randomness, or its file cannot be read.
pub fn restore(settings: &Settings, spec: Spec, now: Now) -> io::Result<Rule> {
    if !spec.persist {
        let secret = secret(settings, &spec)?;
        return Ok(Rule::new(spec, None, secret));
    }
    let path = file(&settings.state.dir, &spec.name);
    let kept = saved::read(&path, BYTES_MAX, "a quota", parse)?;
    let Some(kept) = kept else {
        let secret = secret(settings, &spec)?;
        return Ok(Rule::new(spec, None, secret));
    };
    let rule = Rule::new(spec, None, kept.secret);
    for (tier, counted) in rule.counted() {
        let is_same = |part: &&Part| part.is_of(tier, counted);
        match kept.parts.iter().find(is_same) {
            Some(part) => {
                let words = part.words.iter().map(|(set, word)| (*set as usize, *word));
                counted.restore(words, now);
            }
            None => tracing::warn!(
                limit = &*rule.spec.name,
                tier,
                "the quota begins anew: its tier or window is new, or 'keys_max' has changed"
            ),
        }
    }
    Ok(rule)
}

impl Part {
    fn is_of(&self, tier: Option<&str>, counted: &Counted) -> bool {
        self.tier.as_deref() == tier
            && window_ns(&counted.meter) == Some(self.window_ns)
            && self.sets == counted.table.sets() as u64
    }
}

/// The window that a quota is of; a month is 0.
const fn window_ns(meter: &Meter) -> Option<u64> {
    match meter {
        Meter::FixedWindow { window: Window::Ns(ns), .. } => Some(*ns),
        Meter::FixedWindow { window: Window::Month, .. } => Some(0),
        _ => None,
    }
}

/// A rule as its former self left it, or as its file did.
///
/// # Errors
/// If there is no randomness, the fleet's secret cannot be read, or its file cannot be.
pub fn carry(former: &Rules, settings: &Settings, spec: Spec) -> io::Result<Rule> {
    match former.get(&spec.name) {
        Some(former) => {
            let secret = secret(settings, &spec)?;
            Ok(Rule::new(spec, Some(former), secret))
        }
        None => restore(settings, spec, clock::now()),
    }
}

/// What leads a limit's keys to their places: every edge of a fleet must call a key the same.
fn secret(settings: &Settings, spec: &Spec) -> io::Result<[u8; 16]> {
    if let Some(fleet) = settings.fleet.as_ref().filter(|_| spec.is_keyed()) {
        let seal = fleet.seal().map_err(io::Error::other)?;
        return Ok(seal.derive(&format!("keys of {}", spec.name)));
    }
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    Ok(secret)
}

/// Saves quotas until the other end of `stop` is gone, and then once more.
pub fn keep(dir: &Path, edge: &Edge, stop: &Receiver<()>) {
    saved::keep(edge, SAVE_EVERY, stop, || save_all(dir, edge));
}

/// Saves quotas; one that cannot be saved is told of.
pub fn save_all(dir: &Path, edge: &Edge) {
    let plan = edge.plan.load();
    for rule in plan.limits.iter().filter(|rule| rule.spec.persist) {
        if let Err(error) = save(dir, rule, clock::now()) {
            edge.metrics.quotas_unsaved.fetch_add(1, Relaxed);
            tracing::error!(limit = &*rule.spec.name, %error, "cannot save the quota");
        }
    }
}

fn save(dir: &Path, rule: &Rule, now: Now) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(rule.state().secret);
    for (tier, counted) in rule.counted() {
        let Some(window_ns) = window_ns(&counted.meter) else { continue };
        let length = tier.map_or(NO_TIER, |tier| tier.len() as u64);
        bytes.extend(length.to_le_bytes());
        bytes.extend(tier.unwrap_or_default().as_bytes());
        let words = counted.words(now);
        for number in [window_ns, counted.table.sets() as u64, words.len() as u64] {
            bytes.extend(number.to_le_bytes());
        }
        for (set, word) in words {
            bytes.extend((set as u32).to_le_bytes());
            bytes.extend(word.to_le_bytes());
        }
    }
    saved::write(&file(dir, &rule.spec.name), bytes)
}

fn parse(content: &[u8]) -> Option<Kept> {
    let (secret, mut content) = content.strip_prefix(MAGIC)?.split_first_chunk()?;
    let mut parts = Vec::new();
    while !content.is_empty() {
        let (length, rest) = number(content)?;
        let named = usize::try_from(length).ok().filter(|_| length != NO_TIER);
        let (name, rest) = rest.split_at_checked(named.unwrap_or(0))?;
        let tier = named.map(|_| String::from_utf8(name.to_vec())).transpose().ok()?;
        let (window_ns, rest) = number(rest)?;
        let (sets, rest) = number(rest)?;
        let (count, rest) = number(rest)?;
        let size = usize::try_from(count).ok()?.checked_mul(ENTRY)?;
        let (entries, rest) = rest.split_at_checked(size)?;
        parts.push(Part { tier, window_ns, sets, words: words(entries)? });
        content = rest;
    }
    Some(Kept { secret: *secret, parts })
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn words(bytes: &[u8]) -> Option<Vec<(u32, u128)>> {
    let (entries, rest) = bytes.as_chunks::<ENTRY>();
    let words = entries.iter().map(|entry| {
        let (set, word) = entry.split_first_chunk::<4>()?;
        Some((u32::from_le_bytes(*set), u128::from_le_bytes(*word.as_array()?)))
    });
    words.collect::<Option<_>>().filter(|_| rest.is_empty())
}

fn file(dir: &Path, limit: &str) -> PathBuf {
    dir.join(QUOTAS).join(format!("{limit}.quota"))
}

/// A crash forgets no more than what was counted in this time.
const SAVE_EVERY: Duration = Duration::from_secs(10);
const MAGIC: &[u8] = b"edged quota 3\n";
/// In the place of the length of a tier's name: these are of no tier.
const NO_TIER: u64 = u64::MAX;
const ENTRY: usize = 4 + 16;
/// Of the largest table that can be configured: of eight words in each set of three keys.
const BYTES_MAX: u64 = ((1 << 26) / 3 + 1) * 8 * ENTRY as u64;

#[cfg(test)]
mod tests {
    use std::fs;

    use edge_policy::limit::{Admission, Caller, Facts};

    use super::*;
    use crate::config;

    /// A rule by user whose numbers these are, as its file in this folder left it.
    fn rule(dir: &Path, rate: &str, pro: &str) -> Rule {
        rule_at(dir, (rate, pro), clock::now())
    }

    fn rule_at(dir: &Path, (rate, pro): (&str, &str), now: Now) -> Rule {
        let text = format!(
            "{}\n[[limit]]\nname = \"a\"\nby = [\"user\"]\nalgorithm = \"fixed_window\"\n\
             rate = \"{rate}\"\ntiers = {{ pro = \"{pro}\" }}\npersist = true\nkeys_max = 100\n",
            include_str!("../../config/minimal.toml")
        );
        let (mut settings, _) = config::parse(Path::new("edged.toml"), &text).unwrap();
        settings.state.dir = dir.to_owned();
        let spec = settings.limits.iter().find(|spec| &*spec.name == "a").unwrap();
        restore(&settings, spec.clone(), now).unwrap()
    }

    /// How many of a hundred requests are admitted, of a caller without a tier and of one with.
    fn admitted(rule: Rule) -> (Rule, [usize; 2]) {
        admitted_at(rule, clock::now())
    }

    fn admitted_at(rule: Rule, now: Now) -> (Rule, [usize; 2]) {
        let rules: Rules = [rule].into_iter().collect();
        let counts = [None, Some("pro")].map(|tier| {
            let claim = |_: &str| None;
            let source = edge_common::Source::v4([192, 0, 2, 1]);
            let caller = Some(Caller { user: ["key", "ann"], key: None, tier, claim: &claim });
            let facts = Facts { caller, ..Facts::of(source, 1) };
            let none = Admission::default();
            (0..100).filter(|_| rules.admit(&facts, &none, now).is_ok()).count()
        });
        let former = rules.get("a").unwrap();
        (Rule::new(former.spec.clone(), Some(former), [0; 16]), counts)
    }

    #[test]
    fn what_each_tier_has_counted_is_kept_for_it_and_its_window_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (used, counts) = admitted(rule(dir.path(), "3/d", "5/month"));
        assert_eq!(counts, [3, 5]);
        save(dir.path(), &used, clock::now()).unwrap();
        for (rate, pro, left) in [
            ("3/d", "5/month", [0, 0]),
            ("4/d", "7/month", [1, 2]),
            ("3/d", "5/2d", [0, 5]),
            ("3/h", "5/month", [3, 0]),
            ("5/month", "3/d", [5, 3]),
        ] {
            let again = rule(dir.path(), rate, pro);
            assert_eq!(admitted(again).1, left, "{rate}, {pro}");
        }
    }

    #[test]
    fn a_clock_that_is_behind_at_first_costs_nothing() {
        let (dir, rates) = (tempfile::tempdir().unwrap(), ("3/d", "5/month"));
        let right = clock::now();
        let behind = Now { unix_ns: right.unix_ns / 2, ..right };
        let (used, _) = admitted_at(rule_at(dir.path(), rates, right), right);
        save(dir.path(), &used, right).unwrap();
        // Through a save, a reload and another restart before the clock is set.
        for _ in 0..2 {
            let (early, _) = admitted_at(rule_at(dir.path(), rates, behind), behind);
            save(dir.path(), &early, behind).unwrap();
        }
        let (late, _) = admitted_at(rule_at(dir.path(), rates, behind), behind);
        save(dir.path(), &late, right).unwrap();
        assert_eq!(admitted_at(late, right).1, [0, 0]);
        assert_eq!(admitted_at(rule_at(dir.path(), rates, right), right).1, [0, 0]);
    }

    #[test]
    fn what_is_cut_off_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let used = admitted(rule(dir.path(), "3/d", "5/month")).0;
        save(dir.path(), &used, clock::now()).unwrap();
        let whole = fs::read(file(dir.path(), "a")).unwrap();
        let content = &whole[..whole.len() - 32];
        let is_read = |length: usize| parse(&content[..length]).is_some();
        let read: Vec<_> = (0..=content.len()).filter(|length| is_read(*length)).collect();
        // With no part, with the first, with both.
        assert_eq!(read, [30, 30 + 32 + ENTRY, content.len()]);
    }
}
