//! The loaded program beside the model: the same frames, and not one judged otherwise.

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::Range,
    path::PathBuf,
};

use anyhow::{Result, bail, ensure};
use edge_common::{
    Reason, Source,
    map::{Ban, FOREVER, FactFlag},
};
use edge_daemon::{
    clock::boot_ns,
    kernel::{
        AttachMode, Kernel, ListCapacity, LoadSettings, Policy, Twin, Upkeep, Wanted, detach,
    },
};
use edge_policy::list::Class;

use crate::{
    corpus::Corpus,
    model::{Judgement, Told, World, world},
};

/// The kernel plane on its own, with everyone of a world on its lists and no limit.
pub struct Guard {
    /// The loaded program and its tables.
    pub kernel: Kernel,
    twin: Twin,
    world: World,
    pins: PathBuf,
}

impl Guard {
    /// Loads the program under pins of this name, for the world of the corpus.
    ///
    /// # Errors
    /// Without root or a BPF file system.
    pub fn new(name: &str) -> Result<Self> {
        let pins = PathBuf::from(format!("/sys/fs/bpf/edged-{name}-{}", std::process::id()));
        let lists = ListCapacity::of(1_000, []);
        let policy = Policy::UNLIMITED;
        let settings = LoadSettings { pin_dir: pins.clone(), debug: false, policy, lists };
        let mut kernel = Kernel::load(&settings)?;
        let twin = kernel.take_twin()?;
        let mut guard = Self { kernel, twin, world: world(), pins };
        guard.fill()?;
        Ok(guard)
    }

    /// Attaches the program, natively, to an interface of the calling thread's namespace; it
    /// stays there until the guard is dropped.
    ///
    /// # Errors
    /// If the interface is not there or cannot.
    pub fn attach(&mut self, interface: &str) -> Result<Upkeep> {
        let interface = interface.to_owned();
        Ok(self.kernel.attach(&[Wanted { interface, mode: AttachMode::Native }])?)
    }

    fn fill(&mut self) -> Result<()> {
        let tables = &mut self.kernel.tables;
        for network in &self.world.allow {
            tables.lists.set(Class::Allow, network, FOREVER)?;
        }
        for network in &self.world.spare {
            tables.lists.set(Class::Spare, network, FOREVER)?;
        }
        // The compiled image holds one half and the overlay the other: both are to agree.
        let (compiled, overlaid) = self.world.deny.split_at(self.world.deny.len() / 2);
        for network in compiled {
            tables.lists.set(Class::Deny, network, FOREVER)?;
        }
        tables.lists.fold(boot_ns())?;
        for network in overlaid {
            tables.lists.set(Class::Deny, network, FOREVER)?;
        }
        for client in &self.world.banned {
            let ban = Ban {
                since_ns: boot_ns(),
                until_ns: boot_ns() + HOUR_NS,
                hits: 0,
                first_hit_ns: 0,
                reason: Reason::CredentialInvalid as u32,
                strikes: 1,
            };
            tables.bans.ban(Source::from(client.network()), ban)?;
        }
        Ok(())
    }

    /// Runs these frames of a corpus through the program and the model.
    ///
    /// # Errors
    /// Names the first frame that they judge differently: its seed and number, its bytes, and the
    /// shortest frame with the same fault.
    pub fn compare(&mut self, corpus: Corpus, numbers: Range<u64>) -> Result<()> {
        let mut start = numbers.start;
        while start < numbers.end {
            let end = (start + BATCH).min(numbers.end);
            if !self.agrees(corpus, start..end)? {
                self.find(corpus, start..end)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Whether all of a batch is judged alike: each drop by its event, what passes by the counts and
    /// by what the twin makes of it.
    fn agrees(&mut self, corpus: Corpus, numbers: Range<u64>) -> Result<bool> {
        let before = self.kernel.tables.counts()?;
        let mut expected = [0; Reason::COUNT];
        for number in numbers {
            let frame = corpus.frame(number);
            let judgement = self.expected(&frame);
            expected[judgement.reason as usize] += 1;
            let passes = self.kernel.judge(&frame)?;
            let is_alike = if passes {
                judgement.reason.passes() && self.told(&frame)? == judgement.told
            } else {
                self.dropped() == Some(judgement)
            };
            if !is_alike {
                return Ok(false);
            }
        }
        let after = self.kernel.tables.counts()?;
        let counted = before.iter().zip(&after).map(|(b, a)| a.packets - b.packets);
        Ok(counted.eq(expected))
    }

    /// The model's judgement, in the terms of the program's events: no source is all zeros there.
    fn expected(&self, frame: &[u8]) -> Judgement {
        let judgement = self.world.judge(frame);
        let source = judgement.source.filter(|s| *s != IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        Judgement { source, ..judgement }
    }

    /// What the program told of the packet that it dropped last.
    fn dropped(&mut self) -> Option<Judgement> {
        let drop = std::iter::from_fn(|| self.kernel.drops.next_drop()).last()?;
        let source = (drop.source != Source::default()).then(|| IpAddr::from(drop.source));
        Some(Judgement { reason: Reason::from_index(drop.reason)?, source, told: None })
    }

    /// What the program makes of a packet that passes because nothing speaks against it, or nothing that is asked of it.
    fn told(&mut self, frame: &[u8]) -> Result<Option<Told>> {
        let facts = self.twin.judge(frame, 0)?;
        let has = |flag| facts.flags & flag != 0;
        let told = Told {
            protocol: facts.protocol,
            ports: has(FactFlag::TRANSPORT).then_some([facts.source_port, facts.port]),
            tcp_flags: facts.tcp_flags,
            is_later: has(FactFlag::LATER_FRAGMENT),
            has_more: has(FactFlag::MORE_FRAGMENTS),
        };
        let is_read = facts.reason == Reason::Pass as u32 || has(FactFlag::SPARED);
        Ok(is_read.then_some(told))
    }

    /// Names the frame of a batch that is judged differently.
    fn find(&mut self, corpus: Corpus, numbers: Range<u64>) -> Result<()> {
        for number in numbers.clone() {
            let frame = corpus.frame(number);
            let Some(found) = self.differs(&frame)? else { continue };
            let least = minimised(&frame, |frame| matches!(self.differs(frame), Ok(Some(_))));
            let (seed, frame, short) = (corpus.seed, hex(&frame), hex(&least));
            let least = self.differs(&least)?.unwrap_or_default();
            bail!(
                "seed {seed}, frame {number}: {found}\n{frame}\nat its shortest: {least}\n{short}"
            );
        }
        bail!("seed {}: frames {numbers:?} differ together, but none alone", corpus.seed)
    }

    /// How the two judge a frame, if they differ.
    fn differs(&mut self, frame: &[u8]) -> Result<Option<String>> {
        let model = self.expected(frame);
        let program = self.judge(frame, model.source)?;
        Ok((model != program).then(|| format!("model {model:?}, program {program:?}")))
    }

    /// The program's judgement. Of a packet that passes it does not tell the source: that is
    /// `source`, then.
    fn judge(&mut self, frame: &[u8], source: Option<IpAddr>) -> Result<Judgement> {
        let before = self.kernel.tables.counts()?;
        let passes = self.kernel.judge(frame)?;
        let after = self.kernel.tables.counts()?;
        let mut counted = Reason::ALL
            .iter()
            .filter(|r| after[**r as usize].packets != before[**r as usize].packets);
        let (Some(reason), None) = (counted.next(), counted.next()) else {
            bail!("not counted once: {}", hex(frame));
        };
        ensure!(reason.passes() == passes, "counted as {}: {}", reason.name(), hex(frame));
        if let Some(dropped) = self.dropped().filter(|_| !passes) {
            return Ok(dropped);
        }
        let told = if passes { self.told(frame)? } else { None };
        Ok(Judgement { reason: *reason, source, told })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(e) = detach(&self.pins) {
            eprintln!("{}: {e}", self.pins.display());
        }
    }
}

/// The shortest and plainest frame found that still fails: ever smaller pieces are cut out, and
/// what must stay is zeroed where it may be.
fn minimised(frame: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut least = frame.to_vec();
    let mut piece = least.len().next_power_of_two();
    while piece > 0 {
        let mut at = 0;
        while at < least.len() {
            let mut shorter = least.clone();
            shorter.drain(at..(at + piece).min(least.len()));
            // The kernel runs no program on less than an Ethernet header.
            if shorter.len() >= 14 && fails(&shorter) {
                least = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    for at in 0..least.len() {
        let byte = std::mem::take(&mut least[at]);
        if !fails(&least) {
            least[at] = byte;
        }
    }
    least
}

/// The bytes as text.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Frames between two looks at the counts.
const BATCH: u64 = 256;
const HOUR_NS: u64 = 3_600_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_cut_down_to_what_makes_it_fail() {
        let frame: Vec<u8> = (0..200).map(|n| n as u8 | 1).collect();
        let least = minimised(&frame, |f| f.contains(&0x61) && f.iter().any(|b| b & 0x80 != 0));
        assert_eq!(least.len(), 14);
        assert_eq!(least.iter().filter(|b| **b != 0).count(), 2);
    }

    #[test]
    fn the_program_is_told_from_a_model_of_another_world() -> Result<()> {
        let mut guard = Guard::new("other")?;
        guard.compare(Corpus { seed: 4 }, 0..500)?;
        guard.world.deny.pop();
        let error = guard.compare(Corpus { seed: 4 }, 0..2_000).unwrap_err().to_string();
        assert!(error.contains("seed 4") && error.contains("at its shortest"), "{error}");
        Ok(())
    }
}
