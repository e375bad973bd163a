//! Which of several servers a request goes to.

use http::HeaderMap;
use http::header::HeaderName;

use crate::csrf::cookies;

/// How requests are spread over an upstream's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn, as often as its weight says.
    RoundRobin,
    /// The less loaded of two that chance picks.
    LeastLoaded,
    /// The same server for the same key, for as long as it is fit.
    Hash(HashBy),
}

/// What of a request chooses its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    Source,
    /// A header field; without it, the client's address.
    Header(HeaderName),
    /// A cookie; without it, the client's address.
    Cookie(String),
    /// The path.
    Path,
}

impl HashBy {
    /// The key of a request.
    #[must_use]
    pub fn key(&self, source: &[u8], path: &str, headers: &HeaderMap) -> u64 {
        let told = match self {
            Self::Source => None,
            Self::Path => Some(path.as_bytes()),
            Self::Header(name) => headers.get(name).map(http::HeaderValue::as_bytes),
            Self::Cookie(name) => cookies(headers, name).next().map(str::as_bytes),
        };
        hash(told.unwrap_or(source))
    }
}

/// A server that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its place among the upstream's servers.
    pub index: usize,
    /// How much of the requests it should get; more than 0.
    pub weight: u64,
    /// Requests that it has in flight.
    pub load: u64,
    /// [`hash`] of what it is called, which other servers do not change.
    pub name: u64,
}

/// Where the round of one worker stands: each server's claim on the next request.
#[derive(Clone, Debug, Default)]
pub struct Round(Vec<i64>);

impl Round {
    /// The next one. Each gains its weight, and whoever has most pays for all: so that a heavy
    /// server's turns are spread and not in a row (nginx's "smooth" weighted round robin).
    pub fn next(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let last = candidates.iter().map(|c| c.index).max()?;
        if self.0.len() <= last {
            self.0.resize(last + 1, 0);
        }
        let mut total = 0;
        for candidate in candidates {
            let weight = i64::try_from(candidate.weight).unwrap_or(i64::MAX / 1024);
            self.0[candidate.index] += weight;
            total += weight;
        }
        // The first of equals.
        let best = candidates.iter().rev().max_by_key(|c| self.0[c.index])?.index;
        self.0[best] -= total;
        Some(best)
    }
}

/// The less loaded of two that chance picks, load being measured by weight (Mitzenmacher, "The
/// power of two choices", 2001). `random` is 64 random bits.
#[must_use]
pub fn least_loaded(candidates: &[Candidate], random: u64) -> Option<usize> {
    let count = candidates.len() as u64;
    if count == 0 {
        return None;
    }
    let first = (random & 0xffff_ffff) % count;
    // Another one than the first, if there is one.
    let second = if count == 1 { 0 } else { (first + 1 + (random >> 32) % (count - 1)) % count };
    let [a, b] = [first, second].map(|at| candidates[at as usize]);
    // (load + 1) / weight, compared without dividing.
    let cost =
        |one: Candidate, other: Candidate| (u128::from(one.load) + 1) * u128::from(other.weight);
    Some(if cost(b, a) < cost(a, b) { b.index } else { a.index })
}

/// The server for a key: that with the highest score, which each has by itself, so that one that
/// comes or goes moves its own keys and no others (rendezvous hashing, Thaler and Ravishankar,
/// 1998; the weights as by Schindelhauer and Schomaker, 2005).
#[must_use]
pub fn hashed(candidates: &[Candidate], key: u64) -> Option<usize> {
    let score = |candidate: &Candidate| {
        // Within (0, 1): the 53 bits that a fraction holds.
        let draw = ((mix(key ^ candidate.name) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        candidate.weight as f64 / -draw.ln()
    };
    let best = candidates.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    best.map(|candidate| candidate.index)
}

/// A number for a text, the same in every process: FNV-1a, with its bits mixed.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Makes each bit depend on all (the finish of `splitmix64`, Steele, Lea and Flood, 2014).
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(weights: &[u64]) -> Vec<Candidate> {
        let of = |(index, weight): (usize, &u64)| Candidate {
            index,
            weight: *weight,
            load: 0,
            name: hash(format!("10.0.0.{index}:80").as_bytes()),
        };
        weights.iter().enumerate().map(of).collect()
    }

    #[test]
    fn turns_are_as_many_as_the_weights_and_spread() {
        let (servers, mut round) = (servers(&[5, 1, 1]), Round::default());
        let turns: Vec<_> = (0..7).filter_map(|_| round.next(&servers)).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(round.next(&[]), None);
    }

    #[test]
    fn a_server_that_was_away_is_not_flooded_when_it_comes_back() {
        let (all, mut round) = (servers(&[1, 1, 1]), Round::default());
        for _ in 0..1000 {
            round.next(&all[..2]);
        }
        let turns: Vec<_> = (0..30).filter_map(|_| round.next(&all)).collect();
        assert_eq!(turns.iter().filter(|turn| **turn == 2).count(), 10);
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let mut two = servers(&[1, 1]);
        two[0].load = 5;
        for random in [0, 1, 1 << 32, u64::MAX] {
            assert_eq!(least_loaded(&two, random), Some(1));
        }
        // Of twice the weight and less than twice the load.
        let mut two = servers(&[2, 1]);
        (two[0].load, two[1].load) = (4, 3);
        assert_eq!(least_loaded(&two, 0), Some(0));
        assert_eq!(least_loaded(&two[..1], 7), Some(0));
        assert_eq!(least_loaded(&[], 7), None);
    }

    #[test]
    fn two_choices_keep_loads_level() {
        let mut servers = servers(&[1; 10]);
        for n in 0..10_000 {
            let chosen = least_loaded(&servers, mix(n)).unwrap();
            servers[chosen].load += 1;
        }
        let loads: Vec<_> = servers.iter().map(|server| server.load).collect();
        assert!(loads.iter().all(|load| (990..=1010).contains(load)), "{loads:?}");
    }

    #[test]
    fn keys_are_spread_by_weight() {
        let servers = servers(&[1, 2, 1]);
        let mut counts = [0_u32; 3];
        for key in 0..40_000_u64 {
            counts[hashed(&servers, mix(key)).unwrap()] += 1;
        }
        for (count, share) in counts.iter().zip([10_000, 20_000, 10_000]) {
            assert!(count.abs_diff(share) < share / 20, "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn a_server_that_goes_moves_its_own_keys_alone(key: u64, count in 2_usize..9, gone in 0_usize..9) {
            let all = servers(&vec![1; count]);
            let gone = gone % count;
            let left: Vec<_> = all.iter().copied().filter(|server| server.index != gone).collect();
            let (before, after) = (hashed(&all, key).unwrap(), hashed(&left, key).unwrap());
            prop_assert!(before == gone || before == after);
        }
    }

    #[test]
    fn the_key_is_what_the_configuration_names() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", "u".parse().unwrap());
        headers.insert("cookie", "a=1; sid=s".parse().unwrap());
        let key = |by: HashBy| by.key(b"source", "/path", &headers);
        assert_eq!(key(HashBy::Source), hash(b"source"));
        assert_eq!(key(HashBy::Path), hash(b"/path"));
        assert_eq!(key(HashBy::Header(HeaderName::from_static("x-user"))), hash(b"u"));
        assert_eq!(key(HashBy::Header(HeaderName::from_static("x-none"))), hash(b"source"));
        assert_eq!(key(HashBy::Cookie("sid".into())), hash(b"s"));
        assert_eq!(key(HashBy::Cookie("none".into())), hash(b"source"));
    }
}
