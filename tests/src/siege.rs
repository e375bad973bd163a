//! A flood from sources that may not pass, while the daemon crashes, restarts, is upgraded and
//! swaps its lists.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use edge_common::map;

use crate::{
    Edged, Lab,
    client::{reaches, until},
    lab::{ATTACKER, ATTACKER6, CLIENT, EDGE, EDGE6, LISTED, LISTED6},
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
    /// Between a ban's end and the first datagram that passed, whichever was first.
    pub expired_off: Duration,
}

/// For each source, when the first datagram came, in unix milliseconds, and how many did.
type Arrivals = Mutex<BTreeMap<IpAddr, (u64, u64)>>;

/// Bans [`ATTACKER`] and disturbs the daemon so often, in each of the four ways. Then bans
/// [`ATTACKER6`] for some seconds and kills the daemon, to see that ban end. Until then it is the
/// proof that the flood gets through where nothing holds it up.
///
/// # Errors
/// If the lab breaks, or the flood does not get through where it should.
pub fn siege(lab: &Lab, edged: &mut Edged<'_>, rounds: u32) -> Result<Siege> {
    ban(edged, ATTACKER)?;
    let socket = |address: &str| -> Result<UdpSocket> {
        let address = SocketAddr::new(address.parse()?, PORT);
        let socket = lab.edge.enter(|| UdpSocket::bind(address))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let sockets = [socket(EDGE)?, socket(EDGE6)?];
    let (stop, sent, arrivals) = (AtomicBool::new(false), AtomicU64::new(0), Arrivals::default());
    let arrived = |source: &str| -> Result<(u64, u64)> {
        let arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(arrivals.get(&source.parse::<IpAddr>()?).copied().unwrap_or_default())
    };
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| lab.attacker.enter(|| flood(&stop, &sent)));
        scope.spawn(|| catch(&sockets, &arrivals, &stop));
        let mut besieged = || -> Result<Siege> {
            let bans_lost = disturb(edged, lab, rounds)?;
            ensure!(arrived(ATTACKER6)?.1 > 0, "the flood does not get through");
            // Not before what was on its way is in, also on a busy host.
            edged.edit("verdicts.longest", r#""8s""#)?;
            edged.tell("reload")?;
            let until_ms = ban(edged, ATTACKER6)?;
            edged.kill9()?;
            // What is on its way is let in.
            std::thread::sleep(Duration::from_millis(100));
            arrivals.lock().unwrap_or_else(PoisonError::into_inner).remove(&ATTACKER6.parse()?);
            let within = Duration::from_secs(12);
            until("the ban ends", within, || Ok(arrived(ATTACKER6)?.1 > 0))?;
            let first_ms = arrived(ATTACKER6)?.0;
            let early_ms = until_ms.saturating_sub(first_ms);
            ensure!(early_ms < 500, "the ban ended {early_ms} ms too early");
            let leaked =
                [LISTED, LISTED6, ATTACKER].map(|source| arrived(source).map(|(_, count)| count));
            let [listed, listed6, banned] = leaked;
            Ok(Siege {
                sent: sent.load(Relaxed),
                leaked: listed? + listed6? + banned?,
                bans_lost,
                expired_off: Duration::from_millis(first_ms.abs_diff(until_ms)),
            })
        };
        let siege = besieged();
        stop.store(true, Relaxed);
        flood.join().expect("no panic")?;
        siege
    })
}

/// Has a source banned for what it does; when that ends, in unix milliseconds.
fn ban(edged: &Edged<'_>, source: &str) -> Result<u64> {
    // A /64 is one client, named without the host's part.
    let client = source.split("::").next().unwrap_or(source);
    let mut until_ms = None;
    until("a ban", Duration::from_secs(20), || {
        let _ = edged.get(source, "/").key("wrong").arg("--max-time", "1").send();
        let bans = edged.bans()?;
        let ban = bans.iter().find(|ban| ban["culprit"].to_string().contains(client));
        until_ms = ban.and_then(|ban| ban["until_ms"].as_u64());
        Ok(until_ms.is_some())
    })?;
    until_ms.context("found above")
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
    let sockets = [
        from(LISTED, EDGE)?,
        from(ATTACKER, EDGE)?,
        from(LISTED6, EDGE6)?,
        from(ATTACKER6, EDGE6)?,
    ];
    while !stop.load(Relaxed) {
        for socket in &sockets {
            // While nobody listens there may be an error from before to be told of first.
            sent.fetch_add(u64::from(socket.send(b"siege").is_ok()), Relaxed);
        }
        if sent.load(Relaxed) % 96 < 4 {
            // Others need the processors too.
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    Ok(())
}

/// Notes what arrives, until it is told to stop.
fn catch(sockets: &[UdpSocket], arrivals: &Arrivals, stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let mut is_idle = true;
        for socket in sockets {
            let Ok((_, from)) = socket.recv_from(&mut [0; 16]) else { continue };
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.entry(from.ip()).or_insert_with(|| (now_ms(), 0)).1 += 1;
            is_idle = false;
        }
        if is_idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The port of the edge that the flood goes to.
const PORT: u16 = 9_001;
