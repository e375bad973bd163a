//! What the access log will tell of a request, gathered on its way.

use std::{borrow::Cow, sync::Arc};

use edge_common::Reason;
use edge_identity::principal::Principal;
use edge_policy::denied;
use http::{HeaderMap, HeaderName, StatusCode, Version, header, request::Parts};

use super::{
    Worker,
    front::Visitor,
    path::{Trace, logged},
};
use crate::{
    clock,
    events::access::{Line, Tls},
    upstream::{Server, Upstream},
};

/// A request's entry.
#[derive(Default)]
pub(crate) struct Entry {
    request_id: String,
    method: String,
    host: String,
    path: String,
    principal: Option<Principal>,
    protocol: &'static str,
    trace_id: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
    upstream: Option<Arc<Upstream>>,
    /// The server that was asked last.
    server: Option<Arc<Server>>,
    /// When its way upstream began, and when the head of the answer was there, in boot time.
    pub(super) stages: [Option<u64>; 2],
}

impl Entry {
    /// What the head says, if there is an access log.
    pub(super) fn begin(worker: &Worker, head: &Parts, trace: &Trace) -> Option<Box<Self>> {
        if !worker.access.is_on() {
            return None;
        }
        let text = |name| text(&head.headers, name);
        let whole = |name| whole(&head.headers, name);
        let host = head.uri.host().map(Cow::Borrowed).or_else(|| whole(&header::HOST));
        Some(Box::new(Self {
            request_id: trace.id.clone(),
            method: trace.method().to_owned(),
            path: logged(head.uri.path()),
            host: host.map(|host| logged(without_user(&host))).unwrap_or_default(),
            protocol: match head.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            trace_id: text("traceparent").as_deref().and_then(trace_id),
            referer: whole(&header::REFERER).map(|page| logged(&page_of(&page))),
            user_agent: whole(&header::USER_AGENT).map(|agent| logged(&agent)),
            ..Self::default()
        }))
    }

    /// Of what never became a request.
    pub(super) fn of(trace: &Trace) -> Self {
        let mut entry = Self { protocol: "HTTP/1.1", ..Self::default() };
        entry.settle(trace);
        entry
    }

    /// What is known as it goes to an upstream, and where to note which server is asked.
    pub(super) fn go(
        &mut self,
        trace: &Trace,
        upstream: &Arc<Upstream>,
    ) -> &mut Option<Arc<Server>> {
        self.settle(trace);
        self.upstream = Some(Arc::clone(upstream));
        &mut self.server
    }

    /// What is known when the answer begins.
    pub(super) fn settle(&mut self, trace: &Trace) {
        self.request_id.clone_from(&trace.id);
        trace.method().clone_into(&mut self.method);
        trace.path.clone_into(&mut self.path);
        self.principal.clone_from(&trace.principal);
        self.stages = trace.stages;
    }

    /// Writes that of a stream that was reset: all that is known of it is whose it was.
    pub(super) fn write_reset(worker: &Worker, visitor: &Visitor, reason: Reason) {
        if worker.access.is_on() {
            let request_id = worker.request_id();
            let entry = Self { request_id, protocol: "HTTP/2", ..Self::default() };
            entry.write(worker, visitor, (reason, None, [0; 2]), [0; 2]);
        }
    }

    /// Writes it, at the end of the request.
    pub(super) fn write(
        &self,
        worker: &Worker,
        visitor: &Visitor,
        (reason, status, [started, ended]): (Reason, Option<StatusCode>, [u64; 2]),
        [bytes_in, bytes_out]: [u64; 2],
    ) {
        let us = |from: u64, to: u64| to.saturating_sub(from) / 1000;
        let [sent, answered] = self.stages;
        let status = status.unwrap_or_else(|| denied::status(reason));
        worker.access.add(&Line {
            time_ms: clock::unix_ms(),
            request_id: &self.request_id,
            client: visitor.address,
            proxy: visitor.proxy,
            method: &self.method,
            host: &self.host,
            path: &self.path,
            protocol: self.protocol,
            status: status.as_u16(),
            reason: reason.name(),
            bytes_in,
            bytes_out,
            total_us: us(started, ended),
            decide_us: sent.map(|sent| us(started, sent)),
            upstream_us: sent.zip(answered).map(|(sent, answered)| us(sent, answered)),
            upstream: self.upstream.as_ref().map(|upstream| &*upstream.settings.name),
            server: self.server.as_ref().map(|server| &*server.label),
            principal: self.principal.as_ref().map(Principal::identity),
            by: self.principal.as_ref().map(|who| who.method().name()),
            issuer: self.principal.as_ref().and_then(Principal::issuer),
            tls: visitor.tls.as_ref().map(|facts| Tls {
                version: facts.version,
                suite: facts.suite,
                group: facts.group,
                resumed: facts.is_resumed,
                ja4: facts.ja4.as_ref().map(edge_policy::ja4::Ja4::as_str),
            }),
            trace_id: self.trace_id.as_deref(),
            referer: self.referer.as_deref(),
            user_agent: self.user_agent.as_deref(),
        });
    }
}

/// As much of a header as a log line needs.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.chars().take(LOGGED_MAX).collect())
}

/// All of a header: a key is to be seen before a part of it is cut off.
fn whole<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let text = String::from_utf8_lossy(headers.get(name)?.as_bytes());
    // To some readers of a log these end a line.
    let is_break = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    Some(if text.contains(is_break) { text.replace(is_break, "\u{fffd}").into() } else { text })
}

/// An address as far as a log may have it: users and queries hold credentials of whoever wrote them.
fn page_of(address: &str) -> Cow<'_, str> {
    let page = address.split(['?', '#']).next().unwrap_or_default();
    let begin = page.find("//").map_or(0, |at| at + 2);
    let (scheme, rest) = page.split_at(begin);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match without_user(authority) {
        host if host.len() == authority.len() => Cow::Borrowed(page),
        host => Cow::Owned([scheme, host, path].concat()),
    }
}

/// An authority without its user and password.
fn without_user(authority: &str) -> &str {
    authority.rsplit('@').next().unwrap_or_default()
}

/// The trace that a `traceparent` names (W3C Trace Context, 3.2), if it is one.
fn trace_id(value: &str) -> Option<String> {
    let mut parts = value.split('-');
    let lengths = [2, 32, 16, 2];
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let parts = lengths.map(|length| parts.next().filter(|p| p.len() == length && is_hex(p)));
    let [Some(version), Some(trace), Some(parent), Some(_)] = parts else { return None };
    let is_void = |part: &str| part.bytes().all(|byte| byte == b'0');
    (version != "ff" && !is_void(trace) && !is_void(parent)).then(|| trace.to_owned())
}

const LOGGED_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_is_no_text_is_logged_as_far_as_it_is() {
        for (agent, logged) in [
            (&b"Bj\xf6rn/1 \xc3\xb6"[..], "Bj\u{fffd}rn/1 \u{f6}"),
            ("a\u{85}b\u{9b}c\u{2028}d\u{2029}".as_bytes(), "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"),
        ] {
            let agent = HeaderValue::from_bytes(agent).unwrap();
            let headers = HeaderMap::from_iter([(header::USER_AGENT, agent)]);
            assert_eq!(whole(&headers, &header::USER_AGENT).as_deref(), Some(logged));
        }
    }

    #[test]
    fn a_page_is_logged_without_credentials() {
        for (given, logged) in [
            ("https://a.test/b?c#d", "https://a.test/b"),
            ("https://user:pass@a.test/b", "https://a.test/b"),
            ("https://user:p@ss@a.test", "https://a.test"),
            ("//user@a.test/b@c", "//a.test/b@c"),
            ("user:pass@a.test", "a.test"),
            ("", ""),
        ] {
            assert_eq!(page_of(given), logged, "{given}");
        }
    }

    #[test]
    fn a_trace_is_one_or_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(good).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for bad in [
            "",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }
}
