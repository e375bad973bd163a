//! Which certificate is shown to whom.

use std::sync::Arc;

use edge_policy::sni::Names;
use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::Pair;
use crate::{clock, config::settings::UnknownName};

/// The certificates by name, and what those are shown who ask for none of them.
#[derive(Debug)]
pub(super) struct Choice {
    pairs: Vec<Arc<Pair>>,
    names: Names,
    /// What those are shown who ask for no name that is known; empty: they are refused.
    default: Vec<usize>,
}

impl Choice {
    pub(super) fn new(pairs: &[Arc<Pair>], unknown: UnknownName) -> Self {
        let mut names = Names::default();
        for (n, pair) in pairs.iter().enumerate() {
            pair.names().iter().for_each(|name| names.add(name, n));
        }
        let default = match (pairs.first(), unknown) {
            (Some(first), UnknownName::Default) => match names.find(first.title()) {
                [] => vec![0],
                same => same.to_vec(),
            },
            _ => Vec::new(),
        };
        Self { pairs: pairs.to_vec(), names, default }
    }

    /// What could be shown to who asks for this name; `None`: nothing.
    pub(super) fn candidates(&self, name: Option<&str>) -> Option<&[usize]> {
        let named = name.map_or(&[][..], |name| self.names.find(name));
        [named, &self.default].into_iter().find(|numbers| !numbers.is_empty())
    }

    /// Of several the first whose key the client can check.
    fn pair(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Pair>> {
        let candidates = self.candidates(name)?.iter().filter_map(|n| self.pairs.get(*n));
        let fits = |pair: &&Arc<Pair>| pair.key.key.choose_scheme(schemes).is_some();
        candidates.clone().find(fits).or_else(|| candidates.clone().next())
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pair = self.pair(hello.server_name(), hello.signature_schemes())?;
        Some(Arc::clone(pair.shown(clock::unix_s())))
    }
}
