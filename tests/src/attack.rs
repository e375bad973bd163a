//! Slow attackers: each shakes hands, and is then as slow as it can be until it is thrown out; then it comes back.

use std::{
    net::Ipv4Addr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::sync::Semaphore;

use crate::{
    client::HOST,
    frames::{self, END_HEADERS, END_STREAM, HEADERS, frame},
    load::{Client, Connection, get},
};

/// How an attacker is slow.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A header field of a few bytes now and then.
    Head,
    /// A body of which a few bytes come now and then.
    Body,
    /// An answer of 1 MiB of which it takes a few bytes now and then.
    Read,
    /// As many such answers at once as HTTP/2 allows, on each connection.
    Streams,
}

/// How many attackers there are.
#[derive(Default)]
pub struct Crowd {
    now: AtomicUsize,
    /// The most that there were at once.
    pub most: AtomicUsize,
    /// They are to go.
    pub is_over: AtomicBool,
}

impl Crowd {
    /// Waits until they have come, or no more of them come.
    ///
    /// # Errors
    /// If not one comes.
    pub fn full(&self, count: usize) -> Result<()> {
        let (mut last, mut risen) = (0, Instant::now());
        loop {
            let now = self.most.load(Relaxed);
            if now >= count {
                return Ok(());
            }
            if now > last {
                (last, risen) = (now, Instant::now());
            }
            // An edge that sheds them is no failure of the bench, if it has held some.
            if risen.elapsed() > Duration::from_secs(5) {
                ensure!(now > 0, "no attacker came in");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Attackers on this thread until it is over, fifty to each address from `first` on.
///
/// # Errors
/// If there are more of them than addresses.
pub async fn attackers(
    first: Ipv4Addr,
    client: &Client,
    kind: Kind,
    count: usize,
    crowd: &Arc<Crowd>,
) -> Result<()> {
    let client = match kind {
        Kind::Read => client.clone().window(4096),
        Kind::Streams => client.clone().window(4096).alpn("h2"),
        Kind::Head | Kind::Body => client.clone(),
    };
    let (client, gate) = (Rc::new(client), Rc::new(Semaphore::new(AT_ONCE)));
    for n in 0..count {
        let source = u32::from(first) + u32::try_from(n / PER_SOURCE)?;
        let (client, gate, crowd) = (Rc::clone(&client), Rc::clone(&gate), Arc::clone(crowd));
        tokio::task::spawn_local(async move {
            loop {
                live(source.into(), kind, &client, &gate, &crowd).await;
                tokio::time::sleep(BACK).await;
            }
        });
    }
    while !crowd.is_over.load(Relaxed) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// One connection from its start to its end.
async fn live(source: Ipv4Addr, kind: Kind, client: &Client, gate: &Semaphore, crowd: &Crowd) {
    let connection = {
        let Ok(_turn) = gate.acquire().await else { return };
        client.clone().source(source.into()).connect().await
    };
    let Ok(connection) = connection else { return };
    let now = crowd.now.fetch_add(1, Relaxed) + 1;
    crowd.most.fetch_max(now, Relaxed);
    // However it ends, it is thrown out.
    let _ = be_slow(connection, kind).await;
    crowd.now.fetch_sub(1, Relaxed);
}

async fn be_slow(mut connection: Connection, kind: Kind) -> Result<()> {
    let (start, more) = match kind {
        Kind::Head => (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n").into_bytes(), "x-a: b\r\n"),
        Kind::Body => (
            format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1048576\r\n\r\n")
                .into_bytes(),
            "few bytes",
        ),
        Kind::Read => (get("/bytes/1048576"), ""),
        Kind::Streams => {
            let ask = frames::get(HOST, "/bytes/1048576");
            let flags = END_HEADERS | END_STREAM;
            let asks = (0..100).flat_map(|n| frame(HEADERS, flags, 2 * n + 1, &ask));
            (frames::preface().into_iter().chain(asks).collect(), "")
        }
    };
    connection.send(&start).await?;
    loop {
        match kind {
            // What comes back is the end, or its announcement.
            Kind::Head | Kind::Body => {
                if tokio::time::timeout(PAUSE, connection.sip(1)).await.is_ok() {
                    return Ok(());
                }
                connection.send(more.as_bytes()).await?;
            }
            Kind::Read | Kind::Streams => {
                tokio::time::sleep(PAUSE).await;
                ensure!(connection.sip(16).await? > 0, "closed");
            }
        }
    }
}

/// Connections of one address: fewer than any bound by source is about.
const PER_SOURCE: usize = 50;
/// Handshakes at once.
const AT_ONCE: usize = 64;
/// From one sign of life to the next.
const PAUSE: Duration = Duration::from_secs(4);
/// From being thrown out to coming back.
const BACK: Duration = Duration::from_millis(200);
