//! Session tickets: a client's session, encrypted under a key that only this process has and that
//! is thrown away before long, so that the server need not remember it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustls::{crypto::aws_lc_rs, server::ProducesTickets};

use super::TlsError;

/// Makes tickets, and takes them for one to two rotations.
pub(super) struct Tickets {
    rotation: Duration,
    keys: ArcSwap<Keys>,
}

struct Keys {
    current: Arc<dyn ProducesTickets>,
    former: Option<Arc<dyn ProducesTickets>>,
    since: Instant,
}

impl Tickets {
    pub(super) fn new(rotation: Duration) -> Result<Arc<Self>, TlsError> {
        let current = aws_lc_rs::Ticketer::new().map_err(TlsError::Tickets)?;
        let keys = Keys { current, former: None, since: Instant::now() };
        Ok(Arc::new(Self { rotation, keys: ArcSwap::from_pointee(keys) }))
    }

    pub(super) fn rotation(&self) -> Duration {
        self.rotation
    }

    /// Changes the key when its time has come; the former still opens what it closed, once.
    pub(super) fn rotate(&self) -> Result<(), rustls::Error> {
        let keys = self.keys.load();
        let age = keys.since.elapsed();
        if age < self.rotation {
            return Ok(());
        }
        // After a long sleep even the current one is too old.
        let former = (age < 2 * self.rotation).then(|| Arc::clone(&keys.current));
        let current = aws_lc_rs::Ticketer::new()?;
        self.keys.store(Arc::new(Keys { current, former, since: Instant::now() }));
        Ok(())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.rotation.as_secs()).unwrap_or(u32::MAX).max(1)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().current.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        let former = || keys.former.as_ref().and_then(|former| former.decrypt(cipher));
        keys.current.decrypt(cipher).or_else(former)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("rotation", &self.rotation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_taken_for_one_more_rotation() {
        let tickets = Tickets::new(Duration::from_millis(50)).unwrap();
        let ticket = tickets.encrypt(b"session").unwrap();
        let opens = || tickets.decrypt(&ticket).as_deref() == Some(b"session");
        tickets.rotate().unwrap();
        assert!(opens());
        std::thread::sleep(Duration::from_millis(60));
        tickets.rotate().unwrap();
        assert!(opens(), "the former key opens it");
        assert_ne!(tickets.encrypt(b"session").unwrap()[..16], ticket[..16], "another key");
        std::thread::sleep(Duration::from_millis(60));
        tickets.rotate().unwrap();
        assert!(!opens());
    }
}
