//! What somebody else decided on its way in force: what this edge keeps to, whoever it was.

use anyhow::bail;
use edge_policy::verdict::{Culprit, Origin, Spared, Step};

use super::{Writer, bans::identities_of, book::Held, exempt::Exempt, tell::Lasting};
use crate::{clock, decisions::What, store::BanRecord};

impl Writer {
    /// Puts in force what somebody else has decided: an operator, another edge, a feed. What is in
    /// force already and lasts longer stays; so the same order may come any number of times. `is_news`:
    /// it was told just now, whatever the clock of who decided it says.
    ///
    /// # Errors
    /// If the source is never to be banned, or what the kernel says.
    pub(super) fn admit(&mut self, mut record: BanRecord, is_news: bool) -> anyhow::Result<String> {
        if let Culprit::Source(source) = record.culprit {
            let client = source.client(self.settings.kernel.client);
            record.culprit = Culprit::Source(client);
            match self.exempt(client) {
                Exempt::Wholly => {
                    bail!("{client} is never to be banned: 'never_ban' of [verdicts]")
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
        let stays = |held: &Held| held.until_ns >= until_ns && held.record.step >= record.step;
        if self.held(&culprit).is_some_and(stays) {
            return Ok(format!("{culprit} is held already, and for longer"));
        }
        if self.is_shared_here(&record) {
            return Ok(self.spare_shared(record));
        }
        let is_fresh = self.temper_fresh(&mut record, is_news);
        let step = record.step;
        if record.strikes == 0 {
            record.strikes = self.engine.strikes(&culprit, clock::boot_ns()).saturating_add(1);
        }
        self.engine.restore(&culprit, record.strikes, step, until_ns);
        self.enforce(record, until_ns, None)?;
        if is_fresh {
            self.cap.count(clock::boot_ns());
        }
        Ok(format!("{culprit} is held to \"{}\"", step.name()))
    }

    /// Whether another edge bans a client that several identities succeed from at this one.
    fn is_shared_here(&self, record: &BanRecord) -> bool {
        let Culprit::Source(client) = record.culprit else { return false };
        let settings = &self.settings.verdicts;
        record.origin == Origin::Fleet
            && identities_of(&self.edge, settings, &client, clock::boot_ns()) >= settings.shared_by
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
