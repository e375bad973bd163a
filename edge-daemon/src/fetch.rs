//! One question over HTTP and its answer, bounded in size and never followed elsewhere.

use std::{fmt, io, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{lookup, tls::client};

/// An `https` URL, or an `http` one of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    uri: Uri,
    host: String,
    port: u16,
    is_secure: bool,
}

impl FromStr for Url {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Self::anywhere(text)?;
        if url.is_guarded() {
            Ok(url)
        } else {
            Err("\"https://\"; plain \"http://\" is for this host alone")
        }
    }
}

impl Url {
    /// Any `https` or `http` URL, of whatever host.
    ///
    /// # Errors
    /// Says what would be right.
    pub fn anywhere(text: &str) -> Result<Self, &'static str> {
        let form = "an absolute URL: \"https://id.example.com/jwks\"";
        let uri: Uri = text.parse().map_err(|_| form)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(form);
        };
        if authority.as_str().contains('@') || text.contains('#') {
            return Err("a URL without user and fragment");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_secure = scheme == "https";
        if !is_secure && scheme != "http" {
            return Err("\"https://\" or \"http://\"");
        }
        let port = authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        Ok(Self { uri, host, port, is_secure })
    }

    /// Whether nobody on the way can change what is said: it is encrypted, or of this host.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        let is_local = |ip: IpAddr| ip.is_loopback();
        self.is_secure || self.host == "localhost" || self.host.parse().is_ok_and(is_local)
    }

    /// Whether it is a host alone, without a path.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.target() == "/"
    }

    /// Its path and its query.
    fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |target| target.as_str())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

/// What is asked for.
pub struct Ask<'a> {
    /// How.
    pub method: Method,
    /// The path and the query; empty: the URL's own.
    pub target: &'a str,
    /// Headers beside those that every request has.
    pub headers: HeaderMap,
    /// What is sent.
    pub body: Bytes,
    /// The largest answer that is taken, in bytes.
    pub most: usize,
}

impl Ask<'_> {
    /// Asks for a document of at most so many bytes.
    #[must_use]
    pub fn document(most: usize) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { method: Method::GET, target: "", headers, body, most }
    }
}

/// What came.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub bytes: Bytes,
}

/// What was fetched.
pub struct Document {
    /// Its content.
    pub bytes: Bytes,
    /// For how long its server says that it is fresh.
    pub fresh: Option<Duration>,
}

/// Gets a document over a connection of its own.
///
/// # Errors
/// If the host cannot be reached or does not prove who it is, answers anything but 200, or sends
/// more than the bound.
pub async fn get(url: &Url, tls: &Arc<client::ClientConfig>) -> io::Result<Document> {
    let accept = HeaderValue::from_static("application/json");
    let mut question = Ask::document(DOCUMENT_BYTES_MAX);
    question.headers.insert(header::ACCEPT, accept);
    let Answer { status, headers, bytes } = ask(url, tls, question).await?;
    if status != StatusCode::OK {
        return Err(io::Error::other(format!("it answered {status}")));
    }
    Ok(Document { bytes, fresh: headers.get(header::CACHE_CONTROL).and_then(fresh) })
}

/// Asks over a connection of its own. Nothing here ends by itself: whoever asks has a deadline.
///
/// # Errors
/// If the host cannot be reached or does not prove who it is, or sends more than the bound.
pub async fn ask(
    url: &Url,
    tls: &Arc<client::ClientConfig>,
    question: Ask<'_>,
) -> io::Result<Answer> {
    let stream = lookup::connect(&url.host, url.port).await?;
    if url.is_secure {
        exchange(url, question, client::connect(Arc::clone(tls), &url.host, stream).await?).await
    } else {
        exchange(url, question, stream).await
    }
}

async fn exchange(
    url: &Url,
    question: Ask<'_>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> io::Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let talk = async {
        let authority = url.uri.authority().map_or("", http::uri::Authority::as_str);
        let mut request = Request::builder()
            .method(question.method)
            .uri(if question.target.is_empty() { url.target() } else { question.target })
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("edged/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Full::new(question.body))
            .map_err(io::Error::other)?;
        request.headers_mut().extend(question.headers);
        let (head, body) =
            sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = Limited::new(body, question.most).collect().await;
        let bytes = body.map_err(io::Error::other)?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, bytes })
    };
    // The connection is driven here and nowhere else: with this future everything ends.
    tokio::pin!(talk, connection);
    let mut is_open = true;
    loop {
        tokio::select! {
            biased;
            done = &mut talk => return done,
            _ = &mut connection, if is_open => is_open = false,
        }
    }
}

/// `max-age`; what must not be stored, or not without asking, is fresh for no time.
fn fresh(value: &header::HeaderValue) -> Option<Duration> {
    let mut age = None;
    for directive in value.to_str().ok()?.split(',') {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return Some(Duration::ZERO),
            "max-age" => {
                age = value.trim().trim_matches('"').parse().ok().map(Duration::from_secs);
            }
            _ => {}
        }
    }
    age
}

/// The largest document, in bytes; sets of keys are a few KiB.
const DOCUMENT_BYTES_MAX: usize = 256 << 10;

/// The largest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_host() {
        for good in [
            "https://id.example.com/jwks",
            "https://id.example.com",
            "https://[2001:db8::1]:8443/x",
            "http://127.0.0.1:8080/jwks",
            "http://localhost/jwks",
            "http://[::1]/jwks?a=b",
        ] {
            assert_eq!(good.parse::<Url>().unwrap().to_string().trim_end_matches('/'), good);
        }
        for bad in [
            "",
            "/jwks",
            "id.example.com",
            "http://id.example.com/jwks",
            "http://10.0.0.1/jwks",
            "ftp://127.0.0.1/",
            "file:///etc/passwd",
            "https://user@id.example.com/",
            "https://id.example.com/#x",
            "http://localhost.example.com/",
            "https://",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[test]
    fn freshness_is_as_the_server_says() {
        let fresh = |value| fresh(&header::HeaderValue::from_static(value));
        assert_eq!(fresh("public, max-age=600, must-revalidate"), Some(Duration::from_secs(600)));
        assert_eq!(fresh("Max-Age=\"5\""), Some(Duration::from_secs(5)));
        assert_eq!(fresh("max-age=600, no-cache"), Some(Duration::ZERO));
        assert_eq!(fresh("no-store"), Some(Duration::ZERO));
        assert_eq!((fresh("public"), fresh("max-age=x"), fresh("max-age=-1")), (None, None, None));
    }
}
