//! `[crowdsec]`: whose decisions are enforced, as checked.

use std::{path::PathBuf, time::Duration};

use crate::{fetch::Url, secret::Origin};

/// `[crowdsec]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crowdsec {
    /// Its local API.
    pub url: Url,
    /// The key that it gave this bouncer.
    pub api_key: Origin,
    /// From one question to the next.
    pub every: Duration,
    /// For a whole answer.
    pub timeout: Duration,
    /// The networks that are taken at most.
    pub decisions_max: usize,
    /// Whether packets are only counted as if they were dropped.
    pub counts_only: bool,
    /// A PEM file with the authorities that its host must be certified by; `None` are those that
    /// this host trusts.
    pub authorities: Option<PathBuf>,
    /// As whom our own bans are told, and the password; `None`: they are not.
    pub machine: Option<(String, Origin)>,
}

impl Crowdsec {
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Origin> {
        std::iter::once(&self.api_key).chain(self.machine.as_ref().map(|(_, password)| password))
    }

    pub(super) fn secrets_mut(&mut self) -> impl Iterator<Item = &mut Origin> {
        let password = self.machine.as_mut().map(|(_, password)| password);
        std::iter::once(&mut self.api_key).chain(password)
    }
}
