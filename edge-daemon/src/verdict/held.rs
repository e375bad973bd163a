//! Bans by hand, and what is shown of those in force.

use std::{net::IpAddr, time::Duration};

use super::{Writer, book::Held, exempt};
use crate::{
    clock,
    control::{
        Peer, Reply,
        bans::{BanEntry, NewBan},
    },
    store::BanRecord,
};
use anyhow::bail;
use edge_policy::verdict::{Culprit, Origin, Step};

impl Writer {
    pub(super) fn ban_by_hand(
        &mut self,
        new: NewBan,
        force: bool,
        ssh_peer: Option<IpAddr>,
        peer: Peer,
    ) -> anyhow::Result<Reply> {
        if let Culprit::Source(source) = new.culprit
            && !force
        {
            let width = self.settings.kernel.client;
            self.refuse_lockout(exempt::network(source.client(width), width), ssh_peer)?;
        }
        let since_ms = clock::unix_ms();
        let longest_ms = u64::try_from(LONGEST.as_millis()).unwrap_or(u64::MAX);
        let step = match new.culprit {
            Culprit::Source(_) => new.step,
            _ => new.step.min(Step::Refuse),
        };
        let record = BanRecord {
            culprit: new.culprit,
            step,
            since_ms,
            until_ms: since_ms.saturating_add(new.life_ms.min(longest_ms)),
            strikes: 0,
            reason: new.reason.unwrap_or_else(|| "operator".into()),
            scenario: format!("uid {}", peer.uid),
            origin: Origin::Operator,
            spared: None,
            evidence: Vec::new(),
            milder: Vec::new(),
        };
        self.admit(record, true).map(Reply::Done)
    }

    /// A source as the client that it is part of.
    pub(super) fn of_client(&self, culprit: &Culprit) -> Culprit {
        let width = self.settings.kernel.client;
        match culprit {
            Culprit::Source(source) => Culprit::Source(source.client(width)),
            Culprit::Fingerprint(source, ja4) => Culprit::Fingerprint(source.client(width), *ja4),
            Culprit::Led(source, ja4) => Culprit::Led(source.client(width), *ja4),
            other => other.clone(),
        }
    }

    pub(super) fn show_bans(&self) -> anyhow::Result<Vec<BanEntry>> {
        let now_ns = clock::boot_ns();
        let all = self.bans.iter().map(|(_, held)| held);
        // The kernel ends a ban to the nanosecond; it is cleared away within a second.
        let all = all.chain(self.penalties.iter().map(|(_, held)| held)).flat_map(Held::all);
        let entry = |held| Ok(BanEntry { evidence: Vec::new(), ..self.ban_entry(held)? });
        all.filter(|held| held.until_ns > now_ns).map(entry).collect()
    }

    /// One ban, with all that is known of it.
    pub(super) fn show_ban(&self, culprit: &Culprit) -> anyhow::Result<Reply> {
        let culprit = self.of_client(culprit);
        match self.held(&culprit).filter(|held| held.until_ns > clock::boot_ns()) {
            Some(held) => Ok(Reply::Ban(Box::new(self.ban_entry(held)?))),
            None => bail!("{culprit} is not banned"),
        }
    }

    /// A ban as it is told, with what the kernel has counted.
    pub(super) fn ban_entry(&self, held: &Held) -> anyhow::Result<BanEntry> {
        let record = &held.record;
        let ban = match (&record.culprit, record.step) {
            (Culprit::Source(client), Step::Ban) => self.tables.bans.lookup(*client)?,
            _ => None,
        };
        Ok(BanEntry {
            culprit: record.culprit.clone(),
            step: record.step,
            since_ms: record.since_ms,
            until_ms: clock::unix_ms_at(held.until_ns),
            reason: record.reason.clone(),
            scenario: record.scenario.clone(),
            origin: record.origin,
            spared: record.spared.clone(),
            strikes: record.strikes,
            hits: ban.map_or(0, |ban| ban.hits),
            first_drop_us: ban
                .filter(|ban| ban.first_hit_ns > 0)
                .map(|ban| ban.first_hit_ns.saturating_sub(ban.since_ns) / 1000),
            evidence: record.evidence.clone(),
        })
    }
}

/// A ban always ends: a list entry need not.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
