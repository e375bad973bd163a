//! `cargo xtask setup`: installs what the project needs and this host lacks.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    bpf,
    shell::{installed, need_root, root, run},
};

/// What to install beyond what the demo and the tests need.
#[derive(Args)]
pub(crate) struct Setup {
    /// The others that the benches measure beside, and their load generators.
    #[arg(long)]
    peers: bool,
    /// The toolchain that rebuilds the committed kernel object.
    #[arg(long)]
    bpf: bool,
}

impl Setup {
    pub(crate) fn run(self) -> Result<()> {
        need()?;
        need_outside()?;
        install(NODE)?;
        need_issuers()?;
        if self.peers {
            need_peers()?;
        }
        if self.bpf {
            bpf::install_toolchain()?;
        }
        Ok(())
    }
}

/// What the demo and the tests need.
pub(crate) fn need() -> Result<()> {
    install(NEEDED)?;
    install_clients()?;
    mount_bpf()
}

/// Whom the tests let the edge talk to: they start each of them themselves, on loopback and with a
/// folder of its own.
pub(crate) fn need_outside() -> Result<()> {
    let central = std::path::Path::new("/etc/crowdsec/online_api_credentials.yaml");
    if !installed("crowdsec") && !central.exists() {
        // Its package registers with a server on the internet unless this file has something in it.
        std::fs::create_dir_all("/etc/crowdsec")?;
        std::fs::write(central, "# No central API: this crowdsec answers tests alone.\n")?;
    }
    install(OUTSIDE)
}

/// The issuers of tokens that others wrote, of the versions in `tests/issuers`; whether they are
/// there. Without Node they are not, and the tests say that they did not run.
pub(crate) fn need_issuers() -> Result<bool> {
    if !(installed("node") && installed("npm")) {
        println!("no node and npm: the tests against other people's issuers will not run");
        return Ok(false);
    }
    let folder = root().join("tests/issuers");
    let (asked, there) = (folder.join("package-lock.json"), folder.join("node_modules"));
    let at = |path: &std::path::Path| path.metadata().and_then(|m| m.modified()).ok();
    if at(&there) < at(&asked) {
        let npm = ["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"];
        run(Command::new("npm").args(npm).current_dir(&folder))?;
    }
    Ok(true)
}

/// What the benches measure beside.
pub(crate) fn need_peers() -> Result<()> {
    install(PEERS)
}

/// Installs the packages whose program is missing.
fn install(table: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> =
        table.iter().filter(|(program, _)| !installed(program)).map(|(_, p)| *p).collect();
    if missing.is_empty() {
        return Ok(());
    }
    install_packages(&missing)
}

/// Installs Debian packages, from a list that is up to date.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    need_root(&format!("installing {}", packages.join(", ")))?;
    println!("installing {}", packages.join(", "));
    let apt = |args: &[&str]| {
        run(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["-qq", "update"])?;
    apt(&[&["-qq", "-y", "install", "--no-install-recommends"], packages].concat())
        .with_context(|| format!("these packages are needed: {}", packages.join(" ")))
}

/// Installs the libraries of the tests' Node clients beside each other, in `target/clients`.
fn install_clients() -> Result<()> {
    let dir = root().join("target/clients");
    let is_missing = |name: &&str| !dir.join("node_modules").join(name).exists();
    let missing: Vec<_> = CLIENTS.iter().filter(|(name, _)| is_missing(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !installed("npm") {
        println!("no npm: the tests with other people's clients in Node will not run");
        return Ok(());
    }
    std::fs::create_dir_all(&dir)?;
    println!("installing libraries of the tests' clients");
    let packages = missing.iter().map(|(name, version)| format!("{name}@{version}"));
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
    run(npm.arg(&dir).args(packages))
}

/// Mounts the BPF file system where maps are pinned; containers often lack it.
fn mount_bpf() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    if mounts.lines().any(|l| l.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        return Ok(());
    }
    need_root("mounting /sys/fs/bpf")?;
    run(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))
}

/// Program and the Debian package that holds it.
const NEEDED: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("pebble", "pebble"),
    ("python3", "python3"),
    ("bpftool", "bpftool"),
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("slowhttptest", "slowhttptest"),
    ("sslscan", "sslscan"),
    ("testssl", "testssl.sh"),
    ("systemd-analyze", "systemd"),
    ("strace", "strace"),
];

/// npm packages of the tests' clients, and their versions.
const CLIENTS: &[(&str, &str)] = &[("http-message-signatures", "1.0.6")];

/// As [`NEEDED`], for the tests of what comes from outside of the host.
const OUTSIDE: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("crowdsec", "crowdsec"),
    ("fail2ban-server", "fail2ban"),
    ("hydra", "hydra"),
];

/// As [`NEEDED`], for the tests against other people's issuers.
const NODE: &[(&str, &str)] = &[("node", "nodejs"), ("npm", "npm")];

/// As [`NEEDED`], for the benches.
const PEERS: &[(&str, &str)] = &[
    ("ipset", "ipset"),
    ("iptables-legacy", "iptables"),
    ("xdp-filter", "xdp-tools"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("taskset", "util-linux"),
    ("crowdsec-firewall-bouncer", "crowdsec-firewall-bouncer"),
];
