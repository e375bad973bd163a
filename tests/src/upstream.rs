//! A server that takes bodies to their end, holds back answers if it is asked to, and can die; of either version of HTTP.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result};
use bytes::Bytes;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
};
use tokio_rustls::TlsAcceptor;

use crate::{load, netns::Netns};

/// A running server; with this it ends, and all its connections break.
pub struct Upstream {
    noted: Arc<Noted>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What it speaks.
#[derive(Clone)]
enum Tongue {
    Http1,
    /// HTTP/2, within TLS or without.
    Http2(Option<Arc<ServerConfig>>),
}

/// What it saw.
#[derive(Default)]
struct Noted {
    /// Requests whose answers it holds back.
    held: AtomicUsize,
    /// The URIs that it was asked for over HTTP/2, with the scheme and host that came.
    asked: Mutex<BTreeSet<String>>,
}

impl Upstream {
    /// Starts it on an address of a namespace. It runs where the calling thread may run.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn start(ns: &Netns, address: SocketAddr) -> Result<Self> {
        Self::speak(ns, address, Tongue::Http1)
    }

    /// The same for HTTP/2, which is what a client is told that asks within TLS.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn start_http2(
        ns: &Netns,
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Self> {
        Self::speak(ns, address, Tongue::Http2(tls))
    }

    fn speak(ns: &Netns, address: SocketAddr, tongue: Tongue) -> Result<Self> {
        let noted = Arc::new(Noted::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let ns = Netns::open(ns.name())?;
        let note = Arc::clone(&noted);
        let thread = std::thread::spawn(move || {
            let served = load::run(&ns, || async move {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                let listener = socket.listen(BACKLOG)?;
                let _ = ready.send(());
                let task = tokio::task::spawn_local(accept(listener, tongue, note));
                let _ = stopped.await;
                task.abort();
                Ok(())
            });
            if let Err(e) = served {
                eprintln!("the upstream: {e:#}");
            }
        });
        is_ready.recv().context("the upstream did not start")?;
        Ok(Self { noted, stop: Some(stop), thread: Some(thread) })
    }

    /// Requests whose answers it holds back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.noted.held.load(Relaxed)
    }

    /// The URIs that it was asked for over HTTP/2, with the scheme and host that came.
    #[must_use]
    pub fn asked(&self) -> BTreeSet<String> {
        self.noted.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

async fn accept(listener: TcpListener, tongue: Tongue, noted: Arc<Noted>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tongue, noted) = (tongue.clone(), Arc::clone(&noted));
        tokio::task::spawn_local(async move {
            match tongue {
                Tongue::Http1 => converse(stream, noted).await,
                Tongue::Http2(None) => converse_http2(stream, noted).await,
                Tongue::Http2(Some(config)) => {
                    converse_http2(TlsAcceptor::from(config).accept(stream).await?, noted).await
                }
            }
        });
    }
}

/// Answers every request over HTTP/2 when its body has come to its end.
async fn converse_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    noted: Arc<Noted>,
) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(asked) = connection.accept().await {
        let (request, mut respond) = asked?;
        let uri = request.uri().to_string();
        noted.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(uri);
        tokio::task::spawn_local(async move {
            let mut body = request.into_body();
            while let Some(part) = body.data().await {
                body.flow_control().release_capacity(part?.len())?;
            }
            let head = http::Response::builder().header(http::header::CONTENT_LENGTH, 2);
            let mut answer = respond.send_response(head.body(())?, false)?;
            answer.send_data(Bytes::from_static(b"ok"), true)?;
            Ok::<_, anyhow::Error>(())
        });
    }
    Ok(())
}

/// Answers every request when its body has come to its end, with as many bytes as `/bytes/N` says, and those for `/hold` never.
async fn converse(mut stream: TcpStream, noted: Arc<Noted>) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut bytes, mut room) = (Vec::new(), Vec::new());
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            room.resize(ROOM, 0);
            let count = stream.read(&mut room).await?;
            if count == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(&room[..count]);
        };
        let Asked { is_held, length, answer } = asked(&String::from_utf8_lossy(&bytes[..end]));
        let mut left = length.saturating_sub((bytes.len() - end) as u64);
        bytes.clear();
        while left > 0 {
            let most = room.len().min(usize::try_from(left)?);
            let count = stream.read(&mut room[..most]).await?;
            if count == 0 {
                return Ok(());
            }
            left -= count as u64;
        }
        if is_held {
            // Thousands of these wait at once.
            drop((bytes, room));
            noted.held.fetch_add(1, Relaxed);
            let _ = stream.read(&mut [0]).await;
            noted.held.fetch_sub(1, Relaxed);
            return Ok(());
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {answer}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut left = answer;
        while left > 0 {
            let part = left.min(BODY.len());
            stream.write_all(&BODY[..part]).await?;
            left -= part;
        }
    }
}

/// What a request asks of the server.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    is_held: bool,
    /// Bytes of its body.
    length: u64,
    /// Bytes of the answer's.
    answer: usize,
}

fn asked(head: &str) -> Asked {
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let lengths = lines.filter_map(|line| line.split_once(':'));
    let mut length = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Asked {
        is_held: target.starts_with("/hold"),
        length: length.find_map(|(_, value)| value.trim().parse().ok()).unwrap_or(0),
        answer: target.strip_prefix("/bytes/").and_then(|n| n.parse().ok()).unwrap_or(2),
    }
}

static BODY: [u8; 64 * 1024] = [b'x'; 64 * 1024];
const ROOM: usize = 64 * 1024;
const BACKLOG: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_to_wait_for() {
        let held = asked("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(held, Asked { is_held: true, length: 0, answer: 2 });
        let long = asked("POST /bytes/9 HTTP/1.1\r\ncontent-length: 12\r\n\r\n");
        assert_eq!(long, Asked { is_held: false, length: 12, answer: 9 });
    }
}
