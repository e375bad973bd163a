//! Questions to the kernel over netlink, and its answers, as bytes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

/// A netlink socket in the network namespace of the thread that opened it.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens a socket that also hears what is told to these groups.
    pub(super) fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        // The kernel answers at once; a bound all the same, since a thread waits here.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(5))?;
        Ok(Self(socket))
    }

    /// Asks for all there is of something; `each` gets the payload of every message. Nothing else
    /// may be told to this socket.
    pub(super) fn dump(
        &self,
        kind: u16,
        question: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let length = (HEADER + question.len()) as u32;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        // The sequence number and the port, which the kernel fills in.
        message.extend([0; 8]);
        message.extend(question);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for message in messages(&buffer[..length]) {
                match message? {
                    (NLMSG_DONE, payload) => return end_of(payload),
                    (NLMSG_ERROR, payload) => return Err(error_of(payload)),
                    (_, payload) => each(payload),
                }
            }
        }
    }

    /// Takes what was told to the groups so far, kind and payload each; whether that is all, and
    /// nothing was lost for want of room.
    pub(super) fn told(&self, mut each: impl FnMut(u16, &[u8])) -> bool {
        let mut buffer = vec![0; BUFFER];
        let mut is_whole = true;
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    messages(&buffer[..length]).flatten().for_each(|(kind, told)| each(kind, told));
                }
                Err(Errno::ENOBUFS) => is_whole = false,
                Err(_) => return is_whole,
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The messages of one datagram: kind and payload each.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let (length, kind) = match (word(bytes, 0), half(bytes, 4)) {
            (Some(length), Some(kind)) if (HEADER..=bytes.len()).contains(&(length as usize)) => {
                (length as usize, kind)
            }
            _ => {
                bytes = &[];
                return Some(Err(io::ErrorKind::InvalidData.into()));
            }
        };
        let (message, rest) = (&bytes[..length], bytes.get(aligned(length)..).unwrap_or_default());
        bytes = rest;
        Some(Ok((kind, &message[HEADER..])))
    })
}

/// The attributes in a part of a message: kind and value each, up to the first that is cut off.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (half(bytes, 0)? as usize, half(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        // The two upper bits tell of nesting and byte order.
        Some((kind & 0x3fff, value))
    })
}

/// The native `u32` at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// How a dump ended: its last message tells of an error that cut it short.
fn end_of(payload: &[u8]) -> io::Result<()> {
    match word(payload, 0).map(u32::cast_signed) {
        Some(..0) => Err(error_of(payload)),
        _ => Ok(()),
    }
}

fn error_of(payload: &[u8]) -> io::Error {
    match word(payload, 0) {
        Some(code) => io::Error::from_raw_os_error(code.cast_signed().saturating_neg()),
        None => io::ErrorKind::InvalidData.into(),
    }
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Bytes of a message's header.
const HEADER: usize = 16;
/// More than the kernel puts into one datagram.
const BUFFER: usize = 64 << 10;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_and_attributes_are_taken_apart() {
        let mut bytes = Vec::new();
        for (kind, payload) in [(7_u16, &b"abcde"[..]), (3, &[])] {
            bytes.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(payload);
            bytes.resize(aligned(bytes.len()), 0);
        }
        let found: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(found, [(7, &b"abcde"[..]), (3, &[][..])]);
        let nested = [6, 0, 1, 0x80, 9, 8, 0, 0, 4, 0, 2, 0, 99, 0, 5, 0];
        let found: Vec<_> = attributes(&nested).collect();
        assert_eq!(found, [(1, &[9, 8][..]), (2, &[][..])]);
    }

    #[test]
    fn a_dump_that_was_cut_short_is_no_whole_one() {
        let end = |status: i32| end_of(&status.to_ne_bytes()).map_err(|e| e.raw_os_error());
        assert_eq!(end(-libc::ENOMEM), Err(Some(libc::ENOMEM)));
        assert_eq!((end(0), end(1)), (Ok(()), Ok(())));
        assert!(end_of(&[]).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_to_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
