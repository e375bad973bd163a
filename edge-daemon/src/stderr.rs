//! The daemon's own log, on standard error. Whoever has something to tell never waits for whoever reads
//! it: what cannot be written at once is lost, and counted.

use std::{
    io::{self, Stderr, Write},
    iter::once,
    os::fd::AsFd as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Takes a line with each call.
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut is_torn = IS_TORN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = io::stderr();
        let ends_former = if *is_torn { &b"\n"[..] } else { &[] };
        let parts = once(ends_former).filter(|end| !end.is_empty());
        for part in parts.chain(line.chunks(PART)) {
            if !has_room(&out) || out.write_all(part).is_err() {
                lose();
                return Ok(line.len());
            }
            *is_torn = true;
        }
        *is_torn = false;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a part can be written without waiting.
fn has_room(out: &Stderr) -> bool {
    let mut asked = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Counts a line that is not written.
pub(crate) fn lose() {
    LOST.fetch_add(1, Relaxed);
}

/// Lines that were not written.
pub(crate) fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// Whether the last line was cut off. One line is written at a time, so that what has room for a part
/// still has it when the part is written.
static IS_TORN: Mutex<bool> = Mutex::new(false);
static LOST: AtomicU64 = AtomicU64::new(0);
/// Bytes that a pipe takes without waiting once it takes any (`PIPE_BUF`).
const PART: usize = 4096;
