//! Each shipped scenario in the engine that judges, beside all others: what makes it speak, and what
//! comes close and does not.

use edge_common::Source;
use edge_policy::{
    ja4::Ja4,
    place::Places,
    verdict::{Asked, Engine, Facts, Kind, Proof, Rules, Signal, Step},
};

use super::{SECOND_NS, SHIPPED};

/// What a signal has of its own: by its number.
type Own = fn(&mut Signal, usize);

/// A scenario; the kind of its signals, of which at once the n-th makes it speak; what they have of their
/// own, the step of its verdict, and of what as many again say nothing to it.
type Row = (&'static str, &'static str, usize, Own, Step, Own);

const ROWS: [Row; 16] = [
    ("canary-key", "canary_key", 1, same, Step::Ban, wrong_key),
    ("decoy", "decoy_path", 1, same, Step::Ban, wrong_key),
    ("brute-force", "credential_invalid", 6, same, Step::Ban, from_elsewhere),
    ("brute-force", "replayed", 6, same, Step::Ban, from_elsewhere),
    ("credential-stuffing", "login_failed", 6, other_account, Step::Ban, same),
    ("login-source", "login_failed", 11, one_of_two_accounts, Step::Throttle, from_elsewhere),
    ("login-fingerprint", "login_failed", 1001, all_others, Step::Delay, without_tls),
    ("login-account", "login_failed", 11, from_elsewhere, Step::Throttle, all_others),
    ("scanning", "not_found", 21, other_path, Step::Refuse, same),
    ("scraping", "served", 301, other_path, Step::Throttle, proven),
    ("flood", "source_rate", 31, same, Step::Ban, from_elsewhere),
    ("persistence", "throttled", 61, same, Step::Ban, from_elsewhere),
    ("probing", "credential_missing", 31, same, Step::Refuse, from_elsewhere),
    ("probing", "not_permitted", 16, same, Step::Refuse, from_elsewhere),
    ("protocol-abuse", "protocol_abuse", 3, same, Step::Ban, wrong_key),
    ("slow-client", "answer_not_taken", 6, same, Step::Ban, from_elsewhere),
];

const fn same(_: &mut Signal, _: usize) {}

fn wrong_key(signal: &mut Signal, _: usize) {
    signal.kind = Kind::named("credential_invalid").unwrap();
}

fn from_elsewhere(signal: &mut Signal, n: usize) {
    signal.source = Source::v4([10, 0, (n >> 8) as u8, n as u8]);
    signal.address = signal.source.into();
}

fn other_account(signal: &mut Signal, n: usize) {
    signal.account = Some(format!("user {n}").into());
}

fn one_of_two_accounts(signal: &mut Signal, n: usize) {
    other_account(signal, n % 2);
}

fn all_others(signal: &mut Signal, n: usize) {
    from_elsewhere(signal, n);
    other_account(signal, n);
}

fn without_tls(signal: &mut Signal, n: usize) {
    all_others(signal, n);
    signal.ja4 = None;
}

fn other_path(signal: &mut Signal, n: usize) {
    signal.request = Some(Box::new(Asked { path: format!("/{n}").into(), ..Asked::default() }));
}

fn proven(signal: &mut Signal, n: usize) {
    other_path(signal, n);
    signal.principal = Some("key:one".into());
}

/// The n-th signal of a row.
fn signal(kind: &str, own: Own, n: usize, at_ns: u64) -> Signal {
    let mut signal = Signal {
        kind: Kind::named(kind).unwrap(),
        at_ns,
        address: [192, 0, 2, 7].into(),
        source: Source::v4([192, 0, 2, 7]),
        proof: Proof::Handshake,
        is_spoken_for: false,
        places: Places::default(),
        ja4: Ja4::parse("t13d1516h2_8daaf6152771_e5627efa2ab1"),
        principal: None,
        account: Some("root".into()),
        is_led: false,
        request: Some(Box::default()),
    };
    own(&mut signal, n);
    signal
}

fn engine() -> Engine {
    let rules = Rules {
        scenarios: SHIPPED.clone(),
        factor: 4,
        longest_ns: u64::MAX,
        jitter: 0,
        forget_after_ns: u64::MAX,
        culprits_max: 10_000,
    };
    Engine::new(rules, [7; 16])
}

#[test]
fn each_speaks_at_what_it_is_about_and_not_before() {
    for (name, kind, first, own, step, _) in ROWS {
        let mut engine = engine();
        for n in 1..=first {
            let verdicts = engine.judge(signal(kind, own, n, 1), false, |_| Facts::default());
            let told: Vec<_> = verdicts.iter().map(|v| (&*v.scenario, v.step)).collect();
            let wanted = if n == first { vec![(name, step)] } else { Vec::new() };
            assert_eq!(told, wanted, "{name}: the {n}th '{kind}'");
        }
    }
    let rows = ROWS.map(|(name, ..)| name);
    assert!(SHIPPED.iter().all(|own| rows.contains(&&*own.name)));
}

#[test]
fn none_speaks_at_what_only_resembles_it_or_comes_slowly() {
    for (name, kind, first, own, _, other) in ROWS {
        let mut fast = engine();
        let mut slow = engine();
        let scenario = SHIPPED.iter().find(|own| &*own.name == name).unwrap();
        let weight = u64::from(scenario.filter.weights[Kind::named(kind).unwrap().index()]);
        for n in 1..=2 * first {
            let resembling = fast.judge(signal(kind, other, n, 1), false, |_| Facts::default());
            assert!(resembling.iter().all(|v| &*v.scenario != name), "{name}: {n}");
            if scenario.capacity < weight {
                continue;
            }
            let at_ns = n as u64 * weight * scenario.interval_ns;
            let late = slow.judge(signal(kind, own, n, at_ns), false, |_| Facts::default());
            assert!(late.iter().all(|v| &*v.scenario != name), "{name}, slowly: {n}");
        }
    }
}

#[test]
fn others_who_come_again_keep_nobody_from_logging_in_for_longer() {
    let is_others = |(name, ..): &Row| ["login-fingerprint", "login-account"].contains(name);
    for (name, kind, first, own, step, _) in ROWS.into_iter().filter(is_others) {
        let (mut engine, mut at_ns) = (engine(), 1);
        for _ in 0..6 {
            let judge =
                |n| engine.judge(signal(kind, own, n, at_ns), false, |_| Facts::default()).pop();
            let verdict = (1..=first).find_map(judge).expect(name);
            assert_eq!((&*verdict.scenario, verdict.step), (name, step));
            assert_eq!(verdict.duration_ns, 300 * SECOND_NS, "{name}");
            at_ns += verdict.duration_ns;
        }
    }
}
