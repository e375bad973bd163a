//! From what clients do to what becomes of them.

use std::time::Duration;

use edge_policy::verdict::Scenario;
use ipnet::IpNet;

/// `[verdicts]` and `[[scenario]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// The scenarios in force: the shipped ones as the configuration changes them, then its own.
    pub scenarios: Vec<Scenario>,
    /// Networks against which nothing is done, whatever they do.
    pub never_ban: Vec<IpNet>,
    /// The ports that SSH listens on, whose peers no scenario bans.
    pub ssh_ports: Vec<u16>,
    /// How many times longer each further verdict is; at least 1.
    pub factor: u32,
    /// Length of the longest verdict.
    pub longest: Duration,
    /// By how many percent a length may be off, either way.
    pub jitter: u32,
    /// After each such time without an offence one earlier verdict is forgotten.
    pub forget_after: Duration,
    /// Culprits that are remembered at once.
    pub culprits_max: usize,
    /// Bans that scenarios may write to the kernel within a minute.
    pub bans_per_minute: u32,
    /// So many identities that succeeded make a source a shared one.
    pub shared_by: usize,
    /// Within this time.
    pub shared_within: Duration,
    /// How long each request waits on the rung "delay".
    pub delay: Duration,
    /// Paths that only scanners ask for.
    pub decoys: Vec<String>,
    /// Credentials that are bait.
    pub canaries: Vec<String>,
}
