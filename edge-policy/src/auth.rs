//! How a caller may prove who it is: the methods of authentication, and what a refusal says of them.

use http::header::{HeaderValue, InvalidHeaderValue};

/// A way to prove who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Method {
    /// An API key.
    Key,
    /// A signature over the request.
    Signature,
    /// A signed token of an issuer.
    Jwt,
    /// The client certificate of the connection.
    Mtls,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 4] = [Self::Key, Self::Signature, Self::Jwt, Self::Mtls];

    /// The word for it: in the configuration, to upstreams and in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Jwt => "jwt",
            Self::Mtls => "mtls",
        }
    }

    /// The scheme by which `WWW-Authenticate` asks for it. HTTP has none for a certificate, and
    /// still demands a challenge (RFC 9110, 15.5.2); a client passes over a scheme it does not know.
    const fn scheme(self) -> &'static str {
        match self {
            Self::Key => "ApiKey",
            Self::Signature => "Signature",
            Self::Jwt => "Bearer",
            Self::Mtls => "ClientCertificate",
        }
    }
}

/// A set of methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Methods(u8);

impl Methods {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Whether the method is one of them.
    #[must_use]
    pub const fn contains(self, method: Method) -> bool {
        self.0 & 1 << method as u8 != 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |method| self.contains(*method))
    }
}

impl FromIterator<Method> for Methods {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        Self(methods.into_iter().fold(0, |bits, method| bits | 1 << method as u8))
    }
}

impl From<Method> for Methods {
    fn from(method: Method) -> Self {
        Self::from_iter([method])
    }
}

/// What `WWW-Authenticate` says of how to be let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// What the route takes; what it does not take is never asked for.
    pub methods: Methods,
    /// What was wrong with the token that was presented (RFC 6750, 3.1); `None` if none was.
    pub error: Option<TokenError>,
    /// The scopes that the route asks for, for [`TokenError::InsufficientScope`].
    pub scopes: Vec<String>,
    /// The token that was presented, if one was.
    pub token: Option<Box<PresentedToken>>,
}

/// What there is to say of a token that was presented.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresentedToken {
    /// The scheme under which it came.
    pub scheme: TokenScheme,
    /// A nonce for the next proof (RFC 9449, 8): goes into `DPoP-Nonce`.
    pub nonce: Option<String>,
    /// What exactly was wrong with it, in a word; for the log, never for the client.
    pub fault: Option<&'static str>,
}

/// A scheme under which tokens are presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenScheme {
    /// Whoever has the token may use it (RFC 6750).
    #[default]
    Bearer,
    /// Whoever has the token's key may use it (RFC 9449).
    Dpop,
}

/// What a client may learn of its token (RFC 6750, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is no good, for whichever reason.
    InvalidToken,
    /// It is good, and does not grant enough.
    InsufficientScope,
    /// The proof that came with it is no good (RFC 9449, 7.1).
    InvalidProof,
    /// The proof must carry the nonce that goes with this answer (RFC 9449, 9).
    UseNonce,
}

impl TokenError {
    const fn name(self) -> &'static str {
        match self {
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
            Self::InvalidProof => "invalid_dpop_proof",
            Self::UseNonce => "use_dpop_nonce",
        }
    }
}

impl Challenge {
    /// To ask for these methods, of a caller who presented nothing.
    #[must_use]
    pub const fn of(methods: Methods) -> Self {
        Self { methods, error: None, scopes: Vec::new(), token: None }
    }

    /// One value of `WWW-Authenticate` for each method.
    pub(crate) fn values(
        &self,
    ) -> impl Iterator<Item = Result<HeaderValue, InvalidHeaderValue>> + '_ {
        self.methods.iter().map(|method| {
            let scheme = self.token.as_ref().map_or(TokenScheme::Bearer, |token| token.scheme);
            let is_dpop = method == Method::Jwt && scheme == TokenScheme::Dpop;
            let scheme = if is_dpop { "DPoP" } else { method.scheme() };
            let mut value = format!(r#"{scheme} realm="edged""#);
            if let (Method::Jwt, Some(error)) = (method, self.error) {
                value += &format!(r#", error="{}""#, error.name());
                if !self.scopes.is_empty() {
                    value += &format!(r#", scope="{}""#, self.scopes.join(" "));
                }
            }
            if is_dpop {
                value += PROOF_ALGORITHMS;
            }
            HeaderValue::try_from(value)
        })
    }
}

/// What proofs may be signed with (RFC 9449, 7.1).
const PROOF_ALGORITHMS: &str =
    r#", algs="ES256 ES384 ES512 EdDSA PS256 PS384 PS512 RS256 RS384 RS512""#;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(challenge: &Challenge) -> Vec<String> {
        challenge.values().map(|v| v.unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set = Methods::from_iter([Method::Mtls, Method::Key]);
        assert!(set.contains(Method::Key) && set.contains(Method::Mtls));
        assert!(!set.contains(Method::Jwt) && !set.contains(Method::Signature));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Method::Key, Method::Mtls]);
        assert_eq!(Methods::NONE.iter().count(), 0);
    }

    #[test]
    fn each_method_has_a_challenge_of_its_own() {
        let all = Challenge::of(Methods::from_iter(Method::ALL));
        let expected = [
            r#"ApiKey realm="edged""#,
            r#"Signature realm="edged""#,
            r#"Bearer realm="edged""#,
            r#"ClientCertificate realm="edged""#,
        ];
        assert_eq!(shown(&all), expected);
        assert!(shown(&Challenge::default()).is_empty());
    }

    #[test]
    fn only_the_token_is_told_what_was_wrong_with_it() {
        let methods = Methods::from_iter([Method::Key, Method::Jwt]);
        let error = Some(TokenError::InvalidToken);
        let bad = Challenge { error, ..Challenge::of(methods) };
        let expected =
            [r#"ApiKey realm="edged""#, r#"Bearer realm="edged", error="invalid_token""#];
        assert_eq!(shown(&bad), expected);
        let error = Some(TokenError::InsufficientScope);
        let scopes = vec!["a".into(), "b".into()];
        let short = Challenge { error, scopes, ..Challenge::of(methods) };
        let expected = r#"Bearer realm="edged", error="insufficient_scope", scope="a b""#;
        assert_eq!(shown(&short)[1], expected);
    }

    #[test]
    fn a_proof_is_asked_for_under_its_own_scheme() {
        let token = PresentedToken { scheme: TokenScheme::Dpop, ..PresentedToken::default() };
        let (error, token) = (Some(TokenError::UseNonce), Some(Box::new(token)));
        let asked = Challenge { error, token, ..Challenge::of(Method::Jwt.into()) };
        let expected = r#"DPoP realm="edged", error="use_dpop_nonce", algs="ES256 "#;
        assert!(shown(&asked)[0].starts_with(expected), "{:?}", shown(&asked));
    }
}
