//! What a completed handshake tells of the connection and of the client.

use edge_policy::ja4::Ja4;
use rustls::{ServerConnection, pki_types::CertificateDer, server::ParsedCertificate};
use sha2::{Digest as _, Sha256};

use crate::config::settings::ClientAuth;

/// What a TLS handshake told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The name that the client asked for, in lower case; `None`: it named none.
    pub server_name: Option<Box<str>>,
    /// What is spoken inside; `None`: the client named nothing, so HTTP/1.1.
    pub alpn: Option<&'static str>,
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The cipher suite, by its IANA name.
    pub suite: &'static str,
    /// The group of the key exchange, such as `X25519MLKEM768`; `None` in a resumed TLS 1.2 session.
    pub group: Option<&'static str>,
    /// Whether an earlier session was taken up again.
    pub is_resumed: bool,
    /// The fingerprint of the client's TLS library.
    pub ja4: Option<Ja4>,
    /// Whether the client was asked for a certificate.
    pub asked: ClientAuth,
    /// The client's certificate, if one was asked for, given and good.
    pub peer: Option<Peer>,
}

/// A client's certificate, which was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The chain as the client sent it, DER, its own certificate first; never empty.
    pub chain: Vec<Box<[u8]>>,
    /// SHA-256 of the `SubjectPublicKeyInfo` of its own certificate.
    pub spki_sha256: [u8; 32],
}

impl Facts {
    pub(super) fn of(connection: &ServerConnection, asked: ClientAuth, ja4: Option<Ja4>) -> Self {
        let known = |name: Option<&'static str>| name.unwrap_or("unknown");
        let suite = connection.negotiated_cipher_suite();
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        Self {
            server_name: connection.server_name().map(|name| name.to_ascii_lowercase().into()),
            alpn: match connection.alpn_protocol() {
                Some(super::H2) => Some("h2"),
                Some(_) => Some("http/1.1"),
                None => None,
            },
            version,
            suite: known(suite.and_then(|suite| suite.suite().as_str())),
            group: connection
                .negotiated_key_exchange_group()
                .map(|group| known(group.name().as_str())),
            is_resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            ja4,
            asked,
            peer: connection.peer_certificates().and_then(Peer::of),
        }
    }
}

impl Peer {
    fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let spki_sha256 = spki_sha256(chain.first()?)?;
        let chain = chain.iter().map(|certificate| certificate.as_ref().into()).collect();
        Some(Self { chain, spki_sha256 })
    }
}

/// SHA-256 of a certificate's `SubjectPublicKeyInfo`, by which keys are pinned (RFC 7469, 2.4).
pub(super) fn spki_sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info()).into())
}
