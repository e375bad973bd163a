//! Lifts on disk. A ban that was lifted is nowhere any more but in the memory of others, so the lift has to
//! outlive a restart of this edge for as long as the ban would have.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use edge_identity::fleet::Record;
use tokio::time;

use super::{
    super::{
        kept::{self, Head},
        lock,
    },
    CLIENTS_MAX, Fleet,
};
use crate::clock;

/// Takes what was kept; sealed as it was shared, so that under another secret there is nothing.
pub(super) fn load(fleet: &Fleet) -> Vec<Record> {
    let Ok(seal) = fleet.seal() else { return Vec::new() };
    let kept = kept::load(&fleet.dir, KEPT, &fleet.settings.name, BYTES_MAX);
    let content = kept.map(|(_, content)| content).unwrap_or_default();
    let now_ms = clock::unix_ms();
    let records = content.lines().filter_map(|line| Record::open(line, &seal, now_ms).ok());
    records.take(CLIENTS_MAX).collect()
}

/// Keeps them, for ever: durable within a second, as bans are.
pub(super) async fn keep(fleet: Arc<Fleet>) {
    loop {
        time::sleep(EVERY).await;
        if !fleet.is_unsaved.swap(false, Relaxed) {
            continue;
        }
        let this = Arc::clone(&fleet);
        let saved = tokio::task::spawn_blocking(move || save(&this)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(error, "lifted bans are not on disk yet");
            fleet.is_unsaved.store(true, Relaxed);
            time::sleep(PAUSE).await;
        }
    }
}

fn save(fleet: &Fleet) -> Result<(), String> {
    let seal = fleet.seal()?;
    let lifts: Vec<_> = lock(&fleet.own).lifts().cloned().collect();
    let content: String = lifts.iter().map(|lift| lift.seal(&seal) + "\n").collect();
    let head = Head::new(fleet.settings.name.clone(), clock::unix_ms(), None, None);
    let saved = kept::save(&fleet.dir, KEPT, head, content.as_bytes());
    saved.map_err(|error| error.to_string())
}

const KEPT: &str = "lifts";
/// A million of them.
const BYTES_MAX: usize = 256 << 20;
const EVERY: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(30);
