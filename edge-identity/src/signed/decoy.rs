//! What verifies nothing, in the place of a key that is not there, and takes as long.

use std::sync::LazyLock;

use super::key::{Algorithm, Masters, PublicKey, Verifier};

/// Public keys whose private halves nobody has.
static DECOYS: LazyLock<Vec<PublicKey>> = LazyLock::new(|| {
    let pem = include_str!("decoys.pem");
    let blocks = pem.split_inclusive("-----END PUBLIC KEY-----\n");
    let keys = blocks.flat_map(|block| {
        Algorithm::PUBLIC.into_iter().filter_map(|of| PublicKey::from_pem(block, Some(of)).ok())
    });
    keys.collect()
});

/// A decoy for a signature by this algorithm; where the signature does not say by which, for the one whose
/// signatures are as long.
pub(super) fn verifier<'a>(
    masters: &'a Masters,
    key_id: &str,
    claimed: Option<&str>,
    signature: &[u8],
) -> Option<Verifier<'a>> {
    let named = Algorithm::PUBLIC.into_iter().find(|of| claimed == Some(of.name()));
    let algorithm = named.or(match (claimed, signature.len()) {
        (None, 64) => Some(Algorithm::Ed25519),
        (None, 96) => Some(Algorithm::EcdsaP384Sha384),
        (None, 256..) => Some(Algorithm::RsaPssSha512),
        _ => None,
    });
    let public = algorithm.and_then(|of| DECOYS.iter().find(|key| key.algorithm() == of));
    public.map(Verifier::Public).or_else(|| masters.decoy(key_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_decoy_for_every_algorithm() {
        let masters = Masters::new([&[7_u8; 32][..]]);
        let of = |claimed, bytes| {
            verifier(&masters, "x", claimed, &vec![0; bytes]).map(|decoy| decoy.algorithm())
        };
        for algorithm in Algorithm::PUBLIC.into_iter().chain([Algorithm::HmacSha256]) {
            assert_eq!(of(Some(algorithm.name()), 1), Some(algorithm));
        }
        for (bytes, algorithm) in [
            (0, Algorithm::HmacSha256),
            (32, Algorithm::HmacSha256),
            (64, Algorithm::Ed25519),
            (96, Algorithm::EcdsaP384Sha384),
            (256, Algorithm::RsaPssSha512),
        ] {
            assert_eq!(of(None, bytes), Some(algorithm), "{bytes}");
        }
        assert_eq!(of(Some("other"), 64), Some(Algorithm::HmacSha256));
        // Without a master secret no key signs by one.
        assert!(verifier(&Masters::default(), "x", None, &[0; 32]).is_none());
    }
}
