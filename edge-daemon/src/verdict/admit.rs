//! What somebody else decided on its way in force: what this edge keeps to, whoever it was.

use anyhow::bail;
use edge_policy::verdict::{Culprit, EVIDENCE_MAX, Evidence, Origin, Spared, Step};

use super::{Writer, bans::PENALTIES_MAX, book::Held, exempt::Exempt, tell::Lasting};
use crate::{clock, decisions::What, store::BanRecord};

impl Writer {
    /// Puts in force what somebody else has decided: an operator, another edge, a feed. What is in
    /// force already and lasts longer stays; so the same order may come any number of times. `is_news`:
    /// it was told just now, whatever the clock of who decided it says.
    ///
    /// # Errors
    /// If the source is never to be banned, or what the kernel says.
    pub(super) fn admit(&mut self, mut record: BanRecord, is_news: bool) -> anyhow::Result<String> {
        record.culprit = self.of_client(&record.culprit);
        if let Culprit::Source(client) = record.culprit {
            match self.exempt(client) {
                Exempt::Wholly => {
                    bail!(
                        "{client} is never to be banned: it is on the allow list or in 'never_ban' of [verdicts]"
                    )
                }
                Exempt::Partly if record.step == Step::Ban => self.spare_exempt(&mut record),
                Exempt::Partly | Exempt::Not => {}
            }
            if record.origin != Origin::Operator && self.vital.contains(&client) {
                bail!("{client} is one that this host cannot do without");
            }
        } else if record.step == Step::Ban {
            record.step = Step::Refuse;
        }
        let culprit = record.culprit.clone();
        if record.until_ms <= clock::unix_ms() {
            bail!("a ban of {culprit} that is over");
        }
        let until_ns = clock::boot_ns_at(record.until_ms);
        let new = Held::new(record.clone(), until_ns);
        if self.held(&culprit).is_some_and(|held| held.all().any(|known| known.covers(&new))) {
            return Ok(format!("{culprit} is held already, and for longer"));
        }
        if self.is_shared_here(&record) {
            return Ok(self.spare_shared(record));
        }
        let is_fresh = self.temper_fresh(&mut record, is_news);
        self.keep_evidence(&mut record);
        let step = record.step;
        if record.strikes == 0 {
            record.strikes = self.engine.strikes(&culprit, clock::boot_ns()).saturating_add(1);
        }
        self.enforce(record, until_ns, None)?;
        if is_fresh {
            self.cap.count(clock::boot_ns());
        }
        let now = self.held(&culprit).map_or(step, |held| held.record.step);
        let first = match now > step {
            true => format!("\"{}\" as it is, and then to ", now.name()),
            false => String::new(),
        };
        Ok(format!("{culprit} is held to {first}\"{}\"", step.name()))
    }

    /// Whether another edge bans a client that several identities succeed from at this one.
    fn is_shared_here(&self, record: &BanRecord) -> bool {
        let Culprit::Source(client) = record.culprit else { return false };
        let identities = &self.edge.identities;
        record.origin == Origin::Fleet && identities.is_shared(&client, clock::boot_ns())
    }

    /// Only tells of it: nothing in the record tells the culprit from its neighbours.
    fn spare_shared(&self, mut record: BanRecord) -> String {
        record.step = Step::Observe;
        record.spared = Some(Spared::Shared.name().to_owned());
        self.edge.metrics.verdicts.spare(Spared::Shared);
        self.edge.metrics.verdicts.count(Step::Observe);
        self.tell(What::Observed, &record, None);
        format!("{} is shared by several identities here, and spared", record.culprit)
    }

    /// Bans in their turn whom the cap had spared: what an edge decided long ago and tells again is none of
    /// this minute, but nothing in a record proves that. Half of the cap is left to this edge's own.
    pub(super) fn promote(&mut self) {
        let most = self.settings.verdicts.bans_per_minute.div_ceil(2);
        for _ in 0..PROMOTED_MAX {
            let now_ns = clock::boot_ns();
            if self.cap.is_reached(most, now_ns) {
                return;
            }
            let Some(client) = self.capped.pop_front() else { return };
            let culprit = Culprit::Source(client);
            let is_due = |held: &&Held| is_capped(&held.record) && now_ns < held.until_ns;
            let Some(Held { record, until_ns, .. }) =
                self.penalties.get(&culprit).filter(is_due).cloned()
            else {
                continue;
            };
            // Much may have come to be known of it since.
            let is_spared = self.vital.contains(&client) || self.is_shared_here(&record);
            if is_spared || self.exempt(client) != Exempt::Not {
                continue;
            }
            let record = BanRecord { step: Step::Ban, spared: None, ..record };
            match self.enforce(record, until_ns, None) {
                Ok(()) => {
                    self.cap.count(now_ns);
                    self.is_promotion_failing = false;
                }
                Err(error) => {
                    // Once a series.
                    if !std::mem::replace(&mut self.is_promotion_failing, true) {
                        let error = format!("{error:#}");
                        tracing::error!(%culprit, error, "a ban stays milder");
                    }
                    return self.capped.push_back(client);
                }
            }
        }
    }

    /// Notes whom the cap spares for now.
    pub(super) fn note_capped(&mut self, record: &BanRecord) {
        if let Culprit::Source(client) = record.culprit
            && is_capped(record)
            && self.capped.len() < PENALTIES_MAX
        {
            self.capped.push_back(client);
        }
    }

    /// What is known of a client here stays beside what another edge says of it.
    fn keep_evidence(&self, record: &mut BanRecord) {
        let Some(held) = self.held(&record.culprit).filter(|_| record.origin == Origin::Fleet)
        else {
            return;
        };
        let BanRecord { origin, reason, since_ms, evidence, .. } = &held.record;
        let by_hand = (*origin == Origin::Operator).then(|| Evidence {
            at: *since_ms,
            kind: format!("{BY_HAND}{reason}").into(),
            address: held.record.culprit.source().unwrap_or_default().into(),
            request: None,
        });
        record.evidence.extend(by_hand.into_iter().chain(evidence.iter().cloned()));
        record.evidence.truncate(2 * EVIDENCE_MAX);
    }

    /// Whether a record is another edge's ban of this minute, which counts as one of this edge's own
    /// scenarios does: so many a minute and no more, whoever goes wrong. What is older was decided
    /// under other edges' bounds, and is no flood of anything; neither is what is banned already.
    fn temper_fresh(&mut self, record: &mut BanRecord, is_news: bool) -> bool {
        let age_ms = clock::unix_ms().saturating_sub(record.since_ms);
        let is_old = !is_news && age_ms > FRESH_MS;
        let is_banned =
            self.held(&record.culprit).is_some_and(|held| held.record.step == Step::Ban);
        if record.origin != Origin::Fleet || record.step != Step::Ban || is_old || is_banned {
            return false;
        }
        if !self.cap.is_reached(self.settings.verdicts.bans_per_minute, clock::boot_ns()) {
            return true;
        }
        record.step = Step::Refuse;
        record.spared = Some(Spared::Cap.name().to_owned());
        self.edge.metrics.verdicts.spare(Spared::Cap);
        self.alarm_of(&Lasting::Cap);
        false
    }
}

/// How old a decision of another edge may seem to be to count as one of this minute: its clock may be
/// wrong by five.
const FRESH_MS: u64 = 360_000;

/// Whether it is another edge's ban that the cap made milder.
pub(super) fn is_capped(record: &BanRecord) -> bool {
    record.origin == Origin::Fleet
        && record.step == Step::Refuse
        && record.spared.as_deref() == Some(Spared::Cap.name())
}

/// What the evidence of an operator's ban begins with, where another edge's took its place.
const BY_HAND: &str = "operator: ";
/// In one look: a few milliseconds of the writer's time.
const PROMOTED_MAX: usize = 1_000;
