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
    let told = |country: &str, limit: &str| -> Result<String> {
        let mut setup = lab.edged()?;
        if !country.is_empty() {
            setup = setup.set("geo.country", &format!("{:?}", lab.dir().join(country)));
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
    for (country, limit, what) in [
        ("gone.mmdb", LIMIT, "No such file"),
        ("bad.mmdb", LIMIT, "bad.mmdb: "),
        ("cut.mmdb", LIMIT, "cut.mmdb: "),
        ("asn.mmdb", LIMIT, "a database of the type 'Test-ASN' does not tell countries"),
        ("", LIMIT, "nothing tells the country of an address"),
        ("", SCENARIO, "nothing tells the country of an address"),
    ] {
        let words = told(country, limit)?;
        assert!(words.contains(what), "{country}: {words}");
    }
    Ok(())
}
