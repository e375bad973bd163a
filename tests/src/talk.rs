//! A TLS client whose every choice is the test's: names, groups, certificates, first bytes.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, RootCertStore, StreamOwned,
    crypto::{SupportedKxGroup, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    client::connect,
    conformance::status,
    frames::{END_HEADERS, END_STREAM, HEADERS, frame},
    lab::Lab,
    pki::Leaf,
};

/// How to connect; [`Dial::connect`] does it.
pub struct Dial {
    config: ClientConfig,
    name: String,
    before: Vec<u8>,
    port: u16,
}

/// A connection that speaks HTTP/1.1 within TLS.
pub struct Talk(BufReader<StreamOwned<ClientConnection, TcpStream>>);

/// Status, head and body of an answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// What came back, and whether the server ended the connection.
#[derive(Debug)]
pub struct Heard {
    /// Everything, in order.
    pub bytes: Vec<u8>,
    /// Whether the server closed.
    pub closed: bool,
}

impl Heard {
    /// The status of each answer in HTTP/1, the interim ones left out.
    #[must_use]
    pub fn statuses(&self) -> Vec<u16> {
        let text = String::from_utf8_lossy(&self.bytes);
        let heads = text.split("HTTP/1.1 ").skip(1);
        let statuses = heads.filter_map(|rest| rest.get(..3)?.parse().ok());
        statuses.filter(|status| *status >= 200).collect()
    }
}

impl Dial {
    /// To a name, on port 443, trusting an authority.
    ///
    /// # Errors
    /// If its certificate cannot be read.
    pub fn new(ca: &Path, name: &str) -> Result<Self> {
        Self::with(ca, name, None, &[])
    }

    /// As [`Self::new`], with a certificate of one's own and with these groups alone, in this order.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn with(ca: &Path, name: &str, own: Option<&Leaf>, groups: &[NamedGroup]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca)?)?;
        let mut provider = aws_lc_rs::default_provider();
        if !groups.is_empty() {
            let known = &aws_lc_rs::ALL_KX_GROUPS;
            let find = |group: &NamedGroup| known.iter().find(|k| k.name() == *group).copied();
            provider.kx_groups = groups.iter().filter_map(find).collect();
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(leaf) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&leaf.chain)?],
                PrivateKeyDer::from_pem_file(&leaf.key)?,
            )?,
        };
        Ok(Self { config, name: name.to_owned(), before: Vec::new(), port: 443 })
    }

    /// Sends bytes before the handshake.
    #[must_use]
    pub fn before(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.before = bytes.into();
        self
    }

    /// Goes to another port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Offers one protocol, `h2` or `http/1.1`.
    #[must_use]
    pub fn alpn(mut self, protocol: &str) -> Self {
        self.config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        self
    }

    /// Connects from an address of the lab, and shakes hands. Sessions are resumed from one call
    /// to the next.
    ///
    /// # Errors
    /// If either is refused.
    pub fn connect(&self, lab: &Lab, source: &str) -> Result<Talk> {
        let mut tcp = connect(lab, source, self.port, Duration::from_secs(10))?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        // Together with the first of the handshake, as a proxy may send it.
        let mut tls =
            ClientConnection::new(Arc::new(self.config.clone()), self.name.clone().try_into()?)?;
        let mut first = self.before.clone();
        tls.write_tls(&mut first)?;
        tcp.write_all(&first)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        Ok(Talk(BufReader::new(StreamOwned::new(tls, tcp))))
    }
}

impl Talk {
    /// The group of the key exchange.
    #[must_use]
    pub fn group(&self) -> Option<NamedGroup> {
        self.0.get_ref().conn.negotiated_key_exchange_group().map(SupportedKxGroup::name)
    }

    /// Whether an earlier session was taken up again.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.0.get_ref().conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// The server's own certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        let chain = self.0.get_ref().conn.peer_certificates();
        chain.and_then(|chain| chain.first()).map(|own| own.to_vec()).unwrap_or_default()
    }

    /// Waits for whatever comes next no longer than this.
    ///
    /// # Errors
    /// If the time cannot be set.
    pub fn patience(&self, time: Duration) -> Result<()> {
        Ok(self.0.get_ref().sock.set_read_timeout(Some(time))?)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the server has closed.
    pub fn say(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.get_mut().write_all(bytes)?;
        Ok(self.0.get_mut().flush()?)
    }

    /// Sends as much of some bytes as the server takes before it takes nothing for so long.
    ///
    /// # Errors
    /// If that is not all of them, or the server has closed.
    pub fn say_for(&mut self, bytes: &[u8], within: Duration) -> Result<()> {
        // The library reads as well where it has nothing to write.
        self.0.get_ref().sock.set_read_timeout(Some(within))?;
        self.0.get_ref().sock.set_write_timeout(Some(within))?;
        let said = self.say(bytes);
        self.0.get_ref().sock.set_write_timeout(None)?;
        said
    }

    /// Sends bytes until the server takes none for so long; how many went.
    ///
    /// # Errors
    /// If the server has closed.
    pub fn say_until_full(&mut self, bytes: &[u8], within: Duration) -> Result<usize> {
        self.0.get_ref().sock.set_write_timeout(Some(within))?;
        let (stream, mut sent) = (self.0.get_mut(), 0);
        while sent < bytes.len() {
            let began = Instant::now();
            match stream.write(&bytes[sent..]) {
                // The library takes some more when the server does not.
                Ok(count) if began.elapsed() >= within => {
                    sent += count;
                    break;
                }
                Ok(count) => sent += count,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(e) => return Err(e.into()),
            }
        }
        stream.sock.set_write_timeout(None)?;
        Ok(sent)
    }

    /// Sends bytes beside the session, as nobody would who has its keys.
    ///
    /// # Errors
    /// If the server has closed.
    pub fn say_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().sock.write_all(bytes)?)
    }

    /// Says that nothing more will be sent: by the alert of TLS, and by TCP as well if it `shuts` its side.
    ///
    /// # Errors
    /// If the server has closed.
    pub fn end_sending(&mut self, shuts: bool) -> Result<()> {
        let stream = self.0.get_mut();
        stream.conn.send_close_notify();
        stream.flush()?;
        if shuts {
            stream.sock.shutdown(std::net::Shutdown::Write)?;
        }
        Ok(())
    }

    /// Reads until the server closes, `enough` holds, or nothing comes for so long.
    ///
    /// # Errors
    /// If the time cannot be set.
    pub fn hear(&mut self, within: Duration, enough: impl Fn(&[u8]) -> bool) -> Result<Heard> {
        self.0.get_ref().sock.set_read_timeout(Some(within))?;
        let (mut bytes, mut part) = (Vec::new(), [0; 16 * 1024]);
        let closed = loop {
            match self.0.read(&mut part) {
                Ok(0) => break true,
                Ok(length) => bytes.extend_from_slice(&part[..length]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break false;
                }
                Err(_) => break true,
            }
            if enough(&bytes) {
                break false;
            }
        };
        Ok(Heard { bytes, closed })
    }

    /// Asks for a path of a host, with more header lines, and reads the answer.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn get(&mut self, host: &str, path: &str, lines: &[&str]) -> Result<Answer> {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    /// Sends a request on a new stream, once HTTP/2 was agreed on and its preface sent; the status of
    /// the answer.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn ask_h2(&mut self, stream: u32, block: &[u8]) -> Result<u16> {
        self.say(&frame(HEADERS, END_HEADERS | END_STREAM, stream, block))?;
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head)?;
            let [a, b, c, kind, _, d, e, f, g] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload)?;
            if kind == HEADERS && u32::from_be_bytes([d, e, f, g]) == stream {
                return status(&payload).context("a status");
            }
        }
    }

    /// Reads one answer, whose head states its length.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn answer(&mut self) -> Result<Answer> {
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let text = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = text.strip_prefix("http/1.1 ") {
                status = rest.get(..3).context("a status")?.parse()?;
            } else if let Some(value) = text.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            } else if text.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(Answer { status, body: String::from_utf8(body)? })
    }
}
