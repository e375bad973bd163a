//! One connection to a server: the only place that speaks HTTP to it.

use std::time::{Duration, Instant};

use edge_common::Reason;
use http::{Request, Response};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::sleep;

use super::super::{
    body::{Upload, UploadState},
    incoming::Incoming,
};
use crate::upstream::dial::Stream;

/// One connection to a server.
pub(super) struct Connection {
    sender: SendRequest<Upload>,
    opened: Instant,
}

/// How long whoever's turn it is may take.
pub(super) struct Patience<'a> {
    pub(super) upload: &'a UploadState,
    /// How long the client may pause its body.
    pub(super) pause_max: Duration,
    /// How long the upstream may take for its head, from the last part of the body.
    pub(super) answer_max: Duration,
    /// When all of it must be over.
    pub(super) until: Option<Instant>,
}

/// Why one exchange failed, and the request if it never left.
pub(super) struct Failed {
    pub(super) reason: Reason,
    pub(super) unsent: Option<Box<Request<Upload>>>,
}

impl Connection {
    /// Begins to speak on a stream to the server of this label.
    pub(super) async fn open(stream: Stream, label: &str) -> std::io::Result<Self> {
        let spoken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = spoken.map_err(std::io::Error::other)?;
        let server = label.to_owned();
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(server, %error, "upstream connection ended");
            }
        });
        Ok(Self { sender, opened: Instant::now() })
    }

    /// For how long it has been open.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Whether it will take no request any more.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether it is done with its last request.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// One request, to the head of its answer. Whoever's turn it is has a deadline.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Upload>,
        patience: &Patience<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        let Patience { upload, pause_max, answer_max, until } = *patience;
        upload.since.set(Instant::now());
        let mut response = std::pin::pin!(self.sender.try_send_request(request));
        loop {
            let waited = upload.since.get().elapsed();
            let (reason, max) = if upload.is_starved.get() {
                (Reason::RequestTimeout, pause_max)
            } else {
                (Reason::UpstreamTimeout, answer_max)
            };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if waited >= max || left == Some(Duration::ZERO) {
                return Err(Failed { reason, unsent: None });
            }
            if upload.is_starved.get() && Duration::from_secs(upload.lag_s()) >= pause_max {
                return Err(Failed { reason: Reason::RequestTimeout, unsent: None });
            }
            tokio::select! {
                biased;
                result = &mut response => return result.map(|r| r.map(Into::into)).map_err(|mut error| Failed {
                    reason: upload.fault.get().unwrap_or(Reason::UpstreamInvalid),
                    unsent: error.take_message().map(Box::new),
                }),
                // Turns change without a wake-up here, hence no longer than a second.
                () = sleep((max - waited).min(LOOK_MAX).min(left.unwrap_or(LOOK_MAX))) => {}
            }
        }
    }
}

const LOOK_MAX: Duration = Duration::from_secs(1);
