//! The main job on real traffic, narrated with numbers read back from the kernel, the metrics
//! and edgectl. It fails if any of what it tells was not observed.

use std::{
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::{Response, reaches, until},
    daemon::{binary, clean, outlive},
    lab::{ATTACKER, CLIENT, DENIED, EDGE, FRIEND, LISTED, directory},
    netns::run,
};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let done = match args.first().map(String::as_str) {
        Some("--clean") => clean(KEPT),
        Some("--origin") => serve_origin(),
        _ => demo(has("--keep"), has("--quick")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("\nNOT OBSERVED: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(keep: bool, quick: bool) -> Result<()> {
    let start = Instant::now();
    let lab = open_lab(keep)?;
    // A kept lab needs an origin that outlives this program; otherwise a thread will do.
    let origin = if keep { start_origin(&lab)? } else { None };
    let _thread = if keep { None } else { Some(Origin::start(&lab)?) };
    let ban = if quick { "2s" } else { "4s" };
    let edged = start_edged(&lab, ban)?;
    show_filter(&lab, &edged)?;
    let key = show_keys(&edged)?;
    show_denied(&lab, &edged)?;
    show_limits(&edged, &key)?;
    show_ban(&lab, &edged, ban)?;
    show_friend(&lab, &edged, &key)?;
    println!("\nAll of it was observed, in {:.1} s.", start.elapsed().as_secs_f64());
    if keep {
        let pids = [Some(edged.pid()), origin].map(|pid| pid.map(|p| p.to_string()));
        std::fs::write(
            lab.dir().join("pids"),
            pids.into_iter().flatten().collect::<Vec<_>>().join("\n"),
        )?;
        explain_kept(&lab, &key)?;
    }
    Ok(())
}

fn open_lab(keep: bool) -> Result<Lab> {
    step("The lab: client, attacker, edge and origin, each a network namespace");
    if !keep {
        return Lab::new();
    }
    if directory(KEPT).exists() {
        saw("removing the lab that was kept before");
        clean(KEPT)?;
    }
    Lab::named(KEPT, true)
}

fn start_edged<'a>(lab: &'a Lab, ban: &str) -> Result<Edged<'a>> {
    step("edged, with config/edged.toml and these values for the lab");
    let setup = lab
        .edged()?
        .with_shipped_limits()
        .set("verdicts.longest", &format!("{ban:?}"))
        .set("verdicts.jitter", "0");
    for change in setup.changes() {
        saw(&change);
    }
    setup.start()
}

fn show_filter(lab: &Lab, edged: &Edged<'_>) -> Result<()> {
    step("The filter is on the interface, in native mode");
    let link = run(lab.edge.command("ip").args(["-d", "link", "show", "dev", "edge0"]))?;
    let xdp = link.lines().find(|l| l.contains("prog/xdp")).context("no XDP program")?;
    ensure!(!link.contains("xdpgeneric"), "generic mode: {link}");
    saw(&format!("ip link: {}", xdp.trim()));
    for line in edged.tell("status")?.lines() {
        saw(&format!("edgectl status: {line}"));
    }
    Ok(())
}

fn show_keys(edged: &Edged<'_>) -> Result<String> {
    step("A good API key is served, a bad one is not");
    let key = edged.key("demo")?;
    saw("edgectl key create --name demo: a key, shown once");
    let good = edged.get(CLIENT, "/").key(&key).send()?;
    ensure!(good.status == 200, "{good:?}");
    saw(&format!("{CLIENT}, good key: {} {} {:?}", good.version, good.status, good.text()));
    let bad = edged.get(CLIENT, "/").key("edged_guess").send()?;
    ensure!(bad.status == 401, "{bad:?}");
    saw(&format!("{CLIENT}, bad key: {} {} {}", bad.version, bad.status, bad.text()));
    Ok(key)
}

fn show_denied(lab: &Lab, edged: &Edged<'_>) -> Result<()> {
    step(&format!("A network on the deny list, {DENIED}, is dropped before TCP"));
    let before = edged.metrics()?.packets(Reason::DenyList);
    ensure!(!reaches(lab, LISTED, 443), "{LISTED} was answered");
    let after = edged.metrics()?.packets(Reason::DenyList);
    ensure!(after > before, "no drop was counted");
    saw(&format!("{LISTED} opens a connection: no answer"));
    saw(&format!("edged_packets_total{{reason=\"deny_list\"}}: {before} -> {after}"));
    saw(&format!(
        "edgectl explain {LISTED}: {}",
        one_line(&edged.tell(&format!("explain {LISTED}"))?)
    ));
    Ok(())
}

fn show_limits(edged: &Edged<'_>, key: &str) -> Result<()> {
    step("Too many requests are told when to come back");
    let mut answered = 0;
    let refused = loop {
        answered +=
            edged.get(CLIENT, "/").key(key).send_many(20)?.iter().filter(|s| **s == 200).count();
        let response = edged.get(CLIENT, "/").key(key).send()?;
        if response.status == 429 {
            break response;
        }
        ensure!(answered < 1000, "never limited");
    };
    saw(&format!(
        "{answered} requests were answered, then: {} {}",
        refused.version, refused.status
    ));
    for name in ["retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"] {
        saw(&format!("{name}: {}", header(&refused, name)?));
    }
    let counted = edged.metrics()?.requests(Reason::SourceRate);
    saw(&format!("edged_requests_total{{reason=\"source_rate\",status=\"429\"}}: {counted}"));
    Ok(())
}

fn show_ban(lab: &Lab, edged: &Edged<'_>, lasts: &str) -> Result<()> {
    step("A source that guesses keys is banned in the kernel");
    let answered = probed(lab, || guess_keys(edged, ATTACKER))?;
    ensure!(answered < GUESSES, "{ATTACKER} was never banned");
    let banned = Instant::now();
    let ban = edged.event("ban", ATTACKER)?;
    saw(&format!("{ATTACKER}: {answered} guesses were answered with 401, then nothing"));
    saw(&format!("event: {ban}"));
    let entry_us = ban["latency_us"].as_f64().context("latency_us")?;
    saw(&format!("offending request -> entry in the kernel's table: {:.3} ms", entry_us / 1e3));
    // Only while the ban lasts does its entry tell of the first drop.
    let list = edged.bans()?;
    let entry = list.iter().find(|b| b.to_string().contains(ATTACKER));
    let first_us = entry.and_then(|b| b["first_drop_us"].as_f64()).context("first_drop_us")?;
    saw(&format!(
        "offending request -> first dropped packet: {:.3} ms",
        (entry_us + first_us) / 1e3
    ));
    saw(&format!(
        "edged_packets_total{{reason=\"ban\"}}: {}",
        edged.metrics()?.packets(Reason::Ban)
    ));
    ensure!(!reaches(lab, ATTACKER, 443), "{ATTACKER} was answered");
    step(&format!("The ban ends by itself, after {lasts}"));
    until("the ban ends", Duration::from_secs(8), || Ok(reaches(lab, ATTACKER, 443)))?;
    saw(&format!("{ATTACKER} is answered again, {:.1} s later", banned.elapsed().as_secs_f64()));
    ensure!(!edged.banned(ATTACKER)?, "still listed");
    saw("edgectl ban list: it is gone");
    Ok(())
}

fn show_friend(lab: &Lab, edged: &Edged<'_>, key: &str) -> Result<()> {
    step(&format!("A source on the allow list, {FRIEND}, does the same and is never banned"));
    let answered = guess_keys(edged, FRIEND)?;
    ensure!(answered == GUESSES, "{FRIEND} went unanswered after {answered} guesses");
    ensure!(reaches(lab, FRIEND, 443) && !edged.banned(FRIEND)?, "{FRIEND} was banned");
    let good = edged.get(FRIEND, "/").key(key).send()?;
    ensure!(good.status == 200, "{good:?}");
    saw(&format!("{answered} guesses, each answered with 401; a good key: {}", good.status));
    saw(&format!("edged_bans_total: {}", edged.metrics()?.value("edged_bans_total")));
    Ok(())
}

/// Guesses until nobody answers; how many guesses were answered.
fn guess_keys(edged: &Edged<'_>, source: &str) -> Result<usize> {
    for guess in 0..GUESSES {
        let key = format!("edged_{guess:043}_000000");
        let Ok(response) = edged.get(source, "/").key(&key).arg("--max-time", "0.4").send() else {
            return Ok(guess);
        };
        ensure!(response.status == 401, "{response:?}");
    }
    Ok(GUESSES)
}

/// Sends a small packet from the attacker every 0.2 ms meanwhile, so that the first drop is seen
/// at once and not at the attacker's next request.
fn probed<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let socket = lab.attacker.enter(|| std::net::UdpSocket::bind((ATTACKER, 0)))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let _ = socket.send_to(b"probe", (EDGE, 9));
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let done = work();
        stop.store(true, Relaxed);
        done
    })
}

/// The origin as a process of its own, which outlives this one; its process id.
fn start_origin(lab: &Lab) -> Result<Option<u32>> {
    outlive(&lab.origin, &["--origin", &lab.dir().to_string_lossy()]).map(Some)
}

fn serve_origin() -> Result<()> {
    let address = format!("{}:8080", edge_tests::lab::ORIGIN);
    let _origin = Origin::serve(std::net::TcpListener::bind(address)?)?;
    loop {
        std::thread::park();
    }
}

fn explain_kept(lab: &Lab, key: &str) -> Result<()> {
    let (id, dir) = (&lab.id, lab.dir().display());
    let curl = format!("curl --cacert {dir}/ca.pem --resolve edge.test:443:{EDGE}");
    let ctl = binary("edgectl")?;
    let ctl = ctl.strip_prefix(std::env::current_dir()?).map_or(ctl.as_path(), Path::new).display();
    println!(
        "\nThe lab is left up. Try:\n\
         \n  ip netns exec {id}-client {curl} -i https://edge.test/health\
         \n  ip netns exec {id}-client {curl} -H 'X-API-Key: {key}' https://edge.test/echo\
         \n  ip netns exec {id}-attacker {curl} --interface {LISTED} -m 2 https://edge.test/\
         \n  ip netns exec {id}-edge curl -s http://127.0.0.1:9464/metrics\
         \n  {ctl} --socket {dir}/control.sock status\
         \n  {ctl} --socket {dir}/control.sock explain {LISTED}\
         \n  tail -f {dir}/events.jsonl\n\
         \nand remove it with:\n\
         \n  cargo xtask demo --clean"
    );
    Ok(())
}

fn header<'a>(response: &'a Response, name: &str) -> Result<&'a str> {
    response.header(name).with_context(|| format!("no {name}: {response:?}"))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn step(what: &str) {
    println!("\n== {what}");
}

fn saw(what: &str) {
    println!("   {what}");
}

/// The name of a lab that is kept.
const KEPT: &str = "edged-demo";

/// More than the bucket of "brute-force" holds.
const GUESSES: usize = 15;
