//! Watches the traffic while somebody looks: has the kernel sample it, at a pace that the daemon
//! can take whatever comes in, and tells who sends most.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use edge_common::{Reason, map::Count};
use edge_policy::traffic::{self, Counts, Traffic, fading, sample_mask};
use ipnet::IpNet;
use tokio::{sync::Notify, time::sleep};

use crate::{
    control::{
        Reply,
        packets::{InterfaceTraffic, Sort, TALKERS_MAX, Talker, Top},
    },
    kernel::{KernelError, Samples, Tables},
};

/// Watches for as long as somebody asks every now and then. It lives on the control plane's thread.
pub(super) struct Watch {
    watched: RefCell<Watched>,
    asked: Notify,
}

struct Watched {
    tables: Tables,
    samples: Samples,
    until: Instant,
    /// One packet in `mask + 1` is sampled; `None` while none is.
    mask: Option<u32>,
    traffic: Traffic,
    /// What came in by each interface, fading as the traffic does.
    interfaces: BTreeMap<String, Flows>,
    /// The kernel's counters at the last look, and when that was.
    counted: Vec<(String, Counts)>,
    looked: Instant,
    lost_before: u64,
}

/// Packets and bytes by the number of their reason.
type Flows = [(f64, f64); Reason::COUNT];

impl Watch {
    pub(super) fn new(tables: Tables, samples: Samples) -> Self {
        let now = Instant::now();
        let watched = Watched {
            tables,
            samples,
            until: now,
            mask: None,
            traffic: Traffic::default(),
            interfaces: BTreeMap::new(),
            counted: Vec::new(),
            looked: now,
            lost_before: 0,
        };
        Self { watched: RefCell::new(watched), asked: Notify::new() }
    }

    /// Watches whenever it was asked, until it is dropped.
    pub(super) async fn run(&self) {
        loop {
            self.asked.notified().await;
            let watched = self.look().await;
            let ended = self.watched.borrow_mut().end();
            for error in [watched, ended].into_iter().filter_map(Result::err) {
                tracing::error!(%error, "cannot watch the traffic");
            }
        }
    }

    async fn look(&self) -> Result<(), KernelError> {
        self.watched.borrow_mut().begin()?;
        while self.watched.borrow().until > Instant::now() {
            sleep(TICK).await;
            self.watched.borrow_mut().tick()?;
        }
        Ok(())
    }

    /// Who sends most. If nobody asked lately, it takes some seconds to find out.
    pub(super) async fn top(&self, sort: Sort, limit: usize) -> Reply {
        self.watched.borrow_mut().until = Instant::now() + PATIENCE;
        self.asked.notify_one();
        let deadline = Instant::now() + PATIENCE;
        while self.watched.borrow().traffic.window_s() < WINDOW_MIN_S {
            if Instant::now() >= deadline {
                return Reply::Refused("the traffic cannot be watched; the log says why".into());
            }
            sleep(TICK).await;
        }
        match self.watched.borrow().tell(sort, limit.min(TALKERS_MAX)) {
            Ok(top) => Reply::Top(Box::new(top)),
            Err(error) => Reply::Refused(error.to_string()),
        }
    }
}

impl Watched {
    /// Starts anew. The first tick only finds out how much there is to sample.
    fn begin(&mut self) -> Result<(), KernelError> {
        while self.samples.next_sample().is_some() {}
        self.counted = self.tables.counts_apart()?;
        self.lost_before = self.tables.samples_lost()?;
        self.looked = Instant::now();
        Ok(())
    }

    /// Takes in what came since the last tick, and adapts the sampling to it.
    fn tick(&mut self) -> Result<(), KernelError> {
        let counted = self.tables.counts_apart()?;
        let now = Instant::now();
        let seconds = (now - self.looked).as_secs_f64();
        let risen = risen(&counted, &self.counted);
        (self.counted, self.looked) = (counted, now);
        let sum = sum(&risen);
        if self.mask.is_some() {
            let samples: Vec<_> = std::iter::from_fn(|| self.samples.next_sample()).collect();
            let width = self.tables.settings()?.client;
            self.traffic.observe(seconds, &sum, &samples, width);
            self.flow(seconds, &risen);
        }
        let packets: u64 = sum.iter().map(|count| count.packets).sum();
        let mask = sample_mask(packets as f64 / seconds, SAMPLES_PER_S);
        if self.mask != Some(mask) {
            self.tables.sample(Some(mask))?;
            self.mask = Some(mask);
        }
        Ok(())
    }

    fn flow(&mut self, seconds: f64, risen: &[(String, Counts)]) {
        for flow in self.interfaces.values_mut().flatten() {
            *flow = (flow.0 * fading(seconds), flow.1 * fading(seconds));
        }
        for (name, counts) in risen {
            let flows = self.interfaces.entry(name.clone());
            let flows = flows.or_insert_with(|| [(0.0, 0.0); Reason::COUNT]);
            for (flow, count) in flows.iter_mut().zip(counts) {
                flow.0 += count.packets as f64;
                flow.1 += count.bytes as f64;
            }
        }
    }

    fn end(&mut self) -> Result<(), KernelError> {
        self.mask = None;
        self.traffic = Traffic::default();
        self.interfaces.clear();
        self.tables.sample(None)
    }

    fn tell(&self, sort: Sort, limit: usize) -> Result<Top, KernelError> {
        let mut talkers: Vec<_> =
            self.traffic.talkers().filter(|talker| talker.packets_per_s >= TALK_MIN).collect();
        let rank = |talker: &traffic::Talker| match sort {
            Sort::Cost => talker.cost,
            Sort::Packets => talker.packets_per_s,
            Sort::Bytes => talker.bytes_per_s,
            Sort::Drops => talker.drops_per_s,
        };
        talkers.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
        talkers.truncate(limit);
        let talkers = talkers.iter().map(|talker| self.tell_talker(talker));
        let window_s = self.traffic.window_s();
        let interfaces = self.interfaces.iter();
        Ok(Top {
            window_s,
            samples: self.traffic.samples() as u64,
            sampled: self.mask.map_or(0, |mask| u64::from(mask) + 1),
            samples_lost: self.tables.samples_lost()?.saturating_sub(self.lost_before),
            interfaces: interfaces.map(|(name, flows)| tell_flows(name, flows, window_s)).collect(),
            talkers: talkers.collect::<Result<_, _>>()?,
        })
    }

    fn tell_talker(&self, talker: &traffic::Talker) -> Result<Talker, KernelError> {
        let known = self.tables.explain(talker.address.into())?;
        let width = self.tables.settings()?.client;
        let bits = if talker.client.is_v4() {
            width.v4 as u8
        } else if talker.client.is_link_local() {
            128
        } else {
            width.v6 as u8
        };
        let client = talker.client.into();
        let source = IpNet::new(client, bits).map_or_else(
            |_| client.to_string(),
            |net| {
                if net.prefix_len() == net.max_prefix_len() {
                    client.to_string()
                } else {
                    net.to_string()
                }
            },
        );
        Ok(Talker {
            source,
            cost: talker.cost,
            packets_per_s: talker.packets_per_s,
            bytes_per_s: talker.bytes_per_s,
            drops_per_s: talker.drops_per_s,
            reason: talker.reason.name().into(),
            protocol: talker.protocol,
            port: talker.port,
            open_connections: known.open.into(),
            banned: known.ban.is_some(),
            listed: match known.reason {
                Reason::AllowList => Some("allow".into()),
                Reason::DenyList => Some("deny".into()),
                _ => None,
            },
        })
    }
}

/// What came in by each interface since the last look. Of one that has another name by now it is not known:
/// its counters go on from long before.
fn risen(counted: &[(String, Counts)], before: &[(String, Counts)]) -> Vec<(String, Counts)> {
    let since = |(name, counts): &(String, Counts)| {
        let (_, then) = before.iter().find(|(known, _)| known == name)?;
        Some((name.clone(), traffic::since(counts, then)))
    };
    counted.iter().filter_map(since).collect()
}

fn sum(interfaces: &[(String, Counts)]) -> Counts {
    let mut sum = [Count::default(); Reason::COUNT];
    for (_, counts) in interfaces {
        for (sum, count) in sum.iter_mut().zip(counts) {
            sum.packets += count.packets;
            sum.bytes += count.bytes;
        }
    }
    sum
}

fn tell_flows(name: &str, flows: &Flows, window_s: f64) -> InterfaceTraffic {
    let drops = Reason::ALL.iter().zip(flows).filter(|(reason, _)| reason.drops());
    let drops = drops.map(|(reason, (packets, _))| (reason.name().into(), packets / window_s));
    InterfaceTraffic {
        name: name.to_owned(),
        packets_per_s: flows.iter().map(|(packets, _)| packets).sum::<f64>() / window_s,
        bytes_per_s: flows.iter().map(|(_, bytes)| bytes).sum::<f64>() / window_s,
        drops_per_s: drops.filter(|(_, packets)| *packets >= TALK_MIN).collect(),
    }
}

/// How often samples are fetched. The ring holds those of more than two seconds.
const TICK: Duration = Duration::from_millis(250);
/// How long the watch goes on after somebody asked, and how long they may wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Seconds of traffic that an answer rests on at least: after about two and a half.
const WINDOW_MIN_S: f64 = 2.0;
/// Samples that are asked of the kernel. An estimate of someone who sends a tenth of the traffic is
/// off by 3 % on average.
const SAMPLES_PER_S: f64 = 2000.0;
/// Packets a second below which nobody is worth a line.
const TALK_MIN: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_brings_no_traffic_of_the_past() {
        let counts = |packets| [Count { packets, bytes: 0 }; Reason::COUNT];
        let before = [("eth0".into(), counts(1_000)), ("eth1".into(), counts(5))];
        let now = [("wan".into(), counts(1_010)), ("eth1".into(), counts(7))];
        let risen = risen(&now, &before);
        let told: Vec<_> = risen.iter().map(|(name, c)| (name.as_str(), c[0].packets)).collect();
        assert_eq!(told, [("eth1", 2)]);
    }
}
