//! Passes on what the kernel programs tell.

use std::{
    io,
    ops::ControlFlow::{Break, Continue},
    sync::Arc,
};

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
    kernel::whenever_ready(drops, |drops| {
        for _ in 0..AT_ONCE {
            match drops.next_drop() {
                Some(drop) => tell(drop),
                None => return Continue(()),
            }
        }
        Break(())
    })
    .await
}

/// Passes the kernel programs' own log on to the daemon's.
pub(super) async fn debug(log: DebugLog) -> io::Result<()> {
    kernel::whenever_ready(log, |log| {
        log.flush();
        Continue(())
    })
    .await
}

/// Events that are passed on before operators, scrapes and signals have their turn: a millisecond's work
/// or less.
const AT_ONCE: usize = 1024;
