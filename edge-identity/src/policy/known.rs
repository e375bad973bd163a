//! What plain tests compare: literals, and what is known of a caller and a request.

use std::cmp::Ordering;

use cedar_policy::{Context, Entities, EvalResult, Expression, Request, eval_expression};
use serde_json::Value;

use super::load::{ACTION_UIDS, KINDS, route_uid, uid};
use super::request::Asked;
use crate::principal::Claim;

/// Where something is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Who the caller is.
    Id,
    /// What it is called.
    Name,
    /// How it was proved.
    Proof,
    /// All that it holds. Not read as a whole.
    Scopes,
    /// All that it is. Not read as a whole.
    Roles,
    /// Its plan.
    Tier,
    /// The name of its issuer.
    Issuer,
    /// What its issuer says of it.
    Claim(String),
    /// The request's method.
    Method,
    /// The host it is for.
    Host,
    /// Its path.
    Path,
    /// Its query.
    Query,
    /// The client's address. Not read as a whole.
    Client,
    /// When it came.
    Time,
    /// The day on which it came.
    Day,
    /// How long after midnight it came.
    TimeOfDay,
    /// What the handshake told. Not read as a whole.
    Tls,
    /// The version of TLS.
    TlsVersion,
    /// The name that the client asked for in its handshake.
    ServerName,
    /// The fingerprint of its TLS library.
    Ja4,
}

/// A literal or a place.
#[derive(Clone, Debug)]
pub(super) enum Term {
    Text(String),
    Number(i64),
    Flag(bool),
    /// A time in milliseconds since 1970.
    Time(i64),
    /// A span of time in milliseconds.
    Span(i64),
    Place(Place),
}

/// What was found.
pub(super) enum Known<'a> {
    Text(&'a str),
    Number(i64),
    Flag(bool),
    List(&'a [String]),
    Time(i64),
    Span(i64),
}

impl Place {
    /// The place that an expression reads.
    pub(super) fn of(expression: &Value) -> Option<Self> {
        let (operator, of) = member(expression)?;
        match (operator, of.as_array().map(Vec::as_slice)) {
            (".", _) => Self::asked_for(of),
            ("toDate", Some([time])) => (Self::of(time)? == Self::Time).then_some(Self::Day),
            ("toTime", Some([time])) => (Self::of(time)? == Self::Time).then_some(Self::TimeOfDay),
            _ => None,
        }
    }

    /// The place that `left` and `attr` are about, be it read or asked for.
    pub(super) fn asked_for(of: &Value) -> Option<Self> {
        let (left, name) = (of.get("left")?, of.get("attr")?.as_str()?);
        let within = left.get(".").map(|of| (of.get("left"), of.get("attr")));
        let variable = |expression: &Value| expression.get("Var")?.as_str().map(str::to_owned);
        match (variable(left).as_deref(), within) {
            (Some("principal"), _) => Self::of_caller(name),
            (Some("context"), _) => Self::of_request(name),
            (None, Some((Some(variable_of), Some(attribute)))) => {
                match (variable(variable_of)?.as_str(), attribute.as_str()?) {
                    ("principal", "claims") => Some(Self::Claim(name.to_owned())),
                    ("context", "tls") => Self::of_handshake(name),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn of_caller(name: &str) -> Option<Self> {
        Some(match name {
            "id" => Self::Id,
            "name" => Self::Name,
            "method" => Self::Proof,
            "scopes" => Self::Scopes,
            "roles" => Self::Roles,
            "tier" => Self::Tier,
            "issuer" => Self::Issuer,
            _ => return None,
        })
    }

    fn of_request(name: &str) -> Option<Self> {
        Some(match name {
            "method" => Self::Method,
            "host" => Self::Host,
            "path" => Self::Path,
            "query" => Self::Query,
            "ip" => Self::Client,
            "time" => Self::Time,
            "tls" => Self::Tls,
            _ => return None,
        })
    }

    fn of_handshake(name: &str) -> Option<Self> {
        Some(match name {
            "version" => Self::TlsVersion,
            "server_name" => Self::ServerName,
            "ja4" => Self::Ja4,
            _ => return None,
        })
    }

    /// What is there; `None` if nothing is, which fails a policy that does not ask first.
    pub(super) fn read<'a>(&'a self, asked: &Asked<'a>) -> Option<Known<'a>> {
        let (principal, facts) = (asked.principal, asked.facts);
        let now_ms = i64::try_from(facts.now_ms).ok()?;
        Some(match self {
            Self::Id => Known::Text(principal.id()),
            Self::Name => Known::Text(principal.name()),
            Self::Proof => Known::Text(principal.method().name()),
            Self::Tier => Known::Text(principal.tier()?),
            Self::Issuer => Known::Text(principal.issuer()?),
            Self::Claim(name) => match asked.claim(name)? {
                Claim::Text(text) => Known::Text(text),
                Claim::Number(number) => Known::Number(*number),
                Claim::Flag(flag) => Known::Flag(*flag),
                Claim::List(list) => Known::List(list),
                Claim::Other(_) => return None,
            },
            Self::Method => Known::Text(facts.method.as_str()),
            Self::Host => Known::Text(facts.host),
            Self::Path => Known::Text(&facts.target.path),
            Self::Query => Known::Text(facts.target.query.as_deref()?),
            Self::Time => Known::Time(now_ms),
            Self::Day => Known::Time(now_ms - now_ms % MS_PER_DAY),
            Self::TimeOfDay => Known::Span(now_ms % MS_PER_DAY),
            Self::TlsVersion => Known::Text(facts.tls?.version),
            Self::ServerName => Known::Text(facts.tls?.server_name?),
            Self::Ja4 => Known::Text(facts.tls?.ja4?),
            Self::Scopes | Self::Roles | Self::Client | Self::Tls => return None,
        })
    }

    /// Whether something is there; `None` if what it would be within is not.
    pub(super) fn is_there(&self, asked: &Asked<'_>) -> Option<bool> {
        Some(match self {
            Self::Scopes | Self::Roles | Self::Client => true,
            Self::Tls => asked.facts.tls.is_some(),
            // Of whatever type it is.
            Self::Claim(name) => asked.principal.claim(name).is_some(),
            Self::TlsVersion | Self::ServerName | Self::Ja4 if asked.facts.tls.is_none() => {
                return None;
            }
            other => other.read(asked).is_some(),
        })
    }

    /// Whether it may be compared as a whole.
    const fn is_readable(&self) -> bool {
        !matches!(self, Self::Scopes | Self::Roles | Self::Client | Self::Tls)
    }
}

impl Term {
    /// The term that an expression is.
    pub(super) fn of(expression: &Value) -> Option<Self> {
        let place = || Place::of(expression).filter(Place::is_readable).map(Self::Place);
        Self::literal(expression).or_else(place)
    }

    /// The literal that an expression is.
    pub(super) fn literal(expression: &Value) -> Option<Self> {
        let (operator, of) = member(expression)?;
        match operator {
            "Value" => {
                let text = || of.as_str().map(|text| Self::Text(text.to_owned()));
                let number = || of.as_i64().map(Self::Number);
                text().or_else(number).or_else(|| of.as_bool().map(Self::Flag))
            }
            "neg" => match Self::literal(of.get("arg")?)? {
                Self::Number(number) => number.checked_neg().map(Self::Number),
                _ => None,
            },
            "datetime" => {
                let since =
                    format!("{}.durationSince(datetime(\"1970-01-01\"))", call(expression)?);
                milliseconds(&since).map(Self::Time)
            }
            "duration" => milliseconds(&call(expression)?).map(Self::Span),
            _ => None,
        }
    }

    pub(super) fn read<'a>(&'a self, asked: &Asked<'a>) -> Option<Known<'a>> {
        Some(match self {
            Self::Text(text) => Known::Text(text),
            Self::Number(number) => Known::Number(*number),
            Self::Flag(flag) => Known::Flag(*flag),
            Self::Time(ms) => Known::Time(*ms),
            Self::Span(ms) => Known::Span(*ms),
            Self::Place(place) => return place.read(asked),
        })
    }
}

impl Known<'_> {
    /// Whether both are the same; what is of two types never is.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(one), Self::Text(other)) => one == other,
            (Self::Flag(one), Self::Flag(other)) => one == other,
            (Self::Number(one), Self::Number(other))
            | (Self::Time(one), Self::Time(other))
            | (Self::Span(one), Self::Span(other)) => one == other,
            // As sets.
            (Self::List(one), Self::List(other)) => {
                one.iter().all(|word| other.contains(word))
                    && other.iter().all(|word| one.contains(word))
            }
            _ => false,
        }
    }

    /// How they are ordered, if they can be.
    pub(super) fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Number(one), Self::Number(other))
            | (Self::Time(one), Self::Time(other))
            | (Self::Span(one), Self::Span(other)) => Some(one.cmp(other)),
            _ => None,
        }
    }

    /// Whether it is true, if it can be.
    pub(super) const fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

/// The operator of an expression and what it is applied to.
pub(super) fn member(expression: &Value) -> Option<(&str, &Value)> {
    let mut members = expression.as_object()?.iter();
    match (members.next(), members.next()) {
        (Some((operator, of)), None) => Some((operator, of)),
        _ => None,
    }
}

/// A call with one literal, as it is written.
fn call(expression: &Value) -> Option<String> {
    let (function, arguments) = member(expression)?;
    let [argument] = arguments.as_array()?.as_slice() else { return None };
    Some(format!("{function}({:?})", argument.get("Value")?.as_str()?))
}

/// What the engine makes of a span of time that nothing of a request is part of.
fn milliseconds(span: &str) -> Option<i64> {
    let expression: Expression = format!("{span}.toMilliseconds()").parse().ok()?;
    let nobody = uid(&KINDS.caller, "");
    let (action, nowhere) = (ACTION_UIDS[0].0.clone(), route_uid(""));
    let request = Request::new(nobody, action, nowhere, Context::empty(), None).ok()?;
    match eval_expression(&request, &Entities::empty(), &expression).ok()? {
        EvalResult::Long(ms) => Some(ms),
        _ => None,
    }
}

const MS_PER_DAY: i64 = 86_400_000;
