//! Logins: whom a request claims to be is known before it goes upstream, and whether that failed before
//! the answer goes out.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use edge_common::Reason;
use edge_policy::{
    denied::Denied,
    login::{Login, Seen, folded},
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tokio::time::timeout;

use super::{
    Plan, Worker, bear, body,
    front::Visitor,
    incoming::{Broken, Frame, Incoming},
};

/// A login that is let through.
pub(crate) struct Attempt {
    login: Arc<Login>,
    pub(crate) account: Arc<str>,
    /// The mark of the account's name, exactly as it came.
    pub(super) name: u64,
    /// How it ended, once that is known.
    pub(crate) has_failed: Option<bool>,
}

/// Finds out whom a login is for, and refuses it if its account or its TLS library is under a verdict. A
/// body that names the account is read whole; it goes on as it came.
pub(super) async fn admit(
    worker: &Worker,
    (visitor, plan): (&Visitor, &Plan),
    login: &Arc<Login>,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<Attempt, Denied> {
    let mut bytes = Bytes::new();
    if login.reads_request() {
        let all = timeout(plan.bounds.header_timeout, whole(body, LOGIN_BYTES_MAX));
        bytes = match all.await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => return Err(Reason::BodyTooLarge.into()),
            Ok(Err(broken)) => return Err(body::fault(broken).into()),
            Err(_) => return Err(Reason::RequestTimeout.into()),
        };
        *body = Incoming::Whole(bytes.clone());
    }
    let named = login.account(headers, &bytes);
    let name = worker.edge.identities.mark(("account", &*named));
    let account: Arc<str> = folded(&named).into();
    bear::login(worker, visitor, plan, (&account, name)).await?;
    Ok(Attempt { login: Arc::clone(login), account, name, has_failed: None })
}

impl Attempt {
    /// Asks for an answer whose body can be judged: all of it, and as it is.
    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        if self.login.reads_answer() {
            headers.remove(header::RANGE);
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
    }

    /// Notes how the login ended. A body that tells it is read as far as it may be, within so much time,
    /// and passed on all the same.
    pub(super) async fn end(
        &mut self,
        method: &Method,
        response: &mut Response<Incoming>,
        within: Duration,
    ) {
        let (mut bytes, mut is_whole) = (Bytes::new(), false);
        let status = response.status();
        let is_readable = status != StatusCode::SWITCHING_PROTOCOLS && *method != Method::HEAD;
        if self.login.reads_answer() && is_readable {
            let mut read = BytesMut::new();
            let end = timeout(within, fill(response.body_mut(), &mut read, LOGIN_BYTES_MAX)).await;
            bytes = read.freeze();
            is_whole = matches!(end, Ok(Some(Ok(Frame::Trailers(_))) | None));
            is_whole &= !matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
            let rest = std::mem::replace(response.body_mut(), Incoming::Empty);
            *response.body_mut() = match end {
                Ok(None) => Incoming::Whole(bytes.clone()),
                Ok(end) => rest.after(bytes.clone(), end),
                Err(_) => rest.after(bytes.clone(), None),
            };
        }
        let seen = if is_whole { Seen::Whole(&bytes) } else { Seen::Part(&bytes) };
        let told = (status.as_u16(), response.headers());
        self.has_failed = self.login.has_failed(method, told, &seen);
    }
}

/// A body to its end; `None` if it is longer than that.
async fn whole(body: &mut Incoming, most: usize) -> Result<Option<Bytes>, Broken> {
    let mut all = BytesMut::new();
    match fill(body, &mut all, most).await {
        Some(Err(broken)) => Err(broken),
        Some(Ok(Frame::Data(_))) => Ok(None),
        Some(Ok(Frame::Trailers(_))) | None => Ok(Some(all.freeze())),
    }
}

/// Reads a body to its end, or to what would make it longer than that: what came then.
async fn fill(
    body: &mut Incoming,
    all: &mut BytesMut,
    most: usize,
) -> Option<Result<Frame, Broken>> {
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        match frame {
            Ok(Frame::Data(data)) if all.len() + data.len() <= most => all.extend_from_slice(&data),
            last => return Some(last),
        }
    }
    None
}

/// The longest body of a login, and the longest answer that is looked into, in bytes.
const LOGIN_BYTES_MAX: usize = 64 * 1024;
