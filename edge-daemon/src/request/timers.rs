//! One worker's deadlines: looked at together, a few times a second, so that setting one costs no
//! more than writing a number.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::clock;

/// The deadlines of everything that one worker waits for.
pub(crate) struct Timers {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    /// Whether memory is short: deadlines for that case are in force as well.
    is_short: Cell<bool>,
}

struct Slot {
    due_ms: Due,
    waker: Option<Waker>,
}

/// One deadline, which may be moved as often as one likes.
pub(crate) struct Alarm {
    timers: Rc<Timers>,
    index: u32,
    due_ms: Cell<Due>,
}

/// When a deadline passes, and when it does while memory is short.
#[derive(Clone, Copy)]
struct Due {
    always: u64,
    short: u64,
}

impl Due {
    fn at(self, is_short: bool) -> u64 {
        if is_short { self.always.min(self.short) } else { self.always }
    }
}

impl Timers {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            is_short: Cell::new(false),
        })
    }

    /// The time that deadlines go by.
    #[expect(clippy::unused_self, reason = "whose time it is")]
    pub(crate) fn now_ms(&self) -> u64 {
        clock::coarse_ms()
    }

    /// A deadline that is not set.
    pub(crate) fn alarm(self: &Rc<Self>) -> Alarm {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot { due_ms: UNSET, waker: None });
            u32::try_from(slots.len() - 1).expect("connections are bounded far below")
        });
        Alarm { timers: Rc::clone(self), index, due_ms: Cell::new(UNSET) }
    }

    /// Says whether memory is short, from the next look on.
    pub(crate) fn note_short(&self, is_short: bool) {
        self.is_short.set(is_short);
    }

    /// Wakes whoever's deadline has passed; to be called a few times a second.
    pub(crate) fn look(&self) {
        self.wake(self.now_ms());
    }

    /// Wakes whoever waits with a deadline, whatever it is: something has changed for all.
    pub(crate) fn wake_all(&self) {
        self.wake(NEVER - 1);
    }

    fn wake(&self, now_ms: u64) {
        // One after the other: to wake may run the code of others.
        let mut index = 0;
        loop {
            let waker = match self.slots.borrow_mut().get_mut(index) {
                Some(slot) if slot.due_ms.at(self.is_short.get()) <= now_ms => slot.waker.take(),
                Some(_) => None,
                None => return,
            };
            if let Some(waker) = waker {
                waker.wake();
            }
            index += 1;
        }
    }
}

impl Alarm {
    pub(crate) fn now_ms(&self) -> u64 {
        self.timers.now_ms()
    }

    /// Sets the deadline.
    pub(crate) fn set(&self, due_ms: u64) {
        self.due_ms.set(Due { always: due_ms, short: NEVER });
    }

    /// Sets the deadline, and one for as long as memory is short.
    pub(crate) fn set_with_short(&self, always: u64, short: u64) {
        self.due_ms.set(Due { always, short });
    }

    /// Whether it has passed only because memory is short.
    pub(crate) fn is_early(&self) -> bool {
        self.due_ms.get().always > self.now_ms()
    }

    /// Whether it has passed; if not, wakes the task soon after it has.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let due_ms = self.due_ms.get();
        if due_ms.at(self.timers.is_short.get()) <= self.now_ms() {
            return Poll::Ready(());
        }
        let mut slots = self.timers.slots.borrow_mut();
        let slot = &mut slots[self.index as usize];
        slot.due_ms = Due { always: due_ms.always.min(NEVER - 1), ..due_ms };
        match &mut slot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.timers.slots.borrow_mut()[self.index as usize] = Slot { due_ms: UNSET, waker: None };
        self.timers.free.borrow_mut().push(self.index);
    }
}

/// A duration in the unit of the timers.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const NEVER: u64 = u64::MAX;
const UNSET: Due = Due { always: NEVER, short: NEVER };

#[cfg(test)]
mod tests {
    use std::{sync::Arc, sync::atomic::AtomicU32, sync::atomic::Ordering::Relaxed, task::Wake};

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn whoever_is_due_is_woken_once() {
        let (timers, counted) = (Timers::new(), Arc::new(Counted::default()));
        let waker = Waker::from(Arc::clone(&counted));
        let mut cx = Context::from_waker(&waker);
        let (soon, late) = (timers.alarm(), timers.alarm());
        soon.set(timers.now_ms() + 50);
        late.set(timers.now_ms() + 60_000);
        assert!(soon.poll(&mut cx).is_pending() && late.poll(&mut cx).is_pending());
        timers.wake(timers.now_ms());
        assert_eq!(counted.0.load(Relaxed), 0);
        timers.wake(timers.now_ms() + 50);
        timers.wake(timers.now_ms() + 50);
        assert_eq!(counted.0.load(Relaxed), 1);
        timers.wake_all();
        assert_eq!(counted.0.load(Relaxed), 2);
    }

    #[test]
    fn an_earlier_deadline_holds_while_memory_is_short() {
        let (timers, counted) = (Timers::new(), Arc::new(Counted::default()));
        let waker = Waker::from(Arc::clone(&counted));
        let mut cx = Context::from_waker(&waker);
        let (alarm, other) = (timers.alarm(), timers.alarm());
        let now_ms = timers.now_ms();
        alarm.set_with_short(now_ms + 60_000, now_ms);
        other.set(now_ms + 60_000);
        assert!(alarm.poll(&mut cx).is_pending() && other.poll(&mut cx).is_pending());
        timers.look();
        assert_eq!(counted.0.load(Relaxed), 0);
        timers.note_short(true);
        timers.look();
        assert_eq!(counted.0.load(Relaxed), 1);
        assert!(alarm.poll(&mut cx).is_ready() && alarm.is_early());
        assert!(other.poll(&mut cx).is_pending());
        alarm.set_with_short(now_ms, now_ms);
        assert!(alarm.poll(&mut cx).is_ready() && !alarm.is_early());
    }

    #[test]
    fn a_deadline_that_is_gone_leaves_its_place() {
        let timers = Timers::new();
        let first = timers.alarm();
        let index = first.index;
        drop(first);
        let second = timers.alarm();
        assert_eq!(second.index, index);
        assert!(second.poll(&mut Context::from_waker(Waker::noop())).is_pending(), "not set");
        second.set(0);
        assert!(second.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
