//! What a policy's conditions look at, and those that need no engine.
//!
//! Both are read off the policy's JSON form, which is documented and stable.

use std::net::IpAddr;
use std::ops::BitOrAssign;

use ipnet::IpNet;
use serde_json::Value;

use super::request::Asked;

/// A condition as a plain test. None of them can fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// Whatever comes.
    Always(bool),
    /// All of these.
    All(Vec<Test>),
    /// One of these.
    Any(Vec<Test>),
    /// The contrary.
    Not(Box<Test>),
    /// The caller holds this scope.
    Scope(String),
    /// The caller is this role.
    Role(String),
    /// A text is this one.
    Equal(Text, String),
    /// The client's address is in this network.
    Within(IpNet),
}

/// A text that is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// Who the caller is.
    Id,
    /// What it is called.
    Name,
    /// How it was proved.
    Proof,
    /// The request's method.
    Method,
    /// The host it is for.
    Host,
    /// Its path.
    Path,
}

impl Test {
    /// The test that all conditions of a policy come to, if none needs the engine.
    pub(super) fn of(conditions: &[Value]) -> Option<Self> {
        let all = conditions.iter().map(|condition| {
            let test = Self::expression(condition.get("body")?)?;
            match condition.get("kind")?.as_str()? {
                "when" => Some(test),
                "unless" => Some(Self::Not(Box::new(test))),
                _ => None,
            }
        });
        all.collect::<Option<_>>().map(Self::All)
    }

    fn expression(expression: &Value) -> Option<Self> {
        let (operator, of) = single(expression)?;
        let sides = || Some((of.get("left")?, of.get("right")?));
        match operator {
            "Value" => of.as_bool().map(Self::Always),
            "!" => Some(Self::Not(Box::new(Self::expression(of.get("arg")?)?))),
            "&&" | "||" => {
                let (left, right) = sides()?;
                let both = vec![Self::expression(left)?, Self::expression(right)?];
                Some(if operator == "&&" { Self::All(both) } else { Self::Any(both) })
            }
            "==" => {
                let (left, right) = sides()?;
                let equal = |text, word| Some(Self::Equal(Text::of(text)?, literal(word)?));
                equal(left, right).or_else(|| equal(right, left))
            }
            "in" => {
                let (left, right) = sides()?;
                let is_principal = left.get("Var")?.as_str()? == "principal";
                is_principal.then(|| role(right)).flatten().map(Self::Role)
            }
            "contains" | "containsAll" | "containsAny" => {
                let (left, right) = sides()?;
                let one: fn(String) -> Self = match attribute(left, "principal")? {
                    "scopes" => Self::Scope,
                    "roles" => Self::Role,
                    _ => return None,
                };
                if operator == "contains" {
                    return literal(right).map(one);
                }
                let words = right.get("Set")?.as_array()?.iter().map(literal);
                let tests = words.map(|word| word.map(one)).collect::<Option<Vec<_>>>()?;
                Some(if operator == "containsAll" { Self::All(tests) } else { Self::Any(tests) })
            }
            "isInRange" => {
                let [left, right] = of.as_array()?.as_slice() else { return None };
                let is_client = attribute(left, "context")? == "ip";
                is_client.then(|| network(right)).flatten().map(Self::Within)
            }
            _ => None,
        }
    }

    pub(super) fn is_met(&self, asked: &Asked<'_>) -> bool {
        match self {
            Self::Always(always) => *always,
            Self::All(tests) => tests.iter().all(|test| test.is_met(asked)),
            Self::Any(tests) => tests.iter().any(|test| test.is_met(asked)),
            Self::Not(test) => !test.is_met(asked),
            Self::Scope(scope) => asked.roles.grants(asked.principal, scope),
            Self::Role(role) => asked.held.contains(&role.as_str()),
            Self::Equal(text, word) => text.read(asked) == word,
            Self::Within(network) => network.contains(&asked.facts.client),
        }
    }
}

impl Text {
    fn of(expression: &Value) -> Option<Self> {
        if let Some(name) = attribute(expression, "principal") {
            return match name {
                "id" => Some(Self::Id),
                "name" => Some(Self::Name),
                "method" => Some(Self::Proof),
                _ => None,
            };
        }
        match attribute(expression, "context")? {
            "method" => Some(Self::Method),
            "host" => Some(Self::Host),
            "path" => Some(Self::Path),
            _ => None,
        }
    }

    fn read<'a>(self, asked: &Asked<'a>) -> &'a str {
        match self {
            Self::Id => asked.principal.id(),
            Self::Name => asked.principal.name(),
            Self::Proof => asked.principal.method().name(),
            Self::Method => asked.facts.method.as_str(),
            Self::Host => asked.facts.host,
            Self::Path => &asked.facts.target.path,
        }
    }
}

/// The operator of an expression and what it is applied to.
fn single(expression: &Value) -> Option<(&str, &Value)> {
    let mut members = expression.as_object()?.iter();
    match (members.next(), members.next()) {
        (Some((operator, of)), None) => Some((operator, of)),
        _ => None,
    }
}

/// The name of an attribute that is read of this variable.
fn attribute<'v>(expression: &'v Value, variable: &str) -> Option<&'v str> {
    let read = expression.get(".")?;
    let is_it = read.get("left")?.get("Var")?.as_str()? == variable;
    is_it.then(|| read.get("attr")?.as_str()).flatten()
}

fn literal(expression: &Value) -> Option<String> {
    expression.get("Value")?.as_str().map(str::to_owned)
}

/// The network that a call of `ip` makes of a literal; the validator has refused what is none.
fn network(expression: &Value) -> Option<IpNet> {
    let [text] = expression.get("ip")?.as_array()?.as_slice() else { return None };
    let text = literal(text)?;
    text.parse().ok().or_else(|| text.parse().ok().map(|address: IpAddr| address.into()))
}

/// The role that an entity literal names.
fn role(expression: &Value) -> Option<String> {
    let entity = expression.get("Value")?.get("__entity")?;
    let is_role = entity.get("type")?.as_str()? == "Role";
    is_role.then(|| entity.get("id")?.as_str().map(str::to_owned)).flatten()
}

/// What policies look at, so that nothing else need be built for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    /// Attributes of the caller, by their place in [`CALLER`].
    pub(super) caller: u8,
    /// Attributes of the context, by their place in [`CONTEXT`].
    pub(super) context: u8,
    /// Which roles the caller is.
    pub(super) hierarchy: bool,
    /// Which actions the action is one of.
    pub(super) action: bool,
}

/// Attributes of a caller, as the schema has them.
pub(super) const CALLER: [&str; 8] =
    ["id", "name", "method", "scopes", "roles", "tier", "issuer", "claims"];

/// Attributes of the context, as the schema has them.
pub(super) const CONTEXT: [&str; 7] = ["method", "host", "path", "query", "ip", "time", "tls"];

impl Uses {
    /// What these conditions look at.
    pub(super) fn of(conditions: &[Value]) -> Self {
        let mut uses = Self::default();
        for condition in conditions {
            uses.look_into(condition);
        }
        uses
    }

    fn look_into(&mut self, expression: &Value) {
        match expression {
            Value::Array(all) => all.iter().for_each(|one| self.look_into(one)),
            Value::Object(members) => {
                for (operator, of) in members {
                    match (operator.as_str(), of) {
                        ("." | "has", of) if self.note_attribute(of) => {}
                        ("Var", Value::String(variable)) => self.note_whole(variable),
                        // The names of a record's members are its own.
                        ("Record", Value::Object(members)) => {
                            members.values().for_each(|one| self.look_into(one));
                        }
                        // What a literal says is no expression.
                        ("Value", _) => {}
                        (_, of) => self.look_into(of),
                    }
                }
            }
            _ => {}
        }
    }

    /// Notes an attribute that is read of a variable itself; whether it was one.
    fn note_attribute(&mut self, of: &Value) -> bool {
        let variable = of.get("left").and_then(|left| left.get("Var")).and_then(Value::as_str);
        let name = of.get("attr").and_then(Value::as_str);
        let (known, bits) = match variable {
            Some("principal") => (&CALLER[..], &mut self.caller),
            Some("context") => (&CONTEXT[..], &mut self.context),
            _ => return false,
        };
        // What the schema does not have, the validator has refused.
        *bits |= known.iter().position(|one| Some(*one) == name).map_or(u8::MAX, |at| 1 << at);
        true
    }

    /// A variable as a whole: compared, or looked for among others.
    fn note_whole(&mut self, variable: &str) {
        match variable {
            "principal" => self.hierarchy = true,
            "action" => self.action = true,
            "context" => self.context = u8::MAX,
            _ => {}
        }
    }
}

impl BitOrAssign for Uses {
    fn bitor_assign(&mut self, other: Self) {
        self.caller |= other.caller;
        self.context |= other.context;
        self.hierarchy |= other.hierarchy;
        self.action |= other.action;
    }
}
