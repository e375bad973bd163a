//! The project's own tasks. One verb, one file.
use clap::Parser;

#[derive(Parser)]
enum Task {}

fn main() {
    let _ = Task::parse();
}
