//! Passes on what the kernel programs tell.

use std::{
    io, iter,
    ops::ControlFlow::{self, Break, Continue},
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
    kernel::whenever_ready(drops, |drops| pass_on(iter::from_fn(|| drops.next_drop()), tell)).await
}

/// Tells what there is; breaks off while there may be more.
fn pass_on<T>(events: impl Iterator<Item = T>, tell: impl Fn(T)) -> ControlFlow<()> {
    let mut left = AT_ONCE;
    for event in events.take(AT_ONCE) {
        tell(event);
        left -= 1;
    }
    if left == 0 { Break(()) } else { Continue(()) }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn events_without_an_end_are_broken_off() {
        let told = Cell::new(0);
        let tell = |()| {
            assert!(told.get() < AT_ONCE, "without a pause");
            told.set(told.get() + 1);
        };
        assert_eq!(pass_on(iter::repeat(()), tell), Break(()));
        assert_eq!(told.replace(0), AT_ONCE);
        assert_eq!(pass_on(iter::repeat_n((), 3), tell), Continue(()));
        assert_eq!(told.get(), 3);
    }
}
