//! Threads before the scheduler: whose slices are shorter goes first when it wakes, and nobody's share of the processor
//! changes (EEVDF, Linux 6.12; a kernel before that takes no notice).

use std::io;

/// Asks for the shortest slices for this thread: it has little to do, and what it does cannot wait.
///
/// # Errors
/// If the kernel, or a filter of system calls, refuses.
pub(crate) fn be_prompt() -> io::Result<()> {
    change(|_| SHORTEST_NS)
}

/// Asks for longer slices for this thread than others have: it has much to do, and whoever wakes goes before it.
///
/// # Errors
/// If the kernel, or a filter of system calls, refuses.
pub(crate) fn be_patient() -> io::Result<()> {
    change(|usual| 2 * usual)
}

/// Has this thread's slice, in nanoseconds, and nothing else of how it is scheduled, changed.
fn change(slice: impl FnOnce(u64) -> u64) -> io::Result<()> {
    let mut attributes = attributes()?;
    attributes.sched_runtime = slice(attributes.sched_runtime);
    // SAFETY: the kernel reads the structure, whose length it is told.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, OWN, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How this thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: all of its fields are numbers, for which zero is a value.
    let mut told: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes into the structure, which is as long.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, OWN, &raw mut told, size, 0) } {
        0 => Ok(libc::sched_attr { size, ..told }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The shortest that the kernel gives.
const SHORTEST_NS: u64 = 100_000;
/// The thread that asks.
const OWN: i32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_nice_value() {
        std::thread::spawn(|| {
            // SAFETY: nothing but numbers is passed.
            let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            // SAFETY: as above.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) }, 0);
            be_prompt().unwrap();
            be_patient().unwrap();
            assert_eq!(nice(), 5);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn slices_are_shorter_and_longer_than_the_usual() {
        let slice = |change: fn() -> io::Result<()>| {
            let changed = move || change().and_then(|()| attributes()).unwrap().sched_runtime;
            std::thread::spawn(changed).join().unwrap()
        };
        let [prompt, usual, patient] = [be_prompt, || Ok(()), be_patient].map(slice);
        // A kernel before 6.12 has one slice for all.
        let is_old = prompt == usual && usual == patient;
        assert!(is_old || prompt < usual && usual < patient, "{prompt} {usual} {patient}");
    }
}
