//! A small HTTP/1.1 server behind the edge, whose answers tests choose by the path.
//!
//! `/echo` answers with the request head as JSON, `/slow?ms=` late, `/status/NNN` and what is below with a status,
//! `/big?bytes=` at length, `/upload` with the count of bytes it read, `/early` before it reads any, `/drop` and `/quiet`
//! not to the end, `/cached/WORDS` with these in `Cache-Control`,
//! `/garbage` with what is not HTTP, and anything else with `hello`.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Read, Result, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;

use crate::{lab, netns::Netns};

/// A running origin; it serves until the process ends.
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<AtomicU64>,
    completed: Arc<AtomicU64>,
    targets: Arc<Mutex<HashMap<String, u64>>>,
}

impl Origin {
    /// Starts an origin in the lab, on port 8080.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start(lab: &lab::Lab) -> Result<Self> {
        Self::listen(&lab.origin, &format!("{}:8080", lab::ORIGIN))
    }

    /// Starts an origin on an address of a namespace.
    ///
    /// # Errors
    /// If the address is taken or not there.
    pub fn listen(ns: &Netns, address: &str) -> Result<Self> {
        Self::serve(ns.enter(|| TcpListener::bind(address))?)
    }

    /// Starts an origin on a listener.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn serve(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        let this = Self {
            address,
            seen: Arc::default(),
            completed: Arc::default(),
            targets: Arc::default(),
        };
        let (seen, whole) = (Arc::clone(&this.seen), Arc::clone(&this.completed));
        let targets = Arc::clone(&this.targets);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (seen, whole) = (Arc::clone(&seen), Arc::clone(&whole));
                let targets = Arc::clone(&targets);
                std::thread::spawn(move || converse(client, &seen, &whole, &targets));
            }
        });
        Ok(this)
    }

    /// Requests for this target that it has read the head of.
    #[must_use]
    pub fn asked(&self, target: &str) -> u64 {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.get(target).copied().unwrap_or_default()
    }

    /// Requests it has read the head of.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Requests it has read to the end of their bodies.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed.load(Relaxed)
    }
}

/// A request's head.
struct Head {
    method: String,
    path: String,
    query: BTreeMap<String, u64>,
    target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// Answers requests until the client ends the connection or the answer asks for it.
fn converse(
    client: TcpStream,
    seen: &AtomicU64,
    whole: &AtomicU64,
    targets: &Mutex<HashMap<String, u64>>,
) -> Option<()> {
    client.set_nodelay(true).ok()?;
    let mut writer = client.try_clone().ok()?;
    let mut reader = BufReader::new(client);
    loop {
        let head = read_head(&mut reader)?;
        seen.fetch_add(1, Relaxed);
        *targets.lock().ok()?.entry(head.target.clone()).or_default() += 1;
        if head.path == "/early" {
            respond(&mut writer, &head, "413", "text/plain", b"early").ok()?;
        }
        let body_bytes = drain(&mut reader, &head).ok()?;
        whole.fetch_add(1, Relaxed);
        if head.path != "/early" && !answer(&mut writer, &head, body_bytes).ok()? {
            return None;
        }
    }
}

/// Writes one answer; whether the connection goes on.
fn answer(to: &mut TcpStream, head: &Head, body_bytes: u64) -> Result<bool> {
    let ask = |name: &str, default| head.query.get(name).copied().unwrap_or(default);
    if let Some(status) = head.path.strip_prefix("/status/") {
        let status = status.split('/').next().unwrap_or_default();
        respond(to, head, status, "text/plain", status.as_bytes())?;
        return Ok(true);
    }
    if let Some(control) = head.path.strip_prefix("/cached/") {
        write!(to, "HTTP/1.1 200 OK\r\nCache-Control: {control}\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    }
    match head.path.as_str() {
        "/echo" => {
            let seen =
                json!({"method": head.method, "target": head.target, "headers": head.headers});
            respond(to, head, "200", "application/json", seen.to_string().as_bytes())?;
        }
        "/slow" => {
            std::thread::sleep(Duration::from_millis(ask("ms", 1000)));
            respond(to, head, "200", "text/plain", b"late")?;
        }
        "/big" => big(to, ask("bytes", 1 << 20))?,
        "/upload" => respond(to, head, "200", "text/plain", body_bytes.to_string().as_bytes())?,
        "/drop" => {
            to.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")?;
            return Ok(false);
        }
        "/quiet" => {
            to.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")?;
            // Until its client is gone.
            return to.read(&mut [0]).map(|_| false);
        }
        "/garbage" => {
            to.write_all(b"\x16\x03this is not HTTP\r\n\r\n")?;
            return Ok(false);
        }
        _ => respond(to, head, "200", "text/plain", b"hello")?,
    }
    Ok(true)
}

fn respond(to: &mut TcpStream, head: &Head, status: &str, kind: &str, body: &[u8]) -> Result<()> {
    let mut out = format!(
        "HTTP/1.1 {status} Status\r\nServer: origin/1.0\r\nX-Powered-By: tests\r\n\
         Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    if head.method != "HEAD" && !matches!(status, "204" | "304") {
        out.extend_from_slice(body);
    }
    to.write_all(&out)
}

fn big(to: &mut TcpStream, bytes: u64) -> Result<()> {
    write!(to, "HTTP/1.1 200 OK\r\nServer: origin/1.0\r\nContent-Length: {bytes}\r\n\r\n")?;
    std::io::copy(&mut std::io::repeat(b'x').take(bytes), to).map(drop)
}

fn read_head(from: &mut impl BufRead) -> Option<Head> {
    let line = read_line(from)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect();
    let mut headers = Vec::new();
    loop {
        let line = read_line(from)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Some(Head { method, path: path.to_owned(), query, target, headers })
}

/// One line without its end; `None` at the end of the stream.
fn read_line(from: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    let length = from.read_line(&mut line).ok()?;
    (length > 0).then(|| line.trim_end().to_owned())
}

/// Reads the body to its end and counts it.
fn drain(from: &mut impl BufRead, head: &Head) -> Result<u64> {
    if head.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return drain_chunks(from);
    }
    let length = head.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let read = std::io::copy(&mut from.take(length), &mut std::io::sink())?;
    if read < length { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
}

fn drain_chunks(from: &mut impl BufRead) -> Result<u64> {
    let mut total = 0;
    loop {
        let line = read_line(from).unwrap_or_default();
        let size = line.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(std::io::Error::other)?;
        total += std::io::copy(&mut from.by_ref().take(size), &mut std::io::sink())?;
        read_line(from);
        if size == 0 {
            return Ok(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Origin::serve(listener).unwrap();
        let mut stream = TcpStream::connect(origin.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn it_answers_as_the_path_asks() {
        assert!(ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("\r\n\r\nhello"));
        assert!(ask("GET /status/404 HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(
            ask("GET /echo?a=1 HTTP/1.1\r\nX-Seen: yes\r\n\r\n").contains(r#"["X-Seen","yes"]"#)
        );
        let chunks =
            "POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert!(ask(chunks).ends_with("\r\n\r\n3"));
        assert!(ask("GET /big?bytes=70000 HTTP/1.1\r\n\r\n").len() > 70_000);
    }
}
