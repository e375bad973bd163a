//! What edges that share a limit admit together, however what they are asked for is split: the whole
//! limit, and no more. Edges, ledger and clock are all in one place.

use super::{
    lease::{Demand, Ledger, WHOLE},
    meter::Bucket,
    *,
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

struct Edge {
    name: String,
    rule: Rule,
    demand: Demand,
    looked: u64,
    /// When it looks next.
    next: u64,
}

/// Numbers that look random, the same each time.
struct Random(u64);

impl Random {
    /// One in (0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }
}

fn bucket(rate: u64) -> Bucket {
    Bucket::new(rate, SECOND, rate).unwrap()
}

fn edge(n: usize, rate: u64, offset: f64) -> Edge {
    let spec = Spec {
        name: "all".into(),
        by: Vec::new(),
        only: Only::default(),
        meter: Some(Meter::TokenBucket(bucket(rate))),
        tiers: Vec::new(),
        keys_max: 1,
        shadow: false,
        fleet: true,
        persist: false,
        reason: Reason::RequestLimit,
    };
    let next = (offset * (200 * MS) as f64) as u64;
    let rule = Rule::new(spec, None, [0; 16]);
    Edge { name: format!("edge-{n}"), rule, demand: Demand::default(), looked: 0, next }
}

impl Edge {
    fn admits(&self, now: u64) -> bool {
        let facts = Facts::of(Source::v4([192, 0, 2, 1]), 1);
        admit([&self.rule], &facts, 0, Now { boot_ns: now, unix_ns: now }).is_ok()
    }

    fn renew(&mut self, ledger: &mut Ledger, rate: u64, now: u64) {
        let share = &self.rule.state().share;
        self.demand.look(share.take_asked(), now - self.looked, bucket(rate).interval_ns());
        let parts = ledger.renew(&self.name, self.demand.wanted(), now / MS, 3_000);
        share.set(parts, true);
        (self.looked, self.next) = (now, now + 200 * MS);
    }
}

#[test]
fn a_lease_outlives_a_new_plan_and_nothing_else_does() {
    let begun = edge(0, 9, 0.0);
    let state = begun.rule.state();
    state.begin(WHOLE / 3);
    assert_eq!((state.share.parts(), state.share.is_leased()), (WHOLE / 3, false));
    state.share.set(WHOLE / 2, true);
    state.begin(WHOLE / 3);
    assert_eq!((state.share.parts(), state.share.is_leased()), (WHOLE / 2, true));
}

/// What edges admit together of a limit, as a part of it, from the third second on for so long. Each
/// is asked for a part of the limit, at any time; `turn` says whose turn it is to be asked at all.
fn admitted(loads: &[f64], rate: u64, seed: u64, seconds: u64, turn: Option<u64>) -> f64 {
    let mut random = Random(seed);
    let mut edges: Vec<_> = (0..loads.len()).map(|n| edge(n, rate, random.unit())).collect();
    edges.iter().for_each(|edge| edge.rule.state().share.set(WHOLE / loads.len() as u32, false));
    let mut asks = Vec::new();
    for (n, load) in loads.iter().enumerate().filter(|(_, load)| **load > 0.0) {
        let mut at = 0.0;
        while at < (seconds + 3) as f64 {
            at -= random.unit().ln() / (load * rate as f64);
            if turn.is_none_or(|turn| at as u64 / turn % loads.len() as u64 == n as u64) {
                asks.push(((at * SECOND as f64) as u64, n));
            }
        }
    }
    asks.sort_unstable();
    let (mut ledger, mut sum) = (Ledger::default(), 0);
    for (now, n) in asks {
        while let Some(due) =
            edges.iter_mut().filter(|edge| edge.next <= now).min_by_key(|edge| edge.next)
        {
            let at = due.next;
            due.renew(&mut ledger, rate, at);
        }
        sum += u64::from(edges[n].admits(now) && now >= 3 * SECOND);
    }
    sum as f64 / (rate * seconds) as f64
}

#[test]
fn however_it_is_split_the_whole_limit_is_admitted_and_no_more() {
    let splits: [&[f64]; 9] = [
        &[2.0, 2.0],
        &[3.0, 0.5],
        &[3.0, 0.2],
        &[3.0, 0.1],
        &[3.0, 0.05],
        &[1.0, 0.5],
        &[0.9, 0.3],
        &[3.0, 0.0],
        &[0.0, 1.5],
    ];
    for rate in [40, 100, 1_000] {
        for (n, split) in splits.into_iter().enumerate() {
            for seed in 0..4 {
                let part = admitted(split, rate, seed * 100 + n as u64, 8, None);
                assert!((0.95..=1.05).contains(&part), "{part:.3} of {rate}/s, {split:?}");
            }
        }
    }
}

#[test]
fn whoever_moves_between_edges_has_no_more_than_the_whole() {
    for seed in 0..4 {
        let part = admitted(&[2.0, 2.0], 100, seed, 24, Some(4));
        assert!((0.9..=1.05).contains(&part), "{part:.3}");
    }
}

#[test]
fn what_is_asked_for_within_the_limit_is_admitted() {
    for split in [[0.5, 0.3], [0.7, 0.05], [0.8, 0.0]] {
        let offered: f64 = split.iter().sum();
        let part = admitted(&split, 200, 9, 8, None) / offered;
        assert!((0.95..=1.05).contains(&part), "{part:.3} of what was asked for, {split:?}");
    }
}
