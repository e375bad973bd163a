//! Replays across a kill and a restart, and what a signed request costs.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use edge_daemon::{
    clock,
    replay::{Now, Replays},
};
use edge_identity::signed::{self, Masters, Message, Once, Policy, Signing};
use edge_policy::{head::Host, target::Target};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{
    super::{Effort, Goal, Line, Report, report::median},
    cpu, resident_bytes,
};
use crate::random::Random;

/// The memory of nonces: a process that takes a million in is killed on the way, and then all of them
/// come again, from eight threads at once.
pub(in super::super) fn replays(effort: Effort, report: &mut Report) -> Result<()> {
    let things = if effort.is_quick() { 50_000 } else { THINGS };
    let (mut twice, mut cost, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        let dir = tempfile::tempdir_in("/dev/shm")?;
        let before = kill_on_the_way(dir.path(), things, round)?;
        let passed: Vec<AtomicU64> = (0..things).map(|_| AtomicU64::new(0)).collect();
        let replays = open(dir.path())?;
        let now_s = clock::unix_ms() / 1000;
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for (number, count) in (0..).zip(&passed) {
                        let again = replays.admit(&once(number, now_s), now_s).is_ok();
                        count.fetch_add(again.into(), Relaxed);
                    }
                });
            }
        });
        let count =
            |number: u64| passed[number as usize].load(Relaxed) + u64::from(number < before);
        twice.push((0..things).filter(|number| count(*number) > 1).count() as f64);
        let lost = (0..things).filter(|number| count(*number) == 0).count();
        // The one that the kill cut off may have been noted before anybody was told.
        ensure!(lost <= 1, "{lost} never passed");
        let (at, more) = (cpu()?, things / 20);
        for number in things..things + more {
            ensure!(replays.admit(&once(number, now_s), now_s).is_ok(), "refused");
        }
        cost.push((cpu()? - at).as_secs_f64() * 1e6 / more as f64);
        drop(replays);
        memory.push(remembered(dir.path())? as f64 / f64::from(1 << 20));
        report.note(&format!("round {round}: killed after {before} of {things}"));
    }
    report.note(&format!("an entry costs {:.2} µs", median(&cost)));
    report.add(&Line {
        measure: 7,
        name: format!(
            "{things} things and as many replays by {THREADS} threads after kill -9: passed twice"
        ),
        rounds: twice,
        unit: "replays",
        goal: Goal::Exactly(0.0),
        reference: "none".to_owned(),
    });
    report.add(&Line {
        measure: 7,
        name: format!("memory for {things} nonces after a restart, file in memory included"),
        rounds: memory,
        unit: "MiB",
        goal: Goal::AtMost(64.0),
        reference: "none".to_owned(),
    });
    signature(effort, report)
}

/// CPU of what a request signed by `v1` costs: its signature, the memory and the digest of its body.
fn signature(effort: Effort, report: &mut Report) -> Result<()> {
    let count = if effort.is_quick() { 5_000 } else { 200_000 };
    let masters = Masters::new([&[7_u8; 32][..]]);
    let master = masters.current().context("a master")?.to_owned();
    let secret = masters.secret(&master, KEY_ID).context("a secret")?;
    let (key, signing) = (hmac::Key::new(hmac::HMAC_SHA256, &*secret), Signing::Derived(master));
    let host: Host = "api.example.com".parse()?;
    let target = Target::parse("/v1/orders?b=2&a=1", 1000).ok().context("a target")?;
    let (method, body, now_s) = (Method::POST, vec![b'x'; 1024], clock::unix_ms() / 1000);
    let policy = Policy {
        rfc9421: true,
        v1: true,
        v0: false,
        window_s: 300,
        leeway_s: 30,
        nonce: false,
        label: None,
        tag: None,
        cover: Vec::new(),
    };
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let dir = tempfile::tempdir_in("/dev/shm")?;
        let replays = open(dir.path())?;
        let mut requests = Vec::new();
        for number in 0..count {
            let (time, nonce) = (now_s.to_string(), format!("{number:032x}"));
            let sha256 = signed::sha256_hex(&body);
            let mut headers = HeaderMap::new();
            let message = message(&method, &host, &target, &headers);
            let text = signed::canonical(&message, &time, &nonce, &sha256, KEY_ID);
            let mac = edge_identity::hex::text(hmac::sign(&key, text.as_bytes()).as_ref());
            for (name, value) in [
                ("x-api-key", KEY_ID),
                ("x-timestamp", &time),
                ("x-nonce", &nonce),
                ("x-content-sha256", &sha256),
                ("x-signature", &format!("v1={mac}")),
            ] {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
            }
            requests.push(headers);
        }
        let at = cpu()?;
        for headers in &requests {
            let message = message(&method, &host, &target, headers);
            let claimed = signed::read(&message, &policy, now_s).ok().context("read")?;
            let verifier = signing.verifier(&masters, KEY_ID).context("a verifier")?;
            let proven = claimed.prove(&message, KEY_ID, &verifier, b"").ok().context("proved")?;
            replays.admit(&proven.once, now_s).ok().context("admitted")?;
            let mut check = proven.body.context("a body")?;
            check.see(&body);
            ensure!(check.holds(), "another body");
        }
        rounds.push((cpu()? - at).as_secs_f64() * 1e6 / f64::from(count));
    }
    report.add(&Line {
        measure: 7,
        name: "a request signed by v1 with a body of 1 KiB: derived, verified, remembered"
            .to_owned(),
        rounds,
        unit: "us",
        goal: Goal::AtMost(6.0),
        reference: "none".to_owned(),
    });
    Ok(())
}

fn message<'a>(
    method: &'a Method,
    host: &'a Host,
    target: &'a Target,
    headers: &'a HeaderMap,
) -> Message<'a> {
    Message { method, host, target, headers, has_body: true }
}

/// Has this very program take things in, kills it on the way; how many it let pass for sure.
fn kill_on_the_way(dir: &Path, things: u64, seed: usize) -> Result<u64> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(VICTIM, dir)
        .args(["victim", &things.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = child.stdout.take().context("piped")?;
    // Between a quarter and three quarters.
    let enough = things / 4 + Random::new(seed as u64).next() % (things / 2);
    let (mut passed, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let count = told.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        passed += count as u64;
        if passed >= enough {
            child.kill()?;
        }
    }
    child.wait()?;
    ensure!((enough..things).contains(&passed), "{passed} of {things}, killed at {enough}");
    Ok(passed)
}

/// The process that is killed: tells a byte for each thing that it let pass.
///
/// # Errors
/// If a thing does not pass, or nobody listens any more.
pub(in super::super) fn victim(things: u64) -> Result<()> {
    let dir = std::env::var_os(VICTIM).context("no victim without its folder")?;
    let (replays, mut out) = (open(Path::new(&dir))?, std::io::stdout().lock());
    let now_s = clock::unix_ms() / 1000;
    for number in 0..things {
        ensure!(replays.admit(&once(number, now_s), now_s).is_ok(), "{number} did not pass");
        // A line buffer would tell later.
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// What the memory takes in a process of its own, which nothing was in before, and its file.
fn remembered(dir: &Path) -> Result<u64> {
    let done = Command::new(std::env::current_exe()?).env(VICTIM, dir).arg("remember").output()?;
    let words = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{words}");
    // What follows is the bench's own summary.
    let told = String::from_utf8(done.stdout)?;
    let table: u64 = told.lines().next().context("it told nothing")?.parse()?;
    Ok(table + fs::metadata(dir.join("nonces"))?.blocks() * 512)
}

/// The process that takes over what another remembered, and tells by how many bytes it grew.
///
/// # Errors
/// If there is nothing to take over.
pub(in super::super) fn remember() -> Result<()> {
    let dir = std::env::var_os(VICTIM).context("nothing to remember without its folder")?;
    let before = resident_bytes()?;
    let replays = open(Path::new(&dir))?;
    let grown = resident_bytes()?.saturating_sub(before);
    ensure!(replays.usage().0 > 0, "nothing was remembered");
    println!("{grown}");
    Ok(())
}

fn open(dir: &Path) -> Result<Replays> {
    let now = Now { unix_s: clock::unix_ms() / 1000, booted_s: clock::unix_ms_at(0) / 1000 };
    Ok(Replays::open(&dir.join("nonces"), dir, (ROOM, [300, 60]), now)?)
}

fn once(number: u64, now_s: u64) -> Once {
    // One time for all processes, so that each sees the same thing.
    let signed_s = now_s - now_s % 600;
    let by = (number % SIGNERS).to_string();
    Once { by, name: number.to_le_bytes().to_vec(), signed_s, until_s: signed_s + 900 }
}

/// By which the victim knows its folder.
const VICTIM: &str = "EDGED_BENCH_VICTIM";
/// Somewhat more than all that comes, so that none of it is refused for want of room.
const ROOM: u32 = 1_100_000;
const THINGS: u64 = 1_000_000;
/// Enough that none of them has more of it than is left.
const SIGNERS: u64 = 1000;
const THREADS: usize = 8;
const KEY_ID: &str = "0123456789ab";
