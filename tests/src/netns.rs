//! Network namespaces: made, entered and removed.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// A network namespace.
pub struct Netns {
    name: String,
    file: File,
    kept: bool,
}

impl Netns {
    /// Makes a namespace with its loopback up and without waiting for IPv6 address detection.
    /// One that is kept is not removed when this is dropped.
    ///
    /// # Errors
    /// Without root, or if the name is taken.
    pub fn new(name: &str, kept: bool) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let mut ns = Self::open(name)?;
        ns.kept = kept;
        ns.ip("link set lo up")?;
        ns.sysctl("ipv6/conf/default/accept_dad", "0")?;
        ns.sysctl("ipv6/conf/all/accept_dad", "0")?;
        Ok(ns)
    }

    /// Opens a namespace that is there already, and leaves it there.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let file = File::open(format!("/run/netns/{name}"))
            .with_context(|| format!("namespace {name}"))?;
        Ok(Self { name: name.to_owned(), file, kept: true })
    }

    /// Its name under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in the namespace, and die with the thread that starts it.
    ///
    /// Not `ip netns exec`: that mounts a fresh /sys, which hides the BPF file system.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.lasting(program);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
                    .map_err(Into::into)
            });
        }
        command
    }

    /// A command that will run in the namespace and may outlive the test.
    pub fn lasting(&self, program: impl AsRef<OsStr>) -> Command {
        let file = self.file.try_clone().expect("a descriptor can be duplicated");
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
        command
    }

    /// Runs `work` on a thread of its own inside the namespace. A socket made there stays there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("the namespace is open");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` commands inside, one a line.
    ///
    /// # Errors
    /// If one of them fails, with its words.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut ip = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        ip.stdin.take().context("piped")?.write_all(lines.as_bytes())?;
        let done = ip.wait_with_output()?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "ip in {}: {words}\n{lines}", self.name);
        Ok(())
    }

    /// Writes a setting under `/proc/sys/net`, inside.
    ///
    /// # Errors
    /// If there is no such setting or it refuses the value.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.enter(|| std::fs::write(format!("/proc/sys/net/{path}"), value))
            .with_context(|| format!("{path} = {value}"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.kept {
            let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
        }
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// If it cannot start or fails, with its words.
pub fn run(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("start {command:?}"))?;
    let words = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {}\n{words}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
