//! The policies that can matter to one route and action, sorted by whom they are about.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::{
    AuthorizationError, Authorizer, Decision, Effect, Entities, PolicySet, Request,
};

use super::Ruling;
use super::condition::{Test, Uses};
use super::load::{Parsed, Who};
use super::request::Asked;

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
    pub(super) forbids: Vec<(Arc<str>, Test)>,
    pub(super) permits: Vec<(Arc<str>, Test)>,
    /// Those that need the engine.
    pub(super) rest: PolicySet,
    /// Whether one of them forbids.
    pub(super) rest_forbids: bool,
    /// What they look at.
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
        let forbids = policy.effect == Effect::Forbid;
        match &policy.test {
            Some(test) => {
                let tests = if forbids { &mut self.forbids } else { &mut self.permits };
                tests.push((Arc::clone(&policy.id), test.clone()));
            }
            None => {
                // Ids are unique, so it cannot be there already.
                if self.rest.add(policy.policy.clone()).is_ok() {
                    self.rest_forbids |= forbids;
                    self.uses |= policy.uses;
                }
            }
        }
    }

    /// What needs no engine: the first permit that is met, or, as the error, a forbid.
    pub(super) fn test(&self, asked: &Asked<'_>) -> Result<Option<&Arc<str>>, &Arc<str>> {
        let met = |tests: &'_ [(Arc<str>, Test)]| tests.iter().position(|(_, t)| t.is_met(asked));
        match met(&self.forbids) {
            Some(at) => Err(&self.forbids[at].0),
            None => Ok(met(&self.permits).map(|at| &self.permits[at].0)),
        }
    }

    /// Whether the engine could still change the answer.
    pub(super) fn is_open(&self, permitted: bool) -> bool {
        if permitted { self.rest_forbids } else { !self.rest.is_empty() }
    }

    /// What the rest says.
    pub(super) fn evaluate(
        &self,
        engine: &Authorizer,
        request: &Request,
        entities: &Entities,
    ) -> Ruling {
        let response = engine.is_authorized(request, &self.rest, entities);
        let decisive = response.diagnostics().reason().map(|id| Arc::from(id.as_ref())).min();
        let failed = response.diagnostics().errors().map(failed_policy).min();
        match (response.decision(), decisive, failed) {
            (Decision::Deny, Some(id), _) => Ruling::Forbid(id),
            (_, _, Some(id)) => Ruling::Failed(id),
            (Decision::Allow, Some(id), None) => Ruling::Permit(id),
            _ => Ruling::NoPermit,
        }
    }
}

/// The policy that could not be evaluated.
fn failed_policy(error: &AuthorizationError) -> Arc<str> {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => Arc::from(error.policy_id().as_ref()),
    }
}
