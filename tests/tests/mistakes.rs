//! Bad input, a row for each kind: what `edged check` says of it, and that a daemon that meets it while it runs keeps what
//! was good and tells so in a metric.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use edge_tests::{
    Edged, Lab, Origin,
    client::{HOST, reaches, until},
    daemon::binary,
    lab::{CLIENT, LISTED, ORIGIN},
    pki::{Authority, DAY, Leaf},
    talk::Dial,
};

/// A piece of bad input.
struct Row {
    name: &'static str,
    /// Brings it about, in the configuration or in the files that it names.
    spoil: fn(&Bench<'_>) -> Result<()>,
    /// What stands in the line that is to be told.
    at: &'static str,
    told: &'static str,
    then: Then,
    /// The series that rises when a running daemon meets it.
    raises: &'static str,
}

/// What becomes of the bad input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It is a mistake: neither a start nor a reload takes it.
    Refused,
    /// It may be intended, and is only told: a start takes it, and a running daemon keeps what was better.
    Told,
    /// As [`Self::Told`] at a start, and refused where something better runs.
    Worse,
}

/// What rows work on.
struct Bench<'a> {
    edged: Edged<'a>,
    authority: Authority,
    leaf: Leaf,
}

const REFUSED: &str = r#"edged_reloads_total{result="refused"}"#;
const ROWS: &[Row] = &[
    Row {
        name: "the certificate has expired in its file",
        spoil: |bench| bench.authority.sign("served", &[HOST], -2 * DAY, -DAY).map(drop),
        at: "served.pem",
        told: "served.pem has expired on",
        then: Then::Told,
        raises: r#"edged_certificate_reloads_total{result="refused"}"#,
    },
    Row {
        name: "another certificate, which has expired",
        spoil: |bench| {
            let old = bench.authority.sign("old", &[HOST], -2 * DAY, -DAY)?;
            bench.serve(&old.chain, &old.key, HOST)
        },
        at: "old.pem",
        told: "old.pem has expired on",
        then: Then::Worse,
        raises: REFUSED,
    },
    Row {
        name: "a certificate that is not for the name it is to serve",
        spoil: |bench| bench.serve(&bench.leaf.chain, &bench.leaf.key, "other.test"),
        at: "other.test",
        told: "served.pem is not for 'other.test'",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "a key that is not there",
        spoil: |bench| bench.serve(&bench.leaf.chain, Path::new("nowhere.key"), HOST),
        at: "nowhere.key",
        told: "nowhere.key: cannot be read: No such file",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "a key that may not be read",
        spoil: |bench| mode(&bench.leaf.key, 0o000),
        at: "served.key",
        told: "served.key: cannot be read: Permission denied",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "a key that everyone can read",
        spoil: |bench| mode(&bench.leaf.key, 0o644),
        at: "served.key",
        told: "everyone can read the private key",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "the key of another certificate",
        spoil: |bench| {
            let other = bench.authority.sign("other", &[HOST], -60, DAY)?;
            fs::copy(other.key, &bench.leaf.key).map(drop)?;
            Ok(())
        },
        at: "served.key",
        told: "served.key: is not the key of the certificate",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "a certificate that is none",
        spoil: |bench| Ok(fs::write(&bench.leaf.chain, "nonsense")?),
        at: "served.pem",
        told: "served.pem: holds no certificate",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "a route twice",
        spoil: |bench| bench.append(r#"path = "/health" # twice"#, r#"["GET", "HEAD"]"#),
        at: "# twice",
        told: "route 3 is the same as route 1",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "a route in the shadow of another, for one of its methods",
        spoil: |bench| bench.append(r#"path = "/health" # hidden"#, r#"["POST", "HEAD"]"#),
        at: "# hidden",
        told: "one route serves /health of host * for HEAD",
        then: Then::Refused,
        raises: REFUSED,
    },
    Row {
        name: "an upstream whose name does not resolve",
        spoil: |bench| bench.servers("nosuch.invalid:8080"),
        at: "nosuch.invalid",
        told: "cannot reach nosuch.invalid:8080 now",
        then: Then::Told,
        raises: r#"edged_upstream_lookups_total{upstream="api",result="failed"}"#,
    },
    Row {
        name: "an upstream that cannot be reached",
        spoil: |bench| bench.servers(&format!("{ORIGIN}:8089")),
        at: "8089",
        told: "cannot reach 192.0.2.2:8089 now",
        then: Then::Told,
        raises: r#"edged_upstream_requests_total{upstream="api",server="192.0.2.2:8089",outcome="unreachable"}"#,
    },
];

#[test]
fn bad_input_is_told_with_its_line_and_never_replaces_what_is_good() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let authority = Authority::new(lab.dir(), "site")?;
    let leaf = authority.sign("served", &[HOST], -60, DAY)?;
    let edged = lab
        .edged()?
        .without("tls", "key")
        .set("tls.certificate", &certificate(&leaf.chain, &leaf.key, HOST))
        .start()?;
    let mut bench = Bench { edged, authority, leaf };
    let good = bench.state()?;
    let first = bench.shown()?;
    for row in ROWS {
        bench.meet(row, &first).with_context(|| row.name)?;
        for (path, bytes) in &good {
            fs::write(path, bytes)?;
        }
        mode(&bench.leaf.key, 0o600)?;
        bench.edged.tell("reload").with_context(|| format!("after {}", row.name))?;
        ensure!(bench.shown()? == first, "what is good again is served: {}", row.name);
    }
    Ok(())
}

impl Bench<'_> {
    fn meet(&mut self, row: &Row, first: &[u8]) -> Result<()> {
        let before = self.raised(row)?;
        (row.spoil)(self)?;
        let (code, said) = check(&self.edged)?;
        let text = fs::read_to_string(&self.edged.config)?;
        let line = text.lines().position(|line| line.contains(row.at)).context("a line")? + 1;
        let place = format!("edged.toml:{line}:");
        ensure!(said.contains(row.told) && said.contains(&place), "not {place} in\n{said}");
        let expected = if row.then == Then::Refused { 78 } else { 0 };
        ensure!(code == expected, "edged check ends with {code}");

        let reload = self.edged.ctl("reload")?;
        let words = String::from_utf8_lossy(&reload.stderr).into_owned();
        ensure!(reload.status.success() == (row.then == Then::Told), "the reload says: {words}");
        if row.then != Then::Told {
            ensure!(words.contains(row.told), "the reload says: {words}");
        }
        until("it is told in a metric", Duration::from_secs(10), || {
            // Servers are asked in turn; a good one answers.
            ensure!(self.shown()? == first, "another certificate is served");
            Ok(self.raised(row)? > before)
        })?;
        if row.then == Then::Told {
            self.edged.terminate()?;
            self.edged.start_again().context("a start takes it")?;
        }
        Ok(())
    }

    fn raised(&self, row: &Row) -> Result<f64> {
        Ok(self.edged.metrics()?.value(row.raises))
    }

    /// The certificate that a client is shown, who must be served.
    fn shown(&self) -> Result<Vec<u8>> {
        let dial = Dial::new(&self.authority.ca, HOST)?;
        let mut talk = dial.connect(self.edged.lab(), CLIENT)?;
        let status = talk.get(HOST, "/health", &[])?.status;
        ensure!(status == 200, "it is answered {status}");
        Ok(talk.certificate())
    }

    /// What is good of the files.
    fn state(&self) -> Result<Vec<(std::path::PathBuf, Vec<u8>)>> {
        let paths = [&self.edged.config, &self.leaf.chain, &self.leaf.key];
        paths.into_iter().map(|path| Ok((path.clone(), fs::read(path)?))).collect()
    }

    fn serve(&self, chain: &Path, key: &Path, name: &str) -> Result<()> {
        self.edged.edit("tls.certificate", &certificate(chain, key, name))
    }

    /// Another route.
    fn append(&self, path: &str, methods: &str) -> Result<()> {
        let mut text = fs::read_to_string(&self.edged.config)?;
        text += &format!(
            "\n[[route]]\n{path}\nmethods = {methods}\nauth = \"none\"\nupstream = \"api\"\n"
        );
        Ok(fs::write(&self.edged.config, text)?)
    }

    /// Another server, beside the good one.
    fn servers(&self, more: &str) -> Result<()> {
        self.edged.edit("upstream.0.servers", &format!("[\"{ORIGIN}:8080\", \"{more}\"]"))
    }
}

/// What `edged check` ends with, and what it says. It is run as the daemon runs later: with no power to read what its
/// user may not.
fn check(edged: &Edged<'_>) -> Result<(i32, String)> {
    let mut check = edged.lab().edge.command("setpriv");
    check.args(["--bounding-set", "-all"]).arg(binary("edged")?);
    let done = check.args(["check", "--config"]).arg(&edged.config).output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Ok((done.status.code().context("it ended")?, said))
}

#[test]
fn bad_lists_are_told_and_what_was_listed_stays() -> Result<()> {
    let lab = Lab::new()?;
    let path = lab.dir().join("deny.txt");
    let listed = |count: u32| -> String {
        (0..count).map(|i| format!("192.0.{}.{}\n", 3 + i / 250, i % 250)).collect()
    };
    let good = format!("{LISTED}\n{}", listed(20));
    fs::write(&path, &good)?;
    let edged = lab
        .edged()?
        .set("lists.networks_max", "1000")
        .set("lists.deny", "[]")
        .set("lists.deny_files", &format!("[{path:?}]"))
        .start()?;
    let file = || -> Result<[f64; 3]> {
        let metrics = edged.metrics()?;
        Ok(["networks", "skipped", "stale"]
            .map(|what| metrics.sum(&format!("edged_list_file_{what}"), &[])))
    };
    let is_good = || -> Result<()> {
        fs::write(&path, &good)?;
        mode(&path, 0o600)?;
        edged.tell("reload")?;
        ensure!(file()? == [21.0, 0.0, 0.0], "{:?}", file()?);
        Ok(())
    };
    for (text, rights, told, found) in [
        (good.clone() + "192.0.2.0/33\n", 0o600, "not a network: '192.0.2.0/33'", [21.0, 1.0, 0.0]),
        (good.clone() + "32.0.0.0/3\n", 0o600, "32.0.0.0/3 is wider than any", [21.0, 1.0, 0.0]),
        ("192.0.3.1\n".to_owned(), 0o600, "more than 90% fewer than before", [21.0, 0.0, 1.0]),
        (good.clone(), 0o000, "cannot read it: Permission denied", [21.0, 0.0, 1.0]),
    ] {
        is_good().context(told)?;
        fs::write(&path, text)?;
        mode(&path, rights)?;
        // A check asks what the daemon has kept of the file, which is written behind its start.
        until(told, Duration::from_secs(10), || {
            let (code, said) = check(&edged)?;
            let place = if found[1] > 0.0 { "deny.txt:22:1" } else { "deny.txt" };
            Ok(code == 0 && said.contains(told) && said.contains(place))
        })?;
        edged.tell("reload")?;
        ensure!(file()? == found, "{told}: {:?}", file()?);
        ensure!(!reaches(&lab, LISTED, 443), "{told}");
    }
    is_good()?;
    let raised = |name: &str| Ok::<_, anyhow::Error>(edged.metrics()?.value(name));
    let config = fs::read_to_string(&edged.config)?;
    for (told, series) in [
        (
            "the kernel's table ENTRIES is full: a larger lists.networks_max and a restart make room",
            "edged_list_failures_total",
        ),
        ("kernel.interfaces", REFUSED),
    ] {
        let (refused, before) = (raised(REFUSED)?, raised(series)?);
        if series == REFUSED {
            edged.edit("kernel.interfaces", r#"["edge0", "nowhere0"]"#)?;
        } else {
            fs::write(&path, listed(3_000))?;
        }
        let reload = edged.ctl("reload")?;
        let words = String::from_utf8_lossy(&reload.stderr).into_owned();
        ensure!(!reload.status.success() && words.contains(told), "{told}: {words}");
        ensure!(raised(REFUSED)? > refused && raised(series)? > before, "{told}");
        ensure!(!reaches(&lab, LISTED, 443), "{told}");
        fs::write(&edged.config, &config)?;
        is_good().context(told)?;
    }
    Ok(())
}

fn certificate(chain: &Path, key: &Path, name: &str) -> String {
    format!("[{{ chain = {chain:?}, key = {key:?}, names = [{name:?}] }}]")
}

fn mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}
