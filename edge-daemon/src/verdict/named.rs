//! What the configuration lists, itself and by its files: each network with its place, and since when it is
//! named there.

use std::sync::Arc;

use edge_policy::list::{Class, FOREVER, Nets, reasons::Reasons};
use ipnet::IpNet;

use super::{lists::class_of, sheets::Sheets};
use crate::{
    clock,
    config::settings::{self, Settings},
    control::ListName,
};

/// The configuration's networks, in order.
#[derive(Default)]
pub(crate) struct Configured {
    pub(super) nets: Vec<Place>,
    /// What they are from.
    pub(super) from: Vec<Whence>,
    /// `never_ban`: what others list of it, or around it, is left out.
    pub(super) never: Nets,
}

/// What has networks of a configuration.
pub(crate) struct Whence {
    /// In words: "config", "file NAME", "upstream NAME".
    pub(super) words: String,
    /// Why they are listed, by line.
    reasons: Arc<Reasons>,
    /// Whether nobody asked for them to be listed: the daemon does so by itself.
    is_own: bool,
}

impl Whence {
    /// What the daemon allows by itself. It is for who answers it, or brings it clients: nothing of that
    /// needs ports that are not offered, and what comes under such an address may be from others.
    fn own(words: String) -> Self {
        Self { is_own: true, ..words.into() }
    }

    /// What it does to the packets of its networks on this list.
    pub(super) const fn class(&self, name: ListName) -> Class {
        if self.is_own { Class::Spare } else { class_of(name, false) }
    }

    /// Why the network of this line is listed, as far as it says.
    pub(super) fn reason(&self, line: u32) -> Option<&str> {
        self.reasons.get(line)
    }
}

impl From<String> for Whence {
    fn from(words: String) -> Self {
        Self { words, reasons: Arc::default(), is_own: false }
    }
}

/// A network, the index of what it is from, its line there, 0 for none, and since when it is named there, in
/// unix seconds and as far as this daemon knows.
pub(super) type Place = (IpNet, u32, u32, u32);

impl Configured {
    /// The networks of a list in the configuration and, if they are to be on it, the servers
    /// behind the edge: no limit may cut off their answers, however many packets those take.
    pub(crate) fn new<'a>(
        list: &settings::List,
        servers: impl Iterator<Item = (&'a str, std::net::IpAddr)>,
    ) -> Self {
        let (mut this, now_s) = (Self::default(), clock::unix_ms() / 1000);
        this.add("config".to_owned().into(), now_s, list.nets.iter().map(|net| (*net, 0)));
        for file in &list.files {
            let words = format!("file {}", file.path.display());
            let from = Whence { reasons: Arc::clone(&file.reasons), ..words.into() };
            this.add(from, file.changed_s, file.nets.iter().map(|line| (line.net, line.number)));
        }
        for (upstream, address) in servers {
            let from = Whence::own(format!("upstream {upstream}"));
            this.add(from, now_s, std::iter::once((address.into(), 0)));
        }
        // Many files are in order, and this sort merges what is.
        this.nets.sort();
        this
    }

    /// Both lists of a configuration, the allow list and the deny list; what the former ones had from the same
    /// place is named there since then.
    pub(crate) fn both(settings: &Settings, former: Option<&[Arc<Self>; 2]>) -> [Self; 2] {
        let lists = &settings.lists;
        let mut allow = Self::new(&lists.allow, settings.upstream_addresses());
        let proxies = settings.server.trusted_proxies.iter().map(|net| (*net, 0));
        // They stand for many clients, each of which is judged by itself behind them.
        let from = Whence::own("trusted_proxies".to_owned());
        allow.add(from, clock::unix_ms() / 1000, proxies);
        allow.nets.sort_unstable();
        let mut deny = Self::new(&lists.deny, std::iter::empty());
        deny.never = settings.verdicts.never_ban.iter().copied().collect();
        if let Some([allowed, denied]) = former {
            allow.date_by(allowed);
            deny.date_by(denied);
        }
        [allow, deny]
    }

    fn add(&mut self, from: Whence, since_s: u64, nets: impl Iterator<Item = (IpNet, u32)>) {
        let index = self.from.len() as u32;
        self.from.push(from);
        self.nets.extend(nets.map(|(net, line)| (net, index, line, since_s as u32)));
    }

    fn date_by(&mut self, former: &Self) {
        let mut rest = &former.nets[..];
        for (net, from, _, since_s) in &mut self.nets {
            let passed = rest.iter().take_while(|place| place.0 < *net).count();
            rest = &rest[passed..];
            let from = &self.from[*from as usize].words;
            let mut same = rest.iter().take_while(|place| place.0 == *net);
            if let Some(known) = same.find(|place| former.from[place.1 as usize].words == *from) {
                *since_s = known.3;
            }
        }
    }

    /// Whether others may not deny a network, because somebody in it is never banned.
    pub(super) fn spares(&self, net: &IpNet) -> bool {
        self.never.overlap(*net)
    }

    /// How many networks of these sheets it spares.
    pub(super) fn count_spared(&self, sheets: &Sheets) -> usize {
        let listed = sheets.values().flat_map(|sheet| sheet.entries());
        listed.filter(|listed| self.spares(&listed.net)).count()
    }

    /// Every network, some of them several times.
    pub(crate) fn nets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.nets.iter().map(|(net, ..)| *net)
    }

    /// Every network with its class on this list, some of them several times.
    pub(super) fn classed(&self, name: ListName) -> impl Iterator<Item = (Class, IpNet, u64)> + '_ {
        self.nets.iter().map(move |place| (self.class(place, name), place.0, FOREVER))
    }

    pub(super) fn class(&self, place: &Place, name: ListName) -> Class {
        self.from[place.1 as usize].class(name)
    }

    pub(super) fn of(&self, net: &IpNet) -> &[Place] {
        let from = self.nets.partition_point(|place| place.0 < *net);
        let len = self.nets[from..].iter().take_while(|place| place.0 == *net).count();
        &self.nets[from..from + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::sheets::{Listed, Sheet};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn an_entry_is_listed_since_its_source_first_named_it() {
        let configured = |nets: &[&str], changed_s, lines: &[&str], former: Option<&Configured>| {
            let line = |text: &&str| settings::Line { net: net(text), number: 1 };
            let nets = nets.iter().map(|text| net(text)).collect();
            let file = settings::ListFile {
                path: "feed.txt".into(),
                nets: lines.iter().map(line).collect(),
                changed_s,
                ..settings::ListFile::default()
            };
            let list = settings::List { nets, files: vec![file] };
            let mut this = Configured::new(&list, std::iter::empty());
            former.into_iter().for_each(|former| this.date_by(former));
            this
        };
        let since = |configured: &Configured, text: &str, from: u32| {
            let places = configured.of(&net(text)).iter();
            places.filter(|place| place.1 == from).map(|place| place.3).collect::<Vec<_>>()
        };
        let first = configured(&["10.0.0.0/8"], 5, &["10.0.0.0/8", "192.0.2.0/24"], None);
        let nets = ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"];
        let second = configured(&["192.0.2.0/24"], 9, &nets, Some(&first));
        assert_eq!(nets.map(|text| since(&second, text, 1)), [[5], [5], [9]]);
        // Named by the one and the other.
        assert!(since(&second, "192.0.2.0/24", 0)[0] > 9);
        let sheet = |since_s, nets: &[&str]| {
            let entry =
                |text: &&str| Listed { net: net(text), until_ns: FOREVER, place: 1, since_s };
            Sheet::new("feed".into(), Class::Deny, nets.iter().map(entry).collect(), Vec::new())
        };
        let after = sheet(9, &nets).after(Some(&sheet(5, &nets[..2])));
        assert_eq!(after.entries().iter().map(|e| e.since_s).collect::<Vec<_>>(), [5, 5, 9]);
    }
}
