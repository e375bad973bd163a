//! What keeps a verdict from hitting others than its culprit.

use std::{collections::VecDeque, sync::Arc};

use super::culprit::Culprit;
use super::scenario::Step;
use super::signal::{Proof, Signal};

/// What is known of the source of a signal when a verdict is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// It is on the never-ban list, or allowed.
    pub is_exempt: bool,
    /// So is another part of the prefix that stands for it, which a ban would drop with it.
    pub is_beside_exempt: bool,
    /// To drop its packets would cut off the host, its operator or its upstreams.
    pub is_vital: bool,
    /// As many bans as may be were written within the last minute.
    pub is_exhausted: bool,
}

/// Why a verdict is milder than its scenario says, or about somebody narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spared {
    /// [`Facts::is_exempt`] or [`Facts::is_beside_exempt`].
    NeverBan,
    /// [`Facts::is_vital`].
    Vital,
    /// Its source is shared, as [`super::Engine::judge`] is told.
    Shared,
    /// No handshake proves the address.
    Unproven,
    /// [`Facts::is_exhausted`].
    Cap,
    /// Another site's page had its browser ask.
    Led,
}

impl Spared {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NeverBan => "never_ban",
            Self::Vital => "lockout",
            Self::Shared => "shared_source",
            Self::Unproven => "unproven_source",
            Self::Cap => "ban_cap",
            Self::Led => "led_request",
        }
    }
}

/// Whom a signal from a shared source is held against: whoever would bear the verdict, so that
/// nobody fills a bucket of his neighbours'.
pub(super) fn narrow(culprit: Culprit, signal: &Signal) -> Culprit {
    match (culprit, &signal.principal, signal.ja4) {
        (Culprit::Source(_) | Culprit::Fingerprint(..), Some(who), _) => {
            Culprit::Principal(Arc::clone(who))
        }
        (Culprit::Source(source), None, Some(ja4)) => Culprit::Fingerprint(source, ja4),
        (Culprit::Led(source, _), _, ja4) => Culprit::Led(source, ja4),
        (other, ..) => other,
    }
}

/// How far a verdict on a culprit may go, and why no further. Who [`narrow`] told from its neighbours is
/// `narrowed`.
pub(super) fn temper(
    culprit: &Culprit,
    signal: &Signal,
    facts: Facts,
    (is_shared, is_narrowed): (bool, bool),
) -> (Step, Option<Spared>) {
    let shared = Some(Spared::Shared);
    match culprit {
        _ if facts.is_exempt => return (Step::Observe, Some(Spared::NeverBan)),
        // Nothing tells the culprit from its neighbours.
        Culprit::Source(_) | Culprit::Led(_, None) if is_shared => return (Step::Observe, shared),
        Culprit::Led(..) if is_shared => return (Step::Throttle, shared),
        Culprit::Led(..) => return (Step::Throttle, Some(Spared::Led)),
        Culprit::Source(_) => {}
        _ => return (Step::Refuse, shared.filter(|_| is_narrowed)),
    }
    let spared = if facts.is_vital {
        Some(Spared::Vital)
    } else if signal.proof < Proof::Handshake {
        Some(Spared::Unproven)
    } else if facts.is_beside_exempt {
        Some(Spared::NeverBan)
    } else if facts.is_exhausted {
        Some(Spared::Cap)
    } else {
        None
    };
    match spared {
        Some(Spared::Unproven) => (Step::Observe, spared),
        Some(_) => (Step::Refuse, spared),
        None => (Step::Ban, None),
    }
}

/// Bans within the last minute, each with its time: in no minute there are more than may be.
#[derive(Clone, Debug, Default)]
pub struct Cap {
    /// Of the latest, in order.
    at_ns: VecDeque<u64>,
}

impl Cap {
    /// Whether one more would be more than `most` within a minute.
    #[must_use]
    pub fn is_reached(&self, most: u32, now_ns: u64) -> bool {
        let before = usize::try_from(most).ok().and_then(|most| self.at_ns.len().checked_sub(most));
        let last = before.and_then(|place| self.at_ns.get(place));
        most == 0 || last.is_some_and(|at_ns| now_ns < at_ns.saturating_add(MINUTE_NS))
    }

    /// Notes one more.
    pub fn count(&mut self, now_ns: u64) {
        // Signals of several workers come a little out of order.
        let now_ns = self.at_ns.back().map_or(now_ns, |last| now_ns.max(*last));
        while self.at_ns.front().is_some_and(|at_ns| now_ns - at_ns >= MINUTE_NS) {
            self.at_ns.pop_front();
        }
        self.at_ns.push_back(now_ns);
    }
}

const MINUTE_NS: u64 = 60_000_000_000;
