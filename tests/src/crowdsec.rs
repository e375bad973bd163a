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
    reads_logs: bool,
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
        Self::launch(ns, dir, "")
    }

    /// As [`Self::start`], with a part of the configuration for what reads logs.
    fn launch(ns: &'n Netns, dir: &Path, agent: &str) -> Result<Self> {
        let dir = dir.join("crowdsec");
        for folder in ["data", "hub", "notifications", "plugins"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let at = dir.display();
        let config = format!(
            "common: {{daemonize: false, log_media: stdout, log_level: info}}\n\
             config_paths: {{config_dir: {at}, data_dir: {at}/data, hub_dir: {at}/hub, \
             simulation_path: {at}/simulation.yaml, index_path: {at}/hub/.index.json, \
             notification_dir: {at}/notifications, plugin_dir: {at}/plugins}}\n\
             cscli: {{output: json}}\n\
             db_config: {{type: sqlite, db_path: {at}/data/crowdsec.db, use_wal: true}}\n\
             api:\n  client: {{credentials_path: {at}/credentials.yaml}}\n  \
             server: {{log_level: warning, listen_uri: '{LAPI}', profiles_path: {at}/profiles.yaml}}\n\
             prometheus: {{enabled: false}}\n{agent}"
        );
        fs::write(dir.join("config.yaml"), config)?;
        let nothing = r#"{"parsers": {}, "scenarios": {}, "collections": {}, "postoverflows": {}}"#;
        fs::write(dir.join("hub/.index.json"), nothing)?;
        fs::write(dir.join("simulation.yaml"), "simulation: false\n")?;
        fs::write(dir.join("profiles.yaml"), if agent.is_empty() { NO_PROFILE } else { PROFILES })?;
        fs::write(dir.join("credentials.yaml"), "")?;
        let mut this = Self { ns, dir, child: None, reads_logs: !agent.is_empty() };
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
        command.arg("-c").arg(self.dir.join("config.yaml"));
        command.args((!self.reads_logs).then_some("-no-cs"));
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

/// A `CrowdSec` that reads a log and decides, and its nftables bouncer, both of Debian, as their
/// packages set them up.
pub struct Agent<'n> {
    crowdsec: CrowdSec<'n>,
    bouncer: Child,
}

impl<'n> Agent<'n> {
    /// Starts both. Whoever has so many 401s in an access log is banned.
    ///
    /// # Errors
    /// If one is not installed or does not start.
    pub fn start(ns: &'n Netns, dir: &Path, log: &Path, failures: u32) -> Result<Self> {
        let own = dir.join("crowdsec");
        let file = |name: &str, text: &str| -> Result<()> {
            let path = own.join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            Ok(fs::write(path, text)?)
        };
        let acquisition = format!("filenames: [{}]\nlabels: {{type: nginx}}\n", log.display());
        file("acquis.yaml", &acquisition)?;
        file("parsers/s00-raw/raw.yaml", RAW)?;
        file("parsers/s01-parse/access.yaml", ACCESS)?;
        let capacity = format!("capacity: {}\n", failures.saturating_sub(1));
        file("scenarios/refused.yaml", &(REFUSED.to_owned() + &capacity))?;
        std::os::unix::fs::symlink("/etc/crowdsec/patterns", own.join("patterns"))?;
        let part =
            format!("crowdsec_service: {{acquisition_path: {}/acquis.yaml}}\n", own.display());
        let crowdsec = CrowdSec::launch(ns, dir, &part)?;
        let said = |name: &str, what: &str| {
            let text = fs::read_to_string(own.join(name)).unwrap_or_default();
            Ok(text.contains(what))
        };
        until("it reads the log", Duration::from_secs(30), || said("log", "Starting processing"))?;
        let at = own.display();
        let lines =
            format!("pid_dir: {at}\napi_url: http://{LAPI}/\napi_key: {}\n", "k".repeat(32));
        file("bouncer.yaml", &(BOUNCER.to_owned() + &lines))?;
        let printed = fs::File::create(own.join("bouncer.log"))?;
        let mut command = ns.command("crowdsec-firewall-bouncer");
        command.arg("-c").arg(own.join("bouncer.yaml")).stdin(Stdio::null());
        command.stdout(printed.try_clone()?).stderr(printed);
        let bouncer = command.spawn().context("the bouncer: cargo xtask setup --peers")?;
        let this = Self { crowdsec, bouncer };
        let asks = || said("bouncer.log", "Processing new");
        until("the bouncer asks", Duration::from_secs(30), asks)?;
        Ok(this)
    }

    /// What both logged.
    #[must_use]
    pub fn log(&self) -> String {
        let text = |name| fs::read_to_string(self.crowdsec.dir.join(name)).unwrap_or_default();
        text("log") + &text("bouncer.log")
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.bouncer.kill();
        let _ = self.bouncer.wait();
    }
}

/// It decides nothing by itself.
const NO_PROFILE: &str = "name: none\nfilters: ['false']\non_success: break\n";

/// What it decides by itself: a ban of whoever a scenario asks one for.
const PROFILES: &str = "name: ban\nfilters: [\"Alert.Remediation == true && Alert.GetScope() == 'Ip'\"]\n\
     decisions: [{type: ban, duration: 1h}]\non_success: break\n";

const RAW: &str = "name: test/raw\nfilter: \"evt.Line.Labels.type == 'nginx'\"\nonsuccess: next_stage\n\
     statics:\n  - {parsed: message, expression: evt.Line.Raw}\n  \
     - {parsed: program, expression: evt.Line.Labels.type}\n";

const ACCESS: &str = "name: test/access\nfilter: \"evt.Parsed.program == 'nginx'\"\nonsuccess: next_stage\n\
     grok:\n  pattern: '^%{IP:client} .* \\[%{HTTPDATE:time}\\] \".*\" %{NUMBER:status} '\n  apply_on: message\n\
     statics:\n  - {meta: source_ip, expression: evt.Parsed.client}\n  \
     - {meta: http_status, expression: evt.Parsed.status}\n  \
     - {target: evt.StrTime, expression: evt.Parsed.time}\n";

const REFUSED: &str = "type: leaky\nname: test/refused\ndescription: too many refusals\n\
     filter: \"evt.Meta.http_status == '401'\"\ngroupby: evt.Meta.source_ip\nleakspeed: 60s\n\
     blackhole: 1m\nlabels: {remediation: true}\n";

/// As the package has it, but for where it is.
const BOUNCER: &str = "mode: nftables\nupdate_frequency: 10s\ndaemonize: false\nlog_mode: stdout\n\
     log_level: info\ndisable_ipv6: true\ndeny_action: DROP\ndeny_log: false\n\
     supported_decisions_types: [ban]\nblacklists_ipv4: crowdsec-blacklists\n\
     blacklists_ipv6: crowdsec6-blacklists\nnftables:\n  \
     ipv4: {enabled: true, set-only: false, table: crowdsec, chain: crowdsec-chain}\n  \
     ipv6: {enabled: false}\nprometheus: {enabled: false}\n";
