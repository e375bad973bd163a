//! Debian's `fail2ban`: one jail, with a folder of its own, in a namespace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{client::until, netns::Netns};

/// A running server; its jail is called `test`.
pub struct Fail2ban<'n> {
    ns: &'n Netns,
    dir: PathBuf,
    child: Child,
}

/// What the jail looks for, and what it does.
pub struct Jail<'a> {
    /// The log.
    pub log: &'a Path,
    /// What a failure looks like in it.
    pub failure: &'a str,
    /// After how many it bans.
    pub failures: u32,
    /// The file of its action.
    pub action: &'a Path,
    /// How the action is called, with its options.
    pub call: &'a str,
}

impl<'n> Fail2ban<'n> {
    /// Starts it and waits until the jail is open.
    ///
    /// # Errors
    /// If it is not installed or does not start, with what it printed.
    pub fn start(ns: &'n Netns, dir: &Path, jail: &Jail<'_>) -> Result<Self> {
        let dir = dir.join("fail2ban");
        for folder in ["action.d", "filter.d"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let at = dir.display();
        let own = format!(
            "[Definition]\nloglevel = INFO\nlogtarget = {at}/log\nsyslogsocket = auto\n\
             socket = {at}/sock\npidfile = {at}/pid\ndbfile = None\nallowipv6 = auto\n"
        );
        fs::write(dir.join("fail2ban.conf"), own)?;
        let filter = format!("[Definition]\nfailregex = {}\n", jail.failure);
        fs::write(dir.join("filter.d/test.conf"), filter)?;
        let name = jail.action.file_name().context("a file")?;
        fs::copy(jail.action, dir.join("action.d").join(name))?;
        let Jail { log, failures, call, .. } = jail;
        let lines = format!(
            "[test]\nenabled = true\nbackend = auto\nfilter = test\nlogpath = {}\n\
             maxretry = {failures}\nfindtime = 60\nbantime = 600\naction = {call}\n",
            log.display()
        );
        fs::write(dir.join("jail.conf"), lines)?;
        let printed = fs::File::create(dir.join("printed"))?;
        let mut command = ns.command("fail2ban-server");
        command.arg("-c").arg(&dir).args(["-f", "start"]).stdin(Stdio::null());
        command.stdout(printed.try_clone()?).stderr(printed);
        let child = command.spawn().context("fail2ban: cargo xtask setup")?;
        let this = Self { ns, dir, child };
        let is_open = || Ok(this.log().contains("Jail 'test' started"));
        until("the jail is open", Duration::from_secs(30), is_open).with_context(|| this.log())?;
        Ok(this)
    }

    /// What it logged and printed.
    #[must_use]
    pub fn log(&self) -> String {
        let text = |name| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        text("log") + &text("printed")
    }

    /// Sets something of the jail: `unbanip ADDRESS`, `bantime SECONDS`.
    ///
    /// # Errors
    /// If its client cannot start.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let mut client = self.ns.command("fail2ban-client");
        client.arg("-c").arg(&self.dir).args(["set", "test", key, value]).output()?;
        Ok(())
    }
}

impl Drop for Fail2ban<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
