//! What can be asked about other people's lists, and what is answered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What can be asked about feeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum FeedCommand {
    /// How they are doing. Answer: [`super::Reply::Feeds`].
    List,
    /// Fetches one now. Answer: [`super::Reply::Done`], when it is in force.
    Refresh {
        /// Which.
        name: String,
        /// Whether it may have shrunk by any number of networks.
        force: bool,
    },
}

/// A line of a list that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultLine {
    /// Its number, from 1.
    pub line: u32,
    /// What is the matter with it.
    pub fault: String,
    /// Its beginning.
    pub text: String,
}

/// How a feed is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedEntry {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: String,
    /// Whether its networks' packets are only counted as if they were dropped.
    pub counts_only: bool,
    /// Its networks in force.
    pub networks: u64,
    /// Lines of its last list that are not as they should be, by their fault.
    pub faults: BTreeMap<String, u64>,
    /// The first of those lines.
    pub fault_lines: Vec<FaultLine>,
    /// Lines whose reason is kept, those among them where it was shortened, and those where it found no room.
    #[serde(default)]
    pub reasons: BTreeMap<String, u64>,
    /// When its source last confirmed it.
    pub success_ms: Option<u64>,
    /// Lists that were taken.
    pub updated: u64,
    /// Times that it had not changed.
    pub unchanged: u64,
    /// Times that it could not be had.
    pub failed: u64,
    /// Lists that were not taken.
    pub refused: u64,
    /// Why the last fetch brought nothing; `None`: it did.
    pub trouble: Option<String>,
    /// Packets that its networks decided since the daemon started.
    pub hits: u64,
}
