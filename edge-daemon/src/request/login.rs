//! Logins: whom a request claims to be is known before it goes upstream, and whether that failed before
//! the answer goes out.

use std::{future::poll_fn, sync::Arc};

use bytes::{Bytes, BytesMut};
use edge_common::Reason;
use edge_policy::{denied::Denied, login::Login, verdict::Culprit};
use http::{HeaderMap, Response};
use tokio::time::timeout;

use super::{
    Plan, Worker, bear,
    front::Visitor,
    incoming::{Broken, Frame, Incoming},
};

/// A login that is let through.
pub(crate) struct Attempt {
    login: Arc<Login>,
    pub(crate) account: Arc<str>,
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
            Ok(Err(Broken::Gone)) => return Err(Reason::ClientGone.into()),
            Ok(Err(_)) => return Err(Reason::MalformedRequest.into()),
            Err(_) => return Err(Reason::RequestTimeout.into()),
        };
        *body = Incoming::Whole(bytes.clone());
    }
    let account: Arc<str> = login.account(headers, &bytes).into();
    bear::login(worker, plan, &Culprit::Account(Arc::clone(&account))).await?;
    if let Some(ja4) = visitor.ja4() {
        bear::login(worker, plan, &Culprit::Ja4(ja4)).await?;
    }
    Ok(Attempt { login: Arc::clone(login), account, has_failed: None })
}

impl Attempt {
    /// Notes how the login ended. A body that tells it is read whole; one that is longer than that tells
    /// nothing.
    pub(super) async fn end(&mut self, response: &mut Response<Incoming>) {
        let mut bytes = Bytes::new();
        let is_short =
            response.body().length().is_some_and(|length| length <= LOGIN_BYTES_MAX as u64);
        if self.login.reads_answer() && is_short {
            // One that breaks off does so for the client as well.
            if let Ok(Some(all)) = whole(response.body_mut(), LOGIN_BYTES_MAX).await {
                bytes = all;
                *response.body_mut() = Incoming::Whole(bytes.clone());
            }
        }
        let (status, headers) = (response.status().as_u16(), response.headers());
        self.has_failed = Some(self.login.has_failed(status, headers, &bytes));
    }
}

/// A body to its end; `None` if it is longer than that.
async fn whole(body: &mut Incoming, most: usize) -> Result<Option<Bytes>, Broken> {
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        if let Frame::Data(data) = frame? {
            all.extend_from_slice(&data);
        }
        if all.len() > most {
            return Ok(None);
        }
    }
    Ok(Some(all.freeze()))
}

/// The longest body of a login, and the longest answer that is looked into, in bytes.
const LOGIN_BYTES_MAX: usize = 64 * 1024;
