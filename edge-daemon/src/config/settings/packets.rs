//! `[kernel]` as checked.

use std::path::PathBuf;

use edge_common::{ClientWidth, Rate, Reason, Signature};

use super::Offer;

/// `[kernel]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Interfaces to attach to; never empty, no name twice.
    pub interfaces: Vec<Interface>,
    /// How to attach to those that do not say.
    pub attach: Attach,
    /// Where links and maps are pinned.
    pub pin_dir: PathBuf,
    /// What is done where the kernel lacks a feature that is asked for.
    pub missing_features: MissingFeatures,
    /// How much of an address stands for one client.
    pub client: ClientWidth,
    /// Packets per client.
    pub packet_rate: Rate,
    /// Bytes per client; made by [`Rate::of_bytes`].
    pub byte_rate: Rate,
    /// UDP packets per client.
    pub udp_rate: Rate,
    /// ICMP and ICMPv6 packets per client.
    pub icmp_rate: Rate,
    /// New TCP connections per client.
    pub connection_rate: Rate,
    /// What the IPv6 prefixes around a client may send together: at most two, the narrower first,
    /// each shorter than a client's.
    pub prefix_limits: Vec<PrefixLimit>,
    /// Open TCP connections per client; 0 switches it off.
    pub open_connections_max: u32,
    /// What happens to fragments.
    pub fragments: Fragments,
    /// Reasons that are judged and counted, and drop nothing.
    pub monitor: Vec<Reason>,
    /// What alone is reachable from outside, besides the listeners of [`Server`](super::Server); `None`:
    /// everything.
    pub services: Option<Vec<Offer>>,
    /// Signature rules, in the order of the file; names are unique.
    pub signatures: Vec<NamedSignature>,
    /// Drop events in all.
    pub event_rate: Rate,
    /// Whether every packet is logged.
    pub debug: bool,
    /// `[kernel.syn_cookies]`: floods of TCP.
    pub syn_cookies: SynCookies,
}

/// `[kernel.syn_cookies]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynCookies {
    /// Whether SYNs are answered with cookies.
    pub mode: When,
    /// Ports that are protected besides the server's own.
    pub ports: Vec<u16>,
    /// Whether TCP packets of no connection are refused.
    pub unsolicited: When,
    /// How many of those are a flood.
    pub unsolicited_rate: Rate,
}

/// When a defence is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Never.
    Off,
    /// While there is a flood.
    Auto,
    /// Always.
    Always,
}

/// An interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// How to attach; `None`: as [`Kernel::attach`] says.
    pub attach: Option<Attach>,
}

/// What a whole IPv6 prefix may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLimit {
    /// Its length.
    pub prefix: u32,
    /// How many clients' worth it may send.
    pub factor: u32,
}

/// What is done where the kernel lacks a feature that is asked for, and the filter can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingFeatures {
    /// The start, or the reload, is refused.
    Refuse,
    /// What needs it is not done, and told of.
    RunWithLess,
}

/// What happens to fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Fragments {
    Pass,
    Drop,
}

/// `[[kernel.signature]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSignature {
    /// What the operator calls it.
    pub name: String,
    /// What it matches, and what it does.
    pub rule: Signature,
}

/// How the packet program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// In the driver if it can, else in the generic hook.
    Auto,
    /// In the generic hook, after the socket buffer was made.
    Generic,
    /// In the driver, or not at all.
    Native,
}
