//! What becomes of clients by scenarios: guards, the ladder, and that it is really enforced.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use edge_common::{Reason, Source};
use edge_tests::{
    Edged, Lab, Origin,
    client::{connect, reaches, until},
    lab::{ATTACKER, ATTACKER6, CLIENT, CLIENT6, EDGE, EDGE6, FRIEND},
    nat::Nat,
    netns::run,
    tamper::{bpftool, pinned},
};

const SOON: Duration = Duration::from_secs(5);
/// By then what another hand changes is put right, as docs/verdicts.md says.
const HEALED: Duration = Duration::from_secs(2);

/// A value of a metric with labels.
fn metric(edged: &Edged<'_>, name: &str) -> Result<f64> {
    Ok(edged.metrics()?.value(name))
}

#[test]
fn a_restart_makes_no_nat_one_client() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let nat = Nat::new(&lab, &edged, 6)?;
    for n in 0..6 {
        assert_eq!(nat.good(n)?, 200);
    }
    // Not one of the good clients is back when the guesses come.
    let guesses = |edged: &Edged<'_>| {
        until("the guesser is found out", SOON, || {
            nat.guess(0)?;
            Ok(!edged.bans()?.is_empty())
        })?;
        let ban = edged.bans()?.remove(0);
        Ok::<_, anyhow::Error>((ban["step"].clone(), ban["spared"].clone()))
    };
    assert!(edged.terminate()?.success());
    edged.start_again()?;
    assert_eq!(guesses(&edged)?, ("403".into(), "shared_source".into()));
    assert_eq!(nat.good(0)?, 200);
    // What is damaged is set aside, and the edge starts.
    assert!(edged.terminate()?.success());
    let file = lab.dir().join("state/shared-sources");
    let mut bytes = std::fs::read(&file)?;
    let whole = bytes.clone();
    bytes[30] ^= 1;
    std::fs::write(&file, &bytes)?;
    edged.start_again()?;
    assert_eq!(std::fs::read(file.with_extension("damaged"))?, bytes);
    assert!(edged.log().contains("what is known of shared sources is damaged"));
    let address: std::net::Ipv4Addr = CLIENT.parse()?;
    for told in [CLIENT.as_bytes(), &address.octets()] {
        assert!(whole.windows(told.len()).all(|part| part != told), "no address");
    }
    Ok(())
}

#[test]
fn an_attacker_behind_a_nat_costs_its_neighbours_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    // As shipped: what all of them ask together is more than one client may.
    let edged = lab.edged()?.with_shipped_limits().start()?;
    let good = 40;
    let nat = Nat::new(&lab, &edged, good)?;
    for n in 0..6 {
        assert_eq!(nat.good(n)?, 200);
    }
    let mut refused = 0;
    for guess in 0..40 {
        match nat.guess(guess)? {
            401 => assert_eq!(refused, 0, "once it is refused, it is"),
            403 => refused += 1,
            status => panic!("{status}"),
        }
        assert_eq!(nat.good(guess)?, 200, "a good neighbour");
        // The verdict is the writer's, who may be a moment behind.
        if guess == 6 {
            until("the guesser is refused", SOON, || Ok(nat.ask("edged_x")? == 403))?;
        }
    }
    assert!(refused > 30, "{refused}");
    for n in 0..10 * good {
        assert_eq!((nat.guess(n)?, nat.good(n)?), (403, 200), "the {n}th");
    }
    assert!(reaches(&lab, CLIENT, 443));
    let bans = edged.bans()?;
    assert_eq!(bans.len(), 1, "{bans:?}");
    let who = bans[0]["culprit"].as_str().unwrap_or_default();
    assert!(who.starts_with(&format!("{CLIENT} ja4:")), "{who}");
    assert_eq!((&bans[0]["step"], &bans[0]["spared"]), (&"403".into(), &"shared_source".into()));
    assert!(metric(&edged, r#"edged_spared_total{guard="shared_source"}"#)? >= 1.0);
    assert_eq!(metric(&edged, "edged_bans_total")?, 0.0);
    let explained = edged.tell(&format!("explain {CLIENT}"))?;
    assert!(
        explained.contains("by several identities") && explained.contains("403"),
        "{explained}"
    );
    let told = edged.ctl(&format!("ban remove {CLIENT}"))?;
    assert!(!told.status.success(), "the client is not banned");
    assert!(words(&told).contains(&format!("\"{who}\" is held to \"403\" still")), "{told:?}");
    let socket = lab.dir().join("control.sock");
    let mut ctl = lab.edge.command(edge_tests::daemon::binary("edgectl")?);
    run(ctl.arg("--socket").arg(socket).args(["ban", "remove", who]))?;
    assert_eq!(nat.ask("edged_x")?, 401, "it is free again");
    Ok(())
}

#[test]
fn a_guesser_at_a_shared_source_is_known_though_its_bucket_is_empty() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let few = "{ rate = \"1/h\", burst = 10 }";
    let dear = "[[route]]\npath = \"/dear\"\nmethods = [\"GET\"]\nauth = \"none\"\ncost = 10\nupstream = \"api\"\n";
    let edged = lab.edged()?.set("limits.per_source", few).append(dear)?.start()?;
    let nat = Nat::new(&lab, &edged, 6)?;
    for n in 0..6 {
        assert_eq!(nat.good(n)?, 200);
    }
    // What never becomes a request takes nothing from anybody.
    for _ in 0..8 {
        let mut broken = connect(&lab, CLIENT, 80, SOON)?;
        broken.write_all(b"x\r\n\r\n")?;
        let mut answer = String::new();
        broken.read_to_string(&mut answer)?;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    // A neighbour who proves nothing uses it up; he is refused then, and to blame for nothing.
    let stranger = || Ok::<_, anyhow::Error>(edged.get(CLIENT, "/health").send()?.status);
    assert_eq!((stranger()?, edged.get(CLIENT, "/dear").send()?.status), (200, 429));
    let asked: Vec<_> = (0..20).map(|_| stranger()).collect::<Result<_>>()?;
    assert!(asked[0] == 200 && asked[10..].iter().all(|status| *status == 429), "{asked:?}");
    let is_of = |event: &serde_json::Value, reason| event["reason"] == reason;
    until("he is told of", SOON, || Ok(edged.events()?.iter().any(|e| is_of(e, "global_rate"))))?;
    assert_eq!(nat.guess(0)?, 429);
    for n in 1..6 {
        nat.guess(n)?;
    }
    until("the guesser is refused", SOON, || Ok(nat.guess(9)? == 403))?;
    let bans = edged.bans()?;
    assert_eq!((bans.len(), &bans[0]["reason"]), (1, &"credential_invalid".into()), "{bans:?}");
    assert!(!edged.events()?.iter().any(|event| is_of(event, "source_rate")));
    assert_eq!(nat.good(0)?, 200);
    assert_eq!(metric(&edged, r#"edged_limit_refused_total{limit="shared_handshakes"}"#)?, 0.0);
    // Guesses at a second secret are so many for each key: beyond that not even the right one is looked at.
    let file = lab.dir().join("chosen");
    std::fs::write(&file, "correct horse battery\n")?;
    let made = edged.ask(&format!("key create --name d --secret-file {}", file.display()))?;
    let key = made["key"].as_str().context("no key")?;
    let with = |secret: &str| edged.get(CLIENT, "/").key(key).header("X-API-Secret", secret).send();
    for _ in 0..10 {
        with("correct horse batterz")?;
    }
    let refused = with("correct horse battery")?;
    assert_eq!(refused.status, 429);
    // Elsewhere it is, and it is known then, there too: its holder pays for none of them.
    let elsewhere = edged.get(FRIEND, "/").key(key).header("X-API-Secret", "correct horse battery");
    assert_eq!((elsewhere.send()?.status, with("correct horse battery")?.status), (200, 200));
    Ok(())
}

#[test]
fn the_ladder_is_climbed_step_by_step() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("verdicts.jitter", "0")
        .set("verdicts.factor", "1")
        .append(
            "[[scenario]]\nname = \"brute-force\"\ncapacity = 1\nstep = \"429\"\nduration = \"3s\"",
        )?
        .start()?;
    let guess = || -> Result<Option<u16>> {
        // Not so often that going on while refused is an offence of its own.
        std::thread::sleep(Duration::from_millis(200));
        let ask = edged.get(ATTACKER, "/health").key("edged_x").arg("--max-time", "1");
        let Ok(answer) = ask.send() else { return Ok(None) };
        let waits = answer.header("retry-after").is_some();
        ensure!(waits == (answer.status == 429), "{answer:?}");
        Ok(Some(answer.status))
    };
    for step in [Some(429), Some(403), None] {
        until(&format!("{step:?}"), Duration::from_secs(15), || Ok(guess()? == step))?;
    }
    let steps = edged.events()?;
    let steps = steps.iter().filter(|e| e["event"] == "penalty" || e["event"] == "ban");
    let told: Vec<_> = steps.map(|e| e["step"].as_str().unwrap_or("ban").to_owned()).collect();
    assert_eq!(told[..3], ["429", "403", "ban"], "{told:?}");
    Ok(())
}

#[test]
fn who_takes_bait_is_banned_at_once() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("verdicts.canary_keys", "[\"AKIAIOSFODNN7EXAMPLE\"]").start()?;
    let led = edged.get(CLIENT, "/.env").header("Sec-Fetch-Site", "cross-site").send()?;
    let decoy = edged.get(ATTACKER, "/.env").send()?;
    assert_eq!((led.status, decoy.status), (404, 404), "as any path that is none");
    until("the scanner is banned", SOON, || Ok(!reaches(&lab, ATTACKER, 443)))?;
    assert_eq!(edged.event("ban", ATTACKER)?["scenario"], "decoy");
    assert!(reaches(&lab, CLIENT, 443), "who was led there is not");
    let wrong = edged.get(CLIENT, "/").key("edged_x").send()?;
    let canary = edged.get(CLIENT, "/").key("AKIAIOSFODNN7EXAMPLE").send()?;
    let challenge =
        |r: &edge_tests::client::Response| r.header("www-authenticate").map(str::to_owned);
    assert_eq!((canary.status, challenge(&canary)), (wrong.status, challenge(&wrong)));
    until("the thief is banned", SOON, || Ok(!reaches(&lab, CLIENT, 443)))?;
    assert_eq!(edged.event("ban", CLIENT)?["scenario"], "canary-key");
    // So is one who shows it over plain HTTP, where it is refused as any credential.
    edged.tell(&format!("ban remove {CLIENT}"))?;
    let plain = |key: &str| edged.get(CLIENT, "http://edge.test/").key(key).send();
    let (wrong, canary) = (plain("edged_x")?, plain("AKIAIOSFODNN7EXAMPLE")?);
    assert_eq!((canary.status, challenge(&canary)), (400, None));
    assert_eq!((wrong.status, challenge(&wrong), wrong.header("location")), (400, None, None));
    until("he is banned once more", SOON, || Ok(!reaches(&lab, CLIENT, 443)))?;
    let bans = edged.bans()?;
    let again = bans.iter().find(|ban| ban["culprit"] == CLIENT).context("his ban")?;
    assert_eq!(again["scenario"], "canary-key", "{again}");
    Ok(())
}

#[test]
fn who_scans_is_known_by_what_the_upstream_has_not() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let site =
        "[[route]]\npath = \"/status\"\nmethods = [\"GET\"]\nauth = \"none\"\nupstream = \"api\"";
    let edged = lab.edged()?.append(site)?.start()?;
    let ask = |status: u16, n: u32| -> Result<u16> {
        Ok(edged.get(CLIENT, &format!("/status/{status}/{n}")).send()?.status)
    };
    // What the upstream got wrong is nobody's misdeed, nor was anything served.
    for n in 0..30 {
        assert_eq!(ask(500, n)?, 500);
    }
    assert_eq!(ask(200, 0)?, 200);
    let told =
        |reason: &str| metric(&edged, &format!("edged_signals_total{{reason=\"{reason}\"}}"));
    assert_eq!((told("served")?, told("not_found")?), (1.0, 0.0));
    for n in 0..20 {
        assert_eq!(ask(404, n)?, 404);
    }
    // The same once more is no other path.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ask(404, 0)?, 404);
    assert_eq!(edged.bans()?.len(), 0);
    for n in 20..25 {
        ask(404, n)?;
    }
    until("the scanner is refused", SOON, || Ok(ask(404, 30)? == 403))?;
    let bans = edged.bans()?;
    assert_eq!(
        (&bans[0]["scenario"], &bans[0]["reason"]),
        (&"scanning".into(), &"not_found".into())
    );
    Ok(())
}

#[test]
fn whoever_comes_from_never_ban_bears_no_verdict_by_any_name() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let login = "[[route]]\npath = \"/login\"\nmethods = [\"POST\"]\nauth = \"none\"\nupstream = \"api\"\n\
         login = { account = \"header:x-user\" }";
    let never = format!("[\"{CLIENT}/32\"]");
    let edged = lab.edged()?.set("verdicts.never_ban", &never).append(login)?.start()?;
    let key = edged.key("k")?;
    let id = edged.ask("key list")?["entries"][0]["id"].as_str().context("no id")?.to_owned();
    for who in [format!("key:{id}"), "account:ann".to_owned()] {
        edged.tell(&format!("ban add {who} --ttl 1h --step 403"))?;
    }
    let by_key =
        |source: &str| Ok::<_, anyhow::Error>(edged.get(source, "/").key(&key).send()?.status);
    let by_name = |source: &str| {
        let ask = edged.get(source, "/login").method("POST").header("X-User", "ann");
        Ok::<_, anyhow::Error>(ask.send()?.status)
    };
    assert_eq!((by_key(ATTACKER)?, by_name(ATTACKER)?), (403, 403));
    // One that is never banned, and one that is allowed.
    for spared in [CLIENT, FRIEND] {
        assert_eq!((by_key(spared)?, by_name(spared)?), (200, 200), "{spared}");
    }
    Ok(())
}

#[test]
fn whom_a_page_leads_is_refused_what_it_leads_to_alone() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("verdicts.canary_keys", "[\"AKIAIOSFODNN7EXAMPLE\"]").start()?;
    let own = || Ok::<_, anyhow::Error>(edged.get(CLIENT, "/health").send()?.status);
    let led = |path: &str| edged.get(CLIENT, path).header("Sec-Fetch-Site", "cross-site");
    let bait = "/health?k=AKIAIOSFODNN7EXAMPLE";
    assert_eq!(led(bait).send()?.status, 200);
    let who = format!("{CLIENT} led");
    led("/nowhere").send()?;
    until("its bucket is shown", SOON, || {
        let told = edged.ask(&format!("explain {CLIENT}"))?;
        Ok(told["levels"].as_array().is_some_and(|all| all.iter().any(|own| own["of"] == *who)))
    })?;
    let ahead = |path| led(path).method("OPTIONS").header("Origin", "https://page.test");
    ahead("/health").header("Access-Control-Request-Method", "GET").send_many(40)?;
    led("/nowhere").send_many(40)?;
    until("what is led is refused", SOON, || Ok(led("/health").send()?.status == 429))?;
    assert_eq!(own()?, 200);
    // Going on under it is no offence of the visitor's, and the thief who shows it himself is one.
    led("/health").send_many(150)?;
    assert_eq!(edged.get(ATTACKER, bait).send()?.status, 401);
    until("the thief is banned", SOON, || Ok(!reaches(&lab, ATTACKER, 443)))?;
    assert_eq!(own()?, 200);
    let bans = edged.bans()?;
    let led: Vec<_> = bans.iter().filter(|ban| ban["culprit"] != ATTACKER).collect();
    let [led] = led[..] else { panic!("{bans:?}") };
    assert_eq!((&led["culprit"], &led["step"]), (&who.as_str().into(), &"429".into()), "{led}");
    assert_eq!(led["spared"], "led_request");
    assert!(edged.tell(&format!("explain {CLIENT}"))?.contains(&who));
    Ok(())
}

#[test]
fn plain_http_bears_what_is_held_against_it() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    let own = |source: &str| Ok::<_, anyhow::Error>(edged.get(source, "/health").send()?.status);
    let plain = |source: &str, path: &str| edged.get(source, &format!("http://edge.test{path}"));
    // Any page can lead there, and none can show a key.
    plain(CLIENT, "/%zz").send_many(10)?;
    until("what is led there is refused", SOON, || {
        Ok(plain(CLIENT, "/health").send()?.status == 429)
    })?;
    plain(ATTACKER, "/").key("edged_x").send_many(20)?;
    until("who shows keys is refused", SOON, || Ok(own(ATTACKER)? == 403))?;
    assert_eq!(own(CLIENT)?, 200);
    Ok(())
}

#[test]
fn any_address_of_a_client_names_it_by_hand() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let ja4 = "ja4:t13d1516h2_8daaf6152771_e5627efa2ab1";
    for beside in [String::new(), " led".into(), format!(" {ja4}"), format!(" {ja4} led")] {
        let ask = |what: &str, last: &str, rest: &[&str]| -> Result<_> {
            let mut ctl = lab.edge.command(edge_tests::daemon::binary("edgectl")?);
            ctl.arg("--socket").arg(lab.dir().join("control.sock")).args(["ban", what]);
            run(ctl.arg(format!("2001:db8::{last}{beside}")).args(rest))
        };
        ask("add", "7", &["--step", "403"])?;
        let bans = edged.bans()?;
        let who = format!("2001:db8::{beside}");
        assert!(bans.len() == 1 && bans[0]["culprit"] == who.as_str(), "{bans:?}");
        ask("remove", "8", &[])?;
        assert!(edged.bans()?.is_empty(), "{beside}");
    }
    Ok(())
}

#[test]
fn never_ban_and_the_cap_hold() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab
        .edged()?
        .set("verdicts.never_ban", &format!("[\"{CLIENT}/32\"]"))
        .set("verdicts.bans_per_minute", "1")
        .start()?;
    let guess =
        |source: &str| edged.get(source, "/").key("edged_x").arg("--connect-timeout", "2").send();
    for _ in 0..12 {
        assert_eq!(guess(CLIENT)?.status, 401);
    }
    until("it is observed", SOON, || {
        Ok(edged.events()?.iter().any(|e| e["event"] == "observed" && e["spared"] == "never_ban"))
    })?;
    assert!(edged.bans()?.is_empty());
    assert!(!edged.ctl(&format!("ban add {CLIENT}"))?.status.success(), "not by hand, either");
    let attackers: Vec<_> = (1..=3).map(|n| format!("198.51.100.20{n}")).collect();
    for attacker in &attackers {
        lab.attacker.ip(&format!("addr add {attacker}/24 dev eth0"))?;
        for _ in 0..6 {
            let mut ask = lab.attacker.command("curl");
            ask.args(["-sko", "/dev/null", "--max-time", "2", "--interface", attacker]).args([
                "-H",
                "X-API-Key: edged_x",
                "https://198.51.100.1/",
            ]);
            let _ = ask.status()?;
        }
    }
    until("two are refused without a ban", SOON, || Ok(edged.bans()?.len() == 3))?;
    let steps: Vec<_> = edged.bans()?.iter().map(|b| b["step"].clone()).collect();
    assert_eq!(steps.iter().filter(|step| **step == "ban").count(), 1, "{steps:?}");
    assert!(metric(&edged, "edged_alarms_total")? >= 1.0);
    Ok(())
}

/// A neighbour in the attacker's own /64, and one in its IPv4 network.
const NEIGHBOUR6: &str = "2001:db8:0:66::67";

#[test]
fn who_is_never_banned_is_spared_in_a_prefix_that_offends() -> Result<()> {
    let lab = Lab::new()?;
    lab.attacker.ip(&format!("addr add {NEIGHBOUR6}/64 dev eth0 nodad"))?;
    let edged =
        lab.edged()?.set("verdicts.never_ban", &format!("[\"{NEIGHBOUR6}/128\"]")).start()?;
    let ask = |source: &str| {
        let mut curl = lab.attacker.command("curl");
        curl.args(["-sko", "/dev/null", "-w", "%{http_code}", "--max-time", "2"]);
        curl.args(["--interface", source, "-H", "X-API-Key: edged_x"]);
        curl.arg(format!("https://[{EDGE6}]/"));
        anyhow::Ok(String::from_utf8_lossy(&curl.output()?.stdout).into_owned())
    };
    for _ in 0..6 {
        ask(ATTACKER6)?;
    }
    until("the guesser is refused", SOON, || Ok(ask(ATTACKER6)? == "403"))?;
    let ban = edged.bans()?.remove(0);
    assert_eq!((&ban["step"], &ban["spared"]), (&"403".into(), &"never_ban".into()), "{ban}");
    assert_eq!(ask(NEIGHBOUR6)?, "401", "its neighbour is heard");
    // By hand it is no other, however long.
    edged.tell(&format!("ban add {ATTACKER6} --ttl 1d"))?;
    assert_eq!((ask(ATTACKER6)?.as_str(), ask(NEIGHBOUR6)?.as_str()), ("403", "401"));
    // Who is put on it later is freed by it, on the spot and at the next start.
    edged.tell(&format!("ban add {ATTACKER} --ttl 1d"))?;
    edged.tell(&format!("ban add {CLIENT} --ttl 1d"))?;
    assert!(!reaches(&lab, ATTACKER, 443) && !reaches(&lab, CLIENT, 443));
    edged.edit("verdicts.never_ban", &format!("[\"{ATTACKER}/32\", \"2001:db8:0:66::/64\"]"))?;
    edged.tell("reload")?;
    assert!(reaches(&lab, ATTACKER, 443) && !reaches(&lab, CLIENT, 443));
    assert_eq!(ask(ATTACKER6)?, "401");
    let mut edged = edged;
    edged.kill9()?;
    edged.edit("verdicts.never_ban", &format!("[\"{CLIENT}/32\"]"))?;
    edged.start_again()?;
    assert!(edged.bans()?.is_empty(), "{:?}", edged.bans()?);
    assert!(reaches(&lab, CLIENT, 443));
    Ok(())
}

#[test]
fn who_is_allowed_bears_no_verdict() -> Result<()> {
    let lab = Lab::new()?;
    lab.attacker.ip(&format!("addr add {NEIGHBOUR6}/64 dev eth0 nodad"))?;
    let edged = lab.edged()?.start()?;
    let ask = |source: &str| {
        let mut curl = lab.attacker.command("curl");
        curl.args(["-sko", "/dev/null", "-w", "%{http_code}", "--max-time", "2"]);
        curl.args(["--interface", source, &format!("https://[{EDGE6}]/")]);
        anyhow::Ok(String::from_utf8_lossy(&curl.output()?.stdout).into_owned())
    };
    let status = |source: &str| anyhow::Ok(edged.get(source, "/").send()?.status);
    // Neither what is held against its whole prefix,
    edged.tell(&format!("ban add {ATTACKER6} --step 403 --ttl 1h"))?;
    assert_eq!((ask(ATTACKER6)?.as_str(), ask(NEIGHBOUR6)?.as_str()), ("403", "403"));
    edged.tell(&format!("allow add {NEIGHBOUR6}"))?;
    until("the neighbour is heard", SOON, || Ok(ask(NEIGHBOUR6)? == "401"))?;
    assert_eq!(ask(ATTACKER6)?, "403");
    // nor what was in force before it was allowed, by hand or by the configuration,
    for step in ["403", "ban"] {
        edged.tell(&format!("ban add {ATTACKER} --step {step} --ttl 1h"))?;
        edged.tell(&format!("allow add {ATTACKER}"))?;
        assert_eq!((status(ATTACKER)?, edged.bans()?.len()), (401, 1));
        // nor what anybody says after it.
        assert!(!edged.ctl(&format!("ban add {ATTACKER} --step {step} --force"))?.status.success());
        edged.tell(&format!("allow remove {ATTACKER}"))?;
    }
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    edged.edit("lists.allow", &format!("[\"{ATTACKER}\"]"))?;
    edged.tell("reload")?;
    edged.edit("lists.allow", "[]")?;
    edged.tell("reload")?;
    assert_eq!((status(ATTACKER)?, edged.bans()?.len()), (401, 1));
    Ok(())
}

#[test]
fn a_short_ban_takes_nothing_from_a_longer_milder_order() -> Result<()> {
    let lab = Lab::new()?;
    let again = "[[scenario]]\nname = \"again\"\nsignals = [\"banned_request\"]\ncapacity = 3\n\
                 leak = \"1/h\"\nstep = \"ban\"\nduration = \"2s\"\n";
    let mut edged = lab.edged()?.append(again)?.start()?;
    let ask = |edged: &Edged<'_>, source: &str| {
        let curl = edged.get(source, "/").arg("--connect-timeout", "1").arg("--max-time", "2");
        anyhow::Ok(curl.send().map_or(0, |answer| answer.status))
    };
    let steps = |edged: &Edged<'_>, source: &str| -> Result<Vec<String>> {
        let own = edged.bans()?.into_iter().filter(|ban| ban["culprit"] == source);
        Ok(own.filter_map(|ban| Some(ban["step"].as_str()?.to_owned())).collect())
    };
    // Whoever is held to 403 for an hour and runs into a ban of seconds is not free after it.
    edged.tell(&format!("ban add {ATTACKER} --step 403 --ttl 1h"))?;
    until("it is banned", SOON, || {
        ask(&edged, ATTACKER)?;
        Ok(edged.events()?.iter().any(|e| e["event"] == "ban" && e["scenario"] == "again"))
    })?;
    until("the ban is over", SOON, || Ok(ask(&edged, ATTACKER)? != 0))?;
    until("the order holds", SOON, || Ok(steps(&edged, ATTACKER)? == ["403"]))?;
    // It is shown at once, and in force within a second.
    until("it is in force", SOON, || Ok(ask(&edged, ATTACKER)? == 403))?;
    // Nor is who is banned when the order comes; a restart changes nothing.
    edged.tell(&format!("ban add {CLIENT} --ttl 30m"))?;
    let told = edged.tell(&format!("ban add {CLIENT} --step 403 --ttl 1h"))?;
    assert!(told.contains("\"ban\"") && told.contains("\"403\""), "{told}");
    assert_eq!(steps(&edged, CLIENT)?, ["ban", "403"]);
    assert!(edged.tell(&format!("ban add {CLIENT} --step 403 --ttl 1m"))?.contains("for longer"));
    assert!(edged.terminate()?.success());
    edged.start_again()?;
    assert_eq!(steps(&edged, CLIENT)?, ["ban", "403"]);
    // One word ends all of it.
    edged.tell(&format!("ban remove {CLIENT}"))?;
    assert!(steps(&edged, CLIENT)?.is_empty());
    assert_ne!(ask(&edged, CLIENT)?, 403);
    // The end of a ban while nobody looks is an end as any other.
    edged.tell(&format!("ban add {CLIENT} --step 403 --ttl 1h"))?;
    edged.tell(&format!("ban add {CLIENT} --ttl 2s"))?;
    let over = Instant::now() + Duration::from_secs(2);
    assert!(edged.terminate()?.success());
    until("the ban is over", SOON, || Ok(Instant::now() > over))?;
    edged.start_again()?;
    assert_eq!(steps(&edged, CLIENT)?, ["403"]);
    assert_eq!(ask(&edged, CLIENT)?, 403);
    Ok(())
}

fn words(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn who_takes_back_its_own_ban_takes_back_nothing_else() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    let strikes = |edged: &Edged<'_>| -> Result<u64> {
        edged.bans()?[0]["strikes"].as_u64().context("a count")
    };
    until("a scenario bans it", SOON, || {
        let _ = edged.get(ATTACKER, "/").key("edged_x").arg("--max-time", "1").send();
        edged.banned(ATTACKER)
    })?;
    // Another has less to say, and nothing to take back.
    edged.tell(&format!("ban add {ATTACKER} --ttl 1s --reason jail"))?;
    edged.tell(&format!("ban remove {ATTACKER} --reason jail"))?;
    assert_eq!(edged.bans()?[0]["origin"], "scenario");
    assert!(!reaches(&lab, ATTACKER, 443));
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    // What is milder is in force again.
    edged.tell(&format!("ban add {ATTACKER} --step 403 --ttl 2h --reason manual"))?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h --reason jail"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    edged.tell(&format!("ban remove {ATTACKER} --reason nobody"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    let told = edged.tell(&format!("ban remove {ATTACKER} --reason jail"))?;
    assert!(told.contains("held to \"403\" still"), "{told}");
    assert!(reaches(&lab, ATTACKER, 443));
    assert_eq!((edged.bans()?.len(), &edged.bans()?[0]["reason"]), (1, &"manual".into()));
    // Nor is what is milder taken from under what is in force.
    let before = strikes(&edged)?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h --reason jail"))?;
    edged.tell(&format!("ban remove {ATTACKER} --reason manual"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    edged.tell(&format!("ban remove {ATTACKER} --reason jail"))?;
    assert!(reaches(&lab, ATTACKER, 443) && edged.bans()?.is_empty());
    // It stays so, and is not forgotten.
    assert!(edged.terminate()?.success());
    edged.start_again()?;
    assert!(reaches(&lab, ATTACKER, 443) && edged.bans()?.is_empty());
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h --reason jail"))?;
    assert!(strikes(&edged)? > before, "{:?}", edged.bans()?);
    // Nor is who was let go by a jail immune to the scenarios.
    edged.tell(&format!("ban remove {ATTACKER} --reason jail"))?;
    until("a scenario bans it once more", SOON, || {
        let _ = edged.get(ATTACKER, "/").key("edged_x").arg("--max-time", "1").send();
        edged.banned(ATTACKER)
    })?;
    assert_eq!(edged.bans()?[0]["origin"], "scenario");
    Ok(())
}

#[test]
fn a_longer_ban_by_hand_takes_nothing_from_a_shorter_one() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let mut edged = lab.edged()?.start()?;
    until("a scenario bans it", SOON, || {
        let _ = edged.get(ATTACKER, "/").key("edged_x").arg("--max-time", "1").send();
        edged.banned(ATTACKER)
    })?;
    let until = |edged: &Edged<'_>| anyhow::Ok(edged.bans()?[0]["until_ms"].as_u64().unwrap());
    let until_ms = until(&edged)?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 48h --reason jail"))?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 24h --reason other"))?;
    assert!(edged.terminate()?.success());
    edged.start_again()?;
    let reasons = |edged: &Edged<'_>| -> Result<Vec<String>> {
        let all = edged.bans()?;
        Ok(all.iter().map(|ban| ban["reason"].as_str().unwrap_or_default().to_owned()).collect())
    };
    assert_eq!(reasons(&edged)?, ["jail", "other", "credential_invalid"]);
    let told = edged.tell(&format!("ban remove {ATTACKER} --reason jail"))?;
    assert!(told.contains("held to \"ban\" still"), "{told}");
    assert!(!reaches(&lab, ATTACKER, 443));
    edged.tell(&format!("ban remove {ATTACKER} --reason other"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    assert_eq!(reasons(&edged)?, ["credential_invalid"]);
    // An end is by the boot's clock, and told by the calendar of the moment.
    assert!(until(&edged)?.abs_diff(until_ms) < 100);
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    assert!(reaches(&lab, ATTACKER, 443) && edged.bans()?.is_empty());
    Ok(())
}

#[test]
fn who_is_freed_and_is_not_is_told_of() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.start()?;
    edged.tell(&format!("deny add {ATTACKER}"))?;
    let told = words(&edged.ctl(&format!("ban remove {ATTACKER}"))?);
    assert!(
        told.contains("is not banned") && told.contains("of the deny list (operator)"),
        "{told}"
    );
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    let told = edged.tell(&format!("ban remove {ATTACKER}"))?;
    assert!(told.contains(&format!("{ATTACKER}/32 of the deny list (operator)")), "{told}");
    edged.tell(&format!("allow add {ATTACKER}"))?;
    let told = words(&edged.ctl(&format!("ban remove {ATTACKER}"))?);
    assert!(!told.contains("deny list"), "{told}");
    Ok(())
}

#[test]
fn what_another_hand_changes_is_put_right() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let source =
        |address: &str| -> Result<Source> { Ok(address.parse::<std::net::IpAddr>()?.into()) };
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    until("all is enforced", SOON, || Ok(metric(&edged, "edged_enforced_ratio")? == 1.0))?;
    let table = pinned(Path::new(&lab.pin_dir()), "BANS")?;
    let table = table.to_string_lossy();
    bpftool(&["map", "delete", "pinned", &table], source(ATTACKER)?)?;
    until("the ban is back", HEALED, || {
        Ok(metric(&edged, r#"edged_healed_total{what="ban"}"#)? == 1.0)
    })?;
    assert!(!reaches(&lab, ATTACKER, 443));
    until("all is enforced", SOON, || Ok(metric(&edged, "edged_enforced_ratio")? == 1.0))?;
    until("it is told", SOON, || Ok(edged.events()?.iter().any(|e| e["event"] == "alarm")))?;

    // A lift by the operator is no foreign change, and neither is the end of a ban.
    edged.tell(&format!("ban add {CLIENT} --ttl 1s"))?;
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    until("both are free", SOON, || Ok(reaches(&lab, CLIENT, 443) && edged.bans()?.is_empty()))?;
    std::thread::sleep(Duration::from_millis(1200));
    assert!(reaches(&lab, ATTACKER, 443));
    assert_eq!(metric(&edged, r#"edged_healed_total{what="ban"}"#)?, 1.0);
    Ok(())
}

#[test]
fn a_filter_that_another_hand_detaches_is_put_back() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    let mut links = Vec::new();
    for folder in std::fs::read_dir(lab.pin_dir())?.flatten().filter(|e| e.path().is_dir()) {
        links.extend(std::fs::read_dir(folder.path())?.flatten().map(|pin| pin.path()));
    }
    links.retain(|pin| pin.to_string_lossy().contains("/xdp-"));
    let link = links.first().context("no link")?;
    run(Command::new("bpftool").args(["link", "detach", "pinned"]).arg(link))?;
    let healed = || Ok(metric(&edged, r#"edged_healed_total{what="link"}"#)? == 1.0);
    until("the filter is back", HEALED, healed)?;
    assert!(!reaches(&lab, ATTACKER, 443) && link.exists());
    let told = || Ok(edged.events()?.iter().any(|event| event["event"] == "alarm"));
    until("it is told", SOON, told)?;
    until("all is enforced", SOON, || Ok(metric(&edged, "edged_enforced_ratio")? == 1.0))?;
    Ok(())
}

/// The kernel's number of a table that this daemon holds, and how many values it has.
/// More than the writer takes at once, and no room for any of it.
#[test]
fn a_table_full_of_anothers_entries_is_put_right() -> Result<()> {
    use edge_common::map::BANS_MAX;
    use std::fmt::Write as _;
    const OWN: u32 = 9_000;
    let (lab, now_ms) = (Lab::new()?, edge_daemon::clock::unix_ms());
    let source = |n: u32| Source::v4((0x0b00_0000 + n).to_be_bytes());
    let record = |n| edge_daemon::store::BanRecord {
        culprit: edge_policy::verdict::Culprit::Source(source(n)),
        step: edge_policy::verdict::Step::Ban,
        since_ms: now_ms,
        until_ms: now_ms + 3_600_000,
        strikes: 1,
        reason: "source_rate".into(),
        scenario: "flood".into(),
        origin: edge_policy::verdict::Origin::Scenario,
        spared: None,
        evidence: Vec::new(),
        milder: Vec::new(),
    };
    let (store, _) = edge_daemon::store::Store::open(&lab.dir().join("state"), 7)?;
    store.put_bans(&(0..OWN).map(record).collect::<Vec<_>>())?;
    drop(store);
    let edged = lab.edged()?.start()?;
    until("all is enforced", SOON, || Ok(metric(&edged, "edged_enforced_ratio")? == 1.0))?;
    let table = pinned(Path::new(&lab.pin_dir()), "BANS")?;
    let mut batch = String::new();
    let hex = |source: Source| source.octets().map(|byte| format!("{byte:02x}")).join(" ");
    let value = vec!["ff"; size_of::<edge_common::map::Ban>()].join(" ");
    for n in 0..OWN {
        writeln!(batch, "map delete pinned {} key hex {}", table.display(), hex(source(n)))?;
    }
    for n in OWN..OWN + BANS_MAX {
        let key = hex(source(n));
        writeln!(batch, "map update pinned {} key hex {key} value hex {value}", table.display())?;
    }
    let file = lab.dir().join("batch");
    std::fs::write(&file, batch)?;
    // While it is at it, some of it is healed already.
    edged.signal(nix::sys::signal::Signal::SIGSTOP)?;
    run(Command::new("bpftool").args(["batch", "file"]).arg(&file))?;
    edged.signal(nix::sys::signal::Signal::SIGCONT)?;
    let healed = until("all is put right", Duration::from_secs(60), || {
        let healed = metric(&edged, r#"edged_healed_total{what="ban"}"#)?;
        Ok(healed >= f64::from(OWN + BANS_MAX) && metric(&edged, "edged_enforced_ratio")? == 1.0)
    })?;
    println!("{} entries are put right in {healed:?}", OWN + BANS_MAX);
    // Told of once, and not in as many parts as it took.
    let told = || -> Result<usize> {
        let is_one = |event: &&serde_json::Value| {
            event["why"].as_str().is_some_and(|why| why.contains("another hand"))
        };
        Ok(edged.events()?.iter().filter(is_one).count())
    };
    until("it is told", SOON, || Ok(told()? > 0))?;
    assert!(told()? <= 2, "{}", told()?);
    Ok(())
}

fn held(edged: &Edged<'_>, name: &str) -> Result<(String, u64)> {
    for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", edged.pid()))? {
        let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
        let Some(id) = info.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let shown =
            Command::new("bpftool").args(["map", "show", "id", id.trim(), "-j"]).output()?;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
        if shown["name"] == name {
            return Ok((id.trim().to_owned(), shown["max_entries"].as_u64().unwrap_or(0)));
        }
    }
    anyhow::bail!("it holds no {name}")
}

#[test]
fn a_list_that_another_hand_writes_over_is_made_anew() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    until("all is enforced", SOON, || Ok(metric(&edged, "edged_enforced_ratio")? == 1.0))?;
    let (id, lines) = held(&edged, "LISTS")?;
    // An image is filled from both ends. The first line of either image, and then the last: one of them
    // is in force.
    for line in [0, lines / 2 - 1] {
        let generation = metric(&edged, "edged_list_generation")?;
        for line in [line, line + lines / 2] {
            let key = (line as u32).to_ne_bytes().map(|byte| byte.to_string());
            let mut bpftool = Command::new("bpftool");
            bpftool.args(["map", "update", "id", &id, "key"]).args(key);
            run(bpftool.args(["value"]).args(vec!["255"; 64]))?;
        }
        until("the image is made anew", HEALED, || {
            Ok(metric(&edged, "edged_list_generation")? > generation)
        })?;
    }
    until("all is enforced", SOON, || Ok(metric(&edged, "edged_enforced_ratio")? == 1.0))?;
    assert!(metric(&edged, r#"edged_healed_total{what="list"}"#)? >= 1.0);
    assert!(!reaches(&lab, edge_tests::lab::LISTED, 443));
    Ok(())
}

#[test]
fn settings_and_changes_of_lists_are_put_right() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    until("all is enforced", SOON, || Ok(metric(&edged, "edged_enforced_ratio")? == 1.0))?;
    let healed = |what: &str| metric(&edged, &format!("edged_healed_total{{what=\"{what}\"}}"));
    let (id, _) = held(&edged, "SETTINGS")?;
    // Whoever can write there could switch every limit off.
    let zeros = vec!["0".to_owned(); value_bytes(&id)?];
    run(Command::new("bpftool")
        .args(["map", "update", "id", &id, "key", "0", "0", "0", "0", "value"])
        .args(zeros))?;
    until("the settings are back", HEALED, || Ok(healed("settings")? >= 1.0))?;
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
    assert!(!reaches(&lab, ATTACKER, 443), "clients lead to their places as before");
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    // A change that no image has yet, and another hand takes it back.
    let (id, _) = held(&edged, "OVERLAY")?;
    edged.tell(&format!("deny add {ATTACKER}"))?;
    let key = [128_u32.to_ne_bytes().to_vec(), source_bytes(ATTACKER)?].concat();
    let key = key.iter().map(u8::to_string);
    run(Command::new("bpftool").args(["map", "delete", "id", &id, "key"]).args(key))?;
    until("the change is back", HEALED, || Ok(healed("overlay")? >= 1.0))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    let alarms = edged.events()?.into_iter().filter(|event| event["event"] == "alarm");
    let told: String = alarms.map(|alarm| alarm["why"].to_string()).collect();
    assert!(told.contains("the settings") && told.contains("networks of the lists"), "{told}");
    Ok(())
}

#[test]
fn an_end_of_an_entry_that_another_hand_changes_is_put_right() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let healed = || metric(&edged, r#"edged_healed_total{what="end"}"#);
    let (id, _) = held(&edged, "ENTRIES")?;
    edged.tell(&format!("deny add {ATTACKER} --ttl 1h"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    // Of the few entries that there are, the one that ends some time: as a change that no image has,
    // and as a part of an image.
    let mut changed = 0;
    for in_image in [false, true] {
        if in_image {
            until("an image has it", SOON, || Ok(metric(&edged, "edged_list_overlay")? == 0.0))?;
        }
        for number in 1..64_u32 {
            let key = number.to_ne_bytes().map(|byte| byte.to_string());
            let entry = ["map", "lookup", "id", &id, "key"];
            let shown = run(Command::new("bpftool").arg("-j").args(entry).args(&key))?;
            let shown: serde_json::Value = serde_json::from_str(&shown)?;
            let end = &shown["value"].as_array().context("no value")?[..8];
            if end.iter().all(|byte| byte == "0x00") || end.iter().all(|byte| byte == "0xff") {
                continue;
            }
            let one = 1_u128.to_le_bytes().map(|byte| byte.to_string());
            let entry = ["map", "update", "id", &id, "key"];
            run(Command::new("bpftool").args(entry).args(&key).arg("value").args(one))?;
            changed += 1;
        }
        until("its end is back", HEALED, || Ok(healed()? == f64::from(changed)))?;
        assert!(!reaches(&lab, ATTACKER, 443));
    }
    assert_eq!(changed, 2, "of one entry, twice");
    // What operators change, and what ends by itself, is no foreign change.
    edged.tell(&format!("deny add {ATTACKER} --ttl 2h"))?;
    edged.tell(&format!("deny add {CLIENT} --ttl 1s --force"))?;
    edged.tell(&format!("deny add {ATTACKER} --ttl 30m"))?;
    edged.tell(&format!("deny remove {ATTACKER}"))?;
    until("both are free", SOON, || Ok(reaches(&lab, CLIENT, 443)))?;
    std::thread::sleep(Duration::from_millis(3500));
    assert!(reaches(&lab, ATTACKER, 443));
    assert_eq!(healed()?, 2.0);
    Ok(())
}

fn source_bytes(address: &str) -> Result<Vec<u8>> {
    Ok(Source::from(address.parse::<std::net::IpAddr>()?).octets().to_vec())
}

/// How long the values of a table are.
fn value_bytes(id: &str) -> Result<usize> {
    let shown = run(Command::new("bpftool").args(["map", "show", "id", id, "-j"]))?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    Ok(shown["bytes_value"].as_u64().unwrap_or(0) as usize)
}

#[test]
fn decisions_are_told_as_they_are_made() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let socket = lab.dir().join("control.sock");
    let mut watch = lab.edge.command(edge_tests::daemon::binary("edgectl")?);
    let file = lab.dir().join("watched");
    let out = std::fs::File::create(&file)?;
    let mut watch =
        watch.arg("--socket").arg(socket).args(["watch", "--json"]).stdout(out).spawn()?;
    let seen = || -> Result<Vec<serde_json::Value>> {
        let text = std::fs::read_to_string(&file)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    until("it watches", Duration::from_secs(10), || {
        edged.tell(&format!("ban add {ATTACKER} --ttl 1h"))?;
        edged.tell(&format!("ban remove {ATTACKER}"))?;
        Ok(!seen()?.is_empty())
    })?;
    for _ in 0..6 {
        let _ = edged.get(CLIENT, "/").key("edged_x").arg("--max-time", "1").send();
    }
    let of_scenario = |d: &serde_json::Value| d["origin"] == "scenario" && d["what"] == "ban";
    until("the ban is told", SOON, || Ok(seen()?.iter().any(of_scenario)))?;
    watch.kill()?;
    watch.wait()?;
    let told = seen()?;
    let ban = told.iter().find(|decision| of_scenario(decision)).context("seen above")?;
    assert_eq!((&ban["culprit"], &ban["scenario"]), (&CLIENT.into(), &"brute-force".into()));
    assert_eq!(ban["reason"], Reason::CredentialInvalid.name());
    assert_eq!(ban["evidence"].as_array().map(Vec::len), Some(6), "{ban}");
    Ok(())
}

#[test]
fn an_access_log_tells_who_would_have_been_judged() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let log = lab.dir().join("access.jsonl");
    let scenario = "[[scenario]]\nname = \"hoarding\"\nsignals = [\"served\", \"not_found\"]\n\
                    paths = [\"/status\"]\ndistinct = \"path\"\ncapacity = 3\nleak = \"1/m\"\n\
                    step = \"observe\"\nduration = \"1m\"";
    let edged = lab
        .edged()?
        .set("log.access", &format!("{log:?}"))
        .set("route.1.auth", "\"none\"")
        .append(scenario)?
        .start()?;
    for status in ["200", "201", "404", "203", "200"] {
        edged.get(ATTACKER, &format!("/status/{status}")).send()?;
    }
    edged.get(CLIENT, "/status/200").send()?;
    until("all is written", SOON, || {
        Ok(std::fs::read_to_string(&log)?.matches("/status/").count() == 6)
    })?;
    let line = format!(
        "replay --log {} --config {} --scenario hoarding --json",
        log.display(),
        edged.config.display()
    );
    let replayed: serde_json::Value = serde_json::from_str(edged.tell(&line)?.trim())?;
    assert_eq!((&replayed["culprit"], &replayed["step"]), (&ATTACKER.into(), &"observe".into()));
    let evidence = replayed["evidence"].as_array().context("evidence")?;
    let paths: Vec<_> = evidence.iter().map(|signal| signal["request"]["path"].clone()).collect();
    // The fourth path was one too many.
    assert_eq!(paths, ["/status/203", "/status/404", "/status/201", "/status/200"]);
    // It is what was seen live.
    let observed = |event: &serde_json::Value| event["scenario"] == "hoarding";
    assert_eq!(edged.events()?.iter().filter(|event| observed(event)).count(), 1);
    Ok(())
}

#[test]
fn a_replayed_log_spares_what_many_share() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab.edged()?.write()?;
    let log = lab.dir().join("recorded.jsonl");
    let line = |source: &str, reason: &str, status: u16, who: &str| {
        format!(
            "{{\"time\":\"2026-01-01T00:00:00.000Z\",\"client\":\"{source}\",\"reason\":\"{reason}\",\
             \"status\":{status},\"method\":\"GET\",\"path\":\"/\",\"request_id\":\"r\",\
             \"tls\":{{\"ja4\":\"t13d1516h2_8daaf6152771_e5627efa2ab1\"}}{who}}}\n"
        )
    };
    let served = |n| line(CLIENT, "serve", 200, &format!(",\"principal\":\"k{n}\",\"by\":\"key\""));
    let guess = |_| line(CLIENT, "credential_invalid", 401, "");
    let other = |_| line(ATTACKER, "credential_invalid", 401, "");
    let lines = (0..3).map(served).chain((0..6).map(guess)).chain((0..6).map(other));
    // The first line was cut off in the middle of a letter.
    let cut = [b"{\"time\":\"\xc3\n", lines.collect::<String>().as_bytes()].concat();
    std::fs::write(&log, cut)?;
    let mut edgectl = Command::new(edge_tests::daemon::binary("edgectl")?);
    edgectl.arg("replay").arg("--log").arg(&log).arg("--config").arg(&config).arg("--json");
    let done = edgectl.output()?;
    let complaints = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && complaints.contains("1 of 16 lines"), "{complaints}");
    let told: Vec<serde_json::Value> = String::from_utf8(done.stdout)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let of = |n: usize| (told[n]["step"].clone(), told[n]["spared"].clone());
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(of(0), ("403".into(), "shared_source".into()), "{told:?}");
    assert_eq!(of(1), ("ban".into(), serde_json::Value::Null), "{told:?}");
    Ok(())
}

#[test]
fn a_client_with_a_delay_waits_that_long() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("verdicts.delay", "\"1500ms\"").start()?;
    let took = |source: &str| -> Result<Duration> {
        let begun = std::time::Instant::now();
        assert_eq!(edged.get(source, "/health").send()?.status, 200);
        Ok(begun.elapsed())
    };
    edged.tell(&format!("ban add {ATTACKER} --ttl 1h --step delay"))?;
    let delay = Duration::from_millis(1500);
    let delayed = took(ATTACKER)?;
    assert!(delayed >= delay, "{delayed:?}");
    // Somebody who is delayed is so each time; a busy host is slow now and then.
    let undelayed =
        |source| until("no delay", Duration::from_secs(1), || Ok(took(source)? < delay));
    undelayed(CLIENT)?;
    edged.tell(&format!("ban remove {ATTACKER}"))?;
    undelayed(ATTACKER)?;
    Ok(())
}

#[test]
fn a_key_revoked_during_a_delay_is_refused_at_its_end() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("verdicts.delay", "\"2s\"").start()?;
    let key = edged.key("k")?;
    let id = edged.ask("key list")?["entries"][0]["id"].as_str().context("no id")?.to_owned();
    edged.tell(&format!("ban add key:{id} --ttl 1h --step delay"))?;
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| edged.get(CLIENT, "/").key(&key).send());
        std::thread::sleep(Duration::from_millis(700));
        edged.tell(&format!("key revoke {id}"))?;
        assert_eq!(asked.join().expect("no panic")?.status, 401);
        Ok(())
    })
}

#[test]
fn what_the_host_cannot_do_without_is_refused_and_never_banned() -> Result<()> {
    let lab = Lab::new()?;
    // Its way out.
    lab.edge.ip(&format!("route add default via {CLIENT}"))?;
    let edged = lab.edged()?.start()?;
    let guess =
        |source: &str| edged.get(source, "/").key("edged_x").arg("--connect-timeout", "2").send();
    for source in [CLIENT, ATTACKER] {
        for _ in 0..6 {
            let _ = guess(source);
        }
    }
    until("the other is banned", SOON, || Ok(!reaches(&lab, ATTACKER, 443)))?;
    until("it is refused", SOON, || Ok(guess(CLIENT)?.status == 403))?;
    let bans = edged.bans()?;
    let own = bans.iter().find(|ban| ban["culprit"] == CLIENT).context("its verdict")?;
    assert_eq!((&own["step"], &own["spared"]), (&"403".into(), &"lockout".into()), "{bans:?}");
    assert!(reaches(&lab, CLIENT, 443));
    assert!(metric(&edged, r#"edged_spared_total{guard="lockout"}"#)? >= 1.0);
    // By hand it takes a word more, also where it is the prefix of the one who is named.
    lab.edge.ip(&format!("route add default via {CLIENT6}"))?;
    let neighbour = "2001:db8:0:10::99";
    let done = edged.ctl(&format!("ban add {neighbour}"))?;
    let words = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && words.contains("the gateway"), "{words}");
    edged.tell(&format!("ban add {neighbour} --force"))?;
    assert!(!reaches(&lab, CLIENT6, 443));
    // A connection to sshd takes no login, and spares nobody what the operator says.
    let sshd = lab.edge.enter(|| TcpListener::bind((EDGE, 22)))?;
    let session = connect(&lab, FRIEND, 22, SOON)?;
    edged.edit("lists.allow", "[]")?;
    edged.tell("reload")?;
    edged.tell(&format!("ban add {FRIEND}"))?;
    assert!(!reaches(&lab, FRIEND, 443));
    drop((session, sshd));
    Ok(())
}

#[test]
fn logins_are_counted_by_account_and_a_log_tells_who_would_have_been_judged() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let route = "[[route]]\npath = \"/status\"\nmethods = [\"POST\"]\nauth = \"none\"\nupstream = \"api\"\n\
                 login = { account = \"json:user\", failure_statuses = [401] }\n\
                 [[scenario]]\nname = \"login-account\"\ncapacity = 2";
    let edged = lab.edged()?.append(route)?.start()?;
    let login = |source: &str, user: &str, outcome: &str| -> Result<u16> {
        let body = format!("{{\"user\":\"{user}\",\"password\":\"guess\"}}");
        let ask = edged.get(source, &format!("/status/{outcome}")).method("POST").body(body);
        Ok(ask.header("Content-Type", "application/json").send()?.status)
    };
    assert_eq!(login(CLIENT, "ann", "200")?, 200);
    for source in [CLIENT, ATTACKER, CLIENT] {
        assert_eq!(login(source, "Ann", "401")?, 401);
    }
    until("the account is guarded", SOON, || Ok(login(ATTACKER, "ann", "200")? == 429))?;
    assert_eq!(login(ATTACKER, "bob", "200")?, 200, "others are not");
    assert_eq!(edged.get(ATTACKER, "/health").send()?.status, 200, "nor is anything else");
    let penalty = edged.event("login_failed", CLIENT)?;
    assert_eq!(penalty["account"], "ann");
    let shown = edged.tell("ban show account:ann")?;
    assert!(shown.contains("login-account") && shown.contains(ATTACKER), "{shown}");
    edged.tell("ban remove account:ann")?;
    assert_eq!(login(ATTACKER, "ann", "200")?, 200);

    let log = lab.dir().join("events.jsonl");
    let config = edged.config.display();
    let line =
        format!("replay --log {} --config {config} --scenario login-account --json", log.display());
    let replayed: serde_json::Value = serde_json::from_str(edged.tell(&line)?.trim())?;
    assert_eq!((&replayed["culprit"], &replayed["step"]), (&"account:ann".into(), &"429".into()));
    assert_eq!(replayed["evidence"].as_array().map(Vec::len), Some(3));
    let told = edged.tell(&format!("replay --log {} --config {config}", log.display()))?;
    assert!(told.contains("account:ann") && told.contains("1 verdicts, of "), "{told}");
    Ok(())
}
