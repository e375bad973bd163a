//! The request path, as curl and openssl see it.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    time::Duration,
};

use anyhow::{Context as _, Result};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::{HOST, Response, handshake, raw_https, until},
    lab::{ATTACKER, CLIENT, CLIENT6, FRIEND, ORIGIN},
};
use serde_json::Value;

/// A refusal has the status, is a problem document, carries a request id and tells nothing else.
fn refused(response: &Response, status: u16) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let problem = response.json();
    assert_eq!(problem["status"], status, "{problem}");
    let id = problem["request_id"].as_str().unwrap_or_default();
    assert!(id.len() >= 16, "{problem}");
    assert!(!response.text().contains(ORIGIN), "{problem}");
    shielded(response);
}

/// The security headers are on, and the software behind is not named.
fn shielded(response: &Response) {
    for name in ["strict-transport-security", "x-content-type-options", "x-frame-options"] {
        assert!(response.header(name).is_some(), "{name}: {response:?}");
    }
    assert_eq!(response.header("x-powered-by"), None);
    assert!(!response.header("server").unwrap_or_default().contains("origin"));
}

#[test]
fn a_good_key_is_served_over_both_protocols() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("good")?;
    for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")] {
        let response = edged.get(CLIENT, "/").key(&key).flag(flag).send()?;
        assert_eq!((response.status, response.version.as_str()), (200, version));
        assert_eq!(response.text(), "hello");
        assert!(response.header("x-ratelimit-remaining").is_some(), "{response:?}");
        shielded(&response);
    }
    let authorization = format!("ApiKey {key}");
    let response = edged.get(CLIENT6, "/").header("Authorization", &authorization).send()?;
    assert_eq!(response.status, 200);
    assert_eq!(origin.seen(), 3);
    assert_eq!(edged.metrics()?.requests(Reason::Serve), 3.0);
    Ok(())
}

#[test]
fn each_fault_has_its_status() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let health = "[[route]]\npath = \"/only\"\nhost = \"edge.test\"\nmethods = [\"GET\"]\n\
                  auth = \"key\"\nscopes = [\"admin\"]\nupstream = \"api\"";
    let edged = lab.edged()?.set("route.1.path", "\"/api\"").append(health)?.start()?;
    let key = edged.key("plain")?;
    let wrong = format!("edged_{}_{}", "0".repeat(43), "0".repeat(6));
    // From an allowlisted source, so that the misdeeds do not add up to a ban.
    let get = |path: &str| edged.get(FRIEND, path).key(&key);
    refused(&edged.get(FRIEND, "/api").send()?, 401);
    refused(&edged.get(FRIEND, "/api").key("nonsense").send()?, 401);
    refused(&edged.get(FRIEND, "/api").key(&wrong).send()?, 401);
    refused(&get("/only").send()?, 403);
    refused(&get("/nowhere").send()?, 404);
    refused(&get("/apiary").send()?, 404);
    refused(&get("/health").method("POST").send()?, 405);
    refused(&get(&format!("/api/{}", "a".repeat(9000))).send()?, 414);
    refused(&get("/api").header("X-Long", &"a".repeat(20_000)).flag("--http1.1").send()?, 431);
    // Over HTTP/1: this curl loses an HTTP/2 answer that comes before it has sent its body.
    refused(&get("/api").method("POST").body(vec![0; 11 << 20]).flag("--http1.1").send()?, 413);
    refused(&edged.get(FRIEND, &format!("/api?api_key={key}")).send()?, 400);
    assert_eq!(origin.seen(), 0, "nothing of it reached the origin");
    let challenge = edged.get(FRIEND, "/api").send()?;
    assert!(challenge.header("www-authenticate").is_some(), "{challenge:?}");
    let allow = get("/health").method("DELETE").send()?;
    assert_eq!(allow.header("allow"), Some("GET, HEAD"));
    Ok(())
}

#[test]
fn a_request_without_one_meaning_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    for head in [
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: edge.test\r\nHost: other.test\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: edge.test\r\nX_Under: score\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "GET /health HTTP/1.1\r\nHost : edge.test\r\n\r\n",
        "GET /health HTTP/9.9\r\nHost: edge.test\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let answer = raw_https(&lab, FRIEND, head.as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
        let (fields, problem) = answer.split_once("\r\n\r\n").expect("a body");
        let problem: Value = serde_json::from_str(problem)?;
        let id = problem["request_id"].as_str().expect("an id");
        assert!(fields.contains(&format!("x-request-id: {id}")), "{head:?}: {answer}");
        assert!(fields.contains("application/problem+json"), "{head:?}: {answer}");
    }
    assert_eq!(origin.seen(), 0);
    assert!(edged.metrics()?.requests(Reason::MalformedRequest) >= 5.0);
    Ok(())
}

#[test]
fn a_body_framed_twice_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("k")?;
    let request = format!(
        "POST /echo HTTP/1.1\r\nHost: edge.test\r\nX-API-Key: {key}\r\nContent-Length: 6\r\n\
         Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    );
    let answer = raw_https(&lab, FRIEND, request.as_bytes())?;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "nothing is read behind it: {answer}");
    assert_eq!(origin.seen(), 0);
    Ok(())
}

#[test]
fn too_many_requests_are_told_when_to_return() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("limits.per_source", r#"{ rate = "60/m", burst = 5 }"#).start()?;
    let statuses = edged.get(CLIENT, "/health").send_many(8)?;
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 5, "{statuses:?}");
    let response = edged.get(CLIENT, "/health").send()?;
    refused(&response, 429);
    let number = |name: &str| response.header(name).and_then(|v| v.parse::<u64>().ok());
    assert_eq!(number("x-ratelimit-limit"), Some(5));
    assert_eq!(number("x-ratelimit-remaining"), Some(0));
    assert!(number("x-ratelimit-reset").is_some() && number("retry-after") >= Some(1));
    assert_eq!(edged.get(ATTACKER, "/health").send()?.status, 200, "another source is untouched");
    // Who is refused for another reason is told where it stands, too.
    let nobody = edged.get(ATTACKER, "/").send()?;
    refused(&nobody, 401);
    assert!(nobody.header("x-ratelimit-remaining").is_some(), "{nobody:?}");
    Ok(())
}

#[test]
fn plain_http_is_limited_like_all_else() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.set("limits.per_source", r#"{ rate = "1/h", burst = 3 }"#).start()?;
    let ask = |source: &str| edged.get(source, "http://edge.test/");
    let statuses = ask(CLIENT).header("X-API-Key", "x").send_many(4)?;
    assert_eq!(statuses, [400, 400, 400, 429]);
    assert_eq!(ask(CLIENT).send()?.status, 429);
    let sent = ask(ATTACKER).send()?;
    assert_eq!(sent.status, 308, "another source is untouched");
    assert_eq!(sent.header("x-ratelimit-remaining"), Some("2"), "{sent:?}");
    assert_eq!(edged.metrics()?.requests(Reason::SourceRate), 2.0);
    let is_banned = || {
        // Whoever goes on is banned for it: the last of these may be dropped.
        let _ = ask(CLIENT).send();
        edged.banned(CLIENT)
    };
    until("a flood of redirects is one", Duration::from_secs(10), is_banned).map(drop)
}

#[test]
fn a_key_has_a_limit_of_its_own() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("limits.per_key", r#"{ rate = "60/m", burst = 5 }"#).start()?;
    let (one, other) = (edged.key("one")?, edged.key("other")?);
    edged.get(CLIENT, "/").key(&one).send_many(5)?;
    refused(&edged.get(CLIENT6, "/").key(&one).send()?, 429);
    assert_eq!(edged.get(CLIENT, "/").key(&other).send()?.status, 200);
    assert_eq!(edged.metrics()?.requests(Reason::KeyRate), 1.0);
    Ok(())
}

#[test]
fn plain_http_only_redirects() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let response = edged.get(CLIENT, "http://edge.test/a/b?c=1").send()?;
    assert_eq!(response.status, 308);
    assert_eq!(response.header("location"), Some("https://edge.test/a/b?c=1"));
    assert_eq!(origin.seen(), 0);
    // The promise of TLS is not to be made without it (RFC 6797, 7.2).
    let others = [("/a?api_key=x", "GET"), ("/..", "GET"), ("/a", "TRACE")];
    let others = others.map(|(path, method)| {
        let get = edged.get(CLIENT, &format!("http://edge.test{path}"));
        get.flag("--path-as-is").method(method).send()
    });
    for answer in others.into_iter().chain([Ok(response)]) {
        let answer = answer?;
        assert_eq!(answer.header("strict-transport-security"), None, "{answer:?}");
        assert!(answer.header("x-content-type-options").is_some(), "{answer:?}");
    }
    assert_eq!(edged.metrics()?.requests(Reason::Redirect), 1.0);
    Ok(())
}

#[test]
fn the_upstream_gets_our_identity_headers_and_no_one_elses() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("caller")?;
    let echo = edged
        .get(CLIENT, "/echo?a=1")
        .key(&key)
        .header("X-Forwarded-For", "203.0.113.9")
        .header("X-Real-IP", "203.0.113.9")
        .header("Forwarded", "for=203.0.113.9")
        .header("X-Forwarded-Host", "evil.test")
        .header("X-Kept", "yes")
        .send()?;
    let seen = echo.json();
    let text = seen.to_string();
    assert_eq!(seen["target"], "/echo?a=1");
    assert!(!text.contains("203.0.113.9") && !text.contains("evil.test"), "{text}");
    assert!(!text.contains(&key), "the key stays at the edge: {text}");
    assert!(text.contains(CLIENT) && text.contains("X-Kept") || text.contains("x-kept"), "{text}");
    let id = echo.header("x-request-id").unwrap_or_default();
    assert!(!id.is_empty() && text.contains(id), "one request id in both: {id} {text}");
    Ok(())
}

#[test]
fn bodies_stream_both_ways() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("big")?;
    for flag in ["--http1.1", "--http2"] {
        let down = edged.get(CLIENT, "/big?bytes=33554432").key(&key).flag(flag).send()?;
        assert_eq!((down.status, down.body.len()), (200, 32 << 20));
        let up = edged.get(CLIENT, "/upload").key(&key).flag(flag).method("POST");
        assert_eq!(up.body(vec![7; 9 << 20]).send()?.text(), (9 << 20).to_string());
    }
    Ok(())
}

#[test]
fn an_upstream_at_fault_never_costs_the_client() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let dead = "[[upstream]]\nname = \"dead\"\nservers = [\"192.0.2.2:81\"]\n\
                [[route]]\npath = \"/dead\"\nmethods = [\"GET\"]\nauth = \"none\"\nupstream = \"dead\"";
    let edged = lab
        .edged()?
        .set("upstream.0.response_timeout", r#""300ms""#)
        .set("route.1.auth", r#""none""#)
        .append(dead)?
        .start()?;
    for _ in 0..5 {
        refused(&edged.get(CLIENT, "/slow?ms=2000").send()?, 504);
        refused(&edged.get(CLIENT, "/dead").send()?, 502);
        refused(&edged.get(CLIENT, "/garbage").send()?, 502);
        assert!(edged.get(CLIENT, "/drop").send().is_err());
    }
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::UpstreamTimeout), 5.0);
    assert_eq!(metrics.requests(Reason::UpstreamUnreachable), 5.0);
    assert_eq!(metrics.requests(Reason::UpstreamInvalid), 10.0);
    assert!(edged.bans()?.is_empty());
    Ok(())
}

#[test]
fn an_upstreams_error_is_passed_on() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("k")?;
    for status in [204, 304, 404, 500, 503] {
        let response = edged.get(CLIENT, &format!("/status/{status}")).key(&key).send()?;
        assert_eq!(response.status, status);
        shielded(&response);
    }
    Ok(())
}

#[test]
fn old_tls_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let legacy = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
    assert!(!handshake(&lab, &legacy)?.contains("Protocol  : TLSv1.1\n    Cipher    : ECDHE"));
    assert!(handshake(&lab, &["-tls1_2"])?.contains("New, TLSv1.2, Cipher is ECDHE"));
    assert!(handshake(&lab, &["-tls1_3"])?.contains("New, TLSv1.3, Cipher is TLS_"));
    let alpn = handshake(&lab, &["-alpn", "h2,http/1.1"])?;
    assert!(alpn.contains("ALPN protocol: h2"), "{alpn}");
    until("handshakes are counted", Duration::from_secs(2), || {
        let metrics = edged.metrics()?;
        let (good, bad) =
            (metrics.connections(Reason::Handshake), metrics.connections(Reason::HandshakeFailed));
        Ok(good == 3.0 && bad == 1.0)
    })?;
    assert!(Edged::get(&edged, CLIENT, &format!("https://{HOST}/health")).send().is_ok());
    Ok(())
}

#[test]
fn upstreams_are_told_the_port_that_was_used() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edge = edge_tests::lab::EDGE;
    let listeners = format!("[\"{edge}:443\", \"{edge}:8443\"]");
    let edged = lab.edged()?.set("server.https", &listeners).start()?;
    let key = edged.key("k")?;
    for port in [443, 8443] {
        let dial = edge_tests::talk::Dial::new(&edged.ca, HOST)?.port(port);
        let mut talk = dial.connect(&lab, CLIENT)?;
        let echo = talk.get(HOST, "/echo", &[&format!("X-API-Key: {key}")])?.body;
        let told = format!("\"x-forwarded-port\",\"{port}\"");
        assert!(echo.to_ascii_lowercase().contains(&told), "{port}: {echo}");
    }
    Ok(())
}

#[test]
fn the_access_log_has_a_line_for_each_request_and_no_secret() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let file = lab.dir().join("access.log");
    let edged = lab.edged()?.set("log.access", &format!("{file:?}")).start()?;
    let key = edged.key("k")?;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let seen = edged.get(CLIENT, "/echo?note=private").key(&key).header("traceparent", &parent);
    let seen = seen.flag("--http2").send()?;
    assert!(seen.text().contains(&parent), "the trace is passed on: {}", seen.text());
    let refused =
        edged.get(CLIENT, "/secret").arg("--user-agent", "a\"b").flag("--http1.1").send()?;
    raw_https(&lab, CLIENT, b"nonsense\r\n\r\n")?;
    let page = "https://user:hunter2@a.test/b?note=private";
    edged.get(CLIENT, "/tell").header("Referer", page).header("Host", &key).send()?;
    edged.get(CLIENT, "/tell").header("Host", "user:hunter2@edge.test").flag("--http1.1").send()?;
    let lines = || -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&file)?;
        for secret in [&key, "note=private", "hunter2"] {
            assert!(!text.contains(secret), "{text}");
        }
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    until("the lines are there", Duration::from_secs(10), || Ok(lines()?.len() == 5))?;
    let lines = lines()?;
    assert!(lines.iter().any(|line| line["referer"] == "https://a.test/b"), "{lines:?}");
    // Workers hand their lines over one by one.
    let with = |reason| {
        let one = |line: &&Value| line["reason"] == reason && line["path"] != "/tell";
        lines.iter().find(one).expect("a line")
    };
    let [served, denied, broken] = ["serve", "credential_missing", "malformed_request"].map(with);
    for (name, value) in [
        ("client", CLIENT),
        ("method", "GET"),
        ("host", HOST),
        ("path", "/echo"),
        ("protocol", "HTTP/2"),
        ("reason", "serve"),
        ("upstream", "api"),
        ("server", "192.0.2.2:8080"),
        ("trace_id", trace),
    ] {
        assert_eq!(served[name], value, "{name}: {served}");
    }
    assert_eq!((&served["status"], &served["tls"]["version"]), (&200.into(), &"TLSv1.3".into()));
    assert_eq!(served["request_id"], seen.header("x-request-id").unwrap_or_default());
    assert!(served["principal"].is_string() && served["bytes_out"].as_u64() > Some(0), "{served}");
    let times =
        ["total_us", "decide_us", "upstream_us"].map(|name| served[name].as_u64().unwrap_or(0));
    assert!(times[0] >= times[1] + times[2] && times[2] > 0, "{served}");
    assert_eq!((&denied["status"], &denied["user_agent"]), (&401.into(), &"a\"b".into()));
    assert_eq!(denied["request_id"], refused.header("x-request-id").unwrap_or_default());
    assert_eq!((&broken["status"], &broken["path"]), (&400.into(), &"".into()));
    Ok(())
}

#[test]
fn who_leaves_before_the_answer_has_a_line_in_the_access_log() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let file = lab.dir().join("access.log");
    let edged = lab.edged()?.set("log.access", &format!("{file:?}")).start()?;
    let key = edged.key("k")?;
    for flag in ["--http1.1", "--http2"] {
        let left = edged.get(CLIENT, "/slow?ms=5000").key(&key).flag(flag).arg("--max-time", "1");
        assert!(left.send().is_err(), "{flag}");
    }
    let lines = || -> Result<Vec<serde_json::Value>> {
        let text = std::fs::read_to_string(&file)?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    until("the lines are there", Duration::from_secs(10), || Ok(lines()?.len() == 2))?;
    for line in lines()? {
        for (name, value) in [
            ("reason", "client_gone"),
            ("client", CLIENT),
            ("method", "GET"),
            ("host", HOST),
            ("path", "/slow"),
            ("upstream", "api"),
            ("server", "192.0.2.2:8080"),
        ] {
            assert_eq!(line[name], value, "{name}: {line}");
        }
        assert!(line["principal"].is_string() && line["request_id"] != "", "{line}");
        assert_eq!((&line["by"], &line["issuer"]), (&"key".into(), &serde_json::Value::Null));
    }
    Ok(())
}

#[test]
fn the_access_log_can_be_what_others_read() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let file = lab.dir().join("access.log");
    let log = lab.edged()?.set("log.access", &format!("{file:?}"));
    let edged = log.set("log.access_format", r#""combined""#).start()?;
    let agent = edged.get(CLIENT, "/health").arg("--user-agent", "x\" 200");
    let answer = agent.flag("--http1.1").send()?;
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    until("the line is there", Duration::from_secs(10), || Ok(read().ends_with('\n')))?;
    let line = read();
    // As in Apache's documentation: host, identity, user, [time], "request", status, bytes, "referer", "agent".
    let (who, rest) = line.split_once(" [").context("a time")?;
    let (time, rest) = rest.split_once("] \"").context("a request")?;
    assert_eq!(who, format!("{CLIENT} - -"));
    let is_like = |(c, like): (char, char)| match like {
        '0' => c.is_ascii_digit(),
        'A' => c.is_ascii_uppercase(),
        'a' => c.is_ascii_lowercase(),
        like => c == like,
    };
    let like = "00/Aaa/0000:00:00:00 +0000";
    assert!(time.len() == like.len() && time.chars().zip(like.chars()).all(is_like), "{time}");
    let (said, micros) = rest.trim_end().rsplit_once(' ').context("the time taken")?;
    let (said, id) = said.rsplit_once(' ').context("an id")?;
    assert!(micros.parse::<u64>().is_ok() && !id.is_empty(), "{line}");
    let bytes = answer.text().len();
    assert_eq!(said, format!("GET /health HTTP/1.1\" 200 {bytes} \"-\" \"x\\x22 200\""));
    Ok(())
}

/// Client and server agree on it; the edge looks into nothing.
#[test]
fn compressed_bodies_are_passed_on_as_they_are() -> Result<()> {
    const PACKED: &[u8] = b"\x1f\x8b\x08\x00\x00 not text \x00\xff\r\n0\r\n\r\n";
    let lab = Lab::new()?;
    let listener = lab.origin.enter(|| TcpListener::bind(format!("{ORIGIN}:8080")))?;
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> Option<()> {
        for mut client in listener.incoming().flatten() {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                client.read_exact(&mut byte).ok()?;
                head.extend(byte);
            }
            let head = String::from_utf8(head).ok()?;
            let status = if head.contains("/health/broken ") { 500 } else { 200 };
            told.send(head).ok()?;
            let length = PACKED.len();
            let head = format!(
                "HTTP/1.1 {status} S\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\nETag: \"a\"\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            client.write_all(&[head.as_bytes(), PACKED].concat()).ok()?;
        }
        None
    });
    let edged = lab.edged()?.start()?;
    let ask = |path: &str| edged.get(FRIEND, path).header("Accept-Encoding", "br;q=0.5, gzip");
    for flag in ["--http1.1", "--http2"] {
        let answer = ask("/health/packed").flag(flag).send()?;
        assert_eq!((answer.status, &*answer.body), (200, PACKED), "{flag}");
        for (name, value) in
            [("content-encoding", "gzip"), ("vary", "Accept-Encoding"), ("etag", "\"a\"")]
        {
            assert_eq!(answer.header(name), Some(value), "{flag}");
        }
        let head = heard.recv_timeout(Duration::from_secs(10))?.to_ascii_lowercase();
        assert!(head.contains("\r\naccept-encoding: br;q=0.5, gzip\r\n"), "{head}");
    }
    // Of an error page that is kept back, the log has no noise.
    assert_eq!(ask("/health/broken").send()?.status, 500);
    let is_named = || Ok(edged.log().contains("encoding=\"gzip\""));
    until("it is named", Duration::from_secs(10), is_named)?;
    assert!(!edged.log().contains("not text"), "{}", edged.log());
    Ok(())
}

#[test]
fn the_same_place_may_be_written_in_several_ways() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let _edged = lab.edged()?.set("route.1.auth", "\"none\"").start()?;
    for line in ["GET https://edge.test?a=1", "GET HTTP://EDGE.test:80?a=1", "GET /?a=1"] {
        let request = format!("{line} HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n");
        let answer = raw_https(&lab, FRIEND, request.as_bytes())?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{line}: {answer}");
    }
    assert_eq!(origin.asked("/?a=1"), 3);
    Ok(())
}

#[test]
fn a_question_about_the_whole_server_has_no_route() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let methods = r#"["GET", "OPTIONS"]"#;
    let edged = lab.edged()?.set("route.0.methods", methods).start()?;
    let next = "GET /health HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n";
    let asked = format!("OPTIONS * HTTP/1.1\r\nHost: edge.test\r\n\r\n{next}");
    let answers = raw_https(&lab, FRIEND, asked.as_bytes())?;
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|a| &a[..3]).collect();
    assert_eq!(statuses, ["404", "200"], "{answers}");
    let star = edged.get(FRIEND, "/").arg("--request-target", "*").method("OPTIONS");
    refused(&star.flag("--http2").send()?, 404);
    assert_eq!(origin.seen(), 1);
    assert_eq!(edged.metrics()?.requests(Reason::NoRoute), 2.0);
    Ok(())
}
