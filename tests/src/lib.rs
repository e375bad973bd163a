//! The harness: namespaces, packets, an origin, the daemon and its clients, as a small language.

pub mod packet;
