//! What the running kernel is too old for, to explain a refusal by it.
//!
//! Only to explain: distributors give older kernels newer features, so nothing is refused for its
//! version alone.

/// What the programs and the daemon need, with the first version that has it.
const NEEDED: [(&str, Version); 7] = [
    ("tracepoints by the kernel's own types (CONFIG_DEBUG_INFO_BTF)", (5, 5)),
    ("ring buffers", (5, 8)),
    ("links of XDP programs", (5, 9)),
    ("cookies of network namespaces", (5, 14)),
    ("XDP for frames of several buffers", (5, 18)),
    ("tables in use without a capability", (5, 19)),
    ("SYN cookies for packets without a socket", (6, 0)),
];

type Version = (u32, u32);

/// What a kernel of this release lacks by its version, in words; `None` if nothing, or if the
/// release cannot be read.
pub(super) fn lacking(release: &str) -> Option<String> {
    let running = version(release)?;
    let lacking = NEEDED.iter().filter(|(_, since)| running < *since);
    let words: Vec<_> = lacking.map(|(what, (a, b))| format!("{what} ({a}.{b})")).collect();
    if words.is_empty() { None } else { Some(words.join(", ")) }
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_version() {
        assert_eq!(lacking("6.18.44-fc-v595"), None);
        assert_eq!(lacking("6.1"), None);
        assert_eq!(
            lacking("5.19.0-rc1").as_deref(),
            Some("SYN cookies for packets without a socket (6.0)")
        );
        let old = lacking("4.18.0-553.el8_10.x86_64").unwrap();
        assert_eq!(old.matches(", ").count() + 1, NEEDED.len());
        assert!(old.contains("ring buffers (5.8)"), "{old}");
        assert_eq!(lacking("unknown"), None);
    }
}
