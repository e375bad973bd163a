//! Facts in, decisions out. No I/O, no clock, no runtime: time and bytes are arguments.
//!
//! Times are named after their unit and clock: `now_ns` is monotonic nanoseconds, `now_ms` is
//! unix time in milliseconds.
#![forbid(unsafe_code)]

pub mod auth;
pub mod calendar;
pub mod cors;
pub mod csrf;
pub mod denied;
pub mod forwarded;
pub mod head;
pub mod hops;
pub mod http1;
pub mod http2;
pub mod ja4;
pub mod led;
pub mod limit;
pub mod lines;
pub mod list;
pub mod login;
pub mod owner;
pub mod pace;
pub mod place;
pub mod probe;
pub mod proxy;
pub mod rate;
pub mod route;
pub mod shield;
pub mod sketch;
pub mod sni;
pub mod target;
pub mod traffic;
pub mod upgrade;
pub mod upstream;
pub mod verdict;
