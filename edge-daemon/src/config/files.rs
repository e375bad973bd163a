//! The files that a configuration names: whether they are there, and what the lists hold.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access as access_of};
use toml::de::DeTable;

use super::{
    fleet,
    lists::{self, Former, Kind},
    policy,
    reader::Notes,
    settings::{Events, FeedPlace, KeySource, List, Lists, Settings, Upstream},
    upstream,
    whole::{place, place_in, place_nth, place_of_text},
};
use crate::{clock, issuers::Fault, secret::Origin};

/// When a file was put there as it is, in unix seconds: its name or its content changed last. Of one that is
/// gone: now.
pub(super) fn changed_s(path: &Path) -> u64 {
    let changed = fs::metadata(path).ok().and_then(|metadata| metadata.ctime().try_into().ok());
    changed.unwrap_or_else(|| clock::unix_ms() / 1000)
}

/// Takes relative paths from the folder of the configuration.
pub(super) fn resolve(settings: &mut Settings, base: &Path) {
    let lists = &mut settings.lists;
    let files = lists.allow.files.iter_mut().chain(&mut lists.deny.files);
    let logs = settings.log.access.iter_mut().chain([&mut settings.log.events]);
    let logs = logs.filter_map(|log| match log {
        Events::File(path) => Some(path),
        Events::Stdout => None,
    });
    let paths: [&mut PathBuf; 5] = [
        &mut settings.kernel.pin_dir,
        &mut settings.state.dir,
        &mut settings.control.socket,
        &mut settings.signing.nonce_file,
        &mut settings.audit.dir,
    ];
    for path in paths
        .into_iter()
        .chain(files.map(|file| &mut file.path))
        .chain(logs)
        .chain(settings.tls.files_mut())
    {
        // An empty path stands for a missing key, which is noted already.
        if !path.as_os_str().is_empty() {
            *path = base.join(&*path);
        }
    }
    if let Some(acme) = &mut settings.tls.acme {
        acme.dir = settings.state.dir.join("acme");
    }
    if let Some(crowdsec) = &mut settings.crowdsec {
        crowdsec.authorities.iter_mut().for_each(|path| *path = base.join(&*path));
    }
    for path in settings.geo.country.iter_mut().chain(&mut settings.geo.asn) {
        *path = base.join(&*path);
    }
    for feed in &mut settings.feeds {
        if let FeedPlace::File(path) = &mut feed.place {
            *path = base.join(&*path);
        }
        feed.authorities.iter_mut().for_each(|path| *path = base.join(&*path));
    }
    for path in settings.fleet.iter_mut().flat_map(|fleet| fleet.server.files_mut()) {
        *path = base.join(&*path);
    }
    for path in settings.webhooks.iter_mut().flat_map(|webhook| &mut webhook.authorities) {
        *path = base.join(&*path);
    }
    for issuer in &mut settings.issuers {
        match &mut issuer.keys {
            KeySource::Static(files) => files.public.iter_mut().for_each(|p| *p = base.join(&*p)),
            KeySource::Fetched(source) => {
                source.authorities.iter_mut().for_each(|path| *path = base.join(&*path));
            }
        }
    }
    policy::resolve(&mut settings.policies, base);
    settings.resolve_secrets(base);
    for path in settings.upstreams.iter_mut().flat_map(Upstream::files_mut) {
        *path = base.join(&*path);
    }
}

/// Looks at the secrets, and reads the lists into the settings; what `former`
/// has of them may stand in for files that are not good any more.
pub(super) fn inspect(
    settings: &mut Settings,
    former: Option<&Settings>,
    base: &Path,
    document: &DeTable<'_>,
    notes: &Notes<'_>,
) {
    inspect_secrets(settings, base, document, notes);
    inspect_logs(settings, document, notes);
    inspect_issuers(settings, document, notes);
    upstream::inspect(settings, document, notes);
    fleet::inspect(settings, document, notes);
    policy::inspect(settings, document, notes);
    let place = (base, document, notes);
    let state = settings.state.dir.clone();
    let Lists { allow, deny, shrink_max, .. } = &mut settings.lists;
    let former = |list: fn(&Lists) -> &List| {
        let former = former.map(|settings| &list(&settings.lists).files);
        let state = &state;
        move |path: &Path| match former {
            Some(files) => {
                let read = files.iter().find(|old| old.path == path);
                read.map_or(Former::Unknown, Former::Read)
            }
            // A start has what the last run left.
            None => Former::Kept(state),
        }
    };
    read_list(allow, (Kind::Allow, "allow_files"), *shrink_max, former(|l| &l.allow), place);
    read_list(deny, (Kind::Deny, "deny_files"), *shrink_max, former(|l| &l.deny), place);
}

/// Whether the logs can be written where they are to lie. What is missing may come before the start.
fn inspect_logs(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let access = settings.log.access.iter().map(|log| ("access", log));
    for (key, log) in access.chain([("events", &settings.log.events)]) {
        let Events::File(path) = log else { continue };
        let written = if path.exists() { Some(&**path) } else { path.parent() };
        let Some(Err(error)) = written.map(|path| access_of(path, Access::WRITE_OK)) else {
            continue;
        };
        let what = format!("'{}' cannot be written: {error}", path.display());
        let help = "a folder that is there and is the daemon's; under the unit's sandbox, /var/log/edged is";
        notes.doubt(place(document, "log", key), what, help);
    }
}

/// Reads every secret once, to tell now what would fail later. Some are made at the first
/// start, and may be missing before it.
fn inspect_secrets(settings: &Settings, base: &Path, document: &DeTable<'_>, notes: &Notes<'_>) {
    for (origin, least) in settings.secrets() {
        let read = origin.read().and_then(|secret| secret.at_least(least));
        let Err(fault) = read else { continue };
        if fault.is_missing() && settings.made_secrets().contains(&origin) {
            continue;
        }
        let span = place_of_text(document, |text| {
            text.parse().is_ok_and(|mut written: Origin| {
                written.resolve(base);
                written == *origin
            })
        });
        notes.wrong(span, format!("the secret {origin}: {fault}"), "a secret that can be used");
    }
}

/// Reads the keys of issuers that lie on this host, to tell now what is no good about them.
fn inspect_issuers(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    for (n, issuer) in settings.issuers.iter().enumerate() {
        let (key, fault) = match &issuer.keys {
            KeySource::Static(files) if !files.secrets.is_empty() => {
                match files.read(&issuer.terms.algorithms) {
                    // What is wrong with a secret by itself is told already.
                    Err(fault @ (Fault::Short(..) | Fault::Set(_))) => {
                        ("secrets", fault.to_string())
                    }
                    _ => continue,
                }
            }
            KeySource::Static(files) if !files.public.is_empty() => {
                match files.read(&issuer.terms.algorithms) {
                    Err(fault) => ("key_files", fault.to_string()),
                    Ok(_) => continue,
                }
            }
            KeySource::Fetched(source) => {
                let Some(path) = &source.authorities else { continue };
                match crate::tls::client::client(Some(path)) {
                    Err(fault) => ("authorities", fault.to_string()),
                    Ok(_) => continue,
                }
            }
            KeySource::Static(_) => continue,
        };
        notes.wrong(place_nth(document, "issuer", n, key), fault, "keys that can be used");
    }
}

fn read_list<'f>(
    list: &mut List,
    (kind, key): (Kind, &str),
    shrink_max: u32,
    former: impl for<'p> Fn(&'p Path) -> Former<'f>,
    (base, document, notes): (&Path, &DeTable<'_>, &Notes<'_>),
) {
    for file in &mut list.files {
        match lists::read(&file.path, kind, former(&file.path), shrink_max) {
            Ok(read) => {
                notes.adopt(read.mistakes, read.warnings);
                *file = read.file;
            }
            Err(what) => {
                let span = place_in(document, "lists", key, |text| base.join(text) == file.path);
                notes.wrong(span, what, "a list file: one address or network a line");
            }
        }
    }
}

/// What is the matter with a network that has more addresses than anybody has.
pub(super) const WIDE: &str = "is wider than any network that was given out";
/// Why nobody should allow it.
pub(super) const NOTHING_PROTECTED: &str = "the allow list wins over every other rule: nothing would be protected from it; 'edgectl allow \
     add --force' allows it nevertheless";
