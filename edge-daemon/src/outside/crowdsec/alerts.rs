//! Our own bans, told to `CrowdSec` as alerts, so that its other bouncers enforce them too.

use std::{collections::VecDeque, io, net::IpAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::{sync::mpsc, time};

use super::{super::Told, Crowdsec, read, sealed};
use crate::{
    clock,
    config::settings,
    secret::{Origin, Secret},
};

/// What the scenarios of a machine's alerts begin with.
pub(super) fn ours(machine: &str) -> String {
    format!("edged/{machine}/")
}

/// Tells what comes, as long as anything can come. Without a machine's name there is nothing to
/// tell.
pub(super) async fn tell(crowdsec: Arc<Crowdsec>, told: Option<mpsc::Receiver<Told>>) {
    let settings::Crowdsec { machine, timeout, .. } = &crowdsec.settings;
    let (Some((machine, password)), Some(mut told)) = (machine, told) else { return };
    let mut token: Option<Secret> = None;
    while let Some(first) = told.recv().await {
        let mut batch = VecDeque::from([first]);
        while batch.len() < BATCH_MAX {
            let Ok(more) = told.try_recv() else { break };
            batch.push_back(more);
        }
        let mut attempt = 1;
        while !batch.is_empty() {
            let before = batch.len();
            let sent = send(&crowdsec, machine, password, &mut token, &mut batch);
            let fault = match time::timeout(*timeout, sent).await {
                Ok(Ok(())) => break,
                Ok(Err(fault)) => fault,
                Err(_) => Fault::Away(io::Error::other("it took too long")),
            };
            token = None;
            // Each of them is tried so often, whatever went before it.
            attempt = if batch.len() < before { 1 } else { attempt + 1 };
            if attempt > ATTEMPTS {
                let (lost, why) = given_up(&fault, &batch);
                batch.drain(..lost);
                tracing::error!(%why, lost, "CrowdSec cannot be told of bans");
                attempt = 1;
                continue;
            }
            time::sleep(PAUSE * attempt).await;
        }
    }
}

/// How many from the first on are told with one question: bans up to the next lift, or one lift.
fn first_step(batch: &VecDeque<Told>) -> usize {
    let is_ban = |told: &&Told| matches!(told, Told::Ban { .. });
    batch.iter().take_while(is_ban).count().max(1).min(batch.len())
}

/// Why something could not be told.
enum Fault {
    /// Nobody answers, or lets us in.
    Away(io::Error),
    /// The answer was no.
    Refused(io::Error),
}

impl From<io::Error> for Fault {
    fn from(why: io::Error) -> Self {
        Self::Away(why)
    }
}

/// How many are given up, and why: of what is refused the others may still be taken; where nobody answers
/// one question is as good as all, and more are waiting.
fn given_up<'f>(fault: &'f Fault, batch: &VecDeque<Told>) -> (usize, &'f io::Error) {
    match fault {
        Fault::Away(why) => (batch.len(), why),
        Fault::Refused(why) => (first_step(batch), why),
    }
}

/// Tells in order, as a ban may follow its client's lift; what is told is taken off the batch, and not told
/// again.
async fn send(
    crowdsec: &Crowdsec,
    machine: &str,
    password: &Origin,
    token: &mut Option<Secret>,
    batch: &mut VecDeque<Told>,
) -> Result<(), Fault> {
    let secret = match token.take() {
        Some(token) => token,
        None => login(crowdsec, machine, password).await?,
    };
    let bearer = || Ok::<_, io::Error>([(header::AUTHORIZATION, sealed("Bearer ", &secret)?)]);
    while let Some(first) = batch.front() {
        let step = first_step(batch);
        if let Told::Lift { source, bits, reason, .. } = first {
            let target = lifting(machine, *source, *bits, reason);
            let none = Vec::new().into();
            let answer = crowdsec.ask(Method::DELETE, &target, bearer()?, none).await?;
            expect(answer.status, StatusCode::OK).map_err(Fault::Refused)?;
        } else {
            let alerts = batch.iter().take(step).filter_map(|told| alert(machine, told));
            let body = serde_json::to_vec(&alerts.collect::<Vec<_>>()).map_err(io::Error::from)?;
            let answer = crowdsec.ask(Method::POST, "/v1/alerts", bearer()?, body.into()).await?;
            expect(answer.status, StatusCode::CREATED).map_err(Fault::Refused)?;
        }
        batch.drain(..step);
    }
    *token = Some(secret);
    Ok(())
}

/// What is asked for to take back a ban of ours. A reason may be of any words.
fn lifting(machine: &str, source: IpAddr, bits: u32, reason: &str) -> String {
    let (key, value) = scoped(source, bits);
    let scenario = format!("{}{reason}", ours(machine));
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    format!(
        "/v1/decisions?{}={}&scenario={}",
        key.to_lowercase(),
        encoded(&value),
        encoded(&scenario)
    )
}

async fn login(crowdsec: &Crowdsec, machine: &str, password: &Origin) -> io::Result<Secret> {
    let password = read(password)?;
    let password = String::from_utf8_lossy(password.expose());
    let scenarios = [format!("{}ban", ours(machine))];
    let body = json!({"machine_id": machine, "password": password, "scenarios": scenarios});
    let body = serde_json::to_vec(&body)?.into();
    let answer = crowdsec.ask(Method::POST, "/v1/watchers/login", [], body).await?;
    expect(answer.status, StatusCode::OK)?;
    let answer: serde_json::Value = serde_json::from_slice(&answer.bytes)?;
    let token = answer["token"].as_str().ok_or_else(|| io::Error::other("it gave no token"))?;
    Ok(Secret::new(token.as_bytes().to_vec()))
}

fn expect(status: StatusCode, wanted: StatusCode) -> io::Result<()> {
    if status == wanted { Ok(()) } else { Err(io::Error::other(format!("it answered {status}"))) }
}

/// An alert with its decision, as the local API takes them.
fn alert(machine: &str, told: &Told) -> Option<serde_json::Value> {
    let Told::Ban { source, bits, reason, until_ms, .. } = told else { return None };
    let now_ms = clock::unix_ms();
    let (scope, value) = scoped(*source, *bits);
    let scenario = format!("{}{reason}", ours(machine));
    let left_s = until_ms.saturating_sub(now_ms).div_ceil(1_000);
    let now = clock::rfc3339(now_ms);
    Some(json!({
        "scenario": scenario, "scenario_hash": "", "scenario_version": "",
        "message": format!("edged banned {value}: {reason}"),
        "events_count": 1, "events": [], "start_at": now, "stop_at": now,
        "capacity": 0, "leakspeed": "0s", "simulated": false, "remediation": true,
        "source": {"scope": scope, "value": value, "ip": source.to_string()},
        "decisions": [{
            "duration": format!("{left_s}s"), "origin": ORIGIN, "scenario": scenario,
            "scope": scope, "type": "ban", "value": value,
        }],
    }))
}

fn scoped(source: IpAddr, bits: u32) -> (&'static str, String) {
    if bits == if source.is_ipv4() { 32 } else { 128 } {
        ("Ip", source.to_string())
    } else {
        ("Range", format!("{source}/{bits}"))
    }
}

const ORIGIN: &str = "edged";
const BATCH_MAX: usize = 100;
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lift_is_asked_for_in_one_word_and_in_its_turn() {
        let target = lifting("edge-1", "192.0.2.7".parse().unwrap(), 32, "seen & told: 100%");
        let scenario = "edged%2Fedge%2D1%2Fseen%20%26%20told%3A%20100%25";
        assert_eq!(target, format!("/v1/decisions?ip=192%2E0%2E2%2E7&scenario={scenario}"));
        let source = "192.0.2.7".parse().unwrap();
        let (reason, until_ms) = (String::new(), 9);
        let (reason_of_it, is_alone, at_ms) = (reason.clone(), true, 1);
        let lift = Told::Lift { source, bits: 32, reason: reason_of_it, is_alone, at_ms, until_ms };
        let ban = Told::Ban { source, bits: 32, reason, since_ms: 1, until_ms, strikes: 1 };
        let step = |told: &[&Told]| first_step(&told.iter().copied().cloned().collect());
        assert_eq!(step(&[&ban, &ban, &lift, &ban]), 2);
        assert_eq!((step(&[&lift, &ban]), step(&[&lift, &lift]), step(&[])), (1, 1, 0));
        // Many lifts are no reason to be kept waiting so many times.
        let batch = [&lift, &lift, &ban].into_iter().cloned().collect();
        let lost = |fault: Fault| given_up(&fault, &batch).0;
        let why = || io::Error::other("no");
        assert_eq!((lost(Fault::Away(why())), lost(Fault::Refused(why()))), (3, 1));
    }
}
