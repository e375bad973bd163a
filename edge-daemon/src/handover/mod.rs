//! One daemon takes over from another, and no client notices: the listening sockets go to the
//! successor as they are, with whoever waits in them.
//!
//! The successor is started as any daemon is, with `--takeover`, because the former has no powers to
//! give it. It checks its configuration, and only then asks; what one process alone can hold (the
//! store, the kernel's tables, the audit log, the memory of nonces) it is given for a while in which
//! the former goes on serving. When everything is built it says so, and the former drains. A
//! successor that ends before that leaves the former in office, as if nobody had asked.

mod give;
mod nonces;
mod successor;
mod take;
mod wire;

use std::sync::{
    PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

pub use self::{
    give::{Giver, Heritage, Outcome, socket},
    nonces::Remembered,
    successor::Successor,
    take::Predecessor,
};

/// Whose it is to change what outlives the daemon.
#[derive(Debug, Default)]
pub struct Reign {
    turn: RwLock<()>,
    is_over: AtomicBool,
    /// How often somebody asked for it and did not take it.
    lapses: AtomicU64,
}

impl Reign {
    /// A turn at changing it. Waits while a successor makes ready; `None` once there is one: whoever
    /// asks has nothing more to do.
    pub fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let turn = self.turn.read().unwrap_or_else(PoisonError::into_inner);
        (!self.is_over.load(SeqCst)).then_some(turn)
    }

    /// How often somebody asked to be successor and did not become it: what it may have changed is to
    /// be put right.
    pub fn lapses(&self) -> u64 {
        self.lapses.load(SeqCst)
    }

    /// Waits until nobody has a turn, and lets nobody have one.
    fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.turn.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lapse(&self) {
        self.lapses.fetch_add(1, SeqCst);
    }

    fn end(&self) {
        self.is_over.store(true, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn turns_wait_for_a_pause_and_end_with_the_reign() {
        let reign = Reign::default();
        let pause = reign.pause();
        thread::scope(|scope| {
            let waits = scope.spawn(|| reign.turn().is_some());
            thread::sleep(Duration::from_millis(20));
            assert!(!waits.is_finished());
            drop(pause);
            assert!(waits.join().unwrap());
        });
        let pause = reign.pause();
        thread::scope(|scope| {
            let waits = scope.spawn(|| reign.turn().is_some());
            reign.end();
            drop(pause);
            assert!(!waits.join().unwrap());
        });
    }
}
