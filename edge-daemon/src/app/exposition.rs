//! What is told on the metrics listener.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use tokio::sync::oneshot;

use super::operator::send;
use crate::{
    clock,
    metrics::{KernelView, Lost, fleet, outside, policy, upstreams},
    request::Edge,
    scrape, stderr,
    verdict::Order,
};

/// The page at a path; `None`: there is none.
pub(super) async fn page(edge: Arc<Edge>, path: String) -> Option<String> {
    if path == scrape::KEYS {
        let plan = edge.plan.load();
        return plan.signer.as_ref().map(|signer| signer.key_set(clock::unix_ms()).to_string());
    }
    let (answer, answered) = oneshot::channel();
    let view: Option<KernelView> = match send(&edge.orders, Order::View(answer)).await {
        Ok(()) => answered.await.ok(),
        Err(_) => None,
    };
    let (used, capacity) = edge.replays.usage();
    edge.metrics.nonces[0].store(used, Relaxed);
    edge.metrics.nonces[1].store(capacity, Relaxed);
    let (plan, feeds) = (edge.plan.load(), edge.feeds.in_use());
    let mut families = upstreams::families(&plan.upstreams);
    families.push(policy::family_of(&plan));
    families.extend(outside::families(&edge.outside.show()));
    families.extend(outside::webhooks(&edge.outside.webhooks()));
    families.extend(fleet::families(&edge.outside, &plan.limits));
    let lost = Lost {
        events: edge.events.lost(),
        log: stderr::lost(),
        signals: edge.signals.lost(),
        identities: edge.identities.evicted(),
    };
    let shared = &plan.shared;
    let rules = [&plan.limits, &plan.handshakes, &shared.requests, &shared.handshakes];
    Some(edge.metrics.expose(view.as_ref(), &rules, &feeds, &lost, families))
}
