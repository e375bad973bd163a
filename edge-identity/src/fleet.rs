//! Bans that a fleet of edges shares: what a record says, how it is sealed, and what many of them,
//! in whatever order and however often they come, amount to.
//!
//! Whoever holds the server between the edges can lose records and repeat them, but make none: each
//! is sealed under the fleet's secret. A repeated ban ends when it always did, and a repeated lift
//! ends only bans that were older than it.

mod bans;
mod own;

use std::{fmt, net::IpAddr};

use edge_common::ClientWidth;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use subtle::ConstantTimeEq as _;

pub use self::{
    bans::{Bans, Change},
    own::Own,
};

/// What an edge tells the others of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The client: an address, or the first of its network.
    pub client: IpAddr,
    /// What.
    pub act: Act,
    /// When it was decided, in unix milliseconds.
    pub at_ms: u64,
    /// When it means nothing any more, in unix milliseconds.
    pub until_ms: u64,
    /// The edge that decided.
    pub node: String,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The client is banned.
    Ban {
        /// How many bans it has had there, this one included.
        strikes: u32,
        /// The name of the reason, or the words of an operator.
        reason: String,
    },
    /// What was decided of it before, by whomever, is void.
    Lift,
    /// What the same edge had decided of it before for this reason is void, and nothing else.
    Revoke {
        /// As that of the ban.
        reason: String,
    },
}

/// Why a record is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is no record.
    Malformed,
    /// It was sealed under another secret, for another fleet, or changed.
    Forged,
    /// It is dated later than a clock can be wrong.
    Future,
    /// It is over.
    Over,
    /// There is no room for another client.
    Full,
    /// Its edge tells clients apart by another width.
    Width,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 6] =
        [Self::Malformed, Self::Forged, Self::Future, Self::Over, Self::Full, Self::Width];

    /// The word for it, in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Future => "future",
            Self::Over => "over",
            Self::Full => "full",
            Self::Width => "width",
        }
    }
}

/// What seals a fleet's records, and what leases of its limits are written in.
#[derive(Clone)]
pub struct Seal {
    hasher: blake3::Hasher,
    /// How wide a client is.
    width: ClientWidth,
}

impl PartialEq for Seal {
    fn eq(&self, other: &Self) -> bool {
        self.mac("", "") == other.mac("", "")
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(masked)")
    }
}

impl Seal {
    /// The seal of the fleet of this name.
    #[must_use]
    pub fn new(fleet: &str, secret: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("edged 2026 fleet seal v1");
        hasher.update(&(fleet.len() as u64).to_le_bytes()).update(fleet.as_bytes()).update(secret);
        let hasher = blake3::Hasher::new_keyed(hasher.finalize().as_bytes());
        Self { hasher, width: ClientWidth::USUAL }
    }

    /// As that of an edge to which clients are so wide: records of others mean others to it.
    #[must_use]
    pub const fn of_clients(mut self, width: ClientWidth) -> Self {
        self.width = width;
        self
    }

    /// A secret of the fleet's that leads to nothing else; the same on every edge.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; 16] {
        let mac = self.mac(&format!("derive {purpose}"), "");
        std::array::from_fn(|n| mac.as_bytes()[n])
    }

    /// A text with its seal behind it. `purpose` keeps one kind of text from standing for another.
    #[must_use]
    pub fn seal(&self, purpose: &str, text: &str) -> String {
        format!("{text} {}", self.mac(purpose, text).to_hex())
    }

    /// The text, if its seal is good.
    ///
    /// # Errors
    /// [`Fault::Malformed`] or [`Fault::Forged`].
    pub fn open<'t>(&self, purpose: &str, sealed: &'t str) -> Result<&'t str, Fault> {
        let (text, seal) = sealed.rsplit_once(' ').ok_or(Fault::Malformed)?;
        let seal = blake3::Hash::from_hex(seal).map_err(|_| Fault::Malformed)?;
        let is_good = self.mac(purpose, text).as_bytes().ct_eq(seal.as_bytes());
        if bool::from(is_good) { Ok(text) } else { Err(Fault::Forged) }
    }

    fn mac(&self, purpose: &str, text: &str) -> blake3::Hash {
        let mut hasher = self.hasher.clone();
        hasher.update(purpose.as_bytes()).update(b"\n").update(text.as_bytes()).finalize()
    }
}

impl Record {
    /// The record as it is shared: `ban ADDRESS AT UNTIL NODE STRIKES REASON SEAL`,
    /// `lift ADDRESS AT UNTIL NODE SEAL` or `revoke ADDRESS AT UNTIL NODE REASON SEAL`. A reason may be of any words: what is no [`is_word`] in it
    /// is percent-encoded. An address has its prefix length behind it, `/48`, unless that is the usual one.
    #[must_use]
    pub fn seal(&self, seal: &Seal) -> String {
        let Self { client, act, at_ms, until_ms, node } = self;
        let bits = match bits(client, seal.width) {
            own if own == bits(client, ClientWidth::USUAL) => String::new(),
            own => format!("/{own}"),
        };
        let text = match act {
            Act::Ban { strikes, reason } => {
                let reason = utf8_percent_encode(reason, NO_WORD);
                format!("ban {client}{bits} {at_ms} {until_ms} {node} {strikes} {reason}")
            }
            Act::Lift => format!("lift {client}{bits} {at_ms} {until_ms} {node}"),
            Act::Revoke { reason } => {
                let reason = utf8_percent_encode(reason, NO_WORD);
                format!("revoke {client}{bits} {at_ms} {until_ms} {node} {reason}")
            }
        };
        seal.seal(PURPOSE, &text)
    }

    /// Reads a record that is good at a time.
    ///
    /// # Errors
    /// Why it is not.
    pub fn open(sealed: &str, seal: &Seal, now_ms: u64) -> Result<Self, Fault> {
        if sealed.len() > RECORD_BYTES_MAX {
            return Err(Fault::Malformed);
        }
        let text = seal.open(PURPOSE, sealed)?;
        let (record, width) = Self::parse(text).ok_or(Fault::Malformed)?;
        if width != bits(&record.client, seal.width) {
            return Err(Fault::Width);
        }
        let latest_ms = now_ms.saturating_add(SKEW_MS);
        if record.at_ms > latest_ms || record.until_ms > latest_ms.saturating_add(LENGTH_MS_MAX) {
            return Err(Fault::Future);
        }
        if record.until_ms <= now_ms {
            return Err(Fault::Over);
        }
        Ok(record)
    }

    /// And how wide its client is.
    fn parse(text: &str) -> Option<(Self, u32)> {
        let mut words = text.split(' ');
        let kind = words.next()?;
        let client = words.next()?;
        let (client, width) = client.split_once('/').map_or((client, None), |(a, b)| (a, Some(b)));
        let client = client.parse::<IpAddr>().ok()?.to_canonical();
        let width = width.map_or(Some(bits(&client, ClientWidth::USUAL)), |it| it.parse().ok())?;
        let (at_ms, until_ms) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let node = word(words.next()?)?;
        let act = match kind {
            "ban" => {
                Act::Ban { strikes: words.next()?.parse().ok()?, reason: reason(words.next()?)? }
            }
            "lift" => Act::Lift,
            "revoke" => Act::Revoke { reason: reason(words.next()?)? },
            _ => return None,
        };
        words.next().is_none().then_some((Self { client, act, at_ms, until_ms, node }, width))
    }

    /// What it is about, beside the client; `None`: all that was decided.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match &self.act {
            Act::Ban { reason, .. } | Act::Revoke { reason } => Some(reason),
            Act::Lift => None,
        }
    }

    /// Whether it ends a ban of its client.
    #[must_use]
    pub fn voids(&self, ban: &Self) -> bool {
        let is_meant = match &self.act {
            Act::Ban { .. } => false,
            Act::Lift => true,
            Act::Revoke { .. } => self.is_like(ban),
        };
        is_meant && ban.at_ms <= self.at_ms
    }

    /// Whether both are of one edge and for one reason.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.node == other.node && self.reason() == other.reason()
    }
}

/// A reason out of a record. It is shown to operators as it is.
fn reason(text: &str) -> Option<String> {
    let reason = percent_decode_str(text).decode_utf8().ok()?.into_owned();
    let fits = reason.len() <= REASON_BYTES_MAX && !reason.chars().any(char::is_control);
    fits.then_some(reason)
}

/// How wide a client of this address's family is.
const fn bits(client: &IpAddr, width: ClientWidth) -> u32 {
    if client.is_ipv4() { width.v4 } else { width.v6 }
}

/// A name of a node or a fleet.
fn word(text: &str) -> Option<String> {
    is_word(text).then(|| text.to_owned())
}

/// Whether a text is 1 to 64 letters, digits and `-_.`.
#[must_use]
pub fn is_word(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(fits)
}

const PURPOSE: &str = "ban";
/// What a word has no place for.
const NO_WORD: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
/// The longest record, in bytes: with the longest reason that an operator can give, all of it encoded.
const RECORD_BYTES_MAX: usize = 1_280;
/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 256;
/// By how much the clocks of a fleet may differ.
pub const SKEW_MS: u64 = 300_000;
/// The longest ban that an edge takes from another: a year.
const LENGTH_MS_MAX: u64 = 366 * 86_400_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn ban(client: &str, at: u64, until: u64, node: &str) -> Record {
        let act = Act::Ban { strikes: 1, reason: "scan".into() };
        let (at_ms, until_ms) = (NOW + at, NOW + until);
        Record { client: client.parse().unwrap(), act, at_ms, until_ms, node: node.into() }
    }

    fn lift(client: &str, at: u64, until: u64) -> Record {
        Record { act: Act::Lift, ..ban(client, at, until, "z") }
    }

    fn seal() -> Seal {
        Seal::new("edged", &[7; 32])
    }

    #[test]
    fn a_record_is_read_as_it_was_sealed() {
        let act = Act::Revoke { reason: "sshd jail".into() };
        let revoked = Record { act, ..ban("192.0.2.1", 1, 9, "a") };
        for record in [ban("192.0.2.1", 1, 9, "a"), lift("2001:db8::", 1, 9), revoked] {
            assert_eq!(Record::open(&record.seal(&seal()), &seal(), NOW), Ok(record));
        }
    }

    #[test]
    fn a_reason_may_be_of_any_words() {
        let long = "\u{fc}".repeat(128);
        for (reason, is_plain) in [
            ("not_found", true),
            ("seen in the log", false),
            ("100% of it", false),
            ("", true),
            (long.as_str(), false),
        ] {
            let act = Act::Ban { strikes: 1, reason: reason.into() };
            let record = Record { act, ..ban("2001:db8:1:2:3:4:5:6", 1, 9, &"n".repeat(64)) };
            let sealed = record.seal(&seal());
            assert_eq!(sealed.contains(reason), is_plain, "{sealed}");
            assert_eq!(Record::open(&sealed, &seal(), NOW), Ok(record));
        }
        for reason in ["a\u{1b}[2J", "a\nb", "\u{7f}", &"n".repeat(REASON_BYTES_MAX + 1)] {
            let act = Act::Ban { strikes: 1, reason: reason.to_owned() };
            let sealed = Record { act, ..ban("192.0.2.1", 1, 9, "a") }.seal(&seal());
            assert_eq!(Record::open(&sealed, &seal(), NOW), Err(Fault::Malformed));
        }
    }

    #[test]
    fn whoever_has_no_secret_makes_none() {
        let sealed = ban("192.0.2.1", 1, 9, "a").seal(&seal());
        let open = |text: &str, seal: &Seal| Record::open(text, seal, NOW).unwrap_err();
        assert_eq!(open(&sealed, &Seal::new("edged", &[8; 32])), Fault::Forged);
        assert_eq!(open(&sealed, &Seal::new("other", &[7; 32])), Fault::Forged);
        assert_eq!(open(&sealed.replace("192.0.2.1", "192.0.2.2"), &seal()), Fault::Forged);
        assert_eq!(open(&sealed.replace("ban", "lift"), &seal()), Fault::Forged);
        let text = "ban 192.0.2.1 1 2 a 1 scan";
        assert_eq!(open(&seal().seal("lease", text), &seal()), Fault::Forged);
        assert_eq!(open(text, &seal()), Fault::Malformed);
        assert_eq!(open("", &seal()), Fault::Malformed);
        assert_eq!(open(&seal().seal(PURPOSE, "ban x 1 2 a 1 scan"), &seal()), Fault::Malformed);
        for cut in 0..sealed.len() {
            assert!(Record::open(&sealed[..cut], &seal(), NOW).is_err(), "{cut}");
        }
    }

    #[test]
    fn clients_of_another_width_are_others() {
        let seal = |v4, v6| seal().of_clients(ClientWidth { v4, v6 });
        let (v4, v6) = (ban("192.0.2.0", 1, 9, "a"), lift("2001:db8::", 1, 9));
        let open = |record: &Record, by: &Seal, at: &Seal| Record::open(&record.seal(by), at, NOW);
        for record in [&v4, &v6] {
            for (own, other) in [(seal(24, 48), seal(32, 64)), (seal(32, 64), seal(24, 48))] {
                assert_eq!(open(record, &own, &own), Ok(record.clone()));
                assert_eq!(open(record, &own, &other), Err(Fault::Width));
            }
        }
        // What families do not differ in, or is usual, is said as it always was.
        assert_eq!(open(&v4, &seal(32, 48), &seal(32, 64)), Ok(v4.clone()));
        assert!(v4.seal(&seal(32, 64)).starts_with("ban 192.0.2.0 "));
        assert!(v6.seal(&seal(24, 48)).starts_with("lift 2001:db8::/48 "));
    }

    #[test]
    fn seals_differ_by_secret_and_by_fleet() {
        assert_eq!(seal(), seal());
        for other in [Seal::new("edged", &[8; 32]), Seal::new("other", &[7; 32])] {
            assert_ne!(other, seal());
        }
    }

    #[test]
    fn what_is_over_or_not_yet_is_not_taken() {
        let open = |record: Record| Record::open(&record.seal(&seal()), &seal(), NOW);
        assert_eq!(open(ban("192.0.2.1", 0, 0, "a")), Err(Fault::Over));
        assert_eq!(open(ban("192.0.2.1", SKEW_MS + 1, SKEW_MS + 9, "a")), Err(Fault::Future));
        let long = ban("192.0.2.1", 0, LENGTH_MS_MAX + SKEW_MS + 1, "a");
        assert_eq!(open(long), Err(Fault::Future));
    }

    #[test]
    fn a_lift_ends_what_was_before_it_and_nothing_later() {
        let mut bans = Bans::default();
        let mut merge = |record| bans.merge(record, 10).unwrap();
        let first = ban("192.0.2.1", 10, 100, "a");
        assert_eq!(merge(first.clone()), [Change::Ban(first.clone())]);
        assert_eq!(merge(first.clone()), []);
        // A shorter one of another edge changes nothing as long as the longer holds.
        let (second, early) = (ban("192.0.2.1", 20, 50, "b"), lift("192.0.2.1", 15, 100));
        assert_eq!(merge(second.clone()), []);
        assert_eq!(merge(early.clone()), [Change::Ended(early), Change::Ban(second)]);
        let late = lift("192.0.2.1", 30, 100);
        assert_eq!(merge(late.clone()), [Change::Ended(late.clone())]);
        // Repeated by whoever holds the server.
        assert_eq!(merge(first), []);
        let again = ban("192.0.2.1", 31, 90, "a");
        assert_eq!(merge(again.clone()), [Change::Ban(again)]);
        assert_eq!(merge(lift("192.0.2.1", 30, 100)), []);
        assert_eq!(bans.ended_by(&ban("192.0.2.1", 30, 90, "a")), Some(&late));
        assert_eq!(bans.ended_by(&ban("192.0.2.1", 31, 90, "a")), None);
        bans.expire(NOW + 90);
        assert_eq!((bans.len(), bans.get(&"192.0.2.1".parse().unwrap())), (1, None));
        bans.expire(NOW + 100);
        assert!(bans.is_empty());
    }

    #[test]
    fn a_revocation_ends_what_its_edge_banned_for_its_reason_alone() {
        let mut bans = Bans::default();
        let mut merge = |record| bans.merge(record, 10).unwrap();
        let of = |reason: &str, record: Record| {
            let act = match record.act {
                Act::Ban { strikes, .. } => Act::Ban { strikes, reason: reason.into() },
                _ => Act::Revoke { reason: reason.into() },
            };
            Record { act, ..record }
        };
        let revoked = |reason, at, node| of(reason, Record { node, ..lift("192.0.2.1", at, 200) });
        let (jail, scan) = (ban("192.0.2.1", 10, 100, "a"), ban("192.0.2.1", 9, 50, "a"));
        let (jail, scan) = (of("jail", jail), of("scan", scan));
        let other = of("jail", ban("192.0.2.1", 8, 40, "b"));
        assert_eq!(merge(jail.clone()), [Change::Ban(jail.clone())]);
        assert_eq!((merge(scan.clone()), merge(other.clone())), (vec![], vec![]));
        // Another edge's, and one from before, mean nothing.
        assert_eq!(merge(revoked("jail", 30, "c".into())), []);
        assert_eq!(merge(revoked("jail", 9, "a".into())), []);
        let end = revoked("jail", 10, "a".into());
        assert_eq!(merge(end.clone()), [Change::Ended(end.clone()), Change::Ban(scan.clone())]);
        assert_eq!((merge(jail.clone()), merge(end.clone())), (vec![], vec![]));
        let end = revoked("scan", 9, "a".into());
        assert_eq!(merge(end.clone()), [Change::Ended(end), Change::Ban(other.clone())]);
        let end = revoked("jail", 8, "b".into());
        assert_eq!(merge(end.clone()), [Change::Ended(end)]);
        // What is beneath another is over all the same, and told.
        let later = of("jail", ban("192.0.2.1", 11, 90, "a"));
        let longer = of("scan", ban("192.0.2.1", 12, 99, "a"));
        assert_eq!(merge(later.clone()), [Change::Ban(later)]);
        assert_eq!(merge(longer.clone()), [Change::Ban(longer)]);
        let end = revoked("jail", 11, "a".into());
        assert_eq!(merge(end.clone()), [Change::Ended(end)]);
    }

    #[test]
    fn there_is_room_for_so_many_clients() {
        let mut bans = Bans::default();
        assert!(bans.merge(ban("192.0.2.1", 1, 9, "a"), 1).is_ok());
        assert_eq!(bans.merge(ban("192.0.2.2", 1, 9, "a"), 1), Err(Fault::Full));
        assert!(bans.merge(ban("192.0.2.1", 2, 9, "a"), 1).is_ok());
    }

    proptest! {
        #[test]
        fn order_and_repetition_mean_nothing(
            records in prop::collection::vec((0_u8..4, 1_u64..40, 1_u64..40, 0_u8..3), 1..8),
            shuffle in prop::collection::vec(any::<prop::sample::Index>(), 0..24),
        ) {
            let records: Vec<_> = records.into_iter().map(|(kind, at, length, node)| {
                let node = ["a", "b", "c"][usize::from(node)];
                match kind {
                    0 | 1 => ban("192.0.2.1", at, at + length, node),
                    2 => Record {
                        act: Act::Revoke { reason: "scan".into() },
                        ..ban("192.0.2.1", at, at + 80, node)
                    },
                    _ => lift("192.0.2.1", at, at + 80),
                }
            }).collect();
            // What nothing ends, however it comes.
            let holds = |ban: &&Record| {
                matches!(ban.act, Act::Ban { .. }) && !records.iter().any(|end| end.voids(ban))
            };
            let holding = records.iter().filter(holds).map(|ban| ban.until_ms).max();
            let total = |order: &mut dyn Iterator<Item = &Record>| {
                let mut bans = Bans::default();
                order.for_each(|record| drop(bans.merge(record.clone(), 10)));
                bans.get(&"192.0.2.1".parse().unwrap()).map(|ban| (ban.at_ms, ban.until_ms))
            };
            let wanted = total(&mut records.iter());
            prop_assert_eq!(wanted.map(|(_, until_ms)| until_ms), holding);
            prop_assert_eq!(total(&mut records.iter().rev()), wanted);
            let shuffled: Vec<_> = shuffle.iter().map(|n| n.get(&records)).collect();
            prop_assert_eq!(total(&mut shuffled.into_iter().chain(records.iter())), wanted);
        }

        #[test]
        fn nothing_that_comes_breaks_a_reader(text in any::<String>()) {
            prop_assert!(Record::open(&text, &seal(), NOW).is_err());
            let _ = Record::open(&seal().seal(PURPOSE, &text), &seal(), NOW);
        }
    }
}
