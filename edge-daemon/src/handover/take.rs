//! The successor's side: from the question to the word that it is in office, and then, while the
//! former drains, what that still has to say.

use std::{
    io::{self, ErrorKind},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail};
use edge_identity::signed::Once;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::wire::{Admission, Drained, Errand, Step, hear, hear_line, receive_sockets, say};
use crate::{listen::Inherited, notify::Unit, privilege, request::Edge, upstream::Upstream};

/// The daemon that is in office.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    /// The thread that hears it while this daemon makes ready; it ends when the other end is closed.
    listening: Option<(UnixStream, JoinHandle<()>)>,
    /// What operators drained, as it said when it was asked.
    drained: Drained,
}

impl Predecessor {
    /// Asks the daemon whose socket for it is at `socket` for its listeners; `None`: none runs.
    ///
    /// # Errors
    /// If one runs and refuses.
    pub fn ask(socket: &Path) -> anyhow::Result<Option<(Self, Inherited)>> {
        let stream = match UnixStream::connect(socket) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| socket.display().to_string()),
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let ask = || {
            say(&stream, &Step::Ask { version: env!("CARGO_PKG_VERSION").to_owned() })?;
            receive_sockets(&stream)
        };
        let (sockets, unit, drained) = ask().context("the daemon that runs does not hand over")?;
        unit.into_iter().for_each(Unit::join);
        Ok(Some((Self { stream, listening: None, drained }, sockets)))
    }

    /// Has it give up what one process alone can hold. From here on it may say, unasked, that it stays, and then
    /// it waits for all of that: `kept` is called with the reason, on a thread of its own, and is to end the process.
    /// If it is gone, all of that is free.
    ///
    /// # Errors
    /// If it does not; then it goes on.
    pub fn release(&mut self, kept: impl FnOnce(&str) + Send + 'static) -> anyhow::Result<()> {
        if !self.has_done(&Step::Release, &Step::Released)? {
            thread::sleep(DYING);
            return Ok(());
        }
        let (stream, (stop, stops)) = (self.stream.try_clone()?, UnixStream::pair()?);
        let listen = move || {
            // Capabilities are each thread's own, and this one needs none.
            if let Err(error) = privilege::drop_all() {
                tracing::warn!(%error, "a thread that only listens has capabilities");
            }
            if let Some(why) = hear_kept(&stream, &stops) {
                kept(&why);
            }
        };
        let listening = thread::Builder::new().name("former".to_owned()).spawn(listen)?;
        self.listening = Some((stop, listening));
        Ok(())
    }

    /// Has it give up the memory of nonces. From here to [`Self::succeed`] requests that need it wait. `None`: it is
    /// gone, and all that it had is free.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn yield_nonces(mut self) -> anyhow::Result<Option<Self>> {
        // What it says from here on is an answer.
        if let Some((stop, listening)) = self.listening.take() {
            drop(stop);
            let _ = listening.join();
        }
        Ok(self.has_done(&Step::YieldNonces, &Step::NoncesYielded)?.then_some(self))
    }

    /// Takes up what operators drained there.
    pub fn bequeath(&self, upstreams: &[Arc<Upstream>]) {
        for upstream in upstreams {
            let words = self.drained.get(&upstream.settings.name);
            words.into_iter().for_each(|words| upstream.inherit(words));
        }
    }

    /// Takes over. What the former still has to say is heard on a thread of its own, which ends with it.
    ///
    /// # Errors
    /// If it has decided to stay, or may have; no request may be taken then.
    pub fn succeed(self, edge: Arc<Edge>) -> anyhow::Result<Option<JoinHandle<()>>> {
        if !self.has_done(&Step::Ready, &Step::Yours)? {
            return Ok(None);
        }
        let stream = self.stream;
        stream.set_read_timeout(None)?;
        let hear = move || {
            hear_errands(&stream, |errand| run(&edge, errand, &stream));
            tracing::info!("the former daemon has ended");
        };
        Ok(Some(thread::Builder::new().name("former".to_owned()).spawn(hear)?))
    }

    /// Has it do a step. `false`: it died, and there is nobody left to serve but this process.
    fn has_done(&self, step: &Step, wanted: &Step) -> anyhow::Result<bool> {
        match self.step(step, wanted) {
            Ok(()) => Ok(true),
            Err(error) if has_ended(&error) => {
                tracing::warn!(%error, "the former daemon is gone");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn step(&self, step: &Step, wanted: &Step) -> anyhow::Result<()> {
        // One that stays says so and closes: that is still to be heard when it hears nothing any more.
        let asked = say(&self.stream, step);
        match hear::<Step>(&self.stream)? {
            Step::Kept(why) => bail!("the daemon that runs stays: {why}"),
            answer if answer == *wanted => Ok(asked?),
            other => bail!("the daemon that runs answers {step:?} with {other:?}"),
        }
    }
}

/// Whether this is the end of the other side, and not its silence.
fn has_ended(error: &anyhow::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let kind = error.downcast_ref().map(io::Error::kind);
    matches!(kind, Some(BrokenPipe | ConnectionReset | UnexpectedEof))
}

/// Waits until the former says why it stays, or `stop` is closed. One that is gone says nothing, and takes
/// nothing back.
fn hear_kept(stream: &UnixStream, stop: &UnixStream) -> Option<String> {
    let mut waited = [stop, stream].map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN));
    while poll(&mut waited, PollTimeout::NONE) == Err(Errno::EINTR) {}
    if waited[0].any() == Some(true) {
        return None;
    }
    match hear(stream) {
        Ok(Step::Kept(why)) => Some(why),
        _ => None,
    }
}

/// Runs errands until the former has ended. One that another version words otherwise ends nothing, and is
/// answered as failed if it waits for an answer.
fn hear_errands(stream: &UnixStream, mut run: impl FnMut(Errand) -> io::Result<()>) {
    while let Ok(line) = hear_line(stream) {
        let done = match serde_json::from_slice(&line) {
            Ok(errand) => run(errand),
            Err(error) => {
                tracing::error!(%error, "an errand of the former daemon is not understood");
                if line.starts_with(ONCE) { say(stream, &Admission::Failed) } else { Ok(()) }
            }
        };
        if done.is_err() {
            break;
        }
    }
}

fn run(edge: &Edge, errand: Errand, stream: &UnixStream) -> io::Result<()> {
    match errand {
        Errand::Audit { at_ms, entry } => {
            edge.audit.relay(at_ms, entry);
            Ok(())
        }
        Errand::Once { by, name, signed_s, until_s, now_s } => {
            let once = Once { by, name, signed_s, until_s };
            say(stream, &Admission::from(edge.replays.admit(&once, now_s)))
        }
    }
}

/// How [`Errand::Once`] begins.
const ONCE: &[u8] = b"{\"once\":";

/// For an answer of the daemon in office: it may be in the middle of a large list.
const PATIENCE: Duration = Duration::from_secs(60);
/// For one that dies to let go of the rest, once its end of the stream is closed.
const DYING: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixListener};

    use super::{super::wire::send_sockets, *};

    fn former() -> (UnixStream, Predecessor) {
        let (here, stream) = UnixStream::pair().unwrap();
        (here, Predecessor { stream, listening: None, drained: Drained::new() })
    }

    #[test]
    fn a_former_that_stays_and_hears_no_more_is_not_taken_for_dead() {
        let (here, former) = former();
        say(&here, &Step::Kept("it took too long".to_owned())).unwrap();
        drop(here);
        let error = former.yield_nonces().unwrap_err();
        assert!(error.to_string().contains("it took too long"), "{error}");
    }

    #[test]
    fn a_former_that_is_silent_is_not_taken_for_dead() {
        let (_here, former) = former();
        former.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert!(former.has_done(&Step::Ready, &Step::Yours).is_err());
    }

    #[test]
    fn a_former_that_dies_at_any_step_has_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("handover");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                assert!(matches!(hear(&stream).unwrap(), Step::Ask { .. }));
                send_sockets(&stream, &[], &[], Default::default()).unwrap();
                assert_eq!(hear::<Step>(&stream).unwrap(), Step::Release);
            });
            let (mut former, _) = Predecessor::ask(&socket).unwrap().unwrap();
            former.release(|why| panic!("{why}")).unwrap();
            assert!(former.yield_nonces().unwrap().is_none());
        });
        // With the question unread, the stream is reset.
        let (here, former) = former();
        (&former.stream).write_all(b"x").unwrap();
        drop(here);
        assert!(!former.has_done(&Step::Ready, &Step::Yours).unwrap());
    }

    #[test]
    fn a_former_that_stays_is_heard_while_nothing_is_asked_of_it() {
        let heard = |act: fn(UnixStream, UnixStream) -> Option<UnixStream>| {
            let ((here, there), (stop, stops)) =
                (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
            let listening = thread::spawn(move || (hear_kept(&there, &stops), there));
            let _still = act(here, stop);
            let (heard, there) = listening.join().unwrap();
            (heard, there.set_nonblocking(true).and_then(|()| hear::<Step>(&there)).is_ok())
        };
        let kept = |here: UnixStream, stop: UnixStream| {
            say(&here, &Step::Kept("why".to_owned())).unwrap();
            Some(stop)
        };
        assert_eq!(heard(kept), (Some("why".to_owned()), false));
        assert_eq!(heard(|_, stop| Some(stop)), (None, false), "it is gone");
        // What comes as the listening ends is the answer to the next step.
        let both = |here: UnixStream, stop: UnixStream| {
            drop(stop);
            thread::sleep(Duration::from_millis(20));
            say(&here, &Step::NoncesYielded).unwrap();
            Some(here)
        };
        assert!(heard(both).0.is_none());
    }

    #[test]
    fn errands_of_other_versions_end_nothing() {
        let (here, there) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                hear_errands(&there, |errand| match errand {
                    Errand::Once { by, .. } if by.is_empty() => say(&there, &Admission::Admitted),
                    other => panic!("{other:?}"),
                });
            });
            let tell = |line: &str| (&here).write_all(format!("{line}\n").as_bytes()).unwrap();
            tell("{\"unheard\":{\"of\":1}}");
            tell("{\"once\":{\"name\":7}}");
            assert_eq!(hear::<Admission>(&here).unwrap(), Admission::Failed);
            // As the version before says it.
            tell(r#"{"once":{"name":[1],"signed_s":1,"until_s":2,"now_s":1}}"#);
            assert_eq!(hear::<Admission>(&here).unwrap(), Admission::Admitted);
            drop(here);
        });
    }
}
