//! The control plane's wire: commands over a private unix socket, one line of JSON each way.

pub mod access;
pub mod bans;
pub mod client;
pub mod feeds;
pub mod guard;
pub mod keys;
pub mod overview;
pub mod packets;
pub mod protocol;
pub mod server;
pub mod servers;
pub mod tokens;

pub use protocol::{Command, ListName, Reply};
pub use server::{Peer, bind, serve};
