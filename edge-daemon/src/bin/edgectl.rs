//! The control program of edged.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge_daemon::ctl::main()
}
