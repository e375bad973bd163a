//! The writer before the scheduler: it has little to do, and what it does cannot wait.

use std::io;

/// Asks for short slices for this thread: with something to do, it goes before threads that run for longer (EEVDF, Linux 6.12;
/// a kernel before that takes no notice). Its share of the processor and its nice value stay as they are.
///
/// # Errors
/// If the kernel, or a filter of system calls, refuses.
pub(super) fn be_prompt() -> io::Result<()> {
    let of_this_thread = 0;
    // SAFETY: all of its fields are numbers, for which zero is a value.
    let mut wanted: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes into the structure, which is as long.
    let told =
        unsafe { libc::syscall(libc::SYS_sched_getattr, of_this_thread, &raw mut wanted, size, 0) };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    (wanted.size, wanted.sched_runtime) = (size, SLICE_NS);
    // SAFETY: the kernel reads the structure, whose length it is told.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, of_this_thread, &raw const wanted, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The shortest that the kernel gives.
const SLICE_NS: u64 = 100_000;

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
            assert_eq!(nice(), 5);
        })
        .join()
        .unwrap();
    }
}
