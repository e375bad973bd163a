//! What is checked of who sends requests and of what they may: `[keys]`, `[upstream_identity]`,
//! `[[policy]]`, `[audit]`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::secret::Origin;

/// `[keys]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// What a key starts with: 1 to 16 lower-case letters and digits.
    pub prefix: String,
    /// The secret under which digests are made; a file is created at first start.
    pub pepper: Origin,
    /// Those that were in use before it, under which keys are still looked up.
    pub former_peppers: Vec<Origin>,
    /// What is kept of a key.
    pub hash: HashPolicy,
    /// Life of a new key; `None`: without end.
    pub expires: Option<Duration>,
    /// How long a rotated key is still good.
    pub grace: Duration,
    /// How long before its end a key's owner is told.
    pub warn_before: Duration,
    /// Whether keys are refused that were sent where others could read them.
    pub refuse_exposed: bool,
    /// Keys that there may be.
    pub keys_max: usize,
    /// Query parameters that are refused because credentials travel in them; lower case.
    pub url_parameters: Vec<String>,
}

/// What is kept of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashPolicy {
    /// A keyed digest.
    Keyed,
    /// An Argon2id hash as well.
    KeyedAndArgon2id,
}

/// `[upstream_identity]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamIdentity {
    /// Whether they get it as a signed token too.
    pub is_signed: bool,
    /// The secret from which its keys follow; `None`: one of this process.
    pub key: Option<Origin>,
    /// Who says so.
    pub issuer: String,
    /// To whom.
    pub audience: String,
    /// How long a token holds; at least a second.
    pub life: Duration,
    /// How long a key is used.
    pub rotate: Duration,
}

/// `[[policy]]`: policies that are decided together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySet {
    /// What routes call it.
    pub name: String,
    /// Its policies, in Cedar; never empty.
    pub files: Vec<PolicyFile>,
    /// What says which claims callers have; `None`: policies look at none.
    pub schema: Option<PolicyFile>,
    /// Whether it is only counted what it would refuse.
    pub shadow: bool,
}

/// A file of policies or of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What it holds; empty until `load` has read it.
    pub text: Arc<str>,
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Folder of its files.
    pub dir: PathBuf,
    /// The secret that seals its lines; a file is created at first start.
    pub key: Origin,
    /// How requests that were let in are told of.
    pub granted: Granted,
    /// A file of so many bytes is full.
    pub file_bytes_max: u64,
    /// Files that are kept.
    pub files_max: usize,
}

/// How requests that were let in are told of in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// Each.
    Each,
    /// How many there were of each principal in a second.
    Summed,
    /// Not at all.
    None,
}
