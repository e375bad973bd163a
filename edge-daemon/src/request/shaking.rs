//! TLS handshakes, whose long steps are taken in turns. Such a step takes the worker as long as several requests do: whoever
//! else is ready comes between two of them, however many clients connect at once.

use std::time::{Duration, Instant};

use tokio::{
    sync::{Notify, Semaphore},
    task::yield_now,
    time::{error::Elapsed, timeout},
};

use super::Plan;
use crate::tls::{Greeted, Refusal, Shaken};

/// By which the long steps of a worker's handshakes pass.
pub(super) struct Turnstile {
    free: Semaphore,
    passed: Notify,
}

impl Turnstile {
    pub(super) const fn new() -> Self {
        Self { free: Semaphore::const_new(1), passed: Notify::const_new() }
    }

    /// Shakes hands with a client that may take so long. `None`: its turns did not come in time.
    pub(super) async fn shake(
        &self,
        plan: &Plan,
        greeted: Greeted,
        mut left: Duration,
    ) -> Option<Result<Result<Shaken, Refusal>, Elapsed>> {
        let mut wait_left = plan.bounds.handshake_timeout;
        self.pass_within(&mut wait_left).await?;
        let mut shaking = greeted.answer();
        loop {
            let began = Instant::now();
            let heard = timeout(left, shaking.hear()).await;
            left = left.saturating_sub(began.elapsed().max(STEP_MIN));
            match heard {
                Ok(true) => {
                    self.pass_within(&mut wait_left).await?;
                    shaking = shaking.step();
                }
                Ok(false) => return Some(timeout(left, shaking.finish(&plan.tls)).await),
                Err(late) => return Some(Err(late)),
            }
        }
    }

    /// Waits so long for one's turn, and takes off what it took. `None`: it did not come.
    async fn pass_within(&self, left: &mut Duration) -> Option<()> {
        let began = Instant::now();
        let passed = timeout(*left, self.pass()).await;
        *left = left.saturating_sub(began.elapsed());
        passed.ok()
    }

    /// Waits for one's turn, in the order of coming.
    async fn pass(&self) {
        if let Ok(turn) = self.free.acquire().await {
            turn.forget();
        }
        self.passed.notify_one();
    }

    /// Lets the next one pass once everybody who is ready has had their turn; for as long as the worker runs. Where
    /// that took long, as many pass as take no longer: whoever connects to a busy worker has his part of it.
    pub(super) async fn turn(&self) {
        loop {
            let next = fitting(self.round().await);
            self.free.add_permits(next.saturating_sub(self.free.available_permits()));
        }
    }

    /// Once somebody has passed, gives everybody else their turn; how long that took.
    async fn round(&self) -> Duration {
        self.passed.notified().await;
        let began = Instant::now();
        // Behind all that the sockets have brought until then.
        yield_now().await;
        began.elapsed()
    }
}

/// Handshakes that take so long, and one at the least.
fn fitting(time: Duration) -> usize {
    let steps = time.as_micros() / STEP.as_micros();
    usize::try_from(steps).unwrap_or(usize::MAX).clamp(1, AT_ONCE_MAX)
}

/// What a step takes of a client's time at the least, so that they are not without end.
const STEP_MIN: Duration = Duration::from_millis(1);
/// The step that takes long, with a certificate of ECDSA P-256, on a core of a server.
const STEP: Duration = Duration::from_micros(200);
const AT_ONCE_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{runtime::Builder, task::LocalSet};

    use super::*;

    #[test]
    fn whoever_is_ready_comes_between_two_that_pass() {
        let (log, turnstile) = (Rc::new(RefCell::new(String::new())), Rc::new(Turnstile::new()));
        let local = LocalSet::new();
        let turning = Rc::clone(&turnstile);
        // However slow the host is, one at a time.
        local.spawn_local(async move {
            loop {
                turning.round().await;
                turning.free.add_permits(1);
            }
        });
        let passing = (0..3).map(|_| {
            let (log, turnstile) = (Rc::clone(&log), Rc::clone(&turnstile));
            local.spawn_local(async move {
                turnstile.pass().await;
                log.borrow_mut().push('p');
            })
        });
        let passing: Vec<_> = passing.collect();
        // One that is ready whenever it is asked.
        let ready = Rc::clone(&log);
        local.spawn_local(async move {
            loop {
                ready.borrow_mut().push('r');
                yield_now().await;
            }
        });
        let runtime = Builder::new_current_thread().build().unwrap();
        local.block_on(&runtime, async {
            for one in passing {
                one.await.unwrap();
            }
        });
        let log = log.borrow();
        assert_eq!(log.matches('p').count(), 3);
        assert!(!log.contains("pp"), "{log}");
    }

    #[test]
    fn a_busy_worker_lets_as_many_pass_as_take_no_longer_than_the_others() {
        let ms = Duration::from_millis;
        assert_eq!([ms(0), ms(1), ms(20), Duration::MAX].map(fitting), [1, 5, 100, 1_000]);
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_holds_up_nobody() {
        let turnstile = Turnstile::new();
        turnstile.pass().await;
        let given_up = tokio::time::timeout(std::time::Duration::ZERO, turnstile.pass()).await;
        assert!(given_up.is_err(), "nobody has turned it");
        tokio::select! {
            () = turnstile.turn() => {}
            () = turnstile.pass() => {}
        }
    }
}
