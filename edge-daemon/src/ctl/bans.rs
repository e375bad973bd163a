//! Bans: what is asked of them, and how they are shown.

use std::{net::IpAddr, time::Duration};

use clap::Subcommand;
use edge_policy::verdict::{Culprit, Evidence, Step};

use super::{
    args::{duration, millis},
    print::{left, pairs, rest, table, utc},
};
use crate::control::{
    Command,
    bans::{BanEntry, NewBan},
    protocol::Entries,
};

/// What to do with bans.
#[derive(Debug, Subcommand)]
pub enum BanVerb {
    /// Show the bans in force, and what is delayed or refused without one
    List,
    /// Show one of them with the requests that led to it
    Show {
        /// A client's address, or whatever `ban list` shows
        #[arg(value_name = "WHO")]
        culprit: Culprit,
    },
    /// Ban a client; it ends by itself
    Add {
        /// A client's address, or "ADDRESS ja4:FINGERPRINT", "ADDRESS led", key:ID, ISSUER:SUBJECT, account:NAME, ja4:FINGERPRINT, country:NZ, asn:64496
        #[arg(value_name = "WHO")]
        culprit: Culprit,
        /// For how long: 10m, 24h, 90d
        #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
        ttl: Duration,
        /// How: ban, 403, 429 or delay; all but an address gets 403 at the most
        #[arg(long, value_parser = step, default_value = "ban")]
        step: Step,
        /// Why, for whoever looks at it
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Ban even your SSH session, the gateway or an upstream
        #[arg(long)]
        force: bool,
    },
    /// End a ban and forget the misdeeds that led to it
    Remove {
        /// A client's address, or whatever `ban list` shows
        #[arg(value_name = "WHO")]
        culprit: Culprit,
        /// End only what was added by hand for this reason, and forget nothing; not having it is no fault
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

impl BanVerb {
    pub(super) fn command(&self, ssh_peer: impl FnOnce() -> Option<IpAddr>) -> Command {
        match self {
            Self::List => Command::BanList,
            Self::Show { culprit } => Command::BanShow { culprit: culprit.clone() },
            Self::Add { culprit, ttl, step, reason, force } => Command::BanAdd {
                ban: NewBan {
                    culprit: culprit.clone(),
                    step: *step,
                    life_ms: millis(*ttl),
                    reason: reason.clone(),
                },
                force: *force,
                ssh_peer: ssh_peer(),
            },
            Self::Remove { culprit, reason } => {
                Command::BanRemove { culprit: culprit.clone(), reason: reason.clone() }
            }
        }
    }
}

fn step(text: &str) -> Result<Step, String> {
    let known = Step::ALL.into_iter().skip(1);
    let found = known.clone().find(|(name, _)| *name == text).map(|(_, step)| step);
    found.ok_or_else(|| {
        format!("one of {}", known.map(|(name, _)| name).collect::<Vec<_>>().join(", "))
    })
}

pub(super) fn list_text(bans: &Entries<BanEntry>, now_ms: u64) -> String {
    let rows = bans.entries.iter().map(|ban| {
        vec![
            ban.culprit.to_string(),
            ban.step.name().to_owned(),
            left(Some(ban.until_ms), now_ms),
            ban.strikes.to_string(),
            ban.hits.to_string(),
            utc(ban.since_ms),
            by(ban),
            ban.reason.clone(),
        ]
    });
    let head = ["WHO", "STEP", "ENDS", "STRIKES", "HITS", "SINCE", "BY", "REASON"];
    table(&head, rows) + &rest(bans)
}

/// The scenario; or who else decided.
fn by(ban: &BanEntry) -> String {
    match ban.origin {
        edge_policy::verdict::Origin::Scenario => ban.scenario.clone(),
        origin => format!("{} {}", origin.name(), ban.scenario).trim_end().to_owned(),
    }
}

pub(super) fn entry_text(ban: &BanEntry, now_ms: u64) -> String {
    let mut lines = vec![
        ("who", ban.culprit.to_string()),
        ("step", ban.step.name().to_owned()),
        ("by", by(ban)),
        ("reason", ban.reason.clone()),
        ("since", utc(ban.since_ms)),
        ("ends", left(Some(ban.until_ms), now_ms)),
        ("strikes", ban.strikes.to_string()),
        ("hits", ban.hits.to_string()),
    ];
    lines.extend(ban.spared.clone().map(|spared| ("spared", spared)));
    lines.extend(ban.first_drop_us.map(|us| ("first drop", format!("after {us} us"))));
    pairs(&lines) + &evidence_text(&ban.evidence)
}

/// The signals that led to a verdict; nothing if there are none.
pub(super) fn evidence_text(evidence: &[Evidence]) -> String {
    if evidence.is_empty() {
        return String::new();
    }
    let rows = evidence.iter().map(|signal| {
        let asked = signal.request.clone().unwrap_or_default();
        vec![
            utc(signal.at),
            signal.kind.to_string(),
            signal.address.to_string(),
            if asked.status == 0 { String::new() } else { asked.status.to_string() },
            asked.method.to_string(),
            asked.path.to_string(),
            asked.id.to_string(),
        ]
    });
    let head = ["WHEN", "SIGNAL", "FROM", "STATUS", "METHOD", "PATH", "REQUEST"];
    format!("\n{}", table(&head, rows))
}
