//! Daemons that take over from one another, sockets that somebody else listens on, and the load that
//! must not notice.

use std::{
    io::{IoSliceMut, Read as _},
    net::TcpListener,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt},
};

use crate::{
    Edged, Lab,
    client::{HOST, until},
    daemon::{self, binary},
    lab::CLIENT,
    talk::{Dial, Talk},
};

impl Edged<'_> {
    /// Where a successor asks.
    #[must_use]
    pub fn handover_socket(&self) -> std::path::PathBuf {
        self.lab().dir().join("control.handover")
    }

    /// Starts a daemon that is to take over, and does not wait for it.
    ///
    /// # Errors
    /// If it cannot start.
    pub fn successor(&self) -> Result<Child> {
        let mut command = daemon::command(self.lab(), &self.config)?;
        Ok(command.arg("--takeover").env_remove("NOTIFY_SOCKET").spawn()?)
    }

    /// Has a new daemon take over, and waits until the former has ended; how it ended.
    ///
    /// # Errors
    /// If the new one is not ready, or the former does not end.
    pub fn take_over(&mut self) -> Result<ExitStatus> {
        let mut former = self.succeed()?;
        let mut status = None;
        until("the former daemon ends", Duration::from_secs(15), || {
            status = former.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("ended above")
    }

    /// Has a new daemon take over; the former, which drains.
    ///
    /// # Errors
    /// If the new one is not ready.
    pub fn succeed(&mut self) -> Result<Child> {
        let notified = self.lab().dir().join("notify.sock");
        let _ = std::fs::remove_file(&notified);
        let socket = UnixDatagram::bind(&notified)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut child = daemon::command(self.lab(), &self.config)?.arg("--takeover").spawn()?;
        daemon::await_ready(&socket, &mut child).with_context(|| self.log())?;
        Ok(self.replace_child(child))
    }
}

/// Starts a daemon that is given a listener, as a service manager would give it.
///
/// # Errors
/// If it is not ready in time.
pub fn start_with(lab: &Lab, config: &Path, listener: &TcpListener) -> Result<Child> {
    let notified = lab.dir().join("notify.sock");
    let _ = std::fs::remove_file(&notified);
    let socket = UnixDatagram::bind(&notified)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let log =
        std::fs::File::options().create(true).append(true).open(lab.dir().join("edged.log"))?;
    // The listener is the shell's standard input until it is the third descriptor.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=edged.socket \
                  exec \"$0\" run --config \"$1\"";
    let mut child = lab
        .edge
        .command("sh")
        .args(["-c", script])
        .arg(binary("edged")?)
        .arg(config)
        .env("NOTIFY_SOCKET", &notified)
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    daemon::await_ready(&socket, &mut child)?;
    Ok(child)
}

/// Starts `edged` with these words as a service manager would, and does not wait for it. If there is a variable `OF`, that is
/// whose watchdog it is told of, `$$` for its own.
///
/// # Errors
/// If it cannot start.
pub fn service(
    lab: &Lab,
    config: &Path,
    words: &str,
    adapt: impl FnOnce(&mut Command),
) -> Result<Child> {
    let log =
        std::fs::File::options().create(true).append(true).open(lab.dir().join("edged.log"))?;
    let script = format!(
        "if [ \"$OF\" ]; then eval export WATCHDOG_PID=$OF; fi; exec \"$0\" {words} --config \"$1\""
    );
    let mut command = lab.edge.command("sh");
    command
        .args(["-c", &script])
        .arg(binary("edged")?)
        .arg(config)
        .env("NOTIFY_SOCKET", lab.dir().join("notify.sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    adapt(&mut command);
    command.spawn().context("start edged")
}

/// The socket of a service manager, which knows who tells it what.
pub struct Manager(UnixDatagram);

impl Manager {
    /// In the lab's folder.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(lab: &Lab) -> Result<Self> {
        let path = lab.dir().join("notify.sock");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        Ok(Self(socket))
    }

    /// What was told, and by which process; `None`: nothing for a moment.
    ///
    /// # Errors
    /// If the socket breaks.
    pub fn hear(&self) -> Result<Option<(u32, String)>> {
        let (mut bytes, mut credentials) = ([0; 512], cmsg_space!(UnixCredentials));
        let mut room = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::empty();
        let heard =
            match recvmsg::<()>(self.0.as_raw_fd(), &mut room, Some(&mut credentials), flags) {
                Ok(heard) => heard,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let pid = heard.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(who) => u32::try_from(who.pid()).ok(),
            _ => None,
        });
        let (pid, length) = (pid.context("no credentials")?, heard.bytes);
        Ok(Some((pid, String::from_utf8_lossy(&bytes[..length]).into_owned())))
    }

    /// Waits until a process says that it is ready.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn await_ready(&self, pid: u32) -> Result<()> {
        until("it is ready", Duration::from_secs(60), || {
            let heard = self.hear()?;
            Ok(heard.is_some_and(|(from, text)| from == pid && text == "READY=1"))
        })?;
        Ok(())
    }
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct Load {
    /// Requests that were answered.
    pub served: AtomicU64,
    /// Connections that were made.
    pub connected: AtomicU64,
    /// Whether it is to end.
    pub ends: AtomicBool,
}

impl Load {
    /// Asks again and again on one connection, and on a new one when an answer said that it was
    /// the last; or, if it does not `keep` them, on a new one each time.
    ///
    /// # Errors
    /// At the first connection that is refused and the first request that is not answered.
    pub fn run(&self, lab: &Lab, dial: &Dial, keep: bool) -> Result<()> {
        let more = if keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET /health HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n");
        let mut talk: Option<Talk> = None;
        while !self.ends.load(Relaxed) {
            let open = match &mut talk {
                Some(open) => open,
                closed => {
                    self.connected.fetch_add(1, Relaxed);
                    closed.insert(dial.connect(lab, CLIENT).context("refused")?)
                }
            };
            open.say(request.as_bytes())?;
            let heard = open.hear(Duration::from_secs(10), is_whole)?;
            if heard.statuses() != [200] {
                bail!("{:?}", String::from_utf8_lossy(&heard.bytes));
            }
            self.served.fetch_add(1, Relaxed);
            let head = String::from_utf8_lossy(&heard.bytes).to_ascii_lowercase();
            if head.contains("connection: close") {
                talk = None;
            }
        }
        Ok(())
    }

    /// Waits until so many more requests were answered.
    ///
    /// # Errors
    /// If it takes too long.
    pub fn goes_on(&self, more: u64) -> Result<()> {
        let so_far = self.served.load(Relaxed);
        until("the load goes on", Duration::from_secs(20), || {
            Ok(self.served.load(Relaxed) >= so_far + more)
        })
        .map(drop)
    }
}

/// Whether an answer of a stated length is all there.
fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.and_then(|length| length.trim().parse().ok()) == Some(body.len())
}

/// The number of the socket that a process listens on at a port, out of those it holds.
///
/// # Errors
/// If the process is gone or there is none.
pub fn listening(pid: u32, port: u16) -> Result<Vec<u64>> {
    let (mut table, wanted) = (String::new(), format!(":{port:04X}"));
    for family in ["tcp", "tcp6"] {
        std::fs::File::open(format!("/proc/{pid}/net/{family}"))?.read_to_string(&mut table)?;
    }
    let listens = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let here = fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A";
        here.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    let sockets: Vec<u64> = table.lines().filter_map(listens).collect();
    ensure!(!sockets.is_empty(), "nobody listens at {port}");
    Ok(sockets)
}
