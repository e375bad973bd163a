//! What a policy's conditions look at, read off its JSON form.

use std::ops::{BitOr, BitOrAssign};

use serde_json::Value;

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

impl BitOr for Uses {
    type Output = Self;

    fn bitor(mut self, other: Self) -> Self {
        self |= other;
        self
    }
}
