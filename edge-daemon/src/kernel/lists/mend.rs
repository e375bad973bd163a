//! The overlay and the ends of entries compared with what was written there, and put right where
//! another hand has changed them.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use aya::maps::lpm_trie::Key;
use edge_common::{list::Ids, map::OVERLAY};
use edge_policy::list::{Class, canonical, differs};
use ipnet::{IpNet, Ipv6Net};

use super::{ALL_IPV4, Inner, KernelError, Lists, Shared, absent, key, table_error};

impl Lists {
    /// Networks of which the overlay says something else than was written. It is read without
    /// holding anybody up, so that what changes meanwhile is among them: [`Lists::mend_overlay`]
    /// looks once more.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn doubted(&self) -> Result<Vec<IpNet>, KernelError> {
        let mut found = BTreeMap::new();
        for item in &self.0.overlay {
            let (key, ids) = item.map_err(table_error(OVERLAY))?;
            found.insert(net(&key), ids);
        }
        let inner = self.0.inner();
        let mut doubted = Vec::new();
        for net in inner.book.overlaid_nets().chain([ALL_IPV4]) {
            if found.remove(&net) != wanted(&inner, &net) {
                doubted.push(net);
            }
        }
        doubted.extend(found.into_keys());
        Ok(doubted)
    }

    /// Makes the overlay say of these networks what was written; of how many it did not.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn mend_overlay(&self, nets: &[IpNet]) -> Result<u64, KernelError> {
        let mut inner = self.0.inner();
        let mut mended = 0;
        for net in nets {
            let (key, wanted) = (key(net), wanted(&inner, net));
            let written = match wanted {
                // A look-up finds the longest that covers it; one that says the same is as good.
                Some(ids) => match absent(inner.overlay.get(&key, 0)) {
                    Ok(Some(found)) if found == ids => Ok(false),
                    Ok(_) => inner.overlay.insert(&key, ids, 0).map(|()| true),
                    Err(error) => Err(error),
                },
                None => absent(inner.overlay.remove(&key)).map(|removed| removed.is_some()),
            };
            mended += u64::from(written.map_err(table_error(OVERLAY))?);
        }
        Ok(mended)
    }

    /// Entries that the kernel has another end of than was written; so many at most. They are read
    /// without holding anybody up, so that what changes meanwhile is among them:
    /// [`Lists::mend_ends`] looks once more.
    #[must_use]
    pub fn doubted_ends(&self, now_ns: u64, most: usize) -> Vec<(Class, IpNet)> {
        let ends = {
            let inner = self.0.inner();
            (!inner.is_settling).then(|| inner.book.ends())
        };
        let found = |id| self.0.end(id);
        ends.iter().flat_map(|ends| ends.differing(found, now_ns)).take(most).collect()
    }

    /// Gives these entries the ends that were written; of how many they were others.
    #[must_use]
    pub fn mend_ends(&self, entries: &[(Class, IpNet)], now_ns: u64) -> u64 {
        let inner = self.0.inner();
        if inner.is_settling {
            return 0;
        }
        let mut mended = 0;
        for (class, net) in entries {
            let Some((until_ns, id)) = inner.book.end(*class, *net) else { continue };
            if differs(self.0.end(id), until_ns, now_ns) {
                self.0.tables.entries[id as usize][0].store(until_ns, Relaxed);
                mended += 1;
            }
        }
        mended
    }
}

impl Shared {
    /// The end that the kernel has of an entry.
    fn end(&self, id: u32) -> u64 {
        self.tables.entries[id as usize][0].load(Relaxed)
    }
}

/// What was written of a network; `None`: nothing.
fn wanted(inner: &Inner, net: &IpNet) -> Option<Ids> {
    // The fence between IPv4 and IPv6 is always there.
    let fence = || (*net == ALL_IPV4).then(Ids::default);
    inner.book.overlaid_ids(net).or_else(fence)
}

/// The network that the kernel keys so.
fn net(key: &Key<[u8; 16]>) -> IpNet {
    let bits = u8::try_from(key.prefix_len()).unwrap_or(128).min(128);
    canonical(IpNet::V6(Ipv6Net::new_assert(key.data().into(), bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_is_keyed() {
        for text in ["192.0.2.0/24", "0.0.0.0/0", "10.0.0.1/32", "2001:db8::/32", "::/0"] {
            let written: IpNet = text.parse().unwrap();
            assert_eq!(net(&key(&written)), written);
        }
    }
}
