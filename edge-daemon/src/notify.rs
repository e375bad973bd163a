//! Tells the service manager how far the daemon is (the `sd_notify` datagram).

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

use crate::request::Edge;

/// Sends one state (`READY=1`, `STOPPING=1`, ...) if a service manager listens.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(path.as_encoded_bytes(), state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Says that the configuration is read again; `READY=1` ends it.
pub fn reloading() {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
}

/// Tells the watchdog that the daemon lives, as long as every worker does: at half the time that it
/// waits for that. Returns if there is none.
pub async fn watchdog(edge: Arc<Edge>) {
    let Some(every) = watchdog_period(|name| std::env::var(name).ok(), std::process::id()) else {
        return;
    };
    let mut before = Vec::new();
    loop {
        tokio::time::sleep(every / 2).await;
        let beats = edge.metrics.beats();
        if let Some(worker) = stuck(&before, &beats) {
            tracing::error!(worker, "a worker does not turn: the watchdog is not told");
        } else {
            notify("WATCHDOG=1");
        }
        before = beats;
    }
}

/// The first worker that has done nothing since.
fn stuck(before: &[u64], now: &[u64]) -> Option<usize> {
    before.iter().zip(now).position(|(before, now)| before == now)
}

/// How long the watchdog waits; `None`: there is none, or it is another process's.
fn watchdog_period(env: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    let is_ours = env("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(own));
    let micros = env("WATCHDOG_USEC")?.parse().ok().filter(|micros| *micros > 0 && is_ours)?;
    // Workers beat once a second.
    Some(Duration::from_micros(micros).max(Duration::from_secs(4)))
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
    fn the_watchdog_is_as_the_environment_says() {
        let of = |pid: Option<&'static str>, micros: Option<&'static str>| {
            watchdog_period(
                move |name| match name {
                    "WATCHDOG_PID" => pid.map(str::to_owned),
                    _ => micros.map(str::to_owned),
                },
                7,
            )
        };
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some("8"), Some("30000000")), None);
        assert_eq!(of(Some("7"), Some("30000000")), Some(Duration::from_secs(30)));
        assert_eq!(of(None, Some("30000000")), Some(Duration::from_secs(30)));
        assert_eq!(of(None, Some("0")), None);
        assert_eq!(of(None, Some("much")), None);
    }

    #[test]
    fn a_worker_that_stands_still_is_found() {
        assert_eq!(stuck(&[], &[0, 0]), None);
        assert_eq!(stuck(&[1, 2], &[2, 3]), None);
        assert_eq!(stuck(&[1, 2], &[2, 2]), Some(1));
    }
}
