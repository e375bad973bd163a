//! The daemon may crash, restart, reload and end: the filter holds and nothing is forgotten.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, Result};
use edge_common::{
    Reason,
    map::{ABI, BANS, OPEN},
};
use edge_daemon::{
    clock,
    control::ListName,
    store::{BanRecord, ListRecord, Store},
};
use edge_policy::verdict::{self, Culprit, Step};
use edge_tests::{
    Edged, Lab, Origin,
    client::{reaches, until},
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, RESET, frame, get, preface},
    lab::{ATTACKER, CLIENT, EDGE, FRIEND, LISTED},
    netns::run,
    talk::Dial,
    tamper::pinned,
};

const HOUR_MS: u64 = 3_600_000;

fn ban(edged: &Edged<'_>) -> Result<()> {
    until("a ban", Duration::from_secs(5), || {
        let _ = edged.get(ATTACKER, "/").key("wrong").arg("--max-time", "1").send();
        edged.banned(ATTACKER)
    })
    .map(drop)
}

#[test]
fn the_filter_outlives_a_crash_and_a_restart_adopts_it() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.set("verdicts.longest", r#""1m""#).start()?;
    edged.tell("deny add 198.51.100.200")?;
    ban(&edged)?;
    assert!(!reaches(&lab, LISTED, 443));
    let before = edged.metrics()?;
    edged.kill9()?;
    // Nobody listens any more: a passed packet is answered by a reset, a dropped one by nothing.
    assert!(reaches(&lab, CLIENT, 443));
    assert!(!reaches(&lab, LISTED, 443));
    assert!(!reaches(&lab, ATTACKER, 443));
    edged.start_again()?;
    let after = edged.metrics()?;
    for reason in [Reason::DenyList, Reason::Ban] {
        assert!(after.packets(reason) > before.packets(reason), "{}", reason.name());
    }
    assert!(edged.banned(ATTACKER)?);
    assert!(edged.tell("deny list")?.contains("198.51.100.200"));
    assert!(!reaches(&lab, LISTED, 443));
    assert!(!reaches(&lab, ATTACKER, 443));
    Ok(())
}

#[test]
fn why_an_interface_cannot_be_guarded_again_is_told_once() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let told = || edged.log().matches("unfiltered still").count();
    let ip = |line: &str| run(lab.edge.command("ip").args(line.split(' ')));
    ip("link del edge0")?;
    // What has the name now has no Ethernet headers.
    ip("tuntap add mode tun name edge0")?;
    until("it is refused", Duration::from_secs(10), || Ok(told() > 0))?;
    // It is tried every second.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(told(), 1, "{}", edged.log());
    Ok(())
}

#[test]
fn a_start_that_is_refused_leaves_a_running_filter_as_it_was() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.start()?;
    edged.kill9()?;
    let good = std::fs::read_to_string(&edged.config)?;
    for (key, value, told) in [
        ("kernel.interfaces", r#"["edge0", "nowhere0"]"#, "nowhere0"),
        ("kernel.syn_cookies.mode", r#""always""#, "net.ipv4.tcp_syncookies"),
    ] {
        edged.edit(key, value)?;
        edged.edit("kernel.monitor", "true")?;
        edged.edit("lists.deny", "[]")?;
        assert!(edged.start_again().is_err(), "{told}");
        assert!(edged.log().contains(told), "{}", edged.log());
        assert!(!reaches(&lab, LISTED, 443), "{told}: its policy or its lists are in force");
        std::fs::write(&edged.config, &good)?;
    }
    edged.start_again()?;
    assert!(!reaches(&lab, LISTED, 443));
    Ok(())
}

#[test]
fn a_start_that_is_refused_leaves_bans_under_what_stands_for_a_client() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.start()?;
    ban(&edged)?;
    let bans = |edged: &Edged<'_>| -> Result<Vec<String>> {
        let all = edged.bans()?;
        Ok(all.iter().map(|ban| ban["culprit"].to_string()).collect())
    };
    let before = bans(&edged)?;
    edged.kill9()?;
    edged.edit("kernel.ipv4_prefix", "24")?;
    // The loopback device has no driver to be native in.
    edged.edit("kernel.interfaces", r#"["edge0", "lo"]"#)?;
    assert!(edged.start_again().is_err());
    assert!(edged.log().contains("cannot attach to interface lo"), "{}", edged.log());
    assert!(!reaches(&lab, ATTACKER, 443), "the filter goes by addresses");
    edged.edit("kernel.interfaces", r#"["edge0"]"#)?;
    edged.edit("kernel.ipv4_prefix", "32")?;
    edged.start_again()?;
    assert_eq!(bans(&edged)?, before, "and by nothing else");
    edged.kill9()?;
    edged.edit("kernel.ipv4_prefix", "24")?;
    edged.start_again()?;
    assert!(!reaches(&lab, ATTACKER, 443) && !reaches(&lab, CLIENT, 443));
    assert_eq!(bans(&edged)?.len(), 1);
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    assert!(reaches(&lab, ATTACKER, 443) && reaches(&lab, CLIENT, 443));
    Ok(())
}

#[test]
fn bans_that_made_room_for_those_of_a_refused_start_are_back() -> Result<()> {
    use edge_common::map::BANS_MAX;
    use std::fmt::Write as _;
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.start()?;
    edged.tell(&format!("ban add {ATTACKER}"))?;
    edged.kill9()?;
    // For IPv6 the same stands for a client as before; there is no room for one more.
    let table = pinned(Path::new(&lab.pin_dir()), BANS)?;
    let value = [1_u64, 1 << 60, 0, 0, 1 << 32].map(u64::to_le_bytes).concat();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    let (table, value, mut batch) = (table.display(), hex(&value), String::new());
    for n in 1..BANS_MAX {
        let key = hex(&(0x2001_0db8_u128 << 96 | u128::from(n) << 64).to_be_bytes());
        writeln!(batch, "map update pinned {table} key hex {key} value hex {value}")?;
    }
    let file = lab.dir().join("batch");
    std::fs::write(&file, batch)?;
    run(Command::new("bpftool").args(["batch", "file"]).arg(&file))?;
    edged.edit("kernel.ipv4_prefix", "24")?;
    // The loopback device has no driver to be native in.
    edged.edit("kernel.interfaces", r#"["edge0", "lo"]"#)?;
    assert!(edged.start_again().is_err());
    assert!(edged.log().contains("cannot attach to interface lo"), "{}", edged.log());
    assert!(!reaches(&lab, ATTACKER, 443) && reaches(&lab, CLIENT, 443));
    Ok(())
}

#[test]
fn a_ban_ends_while_the_daemon_is_dead() -> Result<()> {
    let lab = Lab::new()?;
    // Long enough to see it, also for a test that waits for its turn at a processor.
    let mut edged = lab.edged()?.set("verdicts.longest", r#""6s""#).start()?;
    ban(&edged)?;
    edged.kill9()?;
    assert!(!reaches(&lab, ATTACKER, 443));
    until("the kernel ends the ban", Duration::from_secs(8), || Ok(reaches(&lab, ATTACKER, 443)))?;
    Ok(())
}

#[test]
fn keys_lists_and_bans_survive_an_orderly_restart_without_their_pins() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let key = edged.key("lasting")?;
    edged.tell("deny add 198.51.100.200")?;
    edged.tell("allow add 198.51.100.201")?;
    ban(&edged)?;
    edged.terminate()?;
    edge_tests::daemon::detach(&lab.edge, &edged.config);
    assert!(reaches(&lab, LISTED, 443), "detached");
    edged.start_again()?;
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
    assert!(edged.tell("deny list")?.contains("198.51.100.200"));
    assert!(edged.tell("allow list")?.contains("198.51.100.201"));
    assert!(edged.banned(ATTACKER)?);
    assert!(!reaches(&lab, ATTACKER, 443));
    Ok(())
}

/// The former program goes by its own table until this one, which the daemon filled from its disk, is attached.
#[test]
fn bans_outlive_another_versions_table_of_another_shape() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.start()?;
    ban(&edged)?;
    let dropped = |edged: &Edged<'_>| Ok::<_, anyhow::Error>(edged.metrics()?.packets(Reason::Ban));
    assert!(!reaches(&lab, ATTACKER, 443));
    let before = dropped(&edged)?;
    edged.terminate()?;
    let (own, other) = (Path::new(&lab.pin_dir()).join(ABI), Path::new(&lab.pin_dir()).join("v0"));
    std::fs::rename(&own, &other)?;
    std::fs::remove_file(other.join(BANS))?;
    std::fs::hard_link(other.join(OPEN), other.join(BANS))?;

    let socket = lab.edge.enter(|| UdpSocket::bind((EDGE, 0)))?;
    let to = socket.local_addr()?;
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| -> Result<usize> {
        let flood = scope.spawn(|| -> Result<usize> {
            let flood = lab.attacker.enter(|| UdpSocket::bind((ATTACKER, 0)))?;
            let send = |_: &usize| !stop.load(Relaxed) && flood.send_to(b"x", to).is_ok();
            Ok((0..).take_while(send).count())
        });
        let started = edged.start_again();
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Relaxed);
        started?;
        flood.join().expect("sent")
    })?;
    socket.set_nonblocking(true)?;
    assert!(socket.recv(&mut [0]).is_err(), "some of {sent} arrived");
    assert!(edged.banned(ATTACKER)? && !reaches(&lab, ATTACKER, 443));
    assert!(reaches(&lab, CLIENT, 443));
    let log = edged.log();
    assert!(log.contains("starts anew") && log.contains("table=\"BANS\""), "{log}");
    // What had its shape was carried over, and the flood was counted in it by both programs.
    assert!(dropped(&edged)? >= before + sent as f64, "{sent} sent");
    assert!(own.join(BANS).exists() && !other.exists());
    Ok(())
}

#[test]
fn a_reload_under_load_loses_no_request() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| -> Result<usize> {
        let load = scope.spawn(|| -> Result<usize> {
            let mut sent = 0;
            while !stop.load(Relaxed) {
                for flag in ["--http1.1", "--http2"] {
                    let statuses = edged.get(CLIENT, "/health").flag(flag).send_many(50)?;
                    assert!(statuses.iter().all(|s| *s == 200), "{statuses:?}");
                    sent += statuses.len();
                }
            }
            Ok(sent)
        });
        for factor in 21..31 {
            edged.edit("verdicts.factor", &factor.to_string())?;
            // An upstream that changes is made anew, under those that ask it.
            edged.edit("upstream.0.idle_timeout", &format!("\"{factor}s\""))?;
            edged.tell("reload")?;
        }
        stop.store(true, Relaxed);
        load.join().expect("the load asserts")
    })?;
    assert_eq!(origin.seen(), sent as u64);
    assert!(edged.metrics()?.value(r#"edged_reloads_total{result="ok"}"#) >= 10.0);
    Ok(())
}

#[test]
fn a_reload_takes_effect_and_a_bad_one_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    edged.edit("lists.deny", r#"["198.51.100.66"]"#)?;
    edged.tell("reload")?;
    assert!(!reaches(&lab, ATTACKER, 443));
    assert!(reaches(&lab, LISTED, 443), "no longer listed");
    edged.edit("lists.deny", r#"["not a network"]"#)?;
    edged.edit("verdicts.facter", "3")?;
    let refused = edged.ctl("reload")?;
    assert_eq!(refused.status.code(), Some(1));
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("not a network") && words.contains("facter"), "all at once: {words}");
    assert!(words.contains("factor"), "with a suggestion: {words}");
    assert!(!reaches(&lab, ATTACKER, 443), "the good one holds");
    assert_eq!(edged.get(CLIENT, "/health").send()?.status, 200);
    assert_eq!(edged.metrics()?.value(r#"edged_reloads_total{result="refused"}"#), 1.0);
    Ok(())
}

#[test]
fn a_hangup_signal_reloads() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    edged.edit("lists.deny", r#"["198.51.100.66"]"#)?;
    edged.signal(nix::sys::signal::Signal::SIGHUP)?;
    until("the reload", Duration::from_secs(3), || Ok(!reaches(&lab, ATTACKER, 443)))?;
    Ok(())
}

#[test]
fn a_termination_lets_open_requests_finish() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    // Longer than anybody here waits: it ends because nothing is left to wait for.
    let setup = lab.edged()?.set("server.drain_timeout", r#""10m""#);
    let mut edged = setup.set("route.1.auth", r#""none""#).start()?;
    std::thread::scope(|scope| -> Result<()> {
        let request = edged.get(CLIENT, "/slow?ms=1500").flag("--http1.1");
        let slow = scope.spawn(move || request.send());
        until("the request is at the origin", Duration::from_secs(3), || Ok(origin.seen() == 1))?;
        edged.signal(nix::sys::signal::Signal::SIGTERM)?;
        let response = slow.join().expect("no panic")?;
        assert_eq!((response.status, response.text().as_str()), (200, "late"));
        assert_eq!(response.header("connection"), Some("close"), "nothing more is read");
        Ok(())
    })?;
    assert!(edged.terminate()?.success());
    Ok(())
}

#[test]
fn who_never_hears_of_the_end_begins_nothing_after_it() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let setup = lab.edged()?.set("server.drain_timeout", r#""10m""#);
    let mut edged = setup.set("route.1.auth", r#""none""#).start()?;
    let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
    let ask = |stream, path: &str| {
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &get("edge.test", path))
    };
    talk.say(&[preface(), ask(1, "/slow?ms=6000")].concat())?;
    until("the request is at the origin", Duration::from_secs(3), || Ok(origin.seen() == 1))?;
    edged.signal(nix::sys::signal::Signal::SIGTERM)?;
    // It does not answer the ping by which the edge asks whether it has heard.
    talk.hear(Duration::from_secs(3), |_| false)?;
    talk.say(&ask(3, "/health"))?;
    let refused = frame(RESET, 0, 3, &[0, 0, 0, 7]);
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|own| own == part);
    let late = frame(DATA, END_STREAM, 1, b"");
    let heard = talk.hear(Duration::from_secs(6), |bytes| {
        has(bytes, b"late") && (has(bytes, &late) || has(bytes, &refused))
    })?;
    assert!(has(&heard.bytes, &refused) && has(&heard.bytes, b"late"), "{heard:?}");
    drop(talk);
    assert!(edged.terminate()?.success());
    Ok(())
}

#[test]
fn who_goes_on_asking_after_the_end_is_cut_off() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let setup = lab.edged()?.set("server.drain_timeout", r#""10m""#);
    let setup = setup.set("bounds.streams_max", "10").set("bounds.http2_waste_max", "50");
    let mut edged = setup.set("route.1.auth", r#""none""#).start()?;
    let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("h2").connect(&lab, FRIEND)?;
    let ask = |stream, path: &str| {
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &get("edge.test", path))
    };
    talk.say(&[preface(), ask(1, "/slow?ms=60000")].concat())?;
    until("the request is at the origin", Duration::from_secs(3), || Ok(origin.seen() == 1))?;
    edged.signal(nix::sys::signal::Signal::SIGTERM)?;
    talk.hear(Duration::from_secs(3), |_| false)?;
    // One after the other, so that never more are open than may be.
    let mut is_cut = false;
    for stream in (3..).step_by(2).take(200) {
        is_cut = talk.say(&ask(stream, "/health")).is_err()
            || talk.hear(Duration::from_secs(2), |_| true)?.closed;
        if is_cut {
            break;
        }
    }
    assert!(is_cut, "it is told 200 times");
    assert!(edged.terminate()?.success());
    Ok(())
}

#[test]
fn the_process_that_reads_clients_holds_no_capability() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", edged.pid()))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.map(|v| v.trim_start_matches(':').trim().to_owned()).context(name.to_owned())
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set)?, "0000000000000000", "{set}\n{status}");
        }
        assert_eq!(field("NoNewPrivs")?, "1");
        threads += 1;
    }
    assert!(threads >= 2, "the control plane has a thread of its own");
    // Without any of them, it still writes the kernel's tables.
    edged.tell(&format!("deny add {ATTACKER}"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    Ok(())
}

#[test]
fn detach_takes_the_filter_away() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.start()?;
    assert!(!reaches(&lab, LISTED, 443));
    edged.terminate()?;
    assert!(!reaches(&lab, LISTED, 443), "an orderly end leaves the filter on");
    edge_tests::daemon::detach(&lab.edge, &edged.config);
    assert!(reaches(&lab, LISTED, 443));
    assert!(!std::path::Path::new(&lab.pin_dir()).exists());
    Ok(())
}

#[test]
fn edgectl_gives_the_interface_back_with_a_daemon_and_without() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.start()?;
    let detach = format!("detach --pin-dir {}", lab.pin_dir());
    let filtered = r#"edged_interface_filtered{interface="edge0",mode="native"}"#;
    assert_eq!(edged.metrics()?.value(filtered), 1.0);
    assert!(!reaches(&lab, LISTED, 443));
    let told = edged.tell(&detach)?;
    assert!(told.contains("native-edge0") && told.contains("a daemon runs"), "{told}");
    assert!(reaches(&lab, LISTED, 443));
    until("it is noticed", Duration::from_secs(3), || Ok(edged.metrics()?.value(filtered) == 0.0))?;
    let enforced = || -> Result<f64> { Ok(edged.metrics()?.value("edged_enforced_ratio")) };
    until("nothing is enforced", Duration::from_secs(3), || Ok(enforced()? == 0.0))?;
    assert!(edged.tell("status")?.contains("edge0 (native, NOT FILTERED)"));
    let told = edged.ask(&format!("explain {LISTED}"))?;
    assert_eq!((&told["verdict"], &told["passes"]), (&"deny_list".into(), &true.into()));
    assert!(edged.tell(&format!("explain {LISTED}"))?.contains("NOT FILTERED"));
    edged.terminate()?;
    edged.start_again()?;
    assert!(!reaches(&lab, LISTED, 443));
    edged.terminate()?;
    let told = edged.tell(&detach)?;
    assert!(told.contains("native-edge0") && !told.contains("a daemon runs"), "{told}");
    assert!(reaches(&lab, LISTED, 443));
    let told = edged.tell(&detach)?;
    let told_of = format!("nothing was pinned in {};", lab.pin_dir());
    assert!(told.starts_with(&told_of), "{told}");
    Ok(())
}

#[test]
fn an_interface_that_is_switched_off_is_told_of() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    for (state, wanted) in [("up", 1.0), ("down", 0.0), ("up", 1.0)] {
        lab.edge.ip(&format!("link set edge0 {state}"))?;
        until(state, Duration::from_secs(5), || {
            Ok(edged.metrics()?.value(r#"edged_interface_up{interface="edge0"}"#) == wanted)
        })?;
    }
    Ok(())
}

/// A ban from a moment on, for so long.
fn ban_of(client: &str, step: Step, [since_ms, for_ms]: [u64; 2]) -> Result<BanRecord> {
    Ok(BanRecord {
        culprit: Culprit::Source(client.parse::<IpAddr>()?.into()),
        step,
        since_ms,
        until_ms: since_ms + for_ms,
        strikes: 1,
        reason: "source_rate".into(),
        scenario: "flood".into(),
        origin: verdict::Origin::Scenario,
        spared: None,
        evidence: Vec::new(),
        milder: Vec::new(),
    })
}

/// An entry of the deny list from a moment on, for so long.
fn entry_of(net: &str, [added_ms, for_ms]: [u64; 2]) -> Result<ListRecord> {
    Ok(ListRecord {
        net: net.parse()?,
        until_ms: Some(added_ms + for_ms),
        reason: None,
        added_ms,
        by: "uid 0".into(),
        monitor: false,
    })
}

/// When what is held and listed for a time ends, in order.
fn ends_ms(edged: &Edged<'_>) -> Result<Vec<u64>> {
    let (bans, listed) = (edged.bans()?, edged.ask("deny list")?);
    let all = bans.iter().chain(listed["entries"].as_array().context("a list")?);
    let mut ends_ms: Vec<_> = all.filter_map(|entry| entry["until_ms"].as_u64()).collect();
    ends_ms.sort_unstable();
    Ok(ends_ms)
}

/// A host without a battery for its clock boots months before everything that it has on disk. The dates there
/// are true, and what lasts for a year must not be over once the clock is set.
#[test]
fn what_is_from_the_future_lasts_for_no_longer_than_it_was_to() -> Result<()> {
    let lab = Lab::new()?;
    let later_ms = clock::unix_ms() + 90 * 24 * HOUR_MS;
    let longer = ban_of(ATTACKER, Step::Refuse, [later_ms, 2 * HOUR_MS])?;
    let state = lab.dir().join("state");
    let (store, _) = Store::open(&state, 7)?;
    let both = ban_of(ATTACKER, Step::Ban, [later_ms, HOUR_MS])?;
    store.put_bans(&[
        BanRecord { milder: vec![longer], ..both },
        ban_of("198.51.100.201", Step::Refuse, [later_ms, HOUR_MS])?,
    ])?;
    store.put_list(ListName::Deny, &entry_of("203.0.113.0/24", [later_ms, HOUR_MS])?)?;
    drop(store);
    let on_disk = || {
        let kept = Store::open(&state, 7)?.0.load_all()?;
        anyhow::Ok((kept.bans, kept.deny))
    };
    let before = on_disk()?;
    let mut edged = lab.edged()?.start()?;
    for _ in 0..2 {
        let ends_ms = ends_ms(&edged)?;
        let now_ms = clock::unix_ms();
        let most = [1, 1, 1, 2].map(|hours| now_ms + hours * HOUR_MS + 10);
        assert_eq!(ends_ms.len(), most.len(), "{ends_ms:?}");
        for (end_ms, most_ms) in ends_ms.into_iter().zip(most) {
            assert!((now_ms..=most_ms).contains(&end_ms), "{end_ms} and {most_ms}");
        }
        assert!(edged.terminate()?.success());
        assert_eq!(on_disk()?, before);
        edged.start_again()?;
    }
    Ok(())
}

/// What has lasted its time is over, however often the daemon starts before its dates have come.
#[test]
fn what_is_from_the_future_comes_once() -> Result<()> {
    let lab = Lab::new()?;
    // Longer than a start, also on a busy host.
    let lasts = [clock::unix_ms() + 90 * 24 * HOUR_MS, 12_000];
    let (store, _) = Store::open(&lab.dir().join("state"), 7)?;
    store.put_bans(&[ban_of(ATTACKER, Step::Ban, lasts)?])?;
    store.put_list(ListName::Deny, &entry_of("203.0.113.0/24", lasts)?)?;
    drop(store);
    let mut edged = lab.edged()?.start()?;
    assert_eq!(ends_ms(&edged)?.len(), 2);
    until("both are over", Duration::from_secs(20), || Ok(ends_ms(&edged)?.is_empty()))?;
    assert!(edged.terminate()?.success());
    edged.start_again()?;
    assert!(ends_ms(&edged)?.is_empty());
    Ok(())
}

/// More bans than the kernel holds, as a host has them that was attacked from everywhere and booted.
#[test]
fn more_bans_than_there_is_room_for_keep_nobody_from_starting() -> Result<()> {
    use edge_common::map::BANS_MAX;
    let lab = Lab::new()?;
    let now_ms = clock::unix_ms();
    // The later, the longer.
    let record = |n: u32| {
        let client = Ipv4Addr::from(0x0b00_0000 + n).to_string();
        ban_of(&client, Step::Ban, [now_ms, HOUR_MS + u64::from(n)])
    };
    let (store, _) = Store::open(&lab.dir().join("state"), 7)?;
    store.put_bans(&(0..BANS_MAX + 100).map(record).collect::<Result<Vec<_>>>()?)?;
    drop(store);
    let edged = lab.edged()?.start()?;
    let metrics = edged.metrics()?;
    assert_eq!(metrics.value("edged_bans_active"), f64::from(BANS_MAX));
    assert_eq!(metrics.value("edged_bans_evicted_total"), 100.0);
    assert!(metrics.value("edged_alarms_total") >= 1.0);
    // Those that would have ended first are the ones that are missing.
    let is_banned = |edged: &Edged<'_>, who: &str| edged.ask(&format!("ban show {who}")).is_ok();
    assert!(is_banned(&edged, "11.0.0.100") && !is_banned(&edged, "11.0.0.99"));
    // One more takes the place of the next of them, for good.
    edged.tell(&format!("ban add {ATTACKER} --ttl 2d"))?;
    assert!(is_banned(&edged, ATTACKER) && !is_banned(&edged, "11.0.0.100"));
    assert_eq!(edged.metrics()?.value("edged_bans_evicted_total"), 101.0);
    // Saving so many takes its time.
    edged.signal(nix::sys::signal::Signal::SIGTERM)?;
    let (mut store, state) = (None, lab.dir().join("state"));
    until("the daemon ends", Duration::from_secs(90), || {
        std::thread::sleep(Duration::from_millis(200));
        store = Store::open(&state, 7).ok();
        Ok(store.is_some())
    })?;
    let bans = store.context("it is open")?.0.load_all()?.bans;
    let now_ms = clock::unix_ms();
    assert_eq!(bans.iter().filter(|ban| ban.until_ms > now_ms).count(), BANS_MAX as usize);
    assert!(bans.iter().filter(|ban| ban.until_ms <= now_ms).all(|ban| ban.strikes == 1));
    Ok(())
}
