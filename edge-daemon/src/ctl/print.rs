//! Replies as people and programs read them.

mod keys;

use std::{fmt::Write as _, path::Path};

use serde::Serialize;

use super::bans;
use crate::{
    audit::verify::Verdict,
    clock,
    config::text::show_duration,
    control::{
        Reply,
        packets::{EventsLost, Explanation, Traffic},
        protocol::{Entries, ListEntry, SignatureEntry, Status},
        servers::ServerEntry,
    },
    kernel::Detached,
};

/// The payload alone, pretty-printed.
pub(super) fn json(reply: &Reply) -> String {
    let pretty = match reply {
        Reply::Done(message) => render(&serde_json::json!({ "done": message })),
        Reply::Refused(why) => render(&serde_json::json!({ "refused": why })),
        Reply::Unaudited(reply) => return json(reply),
        Reply::Status(status) => render(status),
        Reply::Overview(overview) => render(overview),
        Reply::List(list) => render(list),
        Reply::Bans(bans) => render(bans),
        Reply::Ban(ban) => render(ban),
        Reply::Decided(decided) => render(decided),
        Reply::Explanation(explanation) => render(explanation),
        Reply::Signatures(signatures) => render(signatures),
        Reply::Access(access) => render(access),
        Reply::Top(top) => render(top),
        Reply::KeyCreated(key) => render(key),
        Reply::Servers(servers) => render(servers),
        Reply::Keys(keys) => render(keys),
        Reply::Key(key) => render(key),
        Reply::Exported(lines, _) => render(lines),
        Reply::Imported(imported) => render(imported),
        Reply::Feeds(feeds) => render(feeds),
        Reply::Denials(denials) => render(denials),
        Reply::TokenKeys(keys) => render(keys),
    };
    pretty + "\n"
}

pub(super) fn render(payload: &impl Serialize) -> String {
    serde_json::to_string_pretty(payload).expect("the payloads hold only text, numbers and lists")
}

/// Sentences and tables; `now_ms` turns ends into time left.
pub(super) fn text(reply: &Reply, now_ms: u64) -> String {
    match reply {
        Reply::Done(message) | Reply::Refused(message) => format!("{message}\n"),
        Reply::Unaudited(reply) => text(reply, now_ms),
        Reply::Status(status) => status_text(status),
        Reply::Overview(overview) => render(overview),
        Reply::List(list) => list_text(list, now_ms),
        Reply::Bans(bans) => bans::list_text(bans, now_ms),
        Reply::Ban(ban) => bans::entry_text(ban, now_ms),
        Reply::Decided(decided) => render(decided),
        Reply::Explanation(explanation) => explanation_text(explanation, now_ms),
        Reply::Signatures(signatures) => signatures_text(signatures),
        Reply::Access(access) => access.text(),
        Reply::Top(top) => super::top::text(top),
        Reply::KeyCreated(key) => keys::created_text(key),
        Reply::Keys(keys) => keys::list_text(keys, now_ms),
        Reply::Key(key) => keys::entry_text(key, now_ms),
        Reply::Exported(lines, _) => lines.join("\n"),
        Reply::Imported(imported) => keys::imported_text(imported),
        Reply::Feeds(feeds) => super::feeds::text(feeds, now_ms),
        Reply::Denials(denials) => super::tokens::text(denials, now_ms),
        Reply::TokenKeys(keys) => super::tokens::keys_text(keys),
        Reply::Servers(servers) => servers_text(servers),
    }
}

/// Whether an audit log is as it was written.
pub(super) fn verified(verdict: &Verdict, json: bool) -> String {
    match verdict {
        Ok(whole) if json => render(&serde_json::json!({ "whole": whole })) + "\n",
        Err(broken) if json => render(&serde_json::json!({ "broken": broken })) + "\n",
        Ok(whole) => {
            let mut text = format!(
                "{} lines in {} files are as they were written, from number {} to {} ({})\n",
                whole.lines, whole.files, whole.first, whole.last.number, whole.last.seal
            );
            if whole.first > 1 {
                text.push_str("lines before the first were removed with their files\n");
            }
            if let Some(file) = &whole.torn {
                text += &format!("{file} ends in the middle of a line, as while it is written\n");
            }
            text
        }
        Err(broken) => format!("{}:{}: {}\n", broken.file.display(), broken.line, broken.why),
    }
}

/// What was taken away from a folder, and who has to know.
pub(crate) fn detached(detached: &Detached, pin_dir: &Path, json: bool) -> String {
    let Detached { removed, in_use } = detached;
    if json {
        return render(&serde_json::json!({ "removed": removed, "daemon_runs": in_use })) + "\n";
    }
    let mut text = removed.iter().fold(String::new(), |text, pin| text + pin + "\n");
    if removed.is_empty() {
        let folder = pin_dir.display();
        text += &format!("nothing was pinned in {folder}; edgectl detach --pin-dir has another\n");
    }
    if *in_use {
        text.push_str("a daemon runs: it serves on, unfiltered, until it is started again\n");
    }
    text
}

fn status_text(status: &Status) -> String {
    let interfaces = status.interfaces.iter().map(|interface| {
        let condition = match (interface.guarded, interface.up) {
            (true, true) => "",
            (true, false) => ", down",
            (false, _) => ", NOT FILTERED",
        };
        let Traffic { packets, bytes, drops } = interface.traffic;
        let traffic = format!("{packets} packets, {bytes} bytes, {drops} dropped");
        format!("{} ({}{condition}): {traffic}", interface.name, interface.mode)
    });
    let sampled = status.sampled.map_or_else(|| "no".to_owned(), |n| format!("one packet in {n}"));
    let EventsLost { security, drops, samples } = status.events_lost;
    let reload = status.last_reload.as_ref().map_or_else(
        || "none".to_owned(),
        |r| format!("{} {}: {}", utc(r.at_ms), if r.ok { "taken" } else { "refused" }, r.message),
    );
    let tokens = status.denials_lost_ms.map_or_else(
        || "judged".to_owned(),
        |at| {
            let at = utc(at);
            format!("NONE LET IN: revocations were lost {at}; see 'edgectl token accept-loss'")
        },
    );
    let lacks =
        status.kernel_lacks.iter().map(|(feature, without)| format!("{feature}: {without}"));
    let lacks = lacks.collect::<Vec<_>>().join("; ");
    let monitored = &status.monitored;
    let mut text = pairs(&[
        ("version", status.version.clone()),
        ("process", status.pid.to_string()),
        ("uptime", length(status.uptime_s.saturating_mul(1_000))),
        ("interfaces", interfaces.collect::<Vec<_>>().join("; ")),
        ("kernel lacks", if lacks.is_empty() { "nothing".into() } else { lacks }),
        ("sampled", sampled),
        ("events lost", format!("{security} security, {drops} drops, {samples} samples")),
        ("configuration", status.config.display().to_string()),
        ("last reload", reload),
        ("bans", status.bans.to_string()),
        ("allow list", status.allow.to_string()),
        ("deny list", status.deny.to_string()),
        ("keys", status.keys.to_string()),
        ("tokens", tokens),
        ("services", status.services.as_ref().map_or("all".into(), |some| some.join(" "))),
        ("signatures", status.signatures.to_string()),
        ("monitored", if monitored.is_empty() { "nothing".into() } else { monitored.join(" ") }),
    ]);
    if !status.counts.is_empty() {
        let rows = status.counts.iter().map(|(name, count)| vec![name.clone(), count.to_string()]);
        text.push('\n');
        text += &table(&["REASON", "COUNT"], rows);
    }
    if !status.would_drop.is_empty() {
        let rows = status.would_drop.iter().map(|(name, n)| vec![name.clone(), n.to_string()]);
        text.push('\n');
        text += &table(&["WOULD DROP", "COUNT"], rows);
    }
    text
}

fn list_text(list: &Entries<ListEntry>, now_ms: u64) -> String {
    let rows = list.entries.iter().map(|entry| {
        vec![
            entry.net.to_string(),
            left(entry.until_ms, now_ms),
            entry.hits.to_string(),
            if entry.monitor {
                format!("{}, monitored", entry.source)
            } else {
                entry.source.clone()
            },
            entry.reason.clone().unwrap_or_default(),
        ]
    });
    table(&["NETWORK", "ENDS", "HITS", "SOURCE", "REASON"], rows) + &rest(list)
}

fn signatures_text(signatures: &Entries<SignatureEntry>) -> String {
    let rows = signatures.entries.iter().map(|entry| {
        let action = if entry.monitored {
            format!("{} (monitored)", entry.action)
        } else {
            entry.action.clone()
        };
        vec![entry.name.clone(), entry.hits.to_string(), action, entry.matches.clone()]
    });
    table(&["NAME", "HITS", "ACTION", "MATCHES"], rows) + &rest(signatures)
}

fn servers_text(servers: &Entries<ServerEntry>) -> String {
    let rows = servers.entries.iter().map(|entry| {
        let state = if entry.circuit_open { "circuit open" } else { &entry.state };
        let counts = [entry.in_flight, entry.idle, entry.answered, entry.failed];
        let mut row = vec![entry.upstream.clone(), entry.server.clone(), state.to_owned()];
        row.push(entry.weight.to_string());
        row.extend(counts.map(|count| count.to_string()));
        row
    });
    let head = ["UPSTREAM", "SERVER", "STATE", "WEIGHT", "IN FLIGHT", "IDLE", "ANSWERED", "FAILED"];
    table(&head, rows) + &rest(servers)
}

fn explanation_text(explanation: &Explanation, now_ms: u64) -> String {
    let told = explanation;
    let mut lines = vec![("address", told.address.to_string())];
    lines.extend(told.country.clone().map(|country| ("country", country)));
    lines.extend(told.asn.map(|asn| ("asn", asn.to_string())));
    lines.push(("packet", told.packet.clone()));
    if told.unfiltered {
        lines.push(("NOT FILTERED", "the program is off this interface: it would pass".into()));
    }
    lines.push(("verdict", told.verdict.clone()));
    lines.push(("meaning", told.meaning.clone()));
    lines
        .extend(told.would.clone().map(|would| ("would be", format!("{would}, but is monitored"))));
    if let Some(rule) = &told.rule {
        lines.push(("rule", rule.clone()));
        lines.extend(told.source.clone().map(|source| ("source", source)));
        lines.extend(told.reason.clone().map(|reason| ("reason", reason)));
        lines.extend(told.since_ms.map(|since_ms| ("since", utc(since_ms))));
        lines.push(("ends", left(told.until_ms, now_ms)));
        lines.push(("hits", told.hits.to_string()));
    }
    lines.extend(told.bans.iter().map(|ban| {
        let (step, ends) = (ban.step.name(), left(Some(ban.until_ms), now_ms));
        let text = format!("{} for {}, strike {}, ends {ends}", step, ban.reason, ban.strikes);
        ("verdict on", format!("{}: {text}", ban.culprit))
    }));
    let most = match told.open_connections_max {
        0 => String::new(),
        most => format!(" of {most}"),
    };
    lines.push(("open connections", format!("{}{most}", told.open_connections)));
    lines.push(("strikes", told.strikes.to_string()));
    lines.push(("shared", if told.shared { "by several identities" } else { "no" }.to_owned()));
    let mut text = pairs(&lines);
    if !told.levels.is_empty() {
        let rows = told.levels.iter().map(|level| {
            let (full, capacity) = (format!("{:.1}", level.level), level.capacity.to_string());
            vec![level.scenario.clone(), level.of.clone(), full, capacity]
        });
        text.push('\n');
        text += &table(&["SCENARIO", "OF", "LEVEL", "CAPACITY"], rows);
    }
    let of_bans = told.bans.iter().find(|ban| !ban.evidence.is_empty()).map(|ban| &ban.evidence);
    text += &bans::evidence_text(of_bans.unwrap_or(&told.misdeeds));
    if !told.buckets.is_empty() {
        let rows = told.buckets.iter().map(|bucket| {
            let (left, burst) = (bucket.left.to_string(), bucket.burst.to_string());
            vec![bucket.limit.clone(), bucket.of.clone(), left, burst]
        });
        text.push('\n');
        text += &table(&["LIMIT", "OF", "LEFT", "BURST"], rows);
    }
    text
}

/// How many entries the reply left out, if any.
pub(super) fn rest<T>(entries: &Entries<T>) -> String {
    match entries.total.saturating_sub(entries.entries.len() as u64) {
        0 => String::new(),
        more => format!("... and {more} more\n"),
    }
}

pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:width$}  {value}");
        text
    })
}

/// Columns as wide as their widest cell; the last one ends where its text ends.
pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<_> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    lines.iter().fold(String::new(), |mut text, line| {
        let start = text.len();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(start + text[start..].trim_end().len());
        text.push('\n');
        text
    })
}

/// "never", "over", or the time left, in its two largest units.
pub(super) fn left(until_ms: Option<u64>, now_ms: u64) -> String {
    match until_ms {
        None => "never".to_owned(),
        Some(until) if until <= now_ms => "over".to_owned(),
        Some(until) => format!("in {}", length(until - now_ms)),
    }
}

/// A length of time in its two largest units: "1d 3h".
fn length(millis: u64) -> String {
    let seconds = millis / 1_000;
    if seconds == 0 {
        return show_duration(std::time::Duration::from_millis(millis));
    }
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(3);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, name) in units.iter().skip(first).take(2) {
        if rest / unit > 0 {
            parts.push(format!("{}{name}", rest / unit));
        }
        rest %= unit;
    }
    parts.join(" ")
}

/// A time as `2026-01-31 23:59:59Z`.
pub(super) fn utc(at_ms: u64) -> String {
    let time = clock::rfc3339(at_ms);
    format!("{} {}Z", &time[..10], &time[11..19])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_735_689_599_999), "2024-12-31 23:59:59Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01 00:00:00Z");
    }

    #[test]
    fn lengths_have_two_units() {
        let cases = [
            (250, "250ms"),
            (1_000, "1s"),
            (61_000, "1m 1s"),
            (3_600_000, "1h"),
            (90_061_000, "1d 1h"),
            (86_400_000, "1d"),
        ];
        for (millis, text) in cases {
            assert_eq!(length(millis), text);
        }
        assert_eq!((left(None, 5), left(Some(5), 5)), ("never".into(), "over".into()));
        assert_eq!(left(Some(60_005), 5), "in 1m");
    }

    #[test]
    fn tables_are_aligned_and_tell_what_they_leave_out() {
        let entry = |net: &str, hits, reason: Option<&str>| ListEntry {
            net: net.parse().unwrap(),
            until_ms: None,
            reason: reason.map(str::to_owned),
            source: "operator".to_owned(),
            hits,
            since_ms: 0,
            by: None,
            monitor: hits > 0,
        };
        let entries = vec![entry("192.0.2.0/24", 12_345, Some("noise")), entry("::1/128", 0, None)];
        let text = text(&Reply::List(Entries { entries, total: 5 }), 0);
        let wanted = "NETWORK       ENDS   HITS   SOURCE               REASON\n\
                      192.0.2.0/24  never  12345  operator, monitored  noise\n\
                      ::1/128       never  0      operator\n\
                      ... and 3 more\n";
        assert_eq!(text, wanted);
    }
}
