//! `[[feed]]`: other people's lists, as checked.

use std::{path::PathBuf, time::Duration};

use edge_policy::list::feed::Format;

use crate::fetch::Url;

/// `[[feed]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// What the operator calls it.
    pub name: String,
    /// Where it is.
    pub place: FeedPlace,
    /// How it is written.
    pub format: Format,
    /// Whether its networks' packets are only counted as if they were dropped.
    pub counts_only: bool,
    /// From one look at it to the next, more or less.
    pub every: Duration,
    /// For a whole fetch.
    pub timeout: Duration,
    /// The largest list that is taken, in bytes.
    pub bytes_max: usize,
    /// Percent of its networks that it may lose from one reading to the next.
    pub shrink_max: u32,
    /// A PEM file with the authorities that its host must be certified by; `None` are those that
    /// this host trusts.
    pub authorities: Option<PathBuf>,
}

/// Where a feed is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedPlace {
    /// At this URL.
    Url(Url),
    /// In this file.
    File(PathBuf),
}
