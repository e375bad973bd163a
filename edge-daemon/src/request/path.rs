//! The path of a request, top to bottom: each line settles it or hands it on.

use std::{mem, rc::Rc, sync::Arc};

use edge_common::{Blame, Reason};
use edge_identity::{
    access::{Facts, Rule},
    credential,
    principal::{Method, Principal},
};
use edge_policy::{
    cors,
    denied::Denied,
    head, hops, led,
    limit::{Admission, meter::Now},
    route::Answers,
    target::Target,
    upgrade,
};
use http::{HeaderMap, HeaderValue, Request, Response, request::Parts, uri::PathAndQuery};

use super::{
    Worker, access, answer, bear,
    body::{Answer, Ending, Upload, UploadState, declared_length},
    charge::{self, Payment, admit_source, charge},
    entry::Entry,
    front::Visitor,
    going::Going,
    identify,
    incoming::Incoming,
    login::{self, Attempt},
    plain,
    serve::Entrance,
    token::Admitted,
    upstream::Lease,
    watch::Turn,
};
use crate::{
    audit::{self, Access},
    clock,
    events::Event,
};

/// What is known of a request so far: for its answer, whatever that will be, and for the log.
pub(crate) struct Trace {
    pub(crate) id: String,
    /// `None` for what never became a request.
    pub(super) method: Option<http::Method>,
    /// As the log has it; empty until it is known.
    pub(super) path: String,
    /// When its way upstream began, and when the head of the answer was there, in boot time.
    pub(super) stages: [Option<u64>; 2],
    pub(crate) principal: Option<Principal>,
    /// Whether its client showed a certificate because it had to.
    pub(super) is_certified: bool,
    /// What it did not meet, if it may not pass.
    rule: Option<Rule>,
    /// Whether it is being asked who it is from and whether it may: however that ends, the audit log
    /// has it.
    is_asked: bool,
    /// When it is charged to its source.
    pub(super) payment: Payment,
    /// What the limits it was charged to say of it.
    pub(crate) admission: Admission,
    /// What its route does about browsers, and the origin that may read the answer.
    pub(crate) answers: Option<Arc<Answers>>,
    pub(crate) origin: Option<HeaderValue>,
    /// The login that it is.
    pub(super) login: Option<Attempt>,
    /// Whether it came over TLS.
    pub(super) over_tls: bool,
    /// Whether another site's page had a browser ask. Over plain HTTP browsers do not say.
    pub(super) is_led: bool,
    /// What is told of it and counted, where its answer is another refusal or none.
    pub(super) told: Option<Denied>,
}

impl Trace {
    /// Of a request of which nothing is settled yet.
    fn new(worker: &Worker, visitor: &Visitor, method: Option<&http::Method>) -> Self {
        Self {
            id: worker.request_id(),
            method: method.cloned(),
            path: String::new(),
            stages: [None; 2],
            principal: None,
            is_certified: false,
            rule: None,
            is_asked: false,
            payment: Payment::Early,
            admission: Admission::default(),
            answers: None,
            origin: None,
            login: None,
            over_tls: visitor.tls.is_some(),
            is_led: method.is_some() && visitor.tls.is_none(),
            told: None,
        }
    }

    /// The method in the words of a log.
    pub(super) fn method(&self) -> &str {
        self.method.as_ref().map_or("", http::Method::as_str)
    }
}

/// Answers a request. Whatever happens, the answer is counted once, by its [`Ending`].
pub(crate) async fn answer(
    worker: Rc<Worker>,
    mut visitor: Visitor,
    entrance: Entrance,
    turn: Rc<Turn>,
    request: Request<Incoming>,
) -> Response<Answer> {
    let now = clock::now();
    let (mut ending, in_flight) = Ending::begin(Rc::clone(&worker), Rc::clone(&turn), now.boot_ns);
    let (head, body) = request.into_parts();
    let asked = head.uri.clone();
    let mut trace = Trace::new(&worker, &visitor, Some(&head.method));
    trace.is_led &= !led::shows_credential(&head.headers);
    ending.entry = Entry::begin(&worker, &head, &trace);
    if ending.entry.is_some() {
        // Whoever leaves before the answer has a line as well.
        ending.visitor = Some(visitor.clone());
    }
    let mut body = Some(body);
    let outcome = match entrance {
        Entrance::Http => {
            let come = (in_flight, now);
            plain::redirect(&worker, &mut visitor, come, &mut trace, &head)
                .await
                .map(Outcome::Redirect)
        }
        Entrance::Https(_) => {
            let come = (in_flight, now);
            match decide(&worker, &mut visitor, &turn, come, &mut trace, head, &mut body).await {
                Ok(Decided::Going(going)) => {
                    if ending.entry.is_some() {
                        ending.visitor = Some(visitor.clone());
                    }
                    let sent = going.send(&worker, &mut trace, ending.entry.as_deref_mut()).await;
                    sent.map(|(response, lease, state)| Outcome::Passed(response, lease, state))
                }
                Ok(Decided::Preflight(headers)) => Ok(Outcome::Preflight(headers)),
                Err(denied) => Err(denied),
            }
        }
    };
    if trace.path.is_empty() {
        trace.path = logged(asked.path());
    }
    let outcome = match outcome {
        Err(denied) if trace.principal.is_none() => {
            Err(charge::refused(&worker, &visitor, denied, &mut trace, now).await)
        }
        outcome => outcome,
    };
    ending.held = mem::take(&mut trace.admission.held);
    ending.visitor = Some(visitor.clone());
    if let Some(entry) = &mut ending.entry {
        entry.settle(&trace);
    }
    let mut response = match outcome {
        Ok(Outcome::Passed(response, lease, upload)) => {
            worker.report_answered(&visitor, &trace, response.status().as_u16());
            answer::pass(*response, lease, upload, &trace, ending)
        }
        Ok(Outcome::Preflight(headers)) => {
            ending.settle(Reason::Preflight);
            answer::preflight(headers, &trace, body, ending)
        }
        Ok(Outcome::Redirect(location)) => {
            if let Some(told) = &trace.told {
                ending.settle_as(told.reason, Reason::Redirect);
                report(&worker, &visitor, told, &trace);
            }
            ending.settle(Reason::Redirect);
            answer::redirect(location, &trace, body, ending)
        }
        Err(denied) => {
            let told = trace.told.as_ref().unwrap_or(&denied);
            ending.settle_as(told.reason, denied.reason);
            report(&worker, &visitor, told, &trace);
            answer::refuse(&denied, &trace, body, ending)
        }
    };
    response.body_mut().ending.known = Some(trace.into());
    response
}

/// Refuses what never became a request: it has a request id, is charged to its source, counted and
/// told of like any other. Whose words a trusted proxy passed on is not known, so nobody is charged.
pub(crate) fn refuse(
    worker: &Rc<Worker>,
    visitor: &Visitor,
    turn: Rc<Turn>,
    reason: Reason,
) -> Response<Answer> {
    let now = clock::now();
    let (mut ending, _) = Ending::begin(Rc::clone(worker), turn, now.boot_ns);
    let (mut denied, mut trace) = (Denied::new(reason), Trace::new(worker, visitor, None));
    if !worker.view().plan.trusted.has(visitor.address) {
        denied = charge::unread(worker, visitor, denied, &mut trace, now);
        report(worker, visitor, trace.told.as_ref().unwrap_or(&denied), &trace);
    }
    ending.settle_as(trace.told.as_ref().unwrap_or(&denied).reason, denied.reason);
    ending.visitor = Some(visitor.clone());
    ending.entry = worker.access.is_on().then(|| Box::new(Entry::of(&trace)));
    answer::refuse(&denied, &trace, None, ending)
}

enum Outcome {
    Passed(Box<Response<Incoming>>, Lease, Rc<UploadState>),
    /// What a browser asked ahead of another site's request.
    Preflight(HeaderMap),
    Redirect(HeaderValue),
}

/// What was decided of a request.
enum Decided {
    Going(Box<Going>),
    /// What the edge is asked itself: by a browser ahead of another site's request, or at the last hop.
    Preflight(HeaderMap),
}

/// Who is it, may it, how much, is it well-formed, where to.
///
/// The source's own limit comes first, so that nonsense and guessing are slowed however they are
/// done, but where several share the source: then it waits for who it is. The key's and the edge's come late,
/// so that they are charged only to those who may.
/// The body is taken only when it goes upstream.
async fn decide(
    worker: &Worker,
    visitor: &mut Visitor,
    turn: &Rc<Turn>,
    come: (usize, Now),
    trace: &mut Trace,
    mut head: Parts,
    body: &mut Option<Incoming>,
) -> Result<Decided, Denied> {
    let view = worker.view();
    let plan = &view.plan;
    let now = come.1;
    let client = admit_source(worker, visitor, plan, come, trace, &head.headers).await?;

    let host = head::check(&head.method, &head.uri, head.version, &head.headers, &plan.head)?;
    visitor.check_host(&host.name)?;
    visitor.check_listener(plan)?;
    let target = target(&head, plan.bounds.uri_bytes_max)?;
    trace.path = logged(&target.path);
    plan.lures.check(&head.headers, &target, trace.is_led)?;

    let key = identify::shown_key(worker, visitor, plan, &head, &target)?;
    if let Some(method) = cors::preflight(&head.method, &head.headers)?
        && let Some(answer) =
            plan.routes.preflight(&host.name, &target.path, &method, &head.headers)
    {
        let (route, headers) = answer?;
        // What a browser asks ahead shows nobody, and goes nowhere.
        trace.payment = Payment::Late;
        trace.answers = Some(Arc::clone(&route.answers));
        return Ok(Decided::Preflight(headers));
    }
    let route = plan.routes.find(&host.name, &target.path, &head.method, &head.headers)?;
    trace.answers = Some(Arc::clone(&route.answers));
    trace.origin = route.answers.cors.as_ref().and_then(|cors| cors.origin(&head.headers));
    visitor.check_certificate(route.certificate)?;
    trace.is_certified = route.certificate;
    let owed = trace.payment.owed();
    let asked = identify::Asked { head: &head, host: &host, target: &target, visitor, owed };
    trace.is_asked = true;
    let identity = identify::identify(worker, (plan, route), asked, key, body).await?;
    trace.principal = identity.principal;
    let was_delayed = bear::sender(worker, visitor, plan, trace.principal.as_ref()).await?;
    charge::pay(plan, trace, now)?;
    let facts = Facts {
        method: &head.method,
        host: &host.name,
        target: &target,
        client: visitor.address,
        tls: access::tls(visitor),
        token: identity.token.as_ref().map(Admitted::scheme),
        now_ms: now.unix_ns / 1_000_000,
    };
    access::authorize(plan, route, trace.principal.as_ref(), &facts).map_err(|refusal| {
        trace.rule = Some(refusal.rule);
        refusal.denied
    })?;
    let upgrade = upgrade::asked(&head.method, head.version, &head.headers, &route.upgrades);
    if !trace.principal.as_ref().is_some_and(is_shown) {
        // Another site's page may open a connection of another protocol, cookies and all.
        let method = if upgrade.is_some() { &http::Method::POST } else { &head.method };
        let has_certificate = visitor.certificate.is_some();
        route.answers.csrf.check(method, &head.headers, &host, has_certificate)?;
    }

    trace.is_asked = false;
    tell_granted(worker, visitor, &head, trace);
    let (who, asked) = (trace.principal.as_ref(), (&head, &*host.name));
    let from = (&*visitor, client, trace.payment.is_shared());
    charge(plan, from, who, route, asked, (&mut trace.admission, now)).await?;
    let body_max = plan.bounds.body_bytes_max;
    if declared_length(&head.headers).is_some_and(|length| length > body_max) {
        return Err(Reason::BodyTooLarge.into());
    }

    if let Some(headers) = hops::count(&head.method, &mut head.headers, &route.at.methods)? {
        return Ok(Decided::Preflight(headers));
    }
    let mut body = body.take().ok_or(Reason::InternalError)?;
    if let Some(login) = &route.login {
        let (who, headers) = ((&*visitor, &**plan), &head.headers);
        trace.login = Some(Box::pin(login::admit(worker, who, login, headers, &mut body)).await?);
    }
    // Whoever waited may have been revoked meanwhile.
    if was_delayed || trace.admission.delay_ns > 0 || trace.login.is_some() {
        identify::still_good(worker, plan, trace.principal.as_ref(), identity.token.as_ref())?;
    }
    let asked = (&*visitor, &host, &target, route);
    let going = Going::new(&view, head, asked, trace, Upload::new(body, body_max, turn));
    going.map(|going| Decided::Going(Box::new(going.upgrade(upgrade)))).map_err(Denied::new)
}

/// Whether the caller showed who it is by a header of its own, which no browser adds to what
/// another site's page asks for.
fn is_shown(principal: &Principal) -> bool {
    principal.method() != Method::Mtls
}

/// Tells of a refusal: the audit log if it was about who the client is, the event log if it is the client's
/// fault or that of a limit that it is charged to with others, and whoever scores if it is the client's.
fn report(worker: &Worker, visitor: &Visitor, denied: &Denied, trace: &Trace) {
    let is_clients = denied.reason.blame() == Blame::Client;
    let is_audited = trace.is_asked || audit::is_about_identity(denied.reason);
    if !is_clients && worker.complaints.may_log() {
        let (reason, request_id) = (denied.reason.name(), &trace.id);
        let rule = trace.rule.as_ref().map(ToString::to_string);
        tracing::warn!(reason, request_id, path = trace.path, rule, "not served");
    }
    let is_told = is_clients || denied.hit.is_some();
    if !is_told && !is_audited {
        return;
    }
    let event = Event::RequestRefused {
        source: visitor.address,
        reason: denied.reason.name(),
        request_id: trace.id.clone(),
        method: trace.method().to_owned(),
        path: trace.path.clone(),
        rule: trace.rule.as_ref().map(ToString::to_string),
        principal: trace.principal.as_ref().map(|who| who.identity().into_owned()),
        limit: denied.hit.as_ref().map(|hit| hit.limit.to_string()),
        ja4: visitor.ja4(),
        detail: denied.challenge.token.as_ref().and_then(|token| token.fault),
    };
    if is_audited {
        worker.edge.audit.tell(event.clone());
    }
    if is_clients {
        worker.report_refused(visitor, denied.reason, trace);
    }
    if is_told {
        worker.edge.events.tell(event);
    }
}

/// Tells the audit log of somebody who is let in.
fn tell_granted(worker: &Worker, visitor: &Visitor, head: &Parts, trace: &Trace) {
    let Some(principal) = &trace.principal else { return };
    let (identity, by) = (principal.identity(), principal.method().name());
    worker.grants.tell(&identity, by, || Access {
        source: visitor.address,
        request_id: trace.id.clone(),
        method: head.method.clone(),
        path: trace.path.clone(),
        principal: (*identity).to_owned(),
        by,
    });
}

/// As much of a path as a log line needs and may have.
pub(super) fn logged(path: &str) -> String {
    let path = credential::masked(path);
    path[..path.floor_char_boundary(LOGGED_PATH_MAX)].to_owned()
}

/// What is asked for, in its normal form.
pub(super) fn target(head: &Parts, bytes_max: usize) -> Result<Target, Reason> {
    match head.uri.path_and_query().map_or("", PathAndQuery::as_str) {
        // A question about the server as a whole (RFC 9110, 9.3.7), which no route takes.
        "*" if head.method == http::Method::OPTIONS => Err(Reason::NoRoute),
        // HTTP/1 may leave an empty path out of a whole URI (RFC 9110, 4.2.3).
        query if query.starts_with('?') && head.version != http::Version::HTTP_2 => {
            Target::parse(&format!("/{query}"), bytes_max)
        }
        target => Target::parse(target, bytes_max),
    }
}

const LOGGED_PATH_MAX: usize = 256;
