//! What a request has to bear by the verdicts in force: to wait, to come back later, or not at all.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use edge_common::{Blame, Reason, Source};
use edge_identity::principal::Principal;
use edge_policy::{
    denied::Denied,
    place::Place,
    verdict::{Culprit, Step},
};
use ipnet::IpNet;

use super::{Plan, Worker, front::Visitor, report::word};
use crate::{
    clock,
    penalties::{Penalties, Penalty},
};

/// How verdicts are borne.
pub struct Terms {
    /// How long a request waits on the rung "delay".
    pub delay: Duration,
    /// Networks that nothing is done against.
    pub never_ban: Vec<IpNet>,
    /// For how long it counts that an identity succeeded from a source.
    pub shared_within: Duration,
}

/// Whether what comes by this client's TLS library is refused unless it proves who it is.
pub(super) fn is_refused_unproven(worker: &Worker, visitor: &Visitor, client: Source) -> bool {
    let of = |ja4| worker.edge.penalties.of(&Culprit::Fingerprint(client, ja4), clock::recent_ns());
    visitor.ja4().and_then(of).is_some_and(|own| own.step >= Step::Throttle)
}

/// Whether a client whose packets the kernel cannot tell from those of its proxy is banned, or denied by
/// a list.
pub(super) fn is_banned(worker: &Worker, visitor: &Visitor, plan: &Plan) -> bool {
    if visitor.proxy.is_none() {
        return false;
    }
    let client = Source::from(visitor.address).client(plan.client);
    let own = worker.edge.penalties.of(&Culprit::Source(client), clock::boot_ns());
    let is_banned = own.is_some_and(|own| own.step == Step::Ban);
    is_banned && !is_spared(worker, visitor, plan) || is_denied(worker, visitor)
}

/// Whether the lists deny a client that only its proxy's word is known of.
fn is_denied(worker: &Worker, visitor: &Visitor) -> bool {
    worker.edge.listed.load().denies(visitor.address, clock::boot_ns())
}

/// By the verdict against all that comes from the client's address. Of a ban the kernel sees to it,
/// unless it cannot tell the client from its proxy.
pub(super) async fn source(worker: &Worker, visitor: &Visitor, plan: &Plan) -> Result<(), Denied> {
    if visitor.proxy.is_some() && is_denied(worker, visitor) {
        return Err(Reason::BannedRequest.into());
    }
    let client = Source::from(visitor.address).client(plan.client);
    let own = worker.edge.penalties.of(&Culprit::Source(client), clock::recent_ns());
    let is_borne = |own: &Penalty| {
        (own.step < Step::Ban || visitor.proxy.is_some()) && !is_spared(worker, visitor, plan)
    };
    bear(own.filter(is_borne), plan).await.map(drop)
}

/// By the verdict against what other sites' pages have browsers at the client's address ask for.
pub(super) async fn led(
    worker: &Worker,
    visitor: &Visitor,
    plan: &Plan,
    is_led: bool,
) -> Result<(), Denied> {
    if !is_led {
        return Ok(());
    }
    let client = Source::from(visitor.address).client(plan.client);
    let (penalties, now_ns) = (&worker.edge.penalties, clock::boot_ns());
    let of = |ja4| penalties.of(&Culprit::Led(client, ja4), now_ns);
    let own = visitor.ja4().and_then(|ja4| of(Some(ja4))).into_iter().chain(of(None));
    let own = own.max_by_key(|penalty| penalty.step).filter(|_| !is_spared(worker, visitor, plan));
    bear(own, plan).await.map(drop)
}

/// By the verdict against who it proved to be, and whether that took time; who did not is judged by its address and its TLS
/// library, which good neighbours behind the same address may share, and by where it is from: they
/// prove who they are.
pub(super) async fn sender(
    worker: &Worker,
    visitor: &Visitor,
    plan: &Plan,
    principal: Option<&Principal>,
) -> Result<bool, Denied> {
    let penalties = &worker.edge.penalties;
    let penalty = match (principal, visitor.ja4()) {
        (Some(who), _) => {
            // Mostly there is none, and no word to be made.
            static ANYBODY: LazyLock<Culprit> = LazyLock::new(|| Culprit::Principal("".into()));
            let look = penalties.has_any_like(&ANYBODY);
            look.then(|| penalties.of(&Culprit::Principal(word(who)), clock::boot_ns())).flatten()
        }
        (None, ja4) => {
            let now_ns = clock::boot_ns();
            let client = Source::from(visitor.address).client(plan.client);
            let own = ja4.and_then(|ja4| penalties.of(&Culprit::Fingerprint(client, ja4), now_ns));
            let all = own.into_iter().chain(of_places(penalties, visitor, plan, now_ns));
            all.max_by_key(|penalty| penalty.step)
        }
    };
    bear(penalty.filter(|_| !is_spared(worker, visitor, plan)), plan).await
}

/// Whether nothing is done against a client's own address, whatever it did itself, by any name, or others of
/// its prefix or of where it is from.
fn is_spared(worker: &Worker, visitor: &Visitor, plan: &Plan) -> bool {
    plan.terms.never_ban.iter().any(|net| net.contains(&visitor.address))
        || worker.edge.listed.load().allows(visitor.address, clock::boot_ns())
}

/// The penalties of where a client is from.
fn of_places<'a>(
    penalties: &'a Penalties,
    visitor: &'a Visitor,
    plan: &'a Plan,
    now_ns: u64,
) -> impl Iterator<Item = Penalty> + 'a {
    let any = Place::ALL.into_iter();
    let any = any.filter(|place| penalties.has_any_like(&Culprit::Place(*place, 0)));
    let penalty = move |place| {
        let culprit = Culprit::Place(place, plan.geo.find(place, visitor.address)?);
        penalties.of(&culprit, now_ns)
    };
    any.filter_map(penalty)
}

/// By the verdicts against logins to an account, and by one TLS library. Who has logged in by this name (its
/// mark) from this address with this library before need not wait for those who guess from elsewhere:
/// guesses from here are held against the two.
pub(super) async fn login(
    worker: &Worker,
    visitor: &Visitor,
    plan: &Plan,
    (account, name): (&Arc<str>, u64),
) -> Result<(), Denied> {
    let (penalties, identities) = (&worker.edge.penalties, &worker.edge.identities);
    let client = Source::from(visitor.address).client(plan.client);
    let is_known = visitor.ja4().is_some_and(|ja4| identities.knows((client, ja4), name));
    let is_borne = |own: &Penalty| {
        (!is_known || own.step >= Step::Refuse) && !is_spared(worker, visitor, plan)
    };
    let account = Some(Culprit::Account(Arc::clone(account)));
    for culprit in account.into_iter().chain(visitor.own_ja4().map(Culprit::Ja4)) {
        let own = penalties.of(&culprit, clock::boot_ns());
        bear(own.filter(is_borne), plan).await?;
    }
    Ok(())
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

/// Whether it was a delay.
async fn bear(penalty: Option<Penalty>, plan: &Plan) -> Result<bool, Denied> {
    let Some(Penalty { step, until_ns }) = penalty else { return Ok(false) };
    match step {
        Step::Observe => Ok(false),
        Step::Delay => {
            tokio::time::sleep(plan.terms.delay).await;
            Ok(true)
        }
        Step::Throttle => {
            let wait_ns = Some(until_ns.saturating_sub(clock::boot_ns()));
            Err(Denied { wait_ns, ..Denied::new(Reason::Throttled) })
        }
        Step::Refuse | Step::Ban => Err(Reason::BannedRequest.into()),
    }
}
