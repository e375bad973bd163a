//! The metrics endpoint, on a listener of its own: `GET /metrics` for Prometheus, and the keys by which
//! upstreams verify what they are told of a request's sender.

use std::{future::Future, io, rc::Rc, sync::Arc, time::Duration};

use edge_policy::{
    head::Bounds,
    http1::{self, Fields, Framing, RequestReader},
    lines::Lines,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::spawn_local,
    time::timeout,
};

/// The path of the keys.
pub const KEYS: &str = "/identity/jwks.json";

/// Serves scrapes until it is dropped. `render` makes the text for a path, if there is any.
pub async fn serve<F, T>(listener: TcpListener, render: F) -> io::Result<()>
where
    F: Fn(String) -> T + 'static,
    T: Future<Output = Option<String>> + 'static,
{
    let (render, slots) = (Rc::new(render), Arc::new(Semaphore::new(SCRAPES_MAX)));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a scrape");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let render = Rc::clone(&render);
        spawn_local(async move {
            let _slot = slot;
            // A scraper that hangs or breaks off is its own problem.
            let _ = timeout(SCRAPE_TIMEOUT, converse(stream, &*render)).await;
        });
    }
}

/// Answers one request and closes.
async fn converse<F, T>(mut stream: TcpStream, render: &F) -> io::Result<()>
where
    F: Fn(String) -> T,
    T: Future<Output = Option<String>>,
{
    let (mut reader, mut bytes) = (RequestReader::default(), Vec::new());
    let (status, page) = loop {
        match reader.read(&bytes, &BOUNDS) {
            Ok(Some(head)) => {
                let target = head.first.target.of(&bytes);
                let path = target.split(|byte| *byte == b'?').next();
                let path = path.and_then(|path| str::from_utf8(path).ok()).unwrap_or_default();
                let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == path) else {
                    break (StatusCode::NOT_FOUND, None);
                };
                if head.first.method.of(&bytes) != b"GET" {
                    break (StatusCode::METHOD_NOT_ALLOWED, None);
                }
                break match render(path.to_owned()).await {
                    Some(text) => (StatusCode::OK, Some((*kind, text))),
                    None => (StatusCode::NOT_FOUND, None),
                };
            }
            Ok(None) if stream.read_buf(&mut bytes).await? == 0 => return Ok(()),
            Ok(None) => {}
            Err(_) => break (StatusCode::BAD_REQUEST, None),
        }
    };
    let mut map = HeaderMap::new();
    let text = page.map_or_else(String::new, |(kind, text)| {
        map.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        text
    });
    let framing = Framing::Length(text.len() as u64);
    let mut out = Vec::with_capacity(text.len() + 256);
    let fields = Fields { lines: &Lines::default(), map: &map, framing, connection: Some("close") };
    http1::response(&mut out, status, fields, false);
    out.extend_from_slice(text.as_bytes());
    stream.write_all(&out).await?;
    stream.shutdown().await
}

/// What there is, and of which kind.
const KINDS: [(&str, &str); 2] =
    [("/metrics", "text/plain; version=0.0.4; charset=utf-8"), (KEYS, "application/jwk-set+json")];
const BOUNDS: Bounds = Bounds { uri_bytes_max: 1024, headers_max: 64, header_bytes_max: 16 * 1024 };
const SCRAPES_MAX: usize = 8;
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
