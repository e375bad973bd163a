//! What authorities say of certificates after they have signed them: OCSP responses and revocation
//! lists.
//!
//! Signatures are not checked here: a list is by whoever looks a chain up in it, a response by the
//! client that it is stapled for. Here it is told whether either is of any use by now.

use aws_lc_rs::digest::{
    Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512, digest as digest_of,
};
use x509_parser::{
    asn1_rs::{Any, Class},
    prelude::{ASN1Time, CertificateRevocationList, FromDer as _, X509Certificate},
};

/// From when to when an OCSP response holds, in unix seconds; its last second is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// `thisUpdate`
    pub from_s: i64,
    /// `nextUpdate`
    pub until_s: i64,
}

/// Why an OCSP response is not to be stapled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseFault {
    /// It is none, or tells that the responder failed.
    #[error("is no good OCSP response")]
    Malformed,
    /// It says nothing of the certificate.
    #[error("is an OCSP response for another certificate")]
    Foreign,
    /// It says that the certificate was revoked.
    #[error("says that the certificate is revoked")]
    Revoked,
    /// The responder does not know the certificate.
    #[error("says that the certificate is unknown")]
    Unknown,
    /// It names no end, so nobody can tell when it is stale.
    #[error("does not say when there will be a newer one")]
    Endless,
}

/// How long an OCSP response (RFC 6960) says that a certificate is good. The chain is DER, the
/// certificate first; what comes next is its issuer.
///
/// # Errors
/// If it does not say so.
pub fn response(response: &[u8], chain: &[&[u8]]) -> Result<Term, ResponseFault> {
    let mut singles = Der(basic(response).ok_or(ResponseFault::Malformed)?);
    let asked = Asked::of(chain).ok_or(ResponseFault::Foreign)?;
    while !singles.0.is_empty() {
        let single =
            Der(singles.take(Class::Universal, SEQUENCE).ok_or(ResponseFault::Malformed)?);
        if let Some(told) = single.about(&asked).ok_or(ResponseFault::Malformed)? {
            return told;
        }
    }
    Err(ResponseFault::Foreign)
}

/// When the next one is due after a revocation list, DER, in unix seconds. `None` if it is none, or
/// does not say.
#[must_use]
pub fn list_ends_s(list: &[u8]) -> Option<i64> {
    let (_, list) = CertificateRevocationList::from_der(list).ok()?;
    list.next_update().map(|time| time.timestamp())
}

/// The `SEQUENCE OF SingleResponse` in a response that is one to its last byte, and a success.
fn basic(response: &[u8]) -> Option<&[u8]> {
    let mut whole = Der(response);
    let mut response = Der(whole.take(Class::Universal, SEQUENCE)?);
    let is_success = response.take(Class::Universal, ENUMERATED)? == [0];
    let mut bytes = Der(response.take(Class::ContextSpecific, 0)?);
    let mut bytes = Der(bytes.take(Class::Universal, SEQUENCE)?);
    let is_basic = bytes.take(Class::Universal, OID)? == OCSP_BASIC;
    if !whole.0.is_empty() || !is_success || !is_basic {
        return None;
    }
    let mut basic = Der(bytes.take(Class::Universal, OCTETS)?);
    let mut basic = Der(basic.take(Class::Universal, SEQUENCE)?);
    let mut data = Der(basic.take(Class::Universal, SEQUENCE)?);
    // The version may be left out; then come whose it is and when it was made.
    let _version = data.take(Class::ContextSpecific, 0);
    let _responder = data.next()?;
    let _made = data.take(Class::Universal, GENERALIZED_TIME)?;
    data.take(Class::Universal, SEQUENCE)
}

/// The certificate that a response is asked about.
struct Asked {
    issuer: Vec<u8>,
    /// `None`: the chain does not have the issuer.
    issuer_key: Option<Vec<u8>>,
    serial: Vec<u8>,
}

impl Asked {
    fn of(chain: &[&[u8]]) -> Option<Self> {
        let mut chain = chain.iter().map(|der| X509Certificate::from_der(der).ok());
        let (_, own) = chain.next()??;
        let key =
            |issuer: &X509Certificate<'_>| issuer.public_key().subject_public_key.data.to_vec();
        Some(Self {
            issuer: own.issuer().as_raw().to_vec(),
            issuer_key: chain.next().flatten().map(|(_, issuer)| key(&issuer)),
            serial: own.raw_serial().to_vec(),
        })
    }
}

/// What is left of a row of values in DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<Any<'a>> {
        let (rest, any) = Any::from_der(self.0).ok()?;
        self.0 = rest;
        Some(any)
    }

    /// What the next value holds, if it is of this kind; else it stays.
    fn take(&mut self, class: Class, tag: u32) -> Option<&'a [u8]> {
        let (rest, any) = Any::from_der(self.0).ok()?;
        (any.class() == class && any.tag().0 == tag).then(|| {
            self.0 = rest;
            any.data
        })
    }

    /// What a `SingleResponse` says of a certificate, if it is about it; `None`: it is malformed.
    #[expect(clippy::option_option, reason = "malformed, about another, or an answer")]
    fn about(mut self, asked: &Asked) -> Option<Option<Result<Term, ResponseFault>>> {
        let mut id = Der(self.take(Class::Universal, SEQUENCE)?);
        let mut algorithm = Der(id.take(Class::Universal, SEQUENCE)?);
        let algorithm = algorithm_of(algorithm.take(Class::Universal, OID)?);
        let issuer = id.take(Class::Universal, OCTETS)?;
        let issuer_key = id.take(Class::Universal, OCTETS)?;
        let serial = id.take(Class::Universal, INTEGER)?;
        let is_of = |bytes: &[u8], digest: &[u8]| {
            algorithm.is_some_and(|algorithm| digest_of(algorithm, bytes).as_ref() == digest)
        };
        if serial != asked.serial
            || !is_of(&asked.issuer, issuer)
            || asked.issuer_key.as_ref().is_some_and(|key| !is_of(key, issuer_key))
        {
            return Some(None);
        }
        let status = self.next()?;
        let (rest, from) = ASN1Time::from_der(self.0).ok()?;
        self.0 = rest;
        let until = match self.take(Class::ContextSpecific, 0) {
            Some(until) => Some(ASN1Time::from_der(until).ok()?.1),
            None => None,
        };
        Some(Some(match (status.class(), status.tag().0, until) {
            (Class::ContextSpecific, 0, Some(until)) => {
                Ok(Term { from_s: from.timestamp(), until_s: until.timestamp() })
            }
            (Class::ContextSpecific, 0, None) => Err(ResponseFault::Endless),
            (Class::ContextSpecific, 1, _) => Err(ResponseFault::Revoked),
            _ => Err(ResponseFault::Unknown),
        }))
    }
}

fn algorithm_of(oid: &[u8]) -> Option<&'static Algorithm> {
    match oid {
        [0x2b, 0x0e, 0x03, 0x02, 0x1a] => Some(&SHA1_FOR_LEGACY_USE_ONLY),
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last] => match last {
            1 => Some(&SHA256),
            2 => Some(&SHA384),
            3 => Some(&SHA512),
            _ => None,
        },
        _ => None,
    }
}

const INTEGER: u32 = 2;
const OCTETS: u32 = 4;
const OID: u32 = 6;
const ENUMERATED: u32 = 10;
const SEQUENCE: u32 = 16;
const GENERALIZED_TIME: u32 = 24;
/// `id-pkix-ocsp-basic`, 1.3.6.1.5.5.7.48.1.1
const OCSP_BASIC: [u8; 9] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use super::*;

    /// An authority, and a certificate of this number under it, both DER.
    fn chain(name: &str, serial: u64) -> [Vec<u8>; 2] {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().der().to_vec();
        let mut leaf = CertificateParams::default();
        leaf.serial_number = Some(SerialNumber::from(serial));
        let own = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&own, &Issuer::from_params(&params, &key)).unwrap();
        [leaf.der().to_vec(), ca]
    }

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = match content.len() {
            short @ 0..128 => vec![short as u8],
            long => vec![0x82, (long >> 8) as u8, long as u8],
        };
        [&[tag], &length[..], &content].concat()
    }

    /// An answer of this status for a chain's first certificate, from and until when.
    fn single(chain: &[Vec<u8>; 2], oid: &[u8], status: u8, until: Option<&str>) -> Vec<u8> {
        let asked = [&chain[0][..], &chain[1][..]];
        let asked = Asked::of(&asked).unwrap();
        let digest = |bytes: &[u8]| {
            let of = digest_of(algorithm_of(oid).unwrap(), bytes);
            der(4, &[of.as_ref()])
        };
        let algorithm = der(0x30, &[&der(6, &[oid]), &[5, 0]]);
        let key = digest(asked.issuer_key.as_ref().unwrap());
        let id = der(0x30, &[&algorithm, &digest(&asked.issuer), &key, &der(2, &[&asked.serial])]);
        let from = der(24, &[b"20270101000000Z"]);
        let until = until.map(|until| der(0xa0, &[&der(24, &[until.as_bytes()])]));
        der(0x30, &[&id, &[status, 0], &from, &until.unwrap_or_default()])
    }

    fn answer(singles: &[&[u8]]) -> Vec<u8> {
        let responder = der(0xa2, &[&der(4, &[&[7; 20]])]);
        let made = der(24, &[b"20270101000000Z"]);
        let data = der(0x30, &[&responder, &made, &der(0x30, singles)]);
        let basic = der(0x30, &[&data, &der(0x30, &[]), &der(3, &[&[0, 1]])]);
        let bytes = der(0x30, &[&der(6, &[&OCSP_BASIC]), &der(4, &[&basic])]);
        der(0x30, &[&[10, 1, 0], &der(0xa0, &[&bytes])])
    }

    const SHA1_OID: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
    const SHA256_OID: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

    fn said(bytes: &[u8], chain: &[Vec<u8>]) -> Result<Term, ResponseFault> {
        response(bytes, &chain.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn a_response_is_for_one_certificate_and_for_a_time() {
        let (own, other) = (chain("one", 1234), chain("two", 1234));
        let until = Some("20270102000000Z");
        let term = Ok(Term { from_s: 1_798_761_600, until_s: 1_798_848_000 });
        for oid in [SHA1_OID, SHA256_OID] {
            let good = answer(&[&single(&own, oid, 0x80, until)]);
            assert_eq!(said(&good, &own), term);
            assert_eq!(said(&good, &own[..1]), term, "without the issuer");
            // The number is the same, the authority is not, or is another of its name.
            assert_eq!(said(&good, &other), Err(ResponseFault::Foreign));
            let namesake = [own[0].clone(), chain("one", 1)[1].clone()];
            assert_eq!(said(&good, &namesake), Err(ResponseFault::Foreign));
            let next = chain("one", 1235);
            assert_eq!(said(&good, &next[..1]), Err(ResponseFault::Foreign));
            assert_eq!(said(&good, &[]), Err(ResponseFault::Foreign));
            let both =
                answer(&[&single(&other, oid, 0x81, until), &single(&own, oid, 0x80, until)]);
            assert_eq!(said(&both, &own), term);
        }
        let status = |status, until| said(&answer(&[&single(&own, SHA1_OID, status, until)]), &own);
        assert_eq!(status(0xa1, until), Err(ResponseFault::Revoked));
        assert_eq!(status(0x82, until), Err(ResponseFault::Unknown));
        assert_eq!(status(0x80, None), Err(ResponseFault::Endless));
        assert_eq!(status(0x80, Some("tomorrow")), Err(ResponseFault::Malformed));
        let good = answer(&[&single(&own, SHA1_OID, 0x80, until)]);
        for bytes in
            [&good[..good.len() - 1], &[&good[..], &[0]].concat(), b"", &[0x30, 3, 10, 1, 6]]
        {
            assert_eq!(said(bytes, &own), Err(ResponseFault::Malformed));
        }
    }

    #[test]
    fn a_list_says_when_the_next_is_due() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2027, 1, 1),
            next_update: date_time_ymd(2027, 1, 2),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::from_params(&params, &key)).unwrap();
        assert_eq!(list_ends_s(list.der()), Some(1_798_848_000));
        assert_eq!(list_ends_s(&list.der()[1..]), None);
    }

    proptest! {
        /// Whatever a response's bytes become, its reader ends, and no byte makes it another's.
        #[test]
        fn no_response_breaks_its_reader(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let (own, other) = (chain("one", 1), chain("two", 2));
            let mut bytes = answer(&[&single(&own, SHA1_OID, 0x80, Some("20270102000000Z"))]);
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            prop_assert!(said(&bytes, &other).is_err());
            let _ = said(&bytes, &own);
        }
    }
}
