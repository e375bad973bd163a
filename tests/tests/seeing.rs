//! What an operator sees of the packets: who sends most, and what would become of one.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab,
    client::{connect, until},
    lab::{ATTACKER, CLIENT, CLIENT6, DENIED, EDGE, FRIEND, LISTED},
};
use serde_json::Value;

/// Sends so many packets a second until it is told to stop, and counts them.
fn send(socket: &UdpSocket, per_second: u64, sent: &AtomicU64, stop: &AtomicBool) {
    let start = Instant::now();
    while !stop.load(Relaxed) {
        let due = start.elapsed().as_micros() as u64 * per_second / 1_000_000;
        while sent.load(Relaxed) < due {
            // The edge answers with ICMP; that error is not this sender's concern.
            let _ = socket.send_to(&[0; 58], (EDGE, 9));
            sent.fetch_add(1, Relaxed);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn talker<'a>(top: &'a Value, source: &str) -> Result<&'a Value> {
    let talkers = top["talkers"].as_array().context("no talkers")?;
    talkers.iter().find(|t| t["source"] == source).with_context(|| format!("{source} in {top}"))
}

#[test]
fn the_sources_of_a_flood_are_named_with_their_rates() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let noise: Vec<String> = (0..60).map(|n| format!("198.51.100.{}", 130 + n)).collect();
    let addresses = noise.iter().map(|address| format!("addr add {address}/24 dev eth0"));
    lab.attacker.ip(&addresses.collect::<Vec<_>>().join("\n"))?;
    let mut senders = vec![(LISTED, 8_000), (ATTACKER, 4_000), (CLIENT, 1_000)];
    senders.extend(noise.iter().map(|address| (address.as_str(), 10)));
    let sockets = senders
        .iter()
        .map(|(source, _)| Ok(lab.home(source).enter(|| UdpSocket::bind((*source, 0)))?));
    let sockets: Vec<UdpSocket> = sockets.collect::<Result<_>>()?;
    let sent: Vec<AtomicU64> = senders.iter().map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let ((first, rest), stopped) = (sockets.split_at(3), &stop);
        for (index, socket) in first.iter().enumerate() {
            let (sent, stop) = (&sent[index], &stop);
            let rate = senders[index].1;
            scope.spawn(move || send(socket, rate, sent, stop));
        }
        scope.spawn(move || {
            while !stopped.load(Relaxed) {
                for socket in rest {
                    let _ = socket.send_to(&[0; 58], (EDGE, 9));
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        let watched = watch(&edged, &sent);
        stop.store(true, Relaxed);
        let (top, truth) = watched?;
        let rate = |source: &str| -> Result<f64> {
            Ok(talker(&top, source)?["packets_per_s"].as_f64().unwrap_or_default())
        };
        for (index, tolerance) in [(0, 0.1), (1, 0.1), (2, 0.25)] {
            let (source, truth) = (senders[index].0, truth[index]);
            let told = rate(source)?;
            let off = (told - truth).abs() / truth;
            println!("{source}: {told:.0} told, {truth:.0} sent, {:.1} % off", off * 100.0);
            assert!(off < tolerance, "{source}: {told} told, {truth} sent: {top}");
        }
        let sources: Vec<_> = top["talkers"].as_array().into_iter().flatten().collect();
        assert_eq!(sources[0]["source"], LISTED, "sorted by packets");
        let listed = talker(&top, LISTED)?;
        assert_eq!(
            (&listed["reason"], &listed["listed"], &listed["protocol"]),
            (&"deny_list".into(), &"deny".into(), &17.into()),
        );
        assert_eq!(listed["drops_per_s"], listed["packets_per_s"]);
        let attacker = talker(&top, ATTACKER)?;
        assert_eq!((&attacker["reason"], &attacker["drops_per_s"]), (&"pass".into(), &0.0.into()));
        assert_eq!((&attacker["port"], &attacker["listed"]), (&9.into(), &Value::Null));
        // Ten times half of the packets.
        assert!(attacker["cost"].as_f64() > listed["cost"].as_f64(), "{top}");
        let edge0 = top["interfaces"].as_array().into_iter().flatten();
        let edge0 = edge0.clone().find(|i| i["name"] == "edge0").context("edge0")?;
        let drops = edge0["drops_per_s"]["deny_list"].as_f64().unwrap_or_default();
        assert!((drops - truth[0]).abs() / truth[0] < 0.1, "{edge0}, {truth:?}");
        Ok(())
    })
}

/// What `top` says in the middle of it, and the packets a second that were truly sent.
fn watch(edged: &Edged<'_>, sent: &[AtomicU64]) -> Result<(Value, Vec<f64>)> {
    edged.tell("top --once")?;
    let counts = || sent.iter().map(|sent| sent.load(Relaxed)).collect::<Vec<_>>();
    let (before, start) = (counts(), Instant::now());
    for _ in 0..4 {
        edged.ask("top --once")?;
        thread::sleep(Duration::from_secs(1));
    }
    assert!(edged.ask("status")?["sampled"].as_u64() > Some(1), "a part is sampled");
    let top = edged.ask("top --once --sort packets -n 20")?;
    let seconds = start.elapsed().as_secs_f64();
    let rates = counts().into_iter().zip(before).map(|(now, then)| (now - then) as f64 / seconds);
    Ok((top, rates.collect()))
}

#[test]
fn nothing_is_sampled_when_nobody_looks() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    assert!(edged.ask("status")?["sampled"].is_null());
    let top = edged.ask("top --once")?;
    assert_eq!(top["samples_lost"], 0);
    assert_eq!(edged.ask("status")?["sampled"], 1);
    until("the watch ends", Duration::from_secs(8), || {
        Ok(edged.ask("status")?["sampled"].is_null())
    })?;
    assert_eq!(edged.metrics()?.value("edged_samples_lost_total"), 0.0);
    Ok(())
}

#[test]
fn explain_names_what_decides() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let ask = |line: &str| edged.ask(&format!("explain {line}"));
    let before = edged.metrics()?;

    let denied = ask(LISTED)?;
    assert_eq!((&denied["verdict"], &denied["rule"]), (&"deny_list".into(), &DENIED.into()));
    assert_eq!((&denied["source"], &denied["passes"]), (&"config".into(), &false.into()));
    assert!(denied["since_ms"].as_u64() > Some(0), "{denied}");
    let packet = denied["packet"].as_str().unwrap_or_default();
    let wanted = format!("tcp syn from {LISTED} port 40000 to {EDGE} port 443, 54 bytes, by edge0");
    assert_eq!(packet, wanted);

    let allowed = ask(FRIEND)?;
    assert_eq!((&allowed["verdict"], &allowed["source"]), (&"allow_list".into(), &"config".into()));

    edged.tell("deny add 198.51.100.99 --ttl 10m --reason noise")?;
    let added = ask("198.51.100.99 --protocol udp --port 53 --length 100")?;
    assert_eq!((&added["source"], &added["reason"]), (&"operator".into(), &"noise".into()));
    assert!(added["until_ms"].as_u64() > added["since_ms"].as_u64(), "{added}");
    assert!(added["packet"].as_str().is_some_and(|p| p.contains("port 53, 100 bytes")), "{added}");

    // Of what is only monitored, who listed it is told as well; of two entries, that which decides.
    edged.tell("deny add 192.88.99.0/24 --monitor --reason hunch")?;
    let watched = ask("192.88.99.9")?;
    assert_eq!((&watched["passes"], &watched["would"]), (&true.into(), &"deny_list".into()));
    assert_eq!((&watched["source"], &watched["reason"]), (&"operator".into(), &"hunch".into()));
    assert!(watched["since_ms"].is_u64(), "{watched}");
    edged.tell(&format!("deny add {DENIED} --monitor --reason hunch"))?;
    let denied = ask(LISTED)?;
    assert_eq!((&denied["source"], &denied["reason"]), (&"config".into(), &().into()), "{denied}");

    let passed = ask(CLIENT6)?;
    assert_eq!((&passed["verdict"], &passed["passes"]), (&"pass".into(), &true.into()));
    assert_eq!(ask(&format!("{ATTACKER} --protocol icmp"))?["verdict"], "pass");
    assert_eq!(ask("--frame 0200000000010200000000020806")?["verdict"], "not_ip");
    assert_eq!(ask("--frame 020000000001020000000002080045")?["verdict"], "malformed_packet");

    let after = edged.metrics()?;
    for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::NotIp) {
        let (before, after) = (before.packets(*reason), after.packets(*reason));
        // The lab's own chatter is neighbour discovery.
        assert!(*reason == Reason::Pass || before == after, "{}", reason.name());
    }
    Ok(())
}

#[test]
fn explain_names_the_key_of_the_configuration_that_decides() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab
        .edged()?
        // As it is shipped: the packets that are asked about are for an address of the interface.
        .set("server.https", r#"["0.0.0.0:443", "[::]:443"]"#)
        .set("kernel.fragments", r#""drop""#)
        .set("kernel.open_connections_max", "1")
        .set("kernel.connection_rate", r#"{ rate = "1/h", burst = 2 }"#)
        .set("kernel.prefix_limits", "[{ prefix = 56, factor = 1 }]")
        .set("kernel.syn_cookies.unsolicited", r#""always""#)
        .append("[kernel.services]\ninbound = [\"tcp/22\"]\n")?
        .start()?;
    let ask = |line: &str| edged.ask(&format!("explain {line}"));
    let expect = |line: &str, verdict: &str, rule: &str| -> Result<()> {
        let told = ask(line)?;
        let found = (&told["verdict"], &told["rule"], &told["source"]);
        assert_eq!(found, (&verdict.into(), &rule.into(), &"config".into()), "{line}");
        assert!(edged.tell(&format!("explain {line}"))?.contains(rule), "{line}");
        Ok(())
    };
    expect(
        &format!("{CLIENT} --port 8443"),
        "no_service",
        "kernel.services, of which this is none",
    )?;
    let ack = format!("{CLIENT} --flags ack");
    expect(&ack, "unsolicited", "kernel.syn_cookies.unsolicited = \"always\"")?;
    let _held = connect(&lab, CLIENT, 443, Duration::from_secs(1))?;
    expect(CLIENT, "open_connections", "kernel.open_connections_max = 1")?;
    // An IPv4 packet of which this is the first fragment.
    let frame = "02000000000102000000000208004500002400002000402f0000c6336401c0000201";
    let told = ask(&format!("--frame {}{}", frame, "00".repeat(16)))?;
    assert_eq!(
        (&told["verdict"], &told["rule"]),
        (&"fragment".into(), &"kernel.fragments = \"drop\"".into())
    );
    // Two clients of one /56 use up what they have together.
    for _ in 0..3 {
        let _ = connect(&lab, CLIENT6, 443, Duration::from_millis(50));
    }
    let other = CLIENT6.parse::<std::net::Ipv6Addr>()?.to_bits() ^ (1 << 64);
    let other = std::net::Ipv6Addr::from_bits(other).to_string();
    expect(&other, "prefix_rate", "kernel.prefix_limits, /56, connection_rate, 2 at once")?;
    Ok(())
}

#[test]
fn explain_tells_of_signatures_limits_and_bans() -> Result<()> {
    let lab = Lab::new()?;
    let rate = r#"{ rate = "1/h", burst = 40 }"#;
    let signature = "[[kernel.signature]]\nname = \"dns\"\naction = \"drop\"\nprotocol = \"udp\"\n\
                     source_ports = 53\nmonitor = true\n\
                     [[kernel.signature]]\nname = \"ntp\"\naction = \"drop\"\nprotocol = \"udp\"\n\
                     source_ports = 123\n";
    let edged = lab.edged()?.set("kernel.connection_rate", rate).append(signature)?.start()?;
    let matched = edged.ask(&format!("explain {CLIENT} --protocol udp --source-port 123"))?;
    assert_eq!(
        (&matched["verdict"], &matched["rule"], &matched["hits"]),
        (&"signature".into(), &"signature ntp".into(), &0.into())
    );
    let watched = edged.ask(&format!("explain {CLIENT} --protocol udp --source-port 53"))?;
    assert_eq!(
        (&watched["verdict"], &watched["would"], &watched["rule"]),
        (&"pass".into(), &"signature".into(), &"signature dns".into())
    );
    let bucket = |source: &str| -> Result<Value> {
        let told = edged.ask(&format!("explain {source}"))?;
        let buckets = told["buckets"].as_array().context("no buckets")?.clone();
        let found = buckets.into_iter().find(|bucket| bucket["limit"] == "connection_rate");
        found.with_context(|| told.to_string())
    };
    assert_eq!(bucket(CLIENT)?["left"], 40);
    let held = connect(&lab, CLIENT, 443, Duration::from_secs(1))?;
    assert_eq!((&bucket(CLIENT)?["left"], &bucket(CLIENT)?["burst"]), (&39.into(), &40.into()));
    assert_eq!(edged.ask(&format!("explain {CLIENT}"))?["open_connections"], 1);
    drop(held);
    for _ in 0..60 {
        let _ = connect(&lab, ATTACKER, 443, Duration::from_millis(20));
    }
    let limited = edged.ask(&format!("explain {ATTACKER}"))?;
    assert_eq!(
        (&limited["verdict"], bucket(ATTACKER)?["left"].as_u64()),
        (&"connection_rate".into(), Some(0))
    );
    let rule = (&limited["rule"], &limited["source"]);
    assert_eq!(rule, (&"kernel.connection_rate, 40 at once".into(), &"config".into()));
    assert!(limited["hits"].as_u64() >= Some(1), "{limited}");
    let other = edged.ask(&format!("explain {ATTACKER} --flags ack"))?;
    assert_eq!(other["verdict"], "pass", "only new connections are refused");

    for guess in 0..30 {
        let key = format!("edged_{guess:043}_000000");
        if edged.get(CLIENT, "/").key(&key).arg("--connect-timeout", "2").send().is_err() {
            break;
        }
    }
    let banned = edged.ask(&format!("explain {CLIENT} --flags none"))?;
    assert_eq!(banned["verdict"], "ban", "{banned}");
    let ban = &banned["bans"][0];
    assert_eq!(ban["reason"], Reason::CredentialInvalid.name());
    assert_eq!(ban["scenario"], "brute-force");
    assert_eq!((&ban["strikes"], &banned["hits"]), (&1.into(), &ban["hits"]));
    let evidence = ban["evidence"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(evidence.len() == 6 && evidence.iter().all(|e| e["status"] == 401), "{ban}");
    assert!(banned["until_ms"].as_u64() > banned["since_ms"].as_u64(), "{banned}");
    let rule = banned["rule"].as_str().unwrap_or_default();
    assert!(rule.contains(CLIENT) && rule.contains("credential_invalid"), "{rule}");
    Ok(())
}

#[test]
fn a_guarded_interface_has_one_name_everywhere() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab.edged()?.set("kernel.interfaces", r#"["back0", "edge0"]"#).start()?;
    edged.tell(&format!("explain {CLIENT} --interface back0"))?;
    edged.kill9()?;
    edged.edit("kernel.interfaces", r#"["edge0"]"#)?;
    edged.start_again()?;
    let refused = |edged: &Edged<'_>, name: &str| -> Result<bool> {
        let done = edged.ctl(&format!("explain {CLIENT} --interface {name}"))?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        Ok(words.contains(&format!("no interface named {name} is guarded")))
    };
    assert!(refused(&edged, "back0")?, "it was guarded once");
    assert!(edged.tell(&format!("explain {CLIENT}"))?.contains("by edge0"));
    lab.edge.ip("link set edge0 down\nlink set edge0 name wan0\nlink set wan0 up")?;
    until("its new name is told", Duration::from_secs(5), || {
        Ok(edged.scrape()?.contains(r#"edged_interface_filtered{interface="wan0","#))
    })?;
    connect(&lab, CLIENT, 443, Duration::from_secs(5))?;
    let status = edged.ask("status")?;
    let [interface] = status["interfaces"].as_array().context("a list")?.as_slice() else {
        panic!("one interface: {status}");
    };
    assert_eq!(interface["name"], "wan0");
    assert!(interface["traffic"]["packets"].as_u64() > Some(0), "{interface}");
    assert!(edged.scrape()?.contains(r#"interface="wan0"} "#));
    assert!(edged.tell(&format!("explain {CLIENT} --interface wan0"))?.contains("by wan0"));
    assert!(refused(&edged, "edge0")?);
    Ok(())
}

#[test]
fn senseless_questions_are_refused_with_the_reason() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    for (line, word) in [
        ("explain 192.0.2.1 --protocol udp --flags syn", "only TCP has flags"),
        ("explain 192.0.2.1 --protocol icmp --port 3", "ICMP has no ports"),
        ("explain 192.0.2.1 --length 20", "the headers alone take 54 bytes"),
        ("explain 192.0.2.1 --length 99999", "9216 bytes at most"),
        ("explain 192.0.2.1 --destination ::1", "different families"),
        ("explain 192.0.2.1 --interface eth9", "no interface named eth9 is guarded"),
        ("explain --frame 0x02", "not hexadecimal"),
        ("explain --frame 02", "14 to 9216 whole bytes"),
    ] {
        let done = edged.ctl(line)?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{line}: {words}");
        assert!(words.contains(word), "{line}: {words}");
    }
    Ok(())
}
