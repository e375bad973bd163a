//! An HTTP server inside the lab whose every answer a test chooses, and which remembers what it was
//! asked.

use std::{
    io::{BufRead, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;

use crate::netns::Netns;

/// What it was asked.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The method.
    pub method: String,
    /// The path and the query.
    pub target: String,
    /// The header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Asked {
    /// A header field, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status line's rest, header lines each with its end, and a body.
    Send(&'static str, String, String),
    /// The same after a while.
    Late(Duration, String),
    /// These bytes, as they are.
    Raw(Vec<u8>),
    /// A body without end.
    Endless,
}

impl Answer {
    /// 200 with this body.
    #[must_use]
    pub fn ok(body: impl Into<String>) -> Self {
        Self::Send("200 OK", String::new(), body.into())
    }

    /// This status without a body.
    #[must_use]
    pub const fn status(status: &'static str) -> Self {
        Self::Send(status, String::new(), String::new())
    }
}

type Handler = Box<dyn Fn(&Asked) -> Answer + Send>;

/// A running server; it serves until the process ends.
pub struct Web {
    handler: Arc<Mutex<Handler>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Web {
    /// Starts it on an address of a namespace.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn start(
        ns: &Netns,
        address: &str,
        handler: impl Fn(&Asked) -> Answer + Send + 'static,
    ) -> Result<Self> {
        let listener = ns.enter(|| TcpListener::bind(address))?;
        let handler: Handler = Box::new(handler);
        let web = Self { handler: Arc::new(Mutex::new(handler)), asked: Arc::default() };
        let (handler, asked) = (Arc::clone(&web.handler), Arc::clone(&web.asked));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (handler, asked) = (Arc::clone(&handler), Arc::clone(&asked));
                std::thread::spawn(move || serve(client, &handler, &asked));
            }
        });
        Ok(web)
    }

    /// Answers so from now on.
    pub fn set(&self, handler: impl Fn(&Asked) -> Answer + Send + 'static) {
        *lock(&self.handler) = Box::new(handler);
    }

    /// What it was asked so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut client: TcpStream, handler: &Mutex<Handler>, log: &Mutex<Vec<Asked>>) -> Option<()> {
    let asked = read(&mut BufReader::new(client.try_clone().ok()?))?;
    let answer = lock(handler)(&asked);
    lock(log).push(asked);
    let mut send = |status: &str, headers: &str, body: &str| {
        let length = body.len();
        let length = if status.starts_with("304") {
            String::new()
        } else {
            format!("Content-Length: {length}\r\n")
        };
        let head = format!("HTTP/1.1 {status}\r\n{length}{headers}\r\n");
        client.write_all(head.as_bytes()).and_then(|()| client.write_all(body.as_bytes())).ok()
    };
    match answer {
        Answer::Send(status, headers, body) => send(status, &headers, &body),
        Answer::Late(delay, body) => {
            std::thread::sleep(delay);
            send("200 OK", "", &body)
        }
        Answer::Raw(bytes) => client.write_all(&bytes).ok(),
        Answer::Endless => {
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
            while client.write_all(&[b'#'; 65_536]).is_ok() {}
            None
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut asked = Asked { method, target, ..Asked::default() };
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        asked.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = asked.header("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    asked.body = String::from_utf8_lossy(&body).into_owned();
    Some(asked)
}
