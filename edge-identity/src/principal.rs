//! Who a request is from, whichever way it was proved, and which way a request is to be proved.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use edge_common::Reason;
pub use edge_policy::auth::{Method, Methods};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};
use serde_json::{Number, Value};

use crate::key::Key;

/// Who a request is from. Cheap to clone: what it is made of is shared.
#[derive(Clone, Debug)]
pub enum Principal {
    /// The holder of a key of ours.
    Key {
        /// The key.
        key: Arc<Key>,
        /// Whether it was shown or used to sign.
        method: Method,
    },
    /// Somebody whom a token or a certificate names.
    Named(Arc<Named>),
}

/// Somebody whom a token or a certificate names.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// How it was proved.
    pub method: Method,
    /// The name of the issuer whose word that is; `None` for a certificate.
    pub issuer: Option<String>,
    /// Who it is: the token's `sub`, the identity that the certificate maps to. Somebody else may have
    /// the same with another issuer.
    pub id: String,
    /// What people call it; may be empty.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// What it is.
    pub roles: Vec<String>,
    /// Its plan; `None` is the default one.
    pub tier: Option<String>,
    /// What else its issuer says of it, by name.
    pub claims: BTreeMap<String, Claim>,
}

/// A statement about a principal, in the forms that rules can compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A string.
    Text(String),
    /// A whole number.
    Number(i64),
    /// True or false.
    Flag(bool),
    /// Strings.
    List(Vec<String>),
    /// Anything else, as it came: an object, a fraction, a number beyond an [`i64`], null, other arrays.
    /// Policies can compare it if their schema says what it is.
    Other(Value),
}

impl Claim {
    /// What JSON says.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        let other = || Self::Other(value.clone());
        match value {
            Value::String(text) => Self::Text(text.clone()),
            Value::Bool(flag) => Self::Flag(*flag),
            Value::Number(number) => whole(number).map_or_else(other, Self::Number),
            Value::Array(items) => {
                let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().map_or_else(other, Self::List)
            }
            Value::Null | Value::Object(_) => other(),
        }
    }
}

/// A number of JSON, which does not tell `9.0` from `9`, if it is whole. Beyond 2^53 a double may
/// stand for another number than was written.
pub(crate) fn whole(number: &Number) -> Option<i64> {
    let is_whole = |float: &f64| float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0;
    number.as_i64().or_else(|| number.as_f64().filter(is_whole).map(|float| float as i64))
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::List(list) => f.write_str(&list.join(" ")),
            Self::Other(value) => value.fmt(f),
        }
    }
}

impl Principal {
    /// How it was proved.
    #[must_use]
    pub fn method(&self) -> Method {
        match self {
            Self::Key { method, .. } => *method,
            Self::Named(named) => named.method,
        }
    }

    /// Who it is, told apart from everybody else: a key's public id, or the name of the issuer (or
    /// `mtls`), a colon and what is a name with that issuer. Names of issuers have no colon.
    #[must_use]
    pub fn identity(&self) -> Cow<'_, str> {
        match self {
            Self::Key { .. } => self.id().into(),
            Self::Named(named) => format!("{}:{}", self.origin(), named.id).into(),
        }
    }

    /// With whom [`Self::id`] is a name: the issuer, or the way of proof. No issuer is called as those are.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.issuer().unwrap_or_else(|| self.method().name())
    }

    /// The name of the issuer of its token.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        match self {
            Self::Key { .. } => None,
            Self::Named(named) => named.issuer.as_deref(),
        }
    }

    /// Who it is where it comes from: a key's public id, a token's subject.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Key { key, .. } => key.id().as_str(),
            Self::Named(named) => &named.id,
        }
    }

    /// What people call it; may be empty.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Key { key, .. } => key.name(),
            Self::Named(named) => &named.name,
        }
    }

    /// What it was granted by itself; roles may grant it more.
    #[must_use]
    pub fn scopes(&self) -> &[String] {
        match self {
            Self::Key { key, .. } => &key.grants().scopes,
            Self::Named(named) => &named.scopes,
        }
    }

    /// What it is.
    #[must_use]
    pub fn roles(&self) -> &[String] {
        match self {
            Self::Key { key, .. } => &key.grants().roles,
            Self::Named(named) => &named.roles,
        }
    }

    /// Its plan; `None` is the default one.
    #[must_use]
    pub fn tier(&self) -> Option<&str> {
        match self {
            Self::Key { key, .. } => key.grants().tier.as_deref(),
            Self::Named(named) => named.tier.as_deref(),
        }
    }

    /// What its issuer says of it under this name.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<&Claim> {
        match self {
            Self::Key { .. } => None,
            Self::Named(named) => named.claims.get(name),
        }
    }

    /// The key of ours by which it came, whose quota it uses.
    #[must_use]
    pub fn key(&self) -> Option<&Arc<Key>> {
        match self {
            Self::Key { key, .. } => Some(key),
            Self::Named(_) => None,
        }
    }
}

/// What a request presents, by which the way of proof is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Whether it shows a key of ours.
    pub key: bool,
    /// Whether its connection has a client certificate that was verified.
    pub certificate: bool,
}

impl Presented<'_> {
    /// The one way by which this request is to be proved, on a route that takes `methods`.
    ///
    /// A key of ours is always for us, and names the signer where the request is signed. A token or
    /// a signature is for us where the route takes it; elsewhere it is the upstream's affair and
    /// proves nothing. A certificate comes by itself with its connection, so it counts only where
    /// nothing else does.
    ///
    /// # Errors
    /// [`Reason::CredentialInvalid`] if there are several, so that nobody need guess whose rights
    /// the request has.
    pub fn method(self, methods: Methods) -> Result<Option<Method>, Reason> {
        let signed = methods.contains(Method::Signature) && is_signed(self.headers);
        let token = methods.contains(Method::Jwt) && has_token(self.headers);
        match (signed, token, self.key) {
            (true, true, _) | (_, true, true) => Err(Reason::CredentialInvalid),
            (true, false, _) => Ok(Some(Method::Signature)),
            (false, true, false) => Ok(Some(Method::Jwt)),
            (false, false, true) => Ok(Some(Method::Key)),
            (false, false, false) => {
                let certified = methods.contains(Method::Mtls) && self.certificate;
                Ok(certified.then_some(Method::Mtls))
            }
        }
    }
}

fn is_signed(headers: &HeaderMap) -> bool {
    SIGNATURES.iter().any(|name| headers.contains_key(name))
}

fn has_token(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| {
        let scheme = value.as_bytes().split(u8::is_ascii_whitespace).next().unwrap_or_default();
        TOKEN_SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
    })
}

/// Headers that sign a request: ours and those of RFC 9421.
const SIGNATURES: [HeaderName; 3] = [
    HeaderName::from_static("x-signature"),
    HeaderName::from_static("signature"),
    HeaderName::from_static("signature-input"),
];

const TOKEN_SCHEMES: [&str; 2] = ["Bearer", "DPoP"];

#[cfg(test)]
pub(crate) mod tests {
    use http::HeaderValue;

    use super::*;

    pub(crate) fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Alice, proved this way, with these scopes and roles.
    pub(crate) fn somebody(method: Method, scopes: &[&str], roles: &[&str]) -> Principal {
        Principal::Named(Arc::new(Named {
            method,
            issuer: (method == Method::Jwt).then(|| "main".to_owned()),
            id: "alice".into(),
            name: "Alice".into(),
            scopes: words(scopes),
            roles: words(roles),
            tier: None,
            claims: BTreeMap::new(),
        }))
    }

    fn chosen(
        fields: &[(&'static str, &'static str)],
        key: bool,
        certificate: bool,
        methods: &[Method],
    ) -> Result<Option<Method>, Reason> {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers: HeaderMap = fields.iter().map(pair).collect();
        let presented = Presented { headers: &headers, key, certificate };
        presented.method(methods.iter().copied().collect())
    }

    #[test]
    fn a_request_is_proved_in_one_way_or_refused() {
        use Method::{Jwt, Key, Mtls, Signature};
        let bearer = ("authorization", "bearer t");
        let dpop = ("authorization", "DPoP t");
        let basic = ("authorization", "Basic t");
        let signed = ("signature-input", "sig1=()");
        let legacy = ("x-signature", "v1=x");
        let refused = Err(Reason::CredentialInvalid);
        let all = &[Key, Signature, Jwt, Mtls][..];
        for (fields, key, certificate, methods, expected) in [
            (&[][..], false, false, all, Ok(None)),
            (&[], true, false, all, Ok(Some(Key))),
            (&[], false, true, all, Ok(Some(Mtls))),
            (&[bearer], false, false, all, Ok(Some(Jwt))),
            (&[dpop], false, true, all, Ok(Some(Jwt))),
            (&[basic], false, false, all, Ok(None)),
            (&[signed], false, false, all, Ok(Some(Signature))),
            (&[legacy], true, true, all, Ok(Some(Signature))),
            // Two at once.
            (&[bearer], true, false, all, refused),
            (&[signed, bearer], false, false, all, refused),
            (&[signed, bearer], true, false, all, refused),
            // What a route does not take proves nothing there, and passes on; a key is ours.
            (&[bearer], false, false, &[Key], Ok(None)),
            (&[bearer], true, false, &[Key], Ok(Some(Key))),
            (&[signed], true, false, &[Key], Ok(Some(Key))),
            (&[], true, false, &[Jwt], Ok(Some(Key))),
            (&[bearer], true, false, &[Jwt], refused),
            (&[], true, true, &[Mtls], Ok(Some(Key))),
            (&[], false, true, &[Key], Ok(None)),
            (&[], true, false, &[], Ok(Some(Key))),
        ] {
            let found = chosen(fields, key, certificate, methods);
            assert_eq!(found, expected, "{fields:?} {key} {certificate} {methods:?}");
        }
    }
}
