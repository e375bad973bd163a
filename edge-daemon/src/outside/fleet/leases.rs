//! This edge's shares of the limits that the fleet shares: renewed a few times a second, and given up
//! in time when they cannot be.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_identity::fleet::Seal;
use edge_policy::limit::{
    Rule,
    lease::{self, Demand, Ledger, Share},
    meter::Meter,
};
use redis::{cmd, pipe};
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
    loop {
        ticks.tick().await;
        let plan = edge.plan.load_full();
        let shared: Vec<_> = plan.limits.iter().filter(|rule| is_whole(rule)).collect();
        held.retain(|name, _| shared.iter().any(|rule| rule.spec.name == *name));
        for rule in shared {
            let now = Instant::now();
            let state = held.entry(Arc::clone(&rule.spec.name)).or_insert_with(|| {
                // Nothing is leased yet.
                alone(&fleet, &rule.state().share);
                Held { until: now, looked: now, demand: Demand::default() }
            });
            state.look(rule, now);
            let begun = Instant::now();
            let wanted = state.demand.wanted();
            let renewed = renew(&fleet, &mut server, &rule.spec.name, wanted).await;
            fleet.counts.renewals[usize::from(renewed.is_err())].fetch_add(1, Relaxed);
            match renewed {
                Ok((parts, nodes)) => {
                    state.until = begun + TERM;
                    fleet.counts.nodes.store(nodes, Relaxed);
                    rule.state().share.set(parts, true);
                }
                Err(error) => {
                    tracing::debug!(error, limit = &*rule.spec.name, "a lease is not renewed");
                    server = None;
                }
            }
            if Instant::now() >= state.until {
                alone(&fleet, &rule.state().share);
            }
        }
    }
}

/// Whether a limit is shared for everybody together.
fn is_whole(rule: &Rule) -> bool {
    rule.spec.fleet && !rule.spec.is_keyed()
}

/// Without a lease an edge keeps to the part that it would have if all asked for the same.
fn alone(fleet: &Fleet, share: &Share) {
    share.set(lease::alone(fleet.settings.nodes.max(fleet.counts.nodes.load(Relaxed))), false);
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
    let mut look = pipe();
    look.cmd("TIME").cmd("GET").arg(&key);
    let answer = look.query_async::<((u64, u64), Option<String>)>(&mut **server).await;
    let ((seconds, micros), sealed) = said(answer)?;
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

/// Writes a value if the former is what was read.
const SWAP: &str = "if (redis.call('GET',KEYS[1]) or '')==ARGV[1] then \
                    redis.call('SET',KEYS[1],ARGV[2],'PX',ARGV[3]) return 1 end return 0";
pub(super) const EVERY: Duration = Duration::from_millis(200);
/// How long a lease is good: longer than an answer may take.
pub(super) const TERM: Duration = Duration::from_secs(3);
pub(super) const LEDGER_KEPT: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 8;
