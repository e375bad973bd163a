//! The sources of the kernel object and their hash, for `cargo xtask bpf` and for the daemon's
//! build script, which warns when the committed object is older than they are.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// What the object is made from, below the root of the repository.
pub(crate) const SOURCES: [&str; 5] = [
    "edge-common/Cargo.toml",
    "edge-common/src",
    "edge-ebpf/Cargo.lock",
    "edge-ebpf/Cargo.toml",
    "edge-ebpf/src",
];

/// How the object is compiled, beside what its manifest says.
pub(crate) const FLAGS: [&str; 4] = [
    "-Cdebuginfo=2",
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    // 64-bit compare-and-swap.
    "-Ctarget-cpu=v3",
];

/// The committed object, below the root of the repository.
pub(crate) const OBJECT: &str = "edge-ebpf/bundle/edge.bpf.o";

/// What the object was made from and with, below the root of the repository.
pub(crate) const LOCK: &str = "edge-ebpf/bundle/edge.lock";

/// One hash over the names and contents of all sources and the flags.
///
/// # Errors
/// If a source cannot be read.
pub(crate) fn sources_sha256(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    hash.update(FLAGS.join("\n"));
    for file in files {
        let bytes = fs::read(&file)?;
        let name = file.strip_prefix(root).unwrap_or(&file);
        hash.update(format!("{} {}\n", name.display(), bytes.len()));
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()))
}

/// The value of a key in the text of the lock.
pub(crate) fn lock_value<'a>(lock: &'a str, key: &str) -> Option<&'a str> {
    lock.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}
