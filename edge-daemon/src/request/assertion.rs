//! What an upstream is told of a request's sender.

use std::{borrow::Cow, cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use edge_identity::principal::Principal;
use edge_policy::shield;

use super::View;
use crate::clock;

/// The signed tokens of one worker under one plan, to be used again while they are young: to sign
/// costs more than all else that is done for a request.
#[derive(Default)]
pub(crate) struct Assertions(RefCell<HashMap<usize, Assertion>>);

struct Assertion {
    /// Kept, so that its place in memory, which is the key, stays its own.
    principal: Principal,
    token: Rc<str>,
    until_ms: u64,
}

/// What is told of a principal.
pub(crate) struct Told<'a> {
    principal: &'a Principal,
    identity: Cow<'a, str>,
    scopes: Vec<&'a str>,
    roles: Vec<&'a str>,
    token: Option<Rc<str>>,
}

impl View {
    /// What this worker tells upstreams of a principal.
    pub(super) fn tell<'a>(&'a self, principal: &'a Principal) -> Told<'a> {
        let roles = &self.plan.rules.roles;
        let (scopes, held) = (roles.scopes_of(principal), roles.of(principal));
        let (identity, token) = (principal.identity(), self.token(principal));
        Told { principal, identity, scopes, roles: held, token }
    }

    fn token(&self, principal: &Principal) -> Option<Rc<str>> {
        let signer = self.plan.signer.as_ref()?;
        let (now_ms, place) = (clock::unix_ms(), place(principal));
        let mut known = self.assertions.0.borrow_mut();
        let usable = known.get(&place).filter(|assertion| {
            now_ms < assertion.until_ms && assertion.principal.method() == principal.method()
        });
        if let Some(assertion) = usable {
            return Some(Rc::clone(&assertion.token));
        }
        let (token, until_ms) = signer.sign(principal, &self.plan.rules.roles, now_ms)?;
        if known.len() >= ASSERTIONS_MAX {
            known.clear();
        }
        let (principal, token) = (principal.clone(), Rc::from(token));
        known.insert(place, Assertion { principal, token: Rc::clone(&token), until_ms });
        Some(token)
    }
}

/// Where a principal lies in memory: who was proved once and is known again lies there still.
fn place(principal: &Principal) -> usize {
    match principal {
        Principal::Key { key, .. } => Arc::as_ptr(key).addr(),
        Principal::Named(named) => Arc::as_ptr(named).addr(),
    }
}

impl Told<'_> {
    /// It as header fields are made of it.
    pub(super) fn headers(&self) -> shield::Principal<'_> {
        shield::Principal {
            identity: &self.identity,
            issuer: self.principal.issuer(),
            id: self.principal.id(),
            name: self.principal.name(),
            method: self.principal.method(),
            scopes: &self.scopes,
            roles: &self.roles,
            key: self.principal.key().map(|key| key.id().as_str()),
            token: self.token.as_deref(),
        }
    }
}

const ASSERTIONS_MAX: usize = 1024;
