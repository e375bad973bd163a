//! Floods of TCP segments with invented sources, sent as frames.

use std::{
    ffi::c_int,
    io::{Error, Result as IoResult},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;

use crate::{
    lab::{EDGE, EDGE6, Lab},
    netns::{Netns, run},
};

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// TCP's flags.
    pub flags: u8,
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Segments a second, about.
    pub rate: u64,
}

/// A flood from the lab's attacker to the edge's port 443; it ends when this is dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<IoResult<()>>>,
}

impl Flood {
    /// Begins to send.
    ///
    /// # Errors
    /// Without root.
    pub fn start(lab: &Lab, shape: Shape) -> Result<Self> {
        let edge = mac(&lab.edge, "edge0")?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (socket, from) = lab
            .attacker
            .enter(|| Ok::<_, anyhow::Error>((wire("eth0")?, mac(&lab.attacker, "eth0")?)))?;
        let (stopping, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = std::thread::spawn(move || {
            let mut drawn = 0x5eed_u64;
            while !stopping.load(Relaxed) {
                for _ in 0..(shape.rate / BATCHES).max(1) {
                    drawn = drawn.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    send(&socket, &segment(&edge, &from, shape, drawn >> 16))?;
                    counted.fetch_add(1, Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1000 / BATCHES));
            }
            Ok(())
        });
        Ok(Self { stop, sent, sender: Some(sender) })
    }

    /// Segments sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

/// A counter of the kernel's TCP in a namespace: `TcpExt` of `/proc/net/netstat`.
///
/// # Errors
/// If there is none of that name.
pub fn tcp_counter(ns: &Netns, name: &str) -> Result<u64> {
    let text = ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, counts) = (lines.next().context("names")?, lines.next().context("counts")?);
    let mut both = names.split_whitespace().zip(counts.split_whitespace());
    let (_, count) = both.find(|(n, _)| *n == name).with_context(|| name.to_owned())?;
    Ok(count.parse()?)
}

/// One segment to the edge's port 443 from a source on its link that nobody has.
fn segment(edge: &[u8; 6], from: &[u8; 6], shape: Shape, drawn: u64) -> Vec<u8> {
    let [a, b, c, d, e, f, g, h] = drawn.to_be_bytes();
    let mut tcp = vec![f | 4, g, 1, 0xbb, b, c, d, e, 0, 0, 0, 0, 0x60, shape.flags, 0xfa, 0xf0];
    tcp.extend([0, 0, 0, 0, 2, 4, 5, 180]);
    if shape.flags & 0x10 != 0 {
        tcp[8..12].copy_from_slice(&[h, g, f, e]);
    }
    let mut frame = [&edge[..], &from[..]].concat();
    let mut addresses = Vec::new();
    if shape.is_v6 {
        let target: std::net::Ipv6Addr = EDGE6.parse().expect("an address");
        addresses.extend([0x20, 1, 0xd, 0xb8, 0, 0xff, a, b, c, d, e, f, g, h, 1, 1]);
        addresses.extend(target.octets());
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, tcp.len() as u8, 6, 64]);
    } else {
        let target: std::net::Ipv4Addr = EDGE.parse().expect("an address");
        addresses.extend([198, 51, 100, 128 | h]);
        addresses.extend(target.octets());
        let mut ip = vec![0x45, 0, 0, 20 + tcp.len() as u8, 0, 0, 0x40, 0, 64, 6, 0, 0];
        ip.extend(&addresses);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(&ip[..12]);
    }
    frame.extend(&addresses);
    let pseudo = [&addresses[..], &[0, 6, 0, tcp.len() as u8], &tcp[..]].concat();
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame.extend(tcp);
    frame
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

fn mac(ns: &Netns, interface: &str) -> Result<[u8; 6]> {
    let shown = run(ns.command("ip").args(["-o", "link", "show", interface]))?;
    let text = shown.split("link/ether ").nth(1).context("no MAC address")?;
    let bytes: Vec<u8> = text
        .split_whitespace()
        .next()
        .into_iter()
        .flat_map(|text| text.split(':'))
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    ensure!(bytes.len() == 6, "not a MAC address: {text}");
    Ok([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]])
}

/// A socket that sends frames on an interface of the calling thread's namespace.
fn wire(interface: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(interface)?;
    // SAFETY: the call takes three numbers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(fd >= 0, "no packet socket: {}", Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: zeros are valid for the plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address outlives the call, which is told its size.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    ensure!(bound == 0, "cannot bind: {}", Error::last_os_error());
    Ok(socket)
}

fn send(socket: &OwnedFd, frame: &[u8]) -> IoResult<()> {
    // SAFETY: the pointer and the length are the frame's.
    let sent =
        unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0 as c_int) };
    // A full queue loses a frame, as any wire may.
    let lost = || Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
    if sent >= 0 || lost() { Ok(()) } else { Err(Error::last_os_error()) }
}

const BATCHES: u64 = 100;
