//! What is wrong with a configuration, where, and what would be right.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One thing that is wrong, or doubtful, at one place of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// That line as it stands.
    pub text: String,
    /// How many characters of it are meant; at least 1.
    pub width: usize,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub help: String,
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

/// What is doubtful about a configuration that is used nevertheless.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(pub Vec<Mistake>);

/// A file with its text, which finds the line and column of a span.
#[derive(Clone, Debug)]
pub(super) struct Source<'t> {
    /// The file's name.
    pub(super) file: Arc<Path>,
    /// Its text.
    pub(super) text: &'t str,
}

impl<'t> Source<'t> {
    pub(super) fn new(file: &Path, text: &'t str) -> Self {
        Self { file: file.into(), text }
    }

    /// A mistake at a span of bytes; what lies beyond the end of its first line is not shown.
    pub(super) fn mistake(&self, span: Range<usize>, what: String, help: String) -> Mistake {
        let at = floor_boundary(self.text, span.start);
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let text = self.text[start..].lines().next().unwrap_or_default();
        let end = floor_boundary(self.text, span.end).clamp(at, (start + text.len()).max(at));
        Mistake {
            file: Arc::clone(&self.file),
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[start..at].chars().count() + 1,
            text: text.to_owned(),
            width: self.text[at..end].chars().count().max(1),
            what,
            help,
        }
    }
}

/// The last character boundary at or before `index`, and within the text.
fn floor_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

impl Mistake {
    /// A mistake about a file as a whole, which has no line to show.
    pub(super) fn of_file(file: PathBuf, what: String, help: String) -> Self {
        let (file, text) = (file.into(), String::new());
        Self { file, line: 0, column: 0, text, width: 0, what, help }
    }

    fn render(&self, f: &mut fmt::Formatter<'_>, kind: &str) -> fmt::Result {
        writeln!(f, "{kind}: {}", self.what)?;
        if self.line == 0 {
            return writeln!(f, "  --> {}\n   = {}", self.file.display(), self.help);
        }
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(f, "{gutter}--> {}:{}:{}", self.file.display(), self.line, self.column)?;
        writeln!(f, "{gutter} |")?;
        // A tab would shift the marks, and a stray control character the whole terminal.
        let text: String =
            self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        writeln!(f, "{number} | {text}")?;
        let indent = " ".repeat(self.column - 1);
        writeln!(f, "{gutter} | {indent}{} {}", "^".repeat(self.width), self.help)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.render(f, "error")
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            mistake.render(f, "error")?;
            writeln!(f)?;
        }
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "{} mistake{plural}", self.0.len())
    }
}

impl fmt::Display for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|warning| warning.render(f, "warning"))
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_drawn_below_its_line() {
        let text = "[kernel]\ninterface = [\"eth0\"]\n";
        let source = Source::new(Path::new("edged.toml"), text);
        let mistake = source.mistake(
            9..18,
            "unknown key 'interface'".into(),
            "did you mean 'interfaces'?".into(),
        );
        let drawn = "error: unknown key 'interface'\n --> edged.toml:2:1\n  |\n\
                     2 | interface = [\"eth0\"]\n  | ^^^^^^^^^ did you mean 'interfaces'?\n";
        assert_eq!(mistake.to_string(), drawn);
    }

    #[test]
    fn columns_count_characters_and_marks_end_with_the_line() {
        let text = "a = \"äöü\" x\nb";
        let source = Source::new(Path::new("f"), text);
        let mistake = source.mistake(text.find('x').unwrap()..text.len(), String::new(), "".into());
        assert_eq!((mistake.line, mistake.column, mistake.width), (1, 11, 1));
        // A span inside a character or beyond the end is no reason to panic.
        assert_eq!(source.mistake(6..7, String::new(), String::new()).line, 1);
        let beyond = source.mistake(900..901, String::new(), String::new());
        assert_eq!((beyond.line, beyond.column), (2, 2));
    }
}
