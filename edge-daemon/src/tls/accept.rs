//! One handshake: the client's hello is read by us, so that its bytes can be looked at, and the
//! rest is rustls'.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use edge_policy::ja4::{Hello, Ja4};
use rustls::{
    AlertDescription, Error, HandshakeKind, ServerConfig,
    server::{Accepted, Acceptor},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{Accept, StartHandshake};

use super::{Facts, Front, TlsStream};
use crate::config::settings::ClientAuth;

/// Why a handshake did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// The client went away, as port scans and health checks do.
    HungUp,
    /// It did not speak TLS.
    NotTls,
    /// It speaks neither TLS 1.2 nor 1.3.
    NoSharedVersion,
    /// It offers no cipher suite, group or signature algorithm that is taken here.
    NoSharedSuite,
    /// It wants to speak neither HTTP/2 nor HTTP/1.1.
    NoSharedProtocol,
    /// It asks for a name that no certificate has, or for none.
    UnknownName,
    /// It asks for a name whose certificate is still to be fetched.
    CertificateAwaited,
    /// Its fingerprint is among those that are refused.
    FingerprintDenied,
    /// It gave no certificate where one is required.
    CertificateMissing,
    /// The certificate that it gave is not trusted.
    CertificateRefused,
    /// Whether the certificate that it gave was revoked cannot be told: a list is overdue, missing or not its authority's.
    RevocationUnknown,
    /// It broke off with an alert: most likely it does not trust our certificate.
    ClientAlert,
    /// It broke the protocol.
    Misbehaved,
    /// It did not complete in time.
    Timeout,
}

impl Failure {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 14] = [
        Self::HungUp,
        Self::NotTls,
        Self::NoSharedVersion,
        Self::NoSharedSuite,
        Self::NoSharedProtocol,
        Self::UnknownName,
        Self::CertificateAwaited,
        Self::FingerprintDenied,
        Self::CertificateMissing,
        Self::CertificateRefused,
        Self::RevocationUnknown,
        Self::ClientAlert,
        Self::Misbehaved,
        Self::Timeout,
    ];

    /// The word for it in the metrics and the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HungUp => "hung_up",
            Self::NotTls => "not_tls",
            Self::NoSharedVersion => "no_shared_version",
            Self::NoSharedSuite => "no_shared_suite",
            Self::NoSharedProtocol => "no_shared_protocol",
            Self::UnknownName => "unknown_name",
            Self::CertificateAwaited => "certificate_awaited",
            Self::FingerprintDenied => "fingerprint_denied",
            Self::CertificateMissing => "certificate_missing",
            Self::CertificateRefused => "certificate_refused",
            Self::RevocationUnknown => "revocation_unknown",
            Self::ClientAlert => "client_alert",
            Self::Misbehaved => "misbehaved",
            Self::Timeout => "timeout",
        }
    }

    /// Whether it is held against the client. An old library, a client that went away and one that
    /// does not trust our certificate do nobody harm; what the edge lacks is not the client's fault.
    #[must_use]
    pub const fn is_misdeed(self) -> bool {
        matches!(
            self,
            Self::NotTls
                | Self::UnknownName
                | Self::FingerprintDenied
                | Self::CertificateMissing
                | Self::CertificateRefused
                | Self::Misbehaved
                | Self::Timeout
        )
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        use rustls::{CertificateError as C, PeerIncompatible as P};
        match error {
            Error::PeerIncompatible(
                P::Tls12NotOffered | P::Tls12NotOfferedOrEnabled | P::Tls13RequiredForQuic,
            ) => Self::NoSharedVersion,
            Error::PeerIncompatible(_) => Self::NoSharedSuite,
            Error::NoApplicationProtocol => Self::NoSharedProtocol,
            Error::NoCertificatesPresented => Self::CertificateMissing,
            Error::InvalidCertificate(
                C::UnknownRevocationStatus
                | C::ExpiredRevocationList
                | C::ExpiredRevocationListContext { .. },
            )
            | Error::InvalidCertRevocationList(_) => Self::RevocationUnknown,
            Error::InvalidCertificate(_) => Self::CertificateRefused,
            Error::AlertReceived(AlertDescription::CloseNotify) => Self::HungUp,
            Error::AlertReceived(_) => Self::ClientAlert,
            _ => Self::Misbehaved,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        inner.map_or(Self::HungUp, Self::from)
    }
}

/// Whether a session ended because its client broke the protocol: what has failed says so again.
pub fn is_abused(session: &mut rustls::ServerConnection) -> bool {
    let broken = session.process_new_packets().err();
    broken.is_some_and(|error| Failure::from(&error) == Failure::Misbehaved)
}

/// A handshake that did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub failure: Failure,
    /// The fingerprint of the client's TLS library, if it came as far as that.
    pub ja4: Option<Ja4>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, ja4: None }
    }
}

/// A client whose hello was read, and what it is answered with.
pub struct Greeted {
    start: StartHandshake<TcpStream>,
    config: Arc<ServerConfig>,
    /// Whether it is an authority, for the proof of a name.
    is_challenge: bool,
    auth: ClientAuth,
    ja4: Option<Ja4>,
    /// Bytes behind the hello.
    rest: Vec<u8>,
}

/// A client that shook hands, and what that told. `None`: who asked was an authority's, for the proof of a name, and has it.
pub type Shaken = Option<(Box<TlsStream<TcpStream>>, Facts)>;

/// A client whose hello was answered.
pub struct Shaking {
    accept: Accept<TcpStream>,
    done: Option<io::Result<TlsStream<TcpStream>>>,
    /// Whether it was asked for another key share: what takes long is still to come.
    is_retried: bool,
    is_challenge: bool,
    auth: ClientAuth,
    ja4: Option<Ja4>,
    /// Whether what came behind its hello could be taken.
    fed: io::Result<usize>,
}

/// Reads a client's hello, of which `early` was read already, and refuses what need not be answered by a handshake. The
/// caller bounds the time.
pub async fn greet(
    front: &Front,
    auth: ClientAuth,
    mut stream: TcpStream,
    early: Vec<u8>,
) -> Result<Greeted, Refusal> {
    let (accepted, mut seen, unread) = hello(&mut stream, early).await?;
    let read = Hello::read(&seen);
    let ja4 = read.as_ref().map(Hello::ja4);
    let challenge = front.challenge(&accepted.client_hello());
    let is_challenge = challenge.is_some();
    let chosen = match challenge {
        Some(config) => Ok(config),
        None => front.choose(auth, &accepted.client_hello(), read.as_ref(), ja4),
    };
    let config = match chosen {
        Ok(config) => config,
        Err(failure) => {
            let alert = match failure {
                Failure::UnknownName | Failure::CertificateAwaited => UNRECOGNIZED_NAME,
                _ => ACCESS_DENIED,
            };
            // Whether it is heard does not matter.
            let _ = stream.write_all(&[21, 3, 3, 0, 2, FATAL, alert]).await;
            return Err(Refusal { failure, ja4 });
        }
    };
    let rest = seen.split_off(seen.len() - unread);
    let start = StartHandshake::from_parts(accepted, stream);
    Ok(Greeted { start, config, is_challenge, auth, ja4, rest })
}

impl Greeted {
    /// Answers the hello, which takes long if its key share fits.
    pub fn answer(self) -> Shaking {
        let Self { start, config, is_challenge, auth, ja4, rest } = self;
        let (mut fed, mut is_retried) = (Ok(0), false);
        let accept = start.into_stream_with(config, |connection| {
            // What a client that does not read makes us hold.
            connection.set_buffer_limit(Some(UNSENT_MAX));
            let kind = connection.handshake_kind();
            is_retried = kind == Some(HandshakeKind::FullWithHelloRetryRequest);
            if !rest.is_empty() {
                fed = connection.read_tls(&mut &rest[..]);
            }
        });
        Shaking { accept, done: None, is_retried, is_challenge, auth, ja4, fed }
    }
}

impl Shaking {
    /// Waits until a client that was asked for another key share has said something, which may make the next step long.
    /// The caller bounds the time. False: no long step is to come.
    pub async fn hear(&mut self) -> bool {
        poll_fn(|cx| {
            let stream = self.accept.get_ref().filter(|_| self.is_retried);
            let Some(stream) = stream else { return Poll::Ready(false) };
            // First of all: it may not have waited for what it is told.
            if stream.poll_read_ready(cx).is_ready() {
                return Poll::Ready(true);
            }
            self.done = Some(ready!(Pin::new(&mut self.accept).poll(cx)));
            self.is_retried = false;
            Poll::Ready(false)
        })
        .await
    }

    /// Takes the step that what was heard makes possible, which may take long.
    pub fn step(mut self) -> Self {
        let mut nobody = Context::from_waker(Waker::noop());
        if let Poll::Ready(done) = Pin::new(&mut self.accept).poll(&mut nobody) {
            (self.done, self.is_retried) = (Some(done), false);
        }
        self
    }

    /// Goes on to the end. The caller bounds the time.
    pub async fn finish(self, front: &Front) -> Result<Shaken, Refusal> {
        let Self { accept, done, is_challenge, auth, ja4, fed, .. } = self;
        let refused = |failure| Refusal { failure, ja4 };
        let shaken = match done {
            Some(done) => done,
            None => accept.await,
        };
        let mut stream = Box::new(shaken.map_err(|error| refused(error.into()))?);
        if is_challenge {
            // It has seen what it came for; whether it hears the end does not matter.
            let _ = stream.shutdown().await;
            return Ok(None);
        }
        fed.map_err(|error| refused(error.into()))?;
        let connection = stream.get_ref().1;
        let facts = Facts::of(connection, auth, ja4);
        // A resumed session was judged when it began.
        if let Some(chain) = connection.peer_certificates().filter(|_| facts.is_resumed) {
            front.judge(chain).map_err(refused)?;
        }
        if auth == ClientAuth::Required && facts.peer.is_none() {
            return Err(refused(Failure::CertificateMissing));
        }
        Ok(Some((stream, facts)))
    }
}

/// Reads the client's hello; also the bytes so far, and how many of the last are not its own.
async fn hello(
    stream: &mut TcpStream,
    mut seen: Vec<u8>,
) -> Result<(Accepted, Vec<u8>, usize), Failure> {
    let (mut acceptor, mut from) = (Acceptor::default(), 0);
    seen.reserve(HELLO_USUAL);
    loop {
        if from == seen.len() && stream.read_buf(&mut seen).await? == 0 {
            return Err(Failure::HungUp);
        }
        let mut new = &seen[from..];
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let unread = new.len();
                    return Ok((accepted, seen, unread));
                }
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut words = Vec::new();
                    // To memory; that cannot fail.
                    let _ = alert.write_all(&mut words);
                    // Whether it is heard does not matter.
                    let _ = stream.write_all(&words).await;
                    let is_tls = seen.first() == Some(&RECORD_HANDSHAKE);
                    return Err(if is_tls { Failure::from(&error) } else { Failure::NotTls });
                }
            }
        }
        from = seen.len();
        if from > HELLO_MAX {
            return Err(Failure::Misbehaved);
        }
    }
}

/// What a hello takes, with a post-quantum key share, in bytes.
const HELLO_USUAL: usize = 2048;
/// What it may take.
const HELLO_MAX: usize = 32 * 1024;
/// Bytes of records that wait for the client to read: two full ones.
const UNSENT_MAX: usize = 32 * 1024;
/// Alerts, as they are sent before there is a connection to send them by.
const FATAL: u8 = 2;
const ACCESS_DENIED: u8 = 49;
const UNRECOGNIZED_NAME: u8 = 112;
/// The first byte of a record that holds a part of a handshake.
const RECORD_HANDSHAKE: u8 = 22;

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _};

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore,
        crypto::{SupportedKxGroup, aws_lc_rs},
        pki_types::PrivateKeyDer,
    };

    use super::*;

    type Groups = [&'static dyn SupportedKxGroup];

    /// A client with these groups, and what it is to the edge once its hello came.
    async fn meet(groups: &Groups) -> (ClientConnection, std::net::TcpStream, Greeted) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let own = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let provider = |groups: &Groups| {
            Arc::new(rustls::crypto::CryptoProvider {
                kx_groups: groups.to_vec(),
                ..aws_lc_rs::default_provider()
            })
        };
        let speaks = ClientConfig::builder_with_provider(provider(groups))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider(&[aws_lc_rs::kx_group::X25519]))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let name = "edge.test".try_into().unwrap();
        let mut tls = ClientConnection::new(Arc::new(speaks), name).unwrap();
        tls.write_tls(&mut client).unwrap();
        let (accepted, ..) = hello(&mut stream, Vec::new()).await.unwrap();
        let greeted = Greeted {
            start: StartHandshake::from_parts(accepted, stream),
            config: Arc::new(config),
            is_challenge: false,
            auth: ClientAuth::Off,
            ja4: None,
            rest: Vec::new(),
        };
        (tls, client, greeted)
    }

    #[tokio::test]
    async fn a_key_share_that_fits_late_is_answered_by_a_step() {
        let (_, _, greeted) = meet(&[aws_lc_rs::kx_group::X25519]).await;
        assert!(!greeted.answer().hear().await, "the long step is done");

        let groups: &Groups = &[aws_lc_rs::kx_group::SECP256R1, aws_lc_rs::kx_group::X25519];
        let (mut tls, mut client, greeted) = meet(groups).await;
        let mut shaking = greeted.answer();
        let said = std::thread::spawn(move || {
            while !tls.wants_write() {
                tls.read_tls(&mut client).unwrap();
                tls.process_new_packets().unwrap();
            }
            tls.write_tls(&mut client).unwrap();
            (tls, client)
        });
        assert!(shaking.hear().await, "it has shown another");
        let (mut tls, mut client) = said.join().unwrap();
        client.set_nonblocking(true).unwrap();
        let silent = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock, "it waits for the step");
        let said = std::thread::spawn(move || {
            client.set_nonblocking(false).unwrap();
            while tls.is_handshaking() {
                tls.complete_io(&mut client).unwrap();
            }
        });
        shaking = tokio::task::spawn_blocking(|| shaking.step()).await.unwrap();
        while shaking.hear().await {
            shaking = shaking.step();
        }
        said.join().unwrap();
        assert!(matches!(shaking.done, Some(Ok(_))));
    }

    #[tokio::test]
    async fn what_is_said_too_early_waits_for_its_step_as_well() {
        let groups: &Groups = &[aws_lc_rs::kx_group::SECP256R1, aws_lc_rs::kx_group::X25519];
        let (_, mut client, greeted) = meet(groups).await;
        let mut shaking = greeted.answer();
        let change_cipher_spec = [20, 3, 3, 0, 1, 1];
        std::io::Write::write_all(&mut client, &change_cipher_spec).unwrap();
        shaking.accept.get_ref().unwrap().readable().await.unwrap();
        assert!(shaking.hear().await);
        client.set_nonblocking(true).unwrap();
        let silent = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::WouldBlock, "nothing is done but beside the worker");
    }
}
