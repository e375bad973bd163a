//! Waits, in the control plane's runtime, until the kernel has something to tell.

use std::{io, os::fd::AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

use super::{DebugLog, Drops};

/// What reads from a descriptor that it owns for as long as it lives.
pub trait Told: AsRawFd + sealed::OwnsDescriptor {}

mod sealed {
    /// The descriptor is open, and the same, until the value is dropped.
    pub trait OwnsDescriptor {}
}

impl sealed::OwnsDescriptor for Drops {}
impl sealed::OwnsDescriptor for DebugLog {}
impl Told for Drops {}
impl Told for DebugLog {}

/// Calls `read` whenever the descriptor is readable; it is to read all there is.
///
/// # Errors
/// If the runtime cannot watch the descriptor.
pub async fn whenever_ready<T: Told>(told: T, mut read: impl FnMut(&mut T)) -> io::Result<()> {
    // SAFETY: `Told` owns its descriptor until it is dropped, and `AsyncFd` drops it last.
    let watched = unsafe { AsyncFd::register_with_interest(told, Interest::READABLE) };
    let mut watched = watched.map_err(io::Error::from)?;
    loop {
        let mut ready = watched.readable_mut().await?;
        read(ready.get_inner_mut());
        ready.clear_ready();
    }
}
