//! Facts in, decisions out. No I/O, no clock, no runtime: time and bytes are arguments.
#![forbid(unsafe_code)]
