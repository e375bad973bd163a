//! Connections that open and end in every way there is, to see whether their count stays exact.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sockopt::Linger,
};

use crate::{
    Edged, Lab,
    client::until,
    lab::{CLIENT, EDGE},
    packet::{self, SYN},
};

/// The port of the edge that the connections go to.
const PORT: u16 = 9_000;
/// Connections that stay open to the end.
const KEPT: usize = 25;
/// Handshakes that nobody completes; the address is nobody's.
const HALF_OPEN: (&str, u16) = ("198.51.100.99", 50);
const CLIENTS: u64 = 2;

/// How a connection ends; the client tells the server by the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum End {
    ClientFin,
    ClientRst,
    ServerFin,
    ServerRst,
    /// The client is gone without a word; the server finds out when it closes.
    Vanish,
}

const ENDS: [End; 5] =
    [End::ClientFin, End::ClientRst, End::ServerFin, End::ServerRst, End::Vanish];

/// Opens and ends so many connections and returns by how many the count was wrong in the end, and
/// how often a daemon had to correct it on the way, at its start or later. `disturb` is called after every tenth of
/// them, with the daemon in its hands.
///
/// # Errors
/// If the lab breaks: a connection is refused, the daemon cannot be asked.
pub fn churn(
    lab: &Lab,
    edged: &mut Edged<'_>,
    connections: u64,
    mut disturb: impl FnMut(u64, &mut Edged<'_>) -> Result<()>,
) -> Result<(i64, u64)> {
    for side in [&lab.edge, &lab.client] {
        // Remainders of former connections would use up the ports.
        side.sysctl("ipv4/tcp_max_tw_buckets", "100")?;
        side.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
    }
    let listener = lab.edge.enter(|| TcpListener::bind((EDGE, PORT)))?;
    let kept: Vec<_> = (0..KEPT)
        .map(|_| {
            let there = lab.client.enter(open)?;
            Ok((there, listener.accept()?.0))
        })
        .collect::<Result<_>>()?;
    for number in 0..HALF_OPEN.1 {
        lab.attacker.enter(|| half_open(40_000 + number))?;
    }
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut former = 0;
    listener.set_nonblocking(true)?;
    let open = |edged: &Edged<'_>, address: &str| -> Result<i64> {
        let answer = edged.ask(&format!("explain {address}"))?;
        answer["open_connections"].as_i64().context("a number")
    };
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| serve(&listener, &stop));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (done, lab) = (&done, &lab);
                let work = move || -> Result<()> {
                    for number in (client..connections).step_by(CLIENTS as usize) {
                        end_as(ENDS[number as usize % ENDS.len()])
                            .with_context(|| format!("connection {number}"))?;
                        done.fetch_add(1, Relaxed);
                    }
                    Ok(())
                };
                scope.spawn(move || lab.client.enter(work))
            })
            .collect();
        let mut result = Ok(());
        for tenth in 1..10 {
            while done.load(Relaxed) < connections * tenth / 10
                && !clients.iter().any(std::thread::ScopedJoinHandle::is_finished)
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            result = result.and_then(|()| {
                let (pid, so_far) = (edged.pid(), corrected(edged)?);
                disturb(tenth, edged)?;
                // The next process begins its counter anew, with what it corrects at its start.
                former += if edged.pid() == pid { 0 } else { so_far };
                Ok(())
            });
        }
        for client in clients {
            result = result.and(client.join().expect("no panic"));
        }
        // The last of them may take a moment to end, and the server has to end its part.
        let no_drift = || Ok(open(edged, CLIENT)? == KEPT as i64);
        let _ = until("no drift", Duration::from_secs(5), no_drift);
        stop.store(true, Relaxed);
        result
    })?;
    ensure!(open(edged, HALF_OPEN.0)? == 0, "half-open connections were counted");
    let drift = open(edged, CLIENT)? - KEPT as i64;
    drop(kept);
    until("all closed", Duration::from_secs(5), || Ok(open(edged, CLIENT)? == drift))?;
    let uncounted = edged.metrics()?.sum("edged_open_connections_uncounted_total", &[]);
    ensure!(uncounted == 0.0, "{uncounted} connections found no room to be counted");
    Ok((drift, former + corrected(edged)?))
}

/// Connections that censuses corrected since the daemon's process began.
fn corrected(edged: &Edged<'_>) -> Result<u64> {
    Ok(edged.metrics()?.sum("edged_open_connections_corrected_total", &[]) as u64)
}

fn open() -> Result<TcpStream> {
    let edge: IpAddr = EDGE.parse()?;
    let stream = TcpStream::connect_timeout(&SocketAddr::new(edge, PORT), Duration::from_secs(3))?;
    Ok(stream)
}

/// The client's part of a connection.
fn end_as(end: End) -> Result<()> {
    let mut stream = open()?;
    stream.write_all(&[end as u8])?;
    match end {
        End::ClientFin => {}
        End::ClientRst => reset_on_close(&stream)?,
        End::Vanish => forget(&stream)?,
        End::ServerFin | End::ServerRst => _ = stream.read(&mut [0]),
    }
    Ok(())
}

/// The server's part of each connection, until it is told to stop.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        };
        let mut end = [0];
        // A client that resets takes its byte with it.
        if stream.set_nonblocking(false).is_err() || stream.read_exact(&mut end).is_err() {
            continue;
        }
        if end[0] == End::ServerRst as u8 {
            let _ = reset_on_close(&stream);
        } else if end[0] == End::ClientFin as u8 {
            let _ = stream.read(&mut [0]);
        }
    }
}

fn reset_on_close(stream: &TcpStream) -> Result<()> {
    Ok(socket::setsockopt(stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?)
}

/// Makes the client's end go without telling anybody.
fn forget(stream: &TcpStream) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` outlives the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    ensure!(result == 0, "TCP_REPAIR: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Begins a handshake in the name of an address that answers nobody.
fn half_open(port: u16) -> Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd =
        socket::socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?;
    // From the IP header on; the kernel fills in its checksum.
    let mut frame = packet::v4(HALF_OPEN.0).tcp(SYN).build().split_off(14);
    let edge: Ipv4Addr = EDGE.parse()?;
    frame[16..20].copy_from_slice(&edge.octets());
    frame[20..22].copy_from_slice(&port.to_be_bytes());
    frame[22..24].copy_from_slice(&PORT.to_be_bytes());
    let sum = checksum(&[&frame[12..20], &[0, 6, 0, 20], &frame[20..]].concat());
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(edge, 0));
    socket::sendto(socket.as_raw_fd(), &frame, &to, MsgFlags::empty())?;
    Ok(())
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
