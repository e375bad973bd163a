//! A request that may go upstream: its head made anew, and its way to the head of the answer.

use std::{rc::Rc, time::Duration};

use edge_common::Reason;
use edge_policy::{denied::Denied, head::Host, route::Route, shield, target::Target};
use http::{HeaderValue, Response, header, request::Parts};

use super::{
    View, Worker,
    body::{Upload, UploadState},
    entry::Entry,
    front::Visitor,
    incoming::Incoming,
    path::Trace,
    upstream::{Head, Lease, Outgoing},
};
use crate::clock;

/// All that is left of a request once it was decided, so that the rest takes no memory while it waits.
pub(super) struct Going {
    view: Rc<View>,
    /// Where it goes, by the number in the plan.
    upstream: usize,
    head: Head,
    upload: Upload,
    state: Rc<UploadState>,
    /// What the same server is chosen by.
    key: u64,
}

impl Going {
    /// The request as the upstream gets it, made of what was checked.
    pub(super) fn new(
        view: &Rc<View>,
        parts: Parts,
        asked: (&Visitor, &Host, &Target, &Route),
        trace: &Trace,
        (upload, state): (Upload, Rc<UploadState>),
    ) -> Result<Self, Reason> {
        let (visitor, _, target, route) = asked;
        let upstream = view.upstreams.get(route.upstream).ok_or(Reason::InternalError)?;
        let key = upstream.key(visitor.address, &target.path, &parts.headers);
        let head = head(view, parts, asked, trace);
        Ok(Self { view: Rc::clone(view), upstream: route.upstream, head, upload, state, key })
    }

    /// The same, asking for another protocol.
    pub(super) fn upgrade(mut self, protocol: Option<HeaderValue>) -> Self {
        if let Some(protocol) = protocol {
            self.head.parts.headers.insert(header::UPGRADE, protocol);
        }
        self
    }

    /// Sends it; the head of the answer. The log has where it goes, however it ends.
    pub(super) async fn send(
        self: Box<Self>,
        worker: &Worker,
        trace: &mut Trace,
        entry: Option<&mut Entry>,
    ) -> Result<(Box<Response<Incoming>>, Lease, Rc<UploadState>), Denied> {
        let Self { view, upstream, head, upload, state, key } = *self;
        let sent_ns = clock::boot_ns();
        trace.stages[0] = Some(sent_ns);
        let upstream = &view.upstreams[upstream];
        let asked = entry.map(|entry| entry.go(trace, &upstream.shared));
        let outgoing = Outgoing { head: &head, body: upload, upload: &state, key, asked };
        let sent = upstream.send(outgoing).await;
        let answered_ns = clock::boot_ns();
        trace.stages[1] = Some(answered_ns);
        let took = Duration::from_nanos(answered_ns.saturating_sub(sent_ns));
        worker.counters.upstream.observe(took);
        let (mut response, lease) = sent?;
        if let Some(attempt) = &mut trace.login {
            let within = view.plan.bounds.header_timeout;
            attempt.end(&head.parts.method, &mut response, within).await;
        }
        Ok((Box::new(response), lease, state))
    }
}

/// The request's head as the upstream gets it: made anew, from what was checked.
fn head(
    view: &View,
    mut parts: Parts,
    (visitor, host, target, route): (&Visitor, &Host, &Target, &Route),
    trace: &Trace,
) -> Head {
    shield::strip_request(&mut parts.headers, &route.kept);
    parts.headers.remove(header::HOST);
    if let Some(attempt) = &trace.login {
        attempt.ask(&mut parts.headers);
    }
    let told = trace.principal.as_ref().map(|who| view.tell(who));
    let facts = shield::Forward {
        client: visitor.address,
        host,
        port: visitor.port,
        request_id: &trace.id,
        principal: told.as_deref(),
    };
    let lines = shield::forward(route.host_sent.as_deref(), &facts);
    let target = match &route.rewrite {
        None => target.path_and_query(),
        Some(rewrite) => {
            let path = rewrite.apply(&route.at.path, &target.path);
            Target { path, query: target.query.clone() }.path_and_query()
        }
    };
    Head { parts, target, lines }
}
