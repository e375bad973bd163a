//! What the engine is told of a request: no more than the policies look at.

use std::collections::{HashMap, HashSet};

use cedar_policy::{Context, Entities, Entity, EntityUid, Request, RestrictedExpression as Value};
use edge_policy::calendar;

use super::claims::Types;
use super::load::{ACTION_UIDS, KINDS, uid};
use super::uses::{CALLER, CONTEXT, Uses};
use crate::access::Facts;
use crate::principal::{Claim, Principal};
use crate::roles::Roles;

/// A request that is being decided.
pub(super) struct Asked<'a> {
    pub(super) principal: &'a Principal,
    /// Its identity.
    pub(super) caller: &'a str,
    /// The place of its method among the actions.
    pub(super) action: usize,
    pub(super) roles: &'a Roles,
    /// Every role that the principal is.
    pub(super) held: &'a [&'a str],
    pub(super) facts: &'a Facts<'a>,
    /// What claims must be.
    pub(super) types: &'a Types,
}

impl<'a> Asked<'a> {
    /// A plain claim, if it is there and of its type.
    pub(super) fn claim(&self, name: &str) -> Option<&'a Claim> {
        self.principal.claim(name).filter(|claim| self.types.fits(name, claim))
    }

    /// The request and the entities that policies look at which use these; `None` if the engine refuses them.
    pub(super) fn request(&self, uses: Uses, resource: &EntityUid) -> Option<(Request, Entities)> {
        let caller = uid(&KINDS.caller, self.caller);
        let (action_uid, group) = &ACTION_UIDS[self.action];
        let mut entities = Vec::new();
        if uses.caller != 0 || uses.hierarchy {
            entities.push(self.caller(caller.clone(), uses)?);
        }
        if uses.action {
            entities.push(Entity::new_no_attrs(action_uid.clone(), HashSet::from([group.clone()])));
        }
        let entities = match entities.is_empty() {
            true => Entities::empty(),
            false => Entities::from_entities(entities, None).ok()?,
        };
        let context = self.context(uses)?;
        let request = Request::new(caller, action_uid.clone(), resource.clone(), context, None);
        Some((request.ok()?, entities))
    }

    fn caller(&self, caller: EntityUid, uses: Uses) -> Option<Entity> {
        let principal = self.principal;
        let set = |words: &[&str]| Value::new_set(words.iter().map(|word| text(word)));
        let read = |name| {
            Some(match name {
                "id" => text(principal.id()),
                "name" => text(principal.name()),
                "method" => text(principal.method().name()),
                "scopes" => set(&self.roles.scopes_of(principal)),
                "roles" => set(self.held),
                "tier" => text(principal.tier()?),
                "issuer" => text(principal.issuer()?),
                _ => self.claims()?,
            })
        };
        let used = CALLER.iter().enumerate().filter(|(at, _)| uses.caller & 1 << at != 0);
        let attributes: HashMap<_, _> =
            used.filter_map(|(_, name)| Some(((*name).to_owned(), read(name)?))).collect();
        let held = if uses.hierarchy { self.held } else { &[] };
        let parents = held.iter().map(|role| uid(&KINDS.role, role)).collect();
        Entity::new(caller, attributes, parents).ok()
    }

    /// A token may have any number of claims; these are told that some policy names.
    fn claims(&self) -> Option<Value> {
        let held = |name: &String| {
            let claim = self.principal.claim(name)?;
            Some((name.clone(), self.types.held(name, claim)?))
        };
        Value::new_record(self.types.named.iter().filter_map(held)).ok()
    }

    fn context(&self, uses: Uses) -> Option<Context> {
        let facts = self.facts;
        let read = |name| {
            Some(match name {
                "method" => text(facts.method.as_str()),
                "host" => text(facts.host),
                "path" => text(&facts.target.path),
                "query" => text(facts.target.query.as_deref()?),
                "ip" => Value::new_ip(facts.client.to_string()),
                "time" => Value::new_datetime(calendar::rfc3339(facts.now_ms)),
                _ => {
                    let tls = facts.tls?;
                    let name = tls.server_name.map(|name| ("server_name".to_owned(), text(name)));
                    let ja4 = tls.ja4.map(|ja4| ("ja4".to_owned(), text(ja4)));
                    let version = ("version".to_owned(), text(tls.version));
                    let members = std::iter::once(version).chain(name).chain(ja4);
                    Value::new_record(members).ok()?
                }
            })
        };
        let used = CONTEXT.iter().enumerate().filter(|(at, _)| uses.context & 1 << at != 0);
        Context::from_pairs(used.filter_map(|(_, name)| Some(((*name).to_owned(), read(name)?))))
            .ok()
    }
}

fn text(text: &str) -> Value {
    Value::new_string(text.to_owned())
}
