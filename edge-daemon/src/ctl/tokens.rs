//! `edgectl token`: which tokens are refused although they are good.

use std::time::Duration;

use clap::Subcommand;
use edge_identity::jwt::denylist::Target;

use super::{
    args::{duration, millis},
    print::{left, rest, table, utc},
};
use crate::control::{
    protocol::Entries,
    tokens::{DenialEntry, TokenCommand, TokenKey},
};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Refuse tokens from now on, those that were good a moment ago included
    Revoke {
        /// Which
        #[command(flatten)]
        which: Which,
        /// For how long: 10m, 24h [default: as long as such a token can be good; a key: for ever]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        until: Option<Duration>,
    },
    /// Take a refusal back
    Remove {
        /// Which
        #[command(flatten)]
        which: Which,
    },
    /// Let tokens in again although revocations were lost with a damaged store
    AcceptLoss,
    /// Show what is refused
    List,
    /// Show the keys that tokens are verified by, as --kid takes them
    Keys,
}

/// Which tokens.
#[derive(Debug, clap::Args)]
pub struct Which {
    #[command(flatten)]
    name: TokenName,
    /// Whose: the name of the [[issuer]], or its URL
    #[arg(long, value_name = "NAME")]
    issuer: String,
}

/// By which of their names: exactly one.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct TokenName {
    /// The token with this id
    #[arg(long, value_name = "ID")]
    jti: Option<String>,
    /// This subject's tokens that were issued until now; client:ID for those without a subject
    #[arg(long, value_name = "SUBJECT")]
    sub: Option<String>,
    /// The tokens of this session
    #[arg(long, value_name = "SESSION")]
    sid: Option<String>,
    /// The tokens that this key signed, as 'token keys' shows it
    #[arg(long, visible_alias = "key", value_name = "KEY")]
    kid: Option<String>,
}

impl TokenVerb {
    pub(super) fn command(&self) -> TokenCommand {
        match self {
            Self::Revoke { which, until } => TokenCommand::Revoke {
                target: which.name.target(),
                issuer: which.issuer.clone(),
                life_ms: until.map(millis),
            },
            Self::Remove { which } => {
                TokenCommand::Remove { target: which.name.target(), issuer: which.issuer.clone() }
            }
            Self::AcceptLoss => TokenCommand::AcceptLoss,
            Self::List => TokenCommand::List,
            Self::Keys => TokenCommand::Keys,
        }
    }
}

impl TokenName {
    fn target(&self) -> Target {
        let names = [
            (&self.jti, Target::Jti as fn(String) -> Target),
            (&self.sub, Target::Sub),
            (&self.sid, Target::Sid),
            (&self.kid, Target::Kid),
        ];
        let named = names.into_iter().find_map(|(name, target)| name.clone().map(target));
        named.expect("the parser demands one of them")
    }
}

/// The denials in force as a table.
pub(super) fn text(denials: &Entries<DenialEntry>, now_ms: u64) -> String {
    let rows = denials.entries.iter().map(|denial| {
        let ends = left(denial.until_ms, now_ms);
        let names = [&denial.issuer, &denial.kind, &denial.value, &denial.by].map(String::clone);
        let [issuer, kind, value, by] = names;
        vec![issuer, kind, value, utc(denial.since_ms), ends, by]
    });
    table(&["ISSUER", "BY", "VALUE", "SINCE", "ENDS", "WHO"], rows) + &rest(denials)
}

/// Keys of issuers as a table.
pub(super) fn keys_text(keys: &Entries<TokenKey>) -> String {
    let rows = keys.entries.iter().map(|key| {
        let state = if key.is_denied { "revoked" } else { "good" };
        let algorithms = key.algorithms.join(" ");
        vec![key.issuer.clone(), key.key.clone(), algorithms, state.to_owned()]
    });
    table(&["ISSUER", "KEY", "ALGORITHMS", "STATE"], rows) + &rest(keys)
}
