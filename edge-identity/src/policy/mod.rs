//! Policies in Cedar: rules that may look at everything that is known of the caller and the request.
//!
//! The engine's cost grows with the policies that it is given, so it is given few: at load the
//! policies are cut into slices by route and action and, inside a slice, by whom they are about. What a
//! slice needs no engine for is compiled into plain tests, and asked first.
//!
//! Of all that apply, one `forbid` refuses, whatever permits there are; without a `permit` nothing
//! passes; and a policy that cannot be evaluated refuses.

mod condition;
mod load;
mod request;
mod slice;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cedar_policy::{Authorizer, EntityUid};

pub use self::load::{Fault, File, Policies, SCHEMA, label};
use self::request::Asked;
use self::slice::{Bucket, Slice};
use crate::access::Facts;
use crate::principal::Principal;
use crate::roles::Roles;

/// Policies that are decided together, cut for the routes that ask them.
pub struct Set {
    /// What the configuration calls it.
    pub name: String,
    /// Whether it is only counted what it would refuse.
    pub shadow: bool,
    /// By the route's number; for each of its actions.
    slices: HashMap<usize, RouteSlices>,
    engine: Authorizer,
}

/// What one route asks of a set.
struct RouteSlices {
    resource: EntityUid,
    by_action: Vec<Slice>,
}

/// What a set says of a request, and which policy made it say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It may pass.
    Permit(Arc<str>),
    /// It must not.
    Forbid(Arc<str>),
    /// No policy permits it.
    NoPermit,
    /// This policy could not be evaluated.
    Failed(Arc<str>),
}

impl Set {
    /// Cuts the policies for these routes: their numbers and labels.
    #[must_use]
    pub fn new<'r>(
        name: String,
        shadow: bool,
        policies: &Policies,
        routes: impl Iterator<Item = (usize, &'r str)>,
    ) -> Self {
        let slices = routes.map(|(number, label)| {
            let cut = |action| Slice::cut(policies.for_route(label, action));
            let by_action = (0..load::ACTIONS.len()).map(cut).collect();
            (number, RouteSlices { resource: load::route_uid(label), by_action })
        });
        Self { name, shadow, slices: slices.collect(), engine: Authorizer::new() }
    }

    /// What the policies for a route say of a request.
    #[must_use]
    pub fn decide(
        &self,
        route: usize,
        principal: &Principal,
        roles: &Roles,
        facts: &Facts<'_>,
    ) -> Ruling {
        let Some(of_route) = self.slices.get(&route) else { return Ruling::NoPermit };
        let action = load::action(facts.method);
        let slice = &of_route.by_action[action];
        let (held, caller) = (roles.of(principal), principal.identity());
        let asked = Asked { principal, roles, held: &held, facts };
        let permit = match slice.buckets(&caller, &held).try_fold(None, |permit, bucket| {
            let ruled = bucket.test(&asked)?;
            Ok(permit.or(ruled))
        }) {
            Ok(permit) => permit,
            Err(forbidden) => return Ruling::Forbid(Arc::clone(forbidden)),
        };
        // With a permit in hand, only a policy that forbids could still change the answer.
        let open = |bucket: &&Bucket| bucket.is_open(permit.is_some());
        let mut left = slice.buckets(&caller, &held).filter(open).peekable();
        if left.peek().is_none() {
            return permit.map_or(Ruling::NoPermit, |id| Ruling::Permit(Arc::clone(id)));
        }
        let buckets: Vec<_> = left.collect();
        let request = asked.request(&buckets, action, &of_route.resource);
        let Some((request, entities)) = request else {
            return Ruling::Failed("request".into());
        };
        let evaluate = |bucket: &&Bucket| bucket.evaluate(&self.engine, &request, &entities);
        combine(permit, buckets.iter().map(evaluate))
    }
}

/// One forbid refuses, one failure refuses, one permit permits, nothing refuses.
fn combine(permit: Option<&Arc<str>>, rulings: impl Iterator<Item = Ruling>) -> Ruling {
    let start = permit.map_or(Ruling::NoPermit, |id| Ruling::Permit(Arc::clone(id)));
    rulings
        .fold(start, |worst, ruling| if ruling.weight() > worst.weight() { ruling } else { worst })
}

impl Ruling {
    /// Whether the request may pass.
    #[must_use]
    pub const fn is_permit(&self) -> bool {
        matches!(self, Self::Permit(_))
    }

    /// Which of two rulings on one request counts.
    const fn weight(&self) -> u8 {
        match self {
            Self::NoPermit => 0,
            Self::Permit(_) => 1,
            Self::Failed(_) => 2,
            Self::Forbid(_) => 3,
        }
    }
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permit(id) => write!(f, "{id} permits"),
            Self::Forbid(id) => write!(f, "{id} forbids"),
            Self::NoPermit => f.write_str("no policy permits"),
            Self::Failed(id) => write!(f, "{id} failed"),
        }
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Set({}, {} routes)", self.name, self.slices.len())
    }
}
