//! What one client may send, opened and held, is limited in the kernel, and only for that client.

use std::{
    net::{SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use edge_common::Reason;
use edge_tests::{
    Lab,
    client::{connect, reaches, until},
    lab::{ATTACKER, CLIENT, EDGE, FRIEND},
    netns::run,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect as connect_to, socket,
    },
};

fn flood(lab: &Lab, source: &str, count: u32) -> Result<()> {
    let socket = lab.home(source).enter(|| UdpSocket::bind((source, 0)))?;
    for _ in 0..count {
        // The edge answers with ICMP; that error is not this sender's concern.
        let _ = socket.send_to(b"flood", (EDGE, 9));
    }
    Ok(())
}

/// So many connections, asked for at once; those that were let in.
fn connections(lab: &Lab, source: &str, count: u32) -> Vec<TcpStream> {
    // Nobody's asking again is counted: that takes a second.
    let wait = Duration::from_millis(900);
    std::thread::scope(|scope| {
        let ask = || connect(lab, source, 443, wait);
        let asked: Vec<_> = (0..count).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().filter_map(|asked| asked.join().expect("no panic").ok()).collect()
    })
}

#[test]
fn a_packet_flood_is_cut_to_the_rate() -> Result<()> {
    let lab = Lab::new()?;
    let rate = r#"{ rate = "100/s", burst = 200 }"#;
    let edged = lab.edged()?.set("kernel.packet_rate", rate).start()?;
    flood(&lab, ATTACKER, 3000)?;
    let metrics = edged.metrics()?;
    assert!(metrics.packets(Reason::PacketRate) > 2000.0, "{}", edged.scrape()?);
    assert!(reaches(&lab, CLIENT, 443), "another client is untouched");
    flood(&lab, FRIEND, 3000)?;
    let after = edged.metrics()?.packets(Reason::PacketRate);
    assert_eq!(after, metrics.packets(Reason::PacketRate), "the allow list is above the limits");
    Ok(())
}

#[test]
fn new_connections_are_limited() -> Result<()> {
    let lab = Lab::new()?;
    let rate = r#"{ rate = "5/s", burst = 10 }"#;
    let edged = lab.edged()?.set("kernel.connection_rate", rate).start()?;
    let begun = Instant::now();
    let opened = connections(&lab, ATTACKER, 40).len();
    // What the bucket holds, and what the rate lets in meanwhile.
    let most = 10.0 + 5.0 * begun.elapsed().as_secs_f64();
    assert!((10.0..=most).contains(&(opened as f64)), "{opened} of {most}");
    let refused = edged.metrics()?.packets(Reason::ConnectionRate);
    assert!(refused >= 40.0 - opened as f64 && refused > 0.0, "{refused} refused, {opened} opened");
    assert!(reaches(&lab, CLIENT, 443));
    Ok(())
}

#[test]
fn open_connections_are_limited_exactly() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.set("kernel.open_connections_max", "8").start()?;
    // One after the other: what is counted are connections, and not yet who asks for one.
    let ask = |_| connect(&lab, ATTACKER, 443, Duration::from_millis(500)).ok();
    let held: Vec<_> = (0..12).filter_map(ask).collect();
    assert_eq!(held.len(), 8);
    assert!(edged.metrics()?.packets(Reason::OpenConnections) >= 4.0);
    assert!(reaches(&lab, CLIENT, 443), "another client is untouched");
    drop(held);
    until("closed connections free their places", Duration::from_secs(5), || {
        Ok(reaches(&lab, ATTACKER, 443))
    })?;
    Ok(())
}

/// Whoever holds back the last packet of its handshakes has none of them counted, and sends them all
/// at once.
#[test]
fn connections_that_were_left_half_open_do_not_exceed_the_maximum() -> Result<()> {
    const MAX: u64 = 10;
    let lab = Lab::new()?;
    let edged = lab
        .edged()?
        .set("kernel.open_connections_max", &MAX.to_string())
        .set("kernel.connection_rate", r#""off""#)
        .start()?;
    // What the edge answers goes astray.
    let neighbour =
        |verb: &str, more: &str| lab.edge.ip(&format!("neigh {verb} {ATTACKER} dev edge0{more}"));
    neighbour("replace", " lladdr 02:00:00:00:00:99 nud permanent")?;
    let client = lab.attacker.enter(|| begin(180))?;
    until("they are half open", Duration::from_secs(5), || {
        let half = ["-Hnt", "state", "syn-recv"];
        Ok(run(lab.edge.command("ss").args(half))?.lines().count() == client.len())
    })?;
    neighbour("del", "")?;
    until("the maximum is reached", Duration::from_secs(10), || {
        Ok(edged.metrics()?.packets(Reason::OpenConnections) > 0.0)
    })?;
    // The edge repeats its answers after a second and after three.
    std::thread::sleep(Duration::from_millis(2500));
    let open = edged.ask(&format!("explain {ATTACKER}"))?["open_connections"].as_u64();
    // Those that the card hands over in one go may all be taken.
    assert!(open.is_some_and(|open| (MAX..=MAX + 64).contains(&open)), "{open:?}");
    assert!(reaches(&lab, CLIENT, 443), "another client is untouched");
    Ok(())
}

/// Begins so many connections to the edge, and waits for none.
fn begin(count: usize) -> Result<Vec<OwnedFd>> {
    let one = |_| {
        let kind = SockType::Stream;
        let fd = socket(AddressFamily::Inet, kind, SockFlag::SOCK_NONBLOCK, None)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(ATTACKER.parse()?, 0)))?;
        let to = SockaddrIn::from(SocketAddrV4::new(EDGE.parse()?, 443));
        match connect_to(fd.as_raw_fd(), &to) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
            Err(error) => Err(error.into()),
        }
    };
    (0..count).map(one).collect()
}

#[test]
fn connections_are_bounded_for_all_together() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab
        .edged()?
        .set("bounds.connections_max", "10")
        .set("bounds.handshake_timeout", r#""1s""#)
        .start()?;
    let _held = connections(&lab, ATTACKER, 30);
    until("the bound is counted", Duration::from_secs(5), || {
        Ok(edged.metrics()?.connections(Reason::ConnectionsFull) > 0.0)
    })?;
    until("silent connections time out", Duration::from_secs(5), || {
        Ok(edged.metrics()?.connections(Reason::HandshakeTimeout) > 0.0)
    })?;
    Ok(())
}
