//! What can go wrong between the daemon and the kernel.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use edge_common::map;

/// A failure of the kernel plane. Each names what it was about.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Tables can only be pinned on a bpffs.
    #[error("{} is not on a bpffs; mount one there: mount -t bpf bpf DIR", path.display())]
    NotBpffs {
        /// The folder of pins.
        path: PathBuf,
    },
    /// Pins would go with a mount namespace that is not the system's.
    #[error(
        "a bpffs mounted on {} might be seen in this mount namespace only, and its pins be gone \
         with it; mount it beforehand, and enter a network namespace by `nsenter --net=` or NetworkNamespacePath=, not by \
         `ip netns exec`",
        path.display()
    )]
    PrivateMounts {
        /// Where there is none.
        path: PathBuf,
    },
    /// Another daemon runs with these pins.
    #[error("another daemon uses {}; each needs a folder of its own", path.display())]
    InUse {
        /// The folder of pins.
        path: PathBuf,
    },
    /// A step on a path failed.
    #[error("cannot {verb} {}", path.display())]
    Path {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A pin could not be made or opened.
    #[error("cannot pin {}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why it failed.
        source: aya::pin::PinError,
    },
    /// A pinned table is of another shape than this version's.
    #[error(
        "the pinned table {} has {found}, this version needs {needed}; `edged detach` removes it",
        path.display()
    )]
    Mismatch {
        /// The pin.
        path: PathBuf,
        /// Its type and sizes.
        found: String,
        /// Those that the programs were built for.
        needed: String,
    },
    /// The kernel gives no types of its own.
    #[error("cannot read /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF is needed)")]
    Btf(#[source] btf_rs::Error),
    /// The kernel's types cannot be told to it.
    #[error("cannot read /sys/kernel/btf/vmlinux for the tracepoint inet_sock_set_state")]
    KernelTypes {
        /// Why it failed.
        source: aya::BtfError,
    },
    /// The kernel's types lack a field that the programs read.
    #[error("the running kernel's BTF has no {field}")]
    Field {
        /// The structure and field.
        field: &'static str,
    },
    /// The network namespace has no identity.
    #[error("cannot read SO_NETNS_COOKIE (kernel 5.14)")]
    NetnsCookie {
        /// Why it failed.
        source: io::Error,
    },
    /// The object was refused.
    #[error(
        "cannot load the kernel object \
         (kernel 6.0, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)"
    )]
    Object(#[source] EbpfError),
    /// The object lacks what the daemon expects in it.
    #[error("the kernel object has no {name}")]
    Missing {
        /// The program or table.
        name: &'static str,
    },
    /// A program was refused.
    #[error(
        "cannot load the kernel program {name} \
         (kernel 6.0, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)"
    )]
    Program {
        /// The program.
        name: &'static str,
        /// Why it failed.
        source: ProgramError,
    },
    /// The host does not take SYN cookies back at all times.
    #[error(
        "kernel.syn_cookies.mode = \"always\" needs net.ipv4.tcp_syncookies = 2, which is {found}: \
         `sysctl -w net.ipv4.tcp_syncookies=2`, or mode = \"auto\""
    )]
    SynCookies {
        /// What the setting is.
        found: u64,
    },
    /// The host does not tell its addresses.
    #[error("cannot list the addresses of this host")]
    Addresses(#[source] nix::Error),
    /// The host does not tell which interfaces are VLANs.
    #[error("cannot list the VLANs of this host")]
    Vlans(#[source] io::Error),
    /// The tracepoint was refused.
    #[error("cannot attach to the tracepoint inet_sock_set_state (CAP_PERFMON is needed)")]
    Tracepoint(#[source] ProgramError),
    /// There is no such interface.
    #[error("no interface is named {interface}")]
    NoInterface {
        /// The name.
        interface: String,
        /// Why it failed.
        source: nix::Error,
    },
    /// Another program is there already.
    #[error(
        "interface {interface} is held by another XDP program ({holder}), which is left alone; \
         have its owner let go of it first; `ip link set dev {interface} {off} off` removes one \
         that was attached without a link"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The programs there, by id, and by name for who has `CAP_SYS_ADMIN`.
        holder: String,
        /// What `ip link set` calls the mode that the first is attached in.
        off: &'static str,
    },
    /// The program could not be attached.
    #[error("cannot attach to interface {interface} in {mode} mode")]
    Attach {
        /// The interface.
        interface: String,
        /// The mode that was tried last.
        mode: super::Mode,
        /// Why it failed.
        source: io::Error,
    },
    /// The daemon in office would lose its link to the interface.
    #[error(
        "interface {interface} is filtered in {mode} mode, and attach says otherwise: a takeover does not change \
         that, a restart does"
    )]
    OtherMode {
        /// The interface.
        interface: String,
        /// The mode that it is filtered in.
        mode: super::Mode,
    },
    /// The kernel does not tell what the interface's frames begin with.
    #[error("cannot read the link type of interface {interface}")]
    LinkType {
        /// The interface.
        interface: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The interface's frames do not begin with an Ethernet header, as those of a tunnel.
    #[error(
        "interface {interface} is not an Ethernet one (link type {found}); \
         the filter would not understand its frames"
    )]
    NotEthernet {
        /// The interface.
        interface: String,
        /// Its `ARPHRD_` number.
        found: u16,
    },
    /// A table has no room for more.
    #[error("the kernel's table {table} is full{}", how_to_make_room(table))]
    Full {
        /// The table.
        table: &'static str,
    },
    /// A table cannot be mapped into memory.
    #[error("cannot map the kernel's table {table}")]
    Map {
        /// The table.
        table: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A table could not be read or written.
    #[error("cannot reach the kernel's table {table}")]
    Table {
        /// The table.
        table: &'static str,
        /// Why it failed.
        source: MapError,
    },
    /// The kernel refused something, and is older than what would not be refused.
    #[error("this kernel, {release}, lacks by its version: {lacking}")]
    Lacking {
        /// The running kernel.
        release: String,
        /// What it lacks, each with the version that has it.
        lacking: String,
        /// What it refused.
        source: Box<KernelError>,
    },
    /// The kernel lacks what the policy needs, and the filter is not to run without it.
    #[error(
        "this kernel, {release}, lacks what the configuration needs: {lacking}; with \
         kernel.missing_features = \"run_with_less\" the filter runs without"
    )]
    Needs {
        /// The running kernel.
        release: String,
        /// What it lacks, each with the version that has it and with the keys that need it.
        lacking: String,
    },
    /// What is pinned guards the interfaces of another network namespace.
    #[error(
        "{} guards the interfaces of another network namespace; each needs a folder of its own, or \
         `edged detach` for that one first",
        path.display()
    )]
    OtherNamespace {
        /// The folder of pins.
        path: PathBuf,
    },
    /// The sockets could not be listed, or the count not corrected.
    #[error("cannot compare the open connections with the kernel's sockets (CONFIG_INET_DIAG)")]
    Census(#[source] io::Error),
    /// No secret could be drawn.
    #[error("cannot draw a random seed")]
    Random(#[source] getrandom::Error),
    /// The programs' log could not be opened.
    #[error("cannot open the kernel programs' log")]
    DebugLog(#[source] aya_log::Error),
    /// A trial run was refused.
    #[error("cannot run the kernel program on a frame")]
    Run(#[source] ProgramError),
}

impl KernelError {
    /// Whether a kernel without a needed feature fails like this.
    pub(super) const fn is_of_features(&self) -> bool {
        matches!(
            self,
            Self::Btf(_)
                | Self::KernelTypes { .. }
                | Self::Field { .. }
                | Self::NetnsCookie { .. }
                | Self::Object(_)
                | Self::Program { .. }
        )
    }
}

fn how_to_make_room(table: &str) -> &'static str {
    match table {
        map::LISTS | map::ENTRIES => ": a larger lists.networks_max and a restart make room",
        _ => "",
    }
}

/// An error and what caused it, in a line.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
