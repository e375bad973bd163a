//! The allow and the deny list: where each network is from, and until when it is listed.

use std::{collections::BTreeMap, sync::Arc};

use edge_policy::list::{Class, FOREVER};
use ipnet::IpNet;

use super::{
    named::{Configured, Place, Whence},
    sheets::{Listed, Sheet, Sheets},
};
use crate::{
    clock,
    config::Settings,
    control::ListName,
    kernel::{Draft, ListCapacity},
    store::{Contents, ListRecord, Store},
};

/// One of the two lists: the configuration's networks, the operators', and others'.
#[derive(Default)]
pub(crate) struct List {
    pub(super) configured: Arc<Configured>,
    /// By network: an operator's word on it replaces the last one.
    operators: BTreeMap<IpNet, Entry>,
    pub(super) sheets: Sheets,
    /// Networks of the sheets that `never_ban` leaves out.
    spared: usize,
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
        let until_ns = record.ends_ms(clock::unix_ms()).map_or(FOREVER, clock::boot_ns_at);
        Self { record, until_ns }
    }
}

impl Entry {
    /// When it ends by the calendar of now, in unix milliseconds; `None`: never.
    pub(crate) fn until_ms(&self) -> Option<u64> {
        (self.until_ns != FOREVER).then(|| clock::unix_ms_at(self.until_ns))
    }
}

/// Who put a network on a list.
pub(crate) enum Origin<'a> {
    /// The configuration, in this place, and in this line if it is not 0; since this unix second.
    Configuration(&'a Whence, u32, u32),
    /// An operator.
    Operator(&'a Entry),
    /// Somebody else, on a sheet.
    Outside(&'a Sheet, &'a Listed),
}

impl List {
    pub(crate) fn new(records: impl IntoIterator<Item = ListRecord>) -> Self {
        let operators = records.into_iter().map(|record| (record.net, record.into())).collect();
        Self { operators, ..Self::default() }
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
        let sheets = self.sheets.values().map(|sheet| sheet.entries().len());
        self.configured.nets.len() + self.operators.len() + sheets.sum::<usize>() - self.spared
    }

    /// Puts a sheet in the place of its former one, from which it differs in these networks alone;
    /// the former one.
    pub(super) fn change(&mut self, sheet: Arc<Sheet>, changed: &[IpNet]) -> Arc<Sheet> {
        let spared = |sheet: &Sheet| {
            let listed = changed.iter().filter(|net| sheet.get(net).is_some());
            listed.filter(|net| self.configured.spares(net)).count()
        };
        let (from, class) = (Arc::clone(&sheet.from), sheet.class);
        let former = self.sheets.get(&from).cloned();
        let former =
            former.unwrap_or_else(|| Sheet::new(from, class, Vec::new(), Vec::new()).into());
        let networks = self.spared + spared(&sheet) - spared(&former);
        put(&mut self.sheets, sheet);
        self.note_spared(networks);
        former
    }

    /// Notes how much `never_ban` leaves out of others' lists, and says so: one address may keep a whole
    /// network from being denied.
    pub(super) fn note_spared(&mut self, networks: usize) {
        if networks > 0 && networks != self.spared {
            tracing::warn!(
                networks,
                "networks of feeds with anybody of never_ban in them are not denied"
            );
        }
        self.spared = networks;
    }

    /// Whether one of the configuration's or the operators' networks holds all of this one at a boot time.
    pub(super) fn covers(&self, net: IpNet, now_ns: u64) -> bool {
        let by_operator =
            |wide: &IpNet| self.operators.get(wide).is_some_and(|entry| now_ns < entry.until_ns);
        let mut wider = std::iter::successors(Some(net), IpNet::supernet);
        wider.any(|wide| self.is_configured(&wide) || by_operator(&wide))
    }

    /// The configuration's networks, and those of the operators that have not ended at a boot time.
    pub(super) fn own(&self, now_ns: u64) -> impl Iterator<Item = IpNet> {
        let operators = self.operators.iter().filter(move |(_, entry)| now_ns < entry.until_ns);
        self.configured.nets().chain(operators.map(|(net, _)| *net))
    }

    /// Whether the configuration itself holds exactly this network.
    pub(crate) fn is_configured(&self, net: &IpNet) -> bool {
        !self.configured.of(net).is_empty()
    }

    /// Until when a network is listed in a class, whoever listed it; 0: it is not.
    pub(crate) fn until_ns(&self, name: ListName, class: Class, net: &IpNet) -> u64 {
        if self.configured.of(net).iter().any(|place| self.configured.class(place, name) == class) {
            return FOREVER;
        }
        let entry = self.operators.get(net).filter(|entry| entry.class(name) == class);
        let is_spared = self.configured.spares(net);
        let sheets = self.sheets.values().filter(|sheet| sheet.class == class && !is_spared);
        let outside = sheets.filter_map(|sheet| sheet.get(net)).map(|listed| listed.until_ns);
        entry.map(|entry| entry.until_ns).into_iter().chain(outside).max().unwrap_or(0)
    }

    /// Takes out what operators put in for a time that is over at this boot time.
    pub(crate) fn expire(&mut self, now_ns: u64) -> Vec<Entry> {
        let ended: Vec<_> =
            self.operators.values().filter(|entry| entry.until_ns <= now_ns).cloned().collect();
        for entry in &ended {
            self.operators.remove(&entry.record.net);
        }
        ended
    }

    /// The operators' networks, with their classes and ends.
    pub(crate) fn of_operators(&self, name: ListName) -> impl Iterator<Item = (Class, IpNet, u64)> {
        let entries = self.operators.values();
        entries.map(move |entry| (entry.class(name), entry.record.net, entry.until_ns))
    }

    /// Every entry from this one on: the configuration's in order, then others', then the operators'.
    pub(crate) fn entries(&self, from: usize) -> impl Iterator<Item = (IpNet, Origin<'_>)> {
        let Configured { nets, .. } = &*self.configured;
        let configured = nets.get(from..).unwrap_or_default().iter().map(|place| self.told(place));
        let outside = self.sheets.values().flat_map(|sheet| {
            let denied = |listed: &&Listed| !self.configured.spares(&listed.net);
            let entries = sheet.entries().iter().filter(denied);
            entries.map(move |listed| (listed.net, Origin::Outside(sheet, listed)))
        });
        let operators = self.operators.values();
        let operators = operators.map(|entry| (entry.record.net, Origin::Operator(entry)));
        configured.chain(outside.chain(operators).skip(from.saturating_sub(nets.len())))
    }

    /// Everyone who put exactly this network on the list.
    pub(crate) fn origins(&self, net: &IpNet) -> Vec<Origin<'_>> {
        let operator = self.operators.get(net).map(Origin::Operator);
        let configured = self.configured.of(net).iter().map(|place| self.told(place).1);
        let sheets = self.sheets.values().filter(|_| !self.configured.spares(net));
        let outside = sheets.filter_map(|sheet| Some(Origin::Outside(sheet, sheet.get(net)?)));
        operator.into_iter().chain(configured).chain(outside).collect()
    }

    fn told(&self, (net, from, line, since_s): &Place) -> (IpNet, Origin<'_>) {
        let from = &self.configured.from[*from as usize];
        (*net, Origin::Configuration(from, *line, *since_s))
    }
}

impl Entry {
    /// What it does to the packets of its network.
    pub(crate) fn class(&self, name: ListName) -> Class {
        class_of(name, self.record.monitor)
    }
}

impl Origin<'_> {
    /// What it does to the packets of a network on this list.
    pub(super) fn class(&self, name: ListName) -> Class {
        match self {
            Self::Configuration(from, ..) => from.class(name),
            Self::Operator(entry) => entry.class(name),
            Self::Outside(sheet, _) => sheet.class,
        }
    }

    /// Since when it is listed by whoever lists it, in unix milliseconds.
    pub(super) fn since_ms(&self) -> u64 {
        match self {
            Self::Configuration(.., since_s) => u64::from(*since_s) * 1000,
            Self::Operator(entry) => entry.record.added_ms,
            Self::Outside(_, listed) => u64::from(listed.since_s) * 1000,
        }
    }

    /// Why it is listed, as far as that was said.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Configuration(from, line, _) => from.reason(*line),
            Self::Operator(entry) => entry.record.reason.as_deref(),
            Self::Outside(sheet, listed) => sheet.reason(listed),
        }
    }

    /// In words: "config", "file PATH:LINE", "upstream NAME", "feed NAME:LINE",
    /// "crowdsec: SCENARIO" or "operator".
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Configuration(from, 0, _) => from.words.clone(),
            Self::Configuration(from, line, _) => format!("{}:{line}", from.words),
            Self::Operator(_) => "operator".to_owned(),
            Self::Outside(sheet, listed) => sheet.words(listed),
        }
    }
}

/// The class of a list's entries.
pub(crate) const fn class_of(name: ListName, monitor: bool) -> Class {
    match (name, monitor) {
        (ListName::Allow, _) => Class::Allow,
        (ListName::Deny, false) => Class::Deny,
        (ListName::Deny, true) => Class::Watch,
    }
}

/// The classes of a list's entries.
pub(crate) const fn classes(name: ListName) -> &'static [Class] {
    match name {
        ListName::Allow => &[Class::Allow, Class::Spare],
        ListName::Deny => &[Class::Deny, Class::Watch],
    }
}

/// An empty sheet takes the former one away.
pub(super) fn put(sheets: &mut Sheets, sheet: Arc<Sheet>) {
    if sheet.entries().is_empty() {
        sheets.remove(&sheet.from);
    } else {
        sheets.insert(Arc::clone(&sheet.from), sheet);
    }
}

/// Everything that is listed.
pub(super) fn entries(
    [allow, deny]: &[Arc<Configured>; 2],
    sheets: &Sheets,
    mut operators: Vec<(Class, IpNet, u64)>,
) -> Vec<(Class, IpNet, u64)> {
    operators.extend(allow.classed(ListName::Allow));
    operators.extend(deny.classed(ListName::Deny));
    for sheet in sheets.values() {
        let entries = sheet.entries().iter().filter(|listed| !deny.spares(&listed.net));
        operators.extend(entries.map(|listed| (sheet.class, listed.net, listed.until_ns)));
    }
    operators
}

/// What a writer begins with: what the store knows of the past, and the lists, compiled.
pub struct Prepared {
    pub(super) past: Contents,
    pub(super) lists: [List; 2],
    pub(super) draft: Draft,
}

impl Prepared {
    /// Reads the past, and compiles a configuration's lists, others' and the operators'.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn new(settings: &Settings, sheets: Sheets, store: &Store) -> anyhow::Result<Self> {
        let mut past = store.load_all()?;
        let future = past.count_future(clock::unix_ms());
        if future > 0 {
            tracing::warn!(
                future,
                "bans or list entries begin in the future, and last from now on: the clock is behind, or was ahead"
            );
        }
        let [allow, deny] = Configured::both(settings, None).map(Arc::new);
        let allow = List { configured: allow, ..List::new(std::mem::take(&mut past.allow)) };
        let mut deny =
            List { configured: deny, sheets, ..List::new(std::mem::take(&mut past.deny)) };
        deny.note_spared(deny.configured.count_spared(&deny.sheets));
        let operators = allow.of_operators(ListName::Allow);
        let operators = operators.chain(deny.of_operators(ListName::Deny)).collect();
        let configured = [&allow, &deny].map(|list| Arc::clone(&list.configured));
        let entries = entries(&configured, &deny.sheets, operators);
        let draft = Draft::new(settings.lists.networks_max, entries);
        Ok(Self { past, lists: [allow, deny], draft })
    }

    /// How much room they need in the kernel.
    #[must_use]
    pub const fn capacity(&self) -> ListCapacity {
        self.draft.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn entry(text: &str, until_ns: u64, monitor: bool) -> Entry {
        let by = "uid 0".to_owned();
        // By the calendar it ended long ago: that must not matter.
        let record = ListRecord {
            net: net(text),
            until_ms: Some(1),
            reason: None,
            added_ms: 0,
            by,
            monitor,
        };
        Entry { record, until_ns }
    }

    #[test]
    fn entries_end_by_boot_time_alone() {
        let mut list = List::default();
        list.put(entry("192.0.2.0/24", 100, false));
        list.put(entry("198.51.100.0/24", 101, true));
        list.put(entry("203.0.113.0/24", FOREVER, false));
        assert!(list.expire(99).is_empty());
        assert_eq!(list.expire(100), [entry("192.0.2.0/24", 100, false)]);
        assert!(list.expire(100).is_empty());
        let left: Vec<_> = list.of_operators(ListName::Deny).collect();
        let watched = (Class::Watch, net("198.51.100.0/24"), 101);
        assert_eq!(left, [watched, (Class::Deny, net("203.0.113.0/24"), FOREVER)]);
    }

    #[test]
    fn a_configured_network_lasts_whatever_an_operator_says() {
        let mut list = List::new([]);
        let file = settings::ListFile {
            path: "feed.txt".into(),
            nets: [("192.0.2.0/24", 7), ("10.0.0.0/8", 9)]
                .map(|(text, number)| settings::Line { net: net(text), number })
                .into(),
            ..settings::ListFile::default()
        };
        let nets = vec![net("192.0.2.0/24")];
        let configured =
            Configured::new(&settings::List { nets, files: vec![file] }, std::iter::empty());
        list.configured = Arc::new(configured);
        list.put(entry("192.0.2.0/24", 100, false));
        list.put(entry("198.51.100.0/24", 100, true));
        let until = |class, text| list.until_ns(ListName::Deny, class, &net(text));
        assert_eq!(until(Class::Deny, "192.0.2.0/24"), FOREVER);
        assert_eq!(until(Class::Deny, "10.0.0.0/8"), FOREVER);
        assert_eq!(until(Class::Deny, "198.51.100.0/24"), 0);
        assert_eq!(until(Class::Watch, "198.51.100.0/24"), 100);
        assert_eq!(until(Class::Deny, "10.0.0.0/9"), 0);
        let words =
            list.origins(&net("192.0.2.0/24")).iter().map(Origin::words).collect::<Vec<_>>();
        assert_eq!(words, ["operator", "config", "file feed.txt:7"]);
        // Pages join without a gap or a repetition.
        let all: Vec<_> = list.entries(0).map(|(net, _)| net).collect();
        assert_eq!(all.len(), list.len());
        for from in 0..=all.len() {
            assert!(list.entries(from).map(|(net, _)| net).eq(all[from..].iter().copied()));
        }
    }

    #[test]
    fn what_nobody_asked_for_is_spared_and_allowed_only_by_an_operator() {
        let mut list = List::default();
        let [asked, both, own] = ["192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"].map(net);
        let servers = [both, own].map(|net| ("api", net.addr()));
        let listed = settings::List { nets: vec![asked, both], files: Vec::new() };
        list.configured = Arc::new(Configured::new(&listed, servers.into_iter()));
        let classes = |list: &List, net| {
            let listed = |class: &&Class| list.until_ns(ListName::Allow, **class, &net) == FOREVER;
            classes(ListName::Allow).iter().filter(listed).copied().collect::<Vec<_>>()
        };
        assert_eq!(classes(&list, asked), [Class::Allow]);
        assert_eq!(classes(&list, both), [Class::Allow, Class::Spare]);
        assert_eq!(classes(&list, own), [Class::Spare]);
        let all = [Arc::clone(&list.configured), Arc::default()];
        let mut all = entries(&all, &Sheets::default(), Vec::new());
        all.sort_unstable();
        let wanted = [
            (Class::Allow, asked, FOREVER),
            (Class::Allow, both, FOREVER),
            (Class::Spare, both, FOREVER),
            (Class::Spare, own, FOREVER),
        ];
        assert_eq!(all, wanted);
        list.put(entry("192.0.2.3/32", FOREVER, false));
        assert_eq!(classes(&list, own), [Class::Allow, Class::Spare]);
        list.remove(&own);
        assert_eq!(classes(&list, own), [Class::Spare]);
    }

    #[test]
    fn what_never_ban_leaves_out_is_not_listed() {
        let mut list = List::default();
        let never = [net("10.1.2.3/32")].into_iter().collect();
        list.configured = Arc::new(Configured { never, ..Configured::default() });
        let nets = ["10.0.0.0/8", "10.1.2.0/24", "192.0.2.0/24"].map(net);
        let listed = nets.map(|net| Listed { net, until_ns: FOREVER, place: 1, since_s: 5 });
        let from: Arc<str> = "feed a".into();
        let sheet = Sheet::new(Arc::clone(&from), Class::Deny, listed.into(), Vec::new());
        list.change(Arc::new(sheet), &nets);
        assert_eq!((list.len(), list.spared), (1, 2));
        assert_eq!(list.configured.count_spared(&list.sheets), 2);
        assert!(list.entries(0).map(|(net, _)| net).eq([net("192.0.2.0/24")]));
        assert!(list.origins(&net("10.0.0.0/8")).is_empty());
        assert_eq!(list.origins(&net("192.0.2.0/24")).len(), 1);
        // What changes is counted by what changes.
        let listed = [nets[0], net("11.0.0.0/8")];
        let listed = listed.map(|net| Listed { net, until_ns: 7, place: 1, since_s: 9 });
        let sheet = Sheet::new("feed a".into(), Class::Deny, listed[..1].into(), Vec::new());
        list.change(Arc::new(sheet), &nets);
        assert_eq!((list.len(), list.spared), (0, 1));
    }
}
