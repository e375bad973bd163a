//! The store across a handover: one process alone may have the database open.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use redb::{Database, DatabaseError};

use super::{Fault, Store, create, opening};

/// Whose the database is.
pub(super) enum Held {
    /// This process's.
    Open(Arc<Database>),
    /// Lent to a process that may become the successor: whoever needs it waits.
    Lent,
    /// The successor's.
    Gone,
}

impl Store {
    /// Closes the database, so that another process can open it. Waits for whoever uses it.
    pub fn release(&self) {
        let held = std::mem::replace(&mut *self.held(), Held::Lent);
        let Held::Open(mut database) = held else { return };
        while let Err(in_use) = Arc::try_unwrap(database) {
            database = in_use;
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Opens it again; waits for so long at most until the other process has closed it.
    ///
    /// # Errors
    /// If it cannot be opened: then whoever needs it is refused.
    pub fn reclaim(&self, most: Duration) -> Result<(), Fault> {
        let deadline = Instant::now() + most;
        let opened = loop {
            match create(&self.path) {
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                opened => break opened.map_err(|fault| opening(fault, &self.path)),
            }
        };
        let (held, result) = match opened {
            Ok(database) => (Held::Open(Arc::new(database)), Ok(())),
            Err(fault) => (Held::Gone, Err(fault)),
        };
        *self.held() = held;
        self.changed.notify_all();
        result
    }

    /// Leaves it to the other process.
    pub fn give_up(&self) {
        *self.held() = Held::Gone;
        self.changed.notify_all();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database; waits while it is lent.
    pub(super) fn database(&self) -> Result<Arc<Database>, Fault> {
        let is_lent = |held: &mut Held| matches!(held, Held::Lent);
        let held = self.changed.wait_while(self.held(), is_lent);
        match &*held.unwrap_or_else(PoisonError::into_inner) {
            Held::Open(database) => Ok(Arc::clone(database)),
            Held::Lent | Held::Gone => Err(Fault::Gone),
        }
    }
}
