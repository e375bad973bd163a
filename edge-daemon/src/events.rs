//! Security events: who did what and why it ended so, one JSON object a line, never a secret.

mod sink;

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use edge_common::{
    Reason,
    limit::{self, Rate, Set, Verdict},
};
use edge_policy::ja4::Ja4;
use serde::Serialize;

use self::sink::{Sink, Torn};
use crate::{audit::Audit, clock, config::settings};

/// What happened. The variants are the closed list of events; `event` names them in the line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The daemon takes requests.
    Started {
        /// Its version.
        version: &'static str,
    },
    /// The daemon has stopped taking requests.
    Stopped,
    /// A request was refused through the client's fault.
    RequestRefused {
        /// The client's address.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// The id in the client's answer.
        request_id: String,
        /// The request's method.
        method: String,
        /// The request's path, without its query, in which secrets travel.
        path: String,
        /// Who it was from, if that was proved: a key by its public id, a token by its subject.
        #[serde(skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        /// The limit that it hit.
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<String>,
        /// The fingerprint of the client's TLS library.
        #[serde(skip_serializing_if = "Option::is_none")]
        ja4: Option<Ja4>,
        /// What it did not meet, if it may not pass.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
        /// What exactly was wrong, if the reason leaves it open: a token's fault.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'static str>,
    },
    /// A connection ended without a request through the client's fault.
    ConnectionRefused {
        /// The client's address.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// What of a TLS handshake failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<&'static str>,
        /// The fingerprint of the client's TLS library.
        #[serde(skip_serializing_if = "Option::is_none")]
        ja4: Option<Ja4>,
    },
    /// The kernel dropped a packet. A sample: the kernel limits how many it tells of.
    PacketDropped {
        /// The packet's source.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// Destination port, 0 if none was read.
        port: u16,
        /// IP protocol, 0 if none was read.
        protocol: u8,
    },
    /// The kernel would have dropped a packet but for monitor mode, and passed it. Told of like a
    /// drop.
    PacketWouldDrop {
        /// The packet's source.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// Destination port, 0 if none was read.
        port: u16,
        /// IP protocol, 0 if none was read.
        protocol: u8,
    },
    /// A client was banned in the kernel.
    Ban {
        /// The client: an address, or an IPv6 prefix's first address.
        source: IpAddr,
        /// The last misdeed.
        reason: &'static str,
        /// The request that was the last misdeed.
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// When it ends.
        until: String,
        /// How many bans this client has had, this one included.
        strikes: u32,
        /// From the misdeed to the kernel's map, in microseconds.
        latency_us: u64,
    },
    /// A ban ended by time, or was lifted by an operator.
    Unban {
        /// The client.
        source: IpAddr,
        /// `expired`, `operator`, or `no_room` if a later ban took its place in a full table.
        reason: &'static str,
    },
    /// A client earned a ban that could not be written.
    BanFailed {
        /// The client.
        source: IpAddr,
        /// What failed.
        why: String,
    },
    /// An operator changed a list.
    ListChanged {
        /// `allow` or `deny`.
        list: &'static str,
        /// `add` or `remove`.
        change: &'static str,
        /// The network.
        net: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A key was made.
    KeyCreated {
        /// Its public id.
        key_id: String,
        /// Its name.
        name: String,
        /// Who answers for it.
        owner: String,
        /// When it ends.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<String>,
        /// The operator's user id.
        uid: u32,
    },
    /// A key was rotated.
    KeyRotated {
        /// Its public id.
        key_id: String,
        /// The key that takes its place.
        by: String,
        /// When it ends.
        until: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A key was revoked.
    KeyRevoked {
        /// Its public id.
        key_id: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A certificate or the authorities of clients changed on disk.
    CertificateReload {
        /// The file of the certificate, or the authorities.
        what: String,
        /// `ok`, or `refused`: what was served before still is.
        result: &'static str,
    },
    /// A key that was revoked or had ended was forgotten.
    KeyRemoved {
        /// Its public id.
        key_id: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A key will end soon. Told once after each start.
    KeyExpiring {
        /// Its public id.
        key_id: String,
        /// Its name.
        name: String,
        /// Who answers for it.
        owner: String,
        /// When it ends.
        until: String,
    },
    /// A key has ended by itself.
    KeyExpired {
        /// Its public id.
        key_id: String,
    },
    /// A key was sent where others could read it. Told once.
    KeyExposed {
        /// Its public id.
        key_id: String,
        /// `url`, or `clear` for plain HTTP.
        how: &'static str,
        /// Who sent it.
        source: IpAddr,
    },
    /// The hash of a key in the store is another key's: another hand wrote there.
    KeyForged {
        /// Its public id.
        key_id: String,
    },
    /// A key that was kept under a former pepper is kept under the one in use.
    KeyRenewed {
        /// Its public id.
        key_id: String,
    },
    /// An operator took keys in from elsewhere.
    KeysImported {
        /// How many.
        keys: u64,
        /// The operator's user id.
        uid: u32,
    },
    /// An operator had the keys written out.
    KeysExported {
        /// The operator's user id.
        uid: u32,
    },
    /// An operator denied tokens, or took that back.
    TokenDenied {
        /// `revoke` or `remove`.
        change: &'static str,
        /// `iss` of the tokens.
        issuer: String,
        /// By which of their names: `jti`, `sub`, `sid` or `kid`.
        by: &'static str,
        /// That name.
        value: String,
        /// When it ends, in unix milliseconds.
        until_ms: u64,
        /// The operator's user id.
        uid: u32,
    },
    /// A feed has another list.
    FeedUpdated {
        /// Its name.
        feed: String,
        /// Networks in force.
        networks: u64,
        /// Lines that were left out.
        left_out: u64,
    },
    /// A feed brought nothing; what was in force of it stays. Told once a series.
    FeedFailed {
        /// Its name.
        feed: String,
        /// `failed`: it could not be had; `refused`: what came cannot be the list.
        result: &'static str,
        /// Why.
        why: String,
        /// Networks that stay in force.
        networks: u64,
    },
    /// The configuration was read again.
    Reload {
        /// `ok` or `refused`.
        result: &'static str,
    },
}

impl Event {
    /// Whether clients cause it one by one, so that an attack makes it by the million.
    const fn is_plentiful(&self) -> bool {
        matches!(
            self,
            Self::RequestRefused { .. }
                | Self::ConnectionRefused { .. }
                | Self::PacketDropped { .. }
                | Self::PacketWouldDrop { .. }
        )
    }

    /// Whether it belongs into the audit log by itself. A refused request does if its refusal is
    /// about who it is from, which `request/path.rs` knows.
    const fn is_audited(&self) -> bool {
        !self.is_plentiful()
            && !matches!(self, Self::Ban { .. } | Self::Unban { .. } | Self::BanFailed { .. })
    }
}

/// The way to the event log. Never blocks: a full queue drops the event and counts it.
#[derive(Clone)]
pub struct Events {
    queue: SyncSender<(u64, Event)>,
    lost: Arc<AtomicU64>,
    /// The bucket of all plentiful events together.
    plentiful: Arc<Set>,
    audit: Audit,
}

impl Events {
    /// Opens the destination. The log writes once it is [`EventLog::run`].
    pub fn open(to: &settings::Events, audit: Audit) -> io::Result<(Self, EventLog)> {
        let sink = Sink::open(to)?;
        let (queue, events) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let log = EventLog { events, sink, lost: Arc::clone(&lost) };
        Ok((Self { queue, lost, plentiful: Arc::default(), audit }, log))
    }

    /// Tells of an event. Refusals and drops beyond `PLENTIFUL` are lost: an attack neither
    /// fills the disk at its own rate nor takes the place of a ban or an operator's act.
    ///
    /// What operators did and what became of keys is told to the audit log as well.
    pub fn tell(&self, event: Event) {
        if event.is_audited() {
            self.audit.tell(event.clone());
        }
        if event.is_plentiful() && !self.admits(clock::boot_ns())
            || self.queue.try_send((clock::unix_ms(), event)).is_err()
        {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Tells of a refused connection.
    pub fn refused(&self, source: IpAddr, reason: Reason) {
        let reason = reason.name();
        self.tell(Event::ConnectionRefused { source, reason, kind: None, ja4: None });
    }

    /// Events that their rate, a full queue or a failing destination lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn admits(&self, now_ns: u64) -> bool {
        matches!(limit::charge(&self.plentiful, 1, PLENTIFUL, now_ns), Verdict::Admit { .. })
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

/// The writing end: the destination and the events that wait for it.
pub struct EventLog {
    events: Receiver<(u64, Event)>,
    sink: Sink,
    lost: Arc<AtomicU64>,
}

impl EventLog {
    /// Writes until every [`Events`] is gone: what waits, at once, so that a burst costs one
    /// system call and a lone event is not delayed.
    pub fn run(mut self) {
        let (mut lines, mut is_failing) = (Vec::new(), false);
        while let Ok(first) = self.events.recv() {
            lines.clear();
            let waiting = std::iter::once(first).chain(self.events.try_iter().take(QUEUE));
            waiting.for_each(|event| self.format(&mut lines, &event));
            self.sink.follow();
            match self.sink.write(&lines) {
                Ok(()) => is_failing = false,
                Err(Torn { lost, error }) => {
                    self.lost.fetch_add(lost, Relaxed);
                    // Once a series: a full disk would fill the daemon's own log next.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(%error, "cannot write security events");
                    }
                }
            }
        }
    }

    fn format(&self, lines: &mut Vec<u8>, event: &(u64, Event)) {
        let before = lines.len();
        if let Err(error) = write_line(lines, event) {
            lines.truncate(before);
            self.lost.fetch_add(1, Relaxed);
            tracing::error!(%error, "a security event cannot be encoded");
        }
    }
}

fn write_line(lines: &mut Vec<u8>, (at_ms, event): &(u64, Event)) -> io::Result<()> {
    serde_json::to_writer(&mut *lines, &Line { time: clock::rfc3339(*at_ms), event })?;
    lines.push(b'\n');
    Ok(())
}

/// Events that wait to be written, at most: a full burst of the plentiful leaves room for others.
const QUEUE: usize = 8192;

/// 1000 a second of the plentiful events together, 5000 at once.
const PLENTIFUL: Rate = Rate::new(1000, 1_000_000_000, 5000).expect("it is in range");

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(dir: &tempfile::TempDir) -> Audit {
        let settings = settings::Audit {
            dir: dir.path().join("audit"),
            key: crate::secret::Origin::File(dir.path().join("audit.key")),
            granted: settings::Granted::Each,
            file_bytes_max: 1 << 20,
            files_max: 2,
        };
        Audit::open(&settings, Arc::default()).unwrap().0
    }

    fn refused() -> Event {
        let source = "192.0.2.7".parse().unwrap();
        Event::ConnectionRefused { source, reason: "x", kind: None, ja4: None }
    }

    #[test]
    fn a_flood_is_cut_and_leaves_room_for_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let (events, log) =
            Events::open(&settings::Events::File(path.clone()), audit(&dir)).unwrap();
        for _ in 0..50_000 {
            events.tell(refused());
        }
        events.tell(Event::Stopped);
        let lost = events.lost();
        drop(events);
        log.run();
        let written = std::fs::read_to_string(path).unwrap();
        assert!(written.ends_with("\"event\":\"stopped\"}\n"));
        // The bucket refills while the flood is told, by one a millisecond.
        let lines = written.lines().count() as u64;
        assert!((5001..8192).contains(&lines), "{lines}");
        assert_eq!(lost, 50_001 - lines);
    }

    #[test]
    fn one_object_a_line() {
        let event = Event::Unban { source: "192.0.2.7".parse().unwrap(), reason: "expired" };
        let mut line = Vec::new();
        write_line(&mut line, &(0, event)).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"event\":\"unban\",\
             \"source\":\"192.0.2.7\",\"reason\":\"expired\"}\n"
        );
    }
}
