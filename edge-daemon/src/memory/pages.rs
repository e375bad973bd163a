//! Pages of memory that is looked at all over: the processor remembers where few of them lie, so they had better be large.

use std::ops::Range;

use nix::unistd::{SysconfVar, sysconf};

/// Has the kernel put memory of this process, which is in use already, into huge pages, where it has some (Linux 6.1). What
/// it holds and how much it takes stay the same.
pub fn make_huge(memory: &Range<*const u8>) {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |page| page as usize);
    let start = memory.start.addr().next_multiple_of(page);
    let length = memory.end.addr().saturating_sub(start) / page * page;
    if length < HUGE {
        return;
    }
    let start = memory.start.with_addr(start).cast_mut().cast();
    // SAFETY: the kernel changes where the pages lie and not what is in them, and knows of itself whether they are there.
    let done = unsafe { libc::madvise(start, length, libc::MADV_COLLAPSE) };
    tracing::debug!(length, is_huge = done == 0, "pages of a table");
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_stays() {
        let table: Vec<u64> = (0..1 << 20).collect();
        let Range { start, end } = table.as_ptr_range();
        make_huge(&(start.cast()..end.cast()));
        assert!(table.iter().copied().eq(0..1 << 20));
    }
}
