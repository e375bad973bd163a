//! What a client did, as the request plane saw it.

use std::net::IpAddr;
use std::sync::Arc;

use edge_common::{Blame, Reason, Source};
use serde::{Deserialize, Serialize};

use crate::{ja4::Ja4, place::Places};

/// What kind of act it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something was refused through the client's fault.
    Refused(Reason),
    /// A request was served.
    Served,
    /// The upstream knows nothing of what was asked for.
    NotFound,
    /// A login failed, as its route tells it.
    LoginFailed,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = Reason::COUNT + OTHERS.len();

    /// Of a refusal; `None` if it was not the client's fault.
    #[must_use]
    pub fn of(reason: Reason) -> Option<Self> {
        (reason.blame() == Blame::Client).then_some(Self::Refused(reason))
    }

    /// Every kind, in the order of its index.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        Reason::ALL.iter().filter_map(|reason| Self::of(*reason)).chain(OTHERS)
    }

    /// A number of its own below [`Self::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Refused(reason) => reason as usize,
            Self::Served => Reason::COUNT,
            Self::NotFound => Reason::COUNT + 1,
            Self::LoginFailed => Reason::COUNT + 2,
        }
    }

    /// The word for it: a refusal's is its reason's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.name(),
            Self::Served => "served",
            Self::NotFound => "not_found",
            Self::LoginFailed => "login_failed",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|kind| kind.name() == name)
    }

    /// The reason under which the kernel's table of bans keeps it.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Refused(reason) => reason,
            Self::LoginFailed => Reason::CredentialInvalid,
            Self::NotFound => Reason::NoRoute,
            Self::Served => Reason::SourceRate,
        }
    }
}

const OTHERS: [Kind; 3] = [Kind::Served, Kind::NotFound, Kind::LoginFailed];

/// How sure it is that the address is the sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// Anybody can write it into a packet.
    None,
    /// It completed a handshake of TCP, or a trusted proxy vouches for it.
    Handshake,
}

/// An act of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// What it was.
    pub kind: Kind,
    /// When, in boot time.
    pub at_ns: u64,
    /// The address that it came from.
    pub address: IpAddr,
    /// The client that this address stands for.
    pub source: Source,
    /// How sure that is.
    pub proof: Proof,
    /// Where the address is from, if a scenario asks and anybody knows.
    pub places: Places,
    /// The fingerprint of its TLS library, if it spoke TLS.
    pub ja4: Option<Ja4>,
    /// Whether that is a proxy's, which shakes hands for everybody behind it.
    pub is_spoken_for: bool,
    /// Who it proved to be: `key:ID`, or an issuer and a subject.
    pub principal: Option<Arc<str>>,
    /// Whom it claimed to be at a login.
    pub account: Option<Arc<str>>,
    /// Whether another site's page had a browser ask, as [`crate::led`] tells it.
    pub is_led: bool,
    /// The request that it was, if it was one.
    pub request: Option<Box<Asked>>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The id in the client's answer and in the logs.
    pub id: Box<str>,
    /// The method.
    pub method: Box<str>,
    /// The path without its query, cut to what a log takes.
    pub path: Box<str>,
    /// The status of the answer.
    pub status: u16,
}

/// A signal as it is kept with a verdict that it led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When, in boot time; in unix milliseconds once it is told.
    pub at: u64,
    /// [`Kind::name`].
    pub kind: Box<str>,
    /// The address.
    pub address: IpAddr,
    /// What was asked for.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Asked>,
}

impl From<&Signal> for Evidence {
    fn from(signal: &Signal) -> Self {
        Self {
            at: signal.at_ns,
            kind: signal.kind.name().into(),
            address: signal.address,
            request: signal.request.as_deref().cloned(),
        }
    }
}

impl Signal {
    /// The path that was asked for; empty if none was.
    #[must_use]
    pub fn path(&self) -> &str {
        self.request.as_ref().map_or("", |asked| &asked.path)
    }
}
