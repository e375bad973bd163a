//! An interface that has the new program while another may still refuse it, and the way back.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    Mode,
    attach::Held,
    bpf::{self, Link},
};

/// An interface that has the new program, while another may still refuse it.
pub(super) struct Taken {
    pub(super) held: Held,
    /// The pin that holds the link so far.
    pub(super) pin: PathBuf,
    pub(super) former: Former,
}

/// What an interface had before.
pub(super) enum Former {
    Nothing,
    /// The same link, with this program, if the kernel gave it.
    Program(io::Result<OwnedFd>),
    /// A link in another mode, which is gone: with this program, at this pin.
    Mode(io::Result<OwnedFd>, Mode, PathBuf),
}

impl Taken {
    /// Puts back what the interface had before. Where that cannot be, the new program goes on
    /// filtering.
    pub(super) fn give_back(self) {
        let Self { held: (attached, link), pin, former } = self;
        let done = match former {
            Former::Nothing => {
                drop(link);
                bpf::release(&pin)
            }
            Former::Program(program) => program.and_then(|program| link.update(program.as_fd())),
            Former::Mode(program, mode, former) => program.and_then(|program| {
                drop(link);
                bpf::release(&pin)?;
                put_back(program.as_fd(), attached.ifindex, mode, &former)
            }),
        };
        let interface = attached.interface;
        match done {
            Ok(()) => tracing::info!(%interface, "as it was before"),
            Err(error) => {
                tracing::warn!(%interface, %error, "filtered by the new program, not by the former");
            }
        }
    }
}

/// Attaches a program where no other is, as it was attached before.
pub(super) fn put_back(
    program: BorrowedFd<'_>,
    ifindex: u32,
    mode: Mode,
    pin: &Path,
) -> io::Result<()> {
    Link::create(program, ifindex, mode)?.pin(pin)
}
