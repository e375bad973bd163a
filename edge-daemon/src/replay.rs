//! The memory of what may come once: nonces of signed requests, `jti` of DPoP proofs. It survives
//! the daemon, and never waits for a disk if its file lies in memory, as `/run` does.
//!
//! The file holds what the shards hold, slot by slot. An entry is in the kernel's page cache before
//! its request goes on, so that a daemon that is killed forgets nothing; nothing is ever flushed.
//! Where the file does not prove what came before this start, what was signed before is refused.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context as _;
use edge_common::Reason;
use edge_identity::{
    replay::{Fingerprint, SIGNER, Seen, Shard},
    signed::Once,
};
use zeroize::Zeroizing;

use crate::{clock, config::Settings};

/// The longest time after its signature for which anything is remembered, in seconds: bounds of the
/// configuration keep every window and leeway within it.
pub const LIFETIME_S: u64 = WINDOW_S_MAX + LEEWAY_S_MAX;

/// The longest time for which a signature is fresh, in seconds.
pub const WINDOW_S_MAX: u64 = 900;

/// The farthest that a signer's clock may be ahead, in seconds.
pub const LEEWAY_S_MAX: u64 = 60;

/// The memory, for all workers.
pub struct Replays {
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: u32,
    file: File,
    /// Keys the fingerprints: nobody outside can make two that are alike.
    key: Zeroizing<[u8; 32]>,
    /// What was signed up to then, in unix seconds, may have come before and is refused.
    unproven_s: u64,
    /// The latest time that it ever was, by the file: what had ended by then was forgotten.
    latest_s: AtomicU64,
    /// Held by whoever writes that time.
    noting: Mutex<()>,
    /// Whether it was told that the file cannot be written.
    told: AtomicBool,
}

impl Replays {
    /// Opens the memory with room for `capacity` entries, and takes over what the file has from the
    /// process before, if that remembered for as long as `windows_s` now says: what it had forgotten
    /// must not become fresh again.
    ///
    /// `dir` is the folder of the store, which notes in which boot of the machine it was used last:
    /// if in an earlier one, or never, all that came came before this boot.
    ///
    /// # Errors
    /// If a file cannot be made. One that cannot be read is replaced.
    pub fn open(
        path: &Path,
        dir: &Path,
        (capacity, windows_s): (u32, [u64; 2]),
        now: Now,
    ) -> io::Result<Self> {
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let mark =
            [MAGIC, boot.as_bytes(), windows_s.map(u64::to_le_bytes).as_flattened()].concat();
        let shard_capacity = shard_capacity(capacity);
        let empty = || (0..SHARDS).map(|_| Shard::new(shard_capacity, LIFETIME_S)).collect();
        let mut shards: Vec<_> = empty();
        let former = take_over(path, &mark, now.unix_s, &mut shards);
        let last_boot = fs::read_to_string(dir.join(NOTE)).ok();
        let unproven_s = match (&former, last_boot) {
            // What it did not prove it does not prove the second time either.
            (Some(Former { is_whole: true, unproven_s, .. }), _) => *unproven_s,
            // There is less room than there was.
            (Some(former), _) => former.unproven_s.max(now.unix_s + LEEWAY_S_MAX),
            (None, None) => 0,
            (None, Some(last)) if last.trim() != boot => now.booted_s + LEEWAY_S_MAX,
            (None, Some(_)) => now.unix_s + LEEWAY_S_MAX,
        };
        let (key, latest_s) = match former {
            Some(former) => (former.key, former.latest_s),
            None => {
                shards = empty();
                (random()?, now.unix_s)
            }
        };
        let head = head(&mark, &key, [unproven_s, latest_s]);
        let file = write(path, &head, shard_capacity, &shards)?;
        fs::write(dir.join(NOTE), &boot)?;
        let shards = shards.into_iter().map(Mutex::new).collect();
        let (latest_s, noting, told) = (latest_s.into(), Mutex::new(()), AtomicBool::new(false));
        Ok(Self { shards, shard_capacity, file, key, unproven_s, latest_s, noting, told })
    }

    /// Lets a thing pass the first time that it comes. Waits for a shard's turn, no longer than
    /// another's entry takes to be written.
    ///
    /// # Errors
    /// [`Reason::Replayed`]; [`Reason::NoncesFull`] if there is no room or it cannot be said, which is no fault
    /// of whoever signed; [`Reason::InternalError`] if it cannot be written down.
    pub fn admit(&self, once: &Once, now_s: u64) -> Result<(), Reason> {
        if once.signed_s <= self.unproven_s {
            return Err(Reason::NoncesFull);
        }
        self.note_time(now_s)?;
        let hash = |bytes: &[u8]| *blake3::keyed_hash(&self.key, bytes).as_bytes();
        let mut fingerprint = Fingerprint::default();
        fingerprint.copy_from_slice(&hash(&once.name)[..size_of::<Fingerprint>()]);
        fingerprint[SIGNER].copy_from_slice(&hash(once.by.as_bytes())[SIGNER]);
        let number = shard_of(&fingerprint);
        let mut shard = lock(&self.shards[number]);
        match shard.admit(&fingerprint, once.until_s, now_s) {
            Seen::Now(slot) => self.keep(number, slot, &fingerprint, once.until_s),
            Seen::Before => Err(Reason::Replayed),
            Seen::Stale | Seen::Full => Err(Reason::NoncesFull),
        }
    }

    /// Writes an entry into the page cache, while the shard is held: its slot is nobody else's.
    fn keep(
        &self,
        shard: usize,
        slot: u32,
        fingerprint: &Fingerprint,
        until_s: u64,
    ) -> Result<(), Reason> {
        let until_s = u32::try_from(until_s).unwrap_or(u32::MAX);
        let at = place(shard, self.shard_capacity) + u64::from(slot) * RECORD as u64;
        self.note(&record(fingerprint, until_s), at)
    }

    /// Writes down what time it is, once a second: from now on what has ended is forgotten, and if the clock
    /// goes back it still is, after a restart too.
    fn note_time(&self, now_s: u64) -> Result<(), Reason> {
        if now_s > self.latest_s.load(Relaxed) {
            let _turn = self.noting.lock().unwrap_or_else(PoisonError::into_inner);
            if now_s > self.latest_s.load(Relaxed) {
                self.note(&now_s.to_le_bytes(), LATEST)?;
                self.latest_s.store(now_s, Relaxed);
            }
        }
        Ok(())
    }

    fn note(&self, bytes: &[u8], at: u64) -> Result<(), Reason> {
        self.file.write_all_at(bytes, at).map_err(|error| {
            if !self.told.swap(true, Relaxed) {
                tracing::error!(%error, "signed requests are refused: what came cannot be noted");
            }
            Reason::InternalError
        })
    }

    /// How many things are remembered, and for how many there is room.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        let used = self.shards.iter().map(|shard| u64::from(lock(shard).len())).sum();
        (used, u64::from(self.shard_capacity) * SHARDS as u64)
    }
}

impl std::fmt::Debug for Replays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replays({:?})", self.usage())
    }
}

/// Opens the memory as the configuration says.
///
/// # Errors
/// If the file cannot be used.
pub fn open(settings: &Settings) -> anyhow::Result<Replays> {
    let (file, room) = (&settings.signing.nonce_file, settings.signing.nonces_max);
    let now = Now { unix_s: clock::unix_ms() / 1000, booted_s: clock::unix_ms_at(0) / 1000 };
    let windows_s = [settings.signing.policy.window_s, settings.tokens.proof_age.as_secs()];
    Replays::open(file, &settings.state.dir, (room, windows_s), now)
        .with_context(|| format!("cannot use the memory of nonces {}", file.display()))
}

/// When it is, and when the machine was booted, in unix seconds.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Now.
    pub unix_s: u64,
    /// At boot.
    pub booted_s: u64,
}

/// The memory of the process before.
struct Former {
    key: Zeroizing<[u8; 32]>,
    unproven_s: u64,
    latest_s: u64,
    /// Whether there was room for all of it.
    is_whole: bool,
}

/// Takes over what a file of this boot holds that has not ended. `None` if it does not prove what
/// came: it is missing, of another boot or other windows, damaged, or from a time when the clock was
/// far ahead; then shards are left with a part of it. What had ended when the clock was ahead by less stays
/// forgotten. Never more of the file than a page is in memory.
fn take_over(path: &Path, mark: &[u8], now_s: u64, shards: &mut [Shard]) -> Option<Former> {
    let mut file = BufReader::new(File::open(path).ok()?);
    let mut head = Zeroizing::new([0; HEAD]);
    file.read_exact(&mut *head).ok()?;
    // Where the former version has no times there are zeros. What it remembers nobody in particular has signed.
    if head.starts_with(FORMER_MAGIC) {
        head[..MAGIC.len()].copy_from_slice(MAGIC);
    }
    let key = Zeroizing::new(*head.strip_prefix(mark)?.first_chunk::<32>()?);
    let [unproven_s, latest_s] = times(&head);
    if latest_s > now_s + LIFETIME_S {
        return None;
    }
    let latest_s = latest_s.max(now_s);
    shards.iter_mut().for_each(|shard| shard.sweep(latest_s));
    let (mut is_whole, mut record) = (true, [0; RECORD]);
    // What is shorter than a record at the end was never an entry.
    while read_record(&mut file, &mut record).ok()? {
        let (fingerprint, until_s) = record.split_first_chunk::<16>()?;
        let until_s = u64::from(u32::from_le_bytes(until_s.try_into().ok()?));
        if until_s > now_s + LIFETIME_S {
            return None;
        }
        if until_s >= latest_s {
            let seen = shards[shard_of(fingerprint)].restore(fingerprint, until_s);
            is_whole &= seen != Seen::Full;
        }
    }
    Some(Former { key, unproven_s, latest_s, is_whole })
}

/// The head of a file: the mark and the key at its begin, and at its end what was signed up to when is refused
/// and the latest time that it ever was.
fn head(mark: &[u8], key: &[u8; 32], times: [u64; 2]) -> Zeroizing<[u8; HEAD]> {
    let mut head = Zeroizing::new([0; HEAD]);
    head[..mark.len()].copy_from_slice(mark);
    head[mark.len()..][..key.len()].copy_from_slice(key);
    head[TIMES..].copy_from_slice(times.map(u64::to_le_bytes).as_flattened());
    head
}

fn times(head: &[u8; HEAD]) -> [u64; 2] {
    let (times, _) = head[TIMES..].as_chunks();
    [u64::from_le_bytes(times[0]), u64::from_le_bytes(times[1])]
}

/// Reads the next record; whether there was one.
fn read_record(file: &mut impl io::Read, record: &mut [u8; RECORD]) -> io::Result<bool> {
    match file.read_exact(record) {
        Ok(()) => Ok(true),
        Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Writes a file beside the former one and puts it in its place.
fn write(
    path: &Path,
    head: &[u8; HEAD],
    shard_capacity: u32,
    shards: &[Shard],
) -> io::Result<File> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let mut file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(head)?;
    file.set_len(place(SHARDS, shard_capacity))?;
    let mut image = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        image.clear();
        // Slots are given in their order, so that the first ones are those that are taken.
        image.resize(shard.len() as usize * RECORD, 0);
        for (slot, fingerprint, until_s) in shard.entries() {
            let until_s = u32::try_from(until_s).unwrap_or(u32::MAX);
            let at = slot as usize * RECORD;
            image[at..at + RECORD].copy_from_slice(&record(&fingerprint, until_s));
        }
        file.write_all_at(&image, place(number, shard_capacity))?;
    }
    fs::rename(&fresh, path)?;
    Ok(file)
}

fn record(fingerprint: &Fingerprint, until_s: u32) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..16].copy_from_slice(fingerprint);
    record[16..].copy_from_slice(&until_s.to_le_bytes());
    record
}

fn place(shard: usize, shard_capacity: u32) -> u64 {
    HEAD as u64 + shard as u64 * u64::from(shard_capacity) * RECORD as u64
}

/// Its share, and as much more as chance may give it: eight standard deviations.
fn shard_capacity(capacity: u32) -> u32 {
    let share = capacity.div_ceil(SHARDS as u32).max(1);
    share + 8 * share.isqrt()
}

/// By other bits than those that find it within its shard.
fn shard_of(fingerprint: &Fingerprint) -> usize {
    usize::from(fingerprint[15]) % SHARDS
}

fn random() -> io::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|fault| io::Error::other(fault.to_string()))?;
    Ok(bytes)
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHARDS: usize = 64;
const MAGIC: &[u8] = b"edged replays 2\n";
const FORMER_MAGIC: &[u8; MAGIC.len()] = b"edged replays 1\n";
const HEAD: usize = 4096;
/// Where the head has its two times, and where the latter of them is.
const TIMES: usize = HEAD - 16;
const LATEST: u64 = HEAD as u64 - 8;
/// A fingerprint and when it ends, in unix seconds.
const RECORD: usize = 20;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// In the folder of the store: the boot in which it was used last.
const NOTE: &str = "boot";

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, path::PathBuf, thread};

    use tempfile::{TempDir, tempdir};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// Each signed by another.
    fn once(number: u32, signed_s: u64) -> Once {
        let (by, name) = (number.to_string(), number.to_le_bytes().to_vec());
        Once { by, name, signed_s, until_s: signed_s + 300 }
    }

    fn signed(by: &str, number: u32) -> Once {
        Once { by: by.to_owned(), ..once(number, NOW) }
    }

    struct Disk(TempDir);

    impl Disk {
        fn file(&self) -> PathBuf {
            self.0.path().join("replays")
        }

        fn open(&self, capacity: u32, unix_s: u64) -> Replays {
            let now = Now { unix_s, booted_s: NOW - 5000 };
            Replays::open(&self.file(), self.0.path(), (capacity, [300, 60]), now).unwrap()
        }
    }

    fn disk() -> Disk {
        Disk(tempdir().unwrap())
    }

    #[test]
    fn nothing_passes_twice_whoever_asks_and_whenever_the_daemon_was_killed() {
        const THINGS: u32 = 20_000;
        let disk = disk();
        let passed = |replays: &Replays, range: std::ops::Range<u32>| {
            range.filter(|n| replays.admit(&once(*n, NOW), NOW).is_ok()).count()
        };
        let replays = disk.open(THINGS, NOW);
        // Eight at once, all with the same things, and then a process that ends without a word.
        let total: usize = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| passed(&replays, 0..THINGS / 2))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(total, THINGS as usize / 2);
        std::mem::forget(replays);
        let replays = disk.open(THINGS, NOW + 10);
        assert_eq!(passed(&replays, 0..THINGS), THINGS as usize / 2, "the other half alone is new");
        assert_eq!(passed(&replays, 0..THINGS), 0);
        assert_eq!(replays.usage().0, u64::from(THINGS));
        drop(replays);
        // When they have ended they are forgotten, and refused as what may have come.
        let replays = disk.open(THINGS, NOW + 301);
        assert_eq!(replays.usage().0, 0);
        assert_eq!(replays.admit(&once(1, NOW), NOW + 301), Err(Reason::NoncesFull));
    }

    #[test]
    fn a_full_memory_refuses() {
        let disk = disk();
        let replays = disk.open(6400, NOW);
        let answers: Vec<_> = (0..20_000).map(|n| replays.admit(&once(n, NOW), NOW)).collect();
        let passed = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
        assert_eq!((passed, passed), replays.usage());
        assert!(answers.iter().all(|a| matches!(a, Ok(()) | Err(Reason::NoncesFull))));
        // With less room than before, what does not fit any more is refused by its time.
        drop(replays);
        assert_eq!(disk.open(64, NOW).unproven_s, NOW + 60);
    }

    #[test]
    fn what_no_file_proves_is_refused() {
        let (disk, at) = (disk(), |s| once(7, s));
        assert!(
            disk.open(100, NOW).admit(&at(NOW), NOW).is_ok(),
            "this store was never used before"
        );
        for damage in [&b""[..], b"edged replays 2\n", b"nonsense"] {
            fs::write(disk.file(), damage).unwrap();
            drop(disk.open(100, NOW));
            // That it is whole the second time proves no more.
            let replays = disk.open(100, NOW);
            assert_eq!(replays.admit(&at(NOW + 60), NOW), Err(Reason::NoncesFull));
            assert!(replays.admit(&at(NOW + 61), NOW).is_ok());
        }
        // Of another boot: all that came came before this one.
        fs::remove_file(disk.file()).unwrap();
        fs::write(disk.0.path().join(NOTE), "another").unwrap();
        let replays = disk.open(100, NOW);
        assert_eq!(replays.admit(&at(NOW - 4940), NOW), Err(Reason::NoncesFull));
        assert!(replays.admit(&at(NOW), NOW).is_ok());
        drop(replays);
        // The clock went back.
        let replays = disk.open(100, NOW - 2000);
        assert_eq!(replays.admit(&at(NOW - 1990), NOW - 2000), Err(Reason::NoncesFull));
    }

    #[test]
    fn what_the_former_version_noted_is_known_and_nobody_is_refused_for_the_update() {
        let (disk, key, until_s) = (disk(), [7; 32], u32::try_from(NOW + 300).unwrap());
        drop(disk.open(100, NOW));
        let mut file = fs::read(disk.file()).unwrap();
        file[..MAGIC.len()].copy_from_slice(FORMER_MAGIC);
        // Behind the boot's id and two windows.
        file[MAGIC.len() + 36 + 16..][..32].copy_from_slice(&key);
        file[TIMES..HEAD].fill(0);
        for number in 0..20 {
            let once = once(number, NOW);
            let hash = blake3::keyed_hash(&key, &once.name);
            let fingerprint = *hash.as_bytes().first_chunk().unwrap();
            let at = HEAD + number as usize * RECORD;
            file[at..at + RECORD].copy_from_slice(&record(&fingerprint, until_s));
        }
        fs::write(disk.file(), file).unwrap();
        for _ in 0..2 {
            let replays = disk.open(1000, NOW + 10);
            let seen = (0..20).map(|number| replays.admit(&once(number, NOW), NOW + 10));
            assert!(seen.into_iter().all(|seen| seen == Err(Reason::Replayed)));
        }
        assert_eq!(disk.open(1000, NOW + 10).admit(&once(20, NOW + 5), NOW + 10), Ok(()));
    }

    #[test]
    fn less_room_proves_no_more_than_there_was_proof_of() {
        let disk = disk();
        fs::write(disk.0.path().join(NOTE), fs::read(BOOT_ID).unwrap()).unwrap();
        let replays = disk.open(6400, NOW);
        let passed = (0..5000).filter(|n| replays.admit(&once(*n, NOW + 61), NOW + 30).is_ok());
        assert!(passed.count() > 3000);
        drop(replays);
        // The clock went back before there was less room.
        assert_eq!(disk.open(64, NOW - 100).unproven_s, NOW + 60);
    }

    #[test]
    fn one_signer_leaves_room_for_the_others_and_keeps_what_he_has_through_a_restart() {
        let disk = disk();
        let passed = |replays: &Replays, by: &str, range: std::ops::Range<u32>| {
            range.filter(|n| replays.admit(&signed(by, *n), NOW).is_ok()).count() as u64
        };
        let replays = disk.open(6400, NOW);
        let (_, room) = replays.usage();
        let greedy = passed(&replays, "greedy", 0..20_000);
        assert!((room / 2..=room / 2 + SHARDS as u64).contains(&greedy), "{greedy} of {room}");
        assert_eq!(passed(&replays, "modest", 20_000..21_000), 1000);
        let again = passed(&replays, "greedy", 30_000..40_000);
        assert_eq!(again, 0, "he has more than is left");
        drop(replays);
        let replays = disk.open(6400, NOW);
        assert_eq!(replays.usage().0, greedy + 1000);
        assert_eq!(passed(&replays, "greedy", 0..40_000), 0);
        assert_eq!(passed(&replays, "modest", 20_000..21_100), 100);
    }

    #[test]
    fn a_clock_that_was_ahead_brings_nothing_back_after_a_restart() {
        for ahead_s in [310, 660, 900, 2000] {
            let disk = disk();
            let replays = disk.open(64, NOW);
            let (_, room) = replays.usage();
            assert_eq!(replays.admit(&once(1, NOW), NOW), Ok(()));
            // What it forgets then is written over.
            for other in 2..=u32::try_from(room).unwrap() * 100 {
                let _ = replays.admit(&once(other, NOW + ahead_s), NOW + ahead_s);
            }
            drop(replays);
            for _ in 0..2 {
                // There is room for it.
                let replays = disk.open(6400, NOW + 10);
                let again = replays.admit(&once(1, NOW), NOW + 10);
                assert_eq!(again, Err(Reason::NoncesFull), "{ahead_s}");
            }
        }
        // A clock that is set a little is no reason to refuse what was signed since.
        let disk = disk();
        assert_eq!(disk.open(64, NOW).admit(&once(1, NOW), NOW + 2), Ok(()));
        assert_eq!(disk.open(64, NOW).admit(&once(2, NOW - 200), NOW), Ok(()));
    }

    #[test]
    fn what_cannot_be_noted_does_not_pass() {
        let disk = disk();
        let mut replays = disk.open(100, NOW);
        replays.file = File::open(disk.file()).unwrap();
        assert_eq!(replays.admit(&once(1, NOW), NOW), Err(Reason::InternalError));
    }

    #[test]
    fn a_million_take_no_more_than_64_mib() {
        let disk = disk();
        let replays = disk.open(1_000_000, NOW);
        let slots = u64::from(replays.shard_capacity) * SHARDS as u64;
        assert!(slots < 1_070_000);
        // An entry, its place in the table, which is a power of two, and its record in the file.
        let table = u64::from(replays.shard_capacity.next_power_of_two()) * SHARDS as u64 * 4;
        let memory = slots * (24 + RECORD as u64) + table + SHARDS as u64 * 4 * (LIFETIME_S + 2);
        assert!(memory <= 64 << 20, "{memory}");
        assert_eq!(fs::metadata(disk.file()).unwrap().mode() & 0o777, 0o600);
    }
}
