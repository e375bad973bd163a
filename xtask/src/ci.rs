//! `cargo xtask ci`: everything that must hold before a change goes in.

use anyhow::{Context, Result};

use crate::{
    bpf,
    demo::Demo,
    shell::{self, cargo, root},
    test,
};

pub(crate) fn run() -> Result<()> {
    println!("== format");
    shell::run(&mut cargo(["fmt", "--all", "--check"]))?;
    shell::run(cargo(["fmt", "--check"]).current_dir(root().join("edge-ebpf")))?;
    println!("== lints");
    shell::run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    println!("== documentation");
    shell::run(cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("== kernel object");
    bpf::install_toolchain().context("the toolchain for the kernel programs")?;
    bpf::check()?;
    println!("== demo");
    Demo::QUICK.run()?;
    println!("== tests");
    test::all()
}
