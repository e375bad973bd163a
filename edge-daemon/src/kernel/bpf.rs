//! What aya has no verb for, by `bpf(2)` itself: links, runs of a program, tables of any shape.
//!
//! aya falls back to netlink where the kernel refuses a link, which would leave a program that goes
//! with nobody and that anyone may replace; and it cannot detach a link at once: a link whose last
//! holder is a removed pin lives on until the kernel gets to it.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::Mode;

/// A program on an interface, for as long as a descriptor or a pin holds it.
pub(super) struct Link(OwnedFd);

impl Link {
    /// Attaches a program to an interface that none is attached to. Who holds a loaded program
    /// needs no capability for it.
    pub(super) fn create(program: BorrowedFd<'_>, ifindex: u32, mode: Mode) -> io::Result<Self> {
        let flags = match mode {
            Mode::Native => XDP_FLAGS_DRV_MODE,
            Mode::Generic => XDP_FLAGS_SKB_MODE,
        };
        let words = &mut [number(program), ifindex, ATTACH_XDP, flags];
        call(LINK_CREATE, words).map(own).map(Self)
    }

    /// Opens the link that a pin holds.
    pub(super) fn open(pin: &Path) -> io::Result<Self> {
        open(pin).map(Self)
    }

    /// Lets a pin hold the link, so that it outlives this process.
    pub(super) fn pin(&self, pin: &Path) -> io::Result<()> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let [low, high] = halves(path.as_ptr());
        call(OBJ_PIN, &mut [low, high, number(self.0.as_fd())]).map(drop)
    }

    /// Puts another program in the place of the attached one, between two packets; `ENOLINK` if
    /// the interface is gone or the link was detached.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        call(LINK_UPDATE, &mut [number(self.0.as_fd()), number(program), 0, 0]).map(drop)
    }

    /// The program that runs. The kernel gives it to nobody but `CAP_SYS_ADMIN`.
    pub(super) fn program(&self) -> io::Result<OwnedFd> {
        let info = describe::<LINK_INFO_WORDS>(self.0.as_fd())?;
        call(PROG_GET_FD_BY_ID, &mut [info[LINK_INFO_PROGRAM], 0, 0]).map(own)
    }

    /// Takes the program off its interface now, whoever still holds the link.
    pub(super) fn detach(&self) -> io::Result<()> {
        call(LINK_DETACH, &mut [number(self.0.as_fd())]).map(drop)
    }

    /// The interface's index; `None` if it is gone or the link was detached.
    pub(super) fn ifindex(&self) -> io::Result<Option<u32>> {
        let info = describe::<LINK_INFO_WORDS>(self.0.as_fd())?;
        Ok(Some(info[LINK_INFO_IFINDEX]).filter(|ifindex| *ifindex != 0))
    }
}

/// Takes a program off its interface and removes the pin that held it there. The kernel lets go of
/// a removed pin's link only later; the filter is to be off when this returns.
pub(super) fn release(pin: &Path) -> io::Result<()> {
    // A pin of something else, or one that cannot be opened, is just removed.
    let link = Link::open(pin);
    // Before the link is cut, or its daemon would take that for another hand's doing, and mend it.
    fs::remove_file(pin)?;
    if let Ok(link) = link {
        let _ = link.detach();
    }
    Ok(())
}

/// Runs a raw tracepoint program on arguments made up for it; what it returns. Who holds a loaded
/// program needs no capability for it.
pub(super) fn run(program: BorrowedFd<'_>, arguments: [u64; 3]) -> io::Result<u32> {
    let mut words = [0; RUN_WORDS];
    words[0] = number(program);
    words[RUN_BYTES] = size_of_val(&arguments) as u32;
    [words[RUN_ARGUMENTS], words[RUN_ARGUMENTS + 1]] = halves(arguments.as_ptr());
    call(PROG_TEST_RUN, &mut words)?;
    Ok(words[RUN_RESULT])
}

/// The first two words of the first value of a pinned array, whatever else is in it.
pub(super) fn first_words(pin: &Path, value_bytes: u32) -> io::Result<[u64; 2]> {
    let map = open(pin)?;
    let key = 0_u32;
    let mut value = vec![0_u64; value_bytes.div_ceil(8).max(2) as usize];
    let ([key_low, key_high], [low, high]) = (halves(&raw const key), halves(value.as_mut_ptr()));
    let words = &mut [number(map.as_fd()), 0, key_low, key_high, low, high, 0, 0];
    call(MAP_LOOKUP_ELEM, words)?;
    Ok([value[0], value[1]])
}

/// The id of a program, and what it is called; the name is empty if the caller may not know it.
pub(super) fn program_name(id: u32) -> String {
    let found = || -> io::Result<String> {
        let program = own(call(PROG_GET_FD_BY_ID, &mut [id, 0, 0])?);
        let info = describe::<PROGRAM_INFO_WORDS>(program.as_fd())?;
        let name = info[PROGRAM_INFO_NAME..].iter().flat_map(|word| word.to_ne_bytes());
        let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
        Ok(String::from_utf8_lossy(&name).into_owned())
    };
    found().unwrap_or_default()
}

/// The start of what the kernel tells of an object.
fn describe<const WORDS: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; WORDS]> {
    let mut info = [0_u32; WORDS];
    let [low, high] = halves(info.as_mut_ptr());
    let words = &mut [number(object), size_of_val(&info) as u32, low, high];
    call(OBJ_GET_INFO_BY_FD, words)?;
    Ok(info)
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let [low, high] = halves(path.as_ptr());
    call(OBJ_GET, &mut [low, high, 0, 0]).map(own)
}

/// A descriptor as the call takes it: open ones are never negative.
fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// An address, as two of the call's words.
fn halves<T>(address: *const T) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = (address.expose_provenance() as u64).to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// Calls `bpf(2)`; the kernel takes the words that are not given as zero.
fn call<const WORDS: usize>(command: libc::c_long, words: &mut [u32; WORDS]) -> io::Result<RawFd> {
    #[repr(C, align(8))]
    struct Attributes<const WORDS: usize>([u32; WORDS]);
    let mut attributes = Attributes(*words);
    let bytes = size_of_val(words);
    // SAFETY: the kernel reads, and writes, as many bytes of the attributes as it is told. What
    // they point to lives in the callers, all in this file, until the call returns: a path or
    // arguments that are read, a buffer of the told length that is written.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, bytes) };
    *words = attributes.0;
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened it for this call, close-on-exec, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;
const ATTACH_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

// Where things lie in the call's structures, in words.
/// `bpf_attr.test` up to `flags`
const RUN_WORDS: usize = 18;
const RUN_RESULT: usize = 1;
const RUN_BYTES: usize = 10;
const RUN_ARGUMENTS: usize = 12;
/// `bpf_link_info` up to `xdp.ifindex`
const LINK_INFO_WORDS: usize = 5;
const LINK_INFO_PROGRAM: usize = 2;
const LINK_INFO_IFINDEX: usize = 4;
/// `bpf_prog_info` up to `name`
const PROGRAM_INFO_WORDS: usize = 20;
const PROGRAM_INFO_NAME: usize = 16;
