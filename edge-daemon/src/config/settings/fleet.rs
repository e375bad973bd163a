//! `[fleet]`: with whom bans and limits are shared, as checked.

use std::{path::PathBuf, time::Duration};

use edge_common::ClientWidth;
use edge_identity::fleet::Seal;

use crate::secret::{BYTES_MIN, Origin};

/// `[fleet]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The Redis or Valkey between the edges.
    pub server: Server,
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
    /// How wide a client is, by what `[kernel]` says.
    pub client: ClientWidth,
}

/// The server of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Its name or its address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The number of the database there.
    pub database: i64,
    /// Whether it is spoken to over TLS.
    pub is_secure: bool,
    /// A PEM file with the authorities that it must be certified by; `None` are those that this host
    /// trusts.
    pub authorities: Option<PathBuf>,
    /// The certificate that it is shown, PEM, and the key.
    pub client: Option<(PathBuf, Origin)>,
}

impl Server {
    pub(in crate::config) fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.authorities.iter_mut().chain(self.client.as_mut().map(|(path, _)| path))
    }
}

impl Fleet {
    /// The seal of its records, under the secret as it is now.
    ///
    /// # Errors
    /// If the secret cannot be read or is too short.
    pub fn seal(&self) -> Result<Seal, String> {
        let origin = &self.secret;
        let secret = origin.read().and_then(|secret| secret.at_least(BYTES_MIN));
        let secret = secret.map_err(|fault| format!("{origin}: {fault}"))?.without_line_end();
        Ok(Seal::new(&self.name, secret.expose()).of_clients(self.client))
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = &Origin> {
        self.login.1.iter().chain(self.server.client.as_ref().map(|(_, key)| key))
    }

    pub(super) fn secrets_mut(&mut self) -> impl Iterator<Item = &mut Origin> {
        let key = self.server.client.as_mut().map(|(_, key)| key);
        self.login.1.iter_mut().chain(key).chain([&mut self.secret])
    }
}
