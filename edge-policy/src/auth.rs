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
}

/// What a client may learn of its token (RFC 6750, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is no good, for whichever reason.
    InvalidToken,
    /// It is good, and does not grant enough.
    InsufficientScope,
}

impl TokenError {
    const fn name(self) -> &'static str {
        match self {
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
        }
    }
}

impl Challenge {
    /// To ask for these methods, of a caller who presented nothing.
    #[must_use]
    pub const fn of(methods: Methods) -> Self {
        Self { methods, error: None, scopes: Vec::new() }
    }

    /// One value of `WWW-Authenticate` for each method.
    pub(crate) fn values(
        &self,
    ) -> impl Iterator<Item = Result<HeaderValue, InvalidHeaderValue>> + '_ {
        self.methods.iter().map(|method| {
            let mut value = format!(r#"{} realm="edged""#, method.scheme());
            if let (Method::Jwt, Some(error)) = (method, self.error) {
                value += &format!(r#", error="{}""#, error.name());
                if !self.scopes.is_empty() {
                    value += &format!(r#", scope="{}""#, self.scopes.join(" "));
                }
            }
            HeaderValue::try_from(value)
        })
    }
}

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
        let bad = Challenge { methods, error, scopes: Vec::new() };
        let expected =
            [r#"ApiKey realm="edged""#, r#"Bearer realm="edged", error="invalid_token""#];
        assert_eq!(shown(&bad), expected);
        let error = Some(TokenError::InsufficientScope);
        let short = Challenge { methods, error, scopes: vec!["a".into(), "b".into()] };
        let expected = r#"Bearer realm="edged", error="insufficient_scope", scope="a b""#;
        assert_eq!(shown(&short)[1], expected);
    }
}
