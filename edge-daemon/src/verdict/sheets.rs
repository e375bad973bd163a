//! What others than the configuration and the operators list: each source has a sheet, which is
//! replaced whole.

use std::{collections::BTreeMap, sync::Arc};

use edge_policy::list::{Class, reasons::Reasons};
use ipnet::IpNet;
use tokio::sync::oneshot;

/// The networks that one source outside of the host denies, or has counted.
#[derive(Debug)]
pub struct Sheet {
    /// Who lists them: "feed NAME", "crowdsec".
    pub from: Arc<str>,
    /// [`Class::Deny`], or [`Class::Watch`] for what is only counted.
    pub class: Class,
    entries: Vec<Listed>,
    notes: Vec<Arc<str>>,
    /// Why they are listed, by line.
    pub reasons: Reasons,
}

/// An entry of a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The network.
    pub net: IpNet,
    /// When it ends in boot time; [`edge_policy::list::FOREVER`]: never.
    pub until_ns: u64,
    /// Its line, or the number of its note if the sheet has notes.
    pub place: u32,
    /// When its source first listed it, in unix seconds, as far as this daemon knows.
    pub since_s: u32,
}

/// The sheets in force, by whom they are from.
pub type Sheets = BTreeMap<Arc<str>, Arc<Sheet>>;

/// A sheet on its way to the writer, in place of the former one from there; an empty one is taken
/// away.
pub struct Update {
    /// The sheet.
    pub sheet: Arc<Sheet>,
    /// In what it differs from the former, if that is known; else both lists are compiled anew.
    pub changed: Option<Vec<IpNet>>,
    /// Told when it is in force, or why it cannot be.
    pub answer: oneshot::Sender<Result<(), String>>,
}

impl Sheet {
    /// A sheet of these entries, in any order; of a network that is there several times, the
    /// latest end.
    #[must_use]
    pub fn new(
        from: Arc<str>,
        class: Class,
        mut entries: Vec<Listed>,
        notes: Vec<Arc<str>>,
    ) -> Self {
        entries.sort_unstable_by_key(|entry| (entry.net, std::cmp::Reverse(entry.until_ns)));
        entries.dedup_by_key(|entry| entry.net);
        Self { from, class, entries, notes, reasons: Reasons::default() }
    }

    /// The same sheet, whose lines say why.
    #[must_use]
    pub fn because(self, reasons: Reasons) -> Self {
        Self { reasons, ..self }
    }

    /// The sheet that follows a former one: what that listed already is listed since then.
    #[must_use]
    pub fn after(mut self, former: Option<&Self>) -> Self {
        for entry in &mut self.entries {
            if let Some(listed) = former.and_then(|former| former.get(&entry.net)) {
                entry.since_s = listed.since_s;
            }
        }
        self
    }

    /// Its entries, by network.
    #[must_use]
    pub fn entries(&self) -> &[Listed] {
        &self.entries
    }

    /// Its entry for exactly this network.
    #[must_use]
    pub fn get(&self, net: &IpNet) -> Option<&Listed> {
        let at = self.entries.binary_search_by_key(net, |entry| entry.net).ok()?;
        self.entries.get(at)
    }

    /// Why an entry is listed, as far as its line says.
    pub(super) fn reason(&self, entry: &Listed) -> Option<&str> {
        self.reasons.get(entry.place)
    }

    /// Where an entry is from, in words: "feed NAME:LINE", "crowdsec: SCENARIO".
    pub(super) fn words(&self, entry: &Listed) -> String {
        match self.notes.get(entry.place as usize) {
            Some(note) => format!("{}: {note}", self.from),
            None => format!("{}:{}", self.from, entry.place),
        }
    }
}
