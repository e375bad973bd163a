//! The folder of pins: tables and links that outlive the daemon.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{MapData, MapInfo, MapType};
use edge_common::{Signature, Source, cookie, limit, map, open, service};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use super::{
    KernelError,
    bpf::{self, Link},
    lock::Lock,
};

/// A table's name and shape.
pub(super) struct Shape {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    pub(super) entries: u32,
}

/// Every table that is pinned.
pub(super) const TABLES: [Shape; 17] = [
    shape(map::BANS, MapType::Hash, size_of::<Source>(), size_of::<map::Ban>(), map::BANS_MAX),
    array(map::BAN_FILTER, 8, map::BAN_BITS / 64),
    array(map::CELLS, size_of::<limit::Set>(), map::CELLS_MAX),
    array(map::OPEN, size_of::<open::Set>(), map::OPEN_SETS),
    shape(map::SOCKETS, MapType::Hash, 8, 8, map::SOCKETS_MAX),
    shape(map::UNCOUNTED, MapType::PerCpuArray, 4, 8, 1),
    shape(map::COUNTS, MapType::PerCpuArray, 4, size_of::<map::Count>(), COUNTS_MAX),
    shape(map::DROPS, MapType::RingBuf, 0, 0, map::RING_BYTES),
    array(map::DROPS_BUCKET, size_of::<u64>(), 1),
    shape(map::SAMPLES, MapType::RingBuf, 0, 0, map::RING_BYTES),
    shape(map::EVENTS_LOST, MapType::PerCpuArray, 4, 8, 2),
    array(map::SIGNATURES, size_of::<Signature>(), 2 * map::SIGNATURES_MAX),
    shape(map::SIGNATURE_HITS, MapType::PerCpuArray, 4, 8, 2 * map::SIGNATURES_MAX),
    array(map::SERVICES, 8, service::WORDS),
    shape(
        map::LISTENERS,
        MapType::Hash,
        LISTENER,
        size_of::<cookie::Pressure>(),
        cookie::LISTENERS_MAX,
    ),
    array(map::ALARM, 8, 2),
    array(map::SETTINGS, size_of::<map::Settings>(), 1),
];

const LISTENER: usize = size_of::<cookie::Listener>();
const COUNTS_MAX: u32 = map::INTERFACES_MAX * 2 * map::REASONS_MAX;

const fn shape(name: &'static str, kind: MapType, key: usize, value: usize, entries: u32) -> Shape {
    Shape { name, kind, key, value, entries }
}

const fn array(name: &'static str, value: usize, entries: u32) -> Shape {
    shape(name, MapType::Array, 4, value, entries)
}

/// The folders of pins of one daemon: this version's, and those that other versions left.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    /// This version's.
    pub(super) own: PathBuf,
    /// Those of other versions, to be taken over and removed.
    pub(super) others: Vec<PathBuf>,
}

impl Folders {
    /// Makes this version's folder, on a bpffs that is mounted if need be.
    pub(super) fn prepare(pin_dir: &Path) -> Result<Self, KernelError> {
        if !is_on_bpffs(pin_dir)? {
            if !pin_dir.starts_with(BPFFS) {
                return Err(KernelError::NotBpffs { path: pin_dir.to_owned() });
            }
            if !has_the_systems_mounts() {
                return Err(KernelError::PrivateMounts { path: BPFFS.into() });
            }
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .map_err(|error| path_error("mount a bpffs on", Path::new(BPFFS))(error.into()))?;
        }
        let own = pin_dir.join(map::ABI);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&own)
            .map_err(path_error("create", &own))?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700))
            .map_err(path_error("restrict", &own))?;
        let mut others = abi_folders(pin_dir)?;
        others.retain(|folder| *folder != own);
        Ok(Self { own, others })
    }

    /// All of them, this version's first.
    pub(super) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.own).chain(&self.others)
    }

    /// What is pinned in all of them.
    pub(super) fn pins(&self) -> Result<Vec<PathBuf>, KernelError> {
        let mut pins = Vec::new();
        for folder in self.all() {
            pins.extend(entries(folder)?);
        }
        Ok(pins)
    }

    /// Refuses pins by which another network namespace is guarded: its interfaces have the same
    /// numbers as this one's, and taking their filter over would leave them without.
    pub(super) fn expect_namespace(&self, cookie: u64) -> Result<(), KernelError> {
        for folder in self.all() {
            let [_, found] = first_settings(folder)?;
            if found == cookie || found == 0 {
                continue;
            }
            let guards = |pin: &PathBuf| {
                let ifindex = Link::open(pin).and_then(|link| link.ifindex());
                is_named(pin, is_filter) && matches!(ifindex, Ok(Some(_)))
            };
            if entries(folder)?.iter().any(guards) {
                return Err(KernelError::OtherNamespace { path: folder.clone() });
            }
        }
        Ok(())
    }

    /// Carries over what another version's tables hold, as far as the shapes agree. To be called
    /// before this version's tables are first used.
    pub(super) fn migrate(&self) -> Result<(), KernelError> {
        for folder in &self.others {
            for table in TABLES.iter().filter(|table| CARRIED.contains(&table.name)) {
                let (from, to) = (folder.join(table.name), self.own.join(table.name));
                if to.exists() || !from.exists() {
                    continue;
                }
                let (found, needed) = (table.found(&from)?, table.describe());
                if found == needed {
                    // The same table by a second name: the program of before goes on writing it.
                    fs::hard_link(&from, &to).map_err(path_error("take over", &from))?;
                } else {
                    tracing::warn!(table = table.name, found, needed, "starts anew");
                }
            }
        }
        Ok(())
    }

    /// The secret of hashes that the carried tables' cells are placed by; 0 if there is none.
    pub(super) fn seed(&self) -> Result<u64, KernelError> {
        for folder in self.all() {
            let [seed, _] = first_settings(folder)?;
            if seed != 0 {
                return Ok(seed);
            }
        }
        Ok(0)
    }
}

/// What is to go once this daemon is in office: until then the former may go on with it.
pub struct Superseded {
    /// What holds the filter on interfaces that the configuration names no more.
    pub(super) unwanted: Vec<PathBuf>,
    /// What other versions left and this one has taken over; nobody else may meanwhile.
    pub(super) folders: Vec<PathBuf>,
    pub(super) locks: Vec<Arc<Lock>>,
}

impl Superseded {
    /// Removes it, once no daemon can come back to it.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn remove(&mut self) -> Result<(), KernelError> {
        for pin in self.unwanted.drain(..) {
            bpf::release(&pin).map_err(path_error("remove", &pin))?;
            tracing::info!(pin = %pin.display(), "its interface is guarded no more");
        }
        for folder in self.folders.drain(..) {
            // Filters that go on are pinned anew.
            remove_pins(&folder, |pin| fs::remove_file(pin))?;
            tracing::info!(folder = %folder.display(), "taken over from another version");
        }
        self.locks.clear();
        Ok(())
    }
}

/// The first two words of a version's [`map::Settings`], which are the same in each; zeros if it
/// has none.
fn first_settings(folder: &Path) -> Result<[u64; 2], KernelError> {
    let pin = folder.join(map::SETTINGS);
    if !pin.exists() {
        return Ok([0; 2]);
    }
    let error = |source| KernelError::Table { table: map::SETTINGS, source };
    let info = MapData::from_pin(&pin).and_then(|map| map.info()).map_err(error)?;
    bpf::first_words(&pin, info.value_size()).map_err(path_error("read", &pin))
}

/// Checks that what is pinned already has the shape this version's programs need.
pub(super) fn verify(folder: &Path) -> Result<(), KernelError> {
    for table in &TABLES {
        let path = folder.join(table.name);
        if !path.exists() {
            continue;
        }
        let (found, needed) = (table.found(&path)?, table.describe());
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

    /// The shape of what is pinned at a path.
    fn found(&self, pin: &Path) -> Result<String, KernelError> {
        let info = MapData::from_pin(pin).and_then(|map| map.info());
        let info = info.map_err(|source| KernelError::Table { table: self.name, source })?;
        Ok(describe(&info))
    }
}

fn describe(info: &MapInfo) -> String {
    let kind = info.map_type().map_or_else(|_| "unknown".into(), |kind| format!("{kind:?}"));
    let (key, value, entries) = (info.key_size(), info.value_size(), info.max_entries());
    format!("type {kind}, key {key}, value {value}, {entries} entries")
}

/// What [`detach`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// The pins that were removed, by path.
    pub removed: Vec<String>,
    /// Whether a daemon runs that used them: it serves on, unfiltered, until it is started again.
    pub in_use: bool,
}

/// Takes the filter off all interfaces and forgets all tables, of every version. Without pins it
/// does nothing, and what is not the daemon's stays. An operator's way out: it works while a
/// daemon runs.
///
/// # Errors
/// [`KernelError::NotBpffs`] if the folder is elsewhere, or if a pin cannot be removed.
pub fn detach(pin_dir: &Path) -> Result<Detached, KernelError> {
    let mut detached = Detached::default();
    if !pin_dir.exists() {
        return Ok(detached);
    }
    if !is_on_bpffs(pin_dir)? {
        return Err(KernelError::NotBpffs { path: pin_dir.to_owned() });
    }
    for folder in abi_folders(pin_dir)? {
        let lock = Lock::take(&folder);
        detached.in_use |= matches!(lock, Err(KernelError::InUse { .. }));
        let removed = remove_pins(&folder, bpf::release)?;
        detached.removed.extend(removed.iter().map(|pin| pin.display().to_string()));
    }
    remove_if_empty(pin_dir)?;
    Ok(detached)
}

/// Removes the daemon's pins from a folder, filters by `release`, and the folder with them if nothing else is
/// there; what was removed.
fn remove_pins(
    folder: &Path,
    release: fn(&Path) -> io::Result<()>,
) -> Result<Vec<PathBuf>, KernelError> {
    let mut pins = entries(folder)?;
    pins.retain(|pin| is_named(pin, is_ours));
    // Links first: nothing shall filter by tables that are half gone.
    pins.sort_by_key(|pin| is_named(pin, is_table));
    for pin in &pins {
        let removed = if is_named(pin, is_filter) { release(pin) } else { fs::remove_file(pin) };
        removed.map_err(path_error("remove", pin))?;
    }
    remove_if_empty(folder)?;
    Ok(pins)
}

/// The folders of pins of every version.
fn abi_folders(pin_dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let mut folders = entries(pin_dir)?;
    folders.retain(|folder| is_named(folder, is_abi));
    Ok(folders)
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

/// Whether a pin is one that the daemon makes, of whatever version.
fn is_ours(name: &str) -> bool {
    matches!(name, "sockets" | "sockets-new" | "sockets-too" | "sockets-too-new")
        || is_filter(name)
        || is_table(name)
}

/// Whether a pin holds an interface's link.
fn is_filter(name: &str) -> bool {
    name.starts_with("xdp-")
}

/// Whether a pin holds a table: those of every version are in capitals, and nothing else is.
fn is_table(name: &str) -> bool {
    let is_capital = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.bytes().all(is_capital)
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

/// Whether this thread's mounts are known to be those of the system's first process, as they are not
/// under `ip netns exec`.
fn has_the_systems_mounts() -> bool {
    let mounts = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    matches!((mounts("thread-self"), mounts("1")), (Ok(own), Ok(first)) if own == first)
}

/// The tables that are taken over from another version: who is banned, what was counted, and what
/// clients have used up of their limits.
const CARRIED: [&str; 6] =
    [map::BANS, map::CELLS, map::COUNTS, map::SIGNATURE_HITS, map::EVENTS_LOST, map::UNCOUNTED];

const BPFFS: &str = "/sys/fs/bpf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_are_removed() {
        assert!(is_abi(map::ABI) && is_abi("v12"));
        assert!(!["v", "v1x", "1", "vv1", "x1", ""].into_iter().any(is_abi));
        assert!(TABLES.iter().all(|table| is_ours(table.name)));
        assert!(["sockets", "sockets-too-new", "xdp-7-native-eth0"].into_iter().all(is_ours));
        assert!(!["Allowed", "allow", "socket", "progs", "xdp", "_"].into_iter().any(is_ours));
    }

    /// Whoever changes this list gives the folder another name: tables of another shape are not
    /// adopted.
    #[test]
    fn tables_of_this_name_have_these_shapes() {
        let needed = [
            "BANS: type Hash, key 16, value 40, 131072 entries",
            "BAN_FILTER: type Array, key 4, value 8, 4096 entries",
            "CELLS: type Array, key 4, value 32, 393280 entries",
            "OPEN: type Array, key 4, value 64, 32768 entries",
            "SOCKETS: type Hash, key 8, value 8, 262144 entries",
            "UNCOUNTED: type PerCpuArray, key 4, value 8, 1 entries",
            "COUNTS: type PerCpuArray, key 4, value 16, 2048 entries",
            "DROPS: type RingBuf, key 0, value 0, 262144 entries",
            "DROPS_BUCKET: type Array, key 4, value 8, 1 entries",
            "SAMPLES: type RingBuf, key 0, value 0, 262144 entries",
            "EVENTS_LOST: type PerCpuArray, key 4, value 8, 2 entries",
            "SIGNATURES: type Array, key 4, value 64, 128 entries",
            "SIGNATURE_HITS: type PerCpuArray, key 4, value 8, 128 entries",
            "SERVICES: type Array, key 4, value 8, 2052 entries",
            "LISTENERS: type Hash, key 24, value 16, 4096 entries",
            "ALARM: type Array, key 4, value 8, 2 entries",
            "SETTINGS: type Array, key 4, value 432, 1 entries",
        ];
        let found = TABLES.map(|table| format!("{}: {}", table.name, table.describe()));
        assert_eq!((map::ABI, found.each_ref().map(String::as_str)), ("v5", needed));
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
        assert_eq!(detach(&folder.path().join("none")).unwrap(), Detached::default());
    }
}
