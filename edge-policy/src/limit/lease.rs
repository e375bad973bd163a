//! One limit for many edges: each leases a share of it, for a short time, from a ledger that all can
//! read. What is out on lease is never more than the whole; an edge without a lease keeps to the part
//! that it would have if all asked for the same.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Parts of a limit.
pub const WHOLE: u32 = 1_000_000;

/// An edge's share of a limit, as the request path reads it.
#[derive(Debug)]
pub struct Share {
    parts: AtomicU32,
    asked: AtomicU64,
    leased: AtomicU32,
}

impl Default for Share {
    fn default() -> Self {
        Self { parts: WHOLE.into(), asked: AtomicU64::new(0), leased: AtomicU32::new(0) }
    }
}

impl Share {
    /// The share now, in parts of [`WHOLE`]; at least one.
    #[must_use]
    pub fn parts(&self) -> u32 {
        self.parts.load(Relaxed).clamp(1, WHOLE)
    }

    /// Sets it, and whether it is a lease.
    pub fn set(&self, parts: u32, is_leased: bool) {
        self.parts.store(parts, Relaxed);
        self.leased.store(is_leased.into(), Relaxed);
    }

    /// Whether it is a lease.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.leased.load(Relaxed) != 0
    }

    /// Notes that somebody asked for so much, whether or not it was admitted.
    pub fn ask(&self, cost: u64) {
        self.asked.fetch_add(cost, Relaxed);
    }

    /// What was asked for since the last look.
    pub fn take_asked(&self) -> u64 {
        self.asked.swap(0, Relaxed)
    }
}

/// What is out on lease of one limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger(Vec<Lease>);

/// One edge's lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The edge.
    pub node: String,
    /// Its share, in parts of [`WHOLE`].
    pub parts: u32,
    /// What it would like to have, in the same parts; more than the whole if it is asked for more.
    pub wanted: u32,
    /// When it ends, by the server's clock.
    pub until_ms: u64,
}

impl Ledger {
    /// Reads a ledger; `None` if it is none, or no sound one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lease = |text: &str| {
            let mut words = text.split(' ');
            let lease = Lease {
                node: words.next().filter(|node| !node.is_empty())?.to_owned(),
                parts: words.next()?.parse().ok().filter(|parts| *parts <= WHOLE)?,
                wanted: words.next()?.parse().ok()?,
                until_ms: words.next()?.parse().ok()?,
            };
            words.next().is_none().then_some(lease)
        };
        let leases = text.split(';').filter(|text| !text.is_empty()).map(lease);
        let ledger = Self(leases.collect::<Option<_>>()?);
        let is_sound = ledger.0.len() <= NODES_MAX && ledger.leased() <= u64::from(WHOLE);
        is_sound.then_some(ledger)
    }

    /// The ledger as it is shared.
    #[must_use]
    pub fn show(&self) -> String {
        let lease = |l: &Lease| format!("{} {} {} {}", l.node, l.parts, l.wanted, l.until_ms);
        self.0.iter().map(lease).collect::<Vec<_>>().join(";")
    }

    /// Renews an edge's lease, by the server's clock; its share. Others' leases are not touched: what
    /// is too much of theirs comes back when they renew.
    pub fn renew(&mut self, node: &str, wanted: u32, now_ms: u64, term_ms: u64) -> u32 {
        self.renew_beside(node, wanted, (now_ms, term_ms), 0)
    }

    /// As [`Ledger::renew`], where edges that are not in the ledger use a part all the same: of so many
    /// edges each has the one that it has [`alone`].
    pub fn renew_beside(
        &mut self,
        node: &str,
        wanted: u32,
        (now_ms, term_ms): (u64, u64),
        nodes: usize,
    ) -> u32 {
        // Nobody leases for longer than a term, whatever is written there.
        self.0.retain(|lease| (now_ms..=now_ms + term_ms).contains(&lease.until_ms));
        self.0.retain(|lease| lease.node != node);
        if self.0.len() >= NODES_MAX {
            return 0;
        }
        let absent = nodes.saturating_sub(self.0.len() + 1);
        let kept = absent as u64 * u64::from(alone(nodes));
        let free = u64::from(WHOLE).saturating_sub(self.leased() + kept);
        let others = self.0.iter().map(|lease| lease.wanted);
        let others: Vec<_> = others.chain(std::iter::repeat_n(alone(nodes), absent)).collect();
        let parts = u64::from(fair(wanted, &others)).min(free) as u32;
        let until_ms = now_ms + term_ms;
        self.0.push(Lease { node: node.to_owned(), parts, wanted, until_ms });
        parts
    }

    /// The lease of an edge that is good at this time.
    #[must_use]
    pub fn of(&self, node: &str, now_ms: u64) -> Option<&Lease> {
        self.0.iter().find(|lease| lease.node == node && lease.until_ms >= now_ms)
    }

    /// How many edges have leases.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.0.len()
    }

    /// What is out on lease.
    #[must_use]
    pub fn leased(&self) -> u64 {
        self.0.iter().map(|lease| u64::from(lease.parts)).sum()
    }
}

/// What is fair for one of them all: nobody gets more than wanted as long as another wants more
/// (max-min fairness); what nobody wants is split evenly, for whoever comes next.
fn fair(own: u32, others: &[u32]) -> u32 {
    let all = others.len() as u64 + 1;
    let mut wanted: Vec<u64> = others.iter().chain([&own]).map(|w| u64::from(*w)).collect();
    wanted.sort_unstable();
    let (mut left, mut given) = (u64::from(WHOLE), 0);
    for (n, want) in wanted.iter().enumerate() {
        let each = left / (all - n as u64);
        // The last that is satisfied raises the line for the rest.
        given = each.max(given);
        left -= each.min(*want);
        if *want > each {
            given = each;
            left = 0;
            break;
        }
    }
    let met = u64::from(own).min(given) + left / all;
    u32::try_from(met.min(WHOLE.into())).unwrap_or(WHOLE)
}

/// How much of a limit an edge is asked for, as that goes up and down.
///
/// What is asked for comes unevenly, and a bucket saves up for that: a share is to follow the mean. One
/// that followed the peaks would keep from others what nobody uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// The mean, in parts of [`WHOLE`].
    mean: f64,
    /// Requests that were to come by the mean since hardly any came.
    missed: f64,
}

impl Demand {
    /// That of an edge that was not asked before: the first look is all that is known.
    #[must_use]
    pub fn begin(asked: u64, elapsed_ns: u64, interval_ns: f64) -> Self {
        Self { mean: rate(asked, elapsed_ns, interval_ns), missed: 0.0 }
    }

    /// Notes that so much was asked for in a time, of a limit whose requests are so far apart.
    pub fn look(&mut self, asked: u64, elapsed_ns: u64, interval_ns: f64) {
        let expected = self.mean / f64::from(WHOLE) * elapsed_ns as f64 / interval_ns;
        self.missed = if asked as f64 > expected / 8.0 { 0.0 } else { self.missed + expected };
        if self.missed > MISSED_MAX {
            // That is no gap between two requests: whoever asked has gone.
            self.mean /= 4.0;
            return;
        }
        let weight = elapsed_ns as f64 / (elapsed_ns as f64 + MEAN_NS);
        self.mean += (rate(asked, elapsed_ns, interval_ns) - self.mean) * weight;
    }

    /// How much the edge wants, in parts of [`WHOLE`]; never more than twice the whole.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.mean.min(f64::from(2 * WHOLE)) as u32
    }
}

/// What was asked for in a time, in parts of [`WHOLE`]; of more than four times that, one look is to
/// say nothing for many seconds.
fn rate(asked: u64, elapsed_ns: u64, interval_ns: f64) -> f64 {
    let rate = asked as f64 / elapsed_ns.max(1) as f64;
    (rate * interval_ns * f64::from(WHOLE)).min(f64::from(4 * WHOLE))
}

/// The time that a mean is of: about as long as a bucket of a second's burst saves.
const MEAN_NS: f64 = 800_000_000.0;

/// Requests that are not missing by chance if they do not come.
const MISSED_MAX: f64 = 12.0;

/// The share of an edge that has no lease, where there are so many edges.
#[must_use]
pub fn alone(nodes: usize) -> u32 {
    WHOLE / u32::try_from(nodes.max(1)).unwrap_or(u32::MAX).min(WHOLE)
}

/// Edges that can share a limit.
pub const NODES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERM: u64 = 2_000;

    #[test]
    fn whoever_is_alone_has_all_of_it() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.renew("a", 0, 1, TERM), WHOLE);
        assert_eq!(ledger.renew("a", 5_000_000, 2, TERM), WHOLE);
    }

    #[test]
    fn shares_follow_what_is_wanted() {
        assert_eq!(fair(0, &[0]), 500_000);
        assert_eq!(fair(2_000_000, &[2_000_000]), 500_000);
        assert_eq!(fair(2_000_000, &[100_000]), 900_000);
        assert_eq!(fair(100_000, &[2_000_000]), 100_000);
        assert_eq!(fair(200_000, &[100_000]), 550_000);
        assert_eq!(fair(900_000, &[600_000, 0]), 500_000);
        assert_eq!(fair(u32::MAX, &[u32::MAX; 63]), WHOLE / 64);
    }

    #[test]
    fn what_others_have_is_theirs_until_they_renew_or_their_time_is_over() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.renew("a", 2_000_000, 0, TERM), WHOLE);
        assert_eq!(ledger.renew("b", 2_000_000, 10, TERM), 0);
        assert_eq!(ledger.renew("a", 2_000_000, 200, TERM), 500_000);
        assert_eq!(ledger.renew("b", 2_000_000, 210, TERM), 500_000);
        // The one that is gone leaves its share to the other.
        assert_eq!(ledger.renew("b", 2_000_000, 201 + TERM, TERM), WHOLE);
    }

    #[test]
    fn who_is_not_in_the_ledger_keeps_its_part() {
        let mut ledger = Ledger::default();
        let mut renew = |node, wanted, at| ledger.renew_beside(node, wanted, (at, TERM), 2);
        assert_eq!(renew("a", 2_000_000, 0), 500_000);
        // The other one comes and wants nothing: now all of it is free.
        assert_eq!(renew("b", 0, 1), 0);
        assert_eq!(renew("a", 2_000_000, 2), WHOLE);
        assert_eq!(renew("b", 2_000_000, 3), 0);
        assert_eq!(renew("a", 2_000_000, 4), 500_000);
        assert_eq!(renew("b", 2_000_000, 5), 500_000);
        // It is gone, and back to the part of those without a lease.
        assert_eq!(renew("a", 2_000_000, 6 + TERM), 500_000);
    }

    #[test]
    fn nonsense_is_no_ledger() {
        for text in
            ["x", "a 1 2", "a 1 2 3 4", "a 1000001 1 1", "a 600000 1 1;b 600000 1 1", " 1 1 1"]
        {
            assert_eq!(Ledger::parse(text), None, "{text}");
        }
        let many = (0..=NODES_MAX).map(|n| format!("n{n} 1 1 1;")).collect::<String>();
        assert_eq!(Ledger::parse(&many), None);
        // Leases for ever are none.
        let mut ledger = Ledger::parse("b 1000000 9 99999999999999").unwrap();
        assert_eq!(ledger.renew("a", 1, 10, TERM), WHOLE);
    }

    #[test]
    fn demand_is_measured_in_parts_of_the_limit() {
        // 100 a second are 10 ms apart; 50 in half a second are all of it.
        let interval = 10_000_000.0;
        assert_eq!(Demand::begin(50, 500_000_000, interval).wanted(), WHOLE);
        assert_eq!(Demand::begin(u64::MAX, 1, interval).wanted(), 2 * WHOLE);
        assert_eq!(Demand::default().wanted(), 0);
        assert_eq!((alone(0), alone(1), alone(4)), (WHOLE, WHOLE, 250_000));
    }

    #[test]
    fn demand_is_the_mean_and_gone_when_nobody_asks() {
        let (interval, look) = (25_000_000.0, 200_000_000);
        let mut demand = Demand::default();
        // Two a second, one by one: a twentieth, whenever it is looked at.
        for n in 0..100 {
            demand.look(u64::from(n % 5 < 2), look, interval);
            assert!(n < 20 || (30_000..80_000).contains(&demand.wanted()), "{n} {demand:?}");
        }
        // Twice the whole, and then nothing: half a second says so.
        for _ in 0..20 {
            demand.look(16, look, interval);
        }
        assert!(demand.wanted() > 1_900_000, "{demand:?}");
        for _ in 0..3 {
            demand.look(0, look, interval);
        }
        assert!(demand.wanted() < 300_000, "{demand:?}");
    }

    proptest! {
        #[test]
        fn never_is_more_than_the_whole_out_on_lease(
            steps in prop::collection::vec((0_usize..5, 0_u32..3_000_000, 0_u64..700), 1..200),
        ) {
            let (mut ledger, mut now) = (Ledger::default(), 0);
            let mut held = [(0_u32, 0_u64); 5];
            for (node, wanted, pause) in steps {
                now += pause;
                let parts = ledger.renew(["a", "b", "c", "d", "e"][node], wanted, now, TERM);
                held[node] = (parts, now + TERM);
                let live = held.iter().filter(|(_, until)| *until >= now);
                let sum: u64 = live.map(|(parts, _)| u64::from(*parts)).sum();
                prop_assert!(sum <= u64::from(WHOLE), "{sum}");
                prop_assert_eq!(Ledger::parse(&ledger.show()), Some(ledger.clone()));
            }
        }

        #[test]
        fn after_two_rounds_all_that_is_wanted_is_given(
            wants in prop::collection::vec(0_u32..3_000_000, 1..8),
        ) {
            let mut ledger = Ledger::default();
            let mut now = 0;
            let mut given = vec![0; wants.len()];
            for _ in 0..3 {
                for (n, want) in wants.iter().enumerate() {
                    now += 10;
                    given[n] = ledger.renew(&format!("n{n}"), *want, now, TERM);
                }
            }
            let sum: u64 = given.iter().map(|g| u64::from(*g)).sum();
            let want: u64 = wants.iter().map(|w| u64::from(*w)).sum();
            // All of the limit is out, or everybody has enough; but for what rounding takes.
            prop_assert!(sum + 64 >= u64::from(WHOLE).min(want), "{given:?} of {wants:?}");
            for (given, want) in given.iter().zip(&wants) {
                let even = WHOLE / wants.len() as u32;
                prop_assert!(given + 64 >= *want.min(&even), "{given} of {want}");
            }
        }

        #[test]
        fn nothing_that_comes_breaks_a_reader(text in any::<String>()) {
            if let Some(mut ledger) = Ledger::parse(&text) {
                let _ = ledger.renew("a", 1, 1, TERM);
            }
        }
    }
}
