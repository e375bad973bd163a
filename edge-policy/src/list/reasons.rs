//! Why entries are on a list, in the words that stand behind them in their lines.
//!
//! Others write them: what a terminal might obey is replaced, and how much is kept has bounds. A list
//! without such words keeps nothing, and words that many lines share are kept once.

use std::collections::HashMap;

/// The reasons of a list's entries, by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    /// Lines in their order, with the numbers of their texts.
    lines: Vec<(u32, u32)>,
    /// Every text once, one after the other, and where each ends.
    texts: String,
    ends: Vec<usize>,
    /// Lines whose reason is longer than [`REASON_BYTES_MAX`] and was cut.
    pub shortened: u64,
    /// Lines whose reason found no room in [`REASONS_BYTES_MAX`].
    pub left_out: u64,
}

impl Reasons {
    /// Why the entry of this line is on the list.
    #[must_use]
    pub fn get(&self, line: u32) -> Option<&str> {
        let at = self.lines.binary_search_by_key(&line, |(line, _)| *line).ok()?;
        let number = self.lines[at].1 as usize;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.texts.get(start..self.ends[number])
    }

    /// Lines whose reason is kept.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many are kept, cut and left out, with a word for each.
    #[must_use]
    pub const fn counts(&self) -> [(&'static str, u64); 3] {
        let kept = self.lines.len() as u64;
        [("kept", kept), ("shortened", self.shortened), ("left_out", self.left_out)]
    }
}

/// Reasons in the making.
#[derive(Debug)]
pub struct Gathered {
    reasons: Reasons,
    numbers: HashMap<Box<str>, u32>,
    text: String,
    bytes: usize,
    bytes_max: usize,
}

impl Default for Gathered {
    fn default() -> Self {
        Self::new(REASONS_BYTES_MAX)
    }
}

impl Gathered {
    fn new(bytes_max: usize) -> Self {
        let (reasons, numbers) = (Reasons::default(), HashMap::new());
        Self { reasons, numbers, text: String::new(), bytes: 0, bytes_max }
    }

    /// Takes what stands behind the entry of a line, the sign of a comment in front of it or not.
    pub fn note(&mut self, line: u32, behind: &str) {
        // Of most lists it is the end of the line.
        let behind = behind.trim_start_matches(|c: char| c.is_whitespace() || SIGNS.contains(&c));
        if behind.is_empty() {
            return;
        }
        let is_cut = clean(behind, &mut self.text);
        let known = self.numbers.get(self.text.as_str()).copied();
        let text_bytes = if known.is_none() { self.text.len() + size_of::<usize>() } else { 0 };
        let bytes = self.bytes + size_of::<(u32, u32)>() + text_bytes;
        if bytes > self.bytes_max {
            self.reasons.left_out += 1;
            return;
        }
        let Reasons { lines, texts, ends, shortened, .. } = &mut self.reasons;
        let number = known.unwrap_or_else(|| {
            let number = ends.len() as u32;
            texts.push_str(&self.text);
            ends.push(texts.len());
            self.numbers.insert(self.text.as_str().into(), number);
            number
        });
        lines.push((line, number));
        *shortened += u64::from(is_cut);
        self.bytes = bytes;
    }

    /// What was gathered, with no more memory than it takes.
    #[must_use]
    pub fn finish(self) -> Reasons {
        let mut reasons = self.reasons;
        reasons.lines.sort_unstable();
        reasons.lines.dedup_by_key(|(line, _)| *line);
        reasons.lines.shrink_to_fit();
        reasons.texts.shrink_to_fit();
        reasons.ends.shrink_to_fit();
        reasons
    }
}

/// The words with one blank between them, as far as there is room; whether they were cut.
fn clean(words: &str, into: &mut String) -> bool {
    into.clear();
    for word in words.split_whitespace() {
        let gap = if into.is_empty() { None } else { Some(' ') };
        for c in gap.into_iter().chain(word.chars()) {
            let c = if is_obeyed(c) { char::REPLACEMENT_CHARACTER } else { c };
            if into.len() + c.len_utf8() > REASON_BYTES_MAX {
                while into.len() + CUT.len_utf8() > REASON_BYTES_MAX {
                    into.pop();
                }
                into.push(CUT);
                return true;
            }
            into.push(c);
        }
    }
    false
}

/// Whether a character is not shown, and changes how others are: terminals obey controls, and whoever turns
/// the direction of text, or hides some, has a line read as another.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// The longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 128;
/// What the reasons of one list may take, in bytes: as much as two million lines take that share a few, or a
/// quarter of a million with long ones of their own.
pub const REASONS_BYTES_MAX: usize = 32 << 20;
/// What begins a comment.
const SIGNS: [char; 2] = ['#', ';'];
const CUT: char = '…';

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gathered(lines: &[(u32, &str)]) -> Reasons {
        let mut gathered = Gathered::default();
        lines.iter().for_each(|(line, behind)| gathered.note(*line, behind));
        gathered.finish()
    }

    #[test]
    fn reasons_are_found_by_their_lines() {
        let lines =
            [(1, " ; SBL1\r\n"), (2, "\n"), (3, " #  brute\tforce "), (4, "\t7"), (9, ";SBL1")];
        let reasons = gathered(&lines);
        let found = [1, 2, 3, 4, 5, 9].map(|line| reasons.get(line));
        let wanted = [Some("SBL1"), None, Some("brute force"), Some("7"), None, Some("SBL1")];
        assert_eq!(found, wanted);
        // What is said again is kept once.
        assert_eq!((reasons.len(), reasons.ends.len()), (4, 3));
    }

    #[test]
    fn a_list_without_reasons_keeps_nothing() {
        let reasons = gathered(&[(1, ""), (2, "\n"), (3, "  \r\n"), (4, " # \n"), (5, ";;")]);
        assert_eq!(reasons, Reasons::default());
        let room = (reasons.lines.capacity(), reasons.texts.capacity(), reasons.ends.capacity());
        assert_eq!(room, (0, 0, 0));
    }

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        let reasons = gathered(&[(1, "# a\u{1b}[2Jb\u{9b}1m\u{202e}c\u{7}\u{200d}d \u{feff}")]);
        let wanted = "a\u{fffd}[2Jb\u{fffd}1m\u{fffd}c\u{fffd}\u{fffd}d \u{fffd}";
        assert_eq!(reasons.get(1), Some(wanted));
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_finds_no_room_is_counted() {
        let long = "ä".repeat(REASON_BYTES_MAX);
        let reasons = gathered(&[(1, &long), (2, &"x".repeat(REASON_BYTES_MAX))]);
        let first = reasons.get(1).unwrap();
        assert!(first.ends_with('…') && first.len() <= REASON_BYTES_MAX, "{first}");
        assert_eq!(reasons.counts(), [("kept", 2), ("shortened", 1), ("left_out", 0)]);
        let mut gathered = Gathered::new(60);
        // Two texts and three lines fit; another text does not, a line of a known one neither.
        for (line, behind) in [(1, "one"), (2, "two two"), (3, "one"), (4, "three"), (5, "one")] {
            gathered.note(line, behind);
        }
        let reasons = gathered.finish();
        let found = [1, 2, 3, 4, 5].map(|line| reasons.get(line));
        assert_eq!(found, [Some("one"), Some("two two"), Some("one"), None, Some("one")]);
        assert_eq!((reasons.len(), reasons.left_out), (4, 1));
    }

    proptest! {
        /// Whatever stands there: it is shown in one line, within its bound, and as it is when it is read again.
        #[test]
        fn every_reason_is_a_line_that_can_be_shown(text in any::<String>()) {
            let reasons = gathered(&[(7, &text)]);
            if let Some(reason) = reasons.get(7) {
                prop_assert!(!reason.is_empty() && reason.len() <= REASON_BYTES_MAX);
                prop_assert!(!reason.chars().any(is_obeyed), "{reason:?}");
                let again = gathered(&[(7, reason)]);
                prop_assert_eq!(again.get(7), Some(reason));
            }
        }
    }
}
