//! Passes on what the kernel programs tell.

use std::{io, sync::Arc};

use edge_common::{Reason, map};

use crate::{
    events::Event,
    kernel::{self, DebugLog, Drops},
    request::Edge,
};

/// Passes the kernel's drop events on to the event log.
pub(super) async fn drops(drops: Drops, edge: Arc<Edge>) -> io::Result<()> {
    let tell = |drop: map::Packet| {
        let map::Packet { port, protocol, would, .. } = drop;
        let source = drop.source.into();
        let reason = Reason::from_index(drop.reason).unwrap_or(Reason::InternalError).name();
        edge.events.tell(match would {
            0 => Event::PacketDropped { source, reason, port, protocol },
            _ => Event::PacketWouldDrop { source, reason, port, protocol },
        });
    };
    kernel::whenever_ready(drops, |drops| std::iter::from_fn(|| drops.next_drop()).for_each(tell))
        .await
}

/// Passes the kernel programs' own log on to the daemon's.
pub(super) async fn debug(log: DebugLog) -> io::Result<()> {
    kernel::whenever_ready(log, DebugLog::flush).await
}
