//! What is asked of one issuer's tokens, and the judgement of a token by it, in the order of the
//! token validation flow: format, signature, times, denylist, sender, audience.

use std::borrow::Cow;

use super::claims::Claims;
use super::denylist::Denylist;
use super::jwks::KeySet;
use super::jws::Jws;
use super::{Algorithm, Fault};
use crate::principal::{Claim, Method, Named};

/// An issuer whose tokens are taken, and on which terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What the operator calls it.
    pub name: String,
    /// `iss`, compared byte by byte.
    pub issuer: String,
    /// `aud`: a token must be meant for one of these.
    pub audience: Vec<String>,
    /// The algorithms that are taken.
    pub algorithms: Vec<Algorithm>,
    /// What its tokens look like.
    pub profile: Profile,
    /// By how much clocks may differ, in milliseconds.
    pub leeway_ms: u64,
    /// For how long a token may be good, in milliseconds.
    pub lifetime_max_ms: u64,
    /// Claims that name scopes: the first that is there counts.
    pub scope_claims: Vec<String>,
    /// The claim that names roles.
    pub roles_claim: Option<String>,
    /// The claim that names the tier.
    pub tier_claim: Option<String>,
}

/// What an issuer's tokens look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// RFC 9068: `typ` is `at+jwt`; `sub`, `client_id`, `iat` and `jti` are there.
    AccessToken,
    /// Older issuers: no `typ`, `JWT` or `at+jwt`. Tokens with other types are for other things.
    Plain,
}

/// A token whose form is sound. Nothing of it is proven yet.
#[derive(Debug)]
pub struct Unverified<'t> {
    jws: Jws<'t>,
    claims: Claims,
}

/// A token that its issuer signed. What depends on the moment and on the request is checked by
/// [`Issuer::admit`], every time.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// What it says.
    pub claims: Claims,
    /// The key that signed it, as operators know it: its `kid`, or its thumbprint.
    pub key: String,
    /// What it allows.
    pub scopes: Vec<String>,
    /// What its bearer is.
    pub roles: Vec<String>,
    /// The service level of its bearer.
    pub tier: Option<String>,
}

/// The request that a token came with.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'p> {
    /// The time, in unix milliseconds.
    pub now_ms: u64,
    /// What operators revoked.
    pub denylist: &'p Denylist,
    /// Whom the token must be meant for here; empty is as the issuer's terms say.
    pub audience: &'p [String],
    /// The thumbprint of the key of a DPoP proof that is good for this request and token. `None`
    /// is the scheme `Bearer`.
    pub proof_key: Option<&'p [u8; 32]>,
    /// The SHA-256 digest of the connection's client certificate.
    pub certificate: Option<&'p [u8; 32]>,
}

impl Verified {
    /// Who it is about: its subject, or its client where there is none.
    #[must_use]
    pub fn subject(&self) -> Cow<'_, str> {
        match (&self.claims.subject, &self.claims.client) {
            (Some(subject), _) => Cow::Borrowed(subject),
            // No client is a subject of the same name (RFC 9068, 5).
            (None, client) => format!("client:{}", client.as_deref().unwrap_or_default()).into(),
        }
    }

    /// Whom this token of an issuer names.
    #[must_use]
    pub fn named(&self, terms: &Issuer) -> Named {
        let claims = &self.claims;
        let told = claims.all.iter().map(|(name, value)| (name.clone(), Claim::of(value)));
        Named {
            method: Method::Jwt,
            issuer: Some(terms.name.clone()),
            id: self.subject().into_owned(),
            // What a token says of a name, its subject may have chosen.
            name: String::new(),
            scopes: self.scopes.clone(),
            roles: self.roles.clone(),
            tier: self.tier.clone(),
            claims: told.collect(),
        }
    }
}

impl<'t> Unverified<'t> {
    /// Takes a token of at most `bytes_max` bytes apart.
    ///
    /// # Errors
    /// If its form is not sound.
    pub fn parse(text: &'t str, bytes_max: usize) -> Result<Self, Fault> {
        let jws = Jws::parse(text, bytes_max)?;
        let claims = Claims::read(&jws.payload)?;
        Ok(Self { jws, claims })
    }

    /// Who issued it, as it says: chooses by whose terms it is judged, and proves nothing.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.claims.issuer
    }
}

impl Issuer {
    /// Whether a token of sound form asks for a key that is not among these: newer ones might have
    /// it.
    ///
    /// # Errors
    /// If its form is not sound under this issuer's terms: then no key would help.
    pub fn lacks_key(&self, token: &Unverified<'_>, keys: &KeySet) -> Result<bool, Fault> {
        self.check_form(token)?;
        let header = &token.jws.header;
        Ok(matches!(keys.find(header.kid.as_deref(), header.algorithm), Err(Fault::Key)))
    }

    /// Checks what never changes about a token: its form under this issuer's terms and its
    /// signature.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn verify(&self, token: Unverified<'_>, keys: &KeySet) -> Result<Verified, Fault> {
        self.check_form(&token)?;
        let Unverified { jws, claims } = token;
        let key = keys.verify(&jws)?;
        self.check_profile(&claims)?;
        let scopes = self.scope_claims.iter().find_map(|name| claims.words(name).transpose());
        let roles = self.roles_claim.as_ref().map(|name| claims.words(name)).transpose()?;
        let tier = self.tier_claim.as_ref().and_then(|name| claims.at(name)?.as_str());
        Ok(Verified {
            key: key.called(),
            scopes: scopes.transpose()?.unwrap_or_default(),
            roles: roles.flatten().unwrap_or_default(),
            tier: tier.map(str::to_owned),
            claims,
        })
    }

    /// Checks what depends on the moment and the request: times, denylist, sender, audience.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn admit(&self, token: &Verified, presented: &Presented<'_>) -> Result<(), Fault> {
        self.check_again(token, presented.denylist, presented.now_ms)?;
        check_sender(&token.claims, presented)?;
        let wanted = match presented.audience {
            [] => self.audience.as_slice(),
            narrower => narrower,
        };
        let meant = |audience: &String| token.claims.audience.contains(audience);
        if wanted.iter().any(meant) { Ok(()) } else { Err(Fault::Audience) }
    }

    /// Checks what may change while a request is under way: times and denylist.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn check_again(
        &self,
        token: &Verified,
        denylist: &Denylist,
        now_ms: u64,
    ) -> Result<(), Fault> {
        self.check_times(&token.claims, now_ms)?;
        let is_denied = denylist.denies(token, self.leeway_ms, now_ms);
        if is_denied { Err(Fault::Revoked) } else { Ok(()) }
    }

    /// For how long from now a token that is issued by now can be accepted: the issuer's clock may be
    /// ahead of ours, and its end is waited for once more.
    #[must_use]
    pub const fn accepted_ms(&self) -> u64 {
        self.lifetime_max_ms.saturating_add(self.leeway_ms.saturating_mul(2))
    }

    fn check_form(&self, token: &Unverified<'_>) -> Result<(), Fault> {
        if token.claims.issuer != self.issuer {
            return Err(Fault::Issuer);
        }
        let header = &token.jws.header;
        if !self.algorithms.contains(&header.algorithm) {
            return Err(Fault::Algorithm);
        }
        let fits = match self.profile {
            Profile::AccessToken => header.is_type(&["at+jwt"]),
            Profile::Plain => header.typ.is_none() || header.is_type(&["JWT", "at+jwt"]),
        };
        if fits { Ok(()) } else { Err(Fault::Type) }
    }

    fn check_profile(&self, claims: &Claims) -> Result<(), Fault> {
        let complete = claims.subject.is_some()
            && claims.client.is_some()
            && claims.issued_ms.is_some()
            && claims.id.is_some()
            && !claims.audience.is_empty();
        match self.profile {
            Profile::AccessToken if !complete => Err(Fault::Claims),
            // Without `iat` its lifetime has no bound: it would be good at its end, however long it was.
            Profile::Plain if claims.issued_ms.is_none() => Err(Fault::Claims),
            // Somebody it must be about.
            Profile::Plain if claims.subject.is_none() && claims.client.is_none() => {
                Err(Fault::Claims)
            }
            _ => Ok(()),
        }
    }

    fn check_times(&self, claims: &Claims, now_ms: u64) -> Result<(), Fault> {
        if now_ms >= claims.expires_ms.saturating_add(self.leeway_ms) {
            return Err(Fault::Expired);
        }
        let issued_ms = claims.issued_ms.ok_or(Fault::Claims)?;
        let soonest_ms = now_ms.saturating_add(self.leeway_ms);
        if claims.not_before_ms.is_some_and(|from_ms| from_ms > soonest_ms)
            || issued_ms > soonest_ms
        {
            return Err(Fault::NotYet);
        }
        let lifetime_ms = claims.expires_ms.saturating_sub(issued_ms);
        if lifetime_ms > self.lifetime_max_ms { Err(Fault::Lifetime) } else { Ok(()) }
    }
}

/// A bound token is good only with what it is bound to; a proof of a key is good only for a token
/// that is bound to it (RFC 9449 7.1).
fn check_sender(claims: &Claims, presented: &Presented<'_>) -> Result<(), Fault> {
    let (bound, certificate) = match &claims.confirmation {
        None => (None, None),
        Some(confirmation) => (confirmation.proof_key, confirmation.certificate),
    };
    if bound.as_ref() != presented.proof_key {
        return Err(Fault::Sender);
    }
    match certificate {
        Some(digest) if presented.certificate != Some(&digest) => Err(Fault::Sender),
        _ => Ok(()),
    }
}
