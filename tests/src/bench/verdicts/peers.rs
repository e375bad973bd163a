//! Measure 6: fail2ban and `CrowdSec`, each with nftables, on the same attack as edged: from the answer
//! to the sixth failure to the first packet that is dropped.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::scene::{address, open};
use crate::{
    bench::{Effort, Goal, LOAD_CPU, Line, Report, gateway::Peer, report::median, version},
    client::{HOST, reaches},
    crowdsec::Agent,
    daemon::certify,
    fail2ban::{Fail2ban, Jail},
    lab::Lab,
    origin::Origin,
    talk::{Dial, Talk},
};

pub(super) fn on_the_same_attack(effort: Effort, report: &mut Report) -> Result<()> {
    let ours = edged(effort)?;
    report.note(&format!("edged: {ours:.3?} ms"));
    let mine = median(&ours);
    ensure!(mine > 0.0, "no time has passed");
    for (name, theirs, reference) in [
        ("fail2ban", fail2ban(effort)?, format!("{}, nftables", version("fail2ban-server"))),
        ("CrowdSec", crowdsec(effort)?, "CrowdSec and its nftables bouncer, Debian's".to_owned()),
    ] {
        report.note(&format!("{name}: {theirs:.0?} ms"));
        report.add(&Line {
            measure: 6,
            name: format!("failure to the first dropped packet, {name} / edged ({mine:.3} ms)"),
            rounds: theirs.iter().map(|theirs| theirs / mine).collect(),
            unit: "ratio",
            goal: Goal::AtLeast(100.0),
            reference,
        });
    }
    Ok(())
}

fn edged(effort: Effort) -> Result<Vec<f64>> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = open(&lab)?.start()?;
    let dial = Dial::new(&edged.ca, HOST)?;
    (0..effort.rounds * 4).map(|n| attack(&lab, &dial, n)).collect()
}

fn fail2ban(effort: Effort) -> Result<Vec<f64>> {
    let lab = Lab::new()?;
    let (dial, _nginx) = nginx(&lab)?;
    let jail = Jail {
        log: &lab.dir().join(ACCESS),
        failure: "^<HOST> .* 401 ",
        failures: FAILURES,
        action: Path::new("/etc/fail2ban/action.d/nftables.conf"),
        call: "nftables[name=test, port=443, protocol=tcp]",
    };
    let fail2ban = Fail2ban::start(&lab.edge, lab.dir(), &jail)?;
    let attacks: Result<Vec<_>> = (0..effort.rounds).map(|n| attack(&lab, &dial, n)).collect();
    attacks.map_err(|error| error.context(fail2ban.log()))
}

fn crowdsec(effort: Effort) -> Result<Vec<f64>> {
    let lab = Lab::new()?;
    let (dial, _nginx) = nginx(&lab)?;
    let agent = Agent::start(&lab.edge, lab.dir(), &lab.dir().join(ACCESS), FAILURES)?;
    let attacks: Result<Vec<_>> = (0..effort.rounds).map(|n| attack(&lab, &dial, n)).collect();
    attacks.map_err(|error| error.context(agent.log()))
}

/// A server that refuses everything and logs it, in the edge's place.
fn nginx(lab: &Lab) -> Result<(Dial, Peer)> {
    let ca = certify(lab.dir())?;
    let dir = lab.dir().display();
    fs::write(lab.dir().join(ACCESS), "")?;
    let server = format!(
        "http {{ access_log {dir}/{ACCESS}; keepalive_requests 100000000;\n\
         server {{ listen {}:443 ssl; listen 127.0.0.1:443 ssl;\n\
         ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;\n\
         location / {{ return 401; }} }} }}\n",
        crate::lab::EDGE
    );
    let nginx = Peer::nginx(lab, "refusing", 443, &server, LOAD_CPU)?;
    Ok((Dial::new(&ca, HOST)?, nginx))
}

/// Fails so often that it is to be banned, and goes on; milliseconds from the answer to the last
/// failure that there need be to the first request of which nothing is heard.
fn attack(lab: &Lab, dial: &Dial, n: usize) -> Result<f64> {
    let address = address(lab, n)?;
    let mut talk = dial.connect(lab, &address)?;
    for _ in 0..FAILURES {
        fail(&mut talk)?;
    }
    let begun = Instant::now();
    for more in 0_u64.. {
        let sent = begun.elapsed();
        if fail(&mut talk).is_err() {
            if !reaches(lab, &address, 443) {
                return Ok(sent.as_secs_f64() * 1000.0);
            }
            talk = dial.connect(lab, &address)?;
        }
        ensure!(sent < PATIENCE, "{address} is let through for {PATIENCE:?}");
        // Who is not stopped at once need not fill the log.
        std::thread::sleep(Duration::from_millis(more.min(100) / 20));
    }
    bail!("it went on for ever")
}

fn fail(talk: &mut Talk) -> Result<()> {
    talk.patience(Duration::from_millis(300))?;
    talk.get(HOST, "/", &["X-API-Key: edged_x"]).map(drop)
}

const FAILURES: u32 = 6;
const ACCESS: &str = "access.log";
const PATIENCE: Duration = Duration::from_secs(60);
