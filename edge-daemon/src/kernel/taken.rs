//! An interface that has the new program while another may still refuse it, and the way back.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use super::{attach::Held, bpf};

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
    /// A link in another mode, which is gone.
    Mode,
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
            Former::Mode => Err(io::Error::other("its mode has changed")),
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
