//! The service policy with real sockets: what is offered is reachable, what the host asked for comes
//! back, and nothing else does.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::Result;
use edge_common::Reason;
use edge_common::service::Service;
use edge_daemon::kernel::Policy;
use edge_tests::{
    Edged, Lab,
    client::{connect, reaches, until},
    lab::{ATTACKER, CLIENT, CLIENT6, EDGE},
    netns::Netns,
    packet::{ACK, HOST_IDENTITY, MOBILITY, RST, SYN, v4, v6},
    plane::{Plane, Verdict},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket,
    sockopt::{BindToDevice, ReceiveTimeout},
};

const WAIT: Duration = Duration::from_millis(300);

fn guarded<'a>(lab: &'a Lab, inbound: &str) -> Result<Edged<'a>> {
    lab.edged()?.set("kernel.services", &format!("{{ inbound = [{inbound}] }}")).start()
}

fn refused(edged: &Edged<'_>) -> Result<f64> {
    Ok(edged.metrics()?.packets(Reason::NoService))
}

fn udp(ns: &Netns, address: &str) -> Result<UdpSocket> {
    let address: SocketAddr = address.parse()?;
    let socket = ns.enter(|| UdpSocket::bind(address))?;
    socket.set_read_timeout(Some(WAIT))?;
    Ok(socket)
}

/// What comes to a socket in time.
fn received(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut room = [0; 64];
    socket.recv(&mut room).ok().map(|length| room[..length].to_vec())
}

/// Whether an echo request is answered.
fn pings(ns: &Netns, target: &str) -> Result<bool> {
    let raw = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp);
    let raw: OwnedFd = ns.enter(raw)?;
    setsockopt(&raw, ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 300_000))?;
    // An echo request of id 0x0101 and number 1, and its checksum.
    let request = [8, 0, 0xf6, 0xfd, 1, 1, 0, 1];
    let std::net::IpAddr::V4(target) = target.parse()? else { unreachable!("IPv4") };
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(target, 0));
    sendto(raw.as_raw_fd(), &request, &to, MsgFlags::empty())?;
    let mut room = [0; 256];
    while let Ok(length) = recv(raw.as_raw_fd(), &mut room, MsgFlags::empty()) {
        // Behind an IPv4 header of 20 bytes: type and id of the answer.
        if length >= 28 && room[20] == 0 && room[24..26] == [1, 1] {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn only_what_is_offered_is_reachable() -> Result<()> {
    let lab = Lab::new()?;
    let edged = guarded(&lab, r#""tcp/2222", "udp/8000-8001""#)?;
    let listen = |port| lab.edge.enter(|| TcpListener::bind((EDGE, port)));
    let _listeners = [listen(2222)?, listen(2223)?];
    for address in [ATTACKER, CLIENT6] {
        assert!(connect(&lab, address, 443, WAIT).is_ok(), "the edge's own listener");
    }
    assert!(connect(&lab, ATTACKER, 80, WAIT).is_ok());
    assert!(connect(&lab, ATTACKER, 2222, WAIT).is_ok());
    assert_eq!(refused(&edged)?, 0.0);
    assert!(!reaches(&lab, ATTACKER, 2223), "it listens, and is not offered");
    assert!(!reaches(&lab, ATTACKER, 9), "not even a reset comes back");
    assert!(refused(&edged)? >= 2.0);
    let servers = [8000, 8001, 8002].map(|port| udp(&lab.edge, &format!("{EDGE}:{port}")));
    let client = udp(&lab.attacker, &format!("{ATTACKER}:0"))?;
    for (server, comes) in servers.into_iter().zip([true, true, false]) {
        let server = server?;
        client.send_to(b"query", server.local_addr()?)?;
        assert_eq!(received(&server).is_some(), comes, "{server:?}");
    }
    Ok(())
}

#[test]
fn what_the_host_asked_for_comes_back() -> Result<()> {
    let lab = Lab::new()?;
    let edged = guarded(&lab, r#""tcp/22""#)?;
    // TCP, with data both ways, over both families.
    for (server, ns) in [(ATTACKER, &lab.attacker), (CLIENT6, &lab.client)] {
        let listener = ns.enter(|| TcpListener::bind((server, 7777)))?;
        let mut ours = lab.edge.enter(|| TcpStream::connect((server, 7777)))?;
        let (mut theirs, _) = listener.accept()?;
        theirs.write_all(b"welcome")?;
        let mut words = [0; 7];
        ours.read_exact(&mut words)?;
        assert_eq!(&words, b"welcome");
    }
    // A closed port: the reset comes back at once.
    let error = lab.edge.enter(|| TcpStream::connect((CLIENT, 9))).expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // DNS: a resolver may connect its socket or not.
    let server = udp(&lab.client, &format!("{CLIENT}:53"))?;
    for is_connected in [true, false] {
        let asking = udp(&lab.edge, &format!("{EDGE}:0"))?;
        if is_connected {
            asking.connect((CLIENT, 53))?;
            asking.send(b"question")?;
        } else {
            asking.send_to(b"question", (CLIENT, 53))?;
        }
        let mut room = [0; 64];
        let (_, from) = server.recv_from(&mut room)?;
        server.send_to(b"answer", from)?;
        assert_eq!(received(&asking).as_deref(), Some(&b"answer"[..]), "{is_connected}");
    }
    // NTP asks from its own port; and a socket connected to its peer is an answer on any port.
    for (port, is_connected, answer) in
        [(123, false, b"\x24time"), (123, false, b"\x1apeer"), (1900, true, b"\x17text")]
    {
        let server = udp(&lab.client, &format!("{CLIENT}:{port}"))?;
        let asking = udp(&lab.edge, &format!("{EDGE}:{port}"))?;
        if is_connected {
            asking.connect((CLIENT, port))?;
        }
        server.send_to(answer, (EDGE, port))?;
        assert_eq!(received(&asking).as_deref(), Some(&answer[..]), "{port}");
    }
    assert_eq!(refused(&edged)?, 0.0);
    // A question for the time, and an order to the server, whatever port they come from.
    let server = udp(&lab.edge, &format!("{EDGE}:123"))?;
    for question in [&b"\x23time"[..], b"\x16list", b"\x17\x00\x03\x2a", b""] {
        udp(&lab.client, &format!("{CLIENT}:123"))?.send_to(question, (EDGE, 123))?;
        assert_eq!(received(&server), None, "{question:?}");
    }
    assert_eq!(refused(&edged)?, 4.0);
    // A socket on a port that is neither is a service, whoever asks.
    let service = udp(&lab.edge, &format!("{EDGE}:1901"))?;
    udp(&lab.client, &format!("{CLIENT}:53000"))?.send_to(b"in", (EDGE, 1901))?;
    assert_eq!(received(&service), None);
    assert_eq!(refused(&edged)?, 5.0);
    // A resolver that takes its ports from wherever it likes has to keep to the host's range, or the host to its.
    let server = udp(&lab.client, &format!("{CLIENT}:5300"))?;
    let answered = |port: u16| -> Result<bool> {
        let asking = udp(&lab.edge, &format!("{EDGE}:{port}"))?;
        asking.send_to(b"question", (CLIENT, 5300))?;
        let (_, from) = server.recv_from(&mut [0; 64])?;
        server.send_to(b"answer", from)?;
        Ok(received(&asking).is_some())
    };
    assert!(answered(40_000)? && !answered(2_000)?);
    lab.edge.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
    edged.tell("reload")?;
    assert!(answered(40_000)? && answered(2_000)?);
    Ok(())
}

/// Sockets that are bound to a device above the guarded one, as are all of a link-local address.
#[test]
fn what_is_bound_to_a_device_above_hears_its_answers() -> Result<()> {
    let lab = Lab::new()?;
    let edged = guarded(&lab, r#""tcp/22""#)?;
    lab.edge.ip("link add br9 type bridge\nlink set br9 up\nlink set edge0 master br9")?;
    lab.edge.ip(&format!("addr del {EDGE}/24 dev edge0\naddr add {EDGE}/24 dev br9"))?;
    until("it is noticed", Duration::from_secs(5), || Ok(edged.log().contains("br9")))?;
    let listener = lab.client.enter(|| TcpListener::bind((CLIENT, 7777)))?;
    let asks = || -> Result<TcpStream> {
        let (kind, flags) = (SockType::Stream, SockFlag::empty());
        let fd = lab.edge.enter(|| socket(AddressFamily::Inet, kind, flags, None))?;
        setsockopt(&fd, BindToDevice, &"br9".into())?;
        let stream = TcpStream::from(fd);
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(CLIENT.parse()?, 7777));
        nix::sys::socket::connect(stream.as_raw_fd(), &to)?;
        Ok(stream)
    };
    let mut ours = asks()?;
    let (mut theirs, _) = listener.accept()?;
    theirs.write_all(b"welcome")?;
    let mut heard = [0; 7];
    ours.read_exact(&mut heard)?;
    assert_eq!(&heard, b"welcome");
    let server = udp(&lab.client, &format!("{CLIENT}:53"))?;
    let asking = udp(&lab.edge, &format!("{EDGE}:0"))?;
    setsockopt(&asking, BindToDevice, &"br9".into())?;
    asking.send_to(b"question", (CLIENT, 53))?;
    let (_, from) = server.recv_from(&mut [0; 64])?;
    server.send_to(b"answer", from)?;
    assert_eq!(received(&asking).as_deref(), Some(&b"answer"[..]));
    // No connection comes in by it, nor anything to a port from which the host does not ask.
    let service = lab.edge.enter(|| TcpListener::bind((EDGE, 40_100)))?;
    assert!(!reaches(&lab, CLIENT, 40_100), "{service:?}");
    let low = udp(&lab.edge, &format!("{EDGE}:1901"))?;
    udp(&lab.client, &format!("{CLIENT}:53000"))?.send_to(b"in", (EDGE, 1901))?;
    assert_eq!(received(&low), None);
    Ok(())
}

#[test]
fn errors_and_neighbours_are_always_heard() -> Result<()> {
    let lab = Lab::new()?;
    let edged = guarded(&lab, "")?;
    let asking = udp(&lab.edge, &format!("{EDGE}:0"))?;
    asking.connect((CLIENT, 9))?;
    asking.send(b"anyone?")?;
    let error = asking.recv(&mut [0; 9]).expect_err("nobody");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "the port unreachable came back");
    // Nothing of IPv6 goes without neighbour discovery; the neighbours forget each other here.
    lab.edge.ip("neigh flush dev edge0")?;
    lab.client.ip("neigh flush dev eth0")?;
    assert!(connect(&lab, CLIENT6, 443, Duration::from_secs(2)).is_ok());
    assert_eq!(refused(&edged)?, 0.0);
    Ok(())
}

#[test]
fn ping_goes_out_and_comes_in_only_if_it_is_offered() -> Result<()> {
    let lab = Lab::new()?;
    let edged = guarded(&lab, "")?;
    assert!(pings(&lab.edge, CLIENT)?, "out");
    assert!(!pings(&lab.client, EDGE)?, "in");
    assert_eq!(refused(&edged)?, 1.0);
    edged.edit("kernel.services", r#"{ inbound = ["ping"] }"#)?;
    edged.tell("reload")?;
    assert!(pings(&lab.client, EDGE)?, "offered");
    Ok(())
}

#[test]
fn a_reload_changes_the_whole_packet_policy() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let client = udp(&lab.attacker, &format!("{ATTACKER}:0"))?;
    let send = |count: u32| -> Result<()> {
        for _ in 0..count {
            let _ = client.send_to(b"hello", (EDGE, 9));
        }
        Ok(())
    };
    let would = |reason: &str| -> Result<f64> {
        let metrics = edged.metrics()?;
        Ok(metrics.sum("edged_packets_would_drop_total", &[("reason", reason)]))
    };
    send(5)?;
    let rules = r#"[{ name = "nine", action = "drop", protocol = "udp", ports = 9 },
                    { name = "all-udp", action = "count", protocol = "udp" }]"#;
    edged.edit("kernel.signature", rules)?;
    edged.edit("kernel.monitor", r#"["signature"]"#)?;
    edged.tell("reload")?;
    send(7)?;
    assert_eq!(would("signature")?, 7.0);
    let metrics = edged.metrics()?;
    assert_eq!(metrics.packets(Reason::Signature), 0.0);
    assert_eq!(metrics.value(r#"edged_signature_hits_total{signature="nine"}"#), 7.0);
    assert_eq!(metrics.value(r#"edged_signature_hits_total{signature="all-udp"}"#), 0.0);
    let event = edged.event("packet_would_drop", ATTACKER)?;
    assert_eq!((&event["reason"], &event["port"]), (&"signature".into(), &9.into()));
    assert!(edged.events()?.iter().all(|event| event["event"] != "packet_dropped"));
    let list = edged.ask("signature list")?;
    assert_eq!(list["entries"][0]["matches"], "udp to 9");
    assert_eq!((&list["entries"][0]["hits"], &list["total"]), (&7.into(), &2.into()));
    let status = edged.ask("status")?;
    assert_eq!(status["monitored"][0], "signature");
    assert_eq!((&status["would_drop"]["signature"], &status["services"]), (&7.into(), &().into()));

    edged.edit("kernel.monitor", "false")?;
    edged.edit("kernel.udp_rate", r#"{ rate = "1/h", burst = 3 }"#)?;
    edged.edit("kernel.services", r#"{ inbound = ["tcp/22", "udp/10"] }"#)?;
    edged.tell("reload")?;
    send(4)?;
    let metrics = edged.metrics()?;
    assert_eq!(metrics.packets(Reason::Signature), 4.0);
    assert_eq!(metrics.value(r#"edged_signature_hits_total{signature="nine"}"#), 11.0);
    for _ in 0..9 {
        let _ = client.send_to(b"hello", (EDGE, 10));
    }
    assert_eq!(edged.metrics()?.packets(Reason::UdpRate), 6.0);
    let status = edged.ask("status")?;
    assert_eq!(status["services"], serde_json::json!(["tcp/443", "tcp/80", "tcp/22", "udp/10"]));

    edged.edit(
        "kernel.signature",
        r#"[{ name = "nine", action = "drop", protocol = "udp", prots = 9 }]"#,
    )?;
    let refused = edged.ctl("reload")?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("did you mean 'ports'?"));
    edged.edit("kernel.signature", "[]")?;
    edged.edit("kernel.udp_rate", r#""off""#)?;
    edged.edit("kernel.services", r#"{ inbound = ["udp/9"] }"#)?;
    edged.tell("reload")?;
    let before = edged.metrics()?.packets(Reason::Pass);
    send(4)?;
    until("they pass", Duration::from_secs(5), || {
        Ok(edged.metrics()?.packets(Reason::Pass) >= before + 4.0)
    })?;
    Ok(())
}

#[test]
fn a_reload_that_the_host_cannot_follow_changes_no_service() -> Result<()> {
    let lab = Lab::new()?;
    let edged = guarded(&lab, "\"tcp/22\"")?;
    edged.edit("kernel.services", r#"{ inbound = ["tcp/2222"] }"#)?;
    edged.edit("kernel.syn_cookies.mode", r#""always""#)?;
    let refused = edged.ctl("reload")?;
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("net.ipv4.tcp_syncookies"), "{words}");
    assert!(reaches(&lab, CLIENT, 22) && !reaches(&lab, CLIENT, 2222));
    Ok(())
}

#[test]
fn each_protocol_is_offered_by_itself() {
    let services =
        [Service::Tcp(443), Service::Udp(53), Service::Protocol(47), Service::Protocol(139)]
            .to_vec();
    let policy = Policy { services: Some(services), ..Policy::UNLIMITED };
    let mut plane = Plane::new(policy.clone());
    const GOOD: &str = "192.0.2.10";
    const GOOD6: &str = "2001:db8:1::5";
    let icmp = |kind| v4(GOOD).protocol(1, &[kind, 0, 0, 0, 0, 0, 0, 0]).build();
    let ports = |source: u16, port: u16| {
        let both = [source.to_be_bytes(), port.to_be_bytes()].concat();
        (v4(GOOD).udp().patched(34, &both), v6("fe80::9").udp().patched(54, &both))
    };
    let mut rows = vec![
        ("TCP", v4(GOOD).tcp(SYN).build(), true),
        ("TCP over IPv6", v6(GOOD6).tcp(RST).build(), true),
        ("another TCP port", v4(GOOD).tcp(SYN).patched(36, &[1, 188]), false),
        ("its reset", v4(GOOD).tcp(RST).patched(36, &[1, 188]), false),
        ("its data", v4(GOOD).tcp(ACK).patched(36, &[1, 188]), false),
        ("UDP", v4(GOOD).udp().build(), true),
        ("another UDP port", ports(40_000, 54).0, false),
        ("GRE", v4(GOOD).protocol(47, &[0; 8]).build(), true),
        ("ESP", v6(GOOD6).protocol(50, &[0; 8]).build(), false),
        (
            "host identity",
            v6(GOOD6).protocol(HOST_IDENTITY, &[59, 0, 0, 0, 0, 0, 0, 0]).build(),
            true,
        ),
        ("mobility", v6(GOOD6).extension(MOBILITY, 0).tcp(SYN).build(), false),
        ("IPIP", v4(GOOD).protocol(4, &[0; 20]).build(), false),
        ("IGMP", v4(GOOD).protocol(2, &[0x11, 0, 0, 0, 0, 0, 0, 0]).build(), true),
        ("IGMP in IPv6", v6(GOOD6).protocol(2, &[0; 8]).build(), false),
        ("ICMPv6 in IPv4", v4(GOOD).protocol(58, &[1, 0, 0, 0, 0, 0, 0, 0]).build(), false),
        ("ICMP in IPv6", v6(GOOD6).protocol(1, &[3, 0, 0, 0, 0, 0, 0, 0]).build(), false),
        ("a later fragment", v4(GOOD).v4_fragment(9, false).protocol(6, &[0; 8]).build(), true),
        ("a first fragment", v4(GOOD).v4_fragment(0, true).udp().patched(36, &[0, 54]), false),
        ("DHCP", ports(67, 68).0, true),
        ("DHCPv6", ports(547, 546).1, true),
        ("DHCPv6 over IPv4", ports(547, 546).0, false),
        ("DHCP over IPv6", ports(67, 68).1, false),
    ];
    // Errors, answers and advice; then requests.
    rows.extend([0, 3, 5, 9, 11, 12, 14].map(|kind| ("ICMP", icmp(kind), true)));
    rows.extend([8, 13, 15, 17, 42].map(|kind| ("an ICMP request", icmp(kind), false)));
    for (kind, comes) in [(1, true), (2, true), (3, true), (4, true), (129, true), (130, true)] {
        rows.push(("ICMPv6", v6(GOOD6).icmpv6(kind).build(), comes));
    }
    rows.extend([128, 139, 160].map(|k| ("an ICMPv6 request", v6(GOOD6).icmpv6(k).build(), false)));
    for (name, frame, comes) in &rows {
        let verdict = if *comes { Verdict::PASS } else { Verdict::of(Reason::NoService) };
        assert_eq!(plane.judge(frame), verdict, "{name}");
    }
    plane.update(&Policy::UNLIMITED);
    for (name, frame, _) in &rows {
        assert_eq!(plane.judge(frame), Verdict::PASS, "{name}");
    }
    plane.update(&policy);
    assert_eq!(plane.judge(&rows[2].1), Verdict::of(Reason::NoService));
}
