//! The overlay compared with what was written there, and put right where another hand has changed it.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::Key;
use edge_common::map::OVERLAY;
use edge_policy::list::canonical;
use ipnet::{IpNet, Ipv6Net};

use super::{ALL_IPV4, Inner, KernelError, Lists, absent, key, table_error};

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
}

/// What was written of a network; `None`: nothing.
fn wanted(inner: &Inner, net: &IpNet) -> Option<[u32; 4]> {
    match inner.book.overlaid_ids(net) {
        Some([allow, deny, watch]) => Some([allow, deny, watch, 0]),
        // The fence between IPv4 and IPv6 is always there.
        None => (*net == ALL_IPV4).then_some([0; 4]),
    }
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
