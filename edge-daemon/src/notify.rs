//! Tells the service manager how far the daemon is (the `sd_notify` datagram).

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::request::Edge;

/// What the main process of a unit is told of its manager, for a successor in the same unit, which may not be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Where it listens.
    socket: String,
    /// How long its watchdog waits, in microseconds; 0: there is none.
    watchdog_us: u64,
}

/// The unit that this process takes over.
static UNIT: OnceLock<Unit> = OnceLock::new();

impl Unit {
    /// This process's, if a process with this id is in it as well.
    #[must_use]
    pub fn shared_with(pid: i32) -> Option<Self> {
        if !shares_unit(pid) {
            return None;
        }
        let micros = watchdog_period(env, std::process::id(), UNIT.get())
            .map_or(0, |period| u64::try_from(period.as_micros()).unwrap_or(u64::MAX));
        Some(Self { socket: socket()?, watchdog_us: micros })
    }

    /// From now on, this process speaks for it.
    pub fn join(self) {
        let _ = UNIT.set(self);
    }
}

/// Whether a process is in the control group of this one.
#[must_use]
pub fn shares_unit(pid: i32) -> bool {
    let unit = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok();
    unit("self").is_some_and(|own| unit(&pid.to_string()) == Some(own))
}

/// Sends one state (`READY=1`, `STOPPING=1`, ...) if a service manager listens.
pub fn notify(state: &str) {
    let Some(path) = socket() else { return };
    if let Err(error) = send(path.as_bytes(), state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Says that the configuration is read again; `READY=1` ends it.
pub fn reloading() {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
}

/// Tells the watchdog that the daemon lives, as long as every worker does: at once, and then three times in the time that it
/// waits for that. Returns if there is none.
pub async fn watchdog(edge: Arc<Edge>) {
    let Some(period) = watchdog_period(env, std::process::id(), UNIT.get()) else { return };
    let mut before = Vec::new();
    loop {
        let beats = edge.metrics.beats();
        if let Some(worker) = stuck(&before, &beats) {
            tracing::error!(worker, "a worker does not turn: the watchdog is not told");
        } else {
            notify("WATCHDOG=1");
        }
        before = beats;
        tokio::time::sleep(period / 3).await;
    }
}

/// The first worker that has done nothing since.
fn stuck(before: &[u64], now: &[u64]) -> Option<usize> {
    before.iter().zip(now).position(|(before, now)| before == now)
}

/// How long the watchdog waits; `None`: there is none, or it is another process's.
fn watchdog_period(
    env: impl Fn(&str) -> Option<String>,
    own: u32,
    unit: Option<&Unit>,
) -> Option<Duration> {
    let is_ours = env("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(own));
    let told = env("WATCHDOG_USEC").filter(|_| is_ours).and_then(|micros| micros.parse().ok());
    let micros = told.or(unit.map(|unit| unit.watchdog_us)).filter(|micros| *micros > 0)?;
    // Workers beat ten times a second.
    Some(Duration::from_micros(micros).max(Duration::from_secs(1)))
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where the service manager listens.
fn socket() -> Option<String> {
    env("NOTIFY_SOCKET").or_else(|| UNIT.get().map(|unit| unit.socket.clone()))
}

/// A path that begins with `@` names a socket in the abstract namespace.
fn send(path: &[u8], state: &str) -> std::io::Result<()> {
    let address = match path {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::str::from_utf8(path).map_err(std::io::Error::other)?)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_as_the_environment_or_the_former_daemon_says() {
        let unit = |watchdog_us| Some(Unit { socket: "@unit".to_owned(), watchdog_us });
        for (pid, micros, unit, seconds) in [
            (None, None, None, None),
            (Some("8"), Some("30000000"), None, None),
            (Some("7"), Some("30000000"), None, Some(30)),
            (None, Some("30000000"), None, Some(30)),
            (None, Some("9"), None, Some(1)),
            (None, Some("0"), None, None),
            (None, Some("much"), None, None),
            (None, None, unit(20_000_000), Some(20)),
            (Some("8"), Some("30000000"), unit(20_000_000), Some(20)),
            (Some("7"), Some("30000000"), unit(20_000_000), Some(30)),
            (None, None, unit(0), None),
        ] {
            let env = |name: &str| match name {
                "WATCHDOG_PID" => pid.map(str::to_owned),
                _ => micros.map(str::to_owned),
            };
            let found = watchdog_period(env, 7, unit.as_ref());
            assert_eq!(found, seconds.map(Duration::from_secs), "{pid:?} {micros:?} {unit:?}");
        }
    }

    #[test]
    fn a_worker_that_stands_still_is_found() {
        assert_eq!(stuck(&[], &[0, 0]), None);
        assert_eq!(stuck(&[1, 2], &[2, 3]), None);
        assert_eq!(stuck(&[1, 2], &[2, 2]), Some(1));
    }
}
