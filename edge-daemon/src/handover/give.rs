//! The side of the daemon in office, on a thread of its own: it lends what one process alone can hold
//! to who asks, and takes it back if that does not become its successor.

use std::{
    net::TcpListener,
    os::{
        fd::AsFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Successor,
    nonces::SecondName,
    wire::{Step, hear, say, send_sockets},
};
use crate::{
    audit::Resumption, config::Settings, control::Peer, kernel::Lock, notify::Unit, quota,
    request::Edge, shared, store::Store,
};

/// Where a successor asks.
#[must_use]
pub fn socket(settings: &Settings) -> PathBuf {
    settings.control.socket.with_extension("handover")
}

/// What a successor gets as it is.
#[derive(Debug, Default)]
pub struct Heritage {
    /// Listeners for clients, and for scrapes.
    pub tcp: Vec<TcpListener>,
    /// Those for `edgectl`, and for the successor's own successor.
    pub unix: Vec<UnixListener>,
}

/// What happens, as the main thread is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody makes ready: nobody is to be answered that is an operator.
    Begun,
    /// It did not come to be: everything is as it was, but for what it may have changed.
    Lapsed,
    /// There is a successor, with this process id.
    Succeeded(Option<i32>),
}

/// The thread that hands over.
pub struct Giver {
    /// Where successors ask.
    pub listener: UnixListener,
    /// What they get.
    pub heritage: Heritage,
    /// What is shared with the workers.
    pub edge: Arc<Edge>,
    /// What one process alone may have open.
    pub store: Arc<Store>,
    /// What it alone writes of the kernel's tables.
    pub tables: Arc<Lock>,
    /// As of the start: what is of matter here needs a restart to change.
    pub settings: Settings,
    /// The way to the main thread.
    pub told: UnboundedSender<Outcome>,
}

impl Giver {
    /// Hands over to the first who becomes the successor, or until `stop` is closed.
    pub fn run(self, stop: &UnixStream) {
        loop {
            let mut waited = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            let ready = poll(&mut waited, PollTimeout::NONE);
            if ready.is_ok() && waited[0].any() == Some(true) {
                return;
            }
            let Ok((stream, _)) = self.listener.accept() else { continue };
            match self.hear_out(&stream, stop) {
                Ok(peer) if self.give(&stream, stop, peer.pid) => return,
                Ok(_) => {}
                Err(error) => self.stay(&stream, &error),
            }
        }
    }

    /// Hears who asks, up to its wish for what one process alone can hold.
    fn hear_out(&self, stream: &UnixStream, stop: &UnixStream) -> anyhow::Result<Peer> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(FIRST_WORDS))?;
        stream.set_write_timeout(Some(FIRST_WORDS))?;
        let peer = peer(stream)?;
        if !peer.may_command(nix::unistd::geteuid().as_raw()) {
            bail!("user {} may not take over from this daemon; root may", peer.uid);
        }
        let Step::Ask { version } = await_step(stream, stop)? else { bail!("no question") };
        tracing::info!(version, pid = peer.pid, "a successor asks");
        let unit = peer.pid.and_then(Unit::shared_with);
        let plan = self.edge.plan.load();
        let drained = plan.upstreams.iter().map(|one| (one.settings.name.clone(), one.drained()));
        let said = (unit, drained.collect());
        send_sockets(stream, &self.heritage.tcp, &self.heritage.unix, said)?;
        expect(stream, stop, &Step::Release)?;
        Ok(peer)
    }

    /// Lends it all, and gives it for good to who makes ready with it. Whether somebody did.
    fn give(&self, stream: &UnixStream, stop: &UnixStream, pid: Option<i32>) -> bool {
        let _ = self.told.send(Outcome::Begun);
        // From here to the end nothing that outlives the daemon changes by this one, but for what is
        // made durable.
        let turn = self.edge.reign.pause();
        self.edge.outside.finish();
        let mut nonces = None;
        match self.lend(stream, &mut nonces, |step| expect(stream, stop, step)) {
            Ok(successor) => {
                // Before the successor lends that name in its turn.
                drop(nonces);
                self.edge.audit.resume(Resumption::Relay(successor));
                self.store.give_up();
                self.edge.reign.end();
                drop(turn);
                let _ = self.told.send(Outcome::Succeeded(pid));
                true
            }
            Err(error) => {
                // One that lives ends when it hears that, and only its end frees what it was lent.
                self.stay(stream, &error);
                self.take_back(nonces);
                self.edge.reign.lapse();
                drop(turn);
                let _ = self.told.send(Outcome::Lapsed);
                false
            }
        }
    }

    /// Tells everybody that this daemon remains.
    fn stay(&self, stream: &UnixStream, error: &anyhow::Error) {
        let error = format!("{error:#}");
        tracing::error!(error, "not handed over");
        self.edge.metrics.handovers_failed.fetch_add(1, Relaxed);
        let _ = say(stream, &Step::Kept(error));
    }

    /// Lends everything, until the other is ready. The memory of nonces has a second name from where that is lent.
    fn lend(
        &self,
        stream: &UnixStream,
        second: &mut Option<SecondName>,
        expect: impl Fn(&Step) -> anyhow::Result<()>,
    ) -> anyhow::Result<Arc<Successor>> {
        let metrics = &self.edge.metrics;
        let unsaved = [&metrics.keys.unsaved_revocations, &metrics.verdicts.denials.unsaved];
        if unsaved.iter().any(|count| count.load(Relaxed) > 0) {
            bail!("the disk fails: a successor would not know what was revoked");
        }
        quota::save_all(&self.settings.state.dir, &self.edge);
        shared::save(&self.settings.state.dir, &self.edge);
        self.edge.audit.pause().context("the audit log")?;
        self.store.release();
        self.tables.lend().context("the kernel's tables")?;
        say(stream, &Step::Released)?;
        stream.set_read_timeout(Some(MAKING_READY))?;
        expect(&Step::YieldNonces)?;
        stream.set_read_timeout(Some(FIRST_WORDS))?;
        // Requests that need the memory of nonces wait, no longer than the other reads a file.
        let nonces = self.edge.replays.hold();
        *second = Some(SecondName::give(&self.settings.signing.nonce_file)?);
        say(stream, &Step::NoncesYielded)?;
        expect(&Step::Ready)?;
        stream.set_read_timeout(Some(ERRAND))?;
        stream.set_write_timeout(Some(ERRAND))?;
        let successor = Arc::new(Successor::new(stream.try_clone()?));
        // The last that can fail: once it is said, it is so.
        say(stream, &Step::Yours)?;
        self.edge.replays.follow(Arc::clone(&successor));
        drop(nonces);
        Ok(successor)
    }

    /// Takes back what was lent to one that is gone, or is about to be.
    fn take_back(&self, nonces: Option<SecondName>) {
        // First, because it waits for the other's end.
        if let Err(error) = self.store.reclaim(CLOSING) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "the store cannot be opened again: nothing is saved until it can"
            );
        }
        if let Err(error) = self.tables.take_back(ENDING) {
            tracing::error!(%error, "another daemon writes the kernel's tables as well");
        }
        // One that lived could still put its own in that place.
        if let Some(Err(error)) = nonces.map(SecondName::make_first) {
            tracing::error!(%error, "the memory of nonces has lost its file: it ends with this daemon");
        }
        self.edge.audit.resume(Resumption::Reopen);
    }
}

fn expect(stream: &UnixStream, stop: &UnixStream, wanted: &Step) -> anyhow::Result<()> {
    let said = await_step(stream, stop)?;
    if said != *wanted {
        bail!("the successor said {said:?} in the place of {wanted:?}");
    }
    Ok(())
}

/// The successor's next step, if it comes in time and before `stop` is closed.
fn await_step(stream: &UnixStream, stop: &UnixStream) -> anyhow::Result<Step> {
    let patience = stream.read_timeout()?.map_or(Ok(PollTimeout::NONE), TryInto::try_into)?;
    let mut waited = [stop, stream].map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN));
    while poll(&mut waited, patience) == Err(Errno::EINTR) {}
    if waited[0].any() == Some(true) {
        bail!("this daemon is told to end");
    }
    if waited[1].any() != Some(true) {
        bail!("the successor took too long");
    }
    hear(stream).context("the successor is gone, or took too long")
}

fn peer(stream: &UnixStream) -> nix::Result<Peer> {
    let credentials = getsockopt(stream, PeerCredentials)?;
    Ok(Peer { uid: credentials.uid(), pid: Some(credentials.pid()) })
}

/// For each word before anything is lent.
const FIRST_WORDS: Duration = Duration::from_secs(5);
/// For a successor to load its tables: a million networks take seconds.
const MAKING_READY: Duration = Duration::from_secs(60);
/// For an answer of the successor in office.
const ERRAND: Duration = Duration::from_secs(1);
/// For a store to be closed by one that was killed, or was told to end.
const CLOSING: Duration = Duration::from_secs(5);
/// From there until it has let go of the rest.
const ENDING: Duration = Duration::from_millis(200);
