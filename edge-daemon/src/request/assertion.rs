//! What an upstream is told of a request's sender.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use edge_identity::principal::Principal;
use edge_policy::{lines::Lines, shield};

use super::View;
use crate::clock;

/// What one worker told of late under one plan, to be told again: words are the same each time, and to
/// sign them costs more than all else that is done for a request.
#[derive(Default)]
pub(crate) struct Assertions(RefCell<HashMap<usize, Assertion>>);

struct Assertion {
    /// Kept, so that its place in memory, which is the key, stays its own.
    principal: Principal,
    told: Rc<Lines>,
    until_ms: u64,
}

impl View {
    /// What this worker tells upstreams of a principal.
    pub(super) fn tell(&self, principal: &Principal) -> Rc<Lines> {
        let now_ms = if self.plan.signer.is_some() { clock::unix_ms() } else { 0 };
        let mut known = self.assertions.0.borrow_mut();
        let place = place(principal);
        let usable = known.get(&place).filter(|assertion| {
            now_ms < assertion.until_ms && assertion.principal.method() == principal.method()
        });
        if let Some(assertion) = usable {
            return Rc::clone(&assertion.told);
        }
        let (told, until_ms) = self.words(principal, now_ms);
        if known.len() >= ASSERTIONS_MAX {
            known.clear();
        }
        let told = Rc::new(told);
        let assertion =
            Assertion { principal: principal.clone(), told: Rc::clone(&told), until_ms };
        known.insert(place, assertion);
        told
    }

    /// What there is to tell, and until when.
    fn words(&self, principal: &Principal, now_ms: u64) -> (Lines, u64) {
        let roles = &self.plan.rules.roles;
        let signed = self.plan.signer.as_ref().map(|signer| signer.sign(principal, roles, now_ms));
        let (token, until_ms) = match signed {
            Some(Some((token, until_ms))) => (Some(token), until_ms),
            // It is tried again for the next request.
            Some(None) => (None, 0),
            None => (None, u64::MAX),
        };
        let words = shield::identify(&shield::Principal {
            identity: &principal.identity(),
            issuer: principal.issuer(),
            id: principal.id(),
            name: principal.name(),
            method: principal.method(),
            scopes: &roles.scopes_of(principal),
            roles: &roles.of(principal),
            key: principal.key().map(|key| key.id().as_str()),
            token: token.as_deref(),
        });
        (words, until_ms)
    }
}

/// Where a principal lies in memory: who was proved once and is known again lies there still.
fn place(principal: &Principal) -> usize {
    match principal {
        Principal::Key { key, .. } => Arc::as_ptr(key).addr(),
        Principal::Named(named) => Arc::as_ptr(named).addr(),
    }
}

/// Principals whose words are kept.
const ASSERTIONS_MAX: usize = 1024;
