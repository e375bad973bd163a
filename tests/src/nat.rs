//! Good clients and one that guesses, all at one address and with one TLS library.

use anyhow::Result;

use crate::{
    client::HOST,
    daemon::Edged,
    lab::{CLIENT, Lab},
    talk::Dial,
};

/// Those behind one address.
pub struct Nat<'a> {
    lab: &'a Lab,
    dial: Dial,
    keys: Vec<String>,
}

impl<'a> Nat<'a> {
    /// So many good clients, each with a key, and one without.
    ///
    /// # Errors
    /// If a key cannot be made.
    pub fn new(lab: &'a Lab, edged: &Edged<'_>, good: usize) -> Result<Self> {
        let keys = (0..good).map(|n| edged.key(&format!("n{n}"))).collect::<Result<_>>()?;
        Ok(Self { lab, dial: Dial::new(&edged.ca, HOST)?, keys })
    }

    /// Asks with this key; the status.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn ask(&self, key: &str) -> Result<u16> {
        let mut talk = self.dial.connect(self.lab, CLIENT)?;
        Ok(talk.get(HOST, "/", &[&format!("X-API-Key: {key}")])?.status)
    }

    /// The n-th good client asks; they take turns.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn good(&self, n: usize) -> Result<u16> {
        self.ask(&self.keys[n % self.keys.len()])
    }

    /// The other one tries its n-th key.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn guess(&self, n: usize) -> Result<u16> {
        self.ask(&format!("edged_{n:043}_000000"))
    }
}
