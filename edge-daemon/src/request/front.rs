//! What comes before the first request: who is connected, and the TLS handshake.

use std::{net::IpAddr, rc::Rc, time::Instant};

use edge_common::Reason;
use tokio::{net::TcpStream, time::timeout};

use super::{Worker, watch::Progress};
use crate::tls::{self, Facts, Failure};

/// The client of one connection.
#[derive(Clone)]
pub(crate) struct Visitor {
    /// Its address as proven, IPv4 never in IPv6's clothes.
    pub(crate) address: IpAddr,
    /// What the TLS handshake told; `None` on plain HTTP.
    pub(crate) tls: Option<Rc<Facts>>,
    pub(crate) progress: Rc<Progress>,
}

impl Visitor {
    /// Whether HTTP/2 was agreed on.
    pub(crate) fn speaks_h2(&self) -> bool {
        self.tls.as_ref().is_some_and(|facts| facts.alpn == Some("h2"))
    }
}

/// Shakes hands with a visitor, and notes what that told. A failure is counted, and what the client
/// said wrongly is held against it.
pub(super) async fn handshake(
    worker: &Worker,
    visitor: &mut Visitor,
    stream: TcpStream,
) -> Option<tls::TlsStream<TcpStream>> {
    let plan = std::sync::Arc::clone(&worker.view().plan);
    let started = Instant::now();
    let shaken = tls::accept(plan.tls.clone(), stream);
    let failure = match timeout(plan.bounds.handshake_timeout, shaken).await {
        Ok(Ok((stream, facts))) => {
            worker.counters.count(Reason::Handshake);
            worker.counters.handshake.observe(started.elapsed());
            visitor.tls = Some(Rc::new(facts));
            return Some(stream);
        }
        Ok(Err(failure)) => failure,
        Err(_) => Failure::Timeout,
    };
    worker.counters.handshake_failures.count(failure);
    let reason = match failure {
        Failure::Timeout => Reason::HandshakeTimeout,
        _ => Reason::HandshakeFailed,
    };
    if failure.is_misdeed() {
        worker.refuse_connection(visitor.address, reason);
    } else {
        worker.counters.count(reason);
    }
    None
}
