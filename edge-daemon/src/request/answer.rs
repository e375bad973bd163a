//! What leaves: the only file that makes a response for a client.

use std::rc::Rc;

use bytes::Bytes;
use edge_policy::{
    denied::{self, Denied},
    shield,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{
    body::{Answer, Ending, UploadState},
    incoming::Incoming,
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
    let (mut parts, body) = response.into_parts();
    // The connection to the client is the edge's own, whatever the upstream speaks.
    parts.version = http::Version::default();
    ending.status = parts.status;
    shield::strip_response(&mut parts.headers);
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

/// A refusal. This and [`denied::problem`] are all that the outside ever learns of one.
pub(crate) fn refuse(
    denied: &Denied,
    trace: &Trace,
    unread: Option<Incoming>,
    ending: Ending,
) -> Response<Answer> {
    let (mut parts, body) = problem(denied, &trace.id).into_parts();
    finish(&mut parts.headers, trace);
    Response::from_parts(parts, Answer::whole(Bytes::from(body), unread, ending))
}

/// The problem document of a refusal, for whoever sends it.
pub(crate) fn problem(denied: &Denied, request_id: &str) -> Response<Vec<u8>> {
    let mut problem = denied::problem(denied, request_id, clock::unix_ms());
    name(problem.headers_mut(), request_id);
    shield::secure(problem.headers_mut(), false);
    problem
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
    shield::secure(headers, trace.principal.is_some());
    name(headers, &trace.id);
}

fn name(headers: &mut HeaderMap, request_id: &str) {
    if let Ok(id) = HeaderValue::try_from(request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
}
