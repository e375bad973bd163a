//! A body on its way in: a client's or an upstream's, of either HTTP version.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use edge_identity::signed::BodyCheck;
use http::HeaderMap;
use hyper::body::Body as _;

/// A body that comes in, frame by frame.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// There is none.
    Empty,
    /// As the HTTP library hands it out.
    Library(hyper::body::Incoming),
    /// All of it, in memory.
    Whole(Bytes),
    /// One whose digest was signed.
    Signed(Box<Signed>),
}

/// A body of which the last part is held back until the whole is known to be the one that was signed.
#[derive(Debug)]
pub(crate) struct Signed {
    body: Incoming,
    /// `None` once it was asked.
    check: Option<BodyCheck>,
    held: Option<Bytes>,
}

/// A part of a body.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Bytes of the content; never empty.
    Data(Bytes),
    /// The fields after the content: the last frame.
    Trailers(HeaderMap),
}

/// Why a body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// Whoever sent it went away before its end.
    #[error("broke off before its end")]
    Gone,
    /// What came is no body.
    #[error("is not framed as it should be")]
    Malformed,
    /// It is another than the one that was signed.
    #[error("is not the one that was signed")]
    Forged,
}

impl Incoming {
    /// The next part; `None` at the end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        let body = match self {
            Self::Empty => return Poll::Ready(None),
            Self::Library(body) => body,
            Self::Whole(bytes) => {
                let data = Some(std::mem::take(bytes)).filter(|data| !data.is_empty());
                return Poll::Ready(data.map(|data| Ok(Frame::Data(data))));
            }
            Self::Signed(signed) => return signed.poll_frame(cx),
        };
        loop {
            let Some(frame) = ready!(std::pin::Pin::new(&mut *body).poll_frame(cx)) else {
                return Poll::Ready(None);
            };
            match frame.map_err(|error| Broken::from(&error))?.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Err(other) => {
                    if let Ok(trailers) = other.into_trailers() {
                        return Poll::Ready(Some(Ok(Frame::Trailers(trailers))));
                    }
                }
            }
        }
    }

    /// Whether it is known that nothing more comes.
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Library(body) => body.is_end_stream(),
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Signed(signed) => signed.check.is_none(),
        }
    }

    /// Bytes that are still to come, if its sender said how many.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Library(body) => body.size_hint().exact(),
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Signed(signed) => {
                let held = signed.held.as_ref().map_or(0, |held| held.len() as u64);
                signed.body.length().map(|length| length + held)
            }
        }
    }

    /// The same body, which breaks off before its end unless it is the one that was signed.
    pub(crate) fn signed(self, check: BodyCheck) -> Self {
        Self::Signed(Box::new(Signed { body: self, check: Some(check), held: None }))
    }
}

impl Signed {
    /// Trailers were not signed, and go no further.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Broken>>> {
        let Some(check) = &mut self.check else { return Poll::Ready(None) };
        while let Some(frame) = ready!(self.body.poll_frame(cx)) {
            let Frame::Data(data) = frame? else { continue };
            check.see(&data);
            if let Some(held) = self.held.replace(data) {
                return Poll::Ready(Some(Ok(Frame::Data(held))));
            }
        }
        let holds = self.check.take().is_some_and(BodyCheck::holds);
        let last = self.held.take();
        Poll::Ready(match holds {
            true => last.map(|last| Ok(Frame::Data(last))),
            false => Some(Err(Broken::Forged)),
        })
    }
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        if body.is_end_stream() { Self::Empty } else { Self::Library(body) }
    }
}

impl From<&hyper::Error> for Broken {
    fn from(error: &hyper::Error) -> Self {
        let causes = std::iter::successors(std::error::Error::source(error), |e| e.source());
        let wrong = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| {
            matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
        });
        if wrong { Self::Malformed } else { Self::Gone }
    }
}
