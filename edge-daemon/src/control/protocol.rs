//! What can be asked of the daemon, and what it answers.
//!
//! A connection carries one command and one reply, each a single line of JSON. Times are unix
//! milliseconds.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use edge_identity::key::KeyId;
use edge_policy::verdict::Culprit;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    access::{Access, Question},
    bans::{BanEntry, Decided, NewBan},
    feeds::{FeedCommand, FeedEntry},
    keys::{Imported, KeyCommand, KeyCreated, KeyEntry, KeyPage},
    overview::Overview,
    packets::{EventsLost, Explanation, Probe, Sort, Top, Traffic},
    servers::{ServerCommand, ServerEntry},
    tokens::{DenialEntry, TokenCommand, TokenKey},
};

/// The longest command, in bytes: some thousand keys to be imported.
pub const COMMAND_BYTES_MAX: usize = 2 << 20;

/// The longest reply, in bytes: [`ENTRIES_MAX`] entries of ordinary length.
pub const REPLY_BYTES_MAX: usize = 64 << 20;

/// Entries that one reply holds at most; it tells the total beside them.
pub const ENTRIES_MAX: usize = 100_000;

/// The longest free text (a name, a reason) in a command, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// What can be asked of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// How it is doing. Answer: [`Reply::Status`].
    Status,
    /// What is in force. Answer: [`Reply::Overview`].
    Overview,
    /// Puts a network on a list. Answer: [`Reply::Done`].
    ListAdd {
        /// Which list.
        list: ListName,
        /// The network.
        net: IpNet,
        /// How long it stays; `None`: until it is removed.
        ttl_ms: Option<u64>,
        /// Why, for whoever reads the list.
        reason: Option<String>,
        /// Whether its packets are only counted as if they were dropped.
        monitor: bool,
        /// Whether to deny even what keeps the host reachable.
        force: bool,
        /// Where the caller's own SSH session comes from.
        ssh_peer: Option<IpAddr>,
    },
    /// Removes what an operator put on a list. Answer: [`Reply::Done`].
    ListRemove {
        /// Which list.
        list: ListName,
        /// The network, as it was added.
        net: IpNet,
    },
    /// Some entries of a list, of which the answer tells the total. Answer: [`Reply::List`].
    ListShow {
        /// Which list.
        list: ListName,
        /// How many to leave out at its beginning.
        from: u64,
    },
    /// The bans in force. Answer: [`Reply::Bans`].
    BanList,
    /// One ban, with its evidence. Answer: [`Reply::Ban`].
    BanShow {
        /// Whom it is about: an address of a client will do.
        culprit: Culprit,
    },
    /// Bans by hand. Answer: [`Reply::Done`].
    BanAdd {
        /// Whom, how and for how long.
        #[serde(flatten)]
        ban: NewBan,
        /// Whether to ban even what keeps the host reachable.
        force: bool,
        /// Where the caller's own SSH session comes from.
        ssh_peer: Option<IpAddr>,
    },
    /// Decisions of the verdict writer, as they are made. Answer: [`Reply::Decided`], within seconds.
    Watch {
        /// The number that the last answer told; `None`: from now on.
        from: Option<u64>,
    },
    /// Ends a ban and forgets the culprit's misdeeds. Answer: [`Reply::Done`].
    BanRemove {
        /// Whom it is about: an address of a client will do.
        culprit: Culprit,
        /// Ends only what operators decided for it, and forgets nothing. A daemon that does not know of it is
        /// told nothing where it is not asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// What would happen to a packet, and why. Answer: [`Reply::Explanation`].
    Explain {
        /// The address it comes from; `None` if the packet's frame tells.
        address: Option<IpAddr>,
        /// The packet.
        packet: Box<Probe>,
    },
    /// Who sends most. Answer: [`Reply::Top`], within seconds if nobody looked before.
    Top {
        /// By what.
        sort: Sort,
        /// How many clients to tell of; [`TALKERS_MAX`](super::packets::TALKERS_MAX) at most.
        limit: usize,
    },
    /// The signatures in force. Answer: [`Reply::Signatures`].
    SignatureList,
    /// Whether somebody may send a request, and by which rule. Answer: [`Reply::Access`].
    AuthzExplain(Box<Question>),
    /// Something about other people's lists.
    Feed(FeedCommand),
    /// Something about API keys.
    Key(KeyCommand),
    /// Something about tokens.
    Token(TokenCommand),
    /// About the servers behind the edge.
    Servers {
        /// What.
        what: ServerCommand,
    },
    /// Reads the configuration again. Answer: [`Reply::Done`].
    Reload,
}

/// A list that an operator may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListName {
    /// Networks that are never dropped.
    Allow,
    /// Networks that are dropped.
    Deny,
}

impl ListName {
    /// The word for this list.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl Reply {
    /// The answer to what is not done unless the audit log can tell of it.
    #[must_use]
    pub fn unnoticed() -> Self {
        let why = "nothing is changed: the audit log cannot be written, and would not tell of it";
        Self::Refused(why.into())
    }

    /// Itself, where the audit log tells of what was done; else it says that it does not.
    #[must_use]
    pub fn told(self, is_kept: bool) -> Self {
        match self {
            reply if is_kept => reply,
            Self::Refused(why) => {
                Self::Refused(format!("{why}; the audit log cannot be written either"))
            }
            reply => Self::Unaudited(Box::new(reply)),
        }
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "with", rename_all = "snake_case")]
pub enum Reply {
    /// It is done; a sentence about it.
    Done(String),
    /// It was not done; a sentence that says why.
    Refused(String),
    /// It was done, with this answer, but the audit log could not be written and may not tell of it.
    Unaudited(Box<Reply>),
    /// How the daemon is doing.
    Status(Box<Status>),
    /// What is in force.
    Overview(Box<Overview>),
    /// Entries of a list.
    List(Entries<ListEntry>),
    /// Bans in force, without their evidence.
    Bans(Entries<BanEntry>),
    /// A ban in force.
    Ban(Box<BanEntry>),
    /// Decisions of the verdict writer.
    Decided(Decided),
    /// What would happen to a packet.
    Explanation(Box<Explanation>),
    /// Whether somebody may send a request.
    Access(Box<Access>),
    /// Signatures in force, in their order.
    Signatures(Entries<SignatureEntry>),
    /// Who sends most.
    Top(Box<Top>),
    /// A new key; the only time that it is told.
    KeyCreated(KeyCreated),
    /// Servers behind the edge.
    Servers(Entries<ServerEntry>),
    /// Some of the API keys.
    Keys(KeyPage),
    /// One API key.
    Key(Box<KeyEntry>),
    /// API keys as lines to be imported elsewhere, and the last of them if there are more.
    Exported(Vec<String>, Option<KeyId>),
    /// What became of imported lines.
    Imported(Imported),
    /// How feeds are doing.
    Feeds(Entries<FeedEntry>),
    /// Denials of tokens in force.
    Denials(Entries<DenialEntry>),
    /// Keys that tokens are verified by.
    TokenKeys(Entries<TokenKey>),
}

/// Some entries, and how many there are in all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries<T> {
    /// The first of them, at most [`ENTRIES_MAX`].
    pub entries: Vec<T>,
    /// How many there are.
    pub total: u64,
}

impl<T> Entries<T> {
    /// The first [`ENTRIES_MAX`] of all entries.
    #[must_use]
    pub fn of(mut all: Vec<T>) -> Self {
        let total = all.len() as u64;
        all.truncate(ENTRIES_MAX);
        Self { entries: all, total }
    }
}

/// How the daemon is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Where its packet program is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// Features that the kernel lacks, by name, with what is not done for it.
    #[serde(default)]
    pub kernel_lacks: BTreeMap<String, String>,
    /// Packets, connections and requests so far, by the name of their reason.
    pub counts: BTreeMap<String, u64>,
    /// Reasons that drop nothing, by name.
    pub monitored: Vec<String>,
    /// Packets that would have been dropped but for monitor mode, by the name of their reason.
    pub would_drop: BTreeMap<String, u64>,
    /// What alone is reachable from outside, the edge's own listeners first; `None`: everything.
    pub services: Option<Vec<String>>,
    /// Signatures in force.
    pub signatures: u64,
    /// While somebody watches the traffic: one packet in so many is sampled.
    pub sampled: Option<u64>,
    /// Events that were not told.
    pub events_lost: EventsLost,
    /// Bans in force.
    pub bans: u64,
    /// Entries of the allow list.
    pub allow: u64,
    /// Entries of the deny list.
    pub deny: u64,
    /// API keys that are neither expired nor revoked.
    pub keys: u64,
    /// When revocations of tokens were lost: until that is accepted, no token is let in.
    pub denials_lost_ms: Option<u64>,
    /// The configuration file.
    pub config: PathBuf,
    /// The last attempt to read it again.
    pub last_reload: Option<ReloadStatus>,
}

/// An interface with the packet program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// "native" or "generic".
    pub mode: String,
    /// Whether the program judges its packets.
    pub guarded: bool,
    /// Whether it is switched on.
    pub up: bool,
    /// What came in by it so far.
    pub traffic: Traffic,
}

/// An attempt to read the configuration again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// When.
    pub at_ms: u64,
    /// Whether it was taken.
    pub ok: bool,
    /// What there is to say about it.
    pub message: String,
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// The network.
    pub net: IpNet,
    /// When it ends; `None`: never.
    pub until_ms: Option<u64>,
    /// Why, in the words of the operator, or of the line of a list.
    pub reason: Option<String>,
    /// Where it is from: "config", "file PATH:LINE", "upstream NAME" or "operator".
    pub source: String,
    /// Packets it decided since the daemon started.
    pub hits: u64,
    /// Since when it is there, as far as is known.
    pub since_ms: u64,
    /// Which operator.
    pub by: Option<String>,
    /// Whether its packets are only counted as if they were dropped.
    pub monitor: bool,
}

/// A signature in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureEntry {
    /// Its name.
    pub name: String,
    /// What it does: "drop", "limit all to 10/s, burst 20" or "count".
    pub action: String,
    /// Whether it only counts what it would have dropped.
    pub monitored: bool,
    /// What it matches.
    pub matches: String,
    /// Packets that matched.
    pub hits: u64,
}

impl Command {
    /// Says what is wrong with a command, if anything is.
    ///
    /// Control characters could rewrite the terminal of whoever lists the entries later.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if matches!(self, Self::ListAdd { list: ListName::Allow, monitor: true, .. }) {
            return Some("only a deny entry can be monitored: an allow entry drops nothing".into());
        }
        match self {
            Self::ListAdd { reason, .. } | Self::BanRemove { reason, .. } => text_fault(reason),
            Self::BanAdd { ban, .. } => text_fault(&ban.reason),
            Self::Key(command) => command.fault(),
            Self::Token(command) => command.fault(),
            _ => None,
        }
    }
}

/// What is wrong with one of these texts, if anything is.
pub(super) fn text_fault<'a>(texts: impl IntoIterator<Item = &'a String>) -> Option<String> {
    let bad = texts.into_iter().find(|text| {
        text.is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control)
    })?;
    Some(format!("not 1 to {TEXT_BYTES_MAX} bytes without control characters: {bad:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_daemon_is_told_nothing_that_is_not_asked_for() {
        let culprit = Culprit::Account("anna".into());
        let remove = Command::BanRemove { culprit, reason: None };
        let line = serde_json::to_string(&remove).unwrap();
        assert!(!line.contains("reason"), "{line}");
        assert_eq!(serde_json::from_str::<Command>(&line).unwrap(), remove);
    }
}
