//! Where there are more verdicts than room: those that would end first give way.

use std::sync::atomic::Ordering::Relaxed;

use edge_policy::verdict::Culprit;

use super::{Writer, bans::PENALTIES_MAX, tell::Lasting};
use crate::{clock, store::BanRecord};

impl Writer {
    /// Ends the ban that would end first: the latest offender matters more.
    pub(super) fn make_room(&mut self) -> anyhow::Result<()> {
        self.bans.first().map_or(Ok(()), |client| self.evict(&Culprit::Source(client)))
    }

    /// Ends the milder verdicts that would end first, until there is room for one more.
    pub(super) fn make_room_for_milder(&mut self) -> anyhow::Result<()> {
        while self.penalties.len() >= PENALTIES_MAX
            && let Some(first) = self.penalties.first()
        {
            self.evict(&first)?;
        }
        Ok(())
    }

    /// Ends what is in force against a culprit because there is no room for it.
    fn evict(&mut self, culprit: &Culprit) -> anyhow::Result<()> {
        let record = self.held(culprit).map(|held| held.record.clone());
        // All bans of a client have one place.
        if let Some(mut held) = self.release(culprit) {
            held.milder.retain(|beneath| beneath.record.step < held.record.step);
            self.hold(held);
        }
        self.end(culprit, "no_room")?;
        record.into_iter().for_each(|record| self.note_evicted(record));
        Ok(())
    }

    /// Keeps of a verdict that there was no room for what is kept of one that is over: otherwise it would
    /// ask for its place again at the next start.
    pub(super) fn note_evicted(&mut self, record: BanRecord) {
        if self.held(&record.culprit).is_some() {
            // Of what is milder.
            self.save(&record.culprit);
        } else {
            let until_ms = record.until_ms.min(clock::unix_ms());
            self.unsaved.put(BanRecord { until_ms, ..record });
        }
        self.edge.metrics.verdicts.evicted.fetch_add(1, Relaxed);
        self.alarm_of(&Lasting::Full);
    }
}
