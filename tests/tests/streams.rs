//! What is longer than a request and its answer: other protocols, events, and calls with trailers.

use std::{
    io::{BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::until,
    daemon::root,
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, WINDOW, frame, get, literal,
        preface, take,
    },
    lab::{EDGE, FRIEND, ORIGIN},
    netns::run,
    talk::{Dial, Talk},
};

/// More than sockets and buffers between a client and an upstream hold.
const BODY: usize = 64 << 20;
const SOON: Duration = Duration::from_secs(10);

fn h1(lab: &Lab, edged: &Edged<'_>) -> Result<Talk> {
    Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1").connect(lab, FRIEND)
}

/// Says that the protocol is changed, and the first of what follows.
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: x\r\n\r\nhello,";

/// A server whose every connection is a thread.
fn serve(lab: &Lab, each: impl Fn(TcpStream) -> Option<()> + Send + Sync + 'static) -> Result<()> {
    serve_at(lab, 8080, each)
}

fn serve_at(
    lab: &Lab,
    port: u16,
    each: impl Fn(TcpStream) -> Option<()> + Send + Sync + 'static,
) -> Result<()> {
    let listener = lab.origin.enter(|| TcpListener::bind((ORIGIN, port)))?;
    let each: &'static _ = Box::leak(Box::new(each));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || each(client));
        }
    });
    Ok(())
}

/// A head, up to its empty line.
fn head(from: &mut impl std::io::BufRead) -> Option<String> {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        (from.read_line(&mut text).ok()? > 0).then_some(())?;
    }
    Some(text)
}

/// Changes to an echo if it is asked to, whatever that is called.
fn echo(client: TcpStream) -> Option<()> {
    let mut writer = client.try_clone().ok()?;
    let mut reader = BufReader::new(client);
    let asked = head(&mut reader)?.to_ascii_lowercase();
    if !asked.contains("\r\nupgrade: websocket\r\n")
        || !asked.contains("\r\nconnection: upgrade\r\n")
    {
        writer.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n").ok()?;
        return None;
    }
    writer.write_all(SWITCHED).ok()?;
    let mut part = [0; 4096];
    loop {
        let length = reader.read(&mut part).ok().filter(|length| *length > 0)?;
        writer.write_all(&part[..length]).ok()?;
    }
}

fn ask(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: edge.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n{more}\r\n"
    )
}

const UPGRADES: &str = r#"["websocket"]"#;

#[test]
fn a_connection_changes_its_protocol_where_the_route_allows_it() -> Result<()> {
    let lab = Lab::new()?;
    serve(&lab, echo)?;
    let edged = lab
        .edged()?
        .set("route.0.upgrades", UPGRADES)
        .set("bounds.tunnel_timeout", r#""2s""#)
        .set("bounds.idle_timeout", r#""1s""#)
        .set("bounds.body_rate_min", r#""1MiB""#)
        .start()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(ask("/health", "").as_bytes())?;
    let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"hello,"))?;
    let text = String::from_utf8_lossy(&heard.bytes).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 101 "), "{text}");
    assert!(text.contains("upgrade: websocket\r\n") && text.contains("connection: upgrade\r\n"));
    // Slower than a body may be, and after longer than a pause in one: but not for ever.
    for n in 0..4 {
        thread::sleep(Duration::from_millis(600));
        let word = format!("word {n}");
        talk.say(word.as_bytes())?;
        let back = talk.hear(SOON, |bytes| bytes.len() >= word.len())?;
        assert_eq!(String::from_utf8_lossy(&back.bytes), word);
    }
    // More than any buffer on the way, but never more at once: nobody reads while this client writes.
    let part = vec![7; 64 << 10];
    for _ in 0..48 {
        talk.say(&part)?;
        let back = talk.hear(SOON, |bytes| bytes.len() >= part.len())?;
        assert_eq!((back.bytes.len(), back.closed), (part.len(), false));
    }
    assert!(talk.hear(SOON, |_| false)?.closed, "nobody said anything");
    let served = r#"edged_requests_total{reason="serve",status="101"}"#;
    until("it is counted", SOON, || Ok(edged.metrics()?.value(served) == 1.0))?;
    until("nothing is left", SOON, || {
        Ok(edged.metrics()?.value("edged_requests_in_flight") == 0.0)
    })?;
    Ok(())
}

#[test]
fn the_end_of_one_side_of_a_tunnel_reaches_the_other() -> Result<()> {
    let lab = Lab::new()?;
    let (ended, ends) = mpsc::channel();
    let ended = Mutex::new(ended);
    serve(&lab, move |client| {
        let result = echo(client);
        let _ = ended.lock().ok()?.send(());
        result
    })?;
    let edged = lab.edged()?.set("route.0.upgrades", UPGRADES).start()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(ask("/health", "").as_bytes())?;
    talk.hear(SOON, |bytes| bytes.ends_with(b"hello,"))?;
    drop(talk);
    ends.recv_timeout(SOON).context("the server hears that its client is gone")?;
    // Who only says that he has no more to say hears the rest.
    let mut talk = h1(&lab, &edged)?;
    talk.say(ask("/health", "").as_bytes())?;
    talk.hear(SOON, |bytes| bytes.ends_with(b"hello,"))?;
    talk.say(b"and more")?;
    talk.end_sending(true)?;
    let heard = talk.hear(SOON, |_| false)?;
    assert_eq!((heard.bytes.as_slice(), heard.closed), (&b"and more"[..], true));
    ends.recv_timeout(SOON).context("the server hears that its client has ended")?;
    until("nothing is left", SOON, || {
        let metrics = edged.metrics()?;
        let left =
            metrics.value("edged_requests_in_flight") + metrics.value("edged_connections_open");
        Ok(left == 0.0)
    })?;
    let told = edged.metrics()?;
    assert_eq!([Reason::Serve, Reason::ClientGone].map(|r| told.requests(r)), [2.0, 0.0]);
    Ok(())
}

#[test]
fn nobody_changes_the_protocol_unasked_or_from_another_site() -> Result<()> {
    let lab = Lab::new()?;
    serve(&lab, echo)?;
    let edged = lab.edged()?.start()?;
    let status = |request: String| -> Result<u16> {
        let mut talk = h1(&lab, &edged)?;
        talk.say(request.as_bytes())?;
        let heard = talk.hear(SOON, |bytes| bytes.windows(4).any(|w| w == b"\r\n\r\n"))?;
        Ok(heard
            .bytes
            .get(9..12)
            .and_then(|s| std::str::from_utf8(s).ok()?.parse().ok())
            .unwrap_or(0))
    };
    assert_eq!(status(ask("/health", ""))?, 426, "the upstream is not asked to");
    edged.edit("route.0.upgrades", UPGRADES)?;
    edged.tell("reload")?;
    let cookie = "Cookie: sid=1\r\nOrigin: https://evil.test\r\nSec-Fetch-Site: cross-site\r\n";
    assert_eq!(status(ask("/health", cookie))?, 403);
    assert_eq!(edged.metrics()?.requests(Reason::CrossSite), 1.0);
    let smuggled = ask("/health", "").replace("WebSocket", "h2c");
    assert_eq!(status(smuggled)?, 426);
    // What has a body is a request like any other: the body goes where its head says that it does.
    assert_eq!(status(ask("/health", "Content-Length: 5\r\n") + "hello")?, 426);
    let chunked = ask("/health", "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(status(chunked)?, 426);
    assert_eq!(status(ask("/health", ""))?, 101);
    Ok(())
}

#[test]
fn whoever_asks_for_another_protocol_is_sent_to_a_server_that_agrees() -> Result<()> {
    let lab = Lab::new()?;
    serve(&lab, echo)?;
    // The other server hangs up on every second, and is too busy for the rest.
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    serve_at(&lab, 8081, move |mut client| {
        head(&mut BufReader::new(client.try_clone().ok()?))?;
        if count.fetch_add(1, Relaxed).is_multiple_of(2) {
            return None;
        }
        client.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").ok()
    })?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("route.0.upgrades", UPGRADES)
        .set("upstream.0.servers", &format!(r#"["{ORIGIN}:8081", "{ORIGIN}:8080"]"#))
        .set("upstream.0.retry_statuses", "[503]")
        .set("upstream.0.ejection", "{ failures = 0 }")
        .set("upstream.0.circuit", r#"{ failures = "off" }"#)
        .start()?;
    for _ in 0..4 {
        let mut talk = h1(&lab, &edged)?;
        talk.say(ask("/health", "").as_bytes())?;
        let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"hello,"))?;
        assert!(heard.bytes.starts_with(b"HTTP/1.1 101 "), "{heard:?}");
        talk.say(b"word")?;
        assert_eq!(talk.hear(SOON, |bytes| bytes.len() >= 4)?.bytes, b"word");
    }
    assert_eq!(seen.load(Relaxed), 2, "it had its turns");
    Ok(())
}

#[test]
fn a_kept_connection_to_a_server_that_refused_a_change_holds_nothing_of_the_client() -> Result<()> {
    let lab = Lab::new()?;
    serve(&lab, |client| {
        let mut writer = client.try_clone().ok()?;
        let mut reader = BufReader::new(client);
        loop {
            head(&mut reader)?;
            writer.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n").ok()?;
        }
    })?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("route.0.upgrades", UPGRADES)
        .set("upstream.0.idle_timeout", r#""1h""#)
        .start()?;
    let descriptors =
        || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", edged.pid()))?.count()) };
    let nobody = || {
        let nobody = || Ok(edged.metrics()?.value("edged_connections_open") == 0.0);
        until("nobody is left", SOON, nobody)
    };
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 426);
    nobody()?;
    let before = descriptors()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(ask("/health", "").as_bytes())?;
    assert_eq!(talk.answer()?.status, 426);
    drop(talk);
    nobody()?;
    until("its socket is closed", SOON, || Ok(descriptors()? <= before))?;
    assert_eq!(edged.metrics()?.sum("edged_upstream_connects_total", &[]), 1.0, "it is kept");
    Ok(())
}

#[test]
fn a_server_is_not_to_blame_for_how_a_tunnel_ends() -> Result<()> {
    let lab = Lab::new()?;
    // It breaks off as soon as its client says something, which it does not read.
    serve(&lab, |mut client| {
        head(&mut BufReader::with_capacity(1, client.try_clone().ok()?))?;
        client.write_all(SWITCHED).ok()?;
        client.peek(&mut [0]).ok()?;
        None
    })?;
    let edged = lab.edged()?.set("route.0.upgrades", UPGRADES).start()?;
    for _ in 0..6 {
        let mut talk = h1(&lab, &edged)?;
        talk.say(ask("/health", "").as_bytes())?;
        let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"hello,"))?;
        assert!(heard.bytes.starts_with(b"HTTP/1.1 101 "), "{heard:?}");
        talk.say(b"unread")?;
        assert!(talk.hear(SOON, |_| false)?.closed);
    }
    let served = r#"edged_requests_total{reason="serve",status="101"}"#;
    until("each is served", SOON, || Ok(edged.metrics()?.value(served) == 6.0))?;
    let invalid = [("outcome", "invalid")];
    assert_eq!(edged.metrics()?.sum("edged_upstream_requests_total", &invalid), 0.0);
    Ok(())
}

#[test]
fn a_tunnel_whose_client_takes_nothing_is_given_up_and_counted_so() -> Result<()> {
    let lab = Lab::new()?;
    serve(&lab, |mut client| {
        head(&mut BufReader::new(client.try_clone().ok()?))?;
        client.write_all(SWITCHED).ok()?;
        loop {
            client.write_all(&[b'x'; 16 << 10]).ok()?;
        }
    })?;
    let edged = lab
        .edged()?
        .set("route.0.upgrades", UPGRADES)
        .set("bounds.idle_timeout", r#""1s""#)
        .start()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(ask("/health", "").as_bytes())?;
    until("it is given up", SOON, || Ok(edged.metrics()?.requests(Reason::AnswerNotTaken) == 1.0))?;
    assert_eq!(edged.metrics()?.requests(Reason::Serve), 0.0);
    Ok(())
}

#[test]
fn an_answer_before_the_end_of_the_body_says_that_it_is_the_last() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .set("bounds.body_bytes_max", r#""1KiB""#)
        .set("bounds.idle_timeout", r#""1s""#)
        .set("upstream.0.ejection", "{ failures = 0 }")
        .set("upstream.0.circuit", r#"{ failures = "off" }"#)
        .start()?;
    let post = |version: &str, body: &str| -> Result<String> {
        let mut talk = h1(&lab, &edged)?;
        let head = format!("POST /health HTTP/{version}\r\nHost: edge.test\r\n");
        talk.say(format!("{head}Connection: keep-alive\r\n{body}").as_bytes())?;
        let heard = talk.hear(SOON, |_| false)?;
        assert!(heard.closed, "{heard:?}");
        let text = String::from_utf8(heard.bytes)?.to_ascii_lowercase();
        assert!(text.contains("\r\nconnection: close\r\n"), "{version} {body}: {text}");
        Ok(text[9..12].to_owned())
    };
    let half = "Content-Length: 10\r\n\r\nhalf";
    let long = "x".repeat(2048);
    let chunk = format!("Transfer-Encoding: chunked\r\n\r\n800\r\n{long}\r\n");
    assert_eq!(post("1.1", &chunk)?, "413");
    assert_eq!(post("1.1", half)?, "408");
    assert_eq!(post("1.0", half)?, "408");
    edged.edit("upstream.0.servers", &format!(r#"["{ORIGIN}:8089"]"#))?;
    edged.tell("reload")?;
    assert_eq!(post("1.1", half)?, "502");
    assert_eq!(post("1.0", half)?, "502");
    Ok(())
}

#[test]
fn nothing_follows_a_body_that_was_answered_by_a_hidden_page() -> Result<()> {
    let lab = Lab::new()?;
    let (heard, hears) = mpsc::channel();
    let heard = Mutex::new(heard);
    // It fails at once, pauses its page, and reads on.
    serve(&lab, move |client| {
        let mut writer = client.try_clone().ok()?;
        let mut reader = BufReader::new(client);
        let mut text = head(&mut reader)?;
        writer.write_all(b"HTTP/1.1 500 S\r\nContent-Length: 10\r\n\r\npage").ok()?;
        reader.get_ref().set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let _ = reader.read_to_string(&mut text);
        heard.lock().ok()?.send(text).ok()
    })?;
    let edged = lab.edged()?.set("route.0.methods", r#"["GET", "POST"]"#).start()?;
    let mut talk = h1(&lab, &edged)?;
    let post = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 10\r\n\r\n")
    };
    talk.say(format!("{}first", post("/health/1")).as_bytes())?;
    let answer = talk.hear(SOON, |bytes| bytes.ends_with(b"}"))?;
    let text = String::from_utf8_lossy(&answer.bytes).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 500 ") && text.contains("connection: close\r\n"), "{text}");
    let _ = talk.say(format!("-half{}0123456789", post("/health/2")).as_bytes());
    assert!(talk.hear(SOON, |_| false)?.closed);
    let text = hears.recv_timeout(SOON)?;
    assert!(text.ends_with("\r\n\r\nfirst"), "{text:?}");
    assert!(hears.recv_timeout(Duration::from_secs(1)).is_err(), "there was no second request");
    Ok(())
}

#[test]
fn nothing_follows_a_body_that_was_given_up_before_a_full_socket() -> Result<()> {
    let lab = Lab::new()?;
    let (heard, hears) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let (heard, goes) = (Mutex::new(heard), Mutex::new(goes));
    // It takes nothing of the body until it has failed, and a second time is told to go on.
    serve(&lab, move |client| {
        let mut writer = client.try_clone().ok()?;
        let mut reader = BufReader::new(client);
        let mut bytes = head(&mut reader)?.into_bytes();
        goes.lock().ok()?.recv().ok()?;
        writer.write_all(b"HTTP/1.1 500 S\r\nContent-Length: 10\r\n\r\npage").ok()?;
        goes.lock().ok()?.recv().ok()?;
        reader.get_ref().set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let _ = reader.read_to_end(&mut bytes);
        heard.lock().ok()?.send(bytes).ok()
    })?;
    let edged = lab
        .edged()?
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .set("bounds.body_bytes_max", r#""1GiB""#)
        .start()?;
    let mut talk = h1(&lab, &edged)?;
    let post = |path: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nHost: edge.test\r\nContent-Length: {length}\r\n\r\n")
    };
    talk.say(post("/health/1", BODY).as_bytes())?;
    // As much as goes: what is between the client and the upstream is full then.
    let sent = talk.say_until_full(&vec![b'x'; BODY], Duration::from_secs(1))?;
    assert!(sent > 1 << 20 && sent < BODY, "{sent}");
    go.send(())?;
    let answer = talk.hear(SOON, |bytes| bytes.ends_with(b"}"))?;
    let text = String::from_utf8_lossy(&answer.bytes).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 500 ") && text.contains("connection: close\r\n"), "{text}");
    // What the client says now is another request, to whoever would take the body for ended.
    let _ = talk.say(format!("{}0123456789", post("/health/2", 10)).as_bytes());
    go.send(())?;
    assert!(talk.hear(SOON, |_| false)?.closed);
    let bytes = hears.recv_timeout(SOON)?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("a head")? + 4;
    assert!(bytes[end..].iter().all(|byte| *byte == b'x'), "something follows");
    assert!(bytes.len() - end < sent, "not all of it was taken");
    assert!(hears.recv_timeout(Duration::from_secs(1)).is_err(), "there was no second request");
    Ok(())
}

/// What comes behind a body can be merged into the head by whoever reads it.
#[test]
fn an_answer_tells_nothing_of_the_software_before_or_behind_its_body() -> Result<()> {
    let lab = Lab::new()?;
    serve(&lab, |client| {
        let mut writer = client.try_clone().ok()?;
        head(&mut BufReader::new(client))?;
        let telltales = TELLTALES.split_whitespace().map(|name| format!("{name}: told\r\n"));
        let telltales: String = telltales.collect();
        let wrong = "Set-Cookie: late=1\r\nCache-Control: public\r\nWWW-Authenticate: late\r\n\
                     Access-Control-Allow-Origin: late\r\nX-Debug-Token: late\r\n\
                     Strict-Transport-Security: late\r\n";
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{telltales}ETag: \"kept\"\r\nTransfer-Encoding: chunked\r\n\r\n\
             2\r\nok\r\n0\r\n{wrong}Grpc-Status: 0\r\nContent-Digest: kept\r\n\r\n"
        );
        writer.write_all(answer.as_bytes()).ok()
    })?;
    let edged = lab.edged()?.start()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(b"GET /health HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n")?;
    let heard = talk.hear(SOON, |_| false)?;
    let text = String::from_utf8_lossy(&heard.bytes).to_ascii_lowercase();
    assert!(text.starts_with("http/1.1 200") && text.contains("etag: \"kept\""), "{text}");
    assert!(!text.contains(": told"), "{text}");
    let behind = text.split_once("ok\r\n0\r\n").map(|(_, behind)| behind);
    let mut trailers: Vec<_> = behind.unwrap_or_default().lines().collect();
    trailers.sort_unstable();
    assert_eq!(trailers, ["", "content-digest: kept", "grpc-status: 0"], "{text}");
    Ok(())
}

const TELLTALES: &str = "Server X-Powered-By X-Powered-CMS X-PHP-Version X-Debug-Token X-Varnish X-Backend X-Server
    X-Generated-By X-Jenkins X-OWA-Version Liferay-Portal MicroStrategy SourceMap X-SourceMap X-Real-Ip X-Forwarded-For
    X-AspNet-Version X-Drupal-Cache X-Envoy-Upstream-Service-Time X-Served-By X-Runtime X-Litespeed-Cache";

#[test]
fn events_come_one_by_one() -> Result<()> {
    let lab = Lab::new()?;
    let (go, next) = mpsc::channel::<()>();
    let next = Mutex::new(next);
    serve(&lab, move |client| {
        let mut writer = client.try_clone().ok()?;
        head(&mut BufReader::new(client))?;
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
        for n in 0..3 {
            next.lock().ok()?.recv().ok()?;
            writer.write_all(format!("9\r\ndata: {n}\n\n\r\n").as_bytes()).ok()?;
        }
        writer.write_all(b"0\r\n\r\n").ok()
    })?;
    let edged = lab.edged()?.start()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(b"GET /health HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
    talk.hear(SOON, |bytes| bytes.ends_with(b"\r\n\r\n"))?;
    for n in 0..3 {
        go.send(())?;
        let event = format!("data: {n}\n\n");
        let heard = talk.hear(SOON, |bytes| String::from_utf8_lossy(bytes).contains(&event))?;
        assert!(String::from_utf8_lossy(&heard.bytes).contains(&event), "{heard:?}");
    }
    Ok(())
}

#[test]
fn an_answer_in_chunks_ends_once_however_late_its_end_is_taken() -> Result<()> {
    let lab = Lab::new()?;
    // So that every so many bytes a connection is full, and once with all but the end.
    lab.edge.sysctl("ipv4/tcp_wmem", "4608 4608 4608")?;
    lab.home(FRIEND).sysctl("ipv4/tcp_rmem", "4096 4096 4096")?;
    serve(&lab, |client| {
        let (mut writer, mut reader) = (client.try_clone().ok()?, BufReader::new(client));
        loop {
            let asked = head(&mut reader)?;
            let length: usize = asked.split([' ', '/']).nth(3)?.parse().ok()?;
            let data = "x".repeat(length);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{data}\r\n0\r\n\r\n"
            );
            writer.write_all(answer.as_bytes()).ok()?;
        }
    })?;
    let edged = lab.edged()?.start()?;
    let mut talk = h1(&lab, &edged)?;
    for length in (1_000..64_000).step_by(250) {
        let ask = format!("GET /health/{length} HTTP/1.1\r\nHost: edge.test\r\n\r\n");
        talk.say(ask.as_bytes())?;
        thread::sleep(Duration::from_millis(10));
        let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"\r\n0\r\n\r\n"))?;
        let start = String::from_utf8_lossy(&heard.bytes[..heard.bytes.len().min(99)]).into_owned();
        assert!(start.starts_with("HTTP/1.1 200 "), "before {length}: {start}");
    }
    Ok(())
}

#[test]
fn what_is_open_beyond_the_drain_deadline_is_cut_off() -> Result<()> {
    let lab = Lab::new()?;
    let (begun, begins) = mpsc::channel();
    let begun = Mutex::new(begun);
    serve(&lab, move |client| {
        let (mut writer, mut reader) = (client.try_clone().ok()?, BufReader::new(client));
        if head(&mut reader)?.to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n") {
            writer.write_all(SWITCHED).ok()?;
        }
        begun.lock().ok()?.send(()).ok()?;
        // Until the edge is gone.
        reader.read(&mut [0]).ok().map(drop)
    })?;
    let mut edged = lab
        .edged()?
        .set("route.0.upgrades", UPGRADES)
        .set("server.drain_timeout", r#""1s""#)
        .set("upstream.0.response_timeout", r#""10m""#)
        .set("bounds.tunnel_timeout", r#""10m""#)
        .start()?;
    let mut request = h1(&lab, &edged)?;
    request.say(b"GET /health HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
    let mut stream = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
    let block = get("edge.test", "/health");
    let opened = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    stream.say(&[preface(), opened].concat())?;
    let mut socket = h1(&lab, &edged)?;
    socket.say(ask("/health", "").as_bytes())?;
    socket.hear(SOON, |bytes| bytes.ends_with(b"hello,"))?;
    for _ in 0..3 {
        begins.recv_timeout(SOON).context("all are open")?;
    }
    assert!(edged.terminate()?.success());
    assert!(edged.log().contains("cut off at the drain deadline"), "{}", edged.log());
    for talk in [&mut request, &mut stream, &mut socket] {
        assert!(talk.hear(SOON, |_| false)?.closed);
    }
    Ok(())
}

#[test]
fn who_measures_his_bandwidth_by_each_message_is_not_cut_off() -> Result<()> {
    const MESSAGES: usize = 3_000;
    let lab = Lab::new()?;
    serve(&lab, |client| {
        let (mut writer, mut reader) = (client.try_clone().ok()?, BufReader::new(client));
        head(&mut reader)?;
        writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
        for _ in 0..MESSAGES {
            writer.write_all(b"7\r\nmessage\r\n").ok()?;
            thread::sleep(Duration::from_millis(1));
        }
        writer.write_all(b"0\r\n\r\n").ok()
    })?;
    let edged = lab.edged()?.set("bounds.http2_waste_max", "100").start()?;
    let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
    let block = get("edge.test", "/health");
    let opened = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    talk.say(&[preface(), opened].concat())?;
    let (mut came, mut received, mut frames) = (Vec::new(), 0, 0);
    let mut is_over = false;
    while !is_over {
        let heard = talk.hear(SOON, |bytes| !bytes.is_empty())?;
        assert!(!heard.closed, "after {frames} frames with {received} bytes");
        came.extend(heard.bytes);
        let (mut rest, mut said) = (&came[..], Vec::new());
        while let Some((kind, flags, payload)) = take(&mut rest) {
            if kind != DATA {
                continue;
            }
            (frames, received) = (frames + 1, received + payload.len());
            is_over |= flags & END_STREAM != 0;
            // As gRPC for Go has it, but for one that it waits for.
            said.extend(frame(WINDOW, 0, 0, &[0, 0, 0, 7]));
            said.extend(frame(WINDOW, 0, 1, &[0, 0, 0, 7]));
            said.extend(frame(PING, 0, 0, &[7; 8]));
        }
        came = rest.to_vec();
        talk.say(&said)?;
    }
    assert_eq!(received, 7 * MESSAGES);
    assert!(frames > 500, "{frames} frames");
    assert_eq!(edged.metrics()?.connections(Reason::ProtocolAbuse), 0.0);
    Ok(())
}

#[test]
fn small_parts_of_bodies_that_an_upstream_lets_wait_are_no_abuse() -> Result<()> {
    const PARTS: usize = 3_200;
    let lab = Lab::new()?;
    lab.edge.sysctl("ipv4/tcp_wmem", "4608 4608 4608")?;
    lab.origin.sysctl("ipv4/tcp_rmem", "4096 4096 4096")?;
    let (go_on, told) = mpsc::channel();
    let told = Mutex::new(told);
    serve(&lab, move |client| {
        let (mut writer, mut reader) = (client.try_clone().ok()?, BufReader::new(client));
        head(&mut reader)?;
        told.lock().ok()?.recv().ok()?;
        let (mut body, mut part) = (Vec::new(), [0; 4096]);
        while !body.ends_with(b"\r\n0\r\n\r\n") {
            let length = reader.read(&mut part).ok().filter(|length| *length > 0)?;
            body.extend_from_slice(&part[..length]);
        }
        let count = body.iter().filter(|byte| **byte == b'.').count().to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{count}", count.len());
        writer.write_all(answer.as_bytes()).ok()
    })?;
    let edged = lab.edged()?.set("route.0.methods", r#"["POST"]"#).start()?;
    let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
    talk.say(&preface())?;
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|own| own == part);
    // Before it, all of them together have no more room than one.
    let window = [0, 0, 4, 8, 0, 0, 0, 0, 0];
    assert!(has(&talk.hear(SOON, |bytes| has(bytes, &window))?.bytes, &window));
    let mut block = get("edge.test", "/health");
    block[0] = 0x83;
    for stream in [1, 3, 5] {
        talk.say(&frame(HEADERS, END_HEADERS, stream, &block))?;
        talk.say(&frame(DATA, 0, stream, &[b'.'; 20]).repeat(PARTS))?;
    }
    let ping = frame(PING, 0, 0, b"all came");
    talk.say(&ping)?;
    let pong = frame(PING, ACK, 0, b"all came");
    let heard = talk.hear(SOON, |bytes| has(bytes, &pong))?;
    assert!(has(&heard.bytes, &pong), "{}", String::from_utf8_lossy(&heard.bytes));
    let whole = (20 * PARTS).to_string();
    for stream in [1, 3, 5] {
        go_on.send(())?;
        talk.say(&frame(DATA, END_STREAM, stream, &[]))?;
    }
    let answers =
        |bytes: &[u8]| bytes.windows(whole.len()).filter(|w| *w == whole.as_bytes()).count();
    let heard = talk.hear(SOON, |bytes| answers(bytes) == 3)?;
    assert_eq!((answers(&heard.bytes), heard.closed), (3, false));
    assert_eq!(edged.metrics()?.connections(Reason::ProtocolAbuse), 0.0);
    Ok(())
}

#[test]
fn a_body_is_asked_for_only_if_it_is_wanted() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("route.0.methods", r#"["GET", "POST"]"#).start()?;
    let expect = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut talk = h1(&lab, &edged)?;
    talk.say(expect("/health").as_bytes())?;
    let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"\r\n\r\n"))?;
    assert_eq!(heard.bytes, b"HTTP/1.1 100 Continue\r\n\r\n");
    talk.say(b"abc")?;
    assert_eq!(talk.answer()?.status, 200);
    let mut talk = h1(&lab, &edged)?;
    talk.say(expect("/secret").as_bytes())?;
    let heard = talk.hear(SOON, |_| false)?;
    assert_eq!((heard.statuses(), heard.closed), (vec![401], true), "the body never comes");

    let expect = |path: &str, what: &str| -> Result<Talk> {
        let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
        let mut block = get("edge.test", path);
        block[0] = 0x83;
        block.extend([literal("content-length", "3"), literal("expect", what)].concat());
        talk.say(&[preface(), frame(HEADERS, END_HEADERS, 1, &block)].concat())?;
        Ok(talk)
    };
    // The heads that came for the stream, and whether each was the end.
    let heads = |bytes: &[u8]| {
        let (mut rest, mut ends) = (bytes, Vec::new());
        while let [a, b, c, kind, flags, ..] = *rest {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if kind == HEADERS {
                ends.push(flags & END_STREAM != 0);
            }
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        ends
    };
    let mut talk = expect("/health", "100-continue")?;
    let heard = talk.hear(SOON, |bytes| !heads(bytes).is_empty())?;
    assert_eq!(heads(&heard.bytes), [false]);
    talk.say(&frame(DATA, END_STREAM, 1, b"abc"))?;
    let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"hello"))?;
    assert_eq!(heads(&heard.bytes).len(), 1);
    for (path, what) in [("/secret", "100-continue"), ("/health", "200-ok")] {
        let heard = expect(path, what)?.hear(Duration::from_secs(1), |_| false)?;
        assert_eq!(heads(&heard.bytes).len(), 1, "{path} {what}: a refusal alone");
    }
    assert_eq!(edged.metrics()?.requests(Reason::MalformedRequest), 1.0);
    Ok(())
}

/// Interim answers, one of which is the edge's own to say, and some that nobody was to see.
const HINTS: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\
    Server: app\r\nX-Edged-Principal: root\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
const FINAL: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

#[test]
fn interim_answers_of_an_upstream_reach_the_client_as_they_come() -> Result<()> {
    let lab = Lab::new()?;
    let (go_on, told) = mpsc::channel();
    let told = Mutex::new(told);
    serve(&lab, move |client| {
        let mut writer = client.try_clone().ok()?;
        let mut reader = BufReader::new(client);
        while head(&mut reader).is_some() {
            writer.write_all(HINTS).ok()?;
            told.lock().ok()?.recv().ok()?;
            writer.write_all(FINAL).ok()?;
        }
        Some(())
    })?;
    let edged = lab.edged()?.start()?;
    let mut talk = h1(&lab, &edged)?;
    talk.say(b"GET /health HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
    let hints =
        b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
    let heard = talk.hear(SOON, |bytes| bytes.ends_with(b"Processing\r\n\r\n"))?;
    assert_eq!(String::from_utf8_lossy(&heard.bytes), String::from_utf8_lossy(hints));
    go_on.send(())?;
    assert_eq!(talk.answer()?.body, "fine");

    // At once with their answer.
    go_on.send(())?;
    let said = edged.get(FRIEND, "/health").flag("--http2").flag("--include").told()?;
    let heads: Vec<_> = said.split("\r\n\r\n").collect();
    let [hints, processing, answer, "fine"] = heads[..] else { panic!("{said}") };
    assert_eq!(hints.trim_end(), "HTTP/2 103 \r\nlink: </a.css>");
    assert_eq!(processing.trim_end(), "HTTP/2 102");
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    go_on.send(())?;
    let mut old = h1(&lab, &edged)?;
    old.say(b"GET /health HTTP/1.0\r\nHost: edge.test\r\n\r\n")?;
    let heard = old.hear(SOON, |bytes| bytes.ends_with(b"fine"))?;
    assert!(heard.bytes.starts_with(b"HTTP/1.1 200"), "it knows none: {heard:?}");
    Ok(())
}

/// Ends with this.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn grpc_server(lab: &Lab) -> Result<Server> {
    let script = root().join("tests/clients/grpc-server.mjs");
    let server = lab.origin.command("node").arg(script).args([ORIGIN, "8080"]).spawn()?;
    let server = Server(server);
    let listens = || lab.origin.enter(|| TcpStream::connect((ORIGIN, 8080)).is_ok());
    until("the server listens", SOON, || Ok(listens()))?;
    Ok(server)
}

#[test]
fn calls_with_trailers_pass_over_http2_all_the_way() -> Result<()> {
    let lab = Lab::new()?;
    let server = grpc_server(&lab)?;
    let check = "{ path = \"/check\", interval = \"100ms\", timeout = \"10s\" }";
    let edged = lab
        .edged()?
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .set("upstream.0.http2", "true")
        .set("upstream.0.check", check)
        .start()?;
    let script = root().join("tests/clients/grpc-client.mjs");
    let ca = &edged.ca;
    let out = run(lab.client.command("node").arg(script).arg(EDGE).arg(ca).arg("150"))?;
    let calls: serde_json::Value = serde_json::from_str(&out)?;
    let calls = calls.as_array().context("an array")?;
    assert_eq!(calls.len(), 150);
    for call in calls {
        assert_eq!((&call["messages"], &call["status"]), (&5.into(), &200.into()), "{call}");
        assert_eq!((&call["te"], &call["trailers"]["status"]), (&"trailers".into(), &"0".into()));
    }
    // HTTP/1.1 on this side of the edge makes no difference to the other.
    let response = edged.get(FRIEND, "/health").flag("--http1.1").method("POST").body("abc");
    // curl prints the trailers behind the body.
    assert!(response.send()?.text().starts_with("abc"));
    let good = r#"edged_upstream_checks_total{upstream="api",server="192.0.2.2:8080",result="ok"}"#;
    until("checks find it well", SOON, || Ok(edged.metrics()?.value(good) > 0.0))?;
    let connects = edged.metrics()?.sum("edged_upstream_connects_total", &[]);
    assert!(connects <= 6.0, "{connects} connections for 151 requests");
    drop(server);
    assert!(matches!(edged.get(FRIEND, "/health").send()?.status, 502 | 503));
    until("nothing is left", SOON, || {
        Ok(edged.metrics()?.value("edged_requests_in_flight") == 0.0)
    })?;
    Ok(())
}

/// nginx that speaks HTTP/2 over TLS as `edge.test`, before the server of calls and with a page of its own.
fn nginx_over_tls(lab: &Lab, port: u16) -> Result<Server> {
    let dir = lab.dir().display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/nginx-{kind};"))
        .concat();
    let text = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; events {{}}
         http {{ access_log off; {temporary} client_max_body_size 64m;
           server {{ listen {ORIGIN}:{port} ssl http2; server_name edge.test;
             ssl_protocols TLSv1.3; ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;
             location = /health/version {{ return 200 $server_protocol-$ssl_protocol; }}
             location = /health/gone {{ return 503; }}
             location = /health/large {{ alias {dir}/large; }}
             location / {{ grpc_pass grpc://{ORIGIN}:8080; }} }} }}"
    );
    let conf = lab.dir().join("nginx.conf");
    std::fs::write(&conf, text)?;
    let log = std::fs::File::create(lab.dir().join("nginx.log"))?;
    let server =
        lab.origin.command("nginx").args(["-e", "stderr", "-c"]).arg(conf).stderr(log).spawn()?;
    let server = Server(server);
    let listens = || lab.origin.enter(|| TcpStream::connect((ORIGIN, port)).is_ok());
    until("nginx listens", SOON, || Ok(listens()))?;
    Ok(server)
}

#[test]
fn calls_with_trailers_pass_over_http2_and_tls_to_a_server_of_others() -> Result<()> {
    let lab = Lab::new()?;
    edge_tests::daemon::certify(lab.dir())?;
    let _calls = grpc_server(&lab)?;
    let nginx = nginx_over_tls(&lab, 8443)?;
    let dir = lab.dir().display();
    let tls = |name: &str| format!("{{ ca = \"{dir}/ca.pem\", server_name = \"{name}\" }}");
    let edged = lab
        .edged()?
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .set("upstream.0.servers", r#"["192.0.2.2:8443"]"#)
        .set("upstream.0.http2", "true")
        .set("upstream.0.tls", &tls("edge.test"))
        .start()?;
    let version = edged.get(FRIEND, "/health/version").send()?;
    assert_eq!((version.status, &*version.text()), (200, "HTTP/2.0-TLSv1.3"), "{}", edged.log());
    let script = root().join("tests/clients/grpc-client.mjs");
    let out = run(lab.client.command("node").arg(script).arg(EDGE).arg(&edged.ca).arg("60"))?;
    let calls: Vec<serde_json::Value> = serde_json::from_str(&out)?;
    assert_eq!(calls.len(), 60);
    for call in &calls {
        assert_eq!((&call["messages"], &call["status"]), (&5.into(), &200.into()), "{call}");
        assert_eq!(call["trailers"]["status"], "0", "{call}");
    }
    // A body of more than any window, there and back, over either version on this side.
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for flag in ["--http1.1", "--http2"] {
        let request = edged.get(FRIEND, "/health/echo").flag(flag).method("POST");
        let back = request.header("TE", "trailers").body(body.clone()).send()?;
        assert!(back.status == 200 && back.body.starts_with(&body), "{flag}: {}", back.status);
    }
    assert_eq!(edged.get(FRIEND, "/health/gone").send()?.status, 503);
    let connects = edged.metrics()?.sum("edged_upstream_connects_total", &[]);
    assert!(connects <= 6.0, "{connects} connections for all of it");
    // One that does not prove its name gets nothing.
    edged.edit("upstream.0.tls", &tls("other.test"))?;
    edged.tell("reload")?;
    assert_eq!(edged.get(FRIEND, "/health/version").send()?.status, 502);
    edged.edit("upstream.0.tls", &tls("edge.test"))?;
    edged.tell("reload")?;
    assert_eq!(edged.get(FRIEND, "/health/version").send()?.status, 200);
    drop(nginx);
    assert!(matches!(edged.get(FRIEND, "/health/version").send()?.status, 502 | 503));
    let _nginx = nginx_over_tls(&lab, 8443)?;
    until("it is back", SOON, || Ok(edged.get(FRIEND, "/health/version").send()?.status == 200))?;
    until("nothing is left", SOON, || {
        Ok(edged.metrics()?.value("edged_requests_in_flight") == 0.0)
    })?;
    Ok(())
}

#[test]
fn answers_that_nobody_takes_hold_up_no_other_on_their_connection() -> Result<()> {
    let lab = Lab::new()?;
    edge_tests::daemon::certify(lab.dir())?;
    std::fs::write(lab.dir().join("large"), vec![7; 32 << 20])?;
    let _nginx = nginx_over_tls(&lab, 8443)?;
    let dir = lab.dir().display();
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("upstream.0.servers", r#"["192.0.2.2:8443"]"#)
        .set("upstream.0.http2", "true")
        .set("upstream.0.tls", &format!("{{ ca = \"{dir}/ca.pem\", server_name = \"edge.test\" }}"))
        .start()?;
    let mut slow = (0..5).map(|_| h1(&lab, &edged)).collect::<Result<Vec<_>>>()?;
    for talk in &mut slow {
        talk.say(b"GET /health/large HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
    }
    // Until the sockets are full, and what the edge takes beyond them.
    thread::sleep(Duration::from_secs(3));
    let quick = edged.get(FRIEND, "/health/large").send()?;
    assert_eq!((quick.status, quick.body.len()), (200, 32 << 20));
    assert_eq!(edged.metrics()?.sum("edged_upstream_connects_total", &[]), 1.0);
    assert_eq!(edged.metrics()?.value("edged_requests_in_flight"), 5.0);
    Ok(())
}

#[test]
fn uploads_that_nobody_takes_hold_up_no_other_on_their_connection() -> Result<()> {
    let lab = Lab::new()?;
    serve(&lab, |client| {
        let mut writer = client.try_clone().ok()?;
        let mut reader = BufReader::new(client);
        if head(&mut reader)?.contains("stuck") {
            thread::sleep(Duration::from_secs(60));
            return None;
        }
        to_last_chunk(&mut reader);
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()
    })?;
    // Each is more than the sockets take, and what the edge takes beyond them.
    lab.edge.sysctl("ipv4/tcp_wmem", "16384 16384 16384")?;
    lab.origin.sysctl("ipv4/tcp_rmem", "16384 16384 16384")?;
    let edged = lab.edged()?.set("route.0.methods", r#"["POST"]"#).start()?;
    let script = root().join("tests/clients/uploads.mjs");
    let out = run(lab.client.command("node").arg(script).arg(EDGE).arg(&edged.ca).arg("15"))?;
    assert_eq!(out.trim(), "200");
    Ok(())
}

/// Reads a body in chunks, or what there is of it.
fn to_last_chunk(from: &mut impl std::io::BufRead) {
    let mut last = Vec::new();
    while !last.ends_with(b"\r\n0\r\n\r\n")
        && from.read_until(b'\n', &mut last).is_ok_and(|n| n > 0)
    {
        last.drain(..last.len().saturating_sub(7));
    }
}

/// Takes a body bit by bit, and says how much it was.
fn take_slowly(client: TcpStream) -> Option<()> {
    let mut writer = client.try_clone().ok()?;
    let mut reader = BufReader::with_capacity(1 << 10, client);
    let head = head(&mut reader)?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    let (length, mut part): (usize, _) = (length.parse().ok()?, [0; 10 << 10]);
    for _ in 0..length / part.len() {
        reader.read_exact(&mut part).ok()?;
        thread::sleep(Duration::from_millis(100));
    }
    let text = length.to_string();
    write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).ok()
}

#[test]
fn an_upload_that_goes_on_is_in_time_however_long_it_takes() -> Result<()> {
    for http2 in [false, true] {
        let lab = Lab::new()?;
        // So that little of it is on its way.
        lab.edge.sysctl("ipv4/tcp_wmem", "16384 16384 16384")?;
        lab.origin.sysctl("ipv4/tcp_rmem", "16384 16384 16384")?;
        let _server = if http2 { Some(grpc_server(&lab)?) } else { None };
        if !http2 {
            serve(&lab, take_slowly)?;
        }
        let edged = lab
            .edged()?
            .set("route.0.methods", r#"["POST"]"#)
            .set("upstream.0.http2", &http2.to_string())
            .set("upstream.0.response_timeout", r#""2s""#)
            .start()?;
        let body = vec![7; 600 << 10];
        let answer = edged.get(FRIEND, "/health/slowly").method("POST").body(body).send()?;
        assert_eq!((answer.status, &*answer.text()), (200, "614400"), "http2: {http2}");
    }
    Ok(())
}

/// Begins its answer at once and goes on with it, unless it is to be quiet, for as long as its client does.
fn watched(client: TcpStream) -> Option<()> {
    let mut writer = client.try_clone().ok()?;
    let mut reader = BufReader::new(client);
    let is_quiet = head(&mut reader)?.contains("quiet");
    writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
    let (ended, ends) = mpsc::channel();
    thread::spawn(move || {
        to_last_chunk(&mut reader);
        ended.send(())
    });
    while ends.recv_timeout(Duration::from_millis(300)).is_err() {
        if !is_quiet {
            writer.write_all(b"4\r\ntick\r\n").ok()?;
        }
    }
    writer.write_all(b"0\r\n\r\n").ok()
}

#[test]
fn who_listens_while_its_request_is_open_may_be_as_quiet_as_it_likes() -> Result<()> {
    for http2 in [false, true] {
        let lab = Lab::new()?;
        let _server = if http2 { Some(grpc_server(&lab)?) } else { None };
        if !http2 {
            serve(&lab, watched)?;
        }
        let edged = lab
            .edged()?
            .set("route.0.methods", r#"["POST"]"#)
            .set("upstream.0.http2", &http2.to_string())
            .set("upstream.0.body_timeout", r#""1s""#)
            .set("bounds.idle_timeout", r#""2s""#)
            .set("bounds.body_rate_min", r#""10KiB""#)
            .start()?;
        let begin = |path: &str| -> Result<Talk> {
            let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
            let mut block = get("edge.test", path);
            block[0] = 0x83; // `:method: POST`
            talk.say(&[preface(), frame(HEADERS, END_HEADERS, 1, &block)].concat())?;
            Ok(talk)
        };
        let message = frame(DATA, 0, 1, b"hello");
        let ticks = |bytes: &[u8]| bytes.windows(4).filter(|four| four == b"tick").count();
        let served = |n: f64| Ok(edged.metrics()?.requests(Reason::Serve) >= n);
        let mut talk = begin("/health/watch")?;
        talk.say(&message)?;
        let heard = talk.hear(SOON, |bytes| ticks(bytes) >= 14)?;
        assert!(ticks(&heard.bytes) >= 14 && !heard.closed, "http2: {http2}, {}", edged.log());
        for n in 0..8 {
            talk.say(&message)?;
            let heard = talk.hear(SOON, |bytes| ticks(bytes) >= 3)?;
            assert!(ticks(&heard.bytes) >= 3, "http2: {http2}, message {n}");
        }
        assert_eq!(edged.metrics()?.value("edged_requests_in_flight"), 1.0);
        talk.say(&frame(DATA, END_STREAM, 1, b""))?;
        until("it comes to its end", SOON, || served(1.0))?;

        // Where neither says anything it ends; nor is it kept by words that are too few.
        let reset = frame(RESET, 0, 1, &[0, 0, 0, 8]);
        let is_reset = |bytes: &[u8]| bytes.windows(reset.len()).any(|part| part == reset);
        let mut quiet = begin("/health/quiet")?;
        assert!(is_reset(&quiet.hear(SOON, is_reset)?.bytes), "http2: {http2}");
        let mut trickle = begin("/health/quiet")?;
        let mut heard = Vec::new();
        until("it is too slow", SOON, || {
            let _ = trickle.say(&message);
            heard.extend(trickle.hear(Duration::from_millis(100), |_| true)?.bytes);
            Ok(is_reset(&heard))
        })?;
        until("all are served", SOON, || served(3.0))?;
        let metrics = edged.metrics()?;
        assert_eq!(metrics.requests(Reason::Serve), 3.0, "http2: {http2}");
        let signals = metrics.sum("edged_signals_total", &[]);
        let blameless = metrics.value(r#"edged_signals_total{reason="served"}"#);
        assert_eq!(signals, blameless, "it is nobody's fault");
    }
    Ok(())
}
