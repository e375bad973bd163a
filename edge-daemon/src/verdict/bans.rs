//! Verdicts in force: from the signal that makes a bucket overflow to the end of the time.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use edge_common::{Reason, map};
use edge_identity::fleet::SKEW_MS;
use edge_policy::verdict::{Culprit, Evidence, Facts, Kind, Origin, Signal, Spared, Step, Verdict};

use super::{
    Writer,
    book::Held,
    exempt::{self, Exempt},
    tell::Lasting,
};
use crate::{
    clock,
    decisions::{Decision, What},
    events::Event,
    kernel::KernelError,
    penalties::Penalty,
    store::BanRecord,
};

impl Writer {
    /// Brings the verdicts of the store and the bans of the kernel together. Where both know a client,
    /// the kernel is right about the time: it has the hits, and the store may be a second behind.
    /// What finds no room in the kernel is what would have ended first.
    pub(super) fn restore(&mut self, stored: Vec<BanRecord>) -> anyhow::Result<()> {
        let now_ms = clock::unix_ms();
        let mut stored: Vec<_> = stored.into_iter().flat_map(apart).collect();
        // What is over goes first, so that what is in force has the last word.
        stored.sort_by_key(|record| match record.ends_ms(now_ms) {
            until_ms if until_ms <= now_ms => (false, until_ms),
            until_ms => (true, u64::MAX - until_ms),
        });
        let mut known = BTreeMap::new();
        let found = self.tables.bans.entries()?.into_iter().map(|(client, _)| client).collect();
        for mut record in stored {
            // Another prefix may have stood for a client when it was banned.
            record.culprit = self.of_client(&record.culprit);
            let until_ms = record.ends_ms(now_ms);
            let until_ns = clock::boot_ns_at(until_ms);
            // The time before this boot counts towards what is forgotten.
            let ended_ns = clock::signed_boot_ns_at(until_ms);
            self.engine.restore(&record.culprit, record.strikes, record.step, ended_ns);
            match (&record.culprit, record.step) {
                _ if until_ms <= now_ms => {}
                (Culprit::Source(client), Step::Ban) => {
                    if self.tables.bans.lookup(*client)?.is_none() {
                        match self.tables.bans.ban(*client, in_kernel(&record, until_ns)) {
                            Err(KernelError::Full { .. }) => {
                                self.note_evicted(record);
                                continue;
                            }
                            written => written?,
                        }
                    }
                    // What ends last came first.
                    match known.entry(*client) {
                        Entry::Vacant(entry) => drop(entry.insert(record)),
                        Entry::Occupied(_) => self.hold(Held::new(record, until_ns)),
                    }
                }
                _ => self.hold(Held::new(record, until_ns)),
            }
        }
        for (client, ban) in self.rekey(&found)? {
            let culprit = Culprit::Source(client);
            let mut record = known.remove(&client).unwrap_or_else(|| BanRecord {
                culprit: culprit.clone(),
                step: Step::Ban,
                since_ms: 0,
                until_ms: 0,
                strikes: 0,
                reason: reason_of(&ban).name().into(),
                scenario: String::new(),
                origin: Origin::Scenario,
                spared: None,
                evidence: Vec::new(),
                milder: Vec::new(),
            });
            // A clock that is behind knows no better date than the disk.
            if !record.is_future(now_ms) {
                record.since_ms = dated_since(&record, ban.since_ns);
                record.until_ms = corrected(record.until_ms, clock::unix_ms_at(ban.until_ns));
            }
            record.strikes = ban.strikes;
            self.hold(Held::new(record, ban.until_ns));
            self.save(&culprit);
        }
        self.free_exempt();
        Ok(())
    }

    /// Takes a signal in, and carries out what it leads to.
    pub(super) fn judge(&mut self, signal: Signal) {
        let (tables, settings) = (&self.tables, &self.settings.verdicts);
        let width = self.settings.kernel.client;
        let (cap, vital) = (&self.cap, &self.vital);
        let facts = |signal: &Signal| {
            let allowed = tables.lists.allows(signal.address, signal.at_ns);
            let is_never = settings.never_ban.iter().any(|net| net.contains(&signal.address));
            let prefix = exempt::network(signal.source, width);
            Facts {
                is_exempt: is_never || allowed.is_some(),
                is_beside_exempt: exempt::of(&settings.never_ban, prefix) != Exempt::Not,
                is_vital: vital.contains(&signal.source),
                is_exhausted: cap.is_reached(settings.bans_per_minute, signal.at_ns),
            }
        };
        let is_shared = self.edge.identities.is_shared(&signal.source, signal.at_ns);
        for verdict in self.engine.judge(signal, is_shared, facts) {
            self.carry_out(verdict);
        }
    }

    fn carry_out(&mut self, verdict: Verdict) {
        let since_ns = clock::boot_ns();
        let until_ns = since_ns.saturating_add(verdict.duration_ns);
        let record = BanRecord {
            culprit: verdict.culprit.clone(),
            step: verdict.step,
            since_ms: clock::unix_ms_at(since_ns),
            until_ms: clock::unix_ms_at(until_ns),
            strikes: verdict.strikes,
            reason: verdict.last.0.name().into(),
            scenario: verdict.scenario.to_string(),
            origin: Origin::Scenario,
            spared: verdict.spared.map(|spared| spared.name().to_owned()),
            evidence: verdict.evidence.iter().map(dated).collect(),
            milder: Vec::new(),
        };
        if let Some(spared) = verdict.spared {
            self.edge.metrics.verdicts.spare(spared);
        }
        if verdict.spared == Some(Spared::Cap) {
            self.alarm_of(&Lasting::Cap);
        }
        if verdict.step == Step::Observe {
            self.edge.metrics.verdicts.count(Step::Observe);
            return self.tell(What::Observed, &record, None);
        }
        if let Err(error) = self.enforce(record, until_ns, Some(verdict.last.1)) {
            // The culprit is as free as before; its next misdeed tries again.
            self.engine.retract(&verdict, since_ns);
            self.edge.metrics.bans_failed.fetch_add(1, Relaxed);
            let (culprit, why) = (verdict.culprit, format!("{error:#}"));
            tracing::error!(%culprit, error = why, "cannot carry out a verdict");
            self.alarm_of(&Lasting::Failing(why.clone()));
            self.edge.events.tell(Event::BanFailed { culprit, why });
        }
    }

    /// The one place where a verdict comes into force. Verdicts of a scenario come with the time of
    /// their last signal.
    pub(super) fn enforce(
        &mut self,
        mut record: BanRecord,
        until_ns: u64,
        signal_ns: Option<u64>,
    ) -> anyhow::Result<()> {
        let (step, mut latency) = (record.step, None);
        if let (Culprit::Source(client), Step::Ban) = (&record.culprit, step) {
            let client = *client;
            let longest_ns = self.bans.get(&client).map_or(0, |held| held.until_ns).max(until_ns);
            let ban = in_kernel(&record, longest_ns);
            // One that lasts as long stays, with its hits.
            let known = self.tables.bans.lookup(client)?;
            if known.is_none_or(|known| known.until_ns < longest_ns || longest_ns == until_ns) {
                match self.tables.bans.ban(client, ban) {
                    Err(KernelError::Full { .. }) => {
                        self.make_room()?;
                        self.tables.bans.ban(client, ban)?;
                    }
                    written => written?,
                }
            }
            let metrics = &self.edge.metrics;
            metrics.bans.fetch_add(1, Relaxed);
            if let Some(at_ns) = signal_ns {
                let ns = clock::boot_ns().saturating_sub(at_ns);
                metrics.ban_latency.observe(Duration::from_nanos(ns));
                latency = Some(ns / 1000);
                self.cap.count(at_ns);
            }
        } else if self.held(&record.culprit).is_none() {
            self.make_room_for_milder()?;
        }
        self.edge.metrics.verdicts.count(step);
        self.date(&mut record);
        if let Some(told) = self.as_told(&record) {
            self.edge.outside.tell(&told);
        }
        self.tell(if step == Step::Ban { What::Ban } else { What::Penalty }, &record, latency);
        let culprit = record.culprit.clone();
        self.hold(Held::new(record, until_ns));
        self.save(&culprit);
        Ok(())
    }

    /// Notes a verdict beside those that are held against its culprit, for this thread, for those that
    /// serve and for the engine.
    pub(super) fn hold(&mut self, held: Held) {
        self.note_capped(&held.record);
        let culprit = held.record.culprit.clone();
        let former = self.release(&culprit);
        let Some(held) = Held::of(std::iter::once(held).chain(former)) else { return };
        let (step, until_ns) = (held.record.step, held.until_ns);
        self.edge.penalties.put(&culprit, Penalty { step, until_ns });
        self.engine.restore(&culprit, held.record.strikes, step, until_ns);
        match (&culprit, step) {
            (Culprit::Source(client), Step::Ban) => self.bans.insert(*client, held),
            _ => self.penalties.insert(culprit, held),
        }
        self.count_held();
    }

    pub(super) fn release(&mut self, culprit: &Culprit) -> Option<Held> {
        let banned = match culprit {
            Culprit::Source(client) => self.bans.remove(client),
            _ => None,
        };
        banned.or_else(|| self.penalties.remove(culprit))
    }

    /// Has what is held against a culprit saved.
    pub(super) fn save(&mut self, culprit: &Culprit) {
        if let Some(record) = self.held(culprit).map(Held::on_disk) {
            self.unsaved.put(record);
        }
    }

    /// What is in force against a culprit.
    pub(super) fn held(&self, culprit: &Culprit) -> Option<&Held> {
        let banned = culprit.source().filter(|_| matches!(culprit, Culprit::Source(_)));
        banned.and_then(|client| self.bans.get(&client)).or_else(|| self.penalties.get(culprit))
    }

    /// Clears away what has ended. Nobody has been minding it since.
    pub(super) fn end_bans(&mut self, now_ns: u64) {
        let bans = self.bans.ended(now_ns).into_iter().map(Culprit::Source);
        let ended: Vec<_> = bans.chain(self.penalties.ended(now_ns)).collect();
        for culprit in ended {
            if let Err(error) = self.end(&culprit, "expired") {
                let error = format!("{error:#}");
                tracing::error!(%culprit, error, "cannot clear a ban away");
            }
        }
    }

    /// Ends what is in force against a culprit; from now on it is what is beneath it and not over.
    pub(super) fn end(&mut self, culprit: &Culprit, why: &'static str) -> anyhow::Result<()> {
        let now_ms = clock::unix_ms();
        let future = self.held(culprit).filter(|held| held.record.is_future(now_ms));
        let future = future.map(Held::on_disk);
        let milder = self.held(culprit).map(|held| held.milder.clone()).unwrap_or_default();
        self.lift(culprit, why)?;
        let now_ns = clock::boot_ns();
        if let Some(held) = Held::of(milder.into_iter().filter(|held| now_ns < held.until_ns)) {
            let (what, done) = match (culprit, held.record.step) {
                (Culprit::Source(client), Step::Ban) => {
                    let ban = in_kernel(&held.record, held.until_ns);
                    (What::Ban, self.tables.bans.ban(*client, ban).map_err(Into::into))
                }
                _ => (What::Penalty, self.make_room_for_milder()),
            };
            self.tell(what, &held.record, None);
            self.hold(held);
            self.save(culprit);
            return done;
        }
        // By its dates it would begin once more at the next start.
        if let Some(mut ended) = future {
            ended.settle(now_ms);
            self.unsaved.put(ended);
        }
        Ok(())
    }

    /// Ends all that is held against a culprit. The store keeps the strikes until they are forgotten.
    pub(super) fn lift(&mut self, culprit: &Culprit, why: &'static str) -> anyhow::Result<()> {
        let client = match culprit {
            Culprit::Source(client) => self.bans.get(client).map(|_| *client),
            _ => None,
        };
        if let Some(client) = client {
            self.tables.bans.unban(client)?;
            self.bans.remove(&client);
            self.edge.events.tell(Event::Unban { source: client.into(), reason: why });
        }
        if self.penalties.remove(culprit).is_some() {
            self.edge.events.tell(Event::Lift { culprit: culprit.clone(), reason: why });
        }
        self.edge.penalties.lift(culprit);
        self.count_held();
        self.edge.decisions.tell(Decision::lift(culprit.clone(), why));
        Ok(())
    }

    fn count_held(&self) {
        let metrics = &self.edge.metrics;
        metrics.bans_active.store(self.bans.len() as u64, Relaxed);
        metrics.verdicts.penalties_active.store(self.penalties.len() as u64, Relaxed);
    }
}

/// A time of a record as the kernel has it, unless they differ by what two clocks' roundings do: the
/// same ban is to be the same record after every restart.
fn corrected(record_ms: u64, kernel_ms: u64) -> u64 {
    if record_ms.abs_diff(kernel_ms) < 1_000 { record_ms } else { kernel_ms }
}

/// Since when a ban is: it may be dated later than it began, after a lift by a faster clock; but not from
/// before the clock was set back, as others would take it for one from the future. What another edge decided has
/// the date that it told, and the kernel has none of what is from before the boot.
fn dated_since(record: &BanRecord, kernel_ns: u64) -> u64 {
    let (record_ms, kernel_ms) = (record.since_ms, clock::unix_ms_at(kernel_ns));
    if record_ms > 0 && (record.origin == Origin::Fleet || kernel_ns == 0) {
        return record_ms;
    }
    let since_ms = corrected(record_ms, kernel_ms);
    if record_ms <= since_ms.saturating_add(SKEW_MS) { since_ms.max(record_ms) } else { since_ms }
}

/// A ban as the kernel has it.
pub(super) fn in_kernel(record: &BanRecord, until_ns: u64) -> map::Ban {
    map::Ban {
        since_ns: clock::boot_ns_at(record.since_ms).min(clock::boot_ns()),
        until_ns,
        hits: 0,
        first_hit_ns: 0,
        reason: reason_named(&record.reason) as u32,
        strikes: record.strikes,
    }
}

/// A record of a culprit as those of its verdicts.
pub(super) fn apart(mut record: BanRecord) -> impl Iterator<Item = BanRecord> {
    let milder = std::mem::take(&mut record.milder);
    std::iter::once(record).chain(milder)
}

/// Evidence with the calendar's time.
pub(super) fn dated(evidence: &Evidence) -> Evidence {
    Evidence { at: clock::unix_ms_at(evidence.at), ..evidence.clone() }
}

pub(super) fn reason_of(ban: &map::Ban) -> Reason {
    Reason::from_index(ban.reason).unwrap_or(Reason::InternalError)
}

fn reason_named(name: &str) -> Reason {
    Kind::named(name).map_or(Reason::Ban, Kind::reason)
}

/// Penalties in force at once, apart from the kernel's bans: ~1 KiB each with their evidence.
pub(super) const PENALTIES_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_from_before_the_clock_was_set_back_is_none() {
        let kernel_ns = clock::boot_ns();
        let kernel_ms = clock::unix_ms_at(kernel_ns);
        let record = |since_ms, origin| BanRecord {
            culprit: Culprit::Source(edge_common::Source::v4([192, 0, 2, 1])),
            step: Step::Ban,
            since_ms,
            until_ms: 0,
            strikes: 1,
            reason: "scan".into(),
            scenario: "edge b".into(),
            origin,
            spared: None,
            evidence: Vec::new(),
            milder: Vec::new(),
        };
        let own = |since_ms| dated_since(&record(since_ms, Origin::Scenario), kernel_ns);
        assert_eq!(own(kernel_ms + 500), kernel_ms + 500);
        assert_eq!(own(kernel_ms + SKEW_MS), kernel_ms + SKEW_MS);
        // The calendar is read anew each time.
        assert!(own(kernel_ms + SKEW_MS + 1_000).abs_diff(kernel_ms) < 500);
        assert!(own(0).abs_diff(kernel_ms) < 500);
        // From before the boot, or of another edge.
        let long_ago = kernel_ms - kernel_ns / 1_000_000 - 3_600_000;
        assert_eq!(dated_since(&record(long_ago, Origin::Scenario), 0), long_ago);
        assert_eq!(dated_since(&record(long_ago, Origin::Fleet), kernel_ns), long_ago);
        assert!(dated_since(&record(0, Origin::Scenario), 0) > 0);
    }
}
