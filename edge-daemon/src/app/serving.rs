//! The control plane, on the main thread: it answers while the workers are flooded.

use std::{
    future::Future, net::TcpListener, os::unix::net::UnixListener, rc::Rc, sync::Arc,
    thread::JoinHandle, time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Mutex, mpsc::UnboundedReceiver, watch},
    task::{LocalSet, spawn_local},
};

use super::{
    Told, certificates, decided::Watchers, exposition, operator, operator::Operator, told,
};
use crate::{
    control::{self, Command, Peer, Reply},
    events::Event,
    geo,
    handover::{Outcome, Predecessor},
    kernel::Superseded,
    memory,
    notify::{self, notify, shares_unit},
    request::{Edge, Phase},
    scrape,
};

/// How this daemon comes into office, and how it leaves it.
pub(super) struct Office {
    /// The one that it takes over from.
    pub(super) former: Option<Predecessor>,
    /// What nobody can come back to then.
    pub(super) superseded: Superseded,
    /// What the workers go by.
    pub(super) phase: watch::Sender<Phase>,
    /// What becomes of those who ask to take over.
    pub(super) outcomes: UnboundedReceiver<Outcome>,
}

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was told to.
    Told,
    /// It has a successor, whose process this is.
    Succeeded(Option<i32>),
}

/// Answers operators and scrapes until the daemon is to end; why, and the thread that hears its former.
pub(super) fn serve(
    operator: Operator,
    listeners: (UnixListener, TcpListener),
    told: Told,
    resolutions: watch::Receiver<()>,
    office: Office,
) -> anyhow::Result<(End, Option<JoinHandle<()>>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = serve_all(operator, listeners, told, resolutions, office);
    let ended = runtime.block_on(LocalSet::new().run_until(served));
    // Who still waits for a disk is not waited for.
    runtime.shutdown_background();
    ended
}

async fn serve_all(
    mut operator: Operator,
    (control, metrics): (UnixListener, TcpListener),
    told: Told,
    mut resolutions: watch::Receiver<()>,
    mut office: Office,
) -> anyhow::Result<(End, Option<JoinHandle<()>>)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let edge = Arc::clone(&operator.edge);
    operator.await_names(&mut resolutions).await;
    let former = take_office(&edge, &operator, office.former)?;
    if let Err(error) = office.superseded.remove() {
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, "what a former daemon pinned stays");
    }
    office.phase.send_replace(Phase::Serving);

    let operator = Rc::new(Mutex::new(operator));
    let (open, is_open) = watch::channel(true);
    let scraped = Arc::clone(&edge);
    spawn_local(while_open(is_open.clone(), move || {
        let (metrics, edge) = (metrics.try_clone(), Arc::clone(&scraped));
        async move {
            let listener = tokio::net::TcpListener::from_std(metrics?)?;
            scrape::serve(listener, move |path| exposition::page(Arc::clone(&edge), path)).await
        }
    }));
    spawn_local(told::drops(told.drops, Arc::clone(&edge)));
    spawn_local(memory::watch(Arc::clone(&edge)));
    spawn_local(certificates::tend(Arc::clone(&edge)));
    spawn_local(geo::tend(Arc::clone(&edge)));
    spawn_local(certificates::fetch(Arc::clone(&edge)));
    if let Some(log) = told.debug {
        spawn_local(told::debug(log));
    }
    let watch = Rc::new(told.watch);
    let watching = Rc::clone(&watch);
    spawn_local(async move { watching.run().await });
    let handler = Rc::new(Handler {
        operator: Rc::clone(&operator),
        edge: Arc::clone(&edge),
        watch,
        watchers: Watchers::default(),
    });
    spawn_local(while_open(is_open, move || {
        let (control, handler) = (control.try_clone(), Rc::clone(&handler));
        async move {
            let obey = move |command, peer| Rc::clone(&handler).obey(command, peer);
            control::serve(control?, obey).await
        }
    }));

    let renamed = Rc::clone(&operator);
    spawn_local(async move {
        loop {
            let again = match renamed.lock().await.follow_names().await {
                true => Duration::MAX,
                false => FOLLOW_AGAIN,
            };
            if let Ok(Err(_)) = tokio::time::timeout(again, resolutions.changed()).await {
                return;
            }
        }
    });
    let following = Rc::clone(&operator);
    spawn_local(async move {
        loop {
            tokio::time::sleep(LOOK_AT_SECRETS).await;
            following.lock().await.follow_secrets();
        }
    });
    let swept = Rc::clone(&operator);
    spawn_local(async move {
        loop {
            // Locked to its end: a reload may name what is being removed.
            swept.lock().await.sweep().await;
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    });
    // A task of its own: an end that is asked for does not wait for a reload.
    let reloaded = Rc::clone(&operator);
    spawn_local(async move {
        while hangup.recv().await.is_some() {
            // Failure is logged, counted and shown by `edgectl status`.
            let _ = reloaded.lock().await.reload().await;
        }
    });
    spawn_local(notify::watchdog(Arc::clone(&edge)));

    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    edge.events.tell(Event::Started { version: env!("CARGO_PKG_VERSION") });
    notify("READY=1");
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok((End::Told, former)),
            _ = interrupt.recv() => return Ok((End::Told, former)),
            outcome = office.outcomes.recv() => match outcome {
                Some(Outcome::Begun) => _ = open.send_replace(false),
                Some(Outcome::Lapsed) => {
                    open.send_replace(true);
                    let operator = Rc::clone(&operator);
                    spawn_local(async move { operator.lock().await.insist().await });
                }
                Some(Outcome::Succeeded(pid)) => return Ok((End::Succeeded(pid), former)),
                None => return Ok((End::Told, former)),
            },
        }
    }
}

/// Opens what the former daemon kept until now, and succeeds it.
fn take_office(
    edge: &Arc<Edge>,
    operator: &Operator,
    former: Option<Predecessor>,
) -> anyhow::Result<Option<JoinHandle<()>>> {
    let former = match former {
        Some(former) => {
            former.bequeath(&edge.plan.load().upstreams);
            former.yield_nonces()?
        }
        None => None,
    };
    edge.replays.open(&operator.settings)?;
    let Some(former) = former else { return Ok(None) };
    let heard = former.succeed(Arc::clone(edge))?;
    tracing::info!("taken over: the former daemon drains");
    Ok(heard)
}

/// Runs a server for as long as it is to answer, again and again.
async fn while_open<F: Future<Output = std::io::Result<()>>>(
    mut is_open: watch::Receiver<bool>,
    serve: impl Fn() -> F,
) {
    while is_open.wait_for(|open| *open).await.is_ok() {
        tokio::select! {
            ended = serve() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "operators and scrapes are not answered");
                }
                return;
            }
            _ = is_open.wait_for(|open| !*open) => {}
        }
    }
}

/// Whom commands are given to.
struct Handler {
    operator: Rc<Mutex<Operator>>,
    edge: Arc<Edge>,
    watch: Rc<super::Watch>,
    watchers: Watchers,
}

impl Handler {
    async fn obey(self: Rc<Self>, command: Command, peer: Peer) -> Reply {
        // A task of its own: who asked may give up or be cut off, the work is done to its end.
        let work = spawn_local(async move {
            match command {
                Command::Top { sort, limit } => self.watch.top(sort, limit).await,
                Command::Watch { from } => self.watchers.wait(&self.edge, from).await,
                Command::AuthzExplain(question) => match self.edge.explain(&question) {
                    Ok(access) => Reply::Access(Box::new(access)),
                    Err(why) => Reply::Refused(why),
                },
                Command::Feed(command) => operator::of_feeds(&self.edge, command).await,
                command => self.operator.lock().await.obey(command, peer).await,
            }
        });
        work.await.unwrap_or_else(|_| Reply::Refused("the command broke off".into()))
    }
}

/// Tells the service manager that this process ends. If its successor runs in the same unit, the unit
/// goes on by that one.
pub(super) fn say_farewell(end: End) {
    match end {
        // The successor is heard from here on, and has all of the watchdog's time to be.
        End::Succeeded(Some(pid)) if shares_unit(pid) => {
            notify(&format!("MAINPID={pid}\nWATCHDOG=1"));
        }
        _ => notify("STOPPING=1"),
    }
}

/// How soon a secret that changes in its file is read again, at the latest.
const LOOK_AT_SECRETS: Duration = Duration::from_secs(2);
/// How soon it is tried again to put servers' addresses on the allow list.
const FOLLOW_AGAIN: Duration = Duration::from_secs(10);
/// How often files of what is not configured any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(86_400);
