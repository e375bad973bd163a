//! Routes, and what the edge does about browsers, as curl sees them.

use std::time::Duration;

use anyhow::Result;
use edge_common::Reason;
use edge_tests::{
    Lab, Origin,
    client::{Response, until},
    lab::FRIEND,
};

/// A route for everyone with these keys.
fn route(path: &str, keys: &str) -> String {
    let methods = "methods = [\"GET\", \"HEAD\", \"PUT\", \"POST\"]";
    format!(
        "[[route]]\npath = \"{path}\"\n{methods}\nauth = \"none\"\nupstream = \"api\"\n{keys}\n"
    )
}

/// What the origin was told in a header, as `/echo` shows it.
fn told(response: &Response, name: &str) -> Vec<String> {
    let headers = response.json()["headers"].as_array().cloned().unwrap_or_default();
    let named =
        headers.iter().filter(|h| h[0].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name)));
    named.filter_map(|h| h[1].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_request_goes_where_its_host_path_and_headers_say() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let routes = [
        route("/v1/{id}/echo", "rewrite = \"/echo\""),
        route("/strip", "rewrite = \"/\"\nupstream_host = \"api.internal:81\""),
        route("/only", "match = \"exact\"\nrewrite = \"/status/201\""),
        route("/only", "rewrite = \"/status/202\""),
        route("/host", "host = \"*.edge.test\"\nrewrite = \"/status/203\""),
        route("/host", "host = \"a.edge.test\"\nrewrite = \"/status/204\""),
        route("/when", "if_headers = [\"x-version=2\"]\nrewrite = \"/status/205\""),
        route("/when", "rewrite = \"/status/206\""),
        route("/sealed", "if_headers = [\"x-version=2*\"]\nrewrite = \"/status/207\""),
    ];
    let edged = lab.edged()?.append(&routes.concat())?.start()?;
    let get = |path: &str| edged.get(FRIEND, path);

    let echo = get("/v1/7/echo?b=1&a=%2F").send()?;
    assert_eq!(echo.json()["target"], "/echo?b=1&a=%2F", "{}", echo.text());
    assert_eq!(told(&echo, "host"), ["edge.test"]);
    let stripped = get("/strip/echo").send()?;
    assert_eq!(told(&stripped, "host"), ["api.internal:81"]);
    assert_eq!(told(&stripped, "x-forwarded-host"), ["edge.test"]);

    for (path, host, version, status) in [
        ("/only", "edge.test", "1", 201),
        ("/only/", "edge.test", "1", 201),
        ("/only/below", "edge.test", "1", 202),
        ("/host", "b.edge.test", "1", 203),
        ("/host", "c.b.edge.test", "1", 203),
        ("/host", "A.edge.test", "1", 204),
        // The only place for this path is for other hosts, and `/` asks for a key.
        ("/host", "edge.test", "1", 401),
        ("/when", "edge.test", "2", 205),
        ("/when", "edge.test", "1", 206),
        ("/sealed", "edge.test", "2.1", 207),
        // The place decides: what it does not take goes to no wider one.
        ("/sealed", "edge.test", "1", 404),
    ] {
        let asked = get(path).header("Host", host).header("X-Version", version).send()?;
        assert_eq!(asked.status, status, "{path} {host} {version}: {asked:?}");
    }
    Ok(())
}

#[test]
fn other_sites_read_what_the_list_lets_them() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let listed = "cors = { origins = [\"https://app.test\"], credentials = true, \
                  headers = [\"x-app\"], expose = [\"etag\"] }";
    let routes = route("/api", listed) + &route("/open", "cors = { origins = \"*\" }");
    let limited = lab.edged()?.set("limits.per_source", "\"600/m\"").append(&routes)?;
    let edged = limited.start()?;
    let ask = |path: &str, origin: &str, method: &str| {
        let asked = edged.get(FRIEND, path).method("OPTIONS").header("Origin", origin);
        asked.header("Access-Control-Request-Method", method).send()
    };

    let allowed = ask("/api/x", "https://app.test", "PUT")?;
    assert_eq!(allowed.status, 204, "{allowed:?}");
    for (name, value) in [
        ("access-control-allow-origin", "https://app.test"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, HEAD, PUT, POST"),
        ("access-control-allow-headers", "x-app"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(allowed.header(name), Some(value), "{allowed:?}");
    }
    assert!(allowed.header("x-request-id").is_some());
    assert!(allowed.header("x-ratelimit-remaining").is_some(), "{allowed:?}");
    for (path, origin) in [("/api/x", "https://evil.test"), ("/api/x", "null")] {
        let refused = ask(path, origin, "PUT")?;
        assert_eq!(refused.status, 403, "{refused:?}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    assert_eq!(
        ask("/open", "https://any.test", "GET")?.header("access-control-allow-origin"),
        Some("*")
    );
    // A route takes PUT, but not DELETE: nobody is asked about that.
    assert_eq!(ask("/api/x", "https://app.test", "DELETE")?.status, 405);
    assert_eq!(origin.seen(), 0, "the edge answers by itself");

    let read = edged.get(FRIEND, "/api/x").header("Origin", "https://app.test").send()?;
    assert_eq!(read.header("access-control-allow-origin"), Some("https://app.test"));
    assert_eq!(read.header("access-control-expose-headers"), Some("etag"));
    assert_eq!(read.header("vary"), Some("Origin"));
    let unread = edged.get(FRIEND, "/api/x").header("Origin", "https://evil.test").send()?;
    assert_eq!((unread.status, unread.header("access-control-allow-origin")), (200, None));
    assert_eq!(unread.header("vary"), Some("Origin"));
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::Preflight), 2.0);
    assert_eq!(metrics.requests(Reason::PreflightRefused), 2.0);
    Ok(())
}

#[test]
fn operators_say_what_is_usual_and_routes_what_is_not() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let usual = "{ strict-transport-security = \"max-age=300\", x-frame-options = \"SAMEORIGIN\" }";
    let own = "security_headers = { x-frame-options = \"DENY\" }\ncors = { origins = \"*\" }";
    let routes = route("/own", own) + &route("/usual", "");
    let edged = lab.edged()?.set("server.security_headers", usual).append(&routes)?.start()?;
    let preflight = edged.get(FRIEND, "/own").method("OPTIONS").header("Origin", "https://a.test");
    let preflight = preflight.header("Access-Control-Request-Method", "PUT");
    for (what, request, status, framed) in [
        ("served", edged.get(FRIEND, "/usual"), 200, "SAMEORIGIN"),
        ("served", edged.get(FRIEND, "/own"), 200, "DENY"),
        ("preflight", preflight, 204, "DENY"),
        ("no method", edged.get(FRIEND, "/own").method("DELETE"), 405, "SAMEORIGIN"),
        ("no target", edged.get(FRIEND, "/%zz"), 400, "SAMEORIGIN"),
        ("no key", edged.get(FRIEND, "/"), 401, "SAMEORIGIN"),
        ("redirect", edged.get(FRIEND, "http://edge.test/"), 308, "SAMEORIGIN"),
    ] {
        let answer = request.send()?;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        let promised = (what != "redirect").then_some("max-age=300");
        assert_eq!(answer.header("strict-transport-security"), promised, "{what}");
        assert_eq!(answer.header("x-frame-options"), Some(framed), "{what}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{what}");
    }
    let usual = "{ strict-transport-security = \"max-age=600\" }";
    edged.edit("server.security_headers", usual)?;
    edged.tell("reload")?;
    let changed = edged.get(FRIEND, "/own").method("DELETE").send()?;
    assert_eq!(changed.header("strict-transport-security"), Some("max-age=600"));
    Ok(())
}

#[test]
fn no_shared_cache_keeps_an_answer_to_who_is_known() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.append(&route("/open", "rewrite = \"/\""))?.start()?;
    let key = edged.key("k")?;
    for (path, kept) in [
        ("/", Some("no-store")),
        ("/cached/max-age=60", Some("no-store")),
        ("/cached/private,max-age=60", Some("private,max-age=60")),
    ] {
        let answer = edged.get(FRIEND, path).key(&key).send()?;
        assert_eq!((answer.status, answer.header("cache-control")), (200, kept), "{path}");
    }
    for (path, kept) in [("/open", None), ("/open/cached/max-age=60", Some("max-age=60"))] {
        let answer = edged.get(FRIEND, path).send()?;
        assert_eq!((answer.status, answer.header("cache-control")), (200, kept), "{path}");
    }
    Ok(())
}

#[test]
fn a_question_of_the_last_hop_is_answered_by_the_edge() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let asked = "[[route]]\npath = \"/echo\"\nmethods = [\"GET\", \"OPTIONS\"]\n\
                 auth = \"none\"\nupstream = \"api\"\n";
    let edged = lab.edged()?.append(asked)?.start()?;
    let ask = |method: &str, hops: &str| {
        edged.get(FRIEND, "/echo").method(method).header("Max-Forwards", hops).send()
    };
    let last = ask("OPTIONS", "0")?;
    assert_eq!((last.status, last.header("allow")), (204, Some("GET, OPTIONS")));
    assert_eq!(ask("OPTIONS", "x")?.status, 400);
    assert_eq!(origin.seen(), 0);
    assert_eq!(edged.metrics()?.requests(Reason::Preflight), 1.0);
    assert_eq!(told(&ask("OPTIONS", "5")?, "max-forwards"), ["4"]);
    assert_eq!(told(&ask("GET", "0")?, "max-forwards"), ["0"], "it is about OPTIONS alone");
    Ok(())
}

#[test]
fn a_request_with_cookies_must_come_from_the_sites_own_pages() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let routes = route("/app", "csrf = { token_cookie = \"__Host-t\" }")
        + &route("/form", "")
        + &route("/free", "csrf = false");
    let edged = lab.edged()?.append(&routes)?.start()?;
    let key = edged.key("k")?;
    let post =
        |path: &str| edged.get(FRIEND, path).method("POST").header("Cookie", "sid=1; __Host-t=abc");
    let evil = ("Origin", "https://evil.test");
    let own = ("Origin", "https://edge.test");

    assert_eq!(post("/form").header("Sec-Fetch-Site", "cross-site").send()?.status, 403);
    assert_eq!(post("/form").header(evil.0, evil.1).send()?.status, 403);
    assert_eq!(post("/form").send()?.status, 403);
    assert_eq!(post("/app").header(own.0, own.1).send()?.status, 403);
    assert_eq!(origin.seen(), 0);
    assert_eq!(post("/form").header(own.0, own.1).send()?.status, 200);
    assert_eq!(post("/form").header("Sec-Fetch-Site", "same-origin").send()?.status, 200);
    let repeated = post("/app").header(own.0, own.1).header("X-CSRF-Token", "abc").send()?;
    assert_eq!(repeated.status, 200);
    assert_eq!(post("/free").header(evil.0, evil.1).send()?.status, 200);
    assert_eq!(edged.get(FRIEND, "/form").method("POST").send()?.status, 200, "no cookie");
    // A key in a header is nothing that another site's page can add.
    let keyed = edged.get(FRIEND, "/").key(&key).method("POST").header("Cookie", "a=1");
    assert_eq!(keyed.header(evil.0, evil.1).send()?.status, 200);
    let metrics = edged.metrics()?;
    for (reason, count) in
        [(Reason::CrossSite, 1.0), (Reason::OriginMismatch, 2.0), (Reason::CsrfToken, 1.0)]
    {
        assert_eq!(metrics.requests(reason), count, "{}", reason.name());
    }
    Ok(())
}

#[test]
fn an_upstreams_error_page_goes_to_the_log_and_not_to_the_client() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let headers =
        "security_headers = { x-frame-options = \"SAMEORIGIN\", referrer-policy = false }";
    let routes = route("/status", headers) + &route("/status/503", "show_errors = true");
    let edged = lab.edged()?.append(&routes)?.start()?;

    let hidden = edged.get(FRIEND, "/status/500").send()?;
    assert_eq!(hidden.status, 500);
    assert_eq!(hidden.header("content-type"), Some("application/problem+json"));
    let id = hidden.json()["request_id"].as_str().unwrap_or_default().to_owned();
    assert!(id.len() >= 16, "{}", hidden.text());
    until("the original is logged", Duration::from_secs(5), || {
        let log = edged.log();
        let line = log.lines().find(|line| line.contains("kept back")).unwrap_or_default();
        Ok(line.contains(&id) && line.contains("500"))
    })?;
    assert_eq!(edged.get(FRIEND, "/status/503").send()?.text(), "503", "as the route says");
    assert_eq!(
        edged.get(FRIEND, "/status/404").send()?.text(),
        "404",
        "no error of the upstream's"
    );
    assert_eq!(hidden.header("x-frame-options"), Some("SAMEORIGIN"));
    assert_eq!(hidden.header("referrer-policy"), None);
    assert_eq!(hidden.header("server"), None);
    let served = edged.metrics()?.value("edged_requests_total{reason=\"serve\",status=\"500\"}");
    assert_eq!(served, 1.0);
    Ok(())
}
