//! `[signing]`, as checked.

use std::path::PathBuf;

use edge_identity::signed::Policy;

use crate::secret::Origin;

/// `[signing]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signing {
    /// Which signatures are taken.
    pub policy: Policy,
    /// The secret from which new keys' secrets are derived; a file is created at first start.
    pub master: Origin,
    /// Those that were in use before it, from which those of older keys are.
    pub former_masters: Vec<Origin>,
    /// How many nonces are remembered.
    pub nonces_max: u32,
    /// Where they are noted.
    pub nonce_file: PathBuf,
    /// Bytes of a body that is held in memory until its signature is proved.
    pub v0_body_max: u64,
}
