//! The successor's side: from the question to the word that it is in office, and then, while the
//! former drains, what that still has to say.

use std::{
    io::{self, ErrorKind},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use edge_identity::signed::Once;

use super::wire::{Admission, Errand, Step, hear, receive_sockets, say};
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

    /// Takes over. What the former still has to say is heard on a thread of its own.
    ///
    /// # Errors
    /// If it has decided to stay; no request may be taken then.
    pub fn succeed(self, edge: Arc<Edge>) -> anyhow::Result<()> {
        if let Err(error) = self.step(&Step::Ready, &Step::Yours) {
            // It died: there is nobody left to serve but this process.
            if error.downcast_ref::<io::Error>().is_none() {
                return Err(error);
            }
            tracing::warn!(%error, "the former daemon is gone");
            return Ok(());
        }
        self.0.set_read_timeout(None)?;
        std::thread::Builder::new().name("former".to_owned()).spawn(move || {
            while let Ok(errand) = hear(&self.0) {
                if run(&edge, errand, &self.0).is_err() {
                    break;
                }
            }
            tracing::info!("the former daemon has ended");
        })?;
        Ok(())
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

/// For an answer of the daemon in office: it may be in the middle of a large list.
const PATIENCE: Duration = Duration::from_secs(60);
