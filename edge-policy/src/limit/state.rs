//! What is known of a rule's requests.

use std::sync::atomic::AtomicU64;

use super::{keyed::Keyed, lease::Share};

/// What a rule knows of its requests; outlives a change of its numbers.
#[derive(Debug)]
pub struct State {
    /// The secret that leads a key to its place.
    pub secret: [u8; 16],
    /// What this edge may use of it, if many share it.
    pub share: Share,
    /// What it may use of each key; `None`: it is no limit by key that many share.
    pub keyed: Option<Keyed>,
    /// Requests that it refused.
    pub refused: AtomicU64,
    /// Requests that it would have refused.
    pub would_refuse: AtomicU64,
}

impl State {
    /// What an edge without a lease may use of it at the most, until the next look at all of them.
    pub fn begin(&self, alone: u32) {
        if !self.share.is_leased() {
            self.share.set(alone.min(self.share.parts()), false);
        }
        if let Some(keyed) = &self.keyed {
            keyed.set_alone(alone.min(keyed.alone()));
        }
    }
}
