//! The kernel's links of XDP programs, by the system call itself.
//!
//! aya falls back to netlink where the kernel refuses a link, which would leave a program that goes
//! with nobody and that anyone may replace; and it cannot detach a link at once: a link whose last
//! holder is a removed pin lives on until the kernel gets to it.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::Mode;

/// A program on an interface, for as long as a descriptor or a pin holds it.
pub(super) struct Link(OwnedFd);

impl Link {
    /// Attaches a program to an interface that none is attached to.
    pub(super) fn create(program: BorrowedFd<'_>, ifindex: u32, mode: Mode) -> io::Result<Self> {
        let flags = match mode {
            Mode::Native => XDP_FLAGS_DRV_MODE,
            Mode::Generic => XDP_FLAGS_SKB_MODE,
        };
        call(LINK_CREATE, [number(program.as_raw_fd()), ifindex, ATTACH_XDP, flags]).map(own)
    }

    /// Opens the link that a pin holds.
    pub(super) fn open(pin: &Path) -> io::Result<Self> {
        with_path(pin, |[low, high]| call(OBJ_GET, [low, high, 0, 0])).map(own)
    }

    /// Lets a pin hold the link, so that it outlives this process.
    pub(super) fn pin(&self, pin: &Path) -> io::Result<()> {
        with_path(pin, |[low, high]| call(OBJ_PIN, [low, high, self.number(), 0])).map(drop)
    }

    /// Puts another program in the place of the attached one, between two packets; `ENOLINK` if
    /// the interface is gone or the link was detached.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        call(LINK_UPDATE, [self.number(), number(program.as_raw_fd()), 0, 0]).map(drop)
    }

    /// Takes the program off its interface now, whoever still holds the link.
    pub(super) fn detach(&self) -> io::Result<()> {
        call(LINK_DETACH, [self.number(), 0, 0, 0]).map(drop)
    }

    fn number(&self) -> u32 {
        number(self.0.as_raw_fd())
    }
}

/// Takes a program off its interface and removes the pin that held it there. The kernel lets go of
/// a removed pin's link only later; the filter is to be off when this returns.
pub(super) fn release(pin: &Path) -> io::Result<()> {
    // A pin of something else, or one that cannot be opened, is just removed.
    if let Ok(link) = Link::open(pin) {
        let _ = link.detach();
    }
    fs::remove_file(pin)
}

/// A descriptor as the call takes it: open ones are never negative.
const fn number(descriptor: RawFd) -> u32 {
    descriptor.cast_unsigned()
}

/// The address of a path, as the halves of the call's first word.
fn with_path(path: &Path, call: impl FnOnce([u32; 2]) -> io::Result<RawFd>) -> io::Result<RawFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [a, b, c, d, e, f, g, h] = (path.as_ptr().expose_provenance() as u64).to_ne_bytes();
    call([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
}

/// Calls `bpf(2)`. All commands here are told in four words; the kernel takes the rest as zero.
fn call(command: libc::c_long, words: [u32; 4]) -> io::Result<RawFd> {
    #[repr(C, align(8))]
    struct Attributes([u32; 4]);
    let attributes = Attributes(words);
    // SAFETY: the kernel reads as many bytes of the attributes as it is told, and the path that
    // they may point to is alive in `with_path`. No command here writes to this process.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of::<Attributes>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn own(descriptor: RawFd) -> Link {
    // SAFETY: the kernel has just opened it for this call, close-on-exec, and nobody else has it.
    Link(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;
const ATTACH_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
