//! The server's side of TLS. Only this folder names rustls.

mod accept;
mod facts;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use rustls::ServerConfig;
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    version::{TLS12, TLS13},
};
pub use tokio_rustls::server::TlsStream;

pub use self::{
    accept::{Failure, accept},
    facts::{Facts, Peer},
};
use crate::config::settings;

/// Reads the certificate and its key and checks that they belong together.
///
/// TLS 1.2 and 1.3 with the library's safe suites, post-quantum key exchange first, stateless
/// session tickets whose keys rotate by themselves, `h2` before `http/1.1`.
pub fn load(settings: &settings::Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&settings.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&settings.key)
        .map_err(|source| TlsError::Read { path: settings.key.clone(), source })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("the provider supports both versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| TlsError::Pair { path: settings.certificate.clone(), source })?;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Tickets)?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)
}

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable or not PEM.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// The certificate is unusable or the key is another's.
    #[error("cannot serve {}", path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The source of randomness failed.
    #[error("cannot draw session ticket keys")]
    Tickets(#[source] rustls::Error),
}

const H2: &[u8] = b"h2";
