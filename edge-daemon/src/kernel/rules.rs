//! The tables of signature rules and offered services.

use std::{fs, io, path::Path};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use edge_common::{
    Signature,
    map::{self, SIGNATURES_MAX},
    service::{self, Service},
    signature::{SignaturesInForce, share_cells},
};

use super::{
    KernelError, Policy,
    maps::{Tables, again, table_error, take},
    pins::path_error,
};

impl Tables {
    /// Packets that matched each signature in force, in their order.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn signature_hits(&self) -> Result<Vec<u64>, KernelError> {
        self.rules.hits(SignaturesInForce::of(self.settings()?.signatures))
    }
}

pub(super) struct Rules {
    signatures: Array<MapData, Signature>,
    hits: PerCpuArray<MapData, u64>,
    services: Array<MapData, u64>,
}

impl Rules {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            signatures: take(programs, map::SIGNATURES)?,
            hits: take(programs, map::SIGNATURE_HITS)?,
            services: take(programs, map::SERVICES)?,
        })
    }

    pub(super) fn duplicate(&self) -> Result<Self, KernelError> {
        Ok(Self {
            signatures: again(map::SIGNATURES, self.signatures.map())?,
            hits: again(map::SIGNATURE_HITS, self.hits.map())?,
            services: again(map::SERVICES, self.services.map())?,
        })
    }

    /// Writes the policy's rules beside those in force; whoever writes the answer into the settings
    /// puts all of them in force at once. A rule that was there before keeps its hits, but for the
    /// few that fall meanwhile.
    pub(super) fn write(
        &mut self,
        policy: &Policy,
        in_force: SignaturesInForce,
    ) -> Result<SignaturesInForce, KernelError> {
        // What was offered stays written when the policy is switched off, which comes later.
        if let Some(services) = &policy.services {
            self.offer(services)?;
        }
        let wanted = &policy.signatures[..policy.signatures.len().min(SIGNATURES_MAX as usize)];
        let mut former = self.read(in_force)?;
        if former.iter().map(|(signature, _)| signature).eq(wanted) {
            return Ok(in_force);
        }
        let first = SIGNATURES_MAX - in_force.first;
        let mut written = wanted.to_vec();
        share_cells(&mut written);
        for ((index, signature), written) in (first..).zip(wanted).zip(written) {
            let same = former.iter().position(|(known, _)| known == signature);
            let hits = same.map_or(0, |same| former.swap_remove(same).1);
            self.signatures.set(index, written, 0).map_err(table_error(map::SIGNATURES))?;
            self.start_hits(index, hits)?;
        }
        Ok(SignaturesInForce { first, count: wanted.len() as u32 })
    }

    /// Packets that matched each of the rules in force.
    pub(super) fn hits(&self, in_force: SignaturesInForce) -> Result<Vec<u64>, KernelError> {
        let hits = |index| {
            let cpus = self.hits.get(&index, 0).map_err(table_error(map::SIGNATURE_HITS))?;
            Ok(cpus.iter().sum())
        };
        (in_force.first..in_force.first + in_force.count).map(hits).collect()
    }

    /// The rules in force as the policy says them, with their hits.
    fn read(&self, in_force: SignaturesInForce) -> Result<Vec<(Signature, u64)>, KernelError> {
        let hits = self.hits(in_force)?;
        (in_force.first..)
            .zip(hits)
            .map(|(index, hits)| {
                let signature = self.signatures.get(&index, 0)?;
                Ok((Signature { cells: Signature::ANY.cells, ..signature }, hits))
            })
            .collect::<Result<_, _>>()
            .map_err(table_error(map::SIGNATURES))
    }

    /// One CPU starts with the sum, and the others with nothing.
    fn start_hits(&mut self, index: u32, hits: u64) -> Result<(), KernelError> {
        let put = |table: &mut PerCpuArray<_, _>| {
            let mut cpus = vec![0; nr_cpus().map_err(|(_, error)| error)?];
            cpus[0] = hits;
            table.set(index, PerCpuValues::try_from(cpus)?, 0)
        };
        put(&mut self.hits).map_err(table_error(map::SIGNATURE_HITS))
    }

    fn offer(&mut self, services: &[Service]) -> Result<(), KernelError> {
        let mut words = vec![0_u64; service::WORDS as usize];
        for service in services {
            let (word, bit) = service.place();
            words[word as usize] |= bit;
        }
        for (index, word) in (0..).zip(words) {
            self.services.set(index, word, 0).map_err(table_error(map::SERVICES))?;
        }
        Ok(())
    }
}

/// The ports from which this network namespace asks, first and last.
pub(super) fn ephemeral_ports() -> Result<[u32; 2], KernelError> {
    let path = Path::new("/proc/sys/net/ipv4/ip_local_port_range");
    let text = fs::read_to_string(path).map_err(path_error("read", path))?;
    let mut ports = text.split_whitespace().map_while(|word| word.parse().ok());
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) => Ok([first, last]),
        _ => Err(path_error("understand", path)(io::ErrorKind::InvalidData.into())),
    }
}
