//! A SYN flood costs nobody a connection: cookies answer it in the driver, and only while it lasts.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use edge_common::{ClientWidth, Reason, Source};
use edge_daemon::kernel::{Defence, Kernel, ListCapacity, LoadSettings, Policy, When, detach};
use edge_tests::{
    Edged, Lab, Origin,
    bench::{Answers, Vlan},
    client::{connect, dial, installed, reaches, until},
    daemon::Setup,
    flood::{Flood, Shape, tcp_counter},
    lab::{CLIENT, CLIENT6, EDGE, EDGE6},
    netns::{Netns, run},
    packet::{ACK, DESTINATION, FIN, Packet, RST, SYN, ether, v4, v6},
};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

/// SYNs that fill a queue at once.
const SYNS: Shape = Shape { flags: SYN, is_v6: false, rate: 20_000 };
const WAIT: Duration = Duration::from_secs(10);

/// A daemon whose queues a flood fills at once, and whose limits do not stand before them.
fn setup(lab: &Lab) -> Result<Setup<'_>> {
    lab.edge.sysctl("core/somaxconn", "64")?;
    let setup = lab.edged()?;
    Ok(setup.set("kernel.packet_rate", r#""off""#).set("kernel.connection_rate", r#""off""#))
}

fn engaged(edged: &Edged<'_>) -> Result<f64> {
    Ok(edged.metrics()?.value("edged_syn_cookies_engaged"))
}

fn wait_engaged(edged: &Edged<'_>) -> Result<()> {
    until("cookies are engaged", WAIT, || Ok(engaged(edged)? > 0.0)).map(|_| ())
}

/// Of so many connections from a client, those that were made and took a byte.
fn connects(lab: &Lab, source: &str, count: u32) -> u32 {
    let connect = |_| {
        let stream = connect(lab, source, 443, Duration::from_secs(2));
        u32::from(stream.is_ok_and(|mut stream| stream.write_all(&[22]).is_ok()))
    };
    (0..count).map(connect).sum()
}

#[test]
fn everyone_connects_through_a_flood() -> Result<()> {
    let lab = Lab::new()?;
    let _answers = Answers::take(&lab)?;
    let origin = Origin::start(&lab)?;
    let edged = setup(&lab)?.start()?;
    for (source, is_v6) in [(CLIENT, false), (CLIENT6, true)] {
        let flood = Flood::start(&lab, Shape { is_v6, ..SYNS })?;
        wait_engaged(&edged)?;
        let before = tcp_counter(&lab.edge, "SyncookiesRecv")?;
        assert_eq!(connects(&lab, source, 100), 100, "{source}");
        let response = edged.get(source, "/health").send()?;
        assert_eq!(response.status, 200);
        let taken = tcp_counter(&lab.edge, "SyncookiesRecv")? - before;
        assert!(taken > 90, "{taken} came by cookies");
        until("a flood", Duration::from_secs(10), || Ok(flood.sent() > 1000))?;
    }
    drop(origin);
    // The kernel was asked for cookies now and then, and made none itself.
    let answered = edged.metrics()?.packets(Reason::SynCookie);
    let asked = tcp_counter(&lab.edge, "TCPReqQFullDoCookies")?;
    assert!(answered > 1_000.0, "{answered}");
    assert!((asked as f64) < answered / 10.0, "{asked} of {answered}");
    Ok(())
}

/// As that of a browser with a post-quantum key share, which is more than a segment holds.
#[test]
fn a_long_first_message_comes_whole_through_a_flood() -> Result<()> {
    let lab = Lab::new()?;
    if !installed("ethtool") {
        println!("no ethtool: not run");
        return Ok(());
    }
    let _answers = Answers::take(&lab)?;
    // What the client sends at once is cut on the last cable, and handed over in one go.
    run(lab.net.command("ethtool").args(["-K", "edge", "tso", "off"]))?;
    let edged = setup(&lab)?.start()?;
    let _flood = Flood::start(&lab, SYNS)?;
    wait_engaged(&edged)?;
    let before = tcp_counter(&lab.edge, "SyncookiesRecv")?;
    // The beginning of a record that is longer still: the edge waits for the rest.
    let mut message = [0; 3_000];
    message[..6].copy_from_slice(&[22, 3, 1, 0x30, 0, 1]);
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = lab.client.enter(hesitant)?;
        stream.write_all(&message)?;
        held.push(stream);
    }
    until("all of it is there", WAIT, || {
        let text = run(lab.client.command("ss").args(["-Htino", "state", "established"]))?;
        Ok(!text.contains("unacked:"))
    })?;
    let taken = tcp_counter(&lab.edge, "SyncookiesRecv")? - before;
    assert!(taken > 15, "{taken} came by cookies");
    assert_eq!(edged.metrics()?.packets(Reason::Unsolicited), 0.0);
    Ok(())
}

/// Connects to the edge, and has the handshake's last packet wait for data to carry.
fn hesitant() -> Result<TcpStream> {
    let (stream, none) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let fd = socket::socket(AddressFamily::Inet, stream, none, None)?;
    let quick: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the option is an integer that lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const quick).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    let to = SocketAddr::new(EDGE.parse()?, 443);
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(fd))
}

#[test]
fn without_cookies_the_kernel_bears_the_flood() -> Result<()> {
    let lab = Lab::new()?;
    let _answers = Answers::take(&lab)?;
    let edged = setup(&lab)?.set("kernel.syn_cookies.mode", r#""off""#).start()?;
    let _flood = Flood::start(&lab, SYNS)?;
    until("the kernel makes the cookies", WAIT, || {
        Ok(tcp_counter(&lab.edge, "TCPReqQFullDoCookies")? > 5_000)
    })?;
    assert_eq!(edged.metrics()?.packets(Reason::SynCookie), 0.0);
    edged.edit("kernel.syn_cookies.mode", r#""auto""#)?;
    edged.tell("reload")?;
    wait_engaged(&edged)
}

#[test]
fn cookies_end_with_the_flood() -> Result<()> {
    let lab = Lab::new()?;
    let _answers = Answers::take(&lab)?;
    // What waits in the queue waits a second and not a minute.
    lab.edge.sysctl("ipv4/tcp_synack_retries", "0")?;
    let edged = setup(&lab)?.start()?;
    let flood = Flood::start(&lab, SYNS)?;
    wait_engaged(&edged)?;
    drop(flood);
    until("cookies are no longer engaged", WAIT, || Ok(engaged(&edged)? == 0.0))?;
    until("a connection is made without one", WAIT, || {
        let before = tcp_counter(&lab.edge, "SyncookiesRecv")?;
        ensure!(reaches(&lab, CLIENT, 443), "no connection");
        Ok(tcp_counter(&lab.edge, "SyncookiesRecv")? == before)
    })?;
    Ok(())
}

#[test]
fn what_a_reload_protects_is_protected_while_its_lists_are_compiled() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("deny.txt");
    std::fs::write(&path, "192.0.2.7\n")?;
    let edged = lab
        .edged()?
        .set("lists.networks_max", "1000000")
        .set("lists.deny_files", &format!("[{path:?}]"))
        .start()?;
    let listeners = || {
        Ok::<_, anyhow::Error>(edged.metrics()?.sum("edged_map_entries", &[("map", "LISTENERS")]))
    };
    let before = listeners()?;
    let address = |i: u32| format!("{}\n", std::net::Ipv4Addr::from(0x0b00_0000 + 2 * i));
    std::fs::write(&path, (0..400_000).map(address).collect::<String>())?;
    edged.edit("kernel.syn_cookies.ports", "[22]")?;
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| edged.tell("reload"));
        until("it is protected", WAIT, || Ok(listeners()? > before))?;
        let (protected, mut looks) = (listeners()?, 0);
        while !reload.is_finished() {
            assert!(listeners()? >= protected, "the settings of before are followed");
            looks += 1;
        }
        // The last look may have been when all was done.
        assert!(looks > 1, "the lists were compiled by then");
        reload.join().expect("no panic").map(drop)
    })
}

#[test]
fn listeners_on_a_vlan_are_left_out_while_the_card_hides_its_tags() -> Result<()> {
    let lab = Lab::new()?;
    let ip = |line: &str| run(lab.edge.command("ip").args(line.split(' '))).map(drop);
    let vlan = ip("link add link edge0 name edge0.7 type vlan id 7");
    if vlan.is_err() || !installed("ethtool") {
        println!("no VLANs in this kernel, or no ethtool: not run");
        return Ok(());
    }
    ip("addr add 192.0.9.1/24 dev edge0.7")?;
    ip("link set edge0.7 up")?;
    let rxvlan =
        |state: &str| run(lab.edge.command("ethtool").args(["-K", "edge0", "rxvlan", state]));
    rxvlan("on")?;
    let edged = lab.edged()?.set("kernel.syn_cookies.ports", "[22]").start()?;
    let left_out = |why: &str| {
        Ok::<_, anyhow::Error>(edged.metrics()?.sum("edged_syn_cookies_left_out", &[("why", why)]))
    };
    let listeners = || {
        Ok::<_, anyhow::Error>(edged.metrics()?.sum("edged_map_entries", &[("map", "LISTENERS")]))
    };
    let (hidden, before) = (left_out("vlan")?, listeners()?);
    assert!(hidden >= 1.0 && before >= 1.0, "{hidden} {before}");
    let told = || edged.log().matches("no SYN cookies for listeners on VLANs").count();
    assert!(told() == 1 && edged.log().contains("edge0.7"), "{}", edged.log());
    // By whatever label an address of it goes.
    ip("addr add 192.0.9.2/24 dev edge0.7 label edge0.7:1")?;
    // Only packets of no connection are refused there.
    until("it is left out, too", WAIT, || {
        Ok(left_out("vlan")? > hidden && listeners()? == before + 1.0)
    })?;
    ip("addr del 192.0.9.2/24 dev edge0.7")?;
    until("it is gone", WAIT, || Ok(left_out("vlan")? == hidden))?;
    rxvlan("off")?;
    until("they are protected", WAIT, || {
        Ok(left_out("vlan")? == 0.0 && listeners()? == before + hidden)
    })?;
    rxvlan("on")?;
    until("they are left out", WAIT, || Ok(left_out("vlan")? == hidden && listeners()? == before))?;
    assert_eq!(told(), 2, "once for each time");
    assert_eq!(left_out("full")?, 0.0);
    Ok(())
}

#[test]
fn options_are_kept_where_the_kernel_shows_its_clock() -> Result<()> {
    let lab = Lab::new()?;
    let _answers = Answers::take(&lab)?;
    lab.edge.sysctl("ipv4/tcp_timestamps", "2")?;
    let edged = setup(&lab)?.start()?;
    ensure!(!edged.log().contains("tcp_timestamps"), "{}", edged.log());
    for (source, is_v6) in [(CLIENT, false), (CLIENT6, true)] {
        let usual = options(&lab, source)?;
        ensure!(usual.contains(" sack ") && usual.contains(" wscale:"), "{usual}");
        let _flood = Flood::start(&lab, Shape { is_v6, ..SYNS })?;
        until("the queue is full", WAIT, || {
            let before = tcp_counter(&lab.edge, "SyncookiesRecv")?;
            let by_cookie = options(&lab, source)?;
            let is_cookie = tcp_counter(&lab.edge, "SyncookiesRecv")? > before;
            ensure!(!is_cookie || by_cookie == usual, "{by_cookie}, not {usual}");
            Ok(is_cookie)
        })?;
    }
    Ok(())
}

/// What both sides of a new connection agreed to, as `ss` tells it.
fn options(lab: &Lab, source: &str) -> Result<String> {
    let stream = connect(lab, source, 443, Duration::from_secs(2))?;
    let port = stream.local_addr()?.port().to_string();
    let tell = |ns: &Netns, key: &str| -> Result<String> {
        let text = run(ns.command("ss").args(["-Htino", "state", "established", key, "=", &port]))?;
        let line = text.lines().nth(1).with_context(|| format!("no connection: {text}"))?;
        let words = line.split_whitespace();
        let kept = words.filter(|w| w.starts_with("wscale:") || ["ts", "sack", "ecn"].contains(w));
        Ok(kept.map(|word| format!(" {word} ")).collect())
    };
    let mut both = tell(&lab.client, "sport")?;
    until("the connection is accepted", Duration::from_secs(2), || {
        let theirs = tell(&lab.edge, "dport").ok();
        both.extend(theirs.iter().map(String::as_str));
        Ok(theirs.is_some())
    })?;
    Ok(both)
}

#[test]
fn packets_of_no_connection_are_refused_in_a_flood() -> Result<()> {
    let lab = Lab::new()?;
    let _answers = Answers::take(&lab)?;
    let rate = r#"{ rate = "1000/s", burst = 1000 }"#;
    let edged = setup(&lab)?.set("kernel.syn_cookies.unsolicited_rate", rate).start()?;
    let mut held = connect(&lab, CLIENT, 443, Duration::from_secs(2))?;
    for flags in [ACK, RST, SYN | ACK] {
        let before = edged.metrics()?.packets(Reason::Unsolicited);
        let _flood = Flood::start(&lab, Shape { flags, ..SYNS })?;
        until("the flood is refused", WAIT, || {
            Ok(edged.metrics()?.packets(Reason::Unsolicited) > before + 1_000.0)
        })?;
        assert!(edged.metrics()?.value("edged_unsolicited_engaged") > 0.0);
        assert_eq!(connects(&lab, CLIENT, 10), 10);
        held.write_all(&[22])?;
    }
    let lost = run(lab.client.command("ss").args(["-Htino", "state", "established"]))?;
    ensure!(!lost.contains("retrans:"), "{lost}");
    until("the alarm ends", WAIT, || {
        Ok(edged.metrics()?.value("edged_unsolicited_engaged") == 0.0)
    })?;
    Ok(())
}

#[test]
fn cookies_for_ever_need_a_host_that_takes_them() -> Result<()> {
    let lab = Lab::new()?;
    let always =
        || Ok::<_, anyhow::Error>(setup(&lab)?.set("kernel.syn_cookies.mode", r#""always""#));
    let Err(refused) = always()?.start() else { anyhow::bail!("it started") };
    let words = format!("{refused:#}");
    ensure!(words.contains("sysctl -w net.ipv4.tcp_syncookies=2"), "{words}");
    let _answers = Answers::take(&lab)?;
    lab.edge.sysctl("ipv4/tcp_syncookies", "2")?;
    let edged = always()?.start()?;
    ensure!(edged.log().contains("net.ipv4.tcp_timestamps is not 2"), "{}", edged.log());
    assert_eq!(connects(&lab, CLIENT, 3), 3);
    assert_eq!(edged.metrics()?.packets(Reason::SynCookie), 3.0);
    Ok(())
}

/// Puts client and edge into a VLAN, with its tags in the frames: a veth carries them beside the frame,
/// like a card that takes them off.
fn tagged(lab: &Lab) -> Result<[Vlan; 2]> {
    for (home, interface) in [(&lab.client, "eth0"), (&lab.net, "edge"), (&lab.edge, "edge0")] {
        run(home.command("ethtool").args(["-K", interface, "txvlan", "off", "rxvlan", "off"]))?;
    }
    Ok([Vlan::start(&lab.client, "eth0", 7)?, Vlan::start(&lab.edge, "edge0", 7)?])
}

#[test]
fn answers_arrive_in_either_mode_and_through_a_vlan() -> Result<()> {
    for attach in ["native", "generic"] {
        let lab = Lab::new()?;
        let _answers = (attach == "native").then(|| Answers::take(&lab)).transpose()?;
        lab.edge.sysctl("ipv4/tcp_syncookies", "2")?;
        let edged = setup(&lab)?
            .set("kernel.interfaces", &format!(r#"[{{ name = "edge0", attach = "{attach}" }}]"#))
            .set("kernel.syn_cookies.mode", r#""always""#)
            .start()?;
        let mut vlan = None;
        for (what, from, to) in [
            ("IPv4", CLIENT, EDGE),
            ("IPv6", CLIENT6, EDGE6),
            ("IPv4 in a VLAN", CLIENT, EDGE),
            ("IPv6 in a VLAN", CLIENT6, EDGE6),
        ] {
            if what.ends_with("VLAN") && vlan.is_none() {
                vlan = Some(tagged(&lab)?);
            }
            let answered = edged.metrics()?.packets(Reason::SynCookie);
            let taken = tcp_counter(&lab.edge, "SyncookiesRecv")?;
            let (from, to) = (SocketAddr::new(from.parse()?, 0), SocketAddr::new(to.parse()?, 443));
            for _ in 0..5 {
                let mut stream = lab
                    .client
                    .enter(|| dial(from, to, WAIT))
                    .with_context(|| format!("{attach}, {what}"))?;
                stream.write_all(&[22])?;
            }
            let answered = edged.metrics()?.packets(Reason::SynCookie) - answered;
            let taken = tcp_counter(&lab.edge, "SyncookiesRecv")? - taken;
            // The last packet of a connection that the edge has ended brings its cookie once more.
            assert!(answered >= 5.0 && taken >= 5, "{attach}, {what}: {answered}, {taken}");
        }
    }
    Ok(())
}

#[test]
fn everyone_connects_through_a_flood_in_generic_mode() -> Result<()> {
    let lab = Lab::new()?;
    let generic = r#"[{ name = "edge0", attach = "generic" }]"#;
    let edged = setup(&lab)?.set("kernel.interfaces", generic).start()?;
    for (source, is_v6) in [(CLIENT, false), (CLIENT6, true)] {
        let _flood = Flood::start(&lab, Shape { is_v6, ..SYNS })?;
        wait_engaged(&edged)?;
        let before = tcp_counter(&lab.edge, "SyncookiesRecv")?;
        assert_eq!(connects(&lab, source, 30), 30, "{source}");
        let taken = tcp_counter(&lab.edge, "SyncookiesRecv")? - before;
        assert!(taken > 25, "{taken} came by cookies");
    }
    Ok(())
}

/// A namespace whose listener on port 443 is always under pressure, and the programs in it.
struct Pressed {
    ns: Netns,
    pins: PathBuf,
}

impl Pressed {
    fn new(name: &str) -> Result<Self> {
        let name = format!("edged-{}-{name}", std::process::id());
        let ns = Netns::new(&name, false)?;
        ns.ip("addr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo")?;
        ns.sysctl("ipv4/tcp_syncookies", "2")?;
        ns.sysctl("ipv4/tcp_timestamps", "2")?;
        Ok(Self { ns, pins: PathBuf::from(format!("/sys/fs/bpf/{name}")) })
    }

    /// Does this to the programs, with somebody listening.
    fn run<T: Send>(&self, monitored: &[Reason], work: impl FnOnce(&mut Kernel) -> T + Send) -> T {
        let policy = policy(When::Always);
        self.run_by(Policy { monitored: monitored.into(), ..policy }, |kernel, _| work(kernel))
    }

    fn run_by<T: Send>(
        &self,
        policy: Policy,
        work: impl FnOnce(&mut Kernel, &TcpListener) -> T + Send,
    ) -> T {
        let settings = LoadSettings {
            pin_dir: self.pins.clone(),
            debug: false,
            policy,
            lists: ListCapacity::of(1_000, []),
        };
        self.ns.enter(|| {
            let listener = TcpListener::bind(("::", 443)).expect("the port is free");
            work(&mut Kernel::load(&settings).expect("loads"), &listener)
        })
    }
}

impl Drop for Pressed {
    fn drop(&mut self) {
        detach(&self.pins).expect("pins are removed");
    }
}

/// SYN cookies at all times.
fn policy(unsolicited: When) -> Policy {
    let listeners = ["0.0.0.0:443", "[::]:443", "0.0.0.0:444"];
    let defence = Defence {
        syn_cookies: When::Always,
        unsolicited,
        listeners: listeners.map(|text| text.parse().expect("an address")).into(),
        ..Defence::OFF
    };
    Policy { defence, ..Policy::UNLIMITED }
}

const GOOD: &str = "198.51.100.10";
const GOOD6: &str = "2001:db8:1::5";

/// A SYN to port 443, behind what is given.
fn syn(packet: Packet) -> Vec<u8> {
    packet.tcp(SYN).build()
}

#[test]
fn an_answer_goes_back_the_way_the_syn_came() -> Result<()> {
    let pressed = Pressed::new("answers")?;
    pressed.run(&[], |kernel| -> Result<()> {
        for (what, frame, ip_at, is_v4) in [
            ("IPv4", syn(v4(GOOD)), 14, true),
            ("IPv6", syn(v6(GOOD6)), 14, false),
            ("a VLAN", syn(ether().vlan(7).v4(GOOD)), 18, true),
            ("two VLANs", syn(ether().provider_vlan(7).vlan(8).v6(GOOD6)), 22, false),
        ] {
            let answer = kernel.answer(&frame)?.with_context(|| format!("{what}: no answer"))?;
            assert_eq!((&answer[..6], &answer[6..12]), (&frame[6..12], &frame[..6]), "{what}");
            assert_eq!(answer[12..ip_at], frame[12..ip_at], "{what}");
            let (from, to) = if is_v4 { (12, 16) } else { (8, 24) };
            let (from, to, bytes) = (ip_at + from, ip_at + to, to - from);
            assert_eq!(answer[from..][..bytes], frame[to..][..bytes], "{what}");
            assert_eq!(answer[to..][..bytes], frame[from..][..bytes], "{what}");
            let tcp = &answer[ip_at + if is_v4 { 20 } else { 40 }..];
            assert_eq!(tcp[..4], [1, 0xbb, 0x9c, 0x40], "{what}");
            assert_eq!((tcp[12] >> 4, tcp[13]), (6, SYN | ACK), "{what}");
            assert_eq!(tcp[8..12], [0, 0, 0, 2], "{what}");
        }
        ensure!(kernel.drops.next_drop().is_none(), "an answer was told as a drop");
        Ok(())
    })
}

#[test]
fn what_must_not_be_answered_is_not() -> Result<()> {
    let pressed = Pressed::new("silence")?;
    let elsewhere = |frame: Vec<u8>| {
        let mut frame = frame;
        frame[33] = 9;
        frame
    };
    pressed.run(&[], |kernel| -> Result<()> {
        for (what, frame) in [
            ("another host's address", elsewhere(syn(v4(GOOD)))),
            ("a port that is not protected", v4(GOOD).tcp(SYN).patched(37, &[0xbc + 2])),
            ("a port on which nobody listens", v4(GOOD).tcp(SYN).patched(37, &[0xbc])),
            ("IPv4 options", syn(ether().v4_options(GOOD, &[1, 1, 1, 0]))),
            ("an extension header", syn(v6(GOOD6).extension(DESTINATION, 0))),
            ("a fragment", syn(v4(GOOD).v4_fragment(0, true))),
            ("a multicast source", syn(v4("224.0.0.1"))),
            ("a broadcast frame", v4(GOOD).tcp(SYN).patched(0, &[0xff; 6])),
        ] {
            ensure!(kernel.answer(&frame)?.is_none(), "{what} was answered");
            ensure!(kernel.judge(&frame)?, "{what} was dropped");
        }
        for flags in [ACK, RST, SYN | ACK, SYN | RST] {
            let frame = v4(GOOD).tcp(flags).build();
            ensure!(!kernel.judge(&frame)?, "{flags:#x} passed");
            ensure!(kernel.judge(&elsewhere(frame))?, "{flags:#x} to another host was dropped");
        }
        Ok(())
    })
}

#[test]
fn packets_of_no_connection_are_refused_at_every_port() -> Result<()> {
    let pressed = Pressed::new("ports")?;
    let nft = |rules: &str| run(pressed.ns.command("nft").arg(rules));
    pressed.run(&[], |kernel| -> Result<()> {
        let nobody = TcpListener::bind("192.0.2.1:0")?.local_addr()?;
        let to = nobody.port().to_be_bytes();
        let frames = [ACK, RST, SYN | ACK].map(|flags| v4(GOOD).tcp(flags).patched(36, &to));
        for frame in &frames {
            ensure!(!kernel.judge(frame)?, "it passed");
        }
        let syn = v4(GOOD).tcp(SYN).patched(36, &to);
        ensure!(kernel.judge(&syn)? && kernel.answer(&syn)?.is_none(), "a SYN is the kernel's");
        nft("table inet t { chain in { type filter hook input priority 0; ct state new accept; }; }")?;
        let _tracked = dial("127.0.0.1:0".parse()?, "127.0.0.1:443".parse()?, WAIT)?;
        kernel.tables.listeners.follow(&policy(When::Always).defence)?;
        for frame in &frames {
            ensure!(kernel.judge(frame)?, "a connection may be translated");
            ensure!(!kernel.judge(&v4(GOOD).tcp(ACK).build())?, "a protected port");
        }
        Ok(())
    })
}

#[test]
fn a_cookie_comes_back_and_a_forged_one_does_not() -> Result<()> {
    let pressed = Pressed::new("cookie")?;
    pressed.run(&[], |kernel| -> Result<()> {
        for (packet, tcp_at) in [(v4(GOOD), 34), (v6(GOOD6), 54)] {
            let cookie = cookie(kernel, &packet, tcp_at)?;
            // The true one last: what follows it closely is taken without.
            for (number, passes) in [(0x1000, false), (0x0100_0000, false), (0, true)] {
                for flags in [ACK, ACK | FIN] {
                    let ack = brought(&packet, tcp_at, flags, cookie.wrapping_add(number));
                    assert_eq!(kernel.judge(&ack)?, passes, "{number}");
                }
            }
        }
        Ok(())
    })
}

/// The network stack sees a cookie only when all that came in one go with it has been judged.
#[test]
fn what_comes_right_behind_a_cookie_passes() -> Result<()> {
    let pressed = Pressed::new("behind")?;
    pressed.run(&[], |kernel| -> Result<()> {
        for (packet, tcp_at) in [(v4(GOOD), 34), (v6(GOOD6), 54)] {
            let first = brought(&packet, tcp_at, ACK, cookie(kernel, &packet, tcp_at)?);
            let mut second = first.clone();
            second[tcp_at + 4..][..4].copy_from_slice(&1450_u32.to_be_bytes());
            let mut others = second.clone();
            others[tcp_at + 1] ^= 1;
            ensure!(!kernel.judge(&second)?, "no cookie came yet");
            // A busy host may take longer than it is remembered.
            until("it passes", WAIT, || {
                ensure!(kernel.judge(&first)?, "it brings a cookie");
                Ok(kernel.judge(&second)?)
            })?;
            ensure!(!kernel.judge(&others)?, "that is of another connection");
            std::thread::sleep(Duration::from_millis(150));
            ensure!(!kernel.judge(&second)?, "it is remembered for ever");
        }
        Ok(())
    })
}

/// The cookie that a client is given.
fn cookie(kernel: &mut Kernel, client: &Packet, tcp_at: usize) -> Result<u32> {
    let answer = kernel.answer(&syn(client.clone()))?.context("no answer")?;
    Ok(u32::from_be_bytes(answer[tcp_at + 4..][..4].try_into()?))
}

/// What a client brings a cookie back with.
fn brought(client: &Packet, tcp_at: usize, flags: u8, cookie: u32) -> Vec<u8> {
    let mut ack = client.clone().tcp(flags).build();
    // The client's sequence number is one on.
    ack[tcp_at + 7] = 2;
    ack[tcp_at + 8..][..4].copy_from_slice(&cookie.wrapping_add(1).to_be_bytes());
    ack
}

/// Cookies that it was given while it had room are of no use to a client that has none left.
#[test]
fn a_cookie_is_no_way_around_the_maximum_of_open_connections() -> Result<()> {
    for unsolicited in [When::Off, When::Auto, When::Always] {
        let pressed = Pressed::new("maximum")?;
        for address in [GOOD, "198.51.100.11"] {
            pressed.ns.ip(&format!("addr add {address}/32 dev lo"))?;
        }
        pressed.ns.ip(&format!("addr add {GOOD6}/128 dev lo"))?;
        let policy = Policy { open_max: 2, ..policy(unsolicited) };
        pressed.run_by(policy, |kernel, listener| -> Result<()> {
            let _upkeep = kernel.attach(&[])?;
            for (client, to, packet, tcp_at) in [
                ("198.51.100.10:0", "192.0.2.1:443", v4(GOOD), 34),
                ("[2001:db8:1::5]:0", "[2001:db8::1]:443", v6(GOOD6), 54),
            ] {
                let cookie = cookie(kernel, &packet, tcp_at)?;
                let mut held = Vec::new();
                for _ in 0..2 {
                    for flags in [ACK, ACK | FIN] {
                        let ack = brought(&packet, tcp_at, flags, cookie);
                        ensure!(kernel.judge(&ack)?, "{client} has room");
                    }
                    held.push((dial(client.parse()?, to.parse()?, WAIT)?, listener.accept()?));
                }
                until("they are counted", WAIT, || {
                    let client = client.parse::<SocketAddr>()?.ip().into();
                    let client = Source::client(client, ClientWidth::USUAL);
                    Ok(kernel.tables.open(client)? == 2)
                })?;
                for flags in [ACK, ACK | FIN] {
                    let before = kernel.tables.counts()?[Reason::OpenConnections as usize].packets;
                    let ack = brought(&packet, tcp_at, flags, cookie);
                    ensure!(!kernel.judge(&ack)?, "{client} has no room");
                    let counted = kernel.tables.counts()?[Reason::OpenConnections as usize].packets;
                    assert_eq!(counted - before, 1, "{client}");
                }
            }
            let other = v4("198.51.100.11");
            let cookie = cookie(kernel, &other, 34)?;
            ensure!(kernel.judge(&brought(&other, 34, ACK, cookie))?, "another has room");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn monitored_a_syn_goes_on_as_it_came() -> Result<()> {
    let pressed = Pressed::new("monitored")?;
    pressed.run(&[Reason::SynCookie, Reason::Unsolicited], |kernel| -> Result<()> {
        for frame in [syn(v4(GOOD)), v4(GOOD).tcp(ACK).build()] {
            ensure!(kernel.answer(&frame)?.is_none());
            ensure!(kernel.judge(&frame)?);
        }
        Ok(())
    })
}
