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
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
pub use tokio_rustls::client::TlsStream;

use super::{
    Expiry,
    pair::{Pair, PairFault, certificates},
};
use crate::config::settings::{self, SYSTEM_CA};

/// Opens TLS connections to the servers of one upstream.
#[derive(Clone)]
pub struct Connector {
    tls: TlsConnector,
    expiries: Arc<[Expiry]>,
    /// Of the certificates that were read.
    digest: [u8; 32],
}

/// Why an upstream cannot be spoken to over TLS.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// The bundle of authorities.
    #[error("{}: {why}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The edge's own certificate or its key.
    #[error(transparent)]
    Client(#[from] PairFault),
}

impl Connector {
    /// Reads the files, for a version of HTTP.
    ///
    /// # Errors
    /// Which of them is wrong, and how.
    pub fn load(settings: &settings::UpstreamTls, http2: bool) -> Result<Self, UpstreamTlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let fault = |why| UpstreamTlsError::Authorities { path: settings.ca.clone(), why };
        let mut roots = RootCertStore::empty();
        let bundle = certificates(&settings.ca).map_err(fault)?;
        // The system's authorities end without anybody having to do anything.
        let mut expiries = match settings.ca == Path::new(SYSTEM_CA) {
            true => Vec::new(),
            false => Expiry::of_bundle("upstream_ca", &bundle),
        };
        let mut digest = Sha256::new();
        bundle.iter().for_each(|certificate| digest.update(certificate));
        roots.add_parsable_certificates(bundle);
        if roots.is_empty() {
            return Err(fault("holds no authority".to_owned()));
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .build()
                .map_err(|error| fault(format!("cannot be used: {error}")))?;
        let pinned = Pinned { inner: verifier, pins: settings.pins.clone() };
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider supports both versions")
            // Not less than the library's own verification, which it calls first.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned));
        let mut config = match &settings.client {
            None => config.with_no_client_auth(),
            Some(files) => {
                let pair = Pair::read(files)?;
                pair.key.cert.iter().for_each(|certificate| digest.update(certificate));
                expiries.extend(
                    pair.key.cert.first().and_then(|der| Expiry::of("upstream_client", der)),
                );
                let own = SingleCertAndKey::from(pair.key);
                config.with_client_cert_resolver(Arc::new(own))
            }
        };
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let (tls, digest) = (TlsConnector::from(Arc::new(config)), digest.finalize().into());
        Ok(Self { tls, expiries: expiries.into(), digest })
    }

    /// Whether it goes by the same certificates as another of the same settings.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// When the edge's own certificate and the authorities end.
    #[must_use]
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// Shakes hands with a server that must prove to be `name`.
    ///
    /// # Errors
    /// If the connection breaks, or the server does not prove it.
    pub async fn connect(&self, name: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = self.tls.connect(name, stream).await?;
        let offered = &self.tls.config().alpn_protocols;
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
