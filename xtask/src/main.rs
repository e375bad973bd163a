//! The project's own tasks. One verb, one file; nothing of the product is linked in.

use anyhow::Result;
use clap::Parser;

mod bench;
mod bpf;
mod ci;
mod demo;
mod differential;
mod fuzz;
mod release;
mod setup;
mod shell;
mod soak;
mod sources;
mod test;

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install what the project needs and this host lacks.
    Setup(setup::Setup),
    /// Show the main job on real traffic, in network namespaces.
    Demo(demo::Demo),
    /// Run every test, those in the kernel and in namespaces included.
    Test(test::Test),
    /// Everything that must hold before a change goes in: format, lints, docs, object, tests.
    Ci,
    /// Build the binaries to install, led by a profile of real load; takes two builds.
    Release,
    /// Measure beside the best-known others, in one interleaved run.
    Bench(bench::Bench),
    /// Fuzz the parsers of what strangers send; needs a nightly toolchain.
    Fuzz(fuzz::Fuzz),
    /// Judge a million changed tokens beside other libraries.
    Differential(differential::Differential),
    /// Load with chaos, for minutes: reloads, deaths of upstreams, changes of certificates.
    Soak(soak::Soak),
    /// Build the kernel programs into the committed object.
    Bpf {
        /// Prove that the committed object is what the source gives, and change nothing.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Setup(setup) => setup.run(),
        Task::Demo(demo) => demo.run(),
        Task::Test(test) => test.run(),
        Task::Ci => ci::run(),
        Task::Release => release::build(),
        Task::Bench(bench) => bench.run(),
        Task::Fuzz(fuzz) => fuzz.run(),
        Task::Differential(differential) => differential.run(),
        Task::Soak(soak) => soak.run(),
        Task::Bpf { check: true } => bpf::check(),
        Task::Bpf { check: false } => bpf::build(),
    }
}
