//! The files that a configuration names: whether they are there, and what the lists hold.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use edge_common::map;
use ipnet::IpNet;
use toml::de::DeTable;

use super::{
    mistake::{Mistake, Source},
    reader::Notes,
    settings::{Events, List, Settings},
    text as values,
    whole::{place, place_in},
};

/// The largest list file that is read, in bytes: [`map::LIST_MAX`] lines of IPv6 and comments.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// Lines of one list file that are complained of one by one.
const FAULTS_MAX: usize = 20;

/// Reads a file of at most `most` bytes; bytes that are not UTF-8 are replaced.
pub(super) fn text(path: &Path, most: u64) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("larger than {}", values::show_size(most))));
    }
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Takes relative paths from the folder of the configuration.
pub(super) fn resolve(settings: &mut Settings, base: &Path) {
    let lists = &mut settings.lists;
    let files = lists.allow.files.iter_mut().chain(&mut lists.deny.files);
    let events = match &mut settings.log.events {
        Events::File(path) => Some(path),
        Events::Stdout => None,
    };
    let paths: [&mut PathBuf; 6] = [
        &mut settings.tls.certificate,
        &mut settings.tls.key,
        &mut settings.kernel.pin_dir,
        &mut settings.keys.pepper_file,
        &mut settings.state.dir,
        &mut settings.control.socket,
    ];
    for path in paths.into_iter().chain(files.map(|file| &mut file.path)).chain(events) {
        // An empty path stands for a missing key, which is noted already.
        if !path.as_os_str().is_empty() {
            *path = base.join(&*path);
        }
    }
}

/// Looks at the certificate and the key, and reads the lists into the settings.
pub(super) fn inspect(
    settings: &mut Settings,
    base: &Path,
    document: &DeTable<'_>,
    notes: &Notes<'_>,
) {
    for (key, path) in [("certificate", &settings.tls.certificate), ("key", &settings.tls.key)] {
        if path.as_os_str().is_empty() {
            continue;
        }
        let span = place(document, "tls", key);
        if let Err(fault) = File::open(path).and_then(|file| file.metadata()) {
            let what = format!("cannot read {}: {fault}", path.display());
            notes.wrong(span, what, format!("a PEM file with the {key}"));
        } else if key == "key" && is_public(path) {
            let what = format!("everyone can read the private key {}", path.display());
            notes.wrong(span, what, format!("chmod o= {}", path.display()));
        }
    }
    read_list(&mut settings.lists.allow, "allow_files", base, document, notes);
    read_list(&mut settings.lists.deny, "deny_files", base, document, notes);
}

fn is_public(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0)
}

fn read_list(list: &mut List, key: &str, base: &Path, document: &DeTable<'_>, notes: &Notes<'_>) {
    for file in &mut list.files {
        let span = || place_in(document, "lists", key, |text| base.join(text) == file.path);
        match text(&file.path, LIST_BYTES_MAX) {
            Ok(text) => {
                let read = lines(&file.path, &text, key == "allow_files");
                notes.adopt(read.mistakes, read.warnings);
                file.nets = read.nets;
            }
            Err(fault) => {
                let what = format!("cannot read {}: {fault}", file.path.display());
                notes.wrong(span(), what, "a list file: one address or network a line");
            }
        }
    }
    let count = list.iter().count();
    if count > map::LIST_MAX as usize {
        let what = format!("the list holds {count} networks");
        notes.wrong(place(document, "lists", key), what, format!("at most {}", map::LIST_MAX));
    }
}

/// What a list file holds.
#[derive(Default)]
struct Lines {
    nets: Vec<IpNet>,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

/// Reads a list: the first word of each line, up to `#` or `;`. A line that cannot be read is a mistake in an allow list, whose gaps lock
/// people out, and a warning in a deny list, which is often somebody else's feed.
fn lines(path: &Path, text: &str, is_allow: bool) -> Lines {
    let source = Source::new(path, text);
    let mut read = Lines::default();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let entry = line.split(['#', ';']).next().unwrap_or_default();
        let entry = entry.trim_start_matches('\u{feff}');
        let word = entry.split_whitespace().next().unwrap_or_default();
        let at = start + line.find(word).unwrap_or(0);
        start += line.len();
        if word.is_empty() {
            continue;
        }
        let (what, help, is_mistake) = match values::net(word) {
            Ok((net, _)) if is_allow && net.prefix_len() == 0 => {
                (format!("{net} allows every address"), EVERY_ADDRESS.to_owned(), true)
            }
            Ok((net, has_host_bits)) => {
                read.nets.push(net);
                if !has_host_bits {
                    continue;
                }
                let what = format!("'{word}' has bits beyond its prefix");
                (what, format!("read as {net}"), false)
            }
            Err(help) => (format!("not a network: '{word}'"), help, is_allow),
        };
        let notes = if is_mistake { &mut read.mistakes } else { &mut read.warnings };
        if notes.len() < FAULTS_MAX {
            notes.push(source.mistake(at..at + word.len(), what, help));
        } else if notes.len() == FAULTS_MAX {
            let what = "more such lines follow".to_owned();
            notes.push(source.mistake(at..at + word.len(), what, "this is one".to_owned()));
        }
    }
    read
}

/// Why nobody should allow all addresses.
pub(super) const EVERY_ADDRESS: &str = "the allow list wins over every other rule: nothing would \
                                        be protected";
