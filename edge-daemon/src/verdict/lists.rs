//! The allow and the deny list: where each network is from, and what the kernel is to hold.

use std::{collections::BTreeMap, sync::Arc};

use edge_policy::list;
use ipnet::IpNet;

use crate::{clock, config::settings, store::ListRecord};

/// One of the two lists: the configuration's networks and the operators'.
#[derive(Default)]
pub(crate) struct List {
    /// Each with where it is from, in words.
    configured: Vec<(IpNet, Arc<str>)>,
    /// By network: an operator's word on it replaces the last one.
    operators: BTreeMap<IpNet, Entry>,
}

/// What an operator said of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As it is on disk, in calendar time.
    pub(crate) record: ListRecord,
    /// When it ends in boot time, which no correction of the calendar moves.
    until_ns: u64,
}

impl From<ListRecord> for Entry {
    fn from(record: ListRecord) -> Self {
        let until_ns = record.until_ms.map_or(list::FOREVER, clock::boot_ns_at);
        Self { record, until_ns }
    }
}

impl Entry {
    /// When it ends by the calendar of now, in unix milliseconds; `None`: never.
    pub(crate) fn until_ms(&self) -> Option<u64> {
        (self.until_ns != list::FOREVER).then(|| clock::unix_ms_at(self.until_ns))
    }
}

/// Who put a network on a list.
pub(crate) enum Origin<'a> {
    /// The configuration, in these words: "config", "file NAME", "upstream NAME".
    Configuration(&'a str),
    /// An operator.
    Operator(&'a Entry),
}

impl List {
    pub(crate) fn new(records: impl IntoIterator<Item = ListRecord>) -> Self {
        let operators = records.into_iter().map(|record| (record.net, record.into())).collect();
        Self { configured: Vec::new(), operators }
    }

    /// Takes the configuration's networks from `list`, in place of the former.
    pub(crate) fn configure(&mut self, list: &settings::List) {
        let own: Arc<str> = "config".into();
        self.configured = list.nets.iter().map(|net| (*net, Arc::clone(&own))).collect();
        for file in &list.files {
            let from: Arc<str> = format!("file {}", file.path.display()).into();
            self.configured.extend(file.nets.iter().map(|net| (*net, Arc::clone(&from))));
        }
    }

    /// Adds the servers behind the edge: no limit may cut off their answers, however many
    /// packets those take, and no list the edge from them.
    pub(crate) fn configure_upstreams(&mut self, upstreams: &[settings::Upstream]) {
        for upstream in upstreams {
            let from: Arc<str> = format!("upstream {}", upstream.name).into();
            let nets = upstream.servers.iter().map(|server| IpNet::from(server.ip()));
            self.configured.extend(nets.map(|net| (net, Arc::clone(&from))));
        }
    }

    /// Puts an entry in the place of the former one for its network, which it gives back.
    pub(crate) fn put(&mut self, entry: Entry) -> Option<Entry> {
        self.operators.insert(entry.record.net, entry)
    }

    pub(crate) fn remove(&mut self, net: &IpNet) -> Option<Entry> {
        self.operators.remove(net)
    }

    /// Whether an operator put exactly this network on the list.
    pub(crate) fn holds(&self, net: &IpNet) -> bool {
        self.operators.contains_key(net)
    }

    pub(crate) fn len(&self) -> usize {
        self.configured.len() + self.operators.len()
    }

    /// Whether the configuration itself holds exactly this network.
    pub(crate) fn is_configured(&self, net: &IpNet) -> bool {
        self.configured.iter().any(|(configured, _)| configured == net)
    }

    /// Takes out what operators put in for a time that is over at this boot time; whether there
    /// was any.
    pub(crate) fn expire(&mut self, now_ns: u64) -> bool {
        let before = self.operators.len();
        self.operators.retain(|_, entry| now_ns < entry.until_ns);
        self.operators.len() < before
    }

    /// The smallest table in which the longest match speaks for every network on the list, with
    /// ends in boot time.
    pub(crate) fn compile(&self) -> BTreeMap<IpNet, u64> {
        list::compile(self.entries().map(|(net, origin)| (net, origin.until_ns())))
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (IpNet, Origin<'_>)> {
        let configured = self.configured.iter();
        configured
            .map(|(net, file)| (*net, Origin::Configuration(file)))
            .chain(self.operators.values().map(|entry| (entry.record.net, Origin::Operator(entry))))
    }
}

impl Origin<'_> {
    const fn until_ns(&self) -> u64 {
        match self {
            Self::Operator(entry) => entry.until_ns,
            Self::Configuration(_) => list::FOREVER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(net: &str, until_ns: u64) -> Entry {
        let (net, by) = (net.parse().unwrap(), "uid 0".to_owned());
        // By the calendar it ended long ago: that must not matter.
        let record = ListRecord { net, until_ms: Some(1), reason: None, added_ms: 0, by };
        Entry { record, until_ns }
    }

    #[test]
    fn entries_end_by_boot_time_alone() {
        let mut list = List::default();
        list.put(entry("192.0.2.0/24", 100));
        list.put(entry("198.51.100.0/24", 101));
        list.put(entry("203.0.113.0/24", list::FOREVER));
        assert!(!list.expire(99));
        assert!(list.expire(100));
        assert!(!list.expire(100));
        let left: Vec<_> = list.compile().into_iter().collect();
        let expected = [("198.51.100.0/24", 101), ("203.0.113.0/24", list::FOREVER)];
        assert_eq!(left, expected.map(|(net, until)| (net.parse().unwrap(), until)));
    }

    #[test]
    fn a_replaced_entry_can_be_put_back() {
        let mut list = List::default();
        assert_eq!(list.put(entry("192.0.2.0/24", 100)), None);
        let former = list.put(entry("192.0.2.0/24", 200)).unwrap();
        assert_eq!(former, entry("192.0.2.0/24", 100));
        list.put(former);
        assert_eq!(list.compile().into_values().collect::<Vec<_>>(), [100]);
    }
}
