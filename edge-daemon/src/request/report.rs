//! What the verdict writer is told of clients.

use std::sync::Arc;

use edge_common::{Reason, Source};
use edge_identity::principal::Principal;
use edge_policy::{
    ja4::Ja4,
    verdict::{Asked, Kind, Proof, Signal},
};

use super::{Worker, front::Visitor, login::Attempt, path::Trace};
use crate::{clock, events::Event};

/// Who it is, in a word: `key:ID`, `ISSUER:SUBJECT`.
pub(super) fn word(principal: &Principal) -> Arc<str> {
    format!("{}:{}", principal.origin(), principal.id()).into()
}

impl Trace {
    /// What was asked for, for who judges it.
    fn asked(&self, status: u16) -> Asked {
        Asked {
            id: self.id.as_str().into(),
            method: self.method.as_str().into(),
            path: self.path.as_str().into(),
            status,
        }
    }
}

impl Worker {
    /// Reports a client's fault that no request carries, unless no scenario asks for it.
    pub(super) fn report_connection(&self, visitor: &Visitor, reason: Reason, ja4: Option<Ja4>) {
        if let Some(kind) = self.wanted(reason, false) {
            self.send(Signal { ja4, ..self.signal(kind, visitor) });
        }
    }

    /// Reports a refused request.
    pub(super) fn report_refused(&self, visitor: &Visitor, reason: Reason, trace: &Trace) {
        if let Some(kind) = self.wanted(reason, trace.principal.is_some()) {
            let status = edge_policy::denied::status(reason).as_u16();
            let principal = trace.principal.as_ref().map(word);
            let request = Some(Box::new(trace.asked(status)));
            self.send(Signal { principal, request, ..self.signal(kind, visitor) });
        }
    }

    /// Reports an answer of the upstream, and notes who succeeded from where.
    pub(super) fn report_answered(&self, visitor: &Visitor, trace: &Trace, status: u16) {
        let view = self.view();
        let principal = trace.principal.as_ref();
        if let Some(who) = principal.filter(|_| status < 400) {
            let client = Source::from(visitor.address).client(view.plan.client);
            let identity = (who.origin(), who.id());
            self.edge.identities.succeed(&client, identity, clock::boot_ns());
        }
        if let Some(attempt) = &trace.login {
            return self.report_login(visitor, trace, attempt, status);
        }
        let kind = if status == 404 { Kind::NotFound } else { Kind::Served };
        if view.plan.wanted.has(kind, principal.is_some()) {
            let request = Some(Box::new(trace.asked(status)));
            let principal = principal.map(word);
            self.send(Signal { principal, request, ..self.signal(kind, visitor) });
        }
    }

    /// Reports a login that failed; who succeeds is an identity of its source.
    fn report_login(&self, visitor: &Visitor, trace: &Trace, attempt: &Attempt, status: u16) {
        let account = Arc::clone(&attempt.account);
        if attempt.has_failed != Some(true) {
            let client = Source::from(visitor.address).client(self.view().plan.client);
            if status < 400 && !account.is_empty() {
                self.edge.identities.succeed(&client, ("account", &*account), clock::boot_ns());
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
            let signal = self.signal(Kind::LoginFailed, visitor);
            self.send(Signal { account: Some(account), principal, request, ..signal });
        }
    }

    fn wanted(&self, reason: Reason, is_proven: bool) -> Option<Kind> {
        let kind = Kind::of(reason);
        debug_assert!(kind.is_some(), "{} is not the client's fault", reason.name());
        kind.filter(|kind| self.view().plan.wanted.has(*kind, is_proven))
    }

    fn signal(&self, kind: Kind, visitor: &Visitor) -> Signal {
        Signal {
            kind,
            at_ns: clock::boot_ns(),
            address: visitor.address,
            source: Source::from(visitor.address).client(self.view().plan.client),
            // Whoever speaks TCP has answered from its address, and a trusted proxy vouches for others.
            proof: Proof::Handshake,
            ja4: visitor.ja4(),
            principal: None,
            account: None,
            request: None,
        }
    }

    fn send(&self, signal: Signal) {
        self.counters.signal(signal.kind);
        self.edge.signals.send(self.index, signal);
    }
}
