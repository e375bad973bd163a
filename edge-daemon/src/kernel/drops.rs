//! What the kernel programs tell: drop events, samples, and lines of their own log in a lab.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use aya_log::EbpfLogger;
use edge_common::map;

use super::{KernelError, maps};

/// Reads drop events. Its descriptor is readable when there is one, for `tokio`'s `AsyncFd`.
pub struct Drops(RingBuf<MapData>);

impl Drops {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        maps::take(programs, map::DROPS).map(Self)
    }

    /// The next event, or `None` until the descriptor is readable again.
    #[must_use]
    pub fn next_drop(&mut self) -> Option<map::Packet> {
        next(&mut self.0)
    }
}

/// Reads samples. Nobody is woken when there is one.
pub struct Samples(RingBuf<MapData>);

impl Samples {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        maps::take(programs, map::SAMPLES).map(Self)
    }

    /// The next sample, or `None` if there is none by now.
    #[must_use]
    pub fn next_sample(&mut self) -> Option<map::Packet> {
        next(&mut self.0)
    }
}

fn next(ring: &mut RingBuf<MapData>) -> Option<map::Packet> {
    let item = ring.next()?;
    if item.len() < size_of::<map::Packet>() {
        return None;
    }
    // SAFETY: the bytes suffice (just checked), and `Packet` is `Pod`: any bits are valid.
    Some(unsafe { item.as_ptr().cast::<map::Packet>().read_unaligned() })
}

impl AsFd for Drops {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Drops {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The programs' own log, one line a packet.
pub struct DebugLog(EbpfLogger<Tracing>);

impl DebugLog {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        EbpfLogger::init_with_logger(programs, Tracing).map(Self).map_err(KernelError::DebugLog)
    }

    /// Hands on what has gathered. The descriptor is readable when there is something.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsFd for DebugLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for DebugLog {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Turns the programs' log records into `tracing` events.
struct Tracing;

impl log::Log for Tracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "edged::packet", "{}", record.args());
    }

    fn flush(&self) {}
}
