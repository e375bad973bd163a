//! What may be sent a second time.

use http::Method;

use super::super::body::Upload;

/// The body once more, if sending the request twice does no harm: a safe method (RFC 9110, 9.2.1)
/// without a body.
pub(super) fn repeatable(method: &Method, body: &Upload) -> Option<Upload> {
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    body.again().filter(|_| safe)
}
