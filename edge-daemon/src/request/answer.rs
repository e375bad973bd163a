//! What leaves: the only file that makes a response for a client.

use std::{future::poll_fn, rc::Rc, time::Duration};

use bytes::Bytes;
use edge_common::Reason;
use edge_policy::{
    denied::{self, Denied},
    route::Answers,
    shield,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use tokio::{task::spawn_local, time::timeout};

use super::{
    body::{Answer, Ending, UploadState},
    incoming::{Frame, Incoming},
    path::Trace,
    upstream::Lease,
};
use crate::clock;

/// The upstream's answer, without what the outside should not see.
pub(crate) fn pass(
    response: Response<Incoming>,
    lease: Lease,
    upload: Rc<UploadState>,
    trace: &Trace,
    mut ending: Ending,
) -> Response<Answer> {
    let shows_errors = trace.answers.as_ref().is_some_and(|answers| answers.show_errors);
    if response.status().is_server_error() && !shows_errors {
        return hide(response, lease, trace, ending);
    }
    let (mut parts, body) = response.into_parts();
    // The connection to the client is the edge's own, whatever the upstream speaks.
    parts.version = http::Version::default();
    ending.status = parts.status;
    let changes = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = parts.headers.remove(header::UPGRADE).filter(|_| changes);
    shield::strip_response(&mut parts.headers);
    if let Some(protocol) = protocol {
        parts.headers.insert(header::UPGRADE, protocol);
    }
    if parts.status == StatusCode::NO_CONTENT {
        // There is no body that it could be the length of (RFC 9110, 8.6).
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    if let Some(standing) = trace.admission.standing {
        standing.write(&mut parts.headers, clock::unix_ms());
    }
    finish(&mut parts.headers, trace);
    Response::from_parts(parts, Answer::passed(body, lease, upload, ending))
}

/// The edge's own document in the place of an upstream's error page, which may tell of its inside.
/// The original goes to the log, under the request's id.
fn hide(
    response: Response<Incoming>,
    lease: Lease,
    trace: &Trace,
    mut ending: Ending,
) -> Response<Answer> {
    let (original, body) = response.into_parts();
    ending.status = original.status;
    ending.settle(Reason::Serve);
    spawn_local(log_original(original.status, body, lease, trace.id.clone()));
    let (mut parts, page) = denied::page(original.status, &trace.id).into_parts();
    // When to come back is the one thing that the client should hear from the upstream.
    if let Some(wait) = original.headers.get(header::RETRY_AFTER) {
        parts.headers.insert(header::RETRY_AFTER, wait.clone());
    }
    if let Some(standing) = trace.admission.standing {
        standing.write(&mut parts.headers, clock::unix_ms());
    }
    finish(&mut parts.headers, trace);
    Response::from_parts(parts, Answer::whole(Bytes::from(page), None, ending))
}

/// Logs the beginning of an error page; keeps the connection if that was all of it.
async fn log_original(status: StatusCode, mut body: Incoming, lease: Lease, request_id: String) {
    let mut text = Vec::new();
    let whole = timeout(ORIGINAL_WAIT, async {
        while text.len() < ORIGINAL_BYTES_MAX {
            match poll_fn(|cx| body.poll_frame(cx)).await {
                Some(Ok(Frame::Data(data))) => text.extend_from_slice(&data),
                Some(Ok(Frame::Trailers(_))) => {}
                end => return end.is_none(),
            }
        }
        false
    });
    if whole.await == Ok(true) {
        lease.give_back();
    }
    text.truncate(ORIGINAL_BYTES_MAX);
    let (status, body) = (status.as_u16(), String::from_utf8_lossy(&text));
    tracing::warn!(request_id, status, ?body, "an upstream's error page was kept back");
}

/// The answer to a browser that asked ahead of another site's request.
pub(crate) fn preflight(
    headers: HeaderMap,
    trace: &Trace,
    unread: Option<Incoming>,
    ending: Ending,
) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(Bytes::new(), unread, ending));
    *response.status_mut() = StatusCode::NO_CONTENT;
    *response.headers_mut() = headers;
    finish(response.headers_mut(), trace);
    response
}

/// A refusal. This and [`denied::problem`] are all that the outside ever learns of one.
pub(crate) fn refuse(
    denied: &Denied,
    trace: &Trace,
    unread: Option<Incoming>,
    ending: Ending,
) -> Response<Answer> {
    let (mut parts, body) = denied::problem(denied, &trace.id, clock::unix_ms()).into_parts();
    finish(&mut parts.headers, trace);
    let mut answer = Answer::whole(Bytes::from(body), unread, ending);
    // Where a request without one meaning ends, and what comes behind it, nobody can know.
    answer.is_last = denied.reason == Reason::MalformedRequest;
    Response::from_parts(parts, answer)
}

/// From plain HTTP to HTTPS; the method and the body stay (RFC 9110, 15.4.9).
pub(crate) fn redirect(
    location: HeaderValue,
    trace: &Trace,
    unread: Option<Incoming>,
    ending: Ending,
) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(Bytes::new(), unread, ending));
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    finish(response.headers_mut(), trace);
    response
}

fn finish(headers: &mut HeaderMap, trace: &Trace) {
    headers.entry(header::DATE).or_insert_with(clock::date);
    let usual = Answers::default();
    let answers = trace.answers.as_deref().unwrap_or(&usual);
    if let Some(cors) = &answers.cors {
        cors.stamp(headers, trace.origin.as_ref());
    }
    shield::secure(headers, trace.principal.is_some(), &answers.headers);
    name(headers, &trace.id);
}

fn name(headers: &mut HeaderMap, request_id: &str) {
    if let Ok(id) = HeaderValue::try_from(request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
}

/// As much of an error page as the log takes, in bytes, and how long it may take to come.
const ORIGINAL_BYTES_MAX: usize = 4096;
const ORIGINAL_WAIT: Duration = Duration::from_secs(1);
