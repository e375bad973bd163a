//! The packet program, by `BPF_PROG_TEST_RUN`: a frame in, a reason out.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use edge_common::{
    Rate, Reason, Source,
    map::{Ban, FOREVER},
};
use edge_daemon::kernel::{AttachMode, Kernel, KernelError, Limits, LoadSettings, boot_ns, detach};
use edge_tests::packet::{
    ACK, DESTINATION, HOP_BY_HOP, HOST_IDENTITY, MOBILITY, Packet, ROUTING, RST, SHIM6, SYN, ether,
    v4, v6,
};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

const UNLIMITED: Limits = Limits {
    packet_rate: Rate::OFF,
    connection_rate: Rate::OFF,
    event_rate: Rate::OFF,
    open_max: 0,
    ipv6_bits: 64,
};

/// The kernel plane without an interface, in a folder of pins of its own.
struct Bench {
    kernel: Kernel,
    pin_dir: PathBuf,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, next) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/edged-test-{process}-{next}"));
        Self { kernel: load(&pin_dir, limits), pin_dir }
    }

    /// Judges a frame; it must be counted exactly once, and under a reason that says what it did.
    fn judge(&mut self, frame: &[u8]) -> Reason {
        let before = self.kernel.tables.counts().unwrap();
        let passes = self.kernel.judge(frame).unwrap();
        let after = self.kernel.tables.counts().unwrap();
        let mut counted = Reason::ALL.iter().filter(|reason| {
            let (before, after) = (before[**reason as usize], after[**reason as usize]);
            let (packets, bytes) = (after.packets - before.packets, after.bytes - before.bytes);
            assert_eq!(bytes, packets * frame.len() as u64);
            assert!(packets <= 1);
            packets == 1
        });
        let reason = *counted.next().expect("counted");
        assert_eq!(counted.next(), None, "counted twice");
        assert_eq!(reason.passes(), passes, "{}", reason.name());
        reason
    }

    fn allow(&mut self, network: &str, until_ns: u64) {
        self.kernel.tables.allow.put(&network.parse().unwrap(), until_ns).unwrap();
    }

    fn deny(&mut self, network: &str, until_ns: u64) {
        self.kernel.tables.deny.put(&network.parse().unwrap(), until_ns).unwrap();
    }

    fn ban(&mut self, client: &str, until_ns: u64) {
        let ban = Ban {
            since_ns: boot_ns(),
            until_ns,
            hits: 0,
            first_hit_ns: 0,
            reason: Reason::CredentialInvalid as u32,
            strikes: 1,
        };
        self.kernel.tables.bans.ban(source(client), ban).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        detach(&self.pin_dir).unwrap();
    }
}

fn load(pin_dir: &std::path::Path, limits: Limits) -> Kernel {
    let settings = LoadSettings {
        interfaces: Vec::new(),
        mode: AttachMode::Auto,
        pin_dir: pin_dir.to_owned(),
        debug: false,
        limits,
    };
    Kernel::load(&settings).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn source(text: &str) -> Source {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

#[test]
fn the_verifier_walks_no_farther_than_this() {
    let mut bench = Bench::new(UNLIMITED);
    let walked = bench.kernel.verified_instructions().unwrap();
    println!("verified instructions: {walked}");
    assert!((1..=INSTRUCTIONS_MAX).contains(&walked), "{walked}");
}

/// A tenth above what it is today; the kernel's own bound is a million.
const INSTRUCTIONS_MAX: u32 = 1_000_000;
