//! Handshakes pass one by one. A step of one takes the worker as long as many requests do: whoever else is ready
//! comes between two of them, however many clients connect at once.

use tokio::{
    sync::{Notify, Semaphore},
    task::yield_now,
};

/// One worker's.
pub(super) struct Turnstile {
    free: Semaphore,
    passed: Notify,
}

impl Turnstile {
    pub(super) const fn new() -> Self {
        Self { free: Semaphore::const_new(1), passed: Notify::const_new() }
    }

    /// Waits for one's turn, in the order of coming.
    pub(super) async fn pass(&self) {
        if let Ok(turn) = self.free.acquire().await {
            turn.forget();
        }
        self.passed.notify_one();
    }

    /// Lets the next one pass once everybody who is ready has had their turn; for as long as the worker runs.
    pub(super) async fn turn(&self) {
        loop {
            self.passed.notified().await;
            // Behind all that the sockets have brought until then.
            yield_now().await;
            self.free.add_permits(1);
        }
    }
}

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
        local.spawn_local(async move { turning.turn().await });
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
