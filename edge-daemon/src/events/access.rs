//! The access log: a line for each request, written by workers into memory of their own and handed over
//! many at a time.

use std::{
    borrow::Cow,
    cell::RefCell,
    io::Write as _,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use edge_policy::calendar;
use serde::{Serialize, Serializer};

use super::sink::{Sink, Torn};
use crate::config::settings;

/// The way to the access log.
#[derive(Clone)]
pub struct AccessLog {
    queue: SyncSender<Vec<u8>>,
    format: settings::AccessFormat,
    lost: Arc<AtomicU64>,
}

/// The writing end.
pub(super) struct Writer {
    lines: Receiver<Vec<u8>>,
    sink: Sink,
    lost: Arc<AtomicU64>,
}

/// One worker's lines that are not handed over yet.
pub struct Buffer {
    log: Option<AccessLog>,
    lines: RefCell<Vec<u8>>,
}

/// What there is to tell of a request. No query: secrets travel there.
#[derive(Serialize)]
#[expect(missing_docs, reason = "docs/http.md says it of each")]
pub struct Line<'a> {
    #[serde(rename = "time", serialize_with = "rfc3339")]
    pub time_ms: u64,
    pub request_id: &'a str,
    pub client: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<IpAddr>,
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub protocol: &'static str,
    pub status: u16,
    pub reason: &'static str,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub total_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decide_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<&'a str>,
}

/// What the handshake told.
#[derive(Serialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Tls<'a> {
    pub version: &'static str,
    pub suite: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<&'static str>,
    pub resumed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ja4: Option<&'a str>,
}

impl AccessLog {
    /// Opens the destination, if there is one; its lines are written once the writer runs.
    pub(super) fn open(
        log: &settings::Log,
        lost: &Arc<AtomicU64>,
    ) -> anyhow::Result<Option<(Self, Writer)>> {
        let Some(to) = &log.access else { return Ok(None) };
        let (queue, lines) = sync_channel(QUEUE);
        let writer = Writer { lines, sink: Sink::open("access", to)?, lost: Arc::clone(lost) };
        Ok(Some((Self { queue, format: log.access_format, lost: Arc::clone(lost) }, writer)))
    }
}

impl Buffer {
    /// One worker's, of this log.
    #[must_use]
    pub fn new(log: Option<AccessLog>) -> Self {
        Self { log, lines: RefCell::default() }
    }

    /// Whether there is a log.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.log.is_some()
    }

    /// Adds a line. Never waits.
    pub fn add(&self, line: &Line<'_>) {
        let Some(log) = &self.log else { return };
        let is_full = {
            let mut lines = self.lines.borrow_mut();
            match log.format {
                settings::AccessFormat::Json => {
                    // Writing to memory does not fail.
                    let _ = serde_json::to_writer(&mut *lines, line);
                    lines.push(b'\n');
                }
                settings::AccessFormat::Combined => combined(&mut lines, line),
            }
            lines.len() >= HANDED_OVER_AT
        };
        if is_full {
            self.flush();
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        let Some(log) = &self.log else { return };
        let mut lines = self.lines.borrow_mut();
        if lines.is_empty() {
            return;
        }
        // As much room as the last one took, so that it need not grow again.
        let next = Vec::with_capacity(lines.len() + ROOM);
        if let Err(full) = log.queue.try_send(std::mem::replace(&mut *lines, next)) {
            let (std::sync::mpsc::TrySendError::Full(lost)
            | std::sync::mpsc::TrySendError::Disconnected(lost)) = full;
            let lost = memchr::memchr_iter(b'\n', &lost).count();
            log.lost.fetch_add(lost as u64, Relaxed);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Writer {
    /// Writes until nobody can add lines any more.
    pub(super) fn run(mut self) {
        let mut is_failing = false;
        while let Ok(lines) = self.lines.recv() {
            self.sink.follow();
            match self.sink.write(&lines) {
                Ok(()) => is_failing = false,
                Err(Torn { lost, error }) => {
                    self.lost.fetch_add(lost, Relaxed);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(%error, "cannot write the access log");
                    }
                }
            }
        }
    }
}

/// The line that Apache and nginx call combined, with the request id and the time taken behind it.
fn combined(out: &mut Vec<u8>, line: &Line<'_>) {
    let Line { client, method, path, protocol, status, bytes_out, request_id, .. } = line;
    let _ = write!(out, "{client} - ");
    // What reads such lines takes a space for the end of the name.
    let principal = line.principal.as_deref().unwrap_or("-");
    for (at, word) in principal.split(' ').enumerate() {
        out.extend_from_slice(if at == 0 { b"" } else { b"\\x20" });
        escape(out, word);
    }
    let _ = write!(out, " [{}] \"", calendar::common(line.time_ms));
    if method.is_empty() {
        out.push(b'-');
    } else {
        for (text, end) in [(*method, " "), (*path, " "), (*protocol, "")] {
            escape(out, text);
            out.extend_from_slice(end.as_bytes());
        }
    }
    let _ = write!(out, "\" {status} {bytes_out} \"");
    escape(out, line.referer.unwrap_or("-"));
    out.extend_from_slice(b"\" \"");
    escape(out, line.user_agent.unwrap_or("-"));
    let _ = writeln!(out, "\" {request_id} {}", line.total_us);
}

/// No client ends a quote or a line.
fn escape(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0x7f.. | ..=0x1f => _ = write!(out, "\\x{byte:02X}"),
            byte => out.push(byte),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn rfc3339<S: Serializer>(time_ms: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&calendar::rfc3339(*time_ms))
}

/// Buffers that wait for the writer.
const QUEUE: usize = 256;
/// Bytes at which a worker hands its lines over; a quiet one does so every second.
const HANDED_OVER_AT: usize = 64 * 1024;
/// Bytes that most lines are shorter than.
const ROOM: usize = 2 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_a_line_of_his_own() {
        let mut out = Vec::new();
        let line = Line {
            time_ms: 1_767_323_045_678,
            request_id: "id",
            client: IpAddr::from([192, 0, 2, 1]),
            proxy: None,
            method: "GET",
            host: "edge.test",
            path: "/a\"b",
            protocol: "HTTP/1.1",
            status: 200,
            reason: "serve",
            bytes_in: 0,
            bytes_out: 5,
            total_us: 7,
            decide_us: None,
            upstream_us: None,
            upstream: None,
            server: None,
            principal: Some("https://a.test:a \"b".into()),
            by: None,
            issuer: None,
            tls: None,
            trace_id: None,
            referer: None,
            user_agent: Some("x\n\" 200 y\\"),
        };
        combined(&mut out, &line);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "192.0.2.1 - https://a.test:a\\x20\\x22b [02/Jan/2026:03:04:05 +0000] \"GET /a\\x22b HTTP/1.1\" 200 5 \"-\" \
             \"x\\x0A\\x22 200 y\\x5C\" id 7\n"
        );
    }
}
