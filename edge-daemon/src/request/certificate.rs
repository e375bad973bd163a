//! Whom the client certificate of a connection stands for, and when it no longer does.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
    time::Duration,
};

use edge_identity::{
    certificate::{self, Certificate},
    principal::Named,
};

use tokio::time::timeout;

use super::{Plan, Worker, front::Visitor};
use crate::{clock, tls::Facts};

/// A connection's certificate: what it says, and whom that stood for when it was last asked.
pub(crate) struct Client {
    said: Certificate,
    known: RefCell<Option<Known>>,
}

/// Whom it stood for, and under which plan.
struct Known {
    under: Weak<Plan>,
    named: Option<Arc<Named>>,
}

impl Client {
    /// What a handshake told of the client's certificate, if it gave one and it can be read.
    pub(super) fn of(facts: &Facts) -> Option<Self> {
        let peer = facts.peer.as_ref()?;
        let said = Certificate::read(peer.chain.first()?, peer.spki_sha256)?;
        Some(Self { said, known: RefCell::default() })
    }

    /// Whom it stands for by the mappings of a plan; the same principal as long as the plan is.
    pub(super) fn principal(&self, plan: &Arc<Plan>) -> Option<Arc<Named>> {
        let mut known = self.known.borrow_mut();
        match &*known {
            Some(Known { under, named }) if under.as_ptr() == Arc::as_ptr(plan) => named.clone(),
            _ => {
                let named = certificate::principal(&plan.certificates, &self.said);
                *known = Some(Known { under: Arc::downgrade(plan), named: named.clone() });
                named
            }
        }
    }
}

/// Returns when a connection's certificate is no longer good, by its time or by what is trusted, or
/// stands for somebody else than when the connection began; never for one without a certificate.
pub(super) async fn disowned(worker: &Worker, visitor: &Visitor) {
    let Some(peer) = visitor.tls.as_ref().and_then(|facts| facts.peer.as_ref()) else {
        return std::future::pending().await;
    };
    let mut changed = worker.edge.changed.subscribe();
    let of_now = || {
        let plan = worker.edge.plan.load_full();
        let named = visitor.certificate.as_ref().and_then(|client| client.principal(&plan));
        plan.tls.still_trusts_chain(&peer.chain).then_some(named)
    };
    let ends: Vec<_> = peer.chain.iter().filter_map(|der| certificate::ends_ms(der)).collect();
    let Some(first) = of_now() else { return };
    loop {
        let now_ms = clock::unix_ms();
        let next = ends.iter().filter(|end| **end > now_ms).min();
        let left = next.map_or(LOOK_EVERY, |end| Duration::from_millis(end - now_ms));
        // The clock of the wall may be set, and sleep goes by another.
        match timeout(left.min(LOOK_EVERY), changed.changed()).await {
            Ok(Err(_)) => return std::future::pending().await,
            Ok(Ok(())) | Err(_) if of_now().as_ref() != Some(&first) => return,
            Ok(Ok(())) | Err(_) => {}
        }
    }
}

/// How often it is looked at which certificates have ended, at least.
const LOOK_EVERY: Duration = Duration::from_secs(60);
