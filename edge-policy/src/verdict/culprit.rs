//! Whom signals are held against, and whom a verdict is about.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use edge_common::Source;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::signal::Signal;
use crate::{ja4::Ja4, place::Place};

/// Whom signals are held against, each with a bucket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The client's address.
    Source,
    /// The client's address and the fingerprint of its TLS library.
    Fingerprint,
    /// Who it proved to be.
    Principal,
    /// The account of a login, wherever it is tried from.
    Account,
    /// The fingerprint of a TLS library, wherever it comes from.
    Ja4,
    /// Where the client's address is from.
    Place(Place),
}

/// Whom a verdict is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Culprit {
    /// All that comes from a client's address.
    Source(Source),
    /// What comes from an address by one TLS library and does not prove who it is.
    Fingerprint(Source, Ja4),
    /// Whoever proves to be this.
    Principal(Arc<str>),
    /// Logins to an account.
    Account(Arc<str>),
    /// Logins by one TLS library.
    Ja4(Ja4),
    /// What comes from a place and does not prove who it is.
    Place(Place, u64),
    /// What other sites' pages have browsers at a client's address ask for; of a shared address, those by
    /// one TLS library.
    Led(Source, Option<Ja4>),
}

impl By {
    /// Whom this signal is held against, if it tells.
    #[must_use]
    pub fn culprit(self, signal: &Signal) -> Option<Culprit> {
        match self {
            Self::Source | Self::Fingerprint if signal.is_led => {
                Some(Culprit::Led(signal.source, None))
            }
            // A browser shows its certificate to whatever a page has it ask.
            Self::Principal if signal.is_led => {
                signal.principal.as_ref().map(|_| Culprit::Led(signal.source, None))
            }
            Self::Source => Some(Culprit::Source(signal.source)),
            Self::Fingerprint => signal.ja4.map(|ja4| Culprit::Fingerprint(signal.source, ja4)),
            Self::Principal => signal.principal.clone().map(Culprit::Principal),
            Self::Account => signal.account.clone().map(Culprit::Account),
            Self::Ja4 => signal.ja4.filter(|_| !signal.is_spoken_for).map(Culprit::Ja4),
            Self::Place(place) => signal.places.get(place).map(|id| Culprit::Place(place, id)),
        }
    }
}

impl Culprit {
    /// The client's address, if it is about one.
    #[must_use]
    pub const fn source(&self) -> Option<Source> {
        match self {
            Self::Source(source) | Self::Fingerprint(source, _) | Self::Led(source, _) => {
                Some(*source)
            }
            Self::Principal(_) | Self::Account(_) | Self::Ja4(_) | Self::Place(..) => None,
        }
    }

    /// Whether others can bring it under a verdict at will, who bear nothing of it themselves: those who
    /// guess at an account, borrow a browser's fingerprint, or lead a visitor.
    #[must_use]
    pub(super) const fn is_anybodys(&self) -> bool {
        match self {
            Self::Source(_) | Self::Fingerprint(..) | Self::Principal(_) => false,
            Self::Account(_) | Self::Ja4(_) | Self::Place(..) | Self::Led(..) => true,
        }
    }
}

/// `192.0.2.7`, `192.0.2.7 ja4:T`, either with ` led` behind it, `key:ID`, `account:NAME`, `ja4:T`, `country:NZ`, `asn:64496`.
impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(source) => source.fmt(f),
            Self::Fingerprint(source, ja4) => write!(f, "{source} ja4:{ja4}"),
            Self::Principal(who) => f.write_str(who),
            Self::Account(name) => write!(f, "account:{name}"),
            Self::Ja4(ja4) => write!(f, "ja4:{ja4}"),
            Self::Place(place, id) => write!(f, "{}:{}", place.name(), place.show(*id)),
            Self::Led(source, None) => write!(f, "{source} led"),
            Self::Led(source, Some(ja4)) => write!(f, "{source} ja4:{ja4} led"),
        }
    }
}

impl FromStr for Culprit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ja4 = |text| Ja4::parse(text).ok_or("not a fingerprint");
        let source = |text: &str| text.parse::<IpAddr>().map(|ip| Source::from(ip.to_canonical()));
        if let Ok(source) = source(text) {
            return Ok(Self::Source(source));
        }
        if let Some(name) = text.strip_prefix("account:") {
            return Ok(Self::Account(name.into()));
        }
        if let Some(own) = text.strip_prefix("ja4:") {
            return ja4(own).map(Self::Ja4);
        }
        for place in Place::ALL {
            let own = text.strip_prefix(place.name()).and_then(|rest| rest.strip_prefix(':'));
            if let Some(own) = own {
                let id =
                    place.parse(own).ok_or("not a country's two capital letters, nor a number");
                return id.map(|id| Self::Place(place, id));
            }
        }
        match text.strip_suffix(" led").map(Self::from_str) {
            Some(Ok(Self::Source(source))) => return Ok(Self::Led(source, None)),
            Some(Ok(Self::Fingerprint(source, ja4))) => return Ok(Self::Led(source, Some(ja4))),
            _ => {}
        }
        if let Some((address, own)) = text.split_once(" ja4:")
            && let Ok(source) = source(address)
        {
            return ja4(own).map(|ja4| Self::Fingerprint(source, ja4));
        }
        // What a key that signs was called before keys had one name.
        if let Some(id) = text.strip_prefix("signature:").filter(|id| !id.is_empty()) {
            return Ok(Self::Principal(format!("key:{id}").into()));
        }
        let is_principal =
            text.split_once(':').is_some_and(|(origin, id)| !origin.is_empty() && !id.is_empty());
        if is_principal { Ok(Self::Principal(text.into())) } else { Err(FORMS) }
    }
}

impl Serialize for Culprit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Culprit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

const FORMS: &str = "an address, \"ADDRESS ja4:FINGERPRINT\", \"ADDRESS led\", \"key:ID\", \"ISSUER:SUBJECT\", \"account:NAME\", \"ja4:FINGERPRINT\", \"country:NZ\" or \"asn:64496\"";
