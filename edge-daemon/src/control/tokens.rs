//! What can be asked about tokens that are refused although they are good, and what is answered.

use edge_identity::jwt::denylist::Target;
use serde::{Deserialize, Serialize};

/// What can be asked about tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenCommand {
    /// Denies tokens. Answer: [`super::Reply::Done`].
    Revoke {
        /// Which.
        target: Target,
        /// Whose: the issuer's name in the configuration, or its `iss`.
        issuer: String,
        /// For how long; `None`: as long as such a token can be good, of a key for ever.
        life_ms: Option<u64>,
    },
    /// Takes a denial back. Answer: [`super::Reply::Done`].
    Remove {
        /// Which.
        target: Target,
        /// Whose.
        issuer: String,
    },
    /// Lets tokens in again although denials were lost. Answer: [`super::Reply::Done`].
    AcceptLoss,
    /// The denials in force. Answer: [`super::Reply::Denials`].
    List,
    /// The keys that tokens are verified by. Answer: [`super::Reply::TokenKeys`].
    Keys,
}

impl TokenCommand {
    /// Whether it waits for an audit log that can tell of it: what lets tokens in again does, and who
    /// revokes one must be rid of it.
    #[must_use]
    pub const fn is_put_off(&self) -> bool {
        matches!(self, Self::Remove { .. } | Self::AcceptLoss)
    }
}

/// A key of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKey {
    /// The issuer's name in the configuration.
    pub issuer: String,
    /// What the key is denied by: its `kid`, or its thumbprint.
    pub key: String,
    /// The algorithms that it is for.
    pub algorithms: Vec<String>,
    /// Whether it is denied now.
    pub is_denied: bool,
}

/// A denial of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialEntry {
    /// `iss` of the tokens.
    pub issuer: String,
    /// By which of their names: `jti`, `sub`, `sid` or `kid`.
    pub kind: String,
    /// That name.
    pub value: String,
    /// When it was made.
    pub since_ms: u64,
    /// When it ends, if ever.
    pub until_ms: Option<u64>,
    /// Who made it.
    pub by: String,
}

impl TokenCommand {
    /// Says what is wrong with a command, if anything is.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let (Self::Revoke { target, issuer, .. } | Self::Remove { target, issuer }) = self else {
            return None;
        };
        let is_bad = |text: &str| {
            text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control)
        };
        let bad = [target.value(), issuer].into_iter().find(|text| is_bad(text))?;
        Some(format!("not 1 to {NAME_BYTES_MAX} bytes without control characters: {bad:?}"))
    }
}

/// The longest name of a token, in bytes: some issuers' are long.
const NAME_BYTES_MAX: usize = 1024;
