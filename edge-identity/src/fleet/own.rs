//! What an edge shares again with a server that lost its memory: its own bans, and the lifts that ended
//! them, so that no ban comes back without anybody who offends.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Act, Record};

/// Records of one edge that hold, by client and reason.
#[derive(Clone, Debug, Default)]
pub struct Own {
    bans: BTreeMap<Key, Record>,
    ends: BTreeMap<Key, Record>,
}

type Key = (IpAddr, Option<String>);

impl Own {
    /// Notes what this edge decided, at the most so many bans and so many lifts and revocations. A ban that one of
    /// those ended is none.
    pub fn put(&mut self, record: Record, most: usize) {
        let key = (record.client, record.reason().map(str::to_owned));
        let records = if let Act::Ban { .. } = record.act {
            if of(&self.ends, record.client).any(|(_, end)| end.voids(&record)) {
                return;
            }
            &mut self.bans
        } else {
            self.end(&record);
            &mut self.ends
        };
        if let Some(known) = records.get_mut(&key) {
            if known.at_ms <= record.at_ms {
                let until_ms = match record.act {
                    Act::Ban { .. } => record.until_ms,
                    Act::Lift | Act::Revoke { .. } => known.until_ms.max(record.until_ms),
                };
                *known = Record { until_ms, ..record };
            }
        } else if records.len() < most {
            records.insert(key, record);
        }
    }

    /// Notes what another edge lifted: it takes the place of bans of this edge's that it ended. Whether
    /// there was one.
    pub fn lifted(&mut self, lift: &Record, most: usize) -> bool {
        let was_there = self.end(lift);
        if was_there {
            self.put(lift.clone(), most);
        }
        was_there
    }

    fn end(&mut self, end: &Record) -> bool {
        let ended = of(&self.bans, end.client).filter(|(_, ban)| end.voids(ban));
        let ended: Vec<_> = ended.map(|(key, _)| key.clone()).collect();
        ended.iter().for_each(|key| drop(self.bans.remove(key)));
        !ended.is_empty()
    }

    /// Forgets what means nothing any more.
    pub fn expire(&mut self, now_ms: u64) {
        self.bans.retain(|_, ban| ban.until_ms > now_ms);
        self.ends.retain(|_, end| end.until_ms > now_ms);
    }

    /// Every record: what ends bans first.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.ends().chain(self.bans.values())
    }

    /// The lifts and revocations alone, which nothing else remembers.
    pub fn ends(&self) -> impl Iterator<Item = &Record> {
        self.ends.values()
    }
}

/// What is known of a client.
fn of(records: &BTreeMap<Key, Record>, client: IpAddr) -> impl Iterator<Item = (&Key, &Record)> {
    records.range((client, None)..).take_while(move |((ip, _), _)| *ip == client)
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
    fn a_revocation_leaves_what_was_for_another_reason() {
        let named = |reason: &str| Act::Ban { strikes: 1, reason: reason.into() };
        let (jail, scan) = (record(named("jail"), 10, 80), record(named("scan"), 12, 40));
        let end = record(Act::Revoke { reason: "jail".into() }, 10, 90);
        let mut own = Own::default();
        for known in [&jail, &scan, &end, &jail] {
            own.put(known.clone(), 9);
        }
        assert_eq!(all(&own), [end.clone(), scan.clone()]);
        own.put(record(named("jail"), 11, 80), 9);
        assert_eq!(all(&own), [end.clone(), record(named("jail"), 11, 80), scan]);
        // A lift ends all of it.
        own.put(lift(20, 90), 9);
        assert_eq!(all(&own), [lift(20, 90), end]);
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
