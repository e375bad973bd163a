//! The client's side of TLS, for what the daemon itself asks of others.

use std::{io, path::Path, sync::Arc};

pub use rustls::ClientConfig;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A client that trusts the authorities of a PEM file, or those that the host trusts: they are kept
/// up to date with the host, and an operator's own are among them.
///
/// # Errors
/// If there is no authority to trust.
pub fn client(authorities: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let mut config = trusting(authorities)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// As [`client`], for what is no HTTP.
///
/// # Errors
/// As there.
pub fn bare(authorities: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    trusting(authorities).map(Arc::new)
}

fn trusting(authorities: Option<&Path>) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let fault = |fault| io::Error::other(format!("{}: {fault}", path.display()));
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| fault(e.to_string()))?;
            for certificate in certificates {
                roots.add(certificate).map_err(|e| fault(e.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(io::Error::other("no certificate authority to trust"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("the provider supports both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Begins TLS with the host of this name.
///
/// # Errors
/// If it is no name, or the host does not prove that it has it.
pub async fn connect(
    config: Arc<ClientConfig>,
    host: &str,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, stream).await
}
