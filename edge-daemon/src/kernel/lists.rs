//! The allow and deny lists in the kernel: networks with an end and a count of hits.
//!
//! The kernel lets the longest match decide alone. Whoever writes nested networks gives each the
//! latest end of all that cover it, or an early end of the inner would cut short the outer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use aya::maps::{IterableMap as _, LpmTrie, MapData, lpm_trie::Key};
use edge_common::{
    Source,
    map::{Entry, LIST_MAX},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    KernelError,
    maps::{absent, again, table_error},
};

/// One list of networks.
pub struct List {
    name: &'static str,
    trie: LpmTrie<MapData, [u8; 16], Entry>,
    /// What is listed, until when. The kernel finds the longest match but does not name it, so
    /// this mirror does; all handles share it.
    listed: Arc<RwLock<BTreeMap<IpNet, u64>>>,
}

/// What [`List::sync`] wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Networks that were not listed.
    pub added: usize,
    /// Networks that now end at another time.
    pub changed: usize,
    /// Networks that are no longer listed.
    pub removed: usize,
}

impl List {
    pub(super) fn new(
        name: &'static str,
        trie: LpmTrie<MapData, [u8; 16], Entry>,
    ) -> Result<Self, KernelError> {
        let mut listed = BTreeMap::new();
        for item in &trie {
            let (key, entry) = item.map_err(table_error(name))?;
            listed.insert(network(&key), entry.until_ns);
        }
        let is_fenced = listed.contains_key(&FENCE);
        listed.retain(|_, until_ns| *until_ns != CLOSED.until_ns);
        let mut list = Self { name, trie, listed: Arc::new(RwLock::new(listed)) };
        if !is_fenced {
            list.write(&FENCE, CLOSED)?;
        }
        Ok(list)
    }

    pub(super) fn duplicate(&self) -> Result<Self, KernelError> {
        let trie = again(self.name, self.trie.map())?;
        Ok(Self { name: self.name, trie, listed: Arc::clone(&self.listed) })
    }

    /// Lists a network until a time, [`edge_common::map::FOREVER`] for good. A network that is
    /// listed already keeps its hits.
    ///
    /// # Errors
    /// [`KernelError::Full`] if the list holds as many networks as it may.
    pub fn put(&mut self, network: &IpNet, until_ns: u64) -> Result<(), KernelError> {
        let network = canonical(network);
        let is_listed = self.listed().contains_key(&network);
        if !is_listed && self.len() >= ROOM {
            return Err(KernelError::Full { table: self.name });
        }
        let hits = if is_listed { self.entry(&network)?.map_or(0, |entry| entry.hits) } else { 0 };
        self.write(&network, Entry { until_ns, hits })?;
        self.listed_mut().insert(network, until_ns);
        Ok(())
    }

    /// Takes a network off the list; whether it was on it.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn remove(&mut self, network: &IpNet) -> Result<bool, KernelError> {
        let network = canonical(network);
        if !self.listed().contains_key(&network) {
            return Ok(false);
        }
        if network == FENCE {
            self.write(&FENCE, CLOSED)?;
        } else {
            absent(self.trie.remove(&key(&network))).map_err(table_error(self.name))?;
        }
        self.listed_mut().remove(&network);
        Ok(true)
    }

    /// Every network on the list, ended ones included.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn entries(&self) -> Result<Vec<(IpNet, Entry)>, KernelError> {
        let networks: Vec<IpNet> = self.listed().keys().copied().collect();
        let mut entries = Vec::with_capacity(networks.len());
        for network in networks {
            entries.extend(self.entry(&network)?.map(|entry| (network, entry)));
        }
        Ok(entries)
    }

    /// Makes the list hold exactly these networks with these ends, and writes only what differs.
    ///
    /// # Errors
    /// [`KernelError::Full`] if they are more than the list may hold, before anything is written;
    /// [`KernelError::Table`] if the kernel refuses, after a part was written.
    pub fn sync(&mut self, desired: &BTreeMap<IpNet, u64>) -> Result<Changes, KernelError> {
        let desired: BTreeMap<IpNet, u64> =
            desired.iter().map(|(network, until_ns)| (canonical(network), *until_ns)).collect();
        let present = self.listed().clone();
        let steps = steps(&present, &desired, ROOM as usize);
        let mut changes = Changes::default();
        for step in steps.ok_or(KernelError::Full { table: self.name })? {
            match step {
                Step::Put(network, until_ns) => {
                    self.put(&network, until_ns)?;
                    let is_known = present.contains_key(&network);
                    *if is_known { &mut changes.changed } else { &mut changes.added } += 1;
                }
                Step::Remove(network) => {
                    changes.removed += usize::from(self.remove(&network)?);
                }
            }
        }
        Ok(changes)
    }

    /// Whether a network that has not ended covers this address.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn covers(&self, address: IpAddr, now_ns: u64) -> Result<bool, KernelError> {
        let key = Key::new(128, Source::from(address).0);
        let entry = absent(self.trie.get(&key, 0)).map_err(table_error(self.name))?;
        Ok(entry.is_some_and(|entry| now_ns < entry.until_ns))
    }

    /// The network that decides about this address at a time, with its entry.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn matching(
        &self,
        address: IpAddr,
        now_ns: u64,
    ) -> Result<Option<(IpNet, Entry)>, KernelError> {
        let source = Source::from(address);
        let shortest = if source.is_v4() { V4_BITS } else { 0 };
        let covering = {
            let listed = self.listed();
            let networks = (shortest..=128).rev().map(|bits| network(&Key::new(bits, source.0)));
            networks.into_iter().find(|network| listed.contains_key(network))
        };
        let Some(network) = covering else { return Ok(None) };
        let entry = self.entry(&network)?.filter(|entry| now_ns < entry.until_ns);
        Ok(entry.map(|entry| (network, entry)))
    }

    /// Networks on the list, ended ones included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.listed().len() as u64
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kernel's entry of a listed network: its own key's longest match is itself.
    fn entry(&self, network: &IpNet) -> Result<Option<Entry>, KernelError> {
        absent(self.trie.get(&key(network), 0)).map_err(table_error(self.name))
    }

    fn write(&mut self, network: &IpNet, entry: Entry) -> Result<(), KernelError> {
        self.trie.insert(&key(network), entry, 0).map_err(table_error(self.name))
    }

    fn listed(&self) -> RwLockReadGuard<'_, BTreeMap<IpNet, u64>> {
        // A map of plain values is whole between its operations, even if a holder panicked.
        self.listed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<IpNet, u64>> {
        self.listed.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One write on the way from what a list holds to what it is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Put(IpNet, u64),
    Remove(IpNet),
}

/// The writes from one content to the other, of which none finds the list full; `None` if the
/// other does not fit.
fn steps(
    present: &BTreeMap<IpNet, u64>,
    desired: &BTreeMap<IpNet, u64>,
    room: usize,
) -> Option<Vec<Step>> {
    if desired.len() > room {
        return None;
    }
    let puts = desired
        .iter()
        .filter(|(network, until_ns)| present.get(network) != Some(until_ns))
        .map(|(network, until_ns)| Step::Put(*network, *until_ns));
    let gone = || present.keys().filter(|network| !desired.contains_key(network));
    let removes = gone().map(|network| Step::Remove(*network));
    // New entries first: no address is uncovered while another network takes over. Where both do
    // not fit at once, the list is for an instant shorter than either.
    Some(if desired.len() + gone().count() <= room {
        puts.chain(removes).collect()
    } else {
        removes.chain(puts).collect()
    })
}

/// The network as the kernel keys it.
fn key(network: &IpNet) -> Key<[u8; 16]> {
    let bits = match network {
        IpNet::V4(v4) => u32::from(v4.prefix_len()) + V4_BITS,
        IpNet::V6(v6) => u32::from(v6.prefix_len()),
    };
    Key::new(bits, masked(Source::from(network.addr()).0, bits))
}

/// The address with all bits behind the prefix cleared.
fn masked(address: [u8; 16], bits: u32) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (u128::from_be_bytes(address) & mask).to_be_bytes()
}

fn network(key: &Key<[u8; 16]>) -> IpNet {
    let (bits, bytes) = (key.prefix_len(), masked(key.data(), key.prefix_len()));
    let source = Source(bytes);
    match IpAddr::from(source) {
        IpAddr::V4(v4) if bits >= V4_BITS => {
            IpNet::V4(Ipv4Net::new_assert(v4, (bits - V4_BITS) as u8))
        }
        _ => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(bytes), bits as u8)),
    }
}

/// The one spelling of a network: no host bits, IPv4 also where it was written as mapped IPv6.
fn canonical(net: &IpNet) -> IpNet {
    network(&key(net))
}

/// All of IPv4 lies inside of `::/0` in the kernel's form of addresses; this network, which never
/// goes away, keeps a list's IPv6 networks from reaching into it.
const FENCE: IpNet = IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));
/// Networks that a list holds, the fence not counted.
const ROOM: u64 = LIST_MAX as u64 - 1;
/// An entry that never decides.
const CLOSED: Entry = Entry { until_ns: 0, hits: 0 };
/// Bits in front of an IPv4 address in the kernel's form.
const V4_BITS: u32 = 96;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mapped_and_plain_v4_are_one_network() {
        let mapped: IpNet = "::ffff:192.0.2.0/120".parse().unwrap();
        assert_eq!(canonical(&mapped), "192.0.2.0/24".parse::<IpNet>().unwrap());
        let wide: IpNet = "::/0".parse().unwrap();
        assert_eq!(canonical(&wide), wide);
    }

    fn listed(hosts: impl IntoIterator<Item = (u8, u64)>) -> BTreeMap<IpNet, u64> {
        let net = |host| IpNet::V4(Ipv4Net::new_assert([192, 0, 2, host].into(), 32));
        hosts.into_iter().map(|(host, until_ns)| (net(host), until_ns)).collect()
    }

    #[test]
    fn what_is_new_comes_before_what_goes() {
        let steps = steps(&listed([(1, 5)]), &listed([(2, 5)]), 2).unwrap();
        assert!(matches!(steps[..], [Step::Put(..), Step::Remove(_)]));
    }

    proptest! {
        #[test]
        fn steps_lead_there_and_never_overflow(
            present in proptest::collection::btree_map(0_u8..12, 0_u64..3, 0..=8),
            desired in proptest::collection::btree_map(0_u8..12, 0_u64..3, 0..12),
        ) {
            let (mut list, desired) = (listed(present), listed(desired));
            let Some(steps) = steps(&list, &desired, 8) else {
                prop_assert!(desired.len() > 8);
                return Ok(());
            };
            for step in steps {
                match step {
                    Step::Put(network, until_ns) => list.insert(network, until_ns),
                    Step::Remove(network) => list.remove(&network),
                };
                prop_assert!(list.len() <= 8);
            }
            prop_assert_eq!(list, desired);
        }

        #[test]
        fn networks_survive_the_round_trip(v4: bool, address: u128, length in 0_u8..=128) {
            let net = if v4 {
                IpNet::V4(Ipv4Net::new_assert((address as u32).into(), length.min(32)))
            } else {
                IpNet::V6(Ipv6Net::new_assert(address.into(), length))
            };
            prop_assert_eq!(canonical(&net), net.trunc());
        }
    }
}
