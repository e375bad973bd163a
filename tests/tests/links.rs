//! Links and sockets of the kernel plane, on real interfaces in namespaces of the test's own.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::File,
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use edge_common::{
    ClientWidth, Reason, Source,
    map::{ABI, Ban, CELLS, FOREVER},
};
use edge_daemon::kernel::{
    AttachMode, Corrected, Detached, InForce, Kernel, KernelError, ListCapacity, LoadSettings,
    Mode, Policy, Upkeep, Wanted, detach,
};
use edge_policy::list::Class;
use nix::sched::{CloneFlags, setns};

const UNLIMITED: Policy = Policy::UNLIMITED;

const EDGE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// By then what must come has come, also on a host that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

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
        self.wire_as("");
    }

    fn wire_as(&self, index: &str) {
        let name = &self.name;
        ip(&format!(
            "-n {name}-edge link add guarded {index} type veth peer name peer netns {name}-client"
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
        self.load_whole(mode, policy).map(|(kernel, _)| kernel)
    }

    fn settings(&self, policy: Policy) -> LoadSettings {
        let lists = ListCapacity::of(1_000, []);
        LoadSettings { pin_dir: self.pin_dir.clone(), debug: false, policy, lists }
    }

    /// As a successor starts: it fills its own lists before it takes over.
    fn load_denying(
        &self,
        interface: &str,
        mode: AttachMode,
        network: &str,
    ) -> Result<Kernel, KernelError> {
        self.within("edge", || {
            let mut kernel = Kernel::load(&self.settings(UNLIMITED))?;
            deny(&kernel, network);
            kernel.attach(&[Wanted { interface: interface.to_owned(), mode }])?;
            Ok(kernel)
        })
    }

    fn load_whole(
        &self,
        mode: AttachMode,
        policy: Policy,
    ) -> Result<(Kernel, Upkeep), KernelError> {
        let settings = self.settings(policy);
        self.within("edge", || attached_whole(&settings, "guarded", mode))
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
        refused.kind() == ErrorKind::ConnectionRefused
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
    attached_whole(settings, interface, mode).map(|(kernel, _)| kernel)
}

fn attached_whole(
    settings: &LoadSettings,
    interface: &str,
    mode: AttachMode,
) -> Result<(Kernel, Upkeep), KernelError> {
    let mut kernel = Kernel::load(settings)?;
    let upkeep = kernel.attach(&[Wanted { interface: interface.to_owned(), mode }])?;
    Ok((kernel, upkeep))
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
    let deadline = Instant::now() + PATIENCE;
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
fn connections_from_before_the_filter_are_counted_too() {
    let pair = Pair::new();
    let listener = pair.listen();
    let to = listener.local_addr().unwrap();
    let connect = || (pair.connect(to).unwrap(), listener.accept().unwrap().0);
    let mut ends: Vec<_> = (0..3).map(|_| connect()).collect();
    // The client has gone, the edge has not: the connection is still open here.
    let half = connect();
    drop(half.0);
    // What the edge opened itself is none of them.
    let elsewhere = pair.within("client", || TcpListener::bind((CLIENT, 0)).unwrap());
    let there = elsewhere.local_addr().unwrap();
    let _outgoing = pair.within("edge", || TcpStream::connect(there).unwrap());
    let limits = Policy { open_max: 5, ..UNLIMITED };
    let (kernel, upkeep) = pair.load_whole(AttachMode::Native, limits).unwrap();
    expect_open(&kernel, 4);
    ends.push(connect());
    expect_open(&kernel, 5);
    assert!(pair.connect(to).is_err(), "a sixth connection");
    assert_eq!(census(&pair, &upkeep), Corrected::default());
    reset(ends.pop().unwrap().0);
    drop(half.1);
    expect_open(&kernel, 3);
}

#[test]
fn connections_are_counted_by_what_stands_for_a_client_now() {
    let pair = Pair::new();
    let kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    let listener = pair.listen();
    let to = listener.local_addr().unwrap();
    let _ends = [(); 2].map(|()| (pair.connect(to).unwrap(), listener.accept().unwrap()));
    expect_open(&kernel, 2);
    drop(kernel);
    let client = ClientWidth { v4: 24, ..ClientWidth::USUAL };
    let wide = Policy { open_max: 2, client, ..UNLIMITED };
    let kernel = pair.load(AttachMode::Native, wide).unwrap();
    assert_eq!(kernel.tables.explain(CLIENT.into()).unwrap().open, 2);
    assert!(pair.connect(to).is_err(), "a third connection");
}

#[test]
fn a_count_that_is_wrong_is_put_right() {
    let pair = Pair::new();
    let (kernel, upkeep) = pair.load_whole(AttachMode::Native, UNLIMITED).unwrap();
    let listener = pair.listen();
    let to = listener.local_addr().unwrap();
    let mut ends: Vec<_> =
        (0..6).map(|_| (pair.connect(to).unwrap(), listener.accept().unwrap().0)).collect();
    expect_open(&kernel, 6);
    // Nobody follows the sockets for a while: two close, three open.
    let folder = pair.pin_dir.join(ABI);
    for pin in ["sockets", "sockets-too"] {
        std::fs::remove_file(folder.join(pin)).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        ends.push((pair.connect(to).unwrap(), listener.accept().unwrap().0));
        // The kernel lets go of the links only later.
        if kernel.tables.open(client()).unwrap() < ends.len() as u32 {
            break;
        }
        assert!(Instant::now() < deadline, "the tracepoint is still followed");
        std::thread::sleep(Duration::from_millis(20));
    }
    let counted = kernel.tables.open(client()).unwrap();
    for _ in 0..2 {
        reset(ends.remove(0).0);
        ends.push((pair.connect(to).unwrap(), listener.accept().unwrap().0));
    }
    let missed = ends.len() as u64 - u64::from(counted) + 2;
    assert_eq!(kernel.tables.open(client()).unwrap(), counted);
    assert_eq!(census(&pair, &upkeep), Corrected { added: missed, removed: 2 });
    expect_open(&kernel, ends.len() as u32);
    assert_eq!(census(&pair, &upkeep), Corrected::default());
}

/// As the upkeep's thread does it.
fn census(pair: &Pair, upkeep: &Upkeep) -> Corrected {
    unprivileged(pair, || upkeep.take_census().unwrap())
}

/// Runs on a thread in the edge's namespace that has no capability.
fn unprivileged<T: Send>(pair: &Pair, run: impl FnOnce() -> T + Send) -> T {
    pair.within("edge", || {
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
            caps::clear(None, set).unwrap();
        }
        run()
    })
}

/// Waits until it is so.
fn expect(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_refused_start_moves_no_interface() {
    let pair = Pair::new();
    drop(pair.load_denying("guarded", AttachMode::Native, "10.99.0.2/32").unwrap());
    assert!(!pair.answers());
    let wanted = ["guarded", "absent"]
        .map(|interface| Wanted { interface: interface.to_owned(), mode: AttachMode::Native });
    // It would drop nothing of whom a list denies.
    let lenient = Policy { monitored: vec![Reason::DenyList], ..UNLIMITED };
    let error = pair.within("edge", || {
        let mut kernel = Kernel::load(&pair.settings(lenient)).unwrap();
        assert!(kernel.find(&wanted, false).is_err());
        kernel.attach(&wanted).err().unwrap()
    });
    assert!(matches!(error, KernelError::NoInterface { .. }), "{error}");
    // The successor's lists were empty.
    assert!(!pair.answers());
    assert!(pair.pin_dir.join(ABI).join("sockets").exists());
}

#[test]
fn a_refusal_midway_puts_the_former_program_back() {
    let pair = Pair::new();
    ip(&format!("-n {}-edge link add other type veth peer name elsewhere", pair.name));
    drop(pair.load_denying("guarded", AttachMode::Native, "10.99.0.2/32").unwrap());
    let wanted = ["guarded", "other"]
        .map(|interface| Wanted { interface: interface.to_owned(), mode: AttachMode::Native });
    let refused = || {
        let attach = || Kernel::load(&pair.settings(UNLIMITED)).unwrap().attach(&wanted).err();
        pair.within("edge", attach).expect("refused")
    };
    // A pin that says that it holds the link of the second, and holds a program.
    let index = pair.within("edge", || nix::net::if_::if_nametoindex("other").unwrap());
    let pin = pair.pin_dir.join(ABI).join(format!("xdp-{index}-native-other"));
    pin_program(&pin, b"stranger");
    let error = refused();
    assert!(matches!(error, KernelError::Path { .. }), "{error}");
    // The successor's lists were empty.
    assert!(!pair.answers(), "the former's lists are in force");
    std::fs::remove_file(&pin).unwrap();
    // One that is new is let go again, before any that is there is touched.
    let held = pair.pin_dir.join("stranger");
    pin_program(&held, b"stranger");
    let set = |what: &str| pair.within("edge", || ip(&format!("link set dev other {what}")));
    set(&format!("xdpgeneric pinned {}", held.display()));
    let error = refused();
    assert!(matches!(error, KernelError::Occupied { .. }), "{error}");
    assert!(!pair.answers());
    set("xdpgeneric off");
    std::fs::remove_file(held).unwrap();
    pair.within("edge", || {
        let mut kernel = Kernel::load(&pair.settings(UNLIMITED)).unwrap();
        kernel.attach(&wanted).unwrap();
        let told: Vec<_> = kernel.attached().iter().map(|a| a.interface.as_str()).collect();
        assert_eq!(told, ["guarded", "other"], "in the order of the configuration");
    });
    assert!(pair.answers());
}

#[test]
fn a_link_that_is_detached_by_force_is_put_back_and_one_whose_pin_is_gone_is_not() {
    let pair = Pair::new();
    let (kernel, upkeep) = pair.load_whole(AttachMode::Native, UNLIMITED).unwrap();
    deny(&kernel, "10.99.0.2/32");
    assert!(!pair.answers());
    let pin = std::fs::read_dir(pair.pin_dir.join(ABI)).unwrap().flatten().map(|e| e.path());
    let pin = pin.into_iter().find(|p| p.to_string_lossy().contains("/xdp-")).unwrap();
    force_detach(&pin);
    let health = upkeep.health();
    let (stop, stops) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| unprivileged(&pair, || upkeep.run(&stops)));
        expect("left off", || {
            health.mended.load(Relaxed) == 1 && health.interfaces()[0].is_guarded
        });
        assert!(!pair.answers() && pin.exists());
        force_detach(&pin);
        std::fs::remove_file(&pin).unwrap();
        expect("missed", || !health.interfaces()[0].is_guarded && health.is_any_bare());
        assert!(pair.answers(), "who takes the pin away wants it off");
        assert_eq!(health.mended.load(Relaxed), 1);
        drop(stop);
    });
    // Until the next start.
    drop(kernel);
    drop(pair.load_denying("guarded", AttachMode::Native, "10.99.0.2/32").unwrap());
    assert!(!pair.answers());
}

/// Detaches the link that a pin holds, as `bpftool link detach` does.
fn force_detach(pin: &std::path::Path) {
    let path = CString::new(pin.to_str().unwrap()).unwrap();
    let call = |command: libc::c_long, words: &[u64]| {
        // SAFETY: the words are what the command takes, and what they point to is alive.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
        assert!(done >= 0, "{}", std::io::Error::last_os_error());
        done as u64
    };
    let link = call(7, &[path.as_ptr().expose_provenance() as u64, 0]);
    call(34, &[link]);
}

#[test]
fn the_filter_outlives_its_daemon_and_is_taken_over() {
    let pair = Pair::new();
    let kernel = pair.load(AttachMode::Auto, UNLIMITED).unwrap();
    let [attached] = kernel.attached() else { panic!("{:?}", kernel.attached()) };
    assert_eq!((attached.mode, attached.adopted), (Mode::Native, false));
    assert!(pair.answers());
    deny(&kernel, "10.99.0.2/32");
    assert!(!pair.answers());
    drop(kernel);
    assert!(!pair.answers(), "the filter went with its daemon");

    let kernel = pair.load_denying("guarded", AttachMode::Auto, "10.99.0.2/32").unwrap();
    assert!(kernel.attached()[0].adopted);
    assert!(!pair.answers());
    drop(kernel);

    // The interface goes and comes back: the pinned link leads nowhere.
    ip(&format!("-n {}-edge link del guarded", pair.name));
    pair.wire();
    assert!(pair.answers());
    let kernel = pair.load_denying("guarded", AttachMode::Generic, "10.99.0.2/32").unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Generic);
    assert!(!kernel.attached()[0].adopted);
    assert!(!pair.answers());
    assert!(kernel.tables.counts().unwrap()[Reason::DenyList as usize].packets > 0);
    drop(kernel);

    // Another mode is wanted: attached anew.
    let kernel = pair.load_denying("guarded", AttachMode::Native, "10.99.0.2/32").unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Native);
    assert!(!pair.answers());

    let Detached { removed, in_use } = detach(&pair.pin_dir).unwrap();
    assert!(in_use);
    assert!(removed.iter().any(|pin| pin.contains("xdp-")), "{removed:?}");
    drop(kernel);
    assert!(pair.answers());
    assert!(!pair.pin_dir.exists());
}

#[test]
fn another_versions_filter_is_taken_over_between_two_packets() {
    let pair = Pair::new();
    let mut kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    let since_ns = edge_daemon::clock::boot_ns();
    let ban = Ban {
        since_ns,
        until_ns: since_ns + 60_000_000_000,
        hits: 0,
        first_hit_ns: 0,
        reason: Reason::NoRoute as u32,
        strikes: 3,
    };
    kernel.tables.bans.ban(client(), ban).unwrap();
    assert!(!pair.answers());
    let dropped = |kernel: &Kernel| kernel.tables.counts().unwrap()[Reason::Ban as usize].packets;
    let (before, seed) = (dropped(&kernel), kernel.tables.settings().unwrap().seed);
    assert!(before > 0);
    drop(kernel);

    // The version before this one had other connection cells, and a table that is no more.
    let (own, other) = (pair.pin_dir.join(ABI), pair.pin_dir.join("v0"));
    std::fs::rename(&own, &other).unwrap();
    std::fs::remove_file(other.join(CELLS)).unwrap();
    std::fs::hard_link(other.join("OPEN"), other.join(CELLS)).unwrap();
    std::fs::hard_link(other.join("OPEN"), other.join("FORMER")).unwrap();

    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    let former = names(&other);
    assert!(former.iter().any(|name| name == "sockets"), "{former:?}");
    let socket = pair.within("edge", || UdpSocket::bind((EDGE, 0)).unwrap());
    let to = socket.local_addr().unwrap();
    let stop = AtomicBool::new(false);
    let (kernel, sent, kept) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            pair.within("client", || {
                let flood = UdpSocket::bind((CLIENT, 0)).unwrap();
                let send = |_: &u64| !stop.load(Relaxed) && flood.send_to(b"x", to).is_ok();
                (0_u64..).take_while(send).count() as u64
            })
        });
        // One that ends before it is in office leaves the other where it was.
        drop(pair.load(AttachMode::Native, UNLIMITED).unwrap());
        let first = names(&other);
        let mut kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
        let second = names(&other);
        kernel.superseded.remove().unwrap();
        stop.store(true, Relaxed);
        (kernel, flood.join().unwrap(), [first, second])
    });
    assert_eq!(kept, [former.clone(), former]);
    assert!(!pair.answers());
    socket.set_nonblocking(true).unwrap();
    let arrived = std::iter::from_fn(|| socket.recv(&mut [0]).ok()).count();
    assert_eq!(arrived, 0, "of {sent}");
    assert!(kernel.attached()[0].adopted);
    let carried = kernel.tables.bans.lookup(client()).unwrap().unwrap();
    assert_eq!((carried.until_ns, carried.strikes), (ban.until_ns, 3));
    assert!(dropped(&kernel) >= before + sent, "{sent} sent");
    assert_eq!(kernel.tables.settings().unwrap().seed, seed);
    assert!(!other.exists() && own.join(CELLS).exists());
}

#[test]
fn another_namespaces_filter_is_left_alone() {
    let pair = Pair::new();
    let kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    deny(&kernel, "10.99.0.2/32");
    drop(kernel);
    let settings = pair.settings(UNLIMITED);
    let load = || pair.within("client", || attached(&settings, "peer", AttachMode::Native));
    let error = load().err().expect("refused");
    assert!(matches!(error, KernelError::OtherNamespace { .. }), "{error}");
    assert!(!pair.answers());
    // What guards nothing any more is nobody's.
    ip(&format!("-n {}-edge link del guarded", pair.name));
    pair.wire();
    load().unwrap();
}

#[test]
fn an_interface_that_comes_back_is_guarded_again() {
    let pair = Pair::new();
    let (kernel, upkeep) = pair.load_whole(AttachMode::Auto, UNLIMITED).unwrap();
    deny(&kernel, "10.99.0.2/32");
    assert!(!pair.answers());
    let health = upkeep.health();
    let condition = || {
        let [interface] = &health.interfaces()[..] else { panic!("one interface") };
        (interface.is_guarded, interface.is_up)
    };
    let (stop, stops) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| unprivileged(&pair, || upkeep.run(&stops)));
        assert_eq!(condition(), (true, true));
        ip(&format!("-n {}-edge link set guarded down", pair.name));
        expect("down", || condition() == (true, false));
        ip(&format!("-n {}-edge link set guarded up", pair.name));
        expect("up", || condition() == (true, true));
        ip(&format!("-n {}-edge link del guarded", pair.name));
        let counts = || pair.within("edge", || kernel.tables.counts().unwrap());
        let dropped = || counts()[Reason::DenyList as usize].packets;
        let before = dropped();
        assert!(before > 0);
        expect("gone", || condition() == (false, false));
        assert_eq!(dropped(), before, "what it had counted is in the sum");
        let apart = pair.within("edge", || kernel.tables.counts_apart().unwrap());
        assert!(apart.iter().all(|(name, _)| !name.is_empty()), "it is told of without a name");
        pair.wire();
        expect("back", || condition() == (true, true));
        assert!(!pair.answers());
        let index = || pair.within("edge", || nix::net::if_::if_nametoindex("guarded").unwrap());
        let former = index();
        assert!(kernel.tables.settings().unwrap().interfaces.contains(&former), "counted apart");
        // With the index of the former, before anybody has looked.
        ip(&format!("-n {}-edge link del guarded", pair.name));
        pair.wire_as(&format!("index {former}"));
        assert_eq!(index(), former);
        expect("back under its index", || !pair.answers());
        // An operator takes the filter off: it stays off.
        detach(&pair.pin_dir).unwrap();
        expect("detached", || condition() == (false, false));
        assert!(pair.answers());
        drop(stop);
    });
}

#[test]
fn several_interfaces_each_have_a_mode_of_their_own() {
    let pair = Pair::new();
    let settings = pair.settings(UNLIMITED);
    let wanted = |interface: &str, mode| Wanted { interface: interface.to_owned(), mode };
    let load = |wanted: &[Wanted]| {
        pair.within("edge", || {
            let mut kernel = Kernel::load(&settings).unwrap();
            kernel.attach(wanted).unwrap();
            let attached = kernel.attached().iter();
            let told = attached.map(|a| (a.interface.clone(), a.mode, a.adopted));
            (told.collect::<Vec<_>>(), kernel.superseded)
        })
    };
    let both = [wanted("guarded", AttachMode::Auto), wanted("lo", AttachMode::Auto)];
    let expected = |adopted| {
        vec![
            ("guarded".to_owned(), Mode::Native, adopted),
            ("lo".to_owned(), Mode::Generic, adopted),
        ]
    };
    let pins = || {
        let pins = std::fs::read_dir(pair.pin_dir.join(ABI)).unwrap();
        let names = pins.map(|pin| pin.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("xdp-")).count()
    };
    assert_eq!(load(&both).0, expected(false));
    assert_eq!(load(&both).0, expected(true));
    // One that is named no longer is let go, once the former daemon cannot go on.
    let (attached, mut superseded) = load(&both[1..]);
    assert_eq!((attached.as_slice(), pins()), (&expected(true)[1..], 2));
    superseded.remove().unwrap();
    assert_eq!(pins(), 1);
}

#[test]
fn a_mode_that_the_interface_cannot_do_leaves_the_former_filter() {
    let pair = Pair::new();
    let load = |mode, network| pair.load_denying("lo", mode, network);
    // The loopback device has no driver to be native in.
    let kernel = load(AttachMode::Auto, "127.0.0.0/8").unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Generic);
    drop(kernel);
    let answers = || {
        let to = (Ipv4Addr::LOCALHOST, 9).into();
        let refused = pair.within("edge", || {
            TcpStream::connect_timeout(&to, Duration::from_millis(300)).expect_err("nobody listens")
        });
        refused.kind() == ErrorKind::ConnectionRefused
    };
    assert!(!answers());
    let error = load(AttachMode::Native, "192.0.2.0/24").err().expect("refused");
    let is_named = matches!(&error, KernelError::Attach { mode: Mode::Native, .. });
    assert!(is_named, "{error}");
    assert!(!answers(), "the former's lists are in force");
    let kernel = load(AttachMode::Auto, "127.0.0.0/8").unwrap();
    assert_eq!(kernel.attached()[0].mode, Mode::Generic);
    assert!(kernel.attached()[0].adopted);
}

#[test]
fn a_mode_that_changed_changes_back_when_another_interface_refuses() {
    let pair = Pair::new();
    ip(&format!("-n {}-edge link add other type veth peer name elsewhere", pair.name));
    let kernel = pair.load_denying("guarded", AttachMode::Generic, "10.99.0.2/32").unwrap();
    let wanted = ["guarded", "other"]
        .map(|interface| Wanted { interface: interface.to_owned(), mode: AttachMode::Native });
    let find = |in_office| pair.within("edge", || kernel.find(&wanted[..1], in_office));
    assert!(matches!(find(true), Err(KernelError::OtherMode { mode: Mode::Generic, .. })));
    find(false).unwrap();
    let pin_of = |interface: &str, mode| {
        let index = pair.within("edge", || nix::net::if_::if_nametoindex(interface).unwrap());
        pair.pin_dir.join(ABI).join(format!("xdp-{index}-{mode}-{interface}"))
    };
    drop(kernel);
    // A pin that says that it holds the link of the second, and holds a program.
    pin_program(&pin_of("other", "native"), b"stranger");
    let attach = || Kernel::load(&pair.settings(UNLIMITED)).unwrap().attach(&wanted).err();
    let error = pair.within("edge", attach).expect("refused");
    assert!(matches!(error, KernelError::Path { .. }), "{error}");
    assert!(!pair.answers(), "the former's lists are in force");
    assert!(pin_of("guarded", "generic").exists() && !pin_of("guarded", "native").exists());
}

#[test]
fn a_changed_mode_that_cannot_be_pinned_changes_back() {
    let pair = Pair::new();
    let kernel = pair.load_denying("guarded", AttachMode::Generic, "10.99.0.2/32").unwrap();
    let ifindex = kernel.attached()[0].ifindex;
    let pin = |mode| pair.pin_dir.join(ABI).join(format!("xdp-{ifindex}-{mode}-guarded"));
    drop(kernel);
    // What its own pin leads to is found before.
    pin_program(&pin("native"), b"stranger");
    let error = pair.load(AttachMode::Native, UNLIMITED).err().expect("refused");
    assert!(error.to_string().contains("pin the filter at"), "{error}");
    // The successor's lists were empty.
    assert!(!pair.answers(), "the former's lists are in force");
    std::fs::remove_file(pin("native")).unwrap();
    let kernel = pair.load_denying("guarded", AttachMode::Auto, "10.99.0.2/32").unwrap();
    let attached = &kernel.attached()[0];
    assert_eq!((attached.mode, attached.adopted), (Mode::Generic, true));
    assert!(!pair.answers());
}

#[test]
fn a_pin_that_cannot_be_adopted_is_not_touched() {
    let pair = Pair::new();
    let kernel = pair.load(AttachMode::Auto, UNLIMITED).unwrap();
    let folder = pair.pin_dir.join(ABI);
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
    let kernel = pair.load(AttachMode::Native, UNLIMITED).unwrap();
    deny(&kernel, "10.99.0.2/32");
    let ifindex = kernel.attached()[0].ifindex;
    drop(kernel);
    for change in ["down", "name moved", "up"] {
        let interface = if change == "up" { "moved" } else { "guarded" };
        ip(&format!("-n {}-edge link set {interface} {change}", pair.name));
    }
    let kernel = pair.load_denying("moved", AttachMode::Native, "10.99.0.2/32").unwrap();
    assert!(kernel.attached()[0].adopted);
    assert!(!pair.answers());
    let Detached { removed, .. } = detach(&pair.pin_dir).unwrap();
    let pins: Vec<_> = removed.iter().filter(|pin| pin.contains("xdp-")).collect();
    assert!(pins.len() == 1 && pins[0].ends_with(&format!("xdp-{ifindex}-native-moved")));
}

#[test]
fn whoever_takes_the_name_of_a_renamed_interface_is_guarded_in_its_place() {
    let pair = Pair::new();
    let (kernel, upkeep) = pair.load_whole(AttachMode::Generic, UNLIMITED).unwrap();
    deny(&kernel, "10.99.0.2/32");
    let first = kernel.attached()[0].ifindex;
    let health = upkeep.health();
    let (stop, stopped) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| unprivileged(&pair, || upkeep.run(&stopped)));
        for change in ["link set guarded down", "link set guarded name old", "addr flush dev old"] {
            ip(&format!("-n {}-edge {change}", pair.name));
        }
        ip(&format!("-n {0}-client link set peer name away", pair.name));
        ip(&format!("-n {0}-client addr flush dev away", pair.name));
        pair.wire();
        expect("the new one is guarded", || {
            let ifindex = pair.within("edge", || nix::net::if_::if_nametoindex("guarded").unwrap());
            let pin = pair.pin_dir.join(format!("{ABI}/xdp-{ifindex}-generic-guarded"));
            ifindex != first && pin.exists()
        });
        assert!(!pair.answers());
        assert!(health.interfaces()[0].is_guarded && !health.is_any_bare());
        // The one that has another name now is as guarded as it was.
        assert!(pair.pin_dir.join(format!("{ABI}/xdp-{first}-generic-guarded")).exists());
        drop(stop);
    });
}

#[test]
fn interfaces_that_trade_their_names_stay_guarded() {
    let pair = Pair::new();
    ip(&format!("-n {}-edge link add spare type veth peer name other", pair.name));
    ip(&format!("-n {}-edge link set other up", pair.name));
    ip(&format!("-n {}-edge link set spare up", pair.name));
    let settings = pair.settings(UNLIMITED);
    let (kernel, upkeep) = pair.within("edge", || {
        let mut kernel = Kernel::load(&settings).unwrap();
        let wanted = |name: &str| Wanted { interface: name.to_owned(), mode: AttachMode::Generic };
        let upkeep = kernel.attach(&["guarded", "spare"].map(wanted)).unwrap();
        (kernel, upkeep)
    });
    deny(&kernel, "10.99.0.2/32");
    let health = upkeep.health();
    let (stop, stopped) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| unprivileged(&pair, || upkeep.run(&stopped)));
        for (from, to) in [("guarded", "old"), ("spare", "guarded"), ("old", "spare")] {
            ip(&format!("-n {}-edge link set {from} down", pair.name));
            ip(&format!("-n {}-edge link set {from} name {to}", pair.name));
            ip(&format!("-n {}-edge link set {to} up", pair.name));
        }
        expect("both are guarded", || {
            let interfaces = health.interfaces();
            interfaces.iter().all(|one| one.is_guarded && one.is_up) && interfaces.len() == 2
        });
        // Looks follow one another once a second.
        std::thread::sleep(Duration::from_secs(3));
        assert!(health.interfaces().iter().all(|one| one.is_guarded) && !health.is_any_bare());
        assert!(!pair.answers());
        // One has the other's name, and nobody its own.
        for change in ["spare down", "spare name old", "old up"] {
            ip(&format!("-n {}-edge link set {change}", pair.name));
        }
        expect("each is told of by its own name", || {
            let interfaces = health.interfaces();
            let mut names: Vec<_> = interfaces.iter().map(|one| one.name.as_str()).collect();
            names.sort_unstable();
            names == ["guarded", "old"] && interfaces.iter().all(|one| one.is_guarded && one.is_up)
        });
        // And where one is gone, the other is told of once.
        ip(&format!("-n {}-edge link del old", pair.name));
        expect("one is left", || {
            let interfaces = health.interfaces();
            interfaces.len() == 1 && interfaces[0].name == "guarded" && interfaces[0].is_guarded
        });
        drop(stop);
    });
}

#[test]
fn an_interface_that_moves_to_another_namespace_is_told_of_by_the_name_it_had() {
    let pair = Pair::new();
    let (_kernel, upkeep) = pair.load_whole(AttachMode::Generic, UNLIMITED).unwrap();
    let health = upkeep.health();
    let (stop, stopped) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| unprivileged(&pair, || upkeep.run(&stopped)));
        ip(&format!("-n {0}-edge link set guarded netns {0}-client", pair.name));
        expect("it is not up here", || !health.interfaces()[0].is_up);
        assert_eq!(health.interfaces()[0].name, "guarded");
        drop(stop);
    });
}

#[test]
fn an_interface_without_ethernet_headers_is_refused() {
    let pair = Pair::new();
    let settings = pair.settings(UNLIMITED);
    ip(&format!("-n {}-edge tuntap add mode tun name tunnel", pair.name));
    ip(&format!("-n {}-edge tuntap add mode tap name bridged", pair.name));
    let load =
        |interface| pair.within("edge", || attached(&settings, interface, AttachMode::Generic));
    let error = load("tunnel").err().expect("refused");
    let is_named =
        matches!(&error, KernelError::NotEthernet { interface, .. } if interface == "tunnel");
    assert!(is_named, "{error}");
    // A child that another test starts just now may hold the lock up to its exec.
    let bridged = (0..100).find_map(|_| match load("bridged") {
        Err(KernelError::InUse { .. }) => {
            std::thread::sleep(std::time::Duration::from_millis(20));
            None
        }
        loaded => Some(loaded),
    });
    bridged.expect("the lock is free again").unwrap();
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
        matches!(&error, KernelError::Occupied { interface, holder, off: "xdpdrv" }
            if interface == "guarded" && holder.starts_with("edged, id ")),
        "{error}"
    );
    let error = attach("nowhere0");
    assert!(error.to_string().contains("nowhere0"), "{error}");
    let folder = settings.pin_dir.join(ABI);
    assert!(!folder.join("sockets").exists() && !folder.join("sockets-too").exists());
    detach(&settings.pin_dir).unwrap();
}

#[test]
fn a_program_that_was_attached_without_a_link_is_named_and_left_alone() {
    let pair = Pair::new();
    std::fs::create_dir_all(&pair.pin_dir).unwrap();
    let pin = pair.pin_dir.join("stranger");
    pin_program(&pin, b"stranger");
    // Not `ip -n`, which hides the bpffs.
    let set = |what: &str| pair.within("edge", || ip(&format!("link set dev guarded {what}")));
    set(&format!("xdpgeneric pinned {}", pin.display()));
    for mode in [AttachMode::Auto, AttachMode::Native, AttachMode::Generic] {
        let error = pair.load(mode, UNLIMITED).err().expect("refused");
        let told = error.to_string();
        assert!(told.contains("(stranger, id ") && told.contains("xdpgeneric off"), "{told}");
    }
    // As the error says.
    set("xdpgeneric off");
    pair.load(AttachMode::Auto, UNLIMITED).unwrap();
    std::fs::remove_file(pin).unwrap();
}

/// Pins an XDP program that passes every packet.
fn pin_program(pin: &std::path::Path, name: &[u8]) {
    let pass = [0x0000_0002_0000_00b7_u64, 0x95];
    let (licence, path) = (c"GPL", CString::new(pin.to_str().unwrap()).unwrap());
    let mut load = [0_u64; 8];
    load[0] = 2 << 32 | 6;
    load[1] = pass.as_ptr().expose_provenance() as u64;
    load[2] = licence.as_ptr().expose_provenance() as u64;
    for (at, byte) in name.iter().enumerate() {
        load[6 + at / 8] |= u64::from(*byte) << (at % 8 * 8);
    }
    let call = |command: libc::c_long, words: &[u64]| {
        // SAFETY: the words are what the command takes, and what they point to is alive.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
        assert!(done >= 0, "{}", std::io::Error::last_os_error());
        done as u64
    };
    let program = call(5, &load);
    call(6, &[path.as_ptr().expose_provenance() as u64, program]);
}
