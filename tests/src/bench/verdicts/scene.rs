//! Who takes part: those who keep the writer busy, and those who send packets all the time, so that the
//! first dropped one tells when dropping began.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    client::{HOST, until},
    daemon::{Edged, Setup},
    lab::{EDGE, FRIEND, Lab},
    talk::{Dial, Talk},
};

/// A daemon whose limits let a load through that a verdict is measured under.
pub(super) fn open(lab: &Lab) -> Result<Setup<'_>> {
    Ok(lab.edged()?.set("limits.global", "\"off\""))
}

/// As [`open`], behind a proxy at [`FRIEND`], for [`under_signals`].
pub(super) fn open_behind_proxy(lab: &Lab) -> Result<Setup<'_>> {
    let setup = open(lab)?.set("server.trusted_proxies", &format!("[\"{FRIEND}/32\"]"));
    Ok(setup.set("server.forwarded_header", "\"x-forwarded-for\""))
}

/// Runs `work` while so many connections of the proxy make signals, this many a second together and each of
/// a source of its own; what came of it, and how many a second there were.
pub(super) fn under_signals<T>(
    lab: &Lab,
    edged: &Edged<'_>,
    (connections, per_second): (u32, u32),
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, f64)> {
    let load = Load::default();
    std::thread::scope(|scope| {
        let _stopped = Stopped(&load.stop);
        for _ in 0..connections {
            scope.spawn(|| disturb(lab, edged, per_second / connections, &load));
        }
        let sent = || load.sent.load(Relaxed);
        until("signals come", Duration::from_secs(10), || Ok(sent() > 0))?;
        let (began, before) = (Instant::now(), sent());
        let done = work()?;
        Ok((done, (sent() - before) as f64 / began.elapsed().as_secs_f64()))
    })
}

/// What those who make signals have in common.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    /// Signals that were made.
    sent: AtomicU64,
    /// Sources that were named.
    named: AtomicU64,
}

/// Stops the others however `work` ends: a scope waits for its threads.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Guesses keys over one connection after the other, many at once, for sources of which none comes twice: each
/// finds no bucket of its own, makes one, in the place of another once there is no room, and is not banned.
fn disturb(lab: &Lab, edged: &Edged<'_>, per_second: u32, load: &Load) -> Result<()> {
    let dial = Dial::new(&edged.ca, HOST)?;
    let pace = Duration::from_secs(1).mul_f64(BATCH as f64 / f64::from(per_second));
    let mut next = Instant::now();
    while !load.stop.load(Relaxed) {
        let mut talk = dial.connect(lab, FRIEND)?;
        while !load.stop.load(Relaxed) {
            let batch = batch(load.named.fetch_add(BATCH as u64, Relaxed));
            if guess(&mut talk, &batch).is_err() {
                break;
            }
            load.sent.fetch_add(BATCH as u64, Relaxed);
            // Who is behind catches up for a tenth of a second at the most.
            next = (next + pace).max(Instant::now() - Duration::from_millis(100));
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}

/// A guess of each of the sources from this one on: each is a /64, which is one client.
fn batch(from: u64) -> String {
    let of = |n: u64| {
        let (high, low) = (n >> 16 & 0xffff, n & 0xffff);
        format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 3fff:0:{high:x}:{low:x}::1\r\n\
             X-API-Key: edged_x\r\n\r\n"
        )
    };
    (from..from + BATCH as u64).map(of).collect()
}

fn guess(talk: &mut Talk, batch: &str) -> Result<()> {
    talk.say(batch.as_bytes())?;
    (0..BATCH).try_for_each(|_| talk.answer().map(drop))
}

/// Sends a datagram every half millisecond from an address of the attacker, until it is dropped.
pub(super) struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(super) fn start(lab: &Lab, address: &str) -> Result<Self> {
        let socket = lab.home(address).enter(|| UdpSocket::bind((address, 0)))?;
        socket.connect((EDGE, 9))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                // Whoever answers that nobody is there is no matter.
                let _ = socket.send(b"tick");
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Gives the attacker one more address, its n-th.
pub(super) fn address(lab: &Lab, n: usize) -> Result<String> {
    let address = format!("198.51.{}.{}", 101 + n / 200, 1 + n % 200);
    lab.attacker.ip(&format!("addr add {address}/32 dev eth0"))?;
    lab.edge.ip(&format!("route add {address}/32 dev edge0"))?;
    Ok(address)
}

/// Waits until a packet of a banned client was dropped; milliseconds since the decision.
pub(super) fn first_drop_ms(edged: &Edged<'_>, client: &str) -> Result<f64> {
    let mut found = None;
    until(&format!("a packet of {client} is dropped"), Duration::from_secs(5), || {
        let list = edged.bans()?;
        let ban = list.iter().find(|ban| ban["culprit"] == client);
        found = ban.and_then(|ban| ban["first_drop_us"].as_f64());
        Ok(found.is_some())
    })?;
    Ok(found.context("found above")? / 1000.0)
}

/// The value that all but one in a hundred are not above.
pub(super) fn p99(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    let place = (values.len() * 99).div_ceil(100).saturating_sub(1);
    values.get(place).copied().context("nothing was measured")
}

/// Requests that are on their way at once: what a client that does not wait for answers sends.
const BATCH: usize = 50;
