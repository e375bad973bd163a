//! What one worker tells of requests that were let in: gathered, and passed on a few times a second, so
//! that a request costs no turn at the queue.

use std::{cell::RefCell, collections::HashMap, mem};

use super::{Access, Audit, Entry};
use crate::{clock, config::settings::Granted};

/// Requests by how it was proved who sends them, and by who that is.
pub(super) type Sums = HashMap<&'static str, HashMap<String, u64>>;

/// One worker's.
pub struct Grants {
    audit: Audit,
    each: RefCell<Vec<(u64, Access)>>,
    sums: RefCell<Sums>,
}

impl Grants {
    /// None yet.
    #[must_use]
    pub fn new(audit: Audit) -> Self {
        Self { audit, each: RefCell::default(), sums: RefCell::default() }
    }

    /// Tells of a request that was let in, if such are told of: who sent it, and how that was proved.
    pub fn tell(&self, principal: &str, by: &'static str, access: impl FnOnce() -> Access) {
        let gathered = match self.audit.granted {
            Granted::None => return,
            Granted::Each => {
                let mut each = self.each.borrow_mut();
                each.push((clock::unix_ms(), access()));
                each.len()
            }
            Granted::Summed => {
                let mut sums = self.sums.borrow_mut();
                let sums = sums.entry(by).or_default();
                match sums.get_mut(principal) {
                    Some(requests) => *requests += 1,
                    None => _ = sums.insert(principal.to_owned(), 1),
                }
                sums.len()
            }
        };
        if gathered >= GATHERED_MAX {
            self.send();
        }
    }

    /// Passes on what was gathered.
    pub fn send(&self) {
        let each = mem::take(&mut *self.each.borrow_mut());
        if !each.is_empty() {
            self.audit.give(Entry::Granted(each));
        }
        // The maps stay: most of who comes has come before.
        for (by, sums) in &mut *self.sums.borrow_mut() {
            let counted: Vec<_> = sums.drain().collect();
            if !counted.is_empty() {
                self.audit.give(Entry::Summed(by, counted));
            }
        }
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        self.send();
    }
}

/// Requests, or principals, that are passed on together.
const GATHERED_MAX: usize = 64;
