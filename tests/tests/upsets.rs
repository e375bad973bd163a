//! What goes wrong at a bad moment: a feed that fails across a restart, changes that meet a reload, an
//! end in the middle of one, a client that says that it will send no more.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, Result};
use edge_common::Reason;
use edge_tests::{
    Lab, Origin,
    client::{HOST, reaches, until},
    lab::{ATTACKER, CLIENT, LISTED},
    talk::Dial,
};
use nix::sys::signal::Signal;

#[test]
fn a_restart_refuses_a_feed_that_has_shrunk_or_is_gone() -> Result<()> {
    let lab = Lab::new()?;
    let feed = lab.dir().join("feed.txt");
    let whole = |last: &str| -> String {
        (0..50).map(|i| format!("203.0.114.{i}\n")).chain([last.to_owned()]).collect()
    };
    fs::write(&feed, whole(&format!("{ATTACKER}\n")))?;
    let mut edged =
        lab.edged()?.set("lists.deny_files", &format!("[{:?}]", feed.display())).start()?;
    assert!(!reaches(&lab, ATTACKER, 443));
    for bad in [Some("203.0.114.1\n"), Some(""), None] {
        edged.terminate()?;
        match bad {
            Some(text) => fs::write(&feed, text)?,
            None => fs::remove_file(&feed)?,
        }
        edged.start_again()?;
        assert!(!reaches(&lab, ATTACKER, 443), "{bad:?}: {}", edged.log());
        let explained = edged.ask(&format!("explain {ATTACKER}"))?;
        let source = explained["source"].as_str().context("a source")?;
        assert!(source.contains("feed.txt"), "{explained}");
    }
    // One that has lost a few is taken, by a restart as by a reload.
    edged.terminate()?;
    fs::write(&feed, whole(""))?;
    edged.start_again()?;
    assert!(reaches(&lab, ATTACKER, 443));
    Ok(())
}

#[test]
fn changes_that_meet_reloads_are_all_kept() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let stop = AtomicBool::new(false);
    let kept = std::thread::scope(|scope| -> Result<Vec<String>> {
        let reloads = scope.spawn(|| -> Result<u32> {
            let mut reloads = 0;
            while !stop.load(Relaxed) {
                let more = if reloads % 2 == 0 { r#", "192.0.2.128/25""# } else { "" };
                edged.edit("lists.deny", &format!(r#"["203.0.113.0/24"{more}]"#))?;
                edged.tell("reload")?;
                reloads += 1;
            }
            Ok(reloads)
        });
        let mut kept = Vec::new();
        for number in 1..=30 {
            let net = format!("198.18.{number}.0/24");
            edged.tell(&format!("deny add {net}"))?;
            match number % 3 {
                0 => _ = edged.tell(&format!("deny remove {net}"))?,
                // Ends by itself, in the middle of a reload or of the next fold.
                1 => _ = edged.tell(&format!("deny add 198.19.{number}.0/24 --ttl 1s"))?,
                _ => {}
            }
            if number % 3 != 0 {
                kept.push(net);
            }
        }
        stop.store(true, Relaxed);
        assert!(reloads.join().expect("no panic")? > 1);
        Ok(kept)
    })?;
    let verdict = |address: &str| -> Result<String> {
        let told = edged.ask(&format!("explain {address}"))?;
        Ok(told["verdict"].as_str().context("a verdict")?.to_owned())
    };
    for number in 1..=30 {
        let is_kept = kept.contains(&format!("198.18.{number}.0/24"));
        let expected = if is_kept { "deny_list" } else { "pass" };
        assert_eq!(verdict(&format!("198.18.{number}.7"))?, expected, "{number}");
    }
    until("all that end have ended", Duration::from_secs(10), || {
        Ok((1..=30)
            .step_by(3)
            .all(|n| verdict(&format!("198.19.{n}.7")).is_ok_and(|v| v == "pass")))
    })?;
    assert_eq!(verdict(LISTED)?, "deny_list");
    Ok(())
}

#[test]
fn an_end_in_the_middle_of_a_reload_leaves_the_filter_whole() -> Result<()> {
    let lab = Lab::new()?;
    let feed = lab.dir().join("feed.txt");
    let many: String = (0..30_000_u32)
        .map(|i| format!("{}.{}.{}.0/24\n", 20 + i / 10_000, i / 100 % 100, i % 100))
        .collect();
    fs::write(&feed, "20.0.0.1\n")?;
    let mut edged =
        lab.edged()?.set("lists.deny_files", &format!("[{:?}]", feed.display())).start()?;
    for pause_ms in [0, 20, 120] {
        fs::write(&feed, &many)?;
        edged.signal(Signal::SIGHUP)?;
        std::thread::sleep(Duration::from_millis(pause_ms));
        assert!(edged.terminate()?.success(), "{}", edged.log());
        assert!(!reaches(&lab, LISTED, 443), "the filter goes on without the daemon");
        edged.start_again()?;
        assert!(reaches(&lab, CLIENT, 443));
        assert_eq!(edged.ask("explain 22.99.99.9")?["verdict"], "deny_list");
    }
    Ok(())
}

#[test]
fn a_client_that_ends_what_it_sends_is_served_unless_its_connection_ends() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let waits = |aborts: bool, shuts: bool| -> Result<(Vec<u16>, f64)> {
        let edged = lab
            .edged()?
            .set("server.abort_on_close", &aborts.to_string())
            .set("route.1.auth", r#""none""#)
            .start()?;
        let mut talk = Dial::new(&edged.ca, HOST)?.alpn("http/1.1").connect(&lab, CLIENT)?;
        talk.say(b"GET /slow?ms=700 HTTP/1.1\r\nHost: edge.test\r\n\r\n")?;
        talk.end_sending(shuts)?;
        let heard = talk.hear(Duration::from_secs(5), |bytes| bytes.ends_with(b"late"))?;
        Ok((heard.statuses(), edged.metrics()?.requests(Reason::ClientGone)))
    };
    assert_eq!(waits(true, false)?, (vec![200], 0.0), "the alert alone is no farewell");
    assert_eq!(waits(true, true)?, (vec![], 1.0));
    assert_eq!(waits(false, true)?, (vec![200], 0.0));
    Ok(())
}
