//! The memory of what comes once, across a handover: one daemon after the other has it, and who has
//! it no more asks who has.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use edge_common::Reason;
use edge_identity::signed::Once;

use super::Successor;
use crate::{config::Settings, replay, replay::Replays};

/// What came once and must not come again.
#[derive(Debug, Default)]
pub struct Remembered {
    memory: OnceLock<Replays>,
    /// Held while the memory changes hands.
    hands: RwLock<()>,
    successor: OnceLock<Arc<Successor>>,
}

impl Remembered {
    /// Opens the memory; once.
    ///
    /// # Errors
    /// If its file cannot be used.
    pub fn open(&self, settings: &Settings) -> anyhow::Result<()> {
        let opened = replay::open(settings)?;
        let _ = self.memory.set(opened);
        Ok(())
    }

    /// Lets a thing pass the first time that it comes.
    ///
    /// # Errors
    /// As [`Replays::admit`].
    pub fn admit(&self, once: &Once, now_s: u64) -> Result<(), Reason> {
        let _hands = self.hands.read().unwrap_or_else(PoisonError::into_inner);
        match (self.successor.get(), self.memory.get()) {
            (Some(successor), _) => successor.admit(once, now_s),
            (None, Some(memory)) => memory.admit(once, now_s),
            // No request is taken before it is open.
            (None, None) => Err(Reason::InternalError),
        }
    }

    /// How many things are remembered, and for how many there is room.
    pub fn usage(&self) -> (u64, u64) {
        self.memory.get().map(Replays::usage).unwrap_or_default()
    }

    /// Lets nothing pass for as long as what it returns is held.
    pub(super) fn hold(&self) -> RwLockWriteGuard<'_, ()> {
        self.hands.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the successor remembers.
    pub(super) fn follow(&self, successor: Arc<Successor>) {
        let _ = self.successor.set(successor);
    }
}
