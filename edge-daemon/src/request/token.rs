//! A token, proved: `Authorization: Bearer` and `Authorization: DPoP`.

use std::{cell::RefCell, io, sync::Arc};

use edge_common::Reason;
use edge_identity::{
    jwt::{
        Fault, Issuer, Presented, Unverified, Verified,
        cache::{Cache, Digest, Under},
        certificate_digest,
        dpop::{Expected, Nonces, Proof},
    },
    principal::{Named, Principal},
    signed::Once,
};
use edge_policy::{
    auth::{Challenge, Methods, PresentedToken, TokenError, TokenScheme},
    denied::Denied,
    route::{Access, Route},
};
use http::{HeaderMap, HeaderName, header};
use zeroize::Zeroizing;

use super::{Plan, Worker, front::Visitor, identify::Asked};
use crate::{clock, config::settings, issuers::Feed, replay::LEEWAY_S_MAX};

/// A token that was verified, and whom it names.
pub(super) struct Known {
    verified: Verified,
    named: Arc<Named>,
}

/// A token that was let in, the place of its issuer, and how it was presented.
pub(crate) struct Admitted(usize, Arc<Known>, TokenScheme);

impl Admitted {
    /// The scheme that it came under.
    pub(super) const fn scheme(&self) -> TokenScheme {
        self.2
    }

    /// Whether it still is good.
    pub(super) fn check(&self, worker: &Worker, plan: &Plan, now_ms: u64) -> Result<(), Reason> {
        let (terms, _) = plan.issuers.all.get(self.0).ok_or(Reason::InternalError)?;
        let denylist = &worker.edge.denylist;
        terms.check_again(&self.1.verified, denylist, now_ms).map_err(Fault::reason)
    }
}

/// The tokens that one worker has verified.
pub(super) type Tokens = RefCell<Cache<Known>>;

/// Proves a token. May wait, bounded, for its issuer's keys.
///
/// # Errors
/// The refusal, with the challenge that goes with it.
pub(super) async fn prove(
    worker: &Worker,
    plan: &Plan,
    route: &Route,
    asked: Asked<'_>,
) -> Result<(Arc<Named>, Admitted), Denied> {
    let methods = route.access.methods();
    let (scheme, text) = present(&asked.head.headers)
        .map_err(|reason| refusal(reason, None, (TokenScheme::Bearer, None), methods))?;
    let proved = match verify(worker, plan, text).await {
        Ok((issuer, known)) => {
            let terms = &plan.issuers.all[issuer].0;
            let admitted = admit(worker, plan, terms, &known, (scheme, text), (route, asked));
            admitted.map(|()| Admitted(issuer, known, scheme))
        }
        Err(stop) => Err(stop),
    };
    match proved {
        Ok(admitted) => Ok((Arc::clone(&admitted.1.named), admitted)),
        Err(Stop::Fault(fault)) => {
            if is_final(fault) {
                forget(worker, text);
            }
            worker.counters.token_faults.count(fault);
            let nonces = &plan.proof_nonces;
            let nonce = (fault == Fault::ProofNonce).then(|| nonces.current(clock::unix_ms()));
            Err(refusal(fault.reason(), Some(fault), (scheme, nonce), methods))
        }
        Err(Stop::Reason(reason)) => Err(reason.into()),
    }
}

/// Why a token is not proved.
enum Stop {
    /// The token's fault, or its sender's.
    Fault(Fault),
    /// Nobody's who sent it.
    Reason(Reason),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The one token that a request presents, and under which scheme.
fn present(headers: &HeaderMap) -> Result<(TokenScheme, &str), Reason> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Reason::CredentialInvalid);
    };
    let text = value.to_str().map_err(|_| Reason::CredentialInvalid)?.trim();
    let (scheme, token) = text.split_once(' ').ok_or(Reason::CredentialInvalid)?;
    let scheme = match scheme {
        s if s.eq_ignore_ascii_case("Bearer") => TokenScheme::Bearer,
        s if s.eq_ignore_ascii_case("DPoP") => TokenScheme::Dpop,
        _ => return Err(Reason::CredentialInvalid),
    };
    Ok((scheme, token.trim_start_matches(' ')))
}

/// What is true of a token whenever it comes: from the cache, or from its signature.
async fn verify(worker: &Worker, plan: &Plan, text: &str) -> Result<(usize, Arc<Known>), Stop> {
    if text.len() > plan.tokens.bytes_max {
        return Err(Fault::Size.into());
    }
    let now_ms = clock::unix_ms();
    let digest = worker.tokens.borrow().digest(text);
    let found = worker.tokens.borrow_mut().find(digest, now_ms, |under| plan.issuers.holds(under));
    if let Some(found) = found {
        return Ok(found);
    }
    let token = Unverified::parse(text, plan.tokens.bytes_max)?;
    let issuer = plan.issuers.find(token.issuer()).ok_or(Fault::Issuer)?;
    let (terms, feed) = &plan.issuers.all[issuer];
    let (verified, keys) = with_keys(terms, feed, token).await?;
    // What is no good whatever it comes with is refused as soon as what is wrongly signed, and not kept.
    terms.check_again(&verified, &worker.edge.denylist, clock::unix_ms())?;
    let named = Arc::new(verified.named(terms));
    let known = Arc::new(Known { verified, named });
    remember(worker, plan, digest, (issuer, keys), &known, text.len());
    Ok((issuer, known))
}

/// Verifies with the keys there are; where they do not know the token's, with newer ones, once.
async fn with_keys(
    terms: &Issuer,
    feed: &Feed,
    token: Unverified<'_>,
) -> Result<(Verified, u64), Stop> {
    let mut keys = feed.keys();
    let lacks = match &keys {
        Some(keys) => terms.lacks_key(&token, &keys.set)?,
        None => true,
    };
    let mut are_all = true;
    if lacks {
        are_all = feed.refresh(keys.as_ref().map(|keys| keys.number)).await;
        keys = feed.keys();
    }
    let keys = keys.ok_or(Stop::Reason(Reason::IssuerUnavailable))?;
    match terms.verify(token, &keys.set) {
        // The issuer may have turned its keys: that is not its clients' fault.
        Err(Fault::Key) if !are_all => Err(Fault::KeyUnasked.into()),
        verified => Ok((verified?, keys.number)),
    }
}

fn remember(
    worker: &Worker,
    plan: &Plan,
    digest: Digest,
    (issuer, keys): (usize, u64),
    known: &Arc<Known>,
    bytes: usize,
) {
    let under = Under { policy: plan.issuers.number, issuer, keys };
    let for_ms = u64::try_from(plan.tokens.cache_time.as_millis()).unwrap_or(u64::MAX);
    let until_ms = clock::unix_ms().saturating_add(for_ms).min(known.verified.claims.expires_ms);
    worker.tokens.borrow_mut().put(digest, under, Arc::clone(known), bytes, until_ms);
}

/// Whether a token that was verified is no good whatever request it comes with.
const fn is_final(fault: Fault) -> bool {
    matches!(fault, Fault::Expired | Fault::NotYet | Fault::Lifetime | Fault::Revoked)
}

/// Has a token verified again when it comes again: answered from the cache, it would be refused sooner
/// than one that is wrongly signed.
fn forget(worker: &Worker, text: &str) {
    let mut tokens = worker.tokens.borrow_mut();
    let digest = tokens.digest(text);
    tokens.forget(digest);
}

/// What depends on the moment and the request: everything that no cache may answer.
fn admit(
    worker: &Worker,
    plan: &Plan,
    terms: &Issuer,
    known: &Known,
    (scheme, text): (TokenScheme, &str),
    (route, asked): (&Route, Asked<'_>),
) -> Result<(), Stop> {
    let now_ms = clock::unix_ms();
    let proof = match scheme {
        TokenScheme::Bearer => None,
        TokenScheme::Dpop => Some(proof(plan, terms, text, asked, now_ms)),
    };
    let certificate = certificate(&known.verified, asked.visitor);
    let audience = match &route.access {
        Access::Anyone => &[][..],
        Access::Needs(needed) => &needed.audience,
    };
    // A token that is no good by itself is refused as such, whatever its proof is.
    let shown = proof.as_ref().and_then(|proof| proof.as_ref().ok()).map(|proof| &proof.key);
    let judged = terms.admit(
        &known.verified,
        &Presented {
            now_ms,
            denylist: &worker.edge.denylist,
            audience,
            proof_key: shown,
            certificate: certificate.as_ref(),
        },
    );
    match (judged, proof) {
        // It was not the token that lacked something, but its proof.
        (Ok(()) | Err(Fault::Sender), Some(Err(fault))) | (Err(fault), _) => Err(fault.into()),
        // Whether it was revoked nobody knows; that is not its sender's fault.
        (Ok(()), _) if worker.edge.denylist.is_lost() => {
            Err(Stop::Reason(Reason::IssuerUnavailable))
        }
        (Ok(()), Some(Ok(proof))) => admit_proof(worker, plan, (known, &proof), now_ms),
        (Ok(()), None) => Ok(()),
    }
}

/// The proof that goes with a token (RFC 9449, 4.3): one header, and good for this request.
fn proof(
    plan: &Plan,
    terms: &Issuer,
    token: &str,
    asked: Asked<'_>,
    now_ms: u64,
) -> Result<Proof, Fault> {
    let mut values = asked.head.headers.get_all(&DPOP).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Fault::Proof) };
    let text = value.to_str().map_err(|_| Fault::Proof)?;
    let port = asked.host.port.filter(|port| *port != 443);
    let authority =
        port.map_or_else(|| asked.host.name.clone(), |p| format!("{}:{p}", asked.host.name));
    Proof::check(
        text,
        &Expected {
            method: asked.head.method.as_str(),
            authority: &authority,
            path: &asked.target.path,
            token,
            now_ms,
            age_max_ms: u64::try_from(plan.tokens.proof_age.as_millis()).unwrap_or(u64::MAX),
            leeway_ms: terms.leeway_ms.min(LEEWAY_S_MAX * 1000),
            nonces: plan.tokens.proof_nonces.map(|_| &*plan.proof_nonces),
        },
    )
}

/// The digest of the connection's client certificate, if the token is bound to one.
fn certificate(token: &Verified, visitor: &Visitor) -> Option<[u8; 32]> {
    token.claims.confirmation.as_ref()?.certificate?;
    visitor.certificate.as_ref()?;
    let peer = visitor.tls.as_ref()?.peer.as_ref()?;
    Some(certificate_digest(peer.chain.first()?))
}

const DPOP: HeaderName = HeaderName::from_static("dpop");

/// Lets a proof pass once.
fn admit_proof(
    worker: &Worker,
    plan: &Plan,
    (known, proof): (&Known, &Proof),
    now_ms: u64,
) -> Result<(), Stop> {
    let by = Principal::Named(Arc::clone(&known.named)).identity().into_owned();
    let issued_s = proof.issued_ms / 1000;
    let until_s = issued_s + plan.tokens.proof_age.as_secs();
    let once = Once::proof(by, &proof.id, issued_s, until_s);
    worker.edge.replays.admit(&once, now_ms / 1000).map_err(|reason| match reason {
        Reason::Replayed => Fault::ProofReplayed.into(),
        reason => Stop::Reason(reason),
    })
}

/// The nonces that proofs must carry, if they must.
///
/// # Errors
/// If there is no randomness.
pub fn nonces(settings: &settings::Tokens) -> io::Result<Nonces> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(io::Error::other)?;
    let period = settings.proof_nonces.unwrap_or(settings.proof_age).max(MILLISECOND);
    Ok(Nonces::new(secret, u64::try_from(period.as_millis()).unwrap_or(u64::MAX)))
}

/// What the client learns: that the token or the proof is no good, and nothing of why (RFC 6750,
/// 3.1; RFC 9449, 7.1). For a token that is meant for others there is nothing to ask for.
fn refusal(
    reason: Reason,
    fault: Option<Fault>,
    (scheme, nonce): (TokenScheme, Option<String>),
    methods: Methods,
) -> Denied {
    let token = PresentedToken { scheme, nonce, fault: fault.map(Fault::name) };
    let error = match fault {
        Some(Fault::ProofNonce) => TokenError::UseNonce,
        Some(Fault::Proof | Fault::ProofReplayed) => TokenError::InvalidProof,
        _ => TokenError::InvalidToken,
    };
    let methods = if fault == Some(Fault::Audience) { Methods::NONE } else { methods };
    let token = Some(Box::new(token));
    let challenge = Challenge { error: Some(error), token, ..Challenge::of(methods) };
    Denied { challenge, ..Denied::new(reason) }
}

/// An empty cache for one worker.
///
/// # Errors
/// If there is no randomness.
pub(super) fn tokens(settings: &settings::Tokens) -> io::Result<Tokens> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret).map_err(io::Error::other)?;
    Ok(RefCell::new(Cache::new(secret, settings.cache_bytes)))
}

const MILLISECOND: std::time::Duration = std::time::Duration::from_millis(1);
