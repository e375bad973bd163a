//! The servers behind the edge: how requests are spread over them, and what a client sees of it
//! when one of them fails in any of the ways that servers fail.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixListener,
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::until,
    daemon::{binary, certify},
    frames::{
        DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RESET, SETTINGS, WINDOW, frame, get,
        literal, preface, take,
    },
    lab::{FRIEND, ORIGIN},
    netns::{Netns, run},
    talk::{Dial, Talk},
    upstream::Upstream,
};
use nix::sys::signal::Signal;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

const SOON: Duration = Duration::from_secs(8);
/// More than a client's first window in HTTP/2, by less than one read.
const SIZE: usize = 66_000;

/// A server that does with its connections, counted from 0, what a test says.
struct Script {
    /// Requests it has read the head of.
    seen: Arc<AtomicU64>,
}

impl Script {
    /// Listens on a port of the origin's namespace; `act` gets each request's path.
    fn start(
        ns: &Netns,
        address: &str,
        act: impl Fn(&str, &mut TcpStream) -> bool + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = ns.enter(|| TcpListener::bind(address))?;
        let (seen, act) = (Arc::new(AtomicU64::new(0)), Arc::new(act));
        let count = Arc::clone(&seen);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (act, count) = (Arc::clone(&act), Arc::clone(&count));
                std::thread::spawn(move || converse(client, &*act, &count));
            }
        });
        Ok(Self { seen })
    }

    fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }
}

/// Reads one head after another, as long as `act` wants to go on.
fn converse(
    client: TcpStream,
    act: &dyn Fn(&str, &mut TcpStream) -> bool,
    count: &AtomicU64,
) -> Option<()> {
    let mut writer = client.try_clone().ok()?;
    let mut reader = BufReader::new(client);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let path = line.split(' ').nth(1)?.to_owned();
        while line.trim_end() != "" {
            line.clear();
            reader.read_line(&mut line).ok()?;
        }
        count.fetch_add(1, Relaxed);
        if !act(&path, &mut writer) {
            return None;
        }
    }
}

fn respond(stream: &mut TcpStream, status: u16, body: &str) -> bool {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} S\r\nContent-Length: {length}\r\n\r\n{body}").is_ok()
}

fn servers(ports: &[u16]) -> String {
    let all: Vec<_> = ports.iter().map(|port| format!("\"{ORIGIN}:{port}\"")).collect();
    format!("[{}]", all.join(", "))
}

fn origins(lab: &Lab, ports: &[u16]) -> Result<Vec<Origin>> {
    let listen = |port: &u16| Ok(Origin::listen(&lab.origin, &format!("{ORIGIN}:{port}"))?);
    ports.iter().map(listen).collect()
}

/// The sum of a metric of the upstream.
fn metric(edged: &Edged, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(edged.metrics()?.sum(name, labels))
}

/// How many descriptors it has open once it has served somebody and nobody is left.
fn at_rest(edged: &Edged<'_>) -> Result<usize> {
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    let is_left = || Ok(metric(edged, "edged_connections_open", &[])? == 0.0);
    until("no visitor is left", SOON, is_left)?;
    descriptors(edged)
}

/// Descriptors that the daemon has open.
fn descriptors(edged: &Edged) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", edged.pid()))?.count())
}

/// Waits until nothing is in flight and no more descriptors are open than before.
fn nothing_leaks(edged: &Edged, before: usize) -> Result<()> {
    until("nothing is in flight", SOON, || {
        Ok(metric(edged, "edged_requests_in_flight", &[])? == 0.0
            && metric(edged, "edged_upstream_requests_in_flight", &[])? == 0.0
            && metric(edged, "edged_upstream_waiting", &[])? == 0.0)
    })?;
    until("descriptors are given back", SOON, || Ok(descriptors(edged)? <= before))?;
    Ok(())
}

fn state(edged: &Edged, server: &str) -> Result<String> {
    let list = edged.ask("upstream list")?;
    let entries = list["entries"].as_array().cloned().unwrap_or_default();
    let found = entries.iter().find(|e| e["server"].as_str().is_some_and(|s| s.contains(server)));
    Ok(found.and_then(|e| e["state"].as_str()).unwrap_or_default().to_owned())
}

#[test]
fn requests_are_spread_by_weight_and_stay_where_their_hash_says() -> Result<()> {
    let lab = Lab::new()?;
    // One of them waits with its answer for as long as the test holds this.
    let gate = Arc::new(Mutex::new(()));
    let both = [8081, 8082].map(|port| {
        let gate = Arc::clone(&gate);
        Script::start(&lab.origin, &format!("{ORIGIN}:{port}"), move |path, stream| {
            let waits = path.starts_with("/slow").then(|| gate.lock());
            drop(waits);
            respond(stream, 200, "hello")
        })
    });
    let [first, second] = both;
    let (first, second) = (first?, second?);
    let seen = || [first.seen(), second.seen()];
    let weighted = format!(
        "[{{ address = \"{ORIGIN}:8081\", weight = 3 }}, {{ address = \"{ORIGIN}:8082\" }}]"
    );
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &weighted)
        .set("upstream.0.response_timeout", "\"60s\"")
        .set("server.workers", "1")
        .start()?;
    let statuses = edged.get(FRIEND, "/health").send_many(40)?;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(seen(), [30, 10]);

    edged.edit("upstream.0.servers", &servers(&[8081, 8082]))?;
    edged.edit("upstream.0.balance", "\"least_loaded\"")?;
    edged.tell("reload")?;
    let key = edged.key("k")?;
    std::thread::scope(|scope| -> Result<()> {
        let held = gate.lock().expect("nobody panics");
        let slow = scope.spawn(|| edged.get(FRIEND, "/slow?ms=1").key(&key).send());
        // It is in flight before the server has read it.
        until("one server is busy", SOON, || Ok(seen().iter().sum::<u64>() == 41))?;
        let before = seen();
        edged.get(FRIEND, "/health").send_many(10)?;
        let more = [seen()[0] - before[0], seen()[1] - before[1]];
        drop(held);
        assert!(more == [0, 10] || more == [10, 0], "the one with less to do has all: {more:?}");
        assert_eq!(slow.join().expect("no panic")?.status, 200);
        Ok(())
    })?;

    edged.edit("upstream.0.balance", "\"hash\"")?;
    edged.edit("upstream.0.hash_by", "\"header:x-user\"")?;
    edged.tell("reload")?;
    let mut moved = 0;
    for user in 0..16 {
        let before = first.seen();
        let ask = || edged.get(FRIEND, "/health").header("X-User", &user.to_string());
        ask().send_many(3)?;
        let here = first.seen() - before;
        assert!(here == 0 || here == 3, "user {user} was at both");
        moved += here / 3;
    }
    assert!((2..=14).contains(&moved), "{moved} of 16 users are at the first");

    Ok(())
}

#[test]
fn a_dead_server_costs_no_request() -> Result<()> {
    let lab = Lab::new()?;
    let origins = origins(&lab, &[8081])?;
    let edged = lab.edged()?.set("upstream.0.servers", &servers(&[8081, 8089])).start()?;
    let key = edged.key("k")?;
    let statuses = edged.get(FRIEND, "/health").send_many(30)?;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    for _ in 0..4 {
        let post = edged.get(FRIEND, "/upload").key(&key).method("POST").body(vec![7; 70_000]);
        assert_eq!(
            post.send()?.text(),
            "70000",
            "a body that never left goes to the next one whole"
        );
    }
    assert_eq!(origins[0].seen(), 34);
    assert!(metric(&edged, "edged_upstream_retries_total", &[])? > 0.0);
    assert_eq!(state(&edged, ":8089")?, "ejected");
    assert_eq!(metric(&edged, "edged_upstream_ejections_total", &[])?, 1.0);
    assert_eq!(metric(&edged, "edged_upstream_servers_active", &[])?, 1.0);
    Ok(())
}

/// Whether there is another one to ask instead is not asked in anybody's turn.
#[test]
fn a_server_that_refuses_leaves_the_others_their_equal_shares() -> Result<()> {
    let lab = Lab::new()?;
    let origins = origins(&lab, &[8082, 8083])?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082, 8083]))
        .set("upstream.0.ejection", "{ failures = 0 }")
        .set("upstream.0.circuit", "{ failures = \"off\" }")
        .set("upstream.0.retry_budget", "100")
        .set("server.workers", "1")
        .start()?;
    assert_eq!(edged.get(FRIEND, "/health").send_many(60)?, [200; 60]);
    let seen: Vec<_> = origins.iter().map(Origin::seen).collect();
    assert!(seen.iter().all(|seen| (28..=32).contains(seen)), "{seen:?}");
    Ok(())
}

#[test]
fn every_fault_of_a_server_has_its_status_and_leaks_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), |path, stream| {
        let pause = || std::thread::sleep(Duration::from_secs(4));
        let _ = match path.trim_start_matches("/health/") {
            "silent" => return false,
            "cut-head" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le"),
            "garbage" => stream.write_all(b"\x16\x03\x01 no HTTP at all\r\n\r\n"),
            "interims" => {
                for _ in 0..12 {
                    let _ = stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n");
                    std::thread::sleep(Duration::from_millis(20));
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            }
            "two-lengths" => stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
            "cut-body" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"),
            "bad-chunk" => stream.write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
            ),
            "slow-head" => {
                pause();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            }
            "slow-body" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
                pause();
                stream.write_all(b"whole")
            }
            "drip" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n");
                for _ in 0..40 {
                    std::thread::sleep(Duration::from_millis(100));
                    if stream.write_all(b"x").is_err() {
                        break;
                    }
                }
                Ok(())
            }
            _ => return respond(stream, 200, "fine"),
        };
        false
    })?;
    let edged = lab
        .edged()?
        .set("upstream.0.response_timeout", "\"1s\"")
        .set("upstream.0.body_timeout", "\"1s\"")
        .set("upstream.0.total_timeout", "\"2s\"")
        .set("upstream.0.circuit", "{ failures = \"off\" }")
        .start()?;
    let ask = |path: &str| edged.get(FRIEND, &format!("/health/{path}")).send();
    assert_eq!(ask("fine")?.text(), "fine");
    let before = descriptors(&edged)?;
    for (path, status) in [
        ("silent", 502),
        ("cut-head", 502),
        ("garbage", 502),
        ("two-lengths", 502),
        ("interims", 502),
        ("slow-head", 504),
    ] {
        assert_eq!(ask(path)?.status, status, "{path}");
        assert_eq!(ask("fine")?.text(), "fine", "after {path}");
    }
    // The head has left the edge: what is missing can only be told by breaking off.
    for path in ["cut-body", "bad-chunk", "slow-body", "drip"] {
        for flag in ["--http1.1", "--http2"] {
            let broken = edged.get(FRIEND, &format!("/health/{path}")).flag(flag).send();
            assert!(broken.is_err(), "{path} {flag}: {broken:?}");
        }
        assert_eq!(ask("fine")?.text(), "fine", "after {path}");
    }
    nothing_leaks(&edged, before)?;
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::UpstreamInvalid), 5.0 + 4.0);
    assert_eq!(metrics.requests(Reason::UpstreamTimeout), 1.0 + 4.0);
    let served = metrics.sum("edged_signals_total", &[("reason", "served")]);
    assert_eq!(metrics.sum("edged_signals_total", &[]), served, "no visitor's fault");
    Ok(())
}

#[test]
fn error_pages_go_to_the_log_at_a_rate() -> Result<()> {
    let lab = Lab::new()?;
    let _script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), |_, stream| {
        respond(stream, 500, "a trace of the stack")
    })?;
    let edged = lab.edged()?.set("server.workers", "1").start()?;
    let began = Instant::now();
    assert_eq!(edged.get(FRIEND, "/health").send_many(40)?, [500; 40]);
    let (mut logged, mut lost) = (0, 0.0);
    until("each is logged or counted", SOON, || {
        logged = edged.log().matches("a trace of the stack").count();
        lost = metric(&edged, "edged_log_lost_total", &[])?;
        Ok(logged as f64 + lost == 40.0)
    })?;
    let seconds = began.elapsed().as_secs() + 1;
    assert!(logged >= 10 && logged as u64 <= 10 * seconds, "{logged} in {seconds} s");
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() -> Result<()> {
    let lab = Lab::new()?;
    let page = "x".repeat(3500);
    let _script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), move |_, stream| {
        respond(stream, 500, &page)
    })?;
    let log = lab.dir().join("edged.log");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU)?;
    let unread = std::fs::File::options().read(true).write(true).open(&log)?;
    nix::fcntl::fcntl(&unread, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096))?;
    let edged = lab.edged()?.set("server.workers", "1").start()?;
    assert_eq!(edged.get(FRIEND, "/health").send_many(20)?, [500; 20]);
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 500, "a new connection");
    until("what was not read is counted", SOON, || {
        Ok(metric(&edged, "edged_log_lost_total", &[])? >= 19.0)
    })?;
    Ok(())
}

/// A server that speaks HTTP/2 frame by frame; `act` gets the number of a connection, from 0, and of a stream.
fn framed(
    ns: &Netns,
    act: impl Fn(u64, u32, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> Result<()> {
    let listener = ns.enter(|| TcpListener::bind((ORIGIN, 8080)))?;
    let act = Arc::new(act);
    std::thread::spawn(move || {
        for (n, client) in listener.incoming().flatten().enumerate() {
            let act = Arc::clone(&act);
            std::thread::spawn(move || answer_frames(client, n as u64, &*act));
        }
    });
    Ok(())
}

fn answer_frames(
    mut client: TcpStream,
    n: u64,
    act: &dyn Fn(u64, u32, &mut TcpStream) -> bool,
) -> Option<()> {
    client.read_exact(&mut [0; 24]).ok()?;
    client.write_all(&frame(SETTINGS, 0, 0, &[])).ok()?;
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).ok()?;
        let [a, b, c, kind, flags, d, e, f, g] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        client.read_exact(&mut payload).ok()?;
        match kind {
            SETTINGS if flags & 1 == 0 => client.write_all(&frame(kind, 1, 0, &[])).ok()?,
            PING if flags & 1 == 0 => client.write_all(&frame(kind, 1, 0, &payload)).ok()?,
            HEADERS if !act(n, u32::from_be_bytes([d, e, f, g]), &mut client) => return None,
            _ => {}
        }
    }
}

#[test]
fn checks_over_http2_say_what_the_connection_is() -> Result<()> {
    let lab = Lab::new()?;
    certify(lab.dir())?;
    let dir = lab.dir().display();
    let pem = |name: &str| lab.dir().join(name);
    let chain = CertificateDer::pem_file_iter(pem("cert.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pem("key.pem"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let to = format!("{ORIGIN}:8443").parse()?;
    let check = "{ path = \"/ready\", interval = \"50ms\", host = \"app.test\" }";
    let over_tls = format!("{{ ca = \"{dir}/ca.pem\", server_name = \"edge.test\" }}");
    for (scheme, config, own) in
        [("https", Some(Arc::new(tls)), &*over_tls), ("http", None, "false")]
    {
        let server = Upstream::start_http2(&lab.origin, to, config)?;
        let edged = lab
            .edged()?
            .set("upstream.0.servers", &servers(&[8443]))
            .set("upstream.0.http2", "true")
            .set("upstream.0.tls", own)
            .set("upstream.0.check", check)
            .start()?;
        until("it is checked", SOON, || {
            Ok(metric(&edged, "edged_upstream_checks_total", &[("result", "ok")])? > 1.0)
        })?;
        assert_eq!(edged.get(FRIEND, "/health").send()?.text(), "ok");
        let asked = server.asked();
        let expected =
            [format!("{scheme}://app.test/ready"), format!("{scheme}://edge.test/health")];
        assert_eq!(asked.iter().cloned().collect::<Vec<_>>(), expected);
    }
    Ok(())
}

#[test]
fn every_fault_of_a_server_over_http2_has_its_status_and_leaks_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Arc::new(Mutex::new("fine"));
    let (told, deaf) = (Arc::clone(&fault), AtomicU64::new(u64::MAX));
    framed(&lab.origin, move |n, stream, client| {
        let fault = told.lock().map_or("fine", |fault| *fault);
        let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
        let part = |flags, text: &[u8]| [head.clone(), frame(DATA, flags, stream, text)].concat();
        if fault == "silent" {
            deaf.store(n, Relaxed);
        }
        let (answer, goes_on) = match fault {
            _ if deaf.load(Relaxed) == n => (Vec::new(), true),
            "reset" => (frame(RESET, 0, stream, &[0, 0, 0, 2]), true),
            "goaway" => (frame(GOAWAY, 0, 0, &[0; 8]), true),
            "closed" => (Vec::new(), false),
            "cut-body" => (part(0, b"half"), false),
            "reset-body" => {
                ([part(0, b"half"), frame(RESET, 0, stream, &[0, 0, 0, 2])].concat(), true)
            }
            "slow-body" => (part(0, b"half"), true),
            "trailers" => {
                let fields = [literal("grpc-status", "0"), literal("x-edged-principal", "root")];
                let last = frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields.concat());
                ([part(0, b"fine"), last].concat(), true)
            }
            "garbage" => (frame(HEADERS, END_HEADERS, stream, &[0xff; 9]), true),
            "status" => (frame(HEADERS, END_HEADERS, stream, &literal(":status", "600")), true),
            _ => (part(END_STREAM, b"fine"), true),
        };
        client.write_all(&answer).is_ok() && goes_on
    })?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("upstream.0.http2", "true")
        .set("upstream.0.response_timeout", "\"1s\"")
        .set("upstream.0.body_timeout", "\"1s\"")
        .set("upstream.0.ejection", "{ failures = 0 }")
        .set("upstream.0.circuit", "{ failures = \"off\" }")
        .start()?;
    let ask = |what: &'static str| {
        *fault.lock().expect("nobody panics") = what;
        edged.get(FRIEND, "/health").send()
    };
    assert_eq!(ask("fine")?.text(), "fine");
    let before = descriptors(&edged)?;
    for (what, status) in [
        ("reset", 502),
        ("goaway", 502),
        ("closed", 502),
        ("garbage", 502),
        ("status", 502),
        ("silent", 504),
    ] {
        assert_eq!(ask(what)?.status, status, "{what}");
        // Over another connection, if that one was not heard of any more.
        let next = ask("fine")?;
        assert_eq!(next.text(), "fine", "after {what}");
    }
    for what in ["cut-body", "reset-body", "slow-body"] {
        let broken = ask(what);
        assert!(broken.is_err(), "{what}: {broken:?}");
        assert_eq!(ask("fine")?.text(), "fine", "after {what}");
    }
    // curl prints trailers behind the body.
    let text = ask("trailers")?.text().to_ascii_lowercase();
    assert!(text.starts_with("fine") && text.contains("grpc-status: 0"), "{text}");
    assert!(!text.contains("x-edged-"), "{text}");
    nothing_leaks(&edged, before)?;
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::UpstreamInvalid), 7.0);
    assert_eq!(metrics.requests(Reason::UpstreamTimeout), 2.0);
    Ok(())
}

#[test]
fn an_answer_without_a_body_over_http2_may_end_in_a_frame_of_its_own() -> Result<()> {
    let lab = Lab::new()?;
    let script = Arc::new(Mutex::new(("200", "0", false)));
    let told = Arc::clone(&script);
    framed(&lab.origin, move |_, stream, client| {
        let (status, length, is_late) = *told.lock().expect("nobody panics");
        let fields = [literal(":status", status), literal("content-length", length)].concat();
        let mut answer = frame(HEADERS, END_HEADERS, stream, &fields);
        if is_late {
            let sent = client.write_all(&std::mem::take(&mut answer));
            std::thread::sleep(Duration::from_millis(20));
            if sent.is_err() {
                return false;
            }
        }
        client.write_all(&[answer, frame(DATA, END_STREAM, stream, b"")].concat()).is_ok()
    })?;
    let edged = lab.edged()?.set("upstream.0.http2", "true").start()?;
    let mut asked = 0.0;
    for (method, status, length) in
        [("HEAD", "200", "9"), ("GET", "200", "0"), ("GET", "204", "0"), ("GET", "304", "9")]
    {
        for (version, is_late) in
            [("--http1.1", false), ("--http1.1", true), ("--http2", false), ("--http2", true)]
        {
            *script.lock().expect("nobody panics") = (status, length, is_late);
            let answer = edged.get(FRIEND, "/health").method(method).flag(version).send()?;
            assert_eq!(answer.status.to_string(), status, "{method} {version}");
            asked += 1.0;
        }
        until("each is counted", SOON, || {
            Ok(metric(&edged, "edged_requests_total", &[])? == asked)
        })?;
        let served = edged.metrics()?.requests(Reason::Serve);
        assert_eq!(served, asked, "{method} {status}");
    }
    Ok(())
}

#[test]
fn a_connection_that_goes_away_ends_what_it_began_and_takes_no_more() -> Result<()> {
    let lab = Lab::new()?;
    let begun = Arc::new(Mutex::new(None));
    let first = Arc::clone(&begun);
    framed(&lab.origin, move |n, stream, client| {
        let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
        if n > 0 {
            let whole = [head, frame(DATA, END_STREAM, stream, b"fine")].concat();
            return client.write_all(&whole).is_ok();
        }
        // This stream is the last, and goes on (RFC 9113, 6.8).
        let away = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        let said = client.write_all(&[head, frame(DATA, 0, stream, b"ha"), away].concat());
        *first.lock().expect("nobody panics") = client.try_clone().ok();
        said.is_ok()
    })?;
    let edged = lab.edged()?.set("server.workers", "1").set("upstream.0.http2", "true").start()?;
    std::thread::scope(|scope| -> Result<()> {
        let half = scope.spawn(|| edged.get(FRIEND, "/health").send());
        let kept = || begun.lock().expect("nobody panics").take();
        let mut client = None;
        until("it goes away", SOON, || {
            client = client.take().or_else(kept);
            Ok(client.is_some())
        })?;
        for _ in 0..2 {
            assert_eq!(edged.get(FRIEND, "/health").send()?.text(), "fine");
        }
        let rest = frame(DATA, END_STREAM, 1, b"lf");
        client.context("the first connection")?.write_all(&rest)?;
        assert_eq!(half.join().expect("nobody panics")?.text(), "half");
        Ok(())
    })?;
    assert_eq!(metric(&edged, "edged_upstream_connects_total", &[])?, 2.0);
    Ok(())
}

#[test]
fn what_a_server_that_goes_away_did_not_look_at_goes_elsewhere() -> Result<()> {
    let lab = Lab::new()?;
    framed(&lab.origin, move |n, stream, client| {
        let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
        let whole = [head, frame(DATA, END_STREAM, stream, b"fine")].concat();
        // The first connection's first stream was its last.
        let away = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        client.write_all(if n == 0 && stream > 1 { &away } else { &whole }).is_ok()
    })?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("upstream.0.http2", "true")
        .set("upstream.0.retries_max", "0")
        .start()?;
    let key = edged.key("k")?;
    for _ in 0..3 {
        let posted = edged.get(FRIEND, "/").key(&key).method("POST").send()?;
        assert_eq!((posted.status, posted.text()), (200, "fine".into()));
    }
    assert_eq!(metric(&edged, "edged_upstream_connects_total", &[])?, 2.0);
    let invalid = [("outcome", "invalid")];
    assert_eq!(metric(&edged, "edged_upstream_requests_total", &invalid)?, 0.0);
    Ok(())
}

#[test]
fn a_server_that_goes_away_unasked_is_asked_once_more_unless_it_names_a_fault() -> Result<()> {
    let lab = Lab::new()?;
    let next = Arc::new(Mutex::new(Some(0)));
    let told = Arc::clone(&next);
    framed(&lab.origin, move |_, stream, client| {
        let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
        let whole = [head, frame(DATA, END_STREAM, stream, b"fine")].concat();
        let code = told.lock().expect("nobody panics").take();
        // No stream was its last.
        let away = code.map(|code| frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]));
        client.write_all(&away.unwrap_or(whole)).is_ok()
    })?;
    let edged = lab.edged()?.set("server.workers", "1").set("upstream.0.http2", "true").start()?;
    let key = edged.key("k")?;
    let post =
        || Ok::<_, anyhow::Error>(edged.get(FRIEND, "/").key(&key).method("POST").send()?.status);
    let connects = || metric(&edged, "edged_upstream_connects_total", &[]);
    assert_eq!((post()?, connects()?), (200, 2.0));
    assert_eq!(metric(&edged, "edged_upstream_retries_total", &[])?, 1.0);
    *next.lock().expect("nobody panics") = Some(2);
    assert_eq!((post()?, connects()?), (502, 2.0));
    assert_eq!((post()?, connects()?), (200, 3.0));
    Ok(())
}

#[test]
fn a_stream_that_is_refused_goes_to_another_server_or_once_over_a_fresh_connection() -> Result<()> {
    let lab = Lab::new()?;
    let (refuses, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (told, count) = (Arc::clone(&refuses), Arc::clone(&seen));
    framed(&lab.origin, move |_, stream, client| {
        count.fetch_add(1, Relaxed);
        let answer = match told.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => frame(RESET, 0, stream, &[0, 0, 0, 7]),
            Err(_) => {
                let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
                [head, frame(DATA, END_STREAM, stream, b"fine")].concat()
            }
        };
        client.write_all(&answer).is_ok()
    })?;
    let edged = lab.edged()?.set("server.workers", "1").set("upstream.0.http2", "true").start()?;
    let ask = || edged.get(FRIEND, "/health").send();
    assert_eq!(ask()?.text(), "fine");
    let connects = || metric(&edged, "edged_upstream_connects_total", &[]);
    let retries = || metric(&edged, "edged_upstream_retries_total", &[]);
    refuses.store(1, Relaxed);
    assert_eq!((ask()?.text(), seen.load(Relaxed)), ("fine".into(), 3), "asked once more");
    assert_eq!((connects()?, retries()?), (2.0, 1.0), "over a fresh connection");
    refuses.store(u64::MAX, Relaxed);
    assert_eq!((ask()?.status, seen.load(Relaxed)), (502, 5), "and no more than once");
    refuses.store(0, Relaxed);
    assert_eq!(ask()?.text(), "fine");
    assert_eq!((connects()?, retries()?), (3.0, 2.0), "they go on");
    assert_eq!(edged.metrics()?.requests(Reason::UpstreamInvalid), 1.0);

    let to = format!("{ORIGIN}:8081").parse()?;
    let _other = Upstream::start_http2(&lab.origin, to, None)?;
    edged.edit("upstream.0.servers", &servers(&[8080, 8081]))?;
    edged.tell("reload")?;
    refuses.store(u64::MAX, Relaxed);
    let before = retries()?;
    let texts = (0..4).map(|_| Ok(ask()?.text())).collect::<Result<Vec<_>>>()?;
    assert_eq!(texts, ["ok"; 4], "the other server takes it");
    assert!(retries()? > before);
    Ok(())
}

#[test]
fn each_server_and_the_body_of_an_answer_have_all_of_their_time() -> Result<()> {
    let lab = Lab::new()?;
    let _one = Script::start(&lab.origin, &format!("{ORIGIN}:8081"), |_, stream| {
        std::thread::sleep(LONG);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
        std::thread::sleep(SHORT);
        let _ = stream.write_all(b"fine");
        false
    })?;
    let asked = AtomicU64::new(0);
    framed(&lab.origin, move |_, stream, client| {
        std::thread::sleep(LONG);
        if asked.fetch_add(1, Relaxed) == 0 {
            return client.write_all(&frame(RESET, 0, stream, &[0, 0, 0, 7])).is_ok();
        }
        let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
        let begun = client.write_all(&head).is_ok();
        std::thread::sleep(SHORT);
        begun && client.write_all(&frame(DATA, END_STREAM, stream, b"fine")).is_ok()
    })?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081]))
        .set("upstream.0.response_timeout", "\"4s\"")
        .set("upstream.0.body_timeout", "\"2s\"")
        .start()?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.text(), "fine");
    edged.edit("upstream.0.servers", &servers(&[8080]))?;
    edged.edit("upstream.0.http2", "true")?;
    edged.tell("reload")?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.text(), "fine", "refused once, over HTTP/2");
    assert_eq!(metric(&edged, "edged_upstream_retries_total", &[])?, 1.0);
    Ok(())
}

/// More than a part of a body may take, and more than half of what a head may.
const LONG: Duration = Duration::from_millis(2_500);
/// Enough for a head and what follows it to come apart.
const SHORT: Duration = Duration::from_millis(50);

#[test]
fn interim_answers_over_http2_reach_the_client_and_are_bounded() -> Result<()> {
    let lab = Lab::new()?;
    let script = Arc::new(Mutex::new(("", 0)));
    let told = Arc::clone(&script);
    framed(&lab.origin, move |_, stream, client| {
        let (status, count) = *told.lock().expect("nobody panics");
        let fields = [literal(":status", status), literal("link", "</a.css>")].concat();
        let hint = frame(HEADERS, END_HEADERS, stream, &fields);
        let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
        let fine = [head, frame(DATA, END_STREAM, stream, b"fine")].concat();
        client.write_all(&[hint.repeat(count), fine].concat()).is_ok()
    })?;
    let edged = lab
        .edged()?
        .set("upstream.0.http2", "true")
        .set("upstream.0.circuit", "{ failures = \"off\" }")
        .set("upstream.0.ejection", "{ failures = 0 }")
        .start()?;
    for (status, count, heard, answer) in
        [("103", 8, 8, 200), ("102", 1, 1, 200), ("100", 1, 0, 200), ("101", 1, 0, 502)]
    {
        *script.lock().expect("nobody panics") = (status, count);
        for version in ["--http1.1", "--http2"] {
            let said = edged.get(FRIEND, "/health").flag(version).flag("--include").told()?;
            let head = |status: &str| said.matches(&format!(" {status} ")).count();
            let answered = head(&answer.to_string());
            assert_eq!((head(status), answered), (heard, 1), "{version}: {said}");
        }
    }
    *script.lock().expect("nobody panics") = ("103", 9);
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 502);
    Ok(())
}

#[test]
fn what_may_have_arrived_is_repeated_only_if_that_does_no_harm() -> Result<()> {
    let lab = Lab::new()?;
    // It hangs up on whatever it reads.
    let dead = Script::start(&lab.origin, &format!("{ORIGIN}:8081"), |_, _| false)?;
    let alive = origins(&lab, &[8082])?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.ejection", "{ failures = 0 }")
        .set("upstream.0.circuit", "{ failures = \"off\" }")
        .set("server.workers", "1")
        .start()?;
    let key = edged.key("k")?;
    let statuses = edged.get(FRIEND, "/health").send_many(6)?;
    assert_eq!(statuses, [200; 6], "each goes on to the server that is alive");
    assert_eq!((dead.seen(), alive[0].seen()), (3, 6));
    let posts: Vec<_> = (0..4)
        .map(|_| Ok(edged.get(FRIEND, "/upload").key(&key).method("POST").body("b").send()?.status))
        .collect::<Result<_>>()?;
    assert_eq!(posts.iter().filter(|status| **status == 502).count(), 2, "{posts:?}");
    assert_eq!((dead.seen(), alive[0].seen()), (5, 8), "none was sent twice");
    Ok(())
}

#[test]
fn a_connection_that_closes_as_it_is_used_again_costs_no_request() -> Result<()> {
    let lab = Lab::new()?;
    let first = AtomicU64::new(0);
    // Every second request on a connection is met by its end.
    let script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), move |_, stream| {
        let odd = first.fetch_add(1, Relaxed).is_multiple_of(2);
        odd && respond(stream, 200, "fine")
    })?;
    let edged = lab.edged()?.set("server.workers", "1").start()?;
    let statuses = edged.get(FRIEND, "/health").send_many(6)?;
    assert_eq!(statuses, [200; 6]);
    assert_eq!(script.seen(), 11, "five of them were read by a connection that then ended");
    Ok(())
}

#[test]
fn retries_have_a_budget_and_statuses_of_their_own() -> Result<()> {
    let lab = Lab::new()?;
    let busy = |port| {
        Script::start(&lab.origin, &format!("{ORIGIN}:{port}"), |_, stream| {
            respond(stream, 503, "")
        })
    };
    let (a, b) = (busy(8081)?, busy(8082)?);
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.retry_statuses", "[503]")
        .set("upstream.0.retry_budget", "10")
        .set("server.workers", "1")
        .start()?;
    let statuses = edged.get(FRIEND, "/health").send_many(50)?;
    assert_eq!(statuses, [503; 50], "the last server's own answer");
    // Ten that were saved up, and one for each ten requests.
    let retries = a.seen() + b.seen() - 50;
    assert!((13..=15).contains(&retries), "{retries} retries");
    assert_eq!(metric(&edged, "edged_upstream_retries_total", &[])?, retries as f64);
    let refused = metric(&edged, "edged_upstream_retries_refused_total", &[])?;
    assert_eq!(refused, 50.0 - retries as f64);
    Ok(())
}

#[test]
fn checks_take_servers_out_and_bring_them_back() -> Result<()> {
    let lab = Lab::new()?;
    let well = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&well);
    let _script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), move |path, stream| {
        let status = if path == "/ready" && !told.load(Relaxed) { 500 } else { 200 };
        // An interim answer is not the answer.
        let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n";
        stream.write_all(interim).is_ok() && respond(stream, status, "")
    })?;
    let check = "{ path = \"/ready\", interval = \"50ms\", timeout = \"2s\", fall = 2, rise = 2 }";
    let edged = lab.edged()?.set("upstream.0.check", check).start()?;
    let ask = || Ok::<_, anyhow::Error>(edged.get(FRIEND, "/health").send()?.status);
    assert_eq!(ask()?, 200);
    well.store(false, Relaxed);
    until("it is down", SOON, || Ok(state(&edged, ":8080")? == "down"))?;
    assert_eq!(ask()?, 503);
    assert_eq!(edged.metrics()?.requests(Reason::UpstreamUnhealthy), 1.0);
    well.store(true, Relaxed);
    until("it is up", SOON, || Ok(state(&edged, ":8080")? == "up"))?;
    assert_eq!(ask()?, 200);
    assert!(metric(&edged, "edged_upstream_checks_total", &[("result", "failed")])? >= 2.0);
    // Once for the host, not once for each worker: two checks are 50 ms apart.
    assert!(edged.log().matches("down").count() == 1, "{}", edged.log());
    Ok(())
}

/// The status in the log is the one that the client was sent; how it ended, the reason says.
#[test]
fn what_fails_is_logged_with_where_it_went_and_what_was_sent() -> Result<()> {
    let lab = Lab::new()?;
    let file = lab.dir().join("access.log");
    let edged = lab
        .edged()?
        .set("log.access", &format!("{file:?}"))
        .set("upstream.0.ejection", "{ failures = 0 }")
        .start()?;
    let ask = |path: &str| edged.get(FRIEND, &format!("/health/{path}"));
    assert_eq!(ask("down").send()?.status, 502);
    let script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), |path, stream| {
        if path != "/health/silent" {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
        }
        if path != "/health/cut" {
            let _ = stream.read(&mut [0]);
        }
        false
    })?;
    assert!(ask("cut").send().is_err());
    for path in ["stall", "silent"] {
        assert!(ask(path).arg("--max-time", "2").send().is_err());
    }
    assert_eq!(script.seen(), 3);
    edged.tell(&format!("upstream drain api {ORIGIN}:8080"))?;
    assert_eq!(ask("drained").send()?.status, 503);
    let lines = || -> Result<Vec<serde_json::Value>> {
        let text = std::fs::read_to_string(&file)?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    until("the lines are there", SOON, || Ok(lines()?.len() == 5))?;
    let (lines, server) = (lines()?, format!("{ORIGIN}:8080"));
    for (path, status, reason, server) in [
        ("down", 502, "upstream_unreachable", Some(&*server)),
        ("cut", 200, "upstream_invalid", Some(&*server)),
        ("stall", 200, "client_gone", Some(&*server)),
        ("silent", 408, "client_gone", Some(&*server)),
        ("drained", 503, "upstream_unhealthy", None),
    ] {
        let is_it = |line: &&serde_json::Value| line["path"] == format!("/health/{path}");
        let line = lines.iter().find(is_it).context("a line")?;
        assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()), "{line}");
        let went = (line["upstream"].as_str(), line["server"].as_str());
        assert_eq!(went, (Some("api"), server), "{line}");
        assert!(line["decide_us"].is_u64(), "{line}");
    }
    Ok(())
}

#[test]
fn a_circuit_opens_and_closes_again() -> Result<()> {
    let lab = Lab::new()?;
    let rule = "{ failures = 50, requests_min = 4, window = \"60s\", open = \"500ms\" }";
    let edged = lab.edged()?.set("upstream.0.circuit", rule).start()?;
    let ask = || edged.get(FRIEND, "/health").send();
    for _ in 0..4 {
        assert_eq!(ask()?.status, 502);
    }
    let refused = ask()?;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(edged.metrics()?.requests(Reason::CircuitOpen), 1.0);
    assert_eq!(metric(&edged, "edged_upstream_circuit_open", &[])?, 1.0);
    let _origin = Origin::start(&lab)?;
    until("it closes", SOON, || Ok(ask()?.status == 200))?;
    assert_eq!(metric(&edged, "edged_upstream_circuit_open", &[])?, 0.0);
    Ok(())
}

/// A server that sends heads and no whole body serves nobody. What has no end by design is told by its head.
#[test]
fn bodies_that_break_off_eject_a_server_and_open_a_circuit() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::listen(&lab.origin, &format!("{ORIGIN}:8081"))?;
    let _script = Script::start(&lab.origin, &format!("{ORIGIN}:8082"), |path, stream| {
        let _ = match path.trim_start_matches("/health/") {
            "events" => stream.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
            ),
            "stall" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf");
                let _ = stream.read(&mut [0]);
                Ok(())
            }
            _ => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        };
        false
    })?;
    let rule = "{ failures = 50, requests_min = 4, window = \"600s\", open = \"60s\" }";
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.body_timeout", "\"1s\"")
        .set("upstream.0.ejection", "{ failures = 3, first = \"600s\" }")
        .start()?;
    let ask = |path: &str| edged.get(FRIEND, &format!("/health/{path}")).send();
    let mut broken = 0;
    until("it is ejected", SOON, || {
        broken += u32::from(ask(if broken < 2 { "cut" } else { "stall" }).is_err());
        Ok(state(&edged, ":8082")? == "ejected")
    })?;
    assert_eq!(broken, 3);

    edged.edit("upstream.0.servers", &servers(&[8082]))?;
    edged.edit("upstream.0.circuit", rule)?;
    edged.tell("reload")?;
    for path in ["events", "events", "events", "events", "cut", "cut", "cut", "cut"] {
        assert_eq!(metric(&edged, "edged_upstream_circuit_open", &[])?, 0.0, "{path}");
        assert!(ask(path).is_err(), "{path}");
    }
    let is_open = || Ok(metric(&edged, "edged_upstream_circuit_open", &[])? == 1.0);
    until("the circuit is open", SOON, is_open)?;
    assert_eq!(ask("cut")?.status, 503);
    Ok(())
}

/// What begins well, and what becomes of it.
fn begun(path: &str, stream: &mut TcpStream) -> Option<()> {
    let mut head = |head: &str| write!(stream, "HTTP/1.1 {head}\r\n\r\n").ok();
    match path.trim_start_matches("/health/") {
        "events" => head("200 OK\r\nContent-Type: text/event-stream")?,
        "calls" => head("200 OK\r\nContent-Type: application/grpc+proto")?,
        "busy" => return respond(stream, 503, "").then_some(()),
        "page" => return respond(stream, 500, &"x".repeat(1 << 20)).then_some(()),
        "long" => {
            head("200 OK\r\nContent-Length: 9")?;
            stream.write_all(b"a").ok()?;
            std::thread::sleep(Duration::from_millis(1_200));
            stream.write_all(b"b").ok()?;
        }
        "untaken" => {
            head("200 OK\r\nContent-Length: 99999999")?;
            stream.set_write_timeout(Some(Duration::from_millis(500))).ok()?;
            while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
        }
        _ => head("200 OK\r\nContent-Length: 9")?,
    }
    None
}

#[test]
fn what_did_well_for_long_or_was_done_with_counts_for_its_server() -> Result<()> {
    let lab = Lab::new()?;
    let start = |port| {
        Script::start(&lab.origin, &format!("{ORIGIN}:{port}"), |path, stream| {
            begun(path, stream).is_some()
        })
    };
    let _scripts = [start(8081)?, start(8082)?];
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.balance", "\"hash\"")
        .set("upstream.0.hash_by", "\"source\"")
        .set("upstream.0.retry_statuses", "[503]")
        .set("upstream.0.ejection", "{ failures = 3, first = \"600s\" }")
        .set("upstream.0.circuit", "{ failures = \"off\" }")
        .start()?;
    let ask = |path: &str| edged.get(FRIEND, &format!("/health/{path}")).send();
    let is_ejected = |at| Ok::<_, anyhow::Error>(state(&edged, at)? == "ejected");
    let ejected = || Ok::<_, anyhow::Error>(is_ejected(":8081")? || is_ejected(":8082")?);
    for endless in ["events", "calls"] {
        for _ in 0..4 {
            let _ = ask(endless);
        }
        assert!(!ejected()?, "{endless}");
    }
    for done in ["busy", "page"] {
        for path in ["cut", "cut", done, "cut", "cut", done] {
            let _ = ask(path);
        }
        assert!(!ejected()?, "{done}");
    }
    (0..3).for_each(|_| _ = ask("cut"));
    until("it is ejected", SOON, ejected)?;
    Ok(())
}

#[test]
fn a_break_after_long_or_after_the_client_paused_opens_no_circuit() -> Result<()> {
    let lab = Lab::new()?;
    let script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), |path, stream| {
        begun(path, stream).is_some()
    })?;
    let circuit = "{ failures = 50, requests_min = 4, window = \"1s\", open = \"600s\" }";
    let edged = lab.edged()?.set("upstream.0.circuit", circuit).start()?;
    let invalid = [("outcome", "invalid")];
    let broken = || metric(&edged, "edged_upstream_requests_total", &invalid);
    let is_open = || Ok(metric(&edged, "edged_upstream_circuit_open", &[])? == 1.0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| edged.get(FRIEND, "/health/long").send());
        }
    });
    until("all have broken off", SOON, || Ok(broken()? == 6.0))?;
    assert!(!is_open()?);

    edged.edit("upstream.0.circuit", &circuit.replace("1s", "600s"))?;
    edged.tell("reload")?;
    let seen = script.seen();
    let mut talks = Vec::new();
    for _ in 0..6 {
        let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1").connect(&lab, FRIEND)?;
        talk.say(b"GET /health/untaken HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
        talks.push(talk);
    }
    until("all are asked", SOON, || Ok(script.seen() == seen + 6))?;
    // Longer than the server lets its write take.
    std::thread::sleep(Duration::from_millis(2_500));
    for talk in &mut talks {
        talk.hear(SOON, |_| false)?;
    }
    let count = || Ok(edged.metrics()?.requests(Reason::UpstreamInvalid) == 12.0);
    until("all have broken off", SOON, count)?;
    assert!(!is_open()?);
    until("it opens", SOON, || {
        let _ = edged.get(FRIEND, "/health/cut").send();
        is_open()
    })?;
    Ok(())
}

/// A client that is slow over the end of its answer gets nothing of the answer that the same connection to the server
/// carries meanwhile, and takes nothing from whom that is for.
#[test]
fn answers_over_one_connection_stay_with_their_clients() -> Result<()> {
    let lab = Lab::new()?;
    // So that the end of an answer waits in the edge and not on the way.
    lab.edge.sysctl("ipv4/tcp_wmem", "4608 4608 4608")?;
    lab.home(FRIEND).sysctl("ipv4/tcp_rmem", "4096 4096 4096")?;
    let go_on = Arc::new(AtomicBool::new(false));
    let goes_on = Arc::clone(&go_on);
    let script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), move |path, stream| {
        if path != "/health/secret" {
            return respond(stream, 200, &"a".repeat(SIZE));
        }
        let _ = write!(stream, "HTTP/1.1 200 S\r\nContent-Length: 6\r\n\r\n");
        while !goes_on.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        stream.write_all(b"secret").is_ok()
    })?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("upstream.0.idle_timeout", "\"60s\"")
        .start()?;
    let asked_for = |slow: &mut dyn FnMut(bool) -> Result<()>| -> Result<()> {
        until("its server is done", SOON, || {
            slow(false)?;
            Ok(metric(&edged, "edged_upstream_idle_open", &[])? == 1.0)
        })?;
        assert_eq!(metric(&edged, "edged_requests_in_flight", &[])?, 1.0, "its end is held back");
        let seen = script.seen();
        go_on.store(false, Relaxed);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| edged.get(FRIEND, "/health/secret").send());
            until("another is asked for", SOON, || Ok(script.seen() > seen))?;
            // The head of its answer, too, is there.
            std::thread::sleep(Duration::from_millis(50));
            slow(true)?;
            go_on.store(true, Relaxed);
            let other = other.join().expect("no panic")?;
            assert_eq!((other.status, &*other.body), (200, &b"secret"[..]));
            Ok(())
        })
    };

    let dial = |protocol| Dial::new(&edged.ca, "edge.test")?.alpn(protocol).connect(&lab, FRIEND);
    let (mut slow, mut heard) = (dial("http/1.1")?, Vec::new());
    slow.say(b"GET /health HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
    asked_for(&mut |to_its_end| {
        let pause = Duration::from_millis(if to_its_end { 500 } else { 20 });
        heard.extend(slow.hear(pause, |_| !to_its_end)?.bytes);
        Ok(())
    })?;
    heard.extend(slow.hear(Duration::from_millis(100), |_| false)?.bytes);
    let end = heard.windows(4).position(|four| four == b"\r\n\r\n").context("a head")? + 4;
    assert!(heard[end..] == [b'a'; SIZE], "{} bytes", heard.len() - end);

    let (mut slow, mut heard) = (dial("h2")?, Vec::new());
    let opened = frame(HEADERS, END_HEADERS | END_STREAM, 1, &get("edge.test", "/health"));
    slow.say(&[preface(), opened].concat())?;
    asked_for(&mut |to_its_end| {
        if to_its_end {
            let wider = |stream| frame(WINDOW, 0, stream, &[0, 1, 0, 0]);
            slow.say(&[wider(0), wider(1)].concat())?;
        }
        let pause = Duration::from_millis(if to_its_end { 500 } else { 20 });
        heard.extend(slow.hear(pause, |_| false)?.bytes);
        Ok(())
    })?;
    heard.extend(slow.hear(Duration::from_millis(100), |_| false)?.bytes);
    let (mut rest, mut body) = (&heard[..], Vec::new());
    while let Some((kind, _, payload)) = take(&mut rest) {
        body.extend_from_slice(if kind == DATA { payload } else { &[] });
    }
    assert!(body == [b'a'; SIZE], "{} bytes", body.len());
    assert_eq!(metric(&edged, "edged_upstream_connects_total", &[])?, 1.0);
    Ok(())
}

#[test]
fn requests_wait_for_their_turn_or_are_told_to_come_back() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("upstream.0.requests_max", "1")
        .set("upstream.0.queue_max", "1")
        .set("upstream.0.queue_timeout", "\"20s\"")
        .start()?;
    let key = edged.key("k")?;
    let slow = || edged.get(FRIEND, "/slow?ms=4000").key(&key).send();
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(slow);
        let flying = || Ok(metric(&edged, "edged_upstream_requests_in_flight", &[])? == 1.0);
        until("one is in flight", SOON, flying)?;
        let second = scope.spawn(slow);
        until("one waits", SOON, || Ok(metric(&edged, "edged_upstream_waiting", &[])? == 1.0))?;
        let third = edged.get(FRIEND, "/").key(&key).send()?;
        assert_eq!(third.status, 503, "{third:?}");
        assert_eq!(first.join().expect("no panic")?.status, 200);
        assert_eq!(second.join().expect("no panic")?.status, 200);
        Ok(())
    })?;
    assert_eq!(edged.metrics()?.requests(Reason::UpstreamBusy), 1.0);
    edged.edit("upstream.0.queue_timeout", "\"100ms\"")?;
    edged.edit("upstream.0.requests_max", "9")?;
    edged.edit("upstream.0.server_requests_max", "1")?;
    edged.tell("reload")?;
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(slow);
        let flying = || Ok(metric(&edged, "edged_upstream_requests_in_flight", &[])? == 1.0);
        until("one is in flight", SOON, flying)?;
        assert_eq!(edged.get(FRIEND, "/").key(&key).send()?.status, 503, "its server is full");
        assert_eq!(first.join().expect("no panic")?.status, 200);
        Ok(())
    })
}

#[test]
fn time_that_a_request_waits_for_its_turn_is_not_the_servers() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("upstream.0.requests_max", "1")
        .set("upstream.0.queue_timeout", "\"20s\"")
        .set("upstream.0.total_timeout", "\"5s\"")
        .start()?;
    let key = edged.key("k")?;
    let slow = |ms: u64| edged.get(FRIEND, &format!("/slow?ms={ms}")).key(&key).send();
    std::thread::scope(|scope| -> Result<()> {
        let both = [scope.spawn(|| slow(3000)), scope.spawn(|| slow(3000))];
        for one in both {
            assert_eq!(one.join().expect("no panic")?.status, 200);
        }
        Ok(())
    })?;
    assert_eq!(slow(8000)?.status, 504);
    Ok(())
}

/// Sends one part of a body after the other until the body of a 504 is there.
fn upload(talk: &mut Talk, part: &[u8]) -> Result<()> {
    let told = |bytes: &[u8]| bytes.windows(12).any(|word| word == b"\"status\":504");
    let mut all = Vec::new();
    for _ in 0..100 {
        talk.say(part)?;
        let heard = talk.hear(Duration::from_millis(50), told)?;
        all.extend(heard.bytes);
        if told(&all) {
            return Ok(());
        }
        anyhow::ensure!(!heard.closed, "{}", String::from_utf8_lossy(&all));
    }
    anyhow::bail!("no answer: {}", String::from_utf8_lossy(&all))
}

/// It is answered as what took too long upstream, which neither the client nor the server is to blame for.
#[test]
fn an_upload_that_outlasts_all_of_the_time_is_nobodys_fault() -> Result<()> {
    for is_http2 in [false, true] {
        let lab = Lab::new()?;
        let at = format!("{ORIGIN}:8080");
        let _server = match is_http2 {
            true => Upstream::start_http2(&lab.origin, at.parse()?, None)?,
            false => Upstream::start(&lab.origin, at.parse()?)?,
        };
        let edged = lab
            .edged()?
            .set("upstream.0.http2", &is_http2.to_string())
            .set("upstream.0.total_timeout", "\"2s\"")
            .set("upstream.0.circuit", "{ failures = 1, requests_min = 1, open = \"600s\" }")
            .start()?;
        let key = edged.key("k")?;
        let dial = |alpn| Dial::new(&edged.ca, "edge.test")?.alpn(alpn).connect(&lab, FRIEND);
        let mut one = dial("http/1.1")?;
        one.say(
            format!(
                "POST /upload HTTP/1.1\r\nHost: edge.test\r\nX-API-Key: {key}\r\n\
                 Content-Length: 3000000\r\n\r\n"
            )
            .as_bytes(),
        )?;
        upload(&mut one, &[7; 9_000])?;
        let mut two = dial("h2")?;
        let mut block = get("edge.test", "/upload");
        block[0] = 0x83; // `:method: POST`
        block.extend(literal("x-api-key", &key));
        block.extend(literal("content-length", "3000000"));
        two.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        two.say(&[frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, &block)].concat())?;
        upload(&mut two, &frame(DATA, 0, 1, &[7; 1_000]))?;
        until("both are counted", SOON, || {
            Ok(edged.metrics()?.requests(Reason::UpstreamTimeout) == 2.0)
        })?;
        assert_eq!(metric(&edged, "edged_signals_total", &[])?, 0.0);
        assert_eq!(
            metric(&edged, "edged_upstream_requests_total", &[("outcome", "timeout")])?,
            0.0
        );
        assert_eq!(metric(&edged, "edged_upstream_circuit_open", &[])?, 0.0);
    }
    Ok(())
}

#[test]
fn a_server_is_not_blamed_for_the_time_that_another_used() -> Result<()> {
    let lab = Lab::new()?;
    let asked = Arc::new(AtomicU64::new(0));
    let start = |port| {
        let asked = Arc::clone(&asked);
        Script::start(&lab.origin, &format!("{ORIGIN}:{port}"), move |path, stream| {
            if path == "/health/late" && asked.fetch_add(1, Relaxed) == 0 {
                std::thread::sleep(Duration::from_secs(2));
                return false;
            }
            stream.read(&mut [0]).is_ok_and(|count| count > 0)
        })
    };
    let _scripts = [start(8081)?, start(8082)?];
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.total_timeout", "\"3s\"")
        .start()?;
    let outcome = |word| metric(&edged, "edged_upstream_requests_total", &[("outcome", word)]);
    assert_eq!(edged.get(FRIEND, "/health/late").send()?.status, 504);
    assert_eq!(asked.load(Relaxed), 2);
    assert_eq!((outcome("invalid")?, outcome("timeout")?), (1.0, 0.0));
    // One that has had it all is.
    assert_eq!(edged.get(FRIEND, "/health/never").send()?.status, 504);
    assert_eq!((outcome("invalid")?, outcome("timeout")?), (1.0, 1.0));
    Ok(())
}

#[test]
fn whoever_vanishes_takes_all_of_it_along() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let key = edged.key("k")?;
    let before = at_rest(&edged)?;
    for flag in ["--http1.1", "--http2"] {
        // While the upstream thinks; in the middle of a download, and where that pauses; in the middle of an upload.
        let gone = |path: &str, rate: &str| {
            let asked = edged.get(FRIEND, path).key(&key).flag(flag).arg("--max-time", "1");
            asked.arg("--limit-rate", rate)
        };
        assert!(gone("/slow?ms=3000", "1M").send().is_err());
        assert!(gone("/big?bytes=50000000", "100k").send().is_err());
        assert!(gone("/quiet", "1M").send().is_err());
        assert!(gone("/upload", "50k").method("POST").body(vec![7; 1 << 20]).send().is_err());
    }
    nothing_leaks(&edged, before)?;
    assert_eq!(edged.metrics()?.requests(Reason::ClientGone), 8.0);
    Ok(())
}

#[test]
fn whoever_vanishes_behind_an_upstream_that_takes_nothing_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    // It reads the head, and then nothing while the test holds this: the sockets towards it fill up.
    let gate = Arc::new(Mutex::new(()));
    let held = Arc::clone(&gate);
    let script = Script::start(&lab.origin, &format!("{ORIGIN}:8080"), move |path, stream| {
        if !path.starts_with("/upload") {
            return respond(stream, 200, "hello");
        }
        drop(held.lock());
        false
    })?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("bounds.body_bytes_max", "\"256MiB\"")
        .set("upstream.0.response_timeout", "\"4s\"")
        .start()?;
    let key = edged.key("k")?;
    let before = at_rest(&edged)?;
    let stuck = gate.lock().expect("nobody panics");
    for (n, flag) in ["--http1.1", "--http2"].into_iter().enumerate() {
        let seen = script.seen();
        let upload = edged.get(FRIEND, "/upload").key(&key).method("POST").flag(flag);
        assert!(upload.body(vec![7; 64 << 20]).arg("--max-time", "2").send().is_err(), "{flag}");
        assert_eq!(script.seen(), seen + 1, "it was on its way");
        // Over HTTP/1 what the client sent last lies before its end, and nobody reads it: the upstream's time ends it.
        nothing_leaks(&edged, before)?;
        let metrics = edged.metrics()?;
        let ends = [Reason::ClientGone, Reason::UpstreamTimeout].map(|r| metrics.requests(r));
        assert_eq!(ends.iter().sum::<f64>(), (n + 1) as f64, "{flag}: {ends:?}");
        // Who is not to blame is asked again.
        assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200, "{flag}");
    }
    drop(stuck);
    for reason in ["client_gone", "upstream_timeout", "request_timeout", "body_too_slow"] {
        let signals = metric(&edged, "edged_signals_total", &[("reason", reason)])?;
        assert_eq!(signals, 0.0, "{reason}");
    }
    Ok(())
}

#[test]
fn a_reload_keeps_connections_and_what_operators_said() -> Result<()> {
    let lab = Lab::new()?;
    let origins = origins(&lab, &[8081, 8082])?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.idle_timeout", "\"60s\"")
        .set("server.workers", "1")
        .start()?;
    let drained = format!("{ORIGIN}:8082");
    edged.tell(&format!("upstream drain api {drained}"))?;
    assert_eq!(state(&edged, ":8082")?, "drained");
    assert_eq!(edged.get(FRIEND, "/health").send_many(6)?, [200; 6]);
    assert_eq!((origins[0].seen(), origins[1].seen()), (6, 0));
    let connects = || metric(&edged, "edged_upstream_connects_total", &[]);
    assert_eq!(connects()?, 1.0);

    edged.edit("limits.per_key", "\"100/s\"")?;
    edged.tell("reload")?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    assert_eq!(connects()?, 1.0, "the connection is still there");
    // What changes begins anew, but for an operator's word.
    edged.edit("upstream.0.connect_timeout", "\"3s\"")?;
    edged.tell("reload")?;
    assert_eq!(state(&edged, ":8082")?, "drained");
    edged.tell(&format!("upstream enable api {drained}"))?;
    assert_eq!(edged.get(FRIEND, "/health").send_many(4)?, [200; 4]);
    assert_eq!(origins[1].seen(), 2);

    edged.tell(&format!("upstream drain api {drained}"))?;
    edged.tell(&format!("upstream drain api {ORIGIN}:8081"))?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 503);
    assert!(!edged.ctl("upstream drain api 192.0.2.2:1")?.status.success());
    assert!(!edged.ctl("upstream drain nobody 192.0.2.2:1")?.status.success());
    Ok(())
}

#[test]
fn a_reload_that_adds_a_server_asks_none_that_is_down() -> Result<()> {
    let lab = Lab::new()?;
    let _origins = origins(&lab, &[8081, 8083])?;
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let _ill = Script::start(&lab.origin, &format!("{ORIGIN}:8082"), move |path, stream| {
        count.fetch_add(u64::from(path != "/ready"), Relaxed);
        respond(stream, if path == "/ready" { 500 } else { 200 }, "")
    })?;
    let check = "{ path = \"/ready\", interval = \"2s\", fall = 2, rise = 2 }";
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.check", check)
        .start()?;
    until("it is down", SOON, || Ok(state(&edged, ":8082")? == "down"))?;
    let before = asked.load(Relaxed);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !is_over.load(Relaxed) {
                assert_eq!(edged.get(FRIEND, "/health").send_many(20)?, [200; 20]);
                rounds += 1;
            }
            Ok(rounds)
        });
        let reloaded = || -> Result<()> {
            edged.edit("upstream.0.servers", &servers(&[8081, 8082, 8083]))?;
            edged.tell("reload")?;
            anyhow::ensure!(state(&edged, ":8082")? == "down");
            let new = [("server", &*format!("{ORIGIN}:8083"))];
            until("the new one is asked", SOON, || {
                Ok(metric(&edged, "edged_upstream_requests_total", &new)? >= 20.0)
            })?;
            Ok(())
        };
        let reloaded = reloaded();
        is_over.store(true, Relaxed);
        assert!(load.join().expect("no panic")? > 0);
        reloaded
    })?;
    assert_eq!(asked.load(Relaxed), before);
    // What the former check found tells nothing of another.
    edged.edit("upstream.0.check", "{ path = \"/other\", interval = \"600s\" }")?;
    edged.tell("reload")?;
    assert_eq!(state(&edged, ":8082")?, "up");
    Ok(())
}

#[test]
fn what_is_in_flight_counts_after_a_reload() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("upstream.0.server_requests_max", "1")
        .set("upstream.0.queue_timeout", "\"100ms\"")
        .start()?;
    let key = edged.key("k")?;
    let flying = || metric(&edged, "edged_upstream_requests_in_flight", &[]);
    std::thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| edged.get(FRIEND, "/slow?ms=6000").key(&key).send());
        until("one is in flight", SOON, || Ok(flying()? == 1.0))?;
        edged.edit("upstream.0.connect_timeout", "\"3s\"")?;
        edged.tell("reload")?;
        let second = edged.get(FRIEND, "/").key(&key).send()?;
        assert_eq!((second.status, flying()?), (503, 1.0));
        assert_eq!(slow.join().expect("no panic")?.status, 200);
        Ok(())
    })?;
    until("none is in flight", SOON, || Ok(flying()? == 0.0))?;
    assert_eq!(edged.get(FRIEND, "/").key(&key).send()?.status, 200);
    Ok(())
}

#[test]
fn who_waits_for_servers_of_before_a_reload_holds_up_nobody() -> Result<()> {
    let lab = Lab::new()?;
    let _origins = origins(&lab, &[8081, 8082])?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081]))
        .set("upstream.0.server_requests_max", "1")
        .set("upstream.0.queue_timeout", "\"30s\"")
        .start()?;
    let key = edged.key("k")?;
    std::thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| edged.get(FRIEND, "/slow?ms=12000").key(&key).send());
        let flying = || Ok(metric(&edged, "edged_upstream_requests_in_flight", &[])? == 1.0);
        until("one is in flight", SOON, flying)?;
        let waiting = scope.spawn(|| edged.get(FRIEND, "/").key(&key).send());
        until("one waits", SOON, || Ok(metric(&edged, "edged_upstream_waiting", &[])? == 1.0))?;
        edged.edit("upstream.0.servers", &servers(&[8081, 8082]))?;
        edged.tell("reload")?;
        // More than there is room for at once, so that they wait as well.
        let later = [(); 3].map(|()| scope.spawn(|| edged.get(FRIEND, "/").key(&key).send()));
        for one in later {
            assert_eq!(one.join().expect("no panic")?.status, 200);
        }
        assert!(!slow.is_finished() && !waiting.is_finished());
        assert_eq!(slow.join().expect("no panic")?.status, 200);
        assert_eq!(waiting.join().expect("no panic")?.status, 200);
        Ok(())
    })
}

#[test]
fn idle_connections_are_closed_in_time() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("upstream.0.idle_timeout", "\"1s\"").start()?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    let idle = || metric(&edged, "edged_upstream_idle_open", &[]);
    until("it is kept", SOON, || Ok(idle()? == 1.0))?;
    until("it is closed", SOON, || Ok(idle()? == 0.0))?;
    Ok(())
}

/// A connection that several share is idle from the end of its last request, not from its begin.
#[test]
fn a_shared_connection_outlives_a_request_that_is_longer_than_its_idle_time() -> Result<()> {
    let lab = Lab::new()?;
    let count = AtomicU64::new(0);
    framed(&lab.origin, move |_, stream, client| {
        if count.fetch_add(1, Relaxed) == 0 {
            std::thread::sleep(Duration::from_secs(6));
            return client.write_all(&frame(RESET, 0, stream, &[0, 0, 0, 2])).is_ok();
        }
        let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
        client.write_all(&[head, frame(DATA, END_STREAM, stream, b"fine")].concat()).is_ok()
    })?;
    let edged = lab
        .edged()?
        .set("server.workers", "1")
        .set("upstream.0.http2", "true")
        .set("upstream.0.idle_timeout", "\"5s\"")
        .start()?;
    assert_eq!(edged.get(FRIEND, "/health").send_many(2)?, [502, 200]);
    assert_eq!(metric(&edged, "edged_upstream_connects_total", &[])?, 1.0);
    Ok(())
}

#[test]
fn a_unix_socket_serves() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("app.sock");
    let listener = UnixListener::bind(&path)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix");
        }
    });
    let server = format!("[\"unix:{}\"]", path.display());
    let edged = lab.edged()?.set("upstream.0.servers", &server).start()?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.text(), "unix");
    std::fs::remove_file(&path)?;
    until("it is gone", SOON, || Ok(edged.get(FRIEND, "/health").send()?.status == 502))?;
    Ok(())
}

/// Where a TCP connection would wait, a unix socket says at once that its queue is full.
#[test]
fn a_burst_to_a_unix_socket_waits_for_room_in_its_queue() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("app.sock");
    let listener = UnixListener::bind(&path)?;
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1)?)?;
    let server = format!("[\"unix:{}\"]", path.display());
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &server)
        .set("upstream.0.connect_timeout", "\"20s\"")
        .start()?;
    std::thread::scope(|scope| -> Result<()> {
        let burst: Vec<_> =
            (0..6).map(|_| scope.spawn(|| edged.get(FRIEND, "/health").send())).collect();
        let flying = || metric(&edged, "edged_upstream_requests_in_flight", &[]);
        let all_wait = until("all wait", SOON, || Ok(flying()? == 6.0));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix");
            }
        });
        for one in burst {
            assert_eq!(one.join().expect("no panic")?.status, 200);
        }
        all_wait.map(drop)
    })?;
    assert_eq!(
        metric(&edged, "edged_upstream_requests_total", &[("outcome", "unreachable")])?,
        0.0
    );
    Ok(())
}

/// Has the edge's questions for addresses answered as [`name_server`] does.
fn resolver(lab: &Lab, answer: &Arc<AtomicU64>) -> Result<Unanswered> {
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = resolv.lines().find_map(|line| line.strip_prefix("nameserver ")).map(str::trim);
    let server = server.filter(|server| server.parse::<std::net::Ipv4Addr>().is_ok());
    let server = server.unwrap_or("127.0.0.1");
    if !server.starts_with("127.") {
        lab.edge.ip(&format!("addr add {server}/32 dev lo"))?;
    }
    name_server(&lab.edge, &format!("{server}:53"), Arc::clone(answer))
}

/// Names that were asked for and never answered.
type Unanswered = Arc<Mutex<BTreeSet<Vec<u8>>>>;

/// Answers every question for an address with this one, and with a failure while it is 0: late for names that begin
/// with `late`, and never for those that begin with `never`.
fn name_server(ns: &Netns, address: &str, answer: Arc<AtomicU64>) -> Result<Unanswered> {
    let socket = ns.enter(|| UdpSocket::bind(address))?;
    let unanswered = Unanswered::default();
    let noted = Arc::clone(&unanswered);
    std::thread::spawn(move || -> Option<()> {
        let mut packet = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut packet).ok()?;
            if packet[13..].starts_with(b"never") {
                let label = packet[13..].split(|byte| *byte < b'-').next()?;
                noted.lock().ok()?.insert(label.to_vec());
                continue;
            }
            let last = answer.load(Relaxed);
            let name = packet.get(12..length)?.iter().position(|byte| *byte == 0)? + 13;
            let is_a = packet[name..name + 2] == [0, 1];
            let mut reply = packet[..name + 4].to_vec();
            // A response without error: one question, and an answer if there is one.
            reply[2..4].copy_from_slice(&[0x81, if last == 0 { 0x82 } else { 0x80 }]);
            let answers = u8::from(is_a && last != 0);
            reply[4..12].copy_from_slice(&[0, 1, 0, answers, 0, 0, 0, 0]);
            if answers == 1 {
                // The name of the question, A, IN, a second of life, four bytes.
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 192, 0, 2, last as u8]);
            }
            if !packet[13..].starts_with(b"late") {
                socket.send_to(&reply, from).ok()?;
                continue;
            }
            let socket = socket.try_clone().ok()?;
            std::thread::spawn(move || {
                std::thread::sleep(SHORT * 10);
                socket.send_to(&reply, from)
            });
        }
    });
    Ok(unanswered)
}

#[test]
fn a_start_waits_for_the_names_of_every_upstream() -> Result<()> {
    let lab = Lab::new()?;
    resolver(&lab, &Arc::new(AtomicU64::new(2)))?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", "[\"app.edged.test:8080\"]")
        .append("[[upstream]]\nname = \"other\"\nservers = [\"late.edged.test:8080\"]")?
        .start()?;
    assert_eq!(state(&edged, "late.edged.test:8080/192.0.2.2")?, "up");
    let allowed = edged.ask("allow list")?.to_string();
    assert!(allowed.contains("192.0.2.2"), "{allowed}");
    Ok(())
}

#[test]
fn a_name_that_is_never_answered_holds_up_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let unanswered = resolver(&lab, &Arc::new(AtomicU64::new(2)))?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.set("upstream.0.servers", "[\"app.edged.test:8080\"]").start()?;
    let asked = |count| {
        let is = || Ok(unanswered.lock().expect("nobody panics").len() == count);
        until("it is asked for", SOON, is)
    };
    let with = |name: &str| -> Result<()> {
        let servers = format!("[\"{name}.edged.test:8080\", \"other.edged.test:8080\"]");
        edged.edit("upstream.0.servers", &servers)
    };
    with("never")?;
    std::thread::scope(|scope| -> Result<()> {
        let reload = scope.spawn(|| edged.tell("reload"));
        asked(1)?;
        // By now the reload has read it.
        std::fs::write(lab.dir().join("signing"), "thirty-two bytes and more, all of them new")?;
        reload.join().expect("nobody panics").map(drop)
    })?;
    assert_eq!(state(&edged, "other.edged.test:8080/192.0.2.2")?, "up", "its neighbour");
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    until("the secret is read again", SOON, || Ok(edged.log().contains("a secret has changed")))?;

    with("never-either")?;
    let ended = std::thread::scope(|scope| -> Result<Instant> {
        scope.spawn(|| edged.tell("reload"));
        asked(2)?;
        edged.signal(Signal::SIGTERM)?;
        Ok(Instant::now())
    })?;
    assert!(edged.terminate()?.success());
    // The resolver gives up after ten seconds.
    assert!(ended.elapsed() < SOON, "nor does an end wait for it: {:?}", ended.elapsed());
    let changes = edged.log().matches("a secret has changed").count();
    assert_eq!(changes, 1, "what a start makes is no change");
    Ok(())
}

#[test]
fn a_name_without_an_address_is_looked_up_again_soon() -> Result<()> {
    let lab = Lab::new()?;
    let answer = Arc::new(AtomicU64::new(0));
    resolver(&lab, &answer)?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", "[\"app.edged.test:8080\"]")
        .set("upstream.0.resolve_every", "\"1h\"")
        .start()?;
    let failed = || metric(&edged, "edged_upstream_lookups_total", &[("result", "failed")]);
    until("a lookup fails", Duration::from_secs(20), || Ok(failed()? >= 1.0))?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 503);
    answer.store(2, Relaxed);
    let ask = || Ok(edged.get(FRIEND, "/health").send()?.status == 200);
    until("it is looked up", Duration::from_secs(30), ask)?;

    // A name beside servers that are there.
    let both = format!("[\"{ORIGIN}:8080\", \"other.edged.test:8080\"]");
    edged.edit("upstream.0.servers", &both)?;
    edged.tell("reload")?;
    assert_eq!(state(&edged, "other.edged.test:8080/192.0.2.2")?, "up");
    Ok(())
}

#[test]
fn what_a_refused_reload_looked_up_is_on_the_allow_list() -> Result<()> {
    let lab = Lab::new()?;
    let answer = Arc::new(AtomicU64::new(0));
    resolver(&lab, &answer)?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("upstream.0.servers", "[\"app.edged.test:8080\"]").start()?;
    let failed = || metric(&edged, "edged_upstream_lookups_total", &[("result", "failed")]);
    // The next look of its own is seconds away.
    until("lookups fail", Duration::from_secs(20), || Ok(failed()? >= 3.0))?;
    answer.store(2, Relaxed);
    // The writer refuses it, behind the lookup.
    edged.edit("kernel.syn_cookies.mode", "\"always\"")?;
    let refused = edged.ctl("reload")?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("tcp_syncookies"), "{refused:?}");
    assert_eq!(state(&edged, "app.edged.test:8080/192.0.2.2")?, "up");
    let allowed = edged.ask("allow list")?.to_string();
    assert!(allowed.contains("192.0.2.2"), "{allowed}");
    Ok(())
}

#[test]
fn names_are_looked_up_again_and_what_was_found_last_stays() -> Result<()> {
    let lab = Lab::new()?;
    lab.origin.ip("addr add 192.0.2.3/24 dev eth0")?;
    let answer = Arc::new(AtomicU64::new(2));
    resolver(&lab, &answer)?;
    let two = Origin::listen(&lab.origin, "192.0.2.2:8080")?;
    let three = Origin::listen(&lab.origin, "192.0.2.3:8080")?;
    let edged = lab
        .edged()?
        .set("upstream.0.servers", "[\"app.edged.test:8080\"]")
        .set("upstream.0.resolve_every", "\"200ms\"")
        .start()?;
    let ask = || Ok::<_, anyhow::Error>(edged.get(FRIEND, "/health").send()?.status);
    assert_eq!((ask()?, two.seen()), (200, 1));
    let allowed = |address: &str| -> Result<bool> {
        Ok(edged.ask("allow list")?.to_string().contains(address))
    };
    assert!(allowed("192.0.2.2")?, "its answers are packets too");
    answer.store(3, Relaxed);
    until("the name means another", SOON, || Ok(!state(&edged, "/192.0.2.3")?.is_empty()))?;
    assert_eq!((ask()?, three.seen()), (200, 1));
    until("the list follows", SOON, || Ok(allowed("192.0.2.3")? && !allowed("192.0.2.2")?))?;
    answer.store(0, Relaxed);
    let failed = || metric(&edged, "edged_upstream_lookups_total", &[("result", "failed")]);
    until("a lookup fails", Duration::from_secs(20), || Ok(failed()? >= 1.0))?;
    assert_eq!((ask()?, three.seen()), (200, 2));
    edged.edit("upstream.0.idle_max", "7")?;
    edged.tell("reload")?;
    assert_eq!((ask()?, three.seen()), (200, 3), "nor does a reload forget it");

    // What an operator drained by its name stays so whatever the name means, and whatever a reload makes anew.
    edged.tell("upstream drain api app.edged.test:8080")?;
    assert_eq!(ask()?, 503);
    answer.store(2, Relaxed);
    until("the name means the first", SOON, || Ok(!state(&edged, "/192.0.2.2")?.is_empty()))?;
    assert_eq!((state(&edged, "/192.0.2.2")?.as_str(), ask()?), ("drained", 503));
    edged.edit("upstream.0.connect_timeout", "\"3s\"")?;
    edged.tell("reload")?;
    until("it is looked up", SOON, || Ok(!state(&edged, "/192.0.2.2")?.is_empty()))?;
    assert_eq!((state(&edged, "/192.0.2.2")?.as_str(), ask()?), ("drained", 503));
    edged.tell("upstream enable api app.edged.test:8080")?;
    answer.store(3, Relaxed);
    until("the name means the other", SOON, || Ok(!state(&edged, "/192.0.2.3")?.is_empty()))?;
    assert_eq!((ask()?, three.seen()), (200, 4));

    // What is gone for now can be told to come back to the round.
    let other = "app.edged.test:8080/192.0.2.3";
    edged.tell(&format!("upstream drain api {other}"))?;
    answer.store(2, Relaxed);
    until("the name means the first", SOON, || Ok(!state(&edged, "/192.0.2.2")?.is_empty()))?;
    edged.tell(&format!("upstream enable api {other}"))?;
    assert!(edged.tell(&format!("upstream enable api {other}")).is_err(), "it is forgotten");
    answer.store(3, Relaxed);
    until("the name means the other", SOON, || Ok(!state(&edged, "/192.0.2.3")?.is_empty()))?;
    assert_eq!(state(&edged, "/192.0.2.3")?, "up");
    Ok(())
}

/// A server that speaks TLS and asks for a certificate of the lab's authority.
fn tls_server(lab: &Lab, cert: &str, key: &str, port: u16) -> Result<Child> {
    let dir = lab.dir().display();
    let program = format!(
        "import http.server, ssl\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20 protocol_version = 'HTTP/1.1'\n\
         \x20 def log_message(self, *a): pass\n\
         \x20 def do_GET(self):\n\
         \x20  who = dict(x[0] for x in self.connection.getpeercert().get('subject', ())) or 'nobody'\n\
         \x20  body = str(who).encode()\n\
         \x20  self.send_response(200); self.send_header('Content-Length', str(len(body)))\n\
         \x20  self.end_headers(); self.wfile.write(body)\n\
         c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
         c.load_cert_chain('{dir}/{cert}', '{dir}/{key}')\n\
         c.load_verify_locations('{dir}/ca.pem'); c.verify_mode = ssl.CERT_REQUIRED\n\
         s = http.server.ThreadingHTTPServer(('{ORIGIN}', {port}), H)\n\
         s.socket = c.wrap_socket(s.socket, server_side=True)\n\
         print('ready', flush=True); s.serve_forever()\n"
    );
    let mut child = lab
        .origin
        .command("python3")
        .args(["-c", &program])
        .stdout(Stdio::piped())
        .spawn()
        .context("start python3")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    anyhow::ensure!(line == "ready\n", "python3 says {line:?}");
    Ok(child)
}

#[test]
fn a_server_proves_who_it_is_or_is_not_asked() -> Result<()> {
    let lab = Lab::new()?;
    certify(lab.dir())?;
    let (_server, dir) = (tls_server(&lab, "cert.pem", "key.pem", 8443)?, lab.dir().display());
    // Another authority, which has signed nothing here.
    let other = rcgen::generate_simple_self_signed(["edge.test".to_owned()])?;
    std::fs::write(lab.dir().join("other.pem"), other.cert.pem())?;
    let command = format!(
        "openssl x509 -in {dir}/cert.pem -noout -pubkey | openssl pkey -pubin -outform der | sha256sum"
    );
    let pin = run(std::process::Command::new("sh").args(["-c", &command]))?;
    let pin = pin.split_whitespace().next().context("a digest")?.to_owned();
    let shown = format!("client_certificate = \"{dir}/cert.pem\", client_key = \"{dir}/key.pem\"");
    let tls = |keys: &str| format!("{{ {keys} }}");
    let good = format!("ca = \"{dir}/ca.pem\", server_name = \"edge.test\"");
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8443]))
        .set("upstream.0.circuit", "{ failures = \"off\" }")
        .set("upstream.0.tls", &tls(&format!("{good}, {shown}")))
        .start()?;
    let ask = || edged.get(FRIEND, "/health").send();
    let served = ask()?;
    assert_eq!(served.status, 200, "{served:?} {}", edged.log());
    until("it is told when what it goes by ends", Duration::from_secs(5), || {
        let page = edged.scrape()?;
        Ok(["upstream_client", "upstream_ca"].iter().all(|used_for| {
            let begin = format!("edged_certificate_expiry_seconds{{use=\"{used_for}\",name=");
            page.lines().filter(|line| line.starts_with(&begin)).count() == 1
        }))
    })?;
    for (keys, status) in [
        (format!("{good}, {shown}, pins = [\"{pin}\"]"), 200),
        (format!("{good}, {shown}, pins = [\"{}\", \"{pin}\"]", "0".repeat(64)), 200),
        (format!("{good}, {shown}, pins = [\"{}\"]", "0".repeat(64)), 502),
        (good.clone(), 502),
        (format!("ca = \"{dir}/ca.pem\", server_name = \"other.test\", {shown}"), 502),
        (format!("ca = \"{dir}/ca.pem\", {shown}"), 502),
        (format!("ca = \"{dir}/other.pem\", server_name = \"edge.test\", {shown}"), 502),
    ] {
        edged.edit("upstream.0.tls", &tls(&keys))?;
        edged.tell("reload")?;
        assert_eq!(ask()?.status, status, "{keys}\n{}", edged.log());
    }
    // A bad file never replaces a good one.
    edged.edit("upstream.0.tls", &tls(&format!("{good}, {shown}")))?;
    edged.tell("reload")?;
    edged.edit("upstream.0.tls", &tls(&format!("ca = \"{dir}/key.pem\", {shown}")))?;
    assert!(!edged.ctl("reload")?.status.success());
    assert_eq!(ask()?.status, 200);
    // Nor does one that a reload has read which is refused for something else.
    let at = |name: &str| lab.dir().join(name);
    std::fs::copy(at("ca.pem"), at("own.pem"))?;
    let own = format!("ca = \"{dir}/own.pem\", server_name = \"edge.test\", {shown}");
    edged.edit("upstream.0.tls", &tls(&own))?;
    edged.tell("reload")?;
    std::fs::copy(at("other.pem"), at("own.pem"))?;
    std::fs::rename(at("pepper"), at("pepper.away"))?;
    assert!(!edged.ctl("reload")?.status.success());
    assert_eq!(ask()?.status, 200);
    std::fs::rename(at("pepper.away"), at("pepper"))?;
    edged.tell("reload")?;
    assert_eq!(ask()?.status, 502);
    Ok(())
}

/// A server that speaks TLS and answers with the number of the connection; the first it takes when `go` is there.
const SLOW_TO_SHAKE: &str = "\
import os, socket, ssl, sys, threading, time
folder, address, port = sys.argv[1:]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(folder + '/cert.pem', folder + '/key.pem')
def serve(raw, number):
    while number == 1 and not os.path.exists(folder + '/go'): time.sleep(0.01)
    client = tls.wrap_socket(raw, server_side=True)
    for line in client.makefile('rb'):
        if line == b'\\r\\n': client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 1\\r\\n\\r\\n%d' % number)
listener, number = socket.create_server((address, int(port))), 0
print('ready', flush=True)
while True:
    raw, number = listener.accept()[0], number + 1
    print('came', flush=True)
    threading.Thread(target=serve, args=(raw, number), daemon=True).start()
";

#[test]
fn a_connection_that_was_dialled_under_former_certificates_serves_no_second_request() -> Result<()>
{
    let lab = Lab::new()?;
    certify(lab.dir())?;
    let at = |name: &str| lab.dir().join(name);
    std::fs::copy(at("ca.pem"), at("own.pem"))?;
    let mut server = lab
        .origin
        .command("python3")
        .args(["-c", SLOW_TO_SHAKE, &at("").display().to_string(), ORIGIN, "8443"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(server.stdout.take().context("piped")?).lines();
    anyhow::ensure!(said.next().context("it says")?? == "ready");
    let tls = format!("{{ ca = {:?}, server_name = \"edge.test\" }}", at("own.pem"));
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8443]))
        .set("upstream.0.tls", &tls)
        .set("upstream.0.connect_timeout", "\"10s\"")
        .set("server.workers", "1")
        .start()?;
    let ask = || edged.get(FRIEND, "/health").send();
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(ask);
        anyhow::ensure!(said.next().context("it says")?? == "came");
        // One authority more.
        let other = rcgen::generate_simple_self_signed(["edge.test".to_owned()])?;
        let both = std::fs::read_to_string(at("ca.pem"))? + &other.cert.pem();
        std::fs::write(at("own.pem"), both)?;
        edged.tell("reload")?;
        std::fs::write(at("go"), "")?;
        let first = first.join().expect("nobody panics")?;
        assert_eq!((first.status, first.text().as_str()), (200, "1"), "{}", edged.log());
        Ok(())
    })?;
    assert_eq!([ask()?.text(), ask()?.text()], ["2", "2"], "and from there it is kept");
    server.kill()?;
    server.wait()?;
    Ok(())
}

#[test]
fn check_tells_of_servers_that_cannot_be_reached() -> Result<()> {
    let lab = Lab::new()?;
    certify(lab.dir())?;
    let _origin = Origin::start(&lab)?;
    let config = lab.edged()?.set("upstream.0.servers", &servers(&[8080, 8089])).write()?;
    let check = || {
        let mut edged = lab.edge.command(binary("edged")?);
        let done = edged.args(["check", "--config"]).arg(&config).output()?;
        Ok::<_, anyhow::Error>((
            done.status.success(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        ))
    };
    let (fine, words) = check()?;
    assert!(fine, "it may be started later: {words}");
    assert!(
        words.contains("edged.toml:") && words.contains("cannot reach 192.0.2.2:8089"),
        "{words}"
    );
    assert!(!words.contains("8080 now"), "{words}");
    let text = std::fs::read_to_string(&config)?;
    let line = text.lines().position(|line| line.contains("8089")).context("a line")? + 1;
    assert!(words.contains(&format!("edged.toml:{line}:")), "{words}");
    Ok(())
}

#[test]
fn a_server_that_comes_back_begins_with_a_tenth_of_its_share() -> Result<()> {
    let lab = Lab::new()?;
    let well = Arc::new(AtomicBool::new(true));
    let seen = [8081, 8082].map(|port| {
        let (well, seen) = (Arc::clone(&well), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&seen);
        let address = format!("{ORIGIN}:{port}");
        let script = Script::start(&lab.origin, &address, move |path, stream| {
            let is_check = path == "/ready";
            count.fetch_add(u64::from(!is_check), Relaxed);
            let is_ill = is_check && port == 8082 && !well.load(Relaxed);
            respond(stream, if is_ill { 500 } else { 200 }, "hello")
        });
        script.map(|_| seen)
    });
    let [steady, other] = seen;
    let (steady, other) = (steady?, other?);
    let check = "{ path = \"/ready\", interval = \"50ms\", timeout = \"5s\", fall = 1, rise = 1 }";
    let edged = lab
        .edged()?
        .set("upstream.0.servers", &servers(&[8081, 8082]))
        .set("upstream.0.check", check)
        .set("upstream.0.slow_start", "\"1h\"")
        .set("server.workers", "1")
        .start()?;
    let spread = |count: u32| -> Result<[u64; 2]> {
        let before = [steady.load(Relaxed), other.load(Relaxed)];
        assert!(edged.get(FRIEND, "/health").send_many(count)?.iter().all(|s| *s == 200));
        Ok([steady.load(Relaxed) - before[0], other.load(Relaxed) - before[1]])
    };
    // At the start nobody comes back: the clients are there already.
    assert_eq!(spread(40)?, [20, 20]);
    well.store(false, Relaxed);
    until("it is down", SOON, || Ok(state(&edged, ":8082")? == "down"))?;
    assert_eq!(spread(10)?, [10, 0]);
    well.store(true, Relaxed);
    until("it is up", SOON, || Ok(state(&edged, ":8082")? == "up"))?;
    let [_, warming] = spread(44)?;
    assert!((3..=5).contains(&warming), "{warming} of 44 went to it");
    // Without a slow start it has the whole at once.
    edged.edit("upstream.0.slow_start", "\"never\"")?;
    edged.tell("reload")?;
    well.store(false, Relaxed);
    until("it is down", SOON, || Ok(state(&edged, ":8082")? == "down"))?;
    well.store(true, Relaxed);
    until("it is up", SOON, || Ok(state(&edged, ":8082")? == "up"))?;
    assert_eq!(spread(40)?, [20, 20]);
    Ok(())
}

#[test]
fn an_old_connection_takes_no_further_request() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("upstream.0.idle_timeout", "\"1h\"")
        .set("server.workers", "1")
        .set("route.1.auth", "\"none\"")
        .start()?;
    let connects = || metric(&edged, "edged_upstream_connects_total", &[]);
    let ask = |path: &str| edged.get(FRIEND, path).send().map(|answer| answer.status);
    assert_eq!((ask("/health")?, ask("/slow?ms=1200")?, ask("/health")?), (200, 200, 200));
    assert_eq!(connects()?, 1.0, "it is young for an hour");
    edged.edit("upstream.0.age_max", "\"1s\"")?;
    edged.tell("reload")?;
    // What is under way when it becomes too old goes on to its end.
    assert_eq!(ask("/slow?ms=1200")?, 200);
    // An upstream that is changed is counted anew.
    assert_eq!(connects()?, 1.0);
    assert_eq!(ask("/health")?, 200);
    assert_eq!(connects()?, 2.0);
    Ok(())
}

/// The one request by which a circuit finds out how the upstream is may tell nothing of it.
#[test]
fn a_trial_that_its_client_breaks_off_is_given_to_the_next() -> Result<()> {
    let lab = Lab::new()?;
    let rule = "{ failures = 50, requests_min = 4, window = \"60s\", open = \"6s\" }";
    let edged = lab
        .edged()?
        .set("upstream.0.circuit", rule)
        .set("upstream.0.response_timeout", "\"60s\"")
        .set("route.1.auth", "\"none\"")
        .set("server.workers", "1")
        .start()?;
    let ask = || edged.get(FRIEND, "/health").send();
    for _ in 0..4 {
        assert_eq!(ask()?.status, 502);
    }
    assert_eq!(ask()?.status, 503);
    let origin = Origin::start(&lab)?;
    // Who asks on and on is the trial, sooner or later, and leaves.
    until("the trial is under way", Duration::from_secs(30), || {
        let _ = edged.get(FRIEND, "/slow?ms=20000").arg("--max-time", "1").send();
        Ok(origin.seen() == 1)
    })?;
    until("he has left", SOON, || Ok(metric(&edged, "edged_requests_in_flight", &[])? == 0.0))?;
    assert_eq!(ask()?.status, 200, "nobody waits for what he has found out");
    Ok(())
}
