//! The compact form of RFC 7515, read strictly: three parts, one spelling of each.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{Algorithm, Fault, json};

/// A token as it came, its signature not yet looked at.
#[derive(Clone, Debug)]
pub struct Jws<'t> {
    /// What the header says that matters.
    pub header: Header,
    /// What is signed.
    pub input: &'t [u8],
    /// What the token carries.
    pub payload: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// A header. Keys that it brings along or points to (`jwk`, `jku`, `x5u`, `x5c`) are never used,
/// but for the `jwk` of a DPoP proof, whose purpose it is.
#[derive(Clone, Debug)]
pub struct Header {
    /// How the token is signed, as it says.
    pub algorithm: Algorithm,
    /// What kind of token it is, as it says.
    pub typ: Option<String>,
    /// Which key signed it, as it says.
    pub kid: Option<String>,
    /// Every member.
    pub(super) members: Map<String, Value>,
}

impl<'t> Jws<'t> {
    /// Takes a token of at most `bytes_max` bytes apart.
    ///
    /// # Errors
    /// If it is too long, has not three parts in base64url without padding, junk or stray bits, or
    /// its header is not a strict JSON object with a known `alg`, demands what is not understood
    /// (`crit`, `b64`), or is of a wrong type.
    pub fn parse(text: &'t str, bytes_max: usize) -> Result<Self, Fault> {
        if text.len() > bytes_max {
            return Err(Fault::Size);
        }
        let (input, signature) = text.rsplit_once('.').ok_or(Fault::Form)?;
        let (header, payload) = input.split_once('.').ok_or(Fault::Form)?;
        if payload.contains('.') || header.is_empty() || signature.is_empty() {
            return Err(Fault::Form);
        }
        let header = Header::read(&decode(header)?)?;
        let (payload, signature) = (decode(payload)?, decode(signature)?);
        Ok(Self { header, input: input.as_bytes(), payload, signature })
    }
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let members = json::object(bytes)?;
        // RFC 7515 4.1.11: extensions that are not understood must be refused, and none is.
        // RFC 7797: `b64` without `crit` would be ignored by some and honoured by others.
        // RFC 7516: `enc` makes it an encrypted token; `zip` has no meaning in a signed one.
        if ["crit", "b64", "enc", "zip"].iter().any(|name| members.contains_key(*name)) {
            return Err(Fault::Critical);
        }
        let text = |name| json::text(&members, name, Fault::Header);
        let algorithm = text("alg")?.ok_or(Fault::Header)?;
        let (typ, kid) = (text("typ")?.map(str::to_owned), text("kid")?.map(str::to_owned));
        let algorithm = Algorithm::named(algorithm).ok_or(Fault::Algorithm)?;
        Ok(Self { algorithm, typ, kid, members })
    }

    /// Whether the token calls itself one of these types; `application/` may be left out and case
    /// does not matter (RFC 7515 4.1.9).
    #[must_use]
    pub fn is_type(&self, types: &[&str]) -> bool {
        self.typ.as_deref().is_some_and(|typ| {
            let short = match typ.get(..PREFIX.len()) {
                Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => &typ[PREFIX.len()..],
                _ => typ,
            };
            types.iter().any(|wanted| short.eq_ignore_ascii_case(wanted))
        })
    }
}

const PREFIX: &str = "application/";

/// base64url as RFC 7515 section 2 has it: no padding, no line ends, and the bits left over are
/// zero, so that no other text means the same bytes.
///
/// # Errors
/// [`Fault::Base64`].
pub(super) fn decode(text: &str) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Fault::Base64)
}

/// The base64url of bytes.
pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(header: &str) -> Result<Header, Fault> {
        let text = format!("{}.e30.AA", encode(header.as_bytes()));
        Jws::parse(&text, 8192).map(|jws| jws.header)
    }

    #[test]
    fn three_parts_in_their_one_spelling() {
        let header = encode(br#"{"alg":"RS256"}"#);
        let good = format!("{header}.e30.AA");
        let jws = Jws::parse(&good, good.len()).unwrap();
        assert_eq!((jws.payload.as_slice(), jws.signature.as_slice()), (&b"{}"[..], &[0][..]));
        assert_eq!(jws.input, format!("{header}.e30").as_bytes());
        assert_eq!(Jws::parse(&good, good.len() - 1).unwrap_err(), Fault::Size);
        for text in [
            "",
            ".",
            "..",
            "a",
            "a.b",
            &format!("{header}.e30"),
            &format!("{good}.AA"),
            &format!("{header}.e30."),
            ".e30.AA",
            &format!("{good}."),
        ] {
            assert_eq!(Jws::parse(text, 8192).unwrap_err(), Fault::Form, "{text}");
        }
        // Padding, the other alphabet, white space, a lone character and stray bits.
        for part in ["e30=", "+/", "e30 ", " e30", "e3\n0", "e", "e31", "AB", "%65", "é"] {
            let text = format!("{header}.{part}.AA");
            assert_eq!(Jws::parse(&text, 8192).unwrap_err(), Fault::Base64, "{part:?}");
            let text = format!("{header}.e30.{part}");
            assert_eq!(Jws::parse(&text, 8192).unwrap_err(), Fault::Base64, "{part:?}");
        }
    }

    #[test]
    fn a_header_says_how_it_is_signed() {
        let header = parsed(r#"{"alg":"ES256","kid":"k","typ":"JWT","jku":"http://x"}"#).unwrap();
        assert_eq!((header.algorithm, header.kid.as_deref()), (Algorithm::Es256, Some("k")));
        for (text, fault) in [
            (r#"{"kid":"k"}"#, Fault::Header),
            (r#"{"alg":null}"#, Fault::Header),
            (r#"{"alg":["RS256"]}"#, Fault::Header),
            (r#"{"alg":"RS256","kid":1}"#, Fault::Header),
            (r#"{"alg":"RS256","typ":1}"#, Fault::Header),
            (r#"{"alg":"none"}"#, Fault::Algorithm),
            (r#"{"alg":"None"}"#, Fault::Algorithm),
            (r#"{"alg":"rs256"}"#, Fault::Algorithm),
            (r#"{"alg":"RS256 "}"#, Fault::Algorithm),
            (r#"{"alg":""}"#, Fault::Algorithm),
            (r#"{"alg":"RS256","alg":"none"}"#, Fault::Json),
            (r#"{"alg":"RS256","b64":false}"#, Fault::Critical),
            (r#"{"alg":"RS256","zip":"DEF"}"#, Fault::Critical),
            (r#"["RS256"]"#, Fault::Json),
        ] {
            assert_eq!(parsed(text).unwrap_err(), fault, "{text}");
        }
    }

    /// Authlib CVE-2025-59420, PyJWT GHSA-752w-5fwx-jx9f, fast-jwt GHSA-hm7r-c7qw-ghp6.
    #[test]
    fn incident_crit_is_never_ignored() {
        for crit in [r#"["x"]"#, "[]", "null", r#""x""#, r#"["exp"]"#, r#"["b64"]"#] {
            let text = format!(r#"{{"alg":"RS256","crit":{crit},"x":1}}"#);
            assert_eq!(parsed(&text).unwrap_err(), Fault::Critical, "{text}");
        }
    }

    #[test]
    fn types_are_media_types() {
        let header = |typ: &str| parsed(&format!(r#"{{"alg":"RS256","typ":"{typ}"}}"#)).unwrap();
        for typ in ["at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt"] {
            assert!(header(typ).is_type(&["at+jwt"]), "{typ}");
        }
        for typ in ["", "jwt", "at+jwt ", "x/at+jwt", "application/", "application/é"] {
            assert!(!header(typ).is_type(&["at+jwt"]), "{typ}");
        }
        assert!(!parsed(r#"{"alg":"RS256"}"#).unwrap().is_type(&["JWT"]));
    }
}
