//! Who may write the tables: one daemon at a time, by a lock on their folder.

use std::{
    fs::File,
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{KernelError, pins::path_error};

/// Holds a folder of pins for one daemon, until the last handle goes or the process ends.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the folder, unless another daemon has it.
    pub(super) fn take(folder: &Path) -> Result<Arc<Self>, KernelError> {
        let file = File::open(folder).map_err(path_error("open", folder))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Arc::new(Self(file))),
            Err(Errno::WOULDBLOCK) => Err(KernelError::InUse { path: folder.to_owned() }),
            Err(error) => Err(path_error("lock", folder)(error.into())),
        }
    }

    /// Lets another daemon hold the folder, while this one writes nothing.
    ///
    /// # Errors
    /// What the system says.
    pub fn lend(&self) -> io::Result<()> {
        Ok(flock(&self.0, FlockOperation::Unlock)?)
    }

    /// Holds it again; waits for so long at most until nobody else does.
    ///
    /// # Errors
    /// What the system says.
    pub fn take_back(&self, most: Duration) -> io::Result<()> {
        let deadline = Instant::now() + most;
        loop {
            match flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                taken => return Ok(taken?),
            }
        }
    }
}
