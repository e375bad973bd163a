//! What the kernel's tables and the writer tell a scrape.

use std::sync::atomic::Ordering::Relaxed;

use edge_common::{Reason, map::Count};

use super::Writer;
use crate::metrics::{
    KernelView,
    lists::{FileView, ListView},
};

impl Writer {
    /// Read now.
    pub(super) fn view(&self) -> KernelView {
        let tables = &self.tables;
        let names = self.signatures.iter().map(|named| named.name.clone());
        KernelView {
            counts: tables.counts_apart().unwrap_or_else(|error| {
                tracing::error!(%error, "cannot read the packet counters");
                Vec::new()
            }),
            would_drop: tables.would_drop().unwrap_or([Count::default(); Reason::COUNT]),
            signature_hits: names.zip(tables.signature_hits().unwrap_or_default()).collect(),
            tables: tables.occupancy().iter().map(|o| (o.map, o.used, o.capacity)).collect(),
            drops_lost: tables.drops_lost().unwrap_or_default(),
            samples_lost: tables.samples_lost().unwrap_or_default(),
            uncounted: tables.uncounted().unwrap_or_default(),
            interfaces: self.health.interfaces(),
            corrected: [
                ("added", self.health.added.load(Relaxed)),
                ("removed", self.health.removed.load(Relaxed)),
            ],
            censuses_failed: self.health.failed.load(Relaxed),
            features: tables.features(),
            lists: ListView {
                sizes: tables.lists.sizes(),
                allow: self.allow.len() as u64,
                deny: self.deny.len() as u64,
                files: FileView::all(&self.settings.lists),
            },
            left_out: tables.listeners.left_out(),
            engaged: tables.listeners.engaged().map_or(0, |engaged| engaged.len() as u64),
            alarm: tables.listeners.is_alarm().unwrap_or_default(),
        }
    }
}
