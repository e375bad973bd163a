//! Holds the count of open connections to the kernel's own list of sockets.
//!
//! The programs count every change from the moment they are attached. A census finds the sockets
//! that were open before that, and whatever went wrong since: it compares the list with what is
//! counted and has the kernel correct each difference, socket by socket, as the programs do it.
//! Nothing here needs a capability.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{HashMap as Table, MapData};
use edge_common::{
    Source,
    map::{self, Settings, census},
};
use nix::sys::socket::SockProtocol;

use super::{
    KernelError, bpf,
    maps::table_error,
    netlink::{Netlink, word},
};

/// Compares and corrects.
pub(super) struct Census {
    /// `edged_census`
    program: OwnedFd,
    /// Socket cookies -> the hash each is counted under.
    counted: Table<MapData, u64, u64>,
}

/// Sockets that a census changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corrected {
    /// Open, and not counted before.
    pub added: u64,
    /// Counted, and not open any more.
    pub removed: u64,
}

impl Census {
    pub(super) const fn new(program: OwnedFd, counted: Table<MapData, u64, u64>) -> Self {
        Self { program, counted }
    }

    /// Looks until nothing differs, or [`LOOKS_MAX`] times while sockets come and go.
    pub(super) fn take(&self, settings: &Settings) -> Result<Corrected, KernelError> {
        let (mut corrected, mut last) = (Corrected::default(), Difference::default());
        for look in 1..=LOOKS_MAX {
            // In this order: what is counted by now and closed since is absent, for good.
            let counted = self.counted()?;
            let open = open_sockets(settings).map_err(KernelError::Census)?;
            let now = compare(&counted, &open);
            if now.is_empty() {
                break;
            }
            for (verb, cookie, hash) in settle(look, &last, &now) {
                let changed = match verb {
                    census::ADD => &mut corrected.added,
                    _ => &mut corrected.removed,
                };
                *changed += self.correct(verb, cookie, hash)?;
            }
            last = now;
        }
        Ok(corrected)
    }

    /// What is counted now. A table that changes may be told of in part and in part twice: what is
    /// left out is taken for missing, and the kernel does not count it again.
    fn counted(&self) -> Result<HashMap<u64, u64>, KernelError> {
        let entries = self.counted.iter().take(2 * map::SOCKETS_MAX as usize);
        entries.map(|entry| entry.map_err(table_error(map::SOCKETS))).collect()
    }

    fn correct(&self, verb: u64, cookie: u64, hash: u64) -> Result<u64, KernelError> {
        let changed = bpf::run(self.program.as_fd(), [verb, cookie, hash]);
        changed.map(u64::from).map_err(KernelError::Census)
    }
}

/// A TCP socket that is neither listening nor in its handshake nor a remainder in TIME_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    /// What its client is counted under.
    hash: u64,
    /// Whether a client opened it, rather than the edge.
    is_accepted: bool,
}

/// What the count has wrong.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    /// Counted, and not on the list.
    absent: HashSet<u64>,
    /// Counted under another hash than its client's, as after a change of what stands for one client.
    moved: HashSet<u64>,
    /// Open and not counted under its client's hash: cookie and hash.
    missing: HashSet<(u64, u64)>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.absent.is_empty() && self.missing.is_empty()
    }
}

fn compare(counted: &HashMap<u64, u64>, open: &HashMap<u64, Open>) -> Difference {
    let mut difference = Difference::default();
    for (cookie, hash) in counted {
        match open.get(cookie) {
            None => _ = difference.absent.insert(*cookie),
            Some(open) if open.hash != *hash => _ = difference.moved.insert(*cookie),
            Some(_) => {}
        }
    }
    for (cookie, open) in open {
        let is_counted = counted.get(cookie) == Some(&open.hash);
        if !is_counted && (open.is_accepted || counted.contains_key(cookie)) {
            difference.missing.insert((*cookie, open.hash));
        }
    }
    difference
}

/// What to correct at a look, by what it and the one before found: verb, cookie and hash each, in
/// this order. Only what two looks agree on, since the kernel's list is walked while it changes and
/// may leave a socket out.
fn settle(look: usize, last: &Difference, now: &Difference) -> Vec<(u64, u64, u64)> {
    let absent = now.absent.intersection(&last.absent);
    let mut corrections: Vec<_> = absent.map(|cookie| (census::REMOVE, *cookie, 0)).collect();
    // A socket may close between the list and its addition, which nobody would tell of: two more
    // looks find it absent.
    if look + 2 <= LOOKS_MAX {
        for (cookie, hash) in now.missing.intersection(&last.missing) {
            if now.moved.contains(cookie) {
                corrections.push((census::REMOVE, *cookie, 0));
            }
            corrections.push((census::ADD, *cookie, *hash));
        }
    }
    corrections
}

/// The open sockets of this network namespace, by cookie.
fn open_sockets(settings: &Settings) -> io::Result<HashMap<u64, Open>> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // A socket of its own for each question: an answer that broke off cannot be taken for
        // part of the next.
        let netlink = Netlink::open(SockProtocol::NetlinkSockDiag, 0)?;
        let question = question(family as u8);
        let dump = netlink.dump(SOCK_DIAG_BY_FAMILY, &question, |answer| {
            sockets.extend(parse(answer));
        });
        match dump {
            // A kernel without IPv6 has no such sockets.
            Err(error) if family == libc::AF_INET6 && is_unknown(&error) => {}
            other => other?,
        }
    }
    let listening: HashSet<_> =
        sockets.iter().filter(|s| s.state == LISTEN).map(|s| (s.port, s.local)).collect();
    let accepted = |socket: &Socket| {
        let any = [socket.local, Source::v4([0; 4]), Source::default()];
        any.iter().any(|local| listening.contains(&(socket.port, *local)))
    };
    let open = sockets.iter().filter(|socket| socket.state != LISTEN).map(|socket| {
        let hash = socket.peer.client(settings.client).hash(settings.seed);
        (socket.cookie, Open { hash, is_accepted: accepted(socket) })
    });
    Ok(open.collect())
}

/// Asks for no socket at all: whether the kernel knows such questions.
pub(super) fn ask_for_none() -> io::Result<()> {
    let mut question = question(libc::AF_INET as u8);
    question[4..8].fill(0);
    let netlink = Netlink::open(SockProtocol::NetlinkSockDiag, 0)?;
    netlink.dump(SOCK_DIAG_BY_FAMILY, &question, |_| ())
}

/// Whether the kernel does not know the question.
pub(super) fn is_unknown(error: &io::Error) -> bool {
    let unknown = [libc::ENOENT, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT];
    error.raw_os_error().is_some_and(|number| unknown.contains(&number))
}

/// A TCP socket, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    state: u8,
    cookie: u64,
    local: Source,
    port: u16,
    peer: Source,
}

/// Asks for the TCP sockets of a family that [`Open`] is about, and those that listen.
fn question(family: u8) -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    question[0] = family;
    question[1] = libc::IPPROTO_TCP as u8;
    question[4..8].copy_from_slice(&STATES.to_ne_bytes());
    question
}

/// Reads an `inet_diag_msg`; `None` for what is no whole socket.
fn parse(answer: &[u8]) -> Option<Socket> {
    let [family, state, timer, ..] = *answer else { return None };
    // What is left of a socket in FIN_WAIT2 after its owner is gone is told as that state, though
    // the socket itself is closed.
    if timer == TIMER_TIME_WAIT {
        return None;
    }
    let address = |at: usize| match i32::from(family) {
        libc::AF_INET => Some(Source::v4(*answer.get(at..)?.first_chunk()?)),
        _ => Some(Source::v6(*answer.get(at..)?.first_chunk()?)),
    };
    let (low, high) = (word(answer, 44)?, word(answer, 48)?);
    Some(Socket {
        state,
        cookie: u64::from(high) << 32 | u64::from(low),
        local: address(8)?,
        port: u16::from_be_bytes(*answer.get(4..)?.first_chunk()?),
        peer: address(24)?,
    })
}

/// Two that agree on what to add, and two that agree on what has closed in between.
const LOOKS_MAX: usize = 4;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of an `inet_diag_req_v2`.
const QUESTION: usize = 56;
const TIMER_TIME_WAIT: u8 = 3;
const LISTEN: u8 = 10;
/// ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, LISTEN and CLOSING.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_socket_is_read_as_the_kernel_tells_it() {
        let mut answer = [0; 72];
        (answer[0], answer[1]) = (libc::AF_INET as u8, 1);
        answer[4..8].copy_from_slice(&[0x01, 0xbb, 0xc0, 0x01]);
        answer[8..12].copy_from_slice(&[192, 0, 2, 1]);
        answer[24..28].copy_from_slice(&[198, 51, 100, 7]);
        answer[44..48].copy_from_slice(&5_u32.to_ne_bytes());
        answer[48..52].copy_from_slice(&1_u32.to_ne_bytes());
        let socket = Socket {
            state: 1,
            cookie: 1 << 32 | 5,
            local: Source::v4([192, 0, 2, 1]),
            port: 443,
            peer: Source::v4([198, 51, 100, 7]),
        };
        assert_eq!(parse(&answer), Some(socket));
        assert_eq!(parse(&answer[..51]), None);
        answer[2] = TIMER_TIME_WAIT;
        assert_eq!(parse(&answer), None);
    }

    proptest! {
        /// Corrected while sockets open and close, the count is the list; sockets that the edge
        /// opened stay out. A change falls before a look, between its two readings or after them.
        #[test]
        fn a_corrected_count_is_the_list(
            mut counted in proptest::collection::hash_map(0_u64..40, 0_u64..3, 0..30),
            open in proptest::collection::hash_map(0_u64..40, (0_u64..3, any::<bool>()), 0..30),
            closes in proptest::collection::vec((0..3 * LOOKS_MAX, 0_u64..60), 0..40),
            opens in proptest::collection::vec((0..3 * LOOKS_MAX, 40_u64..60), 0..10),
        ) {
            let mut open: HashMap<_, _> = open
                .into_iter()
                .map(|(cookie, (hash, is_accepted))| (cookie, Open { hash, is_accepted }))
                .collect();
            let first = counted.clone();
            let change = |moment, counted: &mut HashMap<_, _>, open: &mut HashMap<_, _>| {
                for (_, cookie) in opens.iter().filter(|(at, _)| *at == moment) {
                    open.insert(*cookie, Open { hash: 1, is_accepted: true });
                    counted.insert(*cookie, 1);
                }
                // Of a socket that closes the programs take away what it is counted by.
                for (_, cookie) in closes.iter().filter(|(at, _)| *at == moment) {
                    if open.remove(cookie).is_some() {
                        counted.remove(cookie);
                    }
                }
            };
            let mut last = Difference::default();
            for look in 1..=LOOKS_MAX {
                let moment = 3 * (look - 1);
                change(moment, &mut counted, &mut open);
                let read = counted.clone();
                change(moment + 1, &mut counted, &mut open);
                let now = compare(&read, &open);
                change(moment + 2, &mut counted, &mut open);
                for (verb, cookie, hash) in settle(look, &last, &now) {
                    match verb {
                        census::ADD => _ = counted.entry(cookie).or_insert(hash),
                        _ => _ = counted.remove(&cookie),
                    }
                }
                last = now;
            }
            prop_assert_eq!(compare(&counted, &open), Difference::default());
            for (cookie, open) in &open {
                let is_counted = first.contains_key(cookie) || open.is_accepted;
                prop_assert_eq!(counted.get(cookie), is_counted.then_some(&open.hash));
            }
        }
    }
}
