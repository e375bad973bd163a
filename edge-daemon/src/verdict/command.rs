//! What operators say, done by the writer.

use std::sync::atomic::Ordering::Relaxed;

use anyhow::bail;
use edge_common::{Reason, map::PolicyFlag, signature::Ask};
use edge_policy::list::{Class, FOREVER, feed::is_wide};
use ipnet::IpNet;

use super::{
    Writer,
    lists::{Entry, Origin},
};
use crate::{
    clock,
    config::{
        Settings,
        settings::{NamedSignature, Offer},
        signature,
    },
    control::{
        Command, ListName, Peer, Reply,
        guard::{self, Protected},
        packets::{EventsLost, Traffic},
        protocol::{Entries, InterfaceStatus, ListEntry, ReloadStatus, SignatureEntry, Status},
    },
    events::Event,
    kernel::InForce,
    store::ListRecord,
};

impl Writer {
    pub(super) fn obey(&mut self, command: Command, peer: Peer) -> Reply {
        self.try_obey(command, peer).unwrap_or_else(|error| Reply::Refused(format!("{error:#}")))
    }

    fn try_obey(&mut self, command: Command, peer: Peer) -> anyhow::Result<Reply> {
        Ok(match command {
            Command::Status => Reply::Status(Box::new(self.status()?)),
            Command::ListAdd { list, net, ttl_ms, reason, monitor, force, ssh_peer } => {
                match list {
                    _ if force => {}
                    ListName::Allow if is_wide(net) => bail!(
                        "nothing would be protected from {net}, wider than any network that was given out; --force allows it nevertheless"
                    ),
                    ListName::Deny if !monitor => self.refuse_lockout(net, ssh_peer)?,
                    _ => {}
                }
                let added_ms = clock::unix_ms();
                let until_ms = ttl_ms.map(|ttl| added_ms.saturating_add(ttl));
                let by = format!("uid {}", peer.uid);
                self.add(list, ListRecord { net, until_ms, reason, added_ms, by, monitor }, peer)?
            }
            Command::ListRemove { list, net } => self.remove(list, net, peer)?,
            Command::ListShow { list, from } => Reply::List(self.show(list, from)),
            Command::BanList => Reply::Bans(Entries::of(self.show_bans()?)),
            Command::BanShow { culprit } => self.show_ban(&culprit)?,
            Command::BanAdd { ban, force, ssh_peer } => {
                self.ban_by_hand(ban, force, ssh_peer, peer)?
            }
            Command::BanRemove { culprit, reason: None } => self.unban(&culprit)?,
            Command::BanRemove { culprit, reason: Some(reason) } => {
                self.unban_for(&culprit, &reason)?
            }
            Command::SignatureList => Reply::Signatures(Entries::of(self.show_signatures()?)),
            Command::Explain { address, packet } => {
                Reply::Explanation(Box::new(self.explain(address, &packet)?))
            }
            Command::Watch { .. } => bail!("decisions are told elsewhere"),
            Command::Top { .. } => bail!("the traffic is not the writer's to watch"),
            Command::Feed(_) => bail!("feeds are not the writer's to fetch"),
            Command::Key(_) => bail!("keys are not the writer's to change"),
            Command::Token(command) => self.obey_token(command, peer)?,
            Command::Servers { .. } => bail!("servers are not the writer's to look after"),
            Command::Overview => bail!("what is in force is not the writer's to tell"),
            Command::AuthzExplain(_) => bail!("permissions are not the writer's to explain"),
            Command::Reload => bail!("a reload is not the writer's to do"),
        })
    }

    /// On disk first: an entry that the kernel has and the disk has not would be gone after a
    /// restart without anybody being told.
    fn add(&mut self, list: ListName, record: ListRecord, peer: Peer) -> anyhow::Result<Reply> {
        let net = record.net;
        self.store.put_list(list, &record)?;
        let former = self.list_mut(list).put(record.into());
        let in_force = match self.write(list, &net) {
            Ok(in_force) => in_force,
            Err(error) => {
                self.put_back(list, net, former);
                return Err(error);
            }
        };
        if list == ListName::Allow {
            self.free_allowed(net);
        }
        self.tell_change(list, "add", net, peer);
        Ok(Reply::Done(format!("{net} is on the {} list{}", list.name(), when(in_force))))
    }

    fn remove(&mut self, list: ListName, net: IpNet, peer: Peer) -> anyhow::Result<Reply> {
        if !self.list(list).holds(&net) {
            if self.list(list).is_configured(&net) {
                bail!("{net} is in the configuration; remove it there and reload");
            }
            if let Some(origin) = self.list(list).origins(&net).first() {
                bail!(
                    "{net} is from {}; 'edgectl allow add {net}' lets it through",
                    origin.words()
                );
            }
            bail!("{net} is not on the {} list", list.name());
        }
        self.store.remove_list(list, net)?;
        let former = self.list_mut(list).remove(&net);
        let in_force = match self.write(list, &net) {
            Ok(in_force) => in_force,
            Err(error) => {
                self.put_back(list, net, former);
                return Err(error);
            }
        };
        self.tell_change(list, "remove", net, peer);
        let left = self.list(list).origins(&net);
        let left =
            left.first().map_or(String::new(), |origin| format!("; {} keeps it", origin.words()));
        let when = when(in_force);
        Ok(Reply::Done(format!("{net} is off the operators' {} list{left}{when}", list.name())))
    }

    /// After a write that failed: what was on the list for a network, or nothing, is so again,
    /// on disk, in memory and as far as it goes in the kernel.
    fn put_back(&mut self, list: ListName, net: IpNet, former: Option<Entry>) {
        let stored = match &former {
            Some(entry) => self.store.put_list(list, &entry.record),
            None => self.store.remove_list(list, net).map(|_| ()),
        };
        match former {
            Some(entry) => self.list_mut(list).put(entry),
            None => self.list_mut(list).remove(&net),
        };
        let written = self.write(list, &net).map(|_| ());
        for error in [stored.map_err(Into::into), written].into_iter().filter_map(Result::err) {
            let error = format!("{error:#}");
            tracing::error!(list = list.name(), %net, error, "a change cannot be taken back");
        }
    }

    pub(super) fn refuse_lockout(
        &self,
        net: IpNet,
        ssh_peer: Option<std::net::IpAddr>,
    ) -> anyhow::Result<()> {
        let protect = |what: String| move |address| Protected { what: what.clone(), address };
        let mut protected: Vec<_> =
            ssh_peer.into_iter().map(protect("your own SSH session".into())).collect();
        protected.extend(guard::gateways().into_iter().map(protect("the gateway".into())));
        for (upstream, address) in self.settings.upstream_addresses() {
            protected.push(protect(format!("the upstream '{upstream}'"))(address));
        }
        guard::lockout(net, &protected).map_or(Ok(()), |why| bail!(why))
    }

    /// A page of a list's entries, from this one on.
    fn show(&self, list: ListName, from: u64) -> Entries<ListEntry> {
        let entries = self.list(list).entries(usize::try_from(from).unwrap_or(usize::MAX));
        let page = entries.take(PAGE).map(|(net, origin)| self.entry(list, net, &origin));
        Entries { entries: page.collect(), total: self.list(list).len() as u64 }
    }

    fn entry(&self, list: ListName, net: IpNet, origin: &Origin<'_>) -> ListEntry {
        let source = origin.words();
        let operator = match origin {
            Origin::Operator(entry) => Some(entry),
            Origin::Configuration(..) | Origin::Outside(..) => None,
        };
        let class = origin.class(list);
        let outside_ms = match origin {
            Origin::Outside(_, listed) if listed.until_ns != FOREVER => {
                Some(clock::unix_ms_at(listed.until_ns))
            }
            _ => None,
        };
        ListEntry {
            net,
            until_ms: operator.map_or(outside_ms, |entry| entry.until_ms()),
            reason: origin.reason().map(str::to_owned),
            source,
            hits: self.tables.lists.entry(class, &net).map_or(0, |entry| entry.hits),
            since_ms: origin.since_ms(),
            by: operator.map(|entry| entry.record.by.clone()),
            monitor: class == Class::Watch,
        }
    }

    /// What is known of a network that decides; an operator's word before the configuration's.
    pub(super) fn told(&self, class: Class, net: &IpNet) -> Option<ListEntry> {
        let list = match class {
            Class::Allow | Class::Spare => ListName::Allow,
            Class::Deny | Class::Watch => ListName::Deny,
        };
        let mut origins = self.list(list).origins(net).into_iter();
        let origin = origins.find(|origin| origin.class(list) == class)?;
        Some(self.entry(list, *net, &origin))
    }

    fn show_signatures(&self) -> anyhow::Result<Vec<SignatureEntry>> {
        let hits = self.tables.signature_hits()?;
        let signatures = self.signatures.iter();
        let entry = |(named, hits): (&NamedSignature, u64)| SignatureEntry {
            name: named.name.clone(),
            action: signature::action(&named.rule),
            monitored: named.rule.asks & Ask::MONITOR != 0,
            matches: named.to_string(),
            hits,
        };
        Ok(signatures.zip(hits).map(entry).collect())
    }

    fn status(&self) -> anyhow::Result<Status> {
        let packets = self.tables.counts_apart()?;
        let mut counts = self.edge.metrics.by_reason();
        for (_, packets) in &packets {
            for (reason, packet) in Reason::ALL.iter().zip(packets) {
                *counts.entry(reason.name().into()).or_default() += packet.packets;
            }
        }
        counts.retain(|_, count| *count > 0);
        let would_drop = Reason::ALL.iter().zip(self.tables.would_drop()?);
        let would_drop = would_drop.map(|(reason, count)| (reason.name().into(), count.packets));
        let in_force = self.tables.settings()?;
        let Settings { kernel, server, .. } = &self.settings;
        let interfaces = self.health.interfaces().into_iter().map(|found| InterfaceStatus {
            traffic: Traffic::of(&packets, &found.name),
            name: found.name,
            mode: found.mode.to_string(),
            guarded: found.is_guarded,
            up: found.is_up,
        });
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            interfaces: interfaces.collect(),
            kernel_lacks: self
                .tables
                .features()
                .lacking()
                .map(|feature| (feature.name().into(), feature.without().into()))
                .collect(),
            counts,
            monitored: kernel.monitor.iter().map(|reason| reason.name().into()).collect(),
            would_drop: would_drop.filter(|(_, count)| *count > 0).collect(),
            services: kernel.services.as_ref().map(|offers| {
                let own = server.addresses().map(|a| Offer::port(a.port()));
                let mut all = Vec::<Offer>::new();
                own.chain(offers.iter().copied()).for_each(|offer| {
                    if !all.contains(&offer) {
                        all.push(offer);
                    }
                });
                all.iter().map(Offer::to_string).collect()
            }),
            signatures: kernel.signatures.len() as u64,
            sampled: (in_force.flags & PolicyFlag::SAMPLES != 0)
                .then(|| u64::from(in_force.sample_mask) + 1),
            events_lost: EventsLost {
                security: self.edge.events.lost(),
                drops: self.tables.drops_lost()?,
                samples: self.tables.samples_lost()?,
            },
            bans: self.bans.len() as u64,
            allow: self.allow.len() as u64,
            deny: self.deny.len() as u64,
            keys: self.edge.metrics.keys.active.load(Relaxed),
            denials_lost_ms: self.store.denials_lost_ms(),
            config: self.config.clone(),
            last_reload: self.last_reload.as_ref().map(|(at_ms, result)| ReloadStatus {
                at_ms: *at_ms,
                ok: result.is_ok(),
                message: result.clone().err().unwrap_or_else(|| "in force".into()),
            }),
        })
    }

    fn tell_change(&self, list: ListName, change: &'static str, net: IpNet, peer: Peer) {
        let (list, net) = (list.name(), net.to_string());
        self.edge.events.tell(Event::ListChanged { list, change, net, uid: peer.uid });
    }
}

/// What an operator is told of a change that is not in force yet.
const fn when(in_force: InForce) -> &'static str {
    match in_force {
        InForce::Now => "",
        InForce::WithNextImage => "; it touches so many others that it takes effect in a second",
    }
}

/// Entries of a list that one reply holds: a few milliseconds of the writer's time.
const PAGE: usize = 10_000;
