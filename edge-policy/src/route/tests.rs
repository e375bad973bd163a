//! Routes as tables, and against a model that looks at every one of them.

use proptest::prelude::*;

use super::*;

fn host(text: &str) -> HostPattern {
    match text.strip_prefix("*.") {
        Some(zone) => HostPattern::Under(zone.into()),
        None if text == "*" => HostPattern::Any,
        None => HostPattern::Exact(text.into()),
    }
}

/// A route, whose path is exact if it begins with `=`; `upstream` tells it from others.
fn route(at: (&str, &str), methods: &[Method], headers: &[(&str, Test)], upstream: usize) -> Route {
    let (path, exact) = at.1.strip_prefix('=').map_or((at.1, false), |path| (path, true));
    let rule = |(name, test): &(&str, Test)| HeaderRule {
        name: name.parse().unwrap(),
        test: test.clone(),
    };
    Route {
        at: Match {
            host: host(at.0),
            path: PathPattern::parse(path, exact).unwrap(),
            methods: methods.to_vec(),
            headers: headers.iter().map(rule).collect(),
        },
        access: Access::Anyone,
        upstream,
        certificate: false,
        cost: 1,
        rewrite: None,
        upgrades: Vec::new(),
        host_sent: None,
        kept: Vec::new(),
        login: None,
        answers: Arc::default(),
    }
}

fn gets(places: &[(&str, &str)]) -> Routes {
    let of = |(index, at): (usize, &(&str, &str))| route(*at, &[Method::GET], &[], index);
    Routes::new(places.iter().enumerate().map(of).collect()).unwrap()
}

fn found(routes: &Routes, host: &str, path: &str) -> Option<usize> {
    routes.find(host, path, &Method::GET, &HeaderMap::new()).ok().map(|route| route.upstream)
}

#[test]
fn the_most_specific_place_serves() {
    let places = [
        ("*", "/"),
        ("*", "/admin"),
        ("a.example", "/admin"),
        ("*", "=/admin"),
        ("*", "/users/{id}"),
        ("*", "/users/me"),
        ("*", "/users/{id}/orders"),
        ("*.example", "/users"),
        ("*.b.example", "/users"),
        ("b.example", "/"),
    ];
    let routes = gets(&places);
    for (host, path, place) in [
        ("x", "/", 0),
        ("x", "/adm", 0),
        ("x", "/admin", 3),
        ("x", "/admin/", 3),
        ("x", "/admin/a", 1),
        ("a.example", "/admin/a", 2),
        // The path comes first: any host's exact path before one host's prefix.
        ("a.example", "/admin", 3),
        ("x", "/users", 0),
        ("x", "/users/7", 4),
        ("x", "/users/me", 5),
        ("x", "/users/me/a", 5),
        ("x", "/users/7/orders/1", 6),
        // The leftmost literal decides, though another pattern is longer.
        ("x", "/users/me/orders", 5),
        ("c.example", "/users", 7),
        ("c.b.example", "/users", 8),
        ("b.example", "/users", 7),
        ("b.example", "/x", 9),
    ] {
        assert_eq!(found(&routes, host, path), Some(place), "{host}{path}");
    }
}

#[test]
fn a_wider_place_never_takes_what_a_narrower_one_refuses() {
    let two = ("x-v", Test::Equals("2".into()));
    let routes = Routes::new(vec![
        route(("*", "/"), &[Method::GET, Method::POST], &[], 0),
        route(("*", "/admin"), &[Method::GET], &[], 1),
        route(("*", "/admin"), &[Method::PUT], &[], 2),
        route(("*", "/admin"), &[Method::GET, Method::PUT], std::slice::from_ref(&two), 4),
        route(("*", "/beta"), &[Method::GET], &[two], 3),
    ])
    .unwrap();
    let none = HeaderMap::new();
    let refused = routes.find("b", "/admin", &Method::POST, &none).unwrap_err();
    assert_eq!(refused.reason, Reason::MethodNotAllowed);
    assert_eq!(refused.allow, [Method::GET, Method::PUT]);
    let second: HeaderMap = [("x-v".parse().unwrap(), "2".parse().unwrap())].into_iter().collect();
    let refused = routes.find("b", "/admin", &Method::POST, &second).unwrap_err();
    assert_eq!(refused.allow, [Method::GET, Method::PUT], "each once");
    let refused = routes.find("b", "/beta", &Method::GET, &none).unwrap_err();
    assert_eq!(refused.reason, Reason::NoRoute);
    assert_eq!(routes.find("b", "/beta", &Method::GET, &second).unwrap().upstream, 3);
    let refused = routes.find("b", "/beta", &Method::POST, &second).unwrap_err();
    assert_eq!((refused.reason, refused.allow), (Reason::MethodNotAllowed, vec![Method::GET]));
}

/// Tomcat, Jetty and Spring drop `;x` from a segment: to them `/admin;x` is `/admin`.
#[test]
fn a_parameter_of_a_segment_leads_to_no_wider_place() {
    let routes = gets(&[
        ("*", "/"),
        ("*", "/admin"),
        ("*", "=/exact"),
        ("*", "/users/{id}/orders"),
        ("a", "/"),
    ]);
    for path in [
        "/admin;x",
        "/admin;",
        "/admin;x/y",
        "/admin%3Bx/y",
        "/;x/admin",
        "/exact;x=1",
        "/exact/;x",
        "/users/7/orders;x",
        "/users/;x/7/orders",
    ] {
        for host in ["a", "b"] {
            let refused = routes.find(host, path, &Method::GET, &HeaderMap::new()).unwrap_err();
            assert_eq!(refused.reason, Reason::MalformedRequest, "{host}{path}");
        }
    }
    for (path, place) in [
        ("/a;jsessionid=1", 0),
        ("/;x", 0),
        ("/admin/x;y", 1),
        ("/admin/;x", 1),
        ("/exact/x;y", 0),
        ("/users/7;v=1/orders/1;x", 3),
        ("/users;x/7", 0),
    ] {
        assert_eq!(found(&routes, "b", path), Some(place), "{path}");
    }
}

#[test]
fn the_narrowest_rules_about_headers_are_asked_first() {
    let rule = |test| vec![("x-v", test)];
    let rules = [
        vec![],
        rule(Test::Present),
        rule(Test::Prefix("1".into())),
        rule(Test::Prefix("1.2".into())),
        rule(Test::Equals("1.2.3".into())),
        vec![("x-v", Test::Present), ("x-b", Test::Equals("long".into()))],
    ];
    let of = |(index, rules): (usize, &Vec<_>)| route(("*", "/"), &[Method::GET], rules, index);
    let routes = Routes::new(rules.iter().enumerate().map(of).collect()).unwrap();
    for (value, index) in [("9", 1), ("1.9", 2), ("1.2.9", 3), ("1.2.3", 4)] {
        let headers = [("x-v".parse().unwrap(), value.parse().unwrap())].into_iter().collect();
        let found = routes.find("h", "/", &Method::GET, &headers).unwrap();
        assert_eq!(found.upstream, index, "{value}");
    }
    assert_eq!(found(&routes, "h", "/"), Some(0));
}

#[test]
fn without_a_route_there_is_no_answer() {
    let only = gets(&[("a", "/x")]);
    for (host, path) in [("b", "/x"), ("a", "/"), ("a", "/xy"), ("a", "/X")] {
        assert_eq!(found(&only, host, path), None);
    }
    assert_eq!(found(&Routes::default(), "a", "/"), None);
}

#[test]
fn every_fault_is_reported() {
    let get = &[Method::GET][..];
    let two = |text: &str| ("x-v", Test::Equals(text.into()));
    let given = vec![
        route(("*", "/a/{b}"), get, &[], 0),
        route(("*", "/a/{c}/"), &[Method::POST, Method::GET], &[], 1),
        route(("*", "=/a/{b}"), get, &[], 2),
        route(("*", "/d"), &[], &[], 3),
        route(("*", "/e"), &[Method::TRACE], &[], 4),
        route(("*", "/f"), get, &[two("1"), two("2")], 5),
        route(("*", "/a/{b}"), get, &[two("1")], 6),
        route(("*", "/a/{b}"), get, &[two("1")], 7),
    ];
    let expected = vec![
        RouteFault::Duplicate { first: 0, second: 1, method: Method::GET },
        RouteFault::Methods { index: 3 },
        RouteFault::Methods { index: 4 },
        RouteFault::Never { index: 5, name: "x-v".into() },
        RouteFault::Duplicate { first: 6, second: 7, method: Method::GET },
    ];
    assert_eq!(Routes::new(given).unwrap_err(), expected);
}

/// How specific a place is, by looking at it alone: each segment, then how it ends, then the host.
fn rank(at: &Match) -> (Vec<u8>, usize) {
    let text = at.path.to_string();
    let segments = text.split('/').filter(|s| !s.is_empty());
    let mut rank: Vec<_> = segments.map(|s| if s.starts_with('{') { 1 } else { 0 }).collect();
    rank.push(if at.path.exact { 2 } else { 3 });
    let host = match &at.host {
        HostPattern::Exact(_) => 0,
        HostPattern::Under(zone) => 1000 - zone.len(),
        HostPattern::Any => 1001,
    };
    (rank, host)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    /// Against a model: of all places that cover the request, the one of the least rank.
    #[test]
    fn the_tree_finds_what_looking_at_every_route_finds(
        places in proptest::collection::btree_set(
            ("(\\*|\\*\\.e|\\*\\.b\\.e|a\\.e|a\\.b\\.e)", "=?(/[ab]|/\\{p\\}){0,4}"), 1..14,
        ),
        hosts in "(a\\.e|a\\.b\\.e|c\\.b\\.e|x|e)",
        asked in "(/[abc]){0,5}/?",
    ) {
        let mut seen = std::collections::BTreeSet::new();
        let places: Vec<(String, String)> = places
            .into_iter()
            .map(|(host, path)| {
                // Each segment of its own name, since one name stands once.
                let mut parts = 0;
                let path = path.split("{p}").map(str::to_owned).reduce(|text, rest| {
                    parts += 1;
                    format!("{text}{{p{parts}}}{rest}")
                });
                (host, path.unwrap_or_default())
            })
            .map(|(host, path)| (host, if path.is_empty() || path == "=" { path + "/" } else { path }))
            .filter(|place| seen.insert(place.clone()))
            .collect();
        let refs: Vec<_> = places.iter().map(|(h, p)| (h.as_str(), p.as_str())).collect();
        let asked = if asked.is_empty() { "/".to_owned() } else { asked };
        let routes = gets(&refs);
        let covering = routes.iter().filter(|r| r.at.host.covers(&hosts) && r.at.path.covers(&asked));
        let best = covering.min_by_key(|route| rank(&route.at)).map(|route| route.upstream);
        prop_assert_eq!(found(&routes, &hosts, &asked), best);
    }
}

#[test]
fn thousands_of_routes_are_not_looked_at_one_by_one() {
    let paths: Vec<_> = (0..5_000).map(|n| format!("/s{}/r{}/{{id}}", n % 50, n)).collect();
    let places: Vec<_> = paths.iter().map(|path| ("*", path.as_str())).collect();
    let routes = gets(&places);
    for n in [0, 49, 2_500, 4_999] {
        let path = format!("/s{}/r{n}/x/y", n % 50);
        assert_eq!(found(&routes, "h", &path), Some(n));
        assert_eq!(
            routes.place("h", &path).unwrap().count(),
            1,
            "a place holds its own routes alone"
        );
    }
}

#[test]
fn a_preflight_is_answered_by_the_first_route_that_lets_the_browser() {
    let only = |name: &'static str| [(name, Test::Present)];
    let shared = |headers: &[(&str, Test)], origin: &str, upstream| {
        let cors = Cors {
            origins: Some(vec![origin.to_owned()]),
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age_s: 1,
        };
        let answers = Arc::new(Answers { cors: Some(cors), ..Answers::default() });
        Route { answers, ..route(("*", "/a"), &[Method::GET], headers, upstream) }
    };
    let closed = route(("*", "/a"), &[Method::GET], &only("x-c"), 3);
    let narrow = shared(&only("x-a"), "https://one.test", 1);
    let wide = shared(&[], "https://two.test", 2);
    let routes = Routes::new(vec![wide, narrow, closed]).unwrap();
    let ask = |origin: &'static str, method| {
        let mut asked = HeaderMap::new();
        asked.insert(http::header::ORIGIN, origin.parse().unwrap());
        let answer = routes.preflight("a", "/a/b", &method, &asked);
        answer.map(|answer| answer.map(|(route, _)| route.upstream))
    };
    assert_eq!(ask("https://one.test", Method::GET), Some(Ok(1)));
    assert_eq!(ask("https://two.test", Method::GET), Some(Ok(2)));
    assert_eq!(ask("https://three.test", Method::GET), Some(Err(Reason::PreflightRefused)));
    assert_eq!(ask("https://two.test", Method::PUT), None);
}
