//! Names of upstreams and of other people's servers. The resolver may take half a minute for one, and does not stop when nobody waits
//! any more: a name is looked up once at a time, on a thread that nothing else waits for.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    sync::{Mutex, PoisonError},
    thread,
};

use tokio::{net::TcpStream, sync::watch};

/// Connects to a host, by its address or its name. Nothing here ends by itself: whoever asks has a deadline.
///
/// # Errors
/// If it has no address, or none that answers.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    if let Ok(address) = host.parse() {
        return TcpStream::connect(SocketAddr::new(address, port)).await;
    }
    TcpStream::connect(&*addresses(host, port).await?).await
}

/// Where a name leads to. As with [`connect`], whoever asks has a deadline.
///
/// # Errors
/// If nobody knows it, or too many others are being looked up.
pub(crate) async fn addresses(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut found = NAMES.addresses(name).await?;
    found.iter_mut().for_each(|address| address.set_port(port));
    Ok(found)
}

static NAMES: Lookups = Lookups::new(|name| Ok(ways((name, 0).to_socket_addrs()?, has_way)));

/// Of a name's addresses those to which this host has a way, or all of them if it has none to any: names have addresses
/// of both families, and many a host only one.
fn ways(found: impl Iterator<Item = SocketAddr>, has_way: fn(IpAddr) -> bool) -> Vec<SocketAddr> {
    let (mut reached, others): (Vec<_>, Vec<_>) = found.partition(|address| has_way(address.ip()));
    if reached.is_empty() {
        reached = others;
    }
    reached
}

/// Whether the kernel knows a way to an address. To connect over UDP sends nothing.
fn has_way(address: IpAddr) -> bool {
    let own: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((own, 0)).and_then(|socket| socket.connect((address, DISCARD))).is_ok()
}

/// A port like any other: to 0 there is none.
const DISCARD: u16 = 9;

/// What is being looked up.
struct Lookups {
    resolve: fn(&str) -> io::Result<Vec<SocketAddr>>,
    going_on: Mutex<BTreeMap<String, watch::Receiver<Option<Found>>>>,
}

/// What a name leads to, or why that is not known.
type Found = Result<Vec<SocketAddr>, String>;

impl Lookups {
    const fn new(resolve: fn(&str) -> io::Result<Vec<SocketAddr>>) -> Self {
        Self { resolve, going_on: Mutex::new(BTreeMap::new()) }
    }

    /// The addresses of a name: as who looks it up already is told, or by a look of one's own.
    async fn addresses(&'static self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let mut answer = self.begin(name)?;
        let found = answer.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        found.unwrap_or_else(|| Ok(Vec::new())).map_err(io::Error::other)
    }

    fn begin(&'static self, name: &str) -> io::Result<watch::Receiver<Option<Found>>> {
        let mut going_on = self.going_on.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = going_on.get(name) {
            return Ok(answer.clone());
        }
        if going_on.len() >= LOOKUPS_MAX {
            return Err(io::Error::other("too many other names are being looked up"));
        }
        let ((told, answer), own) = (watch::channel(None), name.to_owned());
        thread::Builder::new().name("lookup".to_owned()).spawn(move || {
            let found = (self.resolve)(&own).map_err(|error| error.to_string());
            self.going_on.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
            told.send_replace(Some(found));
        })?;
        going_on.insert(name.to_owned(), answer.clone());
        Ok(answer)
    }
}

/// Names that are looked up at once: each has a thread as long as the resolver takes, which may be for ever.
const LOOKUPS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use super::*;

    static LOOKS: AtomicUsize = AtomicUsize::new(0);
    static HANGS: AtomicBool = AtomicBool::new(true);
    static NAMES: Lookups = Lookups::new(|name| {
        if name == "none.test" {
            return Err(io::Error::other("no such name"));
        }
        LOOKS.fetch_add(usize::from(name == "slow.test"), Relaxed);
        while name.starts_with("slow") && HANGS.load(Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(vec![([192, 0, 2, 1], 0).into()])
    });

    #[tokio::test]
    async fn a_name_that_hangs_is_looked_up_once_and_holds_up_no_other() {
        let wait = Duration::from_millis(20);
        for _ in 0..9 {
            let slow = tokio::time::timeout(wait, NAMES.addresses("slow.test"));
            assert!(slow.await.is_err(), "given up by who asked");
        }
        assert_eq!(NAMES.addresses("fast.test").await.unwrap().len(), 1);
        assert_eq!(NAMES.addresses("none.test").await.unwrap_err().to_string(), "no such name");
        let mut waits = NAMES.begin("slow.test").unwrap();
        for n in 1..LOOKUPS_MAX {
            drop(NAMES.begin(&format!("slow{n}.test")).unwrap());
        }
        assert!(NAMES.begin("one more").unwrap_err().to_string().contains("too many"));
        HANGS.store(false, Relaxed);
        let found = waits.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(found.unwrap().unwrap().len(), 1);
        assert_eq!(LOOKS.load(Relaxed), 1);
    }

    #[test]
    fn addresses_to_which_there_is_no_way_are_left_out_unless_there_is_none_to_any() {
        let found: Vec<SocketAddr> = ["192.0.2.1:0", "[2001:db8::1]:0", "[2001:db8::2]:0"]
            .map(|a| a.parse().unwrap())
            .into();
        let ways = |has_way| ways(found.iter().copied(), has_way);
        assert_eq!(ways(|address| address.is_ipv4()), found[..1]);
        assert_eq!(ways(|_| true), found);
        assert_eq!(ways(|_| false), found);
        assert!(has_way(Ipv4Addr::LOCALHOST.into()));
        // The kernel's own: no interface has it, and none is named.
        assert!(!has_way("fe80::1".parse().unwrap()));
    }

    #[tokio::test]
    async fn an_address_is_no_name() {
        let listener = std::net::TcpListener::bind(("::1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(connect("::1", port).await.is_ok());
        assert!(connect("localhost", 1).await.is_err());
    }
}
