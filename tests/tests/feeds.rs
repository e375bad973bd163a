//! Other people's lists: fetched, judged, kept, in force; and whatever their servers answer.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as a test does")]

use std::time::{Duration, Instant};

use anyhow::Result;
use edge_common::Reason;
use edge_tests::{
    Edged, Lab,
    client::{reaches, until},
    daemon::root,
    lab::{ATTACKER, CLIENT},
    web::{Answer, Web},
};
use serde_json::Value;

const AT: &str = "127.0.0.1:9001";

/// A feed called `one` at the lab's server, with these lines besides.
fn feed(lines: &str) -> String {
    format!("[[feed]]\nname = \"one\"\nurl = \"http://{AT}/list\"\n{lines}\n")
}

fn one(edged: &Edged<'_>) -> Result<Value> {
    Ok(edged.ask("feed list")?["entries"][0].clone())
}

fn networks(edged: &Edged<'_>) -> Result<u64> {
    Ok(one(edged)?["networks"].as_u64().unwrap_or(0))
}

/// Waits for the fetch that every feed begins with.
fn fetched(edged: &Edged<'_>, wanted: u64) -> Result<()> {
    until("the feed is in force", Duration::from_secs(10), || Ok(networks(edged)? == wanted))?;
    Ok(())
}

/// So many addresses, [`ATTACKER`] first.
fn list(count: u32) -> String {
    let others = (1..count).map(|i| format!("203.0.{}.{}\n", i / 250, i % 250));
    std::iter::once(format!("{ATTACKER}\n")).chain(others).collect()
}

#[test]
fn a_feed_is_in_force_and_every_line_is_accounted_for() -> Result<()> {
    let lab = Lab::new()?;
    let text = format!(
        "# a list\n{ATTACKER}\t7\n203.0.114.0/24 ; SBL7 \u{1b}[2Jnoise\n198.51.100.0/24\n10.0.0.0/8\n2000::/3\nwhat?\n\
         203.0.114.0/24\n203.0.115.9/24\n"
    );
    let web = Web::start(&lab.edge, AT, move |_| Answer::ok(text.clone()))?;
    let edged = lab.edged()?.append(&feed(""))?.start()?;
    fetched(&edged, 3)?;
    let told = one(&edged)?;
    // The edge's own network is in there: a feed cuts nobody off from home.
    let faults = &told["faults"];
    for (fault, count) in
        [("own", 1), ("local", 1), ("wide", 1), ("malformed", 1), ("repeated", 1), ("host_bits", 1)]
    {
        assert_eq!(faults[fault], count, "{fault}: {told}");
    }
    let lines = told["fault_lines"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(lines.len(), 5, "{told}");
    assert_eq!(lines[3], serde_json::json!({"line": 7, "fault": "malformed", "text": "what?"}));
    assert!(edged.tell("feed list")?.contains("one:7: malformed: what?\n"));
    assert!(!reaches(&lab, ATTACKER, 443) && reaches(&lab, CLIENT, 443));
    let why = edged.ask(&format!("explain {ATTACKER}"))?;
    assert_eq!((&why["verdict"], &why["source"]), (&"deny_list".into(), &"feed one:2".into()));
    assert!(why["since_ms"].as_u64() > Some(0), "{why}");
    // Its line says why; what a terminal would obey is not passed on.
    assert_eq!(
        (&why["reason"], &told["reasons"]["kept"]),
        (&"7".into(), &2.into()),
        "{why} {told}"
    );
    let listed = edged.tell("deny list")?;
    let is_told =
        |line: &str| line.contains("feed one:3") && line.ends_with("SBL7 \u{fffd}[2Jnoise");
    assert!(listed.lines().any(is_told) && !listed.contains('\u{1b}'), "{listed}");
    assert!(edged.tell(&format!("explain {ATTACKER}"))?.contains("reason            7\n"));
    assert!(one(&edged)?["hits"].as_u64() > Some(0));
    let metrics = edged.metrics()?;
    assert_eq!(metrics.sum("edged_feed_networks", &[("feed", "one")]), 3.0);
    let kept = [("feed", "one"), ("state", "kept")];
    assert_eq!(metrics.sum("edged_feed_reasons", &kept), 2.0);
    assert!(metrics.sum("edged_feed_hits", &[("feed", "one")]) > 0.0);
    assert_eq!(metrics.sum("edged_feed_stale", &[("feed", "one")]), 0.0);
    // An allow entry beats it, and removing it is not the operator's.
    assert!(
        edged.tell(&format!("deny remove {ATTACKER}")).unwrap_err().to_string().contains("one")
    );
    // Nor does it end with an operator's own entry.
    edged.tell(&format!("deny add {ATTACKER}"))?;
    let removed = edged.tell(&format!("deny remove {ATTACKER}"))?;
    assert!(removed.contains("; feed one:2 keeps it"), "{removed}");
    edged.tell(&format!("allow add {ATTACKER}"))?;
    assert!(reaches(&lab, ATTACKER, 443));
    edged.tell(&format!("allow remove {ATTACKER}"))?;
    // Without the feed in the configuration, nothing of it is left.
    let text = std::fs::read_to_string(&edged.config)?;
    std::fs::write(&edged.config, text.replace(&feed(""), ""))?;
    edged.tell("reload")?;
    until("it is gone", Duration::from_secs(5), || Ok(reaches(&lab, ATTACKER, 443)))?;
    assert_eq!(web.asked().len(), 1);
    Ok(())
}

#[test]
fn what_a_server_answers_never_costs_the_list() -> Result<()> {
    let lab = Lab::new()?;
    let web = Web::start(&lab.edge, AT, |asked| match asked.header("if-none-match") {
        Some("\"v1\"") => Answer::status("304 Not Modified"),
        _ => Answer::Send("200 OK", "ETag: \"v1\"\r\n".into(), list(100)),
    })?;
    let lines = "timeout = \"2s\"\nbytes_max = \"64KiB\"\nshrink_max = 20";
    let edged = lab.edged()?.append(&feed(lines))?.start()?;
    fetched(&edged, 100)?;
    assert_eq!(edged.ask(&format!("explain {ATTACKER}"))?["source"], "feed one:1");
    assert!(edged.tell("feed refresh one")?.contains("has not changed"));
    assert_eq!(one(&edged)?["unchanged"], 1);
    let page = "<html>\n<body>\nplease log in\n</body>\n</html>\n";
    let refused = |what: &str| -> Result<()> {
        let done = edged.ctl("feed refresh one")?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(1) && words.contains(what), "{what}: {words}");
        assert_eq!(networks(&edged)?, 100, "{what}");
        assert_eq!(edged.metrics()?.sum("edged_feed_stale", &[("feed", "one")]), 1.0, "{what}");
        Ok(())
    };
    web.set(|_| Answer::status("500 Oops"));
    refused("it answered 500")?;
    web.set(|_| {
        Answer::Send("302 Found", "Location: https://a.example/\r\n".into(), String::new())
    });
    refused("which is at https://a.example/")?;
    web.set(|_| Answer::Late(Duration::from_secs(4), list(100)));
    refused("it took too long")?;
    web.set(|_| Answer::Endless);
    refused("length limit exceeded")?;
    web.set(move |_| Answer::ok(page));
    refused("does not look like the format")?;
    web.set(|_| Answer::ok("# nothing today\n"));
    refused("it has no networks")?;
    web.set(|_| Answer::ok(list(79)));
    refused("it has shrunk from 100 networks to 79")?;
    let told = one(&edged)?;
    assert_eq!((&told["failed"], &told["refused"]), (&4.into(), &3.into()), "{told}");
    assert!(!reaches(&lab, ATTACKER, 443));
    let mut alarm = edged.events()?.into_iter().filter(|event| event["event"] == "feed_failed");
    assert_eq!(alarm.next_back().unwrap()["result"], "refused");
    // What has to be may be.
    assert!(edged.tell("feed refresh one --force")?.contains("79 networks"));
    assert_eq!((networks(&edged)?, &one(&edged)?["trouble"]), (79, &Value::Null));
    assert!(edged.tell("feed refresh two").is_err());
    Ok(())
}

#[test]
fn the_last_good_list_is_in_force_before_its_server_is_up() -> Result<()> {
    let lab = Lab::new()?;
    let web = Web::start(&lab.edge, AT, |_| Answer::ok(list(50)))?;
    let mut edged = lab.edged()?.append(&feed(""))?.start()?;
    fetched(&edged, 50)?;
    let kept = lab.dir().join("state/feeds/one.feed");
    until("it is kept", Duration::from_secs(5), || Ok(kept.exists()))?;
    web.set(|_| Answer::status("503 Down"));
    edged.kill9()?;
    edged.start_again()?;
    assert_eq!(networks(&edged)?, 50);
    assert!(!reaches(&lab, ATTACKER, 443));
    // It is young enough not to be asked for again.
    assert_eq!(web.asked().len(), 1);
    // What the disk has done to it is noticed; it is set aside, and the rest serves.
    edged.kill9()?;
    let mut bytes = std::fs::read(&kept)?;
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&kept, bytes)?;
    edged.start_again()?;
    assert!(lab.dir().join("state/feeds/one.damaged").exists());
    until("it was asked for", Duration::from_secs(10), || Ok(one(&edged)?["failed"] == 1))?;
    assert!(reaches(&lab, ATTACKER, 443));
    Ok(())
}

/// A `.netset` in the form in which FireHOL's project publishes them: a head of comments, networks and
/// lone addresses in order, and of unallocated space what a list of bogons has.
#[test]
fn a_netset_is_taken_as_it_is_published() -> Result<()> {
    let lab = Lab::new()?;
    let text = format!(
        "#\n# some_level1\n#\n# ipv4 hash:net ipset\n#\n# Maintainer      : Somebody\n\
         # Category        : attacks\n# Version         : 29331\n#\n\
         # This File Date  : Tue Dec  1 00:00:00 UTC 2026\n# Update Frequency: 1 day\n\
         # Aggregation     : none\n# Entries         : 7 subnets, 838861314 unique IPs\n#\n\
         # Full list analysis, including geolocation, is at http://lists.example/?ipset=some_level1\n#\n\
         0.0.0.0/8\n10.0.0.0/8\n127.0.0.0/8\n{ATTACKER}\n203.0.114.0/24\n203.0.115.7\n224.0.0.0/3\n"
    );
    let web = Web::start(&lab.edge, AT, move |_| Answer::ok(text.clone()))?;
    let edged = lab.edged()?.append(&feed("format = \"netset\""))?.start()?;
    fetched(&edged, 4)?;
    let told = one(&edged)?;
    assert_eq!(told["faults"], serde_json::json!({"local": 2, "wide": 1}), "{told}");
    assert!(!reaches(&lab, ATTACKER, 443) && reaches(&lab, CLIENT, 443));
    for (address, line) in [(ATTACKER, 20), ("203.0.114.200", 21), ("203.0.115.7", 22)] {
        let why = edged.ask(&format!("explain {address}"))?;
        let source = format!("feed one:{line}");
        assert_eq!((&why["verdict"], &why["source"]), (&"deny_list".into(), &source.into()));
    }
    assert_eq!(edged.ask("explain 203.0.115.8")?["verdict"], "pass", "a lone address is one");
    assert_eq!(web.asked().len(), 1);
    Ok(())
}

#[test]
fn a_dry_run_counts_and_drops_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("list.txt");
    std::fs::write(&path, list(10))?;
    let text = "[[feed]]\nname = \"one\"\nurl = \"file:list.txt\"\naction = \"count\"";
    let edged = lab.edged()?.append(text)?.start()?;
    fetched(&edged, 10)?;
    assert!(reaches(&lab, ATTACKER, 443));
    assert!(one(&edged)?["hits"].as_u64() > Some(0));
    assert_eq!(edged.ask(&format!("explain {ATTACKER}"))?["source"], "feed one:1");
    assert!(edged.tell("feed refresh one")?.contains("has not changed"));
    std::fs::write(&path, list(12))?;
    assert!(edged.tell("feed refresh one")?.contains("12 networks"));
    edged.edit("feed.0.action", "\"deny\"")?;
    edged.tell("reload")?;
    until("it is enforced", Duration::from_secs(5), || Ok(!reaches(&lab, ATTACKER, 443)))?;
    assert!(edged.metrics()?.packets(Reason::DenyList) > 0.0);
    Ok(())
}

#[test]
fn who_is_never_banned_is_not_denied_by_others() -> Result<()> {
    let lab = Lab::new()?;
    std::fs::write(lab.dir().join("list.txt"), format!("{ATTACKER}\n198.51.100.8/29\n"))?;
    let text = "[[feed]]\nname = \"one\"\nurl = \"file:list.txt\"";
    let edged = lab.edged()?.append(text)?.start()?;
    fetched(&edged, 2)?;
    let reached = || (reaches(&lab, ATTACKER, 443), reaches(&lab, CLIENT, 443));
    assert_eq!(reached(), (false, false));
    for (never, wanted) in [(CLIENT, (false, true)), (ATTACKER, (true, false))] {
        edged.edit("verdicts.never_ban", &format!("[\"{never}/32\"]"))?;
        edged.tell("reload")?;
        assert_eq!(reached(), wanted, "{never}");
    }
    assert!(edged.log().contains("anybody of never_ban"));
    // So it is from the first packet of the next start.
    let mut edged = edged;
    assert!(edged.terminate()?.success());
    edged.start_again()?;
    assert_eq!(reached(), (true, false));
    // What this edge itself denies, it denies.
    edged.tell(&format!("deny add {ATTACKER}"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    Ok(())
}

/// As many lines as the daily file of a well-known aggregator has, in its form.
/// Lists that are compiled one behind the other keep what the one before brought.
#[test]
fn feeds_that_come_together_are_all_in_force() -> Result<()> {
    const FEEDS: u32 = 5;
    const NETWORKS: u32 = 40_000;
    let lab = Lab::new()?;
    let mut text = String::new();
    for feed in 0..FEEDS {
        let network = |n: u32| std::net::Ipv4Addr::from((20 + feed) << 24 | n << 8);
        let lines: String = (0..NETWORKS).map(|n| format!("{}/24\n", network(n))).collect();
        std::fs::write(lab.dir().join(format!("list{feed}.txt")), lines)?;
        text += &format!("[[feed]]\nname = \"f{feed}\"\nurl = \"file:list{feed}.txt\"\n");
    }
    let edged = lab.edged()?.append(&text)?.start()?;
    until("all are fetched", Duration::from_secs(60), || {
        let told = edged.ask("feed list")?;
        let mut all = (0..FEEDS as usize).map(|feed| told["entries"][feed]["networks"].as_u64());
        Ok(all.all(|networks| networks == Some(NETWORKS.into())))
    })?;
    for feed in 0..FEEDS {
        let why = edged.ask(&format!("explain {}.0.1.1", 20 + feed))?;
        assert_eq!(
            (&why["verdict"], &why["source"]),
            (&"deny_list".into(), &format!("feed f{feed}:2").into()),
            "{why}"
        );
    }
    Ok(())
}

#[test]
fn a_feed_of_the_usual_size_loads_whole() -> Result<()> {
    let lab = Lab::new()?;
    let address = |i: u32| std::net::Ipv4Addr::from(0x0b00_0000 + i * 2_003);
    let text: String = (0..120_000).map(|i| format!("{}\t{}\n", address(i), 1 + i % 8)).collect();
    let _web = Web::start(&lab.edge, AT, move |_| Answer::ok(text.clone()))?;
    let lines = "format = \"ipsum\"\nlevel = 3";
    let begun = Instant::now();
    let edged = lab.edged()?.append(&feed(lines))?.start()?;
    fetched(&edged, 90_000)?;
    println!("90000 of 120000 lines in force {:?} after the start", begun.elapsed());
    assert_eq!(one(&edged)?["faults"], serde_json::json!({}));
    Ok(())
}

/// A day's file of that aggregator: in the folder that `EDGED_TEST_DATA` names, or else in `shared/data`
/// beside the project.
fn a_real_file() -> Option<std::path::PathBuf> {
    let beside = || Some(root().parent()?.join("shared/data"));
    let folder = std::env::var_os("EDGED_TEST_DATA").map(Into::into).or_else(beside)?;
    let files = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|file| file.path());
    let name = |file: &std::path::PathBuf| file.file_name()?.to_str().map(str::to_owned);
    let mut all = files.filter(|file| name(file).is_some_and(|name| name.starts_with("ipsum")));
    all.next()
}

/// Real files are no part of the repository: where there is none this proves nothing, whatever must be
/// there otherwise, and passes. Lists of the same form and size that are made up are always looked at, by
/// `a_feed_is_in_force_and_every_line_is_accounted_for` and `a_feed_of_the_usual_size_loads_whole`.
#[test]
fn every_line_of_a_real_file_is_accounted_for() -> Result<()> {
    let Some(file) = a_real_file() else {
        println!(
            "skipped: no ipsum file in EDGED_TEST_DATA, nor in shared/data beside the project"
        );
        return Ok(());
    };
    let text = std::fs::read_to_string(&file)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    let lines: Vec<_> = lines.filter(|(_, line)| !line.starts_with('#')).collect();
    let level = |line: &str| line.split('\t').nth(1).and_then(|level| level.parse::<u32>().ok());
    let of_three = lines.iter().filter(|(_, line)| level(line) >= Some(3)).count() as u64;
    let lab = Lab::new()?;
    let served = text.clone();
    let _web = Web::start(&lab.edge, AT, move |_| Answer::ok(served.clone()))?;
    let edged = lab.edged()?.append(&feed("format = \"ipsum\"\nlevel = 1"))?.start()?;
    until("it is in force", Duration::from_secs(30), || Ok(networks(&edged)? > 0))?;
    let counted = |told: &Value| {
        let faults = told["faults"].as_object().unwrap().iter();
        // A network that is written with bits of a host is taken all the same.
        let lost = faults.filter(|(name, _)| *name != "host_bits").filter_map(|f| f.1.as_u64());
        told["networks"].as_u64().unwrap_or(0) + lost.sum::<u64>()
    };
    let told = one(&edged)?;
    assert_eq!(counted(&told), lines.len() as u64, "{told}");
    println!("{}: {} lines, {told}", file.display(), lines.len());
    // The first, the last and some between: each is dropped, and its line is told.
    for (n, line) in lines.iter().step_by(lines.len() / 20).chain(lines.last()) {
        let address = line.split('\t').next().unwrap();
        let why = edged.ask(&format!("explain {address}"))?;
        let source = format!("feed one:{}", n + 1);
        assert_eq!((&why["verdict"], &why["source"]), (&"deny_list".into(), &source.into()));
    }
    edged.edit("feed.0.level", "3")?;
    edged.tell("reload")?;
    until("its better part is in force", Duration::from_secs(30), || {
        Ok(counted(&one(&edged)?) == of_three)
    })?;
    Ok(())
}
