//! The patterns of `like`: texts with stars between them, each of which stands for any text.

use serde_json::Value;

/// Texts that must come one after the other; the first begins the whole, the last ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<String>);

impl Pattern {
    /// Reads the JSON form: stars and pieces of text.
    pub(super) fn of(elements: &Value) -> Option<Self> {
        let mut parts = vec![String::new()];
        for element in elements.as_array()? {
            match element.get("Literal").and_then(Value::as_str) {
                Some(text) => parts.last_mut()?.push_str(text),
                None if element.as_str() == Some("Wildcard") => parts.push(String::new()),
                None => return None,
            }
        }
        Some(Self(parts))
    }

    /// Whether a text has this form. What lies between first and last is taken as early as it comes,
    /// which leaves the most to what follows.
    pub(super) fn fits(&self, text: &str) -> bool {
        let (first, rest) = match self.0.as_slice() {
            [] => return false,
            [only] => return text == only,
            [first, rest @ ..] => (first, rest),
        };
        let Some((last, between)) = rest.split_last() else { return false };
        let Some(mut left) = text.strip_prefix(first.as_str()) else { return false };
        for part in between {
            let Some(at) = left.find(part.as_str()) else { return false };
            left = &left[at + part.len()..];
        }
        left.ends_with(last.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        let elements = text.chars().map(|c| match c {
            '*' => json!("Wildcard"),
            other => json!({ "Literal": other.to_string() }),
        });
        Pattern::of(&Value::Array(elements.collect())).unwrap()
    }

    /// One character after the other, by trying everything.
    fn slow(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], text) => text.is_empty(),
            (['*', rest @ ..], text) => (0..=text.len()).any(|at| slow(rest, &text[at..])),
            ([one, rest @ ..], [first, left @ ..]) => one == first && slow(rest, left),
            (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn it_fits_as_by_trying_everything(form in "[ab*ü]{0,8}", text in "[abü]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(pattern(&form).fits(&text), slow(&chars(&form), &chars(&text)));
        }
    }
}
