//! What leaves: the only file that makes a response for a client.

use std::{future::poll_fn, rc::Rc, time::Duration};

use bytes::Bytes;
use edge_common::Reason;
use edge_policy::{
    denied::{self, Denied},
    limit::Standing,
    lines::Lines,
    shield,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::{task::spawn_local, time::timeout};

use super::{
    body::{Answer, Ending, UploadState},
    incoming::{Frame, Incoming},
    path::Trace,
    upstream::Lease,
    watch::Turn,
};
use crate::{clock, stderr};

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
    ending.status = Some(parts.status);
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
    let mut answer = Answer::passed(body, lease, upload, ending);
    share(&mut parts.headers, trace);
    finish(&mut parts.headers, &mut answer, trace.admission.standing, trace);
    Response::from_parts(parts, answer)
}

/// The upstream's interim answers that the client was not told of, the same way. `100 Continue` is the
/// edge's own to say.
pub(crate) fn interims(turn: &Turn) -> impl Iterator<Item = Response<()>> {
    let told = |response: &Response<()>| response.status() != StatusCode::CONTINUE;
    turn.take_interims().into_iter().filter(told).map(|mut response| {
        *response.version_mut() = http::Version::default();
        shield::strip_response(response.headers_mut());
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response
    })
}

/// The edge's own document in the place of an upstream's error page, which may tell of its inside.
/// The original goes to the log, under the request's id; so many of them, as whoever can provoke one can
/// provoke more.
fn hide(
    response: Response<Incoming>,
    lease: Lease,
    trace: &Trace,
    mut ending: Ending,
) -> Response<Answer> {
    let (original, mut body) = response.into_parts();
    ending.status = Some(original.status);
    ending.settle(Reason::Serve);
    // The client's bytes are no other task's to read: those behind this body are the next request.
    let unread = body.abandon_upload();
    let id = ending.worker.originals.may_log().then(|| trace.id.clone());
    let encoding = original.headers.get(header::CONTENT_ENCODING).cloned();
    spawn_local(log_original((original.status, encoding), body, lease, id));
    let (mut parts, page) = denied::page(original.status, &trace.id).into_parts();
    // When to come back is the one thing that the client should hear from the upstream.
    if let Some(wait) = original.headers.get(header::RETRY_AFTER) {
        parts.headers.insert(header::RETRY_AFTER, wait.clone());
    }
    let mut answer = Answer::whole(Bytes::from(page), unread, ending);
    share(&mut parts.headers, trace);
    finish(&mut parts.headers, &mut answer, trace.admission.standing, trace);
    Response::from_parts(parts, answer)
}

/// Logs the beginning of an error page under an id, if it has one; keeps the connection if that was all
/// of it.
async fn log_original(
    (status, encoding): (StatusCode, Option<HeaderValue>),
    mut body: Incoming,
    lease: Lease,
    request_id: Option<String>,
) {
    let mut text = Vec::new();
    let read = timeout(ORIGINAL_WAIT, async {
        while text.len() < ORIGINAL_BYTES_MAX {
            match poll_fn(|cx| body.poll_frame(cx)).await {
                Some(Ok(Frame::Data(data))) => text.extend_from_slice(&data),
                Some(Ok(Frame::Trailers(_))) => {}
                Some(Err(broken)) => return Err(broken),
                None => return Ok(true),
            }
        }
        Ok(false)
    });
    match read.await {
        Ok(Ok(true)) => lease.give_back(),
        Ok(Ok(false)) => lease.leave(),
        // It may have broken off as what it was sent did.
        Ok(Err(_)) | Err(_) => {}
    }
    let Some(request_id) = request_id else { return stderr::lose() };
    text.truncate(ORIGINAL_BYTES_MAX);
    let status = status.as_u16();
    if let Some(encoding) = encoding.filter(|encoding| encoding != "identity") {
        // Nobody reads it so, and the application's own log has it.
        tracing::warn!(request_id, status, ?encoding, "an upstream's error page was kept back");
        return;
    }
    let body = String::from_utf8_lossy(&text);
    tracing::warn!(request_id, status, ?body, "an upstream's error page was kept back");
}

/// The answer to a browser that asked ahead of another site's request.
pub(crate) fn preflight(
    headers: HeaderMap,
    trace: &Trace,
    unread: Option<Incoming>,
    ending: Ending,
) -> Response<Answer> {
    empty(StatusCode::NO_CONTENT, headers, trace, unread, ending)
}

/// A refusal. This and [`denied::problem`] are all that the outside ever learns of one.
pub(crate) fn refuse(
    denied: &Denied,
    trace: &Trace,
    unread: Option<Incoming>,
    ending: Ending,
) -> Response<Answer> {
    let (mut parts, body) = denied::problem(denied, &trace.id).into_parts();
    let mut answer = Answer::whole(Bytes::from(body), unread, ending);
    let standing = denied.hit.as_ref().map(|hit| hit.standing).or(trace.admission.standing);
    share(&mut parts.headers, trace);
    finish(&mut parts.headers, &mut answer, standing, trace);
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
    let headers = HeaderMap::from_iter([(header::LOCATION, location)]);
    empty(StatusCode::PERMANENT_REDIRECT, headers, trace, unread, ending)
}

fn empty(
    status: StatusCode,
    mut headers: HeaderMap,
    trace: &Trace,
    unread: Option<Incoming>,
    ending: Ending,
) -> Response<Answer> {
    let mut answer = Answer::whole(Bytes::new(), unread, ending);
    finish(&mut headers, &mut answer, trace.admission.standing, trace);
    let mut response = Response::new(answer);
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}

/// What other sites' scripts are told, if the route has a word on it. A preflight is told so already.
fn share(headers: &mut HeaderMap, trace: &Trace) {
    if let Some(cors) = trace.answers.as_ref().and_then(|answers| answers.cors.as_ref()) {
        cors.stamp(headers, trace.origin.as_ref());
    }
}

/// What the edge says in the head of every answer.
fn finish(headers: &mut HeaderMap, answer: &mut Answer, standing: Option<Standing>, trace: &Trace) {
    let Answer { lines, ending, .. } = answer;
    *lines = Lines::with_capacity(LINES_BYTES);
    if !headers.contains_key(header::DATE) {
        clock::date(|date| lines.add(header::DATE.as_str(), date));
    }
    lines.add("x-request-id", &trace.id);
    if let Some(standing) = standing {
        Standing::strip(headers);
        standing.write(lines, clock::unix_ms());
    }
    let is_authenticated = trace.principal.is_some() || trace.is_certified;
    match &trace.answers {
        Some(answers) => answers.headers.stamp(headers, lines, is_authenticated),
        None => {
            let secured = &ending.worker.view().plan.secured[usize::from(trace.over_tls)];
            secured.stamp(headers, lines, is_authenticated);
        }
    }
}

/// What the edge usually says takes up so many bytes.
const LINES_BYTES: usize = 1024;
/// As much of an error page as the log takes, in bytes, and how long it may take to come.
const ORIGINAL_BYTES_MAX: usize = 4096;
const ORIGINAL_WAIT: Duration = Duration::from_secs(1);
