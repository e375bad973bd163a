//! What the verdict writer is told of clients.

use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use edge_common::{Reason, Source};
use edge_identity::principal::{Method, Principal};
use edge_policy::{
    denied,
    ja4::Ja4,
    place::Places,
    verdict::{Asked, Kind, Proof, Signal},
};
use http::StatusCode;

use super::{Worker, front::Visitor, login::Attempt, path::Trace};
use crate::{clock, events::Event};

/// Who it is, in a word: `key:ID`, however the key is proved, or `ISSUER:SUBJECT`.
pub(super) fn word(principal: &Principal) -> Arc<str> {
    let origin = principal.key().map_or_else(|| principal.origin(), |_| Method::Key.name());
    format!("{origin}:{}", principal.id()).into()
}

impl Trace {
    /// What was asked for, for who judges it.
    fn asked(&self, status: u16) -> Asked {
        asked(&self.id, self.method(), &self.path, status)
    }
}

fn asked(id: &str, method: &str, path: &str, status: u16) -> Asked {
    Asked { id: id.into(), method: method.into(), path: path.into(), status }
}

/// What is known of a request whose answer has begun.
pub(super) struct Known {
    id: String,
    method: Option<http::Method>,
    path: String,
    principal: Option<Principal>,
    is_led: bool,
}

impl From<Trace> for Known {
    fn from(trace: Trace) -> Self {
        let Trace { id, method, path, principal, is_led, .. } = trace;
        Self { id, method, path, principal, is_led }
    }
}

impl Known {
    fn asked(&self, status: u16) -> Asked {
        let method = self.method.as_ref().map_or("", http::Method::as_str);
        asked(&self.id, method, &self.path, status)
    }
}

impl Worker {
    /// Reports a client's fault that no request carries, unless no scenario asks for it.
    pub(super) fn report_connection(&self, visitor: &Visitor, reason: Reason, ja4: Option<Ja4>) {
        if let Some(kind) = self.wanted(reason, false) {
            self.send(Signal { ja4, ..self.signal(kind, visitor) });
        }
    }

    /// Reports a request that a client's fault ended before its answer was through.
    pub(super) fn report_given_up(
        &self,
        visitor: &Visitor,
        reason: Reason,
        known: Option<&Known>,
        status: Option<StatusCode>,
    ) {
        let principal = known.and_then(|known| known.principal.as_ref());
        if let Some(kind) = self.wanted(reason, principal.is_some()) {
            let status = status.unwrap_or_else(|| denied::status(reason)).as_u16();
            let request = known.map(|known| Box::new(known.asked(status)));
            let is_led = known.is_some_and(|known| known.is_led);
            let principal = principal.map(word);
            self.send(Signal { principal, is_led, request, ..self.signal(kind, visitor) });
        }
    }

    /// Reports a refused request.
    pub(super) fn report_refused(&self, visitor: &Visitor, reason: Reason, trace: &Trace) {
        if let Some(kind) = self.wanted(reason, trace.principal.is_some()) {
            let status = denied::status(reason).as_u16();
            let principal = trace.principal.as_ref().map(word);
            let request = Some(Box::new(trace.asked(status)));
            let is_led = trace.is_led;
            self.send(Signal { principal, is_led, request, ..self.signal(kind, visitor) });
        }
    }

    /// Reports an answer of the upstream, and notes who succeeded from where.
    pub(super) fn report_answered(&self, visitor: &Visitor, trace: &Trace, status: u16) {
        let view = self.view();
        let principal = trace.principal.as_ref();
        if let Some(who) = principal.filter(|_| status < 400) {
            let client = Source::from(visitor.address).client(view.plan.client);
            let identities = &self.edge.identities;
            let mark = match who {
                Principal::Key { key, .. } => key.digest().mark(),
                Principal::Named(_) => identities.mark((who.origin(), who.id())),
            };
            identities.succeed(client, mark, clock::recent_ns());
        }
        if let Some(attempt) = &trace.login {
            return self.report_login(visitor, trace, attempt, status);
        }
        let Some(kind) = kind_of_answer(status) else { return };
        let wanted = &view.plan.wanted;
        if !wanted.has(kind, principal.is_some()) {
            return;
        }
        let (principal, is_led) = (principal.map(word), trace.is_led);
        let sender = (visitor.address, visitor.ja4(), &principal, is_led);
        let act = (kind.index(), sender, (trace.method(), trace.path.as_str(), status));
        if !wanted.is_by_path(kind) || self.reports.is_news(act, self.timers.now_ms()) {
            let request = Some(Box::new(trace.asked(status)));
            self.send(Signal { principal, is_led, request, ..self.signal(kind, visitor) });
        }
    }

    /// Reports a login that failed; who succeeds is an identity of its source. One of which nobody can
    /// tell how it ended is neither.
    fn report_login(&self, visitor: &Visitor, trace: &Trace, attempt: &Attempt, status: u16) {
        let account = Arc::clone(&attempt.account);
        if attempt.has_failed != Some(true) {
            let client = Source::from(visitor.address).client(self.view().plan.client);
            if attempt.has_failed == Some(false) && status < 400 && !account.is_empty() {
                let (identities, now_ns) = (&self.edge.identities, clock::boot_ns());
                identities.succeed(client, identities.mark(("account", &*account)), now_ns);
                if let Some(ja4) = visitor.ja4() {
                    identities.succeed((client, ja4), attempt.name, now_ns);
                }
            }
            return;
        }
        let asked = trace.asked(status);
        self.edge.events.tell(Event::LoginFailed {
            source: visitor.address,
            account: account.to_string(),
            request_id: asked.id.to_string(),
            path: asked.path.to_string(),
            status,
            ja4: visitor.ja4(),
        });
        if self.view().plan.wanted.has(Kind::LoginFailed, trace.principal.is_some()) {
            let (request, principal) = (Some(Box::new(asked)), trace.principal.as_ref().map(word));
            let is_led = trace.is_led;
            let signal = Signal { is_led, ..self.signal(Kind::LoginFailed, visitor) };
            self.send(Signal { account: Some(account), principal, request, ..signal });
        }
    }

    fn wanted(&self, reason: Reason, is_proven: bool) -> Option<Kind> {
        let kind = Kind::of(reason);
        debug_assert!(kind.is_some(), "{} is not the client's fault", reason.name());
        kind.filter(|kind| self.view().plan.wanted.has(*kind, is_proven))
    }

    fn signal(&self, kind: Kind, visitor: &Visitor) -> Signal {
        let plan = &self.view().plan;
        Signal {
            kind,
            at_ns: clock::boot_ns(),
            address: visitor.address,
            source: Source::from(visitor.address).client(plan.client),
            // Whoever speaks TCP has answered from its address, and a trusted proxy vouches for others.
            proof: Proof::Handshake,
            places: match plan.wanted.has_places() {
                true => plan.geo.places(visitor.address),
                false => Places::default(),
            },
            ja4: visitor.ja4(),
            is_spoken_for: visitor.is_spoken_for,
            principal: None,
            account: None,
            is_led: false,
            request: None,
        }
    }

    /// Misdeeds go at once. What was served is no haste, and comes by the thousand.
    fn send(&self, signal: Signal) {
        self.counters.signal(signal.kind);
        if signal.kind != Kind::Served {
            return self.edge.signals.send(self.index, vec![signal]);
        }
        let count = {
            let mut gathered = self.reports.gathered.borrow_mut();
            gathered.push(signal);
            gathered.len()
        };
        if count >= GATHERED_MAX {
            self.send_gathered();
        }
    }

    /// Sends what was gathered.
    pub(super) fn send_gathered(&self) {
        self.edge.signals.send(self.index, self.reports.gathered.take());
    }
}

/// What an upstream's answer says of the client: nothing, where the upstream failed.
const fn kind_of_answer(status: u16) -> Option<Kind> {
    match status {
        404 => Some(Kind::NotFound),
        500.. => None,
        _ => Some(Kind::Served),
    }
}

/// What one worker reports of requests that were served.
pub(super) struct Reports {
    gathered: RefCell<Vec<Signal>>,
    /// What was told of late, by its hash, and when. Of two in one place the later stays.
    told: Box<[Cell<(u64, u64)>]>,
    hasher: RandomState,
}

impl Default for Reports {
    fn default() -> Self {
        let told = (0..TOLD_KEPT).map(|_| Cell::new((0, 0))).collect();
        Self { gathered: RefCell::default(), told, hasher: RandomState::new() }
    }
}

impl Reports {
    /// Whether an act was not told of just now.
    fn is_news(&self, act: impl std::hash::Hash, now_ms: u64) -> bool {
        let hash = self.hasher.hash_one(act);
        let place = &self.told[hash as usize % TOLD_KEPT];
        let (told, at_ms) = place.get();
        let is_news = told != hash || now_ms.saturating_sub(at_ms) >= NEWS_AGAIN_MS;
        if is_news {
            place.set((hash, now_ms));
        }
        is_news
    }
}

/// Signals that are sent together, at the latest after [`super::LOOK_EVERY`].
const GATHERED_MAX: usize = 64;
/// Acts that are remembered.
const TOLD_KEPT: usize = 4096;
/// After so long the same act is told again: a scenario may have forgotten it, once its bucket had leaked out.
const NEWS_AGAIN_MS: u64 = 250;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_upstream_got_wrong_is_no_act_of_the_client() {
        for status in [200, 206, 302, 304, 401, 403, 410, 499] {
            assert_eq!(kind_of_answer(status), Some(Kind::Served), "{status}");
        }
        assert_eq!(kind_of_answer(404), Some(Kind::NotFound));
        for status in [500, 502, 503, 504, 599] {
            assert_eq!(kind_of_answer(status), None, "{status}");
        }
    }

    #[test]
    fn what_is_told_again_at_once_is_no_news() {
        let reports = Reports::default();
        assert!(reports.is_news((1, "/a"), 1000));
        assert!(!reports.is_news((1, "/a"), 1001));
        assert!(reports.is_news((1, "/b"), 1001) && reports.is_news((2, "/a"), 1001));
        assert!(reports.is_news((1, "/a"), 1000 + NEWS_AGAIN_MS));
    }
}
