//! Bans as the request plane knows them: for clients whose packets carry a trusted proxy's address,
//! so that the kernel cannot tell them apart.
//!
//! One thread writes, the verdict writer; many read, and wait for nobody. It holds what the kernel's
//! table of bans holds, and so has its bound.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use edge_common::Source;

/// When each ban ends, in boot time, by client. In parts, so that a change copies little.
pub struct Banned([ArcSwap<BTreeMap<Source, u64>>; PARTS]);

impl Default for Banned {
    fn default() -> Self {
        Self(std::array::from_fn(|_| ArcSwap::default()))
    }
}

impl Banned {
    /// Whether a client is banned at this time.
    #[must_use]
    pub fn has(&self, client: &Source, now_ns: u64) -> bool {
        self.part(client).load().get(client).is_some_and(|until_ns| now_ns < *until_ns)
    }

    /// Notes a ban, or that it ends later or earlier.
    pub fn put(&self, client: Source, until_ns: u64) {
        self.change(&client, |bans| {
            bans.insert(client, until_ns);
        });
    }

    /// Forgets a ban.
    pub fn lift(&self, client: &Source) {
        self.change(client, |bans| {
            bans.remove(client);
        });
    }

    fn change(&self, client: &Source, change: impl FnOnce(&mut BTreeMap<Source, u64>)) {
        let part = self.part(client);
        let mut bans = BTreeMap::clone(&part.load());
        change(&mut bans);
        part.store(Arc::new(bans));
    }

    fn part(&self, client: &Source) -> &ArcSwap<BTreeMap<Source, u64>> {
        let mixed = client
            .octets()
            .iter()
            .fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        &self.0[mixed % PARTS]
    }
}

const PARTS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_ends_by_time_or_by_word() {
        let banned = Banned::default();
        let clients: Vec<_> = (0..=255).map(|host| Source::v4([192, 0, 2, host])).collect();
        for (n, client) in clients.iter().enumerate() {
            banned.put(*client, 100 + n as u64);
        }
        assert!(clients.iter().all(|client| banned.has(client, 99)));
        assert!(!banned.has(&clients[0], 100) && banned.has(&clients[1], 100));
        banned.put(clients[0], 200);
        banned.lift(&clients[1]);
        assert!(banned.has(&clients[0], 150) && !banned.has(&clients[1], 99));
    }
}
