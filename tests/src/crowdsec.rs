//! Debian's `crowdsec`: its local API alone, on loopback, with a folder of its own and without any
//! network beyond.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{client::until, netns::Netns};

/// A local API in a namespace.
pub struct CrowdSec<'n> {
    ns: &'n Netns,
    dir: PathBuf,
    child: Option<Child>,
}

/// Where it listens.
pub const LAPI: &str = "127.0.0.1:8085";
/// The machine that may tell it of bans.
pub const MACHINE: &str = "edge1";

impl<'n> CrowdSec<'n> {
    /// Starts one that knows a bouncer and a machine. Their secrets lie in its folder, as `bouncer`
    /// and `machine`.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start(ns: &'n Netns, dir: &Path) -> Result<Self> {
        let dir = dir.join("crowdsec");
        for folder in ["data", "hub", "notifications", "plugins"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let at = dir.display();
        let config = format!(
            "common: {{daemonize: false, log_media: stdout, log_level: warning}}\n\
             config_paths: {{config_dir: {at}, data_dir: {at}/data, hub_dir: {at}/hub, \
             simulation_path: {at}/simulation.yaml, index_path: {at}/hub/.index.json, \
             notification_dir: {at}/notifications, plugin_dir: {at}/plugins}}\n\
             cscli: {{output: json}}\n\
             db_config: {{type: sqlite, db_path: {at}/data/crowdsec.db, use_wal: true}}\n\
             api:\n  client: {{credentials_path: {at}/credentials.yaml}}\n  \
             server: {{log_level: warning, listen_uri: '{LAPI}', profiles_path: {at}/profiles.yaml}}\n\
             prometheus: {{enabled: false}}\n"
        );
        fs::write(dir.join("config.yaml"), config)?;
        fs::write(dir.join("hub/.index.json"), "{}")?;
        fs::write(dir.join("simulation.yaml"), "simulation: false\n")?;
        fs::write(
            dir.join("profiles.yaml"),
            "name: none\nfilters: ['false']\non_success: break\n",
        )?;
        fs::write(dir.join("credentials.yaml"), "")?;
        let mut this = Self { ns, dir, child: None };
        let (key, password) = ("k".repeat(32), "p".repeat(32));
        let credentials = this.dir.join("credentials.yaml").display().to_string();
        this.cscli(&["machines", "add", MACHINE, "--force", "-f", &credentials, "-p", &password])?;
        this.cscli(&["bouncers", "add", "edged", "-k", &key])?;
        this.secret("bouncer", &key)?;
        this.secret("machine", &password)?;
        this.start_again()?;
        Ok(this)
    }

    /// Writes a secret; its reference.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn secret(&self, name: &str, text: &str) -> Result<String> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(format!("file:{}", path.display()))
    }

    /// The lines of a configuration that make edged its bouncer, and its machine.
    #[must_use]
    pub fn section(&self, lines: &str) -> String {
        let at = self.dir.display();
        format!(
            "[crowdsec]\nurl = \"http://{LAPI}\"\napi_key = \"file:{at}/bouncer\"\n\
             machine = \"{MACHINE}\"\npassword = \"file:{at}/machine\"\n{lines}\n"
        )
    }

    /// Starts it again after it ended.
    ///
    /// # Errors
    /// If it does not answer within half a minute.
    pub fn start_again(&mut self) -> Result<()> {
        let log = fs::File::create(self.dir.join("log"))?;
        let mut command = self.ns.command("crowdsec");
        command.arg("-c").arg(self.dir.join("config.yaml")).arg("-no-cs");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.child = Some(child.context("crowdsec: cargo xtask setup")?);
        until("the local API answers", Duration::from_secs(30), || {
            Ok(self.ns.enter(|| std::net::TcpStream::connect(LAPI)).is_ok())
        })?;
        Ok(())
    }

    /// Ends it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Runs its `cscli`; what it printed.
    ///
    /// # Errors
    /// If it refuses, with its words.
    pub fn cscli(&self, args: &[&str]) -> Result<String> {
        let mut command = self.ns.command("cscli");
        let done = command.arg("-c").arg(self.dir.join("config.yaml")).args(args).output()?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "cscli {args:?}: {words}");
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// The decisions that it has, with those of lists, as `cscli` shows them.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn decisions(&self) -> Result<Vec<Value>> {
        let alerts = self.cscli(&["decisions", "list", "-a", "-o", "json"])?;
        let alerts: Value = serde_json::from_str(&alerts).context(alerts)?;
        let decisions = alerts
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|alert| alert["decisions"].as_array().cloned());
        Ok(decisions.flatten().collect())
    }
}

impl Drop for CrowdSec<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}
