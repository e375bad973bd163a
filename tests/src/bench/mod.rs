//! The benches: each runs the product and its reference in one interleaved run.

mod bpf;
mod flood;
mod gateway;
mod identity;
mod kernel;
mod limits;
mod report;
mod rounds;
mod verdicts;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

pub use flood::{Answers, Vlan};
pub use report::{Goal, Line, Report};

/// How long and how often to measure.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Interleaved rounds.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: u64,
}

impl Effort {
    /// What a figure is taken from.
    pub const FULL: Self = Self { rounds: 5, seconds: 3 };
    /// Enough to see that it works.
    pub const QUICK: Self = Self { rounds: 1, seconds: 1 };

    /// Whether nobody will take a figure from it.
    fn is_quick(self) -> bool {
        self.rounds < Self::FULL.rounds
    }
}

/// Runs measures of an area, all of them if none is named, and reports.
///
/// # Errors
/// If there is no such area or measure, or one could not run; the others did.
pub fn run(area: &str, measures: &[u32], effort: Effort, report: &mut Report) -> Result<()> {
    let table: Measures = match area {
        "kernel" => kernel::MEASURES,
        "limits" => limits::MEASURES,
        "verdicts" => verdicts::MEASURES,
        "gateway" => gateway::MEASURES,
        "identity" => identity::MEASURES,
        // Not benches: processes of one of them.
        "remember" => return identity::remember(),
        "victim" => return identity::victim(measures.first().copied().unwrap_or(0).into()),
        _ => bail!("no such area: {area}"),
    };
    for wanted in measures {
        if !table.iter().any(|(numbers, _)| numbers.contains(wanted)) {
            bail!("{area} has no measure {wanted}");
        }
    }
    let mut failed = Vec::new();
    for (numbers, measure) in table {
        let is_wanted = measures.is_empty() || numbers.iter().any(|n| measures.contains(n));
        if is_wanted && let Err(e) = measure(effort, report) {
            eprintln!("{area} {numbers:?} could not run: {e:#}");
            failed.extend(numbers.iter().map(u32::to_string));
        }
    }
    ensure!(failed.is_empty(), "{area}: {} of its measures: {}", failed.len(), failed.join(", "));
    Ok(())
}

/// Each with the numbers of what it measures in one go.
type Measures = &'static [(&'static [u32], Measure)];

/// Runs one measure and adds its lines.
type Measure = fn(Effort, &mut Report) -> Result<()>;

/// The core of the load and of everything that is not measured.
const LOAD_CPU: usize = 0;
/// The core of what is measured, and of nothing else.
const MEASURED_CPU: usize = 1;

/// Binds every thread of a process to a core.
fn pin(pid: u32, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task: i32 = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(task), &cpus)?;
    }
    Ok(())
}

/// Binds the calling thread to a core.
fn pin_self(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// Nanoseconds that the threads of a process have run: exact, and blind to what else runs.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        let ran = stat.split(' ').next().context("schedstat")?;
        total += ran.parse::<u64>()?;
    }
    Ok(total)
}

/// The first line that a program prints of its version.
fn version(program: &str) -> String {
    let args: &[&str] = match program {
        "nginx" => &["-v"],
        "xdp-filter" => &["load", "--version"],
        _ => &["--version"],
    };
    let done = std::process::Command::new(program).args(args).output();
    let text = done.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or(program).to_owned()
}

/// Demands the two cores that keep the load apart from what is measured.
fn need_two_cores() -> Result<()> {
    if !Path::new("/sys/devices/system/cpu/cpu1").exists() {
        bail!("a bench needs two cores: one for the load, one for what is measured");
    }
    Ok(())
}
