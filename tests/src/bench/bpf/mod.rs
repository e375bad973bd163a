//! Tiny kernel programs, assembled here: those that send, and those that the product is held to.
//!
//! They need no compiler, no object and no library, so that a bench of the product's own program
//! shares nothing with it.

mod code;
mod programs;

use std::{
    ffi::{CString, c_long},
    io::{Error, Result},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use code::Code;

pub(super) use programs::{Action, Lpm, Sources};

/// A loaded program: XDP, or of an interface's traffic control.
pub(super) struct Program(OwnedFd);

/// A table of the kernel's.
pub(super) struct Map(OwnedFd);

/// What kind of table.
#[derive(Clone, Copy)]
enum Kind {
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    LpmTrie = 11,
}

/// A program on an interface; it comes off when this is dropped.
pub(super) struct Link(#[expect(dead_code, reason = "held open for its effect")] OwnedFd);

impl Map {
    /// A map of a kind; keys and values are so many bytes long.
    fn new(kind: Kind, key: u32, value: u32, entries: u32) -> Result<Self> {
        // A trie allocates as it grows, and must say so.
        let flags = if matches!(kind, Kind::LpmTrie) { NO_PREALLOC } else { 0 };
        let attr = Attr::default().u32(kind as u32).u32(key).u32(value).u32(entries).u32(flags);
        bpf(MAP_CREATE, &attr).map(Self)
    }

    /// An array of one value, these bytes.
    fn array(bytes: &[u8]) -> Result<Self> {
        let array = Self::new(Kind::Array, 4, bytes.len() as u32, 1)?;
        array.put(&[0; 4], bytes)?;
        Ok(array)
    }

    /// A map that is pinned.
    pub(super) fn pinned(path: &Path) -> Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        bpf(OBJ_GET, &Attr::default().u64(path.as_ptr() as u64)).map(Self)
    }

    /// Puts a value under a key.
    pub(super) fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let attr = Attr::default()
            .u32(self.0.as_raw_fd().cast_unsigned())
            .u64(key.as_ptr() as u64)
            .u64(value.as_ptr() as u64)
            .u64(0);
        call_bpf(MAP_UPDATE, &attr).map(drop)
    }

    /// What all CPUs have counted at an index of an array of theirs.
    fn sum(&self, index: u32) -> Result<u64> {
        let mut each = vec![0_u64; CPUS_MAX];
        let attr = Attr::default()
            .u32(self.0.as_raw_fd().cast_unsigned())
            .u64(&raw const index as u64)
            .u64(each.as_mut_ptr() as u64)
            .u64(0);
        call_bpf(MAP_LOOKUP, &attr)?;
        Ok(each.iter().sum())
    }
}

impl Program {
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

    /// Puts a program of traffic control on what comes in by an interface, or on what goes out.
    pub(super) fn attach_tcx(&self, ifindex: u32, goes_out: bool) -> Result<Link> {
        let attr = Attr::default()
            .u32(self.0.as_raw_fd().cast_unsigned())
            .u32(ifindex)
            .u32(if goes_out { ATTACH_TCX_EGRESS } else { ATTACH_TCX_INGRESS })
            .u32(0);
        bpf(LINK_CREATE, &attr).map(Link)
    }

    fn load(code: Code<'_>) -> Result<Self> {
        Self::load_as(TYPE_XDP, code)
    }

    fn load_as(kind: u32, mut code: Code<'_>) -> Result<Self> {
        let code = code.finish();
        let attr = Attr::default()
            .u32(kind)
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

// The numbers of linux/bpf.h.
const MAP_CREATE: c_long = 0;
const MAP_LOOKUP: c_long = 1;
const MAP_UPDATE: c_long = 2;
const PROG_LOAD: c_long = 5;
const TEST_RUN: c_long = 10;
const LINK_CREATE: c_long = 28;
const OBJ_GET: c_long = 7;
const TYPE_TRAFFIC_CONTROL: u32 = 3;
const TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const ATTACH_TCX_INGRESS: u32 = 46;
const ATTACH_TCX_EGRESS: u32 = 47;
/// `XDP_FLAGS_DRV_MODE`
const NATIVE: u32 = 1 << 2;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames at a time: what a driver takes from its ring at once.
const BATCH: u32 = 64;
const NO_PREALLOC: u32 = 1;
/// More than any kernel is built for: it writes a word for each that there may be.
const CPUS_MAX: usize = 8192;
