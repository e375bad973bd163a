//! API keys as requests show them: proved, or flagged where others could read them.

use std::sync::Arc;

use edge_common::{Reason, Source};
use edge_identity::{
    credential::{self, Shown},
    key::{self, Key, Leak, Mark, Proof, SecretCheck},
};
use edge_policy::{denied::Denied, target::Target};
use http::HeaderMap;

use super::{
    Plan, Worker,
    charge::{self, Claimed},
    front::Visitor,
};
use crate::{clock, config::settings::HashPolicy, keys::Order};

/// The key that a request shows, if it is good and its secret with it.
///
/// Waits only for a secret that somebody chose, until its slow hash was found to be right once. Where the request is
/// still `owed` to a source, that is charged for it.
pub(super) async fn prove(
    worker: &Worker,
    plan: &Plan,
    shown: Shown<'_>,
    owed: Option<Source>,
) -> Result<Arc<Key>, Denied> {
    let (edge, rules) = (&worker.edge, &plan.key_rules);
    let now_ms = clock::unix_ms();
    let proof = key::prove(&edge.keys, &edge.peppers.load(), rules, shown.key, now_ms);
    let Proof { key, renewed } = proof?;
    if key.signing().is_some() {
        return Err(Reason::BadSignature.into());
    }
    match (key.check_secret(shown.secret), shown.secret) {
        (SecretCheck::Right, _) => {}
        (SecretCheck::Ask(_), Some(secret)) => {
            let _held = charge::claim(plan, owed, Claimed::Shown(key.id().as_str()))?;
            let is_right = Box::pin(edge.slow.ask(&key, secret)).await;
            if !is_right.ok_or(Reason::Overload)? {
                return Err(Reason::CredentialInvalid.into());
            }
            // It may have been revoked meanwhile, or have got another object that was.
            let newest = edge.keys.by_id(key.id()).ok_or(Reason::CredentialInvalid)?;
            newest.check(clock::unix_ms(), rules.refuse_exposed)?;
        }
        _ => return Err(Reason::CredentialInvalid.into()),
    }
    key.touch(now_ms);
    if plan.keys.hash == HashPolicy::KeyedAndArgon2id {
        edge.slow.check(&key, shown.key);
    }
    if let Some(digest) = renewed
        && key.mark(Mark::Renewing)
        && !edge.key_orders.give(Order::Renew(Arc::clone(&key), digest))
    {
        key.unmark(Mark::Renewing);
    }
    Ok(key)
}

/// Flags the keys in a request's target, where logs and caches see them.
pub(super) fn flag_in_target(worker: &Worker, visitor: &Visitor, plan: &Plan, target: &Target) {
    for text in credential::keys_in_target(&target.path, target.query.as_deref()) {
        flag(worker, visitor, plan, &text, Leak::Url);
    }
}

/// Refuses a credential in the headers of plain HTTP, where everyone on the way can read it, and flags
/// the keys among them. A redirect would have the client send it again, and nobody would notice.
pub(super) fn refuse_in_clear(
    worker: &Worker,
    visitor: &Visitor,
    plan: &Plan,
    headers: &HeaderMap,
) -> Result<(), Denied> {
    if !credential::is_any(headers) {
        return Ok(());
    }
    for text in credential::keys_in_headers(headers) {
        flag(worker, visitor, plan, text, Leak::Clear);
    }
    Err(Reason::CredentialInClear.into())
}

/// Marks the key that this text is, if it is one, and has that told and kept the first time.
fn flag(worker: &Worker, visitor: &Visitor, plan: &Plan, text: &str, leak: Leak) {
    let edge = &worker.edge;
    let found = key::recognize(&edge.keys, &edge.peppers.load(), &plan.key_rules, text);
    let Some(key) = found.filter(|key| key.mark(Mark::Exposed)) else { return };
    let order = Order::Exposed { key: Arc::clone(&key), leak, source: visitor.address };
    if !edge.key_orders.give(order) {
        key.unmark(Mark::Exposed);
    }
}
