//! The limits that an operator writes: who is counted with whom, what is answered, what is kept.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use edge_common::Reason;
use edge_tests::{
    Edged, Lab, Origin,
    client::{Request, until},
    daemon::find_key,
    issuer::{AUDIENCE, ISSUER, Signer, jwks, now_s},
    lab::{CLIENT, FRIEND},
};
use serde_json::{Value, json};

/// A daemon with these limits, whose own ones are out of the way.
fn edged<'a>(lab: &'a Lab, limits: &str) -> Result<Edged<'a>> {
    let off = "\"off\"";
    let setup = lab.edged()?.set("limits.per_key", off).set("limits.global", off);
    setup.append(limits)?.start()
}

fn refused_by(edged: &Edged<'_>, limit: &str, metric: &str) -> Result<f64> {
    let line = format!("{metric}{{limit=\"{limit}\"}} ");
    let scrape = edged.scrape()?;
    let value = scrape.lines().find_map(|l| l.strip_prefix(&line)).unwrap_or("0");
    Ok(value.parse()?)
}

#[test]
fn a_limit_counts_whom_it_says_and_tells_the_client() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = edged(
        &lab,
        "[[limit]]\nname = \"each-user\"\nby = [\"user\", \"header:x-tenant\"]\n\
         algorithm = \"sliding_window\"\nrate = \"3/h\"",
    )?;
    let (ann, bob) = (edged.key("ann")?, edged.key("bob")?);
    let get = |key: &str| edged.get(FRIEND, "/").key(key).flag("--http1.1").send();
    for left in ["2", "1", "0"] {
        let served = get(&ann)?;
        assert_eq!((served.status, served.header("x-ratelimit-remaining")), (200, Some(left)));
        let policy = served.header("ratelimit-policy").unwrap_or_default();
        assert_eq!(policy, "\"default\";q=3;w=3600");
        assert!(served.header("ratelimit").unwrap_or_default().starts_with("\"default\";r="));
    }
    let refused = get(&ann)?;
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.header("retry-after").unwrap_or("0").parse()?;
    assert!((1..=7200).contains(&wait), "{wait}");
    assert!(
        !format!("{refused:?}").contains("each-user"),
        "which limit is not the client's to know"
    );
    // Another user, and another tenant, have quotas of their own; without a key there is no user.
    assert_eq!(get(&bob)?.status, 200);
    let other = edged.get(FRIEND, "/").key(&ann).header("X-Tenant", "other").send()?;
    assert_eq!(other.status, 200);
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    assert_eq!(refused_by(&edged, "each-user", "edged_limit_refused_total")?, 1.0);
    assert_eq!(edged.metrics()?.requests(Reason::RequestLimit), 1.0);
    let event = edged.event("request_refused", FRIEND)?;
    assert_eq!((&event["reason"], &event["limit"]), (&"request_limit".into(), &"each-user".into()));
    Ok(())
}

#[test]
fn a_quota_outlives_restart_and_reload() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let quota = "[[limit]]\nname = \"monthly\"\nby = [\"source\", \"route\"]\n\
                 algorithm = \"fixed_window\"\nrate = \"5/month\"";
    let mut edged = edged(&lab, quota)?;
    let key = edged.key("k")?;
    let status =
        |edged: &Edged<'_>| Ok::<_, anyhow::Error>(edged.get(FRIEND, "/").key(&key).send()?.status);
    assert_eq!([status(&edged)?, status(&edged)?], [200, 200]);
    // A reload with another number goes on counting.
    edged.edit("limit.0.rate", "\"3/month\"")?;
    edged.tell("reload")?;
    assert_eq!([status(&edged)?, status(&edged)?], [200, 429]);
    assert!(edged.terminate()?.success());
    edged.start_again()?;
    assert_eq!(status(&edged)?, 429);
    // What is damaged is set aside, and nothing else is lost.
    assert!(edged.terminate()?.success());
    let file = lab.dir().join("state/quotas/monthly.quota");
    let mut bytes = std::fs::read(&file)?;
    bytes[20] ^= 1;
    std::fs::write(&file, bytes)?;
    edged.start_again()?;
    assert_eq!(status(&edged)?, 200);
    assert!(file.with_extension("damaged").exists());
    assert!(edged.log().contains("set aside"), "{}", edged.log());
    Ok(())
}

#[test]
fn a_shadow_refuses_nothing_and_a_dear_route_costs_more() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let limits = "[[limit]]\nname = \"shadow\"\nby = [\"source\"]\nrate = \"1/h\"\nshadow = true\n\
                  [[limit]]\nname = \"priced\"\nby = []\nrate = \"25/h\"\nroutes = [\"/\"]";
    let edged = lab.edged()?.set("route.1.cost", "10").append(limits)?.start()?;
    let key = edged.key("k")?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(edged.get(FRIEND, "/").key(&key).send()?.status);
    }
    assert_eq!(seen, [200, 200, 429]);
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    // The first for what it costs, the others as soon as they ask.
    assert_eq!(refused_by(&edged, "shadow", "edged_limit_would_refuse_total")?, 4.0);
    assert_eq!(refused_by(&edged, "priced", "edged_limit_refused_total")?, 1.0);
    assert_eq!(edged.metrics()?.requests(Reason::GlobalRate), 1.0, "nobody is to blame for it");
    assert_eq!(edged.event("request_refused", FRIEND)?["limit"], "priced");
    Ok(())
}

#[test]
fn a_dear_route_costs_its_clients_limit_as_much() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let at_once =
        "[[limit]]\nname = \"at-once\"\nby = [\"source\"]\nalgorithm = \"concurrent\"\nmax = 1";
    let setup = lab.edged()?.set("limits.per_source", "{ rate = \"25/h\", burst = 25 }");
    let edged = setup.set("route.1.cost", "10").append(at_once)?.start()?;
    let key = edged.key("k")?;
    let dear = || edged.get(FRIEND, "/").key(&key).send();
    assert_eq!([dear()?.status, dear()?.status], [200; 2]);
    // Five are left, of which the third takes one to ask; it would find ten in six more.
    let refused = dear()?;
    let wait: u64 = refused.header("retry-after").unwrap_or("0").parse()?;
    assert_eq!(refused.status, 429);
    assert!((5 * 144..=6 * 144).contains(&wait), "{wait}");
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200);
    assert_eq!(refused_by(&edged, "per_source", "edged_limit_refused_total")?, 1.0);
    assert_eq!(edged.metrics()?.requests(Reason::SourceRate), 1.0);
    Ok(())
}

#[test]
fn a_leaky_bucket_makes_requests_wait_for_their_turn() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = edged(
        &lab,
        "[[limit]]\nname = \"shaped\"\nby = [\"source\"]\nalgorithm = \"leaky_bucket\"\n\
         rate = \"4/s\"\nqueue = 4",
    )?;
    let key = edged.key("k")?;
    // Four at once: the last of them waits three quarters of a second for its turn.
    let started = Instant::now();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = || edged.get(CLIENT, "/").key(&key).send().map_or(0, |answer| answer.status);
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(statuses, [200; 4]);
    assert!(started.elapsed() >= Duration::from_millis(700), "{:?}", started.elapsed());
    Ok(())
}

#[test]
fn a_full_queue_refuses_and_says_when_there_is_room() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = edged(
        &lab,
        "[[limit]]\nname = \"shaped\"\nby = [\"source\"]\nalgorithm = \"leaky_bucket\"\n\
         rate = \"2/m\"\nqueue = 1",
    )?;
    let key = edged.key("k")?;
    assert_eq!(edged.get(CLIENT, "/").key(&key).send()?.status, 200);
    let refused = edged.get(CLIENT, "/").key(&key).send()?;
    let number = |name: &str| -> Result<u64> {
        Ok(refused.header(name).with_context(|| format!("no {name}"))?.parse()?)
    };
    let wait_s = number("retry-after")?;
    assert_eq!(
        (refused.status, refused.header("ratelimit-policy")),
        (429, Some("\"default\";q=1;w=30"))
    );
    assert!((20..=30).contains(&wait_s), "{wait_s}");
    assert_eq!(refused.header("ratelimit"), Some(&*format!("\"default\";r=0;t={wait_s}")));
    let reset_s = number("x-ratelimit-reset")?;
    assert!(reset_s.abs_diff(now_s() + wait_s) <= 5, "{reset_s}");
    assert_eq!(refused_by(&edged, "shaped", "edged_limit_refused_total")?, 1.0);
    Ok(())
}

#[test]
fn requests_at_once_are_limited_and_given_back() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = edged(
        &lab,
        "[[limit]]\nname = \"at-once\"\nby = [\"source\"]\nalgorithm = \"concurrent\"\nmax = 2",
    )?;
    let key = edged.key("k")?;
    let at_once = |count: u32| -> Vec<u16> {
        std::thread::scope(|scope| {
            let ask = || edged.get(CLIENT, "/slow").key(&key).send().map_or(0, |a| a.status);
            let asked: Vec<_> = (0..count).map(|_| scope.spawn(ask)).collect();
            asked.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    };
    let refused = || refused_by(&edged, "at-once", "edged_limit_refused_total");
    let statuses = at_once(5);
    assert!(statuses.iter().filter(|status| **status == 200).count() >= 2, "{statuses:?}");
    assert!(refused()? >= 1.0, "{statuses:?}");
    until("places are given back", Duration::from_secs(5), || {
        Ok(edged.get(CLIENT, "/").key(&key).send()?.status == 200)
    })?;
    Ok(())
}

/// A route that takes GET and HEAD, and a limit of one an hour for it alone.
fn limited(what: &str, auth: &str, limit: &str) -> String {
    format!(
        "[[route]]\npath = \"/{what}\"\nmethods = [\"GET\", \"HEAD\"]\nauth = {auth}\n\
         upstream = \"api\"\n\
         [[limit]]\nname = \"{what}\"\nroutes = [\"/{what}\"]\nrate = \"1/h\"\n{limit}\n"
    )
}

/// A request with a token that says so much more.
fn bearer<'a>(edged: &'a Edged<'_>, path: &str, signer: &Signer, more: &Value) -> Request<'a> {
    let mut claims = signer.claims();
    for (name, value) in more.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    edged.get(FRIEND, path).header("Authorization", &format!("Bearer {}", signer.token(&claims)))
}

/// Whatever a limit counts by is what the request on the wire says.
#[test]
fn what_requests_agree_in_is_read_off_the_wire() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let signer = Signer::new("k1")?;
    std::fs::write(lab.dir().join("own.jwks"), jwks(&[&signer]))?;
    let issuer = format!(
        "[[issuer]]\nname = \"own\"\nissuer = \"{ISSUER}\"\naudience = [\"{AUDIENCE}\"]\n\
         key_files = [\"own.jwks\"]\n"
    );
    let tiers = "tiers = { pro = \"2/h\", all = \"off\" }";
    let limits = [
        limited("method", "\"none\"", "by = [\"method\"]"),
        limited("host", "\"none\"", "by = [\"host\"]"),
        limited("ja4", "\"none\"", "by = [\"ja4\"]"),
        limited("claim", "\"jwt\"", "by = [\"claim:org\"]"),
        limited("numbers", "[\"key\", \"jwt\"]", &format!("by = [\"user\"]\n{tiers}")),
        limited("tier", "[\"key\", \"jwt\"]", "by = [\"tier\"]"),
    ];
    let edged = edged(&lab, &format!("{issuer}{}", limits.concat()))?;
    let key = |line: &str| -> Result<String> {
        let told = edged.tell(&format!("key create {line}"))?;
        find_key(&told).ok_or_else(|| anyhow::anyhow!("no key in {told}"))
    };
    let (free, pro, all) =
        (key("--name free")?, key("--name pro --tier pro")?, key("--name all --tier all")?);
    let get = |path: &str| edged.get(FRIEND, path);
    let token = |path: &str, more: Value| bearer(&edged, path, &signer, &more);
    type Ask<'a> = &'a dyn Fn() -> Request<'a>;
    // How many of three requests each like this are admitted, one kind after the other.
    let rows: [(&str, Ask<'_>, usize); 20] = [
        ("GET", &|| get("/method"), 1),
        ("HEAD", &|| get("/method").method("HEAD"), 1),
        ("GET again", &|| get("/method").key(&pro), 0),
        ("a host", &|| get("/host"), 1),
        ("another host", &|| get("/host").header("Host", "other.test"), 1),
        ("the host again", &|| edged.get(CLIENT, "/host"), 0),
        ("a TLS client", &|| get("/ja4"), 1),
        ("another TLS client", &|| get("/ja4").arg("--tls-max", "1.2"), 1),
        ("the TLS client elsewhere", &|| edged.get(CLIENT, "/ja4"), 0),
        ("a claim", &|| token("/claim", json!({"org": "a"})), 1),
        ("the claim of another", &|| token("/claim", json!({"org": "a", "sub": "bob"})), 0),
        ("another claim", &|| token("/claim", json!({"org": "b"})), 1),
        ("no claim", &|| token("/claim", json!({})), 1),
        ("a key without a tier", &|| get("/numbers").key(&free), 1),
        ("a key of a tier", &|| get("/numbers").key(&pro), 2),
        ("a key of a tier without a limit", &|| get("/numbers").key(&all), 3),
        ("a token without a tier", &|| token("/numbers", json!({"sub": "ann"})), 1),
        ("a token of a tier", &|| token("/numbers", json!({"sub": "bob", "tier": "pro"})), 2),
        ("a tier by its key", &|| get("/tier").key(&pro), 1),
        ("a tier by a token", &|| token("/tier", json!({"tier": "pro"})), 0),
    ];
    for (what, ask, admitted) in rows {
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(ask().send()?.status);
        }
        let expected: Vec<u16> = (0..3).map(|n| if n < admitted { 200 } else { 429 }).collect();
        assert_eq!(statuses, expected, "{what}");
    }
    Ok(())
}
