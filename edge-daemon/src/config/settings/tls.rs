//! `[tls]`, and who the listeners of `[server]` talk to.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use edge_policy::ja4::Ja4;

/// A listener for HTTPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether clients are asked for certificates; `None`: as `[tls.clients] auth` says.
    pub client_auth: Option<ClientAuth>,
    /// Whether connections come from trusted proxies alone and begin with a PROXY header.
    pub proxy_protocol: bool,
}

/// Whether clients are asked for certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not.
    #[default]
    Off,
    /// They are; who has none may connect nevertheless.
    Optional,
    /// They are; who has none may not connect.
    Required,
}

/// `[tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// What is served; the first is the default. Not empty, unless `acme` is there.
    pub certificates: Vec<Certificate>,
    /// Whether they were written as `[[tls.certificate]]`.
    pub is_array: bool,
    /// What happens to a client that asks for a name that no certificate has, or for none.
    pub unknown_name: UnknownName,
    /// How long the keys of session tickets are used; `None`: sessions are not resumed.
    pub ticket_rotation: Option<Duration>,
    /// Fingerprints that are refused.
    pub ja4_deny: Vec<Ja4>,
    /// `[tls.clients]`: clients' certificates.
    pub clients: Clients,
    /// `[tls.acme]`: certificates that are fetched; `None`: none are.
    pub acme: Option<Acme>,
}

/// A certificate with its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// PEM, leaf first.
    pub chain: PathBuf,
    /// PEM; not readable by everyone.
    pub key: PathBuf,
    /// An OCSP response for it, DER, which is stapled.
    pub ocsp: Option<PathBuf>,
    /// The names that it serves; empty: those that it has itself.
    pub names: Vec<String>,
}

/// What happens to a client that asks for a name that no certificate has, or for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownName {
    /// It is shown the first certificate.
    Default,
    /// It is refused.
    Refuse,
}

/// `[tls.clients]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Whether listeners that do not say otherwise ask for certificates.
    pub auth: ClientAuth,
    /// The authorities that are trusted to have signed them, PEM.
    pub ca: Option<PathBuf>,
    /// What they revoked, PEM. With any, the list of each authority of a chain must be among them.
    pub crl: Vec<PathBuf>,
    /// Whether a list holds on when the next one is overdue; else it lets nobody in.
    pub expired_crl_accepted: bool,
    /// If there are any, a client's key must be one of these: SHA-256 of the `SubjectPublicKeyInfo`.
    pub pins: Vec<[u8; 32]>,
}

/// `[tls.acme]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The directory of the authority.
    pub directory: String,
    /// Whom to trust for the connection to it, PEM; `None`: the authorities of the system.
    pub ca: Option<PathBuf>,
    /// Where the authority may write to: `mailto:` addresses.
    pub contact: Vec<String>,
    /// The names, each of which gets a certificate of its own.
    pub names: Vec<String>,
    /// Where account and certificates are kept: `acme` in the state folder.
    pub dir: PathBuf,
}

impl Tls {
    /// Every file it names.
    pub fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let certificates = self.certificates.iter_mut();
        let certificates =
            certificates.flat_map(|c| [&mut c.chain, &mut c.key].into_iter().chain(&mut c.ocsp));
        let clients = self.clients.ca.iter_mut().chain(&mut self.clients.crl);
        let acme = self.acme.iter_mut().filter_map(|acme| acme.ca.as_mut());
        certificates.chain(clients).chain(acme)
    }
}
