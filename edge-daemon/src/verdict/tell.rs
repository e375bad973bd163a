//! Who hears of a verdict: the event log, those who watch, and others who are told of our bans.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use edge_policy::verdict::{Culprit, Origin, Step};

use super::{Writer, admit::BY_HAND};
use crate::{
    clock,
    decisions::{Decision, What},
    events::Event,
    outside::{Fleet, Told},
    store::BanRecord,
};

impl Writer {
    /// Tells all who listen.
    pub(super) fn tell(&self, what: What, record: &BanRecord, latency_us: Option<u64>) {
        let BanRecord { culprit, step, strikes, .. } = record.clone();
        let request_id = record.evidence.first().and_then(|e| e.request.as_ref());
        let request_id = request_id.map(|asked| asked.id.to_string());
        let (scenario, reason) = (record.scenario.clone(), record.reason.clone());
        let until = clock::rfc3339(record.until_ms);
        let spared = record.spared.clone();
        let origin = record.origin.name();
        self.edge.events.tell(match (&culprit, what) {
            (_, What::Observed) => {
                Event::Observed { culprit: culprit.clone(), scenario, reason, request_id, spared }
            }
            (Culprit::Source(client), What::Ban) => Event::Ban {
                source: (*client).into(),
                scenario,
                origin,
                reason,
                request_id,
                until,
                strikes,
                latency_us,
            },
            _ => Event::Penalty {
                culprit: culprit.clone(),
                step: step.name(),
                scenario,
                origin,
                reason,
                request_id,
                until,
                strikes,
                spared,
            },
        });
        self.edge.decisions.tell(Decision {
            at_ms: clock::unix_ms(),
            what,
            culprit: Some(culprit),
            step: Some(step),
            origin: record.origin,
            scenario: record.scenario.clone(),
            reason: record.reason.clone(),
            until_ms: (step > Step::Observe).then_some(record.until_ms),
            strikes,
            spared: record.spared.clone(),
            evidence: record.evidence.clone(),
        });
    }

    /// Asks for a person about what goes on for a while: once a minute.
    pub(super) fn alarm_of(&mut self, lasting: &Lasting) {
        let now_ns = clock::boot_ns();
        let last = &mut self.alarmed_ns[match lasting {
            Lasting::Cap => 0,
            Lasting::Failing(_) => 1,
            Lasting::Full => 2,
        }];
        if last.is_some_and(|at_ns| now_ns < at_ns + ALARM_EVERY_NS) {
            return;
        }
        *last = Some(now_ns);
        let most = self.settings.verdicts.bans_per_minute;
        self.alarm(match lasting {
            Lasting::Cap => {
                format!("{most} bans within a minute: further clients get 403 instead")
            }
            Lasting::Full => {
                "there is no room for all verdicts: those that would have ended first are lifted"
                    .into()
            }
            Lasting::Failing(why) => format!("the kernel does not enforce what was decided: {why}"),
        });
    }

    /// Asks for a person.
    pub(super) fn alarm(&self, why: String) {
        tracing::warn!(why, "alarm");
        self.edge.metrics.verdicts.alarms.fetch_add(1, Relaxed);
        self.edge.events.tell(Event::Alarm { why: why.clone() });
        self.edge.decisions.tell(Decision::alarm(why));
    }

    /// A ban of this edge's own as others are told of it; `None`: it is none.
    pub(super) fn as_told(&self, record: &BanRecord) -> Option<Told> {
        let is_own = matches!(record.origin, Origin::Scenario | Origin::Operator);
        self.shared(record).filter(|_| is_own)
    }

    /// A ban as others may know it, however much milder another edge's is here; `None`: it is about nobody
    /// whom they could ban.
    pub(super) fn shared(&self, record: &BanRecord) -> Option<Told> {
        let (source, bits) = self.prefix(&record.culprit)?;
        let is_known = record.step == Step::Ban || record.origin == Origin::Fleet;
        is_known.then(|| Told::Ban {
            source,
            bits,
            reason: record.reason.clone(),
            since_ms: record.since_ms,
            until_ms: record.until_ms,
            strikes: record.strikes,
        })
    }

    fn prefix(&self, culprit: &Culprit) -> Option<(IpAddr, u32)> {
        let Culprit::Source(source) = *culprit else { return None };
        let client = self.settings.kernel.client;
        Some((source.into(), if source.is_v4() { client.v4 } else { client.v6 }))
    }

    /// Tells others that an operator set a client free, whoever had banned it; or `CrowdSec` alone that
    /// one of another edge did, as nobody else takes back what this edge told there. What another edge banned
    /// they know of, however much milder it was here.
    pub(super) fn tell_lifted(&self, record: &BanRecord, lifted: Lifted) {
        let is_known = record.step == Step::Ban || record.origin == Origin::Fleet;
        let Some((source, bits)) = self.prefix(&record.culprit).filter(|_| is_known) else {
            return;
        };
        let (reason, until_ms) = (record.reason.clone(), record.until_ms);
        let fleet = self.fleet().filter(|_| lifted != Lifted::Elsewhere);
        let at_ms = fleet.map_or(0, |fleet| {
            let since_ms = record.since_ms;
            let is_alone = lifted == Lifted::Alone;
            let at_ms = if is_alone { since_ms } else { fleet.after(&source).max(since_ms + 1) };
            fleet.lift(source, at_ms, until_ms)
        });
        let told = Told::Lift { source, bits, reason, at_ms, until_ms };
        if lifted == Lifted::Elsewhere {
            self.edge.outside.tell_crowdsec(&told);
        } else {
            self.edge.outside.tell(&told);
        }
        if record.origin != Origin::Fleet {
            return;
        }
        for reason in told_before(record) {
            self.edge.outside.tell_crowdsec(&Told::Lift { source, bits, reason, at_ms, until_ms });
        }
    }

    /// Tells others that an operator sets a client free that nothing is in force against here; whether
    /// another edge bans it.
    pub(super) fn tell_freed(&self, culprit: &Culprit) -> bool {
        let (Some((source, bits)), Some(fleet)) = (self.prefix(culprit), self.fleet()) else {
            return false;
        };
        let Some(until_ms) = fleet.banned_until(&source) else { return false };
        let at_ms = fleet.lift(source, fleet.after(&source), until_ms);
        let reason = "operator".into();
        self.edge.outside.tell(&Told::Lift { source, bits, reason, at_ms, until_ms });
        true
    }

    /// The fleet that shares bans.
    fn fleet(&self) -> Option<Arc<Fleet>> {
        self.edge.outside.fleet().filter(|fleet| fleet.settings.bans)
    }

    /// Dates a ban of this edge's after all lifts of its client: a lift ends what was before it.
    pub(super) fn date(&self, record: &mut BanRecord) {
        let is_own = self.as_told(record).is_some();
        let fleet = self.fleet().filter(|_| is_own);
        if let (Culprit::Source(source), Some(fleet)) = (&record.culprit, fleet) {
            record.since_ms = fleet.dated(&IpAddr::from(*source), record.since_ms);
        }
    }
}

/// For what this edge may have told of a client before another's ban took the place of its own; not what
/// other edges said of it.
fn told_before(record: &BanRecord) -> BTreeSet<String> {
    let kinds = record.evidence.iter().filter(|it| !it.kind.starts_with("edge "));
    let words = kinds.map(|it| it.kind.strip_prefix(BY_HAND).unwrap_or(&it.kind).to_owned());
    words.filter(|word| *word != record.reason).collect()
}

/// What is lifted, and by whom.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifted {
    /// By an operator: all that was decided so far.
    Wholly,
    /// By an operator: this, and nothing that was decided later or by another edge.
    Alone,
    /// By an operator of another edge.
    Elsewhere,
}

/// What asks for a person as long as it goes on.
pub(super) enum Lasting {
    /// Scenarios ban more than they may.
    Cap,
    /// What was decided cannot be carried out.
    Failing(String),
    /// There are more verdicts than room.
    Full,
}

/// Kinds of [`Lasting`].
pub(super) const LASTING: usize = 3;
const ALARM_EVERY_NS: u64 = 60_000_000_000;

#[cfg(test)]
mod tests {
    use edge_policy::verdict::Evidence;

    use super::*;

    #[test]
    fn what_other_edges_say_is_not_taken_back() {
        let evidence = |kind: &str| Evidence {
            at: 1,
            kind: kind.to_owned().into(),
            address: [192, 0, 2, 7].into(),
            request: None,
        };
        let kinds = ["edge b: scan", "edge c: edge", "operator: edge case", "not_found", "scan"];
        let record = BanRecord {
            culprit: Culprit::Source(IpAddr::from([192, 0, 2, 7]).into()),
            step: Step::Ban,
            since_ms: 1,
            until_ms: 2,
            strikes: 1,
            reason: "scan".into(),
            scenario: "edge b".into(),
            origin: Origin::Fleet,
            spared: None,
            evidence: kinds.map(evidence).into(),
            milder: Vec::new(),
        };
        assert!(told_before(&record).iter().eq(["edge case", "not_found"]));
    }
}
