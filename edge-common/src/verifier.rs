//! Help for the kernel's verifier, which walks every way through a program that it cannot tell from
//! another.

/// The same value, of which the verifier knows nothing any more; `noise` is any number that it does
/// not know.
#[inline(always)]
#[must_use]
pub fn forget(value: u64, noise: u64) -> u64 {
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = noise;
        value
    }
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: two instructions on registers, of which the second undoes the first.
        unsafe {
            core::arch::asm!(
                "{value} ^= {noise}",
                "{value} ^= {noise}",
                value = inout(reg) value,
                noise = in(reg) noise,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        value
    }
}

/// The same value, of which the compiler knows nothing any more: it does not fold two comparisons
/// into one that the verifier cannot follow.
#[inline(always)]
#[must_use]
pub fn opaque(value: u64) -> u64 {
    #[cfg(not(target_arch = "bpf"))]
    {
        value
    }
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: one instruction, which moves a register to itself.
        unsafe {
            core::arch::asm!(
                "{value} = {value}",
                value = inout(reg) value,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        value
    }
}
