//! The event log: a bounded queue, and the thread that writes what is in it.

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
use serde::Serialize;

use super::{
    Event,
    access::{self, AccessLog},
    sink::{Sink, Torn},
};
use crate::{
    audit::{Audit, Kept},
    clock,
    config::settings,
};

/// The way to the event log. Never blocks: a full queue drops the event and counts it.
#[derive(Clone)]
pub struct Events {
    queue: SyncSender<(u64, Event)>,
    lost: Arc<AtomicU64>,
    /// The bucket of all plentiful events together.
    plentiful: Arc<Set>,
    audit: Audit,
    /// The way to the access log, if there is one.
    pub access: Option<AccessLog>,
}

impl Events {
    /// Opens the destination. The log writes once it is [`EventLog::run`].
    ///
    /// # Errors
    /// If one cannot be opened: which, and why.
    pub fn open(to: &settings::Log, audit: Audit) -> anyhow::Result<(Self, EventLog)> {
        let sink = Sink::open("events", &to.events)?;
        let (queue, events) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let (access, writer) = AccessLog::open(to, &lost)?.unzip();
        let log = EventLog { events, sink, lost: Arc::clone(&lost), writer };
        Ok((Self { queue, lost, plentiful: Arc::default(), audit, access }, log))
    }

    /// Tells of an event. Refusals and drops beyond `PLENTIFUL` are lost: an attack neither
    /// fills the disk at its own rate nor takes the place of a ban or an operator's act.
    ///
    /// What operators did and what became of keys is told to the audit log as well.
    pub fn tell(&self, event: Event) {
        if event.is_audited() {
            self.audit.tell(event.clone());
        }
        self.log(event);
    }

    /// Tells of what the audit log must tell of; whether it does is known later.
    pub fn tell_kept(&self, event: Event) -> Kept {
        let kept = self.audit.tell_kept(event.clone());
        self.log(event);
        kept
    }

    fn log(&self, event: Event) {
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
    writer: Option<access::Writer>,
}

impl EventLog {
    /// Writes until every [`Events`] is gone: what waits, at once, so that a burst costs one
    /// system call and a lone event is not delayed.
    pub fn run(mut self) {
        // A thread of its own: neither log waits for the other's disk.
        let access = self.writer.take().and_then(|writer| {
            let named = std::thread::Builder::new().name("access".to_owned());
            let spawned = named.spawn(move || writer.run());
            spawned.inspect_err(|error| tracing::error!(%error, "no access log")).ok()
        });
        self.write_events();
        if let Some(access) = access {
            let _ = access.join();
        }
    }

    fn write_events(&mut self) {
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

    fn to(events: settings::Events) -> settings::Log {
        settings::Log {
            level: settings::Level::Info,
            events,
            access: None,
            access_format: settings::AccessFormat::Json,
        }
    }

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
            Events::open(&to(settings::Events::File(path.clone())), audit(&dir)).unwrap();
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
