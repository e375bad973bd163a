//! Listening sockets: one for each worker on each address, so that the kernel spreads
//! connections over the workers and none of them waits for another. Sockets that a service manager or
//! a former daemon gives are used as they are, with whoever waits in them.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Listeners that somebody else has made.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
}

impl Inherited {
    /// These.
    #[must_use]
    pub const fn new(tcp: Vec<TcpListener>, unix: Vec<UnixListener>) -> Self {
        Self { tcp, unix }
    }

    /// Those that the service manager gives (`LISTEN_FDS`).
    ///
    /// # Errors
    /// If one of them is no stream's listener.
    pub fn of_environment() -> io::Result<Self> {
        let (mut given, mut all) = (ListenFd::from_env(), Self::default());
        for index in 0..given.len() {
            // It is looked at, and stays where it is if it is none.
            if let Ok(Some(listener)) = given.take_tcp_listener(index) {
                all.tcp.push(listener);
            } else if let Some(listener) = given.take_unix_listener(index)? {
                all.unix.push(listener);
            }
        }
        Ok(all)
    }

    /// Takes those on an address.
    ///
    /// # Errors
    /// If one takes more than the address says.
    pub fn take(&mut self, address: SocketAddr) -> io::Result<Vec<TcpListener>> {
        let taken: Vec<_> =
            self.tcp.extract_if(.., |l| l.local_addr().is_ok_and(|own| own == address)).collect();
        for listener in &taken {
            if address.is_ipv6() && !SockRef::from(listener).only_v6()? {
                return Err(io::Error::other(
                    "the socket that is given takes IPv4 as well: it needs BindIPv6Only=ipv6-only",
                ));
            }
            listener.set_nonblocking(true)?;
        }
        Ok(taken)
    }

    /// Takes the one at a path.
    pub fn take_unix(&mut self, path: &Path) -> Option<UnixListener> {
        let is_it =
            |l: &mut UnixListener| l.local_addr().is_ok_and(|own| own.as_pathname() == Some(path));
        let taken = self.unix.extract_if(.., is_it).next()?;
        taken.set_nonblocking(true).is_ok().then_some(taken)
    }

    /// Where those listen that nobody took.
    pub fn left(&self) -> Vec<String> {
        let tcp = self.tcp.iter().map(|l| l.local_addr().map(|own| own.to_string()));
        let unix = self.unix.iter().map(|l| l.local_addr().map(|own| format!("{own:?}")));
        tcp.chain(unix).map(|place| place.unwrap_or_else(|error| error.to_string())).collect()
    }
}

/// Sockets on one address for `count` workers: those that are given, else new ones.
///
/// # Errors
/// If the address cannot be listened on.
pub fn bind(
    address: SocketAddr,
    count: usize,
    given: Vec<TcpListener>,
) -> io::Result<Vec<Vec<TcpListener>>> {
    if given.is_empty() {
        return (0..count).map(|_| Ok(vec![bind_one(address)?])).collect();
    }
    share(given, count)
}

/// Deals sockets out. A connection waits in one of them, whether a worker looks or not: none may be
/// left over. Workers without one share another's: more must not be opened, because who waits in
/// one that is closed again is turned away.
fn share(given: Vec<TcpListener>, count: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut dealt: Vec<Vec<TcpListener>> = (0..count).map(|_| Vec::new()).collect();
    for worker in given.len()..count {
        dealt[worker].push(given[worker % given.len()].try_clone()?);
    }
    for (n, listener) in given.into_iter().enumerate() {
        dealt[n % count].push(listener);
    }
    Ok(dealt)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // IPv4 has listeners of its own, so that an address has one spelling.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(count: usize) -> Vec<TcpListener> {
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect()
    }

    #[test]
    fn every_worker_has_a_socket_and_every_socket_a_worker() {
        for (given, workers) in [(1, 4), (2, 3), (4, 4), (5, 2), (3, 1)] {
            let dealt = share(listeners(given), workers).unwrap();
            assert_eq!(dealt.len(), workers);
            assert!(dealt.iter().all(|own| !own.is_empty()), "{given} for {workers}");
            let mut places: Vec<_> =
                dealt.iter().flatten().map(|l| l.local_addr().unwrap()).collect();
            assert_eq!(places.len(), given.max(workers));
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), given);
        }
    }

    #[test]
    fn sockets_are_found_by_their_address() {
        let mut given = Inherited::new(listeners(2), Vec::new());
        let address = given.tcp[1].local_addr().unwrap();
        assert_eq!(given.take("127.0.0.1:1".parse().unwrap()).unwrap().len(), 0);
        assert_eq!(given.take(address).unwrap().len(), 1);
        assert_eq!(given.left().len(), 1);
        let both = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        both.set_only_v6(false).unwrap();
        // One on a single address takes no IPv4, whatever it is told.
        both.bind(&"[::]:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        both.listen(1).unwrap();
        let both: TcpListener = both.into();
        let address = both.local_addr().unwrap();
        assert!(Inherited::new(vec![both], Vec::new()).take(address).is_err());
    }
}
