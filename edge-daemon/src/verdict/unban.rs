//! Bans that somebody ends, and what is left against their clients.

use anyhow::bail;
use edge_policy::{
    list::Class,
    verdict::{Culprit, Origin, Step},
};

use super::{Writer, bans::apart, book::Held, tell::Lifted};
use crate::{clock, control::Reply, store::BanRecord};

impl Writer {
    pub(super) fn unban(&mut self, asked: &Culprit) -> anyhow::Result<Reply> {
        let culprit = self.of_client(asked);
        if self.held(&culprit).is_none() {
            if self.tell_freed(&culprit) {
                return Ok(Reply::Done(format!("{culprit} is free on the other edges, too")));
            }
            bail!("{culprit} is not banned{}", self.still(asked, &culprit));
        }
        self.free(&culprit, "operator")?;
        let still = self.still(asked, &culprit);
        Ok(Reply::Done(format!("{culprit} is banned no more, its misdeeds are forgotten{still}")))
    }

    /// Ends what operators decided for a reason, and nothing else; where there is nothing of it, nothing is to be done.
    pub(super) fn unban_for(&mut self, asked: &Culprit, reason: &str) -> anyhow::Result<Reply> {
        let culprit = self.of_client(asked);
        let by_hand =
            |held: &Held| held.record.origin == Origin::Operator && held.record.reason == reason;
        let held = self.held(&culprit).into_iter().flat_map(Held::all);
        let meant = held.filter(|held| by_hand(held) || self.is_own_of_fleet(held, reason));
        let meant: Vec<_> = meant.map(|held| held.record.clone()).collect();
        let ended = self.end_of(&culprit, "operator", |held| meant.contains(&held.record))?;
        if ended.is_empty() {
            return Ok(Reply::Done(format!("nobody holds {culprit} for \"{reason}\" by hand")));
        }
        let now_ms = clock::unix_ms();
        // The others end by themselves what is nearly over.
        for record in ended.iter().filter(|it| it.until_ms > now_ms + NEARLY_MS) {
            if let Some(next) = self.tell_lifted(record, Lifted::Alone) {
                self.banned(next, false);
            }
        }
        let left = self.held(&culprit).map(|held| held.record.step.name());
        let left = left.map_or(String::new(), |step| format!("; it is held to \"{step}\" still"));
        let still = self.still(asked, &culprit);
        Ok(Reply::Done(format!("{culprit} is held for \"{reason}\" no more{left}{still}")))
    }

    /// What else is against a client: a list, and what holds a part of what comes from it.
    fn still(&self, asked: &Culprit, culprit: &Culprit) -> String {
        let Culprit::Source(address) = *asked else { return String::new() };
        let (lists, now_ns) = (&self.tables.lists, clock::boot_ns());
        let address = address.into();
        let denied = lists.decides(Class::Deny, address, now_ns);
        let denied = denied.filter(|_| lists.allows(address, now_ns).is_none());
        let denied = denied.map(|(net, _)| {
            let by = self.told(Class::Deny, &net).map_or(String::new(), |entry| entry.source);
            format!("; {net} of the deny list ({by}) drops it still")
        });
        let is_part = |(of, held): &(&Culprit, &Held)| {
            of.source() == culprit.source() && *of != culprit && held.until_ns > now_ns
        };
        let parts = self.penalties.iter().filter(is_part).take(PARTS_MAX);
        let parts = parts.map(|(of, held)| {
            format!("; \"{of}\" is held to \"{}\" still", held.record.step.name())
        });
        denied.into_iter().chain(parts).collect()
    }

    /// Lifts what is in force, and forgets what led to it.
    pub(super) fn free(&mut self, culprit: &Culprit, why: &'static str) -> anyhow::Result<()> {
        let Some(record) = self.held(culprit).map(Held::on_disk) else {
            return Ok(());
        };
        self.unsaved.forget(culprit);
        let lifted = match self.store.remove_ban(culprit) {
            Ok(_) => self.lift(culprit, why),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = lifted {
            // It stays in force, and so it is to be on disk.
            self.unsaved.put(record);
            return Err(error);
        }
        let is_ours = why == Origin::Operator.name();
        let lifted = if is_ours { Lifted::Wholly } else { Lifted::Elsewhere };
        for record in apart(record) {
            self.tell_lifted(&record, lifted);
        }
        self.engine.pardon(culprit);
        Ok(())
    }

    /// Ends those verdicts on a culprit that are meant, and nothing else: what is left is in force, and strikes are
    /// kept. Those that it ended.
    pub(super) fn end_of(
        &mut self,
        culprit: &Culprit,
        why: &'static str,
        is_meant: impl Fn(&Held) -> bool,
    ) -> anyhow::Result<Vec<BanRecord>> {
        let Some(mut held) = self.held(culprit).cloned() else { return Ok(Vec::new()) };
        let meant = held.all().filter(|held| is_meant(held)).map(|held| held.record.clone());
        let ended: Vec<_> = meant.collect();
        if ended.is_empty() {
            return Ok(ended);
        }
        held.milder.retain(|milder| !is_meant(milder));
        let is_first = is_meant(&held);
        self.release(culprit);
        self.hold(held);
        if is_first {
            self.end(culprit, why)?;
        }
        if self.held(culprit).is_some() {
            self.save(culprit);
        } else if let Some(mut first) = ended.first().cloned() {
            // What it does next is judged as after the end of any verdict.
            self.engine.restore(culprit, first.strikes, Step::Observe, clock::boot_ns());
            first.settle(clock::unix_ms());
            self.unsaved.put(first);
        }
        Ok(ended)
    }
}

/// Longer than whoever bans by `edgectl` may be ahead of this edge with an end.
const NEARLY_MS: u64 = 60_000;
/// Verdicts on parts of a client that an operator is told of.
const PARTS_MAX: usize = 8;
