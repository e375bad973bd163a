//! Attaches the programs by pinned links, so that the filter outlives the daemon and its
//! successor takes over between two packets.
//!
//! A pin's name says what it holds, since the kernel does not tell by the link alone:
//! `xdp-INDEX-MODE-NAME` for an interface, with `:` for the dots that a bpffs forbids. The name is
//! for people: an interface may be renamed while its filter runs.

use std::{
    fmt, fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
};

use aya::programs::{RawTracePoint, Xdp, links::FdLink};
use nix::net::if_::if_nametoindex;

use super::{
    KernelError,
    link::{self, Link},
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
        expect_ethernet(interface)?;
        let place = Place { interface, ifindex, folder };
        attached.push(place.adopt_or_attach(xdp, mode)?);
    }
    let kept: Vec<_> = attached.iter().map(|a| pin_name(&a.interface, a.ifindex, a.mode)).collect();
    for pin in entries(folder)? {
        let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("xdp-") && !kept.contains(&name) {
            link::release(&pin).map_err(path_error("remove", &pin))?;
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
    FdLink::from(link)
        .pin(&new)
        .map_err(|source| KernelError::Pin { path: new.clone(), source })?;
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
        for (pin, mode) in self.pins()? {
            let adoption = Link::open(&pin).and_then(|link| {
                link.update(program(xdp)?)?;
                Ok(link)
            });
            match adoption {
                // Another interface had this index, and is gone: the link leads nowhere.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                    fs::remove_file(&pin).map_err(path_error("remove", &pin))?;
                }
                // Whatever it is, the program of before goes on filtering.
                Err(error) => return Err(path_error("adopt the filter", &pin)(error)),
                Ok(_) if wanted.takes(mode) => {
                    let named = self.pin(mode);
                    fs::rename(&pin, &named).map_err(path_error("rename", &pin))?;
                    return Ok(self.attached(mode, true));
                }
                Ok(link) => return self.change_mode(xdp, &link, &pin, mode, wanted),
            }
        }
        let mode = self.attach(xdp, wanted)?;
        Ok(self.attached(mode, false))
    }

    /// Attaches in another mode. An interface has one at a time, so the former goes first; it is
    /// back if the new one is refused.
    fn change_mode(
        &self,
        xdp: &mut Xdp,
        link: &Link,
        pin: &Path,
        former: Mode,
        wanted: AttachMode,
    ) -> Result<Attached, KernelError> {
        link.detach().map_err(path_error("detach", pin))?;
        fs::remove_file(pin).map_err(path_error("remove", pin))?;
        let error = match self.attach(xdp, wanted) {
            Ok(mode) => return Ok(self.attached(mode, false)),
            Err(error) => error,
        };
        if let Err(lost) = self.attach_in(xdp, former) {
            let interface = self.interface;
            tracing::error!(%interface, error = %lost, "the filter is off, and not to be restored");
        }
        Err(error)
    }

    fn attach(&self, xdp: &mut Xdp, wanted: AttachMode) -> Result<Mode, KernelError> {
        match wanted {
            AttachMode::Native => self.attach_in(xdp, Mode::Native),
            AttachMode::Generic => self.attach_in(xdp, Mode::Generic),
            AttachMode::Auto => match self.attach_in(xdp, Mode::Native) {
                Err(KernelError::Attach { .. }) => self.attach_in(xdp, Mode::Generic),
                other => other,
            },
        }
    }

    fn attach_in(&self, xdp: &mut Xdp, mode: Mode) -> Result<Mode, KernelError> {
        let interface = || self.interface.to_owned();
        let link = program(xdp).and_then(|program| Link::create(program, self.ifindex, mode));
        let link = link.map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => KernelError::Occupied { interface: interface() },
            _ => KernelError::Attach { interface: interface(), mode, source },
        })?;
        let pin = self.pin(mode);
        link.pin(&pin).map_err(path_error("pin the filter at", &pin))?;
        Ok(mode)
    }

    /// The pins of this index, by whatever name its interface had then.
    fn pins(&self) -> Result<Vec<(PathBuf, Mode)>, KernelError> {
        let pins = entries(self.folder)?.into_iter().filter_map(|pin| {
            let (ifindex, mode) = parse_pin(pin.file_name()?.to_str()?)?;
            (ifindex == self.ifindex).then_some((pin, mode))
        });
        Ok(pins.collect())
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

/// The program's descriptor; it was loaded before.
fn program(xdp: &Xdp) -> io::Result<BorrowedFd<'_>> {
    xdp.fd().map(AsFd::as_fd).map_err(io::Error::other)
}

fn pin_name(interface: &str, ifindex: u32, mode: Mode) -> String {
    format!("xdp-{ifindex}-{mode}-{}", interface.replace('.', ":"))
}

/// The index and the mode in a pin's name; `None` for what is no pin of an interface.
fn parse_pin(name: &str) -> Option<(u32, Mode)> {
    let (ifindex, rest) = name.strip_prefix("xdp-")?.split_once('-')?;
    let (mode, _interface) = rest.split_once('-')?;
    let mode = [Mode::Native, Mode::Generic].into_iter().find(|m| m.to_string() == mode)?;
    Some((ifindex.parse().ok()?, mode))
}

/// Refuses an interface whose frames do not begin with an Ethernet header: the program would take
/// whatever else they begin with for one, and pass nearly everything.
fn expect_ethernet(interface: &str) -> Result<(), KernelError> {
    let found = link_type(interface)
        .map_err(|source| KernelError::LinkType { interface: interface.to_owned(), source })?;
    match found {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(()),
        _ => Err(KernelError::NotEthernet { interface: interface.to_owned(), found }),
    }
}

/// The interface's `ARPHRD_` number. Asked of the kernel by a socket, since `/sys/class/net` shows
/// the network namespace that it was mounted in.
fn link_type(interface: &str) -> io::Result<u16> {
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the structure is of integers and a pointer, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request outlives the call, and its name ends with a zero.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_interface_and_mode_without_dots() {
        assert_eq!(pin_name("eth0.100", 7, Mode::Native), "xdp-7-native-eth0:100");
    }

    #[test]
    fn pins_are_found_by_index_and_mode() {
        assert_eq!(parse_pin("xdp-7-native-eth0:100"), Some((7, Mode::Native)));
        assert_eq!(parse_pin("xdp-12-generic-a-b"), Some((12, Mode::Generic)));
        for other in ["sockets", "xdp-7", "xdp-7-native", "xdp-x-native-eth0", "xdp-7-hw-eth0"] {
            assert_eq!(parse_pin(other), None, "{other}");
        }
    }
}
