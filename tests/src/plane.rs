//! The kernel plane without an interface: a frame in, by `BPF_PROG_TEST_RUN`, and a verdict out.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use edge_common::{
    Reason,
    map::{Count, FOREVER},
};
use edge_daemon::kernel::{
    Features, InForce, Kernel, KernelError, ListCapacity, LoadSettings, Policy, detach,
};
use edge_policy::list::Class;

use crate::lab::sweep;

/// A loaded kernel plane of a test's own; unpinned when dropped.
pub struct Plane {
    /// Its tables and events.
    pub kernel: Kernel,
    _pins: Pins,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why it ended.
    pub reason: Reason,
    /// Why it would have been dropped but for monitor mode.
    pub would: Option<Reason>,
}

impl Verdict {
    /// Passed, and nothing spoke against it.
    pub const PASS: Self = Self::of(Reason::Pass);

    /// Ended for this reason, none being monitored.
    #[must_use]
    pub const fn of(reason: Reason) -> Self {
        Self { reason, would: None }
    }

    /// Passed, for this reason is only monitored.
    #[must_use]
    pub const fn would(reason: Reason) -> Self {
        Self { reason: Reason::Pass, would: Some(reason) }
    }
}

struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = detach(&self.0);
    }
}

impl Plane {
    /// Loads the programs.
    ///
    /// # Panics
    /// If the kernel refuses them.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::on(Features::found(), policy)
    }

    /// As [`Self::new`], as on a kernel that has these features of those that the filter can do without.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn on(features: Features, policy: Policy) -> Self {
        Self::load(features, policy).unwrap()
    }

    /// As [`Self::on`], where the kernel may lack what the policy needs.
    ///
    /// # Errors
    /// If the programs are refused.
    pub fn load(features: Features, policy: Policy) -> Result<Self, KernelError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
        let pins = Pins(format!("/sys/fs/bpf/edged-plane-{process}-{next}").into());
        let lists = ListCapacity::of(1_000, []);
        let settings = LoadSettings { pin_dir: pins.0.clone(), debug: false, policy, lists };
        Ok(Self { kernel: Kernel::load_with(&settings, features)?, _pins: pins })
    }

    /// Puts a network on the deny list for good.
    pub fn deny(&self, network: &str) {
        let network = network.parse().unwrap();
        let set = self.kernel.tables.lists.set(Class::Deny, &network, FOREVER);
        assert_eq!(set.unwrap(), InForce::Now);
    }

    /// Puts another policy in force.
    pub fn update(&mut self, policy: &Policy) {
        self.kernel.tables.update_policy(policy).unwrap();
    }

    /// Judges a frame; it must be counted once, and at most once as one that would be dropped.
    pub fn judge(&mut self, frame: &[u8]) -> Verdict {
        let tables = &self.kernel.tables;
        let before = (tables.counts().unwrap(), tables.would_drop().unwrap());
        let passes = self.kernel.judge(frame).unwrap();
        let tables = &self.kernel.tables;
        let reason = risen(&before.0, &tables.counts().unwrap(), frame).expect("counted");
        let would = risen(&before.1, &tables.would_drop().unwrap(), frame);
        assert_eq!(reason.passes(), passes, "{}", reason.name());
        assert!(would.is_none_or(|would| !would.passes()), "{would:?}");
        Verdict { reason, would }
    }

    /// How many of so many copies of a frame pass.
    pub fn passing(&mut self, frame: &[u8], copies: usize) -> usize {
        (0..copies).filter(|_| self.kernel.judge(frame).unwrap()).count()
    }

    /// Packets that matched each signature in force.
    #[must_use]
    pub fn hits(&self) -> Vec<u64> {
        self.kernel.tables.signature_hits().unwrap()
    }
}

/// The one reason whose count has risen, by this frame.
fn risen(before: &[Count], after: &[Count], frame: &[u8]) -> Option<Reason> {
    let mut found = None;
    for (reason, (before, after)) in Reason::ALL.iter().zip(before.iter().zip(after)) {
        let packets = after.packets - before.packets;
        assert_eq!(after.bytes - before.bytes, packets * frame.len() as u64);
        if packets > 0 {
            assert_eq!((packets, found.replace(*reason)), (1, None), "counted twice");
        }
    }
    found
}
