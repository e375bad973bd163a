//! The components of a request that a signature can cover (RFC 9421, 2), each with its value.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sfv::{BareItem, Dictionary, FieldType as _, Item, ItemSerializer, ListEntry, Parser};

use super::Message;

/// A component that a signature covers.
#[derive(Debug)]
pub(super) struct Component {
    /// As it stands in the signature base: its name and its parameters.
    pub(super) id: String,
    pub(super) name: Name,
}

/// What a component is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Method,
    TargetUri,
    Authority,
    Scheme,
    RequestTarget,
    Path,
    Query,
    QueryParam(String),
    Field(HeaderName, Form),
}

/// How the value of a field is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Its lines, joined.
    Plain,
    /// `sf`: as the structured field that it is, in the one form of that.
    Structured,
    /// `key`: one member of the dictionary that it is.
    Member(String),
    /// `bs`: each line in base64.
    Bytes,
}

impl Component {
    /// Reads a component's identifier. `None` if it is none of a request: what nobody knows, what
    /// only answers have, and trailers (`tr`), which come after the signature must have been proved.
    pub(super) fn read(item: &Item) -> Option<Self> {
        let BareItem::String(name) = &item.bare_item else { return None };
        let id = ItemSerializer::new().bare_item(&item.bare_item).parameters(&item.params).finish();
        let parameters: Vec<_> = item.params.iter().map(|(key, v)| (key.as_str(), v)).collect();
        let name = match (name.as_str(), parameters.as_slice()) {
            ("@method", []) => Name::Method,
            ("@target-uri", []) => Name::TargetUri,
            ("@authority", []) => Name::Authority,
            ("@scheme", []) => Name::Scheme,
            ("@request-target", []) => Name::RequestTarget,
            ("@path", []) => Name::Path,
            ("@query", []) => Name::Query,
            ("@query-param", [("name", BareItem::String(name))]) => {
                Name::QueryParam(name.as_str().to_owned())
            }
            (field, parameters) => {
                let form = match parameters {
                    [] => Form::Plain,
                    [("sf", BareItem::Boolean(true))] if is_dictionary(field) => Form::Structured,
                    [("key", BareItem::String(key))] => Form::Member(key.as_str().to_owned()),
                    [("bs", BareItem::Boolean(true))] => Form::Bytes,
                    _ => return None,
                };
                // In lower case, and never a derived component: those begin with an at sign.
                Name::Field(HeaderName::from_lowercase(field.as_bytes()).ok()?, form)
            }
        };
        Some(Self { id, name })
    }
}

impl Name {
    /// The value in this message; `None` if it has none, or none that can be signed.
    pub(super) fn value(&self, message: &Message<'_>) -> Option<String> {
        let Message { method, target, headers, .. } = message;
        Some(match self {
            Self::Method => method.to_string(),
            Self::TargetUri => {
                format!("https://{}{}", message.authority(), target.path_and_query())
            }
            Self::Authority => message.authority(),
            Self::Scheme => "https".to_owned(),
            Self::RequestTarget => target.path_and_query(),
            Self::Path => target.path.clone(),
            // A query that is not there is an empty one (2.2.7).
            Self::Query => format!("?{}", target.query.as_deref().unwrap_or_default()),
            Self::QueryParam(name) => query_param(target.query.as_deref()?, name)?,
            Self::Field(name, Form::Plain) => combined(headers, name)?,
            Self::Field(name, Form::Structured) => dictionary(headers, name)?.serialize()?,
            Self::Field(name, Form::Member(key)) => member(&dictionary(headers, name)?, key)?,
            Self::Field(name, Form::Bytes) => bytes(headers, name)?,
        })
    }

    /// Whether a signature over this covers the whole of that field.
    pub(super) fn is_whole(&self, field: &HeaderName) -> bool {
        let whole = |form: &Form| !matches!(form, Form::Member(_));
        matches!(self, Self::Field(name, form) if name == field && whole(form))
    }
}

/// The lines of a field, trimmed and joined (2.1). `None` if it is missing or not of visible ASCII.
pub(super) fn combined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines = headers.get_all(name).iter().map(|value| value.to_str().ok().map(str::trim));
    let lines: Vec<_> = lines.collect::<Option<_>>()?;
    (!lines.is_empty()).then(|| lines.join(", "))
}

fn dictionary(headers: &HeaderMap, name: &HeaderName) -> Option<Dictionary> {
    Parser::new(&combined(headers, name)?).parse().ok()
}

/// One member's value with its parameters (2.1.2).
fn member(dictionary: &Dictionary, key: &str) -> Option<String> {
    match dictionary.get(key)? {
        ListEntry::Item(item) => Some(item.serialize()),
        ListEntry::InnerList(list) => vec![ListEntry::InnerList(list.clone())].serialize(),
    }
}

/// Each line as a byte sequence (2.1.3).
fn bytes(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines = headers.get_all(name).iter();
    let lines = lines.map(|value| format!(":{}:", STANDARD.encode(value.as_bytes().trim_ascii())));
    let lines: Vec<_> = lines.collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

/// The value of the one parameter of this name (2.2.8): read as a form, written percent-encoded.
fn query_param(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut values = pairs.filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (recoded(key) == name).then(|| recoded(value))
    });
    match (values.next(), values.next()) {
        (value, None) => value,
        _ => None,
    }
}

fn recoded(text: &str) -> String {
    let text = text.replace('+', " ");
    let text: Cow<'_, str> = percent_decode_str(&text).decode_utf8_lossy();
    utf8_percent_encode(&text, FORM).to_string()
}

/// Request fields that are dictionaries, by the HTTP field name registry.
fn is_dictionary(field: &str) -> bool {
    matches!(
        field,
        "content-digest"
            | "priority"
            | "repr-digest"
            | "signature"
            | "signature-input"
            | "want-content-digest"
            | "want-repr-digest"
    )
}

/// The application/x-www-form-urlencoded percent-encode set of the URL standard.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');
