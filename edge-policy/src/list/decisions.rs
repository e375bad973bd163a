//! Decisions of a `CrowdSec`: which of them are for the kernel, and what each answer of its stream
//! makes of those that were known.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Deserialize;

use super::feed::{Fault, judge};

/// A decision as the local API writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Decision {
    /// How long it still holds, as Go writes durations.
    pub duration: String,
    /// Who made it: `crowdsec`, `cscli`, `CAPI`, the name of a list.
    #[serde(default)]
    pub origin: String,
    /// For what.
    #[serde(default)]
    pub scenario: String,
    /// What `value` is: `Ip`, `Range`, or something that no packet shows.
    pub scope: String,
    /// What is to be done: `ban`, `captcha`, ...
    pub r#type: String,
    /// Whom it is about.
    pub value: String,
}

/// An answer of `/v1/decisions/stream`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Answer {
    /// Decisions that hold from now on.
    #[serde(default)]
    pub new: Option<Vec<Decision>>,
    /// Decisions that hold no more.
    #[serde(default)]
    pub deleted: Option<Vec<Decision>>,
}

/// Why a decision is not for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It is about a country, a network of providers, a user.
    Scope,
    /// It asks for something else than a ban.
    Kind,
    /// Its value is no network, or none that strangers have.
    Value,
    /// It is over, or its duration cannot be read.
    Duration,
    /// It is what this edge has told itself.
    Own,
    /// There are as many as there may be.
    Full,
}

impl Ignored {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Scope, Self::Kind, Self::Value, Self::Duration, Self::Own, Self::Full];

    /// The word for it, in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::Kind => "type",
            Self::Value => "value",
            Self::Duration => "duration",
            Self::Own => "own",
            Self::Full => "full",
        }
    }
}

/// What is known of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// When it ends, by the clock of whoever asks.
    pub until_ns: u64,
    /// The number of its note.
    pub note: u32,
}

/// Whose decisions they are not to be: addresses that none may deny, and the scenarios of this
/// edge's own.
#[derive(Clone, Copy, Debug)]
pub struct Except<'a> {
    /// Addresses of this host, its gateways, its upstreams.
    pub own: &'a [IpAddr],
    /// What the scenarios of our own bans begin with; empty: nothing is ours.
    pub scenario: &'a str,
}

/// The decisions in force: of each network the longest, as the stream gives them.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    held: BTreeMap<IpNet, Held>,
    notes: Vec<[String; 2]>,
    numbers: BTreeMap<[String; 2], u32>,
    /// Decisions that were not for the kernel, by [`Ignored`].
    pub ignored: [u64; Ignored::ALL.len()],
}

impl Decisions {
    /// The networks with what is known of them.
    pub fn iter(&self) -> impl Iterator<Item = (&IpNet, &Held)> {
        self.held.iter()
    }

    /// How many networks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The notes by their numbers: origin and scenario.
    #[must_use]
    pub fn notes(&self) -> &[[String; 2]] {
        &self.notes
    }

    /// Takes an answer at a time: first what is over, then what is new. `most` is how many networks
    /// there may be. The networks that changed.
    pub fn apply(
        &mut self,
        answer: Answer,
        except: Except<'_>,
        most: usize,
        now_ns: u64,
    ) -> BTreeSet<IpNet> {
        let mut changed = self.expire(now_ns);
        for decision in answer.deleted.into_iter().flatten() {
            // The end of a captcha is not the end of a ban.
            if let Ok(net) = network(&decision, except)
                && self.held.remove(&net).is_some()
            {
                changed.insert(net);
            }
        }
        for decision in answer.new.into_iter().flatten() {
            let taken = network(&decision, except).and_then(|net| {
                let length_ns = length_ns(&decision.duration).filter(|ns| *ns > 0);
                let until_ns = now_ns.saturating_add(length_ns.ok_or(Ignored::Duration)?);
                if self.held.len() >= most && !self.held.contains_key(&net) {
                    return Err(Ignored::Full);
                }
                Ok((net, until_ns))
            });
            match taken {
                Ok((net, until_ns)) => {
                    let note = self.note([decision.origin, decision.scenario]);
                    self.held.insert(net, Held { until_ns, note });
                    changed.insert(net);
                }
                Err(why) => self.ignored[why as usize] += 1,
            }
        }
        changed
    }

    /// Takes the place of a former answer's: what is said again stays as it was, as each answer counts an end
    /// from its own time. The networks that changed.
    pub fn follow(&mut self, former: &Self) -> BTreeSet<IpNet> {
        let is_over = |net: &&IpNet| !self.held.contains_key(*net);
        let mut changed: BTreeSet<_> = former.held.keys().filter(is_over).copied().collect();
        for (net, held) in &mut self.held {
            let note = &self.notes[held.note as usize];
            let is_same = |known: &&Held| {
                known.until_ns.abs_diff(held.until_ns) < ALIKE_NS
                    && former.notes[known.note as usize] == *note
            };
            match former.held.get(net).filter(is_same) {
                Some(known) => held.until_ns = known.until_ns,
                None => drop(changed.insert(*net)),
            }
        }
        changed
    }

    /// Puts a network back as it was kept.
    pub fn restore(&mut self, net: IpNet, until_ns: u64, note: [String; 2]) {
        let note = self.note(note);
        self.held.insert(net, Held { until_ns, note });
    }

    /// Forgets what has ended.
    pub fn expire(&mut self, now_ns: u64) -> BTreeSet<IpNet> {
        self.held.extract_if(.., |_, held| held.until_ns <= now_ns).map(|(net, _)| net).collect()
    }

    fn note(&mut self, note: [String; 2]) -> u32 {
        if let Some(number) = self.numbers.get(&note) {
            return *number;
        }
        // Whoever makes up a scenario for each decision gets one note for the rest.
        let note =
            if self.notes.len() < NOTES_MAX { note } else { [note[0].clone(), "...".into()] };
        let number = self.notes.len() as u32;
        *self.numbers.entry(note.clone()).or_insert_with(|| {
            self.notes.push(note);
            number
        })
    }
}

fn network(decision: &Decision, except: Except<'_>) -> Result<IpNet, Ignored> {
    if !["ip", "range"].iter().any(|scope| decision.scope.eq_ignore_ascii_case(scope)) {
        return Err(Ignored::Scope);
    }
    if !decision.r#type.eq_ignore_ascii_case("ban") {
        return Err(Ignored::Kind);
    }
    if !except.scenario.is_empty() && decision.scenario.starts_with(except.scenario) {
        return Err(Ignored::Own);
    }
    match judge(&decision.value, except.own) {
        (Some(net), None | Some(Fault::HostBits)) => Ok(net),
        _ => Err(Ignored::Value),
    }
}

/// The nanoseconds of a duration as Go writes it, `1h2m3.5s`; `None` if it is none. What is over
/// has length 0.
#[must_use]
pub fn length_ns(text: &str) -> Option<u64> {
    let (is_over, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut sum = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, more) = rest.split_at(end);
        let end = more.find(|c: char| c.is_ascii_digit()).unwrap_or(more.len());
        let (unit, more) = more.split_at(end);
        let unit_ns = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" | "μs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        sum = sum.checked_add(part_ns(number, unit_ns)?)?;
        rest = more;
    }
    Some(if is_over { 0 } else { sum })
}

fn part_ns(number: &str, unit_ns: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    // Nine digits are all that a nanosecond has.
    let digits = fraction.get(..fraction.len().min(9))?;
    let parts: u64 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scale = 10_u64.pow(digits.len() as u32);
    let fraction_ns = u128::from(parts) * u128::from(unit_ns) / u128::from(scale);
    whole.checked_mul(unit_ns)?.checked_add(u64::try_from(fraction_ns).ok()?)
}

/// Two ends that are nearer than this are one.
const ALIKE_NS: u64 = 5_000_000_000;

/// Pairs of origin and scenario that are told apart.
const NOTES_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000_000_000;
    const EXCEPT: Except<'_> = Except { own: &[], scenario: "edged/a/" };

    fn decision(scope: &str, kind: &str, value: &str, duration: &str) -> Decision {
        Decision {
            duration: duration.into(),
            origin: "cscli".into(),
            scenario: "s".into(),
            scope: scope.into(),
            r#type: kind.into(),
            value: value.into(),
        }
    }

    fn answer(new: Vec<Decision>, deleted: Vec<Decision>) -> Answer {
        Answer { new: Some(new), deleted: Some(deleted) }
    }

    fn nets(decisions: &Decisions) -> Vec<String> {
        decisions.iter().map(|(net, _)| net.to_string()).collect()
    }

    #[test]
    fn durations_are_gos() {
        for (text, ns) in [
            ("1h2m3s", Some(3_723_000_000_000)),
            ("59m59.222253593s", Some(3_599_222_253_593)),
            ("1.5s", Some(1_500_000_000)),
            ("350ms", Some(350_000_000)),
            ("2µs", Some(2_000)),
            ("0s", Some(0)),
            ("-1.02s", Some(0)),
            ("", None),
            ("-", None),
            ("5", None),
            ("s", None),
            ("5w", None),
            ("1.2.3s", None),
            ("99999999999999999999h", None),
            ("9999999999999h", None),
        ] {
            assert_eq!(length_ns(text), ns, "{text}");
        }
    }

    #[test]
    fn bans_of_addresses_and_ranges_are_taken_and_deleted() {
        let mut all = Decisions::default();
        let new = vec![
            decision("Ip", "ban", "192.0.2.1", "1h"),
            decision("range", "ban", "198.51.100.0/24", "2h"),
            decision("Ip", "captcha", "192.0.2.2", "1h"),
            decision("Country", "ban", "NZ", "1h"),
            decision("Ip", "ban", "10.0.0.1", "1h"),
            decision("Ip", "ban", "192.0.2.3", "-1s"),
            Decision { scenario: "edged/a/x".into(), ..decision("Ip", "ban", "192.0.2.4", "1h") },
            decision("Ip", "ban", "2001:db8::1", "1h"),
        ];
        assert_eq!(all.apply(answer(new, vec![]), EXCEPT, 3, 7).len(), 3);
        assert_eq!(nets(&all), ["192.0.2.1/32", "198.51.100.0/24", "2001:db8::1/128"]);
        assert_eq!(all.ignored, [1, 1, 1, 1, 1, 0]);
        let more = vec![decision("Ip", "ban", "203.0.113.1", "1h")];
        assert!(all.apply(answer(more, vec![]), EXCEPT, 3, 7).is_empty());
        assert_eq!(all.ignored[Ignored::Full as usize], 1);
        // One answer may end a ban and begin another of the same address.
        let over = vec![
            decision("Ip", "ban", "192.0.2.1", "-1s"),
            decision("Ip", "captcha", "2001:db8::1", "-1s"),
            decision("Range", "ban", "198.51.100.0/24", "-1s"),
        ];
        let new = vec![decision("Ip", "ban", "192.0.2.1", "3h")];
        assert_eq!(all.apply(answer(new, over), EXCEPT, 3, 8).len(), 2);
        assert_eq!(nets(&all), ["192.0.2.1/32", "2001:db8::1/128"]);
        assert_eq!(all.iter().next().map(|(_, held)| held.until_ns), Some(8 + 3 * HOUR));
        assert_eq!(all.expire(8 + 3 * HOUR - 1).len(), 1);
        assert_eq!(all.expire(8 + 3 * HOUR).len(), 1);
        assert!(all.is_empty());
    }

    #[test]
    fn what_is_said_again_changes_nothing() {
        let of = |new, now_ns| {
            let mut all = Decisions::default();
            all.apply(answer(new, vec![]), EXCEPT, 9, now_ns);
            all
        };
        let ban = |value, duration| decision("Ip", "ban", value, duration);
        let other = |it| Decision { scenario: "t".into(), ..it };
        let all = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
        let former = of(all.map(|value| ban(value, "1h")).into(), 7);
        let (mut again, now_ns) = (of(all.map(|it| ban(it, "59m")).into(), 61 * HOUR / 3_600), 7);
        assert!(again.follow(&former).is_empty());
        assert!(again.iter().all(|(_, held)| held.until_ns == HOUR + now_ns));
        let new = vec![
            other(ban("192.0.2.1", "1h")),
            ban("192.0.2.2", "4h"),
            ban("192.0.2.3", "1h"),
            ban("192.0.2.5", "1h"),
        ];
        let changed = of(new, 7).follow(&former);
        let changed: Vec<_> = changed.iter().map(ToString::to_string).collect();
        assert_eq!(changed, ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.4/32", "192.0.2.5/32"]);
    }

    #[test]
    fn what_a_server_says_of_nothing_is_nothing() {
        for text in ["{}", r#"{"new":null,"deleted":null}"#, r#"{"new":[],"deleted":[],"x":1}"#] {
            let answer: Answer = serde_json::from_str(text).unwrap();
            assert!(Decisions::default().apply(answer, EXCEPT, 9, 0).is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_duration_breaks_the_reader(text in "[-0-9.hmsuµn]{0,20}") {
            let _ = length_ns(&text);
        }
    }
}
