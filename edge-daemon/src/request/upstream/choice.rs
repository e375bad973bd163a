//! Which of an upstream's servers is asked next.

use std::time::Duration;

use edge_common::Reason;
use edge_policy::upstream::balance::{self, Balance, Candidate};
use tokio::time::timeout_at;

use super::{Pools, Upstream};
use crate::{clock, upstream::Slot};

impl Upstream {
    /// A slot at one of the servers that were not tried. Waits, bounded, if all of them are busy, or others wait already
    /// and it does not go first.
    pub(super) async fn acquire(
        &self,
        pools: &Pools,
        tried: u64,
        key: u64,
        goes_first: bool,
    ) -> Result<(usize, Slot), Reason> {
        let grab = || {
            let mut slot = None;
            let index = self.choose(pools, tried, key, |index| {
                slot = self.shared.slot(&pools.servers[index]).ok();
                slot.is_some()
            })?;
            slot.map(|slot| (index, slot)).ok_or(Reason::UpstreamBusy)
        };
        if goes_first || !self.shared.has_line() {
            match grab() {
                Err(Reason::UpstreamBusy) => {}
                settled => return settled,
            }
        }
        let place = self.shared.wait(goes_first).ok_or(Reason::UpstreamBusy)?;
        let deadline = tokio::time::Instant::now() + self.shared.settings.queue_timeout;
        let mut may_look = place.is_first();
        loop {
            if may_look {
                let settled = grab();
                let is_busy = matches!(settled, Err(Reason::UpstreamBusy));
                // There may be more; and those behind it may take servers that it was at, or that came since it did.
                if !is_busy || goes_first || !self.shared.is_current(&pools.servers) {
                    place.pass_on();
                }
                if !is_busy {
                    return settled;
                }
            }
            if deadline <= tokio::time::Instant::now() {
                return Err(Reason::UpstreamBusy);
            }
            // A server that comes back is not announced, hence no longer than a moment.
            let look = deadline.min(tokio::time::Instant::now() + LOOK_AGAIN);
            may_look = timeout_at(look, place.woken()).await.is_ok() || place.is_first();
        }
    }

    /// The server that is next among those that are fit and were not tried, and that `may` takes.
    pub(super) fn choose(
        &self,
        pools: &Pools,
        tried: u64,
        key: u64,
        mut may: impl FnMut(usize) -> bool,
    ) -> Result<usize, Reason> {
        let now_ns = clock::boot_ns();
        let (settings, servers) = (&self.shared.settings, &pools.servers);
        if let ([only], 0) = (&***servers, tried) {
            only.candidate(0, settings, now_ns).ok_or(Reason::UpstreamUnhealthy)?;
            return if may(0) { Ok(0) } else { Err(Reason::UpstreamBusy) };
        }
        let mut fit: Vec<Candidate> = self.fit(pools, tried, now_ns).collect();
        let mut reason = Reason::UpstreamUnhealthy;
        while let Some(index) = self.pick(&fit, key) {
            if may(index) {
                return Ok(index);
            }
            reason = Reason::UpstreamBusy;
            fit.retain(|candidate| candidate.index != index);
        }
        Err(reason)
    }

    /// Whether any is fit that was not tried. To ask takes nobody's turn.
    pub(super) fn has_fit(&self, pools: &Pools, tried: u64) -> bool {
        self.fit(pools, tried, clock::boot_ns()).next().is_some()
    }

    fn fit(&self, pools: &Pools, tried: u64, now_ns: u64) -> impl Iterator<Item = Candidate> {
        let untried = pools.servers.iter().enumerate();
        let untried = untried.filter(move |(index, _)| tried >> index & 1 == 0);
        untried.filter_map(move |(index, server)| {
            server.candidate(index, &self.shared.settings, now_ns)
        })
    }

    fn pick(&self, fit: &[Candidate], key: u64) -> Option<usize> {
        match &self.shared.settings.balance {
            _ if fit.len() == 1 => Some(fit[0].index),
            Balance::RoundRobin => self.round.borrow_mut().next(fit),
            Balance::LeastLoaded => {
                let random = balance::mix(self.random.get());
                self.random.set(random);
                balance::least_loaded(fit, random)
            }
            Balance::Hash(_) => balance::hashed(fit, key),
        }
    }
}

/// How long a request that waits for a server goes without looking.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
