//! The kernel plane's side of the daemon: loads, attaches and pins the programs, and speaks to
//! their tables. Nothing outside this folder names aya.
//!
//! After [`Kernel::load`] no verb needs a capability: all go by descriptors that are already open.

mod above;
mod asked;
mod attach;
mod bans;
mod bpf;
mod btf;
mod capacity;
mod census;
mod counts;
mod defence;
mod drops;
mod error;
mod features;
mod holder;
mod lists;
mod lock;
mod mapped;
mod maps;
mod netlink;
mod pins;
mod policy;
mod post;
mod probe;
mod ready;
mod room;
mod rules;
mod taken;
mod twin;
mod uncalled;
mod upkeep;
mod vlan;

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::IterableMap as _,
    programs::{BtfTracePoint, ProgramError, RawTracePoint, TestRun as _, TestRunOptions, Xdp},
};
use edge_common::map;

use self::{
    above::Above, census::Census, pins::Folders, policy::Survey, post::Post, room::Room,
    uncalled::Uncalled,
};
pub use self::{
    attach::{AttachMode, Attached, Mode, Wanted},
    bans::Bans,
    capacity::{Draft, ListCapacity, ListSizes},
    census::Corrected,
    counts::ANY_OTHER,
    defence::{Defence, LeftOut, Listeners, When, addresses},
    drops::{DebugLog, Drops, Samples},
    error::KernelError,
    features::{Feature, Features, release},
    lists::{Content, InForce, Job, Lists, wait_for_packets},
    lock::Lock,
    maps::{Explanation, Occupancy, Tables},
    pins::{Detached, Superseded, detach},
    policy::{Policy, Prefix},
    post::Interface,
    ready::whenever_ready,
    twin::{Bucket, Twin},
    upkeep::{Health, Upkeep},
};

/// The kernel programs, as `cargo xtask bpf` built them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../edge-ebpf/bundle/edge.bpf.o");

/// What [`Kernel::load`] goes by.
#[derive(Clone, Debug)]
pub struct LoadSettings {
    /// Where links and tables are pinned, on a bpffs; one daemon each.
    pub pin_dir: PathBuf,
    /// Whether to log a line per packet.
    pub debug: bool,
    /// What the programs go by from the start.
    pub policy: Policy,
    /// How much the lists may hold.
    pub lists: ListCapacity,
}

/// The loaded, attached and pinned kernel plane.
pub struct Kernel {
    /// The tables.
    pub tables: Tables,
    /// The drop events.
    pub drops: Drops,
    /// The packets that were drawn at random, while [`Tables::sample`] has them drawn.
    pub samples: Samples,
    /// The programs' own log, if `debug` asked for it.
    pub debug_log: Option<DebugLog>,
    policy: Policy,
    survey: Survey,
    attached: Vec<Attached>,
    programs: Ebpf,
    folders: Folders,
    /// What is to go once this daemon is in office.
    pub superseded: Superseded,
}

impl Kernel {
    /// Loads the programs and adopts the pinned tables or makes new ones. What is attached
    /// already goes on filtering.
    ///
    /// # Errors
    /// [`KernelError`] names the step, the path or the interface that failed;
    /// [`KernelError::InUse`] if another daemon uses the pins. Tables and links that were there
    /// before stay as they were.
    pub fn load(settings: &LoadSettings) -> Result<Self, KernelError> {
        Self::load_with(settings, Features::found())
    }

    /// As [`Self::load`], on a kernel that has these features of those that the filter can do without.
    ///
    /// # Errors
    /// As [`Self::load`]; [`KernelError::Needs`] if the policy needs what is missing, and is not to be cut down.
    pub fn load_with(settings: &LoadSettings, features: Features) -> Result<Self, KernelError> {
        Self::try_load(settings, features).map_err(|error| {
            let release = release();
            match features::lacking(&release) {
                Some(lacking) if error.is_of_features() => {
                    KernelError::Lacking { release, lacking, source: Box::new(error) }
                }
                _ => error,
            }
        })
    }

    fn try_load(settings: &LoadSettings, features: Features) -> Result<Self, KernelError> {
        let policy = features.fit(&settings.policy)?;
        features.tell(&settings.policy);
        let folders = Folders::prepare(&settings.pin_dir)?;
        let lock = Lock::take(&folders.own)?;
        let locks = folders.others.iter().map(|folder| Lock::take(folder));
        let locks = locks.collect::<Result<Vec<_>, _>>()?;
        let survey = policy.survey()?;
        let netns_cookie = netns_cookie()?;
        folders.expect_namespace(netns_cookie)?;
        folders.migrate()?;
        pins::verify(&folders.own)?;
        let mut programs = load_object(&folders.own, settings, features)?;
        let mut tables = Tables::take(&mut programs, features, lock)?;
        // The tables of a running filter stay as they are until this one takes over.
        let follows = features.has(Feature::SocketEvents);
        let layout = follows.then(btf::socket_layout).transpose()?;
        if tables.start(layout, folders.seed()?, netns_cookie)? {
            tables.write_policy(&policy, &survey)?;
        }
        let (drops, samples) = (Drops::take(&mut programs)?, Samples::take(&mut programs)?);
        let debug_log = settings.debug.then(|| DebugLog::take(&mut programs)).transpose()?;
        load_programs(&mut programs, features)?;
        Ok(Self {
            tables,
            drops,
            samples,
            debug_log,
            policy,
            survey,
            attached: Vec::new(),
            programs,
            superseded: Superseded { unwanted: Vec::new(), folders: folders.others.clone(), locks },
            folders,
        })
    }

    /// Looks for the interfaces, before anything is changed that a running filter goes by, or a daemon that is
    /// `in_office` still.
    ///
    /// # Errors
    /// [`KernelError`] names the one that is not there, or that cannot be guarded.
    pub fn find(&self, interfaces: &[Wanted], in_office: bool) -> Result<(), KernelError> {
        attach::find(interfaces, &self.folders, in_office)
    }

    /// Attaches to every interface. A program that is there from before, of this version or
    /// another, filters until the very packet at which this one takes over.
    ///
    /// # Errors
    /// [`KernelError`] names the interface that failed. What was filtered before still is.
    pub fn attach(&mut self, interfaces: &[Wanted]) -> Result<Upkeep, KernelError> {
        let followers = FOLLOWERS.map(|(_, pin)| self.folders.own.join(pin));
        let new: Vec<_> = followers.into_iter().filter(|pin| !pin.exists()).collect();
        self.try_attach(interfaces).inspect_err(|_| {
            // Where nothing filters, nothing is to count.
            new.iter().for_each(|pin| drop(fs::remove_file(pin)));
        })
    }

    fn try_attach(&mut self, interfaces: &[Wanted]) -> Result<Upkeep, KernelError> {
        let features = self.tables.features();
        let mut census = None;
        if features.has(Feature::SocketEvents) {
            for (program, pin) in FOLLOWERS {
                let program = program_named(&mut self.programs, program)?;
                attach::sockets(program, pin, &self.folders.own)?;
            }
            let program: &mut RawTracePoint = program_named(&mut self.programs, CENSUS)?;
            let program = duplicate(CENSUS, program.fd())?;
            let sockets = maps::again(map::SOCKETS, self.tables.sockets.map())?;
            census = features.has(Feature::SocketList).then(|| Census::new(program, sockets));
        }
        let xdp: &mut Xdp = program_named(&mut self.programs, PACKETS)?;
        let mut upkeep = Upkeep {
            program: duplicate(PACKETS, xdp.fd())?,
            folders: Folders { others: Vec::new(), ..self.folders.clone() },
            tables: self.tables.duplicate()?,
            census,
            posts: Vec::new(),
            renamed: Vec::new(),
            above: Above::default(),
            room: Room::new(self.tables.uncounted()?),
            health: Arc::default(),
            reign: Arc::default(),
        };
        // Before the filter needs it. Without it the count begins at what opens from now on; that
        // is logged and counted.
        let _ = upkeep.take_census();
        let (held, unwanted) = attach::interfaces(xdp, interfaces, &self.folders)?;
        self.superseded.unwanted = unwanted;
        // Not before: who is refused has changed nothing of what a running filter does.
        let former = self.tables.settings()?.client;
        self.tables.write_policy(&self.policy, &self.survey)?;
        if self.tables.settings()?.client != former {
            // Connections were counted by what stood for a client until now.
            let _ = upkeep.take_census();
        }
        self.attached = held.iter().map(|(attached, _)| attached.clone()).collect();
        self.tables.count_apart(self.attached.iter().map(|attached| attached.ifindex))?;
        upkeep.posts = interfaces.iter().cloned().zip(held).map(|(w, h)| Post::new(w, h)).collect();
        upkeep.look();
        Ok(upkeep)
    }

    /// The packet program's twin. There is one: who has it has it alone.
    ///
    /// # Errors
    /// [`KernelError::Missing`] if somebody has it.
    pub fn take_twin(&mut self) -> Result<Twin, KernelError> {
        Twin::take(&mut self.programs)
    }

    /// What was attached where, and how.
    #[must_use]
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Lets the program judge a frame that came by no interface, for tests and diagnosis; whether
    /// it would pass. The frame is counted like any other; on two CPUs at once, each judges its own.
    ///
    /// # Errors
    /// If the kernel refuses the run, as it does for a frame shorter than an Ethernet header.
    pub fn judge(&self, frame: &[u8]) -> Result<bool, KernelError> {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let name = PACKETS;
        let program = self.programs.program(name).ok_or(KernelError::Missing { name })?;
        let program =
            <&Xdp>::try_from(program).map_err(|source| KernelError::Program { name, source })?;
        let answer = program.test_run(options).map_err(KernelError::Run)?;
        Ok(answer.return_value == XDP_PASS)
    }

    /// What the program would send back, if it answers the frame; as [`Self::judge`].
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn answer(&mut self, frame: &[u8]) -> Result<Option<Vec<u8>>, KernelError> {
        let mut answer = vec![0; frame.len() + ANSWER_MORE];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut answer),
            ..TestRunOptions::default()
        };
        let run = program_named::<Xdp>(&mut self.programs, PACKETS)?
            .test_run(options)
            .map_err(KernelError::Run)?;
        answer.truncate(run.data_size_out as usize);
        Ok((run.return_value == XDP_TX).then_some(answer))
    }

    /// Instructions that the verifier walked through for the packet program; kernel 5.16.
    #[must_use]
    pub fn verified_instructions(&mut self) -> Option<u32> {
        program_named::<Xdp>(&mut self.programs, PACKETS)
            .ok()?
            .info()
            .ok()?
            .verified_instruction_count()
    }
}

fn load_object(
    folder: &Path,
    settings: &LoadSettings,
    features: Features,
) -> Result<Ebpf, KernelError> {
    // `debug!` and all below it. At 0 the verifier removes the code.
    let level: u8 = if settings.debug { 4 } else { 0 };
    let mut loader = EbpfLoader::new();
    let follows = features.has(Feature::SocketEvents);
    loader.btf(follows.then(btf::kernel_types).transpose()?);
    settings.lists.size(&mut loader);
    for table in pins::TABLES {
        loader.map_pin_path(table.name, folder.join(table.name));
    }
    loader.override_global(aya_log::LEVEL, &level, true);
    let loaded = match features.has(Feature::SynCookies) {
        true => loader.load(OBJECT),
        false => loader.load(Uncalled::new(OBJECT, &probe::OF_SYN_COOKIES).bytes()),
    };
    loaded.map_err(KernelError::Object)
}

fn load_programs(programs: &mut Ebpf, features: Features) -> Result<(), KernelError> {
    let error = |name| move |source| KernelError::Program { name, source };
    program_named::<Xdp>(programs, PACKETS)?.load().map_err(error(PACKETS))?;
    program_named::<Xdp>(programs, TWIN)?.load().map_err(error(TWIN))?;
    if !features.has(Feature::SocketEvents) {
        return Ok(());
    }
    program_named::<RawTracePoint>(programs, CENSUS)?.load().map_err(error(CENSUS))?;
    let types = btf::kernel_types()?;
    for (name, _) in FOLLOWERS {
        let follower: &mut BtfTracePoint = program_named(programs, name)?;
        follower.load("inet_sock_set_state", types).map_err(error(name))?;
    }
    Ok(())
}

/// A program of the object, of the kind that it is.
fn program_named<'p, P>(
    programs: &'p mut Ebpf,
    name: &'static str,
) -> Result<&'p mut P, KernelError>
where
    &'p mut P: TryFrom<&'p mut aya::programs::Program, Error = ProgramError>,
{
    let program = programs.program_mut(name).ok_or(KernelError::Missing { name })?;
    program.try_into().map_err(|source| KernelError::Program { name, source })
}

/// Another descriptor of a loaded program.
fn duplicate(
    name: &'static str,
    program: Result<&aya::programs::ProgramFd, ProgramError>,
) -> Result<OwnedFd, KernelError> {
    let error = |source| KernelError::Program { name, source };
    let descriptor = program.map_err(error)?.as_fd().try_clone_to_owned();
    descriptor.map_err(|source| error(ProgramError::IOError(source)))
}

/// The program that corrects the count of open connections.
const CENSUS: &str = "edged_census";
/// The programs that follow sockets, and the pins of their links.
const FOLLOWERS: [(&str, &str); 2] =
    [("edged_sockets", "sockets"), ("edged_sockets_too", "sockets-too")];

/// The cookie of the network namespace that this thread is in.
fn netns_cookie() -> Result<u64, KernelError> {
    let error = |source: std::io::Error| KernelError::NetnsCookie { source };
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).map_err(error)?;
    socket_cookie(socket.as_fd()).map_err(error)
}

fn socket_cookie(socket: BorrowedFd<'_>) -> std::io::Result<u64> {
    use std::os::fd::AsRawFd as _;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `length` outlive the call and `length` is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(std::io::Error::last_os_error()) }
}

/// The program that judges packets.
const PACKETS: &str = "edged";
/// Its twin, which leaves no trace.
const TWIN: &str = "edged_twin";
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// Bytes by which an answer may be longer than what it answers.
const ANSWER_MORE: usize = 64;
