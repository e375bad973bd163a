//! Our own bans, told to `CrowdSec` as alerts, so that its other bouncers enforce them too.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode, header};
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
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            let Ok(more) = told.try_recv() else { break };
            batch.push(more);
        }
        for attempt in 1.. {
            let sent = send(&crowdsec, machine, password, &mut token, &batch);
            let why = match time::timeout(*timeout, sent).await {
                Ok(Ok(())) => break,
                Ok(Err(why)) => why,
                Err(_) => io::Error::other("it took too long"),
            };
            token = None;
            if attempt == ATTEMPTS {
                let lost = batch.len();
                tracing::error!(%why, lost, "CrowdSec cannot be told of bans");
                break;
            }
            time::sleep(PAUSE * attempt).await;
        }
    }
}

async fn send(
    crowdsec: &Crowdsec,
    machine: &str,
    password: &Origin,
    token: &mut Option<Secret>,
    batch: &[Told],
) -> io::Result<()> {
    let secret = match token.take() {
        Some(token) => token,
        None => login(crowdsec, machine, password).await?,
    };
    let bearer = || Ok::<_, io::Error>([(header::AUTHORIZATION, sealed("Bearer ", &secret)?)]);
    let alerts: Vec<_> = batch.iter().filter_map(|told| alert(machine, told)).collect();
    if !alerts.is_empty() {
        let body = serde_json::to_vec(&alerts)?.into();
        let answer = crowdsec.ask(Method::POST, "/v1/alerts", bearer()?, body).await?;
        expect(answer.status, StatusCode::CREATED)?;
    }
    for told in batch {
        let Told::Lift { source, bits, reason, .. } = told else { continue };
        let (key, value) = scoped(*source, *bits);
        let (key, scenario) = (key.to_lowercase(), format!("{}{reason}", ours(machine)));
        let target = format!("/v1/decisions?{key}={value}&scenario={scenario}");
        let answer = crowdsec.ask(Method::DELETE, &target, bearer()?, Vec::new().into()).await?;
        expect(answer.status, StatusCode::OK)?;
    }
    *token = Some(secret);
    Ok(())
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
