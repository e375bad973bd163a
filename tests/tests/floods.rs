//! Floods of connections, frames and slowness: each is noticed, ended and told of, and costs nobody else.

use std::{
    collections::BTreeSet,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::until,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PRIORITY, RESET,
        SETTINGS, WINDOW, frame, get, length, preface,
    },
    lab::{ATTACKER, CLIENT, EDGE, FRIEND},
    talk::{Dial, Talk},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

fn h2(lab: &Lab, edged: &Edged<'_>) -> Result<Talk> {
    let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(lab, FRIEND)?;
    talk.say(&preface())?;
    Ok(talk)
}

fn h1(lab: &Lab, edged: &Edged<'_>) -> Result<Talk> {
    Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1").connect(lab, FRIEND)
}

#[test]
fn every_flood_of_frames_is_noticed_closed_and_signalled() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("route.0.methods", r#"["GET", "POST"]"#).start()?;
    let ask = |stream, flags| frame(HEADERS, flags, stream, &get("edge.test", "/health"));
    let open = |stream| ask(stream, END_HEADERS);
    // Its upstream waits for the end of the body.
    let mut post = get("edge.test", "/health");
    post[0] = 0x83;
    let upload = frame(HEADERS, END_HEADERS, 1, &post);
    let numbers = || (0..1_000_u32).map(|n| 2 * n + 1);
    let padded = |stream| frame(DATA, PADDED, stream, &[3, 0, 0, 0]);
    let floods: [(&str, Vec<u8>); 11] = [
        (
            "resets",
            numbers().flat_map(|n| [open(n), frame(RESET, 0, n, &[0, 0, 0, 8])].concat()).collect(),
        ),
        (
            "provoked resets",
            numbers()
                .flat_map(|n| [open(n), frame(WINDOW, 0, n, &[0x7f, 0xff, 0xff, 0xff])].concat())
                .collect(),
        ),
        ("pings", frame(PING, 0, 0, &[7; 8]).repeat(1_000)),
        ("answers to no ping", frame(PING, ACK, 0, &[7; 8]).repeat(1_000)),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(1_000)),
        ("empty data", [&upload[..], &frame(DATA, 0, 1, &[]).repeat(1_000)].concat()),
        ("padding alone", [&upload[..], &padded(1).repeat(1_000)].concat()),
        (
            "continuations",
            [ask(1, 0), frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']).repeat(20_000)].concat(),
        ),
        ("windows", frame(WINDOW, 0, 0, &[0, 0, 0, 1]).repeat(2_000)),
        ("priorities", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]).repeat(2_000)),
        ("unknown frames", frame(0xfa, 0, 0, &[1]).repeat(2_000)),
    ];
    for (n, (name, bytes)) in floods.iter().enumerate() {
        let mut talk = h2(&lab, &edged)?;
        // It may close before all of it is sent.
        let _ = talk.say(bytes);
        assert!(talk.hear(SOON, |_| false)?.closed, "{name}");
        let expected = n as f64 + 1.0;
        until(name, SOON, || Ok(edged.metrics()?.connections(Reason::ProtocolAbuse) == expected))?;
    }
    let signals = edged.metrics()?.value(r#"edged_signals_total{reason="protocol_abuse"}"#);
    assert_eq!(signals, floods.len() as f64);
    assert!(!edged.log().contains("PING ack"), "what the library says of a client is no warning");
    assert_eq!(edged.get(FRIEND, "/health").flag("--http2").send()?.status, 200);
    Ok(())
}

#[test]
fn whoever_breaks_tls_behind_the_handshake_is_noticed_and_nobody_who_only_leaves() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let record = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    for (n, protocol) in ["http/1.1", "h2"].iter().enumerate() {
        let dial = Dial::new(&edged.ca, "edge.test")?.alpn(protocol);
        let connect = || -> Result<Talk> {
            let mut talk = dial.connect(&lab, FRIEND)?;
            // An answer to either comes when the server is done with the handshake as well.
            if *protocol == "h2" {
                talk.say(&preface())?;
                talk.hear(SOON, |bytes| bytes.len() >= 9)?;
            } else {
                talk.get("edge.test", "/health", &[])?;
            }
            Ok(talk)
        };
        drop(connect()?);
        connect()?.end_sending(true)?;
        let mut talk = connect()?;
        talk.say_raw(&record)?;
        assert!(talk.hear(SOON, |_| false)?.closed, "{protocol}");
        let counted = n as f64 + 1.0;
        until(protocol, SOON, || {
            Ok(edged.metrics()?.connections(Reason::ProtocolAbuse) == counted)
        })?;
    }
    until("all are gone", SOON, || Ok(edged.metrics()?.value("edged_connections_open") <= 1.0))?;
    let metrics = edged.metrics()?;
    assert_eq!(metrics.connections(Reason::ProtocolAbuse), 2.0);
    assert_eq!(metrics.value(r#"edged_signals_total{reason="protocol_abuse"}"#), 2.0);
    Ok(())
}

#[test]
fn more_streams_than_there_may_be_are_refused_and_counted() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let file = lab.dir().join("access.log");
    let log = lab.edged()?.set("log.access", &format!("{file:?}"));
    let edged = log.set("bounds.streams_max", "5").start()?;
    let mut talk = h2(&lab, &edged)?;
    let open = |n: u32| frame(HEADERS, END_HEADERS, 2 * n + 1, &get("edge.test", "/health"));
    talk.say(&(0..8).flat_map(open).collect::<Vec<_>>())?;
    let full = || Ok(edged.metrics()?.connections(Reason::StreamsFull) == 3.0);
    until("the rest is refused", SOON, full)?;
    // Each has its line in the access log, with as much as is known of it.
    let lines = || std::fs::read_to_string(&file).unwrap_or_default();
    let refused = || Ok(lines().matches("\"reason\":\"streams_full\"").count() == 3);
    until("the lines are there", SOON, refused)?;
    assert!(lines().contains("\"protocol\":\"HTTP/2\""), "{}", lines());
    assert_eq!(lines().matches("\"status\":503").count(), 3, "{}", lines());
    Ok(())
}

#[test]
fn no_number_of_mistakes_and_resets_within_the_credit_ends_a_connection() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let setup = lab.edged()?.set("bounds.streams_max", "5");
    let edged = setup.set("route.1.auth", r#""none""#).start()?;
    let block = |path| get("edge.test", path);
    let numbers = |first: u32, count: u32| (0..count).map(move |n| first + 2 * n);
    let cancel = |n| frame(RESET, 0, n, &[0, 0, 0, 8]);
    let whole = |path: &'static str| move |n| frame(HEADERS, 5, n, &block(path));
    // A burst before the settings are seen.
    let mut talk = h2(&lab, &edged)?;
    let open = |n| frame(HEADERS, END_HEADERS, n, &block("/health"));
    talk.say(&numbers(1, 45).flat_map(open).collect::<Vec<_>>())?;
    let refused = || Ok(edged.metrics()?.connections(Reason::StreamsFull) == 40.0);
    until("the rest is refused", SOON, refused)?;
    talk.say(&numbers(1, 5).flat_map(cancel).collect::<Vec<_>>())?;
    assert_eq!(talk.ask_h2(91, &block("/health"))?, 200);
    edged.edit("bounds.streams_max", "100")?;
    edged.tell("reload")?;
    // Paths that the library does not read.
    let mut talk = h2(&lab, &edged)?;
    talk.say(&numbers(1, 40).flat_map(whole("/echo/<y>")).collect::<Vec<_>>())?;
    let unread = || Ok(edged.metrics()?.requests(Reason::MalformedRequest) == 40.0);
    until("none is read", SOON, unread)?;
    assert_eq!(talk.ask_h2(81, &block("/health"))?, 200);
    // Requests that are taken back at once.
    let mut talk = h2(&lab, &edged)?;
    let pair = |n| [whole("/health")(n), cancel(n)].concat();
    talk.say(&numbers(1, 30).flat_map(pair).collect::<Vec<_>>())?;
    assert_eq!(talk.ask_h2(61, &block("/health"))?, 200);
    assert_eq!(edged.metrics()?.connections(Reason::ProtocolAbuse), 0.0);
    Ok(())
}

#[test]
fn a_head_that_unpacks_into_megabytes_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let mut talk = h2(&lab, &edged)?;
    // One field of 4 KB that the table keeps, and a byte for each further time.
    let mut block = get("edge.test", "/health");
    block.push(0x40);
    length(&mut block, 1);
    block.push(b'x');
    length(&mut block, 4_000);
    block.extend([b'y'; 4_000]);
    let bomb = |times: usize| {
        let block = [&*block, &*vec![0xbe; times]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    };
    talk.say(&bomb(15))?;
    let refused = || Ok(edged.metrics()?.requests(Reason::HeadersTooLarge) == 1.0);
    until("what is too large is refused", SOON, refused)?;
    let mut talk = h2(&lab, &edged)?;
    talk.say(&bomb(8_000))?;
    assert!(talk.hear(SOON, |_| false)?.closed);
    let closed = || Ok(edged.metrics()?.connections(Reason::ProtocolAbuse) == 1.0);
    until("what is absurd ends the connection", SOON, closed)?;
    Ok(())
}

#[test]
fn a_source_holds_so_many_connections_and_no_more() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("bounds.source_connections_max", "4").start()?;
    let held: Vec<_> = (0..4).map(|_| h1(&lab, &edged)).collect::<Result<_>>()?;
    assert!(h1(&lab, &edged).is_err() && h1(&lab, &edged).is_err());
    assert_eq!(edged.metrics()?.connections(Reason::SourceConnections), 2.0);
    assert_eq!(edged.get(CLIENT, "/health").send()?.status, 200, "others have places of their own");
    drop(held);
    until("places are free again", SOON, || Ok(h1(&lab, &edged).is_ok()))?;
    Ok(())
}

#[test]
fn at_its_ceiling_of_memory_the_edge_takes_no_new_work() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let mut kept = h1(&lab, &edged)?;
    assert_eq!(kept.get("edge.test", "/health", &[])?.status, 200);
    let mut begun = h1(&lab, &edged)?;
    begun.say(b"GET /health HTTP/1.1\r\nHost: ")?;
    edged.edit("bounds.memory_max", r#""1MiB""#)?;
    edged.tell("reload")?;
    until("it is full", SOON, || {
        let page = edged.metrics()?;
        Ok(page.value("edged_memory_max_bytes") == 1_048_576.0)
    })?;
    until("nobody comes in", SOON, || {
        let _ = h1(&lab, &edged);
        Ok(edged.metrics()?.connections(Reason::MemoryFull) >= 1.0)
    })?;
    assert!(kept.hear(SOON, |_| false)?.closed, "those without a request make room");
    let answer = begun.hear(SOON, |_| false)?;
    assert!(answer.closed && answer.statuses() == [503], "those with a part of one, too");
    edged.edit("bounds.memory_max", r#""0B""#)?;
    edged.tell("reload")?;
    until("there is room", SOON, || Ok(edged.get(CLIENT, "/health").send().is_ok()))?;
    assert!(edged.metrics()?.value("edged_memory_bytes") > 1_048_576.0);
    Ok(())
}

#[test]
fn a_body_below_its_least_rate_is_given_up() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("bounds.idle_timeout", r#""2s""#)
        .set("bounds.body_rate_min", r#""10KiB""#)
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .start()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(b"POST /health HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 100000\r\n\r\n")?;
    let began = Instant::now();
    while began.elapsed() < SOON && talk.say(b"trickle").is_ok() {
        if !talk.hear(Duration::from_millis(200), |_| true)?.bytes.is_empty() {
            break;
        }
    }
    assert_eq!(edged.metrics()?.requests(Reason::BodyTooSlow), 1.0);
    assert_eq!(edged.metrics()?.value(r#"edged_signals_total{reason="body_too_slow"}"#), 1.0);
    Ok(())
}

#[test]
fn an_answer_that_nobody_takes_is_given_up() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("bounds.idle_timeout", r#""1s""#).start()?;
    let key = edged.key("k")?;
    let head =
        format!("GET /big?bytes=100000000 HTTP/1.1\r\nHost: edge.test\r\nX-API-Key: {key}\r\n\r\n");
    let mut one = h1(&lab, &edged)?;
    one.say(head.as_bytes())?;
    let given_up =
        |n| until("given up", SOON, || Ok(edged.metrics()?.requests(Reason::AnswerNotTaken) == n));
    given_up(1.0)?;
    let mut two = h2(&lab, &edged)?;
    let mut block = get("edge.test", "/big?bytes=100000000");
    block.extend(edge_tests::frames::literal("x-api-key", &key));
    two.say(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))?;
    given_up(2.0)?;
    let signals = edged.metrics()?.value(r#"edged_signals_total{reason="answer_not_taken"}"#);
    assert_eq!(signals, 2.0);
    // Each tells which request it was.
    until("both are known", SOON, || {
        let told = edged.ask(&format!("explain {FRIEND}"))?;
        let known = told["misdeeds"].as_array().context("no misdeeds")?;
        let of = |it: &&Value| it["kind"] == "answer_not_taken" && it["path"] == "/big";
        let ids: BTreeSet<_> = known.iter().filter(of).map(|it| it["id"].to_string()).collect();
        Ok(ids.len() == 2)
    })?;
    Ok(())
}

#[test]
fn an_answer_that_is_taken_below_the_least_rate_is_given_up() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    lab.edge.sysctl("ipv4/tcp_wmem", "16384 16384 16384")?;
    lab.home(FRIEND).sysctl("ipv4/tcp_rmem", "16384 16384 16384")?;
    // Nobody here pauses for so long.
    let edged = lab
        .edged()?
        .set("bounds.idle_timeout", r#""4s""#)
        .set("bounds.answer_rate_min", r#""1MiB""#)
        .start()?;
    let key = edged.key("k")?;
    let path = "/big?bytes=99999999";
    let given_up = |talk: &mut Talk, n: f64| -> Result<()> {
        let mut taken = 0;
        until("it is given up", 2 * SOON, || {
            taken += talk.hear(Duration::from_millis(100), |_| true)?.bytes.len();
            std::thread::sleep(Duration::from_millis(50));
            Ok(edged.metrics()?.requests(Reason::AnswerNotTaken) == n)
        })?;
        assert!(taken > 50_000, "it was taken all the time: {taken}");
        Ok(())
    };
    let mut one = h1(&lab, &edged)?;
    let ask = format!("GET {path} HTTP/1.1\r\nHost: edge.test\r\nX-API-Key: {key}\r\n\r\n");
    one.say(ask.as_bytes())?;
    given_up(&mut one, 1.0)?;
    let mut two = h2(&lab, &edged)?;
    let mut block = get("edge.test", path);
    block.extend(edge_tests::frames::literal("x-api-key", &key));
    let wide = |stream| frame(WINDOW, 0, stream, &[0x7f, 0, 0, 0]);
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    two.say(&[wide(0), ask, wide(1)].concat())?;
    given_up(&mut two, 2.0)?;
    let signals = edged.metrics()?.value(r#"edged_signals_total{reason="answer_not_taken"}"#);
    assert_eq!(signals, 2.0);
    Ok(())
}

#[test]
fn an_http2_connection_between_requests_is_ended_in_time() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("bounds.idle_timeout", r#""2s""#).start()?;
    let key = edged.key("k")?;
    let ask = |stream, path: &str| {
        let block =
            [get("edge.test", path), edge_tests::frames::literal("x-api-key", &key)].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
    };
    let mut talk = h2(&lab, &edged)?;
    talk.say(&ask(1, "/slow?ms=4000"))?;
    let heard = talk.hear(SOON, |bytes| bytes.windows(4).any(|part| part == b"late"))?;
    assert!(!heard.closed, "a request takes as long as it takes");
    // It answers no ping, and goes on its own terms.
    assert!(talk.hear(SOON, |_| false)?.closed);
    assert_eq!(edged.metrics()?.connections(Reason::IdleConnection), 1.0);
    Ok(())
}

#[test]
fn small_answers_that_nobody_takes_are_given_up() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("bounds.idle_timeout", r#""1s""#)
        .set("bounds.streams_max", "150")
        .start()?;
    let key = edged.key("k")?;
    let mut block = get("edge.test", "/big?bytes=64000");
    block.extend(edge_tests::frames::literal("x-api-key", &key));
    let mut talk = h2(&lab, &edged)?;
    talk.say(&frame(WINDOW, 0, 0, &[0x7f, 0, 0, 0]))?;
    // More than the sockets take: each is whole with the library, and waits there.
    let ask = |n: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block);
    talk.say(&(0..150).flat_map(ask).collect::<Vec<_>>())?;
    until("all are made", SOON, || {
        let page = edged.metrics()?;
        Ok(page.requests(Reason::Serve) >= 150.0 && page.value("edged_requests_in_flight") == 0.0)
    })?;
    until("none is kept", SOON, || Ok(edged.metrics()?.value("edged_connections_open") <= 1.0))?;
    let signal = r#"edged_signals_total{reason="answer_not_taken"}"#;
    until("it is told of", SOON, || Ok(edged.metrics()?.value(signal) == 1.0))?;
    // Whoever takes them, however slowly, has them all.
    let mut talk = h2(&lab, &edged)?;
    talk.say(&frame(WINDOW, 0, 0, &[0x7f, 0, 0, 0]))?;
    talk.say(&(0..100).flat_map(ask).collect::<Vec<_>>())?;
    let (mut taken, mut is_closed) = (0, false);
    while !is_closed {
        std::thread::sleep(Duration::from_millis(100));
        let heard = talk.hear(SOON, |bytes| bytes.len() >= 150_000)?;
        taken += heard.bytes.len();
        is_closed = heard.closed;
    }
    assert!(taken > 6_400_000, "{taken} bytes");
    Ok(())
}

#[test]
fn heads_that_come_and_go_keep_no_answers_that_nobody_takes() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    lab.edge.sysctl("ipv4/tcp_wmem", "16384 16384 16384")?;
    lab.home(FRIEND).sysctl("ipv4/tcp_rmem", "16384 16384 16384")?;
    let edged = lab
        .edged()?
        .set("bounds.idle_timeout", r#""2s""#)
        .set("bounds.http2_waste_max", "1000000")
        .start()?;
    let key = edged.key("k")?;
    let head = |path: &str, n: u32| {
        let block =
            [get("edge.test", path), edge_tests::frames::literal("x-api-key", &key)].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block)
    };
    let mut talk = h2(&lab, &edged)?;
    talk.say(&frame(WINDOW, 0, 0, &[0x7f, 0, 0, 0]))?;
    talk.say(&(0..10).flat_map(|n| head("/big?bytes=64000", n)).collect::<Vec<_>>())?;
    until("all are made", SOON, || {
        Ok(edged.metrics()?.requests(Reason::Serve) == 10.0
            && edged.metrics()?.value("edged_requests_in_flight") == 0.0)
    })?;
    // More requests than that come and are taken back, and there is always the begin of a head.
    let mut bytes = (10..).flat_map(|n| {
        [head("/slow?ms=9000", n), frame(RESET, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()
    });
    let piece = 12 * (head("/slow?ms=9000", 10).len() + 13);
    talk.say(&bytes.by_ref().take(9).collect::<Vec<_>>())?;
    let mut came = 0.0;
    until("it is told of", SOON, || {
        let metrics = edged.metrics()?;
        if metrics.requests(Reason::ClientGone) >= came {
            came += 12.0;
            let _ = talk.say(&bytes.by_ref().take(piece).collect::<Vec<_>>());
        }
        Ok(metrics.value(r#"edged_signals_total{reason="answer_not_taken"}"#) == 1.0)
    })?;
    assert!(came > 12.0, "{came}");
    Ok(())
}

#[test]
fn a_connection_carries_so_many_requests() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("bounds.requests_per_connection", "3").start()?;
    let mut talk = h1(&lab, &edged)?;
    for _ in 0..3 {
        assert_eq!(talk.get("edge.test", "/health", &[])?.status, 200);
    }
    assert!(talk.hear(SOON, |_| false)?.closed);
    assert_eq!(edged.metrics()?.connections(Reason::ConnectionSpent), 1.0);
    // Over HTTP/2 it is told so; what it had asked for by then is answered.
    let mut talk = h2(&lab, &edged)?;
    let ask =
        |n: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &get("edge.test", "/health"));
    talk.say(&(0..5).flat_map(ask).collect::<Vec<_>>())?;
    let heard = talk.hear(SOON, |_| false)?;
    let answers = heard.bytes.windows(5).filter(|part| *part == b"hello").count();
    assert_eq!((answers, heard.closed), (5, true));
    let metrics = edged.metrics()?;
    assert_eq!(metrics.connections(Reason::ConnectionSpent), 2.0);
    assert_eq!(metrics.requests(Reason::Serve), 8.0);
    Ok(())
}

#[test]
fn whoever_does_not_hear_that_a_connection_ends_is_turned_away_and_pays_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let setup = lab.edged()?.set("bounds.requests_per_connection", "1");
    let setup = setup.set("bounds.streams_max", "2").set("bounds.http2_waste_max", "10");
    let edged = setup.start()?;
    let mut talk = h2(&lab, &edged)?;
    let ask =
        |n: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &get("edge.test", "/health"));
    for n in 0..3 {
        talk.say(&ask(n))?;
        let heard = talk.hear(SOON, |bytes| bytes.windows(5).any(|part| part == b"hello"))?;
        assert!(!heard.closed, "{n} is answered");
    }
    talk.say(&ask(3))?;
    let refused = frame(RESET, 0, 7, &[0, 0, 0, 7]);
    let heard = talk.hear(SOON, |_| false)?;
    assert!(heard.bytes.windows(refused.len()).any(|part| part == refused), "{heard:?}");
    let metrics = edged.metrics()?;
    let told = [Reason::ConnectionSpent, Reason::StreamsFull].map(|r| metrics.connections(r));
    assert_eq!((told, metrics.requests(Reason::Serve)), ([2.0, 0.0], 3.0));
    // Who goes on and on has heard. Its first request stays open.
    let mut talk = h2(&lab, &edged)?;
    talk.say(&frame(HEADERS, END_HEADERS, 1, &get("edge.test", "/health")))?;
    for n in 1..40 {
        let refused = frame(RESET, 0, 2 * n + 1, &[0, 0, 0, 7]);
        let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|own| own == part);
        let settled = |bytes: &[u8]| has(bytes, b"hello") || has(bytes, &refused);
        if talk.say(&ask(n)).is_err() || talk.hear(SOON, settled)?.closed {
            break;
        }
    }
    let metrics = edged.metrics()?;
    let told = [Reason::ProtocolAbuse, Reason::StreamsFull].map(|r| metrics.connections(r));
    assert_eq!(told, [1.0, 0.0]);
    Ok(())
}

#[test]
fn nobody_gets_past_the_bounds_of_a_head_or_a_body() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("bounds.uri_bytes_max", r#""100B""#)
        .set("bounds.headers_max", "10")
        .set("bounds.header_bytes_max", r#""2KiB""#)
        .set("bounds.body_bytes_max", r#""1KiB""#)
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .start()?;
    let long = "a".repeat(3_000);
    for version in ["--http1.1", "--http2"] {
        let ask = |path: &str| edged.get(FRIEND, path).flag(version);
        assert_eq!(ask(&format!("/health/{}", &long[..100])).send()?.status, 414);
        assert_eq!(ask("/health").header("X-Long", &long).send()?.status, 431);
        let many = (0..12).fold(ask("/health"), |r, n| r.header(&format!("X-{n}"), "1"));
        assert_eq!(many.send()?.status, 431);
    }
    // Over HTTP/2, curl 7.88 may lose an answer that comes before it has sent its body: the corpus of HTTP/2 asks for it.
    let post = || edged.get(FRIEND, "/health").flag("--http1.1").method("POST");
    assert_eq!(post().body(vec![7; 1_025]).send()?.status, 413);
    let chunked = post().header("Transfer-Encoding", "chunked");
    assert_eq!(chunked.body(vec![7; 1_025]).send()?.status, 413);
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::UriTooLong), 2.0);
    assert_eq!(metrics.requests(Reason::HeadersTooLarge), 4.0);
    assert_eq!(metrics.requests(Reason::BodyTooLarge), 2.0);
    assert!(origin.seen() <= 1, "a body without a stated length is found out on its way");
    Ok(())
}

#[test]
fn slow_clients_of_every_kind_hold_nobody_up() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("bounds.header_timeout", r#""1s""#)
        .set("bounds.idle_timeout", r#""1s""#)
        .set("bounds.body_rate_min", r#""10KiB""#)
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .set("route.1.auth", r#""none""#)
        // Banned for the first of them, it would not come to the others.
        .set("verdicts.never_ban", &format!("[\"{ATTACKER}/32\"]"))
        .start()?;
    let (small, big) = ("/health", "/big?bytes=10000000");
    // Heads that trickle, bodies that do, answers that are taken byte by byte.
    let slow = [
        (&["-H"][..], small, Reason::RequestTimeout),
        (&["-B"], small, Reason::BodyTooSlow),
        (&["-X", "-w", "1", "-y", "2", "-n", "1", "-z", "1"], big, Reason::AnswerNotTaken),
    ];
    for (kind, path, reason) in slow {
        let before = edged.metrics()?.requests(reason);
        let mut attack = lab.attacker.command("slowhttptest");
        let url = format!("https://{EDGE}{path}");
        let usual = ["-c", "100", "-r", "100", "-i", "1", "-l", "4", "-p", "2", "-u", &url];
        let mut attack = attack.args(kind).args(usual).stdout(Stdio::null()).spawn()?;
        while attack.try_wait()?.is_none() {
            assert_eq!(edged.get(CLIENT, "/health").send()?.status, 200, "{kind:?}");
        }
        assert!(edged.metrics()?.requests(reason) > before, "{kind:?}");
    }
    until("none of them is left", SOON, || {
        Ok(edged.metrics()?.value("edged_connections_open") <= 1.0)
    })?;
    Ok(())
}
