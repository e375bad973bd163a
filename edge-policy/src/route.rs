//! Routes: which upstream serves a host and path, and who may ask for it.

use edge_common::Reason;
use http::Method;

use crate::auth::Methods;
use crate::denied::Denied;
use crate::target::Target;

/// What serves a part of the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The host name, in lower case; `None` is any.
    pub host: Option<String>,
    /// The path and all below it, by whole segments; a trailing slash means nothing.
    pub path: String,
    /// Whether the connection must have come with a client certificate.
    pub certificate: bool,
    /// What it takes.
    pub methods: Vec<Method>,
    /// Who may ask.
    pub access: Access,
    /// The name of the upstream.
    pub upstream: String,
    /// What one request is charged to limits.
    pub cost: u64,
}

/// Who may ask for a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever comes.
    Anyone,
    /// Who meets all of this.
    Needs(Box<Requirement>),
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
}

/// Why a set of routes is refused. Routes are named by their place in what was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteFault {
    /// Two routes take the same method for the same host and path.
    Duplicate {
        /// The earlier.
        first: usize,
        /// The later.
        second: usize,
    },
    /// The path is not in the normal form, in which requests are compared with it.
    Path {
        /// The route.
        index: usize,
    },
    /// The route takes no method, or one that the edge never lets pass.
    Methods {
        /// The route.
        index: usize,
    },
}

/// All routes, the most specific first.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
}

impl Routes {
    /// Sorts the routes.
    ///
    /// # Errors
    /// Every fault of every route.
    pub fn new(mut routes: Vec<Route>) -> Result<Self, Vec<RouteFault>> {
        let faults = faults(&routes);
        if !faults.is_empty() {
            return Err(faults);
        }
        for route in &mut routes {
            route.path.truncate(stem(&route.path).len());
            if let Some(host) = &mut route.host {
                host.make_ascii_lowercase();
            }
        }
        // The longest path first, and of equal ones that with a host of its own.
        routes.sort_by_key(|route| (std::cmp::Reverse(route.path.len()), route.host.is_none()));
        Ok(Self { routes })
    }

    /// The route for a request with this host name (without port) and normalised path.
    ///
    /// The most specific path and host decide: a method that they do not take is refused, though
    /// a wider route might take it, since that one may ask less of the caller.
    ///
    /// # Errors
    /// [`Reason::NoRoute`], or [`Reason::MethodNotAllowed`] with the methods that are.
    pub fn find(&self, host: &str, path: &str, method: &Method) -> Result<&Route, Denied> {
        let mut found = self.routes.iter().filter(|route| route.serves(host, path)).peekable();
        let best = *found.peek().ok_or(Denied::new(Reason::NoRoute))?;
        let mut allow = Vec::new();
        for route in found.take_while(|route| best.is_place_of(route)) {
            if route.methods.contains(method) {
                return Ok(route);
            }
            allow.extend_from_slice(&route.methods);
        }
        Err(Denied { allow, ..Denied::new(Reason::MethodNotAllowed) })
    }

    /// Every route, the most specific first.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }
}

impl Route {
    fn serves(&self, host: &str, path: &str) -> bool {
        let below = path.strip_prefix(stem(&self.path));
        self.host.as_deref().is_none_or(|own| own == host)
            && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn is_place_of(&self, other: &Self) -> bool {
        stem(&self.path) == stem(&other.path) && self.host == other.host
    }
}

fn faults(routes: &[Route]) -> Vec<RouteFault> {
    let mut faults = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let normal = Target::parse(&route.path, usize::MAX);
        if !normal.is_ok_and(|target| target.query.is_none() && target.path == route.path) {
            faults.push(RouteFault::Path { index });
        }
        let never = |m: &Method| matches!(*m, Method::CONNECT | Method::TRACE);
        if route.methods.is_empty() || route.methods.iter().any(never) {
            faults.push(RouteFault::Methods { index });
        }
        let same = |other: &Route| {
            route.is_place_of(other) && other.methods.iter().any(|m| route.methods.contains(m))
        };
        if let Some(first) = routes[..index].iter().position(same) {
            faults.push(RouteFault::Duplicate { first, second: index });
        }
    }
    faults
}

/// A path without its trailing slash.
fn stem(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(host: &str, path: &str, methods: &[Method]) -> Route {
        Route {
            host: (host != "*").then(|| host.to_owned()),
            path: path.into(),
            certificate: false,
            methods: methods.to_vec(),
            access: Access::Anyone,
            upstream: format!("{host}{path}"),
            cost: 1,
        }
    }

    fn routes() -> Routes {
        Routes::new(vec![
            route("*", "/", &[Method::GET, Method::POST]),
            route("*", "/admin", &[Method::GET]),
            route("*", "/admin", &[Method::PUT]),
            route("*", "/static/", &[Method::GET]),
            route("A.example", "/admin", &[Method::DELETE]),
        ])
        .unwrap()
    }

    fn found(host: &str, path: &str, method: &Method) -> Result<String, (Reason, Vec<Method>)> {
        let routes = routes();
        let found = routes.find(host, path, method);
        found.map(|route| route.upstream.clone()).map_err(|denied| (denied.reason, denied.allow))
    }

    #[test]
    fn the_most_specific_route_serves() {
        for (host, path, method, upstream) in [
            ("b", "/", Method::GET, "*/"),
            ("b", "/x/y", Method::POST, "*/"),
            ("b", "/admin", Method::GET, "*/admin"),
            ("b", "/admin/users", Method::PUT, "*/admin"),
            ("b", "/administrator", Method::GET, "*/"),
            ("b", "/static", Method::GET, "*/static/"),
            ("b", "/static/a", Method::GET, "*/static/"),
            ("a.example", "/admin/", Method::DELETE, "A.example/admin"),
        ] {
            assert_eq!(found(host, path, &method).as_deref(), Ok(upstream), "{host}{path}");
        }
    }

    #[test]
    fn a_wider_route_never_takes_the_method_of_a_narrower_one() {
        let refused = found("b", "/admin", &Method::POST).unwrap_err();
        assert_eq!(refused, (Reason::MethodNotAllowed, vec![Method::GET, Method::PUT]));
        let refused = found("a.example", "/admin", &Method::GET).unwrap_err();
        assert_eq!(refused, (Reason::MethodNotAllowed, vec![Method::DELETE]));
    }

    #[test]
    fn without_a_route_there_is_no_answer() {
        let only = Routes::new(vec![route("a", "/x", &[Method::GET])]).unwrap();
        for (host, path) in [("b", "/x"), ("a", "/"), ("a", "/xy"), ("a", "/X")] {
            assert_eq!(only.find(host, path, &Method::GET), Err(Denied::new(Reason::NoRoute)));
        }
        assert!(Routes::default().find("a", "/", &Method::GET).is_err());
    }

    #[test]
    fn every_fault_is_reported() {
        let given = vec![
            route("*", "/a", &[Method::GET]),
            route("*", "/a/", &[Method::POST, Method::GET]),
            route("*", "/b/../c", &[Method::GET]),
            route("*", "x", &[Method::GET]),
            route("*", "/d", &[]),
            route("*", "/e", &[Method::TRACE]),
        ];
        let expected = vec![
            RouteFault::Duplicate { first: 0, second: 1 },
            RouteFault::Path { index: 2 },
            RouteFault::Path { index: 3 },
            RouteFault::Methods { index: 4 },
            RouteFault::Methods { index: 5 },
        ];
        assert_eq!(Routes::new(given).unwrap_err(), expected);
    }

    proptest! {
        /// Against a model: of all routes that cover the path, the longest.
        #[test]
        fn the_longest_prefix_wins(
            paths in proptest::collection::btree_set("(/[ab]){1,4}", 1..8), asked in "(/[ab]){1,5}",
        ) {
            let all = paths.iter().map(|path| route("*", path, &[Method::GET])).collect();
            let routes = Routes::new(all).unwrap();
            let covers = |p: &&String| asked == **p || asked.starts_with(&format!("{p}/"));
            let longest = paths.iter().filter(covers).max_by_key(|p| p.len());
            let found = routes.find("h", &asked, &Method::GET).ok().map(|r| &r.path);
            prop_assert_eq!(found, longest);
        }
    }
}
