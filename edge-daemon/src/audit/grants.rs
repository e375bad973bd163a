//! What one worker tells of requests that were let in: gathered, and passed on a few times a second, so
//! that a request costs no turn at the queue.

use std::{cell::RefCell, collections::HashMap, mem, net::IpAddr};

use serde::Serialize;

use super::{Audit, Entry};
use crate::{clock, config::settings::Granted};

/// A request of somebody who was let in, as far as it goes upstream.
#[derive(Clone, Debug)]
pub struct Access {
    /// Where it came from.
    pub source: IpAddr,
    /// The id in the client's answer.
    pub request_id: String,
    /// The request's method.
    pub method: http::Method,
    /// The request's path, without its query.
    pub path: String,
    /// Who it is: a key's id, a token's subject.
    pub principal: String,
    /// How that was proved.
    pub by: &'static str,
}

#[derive(Serialize)]
pub(super) struct AccessLine<'a> {
    event: &'static str,
    source: IpAddr,
    request_id: &'a str,
    method: &'a str,
    path: &'a str,
    principal: &'a str,
    by: &'static str,
}

/// Requests by how it was proved who sends them, and by who that is.
pub(super) type Sums = HashMap<&'static str, HashMap<String, u64>>;

/// One worker's.
pub struct Grants {
    audit: Audit,
    each: RefCell<Vec<(u64, Access)>>,
    /// By the few ways of proof, which are found sooner than hashed.
    sums: RefCell<Vec<(&'static str, HashMap<String, u64>)>>,
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
                let mut ways = self.sums.borrow_mut();
                let at = ways.iter().position(|(way, _)| *way == by).unwrap_or_else(|| {
                    ways.push((by, HashMap::new()));
                    ways.len() - 1
                });
                let sums = &mut ways[at].1;
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
        for (by, sums) in self.sums.borrow_mut().iter_mut() {
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

impl<'a> AccessLine<'a> {
    pub(super) fn of(access: &'a Access) -> Self {
        Self {
            event: "request_granted",
            source: access.source,
            request_id: &access.request_id,
            method: access.method.as_str(),
            path: &access.path,
            principal: &access.principal,
            by: access.by,
        }
    }
}

/// Requests, or principals, that are passed on together.
const GATHERED_MAX: usize = 64;
