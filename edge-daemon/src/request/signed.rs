//! Signed requests: which key signed, whether the signature holds, and whether it comes for the first
//! time. What of it is decided lies in `edge_identity::signed`; the memory is `crate::replay`.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use edge_common::Reason;
use edge_identity::{
    credential::Shown,
    key::{self, Key, SecretCheck},
    signed::{self, Message},
};
use edge_policy::denied::Denied;
use tokio::time::timeout;

use super::{
    Plan, Worker,
    charge::{self, Claimed},
    identify::Asked,
    incoming::{Broken, Frame, Incoming},
};
use crate::clock;

/// The key that signed this request. Where the signature covers a digest of the body, the body is
/// made to break off before its end unless it has that digest.
///
/// Waits only for a body that is itself what is signed, no longer and for no more than is allowed.
pub(super) async fn prove(
    worker: &Worker,
    plan: &Plan,
    asked: Asked<'_>,
    shown: Option<Shown<'_>>,
    body: &mut Option<Incoming>,
) -> Result<Arc<Key>, Denied> {
    let has_body = body.as_ref().is_some_and(|body| !body.is_end_stream());
    let message = Message {
        method: &asked.head.method,
        host: asked.host,
        target: asked.target,
        headers: &asked.head.headers,
        has_body,
    };
    let claimed = signed::read(&message, &plan.signing.policy, clock::unix_ms() / 1000)?;
    let named = claimed.key_id().or(shown.as_ref().map(|shown| shown.key)).unwrap_or(NOBODY);
    let key = signer(worker, plan, claimed.key_id(), shown)?;
    let id = key.as_ref().map_or(NOBODY, |key| key.id().as_str());
    // What comes once the protocol is changed is no body.
    let whole = match body.as_mut().filter(|_| has_body && claimed.needs_body()) {
        Some(incoming) => {
            let _held = charge::claim(plan, asked.owed, Claimed::Named(named))?;
            let whole =
                gather(incoming, plan.signing.v0_body_max, plan.bounds.idle_timeout).await?;
            *incoming = Incoming::Whole(whole.clone());
            whole
        }
        None => Bytes::new(),
    };

    let (masters, now_ms) = (worker.edge.masters.load(), clock::unix_ms());
    let verifier = key.as_ref().and_then(|key| key.signing()?.verifier(&masters, id));
    // It takes as long to be the signature of nobody, or of a key that signs nothing, as to be a wrong one.
    let is_signer = verifier.is_some();
    let verifier = verifier.or_else(|| claimed.decoy(&masters, id));
    let proven = claimed.prove(&message, id, &verifier.ok_or(Reason::BadSignature)?, &whole)?;
    let Some(key) = key.filter(|_| is_signer) else { return Err(Reason::CredentialInvalid.into()) };
    key.check(now_ms, plan.key_rules.refuse_exposed)?;
    worker.edge.replays.admit(&proven.once, now_ms / 1000)?;
    key.touch(now_ms);
    if let Some(check) = proven.body {
        *body = body.take().map(|body| body.signed(check));
    }
    Ok(key)
}

/// The key that the signature or `X-API-Key` names, good or not; both must name the same one.
fn signer(
    worker: &Worker,
    plan: &Plan,
    id: Option<&str>,
    shown: Option<Shown<'_>>,
) -> Result<Option<Arc<Key>>, Reason> {
    let edge = &worker.edge;
    let by_id = |text: &str| text.parse().ok().and_then(|id| edge.keys.by_id(&id));
    let named = id.map(by_id);
    let shown_key = shown.map(|shown| {
        by_id(shown.key).or_else(|| {
            key::recognize(&edge.keys, &edge.peppers.load(), &plan.key_rules, shown.key)
        })
    });
    let key = match (named, shown_key) {
        (Some(Some(named)), Some(Some(shown))) if named.id() == shown.id() => Some(named),
        (Some(key), None) | (None, Some(key)) => key,
        (None, None) => return Err(Reason::BadSignature),
        (Some(_), Some(_)) => None,
    };
    // A second secret beside a signature is none that this key has.
    let secret = shown.and_then(|shown| shown.secret);
    Ok(key.filter(|key| key.check_secret(secret) == SecretCheck::Right))
}

/// All of a body.
async fn gather(body: &mut Incoming, most: u64, within: Duration) -> Result<Bytes, Reason> {
    let all = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
            match frame {
                Ok(Frame::Data(data)) => bytes.extend_from_slice(&data),
                Ok(Frame::Trailers(_)) => {}
                Err(Broken::Gone) => return Err(Reason::ClientGone),
                Err(_) => return Err(Reason::MalformedRequest),
            }
            if bytes.len() as u64 > most {
                return Err(Reason::BodyTooLarge);
            }
        }
        Ok(bytes.freeze())
    };
    timeout(within, all).await.unwrap_or(Err(Reason::RequestTimeout))
}

/// The id of no key.
const NOBODY: &str = "";
