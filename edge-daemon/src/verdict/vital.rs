//! Whom no scenario may cut off: the way out and what the edge stands in front of.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use edge_common::Source;

use crate::{config::Settings, control::guard};

/// The clients that this host cannot do without, as of the last look.
#[derive(Default)]
pub(super) struct Vital {
    clients: Vec<Source>,
    next_look: Option<Instant>,
}

impl Vital {
    /// Looks again, if the last look is long enough ago.
    pub(super) fn follow(&mut self, settings: &Settings, now: Instant) {
        if self.next_look.is_some_and(|next| now < next) {
            return;
        }
        self.next_look = Some(now + EVERY);
        let servers = settings.upstream_addresses().map(|(_, address)| address);
        let sessions = guard::sessions(&settings.verdicts.ssh_ports);
        let all = guard::gateways().into_iter().chain(sessions).chain(servers);
        let client =
            |address: IpAddr| Source::from(address.to_canonical()).client(settings.kernel.client);
        self.clients = all.map(client).collect();
        self.clients.sort_unstable();
        self.clients.dedup();
    }

    pub(super) fn contains(&self, client: &Source) -> bool {
        self.clients.binary_search(client).is_ok()
    }
}

/// Reading the tables of a busy host takes milliseconds.
const EVERY: Duration = Duration::from_secs(10);
