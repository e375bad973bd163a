//! What the engine must and must not do to a client.

use http::Method;
use proptest::prelude::*;

use super::*;
use crate::place::{Place, Places};
use edge_common::Reason;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

fn scenario(name: &str, kinds: &[(Kind, u16)]) -> Scenario {
    let mut filter = Filter::default();
    for (kind, weight) in kinds {
        filter.weights[kind.index()] = *weight;
    }
    Scenario {
        name: name.into(),
        filter,
        by: By::Source,
        distinct: None,
        capacity: 5,
        interval_ns: 10 * SECOND,
        step: Step::Ban,
        up_to: Step::Ban,
        duration_ns: 10 * MINUTE,
        groups_max: 1000,
    }
}

fn rules(scenarios: Vec<Scenario>) -> Rules {
    Rules {
        scenarios,
        factor: 4,
        longest_ns: 60 * MINUTE,
        jitter: 0,
        forget_after_ns: 24 * 60 * MINUTE,
        culprits_max: 1000,
    }
}

const GUESS: Kind = Kind::Refused(Reason::CredentialInvalid);

fn brute_force() -> Scenario {
    scenario("brute-force", &[(GUESS, 1)])
}

fn engine(scenarios: Vec<Scenario>) -> Engine {
    Engine::new(rules(scenarios), [7; 16])
}

fn source(number: u32) -> Source {
    Source::v4(number.to_be_bytes())
}

fn signal(number: u32, kind: Kind, at_ns: u64) -> Signal {
    Signal {
        kind,
        at_ns,
        address: source(number).into(),
        source: source(number),
        proof: Proof::Handshake,
        is_spoken_for: false,
        places: Places::default(),
        ja4: None,
        principal: None,
        account: None,
        is_led: false,
        request: None,
    }
}

fn asking(path: &str, number: u32, kind: Kind, at_ns: u64) -> Signal {
    let asked = Asked { path: path.into(), method: "GET".into(), status: 404, id: "r".into() };
    Signal { request: Some(Box::new(asked)), ..signal(number, kind, at_ns) }
}

fn judge(engine: &mut Engine, signal: &Signal) -> Vec<Verdict> {
    engine.judge(signal.clone(), false, |_| Facts::default())
}

/// Misbehaves at one moment until there is a verdict: after how many, and what.
fn until_judged(engine: &mut Engine, signal: &Signal) -> (usize, Verdict) {
    until_judged_as(engine, signal, (false, Facts::default()))
}

fn until_judged_as(
    engine: &mut Engine,
    signal: &Signal,
    (is_shared, facts): (bool, Facts),
) -> (usize, Verdict) {
    for count in 1..100 {
        if let Some(verdict) = engine.judge(signal.clone(), is_shared, |_| facts).pop() {
            return (count, verdict);
        }
    }
    panic!("no verdict");
}

#[test]
fn what_comes_beyond_the_capacity_is_a_verdict_with_its_evidence() {
    let mut engine = engine(vec![brute_force()]);
    let (count, verdict) = until_judged(&mut engine, &asking("/a", 1, GUESS, 0));
    assert_eq!((count, verdict.step, verdict.strikes), (6, Step::Ban, 1));
    assert_eq!(verdict.duration_ns, 10 * MINUTE);
    assert_eq!(verdict.culprit, Culprit::Source(source(1)));
    assert_eq!(verdict.evidence.len(), 6);
    assert_eq!(&*verdict.evidence[0].request.as_ref().unwrap().path, "/a");
    assert!(
        [1, 2]
            .iter()
            .all(|n| engine.levels(&Culprit::Source(source(*n)), source(*n), 0).is_empty())
    );
}

#[test]
fn a_bucket_leaks() {
    let mut engine = engine(vec![brute_force()]);
    for n in 0..100 {
        assert!(judge(&mut engine, &signal(1, GUESS, n * 10 * SECOND)).is_empty());
    }
    let (count, _) = until_judged(&mut engine, &signal(1, GUESS, 1000 * SECOND));
    assert_eq!(count, 6);
}

#[test]
fn while_a_ban_is_in_force_there_is_no_other() {
    let mut engine = engine(vec![brute_force()]);
    until_judged(&mut engine, &signal(1, GUESS, 0));
    for _ in 0..100 {
        assert!(judge(&mut engine, &signal(1, GUESS, 10 * MINUTE - 1)).is_empty());
    }
    let (_, verdict) = until_judged(&mut engine, &signal(1, GUESS, 10 * MINUTE));
    assert_eq!((verdict.strikes, verdict.duration_ns), (2, 40 * MINUTE));
    let (_, verdict) = until_judged(&mut engine, &signal(1, GUESS, 60 * MINUTE));
    assert_eq!((verdict.strikes, verdict.duration_ns), (3, 60 * MINUTE));
}

#[test]
fn strikes_are_forgotten_one_by_one() {
    let mut engine = engine(vec![brute_force()]);
    let culprit = Culprit::Source(source(1));
    let day = 24 * 60 * MINUTE;
    engine.restore(&culprit, 3, Step::Ban, MINUTE);
    let strikes = [0, MINUTE + day - 1, MINUTE + day, MINUTE + 2 * day, MINUTE + 9 * day];
    assert_eq!(strikes.map(|at| engine.strikes(&culprit, at)), [3, 3, 2, 1, 0]);
    // What ended before boot has been forgotten in part by then, and goes on to be.
    engine.restore(&culprit, 3, Step::Ban, -36 * 60 * i128::from(MINUTE));
    let strikes = [0, day / 2 - 1, day / 2, day, day + day / 2];
    assert_eq!(strikes.map(|at| engine.strikes(&culprit, at)), [2, 2, 1, 1, 0]);
    let (_, verdict) = until_judged(&mut engine, &signal(1, GUESS, day / 2));
    assert_eq!((verdict.strikes, verdict.duration_ns), (2, 40 * MINUTE));
}

#[test]
fn the_ladder_is_climbed_to_its_top() {
    let ladder = Scenario { step: Step::Delay, up_to: Step::Refuse, ..brute_force() };
    let mut engine = engine(vec![ladder]);
    let mut now = 0;
    let mut steps = Vec::new();
    for _ in 0..4 {
        let (_, verdict) = until_judged(&mut engine, &signal(1, GUESS, now));
        now += verdict.duration_ns;
        steps.push(verdict.step);
    }
    assert_eq!(steps, [Step::Delay, Step::Throttle, Step::Refuse, Step::Refuse]);
    assert_eq!(Step::Observe.climb(9, Step::Ban), Step::Observe);
}

#[test]
fn a_harsher_scenario_speaks_over_a_milder_verdict() {
    let throttle = Kind::Refused(Reason::Throttled);
    let milder = Scenario { step: Step::Throttle, up_to: Step::Throttle, ..brute_force() };
    let mut engine = engine(vec![milder, scenario("persistence", &[(throttle, 1)])]);
    assert_eq!(until_judged(&mut engine, &signal(1, GUESS, 0)).1.step, Step::Throttle);
    let (count, verdict) = until_judged(&mut engine, &signal(1, throttle, 1));
    assert_eq!((count, verdict.step, verdict.strikes), (6, Step::Ban, 2));
    // Of two at once, one speaks.
    let both = vec![Scenario { step: Step::Delay, ..brute_force() }, brute_force()];
    let mut engine = Engine::new(rules(both), [7; 16]);
    for _ in 0..5 {
        assert!(judge(&mut engine, &signal(1, GUESS, 0)).is_empty());
    }
    let verdicts = judge(&mut engine, &signal(1, GUESS, 0));
    assert_eq!(verdicts.iter().map(|v| v.step).collect::<Vec<_>>(), [Step::Ban]);
}

#[test]
fn what_does_not_differ_counts_once() {
    let distinct = Some(Distinct::Path);
    let scan = Scenario { distinct, ..scenario("scan", &[(Kind::NotFound, 1)]) };
    let mut engine = engine(vec![scan]);
    for _ in 0..100 {
        assert!(judge(&mut engine, &asking("/a", 1, Kind::NotFound, 0)).is_empty());
    }
    let ask = |n: usize| asking(&format!("/{n}"), 1, Kind::NotFound, 0);
    let over = (0..10).position(|n| !judge(&mut engine, &ask(n)).is_empty());
    assert_eq!(over, Some(4), "the sixth path, /a among them");
}

#[test]
fn a_filter_asks_for_all_that_it_names() {
    let mut filter = Filter { paths: vec!["/login".into()], ..Filter::default() };
    filter.weights[GUESS.index()] = 3;
    let weigh = |filter: &Filter, path| filter.weigh(&asking(path, 1, GUESS, 0));
    assert_eq!(weigh(&filter, "/login/x"), 3);
    assert_eq!(weigh(&filter, "/loginx"), 0);
    filter.statuses = vec![403];
    assert_eq!(weigh(&filter, "/login"), 0);
    filter.statuses = vec![403, 404];
    filter.methods = vec![http::Method::GET];
    assert_eq!(weigh(&filter, "/login"), 3);
    filter.proven = Some(true);
    assert_eq!(weigh(&filter, "/login"), 0);
    assert_eq!(filter.weigh(&signal(1, GUESS, 0)), 0);
}

#[test]
fn an_account_is_guarded_wherever_it_is_tried_from() {
    let by = By::Account;
    let step = Step::Throttle;
    let up_to = Step::Throttle;
    let login =
        Scenario { by, step, up_to, ..scenario("login-account", &[(Kind::LoginFailed, 1)]) };
    let mut engine = engine(vec![login]);
    let tried = |from, account: &str| Signal {
        account: Some(account.into()),
        ..signal(from, Kind::LoginFailed, 0)
    };
    let verdict = (0..6).find_map(|n| judge(&mut engine, &tried(n, "root")).pop()).unwrap();
    assert_eq!(verdict.culprit, Culprit::Account("root".into()));
    assert_eq!(verdict.evidence.len(), 6);
    assert!(judge(&mut engine, &tried(1, "guest")).is_empty());
}

#[test]
fn the_library_of_a_proxy_stands_for_nobody_but_beside_an_address() {
    let ja4 = crate::ja4::Ja4::parse("t13d1516h2_8daaf6152771_e5627efa2ab1");
    for is_spoken_for in [false, true] {
        let tried = Signal { ja4, is_spoken_for, ..signal(1, GUESS, 0) };
        assert_eq!(By::Ja4.culprit(&tried).is_some(), !is_spoken_for);
        let beside = ja4.map(|ja4| Culprit::Fingerprint(source(1), ja4));
        assert_eq!(By::Fingerprint.culprit(&tried), beside);
    }
}

#[test]
fn a_key_has_one_name_however_it_is_proved() {
    let named = |text: &str| text.parse::<Culprit>();
    assert_eq!(named("signature:k1"), named("key:k1"));
    assert_eq!(named("key:k1").map(|who| who.to_string()).as_deref(), Ok("key:k1"));
    assert!(named("signature:").is_err());
}

#[test]
fn nobody_makes_verdicts_on_others_longer_by_coming_again() {
    let ja4 = crate::ja4::Ja4::parse("t13d1516h2_8daaf6152771_e5627efa2ab1");
    let places = Places::find(|place| place.parse("NZ"));
    let step = Step::Delay;
    for (by, is_led, lengths) in [
        (By::Account, false, [10, 10, 10]),
        (By::Ja4, false, [10, 10, 10]),
        (By::Place(Place::Country), false, [10, 10, 10]),
        (By::Source, true, [10, 10, 10]),
        (By::Principal, true, [10, 10, 10]),
        (By::Source, false, [10, 40, 60]),
        (By::Principal, false, [10, 40, 60]),
    ] {
        let mut engine = engine(vec![Scenario { by, step, ..brute_force() }]);
        let mut now = 0;
        let told = [1, 2, 3].map(|from| {
            let (principal, account) = (Some("key:k1".into()), Some("ann".into()));
            let from = if by == By::Source || is_led { 1 } else { from };
            let tried = signal(from, GUESS, now);
            let tried = Signal { ja4, principal, account, places, is_led, ..tried };
            let (_, verdict) = until_judged(&mut engine, &tried);
            now += verdict.duration_ns;
            verdict.duration_ns / MINUTE
        });
        assert_eq!(told, lengths, "{by:?}");
    }
}

#[test]
fn who_is_led_bears_it_for_led_requests_alone() {
    let ja4 = crate::ja4::Ja4::parse("t13d1516h2_8daaf6152771_e5627efa2ab1");
    let mut engine = engine(vec![brute_force()]);
    let led = |at_ns| Signal { is_led: true, ja4, ..signal(1, GUESS, at_ns) };
    for at in [0, 10 * MINUTE, 20 * MINUTE] {
        let (count, verdict) = until_judged(&mut engine, &led(at));
        assert_eq!((count, verdict.step, verdict.spared), (6, Step::Throttle, Some(Spared::Led)));
        assert_eq!(verdict.culprit, Culprit::Led(source(1), None));
        assert!(verdict.evidence.len() >= 6);
    }
    // What it does itself is counted apart, and is its first offence.
    (0..5).for_each(|_| assert!(judge(&mut engine, &led(30 * MINUTE)).is_empty()));
    let full =
        |culprit| engine.levels(&culprit, source(1), 30 * MINUTE).first().map(|level| level.level);
    assert_eq!(full(Culprit::Led(source(1), None)), Some(5.0));
    assert_eq!(full(Culprit::Source(source(1))), None);
    let (count, verdict) = until_judged(&mut engine, &signal(1, GUESS, 30 * MINUTE));
    assert_eq!((count, verdict.step, verdict.strikes), (6, Step::Ban, 1));
    assert_eq!(verdict.culprit, Culprit::Source(source(1)));
    // Behind a shared address the neighbours bear it if their library is the same.
    let by = |ja4| Signal { ja4, ..led(60 * MINUTE) };
    for (by, culprit, step) in [
        (by(ja4), Culprit::Led(source(1), ja4), Step::Throttle),
        (by(None), Culprit::Led(source(1), None), Step::Observe),
    ] {
        let (_, verdict) = until_judged_as(&mut engine, &by, (true, Facts::default()));
        assert_eq!((verdict.culprit, verdict.step), (culprit, step));
        assert_eq!(verdict.spared, Some(Spared::Shared));
    }
}

#[test]
fn what_is_little_at_each_of_many_shared_sources_is_not_much() {
    let mut engine = engine(vec![brute_force()]);
    let tenant = |n: u32| Signal { principal: Some("key:tenant".into()), ..signal(n, GUESS, 0) };
    let mut judge = |n| engine.judge(tenant(n), true, |_| Facts::default());
    for office in 1..=10 {
        assert!((0..5).all(|_| judge(office).is_empty()));
    }
    let verdict = judge(7).remove(0);
    assert_eq!(verdict.culprit, Culprit::Principal("key:tenant".into()));
    assert!(verdict.evidence.len() == 6, "{verdict:?}");
    // What could not be put in force is tried again at the next, there alone.
    engine.retract(&verdict, 0);
    assert!(engine.judge(tenant(8), true, |_| Facts::default()).len() == 1);
    assert!(engine.levels(&verdict.culprit, source(7), 0)[0].level >= 5.0);
    assert!(engine.levels(&verdict.culprit, source(8), 0).is_empty());
    assert!(engine.judge(tenant(7), true, |_| Facts::default()).is_empty());
}

#[test]
fn a_busy_edge_knows_what_led_to_a_verdict_on_an_account() {
    for by in [By::Account, By::Principal] {
        let step = Step::Throttle;
        let kinds = [(Kind::LoginFailed, 1)];
        let login = Scenario { by, step, groups_max: 10_000, ..scenario("login", &kinds) };
        let mut engine = engine(vec![login]);
        let tried = |n: u32, who: &str| {
            let (principal, account) = (Some(format!("key:{who}").into()), Some(who.into()));
            Signal { principal, account, ..signal(n, Kind::LoginFailed, u64::from(n)) }
        };
        let mut verdicts = Vec::new();
        for n in 0..6_000 {
            let who = if n % 1_000 == 999 { "ann".to_owned() } else { format!("user {n}") };
            verdicts.extend(judge(&mut engine, &tried(n, &who)));
        }
        assert_eq!(verdicts.len(), 1);
        let at: Vec<_> = verdicts[0].evidence.iter().map(|own| own.at).collect();
        assert_eq!(at, [5_999, 4_999, 3_999, 2_999, 1_999, 999], "{by:?}");
        engine.pardon(&verdicts[0].culprit);
        let again = (6_000..6_006).find_map(|n| judge(&mut engine, &tried(n, "ann")).pop());
        assert_eq!(again.expect("it begins anew").evidence.len(), 6);
    }
}

#[test]
fn guards_narrow_or_soften() {
    let ja4 = crate::ja4::Ja4::parse("t13d1516h2_8daaf6152771_e5627efa2ab1");
    let plain = signal(1, GUESS, 0);
    let with_ja4 = Signal { ja4, ..plain.clone() };
    let known = Signal { principal: Some("key:k1".into()), ..with_ja4.clone() };
    let spoofable = Signal { proof: Proof::None, ..plain.clone() };
    let alone = |facts| (false, facts);
    let shared = (true, Facts::default());
    let vital = alone(Facts { is_vital: true, ..Facts::default() });
    let exempt = alone(Facts { is_exempt: true, ..Facts::default() });
    let beside = alone(Facts { is_beside_exempt: true, is_exhausted: true, ..Facts::default() });
    let exhausted = alone(Facts { is_exhausted: true, ..Facts::default() });
    let own = Culprit::Source(source(1));
    let table = [
        (&plain, alone(Facts::default()), own.clone(), Step::Ban, None),
        (&plain, exempt, own.clone(), Step::Observe, Some(Spared::NeverBan)),
        (&plain, beside, own.clone(), Step::Refuse, Some(Spared::NeverBan)),
        (&plain, vital, own.clone(), Step::Refuse, Some(Spared::Vital)),
        (&plain, exhausted, own.clone(), Step::Refuse, Some(Spared::Cap)),
        (&spoofable, alone(Facts::default()), own.clone(), Step::Observe, Some(Spared::Unproven)),
        (&plain, shared, own, Step::Observe, Some(Spared::Shared)),
        (
            &with_ja4,
            shared,
            Culprit::Fingerprint(source(1), ja4.unwrap()),
            Step::Refuse,
            Some(Spared::Shared),
        ),
        (&known, shared, Culprit::Principal("key:k1".into()), Step::Refuse, Some(Spared::Shared)),
    ];
    for (signal, facts, culprit, step, spared) in table {
        let (_, verdict) = until_judged_as(&mut engine(vec![brute_force()]), signal, facts);
        assert_eq!((verdict.culprit, verdict.step, verdict.spared), (culprit, step, spared));
    }
}

#[test]
fn a_neighbour_behind_a_shared_source_is_judged_by_itself() {
    let mut engine = engine(vec![brute_force()]);
    let ja4 = |text: &str| crate::ja4::Ja4::parse(text);
    let (one, other) =
        (ja4("t13d1516h2_8daaf6152771_e5627efa2ab1"), ja4("t13d1516h1_8daaf6152771_e5627efa2ab1"));
    let by = |ja4| Signal { ja4, ..signal(1, GUESS, 0) };
    let shared = (true, Facts::default());
    until_judged_as(&mut engine, &by(one), shared);
    for _ in 0..20 {
        assert!(behind(&mut engine, by(one)).is_empty(), "it is refused already");
    }
    let (_, verdict) = until_judged_as(&mut engine, &by(other), shared);
    assert_eq!(verdict.culprit, Culprit::Fingerprint(source(1), other.unwrap()));
    assert_eq!(verdict.strikes, 1);
}

/// An act of somebody behind a shared source.
fn behind(engine: &mut Engine, signal: Signal) -> Vec<Verdict> {
    engine.judge(signal, true, |_| Facts::default())
}

fn library(number: usize) -> Option<crate::ja4::Ja4> {
    crate::ja4::Ja4::parse(&format!("t13d1516h2_8daaf6152771_{number:012x}"))
}

fn scanning() -> Scenario {
    let (step, distinct) = (Step::Refuse, Some(Distinct::Path));
    Scenario {
        step,
        distinct,
        capacity: 20,
        interval_ns: 3 * SECOND,
        ..scenario("scanning", &[(Kind::NotFound, 1)])
    }
}

#[test]
fn one_attacker_among_two_hundred_neighbours_who_err_bears_all_of_it_alone() {
    let mut engine = engine(vec![scanning()]);
    let attacker = Culprit::Fingerprint(source(1), library(0).unwrap());
    let mut told = Vec::new();
    // Twenty minutes, a missing path a second of the attacker's; of each neighbour one in 100 seconds, and
    // every other neighbour shows a key.
    for second in 0..20 * 60 {
        let ask = |name: String, ja4, principal| {
            let asked = asking(&name, 1, Kind::NotFound, second * SECOND);
            Signal { ja4, principal, ..asked }
        };
        told.extend(behind(&mut engine, ask(format!("/scan/{second}"), library(0), None)));
        for n in [second * 2 % 200, (second * 2 + 1) % 200] {
            let key = (n % 2 == 0).then(|| format!("key:k{n}").into());
            let erred = ask(format!("/old/{second}/{n}"), library(1 + n as usize), key);
            told.extend(behind(&mut engine, erred));
        }
    }
    let culprits: Vec<_> = told.iter().map(|verdict| &verdict.culprit).collect();
    assert_eq!(culprits, [&attacker, &attacker]);
    assert_eq!(told.iter().map(|verdict| verdict.strikes).collect::<Vec<_>>(), [1, 2]);
    for verdict in told {
        assert_eq!((verdict.step, verdict.spared), (Step::Refuse, Some(Spared::Shared)));
        let paths = verdict.evidence.iter().map(|own| &*own.request.as_ref().unwrap().path);
        assert!(paths.clone().all(|path| path.starts_with("/scan/")) && paths.count() == 10);
    }
}

#[test]
fn who_rotates_behind_a_shared_source_lays_it_on_nobody_and_frees_nobody() {
    let scanning = Scenario { groups_max: 64, ..scanning() };
    let mut engine = engine(vec![scanning]);
    let ask = |n: usize, ja4, key: &str| {
        let principal = (!key.is_empty()).then(|| key.into());
        Signal { ja4, principal, ..asking(&format!("/{n}"), 1, Kind::NotFound, 0) }
    };
    (0..20).for_each(|n| assert!(behind(&mut engine, ask(n, library(0), "")).is_empty()));
    (0..5_000).for_each(|n| assert!(behind(&mut engine, ask(n, library(1 + n), "")).is_empty()));
    assert!(engine.len() <= 64);
    assert!(behind(&mut engine, ask(0, library(9), "key:k1")).is_empty(), "a neighbour errs");
    let told = behind(&mut engine, ask(20, library(0), ""));
    assert_eq!(told[0].culprit, Culprit::Fingerprint(source(1), library(0).unwrap()));
    // Nor does who has keys to rotate.
    for n in 0..100 {
        assert!(behind(&mut engine, ask(n, library(0), &format!("key:own{n}"))).is_empty());
    }
}

#[test]
fn what_a_source_did_before_it_was_shared_falls_on_nobody_behind_it() {
    let mut engine = engine(vec![brute_force()]);
    let by = |ja4| Signal { ja4, ..signal(1, GUESS, 0) };
    (0..5).for_each(|_| assert!(judge(&mut engine, &by(library(0))).is_empty()));
    assert!(behind(&mut engine, by(library(1))).is_empty(), "its first");
    (0..5).for_each(|_| assert!(behind(&mut engine, by(library(0))).is_empty()));
    let told = behind(&mut engine, by(library(0)));
    assert_eq!(told[0].culprit, Culprit::Fingerprint(source(1), library(0).unwrap()));
    // Once it is shared no longer, the source has what it had.
    let told = judge(&mut engine, &by(library(1)));
    assert_eq!(told[0].culprit, Culprit::Source(source(1)));
}

#[test]
fn whoever_proves_who_it_is_behind_a_shared_source_leaves_its_library_alone() {
    let mut engine = engine(vec![Scenario { by: By::Fingerprint, ..brute_force() }]);
    let ja4 = library(0);
    let known = Signal { principal: Some("key:k1".into()), ja4, ..signal(1, GUESS, 0) };
    let told: Vec<_> = (0..6).flat_map(|_| behind(&mut engine, known.clone())).collect();
    assert_eq!((told.len(), &told[0].culprit), (1, &Culprit::Principal("key:k1".into())));
    assert!(behind(&mut engine, Signal { principal: None, ..known }).is_empty());
}

#[test]
fn a_verdict_shows_all_kinds_of_what_led_to_it() {
    let mixed = scenario("mixed", &[(Kind::Served, 1), (GUESS, 2)]);
    let mut engine = engine(vec![mixed]);
    let acts = [(Kind::Served, 1), (GUESS, 2), (Kind::Served, 3), (GUESS, 4)];
    let told: Vec<_> =
        acts.iter().flat_map(|(kind, at)| judge(&mut engine, &signal(1, *kind, *at))).collect();
    let shown = |own: &Evidence| (own.at, own.kind.clone());
    let evidence: Vec<_> = told[0].evidence.iter().map(shown).collect();
    let (served, guess) = (Kind::Served.name(), GUESS.name());
    let wanted = [(4, guess), (3, served), (2, guess), (1, served)];
    assert_eq!(evidence, wanted.map(|(at, kind)| (at, kind.into())));
}

#[test]
fn a_verdict_that_failed_is_earned_again_by_the_next_misdeed() {
    let mut engine = engine(vec![brute_force()]);
    let (_, verdict) = until_judged(&mut engine, &signal(1, GUESS, 0));
    engine.retract(&verdict, 0);
    let (count, again) = until_judged(&mut engine, &signal(1, GUESS, 0));
    assert_eq!((count, again.strikes), (1, 1));
}

#[test]
fn a_pardoned_client_starts_anew() {
    let mut engine = engine(vec![brute_force()]);
    until_judged(&mut engine, &signal(1, GUESS, 0));
    engine.pardon(&Culprit::Source(source(1)));
    assert!(engine.misdeeds(&source(1)).is_empty());
    let (count, verdict) = until_judged(&mut engine, &signal(1, GUESS, 1));
    assert_eq!((count, verdict.strikes), (6, 1));
}

#[test]
fn a_flood_of_newcomers_never_frees_an_offender() {
    let small = Scenario { groups_max: 64, ..brute_force() };
    let mut engine = Engine::new(Rules { culprits_max: 64, ..rules(vec![small]) }, [7; 16]);
    for _ in 0..5 {
        assert!(judge(&mut engine, &signal(1, GUESS, 0)).is_empty());
    }
    for other in 2..50_000 {
        assert!(judge(&mut engine, &signal(other, GUESS, 1)).is_empty());
    }
    assert!(engine.evicted() > 49_000 && engine.len() <= 64);
    assert_eq!(judge(&mut engine, &signal(1, GUESS, 2)).len(), 1);
}

#[test]
fn a_reload_keeps_the_buckets_of_what_stays() {
    let other = scenario("other", &[(Kind::NotFound, 1)]);
    let mut engine = engine(vec![brute_force(), other.clone()]);
    for _ in 0..5 {
        judge(&mut engine, &signal(1, GUESS, 0));
        judge(&mut engine, &signal(1, Kind::NotFound, 0));
    }
    engine.configure(rules(vec![Scenario { capacity: 9, ..other }, brute_force()]));
    assert_eq!(judge(&mut engine, &signal(1, GUESS, 0)).len(), 1);
    assert!(judge(&mut engine, &signal(1, Kind::NotFound, 0)).is_empty());
}

#[test]
fn the_trail_is_a_ring() {
    let mut trail = Trail::new(4);
    for n in 0..10 {
        trail.push(signal(n % 2, GUESS, u64::from(n)));
    }
    let times = |n| trail.of(&Culprit::Source(source(n))).map(|s| s.at_ns).collect::<Vec<_>>();
    assert_eq!((times(0), times(1)), (vec![8, 6], vec![9, 7]));
    assert_eq!(trail.latest().map(|s| s.at_ns).collect::<Vec<_>>(), [9, 8, 7, 6]);
}

#[test]
fn bans_within_a_minute_are_counted() {
    let mut cap = Cap::default();
    assert!(cap.is_reached(0, 5));
    for _ in 0..3 {
        assert!(!cap.is_reached(3, 5));
        cap.count(5);
    }
    assert!(cap.is_reached(3, 5) && cap.is_reached(3, 4 + 60 * SECOND));
    assert!(!cap.is_reached(3, 5 + 60 * SECOND) && !cap.is_reached(4, 5));
    assert!(cap.is_reached(2, 5), "a reload may make it less");
}

#[test]
fn no_minute_has_more_bans_than_may_be() {
    let (most, mut cap, mut bans) = (7, Cap::default(), Vec::<u64>::new());
    // As many as it lets through, by turns in a rush and a few a second.
    for step in 0..4_000_u64 {
        let now_ns = if step % 1_000 < 500 { step / 1_000 * 90 } else { step / 7 } * SECOND;
        let now_ns = now_ns.max(bans.last().copied().unwrap_or(0));
        if !cap.is_reached(most, now_ns) {
            cap.count(now_ns);
            bans.push(now_ns);
        }
    }
    let within = |from: u64| {
        let minute = from..from + 60 * SECOND;
        bans.iter().filter(|at| minute.contains(at)).count()
    };
    assert!(bans.iter().all(|from| within(*from) <= most as usize), "{bans:?}");
    assert!(bans.len() > 40, "{bans:?}");
}

#[test]
fn kinds_have_names_and_numbers_of_their_own() {
    for kind in Kind::all() {
        assert_eq!(Kind::named(kind.name()), Some(kind));
        assert!(kind.index() < Kind::COUNT);
        assert_eq!(Kind::all().filter(|other| other.index() == kind.index()).count(), 1);
    }
    assert_eq!(Kind::named("upstream_timeout"), None, "nobody's misdeed");
    for (n, (_, step)) in Step::ALL.iter().enumerate() {
        assert_eq!(*step as usize, n);
    }
}

#[test]
fn culprits_are_read_as_they_are_written() {
    let ja4 = "t13d1516h2_8daaf6152771_e5627efa2ab1";
    let both = format!("192.0.2.7 ja4:{ja4}");
    let alone = format!("ja4:{ja4}");
    for text in [
        "192.0.2.7",
        "192.0.2.7 led",
        "2001:db8::",
        &both,
        &format!("{both} led"),
        &alone,
        "key:k1",
        "jwt:a b:c led",
        "account:192.0.2.7",
        "country:NZ",
        "asn:64496",
    ] {
        let culprit: Culprit = text.parse().unwrap();
        assert_eq!(culprit.to_string(), text);
        let json = serde_json::to_string(&culprit).unwrap();
        assert_eq!(serde_json::from_str::<Culprit>(&json).unwrap(), culprit);
    }
    for text in
        ["", "192.0.2", "ja4:x", "192.0.2.7 ja4:x", "key:", ":a", " led", "192.0.2.7 led led"]
    {
        assert!(text.parse::<Culprit>().is_err(), "{text}");
    }
    for (name, step) in Step::ALL {
        assert_eq!(serde_json::to_string(&step).unwrap(), format!("{name:?}"));
    }
}

/// A leaky bucket in fractions, as a textbook has it.
struct Reference {
    level: f64,
    at_ns: u64,
}

fn from(country: &str, number: u32, at_ns: u64) -> Signal {
    let places = Places::find(|place| place.parse(country));
    Signal { places, principal: Some("key:k1".into()), ..signal(number, GUESS, at_ns) }
}

#[test]
fn where_an_address_is_from_filters_groups_and_tells_apart() {
    let among = |codes: &[&str], is_elsewhere| {
        let ids = codes.iter().filter_map(|code| Place::Country.parse(code)).collect();
        vec![Among { place: Place::Country, ids, is_elsewhere }]
    };
    let weigh = |places: Vec<Among>, signal: &Signal| {
        Filter { places, ..brute_force().filter }.weigh(signal)
    };
    let (nz, ch, unknown) = (from("NZ", 1, 0), from("CH", 1, 0), from("", 1, 0));
    for (places, weights) in [
        (among(&["NZ", "AU"], false), [1, 0, 0]),
        // Of whom nobody knows is not elsewhere, either.
        (among(&["NZ", "AU"], true), [0, 1, 0]),
        (Vec::new(), [1, 1, 1]),
    ] {
        assert_eq!([&nz, &ch, &unknown].map(|signal| weigh(places.clone(), signal)), weights);
    }
    // Many addresses of one country fill one bucket; those of another, and of none, fill another or
    // none.
    let by = By::Place(Place::Country);
    let mut engine = engine(vec![Scenario { by, step: Step::Throttle, ..brute_force() }]);
    for n in 0..5 {
        assert!(judge(&mut engine, &from("NZ", n, 0)).is_empty());
        assert!(judge(&mut engine, &from("CH", n, 0)).is_empty());
    }
    for n in 0..100 {
        assert!(judge(&mut engine, &from("", n, 0)).is_empty());
    }
    let verdict = judge(&mut engine, &from("NZ", 9, 0)).remove(0);
    assert_eq!(verdict.culprit.to_string(), "country:NZ");
    assert_eq!(
        (verdict.culprit.to_string().parse(), verdict.evidence.len()),
        (Ok(verdict.culprit), 6)
    );
    // One user in many countries is not one user.
    let distinct = Some(Distinct::Place(Place::Country));
    let roaming = Scenario { by: By::Principal, distinct, capacity: 2, ..brute_force() };
    let mut engine = self::engine(vec![roaming]);
    for country in ["NZ", "NZ", "CH", "NZ", "CH", ""] {
        assert!(judge(&mut engine, &from(country, 1, 0)).is_empty(), "{country}");
    }
    assert_eq!(judge(&mut engine, &from("AU", 1, 0)).len(), 1);
}

proptest! {
    /// The engine overflows exactly when the textbook's bucket does.
    #[test]
    fn buckets_are_those_of_the_textbook(
        capacity in 0_u64..20,
        interval_ms in 1_u64..10_000,
        steps in proptest::collection::vec((0_u64..20_000, 1_u16..5), 1..200),
    ) {
        let interval_ns = interval_ms * 1_000_000;
        let kind = |weight: u16| [(GUESS, weight)];
        let mut reference = Reference { level: 0.0, at_ns: 0 };
        let mut now_ns = 0;
        // Observed, so that every overflow is told.
        let of = |weight| Scenario {
            capacity,
            interval_ns,
            step: Step::Observe,
            up_to: Step::Observe,
            ..scenario("s", &kind(weight))
        };
        let mut engine = engine(vec![of(1)]);
        for (wait_ms, weight) in steps {
            now_ns += wait_ms * 1_000_000;
            engine.rules.scenarios[0].filter = of(weight).filter;
            let leaked = (now_ns - reference.at_ns) as f64 / interval_ns as f64;
            reference.at_ns = now_ns;
            reference.level = (reference.level - leaked).max(0.0) + f64::from(weight);
            let is_over = !judge(&mut engine, &signal(1, GUESS, now_ns)).is_empty();
            // Closer to the brim than fractions can tell.
            prop_assume!((reference.level - capacity as f64).abs() > 1e-6 || !is_over);
            prop_assert_eq!(is_over, reference.level > capacity as f64 + 1e-6);
            if is_over {
                reference.level = 0.0;
            }
        }
    }

    /// However the signals of several clients fall together, none is judged by another's.
    #[test]
    fn nobody_is_judged_by_anothers_signals(who in proptest::collection::vec(0_u32..6, 1..300)) {
        let mut engine = engine(vec![brute_force()]);
        let mut counts = [0; 6];
        for number in who {
            let verdicts = judge(&mut engine, &signal(number, GUESS, 0));
            counts[number as usize] += 1;
            prop_assert_eq!(verdicts.len(), usize::from(counts[number as usize] == 6));
            for verdict in verdicts {
                prop_assert_eq!(verdict.culprit, Culprit::Source(source(number)));
                let own = verdict.evidence.iter().all(|e| Source::from(e.address) == source(number));
                prop_assert!(own);
            }
        }
    }

    /// A verdict is as long as the ladder says, to within the jitter, and never beyond the longest.
    #[test]
    fn lengths_stay_within_jitter_and_ceiling(
        strikes in 0_u32..40,
        jitter in 0_u64..=50,
        random: u64,
        first_s in 1_u64..100_000,
    ) {
        let rules = Rules { jitter, ..rules(Vec::new()) };
        let first_ns = first_s * SECOND;
        let length = rules.length_ns(first_ns, strikes, random);
        let times = 4_u64.saturating_pow(strikes.saturating_sub(1));
        let meant = first_ns.saturating_mul(times).min(rules.longest_ns);
        prop_assert!(length <= rules.longest_ns);
        prop_assert!(length >= meant - meant / 100 * jitter - 100);
        prop_assert!(length <= meant + meant / 100 * jitter + 100);
    }

    /// Nobody without a completed handshake is ever to be banned, nor anybody exempt, vital or shared.
    #[test]
    fn no_ban_without_leave(
        is_exempt: bool, is_beside_exempt: bool, is_vital: bool, is_shared: bool,
        is_exhausted: bool, proven: bool, has_ja4: bool,
    ) {
        let facts = Facts { is_exempt, is_beside_exempt, is_vital, is_exhausted };
        let proof = if proven { Proof::Handshake } else { Proof::None };
        let ja4 = crate::ja4::Ja4::parse("t13d1516h2_8daaf6152771_e5627efa2ab1").filter(|_| has_ja4);
        let signal = Signal { proof, ja4, ..signal(1, GUESS, 0) };
        let (_, verdict) = until_judged_as(&mut engine(vec![brute_force()]), &signal, (is_shared, facts));
        let is_free = !(is_exempt || is_beside_exempt || is_vital || is_shared || is_exhausted) && proven;
        prop_assert_eq!(verdict.step == Step::Ban, is_free);
        if is_exempt {
            prop_assert_eq!(verdict.step, Step::Observe);
        }
        if is_shared && verdict.step > Step::Observe {
            prop_assert!(!matches!(verdict.culprit, Culprit::Source(_)));
        }
    }
}

#[test]
fn a_wider_scenario_shadows_a_narrower_one() {
    let with = |change: fn(&mut Filter)| {
        let mut own = brute_force();
        change(&mut own.filter);
        own
    };
    let elsewhere =
        |ids: &[u64], is_elsewhere| Among { place: Place::Asn, ids: ids.into(), is_elsewhere };
    let any = brute_force();
    let post = with(|own| own.methods = vec![Method::POST]);
    let both = with(|own| own.methods = vec![Method::GET, Method::POST]);
    let api = with(|own| own.paths = vec!["/api".into()]);
    let deep = with(|own| own.paths = vec!["/api/v1".into(), "/api/v2".into()]);
    let beside = with(|own| own.paths = vec!["/api/v1".into(), "/apis".into()]);
    let unauthorized = with(|own| own.statuses = vec![401]);
    let two = with(|own| own.statuses = vec![401, 403]);
    for (wide, narrow) in
        [(&any, &post), (&both, &post), (&any, &api), (&api, &deep), (&two, &unauthorized)]
    {
        assert!(wide.shadows(narrow) && !narrow.shadows(wide), "{narrow:?}");
    }
    assert!(!api.shadows(&beside) && !post.shadows(&api));
    let covers = |own: Among, other: Among| {
        let at = |among| {
            let mut own = brute_force();
            own.filter.places = vec![among];
            own
        };
        at(own).shadows(&at(other))
    };
    assert!(covers(elsewhere(&[1, 2], false), elsewhere(&[1], false)));
    assert!(!covers(elsewhere(&[1], false), elsewhere(&[1, 2], false)));
    assert!(covers(elsewhere(&[1], true), elsewhere(&[1, 2], true)));
    assert!(covers(elsewhere(&[1], true), elsewhere(&[2], false)));
    assert!(!covers(elsewhere(&[1], true), elsewhere(&[1, 2], false)));
    assert!(!covers(elsewhere(&[1], false), elsewhere(&[2], true)));
}
