//! The server's side of TLS. Only this folder names rustls.
//!
//! TLS 1.2 and 1.3 with the library's safe suites, `h2` before `http/1.1`.

mod accept;
pub mod acme;
mod choice;
pub mod client;
mod facts;
mod front;
mod pair;
mod tickets;
mod trust;
mod upstream;
mod watch;

use std::path::PathBuf;

pub use tokio_rustls::server::TlsStream;

pub use self::{
    accept::{Failure, Refusal, accept},
    facts::{Facts, Peer},
    front::{CertificateState, Change, Front, State},
    pair::{Pair, PairFault, Part},
    trust::TrustFault,
    upstream::{Connector, TlsStream as ClientTlsStream, UpstreamTlsError},
};
use crate::config::settings;

/// Reads whom to trust, to tell what is wrong with the files.
pub fn read_trust(clients: &settings::Clients) -> Result<(), TrustFault> {
    trust::read(clients).map(drop)
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
