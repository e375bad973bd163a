//! What can be asked about API keys, and what is answered.

use std::{fmt, ops::Deref};

use edge_identity::{
    key::{KeyId, Leak, Place},
    roles::{NAME_BYTES_MAX, NAME_SIGNS, is_name},
    signed::{Algorithm, PublicKey},
};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::protocol::text_fault;

/// What can be asked about API keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeyCommand {
    /// Makes a key. Answer: [`super::Reply::KeyCreated`].
    Create(Box<NewKey>),
    /// A page of the keys, behind this one. Answer: [`super::Reply::Keys`].
    List {
        /// The last of the page before; `None`: from the first.
        after: Option<KeyId>,
    },
    /// One key. Answer: [`super::Reply::Key`].
    Show {
        /// Its id.
        id: KeyId,
    },
    /// Makes a key to take the place of another, which ends after a while. Answer:
    /// [`super::Reply::KeyCreated`].
    Rotate {
        /// The other's id.
        id: KeyId,
        /// How long it still is good; `None`: as long as the configuration says.
        grace_ms: Option<u64>,
        /// How long the new one lives.
        life: Life,
        /// The secret that comes with the new one, where the other's was chosen.
        #[serde(default)]
        secret: NewSecret,
        /// The public key of the new one, where the other has one.
        #[serde(default)]
        signing: Box<NewSigning>,
    },
    /// Revokes a key for good. Answer: [`super::Reply::Done`].
    Revoke {
        /// Its id.
        id: KeyId,
    },
    /// Forgets a key that is revoked or has ended. Answer: [`super::Reply::Done`].
    Remove {
        /// Its id.
        id: KeyId,
    },
    /// A page of the keys as lines to be imported elsewhere. Answer: [`super::Reply::Exported`].
    Export {
        /// The last of the page before; `None`: from the first.
        after: Option<KeyId>,
    },
    /// Takes exported lines. Answer: [`super::Reply::Imported`].
    Import {
        /// The lines.
        lines: Vec<String>,
        /// Whether only to say what is wrong with them.
        check: bool,
    },
}

/// A key to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What its owner calls it.
    pub name: String,
    /// Who answers for it; may be empty.
    pub owner: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// What it is.
    pub roles: Vec<String>,
    /// Its plan.
    pub tier: Option<String>,
    /// Where it may come from; empty: anywhere.
    pub networks: Vec<IpNet>,
    /// Where it may go; empty: anywhere.
    pub places: Vec<Place>,
    /// How long it lives.
    pub life: Life,
    /// The secret that has to come with it.
    pub secret: NewSecret,
    /// How it signs requests.
    #[serde(default)]
    pub signing: NewSigning,
}

/// How a new key signs requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewSigning {
    /// Not at all.
    #[default]
    None,
    /// With a secret that is derived for it and told once.
    Derived,
    /// With the private key of this public one.
    Public(PublicKey),
}

/// A second secret to be bound to a key.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewSecret {
    /// None.
    #[default]
    None,
    /// A random one, which is told once.
    Random,
    /// This one.
    Chosen(SecretText),
}

/// A secret on its way between an operator and the daemon: wiped from memory when it is dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Deref for SecretText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("masked")
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Random => "Random",
            Self::Chosen(_) => "Chosen(masked)",
        })
    }
}

/// How long a new key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// As long as the configuration says.
    Default,
    /// Until it is revoked.
    Forever,
    /// So many milliseconds.
    Ms(u64),
}

/// A new API key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCreated {
    /// Its public name.
    pub id: String,
    /// The key itself; told this once. Empty if it has a public key, and is named by its id alone.
    pub key: SecretText,
    /// The secret bound to it, if it is random; told this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretText>,
    /// The secret with which it signs, in hexadecimal, if it is derived; told this once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_secret: Option<SecretText>,
    /// When it ends; `None`: never.
    pub expires_ms: Option<u64>,
    /// The key whose place it takes, and when that one ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<(String, Option<u64>)>,
}

impl fmt::Debug for KeyCreated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyCreated({})", self.id)
    }
}

/// An API key, without anything secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEntry {
    /// Its public name.
    pub id: KeyId,
    /// What its owner calls it.
    pub name: String,
    /// Who answers for it; may be empty.
    pub owner: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// What it is.
    pub roles: Vec<String>,
    /// Its plan.
    pub tier: Option<String>,
    /// Where it may come from; empty: anywhere.
    pub networks: Vec<IpNet>,
    /// Where it may go; empty: anywhere.
    pub places: Vec<Place>,
    /// When it was made.
    pub created_ms: u64,
    /// When it ends; `None`: never.
    pub expires_ms: Option<u64>,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
    /// When it was last good for a request, to the second.
    pub used_ms: Option<u64>,
    /// How it was seen where others could read it, and when first.
    pub exposed: Option<(Leak, u64)>,
    /// The key that took its place.
    pub replaced_by: Option<KeyId>,
    /// The secret that has to come with it: `random` or `chosen`.
    pub secret: Option<String>,
    /// The algorithm by which it signs requests, and must.
    #[serde(default)]
    pub signing: Option<Algorithm>,
    /// Whether an Argon2id hash of it is kept beside its digest.
    pub argon2id: bool,
    /// The pepper of its digest: `current`, `former` or `unknown`.
    pub pepper: String,
}

/// Some of the keys, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPage {
    /// The keys.
    pub entries: Vec<KeyEntry>,
    /// How many there are in all.
    pub total: u64,
}

/// What became of lines to be imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Keys that were new.
    pub added: u64,
    /// Keys that were there, with the same digest.
    pub known: u64,
    /// What is wrong with which line, counted from 0; then nothing was taken.
    pub wrong: Vec<(usize, String)>,
}

impl KeyCommand {
    /// Whether it waits for an audit log that can tell of it. Who revokes a key must be rid of it, and what
    /// tells of an export is told with its first page.
    #[must_use]
    pub const fn is_put_off(&self) -> bool {
        matches!(
            self,
            Self::Create(_)
                | Self::Rotate { .. }
                | Self::Remove { .. }
                | Self::Export { after: None }
                | Self::Import { check: false, .. }
        )
    }

    /// Says what is wrong with a command, if anything is.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let Self::Create(new) = self else { return None };
        let words = new.scopes.iter().chain(&new.roles).chain(&new.tier);
        let owner = Some(&new.owner).filter(|owner| !owner.is_empty());
        text_fault(std::iter::once(&new.name).chain(owner).chain(words))
            .or_else(|| name_fault(new.scopes.iter().chain(&new.roles)))
    }
}

/// Says which of these no scope or role can be called: no configuration could ask for it.
pub(crate) fn name_fault<'a>(names: impl IntoIterator<Item = &'a String>) -> Option<String> {
    let bad = names.into_iter().find(|name| !is_name(name))?;
    Some(format!(
        "no name of a scope or role, 1 to {NAME_BYTES_MAX} letters, digits and '{NAME_SIGNS}': {bad:?}"
    ))
}
