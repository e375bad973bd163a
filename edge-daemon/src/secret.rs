//! Where a secret comes from: a file, an environment variable or a systemd credential. The
//! configuration holds the reference, never the secret.

use std::{
    env, fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use zeroize::Zeroizing;

use crate::regular;

/// The least length of a secret that signs or keys anything, in bytes (RFC 7518, 3.2).
pub const BYTES_MIN: usize = 32;

/// The longest secret that is read, in bytes.
pub const BYTES_MAX: usize = 64 << 10;

/// A secret in memory: overwritten when it is dropped, never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A secret of these bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves, for whatever they key.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Without the end of line that editors and `echo` leave behind a text.
    #[must_use]
    pub fn without_line_end(mut self) -> Self {
        if self.0.last() == Some(&b'\n') {
            self.0.pop();
            if self.0.last() == Some(&b'\r') {
                self.0.pop();
            }
        }
        self
    }

    /// Itself, unless it is shorter than so many bytes.
    ///
    /// # Errors
    /// [`Fault::Short`].
    pub fn at_least(self, bytes: usize) -> Result<Self, Fault> {
        if self.0.len() < bytes { Err(Fault::Short(bytes)) } else { Ok(self) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(masked)")
    }
}

/// A reference to a secret, as a configuration writes it: `file:PATH`, `env:NAME` or
/// `credential:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A file that not everyone may read.
    File(PathBuf),
    /// A variable of the daemon's environment.
    Env(String),
    /// A file of this name in `$CREDENTIALS_DIRECTORY`, as `LoadCredential=` puts it there.
    Credential(String),
}

impl FromStr for Origin {
    type Err = &'static str;

    /// The error says what would be right and repeats nothing of the text: it may be the secret.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = text.split_once(':').ok_or(FORM)?;
        let letters = |extra: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
            !name.is_empty() && name.chars().all(fits)
        };
        match kind {
            "file" if !name.is_empty() => Ok(Self::File(name.into())),
            "env" if letters("_") => Ok(Self::Env(name.into())),
            "credential" if letters("_.-") && !name.starts_with('.') => {
                Ok(Self::Credential(name.into()))
            }
            _ => Err(FORM),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

impl Origin {
    /// Reads the secret as it is now, whole.
    ///
    /// # Errors
    /// If it is not there, cannot be read, is empty or too long, or may be read by everyone.
    pub fn read(&self) -> Result<Secret, Fault> {
        let secret = match self {
            Self::Env(name) => {
                let value = env::var_os(name).ok_or(Fault::Unset)?;
                Secret::new(value.into_encoded_bytes())
            }
            Self::File(_) | Self::Credential(_) => read_file(&self.path().ok_or(Fault::NoFolder)?)?,
        };
        match secret.0.len() {
            0 => Err(Fault::Empty),
            1..=BYTES_MAX => Ok(secret),
            _ => Err(Fault::Long),
        }
    }

    /// Takes a relative path from this folder.
    pub fn resolve(&mut self, base: &Path) {
        if let Self::File(path) = self {
            *path = base.join(&*path);
        }
    }

    /// What tells one state of the file from the next; `None` for what has no file, or none now.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        let metadata = self.path()?.metadata().ok()?;
        // That of the inode: rights, too, decide whether the secret can be used.
        let (seconds, nanos) = (metadata.ctime(), metadata.ctime_nsec());
        Some(Stamp([metadata.dev(), metadata.ino(), metadata.len()], [seconds, nanos]))
    }

    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.clone()),
            Self::Credential(name) => {
                env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join(name))
            }
            Self::Env(_) => None,
        }
    }
}

/// One state of a file, as far as its metadata tell: device, inode and size; time of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([u64; 3], [i64; 2]);

fn read_file(path: &Path) -> Result<Secret, Fault> {
    let file = regular::open(path)?;
    if is_public(&file)? {
        return Err(Fault::Public);
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let room = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(BYTES_MAX) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(room as u64).read_to_end(&mut bytes)?;
    Ok(Secret(bytes))
}

/// Whether everyone may read or change an open file.
fn is_public(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & 0o007 != 0)
}

/// Why a secret cannot be used. Tells nothing of the secret.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    File(io::Error),
    /// Everyone may read the file.
    #[error("everyone can read it: chmod o= will do")]
    Public,
    /// The variable is not set.
    #[error("the variable is not set")]
    Unset,
    /// The daemon was started without credentials.
    #[error("$CREDENTIALS_DIRECTORY is not set: no LoadCredential= in the unit?")]
    NoFolder,
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is shorter than what it is for asks.
    #[error("it is too short: at least {0} bytes")]
    Short(usize),
    /// It is longer than [`BYTES_MAX`].
    #[error("it is longer than 64 KiB")]
    Long,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl Fault {
    /// Whether there simply is no such file yet.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File(fault) if fault.kind() == io::ErrorKind::NotFound)
    }
}

/// What a reference looks like.
pub const FORM: &str =
    "a secret is named, not written: \"file:PATH\", \"env:NAME\" or \"credential:NAME\"";

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_reference_is_read_as_it_is_shown() {
        for text in ["file:/etc/edged/hmac", "file:hmac", "env:EDGED_HMAC", "credential:hmac.key"] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), text);
        }
        for text in ["", "hunter2", "file:", "env:", "env:A B", "credential:../x", "credential:a/b"]
        {
            let told = text.parse::<Origin>().unwrap_err();
            assert!(text.is_empty() || !told.contains(text) || text.ends_with(':'), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_whole_and_only_if_it_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let origin = Origin::File(path.clone());
        assert!(origin.read().unwrap_err().is_missing());
        assert_eq!(origin.stamp(), None);
        fs::write(&path, b"0123456789abcdef0123456789abcdef\r\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(origin.read(), Err(Fault::Public)));
        let public = origin.stamp();
        // The clock of the inodes has steps of some milliseconds.
        while origin.stamp() == public {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let public = origin.stamp();
        while origin.stamp() == public {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        }
        let before = origin.stamp();
        assert_eq!(origin.read().unwrap().expose().len(), 34);
        let text = origin.read().unwrap().without_line_end();
        assert_eq!(text.expose(), b"0123456789abcdef0123456789abcdef");
        assert!(text.clone().at_least(BYTES_MIN).is_ok());
        assert!(matches!(text.at_least(33), Err(Fault::Short(33))));
        fs::write(&path, b"").unwrap();
        assert!(matches!(origin.read(), Err(Fault::Empty)));
        fs::write(&path, vec![7; BYTES_MAX + 1]).unwrap();
        assert!(matches!(origin.read(), Err(Fault::Long)));
        assert!(before.is_some() && origin.stamp() != before);
        assert!(matches!(Origin::File(dir.path().into()).read(), Err(Fault::File(_))));
    }

    #[test]
    fn nothing_of_it_is_printed() {
        let secret = Secret::new(b"hunter2".to_vec());
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(matches!(Origin::Env("EDGED_SURELY_UNSET".into()).read(), Err(Fault::Unset)));
        let read = Origin::Env("PATH".into()).read().unwrap();
        assert_eq!(read.expose(), env::var_os("PATH").unwrap().as_encoded_bytes());
    }
}
