//! This edge's shares of the limits that the fleet shares: renewed a few times a second, and given up
//! in time when they cannot be.

use std::{
    collections::BTreeMap,
    future,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_identity::fleet::Seal;
use edge_policy::limit::{
    Rule,
    lease::{self, Demand, Ledger},
    meter::Meter,
};
use redis::cmd;
use tokio::time;

use super::{
    Fleet,
    server::{Server, connect, said},
};
use crate::request::Edge;

/// What is known of one limit.
struct Held {
    /// Until when the lease is good.
    until: Instant,
    /// When it was last asked how much is wanted.
    looked: Instant,
    demand: Demand,
}

/// Keeps the shares of the limits in force, for ever.
pub(super) async fn keep(fleet: Arc<Fleet>, edge: Arc<Edge>) {
    let mut held = BTreeMap::<Arc<str>, Held>::new();
    let mut server: Option<Server> = None;
    let mut ticks = time::interval(EVERY);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let plan = edge.plan.load_full();
        let shared: Vec<_> = plan.limits.iter().filter(|rule| is_whole(rule)).collect();
        held.retain(|name, _| shared.iter().any(|rule| rule.spec.name == *name));
        for rule in &shared {
            let begun = Instant::now();
            let name = &rule.spec.name;
            // Nothing is leased yet.
            let anew = || Held { until: begun, looked: begun, demand: Demand::default() };
            let state = held.entry(Arc::clone(name)).or_insert_with(anew);
            state.look(rule, begun);
            let wanted = state.demand.wanted();
            let work = renew(&fleet, &mut server, name, wanted);
            let renewed = meanwhile(work, || end(&shared, &held, alone(&fleet))).await;
            fleet.counts.renewals[usize::from(renewed.is_err())].fetch_add(1, Relaxed);
            match renewed {
                Ok((parts, nodes)) => {
                    fleet.counts.nodes.store(nodes, Relaxed);
                    rule.state().share.set(parts, true);
                    held.entry(Arc::clone(name)).and_modify(|state| state.until = begun + TERM);
                }
                Err(error) => {
                    tracing::debug!(error, limit = &**name, "a lease is not renewed");
                    server = None;
                }
            }
        }
        meanwhile(ticks.tick(), || end(&shared, &held, alone(&fleet))).await;
    }
}

/// Does some work, and meanwhile gives up each lease when its time is over, whoever's turn it is: `end`
/// does so, and says when the next one's is.
pub(super) async fn meanwhile<T>(
    work: impl Future<Output = T>,
    mut end: impl FnMut() -> Option<Instant>,
) -> T {
    let mut work = pin!(work);
    loop {
        let next = end();
        let over = async {
            match next {
                Some(next) => time::sleep_until(next.into()).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            done = &mut work => {
                end();
                return done;
            }
            () = over => {}
        }
    }
}

/// Gives up what is over, and what was never leased; when the next one is over.
fn end(shared: &[&Rule], held: &BTreeMap<Arc<str>, Held>, alone: u32) -> Option<Instant> {
    let now = Instant::now();
    let mut next = None;
    for rule in shared {
        let until = held.get(&rule.spec.name).map(|held| held.until);
        match until.filter(|until| *until > now) {
            Some(until) => next = Some(next.map_or(until, |next: Instant| next.min(until))),
            None => rule.state().share.set(alone, false),
        }
    }
    next
}

/// Whether a limit is shared for everybody together.
fn is_whole(rule: &Rule) -> bool {
    rule.spec.fleet && !rule.spec.is_keyed()
}

/// Without a lease an edge keeps to the part that it would have if all asked for the same.
fn alone(fleet: &Fleet) -> u32 {
    lease::alone(fleet.settings.nodes.max(fleet.counts.nodes.load(Relaxed)))
}

impl Held {
    /// Looks how much is asked for.
    fn look(&mut self, rule: &Rule, now: Instant) {
        let Some(Meter::TokenBucket(bucket) | Meter::LeakyBucket(bucket)) = rule.spec.meter else {
            return;
        };
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.demand.look(rule.state().share.take_asked(), elapsed_ns, bucket.interval_ns());
    }
}

/// Renews the lease of a limit: reads the ledger, writes the next one, and does so again if another
/// edge came in between. The share, and how many edges have one.
async fn renew(
    fleet: &Fleet,
    server: &mut Option<Server>,
    limit: &str,
    wanted: u32,
) -> Result<(u32, usize), String> {
    let work = async {
        let seal = fleet.seal()?;
        let connection = match server {
            Some(connection) => connection,
            None => server.insert(connect(fleet, Duration::ZERO).await?),
        };
        for _ in 0..ATTEMPTS {
            if let Some(done) = attempt(fleet, connection, &seal, limit, wanted).await? {
                return Ok(done);
            }
        }
        Err("too many edges at once".to_owned())
    };
    // However slow each answer is, the whole is over before the lease is.
    time::timeout(fleet.settings.timeout, work).await.map_err(|_| "it took too long".to_owned())?
}

async fn attempt(
    fleet: &Fleet,
    server: &mut Server,
    seal: &Seal,
    limit: &str,
    wanted: u32,
) -> Result<Option<(u32, usize)>, String> {
    let (key, purpose) = (fleet.key(&format!("lease:{limit}")), format!("lease {limit}"));
    let mut look = cmd("EVAL");
    look.arg(LOOK).arg(1).arg(&key).arg(LEDGER_KEPT.as_millis() as u64);
    let answer = look.query_async::<(u64, u64, Option<String>)>(&mut **server).await;
    let (seconds, micros, sealed) = said(answer)?;
    let now_ms = seconds.saturating_mul(1_000).saturating_add(micros / 1_000);
    let ledger = sealed.as_deref().map(|sealed| {
        let text = seal.open(&purpose, sealed).ok()?;
        Ledger::parse(text.trim_start_matches('='))
    });
    let mut ledger = match ledger {
        None => Ledger::default(),
        Some(Some(ledger)) => ledger,
        // What another hand wrote is no lease of anybody's; it is gone when its time is over.
        Some(None) => return Err("the ledger is not the fleet's".to_owned()),
    };
    let parts = ledger.renew(&fleet.settings.node, wanted, now_ms, TERM.as_millis() as u64);
    let next = seal.seal(&purpose, &format!("={}", ledger.show()));
    let swap = cmd("EVAL")
        .arg(SWAP)
        .arg(1)
        .arg(&key)
        .arg(sealed.unwrap_or_default())
        .arg(next)
        .arg(LEDGER_KEPT.as_millis() as u64)
        .to_owned();
    let swapped = said(swap.query_async::<i64>(&mut **server).await)?;
    Ok((swapped == 1).then_some((parts, ledger.nodes())))
}

/// The time, and a value. One that lasts for longer than any ledger is another hand's, whatever it is: nobody
/// would take it away.
const LOOK: &str = "local ttl,most=redis.call('PTTL',KEYS[1]),tonumber(ARGV[1]) \
                    if ttl==-1 or ttl>most then redis.call('PEXPIRE',KEYS[1],most) end \
                    local t=redis.call('TIME') \
                    return {tonumber(t[1]),tonumber(t[2]),redis.call('GET',KEYS[1])}";
/// Writes a value if the former is what was read.
const SWAP: &str = "if (redis.call('GET',KEYS[1]) or '')==ARGV[1] then \
                    redis.call('SET',KEYS[1],ARGV[2],'PX',ARGV[3]) return 1 end return 0";
pub(super) const EVERY: Duration = Duration::from_millis(200);
/// How long a lease is good: longer than an answer may take.
pub(super) const TERM: Duration = Duration::from_secs(3);
pub(super) const LEDGER_KEPT: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 8;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use edge_policy::limit::lease::WHOLE;

    use super::*;
    use crate::config;

    /// Eight limits that a fleet shares.
    fn rules() -> Vec<Rule> {
        let limits = (0..8).map(|n| {
            format!("[[limit]]\nname = \"{n}\"\nby = []\nrate = \"9/s\"\nscope = \"fleet\"\n")
        });
        let text = include_str!("../../../../config/minimal.toml").to_owned();
        let fleet = "\n[fleet]\nserver = \"redis://h\"\nsecret = \"env:S\"\nnode = \"a\"\n";
        let text = text + fleet + &limits.collect::<String>();
        let (settings, _) = config::parse(Path::new("edged.toml"), &text).unwrap();
        let shared = settings.limits.into_iter().filter(|spec| spec.fleet);
        shared.map(|spec| Rule::new(spec, None, [0; 16])).collect()
    }

    #[tokio::test]
    async fn no_lease_outlives_its_term_while_another_is_waited_for() {
        let rules = rules();
        let shared: Vec<_> = rules.iter().collect();
        assert_eq!(shared.len(), 8);
        let (begun, soon) = (Instant::now(), Duration::from_millis(100));
        let leases = shared.iter().zip(0..7).map(|(rule, n)| {
            let until = begun + if n % 2 == 0 { soon } else { 3_600 * soon };
            let held = Held { until, looked: begun, demand: Demand::default() };
            (Arc::clone(&rule.spec.name), held)
        });
        let held: BTreeMap<_, _> = leases.collect();
        let parts = || shared.iter().map(|rule| rule.state().share.parts()).collect::<Vec<_>>();
        let (all, part) = (WHOLE, WHOLE / 4);
        let waited = async {
            // The last one was never leased.
            assert_eq!(parts(), [all, all, all, all, all, all, all, part]);
            while parts()[6] == all {
                time::sleep(soon / 10).await;
            }
        };
        let waited = time::timeout(100 * soon, waited);
        meanwhile(waited, || end(&shared, &held, part)).await.expect("given up meanwhile");
        assert_eq!(parts(), [part, all, part, all, part, all, part, part]);
    }
}
