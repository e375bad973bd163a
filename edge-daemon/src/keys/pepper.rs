//! The secrets under which keys are digested: read where the configuration says, the first of them
//! made if it is a file that is not there yet.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::Context as _;
use edge_identity::key::{Pepper, Peppers};
use zeroize::Zeroizing;

use crate::{
    config::settings::Keys,
    saved,
    secret::{BYTES_MIN, Origin},
};

/// As [`load`], at the start and for a pepper that was not in use before: a missing file of the pepper in use is made, with mode 0600, whole or
/// not at all.
///
/// # Errors
/// As [`load`], or if it cannot be made.
pub fn make(keys: &Keys) -> anyhow::Result<Peppers> {
    if let Origin::File(path) = &keys.pepper {
        make_if_missing(path)
            .with_context(|| format!("cannot make the pepper {}", path.display()))?;
    }
    load(keys)
}

/// Reads the pepper in use and those before it. A missing file is a mistake: another pepper in the
/// place of one that was lost would make every key unknown.
///
/// # Errors
/// If a secret cannot be used; it is named, never shown.
pub fn load(keys: &Keys) -> anyhow::Result<Peppers> {
    Ok(Peppers {
        current: read(&keys.pepper)?,
        former: keys.former_peppers.iter().map(read).collect::<Result<_, _>>()?,
    })
}

fn read(origin: &Origin) -> anyhow::Result<Pepper> {
    let secret = origin.read().and_then(|secret| secret.at_least(BYTES_MIN));
    let secret = secret.with_context(|| format!("cannot use the pepper {origin}"))?;
    Ok(Pepper::of(secret.expose()))
}

/// Makes the file of a secret, with mode 0600, whole or not at all, unless it is there.
pub(crate) fn make_if_missing(path: &Path) -> io::Result<()> {
    if fs::exists(path)? {
        return Ok(());
    }
    let mut pepper = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *pepper).map_err(|fault| io::Error::other(fault.to_string()))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    saved::folder(dir)?;
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file
        .write_all(&*pepper)
        .and_then(|()| file.sync_all())
        // A link, unlike a rename, never replaces what another process made meanwhile.
        .and_then(|()| fs::hard_link(&temporary, path))
        .and_then(|()| File::open(dir)?.sync_all());
    fs::remove_file(&temporary)?;
    written
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use tempfile::tempdir;

    use super::*;
    use crate::config::settings::HashPolicy;

    fn keys(pepper: &Path, former: &[&Path]) -> Keys {
        let file = |path: &Path| Origin::File(path.to_owned());
        Keys {
            prefix: "edged".into(),
            pepper: file(pepper),
            former_peppers: former.iter().map(|path| file(path)).collect(),
            hash: HashPolicy::Keyed,
            expires: Some(Duration::from_secs(1)),
            grace: Duration::from_secs(1),
            warn_before: Duration::from_secs(1),
            refuse_exposed: false,
            keys_max: 1,
            url_parameters: Vec::new(),
        }
    }

    #[test]
    fn the_pepper_is_made_once_and_guarded() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("sub/pepper");
        let first = make(&keys(&path, &[])).unwrap().current.id();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&keys(&path, &[])).unwrap().current.id(), first);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

        // One that is lost while the daemon runs is missed, not replaced.
        fs::rename(&path, dir.path().join("kept")).unwrap();
        assert!(load(&keys(&path, &[])).is_err() && !path.exists());
        fs::rename(dir.path().join("kept"), &path).unwrap();

        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        let told = format!("{:#}", load(&keys(&path, &[])).unwrap_err());
        assert!(told.contains("chmod o="), "{told}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, vec![1; 31]).unwrap();
        let told = format!("{:#}", load(&keys(&path, &[])).unwrap_err());
        assert!(told.contains("32 bytes"), "{told}");
    }

    #[test]
    fn a_former_pepper_is_never_made() {
        let dir = tempdir().unwrap();
        let (path, former) = (dir.path().join("new"), dir.path().join("old"));
        assert!(make(&keys(&path, &[&former])).is_err() && !former.exists());
        make_if_missing(&former).unwrap();
        let peppers = load(&keys(&path, &[&former])).unwrap();
        assert_ne!(peppers.current.id(), peppers.former[0].id());
    }
}
