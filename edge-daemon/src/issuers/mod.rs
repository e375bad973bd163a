//! Whose tokens are taken: the terms of each issuer, and the keys that it signs with now.
//!
//! Terms come with the configuration. Keys come from files, read with it, or from the issuer, who
//! is asked by a thread of its own; a request waits for an answer at most a bounded while.

mod feed;
mod keeper;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use edge_identity::jwt::{
    Algorithm, Issuer, KeyFault, KeySet, SetFault, VerifyingKey, cache::Under,
};

pub use self::{
    feed::{Feed, Feeds, Keys, Place, Source},
    keeper::{Keeper, keeper},
};
use crate::{
    config::settings,
    secret::{self, Origin},
};

/// Every issuer whose tokens are taken.
pub struct Issuers {
    /// The number of this state of the configuration: no token verified under another counts.
    pub number: u64,
    /// Each with its keys, in the order of the configuration.
    pub all: Vec<(Issuer, Arc<Feed>)>,
}

impl Issuers {
    /// The issuers of a configuration. Feeds of keys that `feeds` knows already go on as they are.
    ///
    /// # Errors
    /// If keys from files are no good.
    ///
    /// Nothing is fetched for them before they are [`Feeds::publish`]ed.
    pub fn new(settings: &[settings::Issuer], feeds: &Feeds) -> Result<Self, Fault> {
        let all = settings.iter().map(|settings| {
            let feed = match &settings.keys {
                settings::KeySource::Static(files) => {
                    let set = files.read(&settings.terms.algorithms)?;
                    Arc::new(Feed::fixed(&settings.terms.name, set))
                }
                settings::KeySource::Fetched(source) => feeds.of(&settings.terms.name, source),
            };
            Ok((settings.terms.clone(), feed))
        });
        Ok(Self { number: feeds.next_number(), all: all.collect::<Result<_, Fault>>()? })
    }

    /// The place of the issuer with this `iss`.
    #[must_use]
    pub fn find(&self, issuer: &str) -> Option<usize> {
        self.all.iter().position(|(terms, _)| terms.issuer == issuer)
    }

    /// Whether an issuer is called so.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.all.iter().any(|(terms, _)| terms.name == name)
    }

    /// The keys of the issuer that is called so.
    #[must_use]
    pub fn feed(&self, name: &str) -> Option<&Feed> {
        let found = self.all.iter().find(|(terms, _)| terms.name == name);
        found.map(|(_, feed)| &**feed)
    }

    /// What they are called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|(terms, _)| terms.name.as_str())
    }

    /// The name of the issuer, if there is but one.
    #[must_use]
    pub fn only(&self) -> Option<&str> {
        match &self.all[..] {
            [(terms, _)] => Some(&terms.name),
            _ => None,
        }
    }

    /// Whether what was verified under this still holds.
    #[must_use]
    pub fn holds(&self, under: Under) -> bool {
        let feed = self.all.get(under.issuer).map(|(_, feed)| feed);
        under.policy == self.number
            && feed.is_some_and(|f| f.keys().is_some_and(|keys| keys.number == under.keys))
    }
}

/// Keys that lie on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFiles {
    /// PEM files or JWKS files with public keys.
    pub public: Vec<PathBuf>,
    /// Shared secrets.
    pub secrets: Vec<Origin>,
}

/// Why keys on this host are no good.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// A PEM file has a key that is no good, or none.
    #[error("{0}: {1}")]
    Pem(PathBuf, KeyFault),
    /// A JWKS file is no good.
    #[error("{0}: {1}")]
    Jwks(PathBuf, SetFault),
    /// A JWKS file has a key that is no good.
    #[error("{0}: key {1}: {2}")]
    Key(PathBuf, usize, KeyFault),
    /// A secret cannot be read.
    #[error("{0}: {1}")]
    Secret(Origin, secret::Fault),
    /// A secret is no good for the algorithms.
    #[error("{0}: {1}")]
    Short(Origin, KeyFault),
    /// They do not go together.
    #[error("the keys do not go together: {0}")]
    Set(#[from] SetFault),
}

impl KeyFiles {
    /// Reads all of them.
    ///
    /// # Errors
    /// The first that is no good.
    pub fn read(&self, algorithms: &[Algorithm]) -> Result<KeySet, Fault> {
        let mut keys = Vec::new();
        for path in &self.public {
            keys.extend(read_public(path)?);
        }
        for origin in &self.secrets {
            let secret = origin.read().map_err(|fault| Fault::Secret(origin.clone(), fault))?;
            let secret = secret.without_line_end();
            let key = VerifyingKey::from_secret(secret.expose(), algorithms);
            keys.push(key.map_err(|fault| Fault::Short(origin.clone(), fault))?);
        }
        Ok(KeySet::new(keys)?)
    }
}

/// The keys of a file. Of one's own file a key that is no good is a mistake, but one of a kind that
/// nobody here knows is not.
fn read_public(path: &Path) -> Result<Vec<VerifyingKey>, Fault> {
    let text = crate::regular::text(path, FILE_BYTES_MAX)
        .map_err(|fault| Fault::Read(path.to_owned(), fault))?;
    if !text.trim_start().starts_with('{') {
        return VerifyingKey::from_pem(&text).map_err(|fault| Fault::Pem(path.to_owned(), fault));
    }
    let set = KeySet::from_jwks(text.as_bytes());
    let set = set.map_err(|fault| Fault::Jwks(path.to_owned(), fault))?;
    let bad = set.left_out.iter().find(|(_, fault)| !fault.is_of_others());
    match bad {
        Some((place, fault)) => Err(Fault::Key(path.to_owned(), place + 1, *fault)),
        None => Ok(set.into_keys()),
    }
}

/// The largest file of keys, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
