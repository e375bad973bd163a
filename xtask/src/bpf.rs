//! Builds the kernel object, the same bytes from any folder, and checks the committed one.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::{
    setup,
    shell::{output, root, run},
    sources::{FLAGS, LOCK, OBJECT, hex, lock_value, sources_sha256},
};

/// Builds the object and commits it to the bundle, with its lock.
pub(crate) fn build() -> anyhow::Result<()> {
    let root = root();
    let toolchain = Toolchain::find()?;
    let object = compile(&root, &toolchain)?;
    let lock = lock_text(&root, &toolchain, &object)?;
    fs::create_dir_all(root.join(OBJECT).parent().context("the bundle has a folder")?)?;
    fs::write(root.join(OBJECT), &object).context(OBJECT)?;
    fs::write(root.join(LOCK), &lock).context(LOCK)?;
    println!("{OBJECT}: {} bytes\n{lock}", object.len());
    Ok(())
}

/// Rebuilds the object and compares it with the committed one, byte for byte. With other tool
/// versions than the lock's, the bytes may differ: then the fresh object must pass the packet tests.
pub(crate) fn check() -> anyhow::Result<()> {
    let root = root();
    let lock = fs::read_to_string(root.join(LOCK)).context(LOCK)?;
    let committed = fs::read(root.join(OBJECT)).context(OBJECT)?;
    ensure!(
        lock_value(&lock, "object_sha256") == Some(&sha256(&committed)),
        "{OBJECT} is not the object that {LOCK} speaks of; run `cargo xtask bpf`"
    );
    ensure!(
        lock_value(&lock, "sources_sha256") == Some(&sources_sha256(&root)?),
        "{OBJECT} is older than its sources; run `cargo xtask bpf`"
    );
    let toolchain = Toolchain::find()?;
    let fresh = compile(&root, &toolchain)?;
    if fresh == committed {
        println!("{OBJECT} is what the sources give: {} bytes", fresh.len());
        return Ok(());
    }
    let here = lock_text(&root, &toolchain, &fresh)?;
    let differing: Vec<_> = TOOLS
        .into_iter()
        .filter(|tool| lock_value(&lock, tool) != lock_value(&here, tool))
        .collect();
    ensure!(!differing.is_empty(), "the same tools give other bytes than {OBJECT}");
    println!("cannot compare bytes: the lock was made with other tools than are installed here");
    for tool in differing {
        let versions = (lock_value(&lock, tool), lock_value(&here, tool));
        println!(
            "  {tool}: lock {}, here {}",
            versions.0.unwrap_or("?"),
            versions.1.unwrap_or("?")
        );
    }
    prove(&root, &fresh, &committed)?;
    println!("the object of the tools here passes the packet tests: {} bytes", fresh.len());
    Ok(())
}

/// Runs the packet tests with this object in the place of the committed one.
fn prove(root: &Path, fresh: &[u8], committed: &[u8]) -> anyhow::Result<()> {
    let object = root.join(OBJECT);
    let tested = fs::write(&object, fresh).context(OBJECT).and_then(|()| {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run(Command::new(cargo).current_dir(root).args([
            "test",
            "--package",
            "edge-tests",
            "--test",
            "packets",
        ]))
    });
    // Whatever came of it.
    fs::write(&object, committed).with_context(|| format!("cannot restore {OBJECT}"))?;
    tested
}

/// Installs what [`build`] needs where it is missing, from Debian's packages and the crates'.
pub(crate) fn install_toolchain() -> anyhow::Result<()> {
    let has_compiler = Path::new("/usr/bin/rustc").exists() && Path::new(DEBIAN_CORE).exists();
    if !has_compiler || !Path::new(LLVM).exists() {
        // The last three are what LLVM's static libraries want at the linker's own link.
        setup::install_packages(&[
            "rustc-web",
            "cargo-web",
            "rust-web-src",
            "llvm-22-dev",
            "libpolly-22-dev",
            "zlib1g-dev",
            "libzstd-dev",
            "libxml2-dev",
        ])?;
    }
    if version("bpf-linker", &["--version"]).is_err() {
        run(Command::new("cargo")
            .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM))?;
    }
    Ok(())
}

/// The compiler that builds for the kernel: it needs the sources of `core`.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
}

impl Toolchain {
    /// Debian's own, else the stable or nightly one of rustup.
    fn find() -> anyhow::Result<Self> {
        let debian = Self {
            cargo: "/usr/bin/cargo".into(),
            rustc: "/usr/bin/rustc".into(),
            sysroot: "/usr".into(),
        };
        if debian.rustc.exists() && Path::new(DEBIAN_CORE).exists() {
            return Ok(debian);
        }
        for name in ["stable", "nightly"] {
            let Ok(rustc) =
                output(Command::new("rustup").args(["which", "--toolchain", name, "rustc"]))
            else {
                continue;
            };
            let rustc = PathBuf::from(rustc);
            let sysroot = PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?);
            if sysroot.join("lib/rustlib/src/rust/library/core").exists() {
                return Ok(Self { cargo: rustc.with_file_name("cargo"), rustc, sysroot });
            }
        }
        bail!(
            "no Rust toolchain here has the sources of `core`: install Debian's rustc-web, \
             cargo-web and rust-web-src, or `rustup component add rust-src`"
        )
    }
}

/// Compiles and links the programs and strips all but the code and its BTF.
fn compile(root: &Path, toolchain: &Toolchain) -> anyhow::Result<Vec<u8>> {
    let target = root.join("target/bpf");
    // The sources must be there before their folders can be named to the compiler.
    run(cargo(root, toolchain, &target).args(["fetch", "--quiet", "--locked"]))?;
    run(cargo(root, toolchain, &target)
        .args(["build", "--quiet", "--release", "--locked", "--target", TARGET])
        .args(["-Z", "build-std=core"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, toolchain)?.join("\x1f")))?;
    let built = target.join(TARGET).join("release/edge");
    let stripped = built.with_extension("stripped");
    let objcopy = [format!("{LLVM}/bin/llvm-objcopy"), "llvm-objcopy".into()]
        .into_iter()
        .find(|tool| version(tool, &["--version"]).is_ok())
        .context("llvm-objcopy is not installed")?;
    run(Command::new(&objcopy).arg("--strip-debug").args([&built, &stripped]))?;
    let read = || fs::read(&stripped).context("the stripped object");
    run(Command::new(objcopy).args(rename_crates(&read()?)).arg(&stripped))?;
    read()
}

/// `llvm-objcopy`'s arguments that take the hash of the crate out of each symbol's name: it comes
/// from the folder that the crate was built in.
fn rename_crates(object: &[u8]) -> Vec<String> {
    let names = object.split(|byte| *byte == 0).filter_map(|name| str::from_utf8(name).ok());
    let mangled: BTreeSet<&str> = names.filter(|name| name.starts_with("_R")).collect();
    let renamed = mangled.into_iter().map(|name| (name, without_hashes(name)));
    let changed = renamed.filter(|(name, plain)| name != plain);
    changed.map(|(name, plain)| format!("--redefine-sym={name}={plain}")).collect()
}

/// A mangled name (RFC 2603) in which no crate has a disambiguator: `Cs3c2D_4edge` is `C4edge`.
fn without_hashes(name: &str) -> String {
    let mut parts = name.split("Cs");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('_') {
            Some((hash, rest))
                if hash.bytes().all(|byte| byte.is_ascii_alphanumeric())
                    && rest.starts_with(|c: char| c.is_ascii_digit()) =>
            {
                plain += "C";
                plain += rest;
            }
            _ => {
                plain += "Cs";
                plain += part;
            }
        }
    }
    plain
}

fn cargo(root: &Path, toolchain: &Toolchain, target: &Path) -> Command {
    let mut cargo = Command::new(&toolchain.cargo);
    cargo
        .current_dir(root.join("edge-ebpf"))
        // What the caller's cargo or rustup say of another toolchain must not reach this one.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO")
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target);
    cargo
}

fn flags(root: &Path, toolchain: &Toolchain) -> anyhow::Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map_or_else(
        || env::home_dir().map(|home| home.join(".cargo")),
        |home| Some(PathBuf::from(home)),
    );
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let home = home.context("no home folder")?;
    let mut flags = FLAGS.map(String::from).to_vec();
    flags.extend([
        remap(root, "edged"),
        remap(&home, "cargo"),
        remap(&toolchain.sysroot.join("lib/rustlib/src/rust"), "rust"),
    ]);
    // Below it lies a folder for each registry, named after its host. The last match counts.
    for registry in fs::read_dir(home.join("registry/src"))? {
        flags.push(remap(&registry?.path(), "crates"));
    }
    Ok(flags)
}

fn lock_text(root: &Path, toolchain: &Toolchain, object: &[u8]) -> anyhow::Result<String> {
    let rustc = version(&toolchain.rustc.to_string_lossy(), &["--version", "--verbose"])?;
    let line = |key: &str| rustc.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("?");
    let linker = version("bpf-linker", &["--version"])?;
    Ok(format!(
        "# Made by `cargo xtask bpf`.\nobject_sha256 = {}\nsources_sha256 = {}\nrustc = {}\n\
         llvm = {}\nbpf-linker = {}\n",
        sha256(object),
        sources_sha256(root)?,
        line("release: "),
        line("LLVM version: "),
        linker.lines().next().unwrap_or("?").trim_start_matches("bpf-linker "),
    ))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn version(tool: &str, arguments: &[&str]) -> anyhow::Result<String> {
    output(Command::new(tool).args(arguments))
}

const TOOLS: [&str; 3] = ["rustc", "llvm", "bpf-linker"];
const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/src/rust/library/core";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_loses_its_hash_and_nothing_else() {
        let name = "_RNCNvNtCs3c2DMtpOEjF_4edge6report3log0B5_";
        assert_eq!(without_hashes(name), "_RNCNvNtC4edge6report3log0B5_");
        assert_eq!(without_hashes("_RNvC4edge3Csx_y"), "_RNvC4edge3Csx_y");
        let object = b"\0_RNvCsAb1_4edge1f\0account\0_RNvCsAb1_4edge1f\0\xff\0";
        assert_eq!(rename_crates(object), ["--redefine-sym=_RNvCsAb1_4edge1f=_RNvC4edge1f"]);
    }
}
