//! The server's side of TLS. Only this folder names rustls.
//!
//! TLS 1.2 and 1.3 with the library's safe suites, `h2` before `http/1.1`.

mod accept;
pub mod acme;
mod choice;
pub mod client;
mod expiry;
mod facts;
mod front;
mod pair;
mod state;
mod tickets;
mod trust;
mod upstream;
mod watch;

use std::path::PathBuf;

pub use tokio_rustls::server::TlsStream;

pub use self::{
    accept::{Failure, Greeted, Refusal, Shaken, greet, is_abused},
    expiry::Expiry,
    facts::{Facts, Peer},
    front::Front,
    pair::{Pair, PairFault, Part},
    state::{CertificateState, Change, State},
    trust::TrustFault,
    upstream::{Connector, TlsStream as ClientTlsStream, UpstreamTlsError},
};
use crate::config::settings;

/// Reads whom to trust; tells what of it is no longer good, in words.
///
/// # Errors
/// If it cannot be told whom to trust.
pub fn read_trust(clients: &settings::Clients, now_s: i64) -> Result<Vec<String>, TrustFault> {
    let trust = trust::read(clients)?;
    let overdue = trust.iter().flat_map(|trust| trust.overdue(now_s));
    Ok(overdue.map(|(path, doubt)| format!("{} {doubt}", path.display())).collect())
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate is unusable or the key is another's.
    #[error(transparent)]
    Pair(#[from] PairFault),
    /// A certificate that clients refuse would take the place of one that they take.
    #[error("{} {doubt}; the former is served", path.display())]
    Worse {
        /// The file.
        path: PathBuf,
        /// What is wrong with its time.
        doubt: String,
    },
    /// It cannot be told whose certificates clients may show.
    #[error(transparent)]
    Trust(#[from] TrustFault),
    /// The source of randomness failed.
    #[error("cannot draw session ticket keys")]
    Tickets(#[source] rustls::Error),
    /// The library cannot do what is asked of it.
    #[error("cannot configure TLS")]
    Config(#[source] rustls::Error),
}

const H2: &[u8] = b"h2";
