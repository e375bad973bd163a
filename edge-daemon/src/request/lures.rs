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
    /// Those of the configuration, but for paths that a route serves. One that is for whatever is asked for
    /// serves none in particular.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let verdicts = &settings.verdicts;
        let named =
            || settings.routes.iter().map(|route| &route.at.path).filter(|at| at.is_named());
        let is_served = |path: &str| named().any(|at| at.covers(path));
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
        self.check_canary(headers, Some(target), is_led)
    }

    /// The same for credentials alone: over plain HTTP a decoy is a path that is sent to HTTPS as any other.
    pub(super) fn check_canary(
        &self,
        headers: &HeaderMap,
        target: Option<&Target>,
        is_led: bool,
    ) -> Result<(), Denied> {
        let query = target.and_then(|target| target.query.as_deref()).filter(|_| !is_led);
        let query = query.unwrap_or_default();
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
    fn what_a_route_serves_is_no_decoy_wherever_it_lies_below() {
        let minimal = include_str!("../../../config/minimal.toml");
        let is_decoy = |place: &str| {
            let route = format!(
                "{minimal}\n[[route]]\npath = {place}\nmethods = [\"GET\"]\nauth = \"none\"\nupstream = \"api\"\n"
            );
            let read = crate::config::parse(std::path::Path::new("edged.toml"), &route);
            let (settings, _) = read.unwrap_or_else(|mistakes| panic!("{mistakes}"));
            let lures = Lures::new(&settings);
            assert!(lures.decoys.contains("/.env"), "{place}");
            lures.decoys.contains("/.git/config")
        };
        assert!(!is_decoy("\"/.git\""));
        assert!(!is_decoy("\"/.git/config\""));
        assert!(!is_decoy("\"/{place}/config\""));
        assert!(is_decoy("\"/.git\"\nmatch = \"exact\""));
        assert!(is_decoy("\"/.git/configs\""));
        // A place for whatever is asked for serves none of them in particular.
        assert!(is_decoy("\"/{place}\""));
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

    #[test]
    fn a_canary_is_known_whatever_the_path_is() {
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-api-key"),
            http::HeaderValue::from_static("bait"),
        )]);
        let decoy = Target::parse("/.env?k=bait", 1000).unwrap();
        let found = |headers: &HeaderMap, target, is_led| {
            let checked = lures().check_canary(headers, target, is_led);
            checked.err().map(|denied| denied.reason)
        };
        assert_eq!(found(&headers, None, true), Some(Reason::CanaryKey));
        let none = HeaderMap::new();
        assert_eq!(found(&none, Some(&decoy), false), Some(Reason::CanaryKey));
        assert_eq!(found(&none, Some(&decoy), true), None);
    }
}
