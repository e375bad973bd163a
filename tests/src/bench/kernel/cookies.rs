//! Measure 10: SYN cookies, what one costs and whether honest clients get through a flood.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use edge_common::Reason;
use nix::net::if_::if_nametoindex;

use super::{
    receivers::{without_lists, write},
    rounds::{interleaved, ratios, turn},
};
use crate::{
    bench::{
        Answers, Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Report,
        bpf::{Action, Program, Sources},
        cpu_ns,
        flood::{Flood, Pace, poller, received},
        need_two_cores, pin, version,
    },
    daemon::Edged,
    flood::tcp_counter,
    lab::{EDGE, Lab},
    netns::run,
    packet::{self, SYN},
    random::Random,
};

/// SYN-ACKs per core of the product, the kernel's own cookies and nft's synproxy; then connects
/// through a flood.
pub(in crate::bench) fn answers(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let turns = [
        turn("edged", || {
            let lab = lab()?;
            let edged = cookies(&lab)?;
            let ns = cost(&lab, effort)?;
            let metrics = edged.metrics()?;
            let [answered, passed] = [Reason::SynCookie, Reason::Pass].map(|r| metrics.packets(r));
            // Until a listener is asked, its first SYNs pass.
            ensure!(answered > passed * 9.0, "{answered} SYNs were answered, {passed} passed");
            Ok(ns)
        }),
        turn("kernel cookies", || {
            let lab = lab()?;
            lab.edge.sysctl("ipv4/tcp_syncookies", "2")?;
            let _listener = lab.edge.enter(|| TcpListener::bind((EDGE, PORT)))?;
            polled(&lab)?;
            cost(&lab, effort)
        }),
        turn("nft synproxy", || {
            let lab = lab()?;
            let _listener = lab.edge.enter(|| TcpListener::bind((EDGE, PORT)))?;
            polled(&lab)?;
            run(lab.edge.command("nft").arg("-f").arg(write(&lab, "proxy.nft", SYNPROXY)?))?;
            lab.edge.sysctl("netfilter/nf_conntrack_tcp_loose", "0")?;
            cost(&lab, effort)
        }),
    ];
    let [ours, kernel, proxy] = interleaved(&turns, "ns a SYN", effort, report)?;
    for (theirs, reference) in [
        (kernel, "Linux's own, tcp_syncookies=2".to_owned()),
        (proxy, format!("{}, synproxy", version("nft"))),
    ] {
        report.add(&Line {
            measure: 10,
            name: "SYN-ACK cookies per core".to_owned(),
            rounds: ratios(&theirs, &ours),
            unit: "ratio",
            goal: Goal::AtLeast(3.0),
            reference,
        });
    }
    connects(effort, report)
}

/// Honest clients connect and ask, while a flood of SYNs goes to the same port. As host and product are
/// shipped: cookies while the listener's queue is full, and taken back by what the kernel was asked.
fn connects(effort: Effort, report: &mut Report) -> Result<()> {
    let lab = lab()?;
    let _answers = Answers::take(&lab)?;
    let edged = without_lists(lab.edged()?).start()?;
    let counted = || {
        let metrics = edged.metrics()?;
        let [answered, passed] = [Reason::SynCookie, Reason::Pass].map(|r| metrics.packets(r));
        let [taken, made] =
            ["SyncookiesRecv", "SyncookiesSent"].map(|name| tcp_counter(&lab.edge, name));
        anyhow::Ok([answered, passed, taken? as f64, made? as f64])
    };
    let before = counted()?;
    let lasts = Duration::from_secs(if effort.is_quick() { 20 } else { 600 });
    let (tried, succeeded) = flood().beside(&lab, Pace::PerSecond(FLOOD), || {
        let (start, mut tried, mut succeeded) = (Instant::now(), 0_u32, 0_u32);
        while start.elapsed() < lasts {
            tried += 1;
            succeeded += u32::from(lab.client.enter(is_answered));
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok((tried, succeeded))
    })?;
    let (after, tried_all) = (counted()?, f64::from(tried));
    let [answered, passed, taken, made] = std::array::from_fn(|i| after[i] - before[i]);
    report.note(&format!(
        "{succeeded} of {tried} connects were answered, {taken} of them by cookies; {answered} SYNs were answered, {passed} \
         packets passed, and the kernel made {made} cookies"
    ));
    ensure!(tried > 5, "{tried} connects were tried");
    // What fills the queue again as it empties passes, some thousands a second at whatever rate.
    ensure!(answered > passed * 4.0, "{answered} SYNs were answered, {passed} packets passed");
    ensure!(taken > 0.9 * tried_all, "{taken} of {tried} connects came by cookies");
    report.add(&Line {
        measure: 10,
        name: format!("connects that are answered through {} s of {FLOOD} SYN/s", lasts.as_secs()),
        rounds: vec![f64::from(succeeded) / f64::from(tried)],
        unit: "share",
        goal: Goal::AtLeast(0.99),
        reference: "every one".to_owned(),
    });
    Ok(())
}

/// Whether a new connection's request is answered.
fn is_answered() -> bool {
    let ask = || {
        let edge = SocketAddr::new(EDGE.parse::<IpAddr>()?, PORT);
        let mut stream = TcpStream::connect_timeout(&edge, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n")?;
        anyhow::Ok(stream.read(&mut [0; 16])?)
    };
    ask().is_ok_and(|bytes| bytes > 0)
}

/// A lab whose edge has a way back to any source, by a neighbour that takes everything.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    for key in ["all", "edge0"] {
        lab.edge.sysctl(&format!("ipv4/conf/{key}/rp_filter"), "0")?;
    }
    lab.edge.ip("link set edge0 address 02:00:00:00:00:01\n\
         neigh add 198.51.100.200 lladdr 02:00:00:00:00:02 dev edge0 nud permanent\n\
         route add default via 198.51.100.200 dev edge0")?;
    Ok(lab)
}

/// Cookies for every SYN.
fn cookies(lab: &Lab) -> Result<Edged<'_>> {
    lab.edge.sysctl("ipv4/tcp_syncookies", "2")?;
    without_lists(lab.edged()?).set("kernel.syn_cookies.mode", r#""always""#).start()
}

/// Lets the interface be polled without an XDP program.
fn polled(lab: &Lab) -> Result<()> {
    run(lab.edge.command("ethtool").args(["-K", "edge0", "gro", "on"])).map(drop)
}

/// Receiver CPU nanoseconds a SYN, each of which is answered; the other end's ring, as short as a
/// veth's is, loses many of the answers.
fn cost(lab: &Lab, effort: Effort) -> Result<f64> {
    let ours = poller(lab, &lab.edge, "edge0")?;
    pin(ours, MEASURED_CPU)?;
    // The other end drops what comes back at once, with a thread of its own to do it.
    let drop_all = Program::bare(Action::Drop)?;
    let _link =
        lab.net.enter(|| Ok::<_, anyhow::Error>(drop_all.attach(if_nametoindex("edge")?)?))?;
    pin(poller(lab, &lab.net, "edge")?, LOAD_CPU)?;
    flood().beside(lab, Pace::Full, || {
        std::thread::sleep(Duration::from_millis(500));
        let (ran, syns) = (cpu_ns(ours)?, received(&lab.edge, "edge0")?);
        let answers = received(&lab.net, "edge")?;
        std::thread::sleep(Duration::from_secs(effort.seconds));
        let (ran, syns) = (cpu_ns(ours)? - ran, received(&lab.edge, "edge0")? - syns);
        let answers = received(&lab.net, "edge")? - answers;
        ensure!(answers > 1000, "only {answers} SYN-ACKs came back");
        Ok(ran as f64 / syns as f64)
    })
}

/// SYNs from 65 536 addresses, each with right checksums.
fn flood() -> Flood {
    let mut random = Random::new(10);
    let sources = (0..65_536)
        .map(|_| [11 + random.below(100) as u8, random.next() as u8, random.next() as u8, 1]);
    Flood { frame: syn(), sources: Sources::V4(sources.collect()) }
}

/// A SYN to the edge from 0.0.0.0, for which the sender fills in the source.
fn syn() -> Vec<u8> {
    let options = [2, 4, 5, 0xb4, 1, 3, 3, 7];
    let mut frame = packet::v4("0.0.0.0").tcp(SYN).bytes(&options).build();
    frame[18..20].fill(0);
    let edge: std::net::Ipv4Addr = EDGE.parse().expect("an address");
    frame[30..34].copy_from_slice(&edge.octets());
    frame[36..38].copy_from_slice(&PORT.to_be_bytes());
    frame[38..42].fill(0);
    frame[46] = 0x70;
    packet::sum_v4(&mut frame);
    packet::sum_tcp_v4(&mut frame);
    frame
}

const SYNPROXY: &str = "table ip bench {\n\
    chain first {\n\
    type filter hook prerouting priority raw;\n\
    tcp dport 80 tcp flags syn notrack\n}\n\
    chain second {\n\
    type filter hook input priority 0;\n\
    tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm\n\
    ct state invalid drop\n}\n}\n";

/// Where the edge answers plain HTTP.
const PORT: u16 = 80;
/// SYNs a second beside honest connects.
const FLOOD: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(3);
