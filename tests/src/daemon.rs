//! The real daemon in the lab: configured, started, asked, killed and started again.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use toml_edit::{DocumentMut, Item};

use crate::{
    client::{BUSY, Request, until},
    lab::{self, Lab},
    metrics::Metrics,
    netns::Netns,
};

/// A configuration in the making: the shipped one, with the lab's values and the test's.
pub struct Setup<'a> {
    lab: &'a Lab,
    config: DocumentMut,
    changes: Vec<(String, String)>,
}

/// A running daemon. Dropping it kills it and takes its filter off the interface.
pub struct Edged<'a> {
    lab: &'a Lab,
    /// The file it was started with.
    pub config: PathBuf,
    /// The certificate of the authority that signed the daemon's.
    pub ca: PathBuf,
    child: Child,
}

impl Lab {
    /// A daemon for this lab, to be configured further and started.
    ///
    /// # Errors
    /// As [`Setup::new`].
    pub fn edged(&self) -> Result<Setup<'_>> {
        Setup::new(self)
    }
}

impl<'a> Setup<'a> {
    /// The shipped configuration, with what the lab must change. One client asks at the lab's pace here, which
    /// is the machine's: what limits a client by default is off unless the test is about it.
    ///
    /// # Errors
    /// If the shipped file is not TOML or lacks a key that the lab changes.
    pub fn new(lab: &'a Lab) -> Result<Self> {
        let shipped = root().join("config/edged.toml");
        let config = fs::read_to_string(&shipped).context("config/edged.toml")?.parse()?;
        let at = |name: &str| format!("{:?}", lab.dir().join(name));
        let secret =
            |name: &str| format!("{:?}", format!("file:{}", lab.dir().join(name).display()));
        Self { lab, config, changes: Vec::new() }
            .set("kernel.interfaces", r#"["edge0"]"#)
            .set("kernel.attach", r#""native""#)
            .set("kernel.pin_dir", &format!("{:?}", lab.pin_dir()))
            .set("lists.allow", &format!(r#"["{}"]"#, lab::FRIEND))
            .set("lists.deny", &format!(r#"["{}", "{}"]"#, lab::DENIED, lab::DENIED6))
            .set("server.https", &format!(r#"["{}:443", "[{}]:443"]"#, lab::EDGE, lab::EDGE6))
            .set("server.http", &format!(r#"["{}:80"]"#, lab::EDGE))
            .set("tls.certificate", &at("cert.pem"))
            .set("tls.key", &at("key.pem"))
            .set("audit.dir", &at("audit"))
            .set("audit.key", &secret("audit.key"))
            .set("keys.pepper", &secret("pepper"))
            .set("signing.master", &secret("signing"))
            .set("signing.nonce_file", &at("nonces"))
            .set("upstream.0.servers", &format!(r#"["{}:8080"]"#, lab::ORIGIN))
            .set("state.dir", &at("state"))
            .set("control.socket", &at("control.sock"))
            .set("log.events", &at("events.jsonl"))
            .set("limits.per_source", "\"off\"")
            .set("limits.handshakes", "\"off\"")
            .checked()
    }

    /// Sets a key, by its path, to a TOML value. A number in the path chooses a table of an array.
    #[must_use]
    pub fn set(mut self, path: &str, value: &str) -> Self {
        self.changes.push((path.to_owned(), value.to_owned()));
        self
    }

    /// Leaves the limits as they are shipped.
    #[must_use]
    pub fn with_shipped_limits(mut self) -> Self {
        self.changes.retain(|(path, _)| !path.starts_with("limits."));
        self
    }

    /// Takes a key of a section away.
    #[must_use]
    pub fn without(mut self, section: &str, key: &str) -> Self {
        self.changes.retain(|(path, _)| *path != format!("{section}.{key}"));
        if let Some(table) = self.config.get_mut(section).and_then(Item::as_table_like_mut) {
            table.remove(key);
        }
        self
    }

    /// Appends tables: another route, another upstream.
    ///
    /// # Errors
    /// If the result is not TOML.
    pub fn append(mut self, toml: &str) -> Result<Self> {
        self = self.checked()?;
        self.config = format!("{}\n{toml}\n", self.config).parse()?;
        Ok(self)
    }

    /// What the lab and the test changed, a line each.
    #[must_use]
    pub fn changes(&self) -> Vec<String> {
        self.changes.iter().map(|(path, value)| format!("{path} = {value}")).collect()
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// If it is not ready within 10 minutes; with what it printed.
    pub fn start(self) -> Result<Edged<'a>> {
        let config = self.write()?;
        let ca = certify(self.lab.dir())?;
        let child = launch(self.lab, &config)?;
        Ok(Edged { lab: self.lab, config, ca, child })
    }

    /// As [`Self::start`], where a folder is empty to the daemon: as on a kernel that tells nothing there.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_without(self, folder: &str) -> Result<Edged<'a>> {
        let config = self.write()?;
        let ca = certify(self.lab.dir())?;
        let mut command = without(self.lab, "run", &config, folder)?;
        let log =
            File::options().create(true).append(true).open(self.lab.dir().join("edged.log"))?;
        command
            .env("NOTIFY_SOCKET", self.lab.dir().join("notify.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = ready(self.lab, command)?;
        Ok(Edged { lab: self.lab, config, ca, child })
    }

    /// Writes the configuration without starting anything.
    ///
    /// # Errors
    /// If a path leads nowhere or the disk is full.
    pub fn write(&self) -> Result<PathBuf> {
        let path = self.lab.dir().join("edged.toml");
        let mut config = self.config.clone();
        apply(&mut config, &self.changes)?;
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    fn checked(self) -> Result<Self> {
        apply(&mut self.config.clone(), &self.changes)?;
        Ok(self)
    }
}

impl Edged<'_> {
    /// A GET of a path, from a source address of the lab.
    #[must_use]
    pub fn get(&self, source: &str, path: &str) -> Request<'_> {
        Request::new(self.lab, &self.ca, source, path)
    }

    /// Where it runs.
    #[must_use]
    pub const fn lab(&self) -> &Lab {
        self.lab
    }

    /// Takes another process for the daemon; the former.
    pub fn replace_child(&mut self, child: Child) -> Child {
        std::mem::replace(&mut self.child, child)
    }

    /// The process id of the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs edgectl against this daemon.
    ///
    /// # Errors
    /// If it cannot start.
    pub fn ctl(&self, line: &str) -> Result<Output> {
        let socket = self.lab.dir().join("control.sock");
        let mut ctl = self.lab.edge.command(binary("edgectl")?);
        Ok(ctl.arg("--socket").arg(socket).args(line.split(' ')).output()?)
    }

    /// What `edged check` says of its configuration, which it finds no mistake in.
    ///
    /// # Errors
    /// If it does, with its words.
    pub fn check(&self) -> Result<String> {
        let mut check = self.lab.edge.command(binary("edged")?);
        let done = check.args(["check", "--config"]).arg(&self.config).output()?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "edged check: {} {words}", done.status);
        Ok(words)
    }

    /// As [`Self::check`], where a folder is empty to it.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_without(&self, folder: &str) -> Result<String> {
        let done = without(self.lab, "check", &self.config, folder)?.output()?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "edged check: {} {words}", done.status);
        Ok(words)
    }

    /// Runs edgectl and demands that it succeeds; what it printed.
    ///
    /// # Errors
    /// If it refuses, with its words.
    pub fn tell(&self, line: &str) -> Result<String> {
        let done = self.ctl(line)?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "edgectl {line}: {} {words}", done.status);
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// What a read verb says with `--json`.
    ///
    /// # Errors
    /// If it refuses or what it prints is not JSON.
    pub fn ask(&self, line: &str) -> Result<Value> {
        let text = self.tell(&format!("{line} --json"))?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Makes an API key; its text.
    ///
    /// # Errors
    /// If edgectl refuses or prints no key.
    pub fn key(&self, name: &str) -> Result<String> {
        let text = self.tell(&format!("key create --name {name}"))?;
        find_key(&text).with_context(|| format!("no key in: {text}"))
    }

    /// The bans, as `ban list --json` shows them.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn bans(&self) -> Result<Vec<Value>> {
        let list = self.ask("ban list")?;
        let bans = list["entries"].as_array();
        bans.cloned().with_context(|| format!("not a list: {list}"))
    }

    /// Whether a source is banned now.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn banned(&self, source: &str) -> Result<bool> {
        Ok(self.bans()?.iter().any(|ban| ban.to_string().contains(source)))
    }

    /// The metrics endpoint's page.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn scrape(&self) -> Result<String> {
        let mut stream = self.lab.edge.enter(|| TcpStream::connect("127.0.0.1:9464"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5) * BUSY))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            return Ok(unchunk(body));
        }
        Ok(body.to_owned())
    }

    /// The metrics, read and checked.
    ///
    /// A request is counted when its answer is out: who has the answer waits for that.
    ///
    /// # Errors
    /// If nobody answers or the page is not what Prometheus takes.
    pub fn metrics(&self) -> Result<Metrics> {
        for _ in 0..20 {
            let metrics = Metrics::parse(&self.scrape()?)?;
            if metrics.value("edged_requests_in_flight") == 0.0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Metrics::parse(&self.scrape()?)
    }

    /// The security events so far.
    ///
    /// # Errors
    /// If a line is not JSON.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.lab.dir().join("events.jsonl")).unwrap_or_default();
        // The daemon may be in the middle of its last line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|l| serde_json::from_str(l).with_context(|| l.to_owned())).collect()
    }

    /// Waits for an event of this kind about this source; the first of them.
    ///
    /// # Errors
    /// If none comes in time.
    pub fn event(&self, kind: &str, source: &str) -> Result<Value> {
        let mut found = None;
        until(&format!("event {kind} of {source}"), Duration::from_secs(5), || {
            found = self.events()?.into_iter().find(|e| {
                e["event"] == kind && e["source"].as_str().is_some_and(|s| s.contains(source))
            });
            Ok(found.is_some())
        })?;
        found.context("found above")
    }

    /// What the daemon printed.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.lab.dir().join("edged.log")).unwrap_or_default()
    }

    /// Changes the configuration file; `reload` makes the daemon read it.
    ///
    /// # Errors
    /// If the path leads nowhere.
    pub fn edit(&self, path: &str, value: &str) -> Result<()> {
        let mut config: DocumentMut = fs::read_to_string(&self.config)?.parse()?;
        apply(&mut config, &[(path.to_owned(), value.to_owned())])?;
        Ok(fs::write(&self.config, config.to_string())?)
    }

    /// Kills the daemon as a crash would.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the daemon to end and waits for it.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let mut status = None;
        until("the daemon ends", Duration::from_secs(15), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("ended above")
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// Starts the daemon again with the same configuration, after it ended.
    ///
    /// # Errors
    /// As [`Setup::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.child = launch(self.lab, &self.config)?;
        Ok(())
    }
}

impl Drop for Edged<'_> {
    fn drop(&mut self) {
        if self.lab.kept {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- edged printed:\n{}", self.log());
        }
        detach(&self.lab.edge, &self.config);
        let _ = fs::remove_dir_all(self.lab.pin_dir());
    }
}

/// Takes the filter of a configuration off its interfaces.
pub fn detach(edge: &Netns, config: &Path) {
    let Ok(edged) = binary("edged") else { return };
    let done = edge.command(edged).arg("detach").arg("--config").arg(config).output();
    match done {
        Ok(done) if done.status.success() => {}
        Ok(done) => eprintln!("edged detach: {}", String::from_utf8_lossy(&done.stderr)),
        Err(e) => eprintln!("edged detach: {e}"),
    }
}

/// A built binary: in `EDGED_BIN_DIR`, or else beside the running test.
///
/// # Errors
/// If it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe()?
        .ancestors()
        .find(|p| p.ends_with("debug") || p.ends_with("release"))
        .map(Path::to_owned);
    let dir = std::env::var_os("EDGED_BIN_DIR").map(PathBuf::from).or(beside);
    let path = dir.context("no EDGED_BIN_DIR")?.join(name);
    ensure!(path.exists(), "{} is not built: run `cargo xtask test`", path.display());
    Ok(path)
}

/// The top of the working tree.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the tree").to_owned()
}

/// The first API key in a text.
#[must_use]
pub fn find_key(text: &str) -> Option<String> {
    let is_key = |w: &&str| w.starts_with("edged_") && w.len() == "edged_".len() + 43 + 1 + 6;
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.into_iter().find(is_key).map(str::to_owned)
}

/// Starts the daemon and waits for its word.
fn launch(lab: &Lab, config: &Path) -> Result<Child> {
    ready(lab, command(lab, config)?)
}

/// `edged VERB` in the lab, in a mount namespace of its own in which a folder is empty.
fn without(lab: &Lab, verb: &str, config: &Path, folder: &str) -> Result<Command> {
    let mut command = lab.edge.command("unshare");
    let hide = "mount -t tmpfs none \"$0\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", hide, folder]);
    command.arg(binary("edged")?).args([verb, "--config"]).arg(config);
    Ok(command)
}

/// Starts a daemon and waits for its word.
fn ready(lab: &Lab, mut command: Command) -> Result<Child> {
    let notify = lab.dir().join("notify.sock");
    let _ = fs::remove_file(&notify);
    let socket = UnixDatagram::bind(&notify)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut child = command.spawn().context("start edged")?;
    let said = await_ready(&socket, &mut child);
    if said.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    said.with_context(|| fs::read_to_string(lab.dir().join("edged.log")).unwrap_or_default())?;
    Ok(child)
}

/// `edged run` in the lab, which tells the lab's socket when it is ready.
pub(crate) fn command(lab: &Lab, config: &Path) -> Result<Command> {
    let log = File::options().create(true).append(true).open(lab.dir().join("edged.log"))?;
    let edged = binary("edged")?;
    let mut command = if lab.kept { lab.edge.lasting(edged) } else { lab.edge.command(edged) };
    command
        .arg("run")
        .arg("--config")
        .arg(config)
        .env("NOTIFY_SOCKET", lab.dir().join("notify.sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// Waits for `READY=1`, as a service manager would.
pub(crate) fn await_ready(socket: &UnixDatagram, child: &mut Child) -> Result<()> {
    // A healthy start takes a second; one with as many networks or bans as there is room for, on a host that
    // is busy with other things, as many times as long.
    let deadline = Instant::now() + Duration::from_secs(60) * BUSY;
    let mut buffer = [0; 512];
    while Instant::now() < deadline {
        if let Ok(length) = socket.recv(&mut buffer)
            && String::from_utf8_lossy(&buffer[..length]).lines().any(|l| l == "READY=1")
        {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("edged ended before it was ready: {status}");
        }
    }
    bail!("edged was not ready within {BUSY} minutes")
}

/// Writes a certificate authority, and a certificate that it signed for the edge; where the
/// authority's is.
///
/// # Errors
/// If the directory cannot be written.
pub fn certify(dir: &Path) -> Result<PathBuf> {
    let ca_path = dir.join("ca.pem");
    if ca_path.exists() {
        return Ok(ca_path);
    }
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "edged lab");
    let ca_key = rcgen::KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?;
    let issuer = rcgen::Issuer::from_params(&params, &ca_key);
    let names = [crate::client::HOST, lab::EDGE, lab::EDGE6, "127.0.0.1"].map(str::to_owned);
    let key = rcgen::KeyPair::generate()?;
    let leaf = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    fs::write(&ca_path, ca.pem())?;
    fs::write(dir.join("cert.pem"), leaf.pem())?;
    fs::write(dir.join("key.pem"), key.serialize_pem())?;
    // A daemon that refuses keys which others can read is right to.
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(dir.join("key.pem"), private)?;
    Ok(ca_path)
}

/// Puts values at their paths.
fn apply(config: &mut DocumentMut, changes: &[(String, String)]) -> Result<()> {
    for (path, text) in changes {
        let value: toml_edit::Value = text.parse().with_context(|| format!("{path} = {text}"))?;
        let value = value.decorated(" ", "");
        let mut place: &mut Item = config.as_item_mut();
        for step in path.split('.') {
            place = match step.parse::<usize>() {
                Ok(index) => place.get_mut(index).with_context(|| path.clone())?,
                Err(_) => &mut place[step],
            };
        }
        *place = Item::Value(value);
    }
    Ok(())
}

/// Joins the chunks of a body.
fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// Removes a lab that was kept: its processes by their ids, its filter, its namespaces.
///
/// # Errors
/// If a process that should end does not.
pub fn clean(id: &str) -> Result<()> {
    let dir = lab::directory(id);
    let pids = fs::read_to_string(dir.join("pids")).unwrap_or_default();
    for pid in pids.lines().filter_map(|l| l.parse::<i32>().ok()) {
        let runs = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // The number may belong to somebody else by now; ours name this directory.
        if runs.contains(&*dir.to_string_lossy()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
            until("a process of the lab ends", Duration::from_secs(15), || {
                Ok(!Path::new(&format!("/proc/{pid}")).exists())
            })?;
        }
    }
    if let Ok(edge) = Netns::open(&format!("{id}-edge")) {
        detach(&edge, &dir.join("edged.toml"));
    }
    lab::remove(id);
    Ok(())
}

/// Starts this very program again in a namespace, to outlive it; its process id.
///
/// # Errors
/// If it cannot start.
pub fn outlive(ns: &Netns, args: &[&str]) -> Result<u32> {
    let mut again: Command = ns.lasting(std::env::current_exe()?);
    Ok(again.args(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_takes_the_labs_values() -> Result<()> {
        let lab = Lab::new()?;
        let setup =
            Setup::new(&lab)?.set("verdicts.factor", "7").append("[[route]]\npath = \"/x\"")?;
        let text = fs::read_to_string(setup.write()?)?;
        assert!(text.contains("factor = 7") && text.contains("path = \"/x\""));
        assert!(text.contains(&lab.pin_dir()) && text.contains("[\"192.0.2.2:8080\"]"));
        Ok(())
    }

    #[test]
    fn a_key_is_found_in_what_edgectl_prints() {
        let key = format!("edged_{}_{}", "a".repeat(43), "b".repeat(6));
        assert_eq!(find_key(&format!("key: {key}\n")), Some(key.clone()));
        assert_eq!(find_key(&format!("{{\"key\":\"{key}\"}}")), Some(key));
        assert_eq!(find_key("edged_short"), None);
    }
}
