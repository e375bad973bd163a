//! Conditions that need no engine: compiled from a policy's JSON form, which is documented and stable.
//!
//! A test says what the engine would say, failures included: `None` is a condition that cannot be
//! evaluated, such as a claim of another type than the schema has.

use std::cmp::Ordering;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::known::{Known, Place, Term, member};
use super::load::action_bits;
use super::pattern::Pattern;
use super::request::Asked;

/// A condition as a plain test.
#[derive(Clone, Debug)]
pub(super) enum Test {
    /// Whatever comes.
    Always(bool),
    /// All of these; those after one that is not met are not looked at.
    All(Vec<Test>),
    /// One of these; those after it are not looked at.
    Any(Vec<Test>),
    /// The contrary.
    Not(Box<Test>),
    /// The second if the first is met, else the third.
    Choice(Box<[Test; 3]>),
    /// The caller holds this scope.
    Scope(String),
    /// The caller is this role.
    Role(String),
    /// The caller is this one.
    Caller(String),
    /// The action is one of these, a bit for each.
    Action(u8),
    /// This is known.
    Has(Place),
    /// This is true.
    Holds(Term),
    /// Both are the same.
    Same(Term, Term),
    /// The one is to the other as one of these.
    Ordered(Term, &'static [Ordering], Term),
    /// A text has this form.
    Like(Term, Pattern),
    /// A list has this member.
    Contains(Place, Term),
    /// The client's address is in this network.
    Within(IpNet),
}

impl Test {
    /// The test that all conditions of a policy come to, if none needs the engine.
    pub(super) fn of(conditions: &[Value]) -> Option<Self> {
        let all = conditions.iter().map(|condition| {
            let test = Self::expression(condition.get("body")?)?;
            match condition.get("kind")?.as_str()? {
                "when" => Some(test),
                "unless" => Some(Self::not(test)),
                _ => None,
            }
        });
        all.collect::<Option<_>>().map(Self::All)
    }

    fn not(test: Self) -> Self {
        Self::Not(Box::new(test))
    }

    fn expression(expression: &Value) -> Option<Self> {
        let (operator, of) = member(expression)?;
        let sides = || Some((of.get("left")?, of.get("right")?));
        let terms = || sides().and_then(|(left, right)| Some((Term::of(left)?, Term::of(right)?)));
        match operator {
            "!" => Some(Self::not(Self::expression(of.get("arg")?)?)),
            "&&" | "||" => {
                let (left, right) = sides()?;
                let both = vec![Self::expression(left)?, Self::expression(right)?];
                Some(if operator == "&&" { Self::All(both) } else { Self::Any(both) })
            }
            "if-then-else" => {
                let part = |name| Self::expression(of.get(name)?);
                Some(Self::Choice(Box::new([part("if")?, part("then")?, part("else")?])))
            }
            "==" | "!=" => {
                let (left, right) = sides()?;
                let same = Self::same(left, right)?;
                Some(if operator == "==" { same } else { Self::not(same) })
            }
            "<" | "<=" | ">" | ">=" => {
                let (left, right) = terms()?;
                Some(Self::Ordered(left, orders(operator), right))
            }
            "in" => {
                let (left, right) = sides()?;
                Self::within_entity(left.get("Var")?.as_str()?, right)
            }
            "has" => Place::asked_for(of).map(Self::Has),
            "like" => {
                Some(Self::Like(Term::of(of.get("left")?)?, Pattern::of(of.get("pattern")?)?))
            }
            "contains" | "containsAll" | "containsAny" => {
                let (left, right) = sides()?;
                Self::contains(left, operator, right)
            }
            "isInRange" => {
                let [left, right] = of.as_array()?.as_slice() else { return None };
                is_client(left).then(|| network(right)).flatten().map(Self::Within)
            }
            "isIpv4" | "isIpv6" | "isLoopback" | "isMulticast" => {
                is_client(of.as_array()?.first()?).then(|| Self::one_of(kind(operator)))
            }
            "Value" => of.as_bool().map(Self::Always),
            _ => Term::of(expression).map(Self::Holds),
        }
    }

    fn one_of(networks: &[&str]) -> Self {
        Self::Any(networks.iter().filter_map(|text| text.parse().ok()).map(Self::Within).collect())
    }

    fn same(left: &Value, right: &Value) -> Option<Self> {
        let variable = |side: &Value| Some(side.get("Var")?.as_str()?.to_owned());
        for (one, other) in [(left, right), (right, left)] {
            if let Some(variable) = variable(one) {
                let (kind, id) = entity(other)?;
                return match (variable.as_str(), kind) {
                    ("principal", "Caller") => Some(Self::Caller(id.to_owned())),
                    ("action", "Action") => Some(Self::Action(action_bits(id, false))),
                    _ => None,
                };
            }
            if is_client(one) {
                let network = network(other)?;
                let is_one = network.prefix_len() == network.max_prefix_len();
                return Some(if is_one { Self::Within(network) } else { Self::Always(false) });
            }
        }
        Some(Self::Same(Term::of(left)?, Term::of(right)?))
    }

    /// Whether a variable is an entity, or below it; or one of a set of them.
    fn within_entity(variable: &str, right: &Value) -> Option<Self> {
        if let Some(members) = right.get("Set") {
            let members = members.as_array()?.iter().map(|one| Self::within_entity(variable, one));
            return members.collect::<Option<_>>().map(Self::Any);
        }
        let (kind, id) = entity(right)?;
        match (variable, kind) {
            ("principal", "Role") => Some(Self::Role(id.to_owned())),
            ("principal", "Caller") => Some(Self::Caller(id.to_owned())),
            ("action", "Action") => Some(Self::Action(action_bits(id, true))),
            _ => None,
        }
    }

    /// What is asked of a list: one of the caller's, or one of literals.
    fn contains(list: &Value, operator: &str, wanted: &Value) -> Option<Self> {
        if let (Some(members), "contains") = (list.get("Set"), operator) {
            let wanted = Term::of(wanted)?;
            let same = |one| Some(Self::Same(wanted.clone(), Term::literal(one)?));
            return members.as_array()?.iter().map(same).collect::<Option<_>>().map(Self::Any);
        }
        let one = |wanted: &Value| {
            let wanted = Term::of(wanted)?;
            match (Place::of(list)?, wanted) {
                (Place::Scopes, Term::Text(scope)) => Some(Self::Scope(scope)),
                (Place::Roles, Term::Text(role)) => Some(Self::Role(role)),
                (place @ Place::Claim(_), wanted) => Some(Self::Contains(place, wanted)),
                _ => None,
            }
        };
        if operator == "contains" {
            return one(wanted);
        }
        let wanted = wanted.get("Set")?.as_array()?;
        // Of nothing the engine would still look at the list.
        let tests = wanted.iter().map(one).collect::<Option<Vec<_>>>()?;
        (!tests.is_empty()).then_some(())?;
        Some(if operator == "containsAll" { Self::All(tests) } else { Self::Any(tests) })
    }

    /// Whether it is met; `None` if that cannot be said.
    pub(super) fn is_met(&self, asked: &Asked<'_>) -> Option<bool> {
        Some(match self {
            Self::Always(always) => *always,
            Self::All(tests) => return first(tests, asked, false),
            Self::Any(tests) => return first(tests, asked, true),
            Self::Not(test) => !test.is_met(asked)?,
            Self::Choice(parts) => {
                let [condition, then, or_else] = &**parts;
                return if condition.is_met(asked)? { then } else { or_else }.is_met(asked);
            }
            Self::Scope(scope) => asked.roles.grants(asked.principal, scope),
            Self::Role(role) => asked.held.contains(&role.as_str()),
            Self::Caller(caller) => asked.caller == caller,
            Self::Action(bits) => bits & 1 << asked.action != 0,
            Self::Has(place) => place.is_there(asked)?,
            Self::Holds(term) => return term.read(asked)?.flag(),
            Self::Same(left, right) => left.read(asked)?.is_same(&right.read(asked)?),
            Self::Ordered(left, orders, right) => {
                orders.contains(&left.read(asked)?.order(&right.read(asked)?)?)
            }
            Self::Like(text, pattern) => match text.read(asked)? {
                Known::Text(text) => pattern.fits(text),
                _ => return None,
            },
            Self::Contains(list, wanted) => match (list.read(asked)?, wanted.read(asked)?) {
                (Known::List(list), Known::Text(word)) => list.iter().any(|one| one == word),
                (Known::List(_), _) => false,
                _ => return None,
            },
            Self::Within(network) => network.contains(&asked.facts.client),
        })
    }
}

/// Whether one of these comes out as `wanted`, which settles it; they are asked in their order.
fn first(tests: &[Test], asked: &Asked<'_>, wanted: bool) -> Option<bool> {
    for test in tests {
        if test.is_met(asked)? == wanted {
            return Some(wanted);
        }
    }
    Some(!wanted)
}

fn orders(operator: &str) -> &'static [Ordering] {
    match operator {
        "<" => &[Ordering::Less],
        "<=" => &[Ordering::Less, Ordering::Equal],
        ">" => &[Ordering::Greater],
        _ => &[Ordering::Greater, Ordering::Equal],
    }
}

fn is_client(expression: &Value) -> bool {
    Place::of(expression) == Some(Place::Client)
}

/// The addresses that a question about a kind of address means.
fn kind(question: &str) -> &'static [&'static str] {
    match question {
        "isIpv4" => &["0.0.0.0/0"],
        "isIpv6" => &["::/0"],
        "isLoopback" => &["127.0.0.0/8", "::1/128"],
        _ => &["224.0.0.0/4", "ff00::/8"],
    }
}

/// The network that a call of `ip` makes of a literal; the validator has refused what is none.
fn network(expression: &Value) -> Option<IpNet> {
    let [text] = expression.get("ip")?.as_array()?.as_slice() else { return None };
    let text = text.get("Value")?.as_str()?;
    text.parse().ok().or_else(|| text.parse().ok().map(|address: IpAddr| address.into()))
}

/// The type and the id that an entity literal names.
fn entity(expression: &Value) -> Option<(&str, &str)> {
    let entity = expression.get("Value")?.get("__entity")?;
    Some((entity.get("type")?.as_str()?, entity.get("id")?.as_str()?))
}
