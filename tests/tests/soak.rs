//! A soak with chaos: steady load over HTTP/1 and HTTP/2, while the configuration reloads, upstreams die and return, and certificates
//! change. Half a minute by itself; `EDGED_SOAK_SECONDS`, or `cargo xtask soak`, for longer.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::{Blame, Plane, Reason};
use edge_tests::{
    Edged, Lab,
    client::{HOST, until},
    lab::{EDGE, FRIEND, ORIGIN},
    load::{self, Client, certificate},
    pki::{Authority, DAY},
    upstream::Upstream,
};
use rustls::NamedGroup;

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    /// Answers with 200.
    served: u64,
    /// Answers by which the edge tells of an upstream: 502, 503, 504.
    upstream: u64,
    /// Whatever else came, in words.
    wrong: Vec<String>,
    /// Certificates that were shown.
    certificates: BTreeSet<Vec<u8>>,
}

/// What was done to the edge.
#[derive(Debug, Default)]
struct Chaos {
    reloads: u32,
    deaths: u32,
    certificates: u32,
}

#[test]
fn chaos_costs_no_request_no_descriptor_and_no_memory() -> Result<()> {
    let seconds = std::env::var("EDGED_SOAK_SECONDS").map_or(Ok(30), |text| text.parse())?;
    let length = Duration::from_secs(seconds);
    let lab = Lab::new()?;
    let authority = Authority::new(lab.dir(), "soak")?;
    let edged = edged(&lab, &authority)?;
    let client = Client::new(
        &authority.ca,
        (EDGE.parse::<std::net::Ipv4Addr>()?, 443).into(),
        NamedGroup::X25519,
    )?
    .source(FRIEND.parse()?);
    // What is taken once and for all is taken before.
    let _servers = PORTS.map(|port| Upstream::start(&lab.origin, server(port)));
    let warm = talk(&lab, &client, Duration::from_secs(2))?;
    ensure!(warm.wrong.is_empty() && warm.served > 0, "{warm:?}");
    drop(_servers);
    let before = settled(&edged)?;

    let is_over = AtomicBool::new(false);
    let (seen, chaos, held) = std::thread::scope(|scope| -> Result<_> {
        let chaos = scope.spawn(|| disturb(&lab, &edged, &authority, &is_over));
        let held = scope.spawn(|| watch(edged.pid(), length, &is_over));
        let seen = talk(&lab, &client, length);
        is_over.store(true, Relaxed);
        let (chaos, held) = (chaos.join().expect("no panic"), held.join().expect("no panic"));
        Ok((seen?, chaos?, held?))
    })?;
    let after = settled(&edged)?;
    let (growth, mean) = growth(&held);
    let Seen { served, upstream, wrong, certificates } = &seen;
    println!(
        "{seconds} s: {served} served, {upstream} told of an upstream, {} wrong; {chaos:?}, {} certificates seen; \
         descriptors {before} before, {after} after; memory {mean:.1} MiB, {growth:+.2} MiB over the second half",
        wrong.len(),
        certificates.len()
    );
    assert!(wrong.is_empty(), "{:?}", &wrong[..wrong.len().min(5)]);
    assert!(*served > 10 * seconds && chaos.reloads > 2 && chaos.deaths > 2, "{chaos:?}");
    assert!(certificates.len() > 2, "certificates that change are shown");
    // A server that dies with a request costs that request at the most.
    assert!(*upstream * 100 <= *served, "{upstream} of {served}");
    blameless(&edged)?;
    assert!(after <= before, "{after} descriptors, {before} before");
    assert!(growth < 4.0, "{growth} MiB more, of {mean}");
    Ok(())
}

fn edged<'a>(lab: &'a Lab, authority: &Authority) -> Result<Edged<'a>> {
    let leaf = authority.sign("site", &[HOST], -60, DAY)?;
    let servers = PORTS.map(|port| format!("\"{}\"", server(port))).join(", ");
    lab.edged()?
        .set("tls.certificate", &format!("{:?}", leaf.chain))
        .set("tls.key", &format!("{:?}", leaf.key))
        .set("limits.per_source", r#""off""#)
        .set("limits.handshakes", r#""off""#)
        .set("upstream.0.servers", &format!("[{servers}]"))
        .set("upstream.0.idle_timeout", r#""1s""#)
        .set("upstream.0.ejection.first", r#""500ms""#)
        .start()
}

/// Reloads, kills and renews in turns until it is over.
fn disturb(
    lab: &Lab,
    edged: &Edged<'_>,
    authority: &Authority,
    is_over: &AtomicBool,
) -> Result<Chaos> {
    let mut servers = PORTS.map(|port| Upstream::start(&lab.origin, server(port)).ok());
    let (mut chaos, mut turn) = (Chaos::default(), 0_u32);
    while !is_over.load(Relaxed) {
        let which = turn as usize % PORTS.len();
        servers[which] = None;
        chaos.deaths += 1;
        std::thread::sleep(PAUSE);
        servers[which] = Some(Upstream::start(&lab.origin, server(PORTS[which]))?);
        // One value of the whole, and one for which the upstream is made anew.
        edged.edit("verdicts.factor", &format!("{}", 2 + turn % 5))?;
        edged.edit("upstream.0.queue_max", &format!("{}", 100 + turn % 5))?;
        edged.tell("reload")?;
        chaos.reloads += 1;
        std::thread::sleep(PAUSE);
        if turn % 3 == 0 {
            authority.sign("site", &[HOST], -60, DAY)?;
            chaos.certificates += 1;
        }
        turn += 1;
    }
    Ok(chaos)
}

/// Steady load for a while.
fn talk(lab: &Lab, client: &Client, length: Duration) -> Result<Seen> {
    load::run(lab.home(FRIEND), || async move {
        let end = Instant::now() + length;
        let seen = Rc::new(RefCell::new(Seen::default()));
        let mut tasks = Vec::new();
        for _ in 0..CLIENTS {
            let (one, two) = (client.clone().alpn("http/1.1"), client.clone().alpn("h2"));
            tasks.push(tokio::task::spawn_local(http1(one, Rc::clone(&seen), end)));
            tasks.push(tokio::task::spawn_local(http2(two, Rc::clone(&seen), end)));
        }
        for task in tasks {
            task.await?;
        }
        Ok(seen.take())
    })
}

/// Connection after connection, each with some requests.
async fn http1(client: Client, seen: Rc<RefCell<Seen>>, end: Instant) {
    while Instant::now() < end {
        if let Err(e) = http1_connection(&client, &seen, end).await {
            seen.borrow_mut().wrong.push(format!("HTTP/1: {e:#}"));
            tokio::time::sleep(EVERY).await;
        }
    }
}

async fn http1_connection(client: &Client, seen: &RefCell<Seen>, end: Instant) -> Result<()> {
    let mut connection = client.connect().await?;
    seen.borrow_mut().certificates.insert(connection.certificate());
    for _ in 0..PER_CONNECTION {
        if Instant::now() >= end {
            break;
        }
        connection.send(&load::get("/health")).await?;
        let (status, _) = connection.any_answer().await?;
        note(seen, status);
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}

async fn http2(client: Client, seen: Rc<RefCell<Seen>>, end: Instant) {
    while Instant::now() < end {
        if let Err(e) = http2_connection(&client, &seen, end).await {
            seen.borrow_mut().wrong.push(format!("HTTP/2: {e:#}"));
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// Several streams at once, again and again.
async fn http2_connection(client: &Client, seen: &RefCell<Seen>, end: Instant) -> Result<()> {
    let stream = client.stream().await?;
    seen.borrow_mut().certificates.insert(certificate(&stream));
    let (mut send, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::task::spawn_local(connection);
    for _ in 0..PER_CONNECTION {
        if Instant::now() >= end {
            break;
        }
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            let request = http::Request::get(format!("https://{HOST}/health")).body(())?;
            send = send.ready().await?;
            answers.push(send.send_request(request, true)?.0);
        }
        for answer in answers {
            let (head, mut body) = answer.await?.into_parts();
            while let Some(part) = body.data().await {
                body.flow_control().release_capacity(part?.len())?;
            }
            note(seen, head.status.as_u16());
        }
        tokio::time::sleep(EVERY).await;
    }
    drop(send);
    Ok(connection.await??)
}

fn note(seen: &RefCell<Seen>, status: u16) {
    let mut seen = seen.borrow_mut();
    match status {
        200 => seen.served += 1,
        502..=504 => seen.upstream += 1,
        _ => seen.wrong.push(format!("status {status}")),
    }
}

/// Nothing was refused that is the edge's fault, or that it took for a client's.
fn blameless(edged: &Edged<'_>) -> Result<()> {
    let metrics = edged.metrics()?;
    let ours =
        Reason::ALL.iter().filter(|reason| matches!(reason.blame(), Blame::Edge | Blame::Client));
    for reason in ours {
        let count = match reason.plane() {
            Plane::Packet => metrics.packets(*reason),
            Plane::Connection => metrics.connections(*reason),
            Plane::Request => metrics.requests(*reason),
        };
        ensure!(count == 0.0, "{count} of {}", reason.name());
    }
    Ok(())
}

/// Open descriptors once all connections have ended.
fn settled(edged: &Edged<'_>) -> Result<usize> {
    let mut low = usize::MAX;
    let count =
        || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/fd", edged.pid()))?.count());
    until("no connection is open", Duration::from_secs(10), || {
        Ok(edged.metrics()?.value("edged_connections_open") == 0.0)
    })?;
    // Pooled connections to upstreams end a second later.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        low = low.min(count()?);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(low)
}

/// MiB in memory, at sixty times.
fn watch(pid: u32, length: Duration, is_over: &AtomicBool) -> Result<Vec<f64>> {
    let mut held = Vec::new();
    while !is_over.load(Relaxed) {
        held.push(resident(Path::new(&format!("/proc/{pid}/statm")))?);
        std::thread::sleep(length / 60);
    }
    Ok(held)
}

fn resident(statm: &Path) -> Result<f64> {
    let text = fs::read_to_string(statm)?;
    let pages: f64 = text.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096.0 / f64::from(1 << 20))
}

/// By how much the line through the second half rises, and the mean of that half.
fn growth(held: &[f64]) -> (f64, f64) {
    let half = &held[held.len() / 2..];
    let count = half.len() as f64;
    let (mean_x, mean_y) = ((count - 1.0) / 2.0, half.iter().sum::<f64>() / count);
    let (mut over, mut under) = (0.0, 0.0);
    for (n, y) in half.iter().enumerate() {
        let x = n as f64 - mean_x;
        over += x * (y - mean_y);
        under += x * x;
    }
    (over / under * (count - 1.0), mean_y)
}

fn server(port: u16) -> SocketAddr {
    SocketAddr::new(ORIGIN.parse().expect("a constant"), port)
}

#[test]
fn a_line_that_rises_is_told_from_one_that_does_not() {
    let (rise, mean) = growth(&[9.0, 9.0, 9.0, 9.0, 0.0, 1.0, 2.0, 3.0]);
    assert!((rise - 3.0).abs() < 1e-9 && (mean - 1.5).abs() < 1e-9);
    assert!(growth(&[5.0; 10]).0.abs() < 1e-9);
}

const PORTS: [u16; 2] = [8081, 8082];
/// Of each version.
const CLIENTS: usize = 4;
const STREAMS: usize = 4;
const PER_CONNECTION: usize = 50;
/// From one request to the next.
const EVERY: Duration = Duration::from_millis(20);
/// How long a server is dead, and how long all are alive.
const PAUSE: Duration = Duration::from_millis(1200);
