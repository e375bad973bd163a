//! Issuers of tokens: one of our own whose every answer a test chooses, and others' from npm.

use std::{
    io::{BufRead, BufReader, Read as _, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{daemon::root, lab::Lab, netns::Netns};

/// `iss` of the tokens of [`Signer`].
pub const ISSUER: &str = "https://issuer.test";
/// `aud` of the tokens of [`Signer`].
pub const AUDIENCE: &str = "https://api.test";

/// A key that signs tokens with ES256.
pub struct Signer {
    /// Its `kid`.
    pub kid: String,
    key: EcdsaKeyPair,
}

impl Signer {
    /// A new key of this name.
    ///
    /// # Errors
    /// Without randomness.
    pub fn new(kid: &str) -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        Ok(Self { kid: kid.to_owned(), key })
    }

    /// The public key.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
            "x": encode(x), "y": encode(y),
        })
    }

    /// Claims that are good now.
    #[must_use]
    pub fn claims(&self) -> Value {
        let now = now_s();
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "client_id": "app", "sid": "s-1",
            "jti": format!("t-{now}"), "iat": now, "exp": now + 300, "scope": "read",
        })
    }

    /// A token of these claims.
    #[must_use]
    pub fn token(&self, claims: &Value) -> String {
        self.seal(&json!({"alg": "ES256", "typ": "at+jwt", "kid": self.kid}), claims)
    }

    /// A token with this header.
    #[must_use]
    pub fn seal(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| encode(value.to_string().as_bytes());
        let input = format!("{}.{}", part(header), part(claims));
        let random = SystemRandom::new();
        let signature = self.key.sign(&random, input.as_bytes()).expect("a key signs");
        format!("{input}.{}", encode(signature.as_ref()))
    }

    /// A DPoP proof for a request with this token.
    #[must_use]
    pub fn proof(&self, method: &str, url: &str, token: &str, jti: &str) -> Value {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let ath = encode(hash.as_ref());
        json!({"htm": method, "htu": url, "ath": ath, "jti": jti, "iat": now_s()})
    }

    /// Seals a proof of this key.
    #[must_use]
    pub fn prove(&self, claims: &Value) -> String {
        self.seal(&json!({"alg": "ES256", "typ": "dpop+jwt", "jwk": self.public()}), claims)
    }

    /// The thumbprint of the key (RFC 7638).
    #[must_use]
    pub fn thumbprint(&self) -> String {
        let jwk = self.public();
        let member = |name: &str| jwk[name].as_str().unwrap_or_default().to_owned();
        let text =
            format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, member("x"), member("y"));
        encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref())
    }

    fn public(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)})
    }
}

/// base64url without padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The time, in unix seconds.
#[must_use]
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How [`KeyServer`] answers.
#[derive(Clone, Debug)]
pub enum Answers {
    /// With these bytes, at once.
    Bytes(String),
    /// With these bytes and further header lines.
    Cached(String, &'static str),
    /// After a while.
    Late(Duration, String),
    /// With this status line's rest: `500 Oops`.
    Status(&'static str),
    /// Without end.
    Endless,
    /// By ending the connection.
    Nothing,
}

/// A server of keys on port 9000 of the edge's own loopback; it serves until the process ends.
pub struct KeyServer {
    answers: Arc<Mutex<Answers>>,
    asked: Arc<AtomicU64>,
}

/// Where [`KeyServer`] listens.
pub const KEYS_URL: &str = "http://127.0.0.1:9000/jwks";

impl KeyServer {
    /// Starts it.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start(lab: &Lab, answers: Answers) -> Result<Self> {
        let listener = lab.edge.enter(|| TcpListener::bind("127.0.0.1:9000"))?;
        let server = Self { answers: Arc::new(Mutex::new(answers)), asked: Arc::default() };
        let (answers, asked) = (Arc::clone(&server.answers), Arc::clone(&server.asked));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                asked.fetch_add(1, Relaxed);
                let now = answers.lock().expect("nobody panics holding it").clone();
                std::thread::spawn(move || answer(client, &now));
            }
        });
        Ok(server)
    }

    /// Answers so from now on.
    pub fn set(&self, answers: Answers) {
        *self.answers.lock().expect("nobody panics holding it") = answers;
    }

    /// How often it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }
}

/// A set of these keys.
#[must_use]
pub fn jwks(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}).to_string()
}

fn answer(mut client: TcpStream, answers: &Answers) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let mut send = |status: &str, more: &str, body: &str| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n");
        client.write_all(head.as_bytes()).and_then(|()| client.write_all(body.as_bytes())).ok()
    };
    match answers {
        Answers::Bytes(body) => send("200 OK", "", body),
        Answers::Cached(body, more) => send("200 OK", more, body),
        Answers::Late(delay, body) => {
            std::thread::sleep(*delay);
            send("200 OK", "", body)
        }
        Answers::Status(status) => send(status, "", ""),
        Answers::Endless => {
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
            while client.write_all(&[b' '; 4096]).is_ok() {}
            None
        }
        Answers::Nothing => None,
    }
}

/// A program of `tests/issuers`, running in a namespace under Node.
pub struct Node {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Node {
    /// Whether Node and the packages are there; says what to do if not. Under `EDGED_NEED_PEERS`,
    /// which the project's CI sets, their absence is an error.
    ///
    /// # Errors
    /// If they must be there and are not.
    pub fn is_there() -> Result<bool> {
        let there = crate::client::installed("node") && folder().join("node_modules").exists();
        if !there {
            let what = "Node and the packages of tests/issuers: cargo xtask setup";
            ensure!(std::env::var_os("EDGED_NEED_PEERS").is_none(), "missing: {what}");
            say(&format!("NOT RUN, for want of {what}"));
        }
        Ok(there)
    }

    /// Starts a program and waits for its first line.
    ///
    /// # Errors
    /// If it ends before.
    pub fn start(ns: &Netns, program: &str, args: &[&str]) -> Result<(Self, String)> {
        Self::spawn(ns.command("node"), program, args)
    }

    /// As [`Self::start`], where no network is needed.
    ///
    /// # Errors
    /// If it ends before.
    pub fn plain(program: &str, args: &[&str]) -> Result<(Self, String)> {
        Self::spawn(Command::new("node"), program, args)
    }

    fn spawn(mut node: Command, program: &str, args: &[&str]) -> Result<(Self, String)> {
        let mut child = node
            .arg(folder().join(program))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start node")?;
        let input = child.stdin.take().context("piped")?;
        let output = BufReader::new(child.stdout.take().context("piped")?);
        let mut node = Self { child, input, output };
        let first = node.line()?.with_context(|| format!("{program} ended"))?;
        Ok((node, first))
    }

    /// Its next line, or nothing if it has ended.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line)?;
        Ok((length > 0).then(|| line.trim_end_matches('\n').to_owned()))
    }

    /// Sends it a signal: stopped, it answers nobody and its sockets stay.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Gives it a line; what it answers.
    ///
    /// # Errors
    /// If it has ended.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}")?;
        self.line()?.context("it ended")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says what a test ran against, also if it succeeds.
pub fn ran(what: &str) {
    say(&format!("ran against {what}"));
}

/// The macros' output is kept from whoever reads a successful run.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What a program of `tests/issuers` prints as JSON.
///
/// # Errors
/// If it fails, with its words.
pub fn node_json(ns: &Netns, program: &str, args: &[&str]) -> Result<Value> {
    json_of(ns.command("node"), program, args)
}

/// As [`node_json`], of a program that trusts this authority.
///
/// # Errors
/// If it fails, with its words.
pub fn node_json_trusting(ns: &Netns, ca: &Path, program: &str, args: &[&str]) -> Result<Value> {
    let mut node = ns.command("node");
    node.env("NODE_EXTRA_CA_CERTS", ca);
    json_of(node, program, args)
}

fn json_of(mut node: Command, program: &str, args: &[&str]) -> Result<Value> {
    let done = node.arg(folder().join(program)).args(args).output()?;
    let words = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{program}: {words}");
    let mut text = String::new();
    done.stdout.as_slice().read_to_string(&mut text)?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

fn folder() -> PathBuf {
    root().join("tests/issuers")
}
