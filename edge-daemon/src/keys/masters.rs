//! The master secrets, from which those of keys that sign are derived.

use anyhow::Context as _;
use edge_identity::signed::Masters;

use super::pepper::make_if_missing;
use crate::{
    config::settings::Signing,
    secret::{BYTES_MIN, Origin, Secret},
};

/// Makes the master secret in use, if it is a file that is not there yet. Only at the start: a file that
/// goes missing later is a mistake, and another secret in its place would refuse every key there is.
///
/// # Errors
/// If the file cannot be made.
pub fn make(signing: &Signing) -> anyhow::Result<()> {
    let Origin::File(path) = &signing.master else { return Ok(()) };
    make_if_missing(path)
        .with_context(|| format!("cannot make the master secret {}", path.display()))
}

/// Reads the master secret in use and those before it.
///
/// # Errors
/// If one cannot be used; it is named, never shown.
pub fn load(signing: &Signing) -> anyhow::Result<Masters> {
    let origins = std::iter::once(&signing.master).chain(&signing.former_masters);
    let secrets: Vec<_> = origins.map(read).collect::<Result<_, _>>()?;
    Ok(Masters::new(secrets.iter().map(Secret::expose)))
}

fn read(origin: &Origin) -> anyhow::Result<Secret> {
    let secret = origin.read().and_then(|secret| secret.at_least(BYTES_MIN));
    secret.with_context(|| format!("cannot use the master secret {origin}"))
}
