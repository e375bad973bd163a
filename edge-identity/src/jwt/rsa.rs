//! What must hold of an RSA key before its signatures mean anything.

use super::jwk::KeyFault;

/// Checks a modulus and an exponent, big-endian.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn check(n: &[u8], e: &[u8]) -> Result<(), KeyFault> {
    if n.first().is_none_or(|b| *b == 0) || e.first().is_none_or(|b| *b == 0) {
        // RFC 7518 6.3.1: no more bytes than the number needs.
        return Err(KeyFault::Malformed);
    }
    let bits = n.len() * 8 - n[0].leading_zeros() as usize;
    if !(2048..=8192).contains(&bits) || is_even(n) {
        return Err(KeyFault::Modulus);
    }
    let exponent = e.iter().take(9).fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte));
    // SP 800-56B 6.2: from 65537 on; above 33 bits the library would not take it, and a verifier
    // would work for whoever chose it.
    if is_even(e) || !(65_537..1 << 33).contains(&exponent) {
        return Err(KeyFault::Exponent);
    }
    if is_roca(n) { Err(KeyFault::Roca) } else { Ok(()) }
}

fn is_even(number: &[u8]) -> bool {
    number.last().is_none_or(|byte| byte & 1 == 0)
}

/// Whether a modulus has the fingerprint of CVE-2017-15361: modulo every small prime it is a power
/// of 65537 (Nemec et al., "The Return of Coppersmith's Attack", 2017, section 2). A sound modulus
/// has it with a chance below 2^-100.
fn is_roca(n: &[u8]) -> bool {
    PRIMES.iter().all(|prime| {
        let rest = n.iter().fold(0, |rest, byte| (rest << 8 | u32::from(*byte)) % prime);
        let mut power = 1;
        loop {
            if power == rest {
                return true;
            }
            power = power * (65_537 % prime) % prime;
            if power == 1 {
                return false;
            }
        }
    })
}

/// The odd primes up to 167: all that went into the smallest of those keys.
const PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

#[cfg(test)]
mod tests {
    use super::*;

    const F4: &[u8] = &[1, 0, 1];

    /// 65537^128: an odd number of 2049 bits, and a power of 65537 modulo everything.
    fn roca() -> Vec<u8> {
        let mut number = vec![1_u8];
        for _ in 0..128 {
            // n * 65537 = n << 16 + n
            let mut shifted = number.clone();
            shifted.extend([0, 0]);
            let mut carry = 0_u16;
            for i in 0..shifted.len() {
                let at = shifted.len() - 1 - i;
                let own = number.len().checked_sub(i + 1).map_or(0, |j| u16::from(number[j]));
                let sum = u16::from(shifted[at]) + own + carry;
                shifted[at] = (sum & 0xff) as u8;
                carry = sum >> 8;
            }
            if carry > 0 {
                shifted.insert(0, carry as u8);
            }
            number = shifted;
        }
        number
    }

    #[test]
    fn weak_keys_are_known() {
        let good = [vec![0xff; 255], vec![0xfd]].concat();
        assert_eq!(check(&good, F4), Ok(()));
        assert_eq!(check(&good[..255], F4), Err(KeyFault::Modulus));
        assert_eq!(check(&[&[0x7f], &good[1..]].concat(), F4), Err(KeyFault::Modulus));
        assert_eq!(check(&[vec![0xff; 1024], vec![1]].concat(), F4), Err(KeyFault::Modulus));
        assert_eq!(check(&[vec![0xff; 255], vec![0xfe]].concat(), F4), Err(KeyFault::Modulus));
        assert_eq!(check(&[&[0][..], &good].concat(), F4), Err(KeyFault::Malformed));
        assert_eq!(check(&[], F4), Err(KeyFault::Malformed));
        for e in [&[1][..], &[3], &[0xff, 0xff], &[1, 0, 0], &[2, 0, 0, 0, 1], &[1; 300]] {
            assert_eq!(check(&good, e), Err(KeyFault::Exponent), "{e:?}");
        }
        assert_eq!(check(&good, &[1, 0xff, 0xff, 0xff, 0xff]), Ok(()));
        assert_eq!(check(&good, &[0, 1, 0, 1]), Err(KeyFault::Malformed));
    }

    #[test]
    fn keys_of_the_broken_generator_are_known() {
        assert_eq!(roca().len(), 257);
        assert_eq!(check(&roca(), F4), Err(KeyFault::Roca));
        let mut other = roca();
        other[100] ^= 1;
        assert_eq!(check(&other, F4), Ok(()));
    }
}
