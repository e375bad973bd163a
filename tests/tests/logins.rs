//! Logins on the wire: what an answer says of them, however it is framed, and what becomes of whoever
//! guesses.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use edge_tests::{
    Edged, Lab,
    client::{HOST, installed, reaches, until},
    lab::{ATTACKER, CLIENT, EDGE, FRIEND, ORIGIN},
    netns::Netns,
    talk::Dial,
    web::{Answer, Web},
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
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

/// hydra, which guesses from this namespace with words of these files.
fn hydra(lab: &Lab, from: &Netns, words: [&str; 2], form: &str) -> Result<Child> {
    let [users, passwords] = words.map(|name| lab.dir().join(name));
    let mut hydra = from.command("hydra");
    // All users with one password, then with the next; two at once; not as it was left before.
    hydra.args(["-u", "-t", "2", "-I", "-s", "443", "-L"]).arg(users).arg("-P").arg(passwords);
    hydra.args([EDGE, if form.contains("POST") { "https-post-form" } else { "https-get-form" }]);
    hydra.process_group(0).arg(form.trim_start_matches("POST ").trim_start_matches("GET "));
    Ok(hydra.current_dir(lab.dir()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
}

/// Whether it found what it was after.
fn found(hydra: Child, what: &str) -> Result<bool> {
    let said = hydra.wait_with_output()?.stdout;
    Ok(String::from_utf8_lossy(&said).lines().any(|l| l.contains("[443]") && l.contains(what)))
}

/// Somebody else's guesser, of passwords and of keys: it finds what it is told, and is banned in the kernel
/// before it finds it among others.
#[test]
fn hydra_is_banned_before_it_finds_anything() -> Result<()> {
    if !installed("hydra") {
        ensure!(std::env::var_os("EDGED_NEED_PEERS").is_none(), "run `cargo xtask setup`");
        println!("no hydra: not run");
        return Ok(());
    }
    for is_login in [true, false] {
        let lab = Lab::new()?;
        let web = Web::start(&lab.origin, &format!("{ORIGIN}:8080"), |asked| {
            let is_right = asked.body.contains("pass=sesame");
            match (asked.target.as_str(), is_right) {
                ("/login", false) if asked.method == "POST" => Answer::ok("wrong password"),
                _ => Answer::ok("welcome"),
            }
        })?;
        let route = "[[route]]\npath = \"/login\"\nmethods = [\"GET\", \"POST\"]\nauth = \"none\"\n\
             upstream = \"api\"\nlogin = { account = \"form:user\", failure_body = \"wrong password\" }\n";
        let edged = lab
            .edged()?
            .set("verdicts.never_ban", &format!("[\"{CLIENT}/32\"]"))
            .append(route)?
            .start()?;
        let (right, form) = match is_login {
            true => ("sesame".to_owned(), "POST /login:user=^USER^&pass=^PASS^:F=wrong"),
            false => (edged.key("k")?, "GET /:user=^USER^:H=X-API-Key\\: ^PASS^:S=welcome"),
        };
        let other = |n: u32| match is_login {
            true => format!("word{n}\n"),
            false => format!("edged_{}\n", "x".repeat(40 + n as usize % 9)),
        };
        let many: String = (0..200).map(other).collect();
        let users: String = (0..20).map(|n| format!("user{n}\n")).collect();
        for (name, words) in
            [("one", "user7\n"), ("users", &users), ("right", &right), ("words", &(many + &right))]
        {
            fs::write(lab.dir().join(name), words)?;
        }
        let told = hydra(&lab, &lab.client, ["one", "right"], form)?;
        assert!(found(told, &right)?, "it finds what it is told");
        let before = web.asked().len();
        let guesser = hydra(&lab, &lab.attacker, ["users", "words"], form)?;
        until("the guesser is banned", Duration::from_secs(60), || {
            Ok(edged.banned(ATTACKER)? && !reaches(&lab, ATTACKER, 443))
        })?;
        // With all whom it started.
        killpg(Pid::from_raw(guesser.id().cast_signed()), Signal::SIGKILL)?;
        assert!(!found(guesser, &right)?);
        let passed = web.asked().len() - before;
        assert!(if is_login { (1..60).contains(&passed) } else { passed == 0 }, "{passed}");
    }
    Ok(())
}

#[test]
fn guesses_make_no_source_a_shared_one() -> Result<()> {
    let lab = Lab::new()?;
    let _web = upstream(&lab)?;
    let guard =
        "[[scenario]]\nname = \"login-source\"\ncapacity = 2\nstep = \"ban\"\nup_to = \"ban\"";
    let edged = lab.edged()?.append(&format!("{ROUTE}{guard}"))?.start()?;
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
fn who_guesses_at_an_account_keeps_nobody_out_who_has_been_there() -> Result<()> {
    let lab = Lab::new()?;
    let _web = upstream(&lab)?;
    let guard = "[[scenario]]\nname = \"login-account\"\ncapacity = 2\nleak = \"1/h\"";
    let route = ROUTE.replace("[\"POST\"]", "[\"GET\", \"POST\"]");
    // Who is allowed bears no verdict.
    let setup = lab.edged()?.set("lists.allow", "[]").append(&format!("{route}{guard}"))?;
    let edged = setup.start()?;
    let status = |source: &str, user: &str, target: &str| -> Result<u16> {
        let ask = edged.get(source, &format!("/login/{target}")).method("POST");
        Ok(ask.header("X-User", user).send()?.status)
    };
    // Another's account on a server that tells case apart is not hers.
    assert_eq!((status(FRIEND, "ann", "length")?, status(ATTACKER, "Ann", "length")?), (200, 200));
    for _ in 0..3 {
        assert_eq!(status(ATTACKER, "ann", "length?fail")?, 200);
    }
    until("the account is guarded", SOON, || {
        Ok(edged.bans()?.iter().any(|ban| ban["culprit"] == "account:ann"))
    })?;
    for (source, expected) in [(CLIENT, 429), (ATTACKER, 429), (FRIEND, 200)] {
        assert_eq!(status(source, "ann", "length")?, expected, "{source}");
    }
    // Nor is who sits beside her, and has another library.
    let mut beside = Dial::new(&edged.ca, HOST)?.connect(&lab, FRIEND)?;
    assert_eq!(beside.get(HOST, "/login/length?fail", &["X-User: ann"])?.status, 429);
    // What an operator refuses is refused to everybody.
    edged.tell("ban add account:ann --step 403")?;
    for source in [CLIENT, FRIEND] {
        assert_eq!(status(source, "ann", "length")?, 403, "{source}");
    }
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
    // Who is allowed bears no verdict.
    let setup = lab.edged()?.set("lists.allow", "[]").append(&format!("{route}{guard}"))?;
    let edged = setup.start()?;
    let status = |source: &str, user: &str, target: &str| -> Result<u16> {
        Ok(edged.get(source, &format!("/login/{target}")).header("X-User", user).send()?.status)
    };
    // From everywhere, another account each time: only the library is the same.
    for (n, source) in [CLIENT, ATTACKER, FRIEND, CLIENT, ATTACKER].into_iter().enumerate() {
        assert_eq!(status(source, &format!("user{n}"), "length?fail")?, 200);
    }
    until("the library is guarded", SOON, || Ok(!edged.bans()?.is_empty()))?;
    assert_eq!(status(FRIEND, "ann", "length")?, 429);
    assert_eq!(edged.get(FRIEND, "/health").send()?.status, 200, "it is about logins alone");
    let mut other = Dial::new(&edged.ca, HOST)?.connect(&lab, CLIENT)?;
    assert_eq!(other.get(HOST, "/login/length", &["X-User: ann"])?.status, 200);
    let bans = edged.bans()?;
    let who = bans[0]["culprit"].as_str().unwrap_or_default();
    assert!(bans.len() == 1 && who.starts_with("ja4:"), "{bans:?}");
    Ok(())
}
