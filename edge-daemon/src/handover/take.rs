//! The successor's side: from the question to the word that it is in office, and then, while the
//! former drains, what that still has to say.

use std::{
    io::{self, ErrorKind},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail};
use edge_identity::signed::Once;

use super::wire::{Admission, Errand, Step, hear, hear_line, receive_sockets, say};
use crate::{listen::Inherited, notify::Unit, request::Edge};

/// The daemon that is in office.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

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
        let (sockets, unit) = ask().context("the daemon that runs does not hand over")?;
        unit.into_iter().for_each(Unit::join);
        Ok(Some((Self(stream), sockets)))
    }

    /// Has it give up what one process alone can hold.
    ///
    /// # Errors
    /// If it does not; then it goes on.
    pub fn release(&self) -> anyhow::Result<()> {
        self.step(&Step::Release, &Step::Released)
    }

    /// Has it give up the memory of nonces. From here to [`Self::succeed`] requests that need it wait.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn yield_nonces(&self) -> anyhow::Result<()> {
        self.step(&Step::YieldNonces, &Step::NoncesYielded)
    }

    /// Takes over. What the former still has to say is heard on a thread of its own, which ends with it.
    ///
    /// # Errors
    /// If it has decided to stay; no request may be taken then.
    pub fn succeed(self, edge: Arc<Edge>) -> anyhow::Result<Option<JoinHandle<()>>> {
        if let Err(error) = self.step(&Step::Ready, &Step::Yours) {
            // It died: there is nobody left to serve but this process.
            if error.downcast_ref::<io::Error>().is_none() {
                return Err(error);
            }
            tracing::warn!(%error, "the former daemon is gone");
            return Ok(None);
        }
        self.0.set_read_timeout(None)?;
        let hear = move || {
            hear_errands(&self.0, |errand| run(&edge, errand, &self.0));
            tracing::info!("the former daemon has ended");
        };
        Ok(Some(thread::Builder::new().name("former".to_owned()).spawn(hear)?))
    }

    fn step(&self, step: &Step, wanted: &Step) -> anyhow::Result<()> {
        say(&self.0, step)?;
        match hear::<Step>(&self.0)? {
            answer if answer == *wanted => Ok(()),
            Step::Kept(why) => bail!("the daemon that runs stays: {why}"),
            other => bail!("the daemon that runs answers {step:?} with {other:?}"),
        }
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

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
