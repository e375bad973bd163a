//! An interface that has the new program while another may still refuse it, and the way back.

use std::{
    fs, io,
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
    /// Puts back what the interface had before. Where that cannot be, the new `program` goes on
    /// filtering.
    pub(super) fn give_back(self, program: BorrowedFd<'_>) {
        let Self { held: (attached, link), pin, former } = self;
        let done = match former {
            Former::Nothing => {
                drop(link);
                bpf::release(&pin)
            }
            Former::Program(former) => former.and_then(|former| link.update(former.as_fd())),
            Former::Mode(former, mode, place) => former.and_then(|former| {
                drop(link);
                bpf::release(&pin)?;
                let ways = [(former.as_fd(), mode, &*place), (program, attached.mode, &*pin)];
                put_back(&attached.interface, attached.ifindex, ways)
            }),
        };
        let interface = attached.interface;
        match done {
            Ok(()) => tracing::info!(%interface, "as it was before"),
            Err(error) => {
                tracing::warn!(%interface, %error, "not filtered by the former program");
            }
        }
    }
}

/// A program, its mode and its pin.
pub(super) type Way<'a> = (BorrowedFd<'a>, Mode, &'a Path);

/// Attaches where nothing is attached what was there before, or else what is better than none; why it is not what
/// was there before.
pub(super) fn put_back(interface: &str, ifindex: u32, ways: [Way<'_>; 2]) -> io::Result<()> {
    let [former, other] = ways.map(|(program, mode, pin)| {
        move || {
            // It leads nowhere, if it is there.
            let _ = fs::remove_file(pin);
            Link::create(program, ifindex, mode)?.pin(pin)
        }
    });
    former().inspect_err(|_| match other() {
        Ok(()) => tracing::warn!(%interface, "filtered by the new program"),
        Err(error) => {
            tracing::error!(%interface, %error, "the filter is off, and not to be restored");
        }
    })
}
