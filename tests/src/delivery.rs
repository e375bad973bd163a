//! Frames over a real interface, and which of their senders reach a socket behind it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _,
        SockaddrStorage, recvfrom, sendto, setsockopt, socket, sockopt::RcvBufForce,
    },
};

use crate::{corpus::Corpus, lab::Lab};

/// A receiver with sockets for all that an IP stack delivers: every IP protocol by number, and
/// UDP with its checks. Priority tags, of VLAN 0, need no interface of their own: the stack takes
/// off as many as there are.
pub struct Delivery<'a> {
    lab: &'a Lab,
    sockets: Vec<Listener>,
    wire: OwnedFd,
    port: SockaddrStorage,
}

/// A socket that receives.
struct Listener {
    socket: OwnedFd,
    is_icmpv6: bool,
}

/// What came of some frames.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    /// Frames that the interface took.
    pub sent: u64,
    /// Frames that are longer than the interface takes.
    pub oversize: u64,
    /// Packets that sockets received, by their source; neighbour discovery is left out, which no
    /// ban stops.
    pub received: BTreeMap<IpAddr, u64>,
}

impl Delivered {
    /// Packets that sockets received from the sources that are like this.
    pub fn from(&self, is_meant: impl Fn(IpAddr) -> bool) -> u64 {
        self.received.iter().filter(|(source, _)| is_meant(**source)).map(|(_, n)| n).sum()
    }
}

impl<'a> Delivery<'a> {
    /// Makes the edge of a lab such a receiver, for frames of up to `mtu` bytes.
    ///
    /// # Errors
    /// Without root.
    pub fn new(lab: &'a Lab, mtu: u16) -> Result<Self> {
        for key in ["all", "default", "edge0"] {
            lab.edge.sysctl(&format!("ipv4/conf/{key}/rp_filter"), "0")?;
        }
        lab.edge.ip(&format!("link set edge0 address 02:00:00:00:00:01 mtu {mtu}"))?;
        lab.net.ip(&format!("link set edge mtu {mtu}"))?;
        let sockets = lab.edge.enter(listeners)?;
        let (wire, port) = lab.net.enter(wire)?;
        Ok(Self { lab, sockets, wire, port })
    }

    /// Sends these frames of a corpus and says whose packets arrived.
    ///
    /// # Errors
    /// If the kernel takes no frames.
    pub fn send(&self, corpus: Corpus, numbers: Range<u64>) -> Result<Delivered> {
        let mut delivered = Delivered::default();
        for number in numbers {
            let frame = corpus.frame(number);
            match sendto(self.wire.as_raw_fd(), &frame, &self.port, MsgFlags::empty()) {
                Ok(_) => delivered.sent += 1,
                Err(Errno::EMSGSIZE) => delivered.oversize += 1,
                Err(e) => return Err(e).context("send a frame"),
            }
            // No socket's buffer may overflow, or what it lost would go unseen.
            if number % 32 == 0 {
                self.receive(&mut delivered, PollTimeout::ZERO)?;
            }
        }
        self.receive(&mut delivered, PollTimeout::from(100_u8))?;
        ensure!(delivered.sent > 0, "no frame was sent from {}", self.lab.net.name());
        Ok(delivered)
    }

    /// Takes what the sockets hold, until nothing comes for so long.
    fn receive<'s>(&'s self, delivered: &mut Delivered, patience: PollTimeout) -> Result<()> {
        let watched = |l: &'s Listener| PollFd::new(l.socket.as_fd(), PollFlags::POLLIN);
        let mut ready: Vec<_> = self.sockets.iter().map(watched).collect();
        while poll(&mut ready, patience)? > 0 {
            for (socket, ready) in self.sockets.iter().zip(&ready) {
                if ready.any().unwrap_or_default() {
                    socket.drain(delivered)?;
                }
            }
        }
        Ok(())
    }
}

impl Listener {
    fn new(family: AddressFamily, protocol: i32) -> Result<Self> {
        // nix names a few protocols only.
        // SAFETY: the call takes three numbers and returns a new descriptor or -1.
        let fd =
            unsafe { libc::socket(family as i32, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol) };
        let fd = Errno::result(fd).with_context(|| format!("a raw socket for {protocol}"))?;
        // SAFETY: the descriptor is new, and nobody else owns it.
        let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        let is_icmpv6 = family == AddressFamily::Inet6 && protocol == libc::IPPROTO_ICMPV6;
        Ok(Self { socket, is_icmpv6 })
    }

    fn drain(&self, delivered: &mut Delivered) -> Result<()> {
        let mut start = [0];
        loop {
            match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut start) {
                Ok((_, from)) => {
                    let source = from.as_ref().and_then(address).context("no source")?;
                    if !(self.is_icmpv6 && (133..=137).contains(&start[0])) {
                        *delivered.received.entry(source).or_default() += 1;
                    }
                }
                Err(Errno::EAGAIN) => return Ok(()),
                // An error that the stack reports about what it sent back itself.
                Err(_) => {}
            }
        }
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()).to_canonical()))
}

/// Every raw socket there is, and UDP.
fn listeners() -> Result<Vec<Listener>> {
    let mut all = Vec::new();
    for protocol in 1..255 {
        all.push(Listener::new(AddressFamily::Inet, protocol)?);
        all.push(Listener::new(AddressFamily::Inet6, protocol)?);
    }
    let udp = UdpSocket::bind(("::", 53)).context("UDP port 53")?;
    udp.set_nonblocking(true)?;
    setsockopt(&udp.as_fd(), RcvBufForce, &BUFFER)?;
    all.push(Listener { socket: udp.into(), is_icmpv6: false });
    Ok(all)
}

/// A socket that sends frames as they are, and the address of the port towards the edge.
fn wire() -> Result<(OwnedFd, SockaddrStorage)> {
    let wire = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        // It sends only: protocol 0 receives nothing.
        None::<SockProtocol>,
    )?;
    let port = nix::ifaddrs::getifaddrs()?
        .filter(|i| i.interface_name == "edge")
        .filter_map(|i| i.address)
        .find(|a| a.as_link_addr().is_some_and(|l: &LinkAddr| l.ifindex() != 0));
    let port = port.context("no port called edge")?;
    ensure!(port.family() == Some(AddressFamily::Packet), "not a link");
    Ok((wire, port))
}

/// Bytes that a socket holds at most.
const BUFFER: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        differential::Guard,
        model::{standing, world},
    };
    use edge_common::Reason;

    fn is_refused(source: IpAddr) -> bool {
        matches!(standing(&world(), source), Some(Reason::DenyList | Reason::Ban))
    }

    #[test]
    fn no_refused_source_reaches_a_socket_and_others_do() -> Result<()> {
        let lab = Lab::new()?;
        let delivery = Delivery::new(&lab, 9000)?;
        let corpus = Corpus { seed: 0xde11 };
        let open = delivery.send(corpus, 0..FRAMES)?;
        let mut guard = lab.edge.enter(|| Guard::new("delivery"))?;
        let _upkeep = lab.edge.enter(|| guard.attach("edge0"))?;
        let guarded = delivery.send(corpus, 0..FRAMES)?;
        let received = [&open, &guarded].map(|d| (d.from(is_refused), d.from(|a| !is_refused(a))));
        println!("refused and other packets that arrived, unguarded and guarded: {received:?}");
        let [(refused, others), (refused_guarded, others_guarded)] = received;
        assert_eq!(refused_guarded, 0, "{guarded:?}");
        // The proof is worth what would have come through, and what still does.
        assert!(refused > FRAMES / 20 && others > FRAMES / 20, "{received:?}");
        assert!(others_guarded > others / 2, "{received:?}");
        Ok(())
    }

    const FRAMES: u64 = 20_000;
}
