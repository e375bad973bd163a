//! `[[webhook]]`: who is told of decisions and alarms, as checked.

use std::{path::PathBuf, time::Duration};

use crate::{decisions::What, fetch::Url, secret::Origin};

/// `[[webhook]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// What the operator calls it.
    pub name: String,
    /// Where documents are sent.
    pub url: Url,
    /// What they are signed with.
    pub secret: Origin,
    /// Of what it is told.
    pub events: Vec<What>,
    /// Documents that may wait.
    pub queue: usize,
    /// For one attempt.
    pub timeout: Duration,
    /// How long a document is tried.
    pub give_up: Duration,
    /// A PEM file with the authorities that its host must be certified by; `None` are those that
    /// this host trusts.
    pub authorities: Option<PathBuf>,
}
