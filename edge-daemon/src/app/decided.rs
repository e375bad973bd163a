//! Tells operators of decisions as they are made.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::time::timeout;

use crate::{
    control::{Reply, bans::Decided},
    request::Edge,
};

/// Those who wait for decisions. Each holds one of the few connections that are answered at once, so
/// that they are fewer still.
#[derive(Clone, Default)]
pub(super) struct Watchers(Rc<Cell<usize>>);

impl Watchers {
    /// What was decided from this number on, as soon as there is anything; nothing after some seconds,
    /// in which case the reader asks again. Without a number: from now on.
    pub(super) async fn wait(&self, edge: &Edge, from: Option<u64>) -> Reply {
        if self.0.get() >= WATCHERS_MAX {
            return Reply::Refused(format!("{WATCHERS_MAX} watch already"));
        }
        let _place = Place::take(&self.0);
        let from = from.unwrap_or_else(|| edge.decisions.next());
        let _ = timeout(PATIENCE, edge.decisions.wait(from)).await;
        let since = edge.decisions.since(from, PAGE);
        let decisions = since.decisions.iter().map(|decision| (**decision).clone()).collect();
        Reply::Decided(Decided { decisions, next: since.next, missed: since.missed })
    }
}

/// One who waits.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

const WATCHERS_MAX: usize = 4;
/// Shorter than the deadline of a control connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Decisions in one answer.
const PAGE: usize = 1_000;
