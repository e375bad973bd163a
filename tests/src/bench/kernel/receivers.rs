//! What can stand at the edge's interface: the product, bare programs and the peers, each with
//! what proves that it did the work.

use std::{fs, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use edge_common::Reason;
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;

use super::networks::List;
use crate::{
    bench::{
        Effort,
        bpf::{Lpm, Map, Program},
        flood::{Cost, Flood},
    },
    daemon::Setup,
    lab::Lab,
    netns::run,
};

/// A flood and how long to take its cost.
pub(super) struct Trial {
    pub(super) flood: Flood,
    pub(super) effort: Effort,
}

impl Trial {
    /// A program of the bench's own.
    pub(super) fn program(&self, program: &Program) -> Result<f64> {
        let lab = Lab::new()?;
        let _link =
            lab.edge.enter(|| Ok::<_, anyhow::Error>(program.attach(if_nametoindex("edge0")?)?))?;
        Ok(self.flood.cost(&lab, self.effort)?.ns)
    }

    /// A trie in which the sources are, or are not but for one that is by chance.
    pub(super) fn lpm(&self, lpm: &Lpm, are_listed: bool) -> Result<f64> {
        let [missed, hit] = lpm.counts()?;
        let ns = self.program(&lpm.program)?;
        let now = lpm.counts()?;
        let [missed, hit] = [now[0] - missed, now[1] - hit].map(|count| count as f64);
        let right = if are_listed { hit } else { missed };
        ensure!(right > 0.9 * (hit + missed), "{hit} of {} were listed", hit + missed);
        Ok(ns)
    }

    /// The product, set up like this; each packet must end for this reason.
    pub(super) fn edged(
        &self,
        ends: Reason,
        set: impl for<'l> FnOnce(Setup<'l>, &Lab) -> Result<Setup<'l>>,
    ) -> Result<f64> {
        let lab = Lab::new()?;
        let edged = set(lab.edged()?, &lab)?.start()?;
        let before = edged.metrics()?.packets(ends);
        let cost = self.flood.cost(&lab, self.effort)?;
        let ended = edged.metrics()?.packets(ends) - before;
        // A random source may be on a list by chance.
        ensure!(
            ended >= cost.packets as f64 * 0.9,
            "{ended} of {} were {}",
            cost.packets,
            ends.name()
        );
        Ok(cost.ns)
    }

    /// nftables with these rules, one of which counts what it drops as `dropped`.
    pub(super) fn nft(&self, table: &str, rules: &str) -> Result<f64> {
        let lab = polled()?;
        run(lab.edge.command("nft").arg("-f").arg(write(&lab, "rules.nft", rules)?))?;
        let cost = self.flood.cost(&lab, self.effort)?;
        let mut show = lab.edge.command("nft");
        let shown = run(show.args(["list", "counter"]).args(table.split(' ')).arg("dropped"))?;
        check(cost, number_after(&shown, "packets")?)
    }

    /// iptables, raw table, with an ipset of the list.
    pub(super) fn ipset(&self, list: &List) -> Result<f64> {
        let lab = polled()?;
        let text = format!(
            "create denied hash:net maxelem {}\nadd denied {}\n",
            list.0.len(),
            list.joined("\nadd denied ")
        );
        let file = write(&lab, "ipset.txt", &text)?;
        run(lab.edge.command("ipset").arg("restore").arg("-file").arg(file))?;
        let rule = ["-t", "raw", "-A", "PREROUTING", "-m", "set", "--match-set", "denied", "src"];
        run(lab.edge.command("iptables-legacy").args(rule).args(["-j", "DROP"]))?;
        let cost = self.flood.cost(&lab, self.effort)?;
        let mut show = lab.edge.command("iptables-legacy");
        let shown = run(show.args(["-t", "raw", "-L", "PREROUTING", "-vnx"]))?;
        let line = shown.lines().find(|l| l.contains("DROP")).context("no rule")?;
        check(cost, line.split_whitespace().next().context("no count")?.parse()?)
    }

    /// xdp-filter with these addresses.
    pub(super) fn xdp_filter(&self, list: &List) -> Result<f64> {
        let lab = Lab::new()?;
        let filter = XdpFilter::load(&lab, &list.0.iter().map(IpNet::addr).collect::<Vec<_>>())?;
        let cost = self.flood.cost(&lab, self.effort)?;
        let shown = run(lab.edge.command("xdp-filter").arg("status"))?;
        drop(filter);
        let line = shown.lines().find(|l| l.contains("XDP_DROP")).context("no count")?;
        let dropped = line.split_whitespace().nth(1).context("no count")?.parse()?;
        check(cost, dropped)
    }
}

/// xdp-filter on the edge's interface, until this is dropped.
pub(super) struct XdpFilter<'a>(&'a Lab);

impl<'a> XdpFilter<'a> {
    /// Loads it, denying these sources, of which there may be 10 000 in each family.
    ///
    /// It is set up by its program; the entries are put into its pinned tables directly, because
    /// the program takes one a call. The tables are pinned at one place for the whole host, and a
    /// namespace is entered without `ip netns exec`, which would hide that place.
    pub(super) fn load(lab: &'a Lab, addresses: &[IpAddr]) -> Result<Self> {
        let features = if addresses.iter().all(IpAddr::is_ipv4) { "ipv4" } else { "ipv4,ipv6" };
        run(lab.edge.command("xdp-filter").args(["load", "edge0", "-f", features]))?;
        let filter = Self(lab);
        let folder = PathBuf::from("/sys/fs/bpf/xdp-filter");
        let cpus = fs::read_to_string("/sys/devices/system/cpu/possible")?;
        let last: usize = cpus.trim().rsplit(['-', ',']).next().context("CPUs")?.parse()?;
        // The lowest bit says that the address is meant as a source; each CPU has a value.
        let value = 1_u64.to_ne_bytes().repeat(last + 1);
        for address in addresses {
            let (name, key) = match address {
                IpAddr::V4(address) => ("filter_ipv4", address.octets().to_vec()),
                IpAddr::V6(address) => ("filter_ipv6", address.octets().to_vec()),
            };
            Map::pinned(&folder.join(name))?.put(&key, &value)?;
        }
        Ok(filter)
    }
}

impl Drop for XdpFilter<'_> {
    fn drop(&mut self) {
        if let Err(e) = run(self.0.edge.command("xdp-filter").args(["unload", "edge0"])) {
            eprintln!("{e:#}");
        }
    }
}

/// A netfilter table that drops the sources of a set at the interface.
pub(super) fn nft_rules(kind: &str, elements: &str) -> String {
    format!(
        "table netdev bench {{\n\
         counter dropped {{\n}}\n\
         set denied {{ type ipv4_addr; {kind} elements = {{ {elements} }}\n}}\n\
         chain ingress {{\n\
         type filter hook ingress device edge0 priority 0;\n\
         ip saddr @denied counter name dropped drop\n}}\n}}\n"
    )
}

/// Gives the product a list to deny.
pub(super) fn denying<'a>(setup: Setup<'a>, lab: &Lab, list: &List) -> Result<Setup<'a>> {
    let file = write(lab, "deny.txt", &list.text())?;
    Ok(setup.set("lists.deny_files", &format!("[{file:?}]")))
}

/// Takes everyone off the product's lists who can be.
pub(super) fn without_lists(setup: Setup<'_>) -> Setup<'_> {
    setup.set("lists.allow", "[]").set("lists.deny", "[]")
}

/// A lab whose edge polls its interface without an XDP program, as it does with GRO, and to which
/// the flood's frames are addressed: netfilter sees no others.
pub(super) fn polled() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.edge.ip("link set edge0 address 02:00:00:00:00:01")?;
    run(lab.edge.command("ethtool").args(["-K", "edge0", "gro", "on"]))?;
    Ok(lab)
}

pub(super) fn write(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.dir().join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// The number behind a word.
pub(super) fn number_after(text: &str, word: &str) -> Result<u64> {
    let mut words = text.split_whitespace().skip_while(|w| *w != word).skip(1);
    Ok(words.next().with_context(|| format!("no {word} in {text}"))?.parse()?)
}

fn check(cost: Cost, dropped: u64) -> Result<f64> {
    let Cost { ns, packets } = cost;
    ensure!(dropped >= packets, "{dropped} of {packets} were dropped by the rule");
    Ok(ns)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        bench::{
            bpf::{Action, Sources},
            kernel::{UDP_LENGTH, udp_frame, udp6_frame},
        },
        client::{installed, until},
    };

    /// Each proves by its own count that it took in what it should.
    #[test]
    fn every_receiver_can_be_measured() -> Result<()> {
        let (list, list6) = (List::v4(1_000), List::v6(1_000));
        let few = list.addresses();
        let trial =
            |frame, sources| Trial { flood: Flood { frame, sources }, effort: Effort::QUICK };
        let v4 = trial(udp_frame(UDP_LENGTH), few.inside());
        let v6 = trial(udp6_frame(UDP_LENGTH), list6.inside());
        let any = trial(udp_frame(UDP_LENGTH), Sources::AnyV4);
        // On a busy host a receiver may not have had its turn while it was looked at.
        let measured = |cost: &dyn Fn() -> Result<f64>| -> Result<()> {
            let mut last = Ok(0.0);
            let done = until("a cost", Duration::from_secs(5), || {
                last = cost();
                Ok(last.as_ref().is_ok_and(|ns| *ns > 1.0))
            });
            done.map(drop).with_context(|| format!("{last:?}"))
        };
        measured(&|| v4.program(&Program::bare(Action::Drop)?))?;
        for (trial, list, is_v6) in [(&v4, &list, false), (&v6, &list6, true)] {
            measured(&|| trial.lpm(&Lpm::new(&list.0, is_v6)?, true))?;
            let empty = Lpm::new(&[], is_v6)?;
            measured(&|| trial.lpm(&empty, false))?;
            assert!(trial.lpm(&empty, true).is_err(), "a trie that finds nobody");
        }
        measured(&|| any.program(&Program::lru_limit(1024)?))?;
        if installed("nft") && installed("ethtool") {
            let intervals = nft_rules("flags interval;", &list.joined(", "));
            measured(&|| v4.nft("netdev bench", &intervals))?;
            measured(&|| v4.nft("netdev bench", &nft_rules("", &few.joined(", "))))?;
        }
        if installed("ipset") && installed("iptables-legacy") {
            measured(&|| v4.ipset(&list))?;
        }
        if installed("xdp-filter") {
            measured(&|| v4.xdp_filter(&few))?;
        }
        Ok(())
    }
}
