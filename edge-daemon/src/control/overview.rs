//! What is in force, at one look.

use serde::{Deserialize, Serialize};

use super::protocol::Entries;

/// What a configuration and what came of it let pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// Where it listens, and for what.
    pub listeners: Vec<Listener>,
    /// Certificates, authorities and lists of what they revoked, those that end first.
    pub certificates: Entries<Certificate>,
    /// Routes, in the order of the configuration.
    pub routes: Entries<RouteEntry>,
    /// Sets of policies.
    pub policies: Vec<PolicyEntry>,
    /// Whose tokens are taken.
    pub issuers: Vec<IssuerEntry>,
    /// Limits, in the order in which requests are charged.
    pub limits: Vec<LimitEntry>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// `https`, `http`, `metrics` or `control`.
    pub kind: String,
    /// Where.
    pub address: String,
}

/// What ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its name.
    pub name: String,
    /// What it is used for, as metrics have it.
    pub used_for: String,
    /// When.
    pub ends_ms: u64,
}

/// A route, and what it asks of its callers: every part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// Its host and path.
    pub route: String,
    /// Methods of HTTP that it takes.
    pub methods: Vec<String>,
    /// Ways in which callers may prove who they are; none: nobody is asked.
    pub auth: Vec<String>,
    /// Issuers of tokens; none: all.
    pub issuers: Vec<String>,
    /// Whom tokens must be for; none: as their issuer says.
    pub audience: Vec<String>,
    /// Scopes that callers must hold, all of them.
    pub scopes: Vec<String>,
    /// Scopes of which they must hold one.
    pub any_scope: Vec<String>,
    /// Roles of which they must be one.
    pub roles: Vec<String>,
    /// Whose what they ask for must be.
    pub owner: Option<String>,
    /// Sets of policies that must permit it, all of them.
    pub policies: Vec<String>,
    /// Whether the connection must have a client certificate.
    pub client_certificate: bool,
    /// The upstream.
    pub upstream: String,
}

/// A set of policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// Its name.
    pub name: String,
    /// Whether it is only counted what it would refuse.
    pub shadow: bool,
}

/// An issuer, and the keys that its tokens are verified by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerEntry {
    /// Its name.
    pub name: String,
    /// `iss` of its tokens.
    pub issuer: String,
    /// Where the keys are from: a URL, or `files`.
    pub source: String,
    /// How many there are; with none, no token is taken.
    pub keys: u64,
    /// When they were fetched or confirmed; `None`: there are none.
    pub confirmed_ms: Option<u64>,
    /// How long at most they are used without that; `None`: for ever, as they lie on this host.
    pub stale_ms: Option<u64>,
    /// Fetches that failed, since the start.
    pub failed: u64,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitEntry {
    /// Its name.
    pub name: String,
    /// Whose requests are counted together; none: everybody's.
    pub by: Vec<String>,
    /// How many are let through.
    pub admits: String,
    /// Whether it is only counted what it would refuse.
    pub shadow: bool,
}
