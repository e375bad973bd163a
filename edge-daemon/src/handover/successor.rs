//! The successor, as the former daemon knows it while it drains: it keeps the audit log and the memory
//! of nonces, so what is left to say goes to it.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
};

use edge_common::Reason;
use edge_identity::signed::Once;
use serde::Serialize;

use super::wire::{Admission, Errand, hear, say};

/// The way to the successor. Whoever uses it waits for its answer, a second at most.
#[derive(Debug)]
pub struct Successor(Mutex<UnixStream>);

impl Successor {
    pub(super) const fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    /// Has it write an entry into the audit log.
    ///
    /// # Errors
    /// If it is gone.
    pub fn note(&self, at_ms: u64, entry: &impl Serialize) -> io::Result<()> {
        let entry = serde_json::to_value(entry)?;
        say(&self.0.lock().unwrap_or_else(PoisonError::into_inner), &Errand::Audit { at_ms, entry })
    }

    /// As [`Replays::admit`](crate::replay::Replays::admit).
    pub(super) fn admit(&self, once: &Once, now_s: u64) -> Result<(), Reason> {
        let Once { by, name, signed_s, until_s } = once.clone();
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = say(&stream, &Errand::Once { by, name, signed_s, until_s, now_s });
        match asked.and_then(|()| hear::<Admission>(&stream)) {
            Ok(admission) => admission.into(),
            Err(error) => {
                tracing::error!(%error, "a signed request is refused: the successor does not answer");
                // A late answer must not be taken for another's.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                Err(Reason::InternalError)
            }
        }
    }
}
