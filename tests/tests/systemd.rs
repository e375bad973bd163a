//! The units, as systemd itself reads them, and what the daemon tells the service manager.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use edge_tests::{
    Lab, Origin,
    client::{Request, until},
    daemon::{binary, certify, detach, root},
    lab::{ATTACKER, CLIENT},
    succession::{Manager, service},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The units as they are installed, with the binaries where they were built, and the template that
/// docs/install.md makes of the service.
fn units(lab: &Lab) -> Result<Vec<PathBuf>> {
    let at = |name: &str| Ok::<_, anyhow::Error>(binary(name)?.display().to_string());
    let (edged, edgectl) = (at("edged")?, at("edgectl")?);
    let service = fs::read_to_string(root().join("config/edged.service"))?
        .replace("/usr/local/bin/edged ", &format!("{edged} "))
        .replace("/usr/local/bin/edgectl ", &format!("{edgectl} "));
    let template = service.replace("edged run", "edged run --takeover");
    ensure!(!service.contains("/usr/local") && template != service, "{service}");
    let socket = fs::read_to_string(root().join("config/edged.socket"))?;
    let units =
        [("edged.service", service), ("edged@.service", template), ("edged.socket", socket)];
    let write = |(name, text): (&str, String)| {
        let path = lab.dir().join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    units.into_iter().map(write).collect()
}

/// What `systemd-analyze` says, and whether it is content.
fn analyze(arguments: &[&str], units: &[PathBuf]) -> Result<(bool, String)> {
    let mut command = Command::new("systemd-analyze");
    let done = command.args(arguments).args(units).env("SYSTEMD_COLORS", "0").output()?;
    let said = [done.stdout, done.stderr].concat();
    Ok((done.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn systemd_finds_no_fault_with_the_units() -> Result<()> {
    let lab = Lab::new()?;
    let units = units(&lab)?;
    assert_eq!(analyze(&["verify"], &units)?, (true, String::new()));
    // It would say so.
    fs::write(&units[0], fs::read_to_string(&units[0])?.replace("WatchdogSec=", "WatchdogSecs="))?;
    let (_, said) = analyze(&["verify"], &units)?;
    assert!(said.contains("WatchdogSecs"), "{said}");
    Ok(())
}

#[test]
fn the_service_is_exposed_to_no_more_than_it_needs() -> Result<()> {
    let lab = Lab::new()?;
    let units = units(&lab)?;
    // Of 100. What is left is the network, three capabilities for it and for BPF, root, and of the calls about
    // resources the one by which a thread asks for short slices: 2 of the 26.
    let strict = ["security", "--offline=true", "--threshold=26"];
    let (is_content, said) = analyze(&strict, &units[..1])?;
    assert!(is_content, "{said}");
    fs::write(&units[0], fs::read_to_string(&units[0])?.replace("ProtectHome=yes", ""))?;
    assert!(!analyze(&strict, &units[..1])?.0, "it would say so");
    Ok(())
}

/// The values of a key of the service, in order.
fn values(key: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join("config/edged.service"))?;
    let begin = format!("{key}=");
    Ok(text.lines().filter_map(|line| line.strip_prefix(&begin)).map(str::to_owned).collect())
}

#[test]
fn the_manager_never_gives_the_service_up() -> Result<()> {
    assert_eq!(values("StartLimitIntervalSec")?, ["0"]);
    assert_eq!(values("Restart")?, ["on-failure"]);
    Ok(())
}

/// The system calls that the service may make.
fn allowed() -> Result<BTreeSet<String>> {
    let (_, all) = analyze(&["syscall-filter"], &[])?;
    let mut sets = BTreeMap::<&str, Vec<&str>>::new();
    let mut current = "";
    for line in all.lines().filter(|line| !line.trim_start().starts_with('#')) {
        match line.strip_prefix("    ") {
            Some(call) => sets.entry(current).or_default().push(call.trim()),
            None => current = line.trim(),
        }
    }
    let resolve = |word: &str| {
        let (mut calls, mut ahead) = (BTreeSet::new(), vec![word.to_owned()]);
        while let Some(word) = ahead.pop() {
            match sets.get(word.as_str()) {
                Some(more) => ahead.extend(more.iter().map(|word| (*word).to_owned())),
                None => drop(calls.insert(word)),
            }
        }
        calls
    };
    let mut allowed = BTreeSet::new();
    for line in values("SystemCallFilter")? {
        let (is_denied, words) =
            line.strip_prefix('~').map_or((false, line.as_str()), |words| (true, words));
        let calls = words.split(' ').flat_map(resolve);
        if is_denied {
            allowed = allowed.difference(&calls.collect()).cloned().collect();
        } else {
            allowed.extend(calls);
        }
    }
    ensure!(allowed.len() > 100 && !allowed.contains("setrlimit"), "{allowed:?}");
    Ok(allowed)
}

#[test]
fn the_daemon_asks_for_no_more_than_the_unit_leaves_it() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let config = lab.edged()?.write()?;
    let ca = certify(lab.dir())?;
    let manager = Manager::new(&lab)?;
    let capabilities = values("CapabilityBoundingSet")?.join(" ");
    let capabilities = capabilities.to_lowercase().replace("cap_", "+").replace(' ', ",");
    let calls = lab.dir().join("calls");
    let mut traced = lab.edge.command("setpriv");
    traced.args(["--no-new-privs", "--bounding-set", &format!("-all,{capabilities}")]);
    traced.args(["strace", "--follow-forks", "--summary-only", "--output"]).arg(&calls);
    traced.arg(binary("edged")?).args(["run", "--config"]).arg(&config);
    traced.env("NOTIFY_SOCKET", lab.dir().join("notify.sock"));
    let mut traced = traced.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut daemon = 0;
    until("it is ready", Duration::from_secs(60), || {
        let heard = manager.hear()?;
        let ready = heard.filter(|(_, text)| text == "READY=1");
        daemon = ready.map_or(0, |(pid, _)| pid);
        Ok(daemon > 0)
    })?;
    let get = || Request::new(&lab, &ca, CLIENT, "/health").send();
    for version in ["--http1.1", "--http2"] {
        ensure!(Request::new(&lab, &ca, CLIENT, "/health").flag(version).send()?.status == 200);
    }
    let socket = lab.dir().join("control.sock");
    for words in [&["key", "create", "--name", "k"][..], &["deny", "add", ATTACKER], &["reload"]] {
        let mut ctl = lab.edge.command(binary("edgectl")?);
        let done = ctl.arg("--socket").arg(&socket).args(words).output()?;
        ensure!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    ensure!(get()?.status == 200);
    kill(Pid::from_raw(i32::try_from(daemon)?), Signal::SIGTERM)?;
    traced.wait()?;
    detach(&lab.edge, &config);
    let (allowed, table) = (allowed()?, fs::read_to_string(&calls)?);
    let made: Vec<_> = table
        .lines()
        .filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()))
        .filter_map(|line| line.split_whitespace().next_back())
        .filter(|name| *name != "total")
        .collect();
    ensure!(made.contains(&"bpf") && made.len() > 30, "{table}");
    let refused: Vec<_> = made.iter().filter(|call| !allowed.contains(**call)).collect();
    ensure!(refused.is_empty(), "{refused:?} would be refused");
    Ok(())
}

/// What the manager of a unit with `NotifyAccess=main` makes of what it is told.
struct Unit {
    main: u32,
    /// When the watchdog was told last.
    told: Instant,
    /// The longest that it was not.
    longest: Duration,
    count: u32,
}

impl Unit {
    /// Listens for so long, or until somebody else is the main process.
    fn listen(&mut self, manager: &Manager, time: Duration) -> Result<()> {
        let (end, before) = (Instant::now() + time, self.main);
        while Instant::now() < end && self.main == before {
            let Some((pid, text)) = manager.hear()? else { continue };
            if pid != self.main {
                continue;
            }
            for line in text.lines() {
                match line.split_once('=') {
                    Some(("WATCHDOG", "1")) => {
                        self.longest = self.longest.max(self.told.elapsed());
                        (self.told, self.count) = (Instant::now(), self.count + 1);
                    }
                    Some(("MAINPID", pid)) => self.main = pid.parse()?,
                    Some(("STOPPING", _)) => anyhow::bail!("the main process says that it stops"),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[test]
fn the_watchdog_is_told_by_whoever_is_in_office() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab.edged()?.write()?;
    certify(lab.dir())?;
    let manager = Manager::new(&lab)?;
    let told_to_own = |daemon: &mut Command, pid: &str| {
        daemon.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()).env("OF", pid);
    };
    let mut daemon = service(&lab, &config, "run", |command| told_to_own(command, "$$"))?;
    manager.await_ready(daemon.id())?;
    let mut unit =
        Unit { main: daemon.id(), told: Instant::now(), longest: Duration::ZERO, count: 0 };
    unit.listen(&manager, 2 * WATCHDOG)?;
    let first = daemon.id().to_string();
    // A command of the unit is told nothing of its manager; whoever inherits its main process's environment is told of
    // that one's watchdog.
    let bare = |command: &mut Command| {
        command.env_remove("NOTIFY_SOCKET");
    };
    let heir = |command: &mut Command| told_to_own(command, &first);
    let starts: [&dyn Fn(&mut Command); 2] = [&bare, &heir];
    for start in starts {
        let successor = service(&lab, &config, "run --takeover", start)?;
        unit.listen(&manager, Duration::from_secs(30))?;
        assert_eq!(unit.main, successor.id(), "the unit goes on by the successor");
        let mut former = std::mem::replace(&mut daemon, successor);
        let count = unit.count;
        let heard = unit.listen(&manager, 2 * WATCHDOG);
        ended(&mut former)?;
        heard?;
        assert!(unit.count >= count + 4, "told {} times by the successor", unit.count - count);
    }
    // Later than this, a manager has killed it; how often it was told says that it does not wait so long.
    assert!(unit.longest < WATCHDOG, "{:?} without a word", unit.longest);
    daemon.kill()?;
    daemon.wait()?;
    detach(&lab.edge, &config);
    Ok(())
}

#[test]
fn a_manager_is_told_when_a_reload_begins_and_ends() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab.edged()?.write()?;
    certify(lab.dir())?;
    let manager = Manager::new(&lab)?;
    let mut daemon = service(&lab, &config, "run", |_| ())?;
    manager.await_ready(daemon.id())?;
    kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGHUP)?;
    let mut told = Vec::new();
    until("it has reloaded", Duration::from_secs(20), || {
        told.extend(manager.hear()?.map(|(_, text)| text));
        Ok(told.last().is_some_and(|text| text == "READY=1"))
    })?;
    // With the time, as `Type=notify-reload` asks.
    assert!(told[0].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told:?}");
    kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
    ended(&mut daemon)?;
    detach(&lab.edge, &config);
    Ok(())
}

fn ended(daemon: &mut Child) -> Result<()> {
    let mut status = None;
    until("the former daemon ends", Duration::from_secs(15), || {
        status = daemon.try_wait()?;
        Ok(status.is_some())
    })?;
    let status = status.context("ended above")?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// `WatchdogSec=` of the unit that is played.
const WATCHDOG: Duration = Duration::from_secs(3);
