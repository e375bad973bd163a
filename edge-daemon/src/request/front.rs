//! What comes before the first request: who is connected, and the TLS handshake.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use edge_common::{Reason, Source};
use edge_policy::{denied::Denied, forwarded::Naming, ja4::Ja4, proxy};
use http::HeaderMap;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use super::{Plan, Worker, bear, certificate::Client};
use crate::{
    clock,
    config::settings::ClientAuth,
    crowd::Place,
    events::Event,
    metrics::Metrics,
    tls::{self, Facts, Failure, Refusal},
};

/// The client of one connection, or of one request if a trusted proxy told of it.
#[derive(Clone)]
pub(crate) struct Visitor {
    /// Its place among its connections, once it has one.
    pub(crate) place: Option<Rc<Place>>,
    /// Its address as proven, IPv4 never in IPv6's clothes: what limits, logs and bans go by.
    pub(crate) address: IpAddr,
    /// The trusted proxy that vouches for the address; `None`: the client itself is connected.
    pub(crate) proxy: Option<IpAddr>,
    /// Whether the peer may name its client in the head of a request. Who comes by a proxy that names
    /// nobody before TLS may not: it speaks to that client itself.
    may_name: bool,
    /// The listener that it came to, by HTTPS, and its port.
    listener: usize,
    pub(crate) port: u16,
    /// What the TLS handshake told; `None` on plain HTTP.
    pub(crate) tls: Option<Rc<Facts>>,
    /// What the client's own certificate says; `None` as well where a proxy may tell of the client,
    /// since the certificate is the proxy's then.
    pub(crate) certificate: Option<Rc<Client>>,
    /// Whether a proxy may tell of the client, so that it is the proxy with whom hands were shaken.
    pub(crate) is_spoken_for: bool,
}

impl Visitor {
    pub(super) fn new(peer: SocketAddr) -> Self {
        let address = peer.ip().to_canonical();
        let (proxy, tls, certificate, place) = Default::default();
        let (listener, port, may_name, is_spoken_for) = (0, 443, true, false);
        Self { address, proxy, may_name, listener, port, tls, certificate, place, is_spoken_for }
    }

    /// Takes a place among the connections of this client, if it may have one more. A proxy connects
    /// for many.
    pub(super) fn take_place(&mut self, worker: &Worker) -> bool {
        let plan = &worker.view().plan;
        if plan.trusted.has(self.address) {
            return true;
        }
        let client = Source::from(self.address).client(plan.client);
        self.place =
            worker.edge.crowd.enter(client, plan.bounds.source_connections_max).map(Rc::new);
        if self.place.is_none() {
            worker.refuse_connection(self, Reason::SourceConnections);
        }
        self.place.is_some()
    }

    /// The fingerprint of the TLS library that shook hands, if any did.
    pub(crate) fn ja4(&self) -> Option<Ja4> {
        self.tls.as_ref().and_then(|facts| facts.ja4)
    }

    /// The same, if it is the client's own: a proxy's is that of everybody behind it.
    pub(crate) fn own_ja4(&self) -> Option<Ja4> {
        self.ja4().filter(|_| !self.is_spoken_for)
    }

    /// Whether HTTP/2 was agreed on.
    pub(crate) fn speaks_h2(&self) -> bool {
        self.tls.as_ref().is_some_and(|facts| facts.alpn == Some("h2"))
    }

    /// The client of a request: who is connected, or whom trusted proxies name in its head.
    pub(super) fn of_request(&self, plan: &Plan, headers: &HeaderMap) -> Result<Self, Denied> {
        let naming = if self.may_name { plan.naming } else { Naming::Off };
        let client = plan.trusted.client(self.address, headers, naming);
        let address = client.map_err(|_| Denied::from(Reason::ForwardingInvalid))?;
        let proxy = if address == self.address { self.proxy } else { Some(self.address) };
        // Whom it speaks for where it names nobody, nobody can know.
        let is_spoken_for = naming != Naming::Off && plan.trusted.has(self.address);
        let certificate = self.certificate.clone().filter(|_| !is_spoken_for);
        Ok(Self { address, proxy, certificate, is_spoken_for, ..self.clone() })
    }

    /// Where client certificates are asked for, a request must be for the host that the handshake
    /// was for: what was judged for one name opens no other.
    pub(super) fn check_host(&self, host: &str) -> Result<(), Denied> {
        let Some(facts) = &self.tls else { return Ok(()) };
        let is_asked = facts.asked != ClientAuth::Off;
        match &facts.server_name {
            Some(name) if is_asked && !name.eq_ignore_ascii_case(host) => {
                Err(Reason::MisdirectedRequest.into())
            }
            _ => Ok(()),
        }
    }

    /// Whether it came by TLS without a certificate to where certificates are required by now: such a connection from
    /// before is good for no more, and the next one will be asked.
    pub(super) fn is_uncertified(&self, plan: &Plan) -> bool {
        let auth = plan.listeners.get(self.listener).map(|listener| listener.client_auth);
        let is_bare = self.tls.as_ref().is_some_and(|facts| facts.peer.is_none());
        auth == Some(ClientAuth::Required) && is_bare
    }

    pub(super) fn check_listener(&self, plan: &Plan) -> Result<(), Denied> {
        if self.is_uncertified(plan) { Err(Reason::MisdirectedRequest.into()) } else { Ok(()) }
    }

    /// Refuses a client without a certificate of its own, where the route asks for one. The connection
    /// is not asked again: TLS 1.3 has no renegotiation, and HTTP/2 forbids what took its place.
    pub(super) fn check_certificate(&self, is_needed: bool) -> Result<(), Denied> {
        if is_needed && self.certificate.is_none() {
            return Err(Reason::CertificateRequired.into());
        }
        Ok(())
    }
}

/// Lets a connection in by a listener for HTTPS: finds out whose it is, and shakes hands.
pub(super) async fn enter(
    worker: &Worker,
    mut stream: TcpStream,
    peer: SocketAddr,
    listener: usize,
) -> Option<(Visitor, Box<tls::TlsStream<TcpStream>>)> {
    let mut guest = greet(worker, &mut stream, peer, listener).await?;
    if !guest.visitor.take_place(worker) {
        return None;
    }
    handshake(worker, guest, stream, listener).await
}

/// A client that may speak TLS now, and its first bytes if they came with what a proxy said.
struct Guest {
    visitor: Visitor,
    early: Vec<u8>,
}

/// Finds out who has come in by a listener; refuses strangers and banned ones.
async fn greet(
    worker: &Worker,
    stream: &mut TcpStream,
    peer: SocketAddr,
    listener: usize,
) -> Option<Guest> {
    let plan = Arc::clone(&worker.view().plan);
    let mut guest = Guest { visitor: Visitor::new(peer), early: Vec::new() };
    guest.visitor.listener = listener;
    let listener = plan.listeners.get(listener);
    guest.visitor.port = listener.map_or(443, |listener| listener.port);
    if !listener.is_some_and(|listener| listener.proxy_protocol) {
        return Some(guest);
    }
    let visitor = &mut guest.visitor;
    if !plan.trusted.has(visitor.address) {
        worker.refuse_connection(visitor, Reason::ProxyUntrusted);
        return None;
    }
    let header = timeout(plan.bounds.handshake_timeout, introduction(stream)).await;
    let Ok(Some((header, early))) = header else {
        worker.counters.count(Reason::ProxyHeaderInvalid);
        if worker.complaints.may_log() {
            tracing::warn!(proxy = %visitor.address, "no PROXY header, or none that is one");
        }
        return None;
    };
    guest.early = early;
    visitor.may_name = header.client.is_some();
    if let Some(client) = header.client {
        visitor.proxy = Some(visitor.address);
        visitor.address = client.ip();
    }
    visitor.port = header.port.unwrap_or(visitor.port);
    if bear::is_banned(worker, visitor, &plan) {
        worker.counters.count(Reason::BannedConnection);
        return None;
    }
    Some(guest)
}

/// Reads what a proxy says of its client, and what came with it.
async fn introduction(stream: &mut TcpStream) -> Option<(proxy::Header, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(header) = proxy::read(&bytes).ok()? {
            let early = bytes.split_off(header.length);
            return Some((header, early));
        }
    }
}

/// Shakes hands with a guest, and notes what that told. A failure is counted, and what the client
/// said wrongly is held against it.
async fn handshake(
    worker: &Worker,
    guest: Guest,
    stream: TcpStream,
    listener: usize,
) -> Option<(Visitor, Box<tls::TlsStream<TcpStream>>)> {
    let plan = Arc::clone(&worker.view().plan);
    let Guest { mut visitor, early } = guest;
    let Some(handshake) = Handshake::begin(worker, &visitor, &plan) else {
        worker.counters.count(Reason::HandshakesFull);
        return None;
    };
    // A proxy shakes hands for many.
    if !plan.trusted.has(visitor.address) {
        let client = Source::from(visitor.address).client(plan.client);
        let limit = match worker.edge.identities.is_shared(&client, clock::recent_ns()) {
            true => &plan.shared.handshakes,
            false => &plan.handshakes,
        };
        if let Err(denied) = limit.admit_source(client, clock::now()) {
            if denied.reason == Reason::HandshakeRate {
                worker.refuse_connection(&visitor, denied.reason);
            } else {
                // Where many share what is left of a limit, it is the edge that has no room.
                worker.counters.count(Reason::HandshakesFull);
            }
            return None;
        }
    }
    let started = Instant::now();
    let auth = plan.listeners.get(listener).map_or_else(Default::default, |l| l.client_auth);
    let within = plan.bounds.handshake_timeout;
    let greeted = timeout(within, tls::greet(&plan.tls, auth, stream, early)).await;
    let shaken = match greeted {
        Ok(Ok(greeted)) => {
            let left = within.saturating_sub(started.elapsed());
            let Some(shaken) = worker.turnstile.shake(&plan, greeted, left).await else {
                // That took us too long, and not the client.
                worker.counters.count(Reason::HandshakesFull);
                return None;
            };
            shaken
        }
        Ok(Err(refusal)) => Ok(Err(refusal)),
        Err(late) => Err(late),
    };
    drop(handshake);
    let Refusal { failure, ja4 } = match shaken {
        Ok(Ok(None)) => {
            worker.counters.count(Reason::Handshake);
            return None;
        }
        Ok(Ok(Some((stream, facts)))) => {
            worker.counters.count(Reason::Handshake);
            worker.counters.handshake.observe(started.elapsed());
            if let Some(ja4) = facts.ja4 {
                worker.counters.fingerprints.count(ja4);
            }
            visitor.certificate = Client::of(&facts).map(Rc::new);
            visitor.tls = Some(Rc::new(facts));
            return Some((visitor, stream));
        }
        Ok(Err(refusal)) => refusal,
        Err(_) => Failure::Timeout.into(),
    };
    worker.counters.handshake_failures.count(failure);
    let reason = match failure {
        Failure::Timeout => Reason::HandshakeTimeout,
        Failure::FingerprintDenied => Reason::FingerprintDenied,
        _ => Reason::HandshakeFailed,
    };
    worker.counters.count(reason);
    let (source, kind) = (visitor.address, Some(failure.name()));
    let event = Event::ConnectionRefused { source, reason: reason.name(), kind, ja4 };
    if matches!(
        failure,
        Failure::CertificateMissing | Failure::CertificateRefused | Failure::RevocationUnknown
    ) {
        worker.edge.audit.tell(event.clone());
    }
    if failure.is_misdeed() {
        worker.edge.events.tell(event);
        worker.report_connection(&visitor, reason, ja4);
    }
    None
}

/// One of the handshakes that go on at once.
struct Handshake<'a> {
    metrics: &'a Metrics,
    /// Its place among those of its client.
    _place: Option<Place>,
}

impl<'a> Handshake<'a> {
    /// One more, if there is room for it and its client has not its part of that: who connects and says nothing would
    /// leave none to others. A proxy shakes hands for many.
    fn begin(worker: &'a Worker, visitor: &Visitor, plan: &Plan) -> Option<Self> {
        let (edge, bounds) = (&worker.edge, &plan.bounds);
        let place = if plan.trusted.has(visitor.address) {
            None
        } else {
            let client = Source::from(visitor.address).client(plan.client);
            Some(edge.shaking.enter(client, bounds.source_handshakes_max)?)
        };
        let before = edge.metrics.handshakes.fetch_add(1, Relaxed);
        let handshake = Self { metrics: &edge.metrics, _place: place };
        (before < bounds.handshakes_max).then_some(handshake)
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.metrics.handshakes.fetch_sub(1, Relaxed);
    }
}
