//! One worker's connections to one upstream, and how a request is sent over them.

mod choice;
mod connection;
mod http1;
mod http2;
mod lease;
mod pool;
mod retry;

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use edge_common::{Blame, Reason};
use edge_policy::{
    denied::Denied,
    lines::Lines,
    upstream::{
        balance::{Balance, Round},
        budget::Budget,
        circuit::{Circuit, Passage},
    },
};
use http::{HeaderMap, Response, request::Parts};
use tokio::time::timeout;

pub(crate) use self::{connection::Reply, lease::Lease};
use self::{
    connection::{Connection, Failed, Patience},
    pool::Pool,
    retry::repeatable,
};
use super::{
    Throttle,
    body::{Upload, UploadState},
    incoming::Incoming,
};
use crate::{
    clock,
    upstream::{self as servers, Failure},
};

/// One upstream, as one worker sees it.
pub(crate) struct Upstream {
    /// What all workers share.
    pub(crate) shared: Arc<servers::Upstream>,
    worker: usize,
    pools: RefCell<Pools>,
    round: RefCell<Round>,
    budget: Cell<Budget>,
    random: Cell<u64>,
    complaints: Throttle,
}

/// The servers of now, and this worker's connections to each.
#[derive(Clone)]
struct Pools {
    servers: Arc<Vec<Arc<servers::Server>>>,
    pools: Rc<[Rc<Pool>]>,
}

/// The head of a request as the upstream gets it: what the client says, and what the edge says.
pub(crate) struct Head {
    pub(crate) parts: Parts,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) lines: Lines,
}

/// A request on its way, and what chooses its server.
pub(crate) struct Outgoing<'a> {
    pub(crate) head: &'a Head,
    pub(crate) body: Upload,
    pub(crate) upload: &'a UploadState,
    /// What the same server is chosen by, where that is how they are chosen.
    pub(crate) key: u64,
    /// Where it is noted which server was asked last.
    pub(crate) asked: Option<&'a mut Option<Arc<servers::Server>>>,
}

/// An answer's head, and the body once more if its status may be worth another try.
type Answered = (Response<Incoming>, Connection, Option<Upload>);

/// What one server made of a request, and its body if it may be sent again.
struct Missed {
    reason: Reason,
    again: Option<Upload>,
    /// Whether the server said that it did not look at it.
    is_refused: bool,
}

impl Upstream {
    pub(crate) fn new(shared: Arc<servers::Upstream>, worker: usize) -> Rc<Self> {
        let servers = shared.servers();
        let pools = servers.iter().map(|server| Pool::new(&shared, server, worker)).collect();
        Rc::new(Self {
            pools: RefCell::new(Pools { servers, pools }),
            worker,
            round: RefCell::default(),
            budget: Cell::new(Budget::new(shared.settings.retry_budget)),
            random: Cell::new(clock::boot_ns() | 1),
            complaints: Throttle::default(),
            shared,
        })
    }

    /// What of a request chooses its server, where that is how they are chosen.
    pub(crate) fn key(&self, client: IpAddr, path: &str, headers: &HeaderMap) -> u64 {
        let Balance::Hash(by) = &self.shared.settings.balance else { return 0 };
        let source = match client {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        by.key(&source.octets(), path, headers)
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// Who is to blame, and when to come back if the upstream is not asked at all.
    pub(crate) async fn send(
        &self,
        outgoing: Outgoing<'_>,
    ) -> Result<(Response<Incoming>, Lease), Denied> {
        let rule = &self.shared.settings.circuit;
        let began_ns = clock::recent_ns();
        let passage = match self.shared.circuit.enter(rule, began_ns) {
            Passage::Shut(wait_ns) => {
                let wait_ns = Some(wait_ns);
                return Err(Denied { wait_ns, ..Denied::new(Reason::CircuitOpen) });
            }
            passage => passage,
        };
        let trial = match passage {
            Passage::Trial(trial_ns) => Some(Trial(&self.shared.circuit, trial_ns)),
            _ => None,
        };
        let turn = &outgoing.upload.turn;
        let sent = self.send_to_any(outgoing, trial.is_some()).await;
        let failed = match &sent {
            // Others do not wait for the end of a trial's answer; how any other fares, its end tells.
            Ok(_) => trial.is_some().then_some(false),
            // Nobody was asked: that tells nothing.
            Err(Reason::UpstreamBusy | Reason::UpstreamUnhealthy) => None,
            // Nor does what others took all of the time for.
            Err(Reason::UpstreamTimeout) if turn.is_excused() => None,
            Err(reason) => (reason.blame() == Blame::Upstream).then_some(true),
        };
        if let Some(failed) = failed {
            std::mem::forget(trial);
            self.shared.circuit.note(rule, passage, failed, [began_ns, clock::boot_ns()]);
        }
        Ok(sent?)
    }

    /// One server after another, each once, as long as sending it again does no harm and the
    /// budget lasts; the last one once more over a fresh connection, if it refused the request unseen. On trial, one server alone.
    async fn send_to_any(
        &self,
        outgoing: Outgoing<'_>,
        on_trial: bool,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let Outgoing { head, mut body, upload, key, mut asked } = outgoing;
        let settings = &self.shared.settings;
        let patience = Patience { upload, answer_max: settings.response_timeout };
        let pools = self.pools();
        let mut retries = if on_trial { 0 } else { settings.retries_max };
        let (mut tried, mut last, mut missed, mut fresh) = (0_u64, None, None, false);
        self.change_budget(Budget::earn);
        loop {
            // Whoever was sent before does not line up again.
            let slot = self.acquire(&pools, tried, key, tried != 0 || fresh).await;
            // Where nobody else is fit, what the last one made of it is the answer.
            let (index, slot) = slot.map_err(|reason| missed.unwrap_or(reason))?;
            if last.replace(index) != Some(index) {
                upload.turn.turn_to_server();
            }
            if upload.turn.left().is_zero() {
                // This one was not asked, and is not to blame.
                return Err(missed.unwrap_or_else(|| {
                    upload.turn.run_out();
                    Reason::UpstreamTimeout
                }));
            }
            let pool = &pools.pools[index];
            if let Some(asked) = &mut asked {
                **asked = Some(Arc::clone(&pool.server));
            }
            if tried != 0 || fresh {
                pool.tally().retries.fetch_add(1, Relaxed);
            } else {
                // Not while it waited for its turn: others have had that time.
                upload.turn.ask(settings.body_timeout, settings.total_timeout);
            }
            tried |= 1 << index;
            match self.ask(pool, head, body, &patience, fresh).await {
                Ok((response, connection, again)) => {
                    let lease = Lease::new(Rc::clone(pool), connection, slot, &response);
                    if let Some(again) = again
                        && self.has_fit(&pools, tried)
                        && self.may_retry(&mut retries)
                    {
                        lease.pass_by();
                        fresh = false;
                        body = again;
                        continue;
                    }
                    return Ok((response, lease));
                }
                Err(Missed { reason, again, is_refused }) => {
                    let has_other = self.has_fit(&pools, tried);
                    // One that refused it alone may take it over another connection.
                    fresh = is_refused && !has_other && !fresh;
                    let may = |_: &_| (has_other || fresh) && self.may_retry(&mut retries);
                    body = again.filter(may).ok_or(reason)?;
                    missed = Some(reason);
                    if fresh {
                        tried &= !(1 << index);
                    }
                }
            }
        }
    }

    /// Asks one server, over a kept connection if there is one and none that is `fresh` is wanted.
    ///
    /// The other side may have closed a kept connection just now. A request that never left goes
    /// on to the next connection; one that may have arrived goes to a fresh one, once, if
    /// repeating it is safe. What fails on a connection that goes on is the server's answer.
    async fn ask(
        &self,
        pool: &Pool,
        head: &Head,
        mut body: Upload,
        patience: &Patience<'_>,
        fresh: bool,
    ) -> Result<Answered, Missed> {
        // The server was chosen just now.
        let began_ns = clock::recent_ns();
        let settled = |asked, connection: Connection, copy: Option<Upload>| match asked {
            Ok(response) => {
                let status = Response::status(&response);
                pool.answered(status, began_ns);
                let again = self.shared.settings.retry_statuses.contains(&status);
                Ok((response, connection, copy.filter(|_| again)))
            }
            Err(Failed { reason, unsent, is_refused }) => {
                pool.failed_for(reason, &patience.upload.turn);
                // Whoever let it wait too long may still be at work on it.
                let copy = copy.filter(|_| reason == Reason::UpstreamInvalid);
                Err(Missed { reason, again: unsent.or(copy), is_refused })
            }
        };
        let mut now_ns = began_ns;
        while !fresh && let Some(mut connection) = pool.take(now_ns) {
            let copy = repeatable(&head.parts.method, &body);
            let asked = connection.exchange(head, body, patience).await;
            // One that goes on would be taken again.
            match (asked, copy) {
                (Err(Failed { unsent: Some(unsent), .. }), _) if connection.is_closed() => {
                    (body, now_ns) = (unsent, clock::boot_ns());
                }
                (Err(Failed { reason: Reason::UpstreamInvalid, .. }), Some(copy))
                    if connection.is_closed() =>
                {
                    body = copy;
                    break;
                }
                (asked, copy) => return settled(asked, connection, copy),
            }
        }
        let mut connection = match self.connect(pool, patience.upload, fresh).await {
            Ok(connection) => connection,
            Err(reason) => {
                pool.failed_for(reason, &patience.upload.turn);
                return Err(Missed { reason, again: Some(body), is_refused: false });
            }
        };
        let copy = repeatable(&head.parts.method, &body);
        let asked = connection.exchange(head, body, patience).await;
        settled(asked, connection, copy)
    }

    /// Whether there is a retry left; spends it.
    fn may_retry(&self, retries: &mut u32) -> bool {
        if *retries == 0 {
            return false;
        }
        *retries -= 1;
        let may = self.change_budget(Budget::spend);
        if !may {
            self.shared.retries_refused.fetch_add(1, Relaxed);
        }
        may
    }

    /// A new connection to a server.
    async fn connect(
        &self,
        pool: &Pool,
        upload: &UploadState,
        fresh: bool,
    ) -> Result<Connection, Reason> {
        let (own, left) = (self.shared.settings.connect_timeout, upload.turn.left());
        let (wait, began) = (own.min(left), Instant::now());
        let dialled = timeout(wait, self.open(pool, fresh)).await;
        upload.turn.serve(began.elapsed());
        let (upstream, server) = (&self.shared.settings.name, &pool.server.label);
        match dialled {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                if self.complaints.may_log() {
                    tracing::warn!(upstream, server, %error, "unreachable");
                }
                Err(Reason::UpstreamUnreachable)
            }
            Err(_) => {
                if self.complaints.may_log() {
                    tracing::warn!(upstream, server, "connect timed out");
                }
                if left < own {
                    upload.turn.run_out();
                }
                Err(Reason::UpstreamTimeout)
            }
        }
    }

    /// A connection that is begun now, or one that others began meanwhile and that can be shared,
    /// if none that is `fresh` is wanted.
    async fn open(&self, pool: &Pool, fresh: bool) -> std::io::Result<Connection> {
        let is_http2 = self.shared.settings.http2;
        let _turn = if is_http2 { Some(pool.opening.lock().await) } else { None };
        if is_http2
            && !fresh
            && let Some(shared) = pool.take(clock::boot_ns())
        {
            return Ok(shared);
        }
        pool.tally().connects.fetch_add(1, Relaxed);
        // From here on it goes by the certificates of now, which may be others once it is open.
        let opened_ns = clock::boot_ns();
        let stream = self.shared.dial(&pool.server).await?;
        let connection = Connection::open(stream, is_http2, opened_ns).await?;
        pool.share(&connection);
        Ok(connection)
    }

    /// The servers of now, each with the connections that this worker has kept to it.
    fn pools(&self) -> Pools {
        let mut pools = self.pools.borrow_mut();
        let servers = self.shared.servers();
        if !Arc::ptr_eq(&pools.servers, &servers) {
            let kept = |server: &Arc<servers::Server>| {
                let kept = pools.pools.iter().find(|pool| Arc::ptr_eq(&pool.server, server));
                kept.map_or_else(|| Pool::new(&self.shared, server, self.worker), Rc::clone)
            };
            let kept = servers.iter().map(kept).collect();
            *pools = Pools { servers, pools: kept };
        }
        pools.clone()
    }

    /// Closes the connections that nobody has asked for in time.
    pub(crate) fn sweep(&self) {
        self.pools().pools.iter().for_each(|pool| pool.sweep());
    }

    fn change_budget<T>(&self, change: impl FnOnce(&mut Budget) -> T) -> T {
        let mut budget = self.budget.get();
        let result = change(&mut budget);
        self.budget.set(budget);
        result
    }
}

/// The request by which a circuit finds out how the upstream is. Dropped before it told, as when its client
/// leaves or is to blame, it makes room for the next.
struct Trial<'a>(&'a Circuit, u64);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.give_back(self.1, clock::boot_ns());
    }
}

/// How an exchange that ended for this reason counts against the server, if it does.
fn failure(reason: Reason) -> Option<Failure> {
    match reason {
        Reason::UpstreamUnreachable => Some(Failure::Unreachable),
        Reason::UpstreamTimeout => Some(Failure::Timeout),
        Reason::UpstreamInvalid => Some(Failure::Invalid),
        _ => None,
    }
}
