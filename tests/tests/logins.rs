//! Logins on the wire: what an answer says of them, however it is framed, and what becomes of whoever
//! guesses.

use std::time::Duration;

use anyhow::Result;
use edge_tests::{
    Edged, Lab,
    client::{HOST, reaches, until},
    lab::{ATTACKER, CLIENT, FRIEND, ORIGIN},
    talk::Dial,
    web::{Answer, Web},
};

const SOON: Duration = Duration::from_secs(5);

/// A login whose failures the answer's body or a header field tells.
const ROUTE: &str = "[[route]]\npath = \"/login\"\nmethods = [\"POST\"]\nauth = \"none\"\nupstream = \"api\"\n\
    login = { account = \"header:x-user\", failure_statuses = [401], failure_header = \"x-login=failed\", \
    failure_body = \"wrong password\" }\n";

/// A server whose answers to logins are framed as the path says; `fail` is in those that fail.
fn upstream(lab: &Lab) -> Result<Web> {
    Web::start(&lab.origin, &format!("{ORIGIN}:8080"), |asked| {
        let word = if asked.target.contains("fail") { "wrong password" } else { "welcome" };
        let path = asked.target.split('?').next().unwrap_or_default();
        match path {
            "/login/length" => Answer::ok(word),
            "/login/header" => Answer::Send("200 OK", "X-Login: failed\r\n".into(), "?".into()),
            "/login/chunked" => Answer::Raw(chunked("", &[&word[..3], &word[3..]])),
            "/login/long" => Answer::ok(format!("{}{word}", "x".repeat(70_000))),
            "/login/endless" => Answer::Raw(chunked("", &[&"x".repeat(70_000), word])),
            "/login/gzip" => Answer::Raw(chunked("Content-Encoding: gzip\r\n", &["\x1f?", word])),
            _ => Answer::ok("hello"),
        }
    })
}

fn chunked(fields: &str, parts: &[&str]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{fields}\r\n"
    );
    for part in parts {
        answer += &format!("{:x}\r\n{part}\r\n", part.len());
    }
    (answer + "0\r\n\r\n").into_bytes()
}

/// A login from a source: the length of what came back.
fn login(edged: &Edged<'_>, source: &str, user: &str, target: &str) -> Result<usize> {
    let ask = edged.get(source, &format!("/login/{target}")).method("POST");
    let answer = ask.header("X-User", user).header("Accept-Encoding", "gzip").send()?;
    assert_eq!(answer.status, 200, "{target}");
    Ok(answer.body.len())
}

#[test]
fn a_failure_is_told_however_its_answer_is_framed() -> Result<()> {
    let lab = Lab::new()?;
    let web = upstream(&lab)?;
    let edged = lab
        .edged()?
        .set("limits.per_source", "\"off\"")
        .set("verdicts.never_ban", &format!("[\"{CLIENT}/32\", \"{ATTACKER}/32\"]"))
        .append(ROUTE)?
        .start()?;
    let told = || -> Result<Vec<String>> {
        let events = edged.events()?.into_iter().filter(|event| event["event"] == "login_failed");
        Ok(events.filter_map(|e| e["account"].as_str().map(str::to_owned)).collect())
    };
    // Whole, each of them, and as long as they are.
    let long = 70_000 + "wrong password".len();
    for (target, length) in [
        ("length?fail", 14),
        ("length", 7),
        ("header", 1),
        ("chunked?fail", 14),
        ("chunked", 7),
        ("long?fail", long),
        ("endless?fail", long),
        ("gzip?fail", 16),
    ] {
        assert_eq!(login(&edged, CLIENT, target, target)?, length, "{target}");
    }
    login(&edged, CLIENT, "last", "length?fail")?;
    until("the last is told", SOON, || Ok(told()?.iter().any(|account| account == "last")))?;
    assert_eq!(told()?, ["length?fail", "header", "chunked?fail", "last"]);
    // What cannot be read is not asked for.
    let asked = web.asked().into_iter().filter(|asked| asked.target.starts_with("/login"));
    assert!(asked.into_iter().all(|asked| asked.header("accept-encoding") == Some("identity")));
    Ok(())
}

#[test]
fn guesses_make_no_source_a_shared_one() -> Result<()> {
    let lab = Lab::new()?;
    let _web = upstream(&lab)?;
    let guard =
        "[[scenario]]\nname = \"login-source\"\ncapacity = 2\nstep = \"ban\"\nup_to = \"ban\"";
    let edged = lab
        .edged()?
        .set("limits.per_source", "\"off\"")
        .append(&format!("{ROUTE}{guard}"))?
        .start()?;
    // Nobody knows how these end: they are no successes.
    for user in ["ann", "bob", "eve"] {
        login(&edged, ATTACKER, user, "gzip?fail")?;
        login(&edged, ATTACKER, user, "endless?fail")?;
    }
    for user in ["ann", "bob", "eve"] {
        login(&edged, ATTACKER, user, "chunked?fail")?;
    }
    until("the guesser is banned", SOON, || Ok(!reaches(&lab, ATTACKER, 443)))?;
    // Those who do succeed have a neighbour.
    for user in ["ann", "bob", "eve"] {
        login(&edged, CLIENT, user, "chunked")?;
    }
    for user in ["ann", "bob", "eve"] {
        login(&edged, CLIENT, user, "chunked?fail")?;
    }
    until("the neighbour is spared", SOON, || {
        Ok(edged.bans()?.iter().any(|ban| ban["spared"] == "shared_source"))
    })?;
    assert!(reaches(&lab, CLIENT, 443));
    Ok(())
}

#[test]
fn a_library_that_guesses_logs_nobody_in_and_others_do() -> Result<()> {
    let lab = Lab::new()?;
    let _web = upstream(&lab)?;
    // As shipped, more than one a second is forgotten.
    let guard =
        "[[scenario]]\nname = \"login-fingerprint\"\ncapacity = 4\nleak = \"1/h\"\nstep = \"429\"";
    let route = ROUTE.replace("[\"POST\"]", "[\"GET\", \"POST\"]");
    let edged = lab
        .edged()?
        .set("limits.per_source", "\"off\"")
        .append(&format!("{route}{guard}"))?
        .start()?;
    let status = |source: &str, user: &str, target: &str| -> Result<u16> {
        Ok(edged.get(source, &format!("/login/{target}")).header("X-User", user).send()?.status)
    };
    // From everywhere, another account each time: only the library is the same.
    for (n, source) in [CLIENT, ATTACKER, FRIEND, CLIENT, ATTACKER].into_iter().enumerate() {
        assert_eq!(status(source, &format!("user{n}"), "length?fail")?, 200);
    }
    until("the library is guarded", SOON, || Ok(status(FRIEND, "ann", "length")? == 429))?;
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200, "it is about logins alone");
    let mut other = Dial::new(&edged.ca, HOST)?.connect(&lab, CLIENT)?;
    assert_eq!(other.get(HOST, "/login/length", &["X-User: ann"])?.status, 200);
    let bans = edged.bans()?;
    let who = bans[0]["culprit"].as_str().unwrap_or_default();
    assert!(bans.len() == 1 && who.starts_with("ja4:"), "{bans:?}");
    Ok(())
}
