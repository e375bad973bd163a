//! A body on its way in: a client's or an upstream's, of either HTTP version.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Body as _;

/// A body that comes in, frame by frame.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// There is none.
    Empty,
    /// As the HTTP library hands it out.
    Library(hyper::body::Incoming),
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
}

impl Incoming {
    /// The next part; `None` at the end.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        let Self::Library(body) = self else { return Poll::Ready(None) };
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
        }
    }

    /// Bytes that are still to come, if its sender said how many.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Library(body) => body.size_hint().exact(),
        }
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
