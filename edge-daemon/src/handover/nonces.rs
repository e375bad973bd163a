//! The memory of what comes once, across a handover: one daemon after the other has it, and who has
//! it no more asks who has.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard},
};

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

/// Another name of the file of a memory that is lent, whose first the other may give to its own. It goes when
/// it is dropped.
#[derive(Debug)]
pub(super) struct SecondName {
    first: PathBuf,
    second: PathBuf,
}

impl SecondName {
    /// Gives the file a second name, and takes that from what a daemon left that died.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn give(file: &Path) -> io::Result<Self> {
        let (first, second) = (file.to_owned(), file.with_extension("former"));
        let _ = fs::remove_file(&second);
        fs::hard_link(&first, &second)?;
        Ok(Self { first, second })
    }

    /// Gives it its first name again.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn make_first(self) -> io::Result<()> {
        fs::rename(&self.second, &self.first)
    }
}

impl Drop for SecondName {
    fn drop(&mut self) {
        // Two names of one file stay when one is given the other's.
        let _ = fs::remove_file(&self.second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_that_was_lent_has_its_name_again() {
        let dir = tempfile::tempdir().unwrap();
        let (file, second) = (dir.path().join("nonces"), dir.path().join("nonces.former"));
        let read = || fs::read_to_string(&file).unwrap();
        fs::write(&file, "live").unwrap();
        fs::write(&second, "of one that died").unwrap();
        // The other ended before it had a file of its own, and then after that.
        SecondName::give(&file).unwrap().make_first().unwrap();
        assert_eq!((read().as_str(), second.exists()), ("live", false));
        let kept = SecondName::give(&file).unwrap();
        let own = dir.path().join("own");
        fs::write(&own, "the other's").unwrap();
        fs::rename(own, &file).unwrap();
        kept.make_first().unwrap();
        assert_eq!((read().as_str(), second.exists()), ("live", false));
        drop(SecondName::give(&file).unwrap());
        assert_eq!((read().as_str(), second.exists()), ("live", false));
    }
}
