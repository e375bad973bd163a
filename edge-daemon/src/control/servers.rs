//! What operators see of upstreams, and how they take a server out of the round.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::protocol::{Entries, Reply};
use crate::{clock, upstream::Upstream};

/// What can be asked about servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerCommand {
    /// Show them. Answer: [`Reply::Servers`].
    List,
    /// Take one out of the round, or put it back. Answer: [`Reply::Done`].
    Drain {
        /// The name of its upstream.
        upstream: String,
        /// What it is called; or the name that led to it, for all of its addresses.
        server: String,
        /// Whether it is taken out.
        drained: bool,
    },
}

impl ServerCommand {
    /// Does it.
    #[must_use]
    pub fn obey(&self, upstreams: &[Arc<Upstream>]) -> Reply {
        match self {
            Self::List => list(upstreams),
            Self::Drain { upstream, server, drained } => {
                drain(upstreams, upstream, server, *drained)
            }
        }
    }
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// What routes call its upstream.
    pub upstream: String,
    /// What it is called.
    pub server: String,
    /// "up", "down", "ejected" or "drained".
    pub state: String,
    /// Its weight beside the others.
    pub weight: u32,
    /// Requests that it has in flight.
    pub in_flight: u64,
    /// Connections that are kept to it without a request.
    pub idle: u64,
    /// Requests that it answered.
    pub answered: u64,
    /// Requests that it failed.
    pub failed: u64,
    /// Whether too many requests to the upstream failed, so that it is not asked.
    pub circuit_open: bool,
}

/// Every server of every upstream.
fn list(upstreams: &[Arc<Upstream>]) -> Reply {
    let now_ns = clock::boot_ns();
    let entries = upstreams.iter().flat_map(|upstream| {
        let servers = upstream.servers();
        let entry = |server: &Arc<crate::upstream::Server>| {
            let counts = server.counts();
            ServerEntry {
                upstream: upstream.settings.name.clone(),
                server: server.label.clone(),
                state: server.health.standing(now_ns).name().to_owned(),
                weight: server.weight,
                in_flight: counts.in_flight,
                idle: counts.idle,
                answered: counts.answers.iter().sum(),
                failed: counts.failures.iter().map(|(_, count)| count).sum(),
                circuit_open: upstream.circuit.is_open(),
            }
        };
        servers.iter().map(entry).collect::<Vec<_>>()
    });
    Reply::Servers(Entries::of(entries.collect()))
}

/// Takes servers out of the round, or puts them back: one, or all that a name led to.
fn drain(upstreams: &[Arc<Upstream>], name: &str, server: &str, drained: bool) -> Reply {
    let Some(upstream) = upstreams.iter().find(|upstream| upstream.settings.name == name) else {
        return Reply::Refused(format!("no upstream is called '{name}'"));
    };
    let Some(changed) = upstream.drain(server, drained) else {
        return Reply::Refused(format!("'{name}' has no server '{server}'; edgectl upstream list"));
    };
    let word = if drained { "drained" } else { "in the round again" };
    tracing::info!(upstream = name, server, word, changed, "by an operator");
    Reply::Done(match changed {
        0 => format!("{server} was {word} already"),
        _ => format!("{server} is {word}"),
    })
}
