//! Waits, in the control plane's runtime, until the kernel has something to tell.

use std::{io, ops::ControlFlow, os::fd::AsRawFd};

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
};

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

/// Calls `read` whenever the descriptor is readable; it is to read all there is, or to break off while there
/// may be more: whatever else waits for the thread has its turn then.
///
/// # Errors
/// If the runtime cannot watch the descriptor.
pub async fn whenever_ready<T: Told>(
    told: T,
    mut read: impl FnMut(&mut T) -> ControlFlow<()>,
) -> io::Result<()> {
    // SAFETY: `Told` owns its descriptor until it is dropped, and `AsyncFd` drops it last.
    let watched = unsafe { AsyncFd::register_with_interest(told, Interest::READABLE) };
    let mut watched = watched.map_err(io::Error::from)?;
    loop {
        let mut ready = watched.readable_mut().await?;
        if read(ready.get_inner_mut()).is_break() {
            yield_now().await;
        } else {
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixStream, time::Duration};

    use super::*;

    impl sealed::OwnsDescriptor for UnixStream {}
    impl Told for UnixStream {}

    #[tokio::test]
    async fn who_has_much_to_tell_keeps_nobody_waiting() {
        let (mut teller, told) = UnixStream::pair().unwrap();
        told.set_nonblocking(true).unwrap();
        teller.write_all(&[0]).unwrap();
        let mut turns = 0;
        let endless = whenever_ready(told, |_| {
            turns += 1;
            ControlFlow::Break(())
        });
        let waited = tokio::time::timeout(Duration::from_millis(1), endless).await;
        assert!(waited.is_err() && turns > 1, "{turns}");
    }
}
