//! Real clients: curl, openssl and plain TCP, from any address of the lab.

use std::{
    io::{Read, Result as IoResult, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    socket::{
        self, AddressFamily, SockFlag, SockType, SockaddrStorage,
        sockopt::{ReceiveTimeout, SendTimeout},
    },
    time::{TimeVal, TimeValLike},
};

use crate::{lab, netns::Netns};

/// The name on the lab's certificate.
pub const HOST: &str = "edge.test";

/// A request that curl will send.
pub struct Request<'a> {
    ns: &'a Netns,
    args: Vec<String>,
    url: String,
    body: Option<Vec<u8>>,
}

/// What curl received.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// `HTTP/1.1` or `HTTP/2`.
    pub version: String,
    /// The header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl<'a> Request<'a> {
    /// A GET of a path of the edge, from a source address of the lab, trusting a CA.
    #[must_use]
    pub fn new(lab: &'a lab::Lab, ca: &Path, source: &str, path: &str) -> Self {
        let edge = if lab::is_v6(source) { "[2001:db8::1]" } else { lab::EDGE };
        let mut request =
            Self { ns: lab.home(source), args: Vec::new(), url: String::new(), body: None };
        request.url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("https://{HOST}{path}")
        };
        request
            .arg("--cacert", &ca.to_string_lossy())
            .arg("--interface", source)
            .arg("--resolve", &format!("{HOST}:443:{edge}"))
            .arg("--resolve", &format!("{HOST}:80:{edge}"))
            .arg("--max-time", "20")
    }

    /// Adds an option of curl with its value.
    #[must_use]
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Adds an option of curl that takes no value.
    #[must_use]
    pub fn flag(mut self, name: &str) -> Self {
        self.args.push(name.to_owned());
        self
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        self.arg("--header", &format!("{name}: {value}"))
    }

    /// Presents an API key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("X-API-Key", key)
    }

    /// Uses another method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        if method == "HEAD" { self.flag("--head") } else { self.arg("--request", method) }
    }

    /// Sends a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.arg("--data-binary", "@-")
    }

    /// Sends it and reads the answer.
    ///
    /// # Errors
    /// If curl received no whole answer, with its words.
    pub fn send(self) -> Result<Response> {
        let out = self.curl(&["--include"])?;
        Response::parse(&out).with_context(|| String::from_utf8_lossy(&out).into_owned())
    }

    /// Sends it `count` times over one connection; the status of each.
    ///
    /// # Errors
    /// If curl did not receive as many answers, with its words.
    pub fn send_many(mut self, count: u32) -> Result<Vec<u16>> {
        let mark = if self.url.contains('?') { '&' } else { '?' };
        self.url = format!("{}{mark}n=[1-{count}]", self.url);
        let out = self.curl(&["--output", "/dev/null", "--write-out", "%{http_code}\\n"])?;
        let statuses: Result<Vec<u16>, _> =
            String::from_utf8_lossy(&out).lines().map(str::parse).collect();
        Ok(statuses?)
    }

    /// Sends it and reads what curl was told to write out.
    ///
    /// # Errors
    /// If curl failed, with its words.
    pub fn told(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.curl(&[])?).into_owned())
    }

    fn curl(mut self, more: &[&str]) -> Result<Vec<u8>> {
        let mut curl = self
            .ns
            .command("curl")
            .args(["--silent", "--show-error", "--path-as-is"])
            .args(&self.args)
            .args(more)
            .arg(&self.url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start curl")?;
        let mut input = curl.stdin.take().context("piped")?;
        let body = self.body.take().unwrap_or_default();
        // Curl may rightly stop reading when the answer comes first.
        let feed = std::thread::spawn(move || input.write_all(&body));
        let done = curl.wait_with_output()?;
        let _ = feed.join();
        ensure!(done.status.success(), "curl: {}", String::from_utf8_lossy(&done.stderr));
        Ok(done.stdout)
    }
}

impl Response {
    /// The value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Reads an answer as it came over the wire, past any `100 Continue`.
    fn parse(raw: &[u8]) -> Option<Self> {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..end]).into_owned();
        let rest = &raw[end + 4..];
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (version, status) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        if (100..200).contains(&status) {
            return Self::parse(rest);
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some(Self { status, version, headers, body: rest.to_vec() })
    }
}

/// Sends bytes over TLS and returns what comes back until the server closes or 5 seconds pass.
///
/// # Errors
/// If openssl cannot start.
pub fn raw_https(lab: &lab::Lab, source: &str, bytes: &[u8]) -> Result<String> {
    let mut openssl = lab
        .home(source)
        .command("openssl")
        .args(["s_client", "-quiet", "-servername", HOST, "-alpn", "http/1.1"])
        .args(["-bind", source, "-connect", &format!("{}:443", lab::EDGE)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start openssl")?;
    let mut input = openssl.stdin.take().context("piped")?;
    input.write_all(bytes)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while openssl.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = openssl.kill();
    drop(input);
    let done = openssl.wait_with_output()?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// What `openssl s_client` says of a handshake with these options.
///
/// # Errors
/// If openssl cannot start.
pub fn handshake(lab: &lab::Lab, options: &[&str]) -> Result<String> {
    let done = lab
        .client
        .command("openssl")
        .args(["s_client", "-servername", HOST, "-connect", &format!("{}:443", lab::EDGE)])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .context("start openssl")?;
    let both = [done.stdout, done.stderr].concat();
    Ok(String::from_utf8_lossy(&both).into_owned())
}

/// Opens a TCP connection from an address of the lab to the edge, within a time.
///
/// # Errors
/// `TimedOut` if nobody answers: what a dropped packet looks like; else what the peer says.
pub fn connect(lab: &lab::Lab, source: &str, port: u16, within: Duration) -> IoResult<TcpStream> {
    let edge = if lab::is_v6(source) { lab::EDGE6 } else { lab::EDGE };
    let to = SocketAddr::new(edge.parse().expect("a constant"), port);
    let from = SocketAddr::new(source.parse().expect("an address of the lab"), 0);
    let stream = lab.home(source).enter(|| dial(from, to, within))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects in the namespace that the caller is in.
///
/// # Errors
/// If nobody answers within so long.
pub fn dial(from: SocketAddr, to: SocketAddr, within: Duration) -> IoResult<TcpStream> {
    let family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd: OwnedFd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let wait = TimeVal::milliseconds(i64::try_from(within.as_millis()).unwrap_or(i64::MAX));
    // The send timeout bounds connect(2) as well.
    socket::setsockopt(&fd, SendTimeout, &wait)?;
    socket::setsockopt(&fd, ReceiveTimeout, &wait)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(TcpStream::from(fd)),
        Err(nix::Error::EINPROGRESS) => Err(std::io::ErrorKind::TimedOut.into()),
        Err(e) => Err(e.into()),
    }
}

/// Whether a packet from this address gets an answer: a connection or a reset.
#[must_use]
pub fn reaches(lab: &lab::Lab, source: &str, port: u16) -> bool {
    match connect(lab, source, port, Duration::from_millis(400)) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

/// Polls until `check` holds; how long that took. The time is a quiet host's: a [`BUSY`] one has as many times as long.
///
/// # Errors
/// If it does not hold in time.
pub fn until(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if check()? {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < within * BUSY, "not within {BUSY} times {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many times as long as on a quiet host something may take. Tests run beside others' work, which leaves a process a
/// tenth of a processor: what must come is waited for, and how soon it comes is a matter of the benches.
pub const BUSY: u32 = 10;

/// Reads a plain HTTP answer whose end is the end of the connection.
///
/// # Errors
/// If the connection breaks.
pub fn read_all(mut stream: TcpStream) -> IoResult<String> {
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Whether a program is installed.
#[must_use]
pub fn installed(program: &str) -> bool {
    Command::new("which").arg(program).output().is_ok_and(|o| o.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_past_a_continue() {
        let raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nbody\r\n\r\n";
        let response = Response::parse(raw).unwrap();
        assert_eq!((response.status, response.header("x-a")), (200, Some("1")));
        assert_eq!(response.text(), "body\r\n\r\n");
    }
}
