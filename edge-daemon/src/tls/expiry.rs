//! What ends: certificates, authorities, lists of what they revoked, OCSP responses.

use rustls::pki_types::CertificateDer;
use x509_parser::{oid_registry, prelude::FromDer as _};

/// When something that TLS goes by ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// What it is used for, as metrics have it.
    pub used_for: &'static str,
    /// Its name; a list's is its file.
    pub name: String,
    /// The kind of its key.
    pub kind: &'static str,
    /// In unix seconds.
    pub ends_s: i64,
}

impl Expiry {
    /// Of what is no certificate.
    pub(super) fn new(used_for: &'static str, name: impl Into<String>, ends_s: i64) -> Self {
        Self { used_for, name: name.into(), kind: "", ends_s }
    }

    /// Of a certificate in DER, if it is one.
    pub(super) fn of(used_for: &'static str, der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
        let subject = parsed.subject();
        let common = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let kind = match &parsed.public_key().algorithm.algorithm {
            oid if *oid == oid_registry::OID_PKCS1_RSAENCRYPTION => "RSA",
            oid if *oid == oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY => "ECDSA",
            _ => "EdDSA",
        };
        Some(Self {
            used_for,
            name: common.map_or_else(|| subject.to_string(), str::to_owned),
            kind,
            ends_s: parsed.validity().not_after.timestamp(),
        })
    }

    /// Of the authorities of a bundle, those that end first.
    pub(super) fn of_bundle(used_for: &'static str, bundle: &[CertificateDer<'_>]) -> Vec<Self> {
        let mut all: Vec<_> = bundle.iter().filter_map(|der| Self::of(used_for, der)).collect();
        all.sort_by_key(|one| one.ends_s);
        all.truncate(TOLD_MAX);
        all
    }
}

/// Authorities of one bundle that metrics tell of.
const TOLD_MAX: usize = 16;
