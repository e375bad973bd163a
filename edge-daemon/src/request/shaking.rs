//! TLS handshakes, whose long steps are taken by a thread beside the worker's: the scheduler lets the worker go first
//! when it wakes, and gives each a half of the core when both are busy. So requests wait for no handshake, however many
//! clients connect at once.

use std::time::{Duration, Instant};

use tokio::{
    runtime::Builder,
    task::spawn_blocking,
    time::{error::Elapsed, timeout},
};

use super::Plan;
use crate::{
    slices,
    tls::{Greeted, Refusal, Shaken},
};

/// Has a worker's runtime take what is blocking to one thread, which takes one piece of work after the other.
pub(super) fn beside(runtime: &mut Builder, worker: usize) {
    runtime
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::MAX)
        .thread_name(format!("handshakes-{worker}"))
        .on_thread_start(|| {
            if let Err(error) = slices::be_patient() {
                tracing::info!(%error, "requests wait for handshakes as threads wait for each other");
            }
        });
}

/// Shakes hands with a client that may take so long. `None`: our own part was not done in time.
pub(super) async fn shake(
    plan: &Plan,
    greeted: Greeted,
    mut left: Duration,
) -> Option<Result<Result<Shaken, Refusal>, Elapsed>> {
    let mut ours_left = plan.bounds.handshake_timeout;
    let mut shaking = aside(&mut ours_left, || greeted.answer()).await?;
    loop {
        let began = Instant::now();
        let heard = timeout(left, shaking.hear()).await;
        left = left.saturating_sub(began.elapsed().max(STEP_MIN));
        match heard {
            Ok(true) => shaking = aside(&mut ours_left, || shaking.step()).await?,
            Ok(false) => return Some(timeout(left, shaking.finish(&plan.tls)).await),
            Err(late) => return Some(Err(late)),
        }
    }
}

/// Has a step taken beside the worker, which may take so long, and what is left of that. `None`: it did not come about.
async fn aside<T: Send + 'static>(
    left: &mut Duration,
    step: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let began = Instant::now();
    let mut taken = spawn_blocking(step);
    let outcome = timeout(*left, &mut taken).await;
    *left = left.saturating_sub(began.elapsed());
    if outcome.is_err() {
        taken.abort();
    }
    outcome.ok()?.ok()
}

/// What a step takes of a client's time at the least, so that they are not without end.
const STEP_MIN: Duration = Duration::from_millis(1);
