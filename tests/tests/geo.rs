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
    let setup = lab.edged()?.set("limits.per_source", "\"off\"").set("geo.country", &geo);
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
    ] {
        let words = told(country, limit)?;
        assert!(words.contains(what), "{country}: {words}");
    }
    Ok(())
}
