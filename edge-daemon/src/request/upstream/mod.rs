//! Connections to one upstream's servers, kept by one worker.

mod balance;
mod connection;
mod pool;
mod retry;

use std::{rc::Rc, time::Duration};

use edge_common::Reason;
use http::{Request, Response};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use self::{
    balance::Turn,
    connection::{Connection, Failed, Patience},
    pool::Server,
    retry::repeatable,
};
use super::{
    Throttle,
    body::{Upload, UploadState},
    incoming::Incoming,
};
use crate::config::settings;

/// One upstream, as one worker sees it.
pub(crate) struct Upstream {
    settings: settings::Upstream,
    servers: Vec<Rc<Server>>,
    slots: std::sync::Arc<Semaphore>,
    turn: Turn,
    complaints: Throttle,
}

/// A connection in use. Given back when its answer is complete, closed when dropped.
pub(crate) struct Lease {
    server: Rc<Server>,
    connection: Connection,
    _slot: OwnedSemaphorePermit,
}

impl Lease {
    pub(crate) fn give_back(self) {
        self.server.put(self.connection);
    }
}

impl Upstream {
    pub(crate) fn new(settings: settings::Upstream) -> Rc<Self> {
        let slots = std::sync::Arc::new(Semaphore::new(settings.connections_max));
        let servers = settings.servers.iter().map(|address| Rc::new(Server::new(*address)));
        Rc::new(Self {
            servers: servers.collect(),
            settings,
            slots,
            turn: Turn::default(),
            complaints: Throttle::default(),
        })
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// The servers are tried in turn until one accepts a connection. A kept connection may have
    /// been closed by the other side just now: a request that never left is sent again; one that
    /// may have arrived is too, once, if repeating it is safe.
    pub(crate) async fn send(
        self: &Rc<Self>,
        mut request: Request<Upload>,
        upload: &UploadState,
        pause_max: Duration,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let slot = self.slot().await?;
        let patience = Patience { upload, pause_max, answer_max: self.settings.response_timeout };
        let mut unreachable = Reason::UpstreamUnreachable;
        for server in self.turn.order(&self.servers) {
            while let Some(mut connection) = server.take() {
                let copy = repeatable(&request);
                match (connection.exchange(request, &patience).await, copy) {
                    (Ok(response), _) => return Ok((response, lease(server, connection, slot))),
                    (Err(Failed { unsent: Some(unsent), .. }), _) => request = *unsent,
                    (Err(Failed { reason: Reason::UpstreamInvalid, .. }), Some(copy)) => {
                        request = copy;
                        break;
                    }
                    (Err(failed), _) => return Err(failed.reason),
                }
            }
            match self.connect(server).await {
                Ok(mut connection) => {
                    let response = connection.exchange(request, &patience).await;
                    let answered = response.map(|r| (r, lease(server, connection, slot)));
                    return answered.map_err(|failed| failed.reason);
                }
                Err(reason) => unreachable = reason,
            }
        }
        Err(unreachable)
    }

    /// One of the connections that this worker may hold. The timer is for those who have to wait.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, Reason> {
        let slots = || std::sync::Arc::clone(&self.slots);
        if let Ok(slot) = slots().try_acquire_owned() {
            return Ok(slot);
        }
        let slot = timeout(self.settings.connect_timeout, slots().acquire_owned());
        slot.await.ok().and_then(Result::ok).ok_or(Reason::Overload)
    }

    /// A new connection to a server.
    async fn connect(&self, server: &Server) -> Result<Connection, Reason> {
        let (upstream, address) = (&self.settings.name, server.address);
        match timeout(self.settings.connect_timeout, Connection::open(address)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                if self.complaints.may_log() {
                    tracing::warn!(upstream, server = %address, %error, "unreachable");
                }
                Err(Reason::UpstreamUnreachable)
            }
            Err(_) => {
                if self.complaints.may_log() {
                    tracing::warn!(upstream, server = %address, "connect timed out");
                }
                Err(Reason::UpstreamTimeout)
            }
        }
    }
}

fn lease(server: &Rc<Server>, connection: Connection, slot: OwnedSemaphorePermit) -> Lease {
    Lease { server: Rc::clone(server), connection, _slot: slot }
}
