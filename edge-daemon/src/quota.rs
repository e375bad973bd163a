//! Quotas on disk: what the limits that outlive a restart have counted.
//!
//! Each such limit has a file in the state folder, written whole beside the old one and put in its
//! place, every ten seconds and at the end. A crash forgets what was counted since the last
//! time; a damaged file is set aside, and its limit begins anew.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use edge_policy::limit::{Rule, Rules, Spec};

use crate::{clock, config::Settings, request::Edge};

/// A limit, and what it had counted when it was saved.
struct Kept {
    secret: [u8; 16],
    /// Places for keys: words lie where they do in a table of as many.
    capacity: u64,
    words: Vec<(u32, u128)>,
}

/// A rule as its file left it, or one that begins anew.
///
/// # Errors
/// If there is no randomness.
pub fn restore(settings: &Settings, spec: Spec) -> io::Result<Rule> {
    if !spec.persist {
        let secret = secret(settings, &spec)?;
        return Ok(Rule::new(spec, None, secret));
    }
    let path = file(&settings.state.dir, &spec.name);
    let kept = match read(&path) {
        Ok(kept) => kept,
        Err(error) => {
            let aside = path.with_extension("damaged");
            let moved = fs::rename(&path, &aside);
            tracing::error!(limit = &*spec.name, %error, aside = %aside.display(), ?moved,
                "the quota's file is damaged and was set aside: it begins anew");
            None
        }
    };
    let Some(kept) = kept else {
        let secret = secret(settings, &spec)?;
        return Ok(Rule::new(spec, None, secret));
    };
    let rule = Rule::new(spec, None, kept.secret);
    if rule.state().table.capacity() as u64 == kept.capacity {
        kept.words.iter().for_each(|(set, word)| rule.state().table.restore(*set as usize, *word));
    } else {
        tracing::warn!(limit = &*rule.spec.name, "the quota begins anew: 'keys_max' has changed");
    }
    Ok(rule)
}

/// A rule as its former self left it, or as its file did.
///
/// # Errors
/// If there is no randomness.
pub fn carry(former: &Rules, settings: &Settings, spec: Spec) -> io::Result<Rule> {
    match former.get(&spec.name) {
        Some(former) => {
            let secret = secret(settings, &spec)?;
            Ok(Rule::new(spec, Some(former), secret))
        }
        None => restore(settings, spec),
    }
}

/// What leads a limit's keys to their places: every edge of a fleet must call a key the same.
fn secret(settings: &Settings, spec: &Spec) -> io::Result<[u8; 16]> {
    if let Some(fleet) = settings.fleet.as_ref().filter(|_| spec.is_keyed()) {
        let seal = fleet.seal().map_err(io::Error::other)?;
        return Ok(seal.derive(&format!("keys of {}", spec.name)));
    }
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    Ok(secret)
}

/// Saves quotas until the other end of `stop` is gone, and then once more.
pub fn keep(dir: &Path, edge: &Edge, stop: &Receiver<()>) {
    loop {
        let ended = stop.recv_timeout(SAVE_EVERY) != Err(RecvTimeoutError::Timeout);
        let Some(_turn) = edge.reign.turn() else { return };
        save_all(dir, edge);
        if ended {
            return;
        }
    }
}

/// Saves quotas; one that cannot be saved is told of.
pub fn save_all(dir: &Path, edge: &Edge) {
    let plan = edge.plan.load();
    for rule in plan.limits.iter().filter(|rule| rule.spec.persist) {
        if let Err(error) = save(dir, rule) {
            edge.metrics.quotas_unsaved.fetch_add(1, Relaxed);
            tracing::error!(limit = &*rule.spec.name, %error, "cannot save the quota");
        }
    }
}

fn save(dir: &Path, rule: &Rule) -> io::Result<()> {
    let Some(meter) = rule.spec.meter.or_else(|| rule.spec.tiers.iter().find_map(|(_, m)| *m))
    else {
        return Ok(());
    };
    let table = &rule.state().table;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(rule.state().secret);
    bytes.extend((table.capacity() as u64).to_le_bytes());
    for (set, word) in table.words(&meter, clock::now()) {
        bytes.extend((set as u32).to_le_bytes());
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(blake3::hash(&bytes).as_bytes());
    let path = file(dir, &rule.spec.name);
    let fresh = path.with_extension("fresh");
    fs::create_dir_all(path.parent().unwrap_or(dir))?;
    let mut written = File::create(&fresh)?;
    written.write_all(&bytes)?;
    written.sync_all()?;
    fs::rename(&fresh, &path)
}

/// What a file holds; `None` if there is none.
fn read(path: &Path) -> io::Result<Option<Kept>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(BYTES_MAX).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse(&bytes).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse(bytes: &[u8]) -> Option<Kept> {
    let (content, sum) = bytes.split_last_chunk::<32>()?;
    if blake3::hash(content).as_bytes() != sum {
        return None;
    }
    let content = content.strip_prefix(MAGIC)?;
    let (secret, content) = content.split_first_chunk::<16>()?;
    let (capacity, content) = content.split_first_chunk::<8>()?;
    let (entries, rest) = content.as_chunks::<ENTRY>();
    let words = entries.iter().map(|entry| {
        let (set, word) = entry.split_first_chunk::<4>()?;
        Some((u32::from_le_bytes(*set), u128::from_le_bytes(*word.as_array()?)))
    });
    let words = words.collect::<Option<_>>()?;
    rest.is_empty().then(|| Kept {
        secret: *secret,
        capacity: u64::from_le_bytes(*capacity),
        words,
    })
}

fn file(dir: &Path, limit: &str) -> PathBuf {
    dir.join("quotas").join(format!("{limit}.quota"))
}

/// A crash forgets no more than what was counted in this time.
const SAVE_EVERY: Duration = Duration::from_secs(10);
const MAGIC: &[u8] = b"edged quota 1\n";
const ENTRY: usize = 4 + 16;
/// Of the largest table that can be configured.
const BYTES_MAX: u64 = (1 << 27) * ENTRY as u64;
