//! Whose requests are counted together.

use std::hash::Hasher;

use http::header::HeaderName;
use siphasher::sip::SipHasher13;

use super::Facts;
use crate::place::Place;

/// A part of what a rule counts by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client's address, or its prefix; where several share it, that and who the caller is, if he is
    /// known.
    Source,
    /// Who the caller is, however that was proven. Such a rule speaks of known callers alone.
    User,
    /// The API key. Such a rule speaks of its holders alone.
    Key,
    /// The caller's tier.
    Tier,
    /// A claim of the caller; those without it are counted together.
    Claim(String),
    /// The route.
    Route,
    /// The method.
    Method,
    /// The host.
    Host,
    /// A header; requests without it are counted together.
    Header(HeaderName),
    /// The fingerprint of the TLS client.
    Ja4,
    /// Where the client's address is from, or whose it is; those of which nobody knows are counted
    /// together.
    Place(Place),
}

/// Where a request leads that is counted by these parts, for whoever knows the secret; `None` if what is counted so
/// does not speak of such a caller.
pub(super) fn hash(by: &[Part], secret: &[u8; 16], facts: &Facts<'_>) -> Option<u64> {
    let mut hash = SipHasher13::new_with_key(secret);
    for part in by {
        let mut write = |part: Option<&[u8]>| feed(&mut hash, part);
        match part {
            Part::Source => {
                hash.write_u64(facts.source.high());
                hash.write_u64(facts.source.low());
                if let Some(caller) = facts.caller.filter(|_| facts.is_shared) {
                    caller.user.iter().for_each(|part| feed(&mut hash, Some(part.as_bytes())));
                }
            }
            Part::User => facts.caller?.user.iter().for_each(|p| write(Some(p.as_bytes()))),
            Part::Key => write(Some(facts.caller?.key?.as_bytes())),
            Part::Tier => write(facts.caller.and_then(|c| c.tier).map(str::as_bytes)),
            Part::Claim(name) => {
                let claim = facts.caller.and_then(|caller| (caller.claim)(name));
                write(claim.as_deref().map(str::as_bytes));
            }
            Part::Route => write(Some(facts.route.as_bytes())),
            Part::Method => write(Some(facts.method.as_str().as_bytes())),
            Part::Host => write(Some(facts.host.as_bytes())),
            Part::Header(name) => write((facts.header)(name)),
            Part::Ja4 => write(facts.ja4.map(str::as_bytes)),
            Part::Place(place) => {
                let known = (facts.place)(*place).map(u64::to_ne_bytes);
                write(known.as_ref().map(<[u8; 8]>::as_slice));
            }
        }
    }
    Some(hash.finish())
}

/// Feeds a part to a hash: its length first, so that no two lists of parts run together; and all of it in
/// whole words, which the hash takes at once.
#[inline(always)]
fn feed(hash: &mut SipHasher13, part: Option<&[u8]>) {
    hash.write_u64(part.map_or(u64::MAX, |part| part.len() as u64));
    let (words, rest) = part.unwrap_or_default().as_chunks();
    words.iter().for_each(|word| hash.write_u64(u64::from_le_bytes(*word)));
    if !rest.is_empty() {
        hash.write_u64(rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    }
}
