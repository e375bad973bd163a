//! Reads who may pass: what a route asks of its callers, and `[[role]]`.

use edge_identity::roles::{NAME_BYTES_MAX, NAME_SIGNS, Role, RoleFault, Roles, is_of_names};
use edge_policy::{
    auth::{self, Methods},
    owner::{Attribute, Owner, Place, Template},
    route::{PathPattern, PolicySlice},
};
use toml::de::DeTable;

use super::{
    policy,
    reader::{Item, Notes, Table},
    sections::some_of,
    settings::{PolicySet, Requirement, Settings},
    whole::place_nth,
};

/// What a caller of the route at `path` must prove and hold; `None` is nothing.
pub(super) fn needs(
    table: &Table<'_>,
    path: &PathPattern,
    sets: &[PolicySet],
) -> Option<Requirement> {
    let missing = "\"key\" (or \"none\"): a route without it would refuse all";
    let methods = table.need("auth", missing, Some(Methods::NONE), |item| auth(item));
    let held = |key| table.or(key, Vec::new(), |item| held(item, methods.is_some()));
    let (scopes, any_scope, roles) = (held("scopes"), held("any_scope"), held("roles"));
    let takes_tokens = methods.is_some_and(|methods| methods.contains(auth::Method::Jwt));
    let audience = table.or("audience", Vec::new(), |item| audience(item, takes_tokens));
    let issuers = table.or("issuers", Vec::new(), |item| issuers(item, takes_tokens));
    let owner = table.or("owner", None, |item| owner(item, path, methods.is_some()).map(Some));
    let somebody = methods.is_some();
    let sets = table.or("policies", Vec::new(), |item| policy::asked(item, sets, somebody));
    // The route's number is known once all are read.
    let policies = sets.into_iter().map(|set| PolicySlice { set, route: 0 }).collect();
    methods.map(|methods| Requirement {
        methods,
        scopes,
        any_scope,
        roles,
        audience,
        issuers,
        owner,
        policies,
    })
}

/// Whose tokens are taken on this route.
fn issuers(item: &Item<'_>, takes_tokens: bool) -> Option<Vec<String>> {
    if !takes_tokens {
        return item.wrong("'issuers' without tokens", "it goes with an 'auth' of \"jwt\"");
    }
    some_of(item, "an array of names of [[issuer]]", name)
}

/// Whom tokens are meant for on this route.
fn audience(item: &Item<'_>, takes_tokens: bool) -> Option<Vec<String>> {
    if !takes_tokens {
        return item.wrong("'audience' without tokens", "it goes with an 'auth' of \"jwt\"");
    }
    some_of(item, "an array of audiences", super::issuer::audience)
}

/// `"none"`, one method of authentication, or an array of those that will do.
fn auth(item: &Item<'_>) -> Option<Option<Methods>> {
    if item.is_text() {
        let one = |method: auth::Method| (method.name(), Some(Methods::from(method)));
        let mut words: Vec<_> = auth::Method::ALL.into_iter().map(one).collect();
        words.push(("none", None));
        return item.choice(&words);
    }
    let words = auth::Method::ALL.map(|method| (method.name(), method));
    let wanted = "\"key\" or \"none\", or an array of what will do: [\"key\"]";
    let methods = some_of(item, wanted, |item| item.choice(&words))?;
    Some(Some(methods.into_iter().collect()))
}

/// Names of scopes or roles, which only somebody can hold.
fn held(item: &Item<'_>, somebody: bool) -> Option<Vec<String>> {
    let names = names(item)?;
    if !names.is_empty() && !somebody {
        return without_caller(item);
    }
    Some(names)
}

pub(super) fn without_caller<T>(item: &Item<'_>) -> Option<T> {
    let what = format!("'{}' without a caller to hold it against", item.key);
    item.wrong(what, "set auth = \"key\"")
}

/// Names of scopes or roles.
pub(super) fn names(item: &Item<'_>) -> Option<Vec<String>> {
    item.list("an array of names: [\"orders:read\"]", name)
}

pub(super) fn name(item: &Item<'_>) -> Option<String> {
    item.word(NAME_BYTES_MAX, &format!("letters, digits and '{NAME_SIGNS}'"), is_of_names)
}

/// `{ path = "/users/{id}", equals = "sub" }`
fn owner(item: &Item<'_>, path: &PathPattern, somebody: bool) -> Option<Owner> {
    let example = "{ path = \"/users/{id}\", equals = \"sub\" }";
    if !somebody {
        return without_caller(item);
    }
    let read = |table: &Table<'_>| {
        let in_path = table.or("path", None, |item| template(item, path).map(Some));
        let in_query = table.or("query", None, |item| {
            let fits = |c: char| c.is_ascii_graphic() && !"&=#;+%[".contains(c);
            item.word(64, "visible characters but '&=#;+%['", fits).map(Some)
        });
        let equals = table.need("equals", "\"sub\"", None, |item| attribute(item).map(Some));
        let unless = table.or("unless", Vec::new(), names);
        let place = match (in_path, in_query) {
            (Some(template), None) => Place::Path(template),
            (None, Some(name)) => Place::Query(name),
            (None, None) if !table.is_there("path") && !table.is_there("query") => {
                return item.wrong("'owner' does not say where the owner is named", example);
            }
            (None, None) => return None,
            (Some(_), Some(_)) => return item.wrong("'owner' names two places", "leave one out"),
        };
        Some(Owner { place, equals: equals?, unless })
    };
    match item.inline(read) {
        Some(owner) => owner,
        None => item.wrong_kind(example),
    }
}

fn template(item: &Item<'_>, path: &PathPattern) -> Option<Template> {
    let written = item.text("a path: \"/users/{id}\"")?;
    let Some(template) = Template::parse(written) else {
        let help = "a path in normal form of which one segment is in braces: \"/users/{id}\"";
        return item.wrong(format!("'path' cannot be '{written}'"), help);
    };
    if !template.is_within(path) {
        let help = format!("begin with '{path}', as the route does");
        return item.wrong(format!("'{written}' is not within the route"), help);
    }
    Some(template)
}

fn attribute(item: &Item<'_>) -> Option<Attribute> {
    let fits = |c: char| c.is_ascii_graphic();
    Some(match item.word(128, "visible characters", fits)?.as_str() {
        "id" | "sub" => Attribute::Id,
        "name" => Attribute::Name,
        claim => Attribute::Claim(claim.to_owned()),
    })
}

/// `[[role]]`
pub(super) fn role(table: &Table<'_>) -> Role {
    Role {
        name: table.need("name", "\"editor\"", String::new(), name),
        inherits: table.or("inherits", Vec::new(), names),
        scopes: table.or("scopes", Vec::new(), names),
    }
}

/// What no single role can tell: names that clash or lead nowhere, and circles.
pub(super) fn check_roles(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let roles = &settings.roles;
    for fault in Roles::new(roles).err().unwrap_or_default() {
        let (index, key, what, help) = match fault {
            RoleFault::Duplicate { second, .. } => {
                let what = format!("two roles are called '{}'", roles[second].name);
                (second, "name", what, "rename one".to_owned())
            }
            RoleFault::Unknown { index, name } => {
                let help = format!("define it: [[role]] with name = \"{name}\"");
                (index, "inherits", format!("no role is called '{name}'"), help)
            }
            RoleFault::Cycle { index, way } => {
                let name = &roles[index].name;
                let what = format!("'{name}' includes itself: {name} -> {}", way.join(" -> "));
                (index, "inherits", what, "leave one of them out".to_owned())
            }
        };
        if !roles[index].name.is_empty() {
            notes.wrong(place_nth(document, "role", index, key), what, help);
        }
    }
    if roles.is_empty() {
        return;
    }
    for (n, route) in settings.routes.iter().enumerate() {
        let Some(needs) = &route.needs else { continue };
        let unless = needs.owner.iter().flat_map(|owner| &owner.unless);
        let of_owner = unless.map(|role| ("owner", role));
        let named = needs.roles.iter().map(|role| ("roles", role)).chain(of_owner);
        for (key, role) in named.filter(|(_, name)| roles.iter().all(|role| role.name != **name)) {
            let what = format!("no [[role]] is called '{role}'");
            let help = "define it, unless it is an issuer who says who is";
            notes.doubt(place_nth(document, "route", n, key), what, help);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Mistakes, Settings, parse};
    use super::*;

    const MINIMAL: &str = include_str!("../../../config/minimal.toml");

    /// The minimal file with these lines for its route's `auth`, and these at its end.
    fn read(auth: &str, more: &str) -> Result<Settings, Mistakes> {
        let text = MINIMAL.replacen("auth = \"key\"", auth, 1) + more;
        parse(Path::new("edged.toml"), &text).map(|(settings, _)| settings)
    }

    fn told(auth: &str, more: &str) -> Vec<(usize, String)> {
        let mistakes = read(auth, more).unwrap_err();
        mistakes.0.iter().map(|m| (m.line, format!("{}: {}", m.what, m.help))).collect()
    }

    #[test]
    fn what_a_route_asks_is_read() {
        let auth = "auth = [\"key\"]\nscopes = [\"a\"]\nany_scope = [\"b\", \"c\"]\nroles = [\"ops\"]\n\
                    owner = { path = \"/users/{id}\", equals = \"sub\", unless = [\"boss\"] }";
        let roles = "[[role]]\nname = \"boss\"\ninherits = [\"ops\"]\nscopes = [\"a\"]\n\
                     [[role]]\nname = \"ops\"\n";
        let settings = read(auth, roles).unwrap();
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let place = Place::Path(Template::parse("/users/{id}").unwrap());
        let needs = Requirement {
            methods: auth::Method::Key.into(),
            scopes: owned(&["a"]),
            any_scope: owned(&["b", "c"]),
            roles: owned(&["ops"]),
            owner: Some(Owner { place, equals: Attribute::Id, unless: owned(&["boss"]) }),
            policies: Vec::new(),
            audience: Vec::new(),
            issuers: Vec::new(),
        };
        assert_eq!(settings.routes[0].needs.as_ref(), Some(&needs));
        assert_eq!(settings.roles.len(), 2);
        assert_eq!(settings.roles[0].inherits, ["ops"]);
        assert_eq!(read("auth = \"none\"", "").unwrap().routes[0].needs, None);
    }

    #[test]
    fn a_route_says_who_may() {
        let told = read("", "").unwrap_err().to_string();
        assert!(told.contains("edged.toml:16:") && told.contains("would refuse all"), "{told}");
    }

    #[test]
    fn mistakes_name_their_line() {
        let owner = |text: &str| format!("auth = \"key\"\nowner = {text}");
        for (auth, more, line, words) in [
            ("auth = []", "", 19, "'auth' is empty"),
            ("auth = [\"key\", \"key\"]", "", 19, "names this twice"),
            ("auth = [\"none\"]", "", 19, "'auth' cannot be 'none'"),
            ("auth = \"none\"\nroles = [\"a\"]", "", 20, "'roles' without a caller"),
            (
                "auth = \"none\"\nowner = { query = \"a\", equals = \"sub\" }",
                "",
                20,
                "without a caller",
            ),
            (&owner("\"a\""), "", 20, "should be { path"),
            (&owner("{ equals = \"sub\" }"), "", 20, "where the owner is named"),
            (&owner("{ path = \"/users\", equals = \"sub\" }"), "", 20, "in braces"),
            (&owner("{ path = \"/{id}\", query = \"a\", equals = \"sub\" }"), "", 20, "two places"),
            (&owner("{ path = \"/{id}\" }"), "", 20, "missing key 'equals'"),
            (&owner("{ query = \"a[]\", equals = \"sub\" }"), "", 20, "'query' cannot be"),
            (
                "auth = \"key\"",
                "[[role]]\nname = \"a\"\ninherits = [\"b\"]\n",
                23,
                "no role is called 'b'",
            ),
            ("auth = \"key\"", "[[role]]\nname = \"a\"\n[[role]]\nname = \"a\"\n", 24, "two roles"),
            (
                "auth = \"key\"",
                "[[role]]\nname = \"a\"\ninherits = [\"b\"]\n[[role]]\nname = \"b\"\ninherits = [\"a\"]\n",
                23,
                "'a' includes itself: a -> b -> a",
            ),
        ] {
            let told = told(auth, more);
            let found = told.iter().any(|(at, what)| *at == line && what.contains(words));
            assert!(found, "{auth} {more}\n{told:?}");
        }
        let narrow = MINIMAL.replacen("path = \"/\"", "path = \"/v1\"", 1).replacen(
            "auth = \"key\"",
            &owner("{ path = \"/v2/{id}\", equals = \"sub\" }"),
            1,
        );
        let mistakes = parse(Path::new("edged.toml"), &narrow).unwrap_err().to_string();
        assert!(mistakes.contains("is not within the route"), "{mistakes}");
    }
}
