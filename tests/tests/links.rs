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
use edge_daemon::kernel::{
    AttachMode, InForce, Kernel, KernelError, ListCapacity, LoadSettings, Mode, Policy, detach,
};
use edge_policy::list::Class;
use nix::sched::{CloneFlags, setns};

const UNLIMITED: Policy = Policy::UNLIMITED;

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

    fn load(&self, mode: AttachMode, policy: Policy) -> Result<Kernel, KernelError> {
        let settings = LoadSettings {
            pin_dir: self.pin_dir.clone(),
            debug: false,
            policy,
            lists: ListCapacity::of(1_000, []),
        };
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

fn deny(kernel: &Kernel, network: &str) {
    let set = kernel.tables.lists.set(Class::Deny, &network.parse().unwrap(), FOREVER);
    assert_eq!(set.unwrap(), InForce::Now);
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
    let policy = Policy { open_max: 4, ..UNLIMITED };
    let kernel = pair.load(AttachMode::Native, policy.clone()).unwrap();
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
    drop(kernel);
    let kernel = pair.load(AttachMode::Native, policy.clone()).unwrap();
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
    deny(&kernel, "10.99.0.2/32");
    assert!(!pair.answers());
    drop(kernel);
    assert!(!pair.answers(), "the filter went with its daemon");

    let kernel = pair.load(AttachMode::Auto, UNLIMITED).unwrap();
    assert!(kernel.attached()[0].adopted);
    assert!(!pair.answers());
    drop(kernel);

    // The interface goes and comes back: the pinned link leads nowhere.
    ip(&format!("-n {}-edge link del guarded", pair.name));
    pair.wire();
    assert!(pair.answers());
    let kernel = pair.load(AttachMode::Generic, UNLIMITED).unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Generic);
    assert!(!kernel.attached()[0].adopted);
    assert!(!pair.answers());
    assert!(kernel.tables.counts().unwrap()[Reason::DenyList as usize].packets > 0);
    drop(kernel);

    // Another mode is wanted: attached anew.
    let kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Native);
    assert!(!pair.answers());

    let removed = detach(&pair.pin_dir).unwrap();
    assert!(removed.iter().any(|pin| pin.contains("xdp-")), "{removed:?}");
    drop(kernel);
    assert!(pair.answers());
    assert!(!pair.pin_dir.exists());
}

#[test]
fn a_mode_that_the_interface_cannot_do_leaves_the_former_filter() {
    let pair = Pair::new();
    let settings = LoadSettings {
        pin_dir: pair.pin_dir.clone(),
        debug: false,
        policy: UNLIMITED,
        lists: ListCapacity::of(1_000, []),
    };
    let load = |mode| pair.within("edge", || attached(&settings, "lo", mode));
    // The loopback device has no driver to be native in.
    let mut kernel = load(AttachMode::Auto).unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Generic);
    deny(&kernel, "127.0.0.0/8");
    drop(kernel);
    let answers = || {
        let to = (Ipv4Addr::LOCALHOST, 9).into();
        let refused = pair.within("edge", || {
            TcpStream::connect_timeout(&to, Duration::from_millis(300)).expect_err("nobody listens")
        });
        refused.kind() == std::io::ErrorKind::ConnectionRefused
    };
    assert!(!answers());
    let error = load(AttachMode::Native).err().expect("refused");
    let is_named = matches!(&error, KernelError::Attach { mode: Mode::Native, .. });
    assert!(is_named, "{error}");
    assert!(!answers(), "the failure took the filter off");
    let kernel = load(AttachMode::Auto).unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Generic);
    assert!(kernel.attached()[0].adopted);
}

#[test]
fn a_pin_that_cannot_be_adopted_is_not_touched() {
    let pair = Pair::new();
    let kernel = pair.load(AttachMode::Auto, UNLIMITED).unwrap();
    let folder = pair.pin_dir.join(edge_common::map::ABI);
    let pin = folder.join(format!("xdp-{}-native-guarded", kernel.attached()[0].ifindex));
    drop(kernel);
    // A link of another kind in its place: the kernel refuses the program for it.
    let (aside, sockets) = (folder.join("xdp-aside"), folder.join("sockets"));
    std::fs::rename(&pin, &aside).unwrap();
    std::fs::hard_link(&sockets, &pin).unwrap();
    let error = pair.load(AttachMode::Auto, UNLIMITED).err().expect("refused");
    assert!(error.to_string().contains("native-guarded"), "{error}");
    assert!(pin.exists() && aside.exists());
}

#[test]
fn a_renamed_interface_keeps_its_filter() {
    let pair = Pair::new();
    let mut kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    deny(&kernel, "10.99.0.2/32");
    let ifindex = kernel.attached()[0].ifindex;
    drop(kernel);
    for change in ["down", "name moved", "up"] {
        let interface = if change == "up" { "moved" } else { "guarded" };
        ip(&format!("-n {}-edge link set {interface} {change}", pair.name));
    }
    let settings = LoadSettings {
        pin_dir: pair.pin_dir.clone(),
        debug: false,
        policy: UNLIMITED,
        lists: ListCapacity::of(1_000, []),
    };
    let kernel = pair.within("edge", || {
        let mut kernel = Kernel::load(&settings)?;
        deny(&kernel, "10.99.0.2/32");
        kernel.attach(&["moved".to_owned()], AttachMode::Native).map(|()| kernel)
    });
    let kernel = kernel.unwrap();
    assert!(kernel.attached()[0].adopted);
    assert!(!pair.answers());
    let removed = detach(&pair.pin_dir).unwrap();
    let pins: Vec<_> = removed.iter().filter(|pin| pin.contains("xdp-")).collect();
    assert!(pins.len() == 1 && pins[0].ends_with(&format!("xdp-{ifindex}-native-moved")));
}

#[test]
fn an_interface_without_ethernet_headers_is_refused() {
    let pair = Pair::new();
    let settings = LoadSettings {
        pin_dir: pair.pin_dir.clone(),
        debug: false,
        policy: UNLIMITED,
        lists: ListCapacity::of(1_000, []),
    };
    ip(&format!("-n {}-edge tuntap add mode tun name tunnel", pair.name));
    ip(&format!("-n {}-edge tuntap add mode tap name bridged", pair.name));
    let load =
        |interface| pair.within("edge", || attached(&settings, interface, AttachMode::Generic));
    let error = load("tunnel").err().expect("refused");
    let is_named =
        matches!(&error, KernelError::NotEthernet { interface, .. } if interface == "tunnel");
    assert!(is_named, "{error}");
    load("bridged").unwrap();
}

#[test]
fn an_interface_that_another_program_holds_is_left_alone() {
    let pair = Pair::new();
    let _holder = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    let pin_dir = format!("{}-other", pair.pin_dir.display()).into();
    let settings = LoadSettings {
        pin_dir,
        debug: false,
        policy: UNLIMITED,
        lists: ListCapacity::of(1_000, []),
    };
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
