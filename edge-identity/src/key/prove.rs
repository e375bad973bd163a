//! From the text that a request shows to the key that it is, or to the reason why not.

use std::sync::Arc;

use edge_common::Reason;

use super::format::well_formed;
use super::live::Key;
use super::pepper::{Digest, Peppers};
use super::ring::KeyRing;

/// By what keys are judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What they begin with.
    pub prefix: String,
    /// Whether those are refused that were sent where others could read them.
    pub refuse_exposed: bool,
}

/// A key that is good.
#[derive(Debug)]
pub struct Proof {
    /// The key.
    pub key: Arc<Key>,
    /// Its digest under the pepper in use, if it was found under a former one.
    pub renewed: Option<Digest>,
}

/// Finds and judges a presented key. Allocates nothing.
///
/// What is well formed costs the same whether it is unknown, wrong, expired or revoked: one that is
/// not there is judged in the form of a decoy.
///
/// # Errors
/// Why it is not good; the client must not learn which.
pub fn prove(
    ring: &KeyRing,
    peppers: &Peppers,
    rules: &Rules,
    text: &str,
    now_ms: u64,
) -> Result<Proof, Reason> {
    let (found, digest) = look_up(ring, peppers, rules, text)?;
    let verdict = found.as_deref().unwrap_or(&ring.decoy).check(now_ms, rules.refuse_exposed);
    match (found, verdict) {
        (Some(key), Ok(())) => {
            let renewed = (*key.digest() != digest).then_some(digest);
            Ok(Proof { key, renewed })
        }
        (Some(_), Err(reason)) => Err(reason),
        (None, _) => Err(Reason::CredentialInvalid),
    }
}

/// The key that this text is, good or not: for those that were seen where they should not be.
#[must_use]
pub fn recognize(ring: &KeyRing, peppers: &Peppers, rules: &Rules, text: &str) -> Option<Arc<Key>> {
    look_up(ring, peppers, rules, text).ok()?.0
}

/// The key, and its digest under the pepper in use.
fn look_up(
    ring: &KeyRing,
    peppers: &Peppers,
    rules: &Rules,
    text: &str,
) -> Result<(Option<Arc<Key>>, Digest), Reason> {
    if !well_formed(text, &rules.prefix) {
        return Err(Reason::CredentialInvalid);
    }
    let digest = peppers.current.digest(text);
    // All are tried, whichever it is under: a key that is found takes no less time than one that is not.
    let former = peppers.former.iter().map(|pepper| ring.by_digest(&pepper.digest(text)));
    Ok((former.fold(ring.by_digest(&digest), Option::or), digest))
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::super::{Mark, Pepper, Secret};
    use super::*;

    fn rules() -> Rules {
        Rules { prefix: "edged".into(), refuse_exposed: true }
    }

    fn peppers(current: u8, former: &[u8]) -> Peppers {
        let pepper = |byte: &u8| Pepper::new([*byte; 32]);
        Peppers { current: pepper(&current), former: former.iter().map(pepper).collect() }
    }

    fn ring_of(key: &Secret, pepper: u8) -> KeyRing {
        let digest = Pepper::new([pepper; 32]).digest(key.expose());
        KeyRing::load([(super::super::KeyRecord { digest, ..record(1) }, None)])
    }

    #[test]
    fn only_a_live_key_is_proved() {
        let (key, other) = (Secret::mint("edged", &[1; 32]), Secret::mint("edged", &[2; 32]));
        let ring = ring_of(&key, 9);
        let judge = |text: &str, now_ms| {
            prove(&ring, &peppers(9, &[]), &rules(), text, now_ms).map(|proof| *proof.key.id())
        };
        assert_eq!(judge(key.expose(), 1999), Ok(record(1).id));
        assert_eq!(judge(key.expose(), 2000), Err(Reason::CredentialExpired));
        assert_eq!(judge(other.expose(), 1500), Err(Reason::CredentialInvalid));
        assert_eq!(judge("edged_x_y", 1500), Err(Reason::CredentialInvalid));
        let found = ring.by_id(&record(1).id).unwrap();
        found.mark(Mark::Exposed);
        assert_eq!(judge(key.expose(), 1500), Err(Reason::CredentialExposed));
        found.revoke(1600);
        assert_eq!(judge(key.expose(), 1500), Err(Reason::CredentialRevoked));
        assert!(recognize(&ring, &peppers(9, &[]), &rules(), key.expose()).is_some());
        assert!(recognize(&ring, &peppers(9, &[]), &rules(), other.expose()).is_none());
    }

    #[test]
    fn a_key_under_a_former_pepper_is_found_and_to_be_renewed() {
        let key = Secret::mint("edged", &[1; 32]);
        let ring = ring_of(&key, 8);
        let judge = |peppers: &Peppers| prove(&ring, peppers, &rules(), key.expose(), 1500);
        assert!(judge(&peppers(9, &[])).is_err());
        let proof = judge(&peppers(9, &[7, 8])).unwrap();
        assert_eq!(proof.renewed, Some(Pepper::new([9; 32]).digest(key.expose())));
        assert_eq!(judge(&peppers(8, &[9])).unwrap().renewed, None);
    }
}
