//! What the traffic of the last seconds is made of, by samples of it and by the kernel's counts.
//!
//! The counts tell how many packets ended for each reason, the samples who sent them: each sample
//! speaks for as many packets as were counted for its reason since the last look, divided by the
//! samples of that reason. So the estimate needs to know neither how samples were drawn nor how
//! many were lost, as long as it was without regard to who sent them.

use edge_common::{
    ClientWidth, Plane, Reason, Source,
    map::{Count, Packet},
};

use crate::sketch::{Fade, Sketch};

/// Packets and bytes by the number of their reason.
pub type Counts = [Count; Reason::COUNT];

/// Traffic, of which a second ago counts more than a minute ago.
#[derive(Clone, Debug)]
pub struct Traffic {
    sources: Sketch<Source, Sent>,
    window_s: f64,
    samples: f64,
}

/// What a client sent, in packets and bytes of the window.
#[derive(Clone, Debug)]
pub struct Sent {
    packets: f64,
    bytes: f64,
    dropped: f64,
    reasons: Sketch<Reason>,
    services: Sketch<(u8, u16)>,
    address: Source,
}

/// A client that sends much.
#[derive(Clone, Debug, PartialEq)]
pub struct Talker {
    /// The address or prefix that stands for it.
    pub client: Source,
    /// An address of it that sent lately.
    pub address: Source,
    /// Packets a second.
    pub packets_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Packets a second that were dropped.
    pub drops_per_s: f64,
    /// Its share of the cost of all packets, 0 to 1. See [`cost`].
    pub cost: f64,
    /// For what most of its packets end.
    pub reason: Reason,
    /// The IP protocol of most of its packets; 0 if it was not parsed that far.
    pub protocol: u8,
    /// The destination port of most of its packets of that protocol.
    pub port: u16,
}

/// What a packet costs the receiver's CPU, in dropped packets: one that passes goes through the
/// network stack and to a socket, which takes about ten times what the filter takes.
#[must_use]
pub const fn cost(reason: Reason) -> f64 {
    if reason.passes() { 10.0 } else { 1.0 }
}

impl Default for Traffic {
    fn default() -> Self {
        Self { sources: Sketch::new(SOURCES_MAX), window_s: 0.0, samples: 0.0 }
    }
}

impl Traffic {
    /// Takes in the samples that came in the last `seconds`, during which so many packets were
    /// counted.
    pub fn observe(
        &mut self,
        seconds: f64,
        counted: &Counts,
        samples: &[Packet],
        width: ClientWidth,
    ) {
        let factor = fading(seconds);
        self.sources.fade(factor);
        self.window_s = self.window_s * factor + seconds;
        self.samples = self.samples * factor + samples.len() as f64;
        let mut told = [0_u64; Reason::COUNT];
        for sample in samples {
            if let Some(told) = told.get_mut(sample.reason as usize) {
                *told += 1;
            }
        }
        for sample in samples {
            let Some(reason) = Reason::from_index(sample.reason) else { continue };
            let index = reason as usize;
            let packets = counted[index].packets as f64 / told[index] as f64;
            let client = sample.source.client(width);
            self.sources.add(client, packets * cost(reason)).add(reason, packets, sample);
        }
    }

    /// The seconds that the traffic is of; a second of long ago is a small part of one.
    #[must_use]
    pub const fn window_s(&self) -> f64 {
        self.window_s
    }

    /// Samples in the window.
    #[must_use]
    pub const fn samples(&self) -> f64 {
        self.samples
    }

    /// Everyone who is known to send, in no order.
    pub fn talkers(&self) -> impl Iterator<Item = Talker> {
        let (window_s, total) = (self.window_s.max(f64::MIN_POSITIVE), self.sources.total());
        self.sources.places().filter_map(move |place| {
            let sent = &place.data;
            let (protocol, port) = sent.services.heaviest()?.key;
            // What those before it in this place sent is not its own.
            let own = place.weight - place.error;
            Some(Talker {
                client: place.key,
                address: sent.address,
                packets_per_s: sent.packets / window_s,
                bytes_per_s: sent.bytes / window_s,
                drops_per_s: sent.dropped / window_s,
                cost: own / total.max(f64::MIN_POSITIVE),
                reason: sent.reasons.heaviest()?.key,
                protocol,
                port,
            })
        })
    }
}

/// How much of what is kept is left after so many seconds.
#[must_use]
pub fn fading(seconds: f64) -> f64 {
    (-seconds / MEMORY_S).exp()
}

impl Sent {
    fn add(&mut self, reason: Reason, packets: f64, sample: &Packet) {
        self.packets += packets;
        self.bytes += packets * f64::from(sample.length);
        if reason.drops() {
            self.dropped += packets;
        }
        self.reasons.add(reason, packets);
        self.services.add((sample.protocol, sample.port), packets);
        self.address = sample.source;
    }
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            packets: 0.0,
            bytes: 0.0,
            dropped: 0.0,
            reasons: Sketch::new(REASONS_MAX),
            services: Sketch::new(SERVICES_MAX),
            address: Source::default(),
        }
    }
}

impl Fade for Sent {
    fn fade(&mut self, factor: f64) {
        self.packets *= factor;
        self.bytes *= factor;
        self.dropped *= factor;
        self.reasons.fade(factor);
        self.services.fade(factor);
    }
}

/// The mask with which about `wanted` of so many packets a second are drawn: a power of two less
/// one, of which a random number must have no bit.
#[must_use]
pub fn sample_mask(packets_per_s: f64, wanted: f64) -> u32 {
    let mut mask = 0_u32;
    while packets_per_s / (f64::from(mask) + 1.0) > wanted && mask < MASK_MAX {
        mask = mask * 2 + 1;
    }
    mask
}

/// What was counted between two readings, the sum over all reasons of the packet plane. A counter
/// that was reset in between counts from zero.
#[must_use]
pub fn since(now: &Counts, then: &Counts) -> Counts {
    let mut risen = [Count::default(); Reason::COUNT];
    for reason in Reason::ALL.iter().filter(|reason| reason.plane() == Plane::Packet) {
        let (now, then) = (now[*reason as usize], then[*reason as usize]);
        let then = if now.packets < then.packets { Count::default() } else { then };
        risen[*reason as usize] = Count {
            packets: now.packets - then.packets,
            bytes: now.bytes.saturating_sub(then.bytes),
        };
    }
    risen
}

/// Clients that are told apart: whoever causes a thousandth of the cost is among them.
const SOURCES_MAX: usize = 1024;
/// Reasons and services that are told apart for each client.
const REASONS_MAX: usize = 4;
const SERVICES_MAX: usize = 4;
/// After so many seconds a packet counts a third of what it did.
const MEMORY_S: f64 = 5.0;
/// One packet in a billion.
const MASK_MAX: u32 = (1 << 30) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(last: u8, reason: Reason, length: u32) -> Packet {
        let source = Source::v4([192, 0, 2, last]);
        let reason = reason as u32;
        Packet { at_ns: 0, source, reason, ifindex: 1, length, port: 53, protocol: 17, would: 0 }
    }

    fn counted(packets: &[(Reason, u64)]) -> Counts {
        let mut counts = [Count::default(); Reason::COUNT];
        for (reason, packets) in packets {
            counts[*reason as usize] = Count { packets: *packets, bytes: packets * 100 };
        }
        counts
    }

    #[test]
    fn samples_speak_for_what_was_counted() {
        let mut traffic = Traffic::default();
        // Of 40 000 drops 400 are sampled, of 1 000 passes 100.
        let drops = (0..400).map(|n| packet(if n % 4 == 3 { 2 } else { 1 }, Reason::DenyList, 60));
        let passes = (0..100).map(|_| packet(9, Reason::Pass, 1000));
        let samples: Vec<_> = drops.chain(passes).collect();
        let counts = counted(&[(Reason::DenyList, 40_000), (Reason::Pass, 1_000)]);
        for _ in 0..3 {
            traffic.observe(2.0, &counts, &samples, ClientWidth::USUAL);
        }
        let find = |last| {
            let client = Source::v4([192, 0, 2, last]);
            traffic.talkers().find(|talker| talker.client == client).unwrap()
        };
        let (most, some, good) = (find(1), find(2), find(9));
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6 * b;
        assert!(near(most.packets_per_s, 15_000.0) && near(some.packets_per_s, 5_000.0));
        assert!(near(most.bytes_per_s, 900_000.0) && near(most.drops_per_s, 15_000.0));
        assert!(near(good.packets_per_s, 500.0) && good.drops_per_s == 0.0);
        assert_eq!((most.reason, good.reason), (Reason::DenyList, Reason::Pass));
        assert_eq!((most.protocol, most.port), (17, 53));
        // 30 000, 10 000 and ten times 1 000.
        assert!(near(most.cost, 0.6) && near(good.cost, 0.2));
    }

    #[test]
    fn an_answered_syn_is_no_drop() {
        let mut traffic = Traffic::default();
        let samples = [packet(1, Reason::SynCookie, 60), packet(2, Reason::Unsolicited, 60)];
        let counts = counted(&[(Reason::SynCookie, 100), (Reason::Unsolicited, 100)]);
        traffic.observe(1.0, &counts, &samples, ClientWidth::USUAL);
        let dropped: Vec<_> =
            traffic.talkers().map(|talker| (talker.reason, talker.drops_per_s > 0.0)).collect();
        assert_eq!(dropped.len(), 2);
        assert!(dropped.iter().all(|(reason, is)| *is == (*reason == Reason::Unsolicited)));
    }

    #[test]
    fn what_is_past_fades() {
        let mut traffic = Traffic::default();
        let flood = [packet(1, Reason::Ban, 60)];
        traffic.observe(1.0, &counted(&[(Reason::Ban, 1000)]), &flood, ClientWidth::USUAL);
        for _ in 0..20 {
            traffic.observe(1.0, &counted(&[]), &[], ClientWidth::USUAL);
        }
        let left = traffic.talkers().next().unwrap();
        assert!(left.packets_per_s < 1000.0 * fading(20.0), "{left:?}");
        assert!((4.0..6.0).contains(&traffic.window_s()));
    }

    #[test]
    fn a_reset_counter_counts_from_zero() {
        let (then, now) = (counted(&[(Reason::Ban, 9)]), counted(&[(Reason::Ban, 4)]));
        assert_eq!(since(&now, &then)[Reason::Ban as usize].packets, 4);
        assert_eq!(since(&then, &now)[Reason::Ban as usize], Count { packets: 5, bytes: 500 });
    }

    proptest! {
        #[test]
        fn about_as_many_are_drawn_as_wanted(packets_per_s in 0.0..1e9_f64) {
            let mask = sample_mask(packets_per_s, 2000.0);
            prop_assert!((mask + 1).is_power_of_two());
            let drawn = packets_per_s / (f64::from(mask) + 1.0);
            prop_assert!(drawn <= 2000.0);
            prop_assert!(drawn > 1000.0 || mask == 0);
        }
    }
}
