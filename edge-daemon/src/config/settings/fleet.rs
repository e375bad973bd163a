//! `[fleet]`: with whom bans and limits are shared, as checked.

use std::time::Duration;

use crate::secret::Origin;

/// `[fleet]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The Redis or Valkey between the edges: its host, its port, and the number of the database.
    pub server: (String, u16, i64),
    /// As whom to log in there, and the password.
    pub login: (Option<String>, Option<Origin>),
    /// What the fleet is called; its keys begin so.
    pub name: String,
    /// What this edge is called; no other of the fleet is.
    pub node: String,
    /// The secret that all edges of the fleet have, and nobody else.
    pub secret: Origin,
    /// How many edges there are: without the server each keeps to its part of a limit.
    pub nodes: usize,
    /// For one answer of the server.
    pub timeout: Duration,
    /// Whether bans are shared.
    pub bans: bool,
}

impl Fleet {
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Origin> {
        self.login.1.iter()
    }

    pub(super) fn secrets_mut(&mut self) -> impl Iterator<Item = &mut Origin> {
        self.login.1.iter_mut().chain([&mut self.secret])
    }
}
