//! What the kernel plane needs while it runs: that the interfaces stay guarded and that the count
//! of open connections stays exact. On a thread of its own, which holds no capability.

use std::{
    collections::HashSet,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use edge_common::map::PolicyFlag;
use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::socket::SockProtocol,
};

use super::{
    Interface, KernelError, Tables,
    above::Above,
    attach,
    census::{Census, Corrected},
    error::error_chain,
    netlink::{Netlink, word},
    pins::Folders,
    post::{Post, Sight},
    room::Room,
};
use crate::handover::Reign;

/// Looks after the kernel plane until it is told to stop.
pub struct Upkeep {
    pub(super) program: OwnedFd,
    pub(super) folders: Folders,
    pub(super) tables: Tables,
    /// `None`: the kernel lacks what it needs.
    pub(super) census: Option<Census>,
    pub(super) posts: Vec<Post>,
    /// Interfaces that go on under other names, while others have theirs.
    pub(super) renamed: Vec<u32>,
    /// What stands above them.
    pub(super) above: Above,
    /// Whether open connections find room to be counted.
    pub(super) room: Room,
    pub(super) health: Arc<Health>,
    /// Whose it is to look after them.
    pub reign: Arc<Reign>,
}

/// What is known of the kernel plane's condition.
#[derive(Debug, Default)]
pub struct Health {
    interfaces: Mutex<Vec<Interface>>,
    /// Filters that another hand had detached and that were put back; taken by whoever tells.
    pub mended: AtomicU64,
    /// Open connections that a census found uncounted.
    pub added: AtomicU64,
    /// Counted connections that a census found gone.
    pub removed: AtomicU64,
    /// Censuses that failed.
    pub failed: AtomicU64,
}

impl Health {
    /// The interfaces, as of the last look: a second ago at most.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether an interface is there and nobody judges its packets.
    #[must_use]
    pub fn is_any_bare(&self) -> bool {
        let interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        interfaces.iter().any(|interface| interface.is_bare)
    }
}

impl Upkeep {
    /// What it finds, for status and metrics.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Works until the other end of `stop` is closed.
    pub fn run(mut self, stop: &UnixStream) {
        let news = Netlink::open(SockProtocol::NetlinkRoute, LINK_NEWS);
        if let Err(error) = &news {
            tracing::warn!(%error, "interfaces are looked at once a second, not when they change");
        }
        let (reign, mut lapses) = (Arc::clone(&self.reign), 0);
        let mut next_census = Instant::now() + CENSUS_EVERY;
        let mut looked = None::<Instant>;
        loop {
            let mut waited = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            if let Ok(news) = &news {
                waited.push(PollFd::new(news.as_fd(), PollFlags::POLLIN));
            }
            let ready = poll(&mut waited, LOOK_EVERY_MS);
            if ready.is_ok() && waited[0].any() == Some(true) {
                return;
            }
            // Changes that come in a burst are looked at together; not for long if one may be an interface that comes back.
            let apart = if self.posts.iter().all(Post::is_settled) { LOOKS_APART } else { AWAITED };
            let rested = looked.map_or(apart, |looked| looked.elapsed());
            std::thread::sleep(apart.saturating_sub(rested));
            let Some(_turn) = reign.turn() else { return };
            if let Ok(news) = &news {
                self.hear(news);
            }
            if std::mem::replace(&mut lapses, reign.lapses()) != reign.lapses() {
                self.insist();
            }
            self.look();
            looked = Some(Instant::now());
            self.tell_room();
            if Instant::now() >= next_census {
                // A failure is logged and counted, and the next may succeed.
                let _ = self.take_census();
                next_census = Instant::now() + CENSUS_EVERY;
            }
        }
    }

    fn tell_room(&mut self) {
        let Ok(lost) = self.tables.uncounted() else { return };
        match self.room.look(lost, Instant::now()) {
            Some(false) => tracing::warn!(
                uncounted = lost,
                "open connections find no room to be counted: open_connections_max does not hold for them"
            ),
            Some(true) => tracing::info!("open connections find room to be counted again"),
            None => {}
        }
    }

    /// Notes which interfaces are gone: their indices may be others' by now.
    fn hear(&mut self, news: &Netlink) {
        let mut deleted = Vec::new();
        let is_whole = news.told(|kind, link| {
            if kind == RTM_DELLINK && link.first() == Some(&(libc::AF_UNSPEC as u8)) {
                deleted.extend(word(link, 4));
            }
        });
        for post in &mut self.posts {
            // Rather guarded against somebody's will than not at all.
            post.is_deleted |= !is_whole || deleted.contains(&post.attached.ifindex);
        }
    }

    /// Puts this daemon's program back in the place of another's, which was to succeed and did not, and takes
    /// that off what it guarded besides.
    fn insist(&self) {
        for post in &self.posts {
            if let Err(error) = post.link.update(self.program.as_fd()) {
                let interface = &post.wanted.interface;
                tracing::error!(interface, %error, "filtered by the program of a daemon that is gone");
            }
        }
        let guarded = self.posts.iter().map(|post| post.attached.ifindex);
        let guarded: Vec<_> = guarded.chain(self.renamed.iter().copied()).collect();
        if let Err(error) = attach::release_others(&guarded, &self.folders) {
            let error = error_chain(&error);
            tracing::error!(error, "an interface is filtered for a daemon that is gone");
        }
    }

    /// Looks at every interface, and guards those again that came back.
    pub(super) fn look(&mut self) {
        let mut is_any_back = false;
        let links = self.posts.iter().map(|post| &post.link);
        let guarded: Vec<_> = links.filter_map(|link| link.ifindex().ok().flatten()).collect();
        for post in &mut self.posts {
            post.look(&self.folders.own, &guarded);
            if !post.is_back() {
                post.refused = None;
                continue;
            }
            let interface = post.wanted.interface.clone();
            // A renamed one keeps its pin, and by it its filter, until the next start.
            let gone = !matches!(post.seen, Sight::Renamed { .. });
            let gone = gone.then_some(&post.attached);
            let again = attach::again(self.program.as_fd(), &post.wanted, gone, &self.folders);
            match again {
                Ok(held) => {
                    self.health.mended.fetch_add(u64::from(post.seen == Sight::Cut), Relaxed);
                    if matches!(post.seen, Sight::Renamed { .. }) {
                        self.renamed.push(post.attached.ifindex);
                    }
                    *post = Post::new(post.wanted.clone(), held);
                    is_any_back = true;
                    tracing::warn!(interface, "guarded again");
                }
                // Tried again at the next look; told of again when there is something new to tell.
                Err(error) => {
                    let error = error_chain(&error);
                    if post.refused.as_ref() != Some(&error) {
                        tracing::error!(interface, error, "unfiltered still");
                    }
                    post.refused = Some(error);
                }
            }
        }
        if is_any_back {
            let guarded: Vec<_> = self.posts.iter().map(|post| post.attached.ifindex).collect();
            if let Err(error) = self.tables.count_apart(guarded.into_iter()) {
                let error = error_chain(&error);
                tracing::error!(error, "its packets are counted among those of any other");
            }
        }
        self.look_above();
        let mut conditions: Vec<_> = self.posts.iter().map(Post::condition).collect();
        let mut told = HashSet::new();
        // One may guard what has the name of another that is gone.
        conditions.retain(|condition| told.insert(condition.name.clone()));
        *self.health.interfaces.lock().unwrap_or_else(PoisonError::into_inner) = conditions;
    }

    /// Tells the programs what is above the interfaces, when that has changed.
    fn look_above(&mut self) {
        let guarded: Vec<_> = self.posts.iter().map(|post| post.attached.ifindex).collect();
        // What another hand wrote is not for this one to put right in silence.
        let (above, flags) = match (Above::find(&guarded), self.tables.written()) {
            (Ok(above), Ok(settings)) => (above, settings.flags & PolicyFlag::ABOVE),
            // Looked at again in a second.
            _ => return,
        };
        if flags != above.flags() {
            let told = self.tables.change_settings(|settings| {
                settings.flags = settings.flags & !PolicyFlag::ABOVE | above.flags();
            });
            if let Err(error) = told {
                let error = error_chain(&error);
                tracing::error!(
                    error,
                    "answers to sockets that are bound to a device may be dropped"
                );
                return;
            }
        }
        if above.has_vrf && !self.above.has_vrf {
            tracing::warn!("packets of no connection are not refused: a VRF hides its connections");
        }
        if above.twice != self.above.twice && !above.twice.is_empty() {
            let devices = &above.twice;
            tracing::warn!(
                ?devices,
                "above another guarded interface: what comes by both is charged and counted twice"
            );
        }
        if above != self.above {
            let devices = &above.devices;
            tracing::info!(?devices, "above the guarded interfaces: sockets may be bound to them");
            self.above = above;
        }
    }

    /// Holds the count of open connections to the kernel's list of sockets; what it changed.
    ///
    /// # Errors
    /// [`KernelError::Census`] if the sockets cannot be listed or the count not corrected.
    pub fn take_census(&self) -> Result<Corrected, KernelError> {
        let Some(census) = &self.census else { return Ok(Corrected::default()) };
        let taken = self.tables.settings().and_then(|settings| census.take(&settings));
        match &taken {
            Ok(corrected) => {
                self.health.added.fetch_add(corrected.added, Relaxed);
                self.health.removed.fetch_add(corrected.removed, Relaxed);
                tracing::debug!(?corrected, "open connections");
            }
            Err(error) => {
                self.health.failed.fetch_add(1, Relaxed);
                let error = error_chain(error);
                tracing::error!(error, "open connections are not compared with the sockets");
            }
        }
        taken
    }
}

const RTM_DELLINK: u16 = 17;
/// `RTMGRP_LINK`
const LINK_NEWS: u32 = 1;
const LOOK_EVERY_MS: u16 = 1000;
/// A look walks all interfaces of the host, which a container that starts changes several times.
const LOOKS_APART: Duration = Duration::from_millis(100);
/// The same, while an interface is awaited.
const AWAITED: Duration = Duration::from_millis(2);
/// A census walks all sockets of the host, at about a microsecond each.
const CENSUS_EVERY: Duration = Duration::from_secs(60);
