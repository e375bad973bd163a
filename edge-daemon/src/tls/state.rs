//! How what TLS goes by is, for metrics and logs.

use super::Expiry;

/// What is served, for the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The certificates.
    pub certificates: Vec<CertificateState>,
    /// Whether the files that say whom to trust are not good, and what they held before holds; or a
    /// list of what was revoked is overdue.
    pub trust_is_stale: bool,
    /// When all of it ends.
    pub expiries: Vec<Expiry>,
}

/// How a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateState {
    /// Its first name.
    pub name: String,
    /// The kind of its key.
    pub kind: &'static str,
    /// Whether its files are not good, and what they held before is served.
    pub is_stale: bool,
    /// Whether its OCSP response is not good, and nothing is stapled.
    pub is_unstapled: bool,
}

/// What became of a part whose files have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The part.
    pub what: String,
    /// Whether it is served now; or why what was served before still is.
    pub result: Result<(), String>,
}
