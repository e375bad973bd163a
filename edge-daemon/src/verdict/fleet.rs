//! What other edges of the fleet say of bans, and bans in force as the fleet's records have them.

use std::sync::Arc;

use edge_identity::fleet::{Act, Record};
use edge_policy::verdict::{Culprit, Evidence, Origin, Step};

use super::{
    Writer,
    book::Held,
    tell::{Lifted, is_own},
};
use crate::{outside::Fleet, store::BanRecord};

impl Writer {
    /// The fleet that shares bans.
    pub(super) fn fleet(&self) -> Option<Arc<Fleet>> {
        self.edge.outside.fleet().filter(|fleet| fleet.settings.bans)
    }

    /// Puts in force what another edge has decided; or this one, and does not know of any more.
    pub(super) fn banned(&mut self, ban: Record, is_news: bool) {
        let Some(fleet) = self.fleet() else { return };
        let is_known = |held: &Held| {
            let known = in_fleet(held, &fleet.settings.node);
            let is_own = ban.node == fleet.settings.node;
            known.is_some_and(|known| is_same_or_longer(&known, &ban, is_own))
        };
        let culprit = self.of_client(&Culprit::Source(ban.client.into()));
        if self.held(&culprit).is_some_and(|held| held.all().any(is_known)) {
            return;
        }
        let record = of_fleet(ban);
        let culprit = record.culprit.clone();
        if let Err(error) = self.admit(record, is_news) {
            let error = format!("{error:#}");
            tracing::warn!(%culprit, error, "a ban from elsewhere is not taken");
        }
    }

    /// Whether it is a ban of this edge's that it had to learn from the fleet again, for this reason.
    pub(super) fn is_own_of_fleet(&self, held: &Held, reason: &str) -> bool {
        let own = self.fleet().map(|fleet| fleet.settings.node.clone());
        let ban = own.as_ref().and_then(|own| in_fleet(held, own));
        held.record.origin == Origin::Fleet
            && ban
                .is_some_and(|ban| Some(&ban.node) == own.as_ref() && ban.reason() == Some(reason))
    }

    /// Every ban in force that a fleet may know of, to an edge of this name; those that are milder here among them.
    pub(super) fn recall(&self, node: &str) -> Vec<Record> {
        let bans = self.bans.iter().map(|(_, held)| held);
        let milder = self.penalties.iter().map(|(_, held)| held);
        bans.chain(milder).flat_map(Held::all).filter_map(|held| in_fleet(held, node)).collect()
    }

    /// Carries out what an operator ended on an edge: one of its bans, or all that was decided before. Where no ban
    /// is later, what is milder goes as well, and what led to it.
    pub(super) fn ended_by(&mut self, end: &Record) {
        let Some(fleet) = self.fleet() else { return };
        let culprit = self.of_client(&Culprit::Source(end.client.into()));
        let why = Origin::Fleet.name();
        let is_over = |held: &Held| in_fleet(held, &fleet.settings.node).map(|it| end.voids(&it));
        let is_later = |held: &Held| is_over(held) == Some(false);
        let has_later = self.held(&culprit).is_some_and(|held| held.all().any(is_later));
        let done = if end.act == Act::Lift && !has_later {
            self.free(&culprit, why)
        } else {
            let ended = self.end_of(&culprit, why, |held| is_over(held) == Some(true));
            ended.map(|ended| {
                for record in ended {
                    self.tell_lifted(&record, Lifted::Elsewhere);
                }
            })
        };
        if let Err(error) = done {
            let error = format!("{error:#}");
            tracing::error!(%culprit, error, "a ban cannot be lifted");
        }
    }
}

/// Whether a ban that is known lasts as long, of the same edge for the same reason; or is this edge's own as it was
/// told, whose end a clock that was set has moved here since.
fn is_same_or_longer(known: &Record, ban: &Record, is_own: bool) -> bool {
    let is_same = is_own && known.at_ms == ban.at_ms;
    known.is_like(ban) && (is_same || known.until_ms >= ban.until_ms)
}

/// A ban as the fleet's records have it to an edge of this name, that of another edge however much milder it is
/// here; `None`: they have none of it.
fn in_fleet(Held { record, .. }: &Held, node: &str) -> Option<Record> {
    let Culprit::Source(client) = record.culprit else { return None };
    let other = record.scenario.strip_prefix(EDGE).filter(|_| record.origin == Origin::Fleet);
    let node = other.or_else(|| is_own(record).then_some(node))?.to_owned();
    let act = Act::Ban { strikes: record.strikes, reason: record.reason.clone() };
    let BanRecord { since_ms: at_ms, until_ms, .. } = *record;
    Some(Record { client: client.into(), act, at_ms, until_ms, node })
}

/// And back: another edge's, as it came.
fn of_fleet(Record { client, act, at_ms: since_ms, until_ms, node }: Record) -> BanRecord {
    let (strikes, reason) = match act {
        Act::Ban { strikes, reason } => (strikes, reason),
        Act::Lift | Act::Revoke { .. } => (0, String::new()),
    };
    let evidence = Evidence {
        at: since_ms,
        kind: format!("{EDGE}{node}: {reason}").into(),
        address: client,
        request: None,
    };
    BanRecord {
        culprit: Culprit::Source(client.into()),
        step: Step::Ban,
        since_ms,
        until_ms,
        strikes,
        evidence: vec![evidence],
        reason,
        scenario: format!("{EDGE}{node}"),
        origin: Origin::Fleet,
        spared: None,
        milder: Vec::new(),
    }
}

/// What a scenario's name is of what another edge decided, before that edge's.
const EDGE: &str = "edge ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_is_the_same_record_in_the_fleet_whoever_holds_it() {
        let act = Act::Ban { strikes: 2, reason: "sshd jail".into() };
        let client = [192, 0, 2, 7].into();
        let told = Record { client, act, at_ms: 5, until_ms: 9, node: "b".into() };
        let mut held = Held::new(of_fleet(told.clone()), 9);
        assert_eq!(in_fleet(&held, "a"), Some(told.clone()));
        held.record.step = Step::Refuse;
        assert_eq!(in_fleet(&held, "a"), Some(told.clone()));
        held.record.origin = Origin::Scenario;
        assert_eq!(in_fleet(&held, "a"), None);
        held.record.step = Step::Ban;
        assert_eq!(in_fleet(&held, "a"), Some(Record { node: "a".into(), ..told }));
    }

    #[test]
    fn a_clock_that_was_set_makes_no_two_bans_of_one() {
        let act = Act::Ban { strikes: 1, reason: "jail".into() };
        let client = [192, 0, 2, 7].into();
        let ban = Record { client, act, at_ms: 5, until_ms: 9_000, node: "a".into() };
        let shorter = Record { until_ms: 7_000, ..ban.clone() };
        assert!(is_same_or_longer(&shorter, &ban, true));
        assert!(!is_same_or_longer(&shorter, &ban, false), "of another edge, it is longer");
        assert!(is_same_or_longer(&Record { at_ms: 4, ..ban.clone() }, &ban, false));
        for known in [
            Record { at_ms: 4, until_ms: 8_999, ..ban.clone() },
            Record { node: "b".into(), ..ban.clone() },
            Record { act: Act::Ban { strikes: 1, reason: "scan".into() }, ..ban.clone() },
        ] {
            assert!(!is_same_or_longer(&known, &ban, true), "{known:?}");
        }
    }
}
