//! Whom nothing is done against: `never_ban` and the allow list, whoever decides and whenever it was put
//! there. A ban drops the whole prefix of a client, so that it is held off where any part of it is never to
//! be banned; the kernel passes a part that is allowed all the same, and what refuses requests sees each
//! address: it is borne by the others of the prefix.

use std::net::IpAddr;

use edge_common::{ClientWidth, Source};
use edge_policy::{
    list::{Nets, overlap},
    verdict::{Culprit, Spared, Step},
};
use ipnet::IpNet;

use super::Writer;
use crate::{clock, store::BanRecord};

/// How much of a client is exempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exempt {
    Not,
    /// Some of its addresses.
    Partly,
    Wholly,
}

/// The network that stands for one client.
pub(super) fn network(client: Source, width: ClientWidth) -> IpNet {
    let address = IpAddr::from(client);
    let bits = match address {
        IpAddr::V4(_) => width.v4,
        // A link-local address is a client of its own.
        IpAddr::V6(v6) if v6.is_unicast_link_local() => 128,
        IpAddr::V6(_) => width.v6,
    };
    IpNet::new_assert(address, bits as u8)
}

/// How much of a client's network these exempt.
pub(super) fn of(never: &[IpNet], client: IpNet) -> Exempt {
    if never.iter().any(|net| net.contains(&client)) {
        Exempt::Wholly
    } else if never.iter().any(|net| overlap(*net, client)) {
        Exempt::Partly
    } else {
        Exempt::Not
    }
}

impl Writer {
    pub(super) fn exempt(&self, client: Source) -> Exempt {
        let net = network(client, self.settings.kernel.client);
        match of(&self.settings.verdicts.never_ban, net) {
            Exempt::Not | Exempt::Partly if self.allow.covers(net, clock::boot_ns()) => {
                Exempt::Wholly
            }
            how => how,
        }
    }

    /// Softens a ban of a client that is exempt in part.
    pub(super) fn spare_exempt(&self, record: &mut BanRecord) {
        record.step = Step::Refuse;
        record.spared = Some(Spared::NeverBan.name().to_owned());
        self.edge.metrics.verdicts.spare(Spared::NeverBan);
    }

    /// Lifts what was in force before its culprit was exempt.
    pub(super) fn free_exempt(&mut self) {
        let never = self.settings.verdicts.never_ban.clone();
        let allowed: Nets = self.allow.own(clock::boot_ns()).collect();
        let is_allowed = |net| if allowed.hold(net) { Exempt::Wholly } else { Exempt::Not };
        self.free_those("allow_list", is_allowed);
        self.free_those("never_ban", |net| of(&never, net));
    }

    /// Lifts what was in force before an operator allowed a network.
    pub(super) fn free_allowed(&mut self, allowed: IpNet) {
        let how = |net: IpNet| if allowed.contains(&net) { Exempt::Wholly } else { Exempt::Not };
        self.free_those("allow_list", how);
    }

    fn free_those(&mut self, why: &'static str, exempt: impl Fn(IpNet) -> Exempt) {
        let width = self.settings.kernel.client;
        let how = |culprit: &Culprit| {
            culprit.source().map_or(Exempt::Not, |client| exempt(network(client, width)))
        };
        let bans = self.bans.iter().map(|(client, _)| Culprit::Source(*client));
        let bans = bans.map(|culprit| (how(&culprit), culprit));
        let bans = bans.filter(|(how, _)| *how != Exempt::Not);
        // What refuses requests spares the part by itself.
        let penalties = self.penalties.iter().map(|(culprit, _)| culprit);
        let penalties = penalties.filter(|culprit| how(culprit) == Exempt::Wholly);
        let penalties = penalties.map(|culprit| (Exempt::Wholly, culprit.clone()));
        let (hows, exempt): (Vec<_>, Vec<_>) = bans.chain(penalties).unzip();
        if exempt.is_empty() {
            return;
        }
        exempt.iter().for_each(|culprit| self.unsaved.forget(culprit));
        if let Err(error) = self.store.remove_bans(&exempt) {
            // They are lifted again at the next start.
            tracing::error!(%error, "lifted bans cannot be taken from the store");
        }
        for (how, culprit) in hows.into_iter().zip(exempt) {
            let lifted = match how {
                Exempt::Wholly => self.lift(&culprit, why),
                Exempt::Partly | Exempt::Not => self.end(&culprit, why),
            };
            match lifted {
                Ok(()) if self.held(&culprit).is_some() => {}
                Ok(()) => self.engine.pardon(&culprit),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(%culprit, error, "a ban cannot be lifted");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_exempt_as_far_as_its_prefix_is() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let told = |never: &str, address: &str, v4| {
            let width = ClientWidth { v4, v6: 64 };
            let client = Source::from(address.parse::<IpAddr>().unwrap()).client(width);
            of(&[net(never)], network(client, width))
        };
        assert_eq!(told("2001:db8::67/128", "2001:db8::66", 32), Exempt::Partly);
        assert_eq!(told("2001:db8::/63", "2001:db8::66", 32), Exempt::Wholly);
        assert_eq!(told("2001:db8:0:1::/64", "2001:db8::66", 32), Exempt::Not);
        assert_eq!(told("192.0.2.9/32", "192.0.2.7", 32), Exempt::Not);
        assert_eq!(told("192.0.2.9/32", "192.0.2.7", 24), Exempt::Partly);
        assert_eq!(told("fe80::2/128", "fe80::1", 32), Exempt::Not);
        assert_eq!(told("fe80::1/128", "fe80::1", 32), Exempt::Wholly);
    }
}
