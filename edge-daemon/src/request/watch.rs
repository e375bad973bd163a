//! Whose move it is in a request, and until when: whoever it is has a deadline and a least rate.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll},
    time::Duration,
};

use edge_common::Reason;
use edge_policy::pace::Pace;
use http::Response;

use super::timers::{Alarm, ms};
use crate::config::settings;

/// Whose move a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The client, to send more of its body.
    Sender,
    /// The client, to take more of its answer.
    Taker,
    /// The client, whose request is still open though its answer has begun: it may be listening.
    Listener,
    /// The upstream, to take more of the request, or for more of its answer.
    Upstream,
    /// Either side, once the connection has changed its protocol.
    Either,
}

/// The turns of one request after the other.
pub(crate) struct Turn {
    alarm: Alarm,
    patience: Cell<Patience>,
    upstream: Cell<Asked>,
    /// Whom it waits for, and since when.
    waits: Cell<Option<(Who, u64)>>,
    sent: Cell<Pace>,
    taken: Cell<Pace>,
    /// For how long the client kept the answer waiting.
    held_up_ms: Cell<u64>,
    /// For how long the server that was asked last was waited for.
    served_ms: Cell<u64>,
    /// Whether all of the time was over, of which that server had the lesser part.
    is_excused: Cell<bool>,
    overdue: Cell<Option<Reason>>,
    interims: RefCell<Vec<Response<()>>>,
}

/// How long and how slowly.
#[derive(Clone, Copy, Default)]
struct Patience {
    pause_ms: u64,
    tunnel_ms: u64,
    body_rate_min: u64,
    answer_rate_min: u64,
}

/// What an upstream that was asked has to keep to.
#[derive(Clone, Copy)]
struct Asked {
    /// Between two parts of its answer.
    pause_ms: u64,
    /// When all of it is to be over.
    until_ms: u64,
    /// How long that is.
    total_ms: u64,
}

impl Turn {
    pub(crate) fn new(alarm: Alarm) -> Self {
        Self {
            alarm,
            patience: Cell::default(),
            upstream: Cell::new(UNASKED),
            waits: Cell::new(None),
            sent: Cell::default(),
            taken: Cell::default(),
            held_up_ms: Cell::default(),
            served_ms: Cell::default(),
            is_excused: Cell::default(),
            overdue: Cell::new(None),
            interims: RefCell::default(),
        }
    }

    /// The connection's own deadline, between requests.
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Begins a request.
    pub(crate) fn begin(&self, bounds: &settings::Bounds) {
        self.patience.set(Patience {
            pause_ms: ms(bounds.idle_timeout),
            tunnel_ms: ms(bounds.tunnel_timeout),
            body_rate_min: bounds.body_rate_min,
            answer_rate_min: bounds.answer_rate_min,
        });
        self.upstream.set(UNASKED);
        self.waits.set(None);
        self.sent.set(Pace::default());
        self.taken.set(Pace::default());
        self.held_up_ms.set(0);
        self.is_excused.set(false);
        self.overdue.set(None);
        self.interims.take();
    }

    /// Asks an upstream, which may pause its answer for so long and is to be done in so much time.
    pub(crate) fn ask(&self, pause: Duration, total: Option<Duration>) {
        let total_ms = total.map_or(u64::MAX, ms);
        let until_ms = self.alarm.now_ms().saturating_add(total_ms);
        self.upstream.set(Asked { pause_ms: ms(pause), until_ms, total_ms });
    }

    /// How much of an upstream's time is left.
    pub(crate) fn left(&self) -> Duration {
        let until_ms = self.upstream.get().until_ms;
        Duration::from_millis(until_ms.saturating_sub(self.alarm.now_ms()))
    }

    /// Chooses a server, which has had none of the time so far.
    pub(crate) fn turn_to_server(&self) {
        self.served_ms.set(0);
    }

    /// Turns to a connection, which has all of its time, however long another was waited for.
    pub(crate) fn turn_to_upstream(&self) {
        self.waits.set(None);
    }

    /// Notes that the server was waited for, as long as it took to connect.
    pub(crate) fn serve(&self, waited: Duration) {
        self.served_ms.set(self.served_ms.get().saturating_add(ms(waited)));
    }

    /// Notes that all of the time is over. The server that was asked last is to blame if it has had at least as much as
    /// the client and other servers.
    pub(crate) fn run_out(&self) {
        self.is_excused.set(self.served_ms.get() < self.upstream.get().total_ms / 2);
    }

    /// Whether it was others who used up an upstream's time, so that its end tells nothing of the server.
    pub(crate) fn is_excused(&self) -> bool {
        self.is_excused.get()
    }

    /// Notes that so many bytes moved, from or to `who`.
    pub(crate) fn moved(&self, who: Who, bytes: usize) {
        let waited_ms = match self.waits.get() {
            Some((Who::Either, _)) => {
                self.waits.set(None);
                0
            }
            Some((waited_for, since))
                if waited_for == who || (waited_for, who) == (Who::Listener, Who::Sender) =>
            {
                self.waited(waited_for, since)
            }
            _ => 0,
        };
        let pace = match who {
            Who::Sender => &self.sent,
            Who::Taker => &self.taken,
            Who::Listener | Who::Upstream | Who::Either => return,
        };
        pace.set(pace.get().moved(bytes as u64, waited_ms));
    }

    /// Notes that a part of the answer came, be it its head: whoever listens to it has all of his time anew.
    pub(crate) fn heard(&self) {
        if let Some((who @ (Who::Upstream | Who::Listener | Who::Either), since)) = self.waits.get()
        {
            self.waited(who, since);
        }
        self.sent.set(self.sent.get().forgiven());
    }

    /// Ends a wait. How long it was.
    fn waited(&self, who: Who, since: u64) -> u64 {
        self.waits.set(None);
        let waited_ms = self.alarm.now_ms().saturating_sub(since);
        let sum = match who {
            Who::Taker | Who::Listener => &self.held_up_ms,
            Who::Upstream => &self.served_ms,
            Who::Sender | Who::Either => return waited_ms,
        };
        sum.set(sum.get().saturating_add(waited_ms));
        waited_ms
    }

    /// Whether the client kept the answer waiting for so long that its end tells nothing of the server: that may
    /// have given up what could not go on.
    pub(crate) fn is_held_up(&self) -> bool {
        self.held_up_ms.get() >= HELD_UP_MS
    }

    /// Waits for somebody's move, for as long as the bounds let any pause take.
    pub(crate) fn poll(&self, who: Who, cx: &mut Context<'_>) -> Poll<Reason> {
        self.poll_for(who, self.pause_ms(who), cx)
    }

    fn pause_ms(&self, who: Who) -> u64 {
        let (patience, upstream) = (self.patience.get(), self.upstream.get());
        match who {
            Who::Upstream => upstream.pause_ms,
            Who::Sender | Who::Taker => patience.pause_ms,
            Who::Listener => patience.pause_ms.max(upstream.pause_ms),
            Who::Either => patience.tunnel_ms,
        }
    }

    /// Waits for somebody's move; ready when it took him longer than `pause_ms` or than the least
    /// rate allows.
    pub(crate) fn poll_for(&self, who: Who, pause_ms: u64, cx: &mut Context<'_>) -> Poll<Reason> {
        let patience = self.patience.get();
        let since = match self.waits.get() {
            Some((waited_for, since)) if waited_for == who => since,
            _ => {
                let now = self.alarm.now_ms();
                self.waits.set(Some((who, now)));
                now
            }
        };
        let pace = match who {
            Who::Sender | Who::Listener => Some((self.sent.get(), patience.body_rate_min)),
            Who::Taker => Some((self.taken.get(), patience.answer_rate_min)),
            Who::Upstream | Who::Either => None,
        };
        let left_of =
            |grace_ms| pace.map_or(u64::MAX, |(pace, rate_min)| pace.left_ms(grace_ms, rate_min));
        let left = left_of(pause_ms);
        let short = match who {
            Who::Sender | Who::Taker => left_of(SHORT_MS).min(SHORT_PAUSE_MS),
            // Who listens makes no room, however short memory is.
            Who::Listener | Who::Upstream | Who::Either => u64::MAX,
        };
        let until_ms = match who {
            // The upstream has done its part; what is left is between the client and the edge.
            Who::Taker | Who::Either => u64::MAX,
            Who::Sender | Who::Listener | Who::Upstream => self.upstream.get().until_ms,
        };
        let own_ms = since.saturating_add(left.min(pause_ms));
        self.alarm.set_with_short(own_ms.min(until_ms), since.saturating_add(short));
        self.alarm.poll(cx).map(|()| {
            let has_run_out = until_ms < own_ms;
            let reason = match who {
                // What it holds is needed for those who are not slow.
                _ if self.alarm.is_early() => Reason::Overload,
                Who::Upstream => Reason::UpstreamTimeout,
                // It was the upstream's time, whoever took it.
                _ if has_run_out => Reason::UpstreamTimeout,
                // Nobody had more to say.
                Who::Listener | Who::Either => Reason::Serve,
                Who::Taker => Reason::AnswerNotTaken,
                Who::Sender if left < pause_ms => Reason::BodyTooSlow,
                Who::Sender => Reason::RequestTimeout,
            };
            self.waited(who, since);
            if has_run_out && reason == Reason::UpstreamTimeout {
                self.run_out();
            }
            self.overdue.set(Some(reason));
            reason
        })
    }

    /// Bytes of the request's body.
    pub(crate) fn received(&self) -> u64 {
        self.sent.get().bytes()
    }

    /// Notes an interim answer of the upstream.
    pub(crate) fn interim(&self, answer: Response<()>) {
        self.interims.borrow_mut().push(answer);
    }

    /// The interim answers that the client was not told of.
    pub(crate) fn take_interims(&self) -> Vec<Response<()>> {
        self.interims.take()
    }

    /// Why the request was given up, if it was because nobody moved.
    pub(crate) fn overdue(&self) -> Option<Reason> {
        self.overdue.get()
    }
}

/// How long a client may keep the edge waiting while memory is short, in all and beyond what its bytes have earned it;
pub(crate) const SHORT_MS: u64 = 2_000;
/// and how long at once, whatever they have.
const SHORT_PAUSE_MS: u64 = 10_000;
/// How long an answer may be kept waiting in all before a server may have given it up for that.
const HELD_UP_MS: u64 = 1_000;
const UNASKED: Asked = Asked { pause_ms: u64::MAX, until_ms: u64::MAX, total_ms: u64::MAX };

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::request::timers::Timers;

    #[test]
    fn who_is_answered_already_need_not_hurry_while_memory_is_short() {
        let timers = Timers::new();
        let turn = Turn::new(timers.alarm());
        turn.patience.set(Patience { pause_ms: 9_000, body_rate_min: 1, ..Patience::default() });
        let mut cx = Context::from_waker(Waker::noop());
        let since = turn.alarm.now_ms().saturating_sub(SHORT_MS);
        turn.waits.set(Some((Who::Listener, since)));
        turn.upstream.set(Asked { pause_ms: 0, ..UNASKED });
        timers.note_short(true);
        assert!(turn.poll(Who::Listener, &mut cx).is_pending());
        turn.waits.set(Some((Who::Sender, since)));
        assert_eq!(turn.poll(Who::Sender, &mut cx), Poll::Ready(Reason::Overload));
    }

    #[test]
    fn waits_for_the_client_add_up_and_others_do_not() {
        let timers = Timers::new();
        let turn = Turn::new(timers.alarm());
        let waited = |who| turn.waits.set(Some((who, turn.alarm.now_ms().saturating_sub(600))));
        for who in [Who::Upstream, Who::Either] {
            waited(who);
            turn.heard();
        }
        for _ in 0..2 {
            waited(Who::Sender);
            turn.moved(Who::Sender, 1);
        }
        waited(Who::Taker);
        turn.moved(Who::Taker, 1);
        assert!(!turn.is_held_up());
        waited(Who::Listener);
        turn.heard();
        assert!(turn.is_held_up());
    }

    #[test]
    fn a_wait_for_the_client_that_the_upstreams_time_ends_adds_up_too() {
        let timers = Timers::new();
        let turn = Turn::new(timers.alarm());
        turn.patience.set(Patience { pause_ms: 9_000, ..Patience::default() });
        turn.waits.set(Some((Who::Listener, turn.alarm.now_ms().saturating_sub(1_500))));
        turn.upstream.set(Asked { pause_ms: 9_000, until_ms: turn.alarm.now_ms(), ..UNASKED });
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(turn.poll(Who::Listener, &mut cx), Poll::Ready(Reason::UpstreamTimeout));
        assert!(turn.is_held_up());
    }

    #[test]
    fn a_server_is_to_blame_for_the_end_of_the_time_of_which_it_had_most() {
        let timers = Timers::new();
        let turn = Turn::new(timers.alarm());
        turn.patience.set(Patience { pause_ms: 9_000, ..Patience::default() });
        let mut cx = Context::from_waker(Waker::noop());
        let now_ms = turn.alarm.now_ms();
        let asked = Asked { pause_ms: 9_000, until_ms: now_ms, total_ms: 4_000 };
        for (had_ms, who, excused) in [
            (3_000, Who::Upstream, false),
            (1_000, Who::Upstream, true),
            (1_000, Who::Sender, true),
            (3_000, Who::Sender, false),
        ] {
            turn.is_excused.set(false);
            turn.upstream.set(asked);
            turn.turn_to_server();
            // Over and done with, as by a server that takes a part of the body.
            turn.waits.set(Some((Who::Upstream, turn.alarm.now_ms().saturating_sub(had_ms))));
            turn.moved(Who::Upstream, 1);
            turn.turn_to_upstream();
            assert_eq!(turn.poll(who, &mut cx), Poll::Ready(Reason::UpstreamTimeout));
            assert_eq!(turn.is_excused(), excused, "{had_ms} {who:?}");
            // What connecting took is the server's as well.
            turn.serve(Duration::from_millis(3_000));
            turn.run_out();
            assert!(!turn.is_excused());
        }
        // What is its own deadline it has had to itself.
        turn.is_excused.set(false);
        turn.upstream.set(Asked { pause_ms: 50, until_ms: now_ms + 60_000, total_ms: 90_000 });
        turn.waits.set(Some((Who::Upstream, now_ms.saturating_sub(50))));
        assert_eq!(turn.poll(Who::Upstream, &mut cx), Poll::Ready(Reason::UpstreamTimeout));
        assert!(!turn.is_excused());
    }

    #[test]
    fn who_listens_has_as_long_as_the_upstream_goes_on() {
        let timers = Timers::new();
        let turn = Turn::new(timers.alarm());
        turn.patience.set(Patience {
            pause_ms: 9_000,
            body_rate_min: 1_000,
            ..Patience::default()
        });
        turn.upstream.set(Asked { pause_ms: 5_000, ..UNASKED });
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = |ms| {
            turn.waits.set(Some((Who::Listener, turn.alarm.now_ms().saturating_sub(ms))));
            turn.poll(Who::Listener, &mut cx)
        };
        // His bytes are too few for the time that they take, unless there is something to hear meanwhile.
        for _ in 0..3 {
            assert!(waits(6_000).is_pending());
            turn.moved(Who::Sender, 1);
            turn.heard();
        }
        assert!(waits(6_000).is_pending());
        turn.moved(Who::Sender, 1);
        assert_eq!(waits(6_000), Poll::Ready(Reason::Serve));
        // Nor do both have longer than the longer of their pauses.
        turn.heard();
        assert_eq!(waits(9_000), Poll::Ready(Reason::Serve));
        turn.upstream.set(Asked { pause_ms: 99_000, ..UNASKED });
        assert!(waits(90_000).is_pending());
        // Nor longer than the upstream may take in all.
        turn.upstream.set(Asked { pause_ms: 99_000, until_ms: 0, ..UNASKED });
        assert_eq!(waits(0), Poll::Ready(Reason::UpstreamTimeout));
    }
}
