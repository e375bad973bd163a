//! Those who wait for a slot: first come, first served.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::sync::Notify;

/// A line of requests, of all workers, which goes on when a reload changes what they wait for. The first of it is woken,
/// and each that leaves as the first wakes the next: so nothing that becomes free is lost with one who was woken for it
/// and gave up.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Which configuration is in force, as they are counted.
    pub(super) era: AtomicU64,
    /// How many wait, for those who look whether anybody does.
    length: AtomicUsize,
    places: Mutex<VecDeque<Arc<Notify>>>,
}

/// A place in the line, until it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    line: &'a Line,
    own: Arc<Notify>,
}

impl Line {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.length.load(SeqCst)
    }

    /// A place in it, if fewer than `most` wait: the last, or the first.
    pub(super) fn join(&self, most: usize, goes_first: bool) -> Option<Place<'_>> {
        let mut places = self.places();
        if places.len() >= most {
            return None;
        }
        let own = Arc::new(Notify::new());
        let place = Arc::clone(&own);
        match goes_first {
            true => places.push_front(place),
            false => places.push_back(place),
        }
        self.length.store(places.len(), SeqCst);
        Some(Place { line: self, own })
    }

    /// Something has become free.
    pub(super) fn wake(&self) {
        if self.len() > 0 {
            self.wake_at(0);
        }
    }

    fn wake_at(&self, index: usize) {
        if let Some(place) = self.places().get(index) {
            place.notify_one();
        }
    }

    fn places(&self) -> MutexGuard<'_, VecDeque<Arc<Notify>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Resolves when it is this one's turn to look, also if it became so before.
    pub async fn woken(&self) {
        self.own.notified().await;
    }

    /// Whether nobody else comes before.
    pub fn is_first(&self) -> bool {
        self.line.places().front().is_some_and(|place| Arc::ptr_eq(place, &self.own))
    }

    /// Has the next one look in its place.
    pub fn pass_on(&self) {
        if let Some(index) = self.index() {
            self.line.wake_at(index + 1);
        }
    }

    fn index(&self) -> Option<usize> {
        self.line.places().iter().position(|place| Arc::ptr_eq(place, &self.own))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut places = self.line.places();
        let index = places.iter().position(|place| Arc::ptr_eq(place, &self.own));
        index.map(|index| places.remove(index));
        self.line.length.store(places.len(), SeqCst);
        if index == Some(0)
            && let Some(next) = places.front()
        {
            next.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    fn is_woken(place: &Place<'_>) -> bool {
        pin!(place.woken()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_came_first_is_woken_first_and_who_gives_up_wakes_the_next() {
        let line = Line::default();
        let [a, b, c] = [false; 3].map(|first| line.join(4, first).unwrap());
        let again = line.join(4, true).unwrap();
        assert!(line.join(4, true).is_none());
        assert!(again.is_first() && !a.is_first());
        line.wake();
        assert_eq!([&again, &a, &b, &c].map(is_woken), [true, false, false, false]);
        again.pass_on();
        assert_eq!([&again, &a, &b, &c].map(is_woken), [false, true, false, false]);
        // One who is not the first has nothing to leave.
        drop(b);
        assert_eq!([&again, &a, &c].map(is_woken), [false; 3]);
        line.wake();
        drop(again);
        assert!(is_woken(&a), "what the one before it was woken for");
        drop(a);
        assert!(is_woken(&c));
        assert_eq!(line.len(), 1);
        drop(c);
        line.wake();
        assert_eq!(line.len(), 0);
    }
}
