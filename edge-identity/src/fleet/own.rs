//! What an edge shares again with a server that lost its memory: its own bans, and the lifts that ended
//! them, so that no ban comes back without anybody who offends.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Act, Record};

/// Records of one edge that hold.
#[derive(Clone, Debug, Default)]
pub struct Own {
    bans: BTreeMap<IpAddr, Record>,
    lifts: BTreeMap<IpAddr, Record>,
}

impl Own {
    /// Notes what this edge decided, of `most` clients at the most. A ban that a lift is later than is none.
    pub fn put(&mut self, record: Record, most: usize) {
        let is_over = |lift: &Record| lift.at_ms >= record.at_ms;
        let records = match record.act {
            Act::Ban { .. } if self.lifts.get(&record.client).is_some_and(is_over) => return,
            Act::Ban { .. } => &mut self.bans,
            Act::Lift => {
                self.end(&record);
                &mut self.lifts
            }
        };
        if let Some(known) = records.get_mut(&record.client) {
            if known.at_ms <= record.at_ms {
                let until_ms = match record.act {
                    Act::Ban { .. } => record.until_ms,
                    Act::Lift => known.until_ms.max(record.until_ms),
                };
                *known = Record { until_ms, ..record };
            }
        } else if records.len() < most {
            records.insert(record.client, record);
        }
    }

    /// Notes what another edge lifted: it takes the place of a ban of this edge's that it ended. Whether
    /// there was one.
    pub fn lifted(&mut self, lift: &Record, most: usize) -> bool {
        let was_there = self.end(lift);
        if was_there {
            self.put(lift.clone(), most);
        }
        was_there
    }

    fn end(&mut self, lift: &Record) -> bool {
        let is_ended = self.bans.get(&lift.client).is_some_and(|ban| ban.at_ms <= lift.at_ms);
        is_ended && self.bans.remove(&lift.client).is_some()
    }

    /// Forgets what means nothing any more.
    pub fn expire(&mut self, now_ms: u64) {
        self.bans.retain(|_, ban| ban.until_ms > now_ms);
        self.lifts.retain(|_, lift| lift.until_ms > now_ms);
    }

    /// Every record: the lifts first.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.lifts().chain(self.bans.values())
    }

    /// The lifts alone, which nothing else remembers.
    pub fn lifts(&self) -> impl Iterator<Item = &Record> {
        self.lifts.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(act: Act, at_ms: u64, until_ms: u64) -> Record {
        Record { client: "192.0.2.1".parse().unwrap(), act, at_ms, until_ms, node: "a".into() }
    }

    fn ban(at_ms: u64, until_ms: u64) -> Record {
        record(Act::Ban { strikes: 1, reason: "scan".into() }, at_ms, until_ms)
    }

    fn lift(at_ms: u64, until_ms: u64) -> Record {
        record(Act::Lift, at_ms, until_ms)
    }

    fn all(own: &Own) -> Vec<Record> {
        own.iter().cloned().collect()
    }

    #[test]
    fn a_lift_takes_the_place_of_the_ban_that_it_ended() {
        let mut own = Own::default();
        assert!(!own.lifted(&lift(5, 90), 9), "there is nothing to be remembered for");
        own.put(ban(10, 80), 9);
        assert!(!own.lifted(&lift(9, 90), 9));
        assert_eq!(all(&own), [ban(10, 80)]);
        assert!(own.lifted(&lift(10, 90), 9));
        assert_eq!(all(&own), [lift(10, 90)]);
        // As from a store that had not heard of it.
        own.put(ban(10, 80), 9);
        assert_eq!(all(&own), [lift(10, 90)]);
        // Later ones hold, and the lift is told all the same: it ends what others may still have.
        own.put(ban(11, 30), 9);
        assert_eq!(all(&own), [lift(10, 90), ban(11, 30)]);
        own.put(lift(20, 50), 9);
        assert_eq!(all(&own), [lift(20, 90)]);
        own.expire(90);
        assert!(all(&own).is_empty());
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut own = Own::default();
        own.put(ban(1, 9), 1);
        own.put(Record { client: "192.0.2.2".parse().unwrap(), ..ban(1, 9) }, 1);
        own.put(ban(2, 8), 1);
        assert_eq!(all(&own), [ban(2, 8)]);
    }
}
