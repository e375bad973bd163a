//! Requests over HTTP/1, ambiguous and malformed ones above all, and what is made of them.
//!
//! A line of `tests/corpus/http1.txt` is `verdict | name | bytes`; its head says more.

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is handed on.
    Accept,
    /// It has one meaning, which the edge does not serve.
    Decline,
    /// It has none, or is beyond a bound: nothing is read behind it.
    Refuse,
}

/// A request of the corpus.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is to become of it.
    pub verdict: Verdict,
    /// What is remarkable about it.
    pub name: String,
    /// As it comes over the wire.
    pub bytes: Vec<u8>,
}

/// Reads a corpus.
///
/// # Panics
/// If a line is none.
#[must_use]
pub fn read(text: &str) -> Vec<Case> {
    cases(text, case)
}

/// The cases of a corpus, a line each; of `case`, `None` is a line that is none.
///
/// # Panics
/// If there is one.
pub(crate) fn cases<T>(text: &str, case: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| case(line).unwrap_or_else(|| panic!("no case: {line}"))).collect()
}

fn case(line: &str) -> Option<Case> {
    let (verdict, rest) = line.split_once(" | ")?;
    let (name, bytes) = rest.split_once(" | ")?;
    let verdict = match verdict {
        "accept" => Verdict::Accept,
        "decline" => Verdict::Decline,
        "refuse" => Verdict::Refuse,
        _ => return None,
    };
    Some(Case { verdict, name: name.to_owned(), bytes: unescape(bytes)? })
}

/// The bytes that an escaped text stands for; `None` if it is none.
#[must_use]
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at + 1..];
        let (byte, length) = match escape.as_bytes().first()? {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b't' => (b'\t', 1),
            b'\\' => (b'\\', 1),
            b'x' => (u8::from_str_radix(escape.get(1..3)?, 16).ok()?, 3),
            b'{' => {
                let (count, after) = escape[1..].split_once('}')?;
                let byte = *after.as_bytes().first()?;
                out.extend(std::iter::repeat_n(byte, count.parse::<usize>().ok()?.checked_sub(1)?));
                (byte, count.len() + 3)
            }
            _ => return None,
        };
        out.push(byte);
        rest = &escape[length..];
    }
    out.extend_from_slice(rest.as_bytes());
    Some(out)
}
