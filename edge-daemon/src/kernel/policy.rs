//! What the configuration says of packets, and how the kernel is told.

use edge_common::{
    ClientWidth, Rate, Reason, Signature,
    map::{Kind, LEVELS, PolicyFlag, Settings},
    service::Service,
};

use super::{Defence, KernelError, defence, rules};

/// The part of the kernel's tables that the configuration decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What a client may send, in the order of [`Kind`].
    pub rates: [Rate; Kind::COUNT],
    /// What the IPv6 prefixes around a client may send, the narrower first.
    pub prefixes: [Option<Prefix>; LEVELS - 1],
    /// Open TCP connections per client; 0 switches the limit off.
    pub open_max: u32,
    /// How much of an address stands for one client.
    pub client: ClientWidth,
    /// Whether fragments are dropped.
    pub drop_fragments: bool,
    /// What alone is reachable from outside; `None`: everything.
    pub services: Option<Vec<Service>>,
    /// Signature rules, in their order; [`SIGNATURES_MAX`](edge_common::map::SIGNATURES_MAX) at most.
    pub signatures: Vec<Signature>,
    /// What is done against floods of TCP.
    pub defence: Defence,
    /// Reasons that drop nothing and are counted as "would drop".
    pub monitored: Vec<Reason>,
    /// Drop events in all; off is none.
    pub event_rate: Rate,
    /// Whether what the kernel lacks a feature for is left out, and not refused.
    pub run_with_less: bool,
}

/// An IPv6 prefix that is limited as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its length, less than a client's.
    pub bits: u32,
    /// How many clients' worth it may send.
    pub factor: u32,
}

/// What the host says to a policy, asked before anything is changed: whatever it refuses leaves the
/// former in force.
pub(super) struct Survey {
    pub(super) ephemeral_ports: [u32; 2],
    pub(super) defence: defence::Survey,
}

impl Policy {
    /// Nothing is limited, and everything is told: a million events a second.
    pub const UNLIMITED: Self = Self {
        rates: [Rate::OFF; Kind::COUNT],
        prefixes: [None; LEVELS - 1],
        open_max: 0,
        client: ClientWidth::USUAL,
        drop_fragments: false,
        services: None,
        signatures: Vec::new(),
        defence: Defence::OFF,
        monitored: Vec::new(),
        event_rate: Rate::new(1_000_000, 1_000_000_000, 1_000_000).expect("a rate"),
        run_with_less: false,
    };

    /// The same with another rate for one kind.
    #[must_use]
    pub fn limit(mut self, kind: Kind, rate: Rate) -> Self {
        self.rates[kind as usize] = rate;
        self
    }

    /// Refused, if the host cannot do what is asked of it.
    pub(super) fn survey(&self) -> Result<Survey, KernelError> {
        self.defence.check()?;
        self.look()
    }

    /// Whether or not the host can do what is asked of it.
    pub(super) fn look(&self) -> Result<Survey, KernelError> {
        let ephemeral_ports = rules::ephemeral_ports()?;
        Ok(Survey { ephemeral_ports, defence: self.defence.survey()? })
    }

    /// Writes the policy's part of the settings. What the programs shift or index by is kept in
    /// its range: outside of it, it means nothing.
    pub(super) fn write(&self, settings: &mut Settings) {
        settings.rates[0] = self.rates;
        for (level, prefix) in self.prefixes.iter().enumerate() {
            settings.prefix_bits[level] = prefix.map_or(0, |prefix| prefix.bits.clamp(1, 64));
            let factor = prefix.map_or(0, |prefix| u64::from(prefix.factor));
            settings.rates[level + 1] = self.rates.map(|rate| rate.times(factor));
        }
        settings.monitored = self.monitored.iter().fold(0, |bits, r| bits | 1 << *r as u32);
        settings.event_rate = self.event_rate;
        settings.client =
            ClientWidth { v4: self.client.v4.clamp(8, 32), v6: self.client.v6.clamp(1, 64) };
        settings.open_max = self.open_max;
        let flags = [
            (self.services.is_some(), PolicyFlag::SERVICES),
            (self.drop_fragments, PolicyFlag::DROP_FRAGMENTS),
            (self.signatures.iter().any(|s| s.payload_bytes > 0), PolicyFlag::PAYLOADS),
        ];
        let kept = settings.flags & (PolicyFlag::SAMPLES | PolicyFlag::ABOVE)
            | self.defence.write(settings);
        settings.flags =
            flags.iter().filter(|(on, _)| *on).fold(kept, |flags, (_, flag)| flags | flag);
    }
}
