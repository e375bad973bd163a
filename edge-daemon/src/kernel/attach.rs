//! Attaches the programs by pinned links, so that the filter outlives the daemon and its
//! successor takes over between two packets.
//!
//! A pin's name says what it holds, since the kernel does not tell by the link alone:
//! `xdp-INDEX-MODE-NAME` for an interface, with `:` for the dots that a bpffs forbids. The name is
//! for people: an interface may be renamed while its filter runs.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Instant,
};

use aya::programs::{BtfTracePoint, Xdp, links::FdLink};
use nix::net::if_::if_nametoindex;

pub(super) use super::asked::is_up;
use super::{
    KernelError,
    asked::ask,
    bpf::{self, Link},
    error::error_chain,
    holder::holder,
    pins::{Folders, path_error},
    taken::{Former, Taken, put_back},
};

/// An interface that the configuration wants guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub interface: String,
    /// How.
    pub mode: AttachMode,
}

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

/// An interface's link, beside what there is to tell of it.
pub(super) type Held = (Attached, Link);

/// Attaches to every interface; which pins hold the filter on others, that a former configuration named.
/// What can be refused beforehand is, what may still be goes first, and a refusal takes back what was done. Links that
/// another version pinned have a second pin then: until this daemon is in office, the former may go on.
pub(super) fn interfaces(
    xdp: &Xdp,
    wanted: &[Wanted],
    folders: &Folders,
) -> Result<(Vec<Held>, Vec<PathBuf>), KernelError> {
    let mut places: Vec<_> =
        wanted.iter().map(|wanted| Place::find(wanted, folders)).collect::<Result<_, _>>()?;
    places.sort_by_cached_key(|place| match place.pins().unwrap_or_default().as_slice() {
        [] => 0,
        pins if pins.iter().any(|(_, mode)| !place.wanted.takes(*mode)) => 1,
        _ => 2,
    });
    let mut taken: Vec<Taken> = Vec::new();
    for place in places {
        match place.adopt_or_attach(program(xdp)?) {
            Ok(new) => taken.push(new),
            Err(error) => {
                let program = program(xdp)?;
                taken.into_iter().rev().for_each(|taken| taken.give_back(program));
                return Err(error);
            }
        }
    }
    for Taken { held: (attached, link), pin, .. } in &taken {
        let named = folders.own.join(attached.pin_name());
        if !pin.starts_with(&folders.own) {
            link.pin(&named).map_err(path_error("pin the filter at", &named))?;
        } else if *pin != named {
            fs::rename(pin, &named).map_err(path_error("rename", pin))?;
        }
    }
    let mut unwanted = Vec::new();
    for pin in folders.pins()? {
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        let of = parse_pin(&name).map(|(ifindex, _)| ifindex);
        let guarded = taken.iter().map(|taken| &taken.held.0).find(|a| Some(a.ifindex) == of);
        match guarded {
            _ if !name.starts_with("xdp-") => {}
            None => unwanted.push(pin),
            // The link goes on by its other pin.
            Some(held) if pin.starts_with(&folders.own) && name != held.pin_name() => {
                fs::remove_file(&pin).map_err(path_error("remove", &pin))?;
            }
            Some(_) => {}
        }
    }
    let mut held: Vec<_> = taken.into_iter().map(|taken| taken.held).collect();
    // As they were asked for.
    held.sort_by_key(|(held, _)| wanted.iter().position(|w| w.interface == held.interface));
    Ok((held, unwanted))
}

/// Whether all interfaces are there, and may be guarded: beside a daemon `in_office` in no other mode, as
/// that one would have lost its link if it went on.
pub(super) fn find(
    wanted: &[Wanted],
    folders: &Folders,
    in_office: bool,
) -> Result<(), KernelError> {
    for wanted in wanted {
        let place = Place::find(wanted, folders)?;
        let leads = |pin: &Path| matches!(Link::open(pin).and_then(|l| l.ifindex()), Ok(Some(_)));
        let others = place.pins()?.into_iter().filter(|(_, mode)| !wanted.mode.takes(*mode));
        if let Some((_, mode)) = others.into_iter().find(|(pin, _)| in_office && leads(pin)) {
            return Err(KernelError::OtherMode { interface: wanted.interface.clone(), mode });
        }
    }
    Ok(())
}

/// Attaches to an interface that came back after the one of its name had gone, or that has its name
/// while it goes on under another; needs no capability.
pub(super) fn again(
    program: BorrowedFd<'_>,
    wanted: &Wanted,
    gone: Option<&Attached>,
    folders: &Folders,
) -> Result<Held, KernelError> {
    let place = Place::find(wanted, folders)?;
    let (mode, link) = place.create(program)?;
    // Its pin leads nowhere; of an interface with the same index it has the same name.
    if let Some(gone) = gone {
        let pin = folders.own.join(gone.pin_name());
        fs::remove_file(&pin).map_err(path_error("remove", &pin))?;
    }
    Ok(place.pinned(mode, link)?.0)
}

/// Takes the filter off all interfaces but these: off what another daemon guarded that did not come into office.
pub(super) fn release_others(guarded: &[u32], folders: &Folders) -> Result<(), KernelError> {
    for pin in folders.pins()? {
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        if parse_pin(&name).is_some_and(|(ifindex, _)| !guarded.contains(&ifindex)) {
            bpf::release(&pin).map_err(path_error("remove", &pin))?;
        }
    }
    Ok(())
}

/// Attaches to the tracepoint that tells of sockets. The new program is there before the old one
/// goes; between them they count each socket once.
pub(super) fn sockets(
    tracepoint: &mut BtfTracePoint,
    name: &str,
    folder: &Path,
) -> Result<(), KernelError> {
    let id = tracepoint.attach().map_err(KernelError::Tracepoint)?;
    let link = tracepoint.take_link(id).map_err(KernelError::Tracepoint)?;
    let (new, pin) = (folder.join(format!("{name}-new")), folder.join(name));
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
    wanted: AttachMode,
    folders: &'a Folders,
}

impl<'a> Place<'a> {
    /// An interface that can be guarded.
    fn find(wanted: &'a Wanted, folders: &'a Folders) -> Result<Self, KernelError> {
        let Wanted { interface, mode } = wanted;
        let no_interface =
            |source| KernelError::NoInterface { interface: interface.to_owned(), source };
        let ifindex = if_nametoindex(interface.as_str()).map_err(no_interface)?;
        expect_ethernet(interface)?;
        Ok(Self { interface, ifindex, wanted: *mode, folders })
    }

    /// Takes over the link that is there, or makes one.
    fn adopt_or_attach(&self, program: BorrowedFd<'_>) -> Result<Taken, KernelError> {
        for (pin, mode) in self.pins()? {
            let adoption = Link::open(&pin).and_then(|link| {
                let former = link.program();
                link.update(program)?;
                Ok((link, former))
            });
            match adoption {
                // Another interface had this index, and is gone: the link leads nowhere.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                    fs::remove_file(&pin).map_err(path_error("remove", &pin))?;
                }
                // Whatever it is, the program of before goes on filtering.
                Err(error) => return Err(path_error("adopt the filter", &pin)(error)),
                Ok((link, former)) if self.wanted.takes(mode) => {
                    let (held, former) =
                        ((self.attached(mode, true), link), Former::Program(former));
                    return Ok(Taken { held, pin, former });
                }
                Ok((link, former)) => {
                    return self.change_mode(program, &link, (former, mode, pin));
                }
            }
        }
        let (held, pin) = self.attach(program)?;
        Ok(Taken { held, pin, former: Former::Nothing })
    }

    /// Attaches in another mode. The kernel has one mode at a time on an interface, so the former
    /// goes first, and what comes in between is not filtered; it is back if the new one is refused.
    fn change_mode(
        &self,
        program: BorrowedFd<'_>,
        link: &Link,
        (former, mode, pin): (io::Result<OwnedFd>, Mode, PathBuf),
    ) -> Result<Taken, KernelError> {
        let since = Instant::now();
        link.detach().map_err(path_error("detach", &pin))?;
        let attached = self.create(program);
        let (interface, unfiltered) = (self.interface, since.elapsed());
        tracing::warn!(%interface, ?unfiltered, "unfiltered while its mode changed");
        match attached.and_then(|(new, link)| self.pinned(new, link)) {
            // The former pin, which leads nowhere, goes with all others of the interface.
            Ok((held, new)) => {
                Ok(Taken { held, pin: new, former: Former::Mode(former, mode, pin) })
            }
            Err(error) => {
                let former = former.as_ref().map_or(program, AsFd::as_fd);
                let ways = [former, program].map(|program| (program, mode, &*pin));
                if let Err(error) = put_back(interface, self.ifindex, ways) {
                    tracing::warn!(%interface, %error, "not filtered by the former program");
                }
                Err(error)
            }
        }
    }

    fn attach(&self, program: BorrowedFd<'_>) -> Result<(Held, PathBuf), KernelError> {
        let (mode, link) = self.create(program)?;
        self.pinned(mode, link)
    }

    fn pinned(&self, mode: Mode, link: Link) -> Result<(Held, PathBuf), KernelError> {
        let attached = self.attached(mode, false);
        let pin = self.folders.own.join(attached.pin_name());
        link.pin(&pin).map_err(path_error("pin the filter at", &pin))?;
        Ok(((attached, link), pin))
    }

    fn create(&self, program: BorrowedFd<'_>) -> Result<(Mode, Link), KernelError> {
        match self.wanted {
            AttachMode::Native => self.create_in(program, Mode::Native),
            AttachMode::Generic => self.create_in(program, Mode::Generic),
            AttachMode::Auto => match self.create_in(program, Mode::Native) {
                Err(refused @ KernelError::Attach { .. }) => {
                    let generic = self.create_in(program, Mode::Generic)?;
                    let (interface, error) = (self.interface, error_chain(&refused));
                    tracing::warn!(%interface, error, "guarded in the network stack, not in the driver");
                    Ok(generic)
                }
                other => other,
            },
        }
    }

    fn create_in(&self, program: BorrowedFd<'_>, mode: Mode) -> Result<(Mode, Link), KernelError> {
        let interface = || self.interface.to_owned();
        let link = Link::create(program, self.ifindex, mode);
        let link = link.map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) if let Some((holder, off)) = holder(self.ifindex) => {
                KernelError::Occupied { interface: interface(), holder, off }
            }
            _ => KernelError::Attach { interface: interface(), mode, source },
        })?;
        Ok((mode, link))
    }

    /// The pins of this index, by whatever name its interface had then, of whatever version.
    fn pins(&self) -> Result<Vec<(PathBuf, Mode)>, KernelError> {
        let pins = self.folders.pins()?.into_iter().filter_map(|pin| {
            let (ifindex, mode) = parse_pin(pin.file_name()?.to_str()?)?;
            (ifindex == self.ifindex).then_some((pin, mode))
        });
        Ok(pins.collect())
    }

    fn attached(&self, mode: Mode, adopted: bool) -> Attached {
        Attached { interface: self.interface.to_owned(), ifindex: self.ifindex, mode, adopted }
    }
}

impl Attached {
    /// The name of the pin that holds the link.
    pub(super) fn pin_name(&self) -> String {
        let Self { interface, ifindex, mode, .. } = self;
        format!("xdp-{ifindex}-{mode}-{}", interface.replace('.', ":"))
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
fn program(xdp: &Xdp) -> Result<BorrowedFd<'_>, KernelError> {
    let program = xdp.fd().map(AsFd::as_fd);
    program.map_err(|source| KernelError::Program { name: "edged", source })
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
    let found = ask(interface, libc::SIOCGIFHWADDR, std::ptr::null_mut())
        // SAFETY: the call has filled in this member of the union.
        .map(|answer| unsafe { answer.ifr_ifru.ifru_hwaddr.sa_family })
        .map_err(|source| KernelError::LinkType { interface: interface.to_owned(), source })?;
    match found {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(()),
        _ => Err(KernelError::NotEthernet { interface: interface.to_owned(), found }),
    }
}

pub(super) const RTM_GETLINK: u16 = 18;
/// Bytes of an `ifinfomsg`.
pub(super) const IFINFO: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_interface_and_mode_without_dots() {
        let interface = "eth0.100".to_owned();
        let attached = Attached { interface, ifindex: 7, mode: Mode::Native, adopted: false };
        assert_eq!(attached.pin_name(), "xdp-7-native-eth0:100");
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
