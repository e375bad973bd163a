//! What a dropped packet costs the receiver, beside a bare drop and beside nftables.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use edge_common::Reason;
use nix::net::if_::if_nametoindex;

use super::{
    Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Report, bpf::Program, cpu_ns, need_two_cores, pin,
    pin_self, report::median, version,
};
use crate::{
    client::until,
    lab::Lab,
    netns::{Netns, run},
};

/// A list of networks, and sources inside it.
struct List {
    networks: Vec<String>,
    sources: Vec<[u8; 4]>,
}

/// Receiver nanoseconds of each variant in one round.
#[derive(Default)]
struct Cost {
    bare: Vec<f64>,
    edged: Vec<f64>,
    nft: Vec<f64>,
}

/// Packets from listed sources, dropped: bare, by edged, by nftables with the same list.
pub(super) fn drop_cost(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let list = List::new(NETWORKS);
    let mut cost = Cost::default();
    for round in 1..=effort.rounds {
        cost.bare.push(bare(&list, effort)?);
        cost.edged.push(edged(&list, effort)?);
        cost.nft.push(nft(&list, effort)?);
        report.note(&format!(
            "round {round}: receiver ns a packet: bare {:.0}, edged {:.0}, nftables {:.0}",
            last(&cost.bare),
            last(&cost.edged),
            last(&cost.nft)
        ));
    }
    report.note(&format!(
        "medians: bare {:.0}, edged {:.0}, nftables {:.0} ns",
        median(&cost.bare),
        median(&cost.edged),
        median(&cost.nft)
    ));
    for (name, reference, goal, against) in [
        ("edged / bare XDP_DROP", "XDP_DROP, two instructions".to_owned(), 2.5, &cost.bare),
        ("edged / nftables", format!("{}, interval set, 100k", version("nft")), 0.2, &cost.nft),
    ] {
        report.add(&Line {
            measure: 1,
            name: format!("drop from 65 536 sources in 100k CIDRs, receiver CPU, {name}"),
            rounds: cost.edged.iter().zip(against).map(|(ours, theirs)| ours / theirs).collect(),
            unit: "ratio",
            goal: Goal::AtMost(goal),
            reference,
        });
    }
    Ok(())
}

fn bare(list: &List, effort: Effort) -> Result<f64> {
    let lab = Lab::new()?;
    let program = Program::drop_all()?;
    let _link =
        lab.edge.enter(|| Ok::<_, anyhow::Error>(program.attach(if_nametoindex("edge0")?)?))?;
    let (cost, packets) = receive(&lab, list, effort)?;
    ensure!(packets > 0, "nothing was received");
    Ok(cost)
}

fn edged(list: &List, effort: Effort) -> Result<f64> {
    let lab = Lab::new()?;
    let file = write(&lab, "deny.txt", &list.networks.join("\n"))?;
    let edged = lab.edged()?.set("lists.deny_files", &format!("[{file:?}]")).start()?;
    let (cost, packets) = receive(&lab, list, effort)?;
    let dropped = edged.metrics()?.packets(Reason::DenyList);
    ensure!(dropped >= packets as f64, "{dropped} of {packets} were dropped by the list");
    Ok(cost)
}

fn nft(list: &List, effort: Effort) -> Result<f64> {
    let lab = Lab::new()?;
    let rules = format!(
        "table netdev bench {{\n\
         counter dropped {{\n}}\n\
         set denied {{ type ipv4_addr; flags interval; elements = {{ {} }}\n}}\n\
         chain ingress {{\n\
         type filter hook ingress device edge0 priority 0;\n\
         ip saddr @denied counter name dropped drop\n}}\n}}\n",
        list.networks.join(", ")
    );
    let file = write(&lab, "rules.nft", &rules)?;
    // Without an XDP program the interface takes frames only with its own polling, as GRO has.
    run(lab.edge.command("ethtool").args(["-K", "edge0", "gro", "on"]))?;
    run(lab.edge.command("nft").arg("-f").arg(file))?;
    let (cost, packets) = receive(&lab, list, effort)?;
    let shown =
        run(lab.edge.command("nft").args(["list", "counter", "netdev", "bench", "dropped"]))?;
    let mut words = shown.split_whitespace().skip_while(|w| *w != "packets").skip(1);
    let dropped: u64 = words.next().context("no counter")?.parse()?;
    ensure!(dropped >= packets, "{dropped} of {packets} were dropped by the set");
    Ok(cost)
}

/// Receiver CPU nanoseconds a packet under load, and the packets it was taken from.
fn receive(lab: &Lab, list: &List, effort: Effort) -> Result<(f64, u64)> {
    let poller = poller(lab)?;
    pin(poller, MEASURED_CPU)?;
    let port = lab.net.enter(|| if_nametoindex("edge"))?;
    let sender = Program::send(port, &list.sources)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| lab.net.enter(|| load(&sender, &stop)));
        let cost = measure(lab, poller, effort);
        stop.store(true, Relaxed);
        load.join().expect("no panic")?;
        cost
    })
}

fn measure(lab: &Lab, poller: u32, effort: Effort) -> Result<(f64, u64)> {
    std::thread::sleep(Duration::from_millis(300));
    let (ran, packets) = (cpu_ns(poller)?, received(&lab.edge)?);
    std::thread::sleep(Duration::from_secs(effort.seconds));
    let (ran, packets) = (cpu_ns(poller)? - ran, received(&lab.edge)? - packets);
    ensure!(packets > 10_000, "only {packets} packets were received");
    Ok((ran as f64 / packets as f64, packets))
}

fn load(sender: &Program, stop: &AtomicBool) -> Result<()> {
    pin_self(LOAD_CPU)?;
    let frame = frame();
    while !stop.load(Relaxed) {
        sender.run_live(&frame, 65_536)?;
    }
    Ok(())
}

/// Gives the interface's polling a thread of its own, whose running time is exactly the
/// receiver's cost; its process id.
fn poller(lab: &Lab) -> Result<u32> {
    // A namespace that was just removed may still have its own thread of that name.
    let before = threads_named("napi/edge0-")?;
    // The namespace's own /sys/class/net is only in a /sys that was mounted inside.
    let threaded = "echo 1 > /sys/class/net/edge0/threaded";
    run(Command::new("ip").args(["netns", "exec", lab.edge.name(), "sh", "-c", threaded]))?;
    let mut found = None;
    until("the polling thread", Duration::from_secs(2), || {
        found = threads_named("napi/edge0-")?.difference(&before).next().copied();
        Ok(found.is_some())
    })?;
    found.context("found above")
}

fn threads_named(start: &str) -> Result<BTreeSet<u32>> {
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with(start))
    };
    let all = fs::read_dir("/proc")?.flatten().filter(named);
    Ok(all.filter_map(|e| e.file_name().to_string_lossy().parse().ok()).collect())
}

/// Packets that the interface has taken from its ring.
fn received(edge: &Netns) -> Result<u64> {
    let text = run(edge.command("ethtool").args(["-S", "edge0"]))?;
    let counts = text.lines().filter_map(|l| l.trim().split_once(": "));
    let rings = counts.filter(|(n, _)| n.starts_with("rx_queue_") && n.ends_with("_xdp_packets"));
    rings.map(|(_, count)| Ok(count.parse::<u64>()?)).sum()
}

/// An IPv4 UDP frame of 60 bytes, the shortest there is; the sender fills in its source.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 198, 51, 100, 1]);
    frame.extend([0x30, 0x39, 0, 9, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

impl List {
    /// Disjoint networks: seven in ten are single addresses, two are /24, one is /16 to /23.
    fn new(count: usize) -> Self {
        let mut random = Random(0x5eed);
        let (mut taken, mut nets) = (BTreeSet::new(), Vec::new());
        while nets.len() < count {
            let bits = match random.below(10) {
                0..7 => 32,
                7..9 => 24,
                _ => 16 + random.below(8),
            };
            // The wide ones keep to the lower half of the space, one in each /16.
            let (first, span, whole) = if bits < 24 { (11, 50, 16) } else { (61, 66, 24) };
            let address = (first + random.below(span)) << 24 | random.below(1 << 24);
            if taken.insert((whole, address >> (32 - whole))) {
                nets.push((address & u32::MAX << (32 - bits), bits));
            }
        }
        let sources = (0..SOURCES).map(|_| {
            let (net, bits) = nets[random.below(count as u32) as usize];
            let host = if bits == 32 { 0 } else { random.below(1 << (32 - bits)) };
            (net | host).to_be_bytes()
        });
        let sources = sources.collect();
        let text = |(net, bits): &(u32, u32)| format!("{}/{bits}", Ipv4Addr::from(*net));
        Self { networks: nets.iter().map(text).collect(), sources }
    }
}

fn write(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.dir().join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// Numbers that are the same in every run (the splitmix64 construction).
struct Random(u64);

impl Random {
    /// A number below a bound.
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z >> 32) * u64::from(bound)) >> 32) as u32
    }
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or_default()
}

const NETWORKS: usize = 100_000;
/// A power of two: the sender masks a random number with it.
const SOURCES: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_disjoint_and_holds_its_sources() {
        let list = List::new(5_000);
        let mut nets: Vec<ipnet::Ipv4Net> =
            list.networks.iter().map(|n| n.parse().unwrap()).collect();
        nets.sort();
        assert!(nets.windows(2).all(|w| w[0].broadcast() < w[1].network()));
        let inside = |s: &[u8; 4]| nets.iter().any(|n| n.contains(&Ipv4Addr::from(*s)));
        assert!(list.sources.iter().step_by(997).all(inside));
    }

    #[test]
    fn a_bare_drop_and_a_set_can_be_measured() -> Result<()> {
        let list = List::new(1_000);
        let effort = Effort::QUICK;
        assert!(bare(&list, effort)? > 1.0);
        if crate::client::installed("nft") && crate::client::installed("ethtool") {
            assert!(nft(&list, effort)? > 1.0);
        }
        Ok(())
    }
}
