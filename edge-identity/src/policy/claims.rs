//! What claims are: the types that an operator's schema gives them, and whether a claim is of its own.
//!
//! One that is not must never look absent, or a `forbid` would pass it by: it is there, and whatever
//! reads it fails. The engine knows nothing of the kind, so each claim is a record there, with a
//! member that is missing where the claim is of another type, and policies are made to read that.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{RestrictedExpression as Held, SchemaFragment};
use serde_json::{Map, Value, json};

use crate::principal::{Claim, whole};

/// The types of claims, by name.
#[derive(Debug, Default)]
pub(super) struct Types {
    all: BTreeMap<String, Type>,
    /// The claims that policies name. One that the schema does not have may still be asked for.
    pub(super) named: BTreeSet<String>,
}

/// Claims that conditions name.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Those whose value they read.
    pub(super) read: BTreeSet<String>,
    /// Those of which they ask whether they are there.
    pub(super) asked_for: BTreeSet<String>,
}

/// A type that claims can have.
#[derive(Debug)]
enum Type {
    Text,
    Number,
    Flag,
    Decimal,
    Set(Box<Type>),
    /// Members, and whether each must be there.
    Record(BTreeMap<String, (Type, bool)>),
}

impl Types {
    /// Reads the types off a schema that the engine has taken.
    ///
    /// # Errors
    /// The name of a type that no claim can have.
    pub(super) fn read(schema: &str) -> Result<Self, String> {
        let parsed = SchemaFragment::from_cedarschema_str(schema).ok();
        let parsed = parsed.and_then(|(fragment, _)| fragment.to_json_value().ok());
        let common = parsed.as_ref().and_then(|all| all.get("")?.get("commonTypes"));
        let claims = common.and_then(|common| common.get("Claims"));
        let (Some(common), Some(claims)) = (common, claims) else { return Ok(Self::default()) };
        match Type::read(claims, common)? {
            Type::Record(members) => {
                let all = members.into_iter().map(|(name, (kind, _))| (name, kind)).collect();
                Ok(Self { all, named: BTreeSet::new() })
            }
            _ => Err("Claims".to_owned()),
        }
    }

    /// Whether plain tests can compare the claim.
    pub(super) fn is_plain(&self, name: &str) -> bool {
        match self.all.get(name) {
            Some(Type::Text | Type::Number | Type::Flag) => true,
            Some(Type::Set(of)) => matches!(**of, Type::Text),
            _ => false,
        }
    }

    /// Whether a plain claim is of its type.
    pub(super) fn fits(&self, name: &str, claim: &Claim) -> bool {
        matches!(
            (self.all.get(name), claim),
            (Some(Type::Text), Claim::Text(_))
                | (Some(Type::Number), Claim::Number(_))
                | (Some(Type::Flag), Claim::Flag(_))
                | (Some(Type::Set(_)), Claim::List(_))
        )
    }

    /// A claim as the engine has it, which a policy reads by way of [`read_one_by_one`].
    pub(super) fn held(&self, name: &str, claim: &Claim) -> Option<Held> {
        let held = self.all.get(name).and_then(|kind| kind.hold(claim));
        Held::new_record(held.map(|held| (MEMBER.to_owned(), held))).ok()
    }
}

impl Type {
    fn read(written: &Value, common: &Value) -> Result<Self, String> {
        let word = |key| written.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = match word("type") {
            "EntityOrCommon" | "Entity" | "Extension" => word("name"),
            name => name,
        };
        Ok(match name.strip_prefix("__cedar::").unwrap_or(name) {
            "String" => Self::Text,
            "Long" => Self::Number,
            "Bool" | "Boolean" => Self::Flag,
            "decimal" => Self::Decimal,
            "Set" => Self::Set(Box::new(Self::read(&written["element"], common)?)),
            "Record" => {
                let members = written.get("attributes").and_then(Value::as_object);
                let member = |(name, kind): (&String, &Value)| {
                    let is_needed = kind.get("required").and_then(Value::as_bool).unwrap_or(true);
                    Ok((name.clone(), (Self::read(kind, common)?, is_needed)))
                };
                let members = members.into_iter().flatten().map(member);
                Self::Record(members.collect::<Result<_, String>>()?)
            }
            // The engine has refused types that are made of themselves.
            name => Self::read(common.get(name).ok_or(name)?, common)?,
        })
    }

    fn hold(&self, claim: &Claim) -> Option<Held> {
        Some(match (self, claim) {
            (Self::Text, Claim::Text(text)) => Held::new_string(text.clone()),
            (Self::Number, Claim::Number(number)) => Held::new_long(*number),
            (Self::Decimal, Claim::Number(number)) => decimal(&number.to_string())?,
            (Self::Flag, Claim::Flag(flag)) => Held::new_bool(*flag),
            (Self::Set(of), Claim::List(words))
                if matches!(**of, Self::Text) || words.is_empty() =>
            {
                Held::new_set(words.iter().cloned().map(Held::new_string))
            }
            (_, Claim::Other(value)) => return self.hold_json(value),
            _ => return None,
        })
    }

    fn hold_json(&self, value: &Value) -> Option<Held> {
        Some(match (self, value) {
            (Self::Text, Value::String(text)) => Held::new_string(text.clone()),
            (Self::Number, Value::Number(number)) => Held::new_long(whole(number)?),
            (Self::Decimal, Value::Number(number)) => decimal(&number.to_string())?,
            (Self::Flag, Value::Bool(flag)) => Held::new_bool(*flag),
            (Self::Set(of), Value::Array(items)) => {
                let items = items.iter().map(|item| of.hold_json(item));
                Held::new_set(items.collect::<Option<Vec<_>>>()?)
            }
            (Self::Record(members), Value::Object(object)) => record(members, object)?,
            _ => return None,
        })
    }
}

/// The members that the schema names. Policies cannot read others.
fn record(members: &BTreeMap<String, (Type, bool)>, object: &Map<String, Value>) -> Option<Held> {
    let mut held = Vec::new();
    for (name, (kind, is_needed)) in members {
        match object.get(name) {
            Some(value) => held.push((name.clone(), kind.hold_json(value)?)),
            None if *is_needed => return None,
            None => {}
        }
    }
    Held::new_record(held).ok()
}

/// A number as the engine's decimal, which has four places and as many digits as a [`i64`].
fn decimal(text: &str) -> Option<Held> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let fits = whole.parse::<i64>().is_ok_and(|whole| whole.unsigned_abs() < WHOLE_MAX)
        && (1..=4).contains(&part.len())
        && part.bytes().all(|byte| byte.is_ascii_digit());
    fits.then(|| Held::new_decimal(format!("{whole}.{part}")))
}

/// Makes conditions read claims as the engine has them; which they name. `None` if they do something
/// else with them than to read one and to ask whether there is one.
pub(super) fn read_one_by_one(conditions: &mut Value) -> Option<Named> {
    let mut names = Named::default();
    look_into(conditions, &mut names).then_some(names)
}

fn look_into(expression: &mut Value, names: &mut Named) -> bool {
    if let Some(spelt_out) = expression.get("has").and_then(steps) {
        *expression = spelt_out;
    }
    if let Some(of) = expression.get(".") {
        let name = of.get("attr").and_then(Value::as_str).unwrap_or_default();
        if of.get("left").is_some_and(is_claims) {
            names.read.insert(name.to_owned());
            *expression = json!({ ".": { "left": expression.take(), "attr": MEMBER } });
            return true;
        }
        if name == "claims" {
            return false;
        }
    }
    if let Some(of) = expression.get("has").filter(|of| of.get("left").is_some_and(is_claims)) {
        names.asked_for.extend(of.get("attr").and_then(Value::as_str).map(str::to_owned));
        return true;
    }
    match expression {
        Value::Array(all) => all.iter_mut().all(|one| look_into(one, names)),
        Value::Object(members) => members.iter_mut().all(|(operator, of)| match of {
            // The names of a record's members are its own, and what a literal says is no expression.
            Value::Object(of) if operator == "Record" => {
                of.values_mut().all(|one| look_into(one, names))
            }
            _ if operator == "Value" => true,
            of => look_into(of, names),
        }),
        _ => true,
    }
}

/// `a has b.c` as what it means: `a has b && a.b has c`; `None` if it asks for one member alone.
fn steps(of: &Value) -> Option<Value> {
    let (mut left, names) = (of.get("left")?.clone(), of.get("attr")?.as_array()?);
    let each = names.iter().map(|name| {
        let asked = json!({ "has": { "left": left, "attr": name } });
        left = json!({ ".": { "left": left, "attr": name } });
        asked
    });
    each.reduce(|all, next| json!({ "&&": { "left": all, "right": next } }))
}

fn is_claims(expression: &Value) -> bool {
    let of = &expression["."];
    of["attr"] == "claims" && of["left"]["Var"] == "principal"
}

/// The member of a claim's record that is the claim.
const MEMBER: &str = "value";

/// What a decimal cannot hold before its point.
const WHOLE_MAX: u64 = 922_337_203_685_477;
