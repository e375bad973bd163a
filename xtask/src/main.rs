//! The project's own tasks. One verb, one file.
mod bpf;
mod sources;

use clap::Parser;

#[derive(Parser)]
enum Task {
    /// Builds the kernel object and its lock.
    Bpf {
        /// Only checks that the committed object is what the sources give.
        #[arg(long)]
        check: bool,
        /// Installs the toolchain for it first, where it is missing.
        #[arg(long)]
        setup: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Bpf { check, setup } => {
            if setup {
                bpf::install_toolchain()?;
            }
            if check { bpf::check() } else { bpf::build() }
        }
    }
}
