//! Roles: what each includes of others, and which scopes it grants.

use std::collections::HashMap;

use crate::principal::Principal;

/// A role as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// What it is called.
    pub name: String,
    /// Roles that it includes.
    pub inherits: Vec<String>,
    /// Scopes that it grants.
    pub scopes: Vec<String>,
}

/// Whether a scope or a role may be called so: a word that reads as one in every list of them.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(is_of_names)
}

/// Whether a name of a scope or a role may have this character.
#[must_use]
pub fn is_of_names(character: char) -> bool {
    character.is_ascii_alphanumeric() || NAME_SIGNS.contains(character)
}

/// The longest name of a scope or a role, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// What names of scopes and roles have beside letters and digits.
pub const NAME_SIGNS: &str = "-_.:/";

/// Why roles are refused. They are named by their place in what was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleFault {
    /// Two have the same name.
    Duplicate {
        /// The earlier.
        first: usize,
        /// The later.
        second: usize,
    },
    /// One includes a role that is not defined.
    Unknown {
        /// The role that includes it.
        index: usize,
        /// What it includes.
        name: String,
    },
    /// One includes itself, by way of these roles.
    Cycle {
        /// The role.
        index: usize,
        /// The way back to it.
        way: Vec<String>,
    },
}

/// All roles, each with everything that it includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    granted: HashMap<String, Granted>,
}

/// All that a role comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Granted {
    /// Itself and every role that it includes.
    roles: Vec<String>,
    /// Every scope that they grant.
    scopes: Vec<String>,
}

impl Roles {
    /// Works out what every role comes to.
    ///
    /// # Errors
    /// Every fault of every role.
    pub fn new(roles: &[Role]) -> Result<Self, Vec<RoleFault>> {
        let by_name: HashMap<&str, &Role> =
            roles.iter().rev().map(|role| (role.name.as_str(), role)).collect();
        let faults = faults(roles, &by_name);
        if !faults.is_empty() {
            return Err(faults);
        }
        let granted = roles.iter().map(|role| (role.name.clone(), all_of(role, &by_name)));
        Ok(Self { granted: granted.collect() })
    }

    /// Whether the principal is this role, by itself or by a role that includes it.
    #[must_use]
    pub fn is(&self, principal: &Principal, role: &str) -> bool {
        let includes = |held: &String| {
            held == role || self.granted.get(held).is_some_and(|g| holds(&g.roles, role))
        };
        principal.roles().iter().any(includes)
    }

    /// Whether the principal holds this scope, by itself or by a role.
    #[must_use]
    pub fn grants(&self, principal: &Principal, scope: &str) -> bool {
        let by_role = |held| self.granted.get(held).is_some_and(|g| holds(&g.scopes, scope));
        holds(principal.scopes(), scope) || principal.roles().iter().any(by_role)
    }

    /// Every role that the principal is, each once, in alphabetical order.
    #[must_use]
    pub fn of<'a>(&'a self, principal: &'a Principal) -> Vec<&'a str> {
        let own = principal.roles().iter();
        let all = own.clone().chain(own.filter_map(|r| self.granted.get(r)).flat_map(|g| &g.roles));
        sorted(all)
    }

    /// Every scope that the principal holds, each once, in alphabetical order.
    #[must_use]
    pub fn scopes_of<'a>(&'a self, principal: &'a Principal) -> Vec<&'a str> {
        let by_role = principal.roles().iter().filter_map(|role| self.granted.get(role));
        sorted(principal.scopes().iter().chain(by_role.flat_map(|g| &g.scopes)))
    }
}

fn holds(held: &[String], wanted: &str) -> bool {
    held.iter().any(|one| one == wanted)
}

fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut names: Vec<_> = names.map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A role with all that it includes; there are no cycles.
fn all_of(role: &Role, by_name: &HashMap<&str, &Role>) -> Granted {
    let (mut granted, mut open) = (Granted::default(), vec![role]);
    while let Some(role) = open.pop() {
        if holds(&granted.roles, &role.name) {
            continue;
        }
        granted.roles.push(role.name.clone());
        granted.scopes.extend(role.scopes.iter().cloned());
        open.extend(role.inherits.iter().filter_map(|name| by_name.get(name.as_str())));
    }
    granted.scopes.sort_unstable();
    granted.scopes.dedup();
    granted
}

fn faults(roles: &[Role], by_name: &HashMap<&str, &Role>) -> Vec<RoleFault> {
    let mut faults = Vec::new();
    for (index, role) in roles.iter().enumerate() {
        if let Some(first) = roles[..index].iter().position(|other| other.name == role.name) {
            faults.push(RoleFault::Duplicate { first, second: index });
            continue;
        }
        for name in role.inherits.iter().filter(|name| !by_name.contains_key(name.as_str())) {
            faults.push(RoleFault::Unknown { index, name: name.clone() });
        }
        if let Some(way) = way_back(role, by_name) {
            faults.push(RoleFault::Cycle { index, way });
        }
    }
    faults
}

/// The way by which a role includes itself, if it does. Each role is walked through once.
fn way_back(role: &Role, by_name: &HashMap<&str, &Role>) -> Option<Vec<String>> {
    let mut seen: Vec<&str> = Vec::new();
    let mut open: Vec<Vec<&str>> = role.inherits.iter().map(|name| vec![name.as_str()]).collect();
    while let Some(way) = open.pop() {
        let last = *way.last()?;
        if last == role.name {
            return Some(way.into_iter().map(str::to_owned).collect());
        }
        if seen.contains(&last) {
            continue;
        }
        seen.push(last);
        let next = by_name.get(last).map(|role| role.inherits.as_slice()).unwrap_or_default();
        open.extend(next.iter().map(|name| [way.as_slice(), &[name.as_str()]].concat()));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::principal::Method;
    use crate::principal::tests::somebody;

    fn role(name: &str, inherits: &[&str], scopes: &[&str]) -> Role {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Role { name: name.into(), inherits: owned(inherits), scopes: owned(scopes) }
    }

    fn some() -> Roles {
        Roles::new(&[
            role("admin", &["editor", "auditor"], &["keys:write"]),
            role("editor", &["reader"], &["orders:write"]),
            role("auditor", &["reader"], &["audit:read"]),
            role("reader", &[], &["orders:read"]),
        ])
        .unwrap()
    }

    #[test]
    fn a_role_is_what_it_includes() {
        let roles = some();
        for (held, is, is_not, grants, grants_not) in [
            ("admin", "reader", "root", "orders:read", "root"),
            ("editor", "reader", "admin", "orders:write", "keys:write"),
            ("reader", "reader", "editor", "orders:read", "orders:write"),
            // A role that an issuer names and nobody defined is itself and grants nothing.
            ("guest", "guest", "reader", "own", "orders:read"),
        ] {
            let somebody = somebody(Method::Jwt, &["own"], &[held]);
            assert!(roles.is(&somebody, held) && roles.is(&somebody, is), "{held}");
            assert!(!roles.is(&somebody, is_not), "{held}");
            assert!(roles.grants(&somebody, grants) && roles.grants(&somebody, "own"), "{held}");
            assert!(!roles.grants(&somebody, grants_not), "{held}");
        }
        let admin = somebody(Method::Jwt, &["own"], &["admin", "editor"]);
        assert_eq!(roles.of(&admin), ["admin", "auditor", "editor", "reader"]);
        let scopes = ["audit:read", "keys:write", "orders:read", "orders:write", "own"];
        assert_eq!(roles.scopes_of(&admin), scopes);
    }

    #[test]
    fn every_fault_is_reported() {
        let given = [
            role("a", &["b"], &[]),
            role("b", &["c", "x"], &[]),
            role("c", &["a"], &[]),
            role("a", &[], &[]),
            role("self", &["self"], &[]),
            role("outside", &["a"], &[]),
        ];
        let cycle = |index, way: &[&str]| RoleFault::Cycle {
            index,
            way: way.iter().map(|name| (*name).to_owned()).collect(),
        };
        let expected = vec![
            cycle(0, &["b", "c", "a"]),
            RoleFault::Unknown { index: 1, name: "x".into() },
            cycle(1, &["c", "a", "b"]),
            cycle(2, &["a", "b", "c"]),
            RoleFault::Duplicate { first: 0, second: 3 },
            cycle(4, &["self"]),
        ];
        assert_eq!(Roles::new(&given).unwrap_err(), expected);
    }

    proptest! {
        /// Against a model: what can be reached by following one inclusion after the other.
        #[test]
        fn inclusion_is_reachability(edges in proptest::collection::vec((0_usize..8, 0_usize..8), 0..20)) {
            // Only downwards, so that there are no cycles.
            let edges: Vec<_> = edges.into_iter().filter(|(from, to)| from < to).collect();
            let name = |n: usize| format!("r{n}");
            let given: Vec<_> = (0..8).map(|n| Role {
                name: name(n),
                inherits: edges.iter().filter(|e| e.0 == n).map(|e| name(e.1)).collect(),
                scopes: vec![format!("s{n}")],
            }).collect();
            let roles = Roles::new(&given).unwrap();
            let mut reach: HashSet<(usize, usize)> = (0..8).map(|n| (n, n)).collect();
            for _ in 0..8 {
                let further: Vec<_> = reach.iter().flat_map(|(from, via)| {
                    edges.iter().filter(move |e| e.0 == *via).map(move |e| (*from, e.1))
                }).collect();
                reach.extend(further);
            }
            for (from, to) in (0..64).map(|n| (n / 8, n % 8)) {
                let somebody = somebody(Method::Jwt, &[], &[&name(from)]);
                prop_assert_eq!(roles.is(&somebody, &name(to)), reach.contains(&(from, to)));
                let granted = roles.grants(&somebody, &format!("s{to}"));
                prop_assert_eq!(granted, reach.contains(&(from, to)));
            }
        }
    }
}
