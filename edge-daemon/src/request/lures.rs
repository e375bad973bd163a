//! What is laid out for those who look for a way in: paths that nobody else asks for, and credentials
//! that nobody else has.

use std::collections::BTreeSet;

use edge_common::Reason;
use edge_identity::credential;
use edge_policy::{
    auth::{Challenge, Method},
    denied::Denied,
    target::Target,
};
use http::HeaderMap;

use crate::config::settings::Settings;

/// The lures of a configuration.
pub struct Lures {
    decoys: BTreeSet<String>,
    canaries: BTreeSet<String>,
}

impl Lures {
    /// Those of the configuration, but for paths that a route serves.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let verdicts = &settings.verdicts;
        let is_served =
            |path: &&String| settings.routes.iter().any(|r| r.at.path.as_str() == **path);
        Self {
            decoys: verdicts.decoys.iter().filter(|path| !is_served(path)).cloned().collect(),
            canaries: verdicts.canaries.iter().cloned().collect(),
        }
    }

    /// Refuses who took one, with the answer of any other path or credential that is none.
    ///
    /// A URL that another site's page had a browser ask for proves nothing about who sits before it.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        target: &Target,
        is_led: bool,
    ) -> Result<(), Denied> {
        if self.decoys.contains(&target.path) {
            return Err(if is_led { Reason::NoRoute } else { Reason::DecoyPath }.into());
        }
        let query = target.query.as_deref().filter(|_| !is_led).unwrap_or_default();
        let values = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
        let is_bait = |text: &str| self.canaries.contains(text);
        if !self.canaries.is_empty()
            && (credential::words(headers).any(is_bait) || values.into_iter().any(is_bait))
        {
            let challenge = Challenge::of(Method::Key.into());
            return Err(Denied { challenge, ..Denied::new(Reason::CanaryKey) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use edge_policy::led;

    use super::*;

    fn lures() -> Lures {
        let (decoys, canaries) = (["/.env".to_owned()].into(), ["bait".to_owned()].into());
        Lures { decoys, canaries }
    }

    fn check(target: &str, fields: &[(&'static str, &str)]) -> Option<Reason> {
        let target = Target::parse(target, 1000).unwrap();
        let headers = fields
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        let headers = headers.collect();
        let checked = lures().check(&headers, &target, led::is_led(&headers));
        checked.err().map(|denied| denied.reason)
    }

    #[test]
    fn who_takes_bait_is_known() {
        assert_eq!(check("/.env", &[]), Some(Reason::DecoyPath));
        assert_eq!(check("/.env", &[("sec-fetch-site", "none")]), Some(Reason::DecoyPath));
        assert_eq!(check("/.env", &[("sec-fetch-site", "cross-site")]), Some(Reason::NoRoute));
        assert_eq!(check("/.env/x", &[]), None);
        for field in [
            ("x-api-key", "bait"),
            ("authorization", "Bearer bait"),
            ("authorization", "ApiKey bait"),
        ] {
            assert_eq!(check("/", &[field]), Some(Reason::CanaryKey), "{field:?}");
        }
        assert_eq!(check("/?a=1&key=bait", &[]), Some(Reason::CanaryKey));
        let led = ("sec-fetch-site", "cross-site");
        assert_eq!(check("/?a=1&key=bait", &[led]), None);
        assert_eq!(check("/", &[led, ("x-api-key", "bait")]), Some(Reason::CanaryKey));
        assert_eq!(check("/?bait", &[("x-api-key", "other"), ("cookie", "bait")]), None);
    }
}
