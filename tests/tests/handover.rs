//! A daemon takes over from another, or does not: no client notices either.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::Path,
    process::Stdio,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use edge_daemon::kernel::{AttachMode, Kernel, ListCapacity, LoadSettings, Policy, Wanted};
use edge_tests::{
    Edged, Lab, Origin,
    client::{HOST, connect, reaches, until},
    lab::{ATTACKER, CLIENT, EDGE, LISTED, ORIGIN},
    succession::{Load, listening, start_with},
    talk::Dial,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(5);

/// Runs `work` beside a load that must not notice; the requests that were answered.
fn under_load(
    lab: &Lab,
    edged: &mut Edged<'_>,
    work: impl FnOnce(&mut Edged<'_>, &Load) -> Result<()>,
) -> Result<u64> {
    let dial = Dial::new(&edged.ca, HOST)?.alpn("http/1.1");
    let load = Load::default();
    thread::scope(|scope| {
        let clients: Vec<_> = [true, true, true, false, false]
            .map(|keep| {
                let (load, dial) = (&load, &dial);
                scope.spawn(move || load.run(lab, dial, keep))
            })
            .into();
        let done =
            load.goes_on(50).and_then(|()| work(edged, &load)).and_then(|()| load.goes_on(50));
        load.ends.store(true, Relaxed);
        for client in clients {
            client.join().expect("no panic").with_context(|| edged.log())?;
        }
        done
    })?;
    Ok(load.served.load(Relaxed))
}

/// Holds if the audit log is whole.
fn audit_is_whole(lab: &Lab, edged: &Edged<'_>) -> Result<()> {
    let (dir, key) = (lab.dir().join("audit"), lab.dir().join("audit.key"));
    edged.tell(&format!("audit verify --dir {} --key file:{}", dir.display(), key.display()))?;
    for file in std::fs::read_dir(dir)? {
        let text = std::fs::read_to_string(file?.path())?;
        assert!(!text.contains(r#""event":"lost""#), "{text}");
    }
    Ok(())
}

#[test]
fn upgrades_under_load_refuse_no_connection_and_lose_no_request() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.set("server.workers", "2").start()?;
    let key = edged.key("lasting")?;
    edged.tell(&format!("deny add {ATTACKER}"))?;
    let first = edged.pid();
    let served = under_load(&lab, &mut edged, |edged, load| {
        // More workers than sockets, and then fewer: nobody may be left waiting in one of them.
        for workers in ["3", "1", "2"] {
            edged.edit("server.workers", workers)?;
            let status = edged.take_over()?;
            assert!(status.success(), "{status}");
            load.goes_on(100)?;
        }
        Ok(())
    })?;
    assert_ne!(edged.pid(), first);
    assert_eq!(origin.seen(), served);
    // Clients that multiplex, too.
    assert!(edged.get(CLIENT, "/health").flag("--http2").send_many(20)?.iter().all(|s| *s == 200));
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
    assert!(!reaches(&lab, ATTACKER, 443) && !reaches(&lab, LISTED, 443));
    assert!(edged.tell("deny list")?.contains(ATTACKER));
    edged.tell(&format!("deny remove {ATTACKER}"))?;
    assert!(reaches(&lab, ATTACKER, 443));
    edged.key("made-after-it")?;
    assert!(edged.tell("status")?.contains("edge0"));
    assert!(edged.metrics()?.value("edged_connections_open") < 100.0);
    audit_is_whole(&lab, &edged)
}

#[test]
fn a_long_answer_outlives_the_handover() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.set("route.1.auth", r#""none""#).start()?;
    for flag in ["--http1.1", "--http2"] {
        let seen = origin.seen();
        let ca = edged.ca.clone();
        thread::scope(|scope| -> Result<()> {
            let late = scope.spawn(|| {
                edge_tests::client::Request::new(&lab, &ca, CLIENT, "/slow?ms=4000")
                    .flag(flag)
                    .send()
            });
            until("it is under way", SOON, || Ok(origin.seen() == seen + 1))?;
            edged.take_over()?;
            assert_eq!(late.join().expect("no panic")?.text(), "late");
            Ok(())
        })?;
    }
    audit_is_whole(&lab, &edged)
}

/// Speaks to the daemon in office as a successor would, up to a step.
fn pretend(edged: &Edged<'_>, steps: &[&str]) -> Result<UnixStream> {
    let stream = UnixStream::connect(edged.handover_socket())?;
    stream.set_read_timeout(Some(SOON))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    for step in steps {
        writeln!(&stream, "{step}")?;
        let mut answer = Vec::new();
        // Descriptors are not received, and so closed; the bytes that they come with are read over.
        lines.read_until(b'\n', &mut answer)?;
    }
    Ok(stream)
}

#[test]
fn a_successor_that_ends_on_its_way_leaves_the_former_in_office() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let pid = edged.pid();
    let steps = [r#"{"ask":{"version":"0"}}"#, r#""release""#, r#""yield_nonces""#];
    let mut failed = 0.0;
    under_load(&lab, &mut edged, |edged, load| {
        for count in 1..=steps.len() {
            let pretender = pretend(edged, &steps[..count])?;
            load.goes_on(20)?;
            drop(pretender);
            failed += 1.0;
            until("it is noticed", SOON, || {
                Ok(edged.metrics()?.value("edged_handovers_failed_total") == failed)
            })?;
        }
        // Real ones, killed on their way: as they ask, and once they have begun to take. Later than that they
        // may have clients of their own, who are lost with them.
        for (step, after_ms) in
            [("a successor asks", 0), ("keys are loaded", 0), ("keys are loaded", 100)]
        {
            let told = |edged: &Edged<'_>| edged.log().matches(step).count();
            let before = told(edged);
            let mut successor = edged.successor()?;
            until(step, SOON, || Ok(told(edged) > before))?;
            thread::sleep(Duration::from_millis(after_ms));
            successor.kill()?;
            successor.wait()?;
            load.goes_on(20)?;
        }
        Ok(())
    })?;
    assert_eq!(edged.pid(), pid);
    until("operators are answered", SOON, || Ok(edged.ctl("status")?.status.success()))?;
    // All that was lent works as before.
    let key = edged.key("afterwards")?;
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
    until("the filter is this daemon's", SOON, || {
        edged.tell(&format!("deny add {ATTACKER}"))?;
        Ok(!reaches(&lab, ATTACKER, 443))
    })?;
    audit_is_whole(&lab, &edged)?;
    edged.tell("reload")?;
    // And it can still be succeeded.
    assert!(edged.take_over()?.success());
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
    assert!(!reaches(&lab, ATTACKER, 443));
    Ok(())
}

#[test]
fn an_end_that_is_asked_for_waits_for_no_successor() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let mut talk = Dial::new(&edged.ca, HOST)?.alpn("http/1.1").connect(&lab, CLIENT)?;
    assert_eq!(talk.get(HOST, "/health", &[])?.status, 200);
    let pretender = pretend(&edged, &[r#"{"ask":{"version":"0"}}"#, r#""release""#])?;
    edged.signal(Signal::SIGTERM)?;
    assert!(talk.hear(Duration::from_secs(30), |_| false)?.closed, "it drains");
    assert!(edged.terminate()?.success());
    let mut last = String::new();
    (&pretender).read_to_string(&mut last)?;
    assert!(last.contains("told to end"), "{last}");
    Ok(())
}

#[test]
fn an_end_that_is_asked_for_ends_a_successor_on_its_way() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let told = |edged: &Edged<'_>| edged.log().matches("keys are loaded").count();
    let before = told(&edged);
    let mut successor = edged.successor()?;
    until("it has the store", SOON, || Ok(told(&edged) > before))?;
    assert!(edged.terminate()?.success());
    assert_eq!(successor.wait()?.code(), Some(1));
    let log = edged.log();
    assert!(log.contains("the daemon that runs stays: this daemon is told to end"), "{log}");
    // All was taken back before the end.
    for lost in ["cannot be opened again", "writes the kernel's tables as well"] {
        assert!(!log.contains(lost), "{log}");
    }
    edged.start_again()?;
    audit_is_whole(&lab, &edged)
}

#[test]
fn a_former_that_ends_on_the_way_leaves_its_successor_in_office() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let key = edged.key("k")?;
    let told = |edged: &Edged<'_>| edged.log().matches("keys are loaded").count();
    let before = told(&edged);
    let successor = edged.successor()?;
    until("it has the store", SOON, || Ok(told(&edged) > before))?;
    edged.kill9()?;
    drop(edged.replace_child(successor));
    until("it serves", SOON, || {
        Ok(edged.get(CLIENT, "/").key(&key).send().is_ok_and(|answer| answer.status == 200))
    })?;
    assert!(!reaches(&lab, LISTED, 443));
    edged.key("afterwards")?;
    audit_is_whole(&lab, &edged)
}

#[test]
fn what_the_first_of_three_has_to_say_is_heard() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab
        .edged()?
        .set("server.drain_timeout", "\"60s\"")
        .set("bounds.header_timeout", "\"60s\"")
        .start()?;
    let key = edged.key("k")?;
    let mut talk = Dial::new(&edged.ca, HOST)?.alpn("http/1.1").connect(&lab, CLIENT)?;
    talk.say(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Api-Key: {key}\r\n").as_bytes())?;
    let mut first = edged.succeed()?;
    let mut second = edged.succeed()?;
    talk.say(b"\r\n")?;
    let heard = talk.hear(Duration::from_secs(30), |_| false)?;
    assert_eq!(heard.statuses(), [200]);
    for former in [&mut first, &mut second] {
        let mut status = None;
        until("it ends", Duration::from_secs(30), || {
            status = former.try_wait()?;
            Ok(status.is_some())
        })?;
        assert!(status.is_some_and(|status| status.success()));
    }
    let text = String::from_utf8_lossy(&heard.bytes).into_owned();
    let id = text.lines().find_map(|line| line.strip_prefix("x-request-id: ")).context("an id")?;
    until("it is in the audit log", SOON, || {
        let mut audited = false;
        for file in std::fs::read_dir(lab.dir().join("audit"))? {
            audited |= std::fs::read_to_string(file?.path())?.contains(id);
        }
        Ok(audited)
    })?;
    audit_is_whole(&lab, &edged)
}

#[test]
fn listeners_may_change_at_a_takeover() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let open = || [80, 443, 8443].map(|port| connect(&lab, CLIENT, port, SOON).is_ok());
    assert_eq!(open(), [true, true, false]);
    edged.edit("server.https", &format!("[\"{EDGE}:443\", \"{EDGE}:8443\"]"))?;
    edged.edit("server.http", "[]")?;
    assert!(!edged.ctl("reload")?.status.success(), "a reload cannot");
    assert!(edged.take_over()?.success());
    assert_eq!(open(), [false, true, true]);
    Ok(())
}

#[test]
fn what_operators_drained_stays_so_after_a_takeover() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    edged.tell(&format!("upstream drain api {ORIGIN}:8080"))?;
    assert!(edged.take_over()?.success());
    assert_eq!(edged.get(CLIENT, "/health").send()?.status, 503);
    edged.tell(&format!("upstream enable api {ORIGIN}:8080"))?;
    assert!(edged.take_over()?.success());
    assert_eq!(edged.get(CLIENT, "/health").send()?.status, 200);
    Ok(())
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let good = std::fs::read_to_string(&edged.config)?;
    // What the configuration tells; what only the attempt tells.
    for (path, value, code) in [
        ("verdicts.facter", "3", 78),
        ("tls.key", r#""nowhere.pem""#, 78),
        ("kernel.interfaces", r#"["nowhere0"]"#, 1),
        // The former would have lost its link.
        ("kernel.attach", r#""generic""#, 1),
    ] {
        edged.edit(path, value)?;
        let status = edged.successor()?.wait()?;
        assert_eq!(status.code(), Some(code), "{path}: {}", edged.log());
        std::fs::write(&edged.config, &good)?;
        until("operators are answered", SOON, || Ok(edged.ctl("status")?.status.success()))?;
        assert_eq!(edged.get(CLIENT, "/health").send()?.status, 200, "{path}");
        assert!(!reaches(&lab, LISTED, 443));
    }
    edged.tell(&format!("deny add {ATTACKER}"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    audit_is_whole(&lab, &edged)
}

#[test]
fn what_a_successor_guarded_that_did_not_come_into_office_is_let_go() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let filters = || -> Result<Vec<String>> {
        let pins = std::fs::read_dir(Path::new(&lab.pin_dir()).join(edge_common::map::ABI))?;
        let names = pins.map(|pin| Ok(pin?.file_name().to_string_lossy().into_owned()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        Ok(names.into_iter().filter(|name| name.starts_with("xdp-")).collect())
    };
    let before = filters()?;
    let pretender = pretend(&edged, &[r#"{"ask":{"version":"0"}}"#, r#""release""#])?;
    // Its lists are empty.
    let settings = LoadSettings {
        pin_dir: lab.pin_dir().into(),
        debug: false,
        policy: Policy::UNLIMITED,
        lists: ListCapacity::of(1_000, []),
    };
    let wanted = ["edge0", "back0"]
        .map(|interface| Wanted { interface: interface.into(), mode: AttachMode::Native });
    lab.edge.enter(|| Kernel::load(&settings)?.attach(&wanted).map(drop))?;
    assert_eq!(filters()?.len(), 2);
    assert!(reaches(&lab, LISTED, 443));
    drop(pretender);
    until("it is let go", SOON, || Ok(filters()? == before))?;
    until("the filter is this daemon's", SOON, || Ok(!reaches(&lab, LISTED, 443)))?;
    Ok(())
}

#[test]
fn what_came_once_comes_to_neither_daemon_again() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab
        .edged()?
        .set("route.1.auth", r#""signature""#)
        .set("verdicts.never_ban", &format!("[\"{CLIENT}/32\"]"))
        .start()?;
    let key = edged.ask("key create --name signer --signing")?;
    let word = |name: &str| key[name].as_str().map(str::to_owned).context("told");
    let secret = lab.dir().join("secret.hex");
    std::fs::write(&secret, word("signing_secret")?)?;
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let id = word("id")?;
    let signed = || -> Result<Vec<String>> {
        let mut sign = std::process::Command::new(edge_tests::daemon::binary("edgectl")?);
        sign.args(["sign", "--key-id", &id, "--url", "https://edge.test/x", "--headers"]);
        let done = sign.arg("--key-file").arg(&secret).output()?;
        Ok(String::from_utf8(done.stdout)?.lines().map(str::to_owned).collect())
    };
    let dial = Dial::new(&edged.ca, HOST)?.alpn("http/1.1");
    let send = |talk: &mut edge_tests::talk::Talk, lines: &[String]| -> Result<u16> {
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        Ok(talk.get(HOST, "/x", &lines)?.status)
    };
    let (before, during, after) = (signed()?, signed()?, signed()?);
    assert_eq!(send(&mut dial.connect(&lab, CLIENT)?, &before)?, 200);
    // Both are the former's, which drains as long as they have a request to make.
    let (mut first, mut second) = (dial.connect(&lab, CLIENT)?, dial.connect(&lab, CLIENT)?);
    assert_eq!(first.get(HOST, "/health", &[])?.status, 200);
    assert_eq!(second.get(HOST, "/health", &[])?.status, 200);
    let mut former = edged.succeed()?;
    assert_eq!(send(&mut first, &during)?, 200, "the former asks its successor");
    assert_eq!(send(&mut second, &before)?, 401, "{}", edged.log());
    former.wait()?;
    let mut fresh = dial.connect(&lab, CLIENT)?;
    assert_eq!(send(&mut fresh, &during)?, 401);
    assert_eq!(send(&mut fresh, &before)?, 401);
    assert_eq!(send(&mut fresh, &after)?, 200);
    Ok(())
}

#[test]
fn without_a_daemon_to_take_over_from_it_starts_as_any_does() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    edged.kill9()?;
    edged.take_over()?;
    assert_eq!(edged.get(CLIENT, "/health").send()?.status, 200);
    Ok(())
}

#[test]
fn sockets_of_a_service_manager_hold_connections_across_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let setup =
        lab.edged()?.set("server.workers", "3").set("server.https", &format!("[\"{EDGE}:443\"]"));
    let config = setup.write()?;
    let ca = edge_tests::daemon::certify(lab.dir())?;
    let held: TcpListener = lab.edge.enter(|| TcpListener::bind((EDGE, 443)))?;
    let mut daemon = start_with(&lab, &config, &held)?;
    assert_eq!(listening(daemon.id(), 443)?.len(), 1, "no socket beside the one that was given");
    let get = || edge_tests::client::Request::new(&lab, &ca, CLIENT, "/health").send();
    for _ in 0..20 {
        assert_eq!(get()?.status, 200);
    }
    kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
    daemon.wait()?;
    // Nobody accepts, and nobody is refused.
    let mut early = connect(&lab, CLIENT, 443, SOON)?;
    thread::scope(|scope| -> Result<()> {
        let waits = scope.spawn(get);
        thread::sleep(Duration::from_millis(300));
        assert!(!waits.is_finished());
        daemon = start_with(&lab, &config, &held)?;
        assert_eq!(waits.join().expect("no panic")?.status, 200);
        Ok(())
    })?;
    early.write_all(b"no TLS")?;
    early.set_read_timeout(Some(SOON))?;
    assert!(early.read(&mut [0; 64])? > 0, "it was accepted as well, and told that this is no TLS");
    daemon.kill()?;
    daemon.wait()?;
    edge_tests::daemon::detach(&lab.edge, &config);
    Ok(())
}

#[test]
fn systemd_starts_it_with_the_first_connection() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let setup = lab.edged()?.set("server.https", &format!("[\"{EDGE}:443\"]"));
    let config = setup.write()?;
    let ca = edge_tests::daemon::certify(lab.dir())?;
    let mut activated = lab
        .edge
        .command("systemd-socket-activate")
        .args(["-l", &format!("{EDGE}:443")])
        .arg(edge_tests::daemon::binary("edged")?)
        .args(["run", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    until("it listens", SOON, || Ok(listening(activated.id(), 443).is_ok()))?;
    let first = edge_tests::client::Request::new(&lab, &ca, CLIENT, "/health").send()?;
    assert_eq!(first.status, 200);
    activated.kill()?;
    activated.wait()?;
    edge_tests::daemon::detach(&lab.edge, &config);
    Ok(())
}
