//! Load, compare-and-swap and addition on shared words, for both sides.
//!
//! Rust's BPF target declares no compare-and-swap, though the kernel has had the instruction
//! since 5.12; there, the compiler's own intrinsics give what `AtomicU64` withholds.

use core::sync::atomic::AtomicU64;

/// The word as it is now.
#[inline(always)]
pub fn load(word: &AtomicU64) -> u64 {
    #[cfg(not(target_arch = "bpf"))]
    {
        word.load(core::sync::atomic::Ordering::Relaxed)
    }
    #[cfg(target_arch = "bpf")]
    {
        // LLVM has no relaxed load for BPF; an aligned volatile one is the same instruction.
        // SAFETY: a reference to an `AtomicU64` is valid and aligned.
        unsafe { word.as_ptr().read_volatile() }
    }
}

/// Puts `to` in the place of `from`; whether it still was `from`.
#[inline(always)]
pub fn replace(word: &AtomicU64, from: u64, to: u64) -> bool {
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::Ordering::Relaxed;
        word.compare_exchange(from, to, Relaxed, Relaxed).is_ok()
    }
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering::Relaxed, atomic_cxchg};
        // SAFETY: a reference to an `AtomicU64` is valid, aligned and shared for atomic writes.
        unsafe { atomic_cxchg::<u64, { Relaxed }, { Relaxed }>(word.as_ptr(), from, to).1 }
    }
}

/// Adds to a word that wraps around.
#[inline(always)]
pub fn add(word: &AtomicU64, more: u64) {
    #[cfg(not(target_arch = "bpf"))]
    {
        word.fetch_add(more, core::sync::atomic::Ordering::Relaxed);
    }
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
        // SAFETY: as in `replace`.
        unsafe { atomic_xadd::<u64, u64, { Relaxed }>(word.as_ptr(), more) };
    }
}

/// Has the processor bring the line in which this begins, to write to it, without waiting for it.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub fn fetch<T>(place: &T) {
    let place = core::ptr::from_ref(place);
    // SAFETY: a hint, which reads and writes nothing that a program can see; a processor without it
    // does nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    let _ = place;
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn only_the_expected_word_is_replaced() {
        let word = AtomicU64::new(7);
        assert!(!replace(&word, 8, 9));
        assert!(replace(&word, 7, 9));
        add(&word, 1);
        assert_eq!(word.load(Relaxed), 10);
    }
}
