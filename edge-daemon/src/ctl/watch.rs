//! Decisions as they are made, a line each.

use super::{Args, DONE, answer, print::utc, say};
use crate::{
    control::{Command, Reply},
    decisions::{Decision, What},
};

/// Asks again and again, until it is interrupted or nobody reads or answers any more.
pub(super) fn run(args: &Args) -> u8 {
    let mut from = None;
    loop {
        let decided = match answer(args, &Command::Watch { from }) {
            Ok(Reply::Decided(decided)) => decided,
            Ok(_) => return super::REFUSED,
            Err(code) => return code,
        };
        let mut text = gap(decided.missed, args.json);
        for decision in &decided.decisions {
            text += &if args.json { json(decision) } else { line(decision) };
        }
        from = Some(decided.next);
        let code = if text.is_empty() { DONE } else { say(text.as_bytes()) };
        if code != DONE {
            return code;
        }
    }
}

/// How many decisions came faster than they were read.
fn gap(missed: u64, is_json: bool) -> String {
    match (missed, is_json) {
        (0, _) => String::new(),
        (_, true) => format!("{{\"what\":\"missed\",\"missed\":{missed}}}\n"),
        (_, false) => format!("... {missed} missed\n"),
    }
}

fn json(decision: &Decision) -> String {
    serde_json::to_string(decision).expect("it holds only text, numbers and lists") + "\n"
}

/// `2026-01-31 23:59:59Z ban 192.0.2.7 brute-force: credential_invalid, strike 1, until ...`
fn line(decision: &Decision) -> String {
    let Decision { what, scenario, reason, .. } = decision;
    let mut text = format!("{} {}", utc(decision.at_ms), what.name());
    let step = decision.step.filter(|_| *what == What::Penalty);
    for part in [
        step.map(|step| step.name().to_owned()),
        decision.culprit.as_ref().map(ToString::to_string),
        Some(scenario.clone()).filter(|scenario| !scenario.is_empty()),
    ] {
        text += &part.map_or_else(String::new, |part| format!(" {part}"));
    }
    text += &format!(": {reason}");
    if decision.strikes > 0 {
        text += &format!(", strike {}", decision.strikes);
    }
    text += &decision.until_ms.map_or_else(String::new, |until| format!(", until {}", utc(until)));
    text += &decision.spared.as_ref().map_or_else(String::new, |why| format!(", spared: {why}"));
    if let Some(asked) = decision.evidence.first().and_then(|signal| signal.request.as_ref()) {
        text += &format!(" ({} {}, request {})", asked.method, asked.path, asked.id);
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use edge_policy::verdict::{Asked, Evidence, Step};

    use super::*;

    #[test]
    fn a_decision_is_one_line() {
        let address = "192.0.2.7".parse().unwrap();
        let asked = Asked { id: "r1".into(), method: "GET".into(), path: "/a".into(), status: 401 };
        let evidence =
            Evidence { at: 0, kind: "credential_invalid".into(), address, request: Some(asked) };
        let ban = Decision {
            at_ms: 0,
            what: What::Ban,
            culprit: Some("192.0.2.7".parse().unwrap()),
            step: Some(Step::Ban),
            scenario: "brute-force".into(),
            reason: "credential_invalid".into(),
            until_ms: Some(60_000),
            strikes: 1,
            evidence: vec![evidence],
            ..Decision::alarm(String::new())
        };
        assert_eq!(
            line(&ban),
            "1970-01-01 00:00:00Z ban 192.0.2.7 brute-force: credential_invalid, strike 1, \
             until 1970-01-01 00:01:00Z (GET /a, request r1)\n"
        );
        let alarm = Decision { at_ms: 0, ..Decision::alarm("look".into()) };
        assert_eq!(line(&alarm), "1970-01-01 00:00:00Z alarm: look\n");
        let read: Decision = serde_json::from_str(&json(&ban)).unwrap();
        assert_eq!(read, ban);
    }

    #[test]
    fn a_gap_is_told_in_either_form() {
        assert_eq!((gap(0, true), gap(0, false)), (String::new(), String::new()));
        assert_eq!(gap(3, false), "... 3 missed\n");
        let told: serde_json::Value = serde_json::from_str(&gap(3, true)).unwrap();
        assert_eq!(told, serde_json::json!({ "what": "missed", "missed": 3 }));
    }
}
