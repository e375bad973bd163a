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
    /// This process's, and no write succeeds before it is closed, if it still is open, and opened anew.
    Failed(Option<Arc<Database>>),
    /// Lent to a process that may become the successor: whoever needs it waits.
    Lent,
    /// The successor's.
    Gone,
}

impl Store {
    /// Closes the database, so that another process can open it. Waits for whoever uses it.
    pub fn release(&self) {
        let held = std::mem::replace(&mut *self.held(), Held::Lent);
        if let Held::Open(database) | Held::Failed(Some(database)) = held {
            close(database);
        }
    }

    /// Notes that a write of this database has failed: whoever needs it next opens it anew.
    pub(super) fn fail(&self, failed: &Arc<Database>) {
        let mut held = self.held();
        if matches!(&*held, Held::Open(database) if Arc::ptr_eq(database, failed)) {
            *held = Held::Failed(Some(Arc::clone(failed)));
        }
    }

    /// Opens it again if it is lent; waits for so long at most until the other process has closed it.
    ///
    /// # Errors
    /// If it cannot be opened: then whoever needs it tries again.
    pub fn reclaim(&self, most: Duration) -> Result<(), Fault> {
        if !matches!(&*self.held(), Held::Lent) {
            return Ok(());
        }
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
            Err(fault) => (Held::Failed(None), Err(fault)),
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
        let mut held = held.unwrap_or_else(PoisonError::into_inner);
        if let Held::Failed(former) = &mut *held {
            former.take().into_iter().for_each(close);
            let opened = create(&self.path).map_err(|fault| opening(fault, &self.path))?;
            *held = Held::Open(Arc::new(opened));
        }
        match &*held {
            Held::Open(database) => Ok(Arc::clone(database)),
            Held::Failed(_) | Held::Lent | Held::Gone => Err(Fault::Gone),
        }
    }
}

/// Closes a database once nobody uses it.
fn close(mut database: Arc<Database>) {
    while let Err(in_use) = Arc::try_unwrap(database) {
        database = in_use;
        thread::sleep(Duration::from_millis(1));
    }
}
