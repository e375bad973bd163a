//! A flood from sources that may not pass, while the daemon crashes, restarts, is upgraded and
//! swaps its lists.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use edge_common::map;

use crate::{
    Edged, Lab,
    client::{reaches, until},
    lab::{ATTACKER, CLIENT, EDGE, EDGE6, LISTED, LISTED6},
};

/// What came of it.
#[derive(Debug, Default)]
pub struct Siege {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Datagrams of denied sources, or of banned ones before the end of their ban, that reached a
    /// socket.
    pub leaked: u64,
    /// Times that a ban was not there after a disturbance.
    pub bans_lost: u32,
    /// From the ban's end to the first datagram that passed.
    pub expired_late: Duration,
    /// Crashes, restarts, upgrades and swaps, each so often.
    pub rounds: u32,
}

/// When the first datagram of a source came, in unix milliseconds, and how many did.
type Arrivals = BTreeMap<IpAddr, (u64, u64)>;

/// Bans [`ATTACKER`] and disturbs the daemon so often, in each of the four ways. Then waits for the
/// end of the ban, which must last that long.
///
/// # Errors
/// If the lab breaks, or the flood does not get through when the ban is over.
pub fn siege(lab: &Lab, edged: &mut Edged<'_>, rounds: u32) -> Result<Siege> {
    for _ in 0..6 {
        let _ = edged.get(ATTACKER, "/").key("wrong").arg("--max-time", "1").send();
    }
    until("a ban", Duration::from_secs(2), || edged.banned(ATTACKER))?;
    let bans = edged.bans()?;
    let until_ms = bans[0]["until_ms"].as_u64().context("the end of a ban")?;

    let sockets = [(EDGE, PORT), (EDGE6, PORT)].map(|(address, port)| {
        lab.edge.enter(|| -> Result<UdpSocket> {
            let socket = UdpSocket::bind(SocketAddr::new(address.parse()?, port))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    });
    let [v4, v6] = sockets;
    let sockets = [v4?, v6?];
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| lab.attacker.enter(|| flood(&stop, &sent)));
        let catcher = scope.spawn(|| catch(&sockets, &stop));
        let disturbed = disturb(edged, lab, rounds);
        // The ban ends by the kernel's clock alone.
        let killed = edged.kill9();
        let wait = Duration::from_millis(until_ms.saturating_sub(now_ms())) + LATE_MAX;
        std::thread::sleep(wait);
        stop.store(true, Relaxed);
        flood.join().expect("no panic")?;
        let arrivals = catcher.join().expect("no panic");
        killed?;
        let bans_lost = disturbed?;
        edged.start_again()?;
        let first = |source: &str| -> Result<Option<(u64, u64)>> {
            Ok(arrivals.get(&source.parse::<IpAddr>()?).copied())
        };
        let denied = [LISTED, LISTED6].map(|s| first(s).map(|f| f.map_or(0, |(_, count)| count)));
        let [v4, v6] = denied;
        let (at_ms, count) = first(ATTACKER)?.context("the ban did not end")?;
        Ok(Siege {
            sent: sent.load(Relaxed),
            // Before its end each one counts; the catcher knows no more than when the first came.
            leaked: v4? + v6? + if at_ms < until_ms { count } else { 0 },
            bans_lost,
            expired_late: Duration::from_millis(at_ms.saturating_sub(until_ms)),
            rounds,
        })
    })
}

/// Crash, restart, upgrade, swap; how often the ban was not there afterwards.
fn disturb(edged: &mut Edged<'_>, lab: &Lab, rounds: u32) -> Result<u32> {
    let mut lost = 0;
    let mut look = |edged: &Edged<'_>| -> Result<()> {
        lost += u32::from(!edged.banned(ATTACKER)?);
        ensure!(reaches(lab, CLIENT, 443), "the edge is not there");
        Ok(())
    };
    let own = Path::new(&lab.pin_dir()).join(map::ABI);
    for round in 0..rounds {
        edged.kill9()?;
        edged.start_again()?;
        look(edged)?;
        edged.terminate()?;
        edged.start_again()?;
        look(edged)?;
        // As another version leaves it: its folder has another name.
        edged.terminate()?;
        fs::rename(&own, own.with_file_name("v0"))?;
        edged.start_again()?;
        look(edged)?;
        let more = if round % 2 == 0 { r#", "192.0.2.128/25""# } else { "" };
        edged.edit("lists.deny", &format!(r#"["203.0.113.0/24", "2001:db8:bad::/48"{more}]"#))?;
        edged.tell("reload")?;
        look(edged)?;
    }
    Ok(lost)
}

/// Sends from denied and banned sources until it is told to stop.
fn flood(stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let from = |source: &str, to: &str| -> Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddr::new(source.parse()?, 0))?;
        socket.connect(SocketAddr::new(to.parse()?, PORT))?;
        Ok(socket)
    };
    let sockets = [from(LISTED, EDGE)?, from(ATTACKER, EDGE)?, from(LISTED6, EDGE6)?];
    while !stop.load(Relaxed) {
        for socket in &sockets {
            // While nobody listens there may be an error from before to be told of first.
            sent.fetch_add(u64::from(socket.send(b"siege").is_ok()), Relaxed);
        }
        if sent.load(Relaxed) % 96 < 3 {
            // Others need the processors too.
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    Ok(())
}

/// Notes what arrives.
fn catch(sockets: &[UdpSocket], stop: &AtomicBool) -> Arrivals {
    let mut arrivals = Arrivals::new();
    while !stop.load(Relaxed) {
        let mut is_idle = true;
        for socket in sockets {
            let Ok((_, from)) = socket.recv_from(&mut [0; 16]) else { continue };
            let (_, count) = arrivals.entry(from.ip()).or_insert_with(|| (now_ms(), 0));
            *count += 1;
            is_idle = false;
        }
        if is_idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    arrivals
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The port of the edge that the flood goes to.
const PORT: u16 = 9_001;
/// After the end of the ban, the flood is let through within this time.
const LATE_MAX: Duration = Duration::from_millis(1500);
