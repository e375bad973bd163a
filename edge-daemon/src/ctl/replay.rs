//! Who would have been judged: a recorded event log or access log, taken in by the engine that judges
//! live.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use edge_common::{Reason, Source};
use edge_policy::{
    ja4::Ja4,
    place::Places,
    verdict::{Asked, Engine, Facts, Identities, Kind, Proof, Scenario, Signal, Verdict},
};
use serde_json::Value;

use super::{
    Args, DONE, REFUSED, USAGE, complain,
    print::{table, utc},
    say,
};
use crate::{config, geo::Geo, plan};

/// What to replay.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// The event log, or the access log as JSON
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// The scenario; by default all of them
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// The configuration that has it
    #[arg(long, value_name = "FILE", default_value = "/etc/edged/edged.toml")]
    config: PathBuf,
}

/// A verdict, and when it would have been.
struct Found {
    at_ms: u64,
    verdict: Verdict,
}

pub(super) fn run(args: &Args, asked: &Replay) -> u8 {
    let settings = match config::outline(&asked.config) {
        Ok((settings, _)) => settings,
        Err(mistakes) => return complain(&mistakes, USAGE),
    };
    let mut rules = plan::verdicts(&settings.verdicts);
    // The same every time that it is asked.
    rules.jitter = 0;
    if let Some(name) = &asked.scenario {
        rules.scenarios.retain(|scenario| &*scenario.name == name);
        if rules.scenarios.is_empty() {
            return complain(&format_args!("there is no scenario '{name}'"), USAGE);
        }
    }
    let exempt: Vec<_> =
        settings.verdicts.never_ban.iter().chain(&settings.lists.allow.nets).copied().collect();
    let identities = Identities::new([0; 16]);
    identities.expect(settings.verdicts.shared_by, settings.verdicts.shared_within);
    let facts = |signal: &Signal| Facts {
        is_exempt: exempt.iter().any(|net| net.contains(&signal.address)),
        ..Facts::default()
    };
    let asks_place = rules.scenarios.iter().any(Scenario::asks_place);
    let geo = match asks_place.then(|| Geo::new(&settings.geo, None)).transpose() {
        Ok(geo) => geo,
        Err(fault) => return complain(&fault, USAGE),
    };
    let mut engine = Engine::new(rules, [0; 16]);
    let mut found = Vec::new();
    let log =
        File::open(&asked.log).and_then(|file| read(BufReader::new(file), settings.kernel.client));
    let log = match log {
        Ok(log) if log.is_one() => log,
        Ok(Log { lines, unread, .. }) => {
            let file = asked.log.display();
            return complain(
                &format_args!("{file}: {unread} of {lines} lines are {NO_LINES}"),
                REFUSED,
            );
        }
        Err(error) => return complain(&format_args!("{}: {error}", asked.log.display()), REFUSED),
    };
    let (count, unread) = (log.signals.len(), log.unread);
    for mut signal in log.signals {
        signal.places = geo.as_ref().map_or_else(Places::default, |geo| geo.places(signal.address));
        if let Some(who) = succeeded(&signal) {
            identities.succeed(signal.source, identities.mark(who), signal.at_ns);
        }
        let is_shared = identities.is_shared(&signal.source, signal.at_ns);
        let verdicts = engine.judge(signal, is_shared, facts).into_iter();
        let found_one = |verdict: Verdict| Found { at_ms: verdict.last.1 / 1_000_000, verdict };
        found.extend(verdicts.map(found_one));
    }
    if unread > 0 {
        let (file, lines) = (asked.log.display(), log.lines);
        complain(&format_args!("{file}: {unread} of {lines} lines could not be read"), DONE);
    }
    let text = if args.json { json(&found) } else { words(&found, count) };
    let code = say(text.as_bytes());
    if code == DONE { DONE } else { code }
}

/// Who succeeded by the request that a signal is of, if the log tells.
fn succeeded(signal: &Signal) -> Option<&str> {
    let is_served = signal.kind == Kind::Served;
    let is_good = signal.request.as_ref().is_some_and(|asked| asked.status < 400);
    signal.principal.as_deref().filter(|_| is_served && is_good)
}

/// What was read.
struct Log {
    signals: Vec<Signal>,
    lines: u64,
    /// Those that are no JSON, or too long.
    unread: u64,
}

impl Log {
    /// Whether it is a log of ours at all: of those, a line may have been cut off here and there.
    const fn is_one(&self) -> bool {
        self.unread <= self.lines / 2
    }
}

/// The signals of a log, those that it has.
fn read(mut log: impl BufRead, width: edge_common::ClientWidth) -> std::io::Result<Log> {
    let (mut found, mut line) = (Log { signals: Vec::new(), lines: 0, unread: 0 }, Vec::new());
    loop {
        line.clear();
        if log.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        found.lines += 1;
        if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            log.skip_until(b'\n')?;
            line.clear();
        }
        // A line that was cut off tells nothing, wherever it was.
        match serde_json::from_slice::<Value>(&line) {
            Ok(event @ Value::Object(_)) => {
                let signal = signal(&event, width).or_else(|| of_access(&event, width));
                found.signals.extend(signal);
            }
            _ => found.unread += 1,
        }
    }
    found.signals.sort_by_key(|signal| signal.at_ns);
    Ok(found)
}

fn signal(event: &Value, width: edge_common::ClientWidth) -> Option<Signal> {
    let text = |key: &str| event.get(key).and_then(Value::as_str);
    let kind = match text("event")? {
        "request_refused" | "connection_refused" => Kind::named(text("reason")?)?,
        "login_failed" => Kind::LoginFailed,
        _ => return None,
    };
    let address: IpAddr = text("source")?.parse().ok()?;
    let request = text("request_id").map(|id| {
        let status = match kind {
            Kind::Refused(reason) => edge_policy::denied::status(reason).as_u16(),
            _ => event
                .get("status")
                .and_then(Value::as_u64)
                .and_then(|s| s.try_into().ok())
                .unwrap_or(0),
        };
        let [method, path] = ["method", "path"].map(|key| text(key).unwrap_or_default().into());
        Box::new(Asked { id: id.into(), method, path, status })
    });
    Some(Signal {
        kind,
        at_ns: edge_policy::calendar::unix_ms(text("time")?)?.saturating_mul(1_000_000),
        address,
        source: Source::from(address).client(width),
        proof: Proof::Handshake,
        is_spoken_for: false,
        places: Places::default(),
        ja4: text("ja4").and_then(Ja4::parse),
        principal: text("principal").map(Arc::from),
        account: text("account").map(Arc::from),
        is_led: false,
        request,
    })
}

/// The signal that a line of the access log is: what was served is one, too. A login that failed is
/// told in the event log alone.
fn of_access(line: &Value, width: edge_common::ClientWidth) -> Option<Signal> {
    let text = |key: &str| line.get(key).and_then(Value::as_str);
    let status = line.get("status")?.as_u64()?.try_into().ok()?;
    let kind = match (text("reason")?, status) {
        (reason, 404) if reason == Reason::Serve.name() => Kind::NotFound,
        (reason, _) if reason == Reason::Serve.name() => Kind::Served,
        (reason, _) => Kind::named(reason)?,
    };
    let address: IpAddr = text("client")?.parse().ok()?;
    let [id, method, path] =
        ["request_id", "method", "path"].map(|key| text(key).unwrap_or_default().into());
    let ja4 = line.get("tls").and_then(|tls| tls.get("ja4")).and_then(Value::as_str);
    Some(Signal {
        kind,
        at_ns: edge_policy::calendar::unix_ms(text("time")?)?.saturating_mul(1_000_000),
        address,
        source: Source::from(address).client(width),
        proof: Proof::Handshake,
        is_spoken_for: false,
        places: Places::default(),
        ja4: ja4.and_then(Ja4::parse),
        principal: text("principal").map(|who| match text("by") {
            // A log calls a key by its id alone.
            Some("key" | "signature") => format!("key:{who}").into(),
            _ => who.into(),
        }),
        account: None,
        is_led: false,
        request: Some(Box::new(Asked { id, method, path, status })),
    })
}

fn words(found: &[Found], signals: usize) -> String {
    let rows = found.iter().map(|Found { at_ms, verdict }| {
        let last = verdict.evidence.first();
        let request = last.and_then(|signal| signal.request.as_ref());
        vec![
            utc(*at_ms),
            verdict.culprit.to_string(),
            verdict.step.name().to_owned(),
            config::text::show_duration(std::time::Duration::from_millis(
                verdict.duration_ns / 1_000_000,
            )),
            verdict.strikes.to_string(),
            verdict.scenario.to_string(),
            last.map_or_else(String::new, |signal| signal.kind.to_string()),
            request.map_or_else(String::new, |asked| asked.id.to_string()),
        ]
    });
    let head = ["WHEN", "WHO", "STEP", "FOR", "STRIKES", "SCENARIO", "SIGNAL", "REQUEST"];
    format!("{}{} verdicts, of {signals} signals\n", table(&head, rows), found.len())
}

fn json(found: &[Found]) -> String {
    let one = |Found { at_ms, verdict }: &Found| {
        serde_json::json!({
            "at_ms": at_ms, "culprit": verdict.culprit, "step": verdict.step,
            "duration_ms": verdict.duration_ns / 1_000_000, "strikes": verdict.strikes,
            "scenario": &*verdict.scenario,
            "spared": verdict.spared.map(edge_policy::verdict::Spared::name),
            "evidence": verdict.evidence.iter().map(|signal| serde_json::json!({
                "at_ms": signal.at / 1_000_000, "kind": signal.kind, "address": signal.address,
                "request": signal.request,
            })).collect::<Vec<_>>(),
        })
        .to_string()
            + "\n"
    };
    found.iter().map(one).collect()
}

/// Many times the longest that is written.
const LINE_BYTES_MAX: u64 = 1 << 20;
const NO_LINES: &str = "not of the event log, nor of the access log as JSON; one that is packed is to be unpacked first";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_log_is_told_from_one_with_a_line_cut_off() {
        let line = "{\"time\":\"2026-01-01T00:00:00.000Z\",\"event\":\"request_refused\",\
                    \"reason\":\"not_found\",\"source\":\"192.0.2.1\"}\n";
        let long = format!("{}\n", "x".repeat(3 << 20));
        let of = |text: &[u8]| {
            let log = read(text, edge_common::ClientWidth { v4: 32, v6: 64 }).unwrap();
            (log.lines, log.unread, log.signals.len(), log.is_one())
        };
        assert_eq!(of(b""), (0, 0, 0, true));
        assert_eq!(of(line.as_bytes()), (1, 0, 1, true));
        let cut = ["{\"time\":\"20", "\n", line, &long, line].concat();
        assert_eq!(of(cut.as_bytes()), (4, 2, 2, true));
        let combined = "192.0.2.1 - - [01/Jan/2026:00:00:00 +0000] \"GET / HTTP/1.1\" 200 3\n";
        assert_eq!(of(combined.as_bytes()), (1, 1, 0, false));
        assert_eq!(of(b"\x1f\x8b\x08\0\0\n\0"), (2, 2, 0, false));
        // Another file of JSON has no lines like ours.
        assert!(!of(b"[\n1,\n2\n]\n").3);
    }
}
