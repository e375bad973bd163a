//! Whether a caller may use a route. What is not granted is refused.

use edge_common::Reason;
use edge_policy::route::{Access, Route};

use crate::key::Key;

/// Grants or refuses a route to the holder of `key`, or to a caller without one.
///
/// # Errors
/// [`Reason::CredentialMissing`] or [`Reason::NotPermitted`].
pub fn authorize(route: &Route, key: Option<&Key>) -> Result<(), Reason> {
    let scopes = match &route.access {
        Access::Anyone => return Ok(()),
        Access::Key { scopes } => scopes,
    };
    let key = key.ok_or(Reason::CredentialMissing)?;
    if scopes.iter().all(|scope| key.record.scopes.contains(scope)) {
        Ok(())
    } else {
        Err(Reason::NotPermitted)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Method;

    use super::*;
    use crate::key::{Digest, KeyRecord};

    fn route(access: Access) -> Route {
        let methods = vec![Method::GET];
        Route { host: None, path: "/".into(), methods, access, upstream: "api".into() }
    }

    fn needs(scopes: &[&str]) -> Route {
        route(Access::Key { scopes: scopes.iter().map(|s| (*s).to_owned()).collect() })
    }

    fn key(scopes: &[&str]) -> Key {
        let record = KeyRecord {
            id: "id".into(),
            name: "name".into(),
            scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
            created_ms: 0,
            expires_ms: None,
            revoked_ms: None,
            digest: Digest([0; 32]),
        };
        Key { record, usage: Arc::default() }
    }

    #[test]
    fn every_scope_must_be_granted() {
        assert_eq!(authorize(&route(Access::Anyone), None), Ok(()));
        assert_eq!(authorize(&needs(&[]), None), Err(Reason::CredentialMissing));
        assert_eq!(authorize(&needs(&[]), Some(&key(&[]))), Ok(()));
        assert_eq!(authorize(&needs(&["a", "b"]), Some(&key(&["b", "a", "c"]))), Ok(()));
        let refused = authorize(&needs(&["a", "b"]), Some(&key(&["a"])));
        assert_eq!(refused, Err(Reason::NotPermitted));
        assert_eq!(authorize(&needs(&["a"]), Some(&key(&["A"]))), Err(Reason::NotPermitted));
    }
}
