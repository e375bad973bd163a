//! The verbs of the kernel's tables. What lies behind them may change; what they mean does not.

use std::{
    net::IpAddr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray},
};
use edge_common::{
    Reason, Source, limit,
    map::{self, Ban, Count, Entry, PolicyFlag, Settings, SocketLayout},
    open,
    signature::SignaturesInForce,
};
use edge_policy::list::Class;
use ipnet::IpNet;

use crate::clock::boot_ns;

use super::{
    Features, KernelError, Policy, bans::Bans, defence::Listeners, lists::Lists, lock::Lock,
    pins::TABLES, policy::Survey, rules::Rules,
};

/// The kernel's tables. Each thread may hold a [`Tables::duplicate`] of its own.
pub struct Tables {
    /// The networks that are listed.
    pub lists: Lists,
    /// Clients that are dropped for abuse.
    pub bans: Bans,
    pub(super) counts: PerCpuArray<MapData, Count>,
    pub(super) events_lost: PerCpuArray<MapData, u64>,
    /// Protected against SYN floods.
    pub listeners: Listeners,
    uncounted: PerCpuArray<MapData, u64>,
    open: Array<MapData, [u64; open::WAYS]>,
    pub(super) sockets: HashMap<MapData, u64, u64>,
    pub(super) rules: Rules,
    settings: Array<MapData, Settings>,
    /// The settings as they were last written. Whoever holds them changes them and writes them back.
    known: Arc<Mutex<Option<Settings>>>,
    /// What the kernel has of what the programs can do without.
    features: Features,
    /// Held for as long as anyone may write: two daemons would undo each other's lists.
    lock: Arc<Lock>,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// The table.
    pub map: &'static str,
    /// Entries in it; `None` where counting would cost too much.
    pub used: Option<u64>,
    /// Entries it can hold: networks, clients, sockets.
    pub capacity: u64,
}

/// What the kernel does with packets of an address, by its own tables, before the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// [`Reason::AllowList`], [`Reason::DenyList`], [`Reason::Ban`] or [`Reason::Pass`].
    pub reason: Reason,
    /// The listed network that decides, with its class and entry. One of [`Class::Spare`] leaves the
    /// decision to what is no list, ban or limit.
    pub network: Option<(Class, IpNet, Entry)>,
    /// The client's running ban, also where a list decides.
    pub ban: Option<Ban>,
    /// The address or prefix that bans and limits go by.
    pub client: Source,
    /// The client's open TCP connections.
    pub open: u32,
}

impl Tables {
    pub(super) fn take(
        programs: &mut Ebpf,
        features: Features,
        lock: Arc<Lock>,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            lists: Lists::take(programs)?,
            bans: Bans::take(programs)?,
            listeners: Listeners::take(programs)?,
            counts: take(programs, map::COUNTS)?,
            events_lost: take(programs, map::EVENTS_LOST)?,
            uncounted: take(programs, map::UNCOUNTED)?,
            open: take(programs, map::OPEN)?,
            sockets: take(programs, map::SOCKETS)?,
            rules: Rules::take(programs)?,
            settings: take(programs, map::SETTINGS)?,
            known: Arc::default(),
            features,
            lock,
        })
    }

    /// What keeps another daemon from writing them.
    #[must_use]
    pub fn lock(&self) -> Arc<Lock> {
        Arc::clone(&self.lock)
    }

    /// What the kernel has of what the filter can do without.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Another handle to the same tables, for another thread.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the process has no descriptor left.
    pub fn duplicate(&self) -> Result<Self, KernelError> {
        Ok(Self {
            lists: self.lists.clone(),
            bans: self.bans.duplicate()?,
            listeners: self.listeners.duplicate()?,
            counts: again(map::COUNTS, self.counts.map())?,
            events_lost: again(map::EVENTS_LOST, self.events_lost.map())?,
            uncounted: again(map::UNCOUNTED, self.uncounted.map())?,
            open: again(map::OPEN, self.open.map())?,
            sockets: again(map::SOCKETS, self.sockets.map())?,
            rules: self.rules.duplicate()?,
            settings: again(map::SETTINGS, self.settings.map())?,
            known: Arc::clone(&self.known),
            features: self.features,
            lock: Arc::clone(&self.lock),
        })
    }

    /// Writes the first settings: with the seed of adopted tables, or a new one if it is 0. The next
    /// census forgets the sockets of another network namespace. Whether no program has gone by
    /// these settings before.
    pub(super) fn start(
        &mut self,
        layout: Option<SocketLayout>,
        seed: u64,
        netns_cookie: u64,
    ) -> Result<bool, KernelError> {
        let is_new = self.settings()?.seed == 0;
        let seed = match seed {
            0 => getrandom::u64().map_err(KernelError::Random)?.max(1),
            seed => seed,
        };
        self.change_settings(|settings| {
            settings.seed = seed;
            settings.netns_cookie = netns_cookie;
            settings.socket = layout.unwrap_or(settings.socket);
        })?;
        self.bans.screen(seed)?;
        self.sample(None)?;
        Ok(is_new)
    }

    /// Changes the policy; counts and buckets go on.
    ///
    /// # Errors
    /// If the host cannot do what is asked of it, or lacks what that needs, and nothing is changed;
    /// [`KernelError::Table`] if the kernel refuses, and a part may be.
    pub fn update_policy(&mut self, policy: &Policy) -> Result<(), KernelError> {
        let less = self.features.fit(policy)?;
        self.write_policy(&less, &less.survey()?)
    }

    /// Protects the listeners on the addresses that the host has now.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn follow_addresses(&mut self, policy: Policy) -> Result<(), KernelError> {
        self.listeners.follow(&self.features.lessen(policy).defence)
    }

    /// Puts back what was in force, whether or not the host would take it on now.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn restore_policy(&mut self, policy: &Policy) -> Result<(), KernelError> {
        let policy = self.features.lessen(policy.clone());
        self.write_policy(&policy, &policy.look()?)
    }

    pub(super) fn write_policy(
        &mut self,
        policy: &Policy,
        survey: &Survey,
    ) -> Result<(), KernelError> {
        // Services and rules first: the settings put them in force.
        let in_force = SignaturesInForce::of(self.settings()?.signatures);
        let signatures = self.rules.write(policy, in_force)?.number();
        self.listeners.protect(&survey.defence.protected)?;
        self.change_settings(|settings| {
            settings.signatures = signatures;
            settings.cookie_keep = survey.defence.keep;
            settings.ephemeral_ports = survey.ephemeral_ports;
            policy.write(settings);
        })
    }

    /// What the programs go by.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn settings(&self) -> Result<Settings, KernelError> {
        self.settings.get(&0, 0).map_err(table_error(map::SETTINGS))
    }

    /// Has one packet in `mask + 1` told of as a sample, drawn at random; `None` ends it. The mask is
    /// a power of two less one.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn sample(&mut self, mask: Option<u32>) -> Result<(), KernelError> {
        self.change_settings(|settings| {
            settings.sample_mask = mask.unwrap_or(u32::MAX);
            let others = settings.flags & !PolicyFlag::SAMPLES;
            settings.flags = mask.map_or(others, |_| others | PolicyFlag::SAMPLES);
        })
    }

    /// Sockets that found no room to be counted when they opened.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn uncounted(&self) -> Result<u64, KernelError> {
        let cpus = self.uncounted.get(&0, 0).map_err(table_error(map::UNCOUNTED))?;
        Ok(cpus.iter().sum())
    }

    /// What the kernel does with packets from this address now, in the order of its program.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn explain(&self, address: IpAddr) -> Result<Explanation, KernelError> {
        let now_ns = boot_ns();
        let client = Source::from(address).client(self.settings()?.client);
        let ban = self.bans.lookup(client)?.filter(|ban| now_ns < ban.until_ns);
        let allowed = self.lists.allows(address, now_ns);
        let denied = self.lists.decides(Class::Deny, address, now_ns);
        let denied = denied.map(|(net, entry)| (Class::Deny, net, entry));
        let (reason, network) = match (allowed, denied, ban) {
            (Some(network), _, _) => (Reason::AllowList, Some(network)),
            (None, Some(network), _) => (Reason::DenyList, Some(network)),
            (None, None, Some(_)) => (Reason::Ban, None),
            (None, None, None) => (Reason::Pass, None),
        };
        Ok(Explanation { reason, network, ban, client, open: self.open(client)? })
    }

    /// Open TCP connections of a client, as [`Explanation::client`] names it.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn open(&self, client: Source) -> Result<u32, KernelError> {
        let hash = client.hash(self.settings()?.seed);
        let index = hash as u32 & (map::OPEN_SETS - 1);
        let words = self.open.get(&index, 0).map_err(table_error(map::OPEN))?;
        Ok(open::count(&words.map(AtomicU64::new), hash))
    }

    /// How full the tables are that can fill up.
    #[must_use]
    pub fn occupancy(&self) -> Vec<Occupancy> {
        TABLES
            .iter()
            .filter_map(|table| {
                let (used, ways) = match table.name {
                    map::BANS => (Some(self.bans.len()), 1),
                    map::LISTENERS => (Some(self.listeners.len()), 1),
                    map::SOCKETS => (None, 1),
                    map::OPEN => (None, open::WAYS),
                    map::CELLS => (None, limit::WAYS),
                    _ => return None,
                };
                let capacity = u64::from(table.entries) * ways as u64;
                Some(Occupancy { map: table.name, used, capacity })
            })
            .collect()
    }

    /// The settings as they were last written, or as they were found.
    pub(super) fn written(&self) -> Result<Settings, KernelError> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.map_or_else(|| self.settings(), Ok)
    }

    /// Several threads change some of the settings each.
    pub(super) fn change_settings(
        &mut self,
        change: impl FnOnce(&mut Settings),
    ) -> Result<(), KernelError> {
        let known = Arc::clone(&self.known);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut settings = match *known {
            Some(settings) => settings,
            None => self.settings()?,
        };
        change(&mut settings);
        self.settings.set(0, settings, 0).map_err(table_error(map::SETTINGS))?;
        *known = Some(settings);
        Ok(())
    }

    /// Puts the settings back as they were last written, if another hand has changed them; whether it
    /// had to.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn mend_settings(&mut self) -> Result<bool, KernelError> {
        let known = Arc::clone(&self.known);
        let known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wanted) = known.filter(|known| self.settings().is_ok_and(|now| now != *known))
        else {
            return Ok(false);
        };
        self.settings.set(0, wanted, 0).map_err(table_error(map::SETTINGS))?;
        Ok(true)
    }
}

/// Takes a table out of the loaded object.
pub(super) fn take<M>(programs: &mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = programs.take_map(name).ok_or(KernelError::Missing { name })?;
    M::try_from(map).map_err(table_error(name))
}

/// Opens a second handle to a table.
pub(super) fn again<M>(name: &'static str, data: &MapData) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let open = || {
        let descriptor = data.fd().as_fd().try_clone_to_owned()?;
        M::try_from(Map::from_map_data(MapData::from_fd(descriptor)?)?)
    };
    open().map_err(table_error(name))
}

/// Turns "there is no such key" into `None`.
pub(super) fn absent<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names the table, and tells a full one from one that cannot be reached.
pub(super) fn table_error(table: &'static str) -> impl FnOnce(MapError) -> KernelError {
    move |source| match os_error(&source) {
        Some(libc::E2BIG | libc::ENOSPC) => KernelError::Full { table },
        _ => KernelError::Table { table, source },
    }
}

fn os_error(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        MapError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}
