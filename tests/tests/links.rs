//! Links and sockets of the kernel plane, on real interfaces in namespaces of the test's own.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::{
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_common::{Rate, Reason, Source, map::FOREVER};
use edge_daemon::kernel::{AttachMode, Kernel, KernelError, Limits, LoadSettings, Mode, detach};
use nix::sched::{CloneFlags, setns};

const UNLIMITED: Limits = Limits {
    packet_rate: Rate::OFF,
    connection_rate: Rate::OFF,
    event_rate: Rate::OFF,
    open_max: 0,
    ipv6_bits: 64,
};

const EDGE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// Two namespaces, joined by a veth pair: `guarded` in the edge's, `peer` in the client's.
struct Pair {
    name: String,
    pin_dir: PathBuf,
}

impl Pair {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("edged-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let pair = Self { pin_dir: format!("/sys/fs/bpf/{name}").into(), name };
        for side in ["edge", "client"] {
            ip(&format!("netns add {}-{side}", pair.name));
            ip(&format!("-n {}-{side} link set lo up", pair.name));
        }
        pair.wire();
        pair
    }

    /// Makes the veth pair.
    fn wire(&self) {
        let name = &self.name;
        ip(&format!(
            "-n {name}-edge link add guarded type veth peer name peer netns {name}-client"
        ));
        for (side, interface, address) in [("edge", "guarded", EDGE), ("client", "peer", CLIENT)] {
            ip(&format!("-n {name}-{side} addr add {address}/24 dev {interface}"));
            ip(&format!("-n {name}-{side} link set {interface} up"));
        }
    }

    /// Runs on a thread that has entered one of the namespaces.
    fn within<T: Send>(&self, side: &str, run: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}-{side}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                run()
            });
            entered.join().unwrap()
        })
    }

    fn load(&self, mode: AttachMode, limits: Limits) -> Result<Kernel, KernelError> {
        let settings = LoadSettings { pin_dir: self.pin_dir.clone(), debug: false, limits };
        self.within("edge", || attached(&settings, "guarded", mode))
    }

    fn listen(&self) -> TcpListener {
        self.within("edge", || TcpListener::bind((EDGE, 0)).unwrap())
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.within("client", || TcpStream::connect_timeout(&to, Duration::from_millis(300)))
    }

    /// Whether the edge answers at all: nobody listens on the port, so an answer is a refusal.
    fn answers(&self) -> bool {
        let refused = self.connect((EDGE, 9).into()).expect_err("nobody listens");
        refused.kind() == std::io::ErrorKind::ConnectionRefused
    }
}

fn attached(
    settings: &LoadSettings,
    interface: &str,
    mode: AttachMode,
) -> Result<Kernel, KernelError> {
    let mut kernel = Kernel::load(settings)?;
    kernel.attach(&[interface.to_owned()], mode)?;
    Ok(kernel)
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = detach(&self.pin_dir);
        for side in ["edge", "client"] {
            ip(&format!("netns del {}-{side}", self.name));
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn client() -> Source {
    Source::v4(CLIENT.octets())
}

/// Waits until the client has that many open connections.
fn expect_open(kernel: &Kernel, expected: u32) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let open = kernel.tables.open(client()).unwrap();
        if open == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{open} open, {expected} expected");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Closes a socket with a RST.
fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
    drop(stream);
}

#[test]
fn open_connections_are_counted_exactly_and_bounded() {
    let pair = Pair::new();
    let limits = Limits { open_max: 4, ..UNLIMITED };
    let mut kernel = pair.load(AttachMode::Native, limits).unwrap();
    let listener = pair.listen();
    let to = listener.local_addr().unwrap();

    let mut ends: Vec<_> =
        (0..4).map(|_| (pair.connect(to).unwrap(), listener.accept().unwrap().0)).collect();
    expect_open(&kernel, 4);
    assert!(pair.connect(to).is_err(), "a fifth connection");
    let dropped = kernel.tables.counts().unwrap()[Reason::OpenConnections as usize];
    assert!(dropped.packets >= 1);
    assert_eq!(kernel.tables.explain(CLIENT.into()).unwrap().open, 4);

    // A successor goes on counting where its predecessor was, and counts nothing twice.
    kernel = pair.load(AttachMode::Native, limits).unwrap();
    expect_open(&kernel, 4);

    // The client's FIN, the client's RST, the server's RST, the server's FIN.
    let (there, mut here) = ends.pop().unwrap();
    drop(there);
    assert_eq!(here.read(&mut [0]).unwrap(), 0);
    drop(here);
    expect_open(&kernel, 3);
    reset(ends.pop().unwrap().0);
    expect_open(&kernel, 2);
    let (there, here) = ends.pop().unwrap();
    reset(here);
    drop(there);
    expect_open(&kernel, 1);
    let (mut there, here) = ends.pop().unwrap();
    drop(here);
    assert_eq!(there.read(&mut [0]).unwrap(), 0);
    drop(there);
    expect_open(&kernel, 0);

    // Connections that the edge itself opens, and those of other namespaces, do not count.
    let elsewhere = pair.within("client", || TcpListener::bind((CLIENT, 0)).unwrap());
    let there = elsewhere.local_addr().unwrap();
    let _outgoing = pair.within("edge", || TcpStream::connect(there).unwrap());
    let _accepted = elsewhere.accept().unwrap();
    expect_open(&kernel, 0);
    assert!(pair.connect(to).is_ok());
}

#[test]
fn the_filter_outlives_its_daemon_and_is_taken_over() {
    let pair = Pair::new();
    let mut kernel = pair.load(AttachMode::Auto, UNLIMITED).unwrap();
    let [attached] = kernel.attached() else { panic!("{:?}", kernel.attached()) };
    assert_eq!((attached.mode, attached.adopted), (Mode::Native, false));
    assert!(pair.answers());
    kernel.tables.deny.put(&"10.99.0.2/32".parse().unwrap(), FOREVER).unwrap();
    assert!(!pair.answers());
    drop(kernel);
    assert!(!pair.answers(), "the filter went with its daemon");

    let kernel = pair.load(AttachMode::Auto, UNLIMITED).unwrap();
    assert!(kernel.attached()[0].adopted);
    assert!(!pair.answers());

    // The interface goes and comes back: the pinned link leads nowhere.
    ip(&format!("-n {}-edge link del guarded", pair.name));
    pair.wire();
    assert!(pair.answers());
    let kernel_again = pair.load(AttachMode::Generic, UNLIMITED).unwrap();
    assert_eq!(kernel_again.attached()[0].mode, Mode::Generic);
    assert!(!kernel_again.attached()[0].adopted);
    assert!(!pair.answers());
    assert!(kernel.tables.counts().unwrap()[Reason::DenyList as usize].packets > 0);

    // Another mode is wanted: attached anew.
    let kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Native);
    assert!(!pair.answers());

    let removed = detach(&pair.pin_dir).unwrap();
    assert!(removed.iter().any(|pin| pin.contains("xdp-")), "{removed:?}");
    drop((kernel, kernel_again));
    assert!(pair.answers());
    assert!(!pair.pin_dir.exists());
}

#[test]
fn an_interface_that_another_program_holds_is_left_alone() {
    let pair = Pair::new();
    let _holder = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    let pin_dir = format!("{}-other", pair.pin_dir.display()).into();
    let settings = LoadSettings { pin_dir, debug: false, limits: UNLIMITED };
    let attach = |interface| {
        let attached = pair.within("edge", || attached(&settings, interface, AttachMode::Auto));
        attached.err().expect("refused")
    };
    let error = attach("guarded");
    assert!(
        matches!(&error, KernelError::Occupied { interface } if interface == "guarded"),
        "{error}"
    );
    let error = attach("nowhere0");
    assert!(error.to_string().contains("nowhere0"), "{error}");
    detach(&settings.pin_dir).unwrap();
}
