//! The thread that looks after upstreams: it asks their servers how they are, once for the whole
//! host, and looks their names up again.

use std::{io, sync::Arc, sync::atomic::Ordering::Relaxed};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    sync::watch,
    task::{JoinSet, LocalSet},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Endpoint, Server, Upstream, dial::Stream, names};
use crate::{clock, config::settings::Check};

/// The upstreams to look after; replaced by every reload.
pub type Upstreams = watch::Receiver<Vec<Arc<Upstream>>>;

/// Looks after upstreams until nobody can change them any more. `resolved` is told whenever a name
/// came to mean other addresses.
pub fn run(mut upstreams: Upstreams, resolved: watch::Sender<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let resolved = Arc::new(resolved);
    LocalSet::new().block_on(&runtime, async {
        loop {
            // What is no more is dropped, and so are its checks, wherever they stand.
            let mut looks = JoinSet::new();
            for upstream in upstreams.borrow_and_update().iter() {
                if upstream.settings.check.is_some() {
                    looks.spawn_local(check_on_and_on(Arc::clone(upstream)));
                }
                if names::has_names(upstream) {
                    let (upstream, resolved) = (Arc::clone(upstream), Arc::clone(&resolved));
                    looks.spawn_local(names::resolve_on_and_on(upstream, resolved));
                }
            }
            if upstreams.changed().await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

async fn check_on_and_on(upstream: Arc<Upstream>) {
    let Some(check) = &upstream.settings.check else { return };
    let mut ticks = interval(check.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut asked = JoinSet::new();
        for server in upstream.servers().iter() {
            let (upstream, server) = (Arc::clone(&upstream), Arc::clone(server));
            asked.spawn_local(async move { look(&upstream, &server).await });
        }
        while asked.join_next().await.is_some() {}
    }
}

/// Asks one server, once, and notes what that says of it.
async fn look(upstream: &Upstream, server: &Server) {
    let Some(check) = &upstream.settings.check else { return };
    let found = match timeout(check.timeout, ask(upstream, server, check)).await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err("did not answer in time".to_owned()),
    };
    let found = found.and_then(|status| {
        let [first, last] = check.status;
        if (first..=last).contains(&status) { Ok(()) } else { Err(format!("answered {status}")) }
    });
    let count = if found.is_ok() { &server.checks_good } else { &server.checks_bad };
    count.fetch_add(1, Relaxed);
    if server.health.checked(found.is_ok(), check.rule, clock::boot_ns()) {
        let (upstream, server) = (&upstream.settings.name, &server.label);
        match found {
            Ok(()) => tracing::info!(upstream, server, "up again"),
            Err(why) => tracing::warn!(upstream, server, why, "down"),
        }
    }
}

/// The status that a server answers a check with.
async fn ask(upstream: &Upstream, server: &Server, check: &Check) -> io::Result<u16> {
    let own = || match &server.endpoint {
        Endpoint::Tcp(address) => address.to_string(),
        Endpoint::Unix(_) => "localhost".to_owned(),
    };
    let (path, host) = (&check.path, check.host.clone().unwrap_or_else(own));
    let mut stream = upstream.dial(server).await?;
    if upstream.settings.http2 {
        return ask_http2(stream, path, &host).await;
    }
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: edged-check\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    status(stream).await
}

/// The status of the answer, behind what the server says before it.
async fn status(answer: impl AsyncRead + Unpin) -> io::Result<u16> {
    let mut answer = BufReader::new(answer.take(HEADS_BYTES_MAX));
    loop {
        // The status line's beginning is all that counts: `HTTP/1.1 200`.
        let mut line = [0; 12];
        answer.read_exact(&mut line).await?;
        let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
        let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("answered what is not HTTP"))?;
        if status == 101 || !(100..200).contains(&status) {
            return Ok(status);
        }
        // The rest of that line, and on to the one that is empty.
        let mut rest = Vec::new();
        answer.read_until(b'\n', &mut rest).await?;
        loop {
            rest.clear();
            if answer.read_until(b'\n', &mut rest).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if matches!(&*rest, b"\n" | b"\r\n") {
                break;
            }
        }
    }
}

/// The same over HTTP/2.
async fn ask_http2(stream: Stream, path: &str, host: &str) -> io::Result<u16> {
    let scheme = stream.scheme();
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let uri = format!("{scheme}://{host}{path}");
    let request = http::Request::get(uri).header(http::header::USER_AGENT, "edged-check").body(());
    let request = request.map_err(io::Error::other)?;
    let (response, _) = sender.send_request(request, true).map_err(io::Error::other)?;
    tokio::select! {
        response = response => Ok(response.map_err(io::Error::other)?.status().as_u16()),
        _ = connection => Err(io::Error::other("closed the connection")),
    }
}

/// What a server may say before the end of the status line that counts, in bytes.
const HEADS_BYTES_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interim_answer_is_not_the_answer() {
        for (answer, expected) in [
            ("HTTP/1.1 204", Some(204)),
            ("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 500 No\r\n", Some(500)),
            ("HTTP/1.1 100\r\n\r\nHTTP/1.1 102 \n\nHTTP/1.0 200 OK", Some(200)),
            ("HTTP/1.1 101 Switching Protocols\r\n", Some(101)),
            ("HTTP/1.1 100 Continue\r\nA: b\r\n", None),
            ("HTTP/1.1 100 Continue\r\n\r\n", None),
            ("SSH-2.0-Open", None),
        ] {
            assert_eq!(status(answer.as_bytes()).await.ok(), expected, "{answer}");
        }
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(HEADS_BYTES_MAX as usize / 25 + 1);
        assert!(status((endless + "HTTP/1.1 200 OK").as_bytes()).await.is_err());
    }
}
