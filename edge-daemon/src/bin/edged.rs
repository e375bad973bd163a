//! The daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge_daemon::cli::main()
}
