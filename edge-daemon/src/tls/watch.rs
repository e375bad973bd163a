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
    /// Whether what they held when they were last read was not good.
    is_stale: bool,
}

/// What tells one state of a file from another; `None`: it is not there.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let m = fs::metadata(file).ok()?;
        Some((m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
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
            Watched { part, files, read: now.clone(), last: now, is_stale: false }
        });
        Self(watched.collect())
    }

    /// The parts whose files have changed since they were read and, unless it is to be at once, have
    /// not since the last look: a certificate and its key are not written together.
    pub(super) fn look(&mut self, at_once: bool) -> Vec<Part> {
        let mut changed = Vec::new();
        for watched in &mut self.0 {
            let now = stamps(&watched.files);
            if now != watched.read && (at_once || now == watched.last) {
                watched.read.clone_from(&now);
                changed.push(watched.part);
            }
            watched.last = now;
        }
        changed
    }

    pub(super) fn note(&mut self, part: Part, is_good: bool) {
        for watched in self.0.iter_mut().filter(|watched| watched.part == part) {
            watched.is_stale = !is_good;
        }
    }

    pub(super) fn is_stale(&self, part: Part) -> bool {
        self.0.iter().any(|watched| watched.part == part && watched.is_stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_read_once_it_has_come_to_rest() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let put = |name: &str, text: &str| fs::write(file(name), text).unwrap();
        put("cert.pem", "1");
        put("key.pem", "1");
        let certificate = settings::Certificate {
            chain: file("cert.pem"),
            key: file("key.pem"),
            ..Default::default()
        };
        let files = vec![certificate.chain, certificate.key];
        let now = stamps(&files);
        let watched =
            Watched { part: Part::Pair(0), files, read: now.clone(), last: now, is_stale: false };
        let mut watch = Watch(vec![watched]);
        assert_eq!(watch.look(false), []);
        put("cert.pem", "22");
        assert_eq!(watch.look(false), [], "the key may be on its way");
        put("key.pem", "22");
        assert_eq!(watch.look(false), []);
        assert_eq!(watch.look(false), [Part::Pair(0)]);
        watch.note(Part::Pair(0), false);
        assert!(watch.is_stale(Part::Pair(0)));
        assert_eq!(watch.look(false), [], "what is not good is not read again and again");
        fs::remove_file(file("key.pem")).unwrap();
        assert_eq!((watch.look(false), watch.look(false)), (vec![], vec![Part::Pair(0)]));
    }
}
