//! The client's side of TLS: towards servers behind the edge.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
    server::ParsedCertificate,
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
pub use tokio_rustls::client::TlsStream;

use crate::config::settings;

/// Opens TLS connections to the servers of one upstream.
#[derive(Clone)]
pub struct Connector(TlsConnector);

/// Why an upstream cannot be spoken to over TLS.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// A file is missing, unreadable or not PEM.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate that can be trusted", .0.display())]
    NoAuthority(PathBuf),
    /// The authorities cannot be used.
    #[error("cannot verify by the authorities in {}: {why}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The edge's own certificate is unusable or the key is another's.
    #[error("cannot show {}", path.display())]
    Client {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

impl UpstreamTlsError {
    /// The file that is wrong.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::NoAuthority(path)
            | Self::Verifier { path, .. }
            | Self::Client { path, .. } => path,
        }
    }
}

impl Connector {
    /// Reads the files, for a version of HTTP.
    ///
    /// # Errors
    /// Which of them is wrong, and how.
    pub fn load(settings: &settings::UpstreamTls, http2: bool) -> Result<Self, UpstreamTlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&settings.ca)?);
        if roots.is_empty() {
            return Err(UpstreamTlsError::NoAuthority(settings.ca.clone()));
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .build()
                .map_err(|error| UpstreamTlsError::Verifier {
                    path: settings.ca.clone(),
                    why: error.to_string(),
                })?;
        let pinned = Pinned { inner: verifier, pins: settings.pins.clone() };
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider supports both versions")
            // Not less than the library's own verification, which it calls first.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned));
        let mut config = match &settings.client {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| UpstreamTlsError::Read { path: key.clone(), source })?;
                config.with_client_auth_cert(chain, key).map_err(|source| {
                    UpstreamTlsError::Client { path: certificate.clone(), source }
                })?
            }
        };
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands with a server that must prove to be `name`.
    ///
    /// # Errors
    /// If the connection breaks, or the server does not prove it.
    pub async fn connect(&self, name: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = self.0.connect(name, stream).await?;
        let offered = &self.0.config().alpn_protocols;
        let agreed = stream.get_ref().1.alpn_protocol();
        if offered.iter().any(|offer| offer == b"h2") && agreed != Some(b"h2") {
            return Err(io::Error::other("does not agree to HTTP/2"));
        }
        Ok(stream)
    }
}

/// Verifies as the library does, and then whether the key is one of those that are expected.
#[derive(Debug)]
struct Pinned {
    inner: Arc<WebPkiServerVerifier>,
    /// Empty: any key.
    pins: Vec<[u8; 32]>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        if self.pins.is_empty() {
            return Ok(verified);
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let key: [u8; 32] = Sha256::digest(certificate.subject_public_key_info()).into();
        if self.pins.contains(&key) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, UpstreamTlsError> {
    let read = |source| UpstreamTlsError::Read { path: path.clone(), source };
    CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)
}
