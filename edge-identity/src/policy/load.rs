//! From policy files to policies that are known to make sense, with every mistake and its place.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use cedar_policy::{
    ActionConstraint, Effect, EntityId, EntityTypeName, EntityUid, Policy, PolicyId, PolicySet,
    PrincipalConstraint, ResourceConstraint, Schema, ValidationMode, Validator,
};
use edge_policy::route::{HostPattern, Match};
use http::Method;
use miette::Diagnostic;
use serde_json::{Value, json};

use super::claims::{Types, read_one_by_one};
use super::condition::Test;
use super::uses::Uses;

/// What policies can speak of. An operator's schema comes before it and says what `Claims` are.
pub const SCHEMA: &str = include_str!("edged.cedarschema");

/// `Claims` where no operator says what they are.
const NO_CLAIMS: &str = "type Claims = {};\n";

/// The actions, and whether each only reads; the last stands for every other method.
pub(super) const ACTIONS: [(&str, bool); 8] = [
    ("GET", true),
    ("HEAD", true),
    ("OPTIONS", true),
    ("POST", false),
    ("PUT", false),
    ("PATCH", false),
    ("DELETE", false),
    ("other", false),
];

/// The place of a method in [`ACTIONS`].
pub(super) fn action(method: &Method) -> usize {
    let named = ACTIONS.iter().position(|(name, _)| method.as_str() == *name);
    named.unwrap_or(ACTIONS.len() - 1)
}

/// What a route is called in policies: its path, after its host if it has one. Routes that differ
/// in nothing but methods and headers share a name.
#[must_use]
pub fn label(at: &Match) -> String {
    match &at.host {
        HostPattern::Any => at.path.to_string(),
        host => format!("{host}{}", at.path),
    }
}

/// A file of policies.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// What ids of its policies begin with, where they have no `@id`.
    pub name: &'a str,
    /// What it holds.
    pub text: &'a str,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which of the files; `None` is the schema.
    pub file: Option<usize>,
    /// Where in it, in bytes.
    pub span: Range<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub help: String,
    /// Whether it is only doubtful.
    pub is_doubt: bool,
}

/// Policies that were read and found to make sense.
#[derive(Default)]
pub struct Policies {
    all: Vec<Parsed>,
    pub(super) types: Arc<Types>,
}

/// A policy, its scope apart from its conditions.
pub(super) struct Parsed {
    pub(super) id: Arc<str>,
    pub(super) effect: Effect,
    pub(super) who: Who,
    /// A bit for each of [`ACTIONS`].
    actions: u8,
    /// The label of its route; `None`: any.
    route: Option<String>,
    /// Its conditions as a plain test, if they are that simple.
    pub(super) test: Option<Test>,
    pub(super) uses: Uses,
    /// The policy, for whoever is within its scope.
    pub(super) policy: Policy,
}

/// Whom a policy is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Any,
    Id(String),
    Role(String),
}

impl Policies {
    /// Reads and validates policies for routes with these labels.
    ///
    /// # Errors
    /// Every fault of every file; beside the policies, what is only doubtful.
    pub fn load(
        schema: Option<&str>,
        files: &[File<'_>],
        routes: &[String],
    ) -> Result<(Self, Vec<Fault>), Vec<Fault>> {
        let (schema, mut types) = self::schema(schema).map_err(|fault| vec![fault])?;
        let validator = Validator::new(schema);
        let (mut all, mut faults, mut ids) = (Vec::new(), Vec::new(), HashSet::new());
        let mut named = BTreeSet::new();
        for (number, file) in files.iter().enumerate() {
            let (types, named, faults) = (&types, &mut named, &mut faults);
            let mut reading = Reading { number, file, routes, types, named, faults };
            let Some(set) = reading.parse() else { continue };
            reading.validate(&validator, &set);
            for policy in in_order(&set) {
                let parsed = reading.policy(policy, &mut ids);
                all.extend(parsed);
            }
        }
        if faults.iter().any(|fault| !fault.is_doubt) {
            return Err(faults);
        }
        types.named = named;
        Ok((Self { all, types: Arc::new(types) }, faults))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those that can matter to a route and action.
    pub(super) fn for_route(&self, label: &str, action: usize) -> impl Iterator<Item = &Parsed> {
        self.all.iter().filter(move |policy| {
            policy.actions & 1 << action != 0
                && policy.route.as_deref().is_none_or(|route| route == label)
        })
    }
}

/// The operator's schema and the edge's as one, the operator's first, so that places in it are right;
/// and what it says of claims.
fn schema(own: Option<&str>) -> Result<(Schema, Types), Fault> {
    let text = own.unwrap_or(NO_CLAIMS);
    let fault = |span, what: String, help: &str| Fault {
        file: None,
        span,
        what,
        help: help.into(),
        is_doubt: false,
    };
    let whole = format!("{text}\n{SCHEMA}");
    let schema = match Schema::from_cedarschema_str(&whole) {
        Ok((schema, _)) => schema,
        Err(error) => {
            let place = place(&error).filter(|place| place.end <= text.len());
            let help = "it says what claims are: type Claims = { tenant?: String };";
            return Err(fault(place.unwrap_or(0..0), chain(&error), help));
        }
    };
    let types = Types::read(text).map_err(|name| {
        let span = text.find(&name).map_or(0..0, |at| at..at + name.len());
        let help = "String, Long, Bool, decimal, and sets and records of these";
        fault(span, format!("no claim can be of the type {name}"), help)
    })?;
    Ok((schema, types))
}

/// The policies of a set as they stand in the file: the parser numbers them.
fn in_order(set: &PolicySet) -> Vec<&Policy> {
    let number = |policy: &&Policy| {
        policy.id().to_string().trim_start_matches("policy").parse().unwrap_or(usize::MAX)
    };
    let mut policies: Vec<_> = set.policies().collect();
    policies.sort_by_key(number);
    policies
}

/// One file that is being read.
struct Reading<'r> {
    number: usize,
    file: &'r File<'r>,
    routes: &'r [String],
    types: &'r Types,
    /// Claims that policies name.
    named: &'r mut BTreeSet<String>,
    faults: &'r mut Vec<Fault>,
}

impl Reading<'_> {
    fn note(&mut self, span: Range<usize>, what: String, help: &str, is_doubt: bool) {
        let file = Some(self.number);
        self.faults.push(Fault { file, span, what, help: help.to_owned(), is_doubt });
    }

    fn parse(&mut self) -> Option<PolicySet> {
        let set = match PolicySet::from_str(self.file.text) {
            Ok(set) => set,
            Err(errors) => {
                for error in errors.iter() {
                    let help = error.help().map(|help| help.to_string());
                    let help = help.unwrap_or_else(|| "not valid Cedar".to_owned());
                    self.note(place(error).unwrap_or(0..0), error.to_string(), &help, false);
                }
                return None;
            }
        };
        if set.templates().next().is_some() {
            let slot = ["?principal", "?resource"].into_iter().find_map(|s| self.span_of(s));
            let what = "a template is never in force".to_owned();
            self.note(slot.unwrap_or(0..0), what, "name the principal and the resource", false);
            return None;
        }
        Some(set)
    }

    fn validate(&mut self, validator: &Validator, set: &PolicySet) {
        let result = validator.validate(set, ValidationMode::Strict);
        for error in result.validation_errors() {
            let help = error.help().map(|help| help.to_string());
            let help = help.unwrap_or_else(|| "docs/authorization.md shows the schema".to_owned());
            self.note(place(error).unwrap_or(0..0), error.to_string(), &help, false);
        }
        for warning in result.validation_warnings() {
            let help = "is it what was meant?";
            self.note(place(warning).unwrap_or(0..0), warning.to_string(), help, true);
        }
    }

    /// Takes a policy apart; `None` if it can never apply or is noted as wrong.
    fn policy(&mut self, policy: &Policy, ids: &mut HashSet<Arc<str>>) -> Option<Parsed> {
        let number = policy.id().to_string().trim_start_matches("policy").parse().unwrap_or(0);
        let by_place = || format!("{}#{}", self.file.name, number + 1_usize);
        let id: Arc<str> = policy.annotation("id").map_or_else(by_place, str::to_owned).into();
        if !ids.insert(Arc::clone(&id)) {
            let span = self.span_of(&format!("{id:?}")).unwrap_or(0..0);
            self.note(span, format!("two policies are called {id:?}"), "rename one", false);
            return None;
        }
        let route = match policy.resource_constraint() {
            ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
            ResourceConstraint::Eq(uid)
            | ResourceConstraint::In(uid)
            | ResourceConstraint::IsIn(_, uid) => Some(self.route(&uid)?),
        };
        let who = who(policy.principal_constraint())?;
        let actions = actions(policy.action_constraint());
        let mut json = policy.to_json().ok()?;
        for part in ["principal", "action", "resource"] {
            json[part] = json!({ "op": "All" });
        }
        let conditions = json.get("conditions").and_then(Value::as_array).cloned();
        let conditions = conditions.unwrap_or_default();
        let (test, uses) = (Test::of(&conditions), Uses::of(&conditions));
        let Some(claims) = read_one_by_one(&mut json["conditions"]) else {
            let span = self.span_of("principal.claims").unwrap_or(0..0);
            let what = format!("policy {id:?} takes 'claims' for more than to read one");
            self.note(span, what, "principal.claims.tenant, principal.claims has tenant", false);
            return None;
        };
        let test = test.filter(|_| claims.read.iter().all(|name| self.types.is_plain(name)));
        let bare = match Policy::from_json(Some(PolicyId::new(&id)), json) {
            Ok(bare) => bare,
            Err(error) => {
                self.note(0..0, format!("policy {id:?}: {error}"), "simplify it", false);
                return None;
            }
        };
        self.named.extend(claims.read.into_iter().chain(claims.asked_for));
        Some(Parsed { id, effect: policy.effect(), who, actions, route, test, uses, policy: bare })
    }

    /// The label of the route that a policy names. A name that leads nowhere would be a rule that
    /// silently never applies.
    fn route(&mut self, uid: &EntityUid) -> Option<String> {
        let label: &str = uid.id().unescaped();
        if self.routes.iter().any(|route| route == label) {
            return Some(label.to_owned());
        }
        let span = self.span_of(&format!("Route::\"{label}\"")).unwrap_or(0..0);
        let known = self.routes.join(", ");
        let help = format!("routes that ask these policies: {known}");
        self.note(span, format!("no route is called \"{label}\""), &help, false);
        None
    }

    fn span_of(&self, text: &str) -> Option<Range<usize>> {
        self.file.text.find(text).map(|at| at..at + text.len())
    }
}

/// Whom a scope is about; `None`: nobody who could come.
fn who(constraint: PrincipalConstraint) -> Option<Who> {
    let of = |uid: EntityUid| {
        let name = uid.id().unescaped().to_owned();
        match uid.type_name().to_string().as_str() {
            "Caller" => Some(Who::Id(name)),
            "Role" => Some(Who::Role(name)),
            _ => None,
        }
    };
    match constraint {
        PrincipalConstraint::Any => Some(Who::Any),
        PrincipalConstraint::Is(kind) => (kind.to_string() == "Caller").then_some(Who::Any),
        PrincipalConstraint::Eq(uid)
        | PrincipalConstraint::In(uid)
        | PrincipalConstraint::IsIn(_, uid) => of(uid),
    }
}

fn actions(constraint: ActionConstraint) -> u8 {
    match constraint {
        ActionConstraint::Any => u8::MAX,
        ActionConstraint::Eq(uid) => action_bits(uid.id().unescaped(), false),
        ActionConstraint::In(uids) => {
            uids.iter().fold(0, |all, uid| all | action_bits(uid.id().unescaped(), true))
        }
    }
}

/// The actions that are this one, or, with `groups`, that are in it: a bit for each of [`ACTIONS`].
pub(super) fn action_bits(wanted: &str, groups: bool) -> u8 {
    let is_it = |(name, reads): &(&str, bool)| match wanted {
        "read" => groups && *reads,
        "write" => groups && !*reads,
        wanted => *name == wanted,
    };
    let set = ACTIONS.iter().enumerate().filter(|(_, action)| is_it(action));
    set.fold(0, |bits, (at, _)| bits | 1 << at)
}

/// Where an error points, in bytes.
fn place(error: &dyn Diagnostic) -> Option<Range<usize>> {
    let label = error.labels()?.next()?;
    Some(label.offset()..label.offset() + label.len())
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

pub(super) fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

pub(super) fn route_uid(label: &str) -> EntityUid {
    uid(&KINDS.route, label)
}

/// The names of the schema's entity types.
pub(super) struct Kinds {
    pub(super) caller: EntityTypeName,
    pub(super) role: EntityTypeName,
    route: EntityTypeName,
    action: EntityTypeName,
}

pub(super) static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
    let kind = |name| EntityTypeName::from_str(name).expect("it is an identifier");
    Kinds {
        caller: kind("Caller"),
        role: kind("Role"),
        route: kind("Route"),
        action: kind("Action"),
    }
});

/// The actions as entities, each within its group, and their names.
pub(super) static ACTION_UIDS: LazyLock<[(EntityUid, EntityUid); 8]> = LazyLock::new(|| {
    ACTIONS.map(|(name, reads)| {
        let group = if reads { "read" } else { "write" };
        (uid(&KINDS.action, name), uid(&KINDS.action, group))
    })
});
