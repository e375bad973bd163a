//! Tokens that are good but for an operator's word: by their id, their subject, their session or
//! the key that signed them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::issuer::Verified;

/// Which tokens of an issuer are denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub enum Target {
    /// The token with this `jti`.
    Jti(String),
    /// This subject's tokens, or a client's that have no subject (`client:ID`), if they were issued
    /// before the entry was made.
    Sub(String),
    /// The tokens of this session.
    Sid(String),
    /// The tokens that the key with this `kid` signed; of a key without, its thumbprint: that of
    /// RFC 7638, or of a secret what stands for it.
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
    /// When it ends, in unix milliseconds: no such token can be good any longer. `None`: never.
    pub until_ms: Option<u64>,
    /// Who made it.
    pub by: String,
}

/// Every denial in force, for all threads: a look takes no lock, and a change copies a small part.
#[derive(Debug)]
pub struct Denylist {
    /// By the first byte of the name.
    parts: [ArcSwap<HashMap<Name, Term>>; 256],
    count: AtomicUsize,
    /// Whether there were others, and nobody knows which.
    is_lost: AtomicBool,
}

/// A digest of issuer, kind and value: what is looked for is as long as it likes.
type Name = [u8; 32];

#[derive(Clone, Copy, Debug)]
struct Term {
    since_ms: u64,
    until_ms: u64,
}

impl Denial {
    /// Whether it has ended by this time.
    #[must_use]
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until_ms| until_ms <= now_ms)
    }
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

impl Default for Denylist {
    fn default() -> Self {
        Self {
            parts: std::array::from_fn(|_| ArcSwap::default()),
            count: AtomicUsize::new(0),
            is_lost: AtomicBool::new(false),
        }
    }
}

impl Denylist {
    /// Denies; in force when it returns. An earlier denial of the same is replaced.
    pub fn put(&self, denial: &Denial) {
        let name = name(&denial.issuer, denial.target.kind(), denial.target.value());
        let until_ms = denial.until_ms.unwrap_or(u64::MAX);
        let term = Term { since_ms: denial.since_ms, until_ms };
        self.change(name, |part| part.insert(name, term).is_none(), 1);
    }

    /// Takes a denial back.
    pub fn remove(&self, denial: &Denial) {
        let name = name(&denial.issuer, denial.target.kind(), denial.target.value());
        self.change(name, |part| part.remove(&name).is_some(), usize::MAX);
    }

    /// Notes whether denials were lost: then no token can be told from one that is denied.
    pub fn set_lost(&self, is_lost: bool) {
        self.is_lost.store(is_lost, Release);
    }

    /// Whether denials were lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Acquire)
    }

    /// Changes a part, and adds to the count if that made a difference. One thread changes.
    fn change(&self, name: Name, act: impl Fn(&mut HashMap<Name, Term>) -> bool, by: usize) {
        let part = &self.parts[usize::from(name[0])];
        let mut changed = HashMap::clone(&part.load());
        let differs = act(&mut changed);
        part.store(Arc::new(changed));
        if differs {
            self.count.fetch_add(by, AcqRel);
        }
    }

    /// Whether a token is denied at this time; its issuer's clock may be ahead by `leeway_ms`.
    #[must_use]
    pub fn denies(&self, token: &Verified, leeway_ms: u64, now_ms: u64) -> bool {
        if self.count.load(Acquire) == 0 {
            return false;
        }
        let claims = &token.claims;
        let term = |kind, value: &str| {
            let name = name(&claims.issuer, kind, value);
            let found = self.parts[usize::from(name[0])].load().get(&name).copied();
            found.filter(|term| term.until_ms > now_ms)
        };
        let by = |kind, value: &Option<String>| value.as_ref().and_then(|value| term(kind, value));
        // Whole seconds are all that `iat` may have; a token of the same second is denied.
        let before = |term: Term| {
            let last_ms = term.since_ms.saturating_add(leeway_ms);
            claims.issued_ms.is_none_or(|at| at <= last_ms)
        };
        term("sub", &token.subject()).is_some_and(before)
            || by("jti", &claims.id).is_some()
            || by("sid", &claims.session).is_some()
            || term("kid", &token.key).is_some()
    }
}

fn name(issuer: &str, kind: &str, value: &str) -> Name {
    let mut hash = blake3::Hasher::new();
    for part in [issuer, kind, value] {
        // With the length before it, no two lists of parts are the same bytes.
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    *hash.finalize().as_bytes()
}
