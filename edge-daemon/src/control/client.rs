//! Asks the daemon: one command, one reply, with a deadline.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::protocol::{Command, REPLY_BYTES_MAX, Reply};

/// How long the daemon may be silent; longer than its own deadline, so that it can say so.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody listens there.
    #[error("no daemon listens at {0}: is edged running?")]
    NoDaemon(PathBuf),
    /// The socket belongs to somebody else.
    #[error("{0} may only be used by root and by the daemon's own user")]
    NotPermitted(PathBuf),
    /// The connection broke off.
    #[error("the daemon did not answer: {0}")]
    Broken(#[from] io::Error),
    /// The reply is of another version, or none.
    #[error("the daemon's answer makes no sense here: {0}; is edged of another version?")]
    Strange(#[from] serde_json::Error),
}

/// Asks the daemon that listens at `socket`.
///
/// # Errors
/// If it cannot be reached, breaks off, or answers what is no [`Reply`].
pub fn ask(socket: &Path, command: &Command) -> Result<Reply, Fault> {
    let mut stream = UnixStream::connect(socket).map_err(|fault| match fault.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Fault::NoDaemon(socket.to_owned())
        }
        io::ErrorKind::PermissionDenied => Fault::NotPermitted(socket.to_owned()),
        _ => Fault::Broken(fault),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    // A daemon that refuses the caller answers without reading; its answer is what counts.
    let sent = stream.write_all(&line);
    let mut reply = Vec::new();
    let read = BufReader::new(stream.take(REPLY_BYTES_MAX as u64)).read_until(b'\n', &mut reply);
    if reply.is_empty() {
        sent?;
        read?;
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&reply)?)
}
