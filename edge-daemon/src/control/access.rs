//! What is asked and answered about who may do what.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Who wants to do what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Who it is: `key:ID` or the id alone, `sub:ISSUER:SUBJECT`, `sub:SUBJECT` where there is one issuer,
    /// `cert:ID`, or as logs call it; `None`: nobody was proved.
    pub principal: Option<String>,
    /// What people call it.
    pub name: Option<String>,
    /// Its plan.
    pub tier: Option<String>,
    /// Scopes that it holds.
    pub scopes: Vec<String>,
    /// Roles that it is.
    pub roles: Vec<String>,
    /// What its issuer says of it: names and values.
    pub claims: Vec<(String, String)>,
    /// The request's method.
    pub method: String,
    /// Its path, with its query if there is one.
    pub target: String,
    /// The host that it is for.
    pub host: String,
    /// Its header fields: names and values.
    pub headers: Vec<(String, String)>,
    /// What its handshake told.
    pub tls: Handshake,
    /// Where it comes from.
    pub address: IpAddr,
    /// When it comes, in unix milliseconds; `None`: now.
    pub at_ms: Option<u64>,
}

/// What a TLS handshake tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: String,
    /// The name that the client asked for.
    pub server_name: Option<String>,
    /// The fingerprint of the client's TLS library.
    pub ja4: Option<String>,
}

/// Whether it may, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Whether it may.
    pub is_allowed: bool,
    /// Who was taken to ask, and how that was proved.
    pub principal: Option<String>,
    /// The route, by its host and path; `None`: there is none.
    pub route: Option<String>,
    /// The status of the refusal.
    pub status: Option<u16>,
    /// Its reason.
    pub reason: Option<String>,
    /// What was not met.
    pub rule: Option<String>,
    /// What the policies said, as far as they were asked.
    pub policies: Vec<Said>,
}

/// What a set of policies said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The set.
    pub set: String,
    /// Whether it is only counted.
    pub shadow: bool,
    /// Its words.
    pub ruling: String,
}

impl Access {
    /// A few lines for a person.
    #[must_use]
    pub fn text(&self) -> String {
        let word = if self.is_allowed { "allow" } else { "deny" };
        let mut text = match (self.status, &self.reason) {
            (Some(status), Some(reason)) => format!("{word}: {status} {reason}\n"),
            _ => format!("{word}\n"),
        };
        let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<11}{value}\n"));
        line("principal", self.principal.as_deref().unwrap_or("nobody"));
        line("route", self.route.as_deref().unwrap_or("none"));
        if let Some(rule) = &self.rule {
            line("rule", rule);
        }
        for Said { set, shadow, ruling } in &self.policies {
            let counted = if *shadow { " (only counted)" } else { "" };
            line("policies", &format!("{set}: {ruling}{counted}"));
        }
        text
    }
}
