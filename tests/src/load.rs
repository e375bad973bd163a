//! A TLS client for what load generators cannot do: full handshakes in a chosen group, long bodies, a steady rate, slowness.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use rustls::{
    ClientConfig, NamedGroup, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    runtime::Builder,
    task::LocalSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{client::HOST, netns::Netns};

/// Where to connect and how. Every handshake is a full one.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    to: SocketAddr,
    /// Where from, if it matters.
    source: Option<IpAddr>,
    /// Bytes of the socket's receive buffer; the system's default without.
    window: Option<u32>,
}

/// A connection that speaks HTTP/1.1 within TLS.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    held: Vec<u8>,
    room: Vec<u8>,
}

impl Client {
    /// TLS 1.3 with AES-256-GCM, as OpenSSL's clients choose, and with one group.
    ///
    /// # Errors
    /// If the authority's certificate cannot be read.
    pub fn new(ca: &Path, to: SocketAddr, group: NamedGroup) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
        let known = aws_lc_rs::ALL_KX_GROUPS.iter().copied();
        provider.kx_groups = known.filter(|known| known.name() == group).collect();
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), to, source: None, window: None })
    }

    /// Offers one protocol, `h2` or `http/1.1`.
    #[must_use]
    pub fn alpn(mut self, protocol: &str) -> Self {
        Arc::make_mut(&mut self.config).alpn_protocols = vec![protocol.as_bytes().to_vec()];
        self
    }

    /// Connects from an address.
    #[must_use]
    pub fn source(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Has the kernel take so many bytes and no more before they are read.
    #[must_use]
    pub fn window(mut self, bytes: u32) -> Self {
        self.window = Some(bytes);
        self
    }

    /// Connects and shakes hands, to speak HTTP/1.1.
    ///
    /// # Errors
    /// If either is refused.
    pub async fn connect(&self) -> Result<Connection> {
        Ok(Connection { stream: self.stream().await?, held: Vec::new(), room: Vec::new() })
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// If either is refused.
    pub async fn stream(&self) -> Result<TlsStream<TcpStream>> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        if let Some(bytes) = self.window {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(self.to).await.context("connect")?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let name = ServerName::try_from(HOST)?;
        connector.connect(name, stream).await.context("handshake")
    }
}

impl Connection {
    /// The server's own certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        certificate(&self.stream)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// If the server has closed.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Reads one answer to its end, which must be a 200 of a stated length; the bytes of its body.
    ///
    /// # Errors
    /// If it is another, or breaks off.
    pub async fn answer(&mut self) -> Result<u64> {
        let (status, length) = self.any_answer().await?;
        ensure!(status == 200, "status {status}");
        Ok(length)
    }

    /// Reads one answer of a stated length to its end: its status, and the bytes of its body.
    ///
    /// # Errors
    /// If it states no length, or breaks off.
    pub async fn any_answer(&mut self) -> Result<(u16, u64)> {
        self.room.resize(ROOM, 0);
        let (status, end, length) = loop {
            if let Some(found) = head(&self.held)? {
                break found;
            }
            ensure!(self.held.len() < ROOM, "a head without end");
            let count = self.stream.read(&mut self.room).await?;
            ensure!(count > 0, "closed before the answer");
            self.held.extend_from_slice(&self.room[..count]);
        };
        let mut left = length.saturating_sub((self.held.len() - end) as u64);
        while left > 0 {
            let most = self.room.len().min(usize::try_from(left)?);
            let count = self.stream.read(&mut self.room[..most]).await?;
            ensure!(count > 0, "closed {left} bytes before the end of the answer");
            left -= count as u64;
        }
        let answer = end + usize::try_from(length)?.min(self.held.len() - end);
        self.held.drain(..answer);
        Ok((status, length))
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub async fn ask(&mut self, request: &[u8]) -> Result<u64> {
        self.send(request).await?;
        self.answer().await
    }

    /// Takes a few of the bytes that have come; none at the end of the connection.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn sip(&mut self, bytes: usize) -> Result<usize> {
        let mut few = vec![0; bytes];
        Ok(self.stream.read(&mut few).await?)
    }
}

/// The certificate that a server showed, DER.
#[must_use]
pub fn certificate(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let chain = stream.get_ref().1.peer_certificates();
    chain.and_then(|chain| chain.first()).map(|own| own.to_vec()).unwrap_or_default()
}

/// A GET of a path.
#[must_use]
pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes()
}

/// The status of a head, where it ends and how long the body behind it is, once all of it is there.
fn head(bytes: &[u8]) -> Result<Option<(u16, usize, u64)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = text.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok());
    let (status, length) = status.zip(length).with_context(|| text.clone())?;
    Ok(Some((status, end + 4, length)))
}

/// Runs tasks inside a namespace, on one thread.
///
/// # Errors
/// Those of the work.
pub fn run<T: Send, F: Future<Output = Result<T>>>(
    ns: &Netns,
    work: impl FnOnce() -> F + Send,
) -> Result<T> {
    ns.enter(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, work())
    })
}

/// Lets this process and those that it starts have so many descriptors, or as many as they may; how many that is.
///
/// # Errors
/// If even that is refused.
pub fn descriptors(wanted: u64) -> Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // More than the hard limit needs a capability that not every root has.
    if wanted <= hard || setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
        return Ok(wanted.min(hard));
    }
    Ok(wanted)
}

/// Bytes that are read at once: more than a TLS record.
const ROOM: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_a_status_and_states_a_length() {
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n").unwrap(), None);
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(head(whole).unwrap(), Some((200, whole.len() - 3, 3)));
        assert!(head(b"SSH-2.0\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
