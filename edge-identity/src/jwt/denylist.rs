//! Tokens that are good but for an operator's word: by their id, their subject, their session or
//! the key that signed them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::issuer::Verified;

/// Which tokens of an issuer are denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub enum Target {
    /// The token with this `jti`.
    Jti(String),
    /// This subject's tokens, if they were issued before the entry was made.
    Sub(String),
    /// The tokens of this session.
    Sid(String),
    /// The tokens that the key with this `kid` signed; of a key without, its thumbprint.
    Kid(String),
}

/// One denial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// `iss` of the tokens.
    pub issuer: String,
    /// Which of them.
    pub target: Target,
    /// When it was made, in unix milliseconds.
    pub since_ms: u64,
    /// When it ends, in unix milliseconds: no such token can be good any longer.
    pub until_ms: u64,
    /// Who made it.
    pub by: String,
}

/// Every denial in force. Replaced whole when one is made or taken back.
#[derive(Clone, Debug, Default)]
pub struct Denylist {
    issuers: HashMap<String, HashMap<Target, Denial>>,
}

impl Target {
    /// The name of the claim or the header member.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Jti(_) => "jti",
            Self::Sub(_) => "sub",
            Self::Sid(_) => "sid",
            Self::Kid(_) => "kid",
        }
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> &str {
        match self {
            Self::Jti(value) | Self::Sub(value) | Self::Sid(value) | Self::Kid(value) => value,
        }
    }
}

impl Denylist {
    /// The list of these denials.
    pub fn new(denials: impl IntoIterator<Item = Denial>) -> Self {
        let mut list = Self::default();
        for denial in denials {
            let own = list.issuers.entry(denial.issuer.clone()).or_default();
            own.insert(denial.target.clone(), denial);
        }
        list
    }

    /// Whether a token is denied at this time.
    #[must_use]
    pub fn denies(&self, token: &Verified, now_ms: u64) -> bool {
        let claims = &token.claims;
        let Some(own) = self.issuers.get(&claims.issuer) else { return false };
        let denial = |target: Target| own.get(&target).filter(|denial| denial.until_ms > now_ms);
        let by = |value: &Option<String>, target: fn(String) -> Target| {
            value.as_ref().and_then(|value| denial(target(value.clone())))
        };
        let subject = by(&claims.subject, Target::Sub);
        // Whole seconds are all that `iat` may have; a token of the same second is denied.
        let before = |denial: &Denial| claims.issued_ms.is_none_or(|at| at <= denial.since_ms);
        subject.is_some_and(before)
            || by(&claims.id, Target::Jti).is_some()
            || by(&claims.session, Target::Sid).is_some()
            || denial(Target::Kid(token.key.clone())).is_some()
    }
}
