//! Who a client certificate stands for: what it says of its holder, mapped to a principal.
//!
//! That the certificate is good (its chain, its time, its revocation) is settled before; here it is
//! only read.

use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use crate::principal::{Method, Named};

/// What a certificate says of its holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject, from the first attribute to the last: `C=DE, O=Org, CN=name`. What separates
    /// attributes and values is escaped in values (RFC 4514, 2.4), so that no value looks like two.
    pub subject: String,
    /// DNS names among its alternative names, in lower case.
    pub dns: Vec<String>,
    /// URIs among them, such as a SPIFFE id.
    pub uris: Vec<String>,
    /// Mail addresses among them.
    pub emails: Vec<String>,
    /// SHA-256 of its `SubjectPublicKeyInfo`.
    pub spki_sha256: [u8; 32],
}

impl Certificate {
    /// Reads a certificate in DER; `None` if it is none, is followed by something or says a name
    /// that is no text.
    #[must_use]
    pub fn read(der: &[u8], spki_sha256: [u8; 32]) -> Option<Self> {
        let (rest, parsed) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let subject = subject(parsed.subject())?;
        let mut read = Self { subject, spki_sha256, ..Self::default() };
        let Some(names) = parsed.subject_alternative_name().ok()? else { return Some(read) };
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => read.dns.push(plain(name)?.to_ascii_lowercase()),
                GeneralName::URI(uri) => read.uris.push(plain(uri)?.to_owned()),
                GeneralName::RFC822Name(email) => read.emails.push(plain(email)?.to_owned()),
                _ => {}
            }
        }
        Some(read)
    }
}

/// From when on a certificate in DER is no longer good, in unix milliseconds: its last second is its
/// own. `None` if it cannot be read.
#[must_use]
pub fn ends_ms(der: &[u8]) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let last_s = parsed.validity().not_after.timestamp();
    Some(u64::try_from(last_s.saturating_add(1)).unwrap_or(0).saturating_mul(1000))
}

/// A name in text; `None` if a value is no text.
fn subject(name: &X509Name<'_>) -> Option<String> {
    let sets = name.iter_rdn().map(|set| {
        let attributes = set.iter().map(|attribute| {
            let kind = oid2abbrev(attribute.attr_type(), oid_registry());
            let kind = kind.map_or_else(|_| attribute.attr_type().to_string(), str::to_owned);
            Some(format!("{kind}={}", escaped(attribute.as_str().ok()?)))
        });
        attributes.collect::<Option<Vec<_>>>().map(|all| all.join("+"))
    });
    sets.collect::<Option<Vec<_>>>().map(|all| all.join(", "))
}

fn escaped(value: &str) -> String {
    value.chars().fold(String::with_capacity(value.len()), |mut text, c| {
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '=') {
            text.push('\\');
        }
        text.push(c);
        text
    })
}

/// A name that is what it looks like: a NUL in it has ended names early elsewhere.
fn plain(name: &str) -> Option<&str> {
    name.bytes().all(|byte| byte.is_ascii_graphic()).then_some(name)
}

/// Whom certificates stand for that say all of this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// The whole subject.
    pub subject: Option<String>,
    /// A DNS name; `*.example` is any one label before `.example`.
    pub dns: Option<String>,
    /// A URI; with `/*` at its end, any below it.
    pub uri: Option<String>,
    /// A mail address.
    pub email: Option<String>,
    /// Keys that are pinned, of which it must have one.
    pub spki_sha256: Vec<[u8; 32]>,
    /// Who it is; `None`: what was matched, URI before DNS name before mail address before subject.
    pub id: Option<String>,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// What it is.
    pub roles: Vec<String>,
    /// Its plan.
    pub tier: Option<String>,
}

impl Mapping {
    /// Whether it asks for anything: one that does not would match every certificate.
    #[must_use]
    pub fn asks(&self) -> bool {
        let words = [&self.subject, &self.dns, &self.uri, &self.email];
        words.iter().any(|word| word.is_some()) || !self.spki_sha256.is_empty()
    }

    /// Whom this certificate stands for, if it says all that is asked.
    fn principal(&self, certificate: &Certificate) -> Option<Named> {
        // For each thing asked: what the certificate says, or the end of it.
        let said = |asked: &Option<String>, all: &[String], fits: fn(&str, &str) -> bool| {
            let Some(asked) = asked else { return Some(None) };
            all.iter().find(|one| fits(asked, one)).map(|one| Some(one.clone()))
        };
        let uri = said(&self.uri, &certificate.uris, uri_fits)?;
        let dns = said(&self.dns, &certificate.dns, dns_fits)?;
        let email = said(&self.email, &certificate.emails, |asked, one| asked == one)?;
        let subject = std::slice::from_ref(&certificate.subject);
        let subject = said(&self.subject, subject, |asked, one| asked == one)?;
        let pinned =
            self.spki_sha256.is_empty() || self.spki_sha256.contains(&certificate.spki_sha256);
        if !pinned || !self.asks() {
            return None;
        }
        let matched = uri.or(dns).or(email).or(subject);
        Some(Named {
            method: Method::Mtls,
            issuer: None,
            id: self.id.clone().or(matched).unwrap_or_else(|| certificate.subject.clone()),
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            roles: self.roles.clone(),
            tier: self.tier.clone(),
            claims: std::collections::BTreeMap::new(),
        })
    }
}

/// Whom a certificate stands for by the first mapping that it fits; `None` is nobody.
#[must_use]
pub fn principal(mappings: &[Mapping], certificate: &Certificate) -> Option<Arc<Named>> {
    mappings.iter().find_map(|mapping| mapping.principal(certificate)).map(Arc::new)
}

fn dns_fits(asked: &str, name: &str) -> bool {
    match asked.strip_prefix("*.") {
        // One label, whole, and no wildcard of the certificate's own.
        Some(parent) => name.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty() && label != "*" && rest.eq_ignore_ascii_case(parent)
        }),
        None => name.eq_ignore_ascii_case(asked),
    }
}

fn uri_fits(asked: &str, uri: &str) -> bool {
    let Some(parent) = asked.strip_suffix('*') else { return asked == uri };
    uri.strip_prefix(parent).is_some_and(|rest| !rest.is_empty() && !is_climbing(rest))
}

/// Whether a part of a URI could lead out of what it was put below.
fn is_climbing(rest: &str) -> bool {
    rest.contains(['%', '?', '#']) || rest.split('/').any(|s| matches!(s, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    /// A certificate with this name and these alternative names, in DER.
    fn der(name: &str, sans: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Org");
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = sans;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn some() -> Certificate {
        let sans = vec![
            SanType::DnsName("A.svc.Example".try_into().unwrap()),
            SanType::URI("spiffe://example/ns/a".try_into().unwrap()),
            SanType::Rfc822Name("a@example".try_into().unwrap()),
        ];
        Certificate::read(&der("a", sans), [7; 32]).unwrap()
    }

    #[test]
    fn a_certificate_is_read_whole_or_not_at_all() {
        let read = some();
        assert_eq!(read.subject, "O=Org, CN=a");
        assert_eq!(read.dns, ["a.svc.example"]);
        assert_eq!(read.uris, ["spiffe://example/ns/a"]);
        assert_eq!(read.emails, ["a@example"]);
        // One value that would look like two attributes.
        let subject = Certificate::read(&der("a, OU=admin", vec![]), [0; 32]).unwrap().subject;
        assert_eq!(subject, "O=Org, CN=a\\, OU\\=admin");
        let good = der("a", Vec::new());
        assert_eq!(Certificate::read(&good, [0; 32]).unwrap().dns, [""; 0]);
        assert!(Certificate::read(&[good.as_slice(), &[0]].concat(), [0; 32]).is_none());
        assert!(Certificate::read(&good[..good.len() - 1], [0; 32]).is_none());
        assert!(Certificate::read(b"", [0; 32]).is_none());
        let nul = vec![SanType::URI("spiffe://example/a\0b".try_into().unwrap())];
        assert!(Certificate::read(&der("a", nul), [0; 32]).is_none());
    }

    #[test]
    fn a_certificate_ends_after_its_last_second() {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2027, 1, 2);
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert_eq!(ends_ms(&der), Some(1_798_848_001_000));
        params.not_after = rcgen::date_time_ymd(1960, 1, 2);
        params.not_before = params.not_after;
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert_eq!(ends_ms(&der), Some(0));
        assert_eq!(ends_ms(&der[1..]), None);
    }

    #[test]
    fn all_that_is_asked_must_be_said() {
        let word = |text: &str| Some(text.to_owned());
        let none = Mapping::default();
        for (mapping, id) in [
            (Mapping { subject: word("O=Org, CN=a"), ..none.clone() }, Some("O=Org, CN=a")),
            (Mapping { subject: word("CN=a"), ..none.clone() }, None),
            (Mapping { dns: word("a.svc.example"), ..none.clone() }, Some("a.svc.example")),
            (Mapping { dns: word("*.svc.example"), ..none.clone() }, Some("a.svc.example")),
            (Mapping { dns: word("*.example"), ..none.clone() }, None),
            (
                Mapping { uri: word("spiffe://example/ns/a"), ..none.clone() },
                Some("spiffe://example/ns/a"),
            ),
            (
                Mapping { uri: word("spiffe://example/*"), ..none.clone() },
                Some("spiffe://example/ns/a"),
            ),
            (
                Mapping { uri: word("spiffe://example/n*"), ..none.clone() },
                Some("spiffe://example/ns/a"),
            ),
            (Mapping { uri: word("spiffe://other/*"), ..none.clone() }, None),
            (Mapping { email: word("a@example"), ..none.clone() }, Some("a@example")),
            (Mapping { email: word("b@example"), ..none.clone() }, None),
            (Mapping { spki_sha256: vec![[8; 32], [7; 32]], ..none.clone() }, Some("O=Org, CN=a")),
            (
                Mapping { spki_sha256: vec![[8; 32]], dns: word("a.svc.example"), ..none.clone() },
                None,
            ),
            (Mapping { email: word("a@example"), dns: word("b.example"), ..none.clone() }, None),
            (
                Mapping { email: word("a@example"), id: word("svc-a"), ..none.clone() },
                Some("svc-a"),
            ),
            // Who asks for nothing gets nobody.
            (none.clone(), None),
        ] {
            let found = principal(std::slice::from_ref(&mapping), &some());
            assert_eq!(found.map(|named| named.id.clone()).as_deref(), id, "{mapping:?}");
        }
    }

    #[test]
    fn the_first_mapping_that_fits_decides() {
        let to = |id: &str, dns: &str| Mapping {
            dns: Some(dns.into()),
            id: Some(id.into()),
            ..Mapping::default()
        };
        let all =
            [to("other", "b.example"), to("first", "*.svc.example"), to("second", "a.svc.example")];
        assert_eq!(principal(&all, &some()).unwrap().id, "first");
        assert!(principal(&[], &some()).is_none());
    }

    #[test]
    fn a_pattern_covers_whole_names_alone() {
        assert!(!dns_fits("*.example", "*.example") && !dns_fits("*.example", "a.b.example"));
        assert!(!dns_fits("*.example", ".example") && dns_fits("*.example", "A.EXAMPLE"));
        let below = "spiffe://x/a/*";
        assert!(uri_fits(below, "spiffe://x/a/b/c"));
        for uri in [
            "spiffe://x/a/",
            "spiffe://x/a",
            "spiffe://x/ab",
            "spiffe://x/a/../b",
            "spiffe://x/a/%2e%2e/b",
        ] {
            assert!(!uri_fits(below, uri), "{uri}");
        }
    }

    proptest! {
        /// Whatever a certificate's bytes become, its reader ends, and says only names that are text.
        #[test]
        fn no_certificate_breaks_its_reader(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let sans = vec![
                SanType::DnsName("a.svc.example".try_into().unwrap()),
                SanType::URI("spiffe://example/ns/a".try_into().unwrap()),
            ];
            let mut bytes = der("a", sans);
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            for der in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                let Some(read) = Certificate::read(der, [0; 32]) else { continue };
                let names = read.dns.iter().chain(&read.uris).chain(&read.emails);
                prop_assert!(names.clone().all(|name| name.bytes().all(|b| b.is_ascii_graphic())));
                let admin = Mapping { dns: Some("admin.example".into()), ..Mapping::default() };
                let is_said = read.dns.iter().any(|name| name == "admin.example");
                prop_assert_eq!(principal(&[admin], &read).is_some(), is_said);
            }
        }
    }
}
