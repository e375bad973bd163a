//! What a request has to bear by the verdicts in force: to wait, to come back later, or not at all.

use std::sync::Arc;

use edge_common::{Blame, Reason, Source};
use edge_identity::principal::Principal;
use edge_policy::{
    denied::Denied,
    verdict::{Culprit, Step},
};

use super::{Plan, Worker, front::Visitor, report::word};
use crate::{clock, penalties::Penalty};

/// Whether a client whose packets the kernel cannot tell from those of its proxy is banned, or denied by
/// a list.
pub(super) fn is_banned(worker: &Worker, visitor: &Visitor, plan: &Plan) -> bool {
    let client = Source::from(visitor.address).client(plan.client);
    let own = worker.edge.penalties.of(&Culprit::Source(client), clock::boot_ns());
    let is_banned = own.is_some_and(|own| own.step == Step::Ban);
    visitor.proxy.is_some() && (is_banned || is_denied(worker, visitor))
}

/// Whether the lists deny a client that only its proxy's word is known of.
fn is_denied(worker: &Worker, visitor: &Visitor) -> bool {
    let listed = worker.edge.listed.load();
    listed.as_ref().is_some_and(|listed| listed.denies(visitor.address, clock::boot_ns()))
}

/// By the verdict against all that comes from the client's address. Of a ban the kernel sees to it,
/// unless it cannot tell the client from its proxy.
pub(super) async fn source(worker: &Worker, visitor: &Visitor, plan: &Plan) -> Result<(), Denied> {
    if visitor.proxy.is_some() && is_denied(worker, visitor) {
        return Err(Reason::BannedRequest.into());
    }
    let client = Source::from(visitor.address).client(plan.client);
    let own = worker.edge.penalties.of(&Culprit::Source(client), clock::recent_ns());
    bear(own.filter(|own| own.step < Step::Ban || visitor.proxy.is_some()), plan).await
}

/// By the verdict against who it proved to be; who did not is judged by its address and its TLS
/// library, which good neighbours behind the same address may share: they prove who they are.
pub(super) async fn sender(
    worker: &Worker,
    visitor: &Visitor,
    plan: &Plan,
    principal: Option<&Principal>,
) -> Result<(), Denied> {
    let penalties = &worker.edge.penalties;
    let now_ns = clock::boot_ns();
    let penalty = match (principal, visitor.ja4()) {
        (Some(who), _) => {
            let any = Culprit::Principal("".into());
            let look = penalties.has_any_like(&any);
            look.then(|| penalties.of(&Culprit::Principal(word(who)), now_ns)).flatten()
        }
        (None, Some(ja4)) => {
            let client = Source::from(visitor.address).client(plan.client);
            penalties.of(&Culprit::Fingerprint(client, ja4), now_ns)
        }
        (None, None) => None,
    };
    bear(penalty, plan).await
}

/// By the verdict against logins to an account, or by one TLS library.
pub(super) async fn login(worker: &Worker, plan: &Plan, culprit: &Culprit) -> Result<(), Denied> {
    bear(worker.edge.penalties.of(culprit, clock::boot_ns()), plan).await
}

/// The refusal of a request that proved nothing: where its (source, JA4) is under a verdict, that one,
/// so that nobody goes on guessing under it.
pub(super) async fn refused(worker: &Worker, visitor: &Visitor, denied: Denied) -> Denied {
    let is_borne = matches!(denied.reason, Reason::BannedRequest | Reason::Throttled);
    if is_borne || denied.reason.blame() != Blame::Client {
        return denied;
    }
    let plan = Arc::clone(&worker.view().plan);
    sender(worker, visitor, &plan, None).await.err().unwrap_or(denied)
}

async fn bear(penalty: Option<Penalty>, plan: &Plan) -> Result<(), Denied> {
    let Some(Penalty { step, until_ns }) = penalty else { return Ok(()) };
    match step {
        Step::Observe => Ok(()),
        Step::Delay => {
            tokio::time::sleep(plan.delay).await;
            Ok(())
        }
        Step::Throttle => {
            let wait_ns = Some(until_ns.saturating_sub(clock::boot_ns()));
            Err(Denied { wait_ns, ..Denied::new(Reason::Throttled) })
        }
        Step::Refuse | Step::Ban => Err(Reason::BannedRequest.into()),
    }
}
