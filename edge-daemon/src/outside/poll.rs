//! What is asked again and again for a list: when, after how long a pause, at whose wish, and what came
//! of it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::{Source, jittered, lock, put};
use crate::{decisions::Decision, events::Event, request::Edge};

/// A source that is asked again and again.
pub(super) trait Polled: Source {
    /// What it has in common with all others.
    fn polling(&self) -> &Polling;

    /// The time from one question to the next, after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration;

    /// Asks, judges and puts in force; a sentence about it.
    fn poll(
        self: &Arc<Self>,
        edge: &Edge,
        turn: Turn,
    ) -> impl Future<Output = Result<String, Trouble>> + Send;

    /// Counts what went wrong and tells of it; what was in force stays.
    fn note(&self, edge: &Edge, trouble: &Trouble);
}

/// Why it is asked, this time.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    /// It was not asked before, or brought nothing the last time.
    pub(super) is_afresh: bool,
    /// An operator wants it.
    pub(super) is_wish: bool,
    /// Whatever comes may be much less than what is there.
    pub(super) force: bool,
}

/// Why there is no new list.
pub(super) enum Trouble {
    /// It could not be had.
    Failed(String),
    /// What came cannot be the list.
    Refused(String),
}

/// The wishes of operators, and whether the writer has had what is known of the source.
pub(super) struct Polling {
    pub(super) is_in_force: AtomicBool,
    wishes: mpsc::Sender<Wish>,
    /// The other end, until the task takes it.
    waiting: Mutex<Option<mpsc::Receiver<Wish>>>,
}

/// An operator's wish to have it asked now, and whether the list may shrink.
type Wish = (bool, oneshot::Sender<Result<String, String>>);

impl Default for Polling {
    fn default() -> Self {
        let (wishes, waiting) = mpsc::channel(WISHES_MAX);
        let waiting = Mutex::new(Some(waiting));
        Self { is_in_force: AtomicBool::new(false), wishes, waiting }
    }
}

impl Polling {
    /// Has it asked now; a sentence about what came of it.
    ///
    /// # Errors
    /// Why nothing came of it.
    pub(super) async fn refresh(&self, force: bool) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let asked = self.wishes.try_send((force, answer));
        asked.map_err(|_| "it is being asked for already".to_owned())?;
        answered.await.unwrap_or_else(|_| Err("it was taken out meanwhile".to_owned()))
    }
}

/// Looks after a source, for ever; the first time after so long.
pub(super) async fn keep<P: Polled>(source: Arc<P>, edge: Arc<Edge>, first: Duration) {
    let polling = source.polling();
    let Some(mut wishes) = lock(&polling.waiting).take() else { return };
    if let Some(sheet) = source.sheet().filter(|_| !polling.is_in_force.load(Relaxed))
        && let Err(why) = put(&edge, sheet, None).await
    {
        source.note(&edge, &Trouble::Refused(why));
    }
    let (mut is_afresh, mut failures, mut next) = (true, 0, first);
    loop {
        let wish = tokio::select! {
            () = time::sleep(next) => None,
            wish = wishes.recv() => wish,
        };
        let force = wish.as_ref().is_some_and(|(force, _)| *force);
        let done = source.poll(&edge, Turn { is_afresh, is_wish: wish.is_some(), force }).await;
        is_afresh = done.is_err();
        failures = if is_afresh { failures + 1 } else { 0 };
        next = jittered(source.pause(failures));
        let done = done.map_err(|trouble| {
            source.note(&edge, &trouble);
            match trouble {
                Trouble::Failed(why) | Trouble::Refused(why) => why,
            }
        });
        if let Some((_, answer)) = wish {
            let _ = answer.send(done);
        }
    }
}

/// After so many failures in a row: the first pause, doubled for each to a longest.
pub(super) fn doubled(first: Duration, failures: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest)
}

/// What came of asking.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    /// Answers that changed something.
    pub(super) updated: u64,
    /// Answers that changed nothing.
    pub(super) unchanged: u64,
    /// Times that there was none.
    pub(super) failed: u64,
    /// Answers that were not taken.
    pub(super) refused: u64,
    /// Why the last time brought nothing; `None`: it did.
    pub(super) trouble: Option<String>,
    /// Whether a failure was told of since it brought anything, and whether a refusal was.
    told: [bool; 2],
}

impl Account {
    /// Notes an answer that was taken.
    pub(super) fn succeed(&mut self, has_changed: bool) {
        *(if has_changed { &mut self.updated } else { &mut self.unchanged }) += 1;
        (self.trouble, self.told) = (None, [false; 2]);
    }

    /// Notes that there is none, and tells of it once a series: a source that is away for a week is told
    /// of once, however many ways there are to be away. So many networks stay in force.
    pub(super) fn fail(&mut self, edge: &Edge, feed: &str, trouble: &Trouble, kept: u64) {
        let (result, why, is_news) = self.count(trouble);
        if is_news {
            tracing::error!(feed, why, kept, "the feed brought nothing; what was there stays");
            edge.decisions.tell(Decision::feed(feed, why));
            let (feed, why) = (feed.to_owned(), why.to_owned());
            edge.events.tell(Event::FeedFailed { feed, result, why, networks: kept });
        }
    }

    /// The kind of a trouble, why it is there, and whether it is news.
    fn count<'t>(&mut self, trouble: &'t Trouble) -> (&'static str, &'t str, bool) {
        let [failed, refused] = &mut self.told;
        let (result, why, count, told) = match trouble {
            Trouble::Failed(why) => ("failed", why, &mut self.failed, failed),
            Trouble::Refused(why) => ("refused", why, &mut self.refused, refused),
        };
        *count += 1;
        self.trouble = Some(why.clone());
        (result, why, !std::mem::replace(told, true))
    }
}

const WISHES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_of_troubles_is_news_once() {
        let mut account = Account::default();
        let [away, late] = ["502", "it took too long"].map(|why| Trouble::Failed(why.to_owned()));
        let shrunk = Trouble::Refused("it shrank".to_owned());
        let mut news = |trouble: Option<&Trouble>| match trouble {
            Some(trouble) => account.count(trouble).2,
            None => {
                account.succeed(true);
                false
            }
        };
        let series = [
            Some(&away),
            Some(&late),
            Some(&away),
            Some(&shrunk),
            Some(&away),
            Some(&shrunk),
            None,
            Some(&late),
        ];
        assert_eq!(series.map(&mut news), [true, false, false, true, false, false, false, true]);
        assert_eq!((account.failed, account.refused), (5, 2));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let seconds = Duration::from_secs;
        let pauses = [1, 2, 3, 40, u32::MAX].map(|n| doubled(seconds(30), n, seconds(100)));
        assert_eq!(pauses, [30, 60, 100, 100, 100].map(seconds));
    }
}
