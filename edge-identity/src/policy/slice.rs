//! The policies that can matter to one route and action, sorted by whom they are about.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::{AuthorizationError, Authorizer, Effect, Entities, PolicySet, Request};

use super::condition::Test;
use super::load::{Parsed, Who};
use super::request::Asked;
use super::uses::Uses;

/// The policies for one route and action.
#[derive(Default)]
pub(super) struct Slice {
    any: Bucket,
    by_id: HashMap<String, Bucket>,
    by_role: HashMap<String, Bucket>,
}

/// Policies about the same callers.
#[derive(Default)]
pub(super) struct Bucket {
    pub(super) forbids: Part,
    pub(super) permits: Part,
}

/// Policies that all forbid, or all permit.
#[derive(Default)]
pub(super) struct Part {
    /// Those that need no engine. A slice has its own, made one after the other, so that they lie
    /// together: with thousands of policies a decision costs what it waits for memory.
    tests: Vec<(Arc<str>, Test)>,
    /// Those that do, if there are any.
    rest: Option<Box<PolicySet>>,
    /// What the rest looks at.
    pub(super) uses: Uses,
}

impl Slice {
    pub(super) fn cut<'p>(policies: impl Iterator<Item = &'p Parsed>) -> Self {
        let mut slice = Self::default();
        for policy in policies {
            let bucket = match &policy.who {
                Who::Any => &mut slice.any,
                Who::Id(id) => slice.by_id.entry(id.clone()).or_default(),
                Who::Role(role) => slice.by_role.entry(role.clone()).or_default(),
            };
            bucket.put(policy);
        }
        slice
    }

    /// What can matter to this caller.
    pub(super) fn buckets<'s>(
        &'s self,
        id: &str,
        roles: &[&str],
    ) -> impl Iterator<Item = &'s Bucket> {
        let by_role = roles.iter().filter_map(|role| self.by_role.get(*role));
        std::iter::once(&self.any).chain(self.by_id.get(id)).chain(by_role)
    }
}

impl Bucket {
    fn put(&mut self, policy: &Parsed) {
        let part = match policy.effect {
            Effect::Forbid => &mut self.forbids,
            Effect::Permit => &mut self.permits,
        };
        match &policy.test {
            Some(test) => part.tests.push((Arc::clone(&policy.id), test.clone())),
            None => {
                // Ids are unique, so it cannot be there already.
                if part.rest.get_or_insert_default().add(policy.policy.clone()).is_ok() {
                    part.uses |= policy.uses;
                }
            }
        }
    }
}

impl Part {
    /// Whether some of them need the engine.
    pub(super) fn needs_engine(&self) -> bool {
        self.rest.is_some()
    }

    /// What those say that need no engine.
    pub(super) fn test(&self, asked: &Asked<'_>) -> Said {
        let mut said = Said::default();
        for (id, test) in &self.tests {
            match test.is_met(asked) {
                Some(true) => return Said { met: Some(Arc::clone(id)), ..said },
                Some(false) => {}
                None => said.failed = said.failed.or_else(|| Some(Arc::clone(id))),
            }
        }
        said
    }

    /// What the rest says.
    pub(super) fn evaluate(
        &self,
        engine: &Authorizer,
        request: &Request,
        entities: &Entities,
    ) -> Said {
        let Some(rest) = &self.rest else { return Said::default() };
        let response = engine.is_authorized(request, rest, entities);
        let diagnostics = response.diagnostics();
        Said {
            met: diagnostics.reason().map(|id| Arc::from(id.as_ref())).min(),
            failed: diagnostics.errors().map(failed_policy).min(),
        }
    }
}

/// What policies of one effect say of a request.
#[derive(Default)]
pub(super) struct Said {
    /// One that applies.
    pub(super) met: Option<Arc<str>>,
    /// One that could not be evaluated.
    pub(super) failed: Option<Arc<str>>,
}

impl Said {
    /// What was said before, and this.
    pub(super) fn or(self, next: Self) -> Self {
        Self { met: self.met.or(next.met), failed: self.failed.or(next.failed) }
    }
}

/// The policy that could not be evaluated.
fn failed_policy(error: &AuthorizationError) -> Arc<str> {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => Arc::from(error.policy_id().as_ref()),
    }
}
