//! Questions about an interface that the kernel answers by its name.

use std::{
    io,
    os::{fd::AsRawFd as _, unix::net::UnixDatagram},
    ptr,
};

/// Whether an interface is switched on.
pub(super) fn is_up(interface: &str) -> io::Result<bool> {
    let answer = ask(interface, libc::SIOCGIFFLAGS, ptr::null_mut())?;
    // SAFETY: the call has filled in this member of the union.
    let flags = unsafe { answer.ifr_ifru.ifru_flags };
    Ok(i32::from(flags) & libc::IFF_UP != 0)
}

/// Whether an interface takes VLAN tags off before anybody sees the frame.
pub(super) fn strips_tags(interface: &str) -> io::Result<bool> {
    // `struct ethtool_value`: what is asked, and the answer.
    let mut value = [ETHTOOL_GFLAGS, 0];
    ask(interface, SIOCETHTOOL, value.as_mut_ptr().cast())?;
    Ok(value[1] & ETH_FLAG_RXVLAN != 0)
}

/// Asks the kernel about an interface, with whatever the question is about. By a socket, since `/sys/class/net` shows the network
/// namespace that it was mounted in.
pub(super) fn ask(
    interface: &str,
    question: libc::Ioctl,
    about: *mut libc::c_char,
) -> io::Result<libc::ifreq> {
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the structure is of integers and a pointer, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = about;
    // SAFETY: the request and what it is about outlive the call, and its name ends with a zero.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), question, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
}

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
