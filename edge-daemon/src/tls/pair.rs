//! A certificate with its key, as it is read from files.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use edge_identity::revocation::{self, ResponseFault, Term};
use rustls::{
    SignatureAlgorithm,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};
use zeroize::Zeroizing;

use super::Expiry;
use crate::{clock, config::settings, regular};

/// A certificate that can be served.
#[derive(Clone, Debug)]
pub struct Pair {
    /// As rustls wants it, with nothing stapled.
    pub(super) key: Arc<CertifiedKey>,
    staple: Option<Staple>,
    /// The names that it was configured for; empty: its own.
    configured: Vec<String>,
    /// The names that it has, in lower case.
    pub own: Vec<String>,
    /// From when to when it is good, in unix seconds.
    pub not_before_s: i64,
    /// The end of that.
    pub not_after_s: i64,
}

/// An OCSP response that is configured for a certificate.
#[derive(Clone, Debug)]
struct Staple {
    path: PathBuf,
    /// When it holds; or why it never does.
    term: Result<Term, ResponseFault>,
    /// The certificate with it.
    key: Arc<CertifiedKey>,
}

/// Which of a pair's files is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate.
    Chain,
    /// The key.
    Key,
    /// The OCSP response.
    Ocsp,
}

/// Why a certificate cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFault {
    /// Whose fault it is.
    pub part: Part,
    path: PathBuf,
    why: String,
}

impl fmt::Display for PairFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for PairFault {}

impl Pair {
    /// Reads the files and checks that they belong together.
    pub fn read(files: &settings::Certificate) -> Result<Self, PairFault> {
        let fault = |part, path: &Path| {
            let path = path.to_owned();
            move |why: String| PairFault { part, path: path.clone(), why }
        };
        let chain_fault = fault(Part::Chain, &files.chain);
        let chain = certificates(&files.chain).map_err(&chain_fault)?;
        let key = pem(&files.key)
            .and_then(|text| PrivateKeyDer::from_pem_slice(&text))
            .map_err(|error| pem_words(&error))
            .map_err(fault(Part::Key, &files.key))?;
        let mut pair = Self::new(chain, key).map_err(|(part, why)| match part {
            Part::Key => fault(Part::Key, &files.key)(why),
            _ => chain_fault(why),
        })?;
        if let Some(path) = &files.ocsp {
            let staple = Staple::read(path, &pair.key).map_err(fault(Part::Ocsp, path))?;
            pair.staple = Some(staple);
        }
        pair.configured.clone_from(&files.names);
        Ok(pair)
    }

    /// Of a chain and a key; or whose fault it is that they are no pair, and why.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, (Part, String)> {
        let leaf = chain.first().ok_or((Part::Chain, "holds no certificate".to_owned()))?;
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(leaf)
            .map_err(|error| (Part::Chain, format!("is no certificate: {error}")))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let own = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let (own, validity) = (own.collect(), parsed.validity());
        let (not_before_s, not_after_s) =
            (validity.not_before.timestamp(), validity.not_after.timestamp());
        let key = aws_lc_rs::default_provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| (Part::Key, format!("is no key that can be used: {error}")))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err((Part::Key, "is not the key of the certificate".to_owned())),
        }
        let (key, configured, staple) = (Arc::new(key), Vec::new(), None);
        Ok(Self { key, staple, configured, own, not_before_s, not_after_s })
    }

    /// The names that it serves.
    #[must_use]
    pub fn names(&self) -> &[String] {
        if self.configured.is_empty() { &self.own } else { &self.configured }
    }

    /// What it is called in metrics and logs.
    #[must_use]
    pub fn title(&self) -> &str {
        self.names().first().map_or("", String::as_str)
    }

    /// Those of its configured names that it does not have.
    pub fn uncovered(&self) -> impl Iterator<Item = &str> {
        self.configured.iter().map(String::as_str).filter(|name| !self.covers(name))
    }

    fn covers(&self, name: &str) -> bool {
        let wild = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        self.own.iter().any(|own| own == name || Some(own) == wild.as_ref())
    }

    /// A name that tells that it is not for what the former one is for: one that it was configured
    /// for, or, without those, any of the former's if they have nothing in common.
    pub(super) fn misses<'a>(&'a self, former: &'a Self) -> Option<&'a str> {
        if !self.configured.is_empty() {
            return self.uncovered().next();
        }
        let shares = former.own.iter().any(|name| self.covers(name))
            || self.own.iter().any(|name| former.covers(name));
        former.own.first().filter(|_| !shares).map(String::as_str)
    }

    /// What of its time is not right, in words that go on after its name.
    #[must_use]
    pub fn doubt(&self, now_s: i64) -> Option<String> {
        if now_s > self.not_after_s {
            return Some(format!("has expired on {}", date(self.not_after_s)));
        }
        (now_s < self.not_before_s)
            .then(|| format!("is not good before {}", date(self.not_before_s)))
    }

    /// What clients are shown at this time: an OCSP response goes with it only while it holds.
    pub(super) fn shown(&self, now_s: i64) -> &Arc<CertifiedKey> {
        match &self.staple {
            Some(staple) if staple.doubt(now_s).is_none() => &staple.key,
            _ => &self.key,
        }
    }

    /// Why the OCSP response that it is configured with is not stapled.
    #[must_use]
    pub fn unstapled(&self, now_s: i64) -> Option<String> {
        self.staple.as_ref()?.doubt(now_s)
    }

    /// When it ends, and its OCSP response.
    pub(super) fn expiries(&self) -> impl Iterator<Item = Expiry> {
        let of = |used_for, ends_s| {
            let (name, kind) = (self.title().to_owned(), self.kind());
            Expiry { used_for, name, kind, ends_s }
        };
        let response = self.staple.as_ref().and_then(|staple| staple.term.ok());
        let response = response.map(|term| of("ocsp", term.until_s));
        [of("served", self.not_after_s)].into_iter().chain(response)
    }

    /// Keeps the former one's response if it is better than its own and says the same certificate
    /// is good; tells why it does.
    pub(super) fn keep_staple(&mut self, former: &Self, now_s: i64) -> Option<String> {
        let same = self.key.cert.first() == former.key.cert.first();
        let worse = self.unstapled(now_s)?;
        if !same || former.staple.is_none() || former.unstapled(now_s).is_some() {
            return None;
        }
        self.staple.clone_from(&former.staple);
        Some(worse)
    }

    /// Whether clients are shown it where they are shown another now.
    pub(super) fn stands_in_for(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.names().iter().any(|name| other.names().contains(name))
    }

    /// The kind of its key: of two certificates for one name, clients are shown the kind they take.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.key.key.algorithm() {
            SignatureAlgorithm::RSA => "RSA",
            SignatureAlgorithm::ECDSA => "ECDSA",
            _ => "EdDSA",
        }
    }
}

/// The certificates in a PEM file, which are some.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = pem(path)
        .and_then(|text| CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>());
    match all {
        Ok(all) if all.is_empty() => Err("holds no certificate".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(pem_words(&error)),
    }
}

/// The largest of the files that TLS goes by, in bytes: lists of what authorities revoked are long.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A PEM file.
pub(super) fn pem(path: &Path) -> Result<Zeroizing<Vec<u8>>, pem::Error> {
    regular::read(path, FILE_BYTES_MAX).map(Zeroizing::new).map_err(pem::Error::Io)
}

/// What is wrong with a PEM file.
pub(super) fn pem_words(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        pem::Error::NoItemsFound => "holds nothing of the kind".to_owned(),
        error => format!("is no PEM: {error}"),
    }
}

impl Staple {
    /// Reads a response, which is one; whether it is for this certificate is told later.
    fn read(path: &Path, pair: &Arc<CertifiedKey>) -> Result<Self, String> {
        let read = regular::read(path, FILE_BYTES_MAX);
        let bytes = read.map_err(|error| format!("cannot be read: {error}"))?;
        let chain: Vec<&[u8]> = pair.cert.iter().map(AsRef::as_ref).collect();
        let term = match revocation::response(&bytes, &chain) {
            Err(fault @ ResponseFault::Malformed) => return Err(fault.to_string()),
            term => term,
        };
        let mut key = CertifiedKey::clone(pair);
        key.ocsp = Some(bytes);
        Ok(Self { path: path.to_owned(), term, key: Arc::new(key) })
    }

    fn doubt(&self, now_s: i64) -> Option<String> {
        let path = self.path.display();
        match self.term {
            Err(fault) => Some(format!("{path} {fault}")),
            Ok(term) if now_s > term.until_s => {
                Some(format!("{path} has expired on {}", date(term.until_s)))
            }
            Ok(term) if now_s.saturating_add(CLOCKS_APART_S) < term.from_s => {
                Some(format!("{path} is not good before {}", date(term.from_s)))
            }
            Ok(_) => None,
        }
    }
}

/// A time as people read it.
pub(super) fn date(s: i64) -> String {
    clock::rfc3339(u64::try_from(s).unwrap_or(0).saturating_mul(1000))
}

/// How much a responder's clock may be ahead, in seconds.
const CLOCKS_APART_S: i64 = 300;
