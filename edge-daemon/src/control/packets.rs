//! What can be asked and told about packets.

use std::{collections::BTreeMap, net::IpAddr};

use edge_common::Reason;
use edge_policy::{traffic::Counts, verdict::Evidence};
use serde::{Deserialize, Serialize};

use super::bans::{BanEntry, Level};

/// Clients that one answer tells of at most.
pub const TALKERS_MAX: usize = 256;

/// A packet to ask about; what is left out is as in a TCP SYN to the first HTTPS listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The whole frame from the Ethernet header on, in hexadecimal; all else is left out then, but
    /// for the interface.
    pub frame: Option<String>,
    /// The interface that it comes in by; `None`: the first that is guarded.
    pub interface: Option<String>,
    /// Its protocol.
    pub protocol: Option<Protocol>,
    /// Its destination address.
    pub destination: Option<IpAddr>,
    /// Its destination port.
    pub port: Option<u16>,
    /// Its source port.
    pub source_port: Option<u16>,
    /// Its TCP flags, as the header has them.
    pub flags: Option<u8>,
    /// Bytes of the whole frame.
    pub length: Option<u32>,
}

/// The protocol of a packet to ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// An ICMP or ICMPv6 echo request
    Icmp,
}

/// What a client, or a prefix around it, may still send at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The name of the reason for which more than that is refused.
    pub limit: String,
    /// The client or the prefix.
    pub of: String,
    /// Packets, bytes or connections that still fit.
    pub left: u64,
    /// Those that fit into an untouched bucket.
    pub burst: u64,
}

/// What came in by an interface so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that were dropped.
    pub drops: u64,
}

impl Traffic {
    /// The sum over all reasons, of the interface of this name.
    #[must_use]
    pub fn of(counts: &[(String, Counts)], interface: &str) -> Self {
        let mut sum = Self::default();
        let counts = counts.iter().filter(|(name, _)| name == interface);
        for (reason, count) in counts.flat_map(|(_, counts)| Reason::ALL.iter().zip(counts)) {
            sum.packets += count.packets;
            sum.bytes += count.bytes;
            sum.drops += if reason.drops() { count.packets } else { 0 };
        }
        sum
    }
}

/// Events that were not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsLost {
    /// Security events: over their rate, a full queue or a failing destination.
    pub security: u64,
    /// Drop events that the kernel kept back: over their rate, or a full ring.
    pub drops: u64,
    /// Samples that the kernel kept back: a full ring.
    pub samples: u64,
}

/// By what those who send most are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// What they cost the receiver
    Cost,
    /// Packets
    Packets,
    /// Bytes
    Bytes,
    /// Dropped packets
    Drops,
}

/// Who sends most, by samples of the traffic of the last seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Top {
    /// The seconds that the figures are of; what is past fades out of them.
    pub window_s: f64,
    /// Samples that they rest on.
    pub samples: u64,
    /// One packet in so many is sampled.
    pub sampled: u64,
    /// Samples lost since somebody began to look.
    pub samples_lost: u64,
    /// What comes in by each guarded interface, and by any other.
    pub interfaces: Vec<InterfaceTraffic>,
    /// Clients, the first by the order that was asked for first.
    pub talkers: Vec<Talker>,
}

/// What comes in by an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceTraffic {
    /// Its name.
    pub name: String,
    /// Packets a second.
    pub packets_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Packets a second that are dropped, by the name of the reason.
    pub drops_per_s: BTreeMap<String, f64>,
}

/// A client that sends much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Talker {
    /// The address or prefix that stands for it.
    pub source: String,
    /// Its share of what all packets cost the receiver, 0 to 1.
    pub cost: f64,
    /// Packets a second.
    pub packets_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Packets a second that are dropped.
    pub drops_per_s: f64,
    /// The name of the reason for which most of its packets end.
    pub reason: String,
    /// The IP protocol of most of its packets; 0 if it was not parsed that far.
    pub protocol: u8,
    /// Their destination port; an ICMP type and code.
    pub port: u16,
    /// TCP connections that it holds open.
    pub open_connections: u64,
    /// Whether it is banned.
    pub banned: bool,
    /// The list it is on: "allow" or "deny".
    pub listed: Option<String>,
}

/// What would happen to a packet from an address, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The address that was asked about.
    pub address: IpAddr,
    /// The code of the country that it is from, if a database of `[geo]` tells.
    pub country: Option<String>,
    /// The number of the network of networks that it is of, if one tells.
    pub asn: Option<u64>,
    /// The packet that was asked about, in words.
    pub packet: String,
    /// The name of the reason for which it would end.
    pub verdict: String,
    /// What that reason means.
    pub meaning: String,
    /// Whether it would reach the network stack.
    pub passes: bool,
    /// Whether it would be answered in the stack's place, as a SYN is by a cookie.
    #[serde(default)]
    pub answered: bool,
    /// Whether the interface is not filtered now, so that it passes whatever the verdict.
    #[serde(default)]
    pub unfiltered: bool,
    /// The name of the reason for which it would be dropped but for monitor mode.
    pub would: Option<String>,
    /// The rule that decides: a network of a list, the client that is banned, a signature, or the key
    /// of the configuration.
    pub rule: Option<String>,
    /// Where that network is from, as [`ListEntry::source`](super::protocol::ListEntry::source) tells it.
    pub source: Option<String>,
    /// Why, in the words of the operator, or of the line of a list.
    pub reason: Option<String>,
    /// Since when, if that is known.
    pub since_ms: Option<u64>,
    /// When that rule ends; `None`: never, or there is none.
    pub until_ms: Option<u64>,
    /// Packets that the rule decided.
    pub hits: u64,
    /// What is in force against the client or a part of it, also where something else decides.
    pub bans: Vec<BanEntry>,
    /// What the client and the prefixes around it may still send at once.
    pub buckets: Vec<Bucket>,
    /// TCP connections that the client holds open.
    pub open_connections: u64,
    /// How many it may hold; 0: any number.
    pub open_connections_max: u32,
    /// How full its buckets are, those that are empty left out.
    pub levels: Vec<Level>,
    /// How many verdicts the client has had that are not forgotten.
    pub strikes: u32,
    /// Its latest misdeeds, the latest first; times are unix milliseconds.
    pub misdeeds: Vec<Evidence>,
    /// Whether several identities succeeded from it of late, so that it is never banned as a whole.
    pub shared: bool,
}
