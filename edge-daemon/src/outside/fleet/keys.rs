//! This edge's parts of single keys of the limits that the fleet shares by key.
//!
//! A key that is asked for little is nobody's business: each edge has its even part of it. One that an
//! edge is asked for more is put on a list that all edges read five times a second, and then has a
//! ledger of leases like a limit for everybody. Every edge takes part in each ledger on the list, wanted
//! there or not: who does not has its even part still, and what it has nobody else can get.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_identity::fleet::Seal;
use edge_policy::limit::{
    Rule,
    keyed::Keyed,
    lease::{self, Demand, Ledger, WHOLE},
    meter::Meter,
};
use redis::cmd;
use tokio::time;

use super::{
    Fleet,
    leases::{EVERY, LEDGER_KEPT, TERM, meanwhile},
    server::{Server, connect, said},
};
use crate::request::Edge;

/// What is known of the keys of one limit.
struct Limit {
    looked: Instant,
    keys: BTreeMap<u64, Held>,
}

/// What is known of one key.
#[derive(Default)]
struct Held {
    demand: Demand,
    /// Until when the lease is good; `None`: there is none.
    until: Option<Instant>,
}

/// A ledger as it was read, and as it is to be.
struct Change {
    key: u64,
    parts: u32,
    former: String,
    next: String,
    /// Whether it is asked for here.
    is_wanted: bool,
}

/// What the server has: its time in milliseconds, and the ledgers on the list.
struct Listed {
    now_ms: u64,
    ledgers: BTreeMap<u64, String>,
}

/// Keeps the parts of the keys in use, for ever.
pub(super) async fn keep(fleet: Arc<Fleet>, edge: Arc<Edge>) {
    let mut limits = BTreeMap::<Arc<str>, Limit>::new();
    let mut server = None;
    let mut ticks = time::interval(EVERY);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        let plan = edge.plan.load_full();
        let shared: Vec<_> = plan.limits.iter().filter(|rule| rule.spec.is_keyed()).collect();
        limits.retain(|name, _| shared.iter().any(|rule| rule.spec.name == *name));
        let nodes = fleet.settings.nodes;
        for rule in &shared {
            let Some(keyed) = &rule.state().keyed else { continue };
            let (name, begun) = (&rule.spec.name, Instant::now());
            let anew = || Limit { looked: begun, keys: BTreeMap::new() };
            limits.entry(Arc::clone(name)).or_insert_with(anew).look(rule, keyed, nodes);
            let Some(known) = limits.get(name) else { continue };
            let work = renew(&fleet, &mut server, name, known);
            let work = time::timeout(fleet.settings.timeout, work);
            let renewed = meanwhile(work, || end(&shared, &limits, lease::alone(nodes))).await;
            let renewed = renewed.unwrap_or_else(|_| Err("it took too long".to_owned()));
            fleet.counts.renewals[usize::from(renewed.is_err())].fetch_add(1, Relaxed);
            let Some(limit) = limits.get_mut(name) else { continue };
            match renewed {
                Ok(leases) => limit.adopt(keyed, leases, begun),
                Err(error) => {
                    tracing::debug!(error, limit = &**name, "leases are not renewed");
                    server = None;
                }
            }
            limit.forget(keyed);
        }
        meanwhile(ticks.tick(), || end(&shared, &limits, lease::alone(nodes))).await;
    }
}

/// Gives up what is over in all limits; when the next is. Keys without a lease have the `alone` part.
fn end(shared: &[&Rule], limits: &BTreeMap<Arc<str>, Limit>, alone: u32) -> Option<Instant> {
    let now = Instant::now();
    let mut next: Option<Instant> = None;
    for rule in shared {
        let Some(keyed) = &rule.state().keyed else { continue };
        keyed.set_alone(alone);
        let keys = limits.get(&rule.spec.name).into_iter().flat_map(|limit| &limit.keys);
        for (key, until) in keys.filter_map(|(key, held)| Some((key, held.until?))) {
            if until > now {
                next = Some(next.map_or(until, |next| next.min(until)));
            } else {
                keyed.lease(*key, None);
            }
        }
    }
    next
}

impl Held {
    /// Whether it is asked for here so that others have to know.
    fn is_wanted(&self) -> bool {
        self.demand.wanted() > FAINT
    }
}

impl Limit {
    /// Looks how much is asked for of each key.
    fn look(&mut self, rule: &Rule, keyed: &Keyed, nodes: usize) {
        let Some(Meter::TokenBucket(bucket) | Meter::LeakyBucket(bucket)) = rule.spec.meter else {
            return;
        };
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let mut asked = keyed.take_asked();
        for (key, held) in &mut self.keys {
            let asked = asked.remove(key).unwrap_or(0);
            held.demand.look(asked, elapsed_ns, bucket.interval_ns());
        }
        for (key, asked) in asked {
            let demand = Demand::begin(asked, elapsed_ns, bucket.interval_ns());
            // Half of the even part is not much; more may soon be too much.
            if demand.wanted() > lease::alone(nodes) / 2 && self.keys.len() < KEYS_MAX {
                self.keys.insert(key, Held { demand, until: None });
            }
        }
    }

    /// Takes the leases that were written.
    fn adopt(&mut self, keyed: &Keyed, leases: Vec<(u64, u32)>, begun: Instant) {
        for (key, parts) in leases {
            if self.keys.len() < KEYS_MAX || self.keys.contains_key(&key) {
                self.keys.entry(key).or_default().until = Some(begun + TERM);
                keyed.lease(key, Some(parts));
            }
        }
    }

    /// Forgets what is over, and what nobody asks for.
    fn forget(&mut self, keyed: &Keyed) {
        let now = Instant::now();
        self.keys.retain(|key, held| {
            if held.until.is_some_and(|until| now >= until) {
                held.until = None;
                keyed.lease(*key, None);
            }
            held.until.is_some() || held.is_wanted()
        });
    }
}

/// Takes part in the ledgers on the list, and puts there what is asked for here; the parts of the keys
/// of which this edge has a lease now.
async fn renew(
    fleet: &Fleet,
    server: &mut Option<Server>,
    limit: &str,
    known: &Limit,
) -> Result<Vec<(u64, u32)>, String> {
    let seal = fleet.seal()?;
    let server = match server {
        Some(server) => server,
        None => server.insert(connect(fleet, Duration::ZERO).await?),
    };
    let list = fleet.key(&format!("keys:{limit}"));
    let mut leases = Vec::new();
    for _ in 0..ATTEMPTS {
        let Listed { now_ms, ledgers } = read(server, &list).await?;
        let own = known.keys.iter().filter(|(_, held)| held.is_wanted()).map(|(key, _)| *key);
        let keys: BTreeSet<u64> = own.chain(ledgers.keys().copied()).collect();
        let changes = keys.into_iter().filter_map(|key| {
            let former = ledgers.get(&key).cloned().unwrap_or_default();
            change(fleet, (&seal, limit), (key, former), known.keys.get(&key), now_ms)
        });
        let changes: Vec<_> = changes.collect();
        if changes.is_empty() {
            break;
        }
        let swapped = write(server, &list, &changes, now_ms).await?;
        let written = changes.iter().zip(&swapped).filter(|(_, swapped)| **swapped);
        leases.extend(written.map(|(change, _)| (change.key, change.parts)));
        if swapped.iter().all(|swapped| *swapped) {
            break;
        }
        // Another edge came in between; the others are right by now, and no harm is done by a repetition.
    }
    Ok(leases)
}

/// What becomes of a ledger; `None` if what is there is not the fleet's.
fn change(
    fleet: &Fleet,
    (seal, limit): (&Seal, &str),
    (key, former): (u64, String),
    held: Option<&Held>,
    now_ms: u64,
) -> Option<Change> {
    let purpose = format!("lease {limit} {key:016x}");
    let mut ledger = match former.as_str() {
        "" => Ledger::default(),
        sealed => Ledger::parse(seal.open(&purpose, sealed).ok()?.trim_start_matches('='))?,
    };
    let (node, term_ms) = (&fleet.settings.node, TERM.as_millis() as u64);
    let wanted = held.map_or(0, |held| held.demand.wanted());
    let parts = ledger.renew_beside(node, wanted, (now_ms, term_ms), fleet.settings.nodes);
    let next = seal.seal(&purpose, &format!("={}", ledger.show()));
    Some(Change { key, parts, former, next, is_wanted: held.is_some_and(Held::is_wanted) })
}

async fn read(server: &mut Server, list: &str) -> Result<Listed, String> {
    let mut read = cmd("EVAL");
    read.arg(READ).arg(1).arg(list).arg(LISTED.as_millis() as u64).arg(KEYS_MAX);
    read.arg(LEDGER_KEPT.as_millis() as u64);
    let answer = read.query_async::<(u64, u64, Vec<String>, Vec<String>)>(&mut **server).await;
    let (seconds, micros, keys, ledgers) = said(answer)?;
    let now_ms = seconds.saturating_mul(1_000).saturating_add(micros / 1_000);
    let named = keys.into_iter().zip(ledgers);
    let ledgers = named.filter_map(|(key, ledger)| {
        Some((u64::from_str_radix(&key, 16).ok().filter(|_| key.len() == 16)?, ledger))
    });
    Ok(Listed { now_ms, ledgers: ledgers.collect() })
}

/// Writes what is to change; which of it was.
async fn write(
    server: &mut Server,
    list: &str,
    changes: &[Change],
    now_ms: u64,
) -> Result<Vec<bool>, String> {
    let mut swap = cmd("EVAL");
    swap.arg(SWAP).arg(1).arg(list).arg(LEDGER_KEPT.as_millis() as u64).arg(KEYS_MAX);
    swap.arg(now_ms.saturating_sub(LISTED.as_millis() as u64)).arg(now_ms);
    for Change { key, former, next, is_wanted, .. } in changes {
        swap.arg(format!("{key:016x}")).arg(former).arg(next).arg(u8::from(*is_wanted));
    }
    let swapped = said(swap.query_async::<Vec<i64>>(&mut **server).await)?;
    Ok(swapped.into_iter().map(|swapped| swapped == 1).collect())
}

/// The time, the keys on the list, and their ledgers. What lasts for longer than a ledger is another hand's.
const READ: &str = "local t=redis.call('TIME') \
    local now=t[1]*1000+math.floor(t[2]/1000) \
    local keys=redis.call('ZREVRANGEBYSCORE',KEYS[1],'+inf',now-ARGV[1],'LIMIT',0,ARGV[2]) \
    local ledgers={} \
    for i,key in ipairs(keys) do \
      local own=KEYS[1]..':'..key \
      local ttl,most=redis.call('PTTL',own),tonumber(ARGV[3]) \
      if ttl==-1 or ttl>most then redis.call('PEXPIRE',own,most) end \
      ledgers[i]=redis.call('GET',own) or '' \
    end \
    return {tonumber(t[1]),tonumber(t[2]),keys,ledgers}";

/// Writes each ledger if the former is what was read and there is room on the list, on which those stay
/// that somebody asks for.
const SWAP: &str = "redis.call('ZREMRANGEBYSCORE',KEYS[1],'-inf','('..ARGV[3]) \
    local room=ARGV[2]-redis.call('ZCARD',KEYS[1]) \
    local done={} \
    for i=5,#ARGV,4 do \
      local key=KEYS[1]..':'..ARGV[i] \
      local listed=redis.call('ZSCORE',KEYS[1],ARGV[i]) \
      local ok=0 \
      if (listed or room>0) and (redis.call('GET',key) or '')==ARGV[i+1] then \
        if not listed then room=room-1 end \
        if ARGV[i+3]=='1' then redis.call('ZADD',KEYS[1],ARGV[4],ARGV[i]) end \
        redis.call('SET',key,ARGV[i+2],'PX',ARGV[1]) \
        ok=1 \
      end \
      done[#done+1]=ok \
    end \
    return done";

const ATTEMPTS: usize = 4;
/// So much of a key is no demand: less than half of an even part of the most edges.
const FAINT: u32 = WHOLE / 256;
/// Keys of one limit that have leases at once, in the whole fleet.
const KEYS_MAX: usize = 1_024;
/// How long a key stays on the list that nobody asks for.
const LISTED: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    #[tokio::test]
    async fn no_key_keeps_its_lease_beyond_its_term_while_another_limit_is_waited_for() {
        let limits = (0..8).map(|n| {
            format!(
                "[[limit]]\nname = \"{n}\"\nby = [\"source\"]\nrate = \"9/s\"\nscope = \"fleet\"\n"
            )
        });
        let text = include_str!("../../../../config/minimal.toml").to_owned() + FLEET;
        let text = text + &limits.collect::<String>();
        let (settings, _) = config::parse(Path::new("edged.toml"), &text).unwrap();
        let shared = settings.limits.into_iter().filter(|spec| spec.fleet);
        let rules: Vec<_> = shared.map(|spec| Rule::new(spec, None, [0; 16])).collect();
        let shared: Vec<_> = rules.iter().collect();
        let (begun, soon) = (Instant::now(), Duration::from_millis(100));
        let (all, part) = (WHOLE, WHOLE / 4);
        let limits = shared.iter().zip(0..).map(|(rule, n)| {
            rule.state().keyed.as_ref().unwrap().lease(7, Some(all));
            let until = Some(begun + if n % 2 == 0 { soon } else { 3_600 * soon });
            let keys = BTreeMap::from([(7, Held { until, demand: Demand::default() })]);
            (Arc::clone(&rule.spec.name), Limit { looked: begun, keys })
        });
        let limits: BTreeMap<_, _> = limits.collect();
        let keyed = shared.iter().filter_map(|rule| rule.state().keyed.as_ref());
        let parts = || keyed.clone().map(|keyed| keyed.ask(7, 1)).collect::<Vec<_>>();
        let waited = async {
            assert_eq!(parts(), [all; 8]);
            while parts()[6] == all {
                time::sleep(soon / 10).await;
            }
        };
        let waited = time::timeout(100 * soon, waited);
        meanwhile(waited, || end(&shared, &limits, part)).await.expect("given up meanwhile");
        assert_eq!(parts(), [part, all, part, all, part, all, part, all]);
    }

    const FLEET: &str = "\n[fleet]\nserver = \"redis://h\"\nsecret = \"env:S\"\nnode = \"a\"\n";
}
