//! Limits by where clients are from: databases in MaxMind's format, which change under the daemon.

use std::time::Duration;

use anyhow::Result;
use edge_tests::{
    Lab, Origin,
    client::until,
    lab::{ATTACKER, CLIENT, CLIENT6, FRIEND},
    mmdb::{Value, write},
};
use ipnet::IpNet;

fn net(text: &str) -> Result<IpNet> {
    Ok(text.parse()?)
}

fn countries(entries: &[(&str, &str)]) -> Result<Vec<u8>> {
    let codes: Vec<_> = entries.iter().map(|(_, code)| [("iso_code", Value::Text(code))]).collect();
    let countries: Vec<_> = codes.iter().map(|code| [("country", Value::Map(code))]).collect();
    let entries: Result<Vec<_>> =
        entries.iter().zip(&countries).map(|((at, _), c)| Ok((net(at)?, Value::Map(c)))).collect();
    Ok(write("Test-Country", &entries?))
}

/// A database of networks' numbers, each in the shape that it is told in.
fn numbers(entries: &[(&str, (&str, Value<'_>))]) -> Result<Vec<u8>> {
    let numbers: Vec<_> = entries.iter().map(|(_, number)| [*number]).collect();
    let entries: Result<Vec<_>> =
        entries.iter().zip(&numbers).map(|((at, _), n)| Ok((net(at)?, Value::Map(n)))).collect();
    Ok(write("Test-ASN", &entries?))
}

/// [`CLIENT`] and [`FRIEND`] are of one network, [`ATTACKER`] is of another, each in another shape.
fn networks() -> Result<Vec<u8>> {
    let [client, friend, attacker] =
        [CLIENT, FRIEND, ATTACKER].map(|address| format!("{address}/32"));
    numbers(&[
        (&client, ("autonomous_system_number", Value::Number(64_496))),
        (&friend, ("asn", Value::Text("AS64496"))),
        (&attacker, ("asn", Value::Number(64_497))),
    ])
}

const LIMIT: &str = "[[limit]]\nname = \"place\"\nby = [\"country\"]\nrate = \"3/h\"\n";

#[test]
fn clients_are_counted_by_their_country() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let path = lab.dir().join("country.mmdb");
    let client = format!("{CLIENT}/32");
    let (attacker, friend) = (format!("{ATTACKER}/32"), format!("{FRIEND}/32"));
    let known = [(client.as_str(), "NZ"), (friend.as_str(), "NZ"), (attacker.as_str(), "CH")];
    std::fs::write(&path, countries(&known)?)?;
    let geo = format!("{path:?}");
    let setup = lab.edged()?.set("geo.country", &geo);
    let edged = setup.append(LIMIT)?.start()?;
    let ask = |source: &str| Ok::<_, anyhow::Error>(edged.get(source, "/health").send()?.status);
    // Two addresses of one country share its limit; another country has its own, and so have
    // those of whom nobody knows.
    assert_eq!([ask(CLIENT)?, ask(FRIEND)?, ask(CLIENT)?], [200; 3]);
    assert_eq!([ask(FRIEND)?, ask(CLIENT)?], [429; 2]);
    assert_eq!([ask(ATTACKER)?, ask(CLIENT6)?], [200; 2]);
    // A damaged file changes nothing; a good one is in use without a reload.
    std::fs::write(&path, "no database")?;
    until("the damage is told", Duration::from_secs(15), || {
        Ok(edged.log().contains("is no good"))
    })?;
    assert_eq!(ask(CLIENT)?, 429);
    let moved = [(client.as_str(), "CH"), (friend.as_str(), "NZ"), (attacker.as_str(), "CH")];
    std::fs::write(&path, countries(&moved)?)?;
    until("the new one is in use", Duration::from_secs(15), || {
        Ok(edged.log().contains("the new one is in use"))
    })?;
    assert_eq!([ask(CLIENT)?, ask(FRIEND)?], [200, 429]);
    Ok(())
}

const SCENARIO: &str = "[[scenario]]\nname = \"far\"\nsignals = [\"credential_invalid\"]\n\
    by = \"country\"\nnot_country = [\"CH\"]\ncapacity = 3\nleak = \"1/h\"\nduration = \"1h\"\nstep = \"429\"\n\
    [[scenario]]\nname = \"brute-force\"\nenabled = false\n";

#[test]
fn guesses_are_held_against_where_they_come_from() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let path = lab.dir().join("country.mmdb");
    let [client, friend, attacker] =
        [CLIENT, FRIEND, ATTACKER].map(|address| format!("{address}/32"));
    let known = [(client.as_str(), "NZ"), (friend.as_str(), "NZ"), (attacker.as_str(), "CH")];
    std::fs::write(&path, countries(&known)?)?;
    let setup = lab.edged()?.set("geo.country", &format!("{path:?}"));
    let setup = setup.set("verdicts.never_ban", &format!("[{friend:?}]"));
    let edged = setup.append(SCENARIO)?.start()?;
    let key = edged.key("reader")?;
    let guess =
        |source: &str| -> Result<u16> { Ok(edged.get(source, "/").key("edged_x").send()?.status) };
    // Three from either country, none of them enough by itself; of where nobody knows, as many.
    for source in [CLIENT, FRIEND, CLIENT, ATTACKER, ATTACKER, ATTACKER, CLIENT6, CLIENT6] {
        assert_eq!(guess(source)?, 401);
    }
    assert!(edged.bans()?.is_empty());
    until("the country is refused", Duration::from_secs(5), || Ok(guess(CLIENT)? == 429))?;
    let bans = edged.bans()?;
    assert_eq!(bans.len(), 1, "{bans:?}");
    assert_eq!((&bans[0]["culprit"], &bans[0]["scenario"]), (&"country:NZ".into(), &"far".into()));
    // Who is never banned bears nothing; whoever proves who it is, is judged by its own record; and so
    // is another country.
    assert_eq!(guess(FRIEND)?, 401);
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
    assert_eq!((guess(ATTACKER)?, guess(CLIENT6)?), (401, 401));
    let explained = edged.tell(&format!("explain {CLIENT}"))?;
    assert!(explained.lines().any(|line| line.starts_with("country") && line.ends_with("NZ")));
    // The same engine says so of the log.
    let log = lab.dir().join("events.jsonl");
    let line = format!(
        "replay --log {} --scenario far --config {}",
        log.display(),
        edged.config.display()
    );
    until("it would be judged so again", Duration::from_secs(5), || {
        Ok(edged.tell(&line)?.contains("country:NZ"))
    })?;
    edged.tell(&format!("allow add {CLIENT}"))?;
    until("who is allowed bears nothing, either", Duration::from_secs(5), || {
        Ok(guess(CLIENT)? == 401)
    })?;
    edged.tell(&format!("allow remove {CLIENT}"))?;
    until("it bears it again", Duration::from_secs(5), || Ok(guess(CLIENT)? == 429))?;
    edged.tell("ban remove country:NZ")?;
    assert_eq!(guess(CLIENT)?, 401);
    Ok(())
}

#[test]
fn one_key_from_several_countries_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let path = lab.dir().join("country.mmdb");
    let [client, friend, attacker] =
        [CLIENT, FRIEND, ATTACKER].map(|address| format!("{address}/32"));
    let known = [(client.as_str(), "NZ"), (friend.as_str(), "CH"), (attacker.as_str(), "BR")];
    std::fs::write(&path, countries(&known)?)?;
    let roaming = "[[scenario]]\nname = \"roaming\"\nsignals = [\"served\"]\nby = \"principal\"\n\
        distinct = \"country\"\ncapacity = 1\nleak = \"1/d\"\nstep = \"observe\"\nduration = \"1h\"\n";
    let setup = lab.edged()?.set("geo.country", &format!("{path:?}"));
    let edged = setup.append(roaming)?.start()?;
    let (one, other) = (edged.key("one")?, edged.key("other")?);
    // As often as it likes from one country; another key from another.
    for _ in 0..3 {
        assert_eq!(edged.get(CLIENT, "/").key(&one).send()?.status, 200);
        assert_eq!(edged.get(FRIEND, "/").key(&other).send()?.status, 200);
    }
    let observed = || -> Result<Vec<serde_json::Value>> {
        Ok(edged.events()?.into_iter().filter(|e| e["scenario"] == "roaming").collect())
    };
    assert!(observed()?.is_empty());
    assert_eq!(edged.get(ATTACKER, "/").key(&one).send()?.status, 200);
    until("it is told", Duration::from_secs(5), || Ok(observed()?.len() == 1))?;
    assert!(observed()?[0].to_string().contains("key:"), "{:?}", observed()?);
    assert_eq!(edged.get(CLIENT, "/").key(&one).send()?.status, 200, "and nothing is done");
    Ok(())
}

#[test]
fn what_is_missing_or_broken_is_told_before_the_start() -> Result<()> {
    let lab = Lab::new()?;
    let told = |file: &str, limit: &str| -> Result<String> {
        let mut setup = lab.edged()?;
        if !file.is_empty() {
            let key = if limit.contains("asn") { "geo.asn" } else { "geo.country" };
            setup = setup.set(key, &format!("{:?}", lab.dir().join(file)));
        }
        let config = setup.append(limit)?.write()?;
        edge_tests::daemon::certify(lab.dir())?;
        let mut edged = lab.edge.command(edge_tests::daemon::binary("edged")?);
        let done = edged.arg("check").arg("--config").arg(config).output()?;
        assert!(!done.status.success());
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let asn = write("Test-ASN", &[(net("192.0.2.0/24")?, Value::Number(1))]);
    std::fs::write(lab.dir().join("asn.mmdb"), asn)?;
    std::fs::write(lab.dir().join("bad.mmdb"), "no database")?;
    let whole = countries(&[("192.0.2.0/24", "NZ")])?;
    std::fs::write(lab.dir().join("cut.mmdb"), &whole[whole.len() / 2..])?;
    std::fs::write(lab.dir().join("country.mmdb"), &whole)?;
    let by_asn = LIMIT.replace("country", "asn");
    for (file, limit, what) in [
        ("gone.mmdb", LIMIT, "No such file"),
        ("bad.mmdb", LIMIT, "bad.mmdb: "),
        ("cut.mmdb", LIMIT, "cut.mmdb: "),
        ("asn.mmdb", LIMIT, "a database of the type 'Test-ASN' does not tell countries"),
        ("", LIMIT, "nothing tells the country of an address"),
        ("", SCENARIO, "nothing tells the country of an address"),
        (
            "country.mmdb",
            &by_asn,
            "a database of the type 'Test-Country' does not tell autonomous systems",
        ),
        ("", &by_asn, "nothing tells the asn of an address"),
    ] {
        let words = told(file, limit)?;
        assert!(words.contains(what), "{file}: {words}");
    }
    Ok(())
}

#[test]
fn clients_are_counted_by_the_network_that_they_are_of() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let path = lab.dir().join("asn.mmdb");
    std::fs::write(&path, networks()?)?;
    let setup = lab.edged()?.set("geo.asn", &format!("{path:?}"));
    let edged = setup.append(&LIMIT.replace("country", "asn"))?.start()?;
    let ask = |source: &str| Ok::<_, anyhow::Error>(edged.get(source, "/health").send()?.status);
    assert_eq!([ask(CLIENT)?, ask(FRIEND)?, ask(CLIENT)?], [200; 3]);
    assert_eq!([ask(FRIEND)?, ask(CLIENT)?], [429; 2]);
    assert_eq!([ask(ATTACKER)?, ask(CLIENT6)?], [200; 2]);
    for (source, number) in [(CLIENT, "64496"), (FRIEND, "64496"), (ATTACKER, "64497")] {
        let told = edged.tell(&format!("explain {source}"))?;
        let is_told = |line: &str| line.starts_with("asn") && line.ends_with(number);
        assert!(told.lines().any(is_told), "{source}: {told}");
    }
    Ok(())
}

const BY_NETWORK: &str = "[[scenario]]\nname = \"far\"\nsignals = [\"credential_invalid\"]\n\
    by = \"asn\"\nnot_asn = [64497]\ncapacity = 3\nleak = \"1/h\"\nduration = \"1h\"\nstep = \"429\"\n\
    [[scenario]]\nname = \"near\"\nsignals = [\"credential_invalid\"]\nby = \"asn\"\nasn = [64497]\n\
    capacity = 3\nleak = \"1/h\"\nduration = \"1h\"\nstep = \"observe\"\n\
    [[scenario]]\nname = \"brute-force\"\nenabled = false\n";

#[test]
fn guesses_are_held_against_the_network_that_they_come_from() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let path = lab.dir().join("asn.mmdb");
    std::fs::write(&path, networks()?)?;
    let setup = lab.edged()?.set("geo.asn", &format!("{path:?}")).set("lists.allow", "[]");
    let edged = setup.append(BY_NETWORK)?.start()?;
    let guess =
        |source: &str| -> Result<u16> { Ok(edged.get(source, "/").key("edged_x").send()?.status) };
    let observed = |scenario: &str| -> Result<Vec<serde_json::Value>> {
        Ok(edged.events()?.into_iter().filter(|event| event["scenario"] == scenario).collect())
    };
    // As many as the scenarios let pass from each network, and of where nobody knows more.
    for source in [CLIENT, FRIEND, CLIENT, ATTACKER, ATTACKER, ATTACKER] {
        assert_eq!(guess(source)?, 401);
    }
    for _ in 0..5 {
        assert_eq!(guess(CLIENT6)?, 401);
    }
    assert!(observed("far")?.is_empty() && observed("near")?.is_empty());
    until("the one network is refused", Duration::from_secs(5), || Ok(guess(FRIEND)? == 429))?;
    assert_eq!((guess(CLIENT)?, guess(ATTACKER)?, guess(CLIENT6)?), (429, 401, 401));
    until("the other is told of", Duration::from_secs(5), || Ok(!observed("near")?.is_empty()))?;
    let culprits =
        |told: Vec<serde_json::Value>| -> String { told.iter().map(ToString::to_string).collect() };
    let (far, near) = (culprits(observed("far")?), culprits(observed("near")?));
    assert!(far.contains("asn:64496") && !far.contains("asn:64497"), "{far}");
    assert!(near.contains("asn:64497") && !near.contains("asn:64496"), "{near}");
    edged.tell("ban remove asn:64496")?;
    assert_eq!(guess(CLIENT)?, 401);
    Ok(())
}

#[test]
fn one_key_from_several_networks_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let path = lab.dir().join("asn.mmdb");
    std::fs::write(&path, networks()?)?;
    let roaming = "[[scenario]]\nname = \"roaming\"\nsignals = [\"served\"]\nby = \"principal\"\n\
        distinct = \"asn\"\ncapacity = 1\nleak = \"1/d\"\nstep = \"observe\"\nduration = \"1h\"\n";
    let edged = lab.edged()?.set("geo.asn", &format!("{path:?}")).append(roaming)?.start()?;
    let key = edged.key("one")?;
    let observed = || -> Result<usize> {
        Ok(edged.events()?.iter().filter(|event| event["scenario"] == "roaming").count())
    };
    // Two addresses of one network are one.
    for source in [CLIENT, FRIEND, CLIENT, FRIEND] {
        assert_eq!(edged.get(source, "/").key(&key).send()?.status, 200);
    }
    assert_eq!(observed()?, 0);
    assert_eq!(edged.get(ATTACKER, "/").key(&key).send()?.status, 200);
    until("it is told", Duration::from_secs(5), || Ok(observed()? == 1))?;
    Ok(())
}
