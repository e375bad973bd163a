//! Two tiny kernel programs, assembled here: one that drops all, and one that sends.
//!
//! They need no compiler, no object and no library, so that a bench of the product's own program
//! shares nothing with it.

use std::{
    ffi::c_long,
    io::{Error, Result},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A loaded XDP program.
pub(super) struct Program(OwnedFd);

/// A program on an interface; it comes off when this is dropped.
pub(super) struct Link(#[expect(dead_code, reason = "held open for its effect")] OwnedFd);

impl Program {
    /// Drops every packet.
    pub(super) fn drop_all() -> Result<Self> {
        Self::load(&[mov(R0, XDP_DROP), EXIT])
    }

    /// Writes a source address, drawn at random from these, into an IPv4 packet and sends it out
    /// of an interface. The number of sources is a power of two.
    pub(super) fn send(ifindex: u32, sources: &[[u8; 4]]) -> Result<Self> {
        let map = array(&sources.concat())?;
        let mask = (sources.len() - 1) * 4;
        let [load, rest] = map_value(R1, &map);
        Self::load(&[
            insn(MOV_REG, R6, R1, 0, 0),
            call(RANDOM),
            insn(AND, R0, 0, 0, word(mask)),
            load,
            rest,
            insn(ADD_REG, R1, R0, 0, 0),
            insn(LOAD, R7, R1, 0, 0),
            insn(LOAD, R2, R6, 0, 0),
            insn(LOAD, R3, R6, 4, 0),
            insn(MOV_REG, R4, R2, 0, 0),
            insn(ADD, R4, 0, 0, 34),
            insn(JUMP_ABOVE, R4, R3, 5, 0),
            // The source address lies 12 bytes into the IPv4 header, which lies 14 into the frame.
            insn(STORE, R2, R7, 26, 0),
            mov(R1, word(ifindex as usize)),
            mov(R2, 0),
            call(REDIRECT),
            EXIT,
            mov(R0, XDP_DROP),
            EXIT,
        ])
    }

    /// Puts the program on an interface of the calling thread's namespace, in native mode.
    pub(super) fn attach(&self, ifindex: u32) -> Result<Link> {
        let attr = Attr::default()
            .u32(self.0.as_raw_fd().cast_unsigned())
            .u32(ifindex)
            .u32(ATTACH_XDP)
            .u32(NATIVE);
        bpf(LINK_CREATE, &attr).map(Link)
    }

    /// Runs the program on `count` copies of a frame that are real packets of the kernel's, as if
    /// received, and does with them what it says.
    pub(super) fn run_live(&self, frame: &[u8], count: u32) -> Result<()> {
        let attr = Attr::default()
            .u32(self.0.as_raw_fd().cast_unsigned())
            .u32(0)
            .u32(frame.len() as u32)
            .u32(0)
            .u64(frame.as_ptr() as u64)
            .u64(0)
            .u32(count)
            .u32(0)
            .u64(0)
            .u64(0)
            .u64(0)
            .u32(LIVE_FRAMES)
            .u32(0)
            .u32(BATCH);
        call_bpf(TEST_RUN, &attr).map(drop)
    }

    fn load(code: &[u64]) -> Result<Self> {
        let attr = Attr::default()
            .u32(TYPE_XDP)
            .u32(code.len() as u32)
            .u64(code.as_ptr() as u64)
            .u64(c"GPL".as_ptr() as u64);
        bpf(PROG_LOAD, &attr).map(Self)
    }
}

/// The argument of the system call, field by field, as the kernel lays it out.
#[derive(Default)]
struct Attr {
    bytes: Vec<u8>,
}

impl Attr {
    fn u32(mut self, value: u32) -> Self {
        self.bytes.extend(value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.bytes.extend(value.to_ne_bytes());
        self
    }
}

/// An array of one value, these bytes.
fn array(bytes: &[u8]) -> Result<OwnedFd> {
    let attr = Attr::default().u32(TYPE_ARRAY).u32(4).u32(bytes.len() as u32).u32(1);
    let map = bpf(MAP_CREATE, &attr)?;
    let key = 0_u32;
    let attr = Attr::default()
        .u32(map.as_raw_fd().cast_unsigned())
        .u64(&raw const key as u64)
        .u64(bytes.as_ptr() as u64)
        .u64(0);
    call_bpf(MAP_UPDATE, &attr)?;
    Ok(map)
}

/// A system call that returns a descriptor.
fn bpf(command: c_long, attr: &Attr) -> Result<OwnedFd> {
    let fd = call_bpf(command, attr)?;
    // SAFETY: the commands that are given here return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call_bpf(command: c_long, attr: &Attr) -> Result<i32> {
    let (attr, length) = (attr.bytes.as_ptr(), attr.bytes.len());
    // SAFETY: the kernel copies `length` bytes, which `attr` holds; the pointers among them are to
    // buffers that the callers borrow until this returns.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attr, length) };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(done as i32) }
}

const fn insn(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let registers = (to | from << 4) as u64;
    let (offset, value) = (offset.cast_unsigned() as u64, value.cast_unsigned() as u64);
    code as u64 | registers << 8 | offset << 16 | value << 32
}

const fn mov(to: u8, value: i32) -> u64 {
    insn(MOV, to, 0, 0, value)
}

const fn call(helper: i32) -> u64 {
    insn(CALL, 0, 0, 0, helper)
}

/// Loads the address of the first value of a map: one instruction in two words.
fn map_value(to: u8, map: &OwnedFd) -> [u64; 2] {
    [insn(LOAD_WIDE, to, FROM_MAP_VALUE, 0, map.as_raw_fd()), insn(0, 0, 0, 0, 0)]
}

/// A value that fits into an instruction.
fn word(value: usize) -> i32 {
    i32::try_from(value).expect("small by construction")
}

// The numbers of linux/bpf.h.
const MAP_CREATE: c_long = 0;
const MAP_UPDATE: c_long = 2;
const PROG_LOAD: c_long = 5;
const TEST_RUN: c_long = 10;
const LINK_CREATE: c_long = 28;
const TYPE_ARRAY: u32 = 2;
const TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_DRV_MODE`
const NATIVE: u32 = 1 << 2;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames at a time: what a driver takes from its ring at once.
const BATCH: u32 = 64;
const XDP_DROP: i32 = 1;
const RANDOM: i32 = 7;
const REDIRECT: i32 = 23;
const EXIT: u64 = 0x95;
const MOV: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD: u8 = 0x07;
const ADD_REG: u8 = 0x0f;
const AND: u8 = 0x57;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const LOAD_WIDE: u8 = 0x18;
const FROM_MAP_VALUE: u8 = 2;
const JUMP_ABOVE: u8 = 0x2d;
const CALL: u8 = 0x85;
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R6: u8 = 6;
const R7: u8 = 7;
