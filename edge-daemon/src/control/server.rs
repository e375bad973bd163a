//! Answers commands on a unix socket that only root and the daemon's own user may speak to.

use std::{
    fs::{self, DirBuilder, Permissions},
    future::Future,
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::{LocalSet, spawn_local},
    time::timeout,
};
use zeroize::Zeroizing;

use super::protocol::{COMMAND_BYTES_MAX, Command, REPLY_BYTES_MAX, Reply};

/// Connections that are answered at once; more wait in the backlog.
const CONNECTIONS_MAX: usize = 8;

/// From the connection to the last byte of the reply.
const DEADLINE: Duration = Duration::from_secs(10);

/// Who speaks, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The process, if it can be named from here.
    pub pid: Option<i32>,
}

impl Peer {
    /// Whether a daemon that runs as `own_uid` obeys this peer.
    #[must_use]
    pub const fn may_command(self, own_uid: u32) -> bool {
        self.uid == 0 || self.uid == own_uid
    }
}

/// Listens at `path`, whose folder is made if it is missing. A socket that a dead daemon left
/// behind is removed; a live one, or a file that is no socket, is not.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if somebody listens there; otherwise what the system says.
pub fn bind(path: &Path) -> io::Result<StdListener> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    }
    remove_stale(path)?;
    let listener = StdListener::bind(path)?;
    // Until this line anybody may connect; `serve` asks the kernel for the peer's user anyway.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(fault) => return Err(fault),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket"));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon listens there")),
        Err(fault) if fault.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(fault) => Err(fault),
    }
}

/// Answers commands with `handler` until it is dropped. Runs on the calling thread, inside a
/// tokio runtime with I/O and time.
///
/// # Errors
/// If the listener cannot be used at all; a fault of one connection is only logged.
pub async fn serve<H, F>(listener: StdListener, handler: H) -> io::Result<()>
where
    H: Fn(Command, Peer) -> F + 'static,
    F: Future<Output = Reply> + 'static,
{
    let listener = UnixListener::from_std(listener)?;
    LocalSet::new().run_until(accept(listener, Rc::new(handler))).await
}

async fn accept<H, F>(listener: UnixListener, handler: Rc<H>) -> io::Result<()>
where
    H: Fn(Command, Peer) -> F + 'static,
    F: Future<Output = Reply> + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(fault) => {
                // Out of descriptors, most likely: accepting again at once would only spin.
                tracing::warn!(%fault, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = Rc::clone(&handler);
        spawn_local(async move {
            let _place = place;
            match timeout(DEADLINE, exchange(stream, &*handler)).await {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => tracing::debug!(%fault, "a control connection broke off"),
                Err(_) => tracing::warn!("a control connection took too long"),
            }
        });
    }
}

/// One command, one reply.
async fn exchange<H, F>(mut stream: UnixStream, handler: &H) -> io::Result<()>
where
    H: Fn(Command, Peer) -> F,
    F: Future<Output = Reply>,
{
    let credentials = stream.peer_cred()?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    let reply = if peer.may_command(nix::unistd::geteuid().as_raw()) {
        match read_command(&mut stream).await? {
            Ok(command) => handler(command, peer).await,
            Err(why) => Reply::Refused(why),
        }
    } else {
        tracing::warn!(uid = peer.uid, pid = peer.pid, "a control connection was refused");
        Reply::Refused(format!("user {} may not command this daemon; root may", peer.uid))
    };
    let line = Zeroizing::new(encode(&reply)?);
    stream.write_all(&line).await?;
    stream.shutdown().await
}

/// The command on the first line, or why there is none.
async fn read_command(stream: &mut UnixStream) -> io::Result<Result<Command, String>> {
    // It may hold a secret that was chosen.
    let mut line = Zeroizing::new(Vec::new());
    let mut bounded = BufReader::new(stream.take(COMMAND_BYTES_MAX as u64 + 1));
    bounded.read_until(b'\n', &mut line).await?;
    if line.len() > COMMAND_BYTES_MAX {
        return Ok(Err(format!("a command is at most {COMMAND_BYTES_MAX} bytes long")));
    }
    Ok(match serde_json::from_slice::<Command>(&line) {
        Ok(command) => command.fault().map_or(Ok(command), Err),
        Err(fault) => Err(format!(
            "not a command that edged {} knows: {fault}; is edgectl of another version?",
            env!("CARGO_PKG_VERSION")
        )),
    })
}

fn encode(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    if line.len() >= REPLY_BYTES_MAX {
        let why = format!("the reply would be {} bytes long, over the bound", line.len());
        line = serde_json::to_vec(&Reply::Refused(why))?;
    }
    line.push(b'\n');
    Ok(line)
}
