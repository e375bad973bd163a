//! What the documentation tells a user to type is what the programs take.
//!
//! Every line of a `sh` block that begins with `edged`, `edgectl` or `cargo xtask` is given to
//! that program with `--help` after it: the program parses what comes before and does nothing.

use std::process::Command;

use anyhow::{Context as _, Result};
use edge_common::{Blame, Plane, Reason};
use edge_tests::{
    client::installed,
    daemon::{binary, root},
    netns::run,
    source::{Source, sources},
};

fn pages() -> Result<Vec<Source>> {
    let mut pages = sources("docs", ".md")?;
    for name in ["README.md", "ARCHITECTURE.md", "BENCHMARKS.md"] {
        if let Ok(text) = std::fs::read_to_string(root().join(name)) {
            pages.push(Source { path: name.to_owned(), text });
        }
    }
    Ok(pages)
}

/// The commands in a page's `sh` blocks, without prompt, `sudo` and comment.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```").skip(1).step_by(2);
    blocks
        .filter_map(|block| block.strip_prefix("sh\n"))
        .flat_map(str::lines)
        .map(|line| line.split(" #").next().unwrap_or_default())
        .map(|line| line.trim().trim_start_matches("$ ").trim_start_matches("sudo ").to_owned())
        .collect()
}

#[test]
fn every_documented_command_is_one() -> Result<()> {
    let mut seen = 0;
    for page in pages()? {
        for line in commands(&page.text) {
            let words: Vec<_> = line.split_whitespace().collect();
            let (program, args) = match words.as_slice() {
                ["cargo", "xtask", args @ ..] => ("xtask", args),
                [program @ ("edged" | "edgectl"), args @ ..] => (*program, args),
                _ => continue,
            };
            let done = Command::new(binary(program)?).args(args).arg("--help").output()?;
            let words = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{}: `{line}`: {words}", page.path);
            seen += 1;
        }
    }
    assert!(seen > 5, "only {seen} commands are documented");
    Ok(())
}

/// Whether a file has a test of this name that is run: with `#[test]` above it, or of `proptest!`, and not ignored.
fn has_test(text: &str, name: &str) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    text.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let mut above = text[..at].rsplit('\n');
        let own = indent(above.next().unwrap_or_default());
        let said =
            above.clone().map(str::trim_start).take_while(|line| line.starts_with(['#', '/']));
        let said: Vec<_> = said.collect();
        let has = |word| said.iter().any(|line| line.starts_with(word));
        let mut around = above.filter(|line| !line.is_empty() && indent(line) < own);
        let is_property = around.next().is_some_and(|line| line.trim_start() == "proptest! {");
        (has("#[test]") || is_property) && !has("#[ignore")
    })
}

#[test]
fn what_is_not_run_is_no_test() {
    let text = "#[test]\nfn a() {\n}\n\n    /// Of b.\n    #[test]\n    #[ignore = \"slow\"]\n    fn b() {}\n\nfn c() {}\n\
                proptest! {\n    /// Of d.\n    #[cfg(x)]\n    fn d(n in 0..9) {\n    }\n}\nfn e() {}\n";
    let tests = ["a", "b", "c", "d", "e", "f"].map(|name| has_test(text, name));
    assert_eq!(tests, [true, false, false, true, false, false]);
}

/// Every test that the table of techniques names is one: `FILE::NAME` in `tests/tests`, `CRATE::NAME`
/// anywhere in a crate.
#[test]
fn every_named_test_is_one() -> Result<()> {
    let page = std::fs::read_to_string(root().join("docs/seed-coverage.md"))?;
    let mut seen = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.contains("| Test |")) {
        let last = row.trim_end_matches('|').rsplit(" | ").next().unwrap_or_default();
        let named = last.split('`').skip(1).step_by(2);
        for (place, name) in named.filter_map(|named| named.split_once("::")) {
            let files = match place.starts_with("edge_") {
                true => sources(&format!("{}/src", place.replace('_', "-")), ".rs")?,
                false => sources("tests/tests", &format!("/{place}.rs"))?,
            };
            let is_there = files.iter().any(|file| has_test(&file.text, name));
            assert!(is_there, "no test is called {place}::{name}: {row}");
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} tests are named");
    Ok(())
}

/// The rows of the checklist are all there, in its order, and each names a test or says why there is none.
#[test]
fn every_point_of_the_checklist_has_its_row() -> Result<()> {
    let page = std::fs::read_to_string(root().join("docs/seed-coverage.md"))?;
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.trim_end_matches('|').split(" | ");
        Some((cells.next()?.trim().parse::<usize>().ok()?, cells.last()?.to_owned()))
    });
    let rows: Vec<_> = rows.collect();
    let numbers: Vec<_> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=47).collect::<Vec<_>>());
    for (number, proof) in rows {
        let says = ["::", "not ours: ", "later: "].iter().any(|word| proof.contains(word));
        assert!(says, "{number}: {proof}");
    }
    Ok(())
}

/// The alert sees every refusal of packets, and nothing else.
#[test]
fn the_alert_of_a_flood_is_about_every_packet_that_is_refused() -> Result<()> {
    let rules = std::fs::read_to_string(root().join("config/prometheus-rules.yml"))?;
    let (_, rule) = rules.split_once("alert: EdgedFlood").context("the alert")?;
    let (_, left_out) = rule.split_once("edged_packets_total{reason!~\"").context("its reasons")?;
    let (left_out, _) = left_out.split_once('"').context("an end")?;
    let packets = Reason::ALL.iter().filter(|reason| reason.plane() == Plane::Packet);
    let harmless = packets.filter(|reason| reason.blame() != Blame::Client);
    let harmless: Vec<_> = harmless.map(|reason| reason.name()).collect();
    assert_eq!(left_out.split('|').collect::<Vec<_>>(), harmless);
    Ok(())
}

#[test]
fn the_service_unit_is_sound_and_confined() -> Result<()> {
    if !installed("systemd-analyze") {
        return Ok(());
    }
    let unit = root().join("config/edged.service");
    let mut analyze = Command::new("systemd-analyze");
    // Tenths: an unconfined service has 96.
    let args = ["security", "--offline=true", "--threshold=30"];
    run(analyze.args(args).arg(unit)).map(drop)
}

#[test]
fn commands_are_found_in_a_page() {
    let page = "a\n```sh\n$ sudo edgectl status # look\n```\n```toml\nedged x\n```\n";
    assert_eq!(commands(page), ["edgectl status"]);
}
