//! Security events: who did what and why it ended so, one JSON object a line, never a secret.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use edge_common::Reason;
use serde::Serialize;

use crate::{clock, config::settings};

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
        /// The key, by its public id, if one was known.
        #[serde(skip_serializing_if = "Option::is_none")]
        key_id: Option<String>,
    },
    /// A connection ended without a request through the client's fault.
    ConnectionRefused {
        /// The client's address.
        source: IpAddr,
        /// Why.
        reason: &'static str,
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
        /// `expired` or `operator`.
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
    /// The configuration was read again.
    Reload {
        /// `ok` or `refused`.
        result: &'static str,
    },
}

/// The way to the event log. Never blocks: a full queue drops the event and counts it.
#[derive(Clone)]
pub struct Events {
    queue: SyncSender<(u64, Event)>,
    lost: Arc<AtomicU64>,
}

impl Events {
    /// Opens the destination. The log writes once it is [`EventLog::run`].
    pub fn open(to: &settings::Events) -> io::Result<(Self, EventLog)> {
        let sink: Box<dyn Write + Send> = match to {
            settings::Events::Stdout => Box::new(io::stdout()),
            settings::Events::File(path) => {
                Box::new(OpenOptions::new().create(true).append(true).open(path)?)
            }
        };
        let (queue, events) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let log = EventLog { events, sink: BufWriter::new(sink), lost: Arc::clone(&lost) };
        Ok((Self { queue, lost }, log))
    }

    /// Tells of an event.
    pub fn tell(&self, event: Event) {
        if self.queue.try_send((clock::unix_ms(), event)).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Tells of a refused connection.
    pub fn refused(&self, source: IpAddr, reason: Reason) {
        self.tell(Event::ConnectionRefused { source, reason: reason.name() });
    }

    /// Events that a full queue or a failing destination lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
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
    sink: BufWriter<Box<dyn Write + Send>>,
    lost: Arc<AtomicU64>,
}

impl EventLog {
    /// Writes until every [`Events`] is gone: what waits, then one flush, so that a burst costs
    /// one system call and a lone event is not delayed.
    pub fn run(mut self) {
        while let Ok(first) = self.events.recv() {
            let waiting: Vec<_> =
                std::iter::once(first).chain(self.events.try_iter().take(QUEUE)).collect();
            let written = waiting.iter().try_for_each(|event| write_line(&mut self.sink, event));
            if let Err(error) = written.and_then(|()| self.sink.flush()) {
                self.lost.fetch_add(waiting.len() as u64, Relaxed);
                tracing::error!(%error, "cannot write security events");
            }
        }
    }
}

fn write_line(sink: &mut impl Write, (at_ms, event): &(u64, Event)) -> io::Result<()> {
    serde_json::to_writer(&mut *sink, &Line { time: clock::rfc3339(*at_ms), event })?;
    sink.write_all(b"\n")
}

/// Events that wait to be written, at most.
const QUEUE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

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
