//! HTTP/2 as its standards have it: every frame and block of the corpus has its verdict.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use edge_common::Reason;
use edge_tests::{
    Lab, Origin,
    conformance::{Case, Verdict, read},
    lab::FRIEND,
    talk::Dial,
};

const PATIENCE: Duration = Duration::from_secs(8);

#[test]
fn every_frame_of_the_corpus_has_its_verdict() -> Result<()> {
    let cases = read(include_str!("../corpus/http2.txt"));
    ensure!(cases.len() >= 200, "{} cases", cases.len());
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = lab
        .edged()?
        .set("route.0.methods", r#"["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]"#)
        .start()?;
    let dial = Dial::new(&edged.ca, "edge.test")?.alpn("h2");
    let next = AtomicUsize::new(0);
    let work = || {
        let mut complaints = Vec::new();
        loop {
            let Some(case) = cases.get(next.fetch_add(1, Relaxed)) else { return complaints };
            complaints.extend(check(&lab, &dial, case).err().map(|error| format!("{error:#}")));
        }
    };
    let complaints: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    });
    assert!(complaints.is_empty(), "{}:\n{}", complaints.len(), complaints.join("\n"));
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::InternalError), 0.0);
    assert_eq!(metrics.requests(Reason::BodyTooLarge), 2.0);
    // What has no meaning is nobody's to interpret. A body that breaks off may have begun to go there.
    let served = cases.iter().filter(|case| case.verdict == Verdict::Serve).count() as u64;
    assert!(origin.seen() >= served, "{} of {served}", origin.seen());
    assert!(metrics.requests(Reason::MalformedRequest) > 50.0);
    Ok(())
}

#[test]
fn signs_that_are_none_of_a_uri_are_taken_or_held_against_nobody() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = lab.edged()?.set("route.1.auth", "\"none\"").start()?;
    let ask = |path: &str, flag: &str| edged.get(FRIEND, path).flag("--globoff").flag(flag).send();
    let echo = ask("/echo?q=\"x\"<y>`z`", "--http1.1")?;
    assert!(echo.text().contains("/echo?q=%22x%22%3Cy%3E`z`"), "{}", echo.text());
    for path in ["/echo?q=\"x\"", "/echo?<y>", "/echo/<y>", "/echo/`z`"] {
        assert!(ask(path, "--http2").is_err(), "{path}");
    }
    let metrics = edged.metrics()?;
    assert_eq!(metrics.requests(Reason::MalformedRequest), 4.0);
    assert_eq!(metrics.value(r#"edged_signals_total{reason="malformed_request"}"#), 0.0);
    Ok(())
}

fn check(lab: &Lab, dial: &Dial, case: &Case) -> Result<()> {
    let mut talk = dial.connect(lab, FRIEND)?;
    let outcome = case.run(&mut talk, PATIENCE)?;
    ensure!(case.is_met(&outcome), "{}: {:?}, but {outcome:?}", case.name, case.verdict);
    Ok(())
}
