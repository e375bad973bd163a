//! Rules: who is counted with whom, and what becomes of it.

use proptest::prelude::*;

use super::*;
use crate::limit::meter::Bucket;

const SECOND: u64 = 1_000_000_000;

fn now(ns: u64) -> Now {
    Now { boot_ns: ns, unix_ns: 1_700_000_000 * SECOND + ns }
}

fn bucket(size: u64) -> Meter {
    Meter::TokenBucket(Bucket::new(1, 3_600 * SECOND, size).unwrap())
}

fn spec(by: &[Part], meter: Meter) -> Spec {
    Spec {
        name: "test".into(),
        by: by.to_vec(),
        only: Only::default(),
        meter: Some(meter),
        tiers: Vec::new(),
        keys_max: 1_000,
        shadow: false,
        fleet: false,
        persist: false,
        reason: Reason::RequestLimit,
    }
}

fn rule(spec: Spec) -> Rule {
    Rule::new(spec, None, [7; 16])
}

/// A request, in the words that tests change.
#[derive(Clone, Copy)]
struct Ask {
    source: [u8; 4],
    user: Option<&'static str>,
    tier: Option<&'static str>,
    route: &'static str,
    header: Option<&'static str>,
    cost: u64,
}

const ASK: Ask =
    Ask { source: [192, 0, 2, 1], user: None, tier: None, route: "/", header: None, cost: 1 };

impl Ask {
    fn of(self, rules: &[Rule], ns: u64) -> Result<Admission, Denied> {
        let claim = |name: &str| (name == "org").then(|| "acme".to_owned());
        let header = move |_: &HeaderName| self.header.map(str::as_bytes);
        let caller = self.user.map(|user| Caller {
            user: ["key", user],
            key: None,
            tier: self.tier,
            claim: &claim,
        });
        let facts = Facts {
            caller,
            route: self.route,
            header: &header,
            ..Facts::of(Source::v4(self.source), self.cost)
        };
        admit(rules, &facts, 0, now(ns))
    }

    /// How many of a hundred are admitted.
    fn admitted(self, rules: &[Rule]) -> usize {
        (0..100).filter(|_| self.of(rules, 0).is_ok()).count()
    }
}

#[test]
fn requests_that_agree_in_all_parts_are_counted_together() {
    let rules = [rule(spec(&[Part::Source, Part::Route], bucket(3)))];
    assert_eq!(ASK.admitted(&rules), 3);
    assert_eq!(Ask { route: "/a", ..ASK }.admitted(&rules), 3);
    assert_eq!(Ask { source: [192, 0, 2, 2], ..ASK }.admitted(&rules), 3);
    assert_eq!(Ask { user: Some("a"), ..ASK }.admitted(&rules), 0);
    let everybody = [rule(spec(&[], bucket(3)))];
    assert_eq!(ASK.admitted(&everybody), 3);
    assert_eq!(Ask { source: [192, 0, 2, 2], ..ASK }.admitted(&everybody), 0);
}

#[test]
fn who_is_nobody_has_no_limit_as_a_user_but_shares_that_of_an_absent_header() {
    let users = [rule(spec(&[Part::User], bucket(3)))];
    assert_eq!(ASK.admitted(&users), 100);
    assert_eq!(Ask { user: Some("a"), ..ASK }.admitted(&users), 3);
    assert_eq!(Ask { user: Some("b"), ..ASK }.admitted(&users), 3);
    let headers = [rule(spec(&[Part::Header(HeaderName::from_static("x-tenant"))], bucket(3)))];
    assert_eq!(ASK.admitted(&headers), 3);
    assert_eq!(Ask { header: Some(""), ..ASK }.admitted(&headers), 3);
    assert_eq!(Ask { header: Some("t"), ..ASK }.admitted(&headers), 3);
    let claims = [rule(spec(&[Part::Claim("org".into())], bucket(3)))];
    assert_eq!(Ask { user: Some("a"), ..ASK }.admitted(&claims), 3);
    assert_eq!(Ask { user: Some("b"), ..ASK }.admitted(&claims), 0);
}

#[test]
fn who_proves_who_he_is_has_a_shared_source_to_himself() {
    let finer = spec(&[Part::Source, Part::Route], bucket(2));
    let rules: Rules = [spec(&[Part::Source], bucket(3)), finer].map(rule).into_iter().collect();
    let source = Source::v4([192, 0, 2, 1]);
    let early = |user: Option<&str>| {
        let claim = |_: &str| None;
        let own = |user| Caller { user: ["key", user], key: None, tier: None, claim: &claim };
        let ask = || rules.admit_shared(source, user.map(own), now(0));
        (0..100).filter(|_| ask().is_ok()).count()
    };
    assert_eq!((early(Some("a")), early(Some("b")), early(Some("a"))), (3, 3, 0));
    // Those who prove nothing have it together, and it is that of the source when it is no shared one.
    assert_eq!(early(None), 3);
    assert!(rules.admit_source(source, now(0)).is_err());
    // So it is with what counts by the source and more.
    let late = |user: &'static str, is_shared| {
        let claim = |_: &str| None;
        let caller = Some(Caller { user: ["key", user], key: None, tier: None, claim: &claim });
        let facts = Facts { caller, is_shared, ..Facts::of(source, 1) };
        let ask = || rules.admit(&facts, &Admission::default(), now(0));
        (0..100).filter(|_| ask().is_ok()).count()
    };
    assert_eq!((late("a", true), late("b", true)), (2, 2));
    assert_eq!((late("a", false), late("b", false)), (2, 0));
}

#[test]
fn what_is_wider_admits_so_many_times_as_much() {
    let of = |meter| ASK.admitted(&[rule(spec(&[], meter))]);
    assert_eq!((of(bucket(3)), of(bucket(3).times(10)), of(bucket(3).times(0))), (3, 30, 3));
    let wide = Bucket::new(600, 60 * SECOND, 100).unwrap().times(50);
    assert_eq!((wide.size(), wide.interval_ns()), (5_000, 2_000_000.0));
    // No rate is beyond one a nanosecond.
    assert_eq!(Bucket::new(SECOND, SECOND, 10).unwrap().times(2).interval_ns(), 1.0);
}

#[test]
fn a_tier_has_numbers_of_its_own() {
    let tiers = vec![("pro".to_owned(), Some(bucket(10))), ("enterprise".to_owned(), None)];
    let rules = [rule(Spec { tiers, ..spec(&[Part::User], bucket(3)) })];
    let of = |user, tier| Ask { user: Some(user), tier, ..ASK }.admitted(&rules);
    assert_eq!(of("a", None), 3);
    assert_eq!(of("b", Some("free")), 3);
    assert_eq!(of("c", Some("pro")), 10);
    assert_eq!(of("d", Some("enterprise")), 100);
}

#[test]
fn a_request_may_cost_more_than_one() {
    let rules = [rule(spec(&[Part::Source], bucket(25)))];
    assert_eq!(Ask { cost: 10, ..ASK }.admitted(&rules), 2);
    assert_eq!(ASK.admitted(&rules), 5);
    assert_eq!(Ask { cost: 0, ..ASK }.admitted(&rules), 100);
}

#[test]
fn what_a_route_costs_is_charged_to_the_sources_own_limit_as_well() {
    let at_once = spec(&[Part::Source], Meter::Concurrent { limit: 1 });
    let later = spec(&[Part::Route], bucket(100));
    let rules: Rules =
        [spec(&[Part::Source], bucket(25)), at_once, later].map(rule).into_iter().collect();
    let ask = |cost| {
        let facts = Facts::of(Source::v4([192, 0, 2, 1]), cost);
        let early = rules.admit_source(facts.source, now(0))?;
        rules.admit(&facts, &early, now(0)).map(|late| early.and(late))
    };
    let asked = [10, 10, 10, 1, 1, 1, 0, 1, 0].map(|cost| ask(cost).is_ok());
    // The third is refused for its cost, once it has taken one to ask; so does what costs nothing.
    assert_eq!(asked, [true, true, false, true, true, true, true, false, false]);
    let Err(denied) = ask(10) else { panic!("admitted") };
    assert_eq!(denied.wait_ns, Some(3_600 * SECOND), "for the first of ten");
}

#[test]
fn what_an_edges_part_does_not_hold_may_come_later_and_what_nobody_has_never() {
    let rules = [rule(Spec { fleet: true, ..spec(&[], bucket(12)) })];
    rules[0].state().begin(lease::alone(3));
    let ask = |cost| Ask { cost, ..ASK }.of(&rules, 0);
    assert_eq!(ask(13).unwrap_err().wait_ns, None);
    assert_eq!(ask(5).unwrap_err().wait_ns, Some(SECOND));
    assert!(ask(4).is_ok());
    assert!(ask(4).unwrap_err().wait_ns > Some(SECOND));
}

#[test]
fn only_what_a_rule_speaks_of_is_charged() {
    let only = Only { routes: vec!["/a".into()], methods: vec![Method::GET] };
    let rules = [rule(Spec { only, ..spec(&[Part::Source], bucket(3)) })];
    assert_eq!(ASK.admitted(&rules), 100);
    assert_eq!(Ask { route: "/a", ..ASK }.admitted(&rules), 3);
    let only = Only { routes: Vec::new(), methods: vec![Method::POST] };
    assert_eq!(ASK.admitted(&[rule(Spec { only, ..spec(&[], bucket(3)) })]), 100);
}

#[test]
fn whom_strangers_leave_nothing_is_not_blamed() {
    let mut narrow = spec(&[Part::Source], bucket(2));
    narrow.keys_max = 1;
    let rules = [rule(narrow)];
    let reason = |host: u8| {
        let ask = Ask { source: [192, 0, 2, host], ..ASK };
        (0..3).find_map(|_| ask.of(&rules, 0).err()).map(|denied| denied.reason)
    };
    // As many as have places of their own, and then those that share one.
    assert!((0..7).all(|host| reason(host) == Some(Reason::RequestLimit)));
    assert!((7..20).all(|host| reason(host) == Some(Reason::GlobalRate)));
    assert_eq!(reason(3), Some(Reason::RequestLimit));
}

#[test]
fn a_shadow_counts_and_refuses_nothing() {
    let rules = [rule(Spec { shadow: true, ..spec(&[Part::Source], bucket(3)) })];
    assert_eq!(ASK.admitted(&rules), 100);
    assert_eq!(rules[0].state().would_refuse.load(Relaxed), 97);
    assert_eq!(ASK.of(&rules, 0).unwrap().standing, None);
}

#[test]
fn a_shadow_counts_a_dear_request_once() {
    let shadow = Spec { shadow: true, ..spec(&[Part::Source], bucket(3)) };
    let rules: Rules = [rule(shadow)].into_iter().collect();
    let facts = Facts::of(Source::v4(ASK.source), 10);
    let would_refuse = || {
        let early = rules.admit_source(facts.source, now(0)).unwrap();
        drop(rules.admit(&facts, &early, now(0)).unwrap());
        rules.iter().map(|rule| rule.state().would_refuse.load(Relaxed)).sum::<u64>()
    };
    // First for what it costs, and then to ask.
    assert_eq!([(); 5].map(|()| would_refuse()), [1, 2, 3, 4, 5]);
}

#[test]
fn a_refusal_names_its_rule_and_the_tightest_speaks() {
    let wide = Spec { name: "wide".into(), ..spec(&[], bucket(50)) };
    let rules = [rule(spec(&[Part::Source], bucket(3))), rule(wide)];
    let admitted = ASK.of(&rules, 0).unwrap();
    assert_eq!(admitted.standing.unwrap().left.remaining, 2);
    assert_eq!(ASK.admitted(&rules), 2);
    let denied = ASK.of(&rules, 0).unwrap_err();
    assert_eq!(
        (denied.reason, &*denied.hit.as_ref().unwrap().limit),
        (Reason::RequestLimit, "test")
    );
    assert_eq!(denied.wait_ns, Some(3_600 * SECOND));
    assert_eq!(denied.hit.unwrap().standing.left.remaining, 0);
    assert_eq!(rules[0].state().refused.load(Relaxed), 99);
}

#[test]
fn what_is_in_flight_ends_when_it_is_dropped() {
    let rules = [rule(spec(&[Part::Source], Meter::Concurrent { limit: 2 }))];
    let (first, second) = (ASK.of(&rules, 0).unwrap(), ASK.of(&rules, 0).unwrap());
    assert!(ASK.of(&rules, 0).is_err());
    drop(first);
    let third = ASK.of(&rules, 0);
    assert!(third.is_ok() && ASK.of(&rules, 0).is_err());
    drop((second, third));
    assert_eq!(ASK.admitted(&rules), 100);
    // What a later rule refuses holds nothing.
    let both = [rule(spec(&[], Meter::Concurrent { limit: 2 })), rule(spec(&[], bucket(1)))];
    let kept = ASK.of(&both, 0);
    assert!(kept.is_ok() && ASK.admitted(&both) == 0);
    let alone = &both[..1];
    assert!(ASK.of(alone, 0).is_ok());
}

#[test]
fn a_rule_goes_on_counting_where_its_former_self_was() {
    let old = rule(spec(&[Part::Source], bucket(3)));
    let rules = [old];
    assert_eq!(ASK.admitted(&rules), 3);
    let more = Rule::new(spec(&[Part::Source], bucket(5)), Some(&rules[0]), [8; 16]);
    assert_eq!(ASK.admitted(&[more]), 2);
    let other = Meter::FixedWindow { limit: 5, window: meter::Window::Month };
    let anew = Rule::new(spec(&[Part::Source], other), Some(&rules[0]), [8; 16]);
    assert_eq!(ASK.admitted(&[anew]), 5);
}

fn per(limit: u64, window_s: u64) -> Meter {
    Meter::FixedWindow { limit, window: meter::Window::Ns(window_s * SECOND) }
}

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

#[test]
fn who_changes_tier_is_counted_by_the_new_one_alone() {
    let of = |rules: &[Rule], tier, ns| {
        let ask = Ask { user: Some("a"), tier, ..ASK };
        (0..100).filter(|_| ask.of(rules, ns).is_ok()).count()
    };
    let of_hour_and_day = [per(3, HOUR), per(5, DAY)];
    let slow_and_fast = [bucket(3), Meter::TokenBucket(Bucket::new(1_000, SECOND, 5).unwrap())];
    for [own, pro] in [of_hour_and_day, slow_and_fast] {
        let tiers = vec![("pro".to_owned(), Some(pro))];
        let rules = [rule(Spec { tiers, ..spec(&[Part::User], own) })];
        assert_eq!(of(&rules, None, 0), 3, "{pro:?}");
        assert_eq!(of(&rules, Some("pro"), 0), 5, "{pro:?}");
        assert_eq!(of(&rules, Some("pro"), 2 * DAY * SECOND), 5, "{pro:?}");
        assert_eq!(of(&rules, None, 2 * DAY * SECOND), 3, "{pro:?}");
    }
}

#[test]
fn callers_of_a_wide_tier_free_nobody_of_a_narrow_one() {
    let tiers = vec![("pro".to_owned(), Some(per(10_000, DAY)))];
    let few = Spec { keys_max: 7, tiers, ..spec(&[Part::Source, Part::User], per(3, DAY)) };
    let rules = [rule(few)];
    let free = Ask { user: Some("free"), ..ASK };
    assert_eq!(free.admitted(&rules), 3);
    for n in 0..1_000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let pro = Ask { source: [10, 0, high, low], user: Some("a"), tier: Some("pro"), ..ASK };
        assert!((0..9).all(|_| pro.of(&rules, 0).is_ok()));
    }
    assert_eq!(free.admitted(&rules), 0);
}

#[test]
fn a_changed_period_begins_anew_whoevers_it_is_and_nobody_elses_count() {
    let tiered = |own: Meter, pro: Meter| {
        let tiers = vec![("pro".to_owned(), Some(pro))];
        Spec { tiers, ..spec(&[Part::User], own) }
    };
    let free = Ask { user: Some("a"), ..ASK };
    let pro = Ask { user: Some("b"), tier: Some("pro"), ..ASK };
    let old = [rule(tiered(per(3, DAY), per(5, HOUR)))];
    assert_eq!((free.admitted(&old), pro.admitted(&old)), (3, 5));
    let next = [Rule::new(tiered(per(4, DAY), per(9, DAY)), Some(&old[0]), [8; 16])];
    assert_eq!((free.admitted(&next), pro.admitted(&next)), (1, 9));
    assert!(pro.of(&next, 2 * DAY * SECOND).is_ok(), "locked out");
}

#[test]
fn a_rate_that_is_loosened_is_not_paid_for_at_the_former_one() {
    let rate = |count, period_s: u64, size| {
        Meter::TokenBucket(Bucket::new(count, period_s * SECOND, size).unwrap())
    };
    let old = [rule(spec(&[Part::Source], rate(100, DAY, 100)))];
    assert_eq!((0..200).filter(|_| ASK.of(&old, 0).is_ok()).count(), 100);
    let loose = [Rule::new(spec(&[Part::Source], rate(1_000, 1, 1_000)), Some(&old[0]), [8; 16])];
    assert!(ASK.of(&loose, 0).is_ok());
    // One that is tightened goes on: what is owed is owed for no longer than was said.
    let tight = [Rule::new(spec(&[Part::Source], rate(50, DAY, 50)), Some(&old[0]), [8; 16])];
    assert_eq!(ASK.admitted(&tight), 0);
}

proptest! {
    /// Each source has so many at once, whoever's end first, whatever they cost and whatever changes.
    #[test]
    fn as_many_are_in_flight_as_a_plain_count_says(
        limit in 1..5_u64,
        asks in proptest::collection::vec((0..3_u8, 0..4_u64, any::<prop::sample::Index>(), 0..4_u8), 1..200),
    ) {
        let at_once = |limit| spec(&[Part::Source], Meter::Concurrent { limit });
        let mut rules = [rule(at_once(limit))];
        let (mut held, mut limit, mut ns) = (Vec::<(u8, Admission)>::new(), limit, 0);
        for (source, cost, which, what) in asks {
            ns += SECOND;
            let count = held.iter().filter(|(of, _)| *of == source).count() as u64;
            match what {
                0 if !held.is_empty() => drop(held.swap_remove(which.index(held.len()))),
                1 if cost == 0 => {
                    limit = limit % 4 + 1;
                    rules = [Rule::new(at_once(limit), Some(&rules[0]), [8; 16])];
                }
                _ => {
                    let asked = Ask { source: [192, 0, 2, source], cost, ..ASK }.of(&rules, ns);
                    prop_assert_eq!(asked.is_ok(), count < limit);
                    held.extend(asked.ok().map(|a| (source, a)));
                }
            }
        }
        held.clear();
        for source in 0..3 {
            let ask = Ask { source: [192, 0, 2, source], ..ASK };
            let admitted: Vec<_> = (0..9).filter_map(|_| ask.of(&rules, ns).ok()).collect();
            prop_assert_eq!(admitted.len() as u64, limit);
        }
    }

    /// Parts that run together are told apart all the same.
    #[test]
    fn no_two_keys_are_one(a in "[ab]{0,3}", b in "[ab]{0,3}", c in "[ab]{0,3}", d in "[ab]{0,3}") {
        let rules = [rule(spec(&[Part::User, Part::Route], bucket(1)))];
        let ask = |user: &str, route: &str| {
            let claim = |_: &str| None;
            let caller = Some(Caller { user: ["key", user], key: None, tier: None, claim: &claim });
            let facts = Facts { caller, route, ..Facts::of(Source::v4([192, 0, 2, 1]), 1) };
            admit(&rules, &facts, 0, now(0)).is_ok()
        };
        prop_assert!(ask(&a, &b));
        prop_assert_eq!(ask(&c, &d), (&a, &b) != (&c, &d));
    }
}
