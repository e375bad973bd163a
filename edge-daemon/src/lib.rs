//! Everything with a file descriptor: the kernel's tables, sockets, files and the clock.

pub mod config;
pub mod control;
pub mod ctl;
pub mod kernel;
pub mod store;
