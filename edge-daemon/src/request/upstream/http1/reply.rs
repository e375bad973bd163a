//! The body of an answer, for as long as it is one.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, ready},
};

use super::{Link, Sending, State};
use crate::request::{
    body::Upload,
    incoming::{Broken, Frame},
    watch::Who,
};

/// The body of an answer, and the rest of the request's on its way. `None` once both are over: the connection may
/// be in use for somebody else's request then, however long the client takes over the end of this one.
pub(crate) struct Reply(Option<Rc<RefCell<Link>>>);

impl Reply {
    /// Of the answer whose head this connection has just read.
    pub(super) fn new(link: &Rc<RefCell<Link>>) -> Self {
        Self(Some(Rc::clone(link)))
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, Broken>>> {
        let Some(shared) = self.0.clone() else { return Poll::Ready(None) };
        let link = &mut *shared.borrow_mut();
        if link.state != State::Busy {
            return Poll::Ready(None);
        }
        if let Poll::Ready(Err(broken)) = link.poll_send(cx) {
            link.state = State::Closed;
            return Poll::Ready(Some(Err(broken)));
        }
        let frame = ready!(link.body.poll_frame(&mut link.wire, cx));
        if link.is_over() && link.state == State::Idle {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    /// With a part of its request missing, the connection is of no more use. What is left of the answer is read without
    /// the client, who may have another turn meanwhile.
    pub(crate) fn abandon_upload(&mut self) -> Option<Upload> {
        let link = &mut *self.0.as_ref()?.borrow_mut();
        link.turn = None;
        if !matches!(link.sending, Sending::Body { .. }) {
            return None;
        }
        link.keep = false;
        match std::mem::replace(&mut link.sending, Sending::Refused) {
            Sending::Body { upload, .. } => Some(upload),
            _ => None,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.0.as_ref().is_none_or(|link| link.borrow().body.is_done())
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.0.as_ref().map_or(Some(0), |link| link.borrow().body.length())
    }

    /// Whose move it is while nothing comes.
    pub(crate) fn waits_for(&self) -> Who {
        let Some(link) = self.0.as_ref().map(|link| link.borrow()) else { return Who::Taker };
        match link.is_starved() {
            _ if link.is_tunnel => Who::Either,
            true => Who::Listener,
            false => Who::Upstream,
        }
    }
}

impl Drop for Reply {
    /// What is left of the answer is nobody's, and so is the connection.
    fn drop(&mut self) {
        let Some(link) = &self.0 else { return };
        let mut link = link.borrow_mut();
        if !link.is_over() {
            link.state = State::Closed;
        }
    }
}
