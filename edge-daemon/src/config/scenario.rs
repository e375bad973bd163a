//! Reads `[verdicts]` and `[[scenario]]`, and the scenarios that are shipped; `sense` is what no single
//! key of theirs can tell.

mod sense;

use std::{path::Path, sync::LazyLock, time::Duration};

use edge_common::Plane;
use edge_policy::{
    limit::meter::Window,
    place::Place,
    rate,
    verdict::{Among, By, Distinct, Filter, Kind, Scenario, Step},
};
use toml::de::DeTable;

pub(super) use self::sense::{check, places};
use super::{
    mistake::Source,
    reader::{Item, Notes, Table, suggest},
    route,
    sections::{count, small, some_of},
    settings::Verdicts,
};

/// The section, and the scenarios beside it.
pub(super) fn verdicts(document: &Table<'_>) -> Verdicts {
    let scenarios = merged(document.tables("scenario", |table| scenario(table, &SHIPPED)));
    document.table("verdicts", |table| section(table, scenarios))
}

fn section(table: &Table<'_>, scenarios: Vec<Scenario>) -> Verdicts {
    let duration = |key, default| table.or(key, default, |item| item.duration(3_650 * DAY));
    let paths = DECOYS.map(str::to_owned).to_vec();
    Verdicts {
        scenarios,
        never_ban: table.or("never_ban", Vec::new(), |item| {
            item.list("an array of networks: [\"192.0.2.0/24\"]", Item::net)
        }),
        ssh_ports: table.or("ssh_ports", vec![22], |item| {
            item.list("an array of ports: [22]", |item| {
                item.number(1, 65_535).and_then(|port| u16::try_from(port).ok())
            })
        }),
        factor: table.or("factor", 4, |item| small(item, 1, 1_000)),
        longest: duration("longest", DAY),
        jitter: table.or("jitter", 10, |item| small(item, 0, 50)),
        forget_after: duration("forget_after", DAY),
        culprits_max: table.or("culprits_max", 100_000, |item| count(item, 1, 10_000_000)),
        bans_per_minute: table.or("bans_per_minute", 6_000, |item| small(item, 1, 1_000_000)),
        shared_by: table.or("shared_by", 3, |item| count(item, 2, 8)),
        shared_within: duration("shared_within", 10 * MINUTE),
        delay: table.or("delay", 2 * SECOND, |item| item.duration(MINUTE)),
        decoys: table.or("decoys", paths, |item| item.list("an array of paths", decoy)),
        canaries: table.or("canary_keys", Vec::new(), |item| {
            item.list("an array of credentials that are bait", |item| {
                item.word(512, "visible ASCII characters", |c| c.is_ascii_graphic())
            })
        }),
    }
}

fn decoy(item: &Item<'_>) -> Option<String> {
    match item.text("a path: \"/.env\"")? {
        path if path.starts_with('/') && path.len() > 1 => Some(path.to_owned()),
        path => item.wrong(format!("'{path}' is no path below '/'"), "\"/.env\""),
    }
}

/// The shipped scenarios with what the configuration changes, and then its own.
fn merged(own: Vec<(Scenario, bool)>) -> Vec<Scenario> {
    let mut all = SHIPPED.clone();
    for (scenario, enabled) in own {
        match all.iter().position(|other| other.name == scenario.name) {
            Some(at) if enabled => all[at] = scenario,
            Some(at) => drop(all.remove(at)),
            None if enabled => all.push(scenario),
            None => {}
        }
    }
    all
}

/// What `config/scenarios.toml` says.
static SHIPPED: LazyLock<Vec<Scenario>> = LazyLock::new(|| {
    let text = include_str!("../../../config/scenarios.toml");
    let (document, syntax) = DeTable::parse_recoverable(text);
    let notes = Notes::new(Source::new(Path::new("scenarios.toml"), text), &syntax);
    Table::document(document.get_ref(), &notes, |document| {
        document.tables("scenario", |table| scenario(table, &[]).0)
    })
});

/// A scenario, and whether it is in force. What it leaves out is as in the one among `known` that has
/// its name.
fn scenario(table: &Table<'_>, known: &[Scenario]) -> (Scenario, bool) {
    let name = table.need("name", "\"brute-force\"", String::new(), |item| {
        item.word(64, "letters, digits and '-_.'", |c| {
            c.is_ascii_alphanumeric() || "-_.".contains(c)
        })
    });
    let known = known.iter().find(|other| *other.name == *name);
    let enabled = table.or("enabled", true, Item::flag);
    let of = |key, example, old: Option<u64>, read: fn(&Item<'_>) -> Option<u64>| match old {
        Some(old) => table.or(key, old, read),
        None if !enabled => table.or(key, 1, read),
        None => table.need(key, example, 1, read),
    };
    let by = table.or("by", known.map_or(By::Source, |old| old.by), |item| item.choice(&BY));
    let ends = match by {
        By::Source => Step::Ban,
        _ => Step::Refuse,
    };
    let step = known.map_or(ends, |old| old.step.min(ends));
    let step = table.or("step", step, |item| rung(item, ends));
    let top = known.map_or(ends, |old| old.up_to.min(ends)).max(step);
    let up_to = table.or("up_to", top, |item| match rung(item, ends)? {
        lower if lower < step => {
            item.wrong("'up_to' is below 'step'", format!("\"{}\" or beyond it", step.name()))
        }
        rung => Some(rung),
    });
    let scenario = Scenario {
        filter: filter(table, known, enabled),
        by,
        distinct: table
            .or("distinct", known.and_then(|old| old.distinct), |item| item.choice(&DISTINCT)),
        capacity: of("capacity", "5", known.map(|old| old.capacity), |item| {
            item.number(0, 1_000_000)
        }),
        interval_ns: of("leak", "\"5/m\"", known.map(|old| old.interval_ns), leak),
        step,
        up_to: if step == Step::Observe { step } else { up_to },
        duration_ns: of("duration", "\"10m\"", known.map(|old| old.duration_ns), |item| {
            item.duration(3_650 * DAY).map(ns)
        }),
        groups_max: table.or("groups_max", known.map_or(32_768, |old| old.groups_max), |item| {
            count(item, 1, 10_000_000)
        }),
        name: name.into(),
    };
    (scenario, enabled)
}

fn filter(table: &Table<'_>, known: Option<&Scenario>, enabled: bool) -> Filter {
    let old = known.map(|known| known.filter.clone());
    let weights = match &old {
        Some(old) => table.or("signals", old.weights, signals),
        None if !enabled => table.or("signals", [0; Kind::COUNT], signals),
        None => table.need("signals", "[\"no_route\"]", [0; Kind::COUNT], signals),
    };
    let old = old.unwrap_or_default();
    Filter {
        weights,
        methods: table.or("methods", old.methods, |item| {
            some_of(item, "an array of methods: [\"POST\"]", route::method)
        }),
        paths: table.or("paths", old.paths, |item| {
            some_of(item, "an array of paths: [\"/api\"]", |item| {
                item.text("a path").filter(|path| path.starts_with('/')).map(Into::into).or_else(
                    || item.wrong("a path begins with '/'", "\"/api\": it and all below it"),
                )
            })
        }),
        statuses: table.or("statuses", old.statuses, |item| {
            some_of(item, "an array of statuses: [404]", |item| {
                item.number(100, 999).and_then(|status| u16::try_from(status).ok())
            })
        }),
        proven: table.or("proven", old.proven, |item| item.flag().map(Some)),
        places: PLACES.iter().filter_map(|told| among(table, &old.places, *told)).collect(),
    }
}

/// The places of a key, if it names any.
fn among(
    table: &Table<'_>,
    old: &[Among],
    (key, place, is_elsewhere): (&'static str, Place, bool),
) -> Option<Among> {
    let same = old.iter().find(|own| (own.place, own.is_elsewhere) == (place, is_elsewhere));
    let ids = same.map_or_else(Vec::new, |same| same.ids.clone());
    let ids = match place {
        Place::Country => table.or(key, ids, |item| {
            some_of(item, "an array of countries: [\"NZ\"]", |item| {
                let written = item.text("a country: \"NZ\"")?;
                place.parse(written).or_else(|| {
                    item.wrong(format!("'{written}' is no country"), "two capital letters: \"NZ\"")
                })
            })
        }),
        Place::Asn => table.or(key, ids, |item| {
            some_of(item, "an array of numbers of networks: [64496]", |item| {
                item.number(0, u64::from(u32::MAX))
            })
        }),
    };
    (!ids.is_empty()).then_some(Among { place, ids, is_elsewhere })
}

/// Names, each of which weighs one; or a table of weights.
fn signals(item: &Item<'_>) -> Option<[u16; Kind::COUNT]> {
    let mut weights = [0; Kind::COUNT];
    if item.is_table() {
        let read = item.each(SIGNALS, |name, item| {
            let weight = item.number(0, 1_000).and_then(|weight| u16::try_from(weight).ok());
            Some((kind(item, name)?, weight?))
        })?;
        read.into_iter().for_each(|(kind, weight)| weights[kind.index()] = weight);
    } else {
        let read = item.list(SIGNALS, |item| kind(item, item.text(SIGNALS)?))?;
        read.into_iter().for_each(|kind| weights[kind.index()] = 1);
    }
    Some(weights)
}

fn kind(item: &Item<'_>, name: &str) -> Option<Kind> {
    match Kind::named(name) {
        Some(kind) if kind.reason().plane() != Plane::Packet => Some(kind),
        Some(_) => item.wrong(
            format!("'{name}' is settled in the kernel, which signals nothing"),
            "its counter and its event tell of it",
        ),
        None => {
            let names = Kind::all().filter(|kind| kind.reason().plane() != Plane::Packet);
            item.wrong(format!("there is no signal '{name}'"), suggest(name, names.map(Kind::name)))
        }
    }
}

fn leak(item: &Item<'_>) -> Option<u64> {
    let written = item.text("a rate: \"5/m\"")?;
    match rate::window(written) {
        Ok((count, Window::Ns(ns))) => Some((ns / count).max(1)),
        Ok((_, Window::Month)) => item.wrong("a bucket knows no months", LEAKS),
        Err(fault) => item.wrong(format!("'{written}' {fault}"), LEAKS),
    }
}

fn rung(item: &Item<'_>, most: Step) -> Option<Step> {
    match item.choice(&Step::ALL)? {
        step if step <= most => Some(step),
        _ => item.wrong("the kernel can ban a source, and nothing else", "\"403\" at the most"),
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The keys of places: what they name, and whether a sender is to be from elsewhere.
const PLACES: [(&str, Place, bool); 4] = [
    ("country", Place::Country, false),
    ("not_country", Place::Country, true),
    ("asn", Place::Asn, false),
    ("not_asn", Place::Asn, true),
];
const BY: [(&str, By); 7] = [
    ("source", By::Source),
    ("fingerprint", By::Fingerprint),
    ("principal", By::Principal),
    ("account", By::Account),
    ("ja4", By::Ja4),
    ("country", By::Place(Place::Country)),
    ("asn", By::Place(Place::Asn)),
];
const DISTINCT: [(&str, Option<Distinct>); 6] = [
    ("none", None),
    ("path", Some(Distinct::Path)),
    ("account", Some(Distinct::Account)),
    ("source", Some(Distinct::Source)),
    ("country", Some(Distinct::Place(Place::Country))),
    ("asn", Some(Distinct::Place(Place::Asn))),
];
/// Paths that no site serves and every scanner tries.
const DECOYS: [&str; 8] = [
    "/.env",
    "/.git/config",
    "/.git/HEAD",
    "/.aws/credentials",
    "/.ssh/id_rsa",
    "/.svn/entries",
    "/wp-config.php.bak",
    "/.htpasswd",
];
const SIGNALS: &str = "signals, or a table of weights: [\"no_route\"], or { no_route = 1 }";
const LEAKS: &str = "\"5/m\", \"100/15m\", \"1/h\"";
const SECOND_NS: u64 = 1_000_000_000;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod shipped;

#[cfg(test)]
mod tests {
    use super::{
        sense::{careless, faults, is_hasty},
        *,
    };
    use crate::config::parse;

    const MINIMAL: &str = include_str!("../../../config/minimal.toml");

    /// The scenario "a" of these lines, and the warnings; or the mistakes.
    fn scenario(lines: &str) -> Result<(Scenario, String), String> {
        let text = format!("{MINIMAL}\n[[scenario]]\nname = \"a\"\n{lines}\n");
        let read =
            parse(Path::new("edged.toml"), &text).map_err(|mistakes| mistakes.to_string())?;
        let found = read.0.verdicts.scenarios.into_iter().find(|own| &*own.name == "a");
        Ok((found.expect("it is there"), read.1.to_string()))
    }

    const WHOLE: &str = "capacity = 5\nleak = \"5/m\"\nduration = \"10m\"";

    fn with(lines: &str) -> String {
        format!("{WHOLE}\n{lines}")
    }

    #[test]
    fn what_is_shipped_is_sound() {
        assert_eq!(SHIPPED.len(), 14);
        for own in SHIPPED.iter() {
            let faults = faults(own, DAY, &[]);
            assert!(faults.is_empty(), "{}: {}", own.name, faults[0].1.what);
            assert!(careless(own).is_none() && !is_hasty(own, &[]), "{}", own.name);
            let shadows = SHIPPED.iter().find(|other| other.name != own.name && other.shadows(own));
            assert!(shadows.is_none(), "{} by {}", own.name, shadows.unwrap().name);
        }
        for kind in Kind::all().filter(|kind| kind.reason().plane() != Plane::Packet) {
            let is_asked = SHIPPED.iter().any(|own| own.filter.weights[kind.index()] > 0);
            // Of a connection that is refused as banned nothing can be learnt.
            assert!(is_asked || kind.name() == "banned_connection", "{}", kind.name());
        }
        let brute = SHIPPED.iter().find(|own| &*own.name == "brute-force").unwrap();
        assert_eq!((brute.capacity, brute.interval_ns), (5, 12 * SECOND_NS));
        assert_eq!((brute.step, brute.up_to), (Step::Ban, Step::Ban));
    }

    #[test]
    fn a_name_that_is_known_changes_what_it_says() {
        let text = format!(
            "{MINIMAL}\n[[scenario]]\nname = \"brute-force\"\ncapacity = 2\n\
             [[scenario]]\nname = \"decoy\"\nenabled = false\n"
        );
        let (settings, _) = parse(Path::new("edged.toml"), &text).unwrap();
        let all = settings.verdicts.scenarios;
        assert_eq!(all.len(), SHIPPED.len() - 1);
        let own = all.iter().find(|own| &*own.name == "brute-force").unwrap();
        let shipped = SHIPPED.iter().find(|own| &*own.name == "brute-force").unwrap();
        assert_eq!(*own, Scenario { capacity: 2, ..shipped.clone() });
    }

    #[test]
    fn a_scenario_is_read_as_written() {
        let lines = "signals = { no_route = 2, login_failed = 1 }\nby = \"fingerprint\"\n\
                     distinct = \"path\"\nmethods = [\"POST\"]\npaths = [\"/a\"]\nstep = \"delay\"";
        let (own, warnings) = scenario(&with(lines)).unwrap();
        assert_eq!(
            own.filter.kinds().map(Kind::name).collect::<Vec<_>>(),
            ["no_route", "login_failed"]
        );
        assert_eq!((own.by, own.distinct), (By::Fingerprint, Some(Distinct::Path)));
        assert_eq!((own.step, own.up_to, own.capacity), (Step::Delay, Step::Refuse, 5));
        assert_eq!(warnings, "");
    }

    #[test]
    fn what_makes_no_sense_is_told_at_its_place() {
        for (lines, what) in [
            (with(""), "missing key 'signals'"),
            ("signals = [\"no_route\"]".into(), "missing key 'capacity'"),
            (with("signals = [\"no_rote\"]"), "did you mean 'no_route'?"),
            (with("signals = [\"packet_rate\"]"), "settled in the kernel"),
            (with("signals = []"), "can never speak"),
            (with("signals = [\"no_route\"]\nby = \"account\""), "only \"login_failed\" tells"),
            (with("signals = [\"no_route\"]\nby = \"principal\"\nproven = false"), "must have proved"),
            (with("signals = [\"handshake_failed\"]\npaths = [\"/a\"]"), "come without a request"),
            (with("signals = [\"no_route\"]\nstatuses = [200]"), "none of its signals has"),
            (with("signals = [\"no_route\"]\nby = \"ja4\"\nstep = \"ban\""), "the kernel can ban a source"),
            (with("signals = [\"no_route\"]\nstep = \"403\"\nup_to = \"429\""), "'up_to' is below"),
            (with("signals = [\"no_route\"]\ncountry = [\"nz\"]"), "'nz' is no country"),
            (with("signals = [\"no_route\"]\nasn = [\"AS1\"]"), "should be"),
            (with("signals = [\"no_route\"]\nasn = [1, 1]"), "names this twice"),
            (with("signals = [\"no_route\"]\nasn = [1]\nnot_asn = [2]\n[geo]\nasn = \"/x\""), "'asn' says already which"),
            (with("signals = [\"no_route\"]\nby = \"country\"\nstep = \"ban\""), "the kernel can ban a source"),
            (with("signals = [\"no_route\"]\nby = \"asn\""), "nothing tells the asn of an address"),
            (with("signals = [\"no_route\"]\nnot_country = [\"NZ\"]"), "nothing tells the country"),
            (with("signals = [\"no_route\"]\ndistinct = \"country\""), "nothing tells the country"),
            ("signals = [\"served\"]\ncapacity = 0\nleak = \"1/m\"\nduration = \"1m\"".into(),
             "against every client at its first request"),
            ("signals = [\"served\"]\npaths = [\"/x\", \"/\"]\ncapacity = 0\nleak = \"1/m\"\nduration = \"1m\"".into(),
             "against every client at its first request"),
            (with("signals = [\"handshake_failed\"]\nby = \"principal\""), "come without a request"),
            ("signals = [\"no_route\"]\ncapacity = 900000\nleak = \"1/d\"\nduration = \"1m\"".into(),
             "more than 400 days"),
            ("signals = [\"no_route\"]\ncapacity = 900\ndistinct = \"path\"\nleak = \"1/s\"\nduration = \"1m\"".into(),
             "counted up to 500"),
            ("signals = [\"no_route\"]\ncapacity = 9\nleak = \"1/s\"\nduration = \"90d\"".into(),
             "longer than the longest"),
        ] {
            let mistakes = scenario(&lines).expect_err(&lines);
            assert!(mistakes.contains(what) && mistakes.contains("edged.toml:"), "{lines}\n{mistakes}");
        }
    }

    #[test]
    fn what_has_a_source_or_many_is_not_doubted() {
        for lines in [
            "signals = [\"request_limit\"]\nstep = \"429\"\n\
             [[limit]]\nname = \"b\"\nby = [\"source\", \"host\"]\nrate = \"1/s\"",
            "signals = [\"canary_key\", \"not_found\"]",
            "signals = [\"decoy_path\"]\nby = \"fingerprint\"",
        ] {
            let (_, warnings) = scenario(&with(lines)).expect(lines);
            assert_eq!(warnings, "", "{lines}");
        }
    }

    #[test]
    fn what_is_doubtful_is_told() {
        for (lines, what) in [
            (
                "signals = [\"no_route\"]\ncapacity = 0\nleak = \"1/m\"\nduration = \"1m\"".into(),
                "a single 'no_route' is a verdict",
            ),
            (
                with("signals = [\"credential_invalid\"]\nstep = \"403\""),
                "'brute-force' does before it",
            ),
            (
                "signals = [\"not_found\"]\npaths = [\"/\"]\ncapacity = 0\nleak = \"1/m\"\nduration = \"1m\"".into(),
                "a single 'not_found' is a verdict",
            ),
            (with("signals = [\"login_failed\"]\nby = \"account\""), "no route is a login"),
            (with("signals = [\"canary_key\"]\nby = \"fingerprint\""), "no canary is laid out"),
            (
                with("signals = [\"decoy_path\"]\nby = \"fingerprint\"\n[verdicts]\ndecoys = []"),
                "no path is a decoy",
            ),
            (
                with("signals = [\"source_rate\"]\nstep = \"403\"\n[limits]\nper_source = \"off\""),
                "no limit refuses so",
            ),
            (with("signals = [\"request_limit\"]\nstep = \"403\""), "no limit refuses so"),
            (
                "signals = [\"login_failed\"]\ncapacity = 0\nleak = \"1/h\"\nduration = \"1h\"".into(),
                "a single 'login_failed' is a verdict",
            ),
            (
                "signals = [\"served\"]\ndistinct = \"path\"\ncapacity = 5\nleak = \"1/h\"\nduration = \"1h\"".into(),
                "'a' speaks against whoever makes 60 requests in a minute",
            ),
            (
                "signals = [\"served\"]\ncapacity = 1\nleak = \"1/d\"\nstep = \"ban\"\nduration = \"1h\"".into(),
                "'a' speaks against whoever makes 60 requests in a minute",
            ),
            (
                "signals = [\"served\"]\ncapacity = 5\nleak = \"1/m\"\nstep = \"429\"\nduration = \"10m\"".into(),
                "'a' speaks against whoever makes 60 requests in a minute",
            ),
            (
                with("signals = [\"credential_invalid\"]\nmethods = [\"GET\"]\nstep = \"403\""),
                "'brute-force' does before it",
            ),
            (
                "signals = [\"login_failed\"]\ncapacity = 3\nleak = \"1/h\"\nstep = \"403\"\nduration = \"1h\"".into(),
                "'login-source' never speaks: 'a' does before it",
            ),
        ] {
            let warnings = scenario(&lines).expect(&lines).1;
            assert!(warnings.contains(what), "{lines}\n{warnings}");
        }
    }

    #[test]
    fn paths_below_which_all_routes_lie_are_those_of_all_requests() {
        let own = "\n[[scenario]]\nname = \"a\"\nsignals = [\"served\"]\npaths = [\"/api\"]\n\
                   capacity = 5\nleak = \"1/m\"\nstep = \"403\"\nduration = \"10m\"\n";
        let told = |path: &str| {
            let text = MINIMAL.replace("path = \"/\"", &format!("path = \"{path}\"")) + own;
            parse(Path::new("edged.toml"), &text).unwrap().1.to_string()
        };
        assert!(told("/api/v1").contains("'a' speaks against whoever makes 60 requests"));
        assert!(told("/api").contains("'a' speaks against"));
        assert_eq!(told("/"), "");
        assert!(!told("/apis").contains("'a' speaks against"));
    }

    #[test]
    fn what_no_route_makes_a_signal_of_is_told_with_its_line() {
        let login = "[[route]]\npath = \"/login\"\nmethods = [\"POST\"]\nauth = \"none\"\nupstream = \"api\"\n\
                     login = { account = \"json:user\" }\n";
        let told = |path: &str, auth: &str, lines: &str| {
            let text = MINIMAL.replace("path = \"/\"", &format!("path = \"{path}\""));
            let text = text.replace("auth = \"key\"", &format!("auth = \"{auth}\""));
            let text = format!("{text}{login}[[scenario]]\nname = \"a\"\n{}\n", with(lines));
            parse(Path::new("edged.toml"), &text).expect(lines).1.to_string()
        };
        let no_route = "'a' never speaks: no route that makes its signals is at these paths";
        let unasked = "nobody but who shows a key unasked";
        let logins = "'a' refuses no 'not_found': a verdict on a library holds for logins alone";
        for (path, auth, lines, what) in [
            ("/api", "key", "signals = [\"not_found\"]\npaths = [\"/search\"]", no_route),
            ("/api", "key", "signals = [\"not_found\"]\npaths = [\"/apis\", \"/ap\"]", no_route),
            ("/{a}/x", "key", "signals = [\"not_found\"]\npaths = [\"/a/y\"]", no_route),
            (
                "/",
                "key",
                "signals = [\"login_failed\"]\npaths = [\"/api\"]\nstep = \"observe\"",
                no_route,
            ),
            ("/", "none", "signals = [\"not_found\"]\nby = \"principal\"", unasked),
            (
                "/",
                "none",
                "signals = [\"not_found\"]\nproven = true\nby = \"fingerprint\"",
                unasked,
            ),
            ("/", "key", "signals = [\"not_found\"]\nby = \"ja4\"", logins),
            ("/", "key", "signals = [\"login_failed\", \"not_found\"]\nby = \"ja4\"", logins),
        ] {
            let warnings = told(path, auth, lines);
            assert!(
                warnings.contains(what) && warnings.contains("edged.toml:3"),
                "{lines}\n{warnings}"
            );
        }
        for (path, auth, lines) in [
            ("/api", "key", "signals = [\"not_found\"]\npaths = [\"/api/v1\"]"),
            ("/api/v1", "key", "signals = [\"not_found\"]\npaths = [\"/api\"]"),
            ("/{a}/x", "key", "signals = [\"not_found\"]\npaths = [\"/b\"]"),
            ("/api", "key", "signals = [\"not_found\", \"no_route\"]\npaths = [\"/search\"]"),
            (
                "/api",
                "key",
                "signals = [\"login_failed\"]\npaths = [\"/login\"]\nstep = \"observe\"",
            ),
            ("/", "key", "signals = [\"not_found\"]\nby = \"principal\""),
            ("/", "none", "signals = [\"not_found\"]\nproven = false\nby = \"fingerprint\""),
            ("/", "key", "signals = [\"login_failed\"]\nmethods = [\"POST\"]\nby = \"ja4\""),
            ("/", "key", "signals = [\"not_found\"]\nby = \"ja4\"\nstep = \"observe\""),
        ] {
            assert_eq!(told(path, auth, lines), "", "{lines}");
        }
    }

    #[test]
    fn what_an_ordinary_client_never_does_may_be_a_verdict_at_once() {
        let minimal = MINIMAL.replace("path = \"/\"", "path = \"/api\"");
        let is_read = |lines: &str| {
            let own = format!(
                "\n[[scenario]]\nname = \"a\"\nsignals = [\"served\"]\npaths = [\"/api\"]\n\
                 capacity = 0\nleak = \"1/m\"\nstep = \"403\"\nduration = \"10m\"\n{lines}\n"
            );
            parse(Path::new("edged.toml"), &(minimal.clone() + &own)).is_ok()
        };
        for lines in ["methods = [\"DELETE\"]", "statuses = [500]"] {
            assert!(is_read(lines), "{lines}");
        }
        for lines in ["", "methods = [\"DELETE\", \"GET\"]", "statuses = [200]"] {
            assert!(!is_read(lines), "{lines}");
        }
    }
}
