//! The metrics endpoint, on a listener of its own: `GET /metrics` for Prometheus, and the keys by which
//! upstreams verify what they are told of a request's sender.

use std::{convert::Infallible, future::Future, io, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::spawn_local, time::timeout};

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
            let service = service_fn(move |request| answer(Rc::clone(&render), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A scraper that hangs or breaks off is its own problem.
            let _ = timeout(SCRAPE_TIMEOUT, connection).await;
        });
    }
}

async fn answer<F, T>(
    render: Rc<F>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    F: Fn(String) -> T,
    T: Future<Output = Option<String>>,
{
    let mut response = Response::new(Full::default());
    let kind = match request.uri().path() {
        "/metrics" => "text/plain; version=0.0.4; charset=utf-8",
        KEYS => "application/jwk-set+json",
        _ => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    if request.method() != Method::GET {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return Ok(response);
    }
    match render(request.uri().path().to_owned()).await {
        Some(text) => {
            *response.body_mut() = Full::from(text);
            let kind = header::HeaderValue::from_static(kind);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        None => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    Ok(response)
}

const SCRAPES_MAX: usize = 8;
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
