//! Policies in Cedar: rules that may look at everything that is known of the caller and the request.
//!
//! The engine's cost grows with the policies that it is given, so it is given few: at load the
//! policies are cut into slices by route and action and, inside a slice, by whom they are about. What a
//! slice needs no engine for is compiled into plain tests, and asked first.
//!
//! Of all that apply, one `forbid` refuses, whatever permits there are; without a `permit` nothing
//! passes; and a policy that cannot be evaluated refuses, unless it would permit and another does.

mod claims;
mod condition;
mod known;
mod load;
mod pattern;
mod request;
mod slice;
#[cfg(test)]
mod tests;
mod uses;

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use cedar_policy::{Authorizer, EntityUid};

use self::claims::Types;
pub use self::load::{Fault, File, Policies, SCHEMA, label};
use self::request::Asked;
use self::slice::{Part, Said, Slice};
use self::uses::Uses;
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
    types: Arc<Types>,
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
        let types = Arc::clone(&policies.types);
        Self { name, shadow, slices: slices.collect(), engine: Authorizer::new(), types }
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
        let (held, caller) = (roles.of(principal), principal.identity());
        let (caller, types) = (&*caller, &*self.types);
        let asked = Asked { principal, caller, action, roles, held: &held, facts, types };
        let buckets = || of_route.by_action[action].buckets(caller, &held);
        let forbid = gather(buckets().map(|bucket| &bucket.forbids), |part| part.test(&asked));
        if let Some(id) = forbid.met {
            return Ruling::Forbid(id);
        }
        let permit = gather(buckets().map(|bucket| &bucket.permits), |part| part.test(&asked));
        // With a permit in hand only a policy that forbids could still change the answer.
        let settled = permit.met.is_some() || forbid.failed.is_some();
        let of_engine = |part: &&Part| part.needs_engine();
        let forbids: Vec<_> = buckets().map(|bucket| &bucket.forbids).filter(of_engine).collect();
        let permits = buckets().map(|bucket| &bucket.permits).filter(of_engine);
        let permits: Vec<_> = permits.filter(|_| !settled).collect();
        if forbids.is_empty() && permits.is_empty() {
            return Ruling::of(forbid, permit);
        }
        let uses =
            forbids.iter().chain(&permits).fold(Uses::default(), |all, part| all | part.uses);
        let Some((request, entities)) = asked.request(uses, &of_route.resource) else {
            return Ruling::Failed("request".into());
        };
        let evaluate = |part: &Part| part.evaluate(&self.engine, &request, &entities);
        let forbid = forbid.or(gather(forbids.into_iter(), evaluate));
        Ruling::of(forbid, permit.or(gather(permits.into_iter(), evaluate)))
    }
}

/// What parts say, up to one of which a policy applies.
fn gather<'p>(mut parts: impl Iterator<Item = &'p Part>, ask: impl Fn(&Part) -> Said) -> Said {
    let said = parts.try_fold(Said::default(), |said, part| {
        let said = said.or(ask(part));
        if said.met.is_some() { ControlFlow::Break(said) } else { ControlFlow::Continue(said) }
    });
    match said {
        ControlFlow::Break(said) | ControlFlow::Continue(said) => said,
    }
}

impl Ruling {
    /// Whether the request may pass.
    #[must_use]
    pub const fn is_permit(&self) -> bool {
        matches!(self, Self::Permit(_))
    }

    /// One forbid refuses, one that failed refuses, one permit permits, one that failed is told.
    fn of(forbid: Said, permit: Said) -> Self {
        match (forbid.met, forbid.failed, permit.met, permit.failed) {
            (Some(id), ..) => Self::Forbid(id),
            (None, Some(id), ..) | (None, None, None, Some(id)) => Self::Failed(id),
            (None, None, Some(id), _) => Self::Permit(id),
            (None, None, None, None) => Self::NoPermit,
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
