//! The ceiling of the daemon's memory: near it slow clients have to go, at it the edge takes no new work until there is less.

mod free;

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

pub use self::free::give_back;
use crate::request::Edge;

/// How much memory the daemon holds, and whether that is too much.
pub struct Memory {
    /// Bytes that are resident, as of the last look.
    pub held: AtomicU64,
    /// The ceiling in force.
    pub most: AtomicU64,
    /// Connections and requests in flight at that look.
    then: [AtomicUsize; 2],
    is_full: AtomicBool,
    is_short: AtomicBool,
}

impl Default for Memory {
    /// Nothing is refused before the first look.
    fn default() -> Self {
        let (held, then, is_full, is_short) = Default::default();
        Self { held, most: AtomicU64::new(u64::MAX), then, is_full, is_short }
    }
}

impl Memory {
    /// Whether new work is to be refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }

    /// Whether it will soon be full, so that slow clients are to make room for others.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.is_short.load(Relaxed)
    }

    /// Whether a connection is to be refused, with which so many are open.
    #[must_use]
    pub fn refuses_connection(&self, open: usize) -> bool {
        self.is_full() || self.left_by(open, &self.then[0], CONNECTION_BYTES).is_none()
    }

    /// Whether a request is to be refused, with which so many are in flight.
    #[must_use]
    pub fn refuses_request(&self, in_flight: usize) -> bool {
        self.is_full() || self.left_by(in_flight, &self.then[1], REQUEST_BYTES_FIRST).is_none()
    }

    /// Bytes that are left under the ceiling if what came since the last look takes so much each: many come between two
    /// looks.
    fn left_by(&self, now: usize, then: &AtomicUsize, each: u64) -> Option<u64> {
        let new = now.saturating_sub(then.load(Relaxed)) as u64 * each;
        let late = self.then[1].load(Relaxed) as u64 * REQUEST_BYTES_LEFT;
        let held = self.held.load(Relaxed);
        usable(self.most.load(Relaxed)).checked_sub(held.saturating_add(late).saturating_add(new))
    }

    /// Whether so many requests in flight may come to hold more than there is left, if their clients are slow.
    #[must_use]
    pub fn is_scarce(&self, in_flight: usize) -> bool {
        let more = in_flight as u64 * REQUEST_BYTES;
        self.held.load(Relaxed).saturating_add(more) > usable(self.most.load(Relaxed))
    }

    /// Takes note of what is held by so many connections and requests in flight. Who was short of memory, or at the ceiling,
    /// has to come down somewhat further, so that the edge does not go back and forth.
    fn note(&self, held: u64, now: [usize; 2], most: u64) {
        let enough = if self.is_full() { most - most / 16 } else { usable(most) };
        self.held.store(held, Relaxed);
        self.most.store(most, Relaxed);
        for (then, now) in self.then.iter().zip(now) {
            then.store(now, Relaxed);
        }
        let soon = held.saturating_add(now[1] as u64 * REQUEST_BYTES_LEFT);
        let ample = most - if self.is_short() { most / 16 * 3 } else { most / 8 };
        self.is_short.store(soon > ample, Relaxed);
        let is_full = soon > enough;
        if self.is_full.swap(is_full, Relaxed) != is_full {
            let (held_mib, most_mib) = (held >> 20, most >> 20);
            if is_full {
                tracing::warn!(held_mib, most_mib, "memory is full: no new work is taken");
            } else {
                tracing::info!(held_mib, most_mib, "there is memory again");
            }
        }
    }
}

/// What may be taken of so much: the rest is for what comes before it is noticed that this is taken.
const fn usable(most: u64) -> u64 {
    most - most / 32
}

/// Looks again and again.
pub async fn watch(edge: Arc<Edge>) {
    loop {
        match resident() {
            Ok(held) => {
                let most = match edge.plan.load().bounds.memory_max {
                    0 => of_host(),
                    most => most,
                };
                let counts = [&edge.metrics.connections, &edge.metrics.requests];
                edge.metrics.memory.note(held, counts.map(|count| count.load(Relaxed)), most);
            }
            Err(error) => tracing::warn!(%error, "cannot tell how much memory is held"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Bytes of this process that are in memory.
fn resident() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096) as u64)
}

/// Three quarters of what the host, or a control group around the daemon, gives.
fn of_host() -> u64 {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
    });
    let group = fs::read_to_string("/proc/self/cgroup").ok();
    let group = group.and_then(|own| group_max(Path::new("/sys/fs/cgroup"), &own));
    host.into_iter().chain(group).min().map_or(u64::MAX, |bytes| bytes / 4 * 3)
}

/// The least that a control group gives, of those that a process is in according to its `/proc/PID/cgroup`: each holds for
/// all below it.
fn group_max(root: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = root.join(path);
    let around = group.ancestors().take_while(|group| group.starts_with(root));
    let max = |group: &Path| fs::read_to_string(group.join("memory.max")).ok();
    // One without a bound says `max`.
    around.filter_map(|group| max(group)?.trim().parse().ok()).min()
}

/// What a request whose client is slow may come to hold while there is enough: what was read last and what waits to be sent.
const REQUEST_BYTES: u64 = 128 << 10;
/// What a connection takes until its handshake is over.
const CONNECTION_BYTES: u64 = 32 << 10;
/// What a request takes at first, while memory is scarce and buffers are small.
const REQUEST_BYTES_FIRST: u64 = 48 << 10;
/// What it may still come to hold after that.
const REQUEST_BYTES_LEFT: u64 = 16 << 10;
/// A flood of new connections adds a few MiB in this time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_full_has_to_have_some_room() {
        let memory = Memory::default();
        for (held, is_full) in [(123, false), (124, false), (125, true), (121, true), (120, false)]
        {
            memory.note(held << 20, [0, 0], 128 << 20);
            assert_eq!(memory.is_full(), is_full, "{held}");
        }
    }

    #[test]
    fn it_is_short_before_it_is_full() {
        let memory = Memory::default();
        let looks =
            [(112, false), (113, true), (124, true), (112, true), (105, true), (104, false)];
        for (held, is_short) in looks {
            memory.note(held << 20, [0, 0], 128 << 20);
            assert_eq!((memory.is_short(), memory.is_full()), (is_short, false), "{held}");
        }
        memory.note(112 << 20, [0, 1], 128 << 20);
        assert!(memory.is_short() && !memory.is_full());
    }

    #[test]
    fn requests_in_flight_are_left_room() {
        let memory = Memory::default();
        memory.note(114 << 20, [700, 640], 128 << 20);
        assert!(!memory.is_full() && !memory.is_scarce(80) && memory.is_scarce(81));
        memory.note(114 << 20, [700, 641], 128 << 20);
        assert!(memory.is_full());
    }

    #[test]
    fn who_comes_between_two_looks_is_counted_in() {
        let memory = Memory::default();
        memory.note(114 << 20, [700, 0], 128 << 20);
        assert!(!memory.refuses_connection(700 + 320) && memory.refuses_connection(700 + 321));
        assert!(!memory.refuses_request(213) && memory.refuses_request(214));
        memory.note(125 << 20, [700, 0], 128 << 20);
        assert!(memory.refuses_connection(1) && memory.refuses_request(1));
    }

    #[test]
    fn what_is_held_and_given_can_be_read() {
        assert!(resident().unwrap() > 1 << 20);
        assert!(of_host() > 1 << 26);
    }

    #[test]
    fn the_narrowest_control_group_around_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let own = "4:memory:/other\n0::/system.slice/edged.service\n";
        let max = || group_max(dir.path(), own);
        let unit = dir.path().join("system.slice/edged.service");
        fs::create_dir_all(&unit).unwrap();
        assert_eq!(max(), None);
        fs::write(unit.join("memory.max"), "max\n").unwrap();
        fs::write(dir.path().join("system.slice/memory.max"), "2000\n").unwrap();
        assert_eq!(max(), Some(2000));
        fs::write(unit.join("memory.max"), "1000\n").unwrap();
        assert_eq!(max(), Some(1000));
        // Within a namespace of its own it is at the top.
        fs::write(dir.path().join("memory.max"), "3000\n").unwrap();
        assert_eq!(group_max(dir.path(), "0::/\n"), Some(3000));
        assert_eq!(group_max(dir.path(), "4:memory:/other\n"), None);
    }
}
