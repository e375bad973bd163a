//! List files: what is read from them, what is said about their lines, and what is kept of an
//! earlier reading when a file turns out to be missing or nearly empty.
//!
//! A deny file is often somebody else's feed: a line that cannot be taken is a warning and the
//! rest counts. An allow file is the operator's own, and its gaps lock people out: there it is a
//! mistake. Nothing is left out in silence.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::Write as _,
    path::Path,
};

use edge_policy::list::{feed, reasons};
use ipnet::IpNet;

use super::{
    files, kept,
    mistake::{Mistake, Source},
    settings::{Line, ListFile},
    text as values,
};
use crate::{clock, regular};

/// The largest list file that is read, in bytes: millions of lines of IPv6 and comments.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// Lines of one list file that are told of one by one.
const FAULTS_MAX: usize = 20;

/// What is said of a network that a deny file may not name.
const LEFT_OUT: &str = "left out of a deny file; to deny it, write it in 'deny'";

/// What was read, and what is to be said about it.
#[derive(Default)]
pub(super) struct Read {
    pub(super) file: ListFile,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
}

/// Which list a file is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Allow,
    Deny,
}

/// The file as it was read last, as far as that is known.
#[derive(Clone, Copy)]
pub(super) enum Former<'f> {
    /// Nothing is.
    Unknown,
    /// As this daemon read it.
    Read(&'f ListFile),
    /// As a daemon before it kept it in this folder; read only if it is needed.
    Kept(&'f Path),
}

impl Former<'_> {
    /// How many networks it had.
    fn count(self, path: &Path) -> Option<usize> {
        match self {
            Self::Unknown => None,
            Self::Read(file) => Some(file.nets.len()),
            Self::Kept(state) => kept::count(state, path),
        }
    }

    fn whole(self, path: &Path) -> Option<ListFile> {
        match self {
            Self::Unknown => None,
            Self::Read(file) => Some(file.clone()),
            Self::Kept(state) => kept::former(state, path),
        }
    }
}

/// Reads a list file. `former` is the file as it was read last; it stands in, with a warning, for
/// one that cannot be read or that has lost more than `shrink_max` percent of its networks.
///
/// # Errors
/// Why it cannot be read, if there is no former.
pub(super) fn read(
    path: &Path,
    kind: Kind,
    former: Former<'_>,
    shrink_max: u32,
) -> Result<Read, String> {
    let keep = |former: ListFile, what: String| {
        let help = format!("its {} networks of before stay in force", former.nets.len());
        let warnings = vec![Mistake::of_file(path.to_owned(), what, help)];
        let file = ListFile { is_stale: true, ..former };
        Read { file, warnings, ..Read::default() }
    };
    let text = match regular::text(path, LIST_BYTES_MAX) {
        Ok(text) => text,
        Err(fault) => {
            return match former.whole(path) {
                Some(former) => Ok(keep(former, format!("cannot read it: {fault}"))),
                None => Err(format!("cannot read {}: {fault}", path.display())),
            };
        }
    };
    let mut read = lines(path, &text, kind);
    let (before, now) = (former.count(path), read.file.nets.len());
    if before.is_some_and(|before| feed::has_shrunk(before as u64, now as u64, shrink_max))
        && let Some(former) = former.whole(path)
    {
        let what = format!("it has {now} networks, more than {shrink_max}% fewer than before");
        return Ok(keep(former, what));
    }
    // At a first start nothing tells what a file had before; a feed that failed has nothing now.
    // Of one that is all faults enough is said.
    if before.is_none() && read.file.nets.is_empty() && read.warnings.is_empty() {
        let (what, help) = ("it has no networks".into(), "nothing of it is in force".into());
        read.warnings.push(Mistake::of_file(path.to_owned(), what, help));
    }
    Ok(read)
}

/// Reads the lines: the first word of each, up to `#` or `;`.
fn lines(path: &Path, text: &str, kind: Kind) -> Read {
    let mut told = Told { source: Source::new(path, text), read: Read::default(), counts: [0; 5] };
    let (mut nets, mut start) = (Vec::<Line>::new(), 0);
    let mut reasons = reasons::Gathered::default();
    // As long as each network is above the one before it, none can be there twice.
    let mut seen: Option<HashMap<IpNet, u32>> = None;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let entry = line.split(['#', ';']).next().unwrap_or_default();
        // Editors on other systems put a byte order mark in front.
        let entry = entry.trim_start_matches('\u{feff}');
        let word = entry.split_whitespace().next().unwrap_or_default();
        let at = start + line.find(word).unwrap_or(0);
        start += line.len();
        if word.is_empty() {
            continue;
        }
        let (number, span) = (index as u32 + 1, at..at + word.len());
        let (net, has_host_bits) = match values::net(word) {
            Ok(read) => read,
            Err(help) => {
                let what = format!("not a network: '{}'", word.escape_debug());
                told.tell(Fault::Malformed, kind == Kind::Allow, span, || (what, help));
                continue;
            }
        };
        if let Some(own) = feed::local(net).filter(|_| kind == Kind::Deny) {
            let what = format!("{net} has a part in {own}");
            told.tell(Fault::Local, false, span, || (what, LEFT_OUT.to_owned()));
            continue;
        }
        if feed::is_wide(net) {
            let help = if kind == Kind::Allow { files::NOTHING_PROTECTED } else { LEFT_OUT };
            let words = || (format!("{net} {}", files::WIDE), help.to_owned());
            told.tell(Fault::Wide, kind == Kind::Allow, span, words);
            continue;
        }
        if seen.is_none() && nets.last().is_some_and(|last| net <= last.net) {
            seen = Some(nets.iter().map(|line| (line.net, line.number)).collect());
        }
        match seen.as_mut().map(|seen| seen.entry(net)) {
            Some(Entry::Occupied(first)) => {
                let help = format!("line {} has it already", first.get());
                told.tell(Fault::Repeated, false, span, || (format!("{net} again"), help));
                continue;
            }
            Some(Entry::Vacant(place)) => drop(place.insert(number)),
            None => {}
        }
        nets.push(Line { net, number });
        reasons.note(number, &text[span.end..start]);
        if has_host_bits {
            let what = format!("'{word}' has bits beyond its prefix");
            told.tell(Fault::HostBits, false, span, || (what, format!("read as {net}")));
        }
    }
    told.finish(path, nets, reasons.finish())
}

/// What can be the matter with a line.
#[derive(Clone, Copy)]
enum Fault {
    /// Left out: it is no network.
    Malformed,
    /// Left out: addresses that are never a stranger's.
    Local,
    /// Left out: nobody has so many.
    Wide,
    /// Left out: an earlier line has it.
    Repeated,
    /// Taken without the bits behind the prefix.
    HostBits,
}

/// What is said of the lines of a file: the first few one by one, then all in one sentence.
struct Told<'t> {
    source: Source<'t>,
    read: Read,
    counts: [usize; 5],
}

impl Told<'_> {
    fn tell(
        &mut self,
        fault: Fault,
        is_mistake: bool,
        span: std::ops::Range<usize>,
        words: impl FnOnce() -> (String, String),
    ) {
        self.counts[fault as usize] += 1;
        let Read { mistakes, warnings, .. } = &mut self.read;
        let notes = if is_mistake { mistakes } else { warnings };
        if notes.len() < FAULTS_MAX {
            let (what, help) = words();
            notes.push(self.source.mistake(span, what, help));
        }
    }

    fn finish(mut self, path: &Path, nets: Vec<Line>, reasons: reasons::Reasons) -> Read {
        let [malformed, local, wide, repeated, host_bits] = self.counts;
        let skipped = malformed + local + wide + repeated;
        if skipped + host_bits > self.read.mistakes.len() + self.read.warnings.len() {
            let mut what = format!("{} lines are not as they should be", skipped + host_bits);
            let kinds =
                ["malformed", "of local networks", "too wide", "repeated", "with host bits"];
            for (index, (count, kind)) in
                self.counts.iter().zip(kinds).filter(|(count, _)| **count > 0).enumerate()
            {
                let _ = write!(what, "{} {count} {kind}", if index == 0 { ":" } else { "," });
            }
            let help = format!("{} networks are taken", nets.len());
            self.read.warnings.push(Mistake::of_file(path.to_owned(), what, help));
        }
        if reasons.left_out > 0 {
            let what = format!("{} of its reasons find no room", reasons.left_out);
            let help = format!("{} are kept, and all networks are taken", reasons.len());
            self.read.warnings.push(Mistake::of_file(path.to_owned(), what, help));
        }
        let read_s = clock::unix_ms() / 1000;
        let (path, changed_s) = (path.to_owned(), files::changed_s(path));
        let (nets, reasons) = (nets.into(), reasons.into());
        self.read.file =
            ListFile { path, nets, reasons, skipped, read_s, changed_s, is_stale: false };
        self.read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deny(text: &str) -> Read {
        lines(Path::new("feed.txt"), text, Kind::Deny)
    }

    fn told(read: &Read) -> Vec<(usize, &str)> {
        read.warnings.iter().map(|warning| (warning.line, warning.what.as_str())).collect()
    }

    #[test]
    fn a_feed_is_taken_line_by_line() {
        let feed = "\u{feff}# head\r\n192.0.2.7\t12\r\n\n198.51.100.0/24 ; SBL1\n; note\n\
                    2001:db8::/32#x\n  203.0.113.9  # one\n::ffff:203.0.113.10";
        let read = deny(feed);
        let nets: Vec<_> = read.file.nets.iter().map(|l| (l.net.to_string(), l.number)).collect();
        let wanted = [
            ("192.0.2.7/32", 2),
            ("198.51.100.0/24", 4),
            ("2001:db8::/32", 6),
            ("203.0.113.9/32", 7),
            ("203.0.113.10/32", 8),
        ];
        assert_eq!(nets, wanted.map(|(net, line)| (net.to_owned(), line)));
        let whys = read.file.nets.iter().map(|line| read.file.reasons.get(line.number));
        let wanted = [Some("12"), Some("SBL1"), Some("x"), Some("one"), None];
        assert!(whys.eq(wanted), "{:?}", read.file.reasons);
        assert!(read.warnings.is_empty() && read.mistakes.is_empty());
    }

    #[test]
    fn what_is_there_twice_is_told_whatever_the_order() {
        let sorted = "192.0.2.1\n192.0.2.3\n198.51.100.0/24\n2001:db8::/32\n";
        assert!(deny(sorted).warnings.is_empty());
        for (more, line) in [
            ("2001:db8::/32", 5),
            ("192.0.2.1", 5),
            ("192.0.2.2\n192.0.2.2", 6),
            ("192.0.2.2\n198.51.100.0/24", 6),
            ("203.0.113.1\n2001:db9::/32\n203.0.113.1", 7),
        ] {
            let read = deny(&format!("{sorted}{more}\n"));
            let told: Vec<_> = read.warnings.iter().map(|warning| warning.line).collect();
            assert_eq!(told, [line], "{more}");
            assert!(read.warnings[0].what.ends_with(" again"), "{}", read.warnings[0].what);
        }
    }

    #[test]
    fn every_doubtful_line_is_told_with_its_number() {
        let read = deny(
            "what?\n203.0.113.9/24\n203.0.113.0/24\n10.1.0.0/16\n8.0.0.0/5\nfd00::/8\n2000::/3\n32.0.0.0/3\n",
        );
        let wanted = [
            (1, "not a network: 'what?'"),
            (2, "'203.0.113.9/24' has bits beyond its prefix"),
            (3, "203.0.113.0/24 again"),
            (4, "10.1.0.0/16 has a part in 10.0.0.0/8"),
            (5, "8.0.0.0/5 has a part in 10.0.0.0/8"),
            (6, "fd00::/8 has a part in fc00::/7"),
            (7, "2000::/3 is wider than any network that was given out"),
            (8, "32.0.0.0/3 is wider than any network that was given out"),
        ];
        assert_eq!(told(&read), wanted);
        assert_eq!((read.file.nets.len(), read.file.skipped), (1, 7));
        // An operator may well allow a neighbour, and nobody the world.
        let allow = |text| lines(Path::new("a"), text, Kind::Allow);
        assert_eq!(allow("10.1.0.0/16\nfd00::/8").file.nets.len(), 2);
        for wide in ["0.0.0.0/0", "0.0.0.0/1", "2000::/3"] {
            assert_eq!((allow(wide).mistakes.len(), allow(wide).file.nets.len()), (1, 0), "{wide}");
        }
    }

    #[test]
    fn what_is_too_much_to_tell_is_summed_up() {
        let read = deny(&("x\n".repeat(30) + &"192.0.2.1\n".repeat(4)));
        assert_eq!(read.warnings.len(), FAULTS_MAX + 1);
        let sum = "33 lines are not as they should be: 30 malformed, 3 repeated";
        assert_eq!(told(&read).last(), Some(&(0, sum)));
    }

    #[test]
    fn a_file_that_is_gone_or_shrank_leaves_the_former_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feed.txt");
        let put = |count: u32| {
            let text: String = (0..count).map(|i| format!("192.0.2.{i}\n")).collect();
            std::fs::write(&path, text).unwrap();
        };
        assert!(read(&path, Kind::Deny, Former::Unknown, 90).err().unwrap().contains("feed.txt"));
        put(100);
        let former = read(&path, Kind::Deny, Former::Unknown, 90).unwrap().file;
        for (count, shrink_max, stays) in
            [(0, 90, true), (9, 90, true), (10, 90, false), (0, 100, false), (99, 0, true)]
        {
            put(count);
            let now = read(&path, Kind::Deny, Former::Read(&former), shrink_max).unwrap();
            assert_eq!(now.file.is_stale, stays, "{count} of 100, {shrink_max}%");
            assert_eq!(now.file.nets == former.nets, stays);
            assert_eq!(now.warnings.len(), usize::from(stays));
        }
        put(0);
        let first = read(&path, Kind::Deny, Former::Unknown, 90).unwrap();
        assert!(first.warnings[0].to_string().contains("no networks"), "{}", first.warnings[0]);
        std::fs::remove_file(&path).unwrap();
        // A pipe, which nobody writes to, is not waited for.
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = read(&path, Kind::Deny, Former::Unknown, 90).err().unwrap();
        assert!(error.contains("not a regular file"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let now = read(&path, Kind::Deny, Former::Read(&former), 100).unwrap();
        assert!(now.file.is_stale && now.file.nets.len() == 100);
        assert!(now.warnings[0].to_string().contains("cannot read it"), "{}", now.warnings[0]);
    }
}
