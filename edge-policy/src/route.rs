//! Routes: which upstream serves a host and path, and who may ask for it.
//!
//! One place decides: the most specific path, and of routes for that path the most specific host.
//! Paths are compared segment by segment from the left, where a literal is more specific than
//! `{name}`, a longer path more specific than one above it, and an exact path more specific than
//! the same path with all below. Of hosts, an exact one comes before the longest wildcard, and that
//! before any. What the place does not take is refused, though a wider place might take it, since
//! that one may ask less of the caller. The order in which routes are written means nothing, save
//! between routes of one place whose rules about headers are equally narrow.

mod place;
mod rewrite;
mod tree;

use std::collections::HashMap;
use std::sync::Arc;

use edge_common::Reason;
use http::{HeaderMap, HeaderName, Method};

use self::tree::Tree;
pub use self::{
    place::{HeaderRule, HostPattern, Match, PathFault, PathPattern, Test},
    rewrite::{Rewrite, RewriteFault},
};
use crate::{
    auth::Methods, cors::Cors, csrf::Csrf, denied::Denied, login::Login, owner::Owner,
    shield::Secured, target::bare,
};

/// What serves a part of the site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Which requests it is for.
    pub at: Match,
    /// Whether the connection must have come with a client certificate.
    pub certificate: bool,
    /// Who may ask.
    pub access: Access,
    /// The upstream, by its place in the configuration.
    pub upstream: usize,
    /// What one request is charged to limits.
    pub cost: u64,
    /// What the path becomes on its way there.
    pub rewrite: Option<Rewrite>,
    /// The host that the upstream is told; `None`: the one the client asked for.
    pub host_sent: Option<String>,
    /// Claims of its clients that pass all the same.
    pub kept: Vec<HeaderName>,
    /// The protocols that its connections may change to, in lower case.
    pub upgrades: Vec<String>,
    /// That it is a login, and how it tells a failure.
    pub login: Option<Arc<Login>>,
    /// What is done to its answers.
    pub answers: Arc<Answers>,
}

/// What the edge does about the browsers that see a route's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Which other sites' scripts may read them; `None`: the upstream says so itself.
    pub cors: Option<Cors>,
    /// What a request that bears cookies must prove.
    pub csrf: Csrf,
    /// Their security headers.
    pub headers: Secured,
    /// Whether the upstream's own error pages reach the client.
    pub show_errors: bool,
}

/// Who may ask for a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever comes.
    Anyone,
    /// Who meets all of this.
    Needs(Box<Requirement>),
}

/// Nobody may.
impl Default for Access {
    fn default() -> Self {
        Self::Needs(Box::default())
    }
}

impl Access {
    /// The ways in which a caller may prove who it is; none if nobody asks.
    #[must_use]
    pub fn methods(&self) -> Methods {
        match self {
            Self::Anyone => Methods::NONE,
            Self::Needs(needed) => needed.methods,
        }
    }
}

/// What a route asks of its callers: every part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirement {
    /// It is proved in one of these ways who they are. Without one, nobody passes.
    pub methods: Methods,
    /// They hold every one of these scopes.
    pub scopes: Vec<String>,
    /// They hold one of these scopes, if there are any.
    pub any_scope: Vec<String>,
    /// They are one of these, if there are any.
    pub roles: Vec<String>,
    /// Their tokens are meant for one of these; if there are none, as the issuer's terms say.
    pub audience: Vec<String>,
    /// The issuers whose tokens are taken, by their names; all, if there are none.
    pub issuers: Vec<String>,
    /// What they ask for is theirs.
    pub owner: Option<Owner>,
    /// Every one of these sets of policies permits it.
    pub policies: Vec<PolicySlice>,
}

/// What a set of policies says of one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicySlice {
    /// The set's number.
    pub set: usize,
    /// The route's number, by which the set knows it.
    pub route: usize,
}

/// Why a set of routes is refused. Routes are named by their place in what was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteFault {
    /// Two routes take the same method for the same host, path and headers: the later would never
    /// be asked for it.
    Duplicate {
        /// The earlier.
        first: usize,
        /// The later.
        second: usize,
        /// The method.
        method: Method,
    },
    /// The route takes no method, or one that the edge never lets pass.
    Methods {
        /// The route.
        index: usize,
    },
    /// No request can have the headers that the route asks for.
    Never {
        /// The route.
        index: usize,
        /// The header that would have to be two things at once.
        name: String,
    },
}

/// All routes.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    tree: Tree,
}

impl Routes {
    /// Compiles the routes.
    ///
    /// # Errors
    /// Every fault of every route.
    pub fn new(mut routes: Vec<Route>) -> Result<Self, Vec<RouteFault>> {
        let faults = faults(routes.iter().map(|route| &route.at));
        if !faults.is_empty() {
            return Err(faults);
        }
        routes.sort_by_cached_key(|route| std::cmp::Reverse(route.at.rank()));
        let mut tree = Tree::default();
        for (index, route) in routes.iter().enumerate() {
            tree.add(&route.at, index);
        }
        Ok(Self { routes, tree })
    }

    /// The route for a request with this host name (without port) and normalised path.
    ///
    /// # Errors
    /// [`Reason::NoRoute`], [`Reason::MethodNotAllowed`] with the methods that are, or
    /// [`Reason::MalformedRequest`] if a server that drops parameters of segments would read a path
    /// of another place.
    pub fn find(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<&Route, Denied> {
        let mut allow = Vec::new();
        for route in self.place(host, path)? {
            if !route.at.headers.iter().all(|rule| rule.holds(headers)) {
                continue;
            }
            if route.at.methods.contains(method) {
                return Ok(route);
            }
            for method in &route.at.methods {
                if !allow.contains(method) {
                    allow.push(method.clone());
                }
            }
        }
        if allow.is_empty() {
            return Err(Denied::new(Reason::NoRoute));
        }
        Err(Denied { allow, ..Denied::new(Reason::MethodNotAllowed) })
    }

    /// What a browser is told that asks ahead of a request with this method, and by which route, if one of the
    /// place shares its answers. It asks without the header fields of the request itself, so no rule about
    /// them is asked: the first route that lets it answers.
    #[must_use]
    pub fn preflight(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        asked: &HeaderMap,
    ) -> Option<Result<(&Route, HeaderMap), Reason>> {
        let place = self.place(host, path).ok()?;
        let routes = place.filter(|route| route.at.methods.contains(method));
        let answers = routes.filter_map(|route| {
            let cors = route.answers.cors.as_ref()?;
            Some(cors.answer(asked, &route.at.methods).map(|headers| (route, headers)))
        });
        answers.reduce(Result::or)
    }

    /// Every route.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    fn place(&self, host: &str, path: &str) -> Result<impl Iterator<Item = &Route>, Reason> {
        let place = self.tree.find(host, path);
        // Upstreams that drop parameters would serve what another place guards.
        if bare(path).is_some_and(|bare| self.tree.find(host, &bare) != place) {
            return Err(Reason::MalformedRequest);
        }
        Ok(place.unwrap_or_default().iter().map(|index| &self.routes[*index]))
    }
}

/// What is wrong with a set of routes.
pub fn faults<'a>(routes: impl IntoIterator<Item = &'a Match>) -> Vec<RouteFault> {
    let mut faults = Vec::new();
    let mut places: HashMap<String, Vec<(usize, &Match)>> = HashMap::new();
    for (index, at) in routes.into_iter().enumerate() {
        let never = |m: &Method| matches!(*m, Method::CONNECT | Method::TRACE);
        if at.methods.is_empty() || at.methods.iter().any(never) {
            faults.push(RouteFault::Methods { index });
        }
        if let Some(name) = contradiction(&at.headers) {
            faults.push(RouteFault::Never { index, name });
        }
        let path = at.path.anonymous();
        let earlier = places.entry(format!("{} {path}", at.host)).or_default();
        let same = |other: &Match| {
            let method = other.methods.iter().find(|m| at.methods.contains(m))?;
            same_rules(&other.headers, &at.headers).then(|| method.clone())
        };
        let found = earlier.iter().find_map(|(first, other)| Some((*first, same(other)?)));
        if let Some((first, method)) = found {
            faults.push(RouteFault::Duplicate { first, second: index, method });
        }
        earlier.push((index, at));
    }
    faults
}

/// The header that would have to have two values at once. Several fields of one name could have
/// them, but no client sends what tells routes apart twice.
fn contradiction(rules: &[HeaderRule]) -> Option<String> {
    let agree = |a: &Test, b: &Test| match (a, b) {
        (Test::Present, _) | (_, Test::Present) => true,
        (Test::Equals(a), Test::Equals(b)) => a == b,
        (Test::Equals(whole), Test::Prefix(start)) | (Test::Prefix(start), Test::Equals(whole)) => {
            whole.starts_with(start.as_str())
        }
        (Test::Prefix(a), Test::Prefix(b)) => {
            a.starts_with(b.as_str()) || b.starts_with(a.as_str())
        }
    };
    rules.iter().enumerate().find_map(|(at, rule)| {
        let other = rules[..at].iter().find(|other| other.name == rule.name)?;
        (!agree(&rule.test, &other.test)).then(|| rule.name.to_string())
    })
}

fn same_rules(a: &[HeaderRule], b: &[HeaderRule]) -> bool {
    a.iter().all(|rule| b.contains(rule)) && b.iter().all(|rule| a.contains(rule))
}

#[cfg(test)]
mod tests;
