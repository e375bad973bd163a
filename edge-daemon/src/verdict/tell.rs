//! Who hears of a verdict: the event log, those who watch, and others who are told of our bans.

use std::{net::IpAddr, sync::atomic::Ordering::Relaxed};

use edge_identity::fleet::{Act, Record};
use edge_policy::verdict::{Culprit, Origin, Step};

use super::Writer;
use crate::{
    clock,
    decisions::{Decision, What},
    events::Event,
    outside::Told,
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

    /// A ban of this edge's own as others are told of it; `None`: it is none, or about nobody whom they could ban.
    pub(super) fn as_told(&self, record: &BanRecord) -> Option<Told> {
        let (source, bits) = self.prefix(&record.culprit).filter(|_| is_own(record))?;
        Some(Told::Ban {
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

    /// Tells others that an operator ended a ban, and with it what was decided before it or nothing else; or
    /// `CrowdSec` alone that one of another edge did, as nobody else takes back what this edge told there. What
    /// another edge banned the fleet knows of, however much milder it was here. What another edge bans the client
    /// for still, where nothing here does.
    pub(super) fn tell_lifted(&self, record: &BanRecord, lifted: Lifted) -> Option<Record> {
        let is_known = is_own(record) || record.origin == Origin::Fleet;
        let (source, bits) = self.prefix(&record.culprit).filter(|_| is_known)?;
        let (fleet, since_ms) = (self.fleet(), record.since_ms);
        let (act, at_ms) = match lifted {
            Lifted::Wholly => {
                let after_ms = fleet.as_ref().map_or(0, |fleet| fleet.after(&source));
                (Act::Lift, after_ms.max(since_ms + 1))
            }
            Lifted::Alone => (Act::Revoke { reason: record.reason.clone() }, since_ms),
            Lifted::Elsewhere if is_own(record) => (Act::Lift, since_ms),
            Lifted::Elsewhere => return None,
        };
        let BanRecord { reason, until_ms, .. } = record.clone();
        let is_alone = act != Act::Lift;
        let told = Told::Lift { source, bits, reason, is_alone, at_ms, until_ms };
        if lifted == Lifted::Elsewhere {
            self.edge.outside.tell_crowdsec(&told);
            return None;
        }
        let next = fleet.and_then(|fleet| fleet.end(source, act, at_ms, until_ms));
        self.edge.outside.tell(&told);
        next
    }

    /// Tells others that an operator sets a client free that nothing is in force against here; whether
    /// another edge bans it.
    pub(super) fn tell_freed(&self, culprit: &Culprit) -> bool {
        let (Some((source, bits)), Some(fleet)) = (self.prefix(culprit), self.fleet()) else {
            return false;
        };
        let Some(until_ms) = fleet.banned_until(&source) else { return false };
        let at_ms = fleet.after(&source);
        fleet.end(source, Act::Lift, at_ms, until_ms);
        let (reason, is_alone) = ("operator".into(), false);
        self.edge.outside.tell(&Told::Lift { source, bits, reason, is_alone, at_ms, until_ms });
        true
    }

    /// Dates a ban of this edge's after all lifts of its client: a lift ends what was before it.
    pub(super) fn date(&self, record: &mut BanRecord) {
        let fleet = self.fleet().filter(|_| is_own(record));
        if let (Culprit::Source(source), Some(fleet)) = (&record.culprit, fleet) {
            record.since_ms = fleet.dated(&IpAddr::from(*source), record.since_ms);
        }
    }
}

/// Whether it is a ban that this edge decided.
pub(super) fn is_own(record: &BanRecord) -> bool {
    record.step == Step::Ban && matches!(record.origin, Origin::Scenario | Origin::Operator)
}

/// What is lifted, and by whom.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifted {
    /// By an operator: all that was decided so far.
    Wholly,
    /// By an operator: this, and nothing else.
    Alone,
    /// By an operator of another edge, or by one of this edge before its restart.
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
