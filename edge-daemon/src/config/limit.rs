//! Reads `[limits]` and `[[limit]]`: how many requests, whose, and how they are counted.

mod sense;

use edge_common::Reason;
use edge_policy::{
    limit::{
        Only, Part, Spec,
        meter::{Bucket, COUNT_MAX, Meter, SLIDING_MAX, Window},
    },
    place::Place,
    rate,
};
use http::HeaderName;
use toml::de::DeTable;

use super::{
    reader::{Item, Notes, Table},
    route,
    sections::some_of,
    settings::{Route, Settings},
    whole,
};

/// Every limit, in the order in which requests are charged: those of all clients together come last,
/// so that they are charged only by those who may.
///
/// Apart from these, that of TLS handshakes, and those of a source that several share.
pub(super) fn limits(document: &Table<'_>) -> (Vec<Spec>, Spec, [Spec; 2]) {
    let own = document.tables("limit", limit);
    let ([source, key, global, handshakes], times) =
        document.table("limits", |table| (usual(table), shared(table)));
    // Without a limit for each source proofs would cost without end where many may hide.
    let shared = [
        ("shared_requests", &source, times[0], bucket(PER_SOURCE)),
        ("shared_handshakes", &handshakes, times[1], None),
    ];
    let shared = shared.map(|(name, of, times, usual)| Spec {
        name: name.into(),
        meter: times.and_then(|times| Some(of.meter.or(usual)?.times(times))),
        // Whoever it is that it refuses, it may be others who used it up.
        reason: Reason::GlobalRate,
        keys_max: of.keys_max.min(SHARED_MAX),
        ..of.clone()
    });
    let (all, some): (Vec<_>, Vec<_>) = own.into_iter().partition(|spec| spec.by.is_empty());
    let limits = [source, key].into_iter().chain(some).chain(all).chain([global]).collect();
    (limits, handshakes, shared)
}

/// How many times as much as one client may do those do together who share a source: requests, and TLS
/// handshakes. `None` is without end.
fn shared(table: &Table<'_>) -> [Option<u64>; 2] {
    let times = |key, usual| {
        table.or(key, Some(usual), |item| match item.is_text() {
            true => item.choice(&[("off", None)]),
            false => item.number(1, 100_000).map(Some),
        })
    };
    [times("shared_requests", 50), times("shared_handshakes", 10)]
}

/// The limits that every edge has, each a token bucket.
fn usual(table: &Table<'_>) -> [Spec; 4] {
    let room = table.or("keys_max", KEYS_MAX, keys_max);
    let rule = |key: &'static str, by: &[Part], usual: (u64, u64, u64), reason| Spec {
        name: key.into(),
        by: by.to_vec(),
        only: Only::default(),
        meter: table.or(key, bucket(usual), simple),
        tiers: Vec::new(),
        keys_max: if by.is_empty() { 1 } else { room },
        shadow: false,
        fleet: false,
        persist: false,
        reason,
    };
    [
        rule("per_source", &[Part::Source], PER_SOURCE, Reason::SourceRate),
        rule("per_key", &[Part::Key], (6_000, 60, 500), Reason::KeyRate),
        rule("global", &[], (10_000, 1, 20_000), Reason::GlobalRate),
        rule("handshakes", &[Part::Source], (100, 1, 200), Reason::HandshakeRate),
    ]
}

/// So many in so many seconds, and at once.
fn bucket((count, period_s, burst): (u64, u64, u64)) -> Option<Meter> {
    Bucket::new(count, period_s * SECOND_NS, burst).map(Meter::TokenBucket)
}

/// "600/m", "off", or `{ rate = "600/m", burst = 100 }`.
fn simple(item: &Item<'_>) -> Option<Option<Meter>> {
    if item.is_text() {
        return number(item, Algorithm::TokenBucket, None);
    }
    let read = item.inline(|table| {
        let burst = table.or("burst", None, |item| item.number(1, COUNT_MAX).map(Some));
        table.need("rate", "\"600/m\"", None, |item| {
            number(item, Algorithm::TokenBucket, burst).map(Some)
        })
    });
    read.unwrap_or_else(|| {
        item.wrong_kind("a rate: \"600/m\", or { rate = \"600/m\", burst = 100 }")
    })
}

/// One limit of the operator's.
fn limit(table: &Table<'_>) -> Spec {
    let name = table.need("name", "\"search\"", String::new(), |item| {
        item.word(64, "letters, digits and '-_.'", |c| {
            c.is_ascii_alphanumeric() || "-_.".contains(c)
        })
    });
    let by = table.need("by", "[\"source\"]", vec![Part::Source], |item| {
        item.list("an array of what is counted together: [\"user\", \"route\"]", part)
    });
    let algorithm = table.or("algorithm", Algorithm::TokenBucket, |item| item.choice(&ALGORITHMS));
    let burst = match algorithm {
        Algorithm::TokenBucket => "burst",
        Algorithm::LeakyBucket => "queue",
        _ => "",
    };
    let burst = match burst {
        "" => None,
        key => table.or(key, None, |item| item.number(1, COUNT_MAX).map(Some)),
    };
    let rate = if algorithm == Algorithm::Concurrent { "max" } else { "rate" };
    let example = if algorithm == Algorithm::Concurrent { "10" } else { "\"600/m\"" };
    let meter = table.need(rate, example, None, |item| number(item, algorithm, burst));
    let tiers = table.or("tiers", Vec::new(), |item| {
        item.each("a table of rates: { pro = \"10000/d\", enterprise = \"off\" }", |tier, item| {
            Some((tier.to_owned(), number(item, algorithm, burst)?))
        })
    });
    let is_quota = |meter: &Meter| match meter {
        Meter::FixedWindow { window: Window::Month, .. } => true,
        Meter::FixedWindow { window: Window::Ns(ns), .. } => *ns >= 24 * 3_600 * SECOND_NS,
        _ => false,
    };
    let meters = || meter.iter().chain(tiers.iter().filter_map(|(_, meter)| meter.as_ref()));
    let lasts = meters().any(is_quota);
    let persist = table.or("persist", lasts, |item| match (item.flag()?, algorithm) {
        (true, Algorithm::FixedWindow) => Some(true),
        (true, _) => item.wrong("only a fixed window outlives a restart", "persist = false"),
        (false, _) => Some(false),
    });
    let keys_max =
        table.or("keys_max", KEYS_MAX, keys_max).min(if by.is_empty() { 1 } else { usize::MAX });
    // Who is counted with others may be refused for what they did.
    let is_own = |part: &Part| matches!(part, Part::Source | Part::User | Part::Key);
    let reason = if by.iter().any(is_own) { Reason::RequestLimit } else { Reason::GlobalRate };
    Spec {
        name: name.into(),
        only: Only {
            routes: table.or("routes", Vec::new(), |item| {
                some_of(item, "an array of routes' paths: [\"/search\"]", |item| {
                    item.text("a route's path: \"/search\"").map(str::to_owned)
                })
            }),
            methods: table.or("methods", Vec::new(), |item| {
                some_of(item, "an array of methods: [\"POST\"]", route::method)
            }),
        },
        shadow: table.or("shadow", false, Item::flag),
        fleet: table.or("scope", false, |item| item.choice(&[("node", false), ("fleet", true)])),
        by,
        meter,
        tiers,
        keys_max,
        persist,
        reason,
    }
}

/// What no single key can tell: names that clash, rules that speak of nothing.
pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let own = |spec: &&Spec| !USUAL.contains(&&*spec.name);
    let tables = document.get("limit").and_then(|tables| tables.get_ref().as_array());
    let named = |n: usize| whole::place_nth(document, "limit", n, "name");
    let mut names = USUAL.map(str::to_owned).to_vec();
    for n in 0..tables.map_or(0, |tables| tables.len()) {
        let name =
            tables.and_then(|tables| tables.get(n)?.get_ref().get("name")?.get_ref().as_str());
        let Some(name) = name else { continue };
        if names.iter().any(|other| other == name) {
            notes.wrong(named(n), format!("two limits are called '{name}'"), "rename one");
        }
        names.push(name.to_owned());
        let Some(spec) = settings.limits.iter().filter(own).find(|spec| &*spec.name == name) else {
            continue;
        };
        for path in &spec.only.routes {
            let is_known = settings.routes.iter().any(|route| route.at.path.as_str() == path);
            if !is_known && notes.is_clean() {
                let help = "a limit names routes by their paths, as they are written there";
                let span = whole::place_nth(document, "limit", n, "routes");
                notes.wrong(span, format!("no route has the path '{path}'"), help);
            }
        }
        let covered = |route: &&Route| {
            let named = |path: &String| path == route.at.path.as_str();
            spec.only.routes.is_empty() || spec.only.routes.iter().any(named)
        };
        let mut methods =
            settings.routes.iter().filter(covered).flat_map(|route| &route.at.methods);
        if !spec.only.methods.is_empty() && !methods.any(|m| spec.only.methods.contains(m)) {
            let span = whole::place_nth(document, "limit", n, "methods");
            notes.doubt(span, format!("'{name}' speaks of no request"), "no route takes these");
        }
        if spec.meter.is_none() && spec.tiers.iter().all(|(_, meter)| meter.is_none()) {
            notes.doubt(named(n), format!("'{name}' admits everything"), "leave it out");
        } else if notes.is_clean() {
            sense::check_limit((settings, spec), n, document, notes);
        }
    }
    if notes.is_clean() {
        sense::check_costs(settings, document, notes);
    }
}

/// Sources that several share and that are told apart: there are fewer of them than clients.
const SHARED_MAX: usize = 32_768;

/// The names of the limits under `[limits]`.
const USUAL: [&str; 6] =
    ["per_source", "per_key", "global", "handshakes", "shared_requests", "shared_handshakes"];

/// How a limit counts, in the configuration's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    FixedWindow,
    SlidingWindow,
    TokenBucket,
    LeakyBucket,
    Concurrent,
}

const ALGORITHMS: [(&str, Algorithm); 5] = [
    ("token_bucket", Algorithm::TokenBucket),
    ("leaky_bucket", Algorithm::LeakyBucket),
    ("fixed_window", Algorithm::FixedWindow),
    ("sliding_window", Algorithm::SlidingWindow),
    ("concurrent", Algorithm::Concurrent),
];

/// The number of a limit; "off" admits all. `burst` is by default the rate's own count.
#[expect(clippy::option_option, reason = "a mistake, no limit, or a limit")]
fn number(item: &Item<'_>, algorithm: Algorithm, burst: Option<u64>) -> Option<Option<Meter>> {
    if algorithm == Algorithm::Concurrent && item.is_number() {
        let limit = item.number(1, COUNT_MAX)?;
        return Some(Some(Meter::Concurrent { limit }));
    }
    let written = item.text("a rate: \"600/m\"")?;
    if written == "off" {
        return Some(None);
    }
    if algorithm == Algorithm::Concurrent {
        return item.wrong_kind("a number of requests at once: 10, or \"off\"");
    }
    let (count, window) = match rate::window(written) {
        Ok(read) => read,
        Err(fault) => return item.wrong(format!("'{written}' {fault}"), RATES),
    };
    let meter = match (algorithm, window) {
        (Algorithm::FixedWindow, window) if count <= COUNT_MAX => {
            Some(Meter::FixedWindow { limit: count, window })
        }
        (Algorithm::SlidingWindow, Window::Ns(window_ns)) if count <= SLIDING_MAX => {
            Some(Meter::SlidingWindow { limit: count, window_ns })
        }
        (Algorithm::TokenBucket | Algorithm::LeakyBucket, Window::Ns(period_ns)) => {
            let bucket = Bucket::new(count, period_ns, burst.unwrap_or(count));
            bucket.map(if algorithm == Algorithm::TokenBucket {
                Meter::TokenBucket
            } else {
                Meter::LeakyBucket
            })
        }
        _ => None,
    };
    if let Some(Meter::LeakyBucket(bucket)) = meter
        && bucket.fill_ns() > QUEUE_NS_MAX
    {
        let fits =
            u128::from(QUEUE_NS_MAX) * u128::from(bucket.size()) / u128::from(bucket.fill_ns());
        return item.wrong(
            format!("the last in the queue would wait {} s", bucket.fill_ns() / SECOND_NS),
            format!("60 s at most: queue = {}, or a higher rate", fits.max(1)),
        );
    }
    match (meter, window) {
        (Some(meter), _) => Some(Some(meter)),
        (None, Window::Month) => {
            item.wrong("only a fixed window knows months", "algorithm = \"fixed_window\"")
        }
        (None, Window::Ns(_)) => item.wrong(
            format!("'{written}' is beyond what is counted"),
            "at most one a nanosecond, and a burst within 400 days",
        ),
    }
}

fn part(item: &Item<'_>) -> Option<Part> {
    let written = item.text(PARTS)?;
    let named = |name: &str, what: &str| {
        let fault = format!("'{written}' names no {what}");
        if name.is_empty() { item.wrong(fault, PARTS) } else { Some(name.to_owned()) }
    };
    match written.split_once(':') {
        Some(("header", name)) => match HeaderName::try_from(name) {
            Ok(name) => Some(Part::Header(name)),
            Err(_) => item.wrong(format!("'{name}' is no header's name"), "\"header:x-tenant\""),
        },
        Some(("claim", name)) => named(name, "claim").map(Part::Claim),
        Some(_) => item.wrong(format!("nothing is counted by '{written}'"), PARTS),
        None => item.choice(&PLAIN_PARTS).cloned(),
    }
}

fn keys_max(item: &Item<'_>) -> Option<usize> {
    item.number(1, 1 << 26).and_then(|number| usize::try_from(number).ok())
}

/// The parts that need no name, in the configuration's words.
const PLAIN_PARTS: [(&str, &Part); 10] = [
    ("source", &Part::Source),
    ("user", &Part::User),
    ("key", &Part::Key),
    ("tier", &Part::Tier),
    ("route", &Part::Route),
    ("method", &Part::Method),
    ("host", &Part::Host),
    ("ja4", &Part::Ja4),
    ("country", &Part::Place(Place::Country)),
    ("asn", &Part::Place(Place::Asn)),
];
const RATES: &str = "\"600/m\", \"100/15m\", \"10000/d\", \"100000/month\", or \"off\"";
const PARTS: &str =
    "source, user, key, tier, route, method, host, ja4, country, asn, header:NAME or claim:NAME";
/// Keys of a limit that are told apart: 16 bytes each, and an eighth more.
const KEYS_MAX: usize = 262_144;
const SECOND_NS: u64 = 1_000_000_000;
/// `per_source` as shipped.
const PER_SOURCE: (u64, u64, u64) = (600, 60, 100);

/// A request that waits holds memory and a place among those at work.
const QUEUE_NS_MAX: u64 = 60 * SECOND_NS;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    const MINIMAL: &str = include_str!("../../../config/minimal.toml");

    /// A limit with these lines, besides a name and what it counts by.
    fn limit(lines: &str) -> Result<(Spec, String), String> {
        let text = format!("{MINIMAL}\n[[limit]]\nname = \"a\"\nby = [\"source\"]\n{lines}\n");
        let read =
            parse(Path::new("edged.toml"), &text).map_err(|mistakes| mistakes.to_string())?;
        let spec = read.0.limits.into_iter().find(|spec| &*spec.name == "a");
        Ok((spec.expect("it is there"), read.1.to_string()))
    }

    #[test]
    fn each_algorithm_has_its_numbers() {
        let meter = |lines: &str| limit(lines).unwrap().0.meter;
        let bucket = |size| Bucket::new(5, SECOND_NS, size).unwrap();
        assert_eq!(meter("rate = \"5/s\""), Some(Meter::TokenBucket(bucket(5))));
        assert_eq!(meter("rate = \"5/s\"\nburst = 9"), Some(Meter::TokenBucket(bucket(9))));
        let leaky = "algorithm = \"leaky_bucket\"\nrate = \"5/s\"\nqueue = 9";
        assert_eq!(meter(leaky), Some(Meter::LeakyBucket(bucket(9))));
        let window_ns = 900 * SECOND_NS;
        let sliding = "algorithm = \"sliding_window\"\nrate = \"5/15m\"";
        assert_eq!(meter(sliding), Some(Meter::SlidingWindow { limit: 5, window_ns }));
        let fixed = "algorithm = \"fixed_window\"\nrate = \"5/month\"";
        assert_eq!(meter(fixed), Some(Meter::FixedWindow { limit: 5, window: Window::Month }));
        let concurrent = "algorithm = \"concurrent\"\nmax = 5\ntiers = { a = 9, b = \"off\" }";
        let read = limit(concurrent).unwrap().0;
        assert_eq!(read.meter, Some(Meter::Concurrent { limit: 5 }));
        let nine = Some(Meter::Concurrent { limit: 9 });
        assert_eq!(read.tiers, [("a".to_owned(), nine), ("b".to_owned(), None)]);
    }

    #[test]
    fn nobody_waits_for_more_than_a_minute() {
        let leaky = |lines: &str| limit(&format!("algorithm = \"leaky_bucket\"\n{lines}"));
        assert!(leaky("rate = \"60/m\"").is_ok() && leaky("rate = \"60/h\"\nqueue = 1").is_ok());
        let fault = leaky("rate = \"60/h\"\nqueue = 2").unwrap_err();
        assert!(fault.contains("wait 120 s") && fault.contains("queue = 1,"), "{fault}");
        assert!(leaky("rate = \"60/h\"").unwrap_err().contains("wait 3600 s"));
        let fault = leaky("rate = \"1000000/s\"\nqueue = 1000000000").unwrap_err();
        assert!(fault.contains("queue = 60000000,"), "{fault}");
    }

    #[test]
    fn a_quota_of_a_day_outlives_a_restart_unless_it_shall_not() {
        let persists = |lines: &str| {
            limit(&format!("algorithm = \"fixed_window\"\n{lines}")).unwrap().0.persist
        };
        assert!(persists("rate = \"5/d\"") && persists("rate = \"5/m\"\npersist = true"));
        assert!(!persists("rate = \"5/h\"") && !persists("rate = \"5/d\"\npersist = false"));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for (lines, what) in [
            ("", "missing key 'rate'"),
            ("rate = \"5\"", "is not a rate"),
            ("rate = \"5/month\"", "only a fixed window knows months"),
            ("rate = \"5/s\"\nqueue = 9", "unknown key 'queue'"),
            ("rate = \"5000000000/s\"", "beyond what is counted"),
            ("rate = \"5/s\"\npersist = true", "only a fixed window outlives"),
            ("algorithm = \"concurrent\"\nmax = \"5/s\"", "'max' is a string"),
            ("algorithm = \"concurrent\"\nrate = \"5/s\"", "missing key 'max'"),
            ("rate = \"5/s\"\nroutes = [\"/nowhere\"]", "no route has the path '/nowhere'"),
            ("rate = \"5/s\"\ntiers = { a = \"x\" }", "'x' is not a rate"),
        ] {
            let mistakes = limit(lines).expect_err(lines);
            assert!(mistakes.contains(what), "{lines}: {mistakes}");
        }
        let twice = "rate = \"5/s\"\n[[limit]]\nname = \"a\"\nby = []\nrate = \"5/s\"";
        assert!(limit(twice).unwrap_err().contains("two limits are called 'a'"));
        let usual = "rate = \"5/s\"\n[[limit]]\nname = \"global\"\nby = []\nrate = \"5/s\"";
        assert!(limit(usual).unwrap_err().contains("two limits are called 'global'"));
        for by in ["nobody", "header:", "header:a b", "claim:", "x:y"] {
            let lines =
                format!("rate = \"1/s\"\n[[limit]]\nname = \"b\"\nby = [\"{by}\"]\nrate = \"1/s\"");
            assert!(limit(&lines).is_err(), "{by}");
        }
        assert!(limit("rate = \"off\"").unwrap().1.contains("admits everything"));
        let never = limit("rate = \"5/s\"\nmethods = [\"OPTIONS\"]").unwrap().1;
        assert!(never.contains("speaks of no request"), "{never}");
    }

    #[test]
    fn those_who_share_a_source_have_so_many_times_what_one_has() {
        let shared = |keys: &str| {
            let read = parse(Path::new("edged.toml"), &format!("{MINIMAL}\n{keys}\n"));
            read.unwrap_or_else(|mistakes| panic!("{mistakes}")).0.shared
        };
        let bucket = |count, s, burst| {
            Some(Meter::TokenBucket(Bucket::new(count, s * SECOND_NS, burst).unwrap()))
        };
        let usual = shared("");
        assert_eq!(usual[0].meter, bucket(30_000, 60, 5_000));
        assert_eq!(usual[1].meter, bucket(1_000, 1, 2_000));
        assert!(usual.iter().all(|spec| spec.reason == Reason::GlobalRate));
        let own = shared("[limits]\nper_source = \"off\"\nshared_handshakes = 3");
        // There are proofs to bound even so.
        assert_eq!((own[0].meter, own[1].meter), (bucket(30_000, 60, 5_000), bucket(300, 1, 600)));
        let off = shared("[limits]\nshared_requests = \"off\"\nhandshakes = \"off\"");
        assert_eq!((off[0].meter, off[1].meter), (None, None));
    }

    #[test]
    fn who_is_counted_with_others_is_not_to_blame() {
        for (by, reason) in [
            ("[\"source\"]", Reason::RequestLimit),
            ("[\"route\", \"user\"]", Reason::RequestLimit),
            ("[\"header:x-tenant\", \"key\"]", Reason::RequestLimit),
            ("[]", Reason::GlobalRate),
            ("[\"route\", \"method\", \"host\", \"ja4\"]", Reason::GlobalRate),
            ("[\"tier\"]", Reason::GlobalRate),
            ("[\"header:x-tenant\"]", Reason::GlobalRate),
            ("[\"claim:org\"]", Reason::GlobalRate),
        ] {
            let other = format!("[[limit]]\nname = \"b\"\nby = {by}\nrate = \"1/s\"");
            let text = format!("{MINIMAL}\n{other}\n");
            let limits = parse(Path::new("edged.toml"), &text).expect(by).0.limits;
            let own = limits.iter().find(|spec| &*spec.name == "b").expect(by);
            assert_eq!(own.reason, reason, "{by}");
        }
    }

    #[test]
    fn what_changes_nothing_binds_nobody_or_is_never_paid_is_told() {
        let route = |cost: u64, auth: &str| {
            format!(
                "[[route]]\npath = \"/x\"\nmethods = [\"GET\"]\nauth = \"{auth}\"\nupstream = \"api\"\n\
                 cost = {cost}\n"
            )
        };
        let other =
            |by: &str, lines: &str| format!("[[limit]]\nname = \"b\"\nby = {by}\n{lines}\n");
        let told = |lines: &str| limit(lines).expect(lines).1;
        let moot = |own: &str, its: &str| {
            let told = told(&format!("{own}\n{}", other("[\"source\"]", its)));
            let is_moot = |name: &str| told.contains(&format!("'{name}' changes nothing"));
            (is_moot("a"), is_moot("b"))
        };
        let rate = "rate = \"5/h\"\n";
        assert_eq!(moot(rate, rate), (false, true));
        assert_eq!(moot(rate, "rate = \"9/h\""), (false, true));
        assert_eq!(moot("rate = \"9/h\"", rate), (true, false));
        assert_eq!(moot("rate = \"9/h\"\nburst = 2", rate), (false, false));
        assert_eq!(
            moot(rate, "rate = \"5/h\"\ntiers = { a = \"6/h\", b = \"off\" }"),
            (false, true)
        );
        // An early one counts more than a late one, and of two late ones that is stricter which has no more tiers.
        let tiers = |tiers: &str| format!("rate = \"5/h\"\ntiers = {{ {tiers} }}");
        assert_eq!(moot(rate, &tiers("a = \"4/h\"")), (false, false));
        assert_eq!(moot(&tiers("a = \"5/h\""), &tiers("a = \"4/h\"")), (true, false));
        let of_two = tiers("a = \"4/h\", b = \"4/h\"");
        assert_eq!(moot(&tiers("a = \"5/h\""), &of_two), (false, false));
        let mixed = "rate = \"5/h\"\ntiers = { a = \"4/h\", b = \"6/h\" }";
        assert_eq!(moot(rate, mixed), (false, false));
        for lines in ["shadow = true", "algorithm = \"sliding_window\""] {
            assert_eq!(moot(rate, &format!("{rate}{lines}")), (false, false), "{lines}");
        }
        // What counts more with each request fills no later.
        for (own, its, is) in [
            ("", "methods = [\"GET\"]", (false, true)),
            ("methods = [\"GET\"]", "", (true, false)),
            ("", "routes = [\"/\"]", (false, true)),
            (
                "methods = [\"GET\", \"PUT\"]",
                "methods = [\"GET\"]\nroutes = [\"/\"]",
                (false, true),
            ),
            ("methods = [\"PUT\"]", "methods = [\"GET\"]", (false, false)),
            ("methods = [\"GET\"]", "routes = [\"/\"]", (false, false)),
        ] {
            let found = moot(&format!("{rate}{own}"), &format!("{rate}{its}"));
            assert_eq!(found, is, "{own} {its}");
        }
        let finer = |by: &str, lines: &str| {
            told(&format!("{rate}{}", other(by, lines))).contains("'b' changes nothing")
        };
        assert!(finer("[\"route\", \"source\"]", "rate = \"9/h\"\nroutes = [\"/\"]"));
        assert!(finer("[\"source\", \"user\"]", rate));
        assert!(!finer("[\"source\", \"route\"]", "rate = \"4/h\""));
        assert!(!finer("[\"user\"]", "rate = \"9/h\""));
        // Its refusals would be nobody's fault.
        let all = "rate = \"9/h\"\n[[limit]]\nname = \"all\"\nby = []\nrate = \"1/h\"";
        assert!(!told(all).contains("'a' changes nothing"));
        // Only the one that does not shall remember is there after a restart.
        let quota = "algorithm = \"fixed_window\"\nrate = \"5/d\"";
        assert_eq!(moot(&format!("{quota}\npersist = false"), quota), (true, false));
        // The usual one for sources is a token bucket of 600/m that holds 100.
        assert!(told("rate = \"600/m\"\nburst = 100").contains("'per_source' is never less"));
        assert!(!told("rate = \"600/m\"\nburst = 99").contains("never less strict"));

        for (by, auth, what) in [
            ("[\"user\", \"route\"]", "none", "'b' binds nobody"),
            ("[\"key\"]", "none", "'b' binds nobody"),
            ("[\"tier\"]", "none", "'b' counts all who show nothing together"),
            ("[\"claim:org\"]", "none", "'b' counts all who show nothing together"),
            ("[\"user\"]", "key", ""),
            ("[\"key\"]", "key", ""),
            ("[\"source\"]", "none", ""),
        ] {
            let limits = other(by, "rate = \"1/h\"\nroutes = [\"/x\"]");
            let told = told(&format!("{rate}{limits}{}", route(1, auth)));
            assert!(told.contains(what), "{by}: {told}");
            assert_eq!(told.contains("who it is"), !what.is_empty(), "{by}: {told}");
        }
        let costs = |cost, lines: &str| {
            let told = told(&format!("{rate}{}{}", other("[]", lines), route(cost, "none")));
            ["a", "b"].map(|n| told.contains(&format!("'{n}' can never admit what costs {cost}")))
        };
        assert_eq!(costs(5, "rate = \"7/h\""), [false, false]);
        assert_eq!(costs(6, "rate = \"7/h\""), [true, false]);
        assert_eq!(costs(8, "rate = \"7/h\""), [true, true]);
        assert_eq!(costs(8, "rate = \"9/h\"\ntiers = { a = \"7/h\" }"), [true, true]);
        assert_eq!(costs(8, "algorithm = \"concurrent\"\nmax = 7"), [true, false]);
        assert_eq!(costs(8, "rate = \"7/h\"\nmethods = [\"POST\"]"), [true, false]);
        assert_eq!(costs(8, "rate = \"7/h\"\nshadow = true"), [true, false]);
        let shared_of = |rate: &str, cost| {
            let limits = other("[]", &format!("{rate}\nscope = \"fleet\""));
            let fleet = "[fleet]\nserver = \"redis://h\"\nsecret = \"env:FLEET\"\nnode = \"a\"\nnodes = 3\n";
            told(&format!("rate = \"90/s\"\n{limits}{}{fleet}", route(cost, "none")))
        };
        let shared = |cost| shared_of("rate = \"10/s\"", cost);
        let told = "'b' may never admit what costs 4: each of 3 edges has its part of it";
        assert!(shared(4).contains(told), "{}", shared(4));
        assert!(!shared(3).contains("never admit"), "{}", shared(3));
        // As many times the cost as there are edges.
        let even = shared_of("rate = \"10/s\"\nburst = 12", 4);
        assert!(!even.contains("never admit"), "{even}");
    }
}
