//! Giving up power: after this, no thread of the process holds or can regain a capability.

use caps::{CapSet, errors::CapsError};

/// Drops every capability and the way back to them. Call it before the first thread starts, or in each that
/// has: capabilities belong to threads.
///
/// Root without capabilities still owns its files, so that the store, the certificates and the
/// pinned maps stay within reach; it can no longer load programs, bind low ports or override
/// permissions.
pub fn drop_all() -> Result<(), PrivilegeError> {
    nix::sys::prctl::set_no_new_privs().map_err(PrivilegeError::NoNewPrivileges)?;
    // The bounding set first: shrinking it needs a capability (CAP_SETPCAP).
    for cap in caps::read(None, CapSet::Bounding)? {
        if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
            caps::drop(None, CapSet::Bounding, cap)?;
        }
    }
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    Ok(())
}

/// Why power could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The kernel refused the flag.
    #[error("cannot forbid new privileges")]
    NoNewPrivileges(#[source] nix::Error),
    /// The kernel refused a capability call.
    #[error("cannot drop capabilities")]
    Capabilities(#[from] CapsError),
}
