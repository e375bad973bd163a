//! The way from the workers to the verdict writer: one queue, of which each worker has a bounded share,
//! so that none can take the room of another or of an operator.

use std::sync::{
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    mpsc::SyncSender,
};

use edge_policy::verdict::Signal;

use crate::verdict::Order;

/// The workers' end of the queue.
pub struct Signals {
    orders: SyncSender<Order>,
    /// How many signals of each worker wait.
    waiting: Box<[AtomicUsize]>,
    /// Signals that found the share of their worker used up.
    lost: AtomicU64,
}

impl Signals {
    /// So much room must the queue have for so many workers.
    #[must_use]
    pub const fn room(workers: usize) -> usize {
        workers * SHARE
    }

    /// For so many workers.
    #[must_use]
    pub fn new(orders: SyncSender<Order>, workers: usize) -> Self {
        let waiting = (0..workers).map(|_| AtomicUsize::new(0)).collect();
        Self { orders, waiting, lost: AtomicU64::new(0) }
    }

    /// Sends signals, or counts those as lost for which there is no room. Never waits.
    pub fn send(&self, worker: usize, mut signals: Vec<Signal>) {
        let waiting = &self.waiting[worker];
        // A worker is one thread: nobody else adds to its share.
        let room = SHARE.saturating_sub(waiting.load(Relaxed));
        let mut lost = signals.len().saturating_sub(room);
        signals.truncate(room);
        let sent = signals.len();
        waiting.fetch_add(sent, Relaxed);
        if sent > 0 && self.orders.try_send(Order::Signals(signals, worker)).is_err() {
            waiting.fetch_sub(sent, Relaxed);
            lost += sent;
        }
        self.lost.fetch_add(lost as u64, Relaxed);
    }

    /// Notes that so many signals of a worker were taken out of the queue.
    pub fn taken(&self, worker: usize, signals: usize) {
        self.waiting[worker].fetch_sub(signals, Relaxed);
    }

    /// Signals that were lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// Signals of one worker that wait: ~400 bytes each with their request.
const SHARE: usize = 8_192;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use edge_common::Reason;
    use edge_policy::verdict::{Kind, Proof};

    use super::*;

    #[test]
    fn a_flood_of_one_worker_leaves_the_others_their_share() {
        let (orders, queue) = sync_channel(Signals::room(2));
        let signals = Signals::new(orders, 2);
        let address = "192.0.2.7".parse().unwrap();
        let signal = || Signal {
            kind: Kind::Refused(Reason::NoRoute),
            at_ns: 0,
            address,
            source: address.into(),
            proof: Proof::Handshake,
            is_spoken_for: false,
            places: edge_policy::place::Places::default(),
            ja4: None,
            principal: None,
            account: None,
            is_led: false,
            request: None,
        };
        for _ in 0..2 * SHARE {
            signals.send(0, vec![signal()]);
        }
        assert_eq!(signals.lost(), SHARE as u64);
        signals.send(1, vec![signal()]);
        assert_eq!(signals.lost(), SHARE as u64);
        assert_eq!(queue.try_iter().count(), SHARE + 1);
        signals.taken(0, 2);
        signals.send(0, vec![signal(), signal(), signal()]);
        assert_eq!(signals.lost(), SHARE as u64 + 1, "as many as there is room for");
        let Ok(Order::Signals(sent, 0)) = queue.try_recv() else { panic!("nothing was sent") };
        assert_eq!(sent.len(), 2);
    }
}
