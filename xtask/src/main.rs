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
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Bpf { check: false } => bpf::build(),
        Task::Bpf { check: true } => bpf::check(),
    }
}
