//! Memory that is free goes back to the kernel.

/// Gives back what this thread has freed. The allocator does so by itself while the thread asks for more, and a
/// thread that takes no new work does not: the edge would stay at its ceiling with nothing in its hands.
pub fn give_back() {
    // SAFETY: it may be called at any time by any thread; it looks at the thread's own free pages, and at what is
    // shared under the allocator's own locks.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
