//! Frames of HTTP/2, allowed and not, and what is made of them.
//!
//! A line of `tests/corpus/http2.txt` is `verdict | name | frames`; its head says more.

use std::time::Duration;

use anyhow::Result;

use crate::{
    frames::{self, CONTINUATION, DATA, GOAWAY, HEADERS, PING, PRIORITY, RESET, SETTINGS, WINDOW},
    smuggling::{cases, unescape},
    talk::Talk,
};

/// What is to become of frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The last stream is answered 200.
    Serve,
    /// Nothing is held against the client.
    Lives,
    /// The last stream is answered 4xx, or reset as malformed.
    Refused,
    /// The last stream is reset with this code.
    Stream(String),
    /// The connection ends with this code.
    Closes(String),
    /// The connection ends.
    HangsUp,
}

/// What the library makes of them in the place of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Library {
    /// Just that.
    Agrees,
    /// It closes with this code.
    As(String),
    /// It gives up the whole connection.
    Whole,
}

/// Frames of the corpus.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is to become of them.
    pub verdict: Verdict,
    /// What the library makes of that.
    pub library: Library,
    /// What is remarkable about them.
    pub name: String,
    /// As they come over the wire.
    pub bytes: Vec<u8>,
    /// The stream that the last of them is on.
    pub stream: u32,
}

/// What came of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The answer on the last stream: its status, if it can be told.
    pub status: Option<u16>,
    /// The code with which that stream was reset.
    pub reset: Option<String>,
    /// The code with which the connection was given up.
    pub goaway: Option<String>,
    /// Whether the ping behind all of them was answered.
    pub lives: bool,
    /// Whether the connection was closed.
    pub closed: bool,
}

impl Case {
    /// Whether that is what was to become of them.
    #[must_use]
    pub fn is_met(&self, outcome: &Outcome) -> bool {
        let Outcome { status, reset, goaway, lives, closed } = outcome;
        let stays = *lives && !closed && goaway.is_none();
        match &self.library {
            Library::Agrees => {}
            Library::As(code) => return *closed && goaway.as_ref() == Some(code),
            Library::Whole => return *closed && goaway.as_deref() == Some("PROTOCOL_ERROR"),
        }
        match &self.verdict {
            Verdict::Serve => stays && *status == Some(200),
            Verdict::Lives => stays && status.is_none() && reset.is_none(),
            Verdict::Refused => {
                let answered = status.is_some_and(|status| (400..500).contains(&status));
                stays && (answered || reset.as_deref() == Some("PROTOCOL_ERROR"))
            }
            Verdict::Stream(code) => stays && reset.as_ref() == Some(code),
            Verdict::Closes(code) => *closed && goaway.as_ref() == Some(code),
            Verdict::HangsUp => *closed,
        }
    }

    /// Sends the frames and a ping, and hears what comes of them.
    ///
    /// # Errors
    /// If the time to wait cannot be set.
    pub fn run(&self, talk: &mut Talk, patience: Duration) -> Result<Outcome> {
        // Some close before all of it is sent.
        let _ = talk.say(&[&*self.bytes, &*frames::frame(PING, 0, 0, LAST_PING)].concat());
        let heard = talk.hear(patience, |bytes| self.is_settled(&self.read(bytes)))?;
        Ok(Outcome { closed: heard.closed, ..self.read(&heard.bytes) })
    }

    fn is_settled(&self, so_far: &Outcome) -> bool {
        so_far.lives
            && self.library == Library::Agrees
            && match self.verdict {
                Verdict::Lives => true,
                Verdict::Closes(_) | Verdict::HangsUp => false,
                Verdict::Stream(_) => so_far.reset.is_some(),
                Verdict::Serve | Verdict::Refused => {
                    so_far.reset.is_some() || so_far.status.is_some()
                }
            }
    }

    fn read(&self, mut bytes: &[u8]) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
            let [a, b, c, kind, flags, d, e, f, g] = *head;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else { break };
            let is_ours = u32::from_be_bytes([d, e, f, g]) == self.stream;
            match kind {
                HEADERS if is_ours && outcome.status.is_none() => {
                    outcome.status = Some(status(payload).unwrap_or(0));
                }
                RESET if is_ours => outcome.reset = Some(code(payload)),
                GOAWAY => outcome.goaway = payload.get(4..).map(code),
                PING if flags & 1 != 0 && payload == LAST_PING => outcome.lives = true,
                _ => {}
            }
            bytes = rest;
        }
        outcome
    }
}

/// The status of an answer, out of the first field of its block.
pub(crate) fn status(block: &[u8]) -> Option<u16> {
    const KNOWN: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block.first()? {
        // The size of the table, in one byte.
        0x20..=0x3e => status(&block[1..]),
        first @ 0x88..=0x8e => Some(KNOWN[usize::from(first - 0x88)]),
        // A literal whose name is that of 200.
        0x08 | 0x18 | 0x48 => {
            let (length, text) = (usize::from(block.get(1)? & 0x7f), block.get(2..)?);
            let text = text.get(..length)?;
            match block[1] & 0x80 {
                0 => std::str::from_utf8(text).ok()?.parse().ok(),
                _ => digits(text),
            }
        }
        _ => None,
    }
}

/// Three digits in Huffman's code (RFC 7541, appendix B): those up to 2 are five bits, the others six.
fn digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u16> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| u16::from(byte >> n & 1))).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take = |count: usize| {
            let bits = bits.get(at..at + count)?;
            Some(bits.iter().fold(0, |value, bit| value << 1 | bit))
        };
        let short = take(5)?;
        let digit = if short <= 2 {
            at += 5;
            short
        } else {
            let long = take(6)?;
            at += 6;
            long.checked_sub(0x19)? + 3
        };
        number = number * 10 + digit;
    }
    Some(number)
}

/// The name of an error's code.
fn code(payload: &[u8]) -> String {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    let code = payload.first_chunk::<4>().map_or(u32::MAX, |code| u32::from_be_bytes(*code));
    NAMES.get(code as usize).map_or_else(|| code.to_string(), |name| (*name).to_owned())
}

/// Reads the corpus.
///
/// # Panics
/// If a line is none.
#[must_use]
pub fn read(text: &str) -> Vec<Case> {
    cases(text, case)
}

fn case(line: &str) -> Option<Case> {
    let (verdict, rest) = line.split_once(" | ")?;
    let (name, frames) = rest.split_once(" | ")?;
    let library = |word: &str| match word {
        "whole" => Some(Library::Whole),
        _ => word.strip_prefix("as ").map(|code| Library::As(code.to_owned())),
    };
    let at = [" as ", " whole"].iter().find_map(|word| verdict.find(word));
    let (verdict, library) = match at {
        Some(at) => (&verdict[..at], library(&verdict[at + 1..])?),
        None => (verdict, Library::Agrees),
    };
    let verdict = match verdict.split_once(' ').unwrap_or((verdict, "")) {
        ("serve", "") => Verdict::Serve,
        ("lives", "") => Verdict::Lives,
        ("refused", "") => Verdict::Refused,
        ("hangs", "up") => Verdict::HangsUp,
        ("stream", code) => Verdict::Stream(code.to_owned()),
        ("closes", code) => Verdict::Closes(code.to_owned()),
        _ => return None,
    };
    let mut words = words(frames);
    let mut bytes = match words.first().map(String::as_str) {
        Some("BARE") => {
            words.remove(0);
            Vec::new()
        }
        _ => frames::preface(),
    };
    let mut last = 0;
    for frame in words.split(|word| word == ";") {
        let (kind, rest) = frame.split_first()?;
        if kind == "RAW" {
            bytes.extend(payload(rest)?);
            continue;
        }
        let [flags, stream, rest @ ..] = rest else { return None };
        let stream = u32::from_str_radix(stream, if stream.len() == 8 { 16 } else { 10 }).ok()?;
        last = stream & 0x7fff_ffff;
        bytes.extend(frames::frame(kind_of(kind)?, flags_of(flags)?, stream, &payload(rest)?));
    }
    Some(Case { verdict, library, name: name.to_owned(), bytes, stream: last })
}

/// The words of a line; what is in quotes is one, with its quotes.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for letter in text.chars() {
        quoted ^= letter == '"';
        if letter == ' ' && !quoted {
            words.push(std::mem::take(&mut word));
        } else {
            word.push(letter);
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

fn kind_of(word: &str) -> Option<u8> {
    Some(match word {
        "DATA" => DATA,
        "HEADERS" => HEADERS,
        "PRIORITY" => PRIORITY,
        "RESET" => RESET,
        "SETTINGS" => SETTINGS,
        "PING" => PING,
        "GOAWAY" => GOAWAY,
        "WINDOW" => WINDOW,
        "CONTINUATION" => CONTINUATION,
        hex => u8::from_str_radix(hex, 16).ok()?,
    })
}

fn flags_of(word: &str) -> Option<u8> {
    word.split('+').try_fold(0, |flags, flag| {
        Some(
            flags
                | match flag {
                    "-" => 0,
                    "es" => 0x1,
                    "eh" => 0x4,
                    "pad" => 0x8,
                    "pri" => 0x20,
                    hex => u8::from_str_radix(hex, 16).ok()?,
                },
        )
    })
}

fn payload(words: &[String]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for word in words {
        match word.as_str() {
            "get" => out.extend(frames::get("edge.test", "/health")),
            "post" => {
                let from = out.len();
                out.extend(frames::get("edge.test", "/health"));
                out[from] = 0x83;
            }
            quoted if quoted.starts_with('"') => {
                let field = unescape(quoted.strip_prefix('"')?.strip_suffix('"')?)?;
                let colon = usize::from(field.first() == Some(&b':'));
                let equals = field.iter().skip(colon).position(|byte| *byte == b'=')? + colon;
                out.push(0);
                for text in [&field[..equals], &field[equals + 1..]] {
                    frames::length(&mut out, text.len());
                    out.extend_from_slice(text);
                }
            }
            many if many.contains('*') => {
                let (count, byte) = many.split_once('*')?;
                let byte = u8::from_str_radix(byte, 16).ok()?;
                out.extend(std::iter::repeat_n(byte, count.parse().ok()?));
            }
            hex => {
                for pair in hex.as_bytes().chunks(2) {
                    out.push(u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?);
                }
            }
        }
    }
    Some(out)
}

/// What the ping behind all frames says.
const LAST_PING: &[u8; 8] = b"the last";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_what_they_say() {
        let line = r#"serve | n | SETTINGS es 0 ; HEADERS es+eh+80 80000003 82 "a=b \x00" 3*61"#;
        let case = case(line).unwrap();
        let block = b"\x82\x00\x01a\x03b \x00aaa";
        let wanted = [
            frames::preface(),
            frames::frame(SETTINGS, 1, 0, &[]),
            frames::frame(HEADERS, 0x85, 0x8000_0003, block),
        ];
        assert_eq!((case.bytes, case.stream), (wanted.concat(), 3));
    }

    #[test]
    fn a_status_is_read_in_every_way_of_writing() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x8c]), Some(400));
        assert_eq!(status(b"\x48\x03431"), Some(431));
        // 4 is 011010, 0 is 00000, 5 is 011011, and the rest is ones.
        assert_eq!(status(&[0x48, 0x83, 0b0110_1000, 0b0000_1101, 0b1111_1111]), Some(405));
        assert_eq!(status(&[0x40]), None);
    }
}
