//! The ceiling of memory, under attacks that reach it: what is held stays within it, who is slow makes room or is refused, good
//! clients are served, what was begun in good faith is finished, and all of that ends with the attack.

use std::{
    fs,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab,
    attack::{Crowd, Kind, attackers},
    client::until,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, RESET, frame, get, preface},
    lab::{CLIENT, EDGE, ORIGIN},
    load::{self, Client, descriptors},
    metrics::Metrics,
    talk::{Dial, Talk},
    upstream::Upstream,
};
use rustls::NamedGroup;

#[test]
fn whoever_is_slow_fills_memory_to_its_ceiling_and_no_further() -> Result<()> {
    descriptors(20_000)?;
    let lab = Lab::new()?;
    let _upstream = Upstream::start(&lab.origin, format!("{ORIGIN}:8080").parse()?)?;
    lab.attacker.ip(&format!("route add local {ATTACKERS} dev lo"))?;
    lab.edge.ip(&format!("route add {ATTACKERS} dev edge0"))?;
    let edged = edged(&lab)?;
    let client =
        Client::new(&edged.ca, (EDGE.parse::<Ipv4Addr>()?, 443).into(), NamedGroup::X25519)?;
    // What is taken once and for all is taken before.
    edged.tell("reload")?;
    until("it serves", RECOVERED, || Ok(is_served(&edged)))?;
    let ceiling = held(&edged)? + ROOM;
    edged.edit("bounds.memory_max", &format!("\"{ceiling}B\""))?;
    edged.tell("reload")?;
    for (kind, pressed, margin) in ATTACKS {
        let before = pressed_by(&edged.metrics()?);
        let crowd = Arc::new(Crowd::default());
        std::thread::scope(|scope| -> Result<()> {
            let download = begin(&lab, &edged, "GET /bytes/33554432", 0)?;
            let upload = begin(&lab, &edged, "POST /", UPLOAD)?;
            let download = scope.spawn(|| take(download, &crowd.is_over));
            let upload = scope.spawn(|| give(upload, &crowd.is_over));
            let attack = scope.spawn(|| {
                let first = Ipv4Addr::new(198, 18, 0, 1);
                load::run(&lab.attacker, async || {
                    attackers(first, &client, kind, MANY, &crowd).await
                })
            });
            let most = besieged(&edged, before, pressed);
            // Who is slow makes room for whoever is not, while the attack goes on.
            let meanwhile =
                until("a good client is served beside them", BESIDE, || Ok(is_served(&edged)));
            let over = Instant::now();
            crowd.is_over.store(true, Relaxed);
            attack.join().expect("no panic")?;
            let recovered = until("it serves again", RECOVERED, || Ok(is_served(&edged)));
            let after = over.elapsed();
            let (taken, given) = (download.join(), upload.join());
            let mib = |bytes: u64| bytes >> 20;
            println!(
                "{kind:?}: {} attackers at once, {} MiB of {} at the most, served again after {after:?}",
                crowd.most.load(Relaxed),
                mib(*most.as_ref().unwrap_or(&0)),
                mib(ceiling),
            );
            let most = most?;
            meanwhile.with_context(|| format!("{kind:?}"))?;
            assert!(most <= ceiling + margin, "{kind:?}: {} of {} MiB", mib(most), mib(ceiling));
            recovered.with_context(|| {
                format!("{kind:?}: {} MiB are held", mib(held(&edged).unwrap_or(0)))
            })?;
            taken.expect("no panic").context("a download that was begun before")?;
            given.expect("no panic").context("an upload that was begun before")?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn streams_that_memory_has_no_room_for_cost_their_client_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let upstream = Upstream::start(&lab.origin, format!("{ORIGIN}:8080").parse()?)?;
    let edged = lab
        .edged()?
        .set("route.1.auth", r#""none""#)
        .set("bounds.http2_waste_max", "100")
        .set("bounds.requests_per_connection", "302")
        .start()?;
    let dial = |protocol| Dial::new(&edged.ca, "edge.test")?.alpn(protocol).connect(&lab, CLIENT);
    let mut talk = dial("h2")?;
    talk.say(&preface())?;
    let ask = |n: u32, path| {
        // Those of the first wave have a body.
        let ends = if (1..=75).contains(&n) { 0 } else { END_STREAM };
        frame(HEADERS, END_HEADERS | ends, 2 * n + 1, &get("edge.test", path))
    };
    talk.say(&ask(0, "/hold"))?;
    until("the upstream has it", RECOVERED, || Ok(upstream.held() == 1))?;
    edged.edit("bounds.memory_max", r#""1MiB""#)?;
    edged.tell("reload")?;
    until("nobody comes in", RECOVERED, || {
        let _ = dial("http/1.1");
        Ok(edged.metrics()?.connections(Reason::MemoryFull) >= 1.0)
    })?;
    let before = edged.metrics()?.connections(Reason::MemoryFull);
    for many in (1..=300).collect::<Vec<_>>().chunks(75) {
        talk.say(&many.iter().flat_map(|n| ask(*n, "/")).collect::<Vec<_>>())?;
        let last = frame(RESET, 0, 2 * many[74] + 1, &[0, 0, 0, 7]);
        let is_told = |bytes: &[u8]| bytes.windows(last.len()).any(|at| at == last);
        let heard = talk.hear(RECOVERED, is_told)?;
        assert!(!heard.closed && is_told(&heard.bytes), "{}", many[74]);
        if many[0] == 1 {
            // They were on their way.
            let bodies = many.iter().flat_map(|n| frame(DATA, END_STREAM, 2 * n + 1, b"a"));
            talk.say(&bodies.collect::<Vec<_>>())?;
        }
    }
    let page = edged.metrics()?;
    assert_eq!(page.connections(Reason::MemoryFull) - before, 300.0, "each is counted");
    assert_eq!(page.connections(Reason::StreamsFull), 0.0, "and only once");
    assert_eq!(page.connections(Reason::ProtocolAbuse), 0.0);
    edged.edit("bounds.memory_max", r#""0B""#)?;
    edged.tell("reload")?;
    until("there is room", RECOVERED, || Ok(is_served(&edged)))?;
    assert_eq!(talk.ask_h2(603, &get("edge.test", "/"))?, 200, "and goes on as before");
    let is_spent = || Ok(edged.metrics()?.connections(Reason::ConnectionSpent) == 1.0);
    until("those were requests as well", RECOVERED, is_spent)?;
    Ok(())
}

/// A daemon whose memory is the only thing that bounds how many may come.
fn edged(lab: &Lab) -> Result<Edged<'_>> {
    let (off, many) = (r#""off""#, "20000");
    lab.edged()?
        .set("kernel.packet_rate", off)
        .set("kernel.connection_rate", off)
        .set("verdicts.never_ban", &format!("[{ATTACKERS:?}]"))
        .set("bounds.requests_max", many)
        .set("upstream.0.requests_max", many)
        .set("upstream.0.server_requests_max", many)
        .set("route.1.auth", r#""none""#)
        .start()
}

/// Clients that were refused, or given up, for want of memory.
fn pressed_by(page: &Metrics) -> f64 {
    page.connections(Reason::MemoryFull) + page.requests(Reason::Overload)
}

/// Waits until the edge has refused somebody or given somebody up for want of memory, and then for a while, in which those who were let in have
/// time to take more; the most bytes that were held.
fn besieged(edged: &Edged<'_>, before: f64, pressed: Duration) -> Result<u64> {
    let (began, mut full, mut most) = (Instant::now(), None, 0);
    loop {
        let page = Metrics::parse(&edged.scrape()?)?;
        most = most.max(resident(edged.pid())?).max(page.value("edged_memory_bytes") as u64);
        if full.is_none() && pressed_by(&page) > before {
            full = Some(Instant::now());
        }
        if full.is_some_and(|full| full.elapsed() > pressed) {
            return Ok(most);
        }
        ensure!(
            began.elapsed() < Duration::from_secs(30),
            "the attack does not come near the ceiling"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A request whose client is in no hurry.
fn begin(lab: &Lab, edged: &Edged<'_>, line: &str, length: usize) -> Result<Talk> {
    let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1").connect(lab, CLIENT)?;
    let head = format!("{line} HTTP/1.1\r\nHost: edge.test\r\nContent-Length: {length}\r\n\r\n");
    talk.say(head.as_bytes())?;
    Ok(talk)
}

/// Takes an answer of 32 MiB: steadily while the attack goes on, then the rest of it.
fn take(mut talk: Talk, is_over: &AtomicBool) -> Result<()> {
    let (mut start, mut total) = (Vec::new(), 0);
    while total < 32 << 20 {
        let heard = talk.hear(Duration::from_secs(5), |bytes| bytes.len() >= 64 << 10)?;
        ensure!(!heard.bytes.is_empty(), "nothing more after {total} bytes");
        total += heard.bytes.len();
        if start.is_empty() {
            start = heard.bytes;
            ensure!(
                start.starts_with(b"HTTP/1.1 200 "),
                "{}",
                String::from_utf8_lossy(&start[..99])
            );
        }
        if !is_over.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Sends a body of [`UPLOAD`] bytes likewise, and reads the answer.
fn give(mut talk: Talk, is_over: &AtomicBool) -> Result<()> {
    for part in vec![7; UPLOAD].chunks(16 << 10) {
        talk.say(part)?;
        if !is_over.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let answer = talk.answer()?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

fn is_served(edged: &Edged<'_>) -> bool {
    edged.get(CLIENT, "/").send().is_ok_and(|answer| answer.status == 200)
}

/// What the daemon itself takes for its use, in bytes.
fn held(edged: &Edged<'_>) -> Result<u64> {
    let page = Metrics::parse(&edged.scrape()?)?;
    Ok(page.value("edged_memory_bytes") as u64)
}

/// Bytes of a process that are in memory.
fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    Ok(text.split(' ').nth(1).context("statm")?.parse::<u64>()? * 4096)
}

/// Who attacks comes from here.
const ATTACKERS: &str = "198.18.0.0/16";
/// More of them than there is memory for.
const MANY: usize = 4_000;
/// Bytes between what the daemon holds by itself and its ceiling.
const ROOM: u64 = 80 << 20;
/// Each attack, how long it goes on at the ceiling, and how many bytes may be held beyond that: what comes between two looks
/// at it.
const ATTACKS: [(Kind, Duration, u64); 3] = [
    // Longer than its readers pause.
    (Kind::Read, Duration::from_secs(5), 4 << 20),
    (Kind::Body, Duration::from_secs(1), 4 << 20),
    (Kind::Streams, Duration::from_secs(2), 4 << 20),
];
const UPLOAD: usize = 8 << 20;
/// By then a good client has found room.
const BESIDE: Duration = Duration::from_secs(10);
/// By then the edge serves again.
const RECOVERED: Duration = Duration::from_secs(5);
