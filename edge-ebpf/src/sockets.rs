//! Counts open TCP connections from the kernel's own socket states, so that the count is exact:
//! counting SYN, FIN and RST packets drifts.
//!
//! Two copies of this program may be attached for a moment while one replaces the other; a
//! socket is still counted once, because only the copy that enters it into `SOCKETS` adds it and
//! only the copy that removes it subtracts it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::bpf_probe_read_kernel, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use edge_common::{Source, map::SocketLayout, open};

use crate::tables::{self, Knobs, setting};

/// Follows a socket's change of state.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn edged_sockets(ctx: RawTracePointContext) -> i32 {
    let socket: u64 = ctx.arg(0);
    let from: i32 = ctx.arg(1);
    let to: i32 = ctx.arg(2);
    let _ = match (from, to) {
        (TCP_SYN_RECV, TCP_ESTABLISHED) => opened(socket),
        (_, TCP_CLOSE) => closed(socket),
        _ => None,
    };
    0
}

/// A client's connection was accepted.
#[inline(always)]
fn opened(socket: u64) -> Option<()> {
    let knobs = tables::knobs()?;
    let layout = &setting!(knobs, socket);
    if read::<u16>(socket, layout.protocol)? != IPPROTO_TCP
        || netns_cookie(socket, layout)? != setting!(knobs, netns_cookie)
    {
        return None;
    }
    let hash = client(socket, knobs, layout)?.hash(setting!(knobs, seed));
    tables::SOCKETS.insert(socket, hash, u64::from(BPF_NOEXIST)).ok()?;
    // Without room for the client, the socket is forgotten whole: its end subtracts nothing.
    if !open::add(tables::OPEN.set(hash)?, hash) {
        let _ = tables::SOCKETS.remove(socket);
    }
    Some(())
}

#[inline(always)]
fn closed(socket: u64) -> Option<()> {
    // SAFETY: the lookup gave the address of a whole word, which stays until the program returns.
    // Another copy of this program may remove the entry meanwhile and the kernel give the memory to
    // another socket: the hash is then that one's, but the removal below fails and nothing is
    // subtracted.
    let hash = unsafe { tables::peek(tables::SOCKETS.get_ptr(socket)?) };
    tables::SOCKETS.remove(socket).ok()?;
    open::subtract(tables::OPEN.set(hash)?, hash);
    Some(())
}

#[inline(always)]
fn netns_cookie(socket: u64, layout: &SocketLayout) -> Option<u64> {
    let net: u64 = read(socket, layout.net)?;
    read(net, layout.net_cookie)
}

/// The client at the other end.
#[inline(always)]
fn client(socket: u64, knobs: Knobs, layout: &SocketLayout) -> Option<Source> {
    let source = match read::<u16>(socket, layout.family)? {
        AF_INET => Source::v4(read(socket, layout.daddr)?),
        AF_INET6 => Source(read(socket, layout.v6_daddr)?),
        _ => return None,
    };
    Some(source.client(setting!(knobs, client)))
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    let address = (base + u64::from(offset)) as *const c_void;
    // SAFETY: the helper checks the address and fails on one that is not mapped. What it copies may
    // be of any bits, and every `T` asked for is integers.
    unsafe { bpf_probe_read_kernel(address.cast::<T>()) }.ok()
}

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const IPPROTO_TCP: u16 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
