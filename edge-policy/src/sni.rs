//! Which certificate serves the name that a client asks for.

use std::collections::HashMap;

/// Names and wildcards, each with the numbers of what serves it, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By what follows the `*.`.
    wild: HashMap<Box<str>, Vec<usize>>,
}

impl Names {
    /// Adds a name, or a wildcard such as `*.example.com`, in any case.
    pub fn add(&mut self, name: &str, number: usize) {
        let name = normal(name);
        let (map, name) = match name.strip_prefix("*.") {
            Some(parent) => (&mut self.wild, parent),
            None => (&mut self.exact, &*name),
        };
        let numbers = map.entry(name.into()).or_default();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }

    /// What serves a name: whoever has it to the letter, or else its wildcard, which stands for
    /// exactly one label (RFC 9525, 6.3); empty: nobody.
    #[must_use]
    pub fn find(&self, name: &str) -> &[usize] {
        let name = normal(name);
        let wild = || name.split_once('.').and_then(|(_, parent)| self.wild.get(parent));
        self.exact.get(&*name).or_else(wild).map_or(&[], Vec::as_slice)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wild.is_empty()
    }
}

/// Lower case, without the dot of the root.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Whether a name can stand in a certificate for a host: labels of letters, digits, hyphens and
/// underscores, the first of them perhaps a `*`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(letters);
    host.len() <= 253 && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        for (name, number) in
            [("a.test", 0), ("*.A.test", 1), ("x.a.test", 2), ("a.test", 3), ("a.test", 0)]
        {
            names.add(name, number);
        }
        names
    }

    #[test]
    fn the_exact_name_goes_before_the_wildcard() {
        let names = names();
        for (name, found) in [
            ("a.test", &[0, 3][..]),
            ("A.TEST.", &[0, 3]),
            ("x.a.test", &[2]),
            ("y.a.test", &[1]),
            ("y.x.a.test", &[]),
            (".a.test", &[1]),
            ("test", &[]),
            ("", &[]),
            ("*.a.test", &[1]),
        ] {
            assert_eq!(names.find(name), found, "{name}");
        }
    }

    #[test]
    fn names_are_of_labels() {
        for good in ["a", "a.test", "*.a.test", "xn--bcher-kva.example", "_x.a"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "*", "a..b", "a.*.b", "*a.b", "a b", "a.", "b\u{fc}cher.example"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    proptest! {
        /// Against the plain reading of the rule.
        #[test]
        fn one_label_is_what_a_wildcard_stands_for(
            all in proptest::collection::vec("(\\*\\.)?[ab](\\.[ab]){0,2}", 0..6), asked in "[abc](\\.[ab]){0,3}",
        ) {
            let mut names = Names::default();
            for (number, name) in all.iter().enumerate() {
                names.add(name, number);
            }
            let having = |name: &str| -> Vec<usize> {
                (0..all.len()).filter(|number| all[*number] == name).collect()
            };
            let mut expected = having(&asked);
            if expected.is_empty() && let Some((_, parent)) = asked.split_once('.') {
                expected = having(&format!("*.{parent}"));
            }
            prop_assert_eq!(names.find(&asked), &expected[..]);
        }
    }
}
