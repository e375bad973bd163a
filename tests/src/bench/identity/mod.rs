//! Who is it, and may it: what credentials cost, and what no attacker gets.

mod keys;
mod policy;
mod revoke;
mod signed;
mod timing;
mod tokens;

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

pub(super) use signed::{remember, victim};

use super::Measures;

/// The measures by number.
pub(super) const MEASURES: Measures = &[
    (&[1, 2], keys::checks),
    (&[3], tokens::rs256),
    (&[4], keys::throughput),
    (&[5], policy::decisions),
    (&[6], revoke::last_accepted),
    (&[7], signed::replays),
    (&[8], tokens::unknown_keys),
    (&[9], timing::refusals),
];

/// CPU microseconds of this thread for each call, after a tenth as many for warmth.
fn micros(count: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    (0..count / 10).try_for_each(&mut work)?;
    let before = cpu()?;
    (0..count).try_for_each(&mut work)?;
    Ok((cpu()? - before).as_secs_f64() * 1e6 / count as f64)
}

/// What this thread has run.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// The memory that this process occupies.
fn resident_bytes() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}
