//! The allow and the deny list: where each network is from, and what the kernel is to hold.

use std::{collections::BTreeMap, path::PathBuf};

use edge_policy::list;
use ipnet::IpNet;

use crate::{clock, config, store::ListRecord};

/// One of the two lists: the configuration's networks and the operators'.
#[derive(Default)]
pub(crate) struct List {
    configured: Vec<(IpNet, Option<PathBuf>)>,
    /// By network: an operator's word on it replaces the last one.
    operators: BTreeMap<IpNet, ListRecord>,
}

/// Who put a network on a list.
pub(crate) enum Origin<'a> {
    /// The configuration file, or the list file it names.
    Configuration(Option<&'a PathBuf>),
    /// An operator.
    Operator(&'a ListRecord),
}

impl List {
    pub(crate) fn new(records: impl IntoIterator<Item = ListRecord>) -> Self {
        let operators = records.into_iter().map(|record| (record.net, record)).collect();
        Self { configured: Vec::new(), operators }
    }

    /// Takes the configuration's networks from `list`, in place of the former.
    pub(crate) fn configure(&mut self, list: &config::settings::List) {
        self.configured = list.iter().map(|(net, file)| (net, file.map(Into::into))).collect();
    }

    pub(crate) fn put(&mut self, record: ListRecord) {
        self.operators.insert(record.net, record);
    }

    pub(crate) fn remove(&mut self, net: &IpNet) -> Option<ListRecord> {
        self.operators.remove(net)
    }

    pub(crate) fn len(&self) -> usize {
        self.configured.len() + self.operators.len()
    }

    /// Whether the configuration itself holds exactly this network.
    pub(crate) fn is_configured(&self, net: &IpNet) -> bool {
        self.configured.iter().any(|(configured, _)| configured == net)
    }

    /// Takes out what operators put in for a time that is over.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<ListRecord> {
        let over = |record: &ListRecord| record.until_ms.is_some_and(|until| until <= now_ms);
        self.operators.extract_if(.., |_, record| over(record)).map(|(_, record)| record).collect()
    }

    /// The smallest table in which the longest match speaks for every network on the list, with
    /// ends in boot time.
    pub(crate) fn compile(&self) -> BTreeMap<IpNet, u64> {
        list::compile(self.entries().map(|(net, origin)| (net, origin.until_ns())))
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (IpNet, Origin<'_>)> {
        let configured = self.configured.iter();
        configured
            .map(|(net, file)| (*net, Origin::Configuration(file.as_ref())))
            .chain(self.operators.values().map(|record| (record.net, Origin::Operator(record))))
    }
}

impl Origin<'_> {
    fn until_ns(&self) -> u64 {
        match self {
            Self::Operator(ListRecord { until_ms: Some(until), .. }) => clock::boot_ns_at(*until),
            _ => list::FOREVER,
        }
    }
}
