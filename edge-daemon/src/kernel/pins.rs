//! The folder of pins: tables and links that outlive the daemon.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{MapData, MapInfo, MapType};
use edge_common::{Signature, Source, limit, map, open, service};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::{KernelError, link};

/// A table's name and shape.
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    pub(super) entries: u32,
}

/// Every table that is pinned.
pub(super) const TABLES: [Shape; 14] = [
    shape(map::BANS, MapType::Hash, size_of::<Source>(), size_of::<map::Ban>(), map::BANS_MAX),
    array(map::CLIENT_CELLS, size_of::<[limit::Set; 2]>(), map::CLIENT_SETS),
    array(map::KIND_CELLS, size_of::<limit::Set>(), map::KIND_SETS),
    array(map::OPEN, size_of::<open::Set>(), map::OPEN_SETS),
    shape(map::SOCKETS, MapType::Hash, 8, 8, map::SOCKETS_MAX),
    shape(map::COUNTS, MapType::PerCpuArray, 4, size_of::<map::Count>(), COUNTS_MAX),
    shape(map::DROPS, MapType::RingBuf, 0, 0, map::RING_BYTES),
    array(map::DROPS_CELL, size_of::<limit::Set>(), 1),
    shape(map::SAMPLES, MapType::RingBuf, 0, 0, map::RING_BYTES),
    shape(map::EVENTS_LOST, MapType::PerCpuArray, 4, 8, 2),
    array(map::SIGNATURES, size_of::<Signature>(), map::SIGNATURES_MAX),
    shape(map::SIGNATURE_HITS, MapType::PerCpuArray, 4, 8, map::SIGNATURES_MAX),
    array(map::SERVICES, 8, service::WORDS),
    array(map::SETTINGS, size_of::<map::Settings>(), 1),
];

const COUNTS_MAX: u32 = map::INTERFACES_MAX * 2 * map::REASONS_MAX;

const fn shape(name: &'static str, kind: MapType, key: usize, value: usize, entries: u32) -> Shape {
    Shape { name, kind, key, value, entries }
}

const fn array(name: &'static str, value: usize, entries: u32) -> Shape {
    shape(name, MapType::Array, 4, value, entries)
}

/// Makes the folder for this ABI's pins, on a bpffs that is mounted if need be.
pub(super) fn prepare(pin_dir: &Path) -> Result<PathBuf, KernelError> {
    if !is_on_bpffs(pin_dir)? {
        if !pin_dir.starts_with(BPFFS) {
            return Err(KernelError::NotBpffs { path: pin_dir.to_owned() });
        }
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|error| path_error("mount a bpffs on", Path::new(BPFFS))(error.into()))?;
    }
    let folder = pin_dir.join(map::ABI);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(path_error("create", &folder))?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
        .map_err(path_error("restrict", &folder))?;
    Ok(folder)
}

/// Checks that what is pinned already has the shape this version's programs need.
pub(super) fn verify(folder: &Path) -> Result<(), KernelError> {
    for table in &TABLES {
        let path = folder.join(table.name);
        if !path.exists() {
            continue;
        }
        let info = MapData::from_pin(&path).and_then(|map| map.info());
        let info = info.map_err(|source| KernelError::Table { table: table.name, source })?;
        let needed = table.describe();
        let found = describe(&info);
        if found != needed {
            return Err(KernelError::Mismatch { path, found, needed });
        }
    }
    Ok(())
}

impl Shape {
    fn describe(&self) -> String {
        let Self { name: _, kind, key, value, entries } = self;
        format!("type {kind:?}, key {key}, value {value}, {entries} entries")
    }
}

fn describe(info: &MapInfo) -> String {
    let kind = info.map_type().map_or_else(|_| "unknown".into(), |kind| format!("{kind:?}"));
    let (key, value, entries) = (info.key_size(), info.value_size(), info.max_entries());
    format!("type {kind}, key {key}, value {value}, {entries} entries")
}

/// Holds a folder of pins for one daemon, until the last handle goes or the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Lock {
    /// Takes the folder, unless another daemon has it.
    pub(super) fn take(folder: &Path) -> Result<Arc<Self>, KernelError> {
        let file = File::open(folder).map_err(path_error("open", folder))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Arc::new(Self(lock))),
            Err((_, Errno::EWOULDBLOCK)) => Err(KernelError::InUse { path: folder.to_owned() }),
            Err((_, error)) => Err(path_error("lock", folder)(error.into())),
        }
    }
}

/// Takes the filter off all interfaces and forgets all tables, of every version; what was removed,
/// by path. Without pins it does nothing, and what is not the daemon's stays. An operator's way
/// out: it works while a daemon runs.
///
/// # Errors
/// [`KernelError::NotBpffs`] if the folder is elsewhere, or if a pin cannot be removed.
pub fn detach(pin_dir: &Path) -> Result<Vec<String>, KernelError> {
    let mut removed = Vec::new();
    if !pin_dir.exists() {
        return Ok(removed);
    }
    if !is_on_bpffs(pin_dir)? {
        return Err(KernelError::NotBpffs { path: pin_dir.to_owned() });
    }
    for folder in entries(pin_dir)?.into_iter().filter(|folder| is_named(folder, is_abi)) {
        let mut pins = entries(&folder)?;
        pins.retain(|pin| is_named(pin, is_ours));
        // Links first: nothing shall filter by tables that are half gone.
        pins.sort_by_key(|pin| TABLES.iter().any(|table| pin.ends_with(table.name)));
        for pin in pins {
            let is_filter = is_named(&pin, |name| name.starts_with("xdp-"));
            let remove = if is_filter { link::release } else { |pin: &Path| fs::remove_file(pin) };
            remove(&pin).map_err(path_error("remove", &pin))?;
            removed.push(pin.display().to_string());
        }
        remove_if_empty(&folder)?;
    }
    remove_if_empty(pin_dir)?;
    Ok(removed)
}

fn is_named(path: &Path, pattern: fn(&str) -> bool) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(pattern)
}

/// Whether a folder is named as [`map::ABI`] names them.
fn is_abi(name: &str) -> bool {
    name.strip_prefix('v').is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
    })
}

/// Whether a pin is one that the daemon makes.
fn is_ours(name: &str) -> bool {
    matches!(name, "sockets" | "sockets-new")
        || name.starts_with("xdp-")
        || TABLES.iter().any(|table| table.name == name)
}

/// Removes a folder in which nobody else has anything.
fn remove_if_empty(folder: &Path) -> Result<(), KernelError> {
    match fs::remove_dir(folder) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(path_error("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// What lies in a folder, sorted; nothing if it does not exist.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    match read() {
        Ok(mut paths) => {
            paths.sort();
            Ok(paths)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(path_error("list", folder)(error)),
    }
}

pub(super) fn path_error(
    verb: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> KernelError + use<> {
    let path = path.to_owned();
    move |source| KernelError::Path { verb, path, source }
}

/// Whether the path, or what exists of it, lies on a bpffs.
fn is_on_bpffs(path: &Path) -> Result<bool, KernelError> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let found = statfs(existing)
        .map_err(|error| path_error("examine", existing)(error.into()))?
        .filesystem_type();
    Ok(found == FsType(libc::BPF_FS_MAGIC))
}

const BPFFS: &str = "/sys/fs/bpf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_are_removed() {
        assert!(is_abi(map::ABI) && is_abi("v12"));
        assert!(!["v", "v1x", "1", "vv1", "x1", ""].into_iter().any(is_abi));
        assert!(TABLES.iter().all(|table| is_ours(table.name)));
        assert!(["sockets", "sockets-new", "xdp-7-native-eth0"].into_iter().all(is_ours));
        assert!(!["ALLOWED", "allow", "socket", "progs", "xdp"].into_iter().any(is_ours));
    }

    #[test]
    fn nothing_is_removed_outside_of_a_bpffs() {
        let folder = tempfile::tempdir().unwrap();
        let pin = folder.path().join("v1/xdp-7-native-eth0");
        fs::create_dir(folder.path().join("v1")).unwrap();
        fs::write(&pin, "").unwrap();
        let error = detach(folder.path()).unwrap_err();
        assert!(matches!(error, KernelError::NotBpffs { .. }), "{error}");
        assert!(pin.exists());
        assert!(detach(&folder.path().join("none")).unwrap().is_empty());
    }
}
