//! Everything with a file descriptor: the kernel's tables, sockets, files and the clock.

pub mod app;
pub mod banned;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod ctl;
pub mod events;
pub mod issuers;
pub mod kernel;
pub mod keys;
pub mod listen;
pub mod metrics;
pub mod notify;
pub mod plan;
pub mod privilege;
pub mod quota;
pub mod replay;
pub mod request;
pub mod scrape;
pub mod secret;
pub mod store;
pub mod tls;
pub mod upstream;
pub mod verdict;
