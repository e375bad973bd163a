//! What can be asked and told about bans and decisions.

use edge_policy::verdict::{self, Culprit, Evidence, Origin, Step};
use serde::{Deserialize, Serialize};

use crate::decisions::Decision;

/// A ban by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewBan {
    /// Whom.
    pub culprit: Culprit,
    /// How; all but a source is refused at the request plane at the most.
    pub step: Step,
    /// For how long.
    pub life_ms: u64,
    /// Why, for whoever looks at it.
    pub reason: Option<String>,
}

/// A ban or a milder verdict in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanEntry {
    /// Whom it is about.
    pub culprit: Culprit,
    /// What becomes of it.
    pub step: Step,
    /// When it began.
    pub since_ms: u64,
    /// When it ends.
    pub until_ms: u64,
    /// The name of the last signal; the operator's words.
    pub reason: String,
    /// The scenario; who decided, if none did.
    pub scenario: String,
    /// Whose decision it was.
    pub origin: Origin,
    /// Why it is milder than the scenario says, or about somebody narrower.
    pub spared: Option<String>,
    /// How many verdicts this culprit has had, this one included.
    pub strikes: u32,
    /// Packets it dropped.
    pub hits: u64,
    /// From its beginning to the first packet it dropped, in microseconds.
    pub first_drop_us: Option<u64>,
    /// The signals that led to it, the latest first; times are unix milliseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
}

/// Decisions of the verdict writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The oldest first.
    pub decisions: Vec<Decision>,
    /// What to ask with next.
    pub next: u64,
    /// Those that came and are kept no more.
    pub missed: u64,
}

/// How full the bucket of a scenario is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// The scenario.
    pub scenario: String,
    /// Whose it is, as `ban list` shows culprits.
    pub of: String,
    /// What is in it.
    pub level: f64,
    /// Beyond this it overflows.
    pub capacity: u64,
}

impl Level {
    /// A culprit's.
    pub(crate) fn new(of: &Culprit, level: verdict::Level) -> Self {
        let verdict::Level { scenario, level, capacity } = level;
        Self { scenario: scenario.to_string(), of: of.to_string(), level, capacity }
    }
}
