//! Tokens that operators deny: at once in force on every worker, then on disk. Where the disk fails, the
//! operator is told, and it is tried again.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use anyhow::{Context as _, bail};
use edge_identity::jwt::denylist::{Denial, Target};

use super::Writer;
use crate::{
    clock,
    control::{
        Peer, Reply,
        protocol::Entries,
        tokens::{DenialEntry, TokenCommand, TokenKey},
    },
    events::Event,
};

/// Denials by issuer and target: those in force.
pub(super) type Denials = BTreeMap<(String, Target), Denial>;

impl Writer {
    /// Puts in force what was denied before the start.
    pub(super) fn restore_denials(&mut self, past: Vec<Denial>) {
        for denial in past {
            self.edge.denylist.put(&denial);
            self.denials.insert((denial.issuer.clone(), denial.target.clone()), denial);
        }
    }

    /// While denials are lost, no token is let in: it may be one of those.
    pub(super) fn tell_loss(&self) {
        let lost_ms = self.store.denials_lost_ms();
        self.edge.denylist.set_lost(lost_ms.is_some());
        self.edge.metrics.verdicts.denials.lost.store(lost_ms.is_some().into(), Relaxed);
        if let Some(lost_ms) = lost_ms {
            let since = clock::rfc3339(lost_ms);
            tracing::error!(
                since,
                "revocations of tokens are lost: no token is let in until they are made again and \
                 'edgectl token accept-loss' says so"
            );
        }
    }

    fn accept_loss(&mut self, peer: Peer) -> anyhow::Result<Reply> {
        let Some(lost_ms) = self.store.denials_lost_ms() else {
            bail!("no revocations of tokens are lost");
        };
        self.store.accept_loss()?;
        self.tell_loss();
        self.told =
            Some(self.edge.events.tell_kept(Event::TokenLossAccepted { lost_ms, uid: peer.uid }));
        let count = self.denials.len();
        Ok(Reply::Done(format!("tokens are let in again, but for the {count} that are revoked")))
    }

    pub(super) fn obey_token(
        &mut self,
        command: TokenCommand,
        peer: Peer,
    ) -> anyhow::Result<Reply> {
        match command {
            TokenCommand::Revoke { target, issuer, life_ms } => {
                self.deny_token(target, &issuer, life_ms, peer)
            }
            TokenCommand::Remove { target, issuer } => self.allow_token(target, &issuer, peer),
            TokenCommand::AcceptLoss => self.accept_loss(peer),
            TokenCommand::List => Ok(self.show_denials()),
            TokenCommand::Keys => Ok(self.show_keys()),
        }
    }

    fn deny_token(
        &mut self,
        target: Target,
        issuer: &str,
        life_ms: Option<u64>,
        peer: Peer,
    ) -> anyhow::Result<Reply> {
        let (issuer, lifetime_ms) = self.issuer(issuer)?;
        let since_ms = clock::unix_ms();
        // A key that leaked signs new tokens for ever.
        let default_ms = (!matches!(target, Target::Kid(_))).then_some(lifetime_ms);
        let until_ms = life_ms.or(default_ms).map(|life_ms| since_ms.saturating_add(life_ms));
        let note = self.note(&issuer, &target);
        let by = format!("uid {}", peer.uid);
        let denial = Denial { issuer, target, since_ms, until_ms, by };
        let key = (denial.issuer.clone(), denial.target.clone());
        if self.denials.len() >= DENIALS_MAX && !self.denials.contains_key(&key) {
            bail!("{DENIALS_MAX} denials are in force, and there is room for no more");
        }
        self.edge.denylist.put(&denial);
        self.tell_denial("revoke", &denial, peer);
        self.unsaved.forget_denial(&key);
        let kept = self.store.put_denials(std::slice::from_ref(&denial));
        if kept.is_err() {
            self.unsaved.put_denial(denial.clone());
        }
        self.count_unsaved_denials();
        let what = format!("{} {} of {}", denial.target.kind(), denial.target.value(), key.0);
        self.denials.insert(key, denial);
        kept.with_context(|| {
            format!("{what} is refused from now on, but the disk fails: it is tried again")
        })?;
        Ok(Reply::Done(format!("{what} is revoked{note}")))
    }

    fn allow_token(&mut self, target: Target, issuer: &str, peer: Peer) -> anyhow::Result<Reply> {
        let issuer = self.issuer(issuer).map_or(issuer.to_owned(), |(issuer, _)| issuer);
        let (kind, value) = (target.kind(), target.value().to_owned());
        let key = (issuer, target);
        let Some(denial) = self.denials.get(&key).cloned() else {
            bail!("{kind} {value} of {} is not revoked", key.0);
        };
        let unsaved = self.unsaved.forget_denial(&key);
        if let Err(fault) = self.store.remove_denial(&denial) {
            // It stays in force, so it goes on to be saved.
            unsaved.into_iter().for_each(|denial| self.unsaved.put_denial(denial));
            return Err(fault.into());
        }
        self.edge.denylist.remove(&denial);
        self.tell_denial("remove", &denial, peer);
        self.denials.remove(&key);
        Ok(Reply::Done(format!("{kind} {value} of {} is not revoked any more", key.0)))
    }

    pub(super) fn count_unsaved_denials(&self) {
        let count = self.unsaved.denials() as u64;
        self.edge.metrics.verdicts.denials.unsaved.store(count, Relaxed);
    }

    fn show_denials(&self) -> Reply {
        let now_ms = clock::unix_ms();
        let in_force = self.denials.values().filter(|denial| !denial.is_over(now_ms));
        let entries = in_force.map(|denial| DenialEntry {
            issuer: denial.issuer.clone(),
            kind: denial.target.kind().to_owned(),
            value: denial.target.value().to_owned(),
            since_ms: denial.since_ms,
            until_ms: denial.until_ms,
            by: denial.by.clone(),
        });
        Reply::Denials(Entries::of(entries.collect()))
    }

    fn show_keys(&self) -> Reply {
        let is_denied = |issuer: &str, key: &str| {
            let name = (issuer.to_owned(), Target::Kid(key.to_owned()));
            self.denials.get(&name).is_some_and(|denial| !denial.is_over(clock::unix_ms()))
        };
        let mut entries = Vec::new();
        for (terms, feed) in &self.edge.plan.load().issuers.all {
            let keys = feed.keys();
            let keys = keys.iter().flat_map(|keys| keys.set.keys());
            entries.extend(keys.map(|key| TokenKey {
                issuer: terms.name.clone(),
                key: key.called(),
                algorithms: key.algorithms().map(|a| a.name().to_owned()).collect(),
                is_denied: is_denied(&terms.issuer, &key.called()),
            }));
        }
        Reply::TokenKeys(Entries::of(entries))
    }

    /// What else an operator has to know of a denial: one of a key that nobody knows denies nothing
    /// today.
    fn note(&self, issuer: &str, target: &Target) -> &'static str {
        let Target::Kid(called) = target else { return "" };
        let plan = self.edge.plan.load();
        let mut feeds = plan.issuers.all.iter().filter(|(terms, _)| terms.issuer == issuer);
        let is_known = feeds.any(|(_, feed)| {
            feed.keys().is_some_and(|keys| keys.set.keys().iter().any(|k| k.called() == *called))
        });
        if is_known { "" } else { "; no key of the issuer is called so now: see 'token keys'" }
    }

    /// Forgets what has ended; from the disk the next purge takes it.
    pub(super) fn expire_denials(&mut self, now_ms: u64) {
        let denylist = &self.edge.denylist;
        self.denials.retain(|_, denial| {
            let stays = !denial.is_over(now_ms);
            if !stays {
                denylist.remove(denial);
            }
            stays
        });
    }

    /// The `iss` of the issuer with this name or `iss`, and for how long its tokens can be good.
    fn issuer(&self, called: &str) -> anyhow::Result<(String, u64)> {
        let issuers = self.settings.issuers.iter().map(|issuer| &issuer.terms);
        let mut found = issuers.filter(|terms| terms.name == called || terms.issuer == called);
        match found.next() {
            Some(terms) => Ok((terms.issuer.clone(), terms.accepted_ms())),
            None => bail!("no [[issuer]] is called '{called}'"),
        }
    }

    fn tell_denial(&mut self, change: &'static str, denial: &Denial, peer: Peer) {
        self.told = Some(self.edge.events.tell_kept(Event::TokenDenied {
            change,
            issuer: denial.issuer.clone(),
            by: denial.target.kind(),
            value: denial.target.value().to_owned(),
            until_ms: denial.until_ms,
            uid: peer.uid,
        }));
    }
}

/// Denials in force at once: ~200 bytes each, twice.
const DENIALS_MAX: usize = 100_000;
