//! What many records amount to, in whatever order and however often they come.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Act, Fault, Record};

/// What all records together amount to.
#[derive(Clone, Debug, Default)]
pub struct Bans {
    clients: BTreeMap<IpAddr, Client>,
}

#[derive(Clone, Debug, Default)]
struct Client {
    /// The latest lift of all that was decided, to be remembered for as long as any.
    lift: Option<Record>,
    /// The latest revocation of each edge and reason.
    revoked: Vec<Record>,
    /// Bans that nothing has ended, of which none is both older and shorter than another of its edge and reason.
    bans: Vec<Record>,
}

/// What a record changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bans of the client's are over by this record, a lift or a revocation.
    Ended(Record),
    /// The client is banned, or by another ban than before.
    Ban(Record),
}

impl Bans {
    /// Takes a record in; what it changes, in this order. Records may come in any order and any number of times.
    ///
    /// # Errors
    /// [`Fault::Full`] if there are `most` clients already.
    pub fn merge(&mut self, record: Record, most: usize) -> Result<Vec<Change>, Fault> {
        if self.clients.len() >= most && !self.clients.contains_key(&record.client) {
            return Err(Fault::Full);
        }
        let client = self.clients.entry(record.client).or_default();
        let (before, count) = (client.effective().cloned(), client.bans.len());
        let mut changes = Vec::new();
        if let Act::Ban { .. } = record.act {
            client.add(record);
        } else {
            client.bans.retain(|ban| !record.voids(ban));
            client.note(&record);
            changes.extend((client.bans.len() < count).then_some(Change::Ended(record)));
        }
        let now = client.effective().filter(|now| before.as_ref() != Some(*now));
        changes.extend(now.cloned().map(Change::Ban));
        Ok(changes)
    }

    /// What has ended a ban, if it is one of those that are over.
    #[must_use]
    pub fn ended_by(&self, ban: &Record) -> Option<&Record> {
        self.clients.get(&ban.client)?.ends().find(|end| end.voids(ban))
    }

    /// Forgets what means nothing any more.
    pub fn expire(&mut self, now_ms: u64) {
        self.clients.retain(|_, client| {
            client.bans.retain(|ban| ban.until_ms > now_ms);
            client.revoked.retain(|end| end.until_ms > now_ms);
            client.lift = client.lift.take().filter(|lift| lift.until_ms > now_ms);
            !client.bans.is_empty() || client.ends().next().is_some()
        });
    }

    /// The ban of a client.
    #[must_use]
    pub fn get(&self, client: &IpAddr) -> Option<&Record> {
        self.clients.get(client)?.effective()
    }

    /// Clients of which anything is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// When to date a lift so that it is later than all that is known of a client.
    #[must_use]
    pub fn after(&self, client: &IpAddr, now_ms: u64) -> u64 {
        let known = self.clients.get(client).into_iter().flat_map(|client| &client.bans);
        known.map(|ban| ban.at_ms + 1).fold(now_ms, u64::max)
    }
}

impl Client {
    /// The ban that ends last.
    fn effective(&self) -> Option<&Record> {
        self.bans.iter().max_by_key(|ban| rank(ban))
    }

    /// What ended bans.
    fn ends(&self) -> impl Iterator<Item = &Record> {
        self.lift.iter().chain(&self.revoked)
    }

    fn add(&mut self, ban: Record) {
        let beats =
            |a: &Record, b: &Record| a.is_like(b) && a.at_ms >= b.at_ms && rank(a) >= rank(b);
        let is_over = self.ends().any(|end| end.voids(&ban));
        if is_over || self.bans.iter().any(|known| beats(known, &ban)) {
            return;
        }
        self.bans.retain(|known| !beats(&ban, known));
        keep(&mut self.bans, ban);
    }

    fn note(&mut self, end: &Record) {
        let whole = self.lift.as_mut().filter(|_| end.act == Act::Lift);
        let known = whole.or_else(|| self.revoked.iter_mut().find(|known| known.is_like(end)));
        match known {
            Some(known) => {
                let until_ms = known.until_ms.max(end.until_ms);
                let latest = if known.at_ms < end.at_ms { end } else { &*known };
                *known = Record { until_ms, ..latest.clone() };
            }
            None if end.act == Act::Lift => self.lift = Some(end.clone()),
            None => keep(&mut self.revoked, end.clone()),
        }
    }
}

/// Keeps a record, and of too many those that end last.
fn keep(records: &mut Vec<Record>, record: Record) {
    records.push(record);
    if records.len() > APART_MAX {
        let least = (0..records.len()).min_by_key(|n| rank(&records[*n]));
        least.map(|n| records.swap_remove(n));
    }
}

fn rank(record: &Record) -> (u64, u64, &str, Option<&str>) {
    (record.until_ms, record.at_ms, &record.node, record.reason())
}

/// Bans of one client that are told apart, and revocations of such.
const APART_MAX: usize = 64;
