//! Attaches the programs by pinned links, so that the filter outlives the daemon and its
//! successor takes over between two packets.
//!
//! A pin's name says what it holds, since the kernel does not tell by the link alone:
//! `xdp-INDEX-MODE-NAME` for an interface, with `:` for the dots that a bpffs forbids.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, RawTracePoint, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use nix::net::if_::if_nametoindex;

use super::{
    KernelError,
    pins::{entries, path_error},
};

/// How the configuration wants the program attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, or not at all.
    Native,
    /// In the network stack, which any driver can and which costs more.
    Generic,
    /// In the driver if it can, else in the network stack.
    Auto,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// An interface that the program guards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub interface: String,
    /// Its index in the network namespace.
    pub ifindex: u32,
    /// How the program is attached to it.
    pub mode: Mode,
    /// Whether a running filter was taken over.
    pub adopted: bool,
}

/// Attaches to every interface, and lets go of those that a former configuration named.
pub(super) fn interfaces(
    xdp: &mut Xdp,
    interfaces: &[String],
    mode: AttachMode,
    folder: &Path,
) -> Result<Vec<Attached>, KernelError> {
    let mut attached = Vec::new();
    for interface in interfaces {
        let ifindex = if_nametoindex(interface.as_str())
            .map_err(|source| KernelError::NoInterface { interface: interface.clone(), source })?;
        let place = Place { interface, ifindex, folder };
        attached.push(place.adopt_or_attach(xdp, mode)?);
    }
    let kept: Vec<_> = attached.iter().map(|a| pin_name(&a.interface, a.ifindex, a.mode)).collect();
    for pin in entries(folder)? {
        let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("xdp-") && !kept.contains(&name) {
            fs::remove_file(&pin).map_err(path_error("remove", &pin))?;
        }
    }
    Ok(attached)
}

/// Attaches to the tracepoint that tells of sockets. The new program is there before the old one
/// goes; between them they count each socket once.
pub(super) fn sockets(tracepoint: &mut RawTracePoint, folder: &Path) -> Result<(), KernelError> {
    let id = tracepoint.attach("inet_sock_set_state").map_err(KernelError::Tracepoint)?;
    let link = tracepoint.take_link(id).map_err(KernelError::Tracepoint)?;
    let (new, pin) = (folder.join("sockets-new"), folder.join("sockets"));
    if new.exists() {
        fs::remove_file(&new).map_err(path_error("remove", &new))?;
    }
    pin_link(FdLink::from(link), &new)?;
    fs::rename(&new, &pin).map_err(path_error("replace", &pin))
}

/// Where the program is to be attached.
struct Place<'a> {
    interface: &'a str,
    ifindex: u32,
    folder: &'a Path,
}

impl Place<'_> {
    fn adopt_or_attach(&self, xdp: &mut Xdp, wanted: AttachMode) -> Result<Attached, KernelError> {
        for mode in [Mode::Native, Mode::Generic] {
            let pin = self.pin(mode);
            if !pin.exists() {
                continue;
            }
            if wanted.takes(mode) && adopt(xdp, &pin) {
                return Ok(self.attached(mode, true));
            }
            // Its interface is gone, or it is attached in a way that is no longer wanted.
            fs::remove_file(&pin).map_err(path_error("remove", &pin))?;
        }
        let mode = match wanted {
            AttachMode::Native => self.attach(xdp, Mode::Native)?,
            AttachMode::Generic => self.attach(xdp, Mode::Generic)?,
            AttachMode::Auto => match self.attach(xdp, Mode::Native) {
                Err(KernelError::Attach { .. }) => self.attach(xdp, Mode::Generic)?,
                other => other?,
            },
        };
        Ok(self.attached(mode, false))
    }

    fn attach(&self, xdp: &mut Xdp, mode: Mode) -> Result<Mode, KernelError> {
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let link = xdp
            .attach_to_if_index(self.ifindex, flags)
            .and_then(|id| xdp.take_link(id))
            .map_err(|source| self.refusal(mode, source))?;
        // aya attaches by netlink where the kernel has no links; such a program would go with the
        // daemon, and anyone could replace it. Dropping the link takes it off again.
        let link = FdLink::try_from(link).map_err(|source| KernelError::NoLink {
            interface: self.interface.to_owned(),
            source,
        })?;
        pin_link(link, &self.pin(mode))?;
        Ok(mode)
    }

    fn refusal(&self, mode: Mode, source: ProgramError) -> KernelError {
        let interface = self.interface.to_owned();
        match os_error(&source) {
            Some(libc::EBUSY | libc::EEXIST) => KernelError::Occupied { interface },
            _ => KernelError::Attach { interface, mode, source },
        }
    }

    fn pin(&self, mode: Mode) -> PathBuf {
        self.folder.join(pin_name(self.interface, self.ifindex, mode))
    }

    fn attached(&self, mode: Mode, adopted: bool) -> Attached {
        Attached { interface: self.interface.to_owned(), ifindex: self.ifindex, mode, adopted }
    }
}

impl AttachMode {
    fn takes(self, mode: Mode) -> bool {
        match self {
            Self::Native => mode == Mode::Native,
            Self::Generic => mode == Mode::Generic,
            Self::Auto => true,
        }
    }
}

/// Puts the new program in the place of the one that the pinned link holds, atomically; `false`
/// if the link leads nowhere.
fn adopt(xdp: &mut Xdp, pin: &Path) -> bool {
    let link = PinnedLink::from_pin(pin).and_then(|link| XdpLink::try_from(FdLink::from(link)));
    let adopted = link.map(|link| xdp.attach_to_link(link).and_then(|id| xdp.take_link(id)));
    // The pin holds the link; this descriptor of it may be closed.
    matches!(adopted, Ok(Ok(_)))
}

fn pin_link(link: FdLink, pin: &Path) -> Result<(), KernelError> {
    match link.pin(pin) {
        Ok(_) => Ok(()),
        Err(source) => Err(KernelError::Pin { path: pin.to_owned(), source }),
    }
}

fn pin_name(interface: &str, ifindex: u32, mode: Mode) -> String {
    format!("xdp-{ifindex}-{mode}-{}", interface.replace('.', ":"))
}

/// The error number at the root of aya's error.
fn os_error(error: &ProgramError) -> Option<i32> {
    let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = error {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            return io.raw_os_error();
        }
        error = current.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_interface_and_mode_without_dots() {
        assert_eq!(pin_name("eth0.100", 7, Mode::Native), "xdp-7-native-eth0:100");
    }
}
