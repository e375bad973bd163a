//! The kernel plane's side of the daemon: loads, attaches and pins the programs, and speaks to
//! their tables. Nothing outside this folder names aya.
//!
//! After [`Kernel::load`] no verb needs a capability: all go by descriptors that are already open.

mod attach;
mod btf;
mod capacity;
mod drops;
mod error;
mod link;
mod lists;
mod mapped;
mod maps;
mod pins;
mod policy;
mod ready;

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{RawTracePoint, TestRun as _, TestRunOptions, Xdp},
};

pub use self::{
    attach::{AttachMode, Attached, Mode},
    capacity::{ListCapacity, ListSizes},
    drops::{DebugLog, Drops},
    error::KernelError,
    lists::{Content, Freed, Image, InForce, Job, Lists, wait_for_packets},
    maps::{Bans, Explanation, Occupancy, Tables},
    pins::detach,
    policy::{Policy, Prefix},
    ready::whenever_ready,
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
    /// The programs' own log, if `debug` asked for it.
    pub debug_log: Option<DebugLog>,
    attached: Vec<Attached>,
    programs: Ebpf,
    folder: PathBuf,
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
        let folder = pins::prepare(&settings.pin_dir)?;
        let lock = pins::Lock::take(&folder)?;
        pins::verify(&folder)?;
        let mut programs = load_object(&folder, settings)?;
        let mut tables = Tables::take(&mut programs, lock)?;
        tables.start(&settings.policy, btf::socket_layout()?, netns_cookie()?)?;
        let drops = Drops::take(&mut programs)?;
        let debug_log = settings.debug.then(|| DebugLog::take(&mut programs)).transpose()?;
        load_programs(&mut programs)?;
        let attached = Vec::new();
        Ok(Self { tables, drops, debug_log, attached, programs, folder })
    }

    /// Attaches to every interface. A program that is there from before filters until the very
    /// packet at which this one takes over.
    ///
    /// # Errors
    /// [`KernelError`] names the interface that failed. What was filtered before still is.
    pub fn attach(&mut self, interfaces: &[String], mode: AttachMode) -> Result<(), KernelError> {
        attach::sockets(tracepoint(&mut self.programs)?, &self.folder)?;
        let xdp = xdp(&mut self.programs, PACKETS)?;
        self.attached = attach::interfaces(xdp, interfaces, mode, &self.folder)?;
        self.tables.count_apart(self.attached.iter().map(|attached| attached.ifindex))
    }

    /// What was attached where, and how.
    #[must_use]
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Lets the program judge a frame that came by no interface, for tests and diagnosis; whether
    /// it would pass. The frame is counted like any other.
    ///
    /// # Errors
    /// If the kernel refuses the run, as it does for a frame shorter than an Ethernet header.
    pub fn judge(&mut self, frame: &[u8]) -> Result<bool, KernelError> {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let answer =
            xdp(&mut self.programs, PACKETS)?.test_run(options).map_err(KernelError::Run)?;
        Ok(answer.return_value == XDP_PASS)
    }

    /// Instructions that the verifier walked through for the packet program; kernel 5.16.
    #[must_use]
    pub fn verified_instructions(&mut self) -> Option<u32> {
        xdp(&mut self.programs, PACKETS).ok()?.info().ok()?.verified_instruction_count()
    }
}

fn load_object(folder: &std::path::Path, settings: &LoadSettings) -> Result<Ebpf, KernelError> {
    // `debug!` and all below it. At 0 the verifier removes the code.
    let level: u8 = if settings.debug { 4 } else { 0 };
    let mut loader = EbpfLoader::new();
    settings.lists.size(&mut loader);
    for table in pins::TABLES {
        loader.map_pin_path(table.name, folder.join(table.name));
    }
    let loaded = loader.override_global(aya_log::LEVEL, &level, true).load(OBJECT);
    loaded.map_err(KernelError::Object)
}

fn load_programs(programs: &mut Ebpf) -> Result<(), KernelError> {
    let error = |name| move |source| KernelError::Program { name, source };
    xdp(programs, PACKETS)?.load().map_err(error(PACKETS))?;
    xdp(programs, TWIN)?.load().map_err(error(TWIN))?;
    tracepoint(programs)?.load().map_err(error("edged_sockets"))
}

fn xdp<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, KernelError> {
    let program = programs.program_mut(name).ok_or(KernelError::Missing { name })?;
    program.try_into().map_err(|source| KernelError::Program { name, source })
}

fn tracepoint(programs: &mut Ebpf) -> Result<&mut RawTracePoint, KernelError> {
    let name = "edged_sockets";
    let program = programs.program_mut(name).ok_or(KernelError::Missing { name })?;
    program.try_into().map_err(|source| KernelError::Program { name, source })
}

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
