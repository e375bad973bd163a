//! The client's side of TLS, for what the daemon itself asks of others.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use rustls::ClientConfig;
use rustls::{
    ConfigBuilder, RootCertStore,
    client::WantsClientCert,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::pair::pem;
use crate::secret::Origin;

/// A client that trusts the authorities of a PEM file, or those that the host trusts: they are kept
/// up to date with the host, and an operator's own are among them.
///
/// # Errors
/// If there is no authority to trust.
pub fn client(authorities: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let mut config = trusting(authorities)?.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// As [`client`], for what is no HTTP; with a certificate, a PEM file, and its key, for whoever asks the
/// client for one.
///
/// # Errors
/// As there, or if the certificate and the key cannot be used.
pub fn bare(
    authorities: Option<&Path>,
    own: Option<&(PathBuf, Origin)>,
) -> io::Result<Arc<ClientConfig>> {
    let config = trusting(authorities)?;
    let config = match own {
        None => config.with_no_client_auth(),
        Some((path, origin)) => {
            let fault = |error: &dyn Display| io::Error::other(format!("{origin}: {error}"));
            let secret = origin.read().map_err(|error| fault(&error))?;
            let key =
                PrivateKeyDer::from_pem_slice(secret.expose()).map_err(|error| fault(&error))?;
            let shown = config.with_client_auth_cert(certificates(path)?, key);
            let fault = |error| io::Error::other(format!("{}: {error}", path.display()));
            shown.map_err(fault)?
        }
    };
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = pem(path).and_then(|text| CertificateDer::pem_slice_iter(&text).collect());
    read.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

fn trusting(authorities: Option<&Path>) -> io::Result<Builder> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let fault = |error| io::Error::other(format!("{}: {error}", path.display()));
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(fault)?;
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
        .with_root_certificates(roots);
    Ok(config)
}

type Builder = ConfigBuilder<ClientConfig, WantsClientCert>;

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
