//! A connection to a server: over TCP, TLS or a unix socket.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::sleep,
};

use super::Endpoint;
use crate::tls::{ClientTlsStream, Connector};

/// An open connection to a server.
#[derive(Debug)]
pub enum Stream {
    /// In the clear.
    Tcp(TcpStream),
    /// Over TLS.
    Tls(Box<ClientTlsStream<TcpStream>>),
    /// On this host.
    Unix(UnixStream),
}

impl Stream {
    /// What a request over it is for, in the words of a URI.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        if matches!(self, Self::Tls(_)) { "https" } else { "http" }
    }
}

/// Opens a connection; over TLS, to a server that must prove to be `name`.
///
/// # Errors
/// If it cannot be reached, or does not prove who it is.
pub async fn dial(endpoint: &Endpoint, tls: Option<&Connector>, name: &str) -> io::Result<Stream> {
    let address = match endpoint {
        Endpoint::Unix(path) => return connect_unix(path).await.map(Stream::Unix),
        Endpoint::Tcp(address) => address,
    };
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    match tls {
        None => Ok(Stream::Tcp(stream)),
        Some(tls) => tls.connect(name, stream).await.map(|stream| Stream::Tls(Box::new(stream))),
    }
}

/// A unix socket whose queue is full says so at once, where TCP would wait. Whoever asks has a deadline.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let mut pause = FULL;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(pause).await,
            settled => return settled,
        }
        pause = FULL_MAX.min(2 * pause);
    }
}

macro_rules! inner {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this.get_mut() {
            Stream::Tcp($stream) => $call,
            Stream::Tls($stream) => $call,
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        inner!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inner!(self, stream => Pin::new(stream).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// How soon it is looked whether there is room again.
const FULL: Duration = Duration::from_millis(5);
const FULL_MAX: Duration = Duration::from_millis(100);
