//! `[geo]`: files that tell where addresses are from, as checked.

use std::path::PathBuf;

/// `[geo]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Geo {
    /// Countries.
    pub country: Option<PathBuf>,
    /// Autonomous systems.
    pub asn: Option<PathBuf>,
}
