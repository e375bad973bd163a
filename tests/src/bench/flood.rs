//! A flood over a live veth, and what each packet of it costs the receiver.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{net::if_::if_nametoindex, unistd::gettid};

use super::{
    Effort, LOAD_CPU, MEASURED_CPU,
    bpf::{Action, Link, Program, Sources},
    cpu_ns, pin, pin_self,
};
use crate::{
    client::until,
    lab::Lab,
    netns::{Netns, run},
};

/// A flood: one frame again and again, each time from another source.
pub(super) struct Flood {
    /// The frame, for which the sender fills in the source; 60 bytes at least.
    pub(super) frame: Vec<u8>,
    /// Whom it comes from.
    pub(super) sources: Sources,
}

/// What a flood cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// Receiver CPU nanoseconds a packet.
    pub(super) ns: f64,
    /// Packets that this was taken from.
    pub(super) packets: u64,
}

impl Flood {
    /// The cost of the flood to the edge of a lab, as it stands.
    pub(super) fn cost(&self, lab: &Lab, effort: Effort) -> Result<Cost> {
        let poller = poller(lab, &lab.edge, "edge0")?;
        pin(poller, MEASURED_CPU)?;
        self.beside(lab, Pace::Full, || measure(lab, poller, effort))
    }

    /// Does some work while the flood runs; an error if the flood did not arrive.
    pub(super) fn beside<T>(
        &self,
        lab: &Lab,
        pace: Pace,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.beside_on(lab, &[LOAD_CPU], pace, work)
    }

    /// Does some work while the flood runs on each of these cores.
    pub(super) fn beside_on<T>(
        &self,
        lab: &Lab,
        cpus: &[usize],
        pace: Pace,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let port = lab.net.enter(|| if_nametoindex("edge"))?;
        let tcp = self.is_tcp().then_some(&self.frame[..]);
        let sender = Program::send(port, &self.sources, tcp, pace.interval_ns())?;
        let stop = AtomicBool::new(false);
        let send = |cpu, placed: mpsc::Sender<()>| {
            lab.net.enter(|| {
                place(pace, cpu)?;
                drop(placed);
                self.send(&sender, &stop)
            })
        };
        let (taken, offered) = (received(&lab.edge, "edge0")?, offered(lab)?);
        let (done, start) = std::thread::scope(|scope| {
            let send = &send;
            let (placed, all) = mpsc::channel();
            let start_one = |cpu: &usize| {
                let (cpu, placed) = (*cpu, placed.clone());
                scope.spawn(move || send(cpu, placed))
            };
            let senders: Vec<_> = cpus.iter().map(start_one).collect();
            // Nobody says a word: it ends when each has let go of its end, by failing too.
            drop(placed);
            let _ = all.recv();
            let start = Instant::now();
            let done = work();
            stop.store(true, Relaxed);
            for sender in senders {
                sender.join().expect("no panic").context("the flood")?;
            }
            done.map(|done| (done, start))
        })?;
        // Beside a flood that did not come, anything holds.
        let rate = |packets: u64| packets as f64 / start.elapsed().as_secs_f64();
        let taken = rate(received(&lab.edge, "edge0")? - taken);
        let offered = rate(self::offered(lab)? - offered);
        ensure!(
            taken >= TAKEN_MIN && offered >= pace.floor(),
            "of the flood, {offered:.0} packets a second arrived and {taken:.0} were taken in"
        );
        Ok(done)
    }

    fn is_tcp(&self) -> bool {
        self.frame.get(12..14) == Some(&[0x08, 0x00]) && self.frame[23] == 6
    }

    fn send(&self, sender: &Program, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Relaxed) {
            sender.run_live(&self.frame, FRAMES)?;
        }
        Ok(())
    }
}

/// Puts the calling thread where it sends from.
fn place(pace: Pace, cpu: usize) -> Result<()> {
    pin_self(cpu)?;
    match pace {
        Pace::Strict(_) => before_processes(gettid().as_raw().cast_unsigned(), 1),
        Pace::Full | Pace::PerSecond(_) => Ok(()),
    }
}

impl Pace {
    fn interval_ns(self) -> Option<i32> {
        match self {
            Self::Full => None,
            Self::PerSecond(rate) | Self::Strict(rate) => i32::try_from(1_000_000_000 / rate).ok(),
        }
    }

    /// Packets a second that have to arrive at least.
    fn floor(self) -> f64 {
        match self {
            Self::Full => TAKEN_MIN,
            Self::PerSecond(rate) | Self::Strict(rate) => f64::from(rate) / 2.0,
        }
    }
}

/// How fast to send.
#[derive(Clone, Copy)]
pub(super) enum Pace {
    /// As fast as it goes.
    Full,
    /// So many packets a second in all; the sender is as busy as at full pace.
    PerSecond(u32),
    /// As that, but the sender comes before all processes.
    Strict(u32),
}

/// Lets a thread run before all processes, as interrupts do; among such threads the higher goes first.
pub(super) fn before_processes(thread: u32, priority: u32) -> Result<()> {
    let (priority, thread) = (priority.to_string(), thread.to_string());
    run(Command::new("chrt").args(["-f", "-p", &priority, &thread])).map(drop)
}

/// Has the calling thread run only while nobody else wants to.
pub(super) fn behind_processes() -> Result<()> {
    run(Command::new("chrt").args(["-i", "-p", "0", &gettid().to_string()])).map(drop)
}

fn measure(lab: &Lab, poller: u32, effort: Effort) -> Result<Cost> {
    std::thread::sleep(Duration::from_millis(300));
    let (ran, packets) = (cpu_ns(poller)?, received(&lab.edge, "edge0")?);
    std::thread::sleep(Duration::from_secs(effort.seconds));
    let (ran, packets) = (cpu_ns(poller)? - ran, received(&lab.edge, "edge0")? - packets);
    ensure!(packets > 10_000, "only {packets} packets were received");
    Ok(Cost { ns: ran as f64 / packets as f64, packets })
}

/// Lets the lab's bridge take what the edge sends back from its driver, until this is dropped.
pub struct Answers(#[expect(dead_code, reason = "held for its effect")] Link);

impl Answers {
    /// A veth takes frames from its peer's driver only if it has an XDP program itself.
    ///
    /// # Errors
    /// Without root.
    pub fn take(lab: &Lab) -> Result<Self> {
        let pass = Program::bare(Action::Pass)?;
        let attach = || Ok::<_, anyhow::Error>(pass.attach(if_nametoindex("edge")?)?);
        Ok(Self(lab.net.enter(attach)?))
    }
}

/// A VLAN between an interface and what it is plugged into, until this is dropped: the host inside sees
/// nothing of it, and the filter does. It needs no VLAN device, which not every kernel has.
pub struct Vlan(#[expect(dead_code, reason = "held for its effect")] [Link; 2]);

impl Vlan {
    /// The interface and the one it is plugged into must carry tags in the frame (`txvlan off`).
    ///
    /// # Errors
    /// Without root or kernel 6.6.
    pub fn start(home: &Netns, interface: &str, id: u16) -> Result<Self> {
        home.enter(|| {
            let ifindex = if_nametoindex(interface)?;
            let untagging = Program::untag()?.attach_tcx(ifindex, false)?;
            Ok(Self([untagging, Program::tag(id)?.attach_tcx(ifindex, true)?]))
        })
    }
}

/// Gives the polling of a namespace's interface a thread of its own, whose running time is exactly
/// the receiver's cost; its process id. It comes before all processes, so that what else the host does
/// neither holds it up nor takes its caches.
pub(super) fn poller(lab: &Lab, home: &Netns, interface: &str) -> Result<u32> {
    let name = format!("napi/{interface}-");
    // A namespace that was just removed may still have its own thread of that name.
    let before = threads_named(&name)?;
    // The namespace's own /sys/class/net is only in a /sys that was mounted inside.
    let threaded = format!("echo 1 > /sys/class/net/{interface}/threaded");
    run(Command::new("ip").args(["netns", "exec", home.name(), "sh", "-c", &threaded]))?;
    let mut found = None;
    until(&format!("the polling thread in {}", lab.id), Duration::from_secs(2), || {
        found = threads_named(&name)?.difference(&before).next().copied();
        Ok(found.is_some())
    })?;
    let found = found.context("found above")?;
    before_processes(found, 2)?;
    Ok(found)
}

fn threads_named(start: &str) -> Result<BTreeSet<u32>> {
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with(start))
    };
    let all = fs::read_dir("/proc")?.flatten().filter(named);
    Ok(all.filter_map(|e| e.file_name().to_string_lossy().parse().ok()).collect())
}

/// Packets that an interface has taken from its rings.
pub(super) fn received(home: &Netns, interface: &str) -> Result<u64> {
    counted(home, interface, "rx_queue_", "_xdp_packets")
}

/// Packets that came to the edge of a lab, with those that its full rings had no room for.
pub(super) fn offered(lab: &Lab) -> Result<u64> {
    let refused = counted(&lab.net, "edge", "tx_queue_", "_xdp_xmit_errors")?;
    Ok(received(&lab.edge, "edge0")? + refused)
}

/// The sum of a driver's counter over all queues.
fn counted(home: &Netns, interface: &str, queue: &str, counter: &str) -> Result<u64> {
    let text = run(home.command("ethtool").args(["-S", interface]))?;
    let counts = text.lines().filter_map(|l| l.trim().split_once(": "));
    let queues = counts.filter(|(n, _)| n.starts_with(queue) && n.ends_with(counter));
    queues.map(|(_, count)| Ok(count.parse::<u64>()?)).sum()
}

/// Frames in a run of the sender, a tenth of a second of them: between two runs the kernel waits some 20
/// ms, in which nothing comes.
const FRAMES: u32 = 1 << 20;
/// Packets a second that a receiver takes in under any flood.
const TAKEN_MIN: f64 = 10_000.0;
