//! What may be sent a second time.

use http::{Method, Request};

use super::super::body::Upload;

/// A copy of the request, if sending it twice does no harm: a safe method (RFC 9110, 9.2.1)
/// without a body.
pub(super) fn repeatable(request: &Request<Upload>) -> Option<Request<Upload>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let body = request.body().again().filter(|_| safe)?;
    let mut copy = Request::new(body);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}
