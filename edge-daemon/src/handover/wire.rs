//! What the two daemons say to each other over a unix socket: a line of JSON for each step, and
//! descriptors beside single bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use edge_common::Reason;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{listen::Inherited, notify::Unit};

/// A step of the handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// The successor asks: which version it is.
    Ask { version: String },
    /// So many sockets follow, for TCP and for unix. And what is known of the unit, if both are in the same, and what
    /// operators drained.
    Sockets {
        tcp: usize,
        unix: usize,
        #[serde(default)]
        unit: Option<Unit>,
        #[serde(default)]
        drained: Drained,
    },
    /// It wants what one process alone can hold, but for nonces.
    Release,
    /// It has it.
    Released,
    /// It wants the memory of nonces.
    YieldNonces,
    /// It has it.
    NoncesYielded,
    /// It is ready.
    Ready,
    /// It is the successor.
    Yours,
    /// It is not: why.
    Kept(String),
}

/// What operators drained, by upstream and in their words.
pub(super) type Drained = BTreeMap<String, BTreeSet<String>>;

/// What the former daemon, which drains, still has to tell.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Errand {
    /// An entry of the audit log.
    Audit { at_ms: u64, entry: serde_json::Value },
    /// Something that must not come twice. Answered by an [`Admission`].
    Once {
        #[serde(default)]
        by: String,
        name: Vec<u8>,
        signed_s: u64,
        until_s: u64,
        now_s: u64,
    },
}

/// Whether something comes for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Admission {
    Admitted,
    Replayed,
    /// There is no room, or it cannot be said. Versions before had a word of its own for the latter.
    #[serde(alias = "stale")]
    Full,
    Failed,
}

impl From<Result<(), Reason>> for Admission {
    fn from(result: Result<(), Reason>) -> Self {
        match result {
            Ok(()) => Self::Admitted,
            Err(Reason::Replayed) => Self::Replayed,
            Err(Reason::NoncesFull) => Self::Full,
            Err(_) => Self::Failed,
        }
    }
}

impl From<Admission> for Result<(), Reason> {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Admitted => Ok(()),
            Admission::Replayed => Err(Reason::Replayed),
            Admission::Full => Err(Reason::NoncesFull),
            Admission::Failed => Err(Reason::InternalError),
        }
    }
}

/// Writes one line.
pub(super) fn say(mut stream: &UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads what one line says.
pub(super) fn hear<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<T> {
    Ok(serde_json::from_slice(&hear_line(stream)?)?)
}

/// Reads one line, and nothing behind it, where descriptors may be.
pub(super) fn hear_line(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    loop {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(line);
        }
        line.push(byte[0]);
        if line.len() > STEP_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Sends listeners, in the order that [`Step::Sockets`] counts them in.
pub(super) fn send_sockets(
    stream: &UnixStream,
    tcp: &[TcpListener],
    unix: &[UnixListener],
    (unit, drained): (Option<Unit>, Drained),
) -> io::Result<()> {
    say(stream, &Step::Sockets { tcp: tcp.len(), unix: unix.len(), unit, drained })?;
    let tcp = tcp.iter().map(TcpListener::as_fd);
    let all: Vec<_> = tcp.chain(unix.iter().map(UnixListener::as_fd)).collect();
    all.chunks(AT_ONCE).try_for_each(|some| send(stream, some))
}

/// Receives them, and what is said beside them.
pub(super) fn receive_sockets(
    stream: &UnixStream,
) -> io::Result<(Inherited, Option<Unit>, Drained)> {
    let Step::Sockets { tcp, unix, unit, drained } = hear(stream)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut all = Vec::new();
    while all.len() < tcp.saturating_add(unix) {
        all.extend(receive(stream)?);
    }
    let unix = all.split_off(tcp.min(all.len()));
    let tcp = all.into_iter().map(Into::into).collect();
    Ok((Inherited::new(tcp, unix.into_iter().map(Into::into).collect()), unit, drained))
}

fn send(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    beside.push(SendAncillaryMessage::ScmRights(descriptors));
    let sent = sendmsg(stream, &[IoSlice::new(MARK)], &mut beside, SendFlags::empty())?;
    if sent == MARK.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn receive(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut mark = [0];
    let got =
        recvmsg(stream, &mut [IoSliceMut::new(&mut mark)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let of = |message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    };
    let received: Vec<OwnedFd> = beside.drain().flat_map(of).collect();
    if got.bytes == 0 || received.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(received)
}

/// The byte that descriptors come with.
const MARK: &[u8] = b"F";
/// Descriptors that one message holds; the kernel takes 253.
const AT_ONCE: usize = 64;
const STEP_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_arrive_as_they_were_sent() {
        let (here, there) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tcp: Vec<_> = (0..70).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let unix = vec![UnixListener::bind(dir.path().join("a")).unwrap()];
        let said = Drained::from([("api".to_owned(), ["app:80".to_owned()].into())]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send_sockets(&here, &tcp, &unix, (None, said.clone())).unwrap();
                say(&here, &Step::Released).unwrap();
            });
            let (mut got, unit, drained) = receive_sockets(&there).unwrap();
            assert_eq!((unit, &drained), (None, &said));
            for listener in &tcp {
                assert_eq!(got.take(listener.local_addr().unwrap()).unwrap().len(), 1);
            }
            assert!(got.take_unix(&dir.path().join("a")).is_some());
            assert_eq!(hear::<Step>(&there).unwrap(), Step::Released);
        });
    }

    #[test]
    fn versions_that_say_less_are_understood() {
        let former: Step = serde_json::from_str(r#"{"sockets":{"tcp":2,"unix":1}}"#).unwrap();
        let drained = Drained::new();
        assert_eq!(former, Step::Sockets { tcp: 2, unix: 1, unit: None, drained });
        assert_eq!(serde_json::from_str::<Admission>("\"stale\"").unwrap(), Admission::Full);
    }

    #[test]
    fn what_became_of_a_nonce_survives_the_way() {
        for reason in [Reason::Replayed, Reason::NoncesFull, Reason::InternalError] {
            let result: Result<(), Reason> = Admission::from(Err(reason)).into();
            assert_eq!(result, Err(reason));
        }
        let result: Result<(), Reason> = Admission::from(Ok(())).into();
        assert_eq!(result, Ok(()));
    }
}
