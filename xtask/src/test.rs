//! `cargo xtask test`: every test, those that need root and a kernel included.

use std::{
    io::{BufRead as _, BufReader},
    num::NonZero,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    setup,
    shell::{built, cargo, need_root, run},
};

/// How many failed tests are asked again.
const ASKED_AGAIN_MAX: usize = 3;

/// Which tests.
#[derive(Args)]
pub(crate) struct Test {
    /// Only tests whose name holds this.
    filter: Option<String>,
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        need_root("the tests")?;
        setup::need()?;
        setup::need_outside()?;
        // The whole workspace at once, so that each dependency is built in one way only.
        run(&mut cargo(["build", "--workspace", "--bins"]))?;
        let mut env = vec![("EDGED_BIN_DIR", built("debug").into_os_string())];
        if setup::need_issuers()? {
            env.push(("EDGED_NEED_PEERS", "1".into()));
        }
        // A test waits for most of its time: for an end, a deadline, an answer that must not come.
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = std::env::var_os("RUST_TEST_THREADS");
        let threads = threads.unwrap_or_else(|| (2 * cores).to_string().into());
        let tests = ["test", "--workspace", "--no-fail-fast"];
        let mut all = cargo(tests);
        all.args(&self.filter).envs(env.clone()).env("RUST_TEST_THREADS", threads);
        let report = Report::of(&mut all)?;
        if report.is_success {
            return Ok(());
        }
        // The tests meet real deadlines, of other programs too, on hosts whose processors are shared.
        // What fails in the crowd is asked again, alone, and said to have failed once.
        ensure!(
            report.is_whole,
            "a test program ended before its tests, or it is not known which failed"
        );
        let failed = report.failed;
        ensure!((1..=ASKED_AGAIN_MAX).contains(&failed.len()), "tests failed: {failed:?}");
        println!("== again, alone: {}", failed.join(", "));
        let mut again = cargo(tests);
        again.args(["--", "--exact", "--test-threads", "1"]).args(&failed);
        let again = Report::of(again.envs(env))?;
        let is_good = again.is_success && again.passed >= failed.len();
        ensure!(is_good, "tests failed again: {failed:?}");
        println!("== failed in the crowd and passed alone: {}", failed.join(", "));
        Ok(())
    }
}

/// What `cargo test` said, and printed as it said it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    is_success: bool,
    /// Whether each test program said how it ended, and each test that failed is named.
    is_whole: bool,
    passed: usize,
    failed: Vec<String>,
}

impl Report {
    /// Runs the tests.
    fn of(tests: &mut Command) -> Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        tests.stdout(writer.try_clone()?).stderr(writer);
        let mut child = tests.spawn().context("start cargo test")?;
        // The command holds the pipe's other end, which is to close with the child.
        tests.stdout(Stdio::null()).stderr(Stdio::null());
        let lines = BufReader::new(reader).split(b'\n').map_while(Result::ok);
        let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
        let report = Self::read(lines.inspect(|line| println!("{line}")));
        Ok(Self { is_success: child.wait()?.success(), ..report })
    }

    fn read(lines: impl Iterator<Item = String>) -> Self {
        let (mut begun, mut ended, mut count, mut failed) = (0, 0, [0, 0], Vec::new());
        for line in lines {
            let line = line.trim_start();
            begun += u32::from(line.starts_with("Running ") || line.starts_with("Doc-tests "));
            if let Some(result) = line.strip_prefix("test result: ") {
                ended += 1;
                for (count, word) in count.iter_mut().zip([" passed", " failed"]) {
                    *count += number_before(result, word);
                }
            }
            let test = line.strip_prefix("test ").and_then(|test| test.strip_suffix(" ... FAILED"));
            failed.extend(test.map(str::to_owned));
        }
        let [passed, count] = count;
        let is_whole = begun == ended && count == failed.len();
        Self { is_success: false, is_whole, passed, failed }
    }
}

fn number_before(text: &str, word: &str) -> usize {
    let before = text.split_once(word).and_then(|(before, _)| before.rsplit(' ').next());
    before.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Every test.
pub(crate) fn all() -> Result<()> {
    Test { filter: None }.run()
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn what_failed_is_read_from_what_cargo_says() {
        let read = |text: &str| Report::read(text.lines().map(str::to_owned));
        let said = "     Running tests/a.rs (target/debug/deps/a-0)\n\
                    test one ... ok\ntest two ... FAILED\ntest result: FAILED. 1 passed; 1 failed\n\
                    \x20  Doc-tests a\ntest result: ok. 0 passed\n";
        let report = read(said);
        assert_eq!(
            (report.is_whole, report.passed, report.failed),
            (true, 1, vec!["two".to_owned()])
        );
        // Somebody wrote between a name and its end.
        assert!(!read(&said.replace("two ...", "two ... a word\n")).is_whole);
        let aborted = said.replace("test result: FAILED", "signal: 11");
        assert!(!read(&aborted).is_whole);
    }
}
