//! What a token says (RFC 7519 section 4, RFC 9068, RFC 7800), in types.

use serde_json::{Map, Value};

use super::{Fault, json, jws};

/// The claims that are looked at, and all of them as they came.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: Option<String>,
    /// `aud`: one or several.
    pub audience: Vec<String>,
    /// `exp`, in unix milliseconds.
    pub expires_ms: u64,
    /// `nbf`, in unix milliseconds.
    pub not_before_ms: Option<u64>,
    /// `iat`, in unix milliseconds.
    pub issued_ms: Option<u64>,
    /// `jti`.
    pub id: Option<String>,
    /// `client_id`.
    pub client: Option<String>,
    /// `sid`: the session at the issuer.
    pub session: Option<String>,
    /// `cnf`: what its sender must prove.
    pub confirmation: Option<Confirmation>,
    /// Every claim.
    pub all: Map<String, Value>,
}

/// What the sender of a token must prove to have. All that is there must be proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// `jkt`: the thumbprint of the key of DPoP proofs (RFC 9449 6.1).
    pub proof_key: Option<[u8; 32]>,
    /// `x5t#S256`: the SHA-256 digest of the client certificate (RFC 8705 3.1).
    pub certificate: Option<[u8; 32]>,
}

impl Claims {
    /// Reads the payload of a token.
    ///
    /// # Errors
    /// [`Fault::Json`]; [`Fault::Claims`] if a claim is missing that every token needs (`iss`,
    /// `exp`) or is of a wrong type.
    pub fn read(payload: &[u8]) -> Result<Self, Fault> {
        let all = json::object(payload)?;
        let text = |name| json::text(&all, name, Fault::Claims).map(|t| t.map(str::to_owned));
        Ok(Self {
            issuer: text("iss")?.ok_or(Fault::Claims)?,
            subject: text("sub")?,
            audience: match all.get("aud") {
                None => Vec::new(),
                Some(Value::String(one)) => vec![one.clone()],
                Some(Value::Array(several)) => strings(several)?,
                Some(_) => return Err(Fault::Claims),
            },
            expires_ms: date_ms(&all, "exp")?.ok_or(Fault::Claims)?,
            not_before_ms: date_ms(&all, "nbf")?,
            issued_ms: date_ms(&all, "iat")?,
            id: text("jti")?,
            client: text("client_id")?,
            session: text("sid")?,
            confirmation: all.get("cnf").map(Confirmation::read).transpose()?,
            all,
        })
    }

    /// The claim with this name; where there is none, dots lead into objects.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<&Value> {
        self.all.get(path).or_else(|| {
            let (first, rest) = path.split_once('.')?;
            rest.split('.').try_fold(self.all.get(first)?, |value, name| value.get(name))
        })
    }

    /// The words of a claim: a string of them with spaces between, or an array.
    ///
    /// # Errors
    /// [`Fault::Claims`] if it is something else.
    pub fn words(&self, path: &str) -> Result<Option<Vec<String>>, Fault> {
        match self.at(path) {
            None => Ok(None),
            Some(Value::String(text)) => {
                Ok(Some(text.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect()))
            }
            Some(Value::Array(several)) => strings(several).map(Some),
            Some(_) => Err(Fault::Claims),
        }
    }
}

impl Confirmation {
    /// A confirmation by no means that is known here can be proven by nobody.
    fn read(value: &Value) -> Result<Self, Fault> {
        let members = value.as_object().ok_or(Fault::Claims)?;
        let digest = |name| -> Result<Option<[u8; 32]>, Fault> {
            let text = json::text(members, name, Fault::Claims)?;
            let bytes = text.map(jws::decode).transpose().map_err(|_| Fault::Claims)?;
            bytes.map(|b| b.try_into().map_err(|_| Fault::Claims)).transpose()
        };
        let known = Self { proof_key: digest("jkt")?, certificate: digest("x5t#S256")? };
        let understood =
            usize::from(known.proof_key.is_some()) + usize::from(known.certificate.is_some());
        if understood == 0 || understood != members.len() { Err(Fault::Claims) } else { Ok(known) }
    }
}

fn strings(values: &[Value]) -> Result<Vec<String>, Fault> {
    values.iter().map(|v| v.as_str().map(str::to_owned).ok_or(Fault::Claims)).collect()
}

/// A NumericDate (RFC 7519 2): seconds, whole or not, from 1970 to the year 9999.
pub(super) fn date_ms(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Fault> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let Value::Number(number) = value else { return Err(Fault::Claims) };
    let ms = match (number.as_u64(), number.as_f64()) {
        (Some(seconds), _) if seconds <= DATE_MAX_S => seconds * 1000,
        (None, Some(seconds)) if seconds.is_sign_positive() && seconds <= DATE_MAX_S as f64 => {
            (seconds * 1000.0) as u64
        }
        _ => return Err(Fault::Claims),
    };
    Ok(Some(ms))
}

/// The last second of the year 9999.
const DATE_MAX_S: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str) -> Result<Claims, Fault> {
        let comma = if extra.is_empty() { "" } else { "," };
        Claims::read(format!(r#"{{"iss":"i","exp":1000{comma}{extra}}}"#).as_bytes())
    }

    #[test]
    fn claims_have_their_types() {
        let claims = read(r#""aud":["a","b"],"sub":"s","nbf":1.5,"iat":0"#).unwrap();
        assert_eq!(claims.audience, ["a", "b"]);
        assert_eq!((claims.not_before_ms, claims.issued_ms), (Some(1500), Some(0)));
        assert_eq!(read(r#""aud":"a b""#).unwrap().audience, ["a b"]);
        for wrong in [
            r#""sub":1"#,
            r#""aud":1"#,
            r#""aud":["a",1]"#,
            r#""aud":null"#,
            r#""aud":{"a":1}"#,
            r#""jti":1"#,
            r#""sid":[]"#,
            r#""client_id":{}"#,
            r#""cnf":"x""#,
            r#""cnf":{}"#,
        ] {
            assert_eq!(read(wrong), Err(Fault::Claims), "{wrong}");
        }
        for text in [r#"{"exp":1}"#, r#"{"iss":"i"}"#, r#"{"iss":1,"exp":1}"#] {
            assert_eq!(Claims::read(text.as_bytes()), Err(Fault::Claims), "{text}");
        }
    }

    /// jsonwebtoken below 10.3.0 took a date of a wrong type for no date at all.
    #[test]
    fn incident_dates_are_numbers_in_range() {
        for date in [
            r#""9999999999""#,
            "-1",
            "-0.5",
            "-0.0",
            "null",
            "true",
            "[1]",
            "{}",
            "253402300800",
            "1e30",
            "18446744073709551616",
        ] {
            for name in ["exp", "nbf", "iat"] {
                let text = format!(r#"{{"iss":"i","exp":1,"{name}":{date}}}"#);
                let text = if name == "exp" { text.replace(r#""exp":1,"#, "") } else { text };
                assert_eq!(Claims::read(text.as_bytes()), Err(Fault::Claims), "{text}");
            }
        }
        assert_eq!(read(r#""nbf":1e400"#), Err(Fault::Json));
        assert_eq!(read(r#""nbf":1e3"#).unwrap().not_before_ms, Some(1_000_000));
        assert_eq!(read(r#""nbf":253402300799"#).unwrap().not_before_ms, Some(253_402_300_799_000));
    }

    #[test]
    fn a_confirmation_is_understood_or_refused() {
        let digest = jws::encode(&[7; 32]);
        let both = read(&format!(r#""cnf":{{"jkt":"{digest}","x5t#S256":"{digest}"}}"#)).unwrap();
        let confirmation = both.confirmation.unwrap();
        assert_eq!(confirmation.proof_key, Some([7; 32]));
        assert_eq!(confirmation.certificate, Some([7; 32]));
        let short = jws::encode(&[7; 31]);
        for wrong in [
            format!(r#"{{"jkt":"{short}"}}"#),
            format!(r#"{{"jkt":"{digest}="}}"#),
            format!(r#"{{"jkt":"{digest}","kid":"x"}}"#),
            r#"{"jwk":{}}"#.to_owned(),
            r#"{"kid":"x"}"#.to_owned(),
        ] {
            assert_eq!(read(&format!(r#""cnf":{wrong}"#)), Err(Fault::Claims), "{wrong}");
        }
    }

    #[test]
    fn dots_lead_into_objects_where_no_claim_has_the_whole_name() {
        let claims = read(r#""a":{"b":{"c":["x","y"]}},"http://x.y/roles":"p  q","n":1"#).unwrap();
        assert_eq!(claims.words("a.b.c").unwrap().unwrap(), ["x", "y"]);
        assert_eq!(claims.words("http://x.y/roles").unwrap().unwrap(), ["p", "q"]);
        assert_eq!(claims.words("a.x"), Ok(None));
        assert_eq!(claims.words("a.b.c.d"), Ok(None));
        assert_eq!(claims.words("n"), Err(Fault::Claims));
        assert_eq!(claims.words("a.b"), Err(Fault::Claims));
    }
}
