//! HTTP Message Signatures (RFC 9421): `Signature-Input` and `Signature`.

use std::collections::HashSet;

use aws_lc_rs::digest::{SHA256, digest};
use edge_common::Reason;
use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, FieldType as _, InnerList, ListEntry, Parser};

use super::body::{BodyCheck, CONTENT_DIGEST};
use super::component::{Component, Name, combined};
use super::{Fresh, Message, Once, Policy, Proven, Verifier};

/// The signatures.
pub const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// What each of them signs.
pub const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");

/// What a signature signs whose `Signature-Input` has this value, for whoever makes one. `None` if
/// [`read`](super::read) would refuse to read it, or the message lacks a component.
#[must_use]
pub fn base(input: &str, message: &Message<'_>) -> Option<String> {
    let dictionary: Dictionary = Parser::new(&format!("sig={input}")).parse().ok()?;
    match dictionary.get("sig")? {
        ListEntry::InnerList(list) => Input::read(list)?.base(message),
        ListEntry::Item(_) => None,
    }
}

/// What one signature signs: components and parameters.
#[derive(Debug)]
pub(super) struct Input {
    components: Vec<Component>,
    /// As it stands in the last line of the base.
    pub(super) parameters: String,
    /// When it was made, in unix seconds.
    pub(super) created_s: Option<u64>,
    /// When it ends, in unix seconds.
    expires_s: Option<u64>,
    /// What makes it differ from all others.
    nonce: Option<String>,
    /// The name of an algorithm.
    alg: Option<String>,
    /// The name of a key.
    keyid: Option<String>,
    /// What it is for.
    tag: Option<String>,
}

impl Input {
    /// Reads the value of a `Signature-Input` member; `None` if it has a part of no known meaning,
    /// two components alike or too many.
    pub(super) fn read(list: &InnerList) -> Option<Self> {
        if list.items.len() > COMPONENTS_MAX {
            return None;
        }
        let components: Vec<_> = list.items.iter().map(Component::read).collect::<Option<_>>()?;
        let mut ids = HashSet::new();
        if !components.iter().all(|component| ids.insert(&component.id)) {
            return None;
        }
        let parameters = vec![ListEntry::InnerList(list.clone())].serialize()?;
        let mut input = Self {
            components,
            parameters,
            created_s: None,
            expires_s: None,
            nonce: None,
            alg: None,
            keyid: None,
            tag: None,
        };
        for (name, value) in &list.params {
            let text = || Some(Some(value.as_string()?.as_str().to_owned()));
            let time = || Some(Some(u64::try_from(value.as_integer()?).ok()?));
            match name.as_str() {
                "created" => input.created_s = time()?,
                "expires" => input.expires_s = time()?,
                "nonce" => input.nonce = text()?,
                "alg" => input.alg = text()?,
                "keyid" => input.keyid = text()?,
                "tag" => input.tag = text()?,
                _ => return None,
            }
        }
        Some(input)
    }

    /// The signature base (2.5): what is signed of this message. `None` if it lacks a component.
    pub(super) fn base(&self, message: &Message<'_>) -> Option<String> {
        let mut base = String::new();
        for Component { id, name } in &self.components {
            let value = name.value(message)?;
            base.extend([id, ": ", &value, "\n"]);
        }
        base.extend(["\"@signature-params\": ", &self.parameters]);
        Some(base)
    }

    fn covers(&self, names: &[Name]) -> bool {
        self.components.iter().any(|component| names.contains(&component.name))
    }

    fn covers_field(&self, field: &HeaderName) -> bool {
        self.components.iter().any(|component| component.name.is_whole(field))
    }

    /// Whether nothing that decides what a request does is left out.
    fn is_enough(&self, message: &Message<'_>, policy: &Policy) -> bool {
        let target = message.target;
        let asked = policy.cover.iter().filter(|field| message.headers.contains_key(*field));
        self.covers(&[Name::Method])
            && self.covers(&[Name::Authority, Name::TargetUri])
            && self.covers(&[Name::Path, Name::RequestTarget, Name::TargetUri])
            && (target.query.is_none()
                || self.covers(&[Name::Query, Name::RequestTarget, Name::TargetUri]))
            && (!message.has_body || self.covers_field(&CONTENT_DIGEST))
            && asked.into_iter().all(|field| self.covers_field(field))
    }
}

/// What such a signature claims.
#[derive(Debug)]
pub(super) struct Claim {
    keyid: String,
    alg: Option<String>,
    nonce: Option<String>,
    signature: Vec<u8>,
    base: String,
    body: Option<BodyCheck>,
    time: Fresh,
}

impl Claim {
    /// The algorithm that it names, and the signature.
    pub(super) fn by(&self) -> (Option<&str>, &[u8]) {
        (self.alg.as_deref(), &self.signature)
    }

    pub(super) fn read(message: &Message<'_>, policy: &Policy, now_s: u64) -> Result<Self, Reason> {
        let bad = Reason::BadSignature;
        let (list, signature) = chosen(message.headers, policy.label.as_deref()).ok_or(bad)?;
        let input = Input::read(&list).ok_or(bad)?;
        let time = policy.fresh(input.created_s.ok_or(bad)?, now_s)?;
        if input.expires_s.is_some_and(|expires_s| expires_s <= now_s) {
            return Err(Reason::StaleSignature);
        }
        let nonce_fits = match &input.nonce {
            Some(nonce) => (1..=NONCE_BYTES_MAX).contains(&nonce.len()),
            None => !policy.nonce,
        };
        let tag_fits = policy.tag.is_none() || policy.tag == input.tag;
        if !nonce_fits || !tag_fits || !input.is_enough(message, policy) {
            return Err(bad);
        }
        let base = input.base(message).ok_or(bad)?;
        // A digest is worth what its signature is: only a covered one is looked at.
        let covered = input.covers_field(&CONTENT_DIGEST);
        let body = if covered { BodyCheck::content_digest(message.headers)? } else { None };
        let Input { keyid, alg, nonce, .. } = input;
        Ok(Self { keyid: keyid.ok_or(bad)?, alg, nonce, signature, base, body, time })
    }

    pub(super) fn key_id(&self) -> &str {
        &self.keyid
    }

    pub(super) fn prove(self, key_id: &str, verifier: &Verifier<'_>) -> Result<Proven, Reason> {
        // The key fixes the algorithm (3.3.7); what the signature says may only agree.
        let agrees = self.alg.is_none_or(|alg| alg == verifier.algorithm().name());
        let holds = verifier.verifies(self.base.as_bytes(), &self.signature);
        if !agrees || !holds {
            return Err(Reason::BadSignature);
        }
        let once = match &self.nonce {
            Some(nonce) => Once::new(b'n', key_id, nonce.as_bytes(), self.time),
            // What was signed, not the signature: of an ECDSA signature anyone can make another
            // that is as good.
            None => {
                let signed = digest(&SHA256, self.base.as_bytes());
                Once::new(b'b', key_id, signed.as_ref(), self.time)
            }
        };
        Ok(Proven { once, body: self.body })
    }
}

/// The one signature that is looked at, and what it signs.
fn chosen(headers: &HeaderMap, label: Option<&str>) -> Option<(InnerList, Vec<u8>)> {
    let read = |name| -> Option<Dictionary> { Parser::new(&combined(headers, name)?).parse().ok() };
    let (mut inputs, mut signatures) = (read(&SIGNATURE_INPUT)?, read(&SIGNATURE)?);
    let label = match label {
        Some(label) => label.to_owned(),
        None if inputs.len() == 1 && signatures.len() == 1 => inputs.keys().next()?.to_string(),
        None => return None,
    };
    let ListEntry::InnerList(list) = inputs.swap_remove(label.as_str())? else { return None };
    let ListEntry::Item(item) = signatures.swap_remove(label.as_str())? else { return None };
    match item.bare_item {
        BareItem::ByteSequence(signature) => Some((list, signature)),
        _ => None,
    }
}

/// More components than any signer needs; each can be as long as the whole head.
const COMPONENTS_MAX: usize = 32;

const NONCE_BYTES_MAX: usize = 256;
