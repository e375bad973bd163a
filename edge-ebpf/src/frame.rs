//! A frame, read from front to back within its bounds.

use core::ops::ControlFlow::{self, Break, Continue};

use aya_ebpf::programs::XdpContext;
use edge_common::{Reason, map::Facts};

use crate::report;

/// A frame that is read from front to back.
pub struct Frame {
    /// The first byte.
    start: *const u8,
    /// Behind the last byte of the first buffer.
    end: *const u8,
    /// Bytes that were read.
    ///
    /// A number under a bound, not a pointer that moves on: the ways through the extension
    /// headers then meet again for the verifier, instead of multiplying with each header.
    pub offset: usize,
    /// Bytes from `offset` to the end of what is being read: the frame, later the IP payload.
    pub left: u32,
    /// Bytes of the whole frame.
    pub length: u32,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        let length = report::frame_length(ctx);
        let (start, end) = (ctx.data() as *const u8, ctx.data_end() as *const u8);
        Self { start, end, offset: 0, left: length, length }
    }

    /// Reads `N` bytes and moves behind them.
    #[inline(always)]
    pub fn take<const N: usize>(&mut self) -> ControlFlow<Reason, &'static [u8; N]> {
        if self.left < N as u32 {
            return Break(Reason::MalformedPacket);
        }
        let header = self.start.wrapping_add(self.offset);
        if header.wrapping_add(N) > self.end {
            // The frame goes on in another buffer, where this program does not follow.
            return Break(Reason::UnparsedPacket);
        }
        self.offset += N;
        self.left -= N as u32;
        // SAFETY: `N` bytes lie before `end`, and bytes need no alignment. The kernel lends the frame
        // for the whole run, which no reference outlives; nobody else writes it, nor this program.
        Continue(unsafe { &*header.cast::<[u8; N]>() })
    }

    /// The next byte, if the first buffer holds it.
    #[inline(always)]
    pub fn peek(&self) -> Option<u8> {
        let next = self.start.wrapping_add(self.offset);
        if next.wrapping_add(1) > self.end {
            return None;
        }
        // SAFETY: as in `take`, for one byte.
        Some(unsafe { *next })
    }

    /// Moves on without reading.
    #[inline(always)]
    pub fn skip(&mut self, bytes: u32) -> ControlFlow<Reason> {
        if self.left < bytes {
            return Break(Reason::MalformedPacket);
        }
        self.offset += bytes as usize;
        self.left -= bytes;
        if self.offset > OFFSET_MAX {
            return Break(Reason::UnparsedPacket);
        }
        Continue(())
    }

    /// Keeps where it is in the facts and nowhere else. The verifier knows nothing of what lies in a
    /// table: the ways that lead here meet again.
    #[inline(always)]
    pub fn settle(&mut self, facts: &mut Facts) {
        self.offset = forget(&mut facts.transport_offset, self.offset as u32) as usize & OFFSET_MAX;
        self.left = forget(&mut facts.payload_offset, self.left);
    }

    /// Leaves out the padding behind the IP packet; the packet must be whole.
    #[inline(always)]
    pub fn narrow(&mut self, bytes: u32) -> ControlFlow<Reason> {
        if bytes > self.left {
            return Break(Reason::MalformedPacket);
        }
        self.left = bytes;
        Continue(())
    }
}

/// The word at this offset of a header, as it lies there. Headers begin anywhere, and the compiler
/// would read a word of them by its bytes.
#[inline(always)]
pub fn word<const OFFSET: usize, const N: usize>(header: &[u8; N]) -> u32 {
    const { assert!(OFFSET + 4 <= N) };
    let word: u64;
    // SAFETY: one instruction, which reads four bytes of the header; BPF's loads need no alignment on
    // the processors that we run on.
    unsafe {
        core::arch::asm!(
            "{word} = *(u32 *)({header} + {offset})",
            word = lateout(reg) word,
            header = in(reg) header.as_ptr(),
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    word as u32
}

/// As [`word`], of eight bytes.
#[inline(always)]
pub fn long<const OFFSET: usize, const N: usize>(header: &[u8; N]) -> u64 {
    const { assert!(OFFSET + 8 <= N) };
    let long: u64;
    // SAFETY: as in `word`, of eight bytes.
    unsafe {
        core::arch::asm!(
            "{long} = *(u64 *)({header} + {offset})",
            long = lateout(reg) long,
            header = in(reg) header.as_ptr(),
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    long
}

/// As [`word`], of two bytes, in host byte order.
#[inline(always)]
pub fn number<const OFFSET: usize, const N: usize>(header: &[u8; N]) -> u16 {
    const { assert!(OFFSET + 2 <= N) };
    let number: u64;
    // SAFETY: as in `word`, of two bytes.
    unsafe {
        core::arch::asm!(
            "{number} = *(u16 *)({header} + {offset})",
            number = lateout(reg) number,
            header = in(reg) header.as_ptr(),
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    u16::from_be(number as u16)
}

/// Makes the verifier forget what it knows of a number, by way of a table.
#[inline(always)]
pub fn forget(place: &mut u32, value: u32) -> u32 {
    // SAFETY: a reference is valid and aligned.
    unsafe {
        (&raw mut *place).write_volatile(value);
        (&raw const *place).read_volatile()
    }
}

/// Bytes of headers that the program follows: more than a packet of 1500 bytes holds, and little
/// enough for the verifier to see that most ways through a chain end alike.
const OFFSET_MAX: usize = 0x7ff;
