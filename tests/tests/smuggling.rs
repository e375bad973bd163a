//! One meaning or none: a corpus of requests and one of answers, and what other servers make of
//! what the edge hands on.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    daemon::Setup,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, frame, get, literal, preface},
    lab::{FRIEND, ORIGIN},
    parsers::{PARSERS, Parsers},
    random::Random,
    smuggling::{Case, Verdict, read, unescape},
    talk::{Dial, Heard},
};
use serde_json::Value;

const METHODS: &str = r#"["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]"#;
const PATIENCE: Duration = Duration::from_secs(15);

/// With every method, so that none of them is why something is refused.
fn open<'a>(lab: &'a Lab) -> Result<Setup<'a>> {
    Ok(lab
        .edged()?
        .set("route.0.methods", r#"["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]"#))
}

/// What every case is told by, in four threads; the complaints of all.
fn all<T: Sync>(cases: &[T], check: impl Fn(usize, &T) -> Result<()> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut complaints = Vec::new();
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some(case) = cases.get(index) else { return complaints };
            complaints.extend(check(index, case).err().map(|error| format!("{error:#}")));
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    })
}

#[test]
fn every_request_of_the_corpus_has_its_verdict() -> Result<()> {
    let cases = read(include_str!("../corpus/http1.txt"));
    ensure!(cases.len() >= 400, "{} cases", cases.len());
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = open(&lab)?.start()?;
    let dial = Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1");
    let complaints = all(&cases, |index, case| {
        check(&lab, &dial, case)?;
        behind(&lab, &dial, &origin, index, case)
    });
    assert!(complaints.is_empty(), "{}:\n{}", complaints.len(), complaints.join("\n"));
    let refused = cases.iter().filter(|case| case.verdict == Verdict::Refuse).count();
    let metrics = edged.metrics()?;
    let counted = [Reason::MalformedRequest, Reason::UriTooLong, Reason::HeadersTooLarge]
        .map(|reason| metrics.requests(reason));
    assert!(counted.iter().sum::<f64>() >= 2.0 * refused as f64 - 4.0, "{counted:?} of {refused}");
    assert_eq!(metrics.requests(Reason::InternalError), 0.0);
    Ok(())
}

/// The answer to a case, and whether the connection goes on as it should.
fn check(lab: &Lab, dial: &Dial, case: &Case) -> Result<()> {
    let mut talk = dial.connect(lab, FRIEND)?;
    let _ = talk.say(&case.bytes);
    let waits = case.verdict != Verdict::Refuse;
    let heard = talk.hear(PATIENCE, |bytes| waits && bytes.windows(4).any(|w| w == b"\r\n\r\n"))?;
    let Heard { closed, .. } = heard;
    let Case { verdict, name, .. } = case;
    let good = match (verdict, &*heard.statuses()) {
        (Verdict::Accept, [200]) | (Verdict::Decline, [400..=499]) => true,
        (Verdict::Refuse, [400..=499]) => closed,
        _ => false,
    };
    ensure!(good, "{name}: {verdict:?}, but {:?}, closed: {closed}", heard.statuses());
    Ok(())
}

/// Nothing is read behind what was refused: a second request neither gets an answer nor gets through.
fn behind(lab: &Lab, dial: &Dial, origin: &Origin, index: usize, case: &Case) -> Result<()> {
    if case.verdict != Verdict::Refuse {
        return Ok(());
    }
    let target = format!("/health/smuggled/{index}");
    let mut bytes = case.bytes.clone();
    bytes.extend_from_slice(format!("GET {target} HTTP/1.1\r\nHost: edge.test\r\n\r\n").as_bytes());
    let mut talk = dial.connect(lab, FRIEND)?;
    let _ = talk.say(&bytes);
    let heard = talk.hear(PATIENCE, |_| false)?;
    let (name, statuses) = (&case.name, heard.statuses());
    ensure!(statuses.len() <= 1 && heard.closed, "{name}: with more behind it {statuses:?}");
    ensure!(origin.asked(&target) == 0, "{name}: what was behind it got through");
    Ok(())
}

#[test]
fn every_answer_of_the_corpus_has_its_verdict() -> Result<()> {
    let cases = answers(include_str!("../corpus/answers.txt"))?;
    ensure!(cases.len() >= 60, "{} cases", cases.len());
    let lab = Lab::new()?;
    let listener = lab.origin.enter(|| TcpListener::bind((ORIGIN, 8080)))?;
    let script = Arc::new(cases.iter().map(|case| case.bytes.clone()).collect::<Vec<_>>());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let script = Arc::clone(&script);
            thread::spawn(move || recite(client, &script));
        }
    });
    let edged = open(&lab)?
        .set("upstream.0.ejection.failures", "0")
        .set("upstream.0.circuit.failures", r#""off""#)
        .set("upstream.0.retries_max", "0")
        .start()?;
    let dial = Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1");
    let complaints = all(&cases, |index, case| ask(&lab, &dial, index, case));
    assert!(complaints.is_empty(), "{}:\n{}", complaints.len(), complaints.join("\n"));
    Ok(())
}

/// An answer, and what is to become of it: the status that the client is to see, or 0 for an answer
/// that breaks off.
struct Scripted {
    status: u16,
    name: String,
    bytes: Vec<u8>,
}

fn answers(text: &str) -> Result<Vec<Scripted>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let mut parts = line.splitn(3, " | ");
            let mut part = || parts.next().with_context(|| line.to_owned());
            let (status, name, bytes) = (part()?.parse()?, part()?.to_owned(), part()?);
            let bytes = unescape(bytes).with_context(|| name.clone())?;
            Ok(Scripted { status, name, bytes })
        })
        .collect()
}

/// Answers each request with the line that its path names, and `/next` with `clean`. The
/// connection stays open but for bytes that end with the mark of an end.
fn recite(client: TcpStream, script: &[Vec<u8>]) -> Option<()> {
    let mut writer = client.try_clone().ok()?;
    let mut reader = BufReader::new(client);
    loop {
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 0 && !line.ends_with("\r\n\r\n") {}
        let number = line.strip_prefix("GET /health/").or(line.strip_prefix("HEAD /health/"))?;
        let number = number.split(' ').next()?;
        let Ok(number) = number.parse::<usize>() else {
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean").ok()?;
            continue;
        };
        let bytes = script.get(number)?;
        match bytes.strip_suffix(b"<end>") {
            Some(last) => {
                writer.write_all(last).ok()?;
                return None;
            }
            None => writer.write_all(bytes).ok()?,
        }
    }
}

fn ask(lab: &Lab, dial: &Dial, index: usize, case: &Scripted) -> Result<()> {
    let Scripted { status, name, .. } = case;
    let method = if name.contains("to HEAD") { "HEAD" } else { "GET" };
    let mut talk = dial.connect(lab, FRIEND)?;
    talk.say(
        format!(
            "{method} /health/{index} HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let heard = talk.hear(PATIENCE, |_| false)?;
    let text = String::from_utf8_lossy(&heard.bytes).into_owned();
    ensure!(!text.contains("POISON"), "{name}: what was behind the answer came along: {text}");
    match status {
        0 => {
            let whole = text.contains("\r\n0\r\n\r\n");
            ensure!(!whole, "{name}: looks complete: {text}");
        }
        status => ensure!(heard.statuses() == [*status], "{name}: {text}"),
    }
    ensure!(heard.closed, "{name}: still open");
    // Whatever was left over is nobody's next answer.
    let mut talk = dial.connect(lab, FRIEND)?;
    let next = talk.get("edge.test", "/health/next", &[])?;
    ensure!((next.status, &*next.body) == (200, "clean"), "{name}: then {next:?}");
    Ok(())
}

#[test]
fn what_is_handed_on_means_the_same_to_others() -> Result<()> {
    let lab = Lab::new()?;
    let _parsers = Parsers::start(&lab)?;
    let mut more = String::new();
    for (name, port) in PARSERS {
        more += &format!(
            "[[upstream]]\nname = \"{name}\"\nservers = [\"{ORIGIN}:{port}\"]\nidle_max = 1\n\
             [[route]]\npath = \"/\"\nhost = \"{name}.test\"\nauth = \"none\"\nupstream = \"{name}\"\n\
             methods = {METHODS}\n"
        );
        for (path, rewrite) in [("/1", "/seen/at"), ("/1/2/{which}/4", "/by/{which}")] {
            more += &format!(
                "[[route]]\npath = \"{path}\"\nrewrite = \"{rewrite}\"\nhost = \"new.{name}.test\"\nauth = \"none\"\n\
                 upstream = \"{name}\"\nmethods = {METHODS}\n"
            );
        }
    }
    let edged = open(&lab)?.set("server.workers", "1").append(&more)?.start()?;
    let mut random = Random::new(4);
    let sent: Vec<_> = (0..200).map(|_| Sent::draw(&mut random)).collect();
    let complaints = all(&sent, |_, sent| sent.compare(&lab, &edged));
    assert!(complaints.is_empty(), "{}:\n{}", complaints.len(), complaints.join("\n"));
    Ok(())
}

/// A request in one of the many ways to write it.
struct Sent {
    method: &'static str,
    target: String,
    mark: String,
    /// Header lines that frame the body, and the body as it goes over the wire.
    framed: (String, Vec<u8>),
    /// The same without its framing, and its length.
    body: Vec<u8>,
    length: usize,
}

impl Sent {
    fn draw(random: &mut Random) -> Self {
        let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"];
        let method = *random.pick(&methods);
        let body = if method == "GET" { Vec::new() } else { body(random) };
        let framed = match random.below(3) {
            _ if method == "GET" => Default::default(),
            0 => (format!("Content-Length: {}\r\n", body.len()), body.clone()),
            _ => ("Transfer-Encoding: chunked\r\n".to_owned(), chunks(random, &body)),
        };
        let values = ["plain", "a, b;c=\"d\"", "GET / HTTP/1.1", "caf\u{e9}", "x: y", "0"];
        let mark = (*random.pick(&values)).to_owned();
        Self { method, target: target(random), mark, framed, length: body.len(), body }
    }

    /// Every parser says the same of it, over either version of HTTP and with its path rewritten, and
    /// goes on with the next request.
    fn compare(&self, lab: &Lab, edged: &Edged<'_>) -> Result<()> {
        let mut first: Option<Value> = None;
        for (name, _) in PARSERS {
            for (is_http2, is_rewritten) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let host = format!("{}{name}.test", if is_rewritten { "new." } else { "" });
                let told = || format!("{}HTTP/2: {is_http2}", self.head(&host));
                let ask = if is_http2 { Self::seen_http2 } else { Self::seen };
                let (mut seen, next) = ask(self, lab, edged, &host).with_context(told)?;
                let after = if is_rewritten { "/seen/at/next" } else { "/1/next" };
                ensure!(next["url"] == after && next["length"] == 0, "{}: then {next}", told());
                ensure!(seen["host"].take() == host, "{}: {seen}", told());
                ensure!(seen["method"] == self.method, "{}: {seen}", told());
                ensure!(seen["length"] == self.length, "{}: {seen}", told());
                let same = first.get_or_insert_with(|| seen.clone());
                if is_rewritten {
                    let url = same["url"].as_str().map(rewritten).context("a URL")?;
                    ensure!(seen["url"] == url, "{}: {seen}, not {url}", told());
                    seen["url"] = same["url"].clone();
                }
                ensure!(*same == seen, "{}: {name} says {seen}, not {same}", told());
            }
        }
        Ok(())
    }

    /// What a parser says of it, and of the next request.
    fn seen(&self, lab: &Lab, edged: &Edged<'_>, host: &str) -> Result<(Value, Value)> {
        let dial = Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1");
        let mut talk = dial.connect(lab, FRIEND)?;
        let mut bytes = self.head(host).into_bytes();
        bytes.extend_from_slice(&self.framed.1);
        talk.say(&bytes)?;
        let seen = talk.answer()?;
        ensure!(seen.status == 200, "{seen:?}");
        let next = talk.get(host, "/1/next", &[])?;
        Ok((serde_json::from_str(&seen.body)?, serde_json::from_str(&next.body)?))
    }

    /// The same over HTTP/2, in two streams at once.
    fn seen_http2(&self, lab: &Lab, edged: &Edged<'_>, host: &str) -> Result<(Value, Value)> {
        let dial = Dial::new(&edged.ca, "edge.test")?.alpn("h2");
        let mut talk = dial.connect(lab, FRIEND)?;
        // `:scheme: https` is in the static table.
        let mut block = vec![0x87];
        for (name, value) in
            [(":method", self.method), (":path", &self.target), (":authority", host)]
        {
            block.extend(literal(name, value));
        }
        block.extend(literal("x-mark", &self.mark));
        if self.framed.0.starts_with("Content-Length") {
            block.extend(literal("content-length", &self.length.to_string()));
        }
        let end = if self.body.is_empty() { END_STREAM } else { 0 };
        let mut bytes = [preface(), frame(HEADERS, END_HEADERS | end, 1, &block)].concat();
        let parts = self.body.chunks(1_000);
        let count = parts.len();
        for (n, part) in parts.enumerate() {
            bytes.extend(frame(DATA, if n + 1 == count { END_STREAM } else { 0 }, 1, part));
        }
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 3, &get(host, "/1/next")));
        talk.say(&bytes)?;
        let heard = talk.hear(PATIENCE, |bytes| [1, 3].iter().all(|n| content(bytes, *n).1))?;
        let body = |n| serde_json::from_slice(&content(&heard.bytes, n).0).context("no JSON");
        Ok((body(1)?, body(3)?))
    }

    fn head(&self, host: &str) -> String {
        let Self { method, target, mark, framed: (framing, _), .. } = self;
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nX-Mark: {mark}\r\n{framing}\r\n")
    }
}

/// What the routes of rewriting hosts make of a target in its normal form.
fn rewritten(url: &str) -> String {
    let below = |from: &str| {
        let rest = url.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with(['/', '?'])).then_some(rest)
    };
    match (below("/1/2/3/4"), below("/1")) {
        (Some(rest), _) => format!("/by/3{rest}"),
        (None, Some(rest)) => format!("/seen/at{rest}"),
        (None, None) => url.to_owned(),
    }
}

/// The content of an HTTP/2 stream in the frames of a connection, and whether it has ended.
fn content(bytes: &[u8], of: u32) -> (Vec<u8>, bool) {
    let (mut rest, mut content, mut ended) = (bytes, Vec::new(), false);
    while let [a, b, c, kind, flags, d, e, f, g, payload @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(part) = payload.get(..length) else { break };
        if u32::from_be_bytes([*d, *e, *f, *g]) == of && matches!(*kind, HEADERS | DATA) {
            ended |= flags & END_STREAM != 0;
            if *kind == DATA {
                content.extend_from_slice(part);
            }
        }
        rest = &payload[length..];
    }
    (content, ended)
}

fn body(random: &mut Random) -> Vec<u8> {
    let length = random.below(3_000) as usize;
    let mut body = random.bytes(length);
    if random.once_in(3) {
        body.splice(..0, *b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    }
    body
}

fn chunks(random: &mut Random, body: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(1 + random.below(rest.len() as u32) as usize);
        let zeros = random.pick(&["", "0", "0000"]);
        let extension = random.pick(&["", "", ";a", ";a=b", ";a=\"b;c\""]);
        let size = match random.once_in(2) {
            true => format!("{zeros}{:x}{extension}\r\n", chunk.len()),
            false => format!("{zeros}{:X}{extension}\r\n", chunk.len()),
        };
        out.extend_from_slice(size.as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
    }
    let trailer = random.pick(&["", "", "X-Sum: 1\r\n"]);
    out.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
    out
}

fn target(random: &mut Random) -> String {
    let parts = [
        "a",
        "Z9",
        "%41",
        "%7e",
        "%2E%2e",
        ".",
        "..",
        "",
        "a.b",
        "a;b=c",
        "%c3%a9",
        "%25",
        "a:b",
        "@",
        "!$&'()*+,=",
        "%20",
        "[x]",
        "{y}",
        "|",
        "%5B",
    ];
    // Deep enough that no dots climb above the root.
    let mut target = "/1/2/3/4/5".to_owned();
    for _ in 0..random.below(5) {
        target.push('/');
        target += random.pick::<&str>(&parts);
    }
    if random.once_in(2) {
        target.push('?');
        target +=
            random.pick::<&str>(&["", "a=b&c=%20", "a=/../x", "%41=%2f", "??", "a=%25%32%65"]);
    }
    target
}
