//! Reads a TOML document key by key, and takes note of every mistake instead of the first.

use std::{borrow::Cow, cell::RefCell, collections::BTreeSet, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::mistake::{Mistake, Source};

/// Collects what is wrong with one file.
pub(super) struct Notes<'t> {
    source: Source<'t>,
    /// Whether the document broke off somewhere: then a missing key proves nothing.
    torn: bool,
    /// Whether nothing that was read can be trusted to stand where it was meant to.
    is_lost: bool,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

impl<'t> Notes<'t> {
    /// Begins with the syntax errors, of which a span tells the place.
    pub(super) fn new(source: Source<'t>, syntax: &[toml::de::Error]) -> Self {
        // An unclosed bracket swallows all that follows, and each line of it looks wrong.
        let unclosed = syntax.iter().find(|error| error.message().starts_with("unclosed"));
        let mut mistakes = Vec::<Mistake>::new();
        for error in syntax.iter().take(if unclosed.is_some() { 1 } else { syntax.len() }) {
            let mistake = syntax_mistake(&source, error);
            if mistakes.last().is_none_or(|last| last.line != mistake.line) {
                mistakes.push(mistake);
            }
        }
        if let Some(error) = unclosed.filter(|error| *error != &syntax[0]) {
            mistakes.push(syntax_mistake(&source, error));
        }
        let is_lost = unclosed.is_some();
        let torn = !syntax.is_empty();
        Self {
            source,
            torn,
            is_lost,
            mistakes: RefCell::new(mistakes),
            warnings: RefCell::default(),
        }
    }

    /// Notes a mistake; a second one on a line that is not even TOML would be noise.
    pub(super) fn wrong(
        &self,
        span: Range<usize>,
        what: impl Into<String>,
        help: impl Into<String>,
    ) {
        let mistake = self.source.mistake(span, what.into(), help.into());
        let mut mistakes = self.mistakes.borrow_mut();
        if !(self.is_lost || self.torn && mistakes.iter().any(|m| m.line == mistake.line)) {
            mistakes.push(mistake);
        }
    }

    /// Notes a mistake without showing what stands there.
    pub(super) fn wrong_unseen(&self, span: Range<usize>, what: &str, help: &str) {
        let mut mistake = self.source.mistake(span, what.to_owned(), help.to_owned());
        mistake.text = mistake.text.chars().take(mistake.column - 1).collect::<String>() + "***";
        mistake.width = 3;
        self.mistakes.borrow_mut().push(mistake);
    }

    /// Notes a doubt.
    pub(super) fn doubt(
        &self,
        span: Range<usize>,
        what: impl Into<String>,
        help: impl Into<String>,
    ) {
        let doubt = self.source.mistake(span, what.into(), help.into());
        self.warnings.borrow_mut().push(doubt);
    }

    /// Takes over what another file got wrong.
    pub(super) fn adopt(&self, mistakes: Vec<Mistake>, warnings: Vec<Mistake>) {
        self.mistakes.borrow_mut().extend(mistakes);
        self.warnings.borrow_mut().extend(warnings);
    }

    /// Whether no mistake was noted so far.
    pub(super) fn is_clean(&self) -> bool {
        self.mistakes.borrow().is_empty()
    }

    /// Whether no mistake was noted on the line of this span.
    pub(super) fn is_clean_at(&self, span: &Range<usize>) -> bool {
        let line = self.source.mistake(span.clone(), String::new(), String::new()).line;
        self.mistakes.borrow().iter().all(|mistake| mistake.line != line)
    }

    /// Mistakes and warnings, in the order of the file; those of other files come last.
    pub(super) fn into_parts(self) -> (Vec<Mistake>, Vec<Mistake>) {
        let own = std::sync::Arc::clone(&self.source.file);
        let sorted = |mut notes: Vec<Mistake>| {
            notes.sort_by_key(|m| (m.file != own, m.file.clone(), m.line, m.column));
            notes
        };
        (sorted(self.mistakes.into_inner()), sorted(self.warnings.into_inner()))
    }
}

fn syntax_mistake(source: &Source<'_>, error: &toml::de::Error) -> Mistake {
    let (what, help) = match error.message().split_once(", expected ") {
        Some((what, expected)) => (what, format!("expected {expected}")),
        None => (error.message(), "not valid TOML".to_owned()),
    };
    source.mistake(error.span().unwrap_or(0..0), what.to_owned(), help)
}

/// A table that is being read; it knows which of its keys were asked for.
pub(super) struct Table<'n> {
    /// What it is called in messages: `[kernel]`.
    name: String,
    /// Where it begins: its header, or the start of the file if it is absent.
    pub(super) span: Range<usize>,
    content: Option<&'n DeTable<'n>>,
    asked: RefCell<BTreeSet<&'static str>>,
    pub(super) notes: &'n Notes<'n>,
}

impl<'n> Table<'n> {
    /// Reads the whole document with `read`, and then takes note of the keys nobody asked for.
    pub(super) fn document<T>(
        content: &'n DeTable<'n>,
        notes: &'n Notes<'n>,
        read: impl FnOnce(&Self) -> T,
    ) -> T {
        Self::open(String::new(), 0..0, Some(content), notes, read)
    }

    fn open<T>(
        name: String,
        span: Range<usize>,
        content: Option<&'n DeTable<'n>>,
        notes: &'n Notes<'n>,
        read: impl FnOnce(&Self) -> T,
    ) -> T {
        let table = Self { name, span, content, asked: RefCell::default(), notes };
        let result = read(&table);
        table.note_unknown();
        result
    }

    /// The value of a key, if it is there.
    pub(super) fn item(&self, key: &'static str) -> Option<Item<'n>> {
        self.asked.borrow_mut().insert(key);
        let (written, value) = self.content?.get_key_value(key)?;
        let span = value.span();
        // The span of a table under a header is the header; that of an inline table its braces.
        let span = if span.is_empty() { written.span() } else { span };
        Some(Item { key, span, value: value.get_ref(), notes: self.notes })
    }

    /// Whether a key is there.
    pub(super) fn is_there(&self, key: &'static str) -> bool {
        self.item(key).is_some()
    }

    /// The value of a key, or its default if it is absent (or wrong, which is noted).
    pub(super) fn or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Item<'n>) -> Option<T>,
    ) -> T {
        self.item(key).and_then(|item| read(&item)).unwrap_or(default)
    }

    /// The value of a required key; `placeholder` stands in if it is absent or wrong.
    pub(super) fn need<T>(
        &self,
        key: &'static str,
        example: &str,
        placeholder: T,
        read: impl FnOnce(&Item<'n>) -> Option<T>,
    ) -> T {
        let Some(item) = self.item(key) else {
            self.note_missing(key, example);
            return placeholder;
        };
        read(&item).unwrap_or(placeholder)
    }

    fn note_missing(&self, key: &str, example: &str) {
        // A table that was spoiled by bad syntax may well have held the key.
        if !self.notes.torn {
            let what = format!("missing key '{key}' in {}", self.name);
            self.notes.wrong(self.span.clone(), what, format!("required: {key} = {example}"));
        }
    }

    /// Reads the table under a key; an absent one reads like an empty one.
    pub(super) fn table<T>(&self, key: &'static str, read: impl FnOnce(&Self) -> T) -> T {
        let name = match self.name.strip_suffix(']') {
            Some(outer) => format!("{outer}.{key}]"),
            None => format!("[{key}]"),
        };
        let item = self.item(key);
        let content = item.as_ref().and_then(|item| item.as_table(&name));
        let span = item.map_or_else(|| self.span.clone(), |item| item.span);
        Self::open(name, span, content, self.notes, read)
    }

    /// Reads each table of an array of tables.
    pub(super) fn tables<T>(&self, key: &'static str, read: impl Fn(&Self) -> T) -> Vec<T> {
        let name = match self.name.strip_suffix(']') {
            Some(outer) => format!("[{outer}.{key}]]"),
            None => format!("[[{key}]]"),
        };
        let Some(item) = self.item(key) else { return Vec::new() };
        let Some(items) = item.items(&format!("an array of tables, written {name}")) else {
            return Vec::new();
        };
        items
            .filter_map(|item| {
                let content = item.as_table(&name)?;
                let span = item.span.clone();
                Some(Self::open(name.clone(), span, Some(content), self.notes, &read))
            })
            .collect()
    }

    fn note_unknown(&self) {
        let asked = self.asked.borrow();
        let keys = self.content.into_iter().flat_map(DeTable::keys);
        for key in keys.filter(|key| !asked.contains(key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            let inside = if self.name.is_empty() { "" } else { " in " };
            let what = format!("unknown key '{name}'{inside}{}", self.name);
            self.notes.wrong(key.span(), what, suggest(name, asked.iter().copied()));
        }
    }
}

/// "did you mean" with the nearest of the names, or all of them.
pub(super) fn suggest<'a>(word: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    let near = names
        .clone()
        .map(|name| (strsim::jaro_winkler(word, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.78);
    match near {
        Some((_, name)) => format!("did you mean '{name}'?"),
        None => format!("one of: {}", names.collect::<Vec<_>>().join(", ")),
    }
}

/// A value that is being read, with its key and its place.
pub(super) struct Item<'n> {
    /// The key it stands under.
    pub(super) key: &'static str,
    /// Where it stands.
    pub(super) span: Range<usize>,
    value: &'n DeValue<'n>,
    pub(super) notes: &'n Notes<'n>,
}

impl<'n> Item<'n> {
    /// Notes a mistake about this value.
    pub(super) fn wrong<T>(&self, what: impl Into<String>, help: impl Into<String>) -> Option<T> {
        self.notes.wrong(self.span.clone(), what, help);
        None
    }

    /// Notes that the value is of the wrong kind.
    pub(super) fn wrong_kind<T>(&self, wanted: &str) -> Option<T> {
        let what = format!("'{}' is {}", self.key, kind(self.value));
        self.wrong(what, format!("should be {wanted}"))
    }

    /// A string.
    pub(super) fn text(&self, wanted: &str) -> Option<&'n str> {
        self.value.as_str().or_else(|| self.wrong_kind(wanted))
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong_kind("true or false"))
    }

    /// A whole number within bounds.
    pub(super) fn number(&self, least: u64, most: u64) -> Option<u64> {
        let wanted = format!("a whole number, {least} to {most}");
        let Some(integer) = self.value.as_integer() else { return self.wrong_kind(&wanted) };
        match i128::from_str_radix(integer.as_str(), integer.radix()).map(u64::try_from) {
            Ok(Ok(number)) if (least..=most).contains(&number) => Some(number),
            _ => self.wrong(format!("'{}' is out of range", self.key), wanted),
        }
    }

    /// Whether the value is `true` or `false`.
    pub(super) fn is_flag(&self) -> bool {
        self.value.is_bool()
    }

    /// Whether the value is a table.
    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Whether the value is a number.
    pub(super) fn is_number(&self) -> bool {
        self.value.is_integer()
    }

    /// Whether the value is a string.
    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    /// A table as the value: `{ rate = "..", burst = .. }`.
    pub(super) fn inline<T>(&self, read: impl FnOnce(&Table<'n>) -> T) -> Option<T> {
        let content = self.value.as_table()?;
        let name = format!("'{}'", self.key);
        Some(Table::open(name, self.span.clone(), Some(content), self.notes, read))
    }

    /// Each entry of a table whose keys are the operator's own words, as `read` takes it; those it
    /// refuses are noted and left out.
    pub(super) fn each<T>(
        &self,
        wanted: &str,
        read: impl Fn(&'n str, &Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Some(table) = self.value.as_table() else { return self.wrong_kind(wanted) };
        let entry = |(name, value): (&'n Spanned<_>, &'n Spanned<DeValue<'n>>)| {
            let (span, value) = (value.span(), value.get_ref());
            let name: &Cow<'n, str> = name.get_ref();
            read(name, &Self { key: self.key, span, value, notes: self.notes })
        };
        Some(table.iter().filter_map(entry).collect())
    }

    /// Each value of an array, as `read` takes it; those it refuses are noted and left out.
    pub(super) fn list<T>(
        &self,
        wanted: &str,
        read: impl Fn(&Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        Some(self.items(wanted)?.filter_map(|item| read(&item)).collect())
    }

    fn items(&self, wanted: &str) -> Option<impl Iterator<Item = Self> + use<'n>> {
        let Some(array) = self.value.as_array() else { return self.wrong_kind(wanted) };
        let (key, notes) = (self.key, self.notes);
        Some(array.iter().map(move |value: &'n Spanned<DeValue<'n>>| Self {
            key,
            span: value.span(),
            value: value.get_ref(),
            notes,
        }))
    }

    fn as_table(&self, name: &str) -> Option<&'n DeTable<'n>> {
        self.value.as_table().or_else(|| self.wrong_kind(&format!("a table, written {name}")))
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
