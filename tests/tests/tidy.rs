//! The invariants that can be read off the sources. None of these tests needs root.

use std::collections::BTreeSet;

use anyhow::Result;
use edge_common::{Plane, Reason};
use edge_tests::source::{Source, sources};

/// Fails with the files that break a rule.
fn none(rule: &str, broken: impl IntoIterator<Item = String>) {
    let broken: Vec<_> = broken.into_iter().collect();
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The files outside some places whose code holds one of these words.
fn naming(files: &[Source], outside: &[&str], words: &[&str]) -> Vec<String> {
    let elsewhere = |f: &&Source| !outside.iter().any(|place| f.path.starts_with(place));
    let names = |f: &Source| words.iter().find(|w| f.code().contains(**w)).copied();
    files
        .iter()
        .filter(elsewhere)
        .filter_map(|f| names(f).map(|word| format!("{}: {word}", f.path)))
        .collect()
}

#[test]
fn only_the_kernel_module_names_aya() -> Result<()> {
    let daemon = sources("edge-daemon/src", ".rs")?;
    let places = ["edge-daemon/src/kernel/"];
    none("aya outside kernel/", naming(&daemon, &places, &["aya::", "aya_log"]));
    Ok(())
}

#[test]
fn only_the_tls_module_names_rustls() -> Result<()> {
    let daemon = sources("edge-daemon/src", ".rs")?;
    none("rustls outside tls", naming(&daemon, &["edge-daemon/src/tls"], &["rustls::"]));
    Ok(())
}

#[test]
fn the_request_path_never_imports_the_kernel() -> Result<()> {
    let daemon = sources("edge-daemon/src", ".rs")?;
    let places = KERNEL_USERS.map(|name| format!("edge-daemon/src/{name}"));
    let places: Vec<_> = places.iter().map(String::as_str).collect();
    none("kernel in the request path", naming(&daemon, &places, &["crate::kernel", "kernel::"]));
    Ok(())
}

#[test]
fn decisions_do_no_io_and_read_no_clock() -> Result<()> {
    for pure in ["edge-policy", "edge-identity"] {
        let mut decisions = sources(&format!("{pure}/src"), ".rs")?;
        decisions.retain(|file| !file.path.contains("/tests/"));
        none("a decision is pure", naming(&decisions, &[], IMPURE));
        let manifest = edge_tests::daemon::root().join(pure).join("Cargo.toml");
        let manifest = std::fs::read_to_string(manifest)?;
        let manifest = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for heavy in ["tokio", "aya", "rustls", "hyper"] {
            assert!(!manifest.contains(heavy), "{pure} depends on {heavy}");
        }
    }
    Ok(())
}

#[test]
fn unsafe_stays_in_named_files() -> Result<()> {
    let mut files = sources("edge-daemon/src", ".rs")?;
    files.extend(sources("edge-common/src", ".rs")?);
    files.extend(sources("xtask/src", ".rs")?);
    let words = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"];
    none("unsafe elsewhere", naming(&files, UNSAFE, &words));
    Ok(())
}

#[test]
fn every_file_says_what_it_is_for() -> Result<()> {
    let files = sources("", ".rs")?.into_iter();
    let silent = files.filter(|f| !f.text.starts_with("//! ")).map(|f| f.path);
    none("no //! sentence at its head", silent);
    Ok(())
}

#[test]
fn files_stay_short() -> Result<()> {
    let long = sources("", ".rs")?.into_iter().filter(|f| !f.is_test()).filter_map(|f| {
        let lines = f.shipped().count();
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines", f.path))
    });
    none("too long", long);
    Ok(())
}

#[test]
fn nothing_is_left_for_later() -> Result<()> {
    // Spelt apart, so that this file does not find itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut files = sources("", ".rs")?;
    files.extend(sources("", ".toml")?);
    files.extend(sources("", ".md")?);
    let left = files
        .iter()
        .flat_map(|f| f.text.lines().enumerate().map(move |(n, line)| (f, n + 1, line)))
        .filter(|(_, _, line)| marks.iter().any(|mark| line.contains(mark)))
        .map(|(f, n, line)| format!("{}:{n}: {}", f.path, line.trim()));
    none("left for later", left);
    Ok(())
}

#[test]
fn every_reason_is_documented_as_it_is() -> Result<()> {
    let page = std::fs::read_to_string(edge_tests::daemon::root().join("docs/reasons.md"))?;
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), Reason::COUNT, "a row for each reason and no other");
    for reason in Reason::ALL {
        let name = format!("`{}`", reason.name());
        let row = rows.iter().find(|row| row[0] == name);
        let row = row.ok_or_else(|| anyhow::anyhow!("{name} is not documented"))?;
        let blame = format!("{:?}", reason.blame()).to_lowercase();
        let plane = format!("{:?}", reason.plane()).to_lowercase();
        assert_eq!((row[1], row[3]), (&*plane, &*blame), "{name}");
        assert_eq!(row[4], reason.meaning().trim(), "{name}");
        if reason.plane() == Plane::Request && *reason != Reason::Serve {
            assert_eq!(row[2], edge_policy::denied::status(*reason).as_str(), "{name}");
        }
    }
    Ok(())
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_is_there() -> Result<()> {
    let page = sources("docs", "metrics.md")?;
    let documented: BTreeSet<String> = page.iter().flat_map(|f| metrics_in(&f.text)).collect();
    assert!(documented.len() > 20, "docs/metrics.md lists the metrics");
    let daemon = sources("edge-daemon/src", ".rs")?;
    let declared: BTreeSet<String> = daemon.iter().flat_map(|f| metrics_in(&f.code())).collect();
    let differ: Vec<_> = documented.symmetric_difference(&declared).cloned().collect();
    none("documented or declared, but not both", differ);
    let rules = sources("config", ".yml")?;
    let ruled = rules.iter().flat_map(|f| metrics_in(&f.text));
    none("in a rule, but no metric", ruled.filter(|name| !documented.contains(name)));
    Ok(())
}

/// The names of metrics in a text, histograms without their suffix.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|w| w.starts_with("edged_"))
        .filter(|w| METRIC_ENDS.iter().any(|end| w.ends_with(end)))
        .map(|w| {
            ["_bucket", "_sum", "_count"].iter().fold(w, |w, end| w.strip_suffix(end).unwrap_or(w))
        })
        .map(str::to_owned)
        .collect()
}

/// What a metric's name ends in: its unit, or what it counts.
const METRIC_ENDS: &[&str] = &[
    "_total",
    "_seconds",
    "_open",
    "_flight",
    "_entries",
    "_capacity",
    "_active",
    "_watched",
    "_info",
    "_ratio",
    "_bucket",
    "_sum",
    "_count",
];

/// Modules that may use the kernel's tables: those that build the program and those that write.
const KERNEL_USERS: [&str; 12] = [
    "app",
    "bin/",
    "cli",
    "control/",
    "ctl",
    "handover/",
    "kernel/",
    "lib.rs",
    "metrics",
    "outside",
    "plan",
    "verdict",
];

/// Files that may hold unsafe code.
const UNSAFE: &[&str] = &[
    "edge-common/src/atomic.rs",
    "edge-common/src/map.rs",
    "edge-common/src/verifier.rs",
    "edge-daemon/src/kernel/",
    "edge-daemon/src/memory/free.rs",
    "edge-daemon/src/verdict/prompt.rs",
];

/// What a decision must not touch.
const IMPURE: &[&str] = &[
    "Instant",
    "SystemTime",
    "std::fs",
    "std::io",
    "std::thread",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "tokio",
    "aya",
    "rustls",
    "hyper",
    "unsafe {",
    "std::env",
];

/// Lines of a file before its tests.
const LINES_MAX: usize = 400;
