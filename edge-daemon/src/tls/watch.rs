//! Files that may change under a running daemon: which have, and whether what they hold is served.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use crate::config::settings;

/// What is read as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A certificate with its key, by its number.
    Pair(usize),
    /// Authorities and what they revoked.
    Trust,
}

/// The files of every part, and how they were.
#[derive(Debug)]
pub(super) struct Watch(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    part: Part,
    files: Vec<PathBuf>,
    /// As they were when they were last read, whatever came of it.
    read: Vec<Stamp>,
    /// As they were at the last look.
    last: Vec<Stamp>,
    /// Why what they held when they were last read was not good; `None`: it was.
    fault: Option<String>,
    /// Looks since then.
    looks: u32,
}

/// What tells one state of a file from another; `None`: it is not there.
type Stamp = Option<(u64, u64, i64, i64, i64, i64)>;

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let m = fs::metadata(file).ok()?;
        // Of the last two alone a change of owner or mode tells.
        Some((m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
    };
    files.iter().map(stamp).collect()
}

impl Watch {
    pub(super) fn new(settings: &settings::Tls) -> Self {
        let pair = |(n, c): (usize, &settings::Certificate)| {
            let files = [&c.chain, &c.key].into_iter().chain(&c.ocsp);
            (Part::Pair(n), files.cloned().collect::<Vec<_>>())
        };
        let clients = &settings.clients;
        let trust = clients.ca.iter().chain(&clients.crl).cloned().collect::<Vec<_>>();
        let parts = settings.certificates.iter().enumerate().map(pair);
        let watched = parts.chain([(Part::Trust, trust)]).map(|(part, files)| {
            let now = stamps(&files);
            Watched { part, files, read: now.clone(), last: now, fault: None, looks: 0 }
        });
        Self(watched.collect())
    }

    /// The parts that are to be read: whose files have changed since they were read and, unless it is to be at once,
    /// have not since the last look, as a certificate and its key are not written together. What was not good is
    /// read now and then though its files are the same: its time may have come, or a folder above them been opened.
    pub(super) fn look(&mut self, at_once: bool) -> Vec<Part> {
        let mut due = Vec::new();
        for watched in &mut self.0 {
            let now = stamps(&watched.files);
            let has_changed = now != watched.read && (at_once || now == watched.last);
            watched.looks = watched.looks.saturating_add(1);
            let is_retried = watched.fault.is_some() && (at_once || watched.looks >= RETRY_LOOKS);
            if has_changed || is_retried {
                watched.read.clone_from(&now);
                due.push(watched.part);
            }
            if has_changed || at_once {
                // Whatever is found is news.
                watched.fault = None;
            }
            watched.last = now;
        }
        due
    }

    /// Notes what came of reading a part; whether that is news.
    pub(super) fn note(&mut self, part: Part, result: &Result<(), String>) -> bool {
        let fault = result.as_ref().err();
        let mut is_news = fault.is_none();
        for watched in self.0.iter_mut().filter(|watched| watched.part == part) {
            is_news |= watched.fault.as_ref() != fault;
            (watched.fault, watched.looks) = (fault.cloned(), 0);
        }
        is_news
    }

    pub(super) fn is_stale(&self, part: Part) -> bool {
        self.0.iter().any(|watched| watched.part == part && watched.fault.is_some())
    }
}

/// After so many looks, one a second, what was not good is read again.
const RETRY_LOOKS: u32 = 60;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A certificate with its key in a folder, as they are read.
    fn watch(folder: &tempfile::TempDir) -> Watch {
        let files = ["cert.pem", "key.pem"].map(|name| folder.path().join(name)).to_vec();
        files.iter().for_each(|file| fs::write(file, "1").unwrap());
        let (read, last) = (stamps(&files), stamps(&files));
        Watch(vec![Watched { part: Part::Pair(0), files, read, last, fault: None, looks: 0 }])
    }

    fn bad(why: &str) -> Result<(), String> {
        Err(why.to_owned())
    }

    #[test]
    fn a_part_is_read_once_it_has_come_to_rest() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = watch(&folder);
        let file = |name: &str| folder.path().join(name);
        let put = |name: &str, text: &str| fs::write(file(name), text).unwrap();
        assert_eq!(watch.look(false), []);
        put("cert.pem", "22");
        assert_eq!(watch.look(false), [], "the key may be on its way");
        put("key.pem", "22");
        assert_eq!(watch.look(false), []);
        assert_eq!(watch.look(false), [Part::Pair(0)]);
        assert!(watch.note(Part::Pair(0), &bad("no pair")));
        assert!(watch.is_stale(Part::Pair(0)));
        assert_eq!(watch.look(false), [], "what is not good is not read at every look");
        fs::remove_file(file("key.pem")).unwrap();
        assert_eq!((watch.look(false), watch.look(false)), (vec![], vec![Part::Pair(0)]));
    }

    #[test]
    fn a_change_of_mode_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = watch(&folder);
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(folder.path().join("key.pem"), mode).unwrap();
        assert_eq!((watch.look(false), watch.look(false)), (vec![], vec![Part::Pair(0)]));
    }

    #[test]
    fn what_is_not_good_is_read_again_and_told_of_when_it_is_news() {
        let folder = tempfile::tempdir().unwrap();
        let (mut watch, part) = (watch(&folder), Part::Pair(0));
        assert_eq!(watch.look(true), [], "what is good is not");
        assert!(watch.note(part, &bad("is not good before noon")));
        let looks = |watch: &mut Watch| (1..=RETRY_LOOKS).find(|_| !watch.look(false).is_empty());
        assert_eq!(looks(&mut watch), Some(RETRY_LOOKS));
        assert!(!watch.note(part, &bad("is not good before noon")), "that is known");
        assert_eq!(looks(&mut watch), Some(RETRY_LOOKS));
        assert!(watch.note(part, &bad("cannot be read")));
        assert_eq!(watch.look(true), [part], "a reload does not wait");
        assert!(watch.note(part, &bad("cannot be read")), "and its operator is told");
        assert_eq!(looks(&mut watch), Some(RETRY_LOOKS));
        assert!(watch.note(part, &Ok(())) && !watch.is_stale(part));
        assert_eq!(looks(&mut watch), None);
    }
}
