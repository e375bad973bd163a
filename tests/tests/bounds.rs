//! Every bound of the request plane: a client that hits it, and the counter that tells of it.

use std::{io::Write, time::Duration};

use anyhow::Result;
use edge_common::Reason;
use edge_tests::{
    Lab, Origin,
    client::{connect, raw_https, read_all, until},
    frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, frame, get, literal, preface},
    lab::{CLIENT, FRIEND},
    talk::Dial,
};

const SOON: Duration = Duration::from_secs(4);

#[test]
fn a_head_that_trickles_is_cut_off() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.set("bounds.header_timeout", r#""1s""#).start()?;
    raw_https(&lab, CLIENT, b"GET / HTTP/1.1\r\nHost: edge.te")?;
    until("it is counted", SOON, || Ok(edged.metrics()?.requests(Reason::RequestTimeout) == 1.0))?;
    assert_eq!(edged.metrics()?.value(r#"edged_signals_total{reason="request_timeout"}"#), 1.0);
    Ok(())
}

#[test]
fn the_first_byte_of_a_head_sets_its_deadline_and_no_wake_up_another() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.set("bounds.header_timeout", r#""1s""#).start()?;
    // Half of the empty line that may come before a request, over TLS and without.
    raw_https(&lab, CLIENT, b"\r")?;
    let mut plain = connect(&lab, CLIENT, 80, SOON)?;
    plain.write_all(b"\r")?;
    until("both are counted", SOON, || {
        Ok(edged.metrics()?.requests(Reason::RequestTimeout) == 2.0)
    })?;
    assert!(read_all(plain)?.starts_with("HTTP/1.1 408 "));
    Ok(())
}

#[test]
fn a_head_that_stays_open_over_http2_is_cut_off_whatever_else_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("bounds.header_timeout", r#""1s""#)
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .start()?;
    // Its upstream waits for the end of the body.
    let mut post = get("edge.test", "/health");
    post[0] = 0x83;
    let upload = frame(HEADERS, END_HEADERS, 1, &post);
    let open = |stream| frame(HEADERS, END_STREAM, stream, &get("edge.test", "/health"));
    for (n, bytes) in
        [open(1), open(1)[..12].to_vec(), [upload, open(3)].concat()].iter().enumerate()
    {
        let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, CLIENT)?;
        talk.say(&[&preface()[..], bytes].concat())?;
        assert!(talk.hear(SOON, |_| false)?.closed, "{n}");
        let counted = n as f64 + 1.0;
        until("it is counted", SOON, || {
            Ok(edged.metrics()?.requests(Reason::RequestTimeout) == counted)
        })?;
    }
    assert_eq!(edged.metrics()?.value(r#"edged_signals_total{reason="request_timeout"}"#), 3.0);
    Ok(())
}

#[test]
fn a_head_is_cut_off_on_a_connection_that_was_asked_to_end() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("bounds.header_timeout", r#""1s""#)
        .set("bounds.requests_per_connection", "1")
        .set("route.0.methods", r#"["GET", "POST"]"#)
        .start()?;
    let mut post = get("edge.test", "/health");
    post[0] = 0x83;
    let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, CLIENT)?;
    talk.say(&[preface(), frame(HEADERS, END_HEADERS, 1, &post)].concat())?;
    // The last stream that it still takes is any.
    let last = frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    talk.hear(SOON, |bytes| bytes.windows(last.len()).any(|part| part == last))?;
    talk.say(&frame(HEADERS, END_STREAM, 3, &get("edge.test", "/health"))[..9])?;
    assert!(talk.hear(SOON, |_| false)?.closed);
    until("it is counted", SOON, || Ok(edged.metrics()?.requests(Reason::RequestTimeout) == 1.0))?;
    Ok(())
}

#[test]
fn a_body_that_stops_is_the_clients_fault() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("bounds.idle_timeout", r#""1s""#).start()?;
    let key = edged.key("k")?;
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: edge.test\r\nX-API-Key: {key}\r\nContent-Length: 99\r\n\r\nabc"
    );
    let answer = raw_https(&lab, CLIENT, head.as_bytes())?;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::RequestTimeout), 1.0);
    assert_eq!(metrics.requests(Reason::UpstreamTimeout), 0.0);
    Ok(())
}

#[test]
fn a_cancelled_upload_is_no_misdeed() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("k")?;
    for (sent, flag) in [(1.0, "--http1.1"), (2.0, "--http2")] {
        let upload = edged.get(CLIENT, "/upload").key(&key).method("POST").body(vec![7; 1 << 20]);
        let _ = upload.flag(flag).arg("--limit-rate", "50k").arg("--max-time", "1").send();
        let gone = || Ok(edged.metrics()?.requests(Reason::ClientGone) == sent);
        until("the client is gone", SOON, gone)?;
    }
    assert_eq!(edged.metrics()?.sum("edged_signals_total", &[]), 0.0);
    Ok(())
}

#[test]
fn a_connection_without_a_request_is_closed() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.set("bounds.header_timeout", r#""1s""#).start()?;
    raw_https(&lab, CLIENT, b"")?;
    until("closed", SOON, || Ok(edged.metrics()?.connections(Reason::IdleConnection) == 1.0))?;
    until("gone", SOON, || Ok(edged.metrics()?.value("edged_connections_open") == 0.0))?;
    Ok(())
}

#[test]
fn a_handshake_that_stalls_or_is_none_is_cut_off() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.set("bounds.handshake_timeout", r#""1s""#).start()?;
    let silent = connect(&lab, CLIENT, 443, SOON)?;
    let mut plain = connect(&lab, CLIENT, 443, SOON)?;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
    read_all(plain)?;
    read_all(silent)?;
    let metrics = edged.metrics()?;
    assert_eq!(metrics.connections(Reason::HandshakeFailed), 1.0);
    assert_eq!(metrics.connections(Reason::HandshakeTimeout), 1.0);
    assert_eq!(metrics.value(r#"edged_signals_total{reason="handshake_failed"}"#), 1.0);
    Ok(())
}

#[test]
fn connections_beyond_the_bound_are_closed_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.set("bounds.connections_max", "2").start()?;
    let held = [connect(&lab, CLIENT, 443, SOON)?, connect(&lab, CLIENT, 443, SOON)?];
    until("both are held", SOON, || Ok(edged.metrics()?.value("edged_connections_open") == 2.0))?;
    assert_eq!(read_all(connect(&lab, CLIENT, 443, SOON)?)?, "");
    assert_eq!(edged.metrics()?.connections(Reason::ConnectionsFull), 1.0);
    drop(held);
    until("there is room", SOON, || Ok(edged.metrics()?.value("edged_connections_open") == 0.0))?;
    Ok(())
}

#[test]
fn requests_beyond_the_bound_are_told_to_come_back() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("bounds.requests_max", "1").start()?;
    let key = edged.key("k")?;
    std::thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| edged.get(CLIENT, "/slow?ms=1500").key(&key).send());
        until("one is open", SOON, || {
            Ok(edged.metrics()?.value("edged_requests_in_flight") == 1.0)
        })?;
        let refused = edged.get(FRIEND, "/").key(&key).send()?;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.header("retry-after").is_some(), "{refused:?}");
        assert_eq!(slow.join().expect("no panic")?.status, 200);
        Ok(())
    })?;
    assert_eq!(edged.metrics()?.requests(Reason::Overload), 1.0);
    assert_eq!(edged.metrics()?.sum("edged_signals_total", &[]), 0.0, "it is not their fault");
    Ok(())
}

#[test]
fn an_answer_before_the_end_of_the_body_leaves_the_pool_in_order() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("k")?;
    let part = [7; 16 << 10];
    for n in 1..=4 {
        // The origin answers before it reads any of the body, of which no more comes than this.
        let mut one = Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1").connect(&lab, FRIEND)?;
        let ask = format!(
            "POST /early HTTP/1.1\r\nHost: edge.test\r\nX-API-Key: {key}\r\nContent-Length: 3000000\r\n\r\n"
        );
        one.say(&[ask.as_bytes(), &part].concat())?;
        let heard = one.hear(SOON, |bytes| bytes.ends_with(b"early"))?;
        let answer = String::from_utf8_lossy(&heard.bytes).to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 413 ") && answer.ends_with("early"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "since that follows: {answer}");
        let next = edged.get(FRIEND, "/echo").key(&key).flag("--http1.1").send()?;
        assert_eq!(next.status, 200, "{next:?}");

        let mut two = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
        let mut block = get("edge.test", "/early");
        block[0] = 0x83; // `:method: POST`
        block.extend(literal("x-api-key", &key));
        let ask = [frame(HEADERS, END_HEADERS, 1, &block), frame(DATA, 0, 1, &part)];
        two.say(&[preface(), ask.concat()].concat())?;
        let early = frame(DATA, END_STREAM, 1, b"early");
        let is_early = |bytes: &[u8]| bytes.windows(early.len()).any(|part| part == early);
        let heard = two.hear(SOON, is_early)?;
        assert!(is_early(&heard.bytes), "{heard:?}");
        let next = edged.get(FRIEND, "/echo").key(&key).flag("--http2").send()?;
        assert_eq!(next.status, 200, "{next:?}");
        assert_eq!((origin.asked("/early"), origin.asked("/echo")), (2 * n, 2 * n));
    }
    assert_eq!(origin.seen(), 16, "nobody asked for anything else");
    Ok(())
}
