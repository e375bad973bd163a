//! Verdicts in the store, one for each culprit.

use edge_policy::verdict::Culprit;

use super::{BANS, BanRecord, Fault, Store};

impl Store {
    /// Writes bans, all or none of them; earlier ones of the same clients are replaced.
    ///
    /// # Errors
    /// If the database fails.
    pub fn put_bans(&self, bans: &[BanRecord]) -> Result<(), Fault> {
        self.put(BANS, bans.iter().map(|ban| (ban.culprit.to_string(), ban)))
    }

    /// Removes a culprit's verdict and with it its history; says whether there was one.
    ///
    /// # Errors
    /// If the database fails.
    pub fn remove_ban(&self, culprit: &Culprit) -> Result<bool, Fault> {
        self.remove(BANS, &culprit.to_string())
    }

    /// Removes the verdicts of these culprits, all or none, and with them their history.
    ///
    /// # Errors
    /// If the database fails.
    pub fn remove_bans(&self, culprits: &[Culprit]) -> Result<(), Fault> {
        self.write(|write| {
            let mut open = write.open_table(BANS)?;
            for culprit in culprits {
                open.remove(culprit.to_string().as_str())?;
            }
            Ok(())
        })
    }
}
