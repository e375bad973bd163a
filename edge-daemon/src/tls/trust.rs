//! Whose certificates clients may show.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use edge_identity::revocation::list_ends_s;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject as _},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use sha2::{Digest as _, Sha256};

use super::{
    Expiry,
    facts::spki_sha256,
    pair::{certificates, date, pem, pem_words},
};
use crate::config::settings::Clients;

/// The authorities, what they revoked, and the keys that are pinned.
#[derive(Debug)]
pub(super) struct Trust {
    webpki: Arc<dyn ClientCertVerifier>,
    pins: Vec<[u8; 32]>,
    /// The authorities' ends.
    authorities: Vec<Expiry>,
    /// When the next one is due after each list, by file.
    lists: Vec<(PathBuf, i64)>,
    /// Whether a list that is overdue lets nobody in.
    enforces_ends: bool,
    /// Of all it was made of: equal digests trust the same clients.
    pub(super) digest: [u8; 32],
}

/// Why it cannot be told whom to trust.
#[derive(Debug, thiserror::Error)]
pub enum TrustFault {
    /// A bundle of authorities.
    #[error("{}: {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A revocation list.
    #[error("{}: {why}", path.display())]
    Crl {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl TrustFault {
    /// Whether a revocation list is at fault.
    #[must_use]
    pub fn is_crl(&self) -> bool {
        matches!(self, Self::Crl { .. })
    }
}

/// Reads what is known of clients' certificates, if anything is configured.
pub(super) fn read(clients: &Clients) -> Result<Option<Trust>, TrustFault> {
    let Some(path) = &clients.ca else { return Ok(None) };
    let ca_fault = |why| TrustFault::Ca { path: path.clone(), why };
    let (mut roots, mut digest) = (RootCertStore::empty(), Sha256::new());
    let bundle = certificates(path).map_err(ca_fault)?;
    let authorities = Expiry::of_bundle("client_ca", &bundle);
    for certificate in bundle {
        digest.update(&certificate);
        let added = roots.add(certificate);
        added.map_err(|error| ca_fault(format!("holds no authority: {error}")))?;
    }
    let (mut lists, mut ends) = (Vec::new(), Vec::new());
    let enforce = !clients.expired_crl_accepted;
    for path in &clients.crl {
        let fault = |why| TrustFault::Crl { path: path.clone(), why };
        let read = pem(path)
            .and_then(|text| {
                CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>()
            })
            .map_err(|error| fault(pem_words(&error)))?;
        if read.is_empty() {
            return Err(fault("holds no revocation list".to_owned()));
        }
        read.iter().for_each(|list| digest.update(list));
        // One at a time, so that the file at fault is known.
        builder(&roots, read.clone(), enforce).map_err(fault)?;
        ends.extend(read.iter().filter_map(|list| Some((path.clone(), list_ends_s(list)?))));
        lists.extend(read);
    }
    clients.pins.iter().for_each(|pin| digest.update(pin));
    digest.update([u8::from(enforce)]);
    let webpki = builder(&roots, lists, enforce).map_err(ca_fault)?;
    let (pins, digest) = (clients.pins.clone(), digest.finalize().into());
    Ok(Some(Trust { webpki, pins, authorities, lists: ends, enforces_ends: enforce, digest }))
}

/// The whole chain is looked up in the lists, if there are any, and must be found.
fn builder(
    roots: &RootCertStore,
    lists: Vec<CertificateRevocationListDer<'static>>,
    enforce_ends: bool,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider);
    let builder = builder.with_crls(lists);
    let builder = if enforce_ends { builder.enforce_revocation_expiration() } else { builder };
    builder.build().map_err(|error| format!("cannot be used: {error}"))
}

impl Trust {
    /// The lists after which the next ones are overdue, and what is wrong with each, in words.
    pub(super) fn overdue(&self, now_s: i64) -> impl Iterator<Item = (&Path, String)> {
        let overdue = self.lists.iter().filter(move |(_, ends_s)| now_s >= *ends_s);
        overdue.map(|(path, ends_s)| (path.as_path(), format!("has expired on {}", date(*ends_s))))
    }

    /// A list that lets nobody in, as the next one is overdue.
    pub(super) fn lapsed(&self, now_s: i64) -> Option<(&Path, String)> {
        self.overdue(now_s).next().filter(|_| self.enforces_ends)
    }

    /// When what it goes by ends.
    pub(super) fn expiries(&self) -> impl Iterator<Item = Expiry> {
        let list = |(path, s): &(PathBuf, i64)| Expiry::new("crl", path.display().to_string(), *s);
        self.authorities.iter().cloned().chain(self.lists.iter().map(list))
    }

    /// Judges a chain; again also for a session that is resumed, since when much may have changed.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let (own, between) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.webpki.verify_client_cert(own, between, now)?;
        let is_pinned = || spki_sha256(own).is_some_and(|digest| self.pins.contains(&digest));
        if self.pins.is_empty() || is_pinned() {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }
}

/// What a handshake asks: [`Trust`], of every client or of those that have a certificate.
pub(super) struct Question {
    pub(super) trust: Arc<Trust>,
    pub(super) is_mandatory: bool,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Question {{ is_mandatory: {} }}", self.is_mandatory)
    }
}

impl ClientCertVerifier for Question {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trust.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(own).chain(between).cloned().collect();
        self.trust.verify(&chain, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trust.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.webpki.supported_verify_schemes()
    }
}
