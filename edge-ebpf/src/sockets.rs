//! Counts open TCP connections from the kernel's own socket states, so that the count is exact:
//! counting SYN, FIN and RST packets drifts.
//!
//! The kernel skips a program that interrupts itself on one CPU. Sockets change their state in
//! tasks and in the interrupts that cut in on them, and nowhere deeper; so two copies follow every
//! change, of which an interrupted CPU skips one at most. A socket is still counted once, because
//! only the copy that enters it into `SOCKETS` adds it and only the copy that removes it subtracts
//! it. The same holds while a new version's copies replace the old one's, and for the daemon, which
//! goes by the kernel's list of sockets and corrects by [`edged_census`].
//!
//! A socket is known by its cookie, which the kernel gives to no other socket until it boots again.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_socket_cookie, bpf_probe_read_kernel},
    macros::btf_tracepoint,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use edge_common::{
    Source,
    map::{SocketLayout, census},
    open,
};

use crate::tables::{self, setting};

/// Follows a socket's change of state.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn edged_sockets(ctx: BtfTracePointContext) -> i32 {
    if follow(&ctx) == Err(Full) {
        tables::add_uncounted();
    }
    0
}

/// Follows it too, where [`edged_sockets`] was skipped.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn edged_sockets_too(ctx: BtfTracePointContext) -> i32 {
    let _ = follow(&ctx);
    0
}

/// Counts a socket that was missed, or no longer one that is gone; whether it changed anything.
/// Attached to nothing: the daemon runs it, with what it has to say in the place of a tracepoint's
/// arguments.
// By hand, since the macro's programs return 0 whatever they have to say.
#[unsafe(link_section = "raw_tp/inet_sock_set_state")]
#[unsafe(no_mangle)]
extern "C" fn edged_census(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let (verb, cookie, hash): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    match verb {
        census::ADD => i32::from(enter(cookie, hash) == Ok(true)),
        census::REMOVE => i32::from(leave(cookie)),
        _ => 0,
    }
}

/// There was no room to count a socket.
#[derive(PartialEq, Eq)]
struct Full;

#[inline(always)]
fn follow(ctx: &BtfTracePointContext) -> Result<(), Full> {
    let socket: *mut c_void = ctx.arg(0);
    let from: i32 = ctx.arg(1);
    let to: i32 = ctx.arg(2);
    match (from, to) {
        (TCP_SYN_RECV, TCP_ESTABLISHED) => {
            let Some(hash) = counted_as(socket as u64) else { return Ok(()) };
            enter(cookie(socket), hash).map(|_| ())
        }
        (_, TCP_CLOSE) => {
            leave(cookie(socket));
            Ok(())
        }
        _ => Ok(()),
    }
}

#[inline(always)]
fn cookie(socket: *mut c_void) -> u64 {
    // SAFETY: the verifier knows `socket` for the tracepoint's argument, a socket that is there for
    // as long as the program runs.
    unsafe { bpf_get_socket_cookie(socket) }
}

/// Counts a socket; whether it was not counted before.
#[inline(always)]
fn enter(cookie: u64, hash: u64) -> Result<bool, Full> {
    match tables::SOCKETS.insert(cookie, hash, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        Err(EEXIST) => return Ok(false),
        Err(_) => return Err(Full),
    }
    match tables::OPEN.set(hash) {
        Some(set) if open::add(set, hash) => Ok(true),
        _ => {
            // Without room for the client, the socket is forgotten whole: its end subtracts nothing.
            let _ = tables::SOCKETS.remove(cookie);
            Err(Full)
        }
    }
}

/// No longer counts a socket; whether it was counted.
#[inline(always)]
fn leave(cookie: u64) -> bool {
    let Some(hash) = tables::SOCKETS.get_ptr(cookie) else { return false };
    // SAFETY: the lookup gave the address of a whole word, which stays until the program returns.
    // Another copy of this program may remove the entry meanwhile and the kernel give the memory to
    // another socket: the hash is then that one's, but the removal below fails and nothing is
    // subtracted.
    let hash = unsafe { tables::peek(hash) };
    let Some(set) = tables::OPEN.set(hash) else { return false };
    if tables::SOCKETS.remove(cookie).is_err() {
        return false;
    }
    if !open::subtract(set, hash) {
        // Other CPUs were always faster. The next look at all sockets finds it again.
        let _ = tables::SOCKETS.insert(cookie, hash, u64::from(BPF_NOEXIST));
    }
    true
}

/// The hash of the client at the other end, if this is a TCP socket of the daemon's namespace.
#[inline(always)]
fn counted_as(socket: u64) -> Option<u64> {
    let knobs = tables::knobs()?;
    let layout = &setting!(knobs, socket);
    if read::<u16>(socket, layout.protocol)? != IPPROTO_TCP
        || netns_cookie(socket, layout)? != setting!(knobs, netns_cookie)
    {
        return None;
    }
    let client = match read::<u16>(socket, layout.family)? {
        AF_INET => Source::v4(read(socket, layout.daddr)?),
        AF_INET6 => Source::of_words(read(socket, layout.v6_daddr)?),
        _ => return None,
    };
    Some(client.client(setting!(knobs, client)).hash(setting!(knobs, seed)))
}

#[inline(always)]
fn netns_cookie(socket: u64, layout: &SocketLayout) -> Option<u64> {
    let net: u64 = read(socket, layout.net)?;
    read(net, layout.net_cookie)
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
const EEXIST: i32 = -17;
