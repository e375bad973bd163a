//! Records from the future, as a host without a battery for its clock has them after a boot: none may last for
//! longer than it was to, however far behind the clock is.

use edge_identity::fleet::SKEW_MS;

use super::{BanRecord, Contents, Fault, ListRecord, Store};
use crate::control::ListName;

impl Store {
    /// Dates records that begin later than a clock may be wrong as if they began now, here and on disk, so that
    /// the next start does not give them their time anew; says how many there were.
    ///
    /// # Errors
    /// If the database fails.
    pub fn redate(&self, contents: &mut Contents, now_ms: u64) -> Result<usize, Fault> {
        let mut count = 0;
        let lists = [(ListName::Allow, &mut contents.allow), (ListName::Deny, &mut contents.deny)];
        for (list, records) in lists {
            for record in records.iter_mut().filter_map(|record| redated(record, now_ms)) {
                self.put_list(list, record)?;
                count += 1;
            }
        }
        let mut bans = Vec::new();
        for ban in &mut contents.bans {
            let mut is_redated = begin_now(ban, now_ms);
            for milder in &mut ban.milder {
                is_redated |= begin_now(milder, now_ms);
            }
            if is_redated {
                bans.push(ban.clone());
            }
        }
        if !bans.is_empty() {
            self.put_bans(&bans)?;
        }
        Ok(count + bans.len())
    }
}

fn redated(record: &mut ListRecord, now_ms: u64) -> Option<&mut ListRecord> {
    let until_ms = shifted(record.added_ms, record.until_ms?, now_ms)?;
    (record.added_ms, record.until_ms) = (now_ms, Some(until_ms));
    Some(record)
}

fn begin_now(ban: &mut BanRecord, now_ms: u64) -> bool {
    let until_ms = shifted(ban.since_ms, ban.until_ms, now_ms);
    if let Some(until_ms) = until_ms {
        (ban.since_ms, ban.until_ms) = (now_ms, until_ms);
    }
    until_ms.is_some()
}

/// When what begins in the future ends, if it begins now.
fn shifted(since_ms: u64, until_ms: u64, now_ms: u64) -> Option<u64> {
    let is_future = since_ms > now_ms.saturating_add(SKEW_MS);
    is_future.then(|| now_ms.saturating_add(until_ms.saturating_sub(since_ms)))
}
