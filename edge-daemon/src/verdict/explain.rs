//! What becomes of a packet, and why: asked of the packet program itself, by its twin, and of the
//! tables that it goes by.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use edge_common::{
    Reason, Source,
    map::{FOREVER, Facts},
};
use edge_policy::{
    list::Class,
    place::Place,
    probe::{self, Transport},
    verdict::Culprit,
};

use super::{
    Writer,
    bans::{dated, reason_of},
    book::Held,
    configured,
};
use crate::{
    clock,
    control::{
        bans::{BanEntry, Level},
        packets::{Bucket, Explanation, Probe, Protocol},
    },
    kernel,
};

/// What is known of the rule that decides.
#[derive(Default)]
struct Rule {
    name: Option<String>,
    source: Option<String>,
    reason: Option<String>,
    since_ms: Option<u64>,
    until_ns: Option<u64>,
    hits: u64,
}

impl Writer {
    /// Runs the twin on such a packet, and finds the rule that decided.
    pub(super) fn explain(
        &mut self,
        address: Option<IpAddr>,
        probe: &Probe,
    ) -> anyhow::Result<Explanation> {
        let mut guarded = self.health.interfaces();
        guarded.retain(|interface| interface.ifindex != 0);
        let interface = match &probe.interface {
            None => guarded.first(),
            Some(name) => Some(
                guarded
                    .iter()
                    .find(|guarded| guarded.name == *name)
                    .with_context(|| format!("no interface named {name} is guarded"))?,
            ),
        };
        let unfiltered = interface.is_some_and(|interface| !interface.is_guarded);
        let (interface, ifindex) =
            interface.map_or(("lo", 0), |found| (found.name.as_str(), found.ifindex));
        let (frame, words) = match (&probe.frame, address) {
            (Some(frame), _) => (read_hex(frame)?, "a frame".to_owned()),
            (None, Some(address)) => self.frame(address, probe, interface)?,
            (None, None) => bail!("neither an address nor a frame to ask about"),
        };
        let facts = self.twin.judge(&frame, ifindex)?;
        let settings = self.tables.settings()?;
        let address = facts.source.into();
        let mut found = self.tables.explain(address)?;
        let reason = Reason::from_index(facts.reason).unwrap_or(Reason::InternalError);
        let would = facts.would.checked_sub(1).and_then(Reason::from_index);
        if would == Some(Reason::DenyList) && found.network.is_none() {
            let watched = self.tables.lists.decides(Class::Watch, address, clock::boot_ns());
            found.network = watched.map(|(net, entry)| (Class::Watch, net, entry));
        }
        // What was only monitored is told of where nothing else decided.
        let decided = would.filter(|_| reason.passes()).unwrap_or(reason);
        let (client, now_ns) = (found.client, clock::boot_ns());
        let buckets = self.twin.buckets(&settings, &facts)?;
        let rule = self.rule(decided, &facts, &found, &buckets);
        let places = self.edge.plan.load().geo.places(address);
        Ok(Explanation {
            address,
            country: places.get(Place::Country).map(|code| Place::Country.show(code)),
            asn: places.get(Place::Asn),
            packet: format!("{words}, {} bytes, by {interface}", frame.len()),
            verdict: reason.name().into(),
            meaning: reason.meaning().trim().into(),
            passes: reason.passes() || unfiltered,
            answered: reason.answers() && !unfiltered,
            unfiltered,
            would: would.map(|reason| reason.name().into()),
            rule: rule.name,
            source: rule.source,
            reason: rule.reason,
            since_ms: rule.since_ms,
            until_ms: rule.until_ns.filter(|until| *until != FOREVER).map(clock::unix_ms_at),
            hits: rule.hits,
            bans: self.bans_of(client)?,
            buckets: buckets.iter().map(|bucket| show_bucket(bucket, &facts, client)).collect(),
            open_connections: found.open.into(),
            open_connections_max: settings.open_max,
            levels: self.levels(client, now_ns),
            strikes: self.engine.strikes(&Culprit::Source(client), now_ns),
            misdeeds: self.engine.misdeeds(&client).iter().map(dated).collect(),
            shared: self.edge.identities.is_shared(&client, now_ns),
        })
    }

    /// How full the buckets of a client are, and of whom its signals are held against in its place.
    fn levels(&self, client: Source, now_ns: u64) -> Vec<Level> {
        let mut levels = Vec::new();
        for culprit in self.engine.culprits(&client) {
            let own = self.engine.levels(&culprit, client, now_ns).into_iter();
            levels.extend(own.map(|level| Level::new(&culprit, level)));
        }
        levels
    }

    /// What is in force against a client, or against a part of what comes from it.
    fn bans_of(&self, client: Source) -> anyhow::Result<Vec<BanEntry>> {
        let now_ns = clock::boot_ns();
        let banned = self.bans.get(&client).into_iter();
        let own = |culprit: &Culprit| culprit.source() == Some(client);
        let others = self.penalties.iter().filter(|(culprit, _)| own(culprit));
        let all = banned.chain(others.map(|(_, held)| held)).flat_map(Held::all);
        all.filter(|held| held.until_ns > now_ns).map(|held| self.ban_entry(held)).collect()
    }

    /// The frame that is asked about, and in words. For this host, unless that was asked otherwise.
    fn frame(
        &self,
        source: IpAddr,
        asked: &Probe,
        interface: &str,
    ) -> anyhow::Result<(Vec<u8>, String)> {
        let protocol = asked.protocol.unwrap_or(Protocol::Tcp);
        let listeners = &self.settings.server.https;
        let is_fit =
            |address: &IpAddr| address.is_ipv4() == source.is_ipv4() && !address.is_unspecified();
        let own = listeners.iter().map(|listener| listener.address.ip()).find(is_fit);
        let destination = asked.destination.or(own).unwrap_or_else(|| {
            let addresses = kernel::addresses().unwrap_or_default();
            own_address(&addresses, interface, source)
        });
        if asked.flags.is_some() && protocol != Protocol::Tcp {
            bail!("only TCP has flags");
        }
        if protocol == Protocol::Icmp && (asked.port.is_some() || asked.source_port.is_some()) {
            bail!("ICMP has no ports");
        }
        let port = asked
            .port
            .or(listeners.first().map(|listener| listener.address.port()))
            .unwrap_or(HTTPS);
        let source_port = asked.source_port.unwrap_or(SOURCE_PORT);
        let transport = match protocol {
            Protocol::Tcp => {
                Transport::Tcp { source_port, port, flags: asked.flags.unwrap_or(SYN) }
            }
            Protocol::Udp => Transport::Udp { source_port, port },
            Protocol::Icmp => Transport::Icmp,
        };
        let probe = probe::Probe { source, destination, transport, length: asked.length };
        match probe.frame() {
            Ok(frame) => Ok((frame, probe.to_string())),
            Err(fault) => bail!("no such packet: {fault}"),
        }
    }

    fn rule(
        &self,
        reason: Reason,
        facts: &Facts,
        found: &kernel::Explanation,
        buckets: &[kernel::Bucket],
    ) -> Rule {
        match (reason, &found.network, &found.ban) {
            (Reason::AllowList | Reason::DenyList, Some((class, net, entry)), _) => {
                let told = self.told(*class, net);
                Rule {
                    name: Some(net.to_string()),
                    source: told.as_ref().map(|entry| entry.source.clone()),
                    reason: told.as_ref().and_then(|entry| entry.reason.clone()),
                    since_ms: told.map(|entry| entry.since_ms),
                    until_ns: Some(entry.until_ns),
                    hits: entry.hits,
                }
            }
            (Reason::Ban, _, Some(ban)) => Rule {
                name: Some(format!("ban of {} for {}", found.client, reason_of(ban).name())),
                since_ms: Some(clock::unix_ms_at(ban.since_ns)),
                until_ns: Some(ban.until_ns),
                hits: ban.hits,
                ..Rule::default()
            },
            (Reason::Signature, ..) => {
                let index = facts.rule as usize;
                let named = self.signatures.get(index);
                let hits = self.tables.signature_hits().unwrap_or_default();
                Rule {
                    name: named.map(|named| format!("signature {}", named.name)),
                    source: named.map(|_| "config".into()),
                    hits: hits.get(index).copied().filter(|_| named.is_some()).unwrap_or_default(),
                    ..Rule::default()
                }
            }
            _ => {
                let Some(name) = configured::rule(reason, &self.settings.kernel, buckets) else {
                    return Rule::default();
                };
                // Nothing else has packets end for such a reason, or would have.
                let ended = [self.tables.counts(), self.tables.would_drop()];
                let ended = ended.iter().flatten().map(|counts| counts[reason as usize].packets);
                Rule {
                    name: Some(name),
                    source: Some("config".into()),
                    hits: ended.sum(),
                    ..Rule::default()
                }
            }
        }
    }
}

/// The address of this host that such a source most likely asks for: if there is one, the interface's.
fn own_address(addresses: &[(String, IpAddr)], interface: &str, source: IpAddr) -> IpAddr {
    let local = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_fit =
        |(_, ip): &&(String, IpAddr)| ip.is_ipv4() == source.is_ipv4() && !ip.is_loopback();
    let likely = |(on, ip): &&(String, IpAddr)| (on != interface, local(ip) != local(&source));
    let found = addresses.iter().filter(is_fit).min_by_key(likely);
    found.map_or_else(
        || match source {
            IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        },
        |(_, ip)| *ip,
    )
}

fn show_bucket(bucket: &kernel::Bucket, facts: &Facts, client: Source) -> Bucket {
    let of = match bucket.prefix_bits {
        None => client.to_string(),
        Some(bits) => format!("{}/{bits}", facts.source.prefix(bits)),
    };
    let limit = bucket.kind.reason().name().into();
    Bucket { limit, of, left: bucket.left, burst: bucket.burst }
}

/// A frame from its digits, two a byte, with blanks and colons between them as one likes.
fn read_hex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.context("the frame is not hexadecimal")?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() % 2 != 0 || !(14..=probe::FRAME_BYTES_MAX as usize).contains(&bytes.len()) {
        bail!("a frame has 14 to {} whole bytes", probe::FRAME_BYTES_MAX);
    }
    Ok(bytes)
}

const HTTPS: u16 = 443;
const SYN: u8 = 2;
/// Of a packet that is asked about without one: what a client might choose.
const SOURCE_PORT: u16 = 40_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_for_an_address_of_its_interface() {
        let addresses = [
            ("lo", "127.0.0.1"),
            ("eth1", "192.0.2.9"),
            ("eth0", "192.0.2.1"),
            ("eth0", "fe80::1"),
            ("eth0", "2001:db8::1"),
        ];
        let addresses = addresses.map(|(on, ip)| (on.to_owned(), ip.parse().unwrap()));
        for (interface, source, destination) in [
            ("eth0", "198.51.100.1", "192.0.2.1"),
            ("eth1", "198.51.100.1", "192.0.2.9"),
            ("eth0", "2001:db8:1::5", "2001:db8::1"),
            ("eth0", "fe80::5", "fe80::1"),
            // Its addresses are on what stands above it.
            ("eth2", "2001:db8:1::5", "2001:db8::1"),
        ] {
            let found = own_address(&addresses, interface, source.parse().unwrap());
            assert_eq!(found.to_string(), destination, "{interface} {source}");
        }
        let none = own_address(&addresses[..1], "lo", "198.51.100.1".parse().unwrap());
        assert!(none.is_unspecified());
    }

    #[test]
    fn frames_are_read_from_their_digits() {
        let text = "02:00:00:00:00:01 020000000002 0806";
        assert_eq!(read_hex(text).unwrap()[12..], [8, 6]);
        for bad in ["", "02", "0200000000010200000000020", "zz00000000010200000000020806"] {
            assert!(read_hex(bad).is_err(), "{bad}");
        }
    }
}
