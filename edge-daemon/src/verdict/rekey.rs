//! Bans under what stands for a client now, where another prefix did before.

use std::collections::{BTreeMap, BTreeSet};

use edge_common::{Source, map};

use super::Writer;
use crate::kernel::KernelError;

impl Writer {
    /// The kernel's bans, each under what stands for a client now. Those that have become one client's
    /// are one ban: the longest, with all hits and the most strikes. A running filter still goes by what stood for a
    /// client before: both are there until [`Self::settle_clients`].
    pub(super) fn rekey(
        &mut self,
        known: &BTreeSet<Source>,
    ) -> anyhow::Result<BTreeMap<Source, map::Ban>> {
        let (mut bans, mut moved) = (BTreeMap::<_, map::Ban>::new(), Vec::new());
        for (found, ban) in self.tables.bans.entries()? {
            let client = found.client(self.settings.kernel.client);
            if client != found {
                moved.push((found, client, ban));
            }
            bans.entry(client).and_modify(|known| *known = both(known, &ban)).or_insert(ban);
        }
        for (found, client, ban) in moved {
            self.moved.0.push((found, ban));
            if !known.contains(&client) {
                self.moved.1.push(client);
            }
            match self.tables.bans.ban(client, bans[&client]) {
                Err(KernelError::Full { .. }) => {
                    self.tables.bans.unban(found)?;
                    self.tables.bans.ban(client, bans[&client])?;
                }
                written => written?,
            }
        }
        Ok(bans)
    }

    /// Takes the bans away that are under what stands for a client no more; or, if no filter `goes_by` what does now,
    /// those that are under that, and puts back what had to make room for them.
    pub fn settle_clients(&mut self, goes_by: bool) -> anyhow::Result<()> {
        let (former, new) = std::mem::take(&mut self.moved);
        if goes_by {
            for (client, _) in former {
                self.tables.bans.unban(client)?;
            }
            return Ok(());
        }
        for client in new {
            self.tables.bans.unban(client)?;
        }
        for (client, ban) in former {
            if self.tables.bans.lookup(client)?.is_none() {
                self.tables.bans.ban(client, ban)?;
            }
        }
        Ok(())
    }
}

/// Two bans of one client.
fn both(one: &map::Ban, other: &map::Ban) -> map::Ban {
    let longer = if other.until_ns > one.until_ns { other } else { one };
    let first_hits = [one.first_hit_ns, other.first_hit_ns].into_iter().filter(|ns| *ns != 0);
    map::Ban {
        since_ns: one.since_ns.min(other.since_ns),
        hits: one.hits.saturating_add(other.hits),
        first_hit_ns: first_hits.min().unwrap_or_default(),
        strikes: one.strikes.max(other.strikes),
        ..*longer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bans_of_one_client_are_one_that_takes_nothing_back() {
        let ban = |since_ns, until_ns, hits, first_hit_ns, reason, strikes| map::Ban {
            since_ns,
            until_ns,
            hits,
            first_hit_ns,
            reason,
            strikes,
        };
        let (long, short) = (ban(5, 90, 2, 0, 7, 1), ban(3, 60, 4, 8, 9, 3));
        let one = ban(3, 90, 6, 8, 7, 3);
        assert_eq!((both(&long, &short), both(&short, &long)), (one, one));
    }
}
