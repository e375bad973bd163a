//! Bans: from the misdeed that goes over the line to the end of the time.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use edge_common::{Reason, Source, map};
use edge_policy::{abuse::Outcome, list::Class};

use super::{Signal, Writer};
use crate::{clock, events::Event, kernel::KernelError, outside::Told, store::BanRecord};

/// A ban in force.
pub(super) struct Held {
    /// As it is on disk, in calendar time.
    pub(super) record: BanRecord,
    /// When it ends in boot time, which no correction of the calendar moves.
    pub(super) until_ns: u64,
}

impl Writer {
    /// Brings the bans of the store and those of the kernel together. Where both know a client,
    /// the kernel is right: it has the hits, and the store may be a second behind.
    pub(super) fn restore(&mut self, stored: Vec<BanRecord>) -> anyhow::Result<()> {
        let now_ms = clock::unix_ms();
        for record in stored {
            let client = Source::from(record.source).client(self.settings.kernel.client);
            let until_ns = clock::boot_ns_at(record.until_ms);
            self.book.restore(client, record.strikes, until_ns);
            if record.until_ms > now_ms && self.tables.bans.lookup(client)?.is_none() {
                self.tables.bans.ban(
                    client,
                    map::Ban {
                        since_ns: clock::boot_ns_at(record.since_ms),
                        until_ns,
                        hits: 0,
                        first_hit_ns: 0,
                        reason: reason_named(&record.reason) as u32,
                        strikes: record.strikes,
                    },
                )?;
            }
        }
        for (found, ban) in self.tables.bans.entries()? {
            // Another prefix may have stood for a client when it was banned.
            let client = found.client(self.settings.kernel.client);
            if client != found {
                self.tables.bans.unban(found)?;
                self.tables.bans.ban(client, ban)?;
            }
            self.book.restore(client, ban.strikes, ban.until_ns);
            let record = BanRecord {
                source: client.into(),
                since_ms: clock::unix_ms_at(ban.since_ns),
                until_ms: clock::unix_ms_at(ban.until_ns),
                strikes: ban.strikes,
                reason: reason_of(&ban).name().into(),
            };
            self.unsaved.put(record.clone());
            self.edge.banned.put(client, ban.until_ns);
            self.bans.insert(client, Held { record, until_ns: ban.until_ns });
        }
        Ok(())
    }

    /// Scores a misdeed; over the line, writes the ban.
    pub(super) fn judge(&mut self, signal: &Signal) {
        let address = Source::from(signal.address);
        if self.tables.lists.decides(Class::Allow, signal.address, signal.at_ns).is_some() {
            return;
        }
        let client = address.client(self.settings.kernel.client);
        let outcome = self.book.record(client, signal.reason, signal.at_ns);
        let Outcome::Ban { duration_ns, strikes } = outcome else { return };
        if let Err(error) = self.enforce(client, signal, duration_ns, strikes) {
            // The client is as free as before; its next misdeed tries again.
            self.book.retract(client);
            self.edge.metrics.bans_failed.fetch_add(1, Relaxed);
            tracing::error!(%client, error = %format!("{error:#}"), "cannot ban");
            let why = format!("{error:#}");
            self.edge.events.tell(Event::BanFailed { source: client.into(), why });
        }
    }

    fn enforce(
        &mut self,
        client: Source,
        signal: &Signal,
        duration_ns: u64,
        strikes: u32,
    ) -> anyhow::Result<()> {
        let since_ns = clock::boot_ns();
        let until_ns = since_ns.saturating_add(duration_ns);
        let reason = signal.reason;
        let ban = map::Ban {
            since_ns,
            until_ns,
            hits: 0,
            first_hit_ns: 0,
            reason: reason as u32,
            strikes,
        };
        match self.tables.bans.ban(client, ban) {
            Err(KernelError::Full { .. }) => {
                self.make_room()?;
                self.tables.bans.ban(client, ban)?;
            }
            written => written?,
        }
        let latency = Duration::from_nanos(clock::boot_ns().saturating_sub(signal.at_ns));
        let metrics = &self.edge.metrics;
        metrics.bans.fetch_add(1, Relaxed);
        metrics.ban_latency.observe(latency);
        let (since_ms, until_ms) = (clock::unix_ms_at(since_ns), clock::unix_ms_at(until_ns));
        let record = BanRecord {
            source: client.into(),
            since_ms,
            until_ms,
            strikes,
            reason: reason.name().into(),
        };
        self.unsaved.put(record.clone());
        self.edge.banned.put(client, until_ns);
        self.edge.outside.tell(&self.as_told(&record));
        self.bans.insert(client, Held { record, until_ns });
        metrics.bans_active.store(self.bans.len() as u64, Relaxed);
        self.edge.events.tell(Event::Ban {
            source: client.into(),
            reason: reason.name(),
            request_id: signal.request_id.clone(),
            until: clock::rfc3339(until_ms),
            strikes,
            latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
        });
        Ok(())
    }

    /// A ban as others are told of it.
    fn as_told(&self, record: &BanRecord) -> Told {
        let client = self.settings.kernel.client;
        Told::Ban {
            source: record.source,
            bits: if record.source.is_ipv4() { client.v4 } else { client.v6 },
            reason: record.reason.clone(),
            since_ms: record.since_ms,
            until_ms: record.until_ms,
            strikes: record.strikes,
        }
    }

    /// Tells others that an operator set a client free.
    pub(super) fn tell_lifted(&self, record: &BanRecord) {
        if let Told::Ban { source, bits, reason, until_ms, .. } = self.as_told(record) {
            self.edge.outside.tell(&Told::Lift { source, bits, reason, until_ms });
        }
    }

    /// Ends the ban that would end first: the latest offender matters more.
    fn make_room(&mut self) -> anyhow::Result<()> {
        let first =
            self.bans.iter().min_by_key(|(_, held)| held.until_ns).map(|(client, _)| *client);
        first.map_or(Ok(()), |client| self.lift(&client, "no_room"))
    }

    /// Clears away the bans that have ended. The kernel has not been minding them since.
    pub(super) fn end_bans(&mut self, now_ns: u64) {
        for client in ended(&self.bans, now_ns) {
            if let Err(error) = self.lift(&client, "expired") {
                tracing::error!(%client, error = %format!("{error:#}"), "cannot clear a ban away");
            }
        }
    }

    /// Ends a ban. The store keeps the strikes until they are forgotten.
    pub(super) fn lift(&mut self, client: &Source, why: &'static str) -> anyhow::Result<()> {
        self.tables.bans.unban(*client)?;
        self.bans.remove(client);
        self.edge.banned.lift(client);
        self.edge.events.tell(Event::Unban { source: (*client).into(), reason: why });
        Ok(())
    }
}

fn ended(bans: &BTreeMap<Source, Held>, now_ns: u64) -> Vec<Source> {
    bans.iter().filter(|(_, ban)| ban.until_ns <= now_ns).map(|(client, _)| *client).collect()
}

pub(super) fn reason_of(ban: &map::Ban) -> Reason {
    Reason::from_index(ban.reason).unwrap_or(Reason::InternalError)
}

fn reason_named(name: &str) -> Reason {
    let named = |reason: &&Reason| reason.name() == name;
    Reason::ALL.iter().find(named).copied().unwrap_or(Reason::InternalError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_end_by_boot_time_alone() {
        let held = |host, until_ns, until_ms| {
            let source = Source::v4([192, 0, 2, host]);
            let reason = "source_rate".to_owned();
            let record =
                BanRecord { source: source.into(), since_ms: 1, until_ms, strikes: 1, reason };
            (source, Held { record, until_ns })
        };
        // The calendar says the opposite of both.
        let bans = BTreeMap::from([held(1, 100, u64::MAX), held(2, 101, 0)]);
        assert!(ended(&bans, 99).is_empty());
        assert_eq!(ended(&bans, 100), [Source::v4([192, 0, 2, 1])]);
    }
}
