//! The daemon.

use std::process::ExitCode;

/// A request is some forty small allocations on one thread, which the system's allocator spends a
/// tenth of the request's time on.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    edge_daemon::cli::main()
}
