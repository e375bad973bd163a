//! HTTP/1 on a socket: the codec of `edge_policy::http1` with bytes moved under it.
//!
//! The server's and the client's role share the wire and the body; [`serve`] is the former,
//! `upstream::connection` the latter. One task drives a client's connection and the upstream's.

mod body;
mod server;
mod wire;

pub(crate) use self::{
    body::{Body, Inbound},
    server::serve,
    wire::{Stream, Wire, spare},
};
