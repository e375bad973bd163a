//! The packet program's twin: the same code, attached nowhere, run on frames of the daemon's own.
//! It charges nobody, counts nothing and tells nobody.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::atomic::AtomicU64,
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{ProgramError, Xdp},
};
use edge_common::{
    Rate,
    limit::{self, BYTES_UNIT, Charge, Mode, Verdict},
    map::{self, FactFlag, Facts, Kind, LEVELS, Settings},
};

use super::{
    KernelError, TWIN,
    maps::{table_error, take},
};

/// Judges frames without a trace. Whoever has it is the only one: what it finds lies in one place.
pub struct Twin {
    program: OwnedFd,
    facts: Array<MapData, Facts>,
    cells: Array<MapData, [u64; limit::WAYS]>,
}

/// What a client, or a prefix around it, may still send at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// What is limited.
    pub kind: Kind,
    /// Bits of the prefix around the client that is limited; `None` for the client itself.
    pub prefix_bits: Option<u32>,
    /// Packets, bytes or connections that still fit.
    pub left: u64,
    /// Those that fit into an untouched bucket.
    pub burst: u64,
}

impl Twin {
    /// Takes hold of the loaded program: it is there for as long as this is.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        let error = |source: ProgramError| KernelError::Program { name: TWIN, source };
        let program = super::program_named::<Xdp>(programs, TWIN)?.fd().map_err(error)?.as_fd();
        Ok(Self {
            program: program.try_clone_to_owned().map_err(|e| error(ProgramError::IOError(e)))?,
            facts: take(programs, map::TWIN_FACTS)?,
            cells: take(programs, map::CELLS)?,
        })
    }

    /// What the packet program would find and do if the frame came in by this interface now; by the
    /// loopback interface if it is 0.
    ///
    /// # Errors
    /// [`KernelError::Run`] if the kernel refuses the run, as it does for a frame shorter than an
    /// Ethernet header or longer than 64 KiB and for an interface that is gone.
    pub fn judge(&mut self, frame: &[u8], ifindex: u32) -> Result<Facts, KernelError> {
        self.run(frame, ifindex).map_err(|error| KernelError::Run(ProgramError::IOError(error)))?;
        self.facts.get(&0, 0).map_err(table_error(map::TWIN_FACTS))
    }

    fn run(&self, frame: &[u8], ifindex: u32) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let context = Context { data_end: length, ingress_ifindex: ifindex, ..Context::default() };
        let mut run = Run {
            program: self.program.as_raw_fd().cast_unsigned(),
            data_in_bytes: length,
            data_in: frame.as_ptr().expose_provenance() as u64,
            repeat: 1,
            context_in_bytes: size_of::<Context>() as u32,
            context_in: (&raw const context).expose_provenance() as u64,
            ..Run::default()
        };
        // SAFETY: the kernel reads the frame and the context, whose sizes it is told and which outlive
        // the call, and is given nowhere to write to but `run`, which is this call's own.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut run, size_of::<Run>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What the source of a packet may still send, by each limit that is on: its client's own, then
    /// those of the prefixes around it.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn buckets(&self, settings: &Settings, facts: &Facts) -> Result<Vec<Bucket>, KernelError> {
        let mut buckets = Vec::new();
        for level in 0..LEVELS {
            let prefix_bits = level.checked_sub(1).map(|above| settings.prefix_bits[above]);
            let Some(hash) = level_hash(settings, facts, prefix_bits) else { continue };
            for kind in Kind::ALL {
                let rate = settings.rates[level][kind as usize];
                if !rate.is_off() {
                    let ahead = self.ahead(kind, hash, rate, crate::clock::boot_ns())?;
                    let (left, burst) = fitting(kind, rate, ahead);
                    buckets.push(Bucket { kind, prefix_bits, left, burst });
                }
            }
        }
        Ok(buckets)
    }

    /// Ticks until the bucket of this kind and hash is empty.
    fn ahead(&self, kind: Kind, hash: u64, rate: Rate, now_ns: u64) -> Result<u64, KernelError> {
        let index = kind.cells().set(hash);
        let words = self.cells.get(&index, 0).map_err(table_error(map::CELLS))?;
        let charge = match kind {
            Kind::Bytes => Charge::bytes(rate, 0, now_ns),
            _ => Charge { cost: 0, ..Charge::unit(rate, now_ns) },
        };
        // Nothing at all always fits.
        match charge.settle(&words.map(AtomicU64::new), hash, Mode::Look) {
            Verdict::Admit { ahead } => Ok(ahead),
            Verdict::Refuse { .. } => Ok(rate.capacity),
        }
    }
}

/// `bpf_attr.test`
#[derive(Default)]
#[repr(C)]
struct Run {
    program: u32,
    answer: u32,
    data_in_bytes: u32,
    data_out_bytes: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `xdp_md`
#[derive(Default)]
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

const PROG_TEST_RUN: libc::c_long = 10;

/// The hash that a level's buckets are found by; `None` where the level is off, as it is for IPv4
/// above the client.
fn level_hash(settings: &Settings, facts: &Facts, prefix_bits: Option<u32>) -> Option<u64> {
    let (source, seed) = (facts.source, settings.seed);
    let is_on = |bits: &u32| *bits > 0 && facts.flags & FactFlag::V4 == 0;
    match prefix_bits {
        None => Some(source.client(settings.client).hash(seed)),
        Some(bits) => is_on(&bits).then(|| source.prefix_hash(bits, seed)),
    }
}

/// How many fit into a bucket that drains in `ahead` ticks, and into an empty one.
fn fitting(kind: Kind, rate: Rate, ahead: u64) -> (u64, u64) {
    let unit = if kind == Kind::Bytes { BYTES_UNIT } else { 1 };
    let fit = |ticks: u64| {
        let fit = u128::from(ticks) * u128::from(unit) / u128::from(rate.interval);
        u64::try_from(fit).unwrap_or(u64::MAX)
    };
    (fit(rate.capacity.saturating_sub(ahead)), fit(rate.capacity))
}
