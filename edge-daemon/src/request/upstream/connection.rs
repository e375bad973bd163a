//! A connection to a server, whichever version of HTTP it speaks.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use edge_common::Reason;
use http::Response;

use super::{
    super::{
        body::{Upload, UploadState},
        incoming::{Broken, Frame, Incoming},
        watch::Who,
    },
    Head, http1, http2,
};
use crate::upstream::dial::Stream;

/// One connection to a server.
pub(super) enum Connection {
    /// Over HTTP/1: one request at a time.
    One(http1::Connection),
    /// Over HTTP/2: many at once, each with a handle of its own.
    Many(http2::Connection),
}

/// The body of an answer, and the rest of the request's on its way.
pub(crate) enum Reply {
    /// Over HTTP/1.
    One(http1::Reply),
    /// Over HTTP/2.
    Many(Box<http2::Reply>),
}

/// How long whoever's turn it is may take.
pub(super) struct Patience<'a> {
    pub(super) upload: &'a UploadState,
    /// How long the upstream may take for its head, from the last part of the body.
    pub(super) answer_max: Duration,
}

/// Why one exchange failed, and the request's body if the request had no effect.
pub(super) struct Failed {
    pub(super) reason: Reason,
    pub(super) unsent: Option<Upload>,
    /// Whether the server said that it did not look at it.
    pub(super) is_refused: bool,
}

impl Connection {
    /// Begins to speak on a stream to the server, which was dialled at `opened_ns`.
    pub(super) async fn open(
        stream: Stream,
        is_http2: bool,
        opened_ns: u64,
    ) -> std::io::Result<Self> {
        Ok(match is_http2 {
            true => Self::Many(http2::Connection::open(stream, opened_ns).await?),
            false => Self::One(http1::Connection::new(stream, opened_ns)),
        })
    }

    /// When it was dialled, in boot time.
    pub(super) fn opened_ns(&self) -> u64 {
        match self {
            Self::One(one) => one.opened_ns,
            Self::Many(many) => many.opened_ns,
        }
    }

    /// Whether it will take no request any more, as far as its last one told.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::One(one) => one.is_closed(),
            Self::Many(many) => many.is_closed(),
        }
    }

    /// Whether it will take no request any more, as a look at it tells.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Self::One(one) => one.is_stale(),
            Self::Many(many) => many.is_closed(),
        }
    }

    /// Whether it takes a request now.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::One(one) => one.is_ready(),
            Self::Many(many) => many.is_ready(),
        }
    }

    /// Whether requests are under way on it.
    pub(super) fn is_in_use(&self) -> bool {
        match self {
            Self::One(_) => false,
            Self::Many(many) => many.is_in_use(),
        }
    }

    /// When a request on it ended last, in boot time, if it is shared.
    pub(super) fn used_ns(&self) -> u64 {
        match self {
            Self::One(_) => 0,
            Self::Many(many) => many.used_ns(),
        }
    }

    /// Another handle on it, if there may be several.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::One(_) => None,
            Self::Many(many) => Some(Self::Many(many.clone())),
        }
    }

    /// One request, to the head of its answer. Whoever's turn it is has a deadline.
    pub(super) async fn exchange(
        &mut self,
        head: &Head,
        body: Upload,
        patience: &Patience<'_>,
    ) -> Result<Response<Incoming>, Failed> {
        let turn = &patience.upload.turn;
        turn.turn_to_upstream();
        let answer = match self {
            Self::One(one) => one.exchange(head, body, patience).await?,
            Self::Many(many) => Box::pin(many.exchange(head, body, patience)).await?,
        };
        turn.heard();
        Ok(answer)
    }
}

impl Reply {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        match self {
            Self::One(one) => one.poll_frame(cx),
            Self::Many(many) => many.poll_frame(cx),
        }
    }

    /// Sends no more of the request: what is left of its body. The answer may still be read.
    pub(crate) fn abandon_upload(&mut self) -> Option<Upload> {
        match self {
            Self::One(one) => one.abandon_upload(),
            Self::Many(many) => many.abandon_upload(),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::One(one) => one.is_done(),
            Self::Many(many) => many.is_done(),
        }
    }

    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::One(one) => one.length(),
            Self::Many(many) => many.length(),
        }
    }

    /// Whose move it is while nothing comes.
    pub(crate) fn waits_for(&self) -> Who {
        match self {
            Self::One(one) => one.waits_for(),
            Self::Many(many) => many.waits_for(),
        }
    }
}
