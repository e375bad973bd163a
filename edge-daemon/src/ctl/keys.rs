//! `edgectl key`: what is asked of the daemon about keys, page by page where there are many.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use edge_identity::{
    key::{Digest, KeyId, Place},
    signed::{Algorithm, PublicKey},
};
use ipnet::IpNet;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    Args, DONE, REFUSED, answer,
    args::{duration, millis, net},
    complain, now_ms, say,
};
use crate::control::{
    Command, Reply,
    keys::{Imported, KeyCommand, KeyEntry, KeyPage, Life, NewKey, NewSecret, NewSigning},
};

/// What to do with API keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a key and print it, this once
    Create(Create),
    /// Show the keys
    List(Filter),
    /// Show all that is known of a key
    Show {
        /// Its public name, from `key list`
        id: KeyId,
    },
    /// Make a key in the place of another, which is still good for a while
    Rotate {
        /// The other's public name
        id: KeyId,
        /// How long it is still good: 7d [default: as configured]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        grace: Option<Duration>,
        /// How long the new one lives: 90d, or never [default: as configured]
        #[arg(long, value_name = "DURATION", value_parser = life)]
        expires: Option<Life>,
        #[command(flatten)]
        given: Given,
    },
    /// Revoke a key for good
    Revoke {
        /// Its public name
        id: KeyId,
    },
    /// Forget a key that is revoked or has ended
    Remove {
        /// Its public name
        id: KeyId,
    },
    /// Write all keys out, a line of JSON each: digests, nothing that opens anything
    Export,
    /// Take exported keys in; if a line is wrong, none of them
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// Only say what is wrong
        #[arg(long)]
        check: bool,
    },
}

/// A key to be made.
#[derive(Clone, Debug, clap::Args)]
pub struct Create {
    /// What its owner calls it
    #[arg(long)]
    name: String,
    /// Who answers for it
    #[arg(long, default_value = "")]
    owner: String,
    /// What it may do: orders:read,orders:write; may be given several times
    #[arg(long, alias = "scope", value_name = "SCOPES", value_delimiter = ',')]
    scopes: Vec<String>,
    /// What it is
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    roles: Vec<String>,
    /// Its plan
    #[arg(long)]
    tier: Option<String>,
    /// How long it lives: 90d, or never [default: as configured]
    #[arg(long, value_name = "DURATION", value_parser = life)]
    expires: Option<Life>,
    /// Where alone it may come from: 192.0.2.0/24,2001:db8::/32
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = net)]
    allow_cidr: Vec<IpNet>,
    /// Where alone it may go, with all below: /v1/orders,api.example.com/v2
    #[arg(long, value_name = "PLACES", value_delimiter = ',')]
    routes: Vec<Place>,
    /// Bind a random secret to it, which has to come in X-API-Secret
    #[arg(long, conflicts_with_all = ["secret_file", "public_key"])]
    secret: bool,
    /// It signs requests, and is good for signed ones only, with a secret that is printed
    #[arg(long, conflicts_with_all = ["secret", "secret_file", "public_key"])]
    signing: bool,
    #[command(flatten)]
    given: Given,
}

/// What the operator gives a new key. One in the place of another is given what that one was.
#[derive(Clone, Debug, clap::Args)]
pub struct Given {
    /// Bind the secret in this file to it; `-` is standard input
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// It signs requests with the private key of this public one (PEM)
    #[arg(long, value_name = "FILE", conflicts_with = "secret_file")]
    public_key: Option<PathBuf>,
    /// The algorithm of the public key, where there is a choice: rsa-v1_5-sha256 [default: rsa-pss-sha512]
    #[arg(long, requires = "public_key", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    let known = Algorithm::PUBLIC.into_iter().find(|algorithm| algorithm.name() == text);
    known.ok_or_else(|| Algorithm::PUBLIC.map(Algorithm::name).join(", "))
}

/// Which keys to show.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Those of this owner
    #[arg(long)]
    owner: Option<String>,
    /// Those in force that end within this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expiring: Option<Duration>,
    /// Those in force that never end
    #[arg(long)]
    without_expiry: bool,
    /// Those in force that were not used for this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    unused: Option<Duration>,
    /// Those that were sent where others could read them
    #[arg(long)]
    exposed: bool,
}

/// Does what a line about keys says; what to end with.
pub(super) fn run(args: &Args, verb: &KeyVerb) -> u8 {
    match verb {
        KeyVerb::List(filter) => list(args, filter),
        KeyVerb::Export => export(args),
        KeyVerb::Import { file, check } => import(args, file, *check),
        verb => match verb.command() {
            Ok(command) => match ask(args, command) {
                Ok(reply) => say(super::show(args, &reply).as_bytes()),
                Err(code) => code,
            },
            Err(why) => complain(&why, REFUSED),
        },
    }
}

fn ask(args: &Args, command: KeyCommand) -> Result<Reply, u8> {
    answer(args, &Command::Key(command))
}

impl KeyVerb {
    /// What is asked first.
    pub(super) fn command(&self) -> io::Result<KeyCommand> {
        Ok(match self {
            Self::Create(create) => KeyCommand::Create(Box::new(create.key()?)),
            Self::List(_) => KeyCommand::List { after: None },
            Self::Show { id } => KeyCommand::Show { id: *id },
            Self::Rotate { id, grace, expires, given } => KeyCommand::Rotate {
                id: *id,
                grace_ms: grace.map(millis),
                life: expires.unwrap_or(Life::Default),
                secret: given.secret()?,
                signing: Box::new(given.signing()?),
            },
            Self::Revoke { id } => KeyCommand::Revoke { id: *id },
            Self::Remove { id } => KeyCommand::Remove { id: *id },
            Self::Export => KeyCommand::Export { after: None },
            Self::Import { check, .. } => KeyCommand::Import { lines: Vec::new(), check: *check },
        })
    }
}

impl Create {
    fn key(&self) -> io::Result<NewKey> {
        let secret = if self.secret { NewSecret::Random } else { self.given.secret()? };
        let signing = if self.signing { NewSigning::Derived } else { self.given.signing()? };
        Ok(NewKey {
            name: self.name.clone(),
            owner: self.owner.clone(),
            scopes: self.scopes.clone(),
            roles: self.roles.clone(),
            tier: self.tier.clone(),
            networks: self.allow_cidr.clone(),
            places: self.routes.clone(),
            life: self.expires.unwrap_or(Life::Default),
            secret,
            signing,
        })
    }
}

impl Given {
    fn secret(&self) -> io::Result<NewSecret> {
        let Some(path) = &self.secret_file else { return Ok(NewSecret::None) };
        let secret = Zeroizing::new(read(path)?);
        Ok(NewSecret::Chosen(secret.trim_end_matches(['\r', '\n']).into()))
    }

    fn signing(&self) -> io::Result<NewSigning> {
        let Some(path) = &self.public_key else { return Ok(NewSigning::None) };
        let key = PublicKey::from_pem(&read(path)?, self.algorithm);
        let named = |fault| io::Error::other(format!("{} {fault}", path.display()));
        Ok(NewSigning::Public(key.map_err(named)?))
    }
}

impl Filter {
    fn takes(&self, key: &KeyEntry, now_ms: u64) -> bool {
        let is_in_force = key.revoked_ms.is_none() && key.expires_ms.is_none_or(|end| end > now_ms);
        let ends_by = |within: &Duration| {
            key.expires_ms.is_some_and(|end| end - now_ms.min(end) <= millis(*within))
        };
        let seen_ms = key.used_ms.unwrap_or(key.created_ms);
        let is_idle = |time: &Duration| now_ms.saturating_sub(seen_ms) >= millis(*time);
        self.owner.as_ref().is_none_or(|owner| *owner == key.owner)
            && self.expiring.as_ref().is_none_or(|within| is_in_force && ends_by(within))
            && (!self.without_expiry || is_in_force && key.expires_ms.is_none())
            && self.unused.as_ref().is_none_or(|time| is_in_force && is_idle(time))
            && (!self.exposed || key.exposed.is_some())
    }
}

fn list(args: &Args, filter: &Filter) -> u8 {
    let (mut page, now_ms) = (KeyPage { entries: Vec::new(), total: 0 }, now_ms());
    let mut after = None;
    loop {
        let reply = ask(args, KeyCommand::List { after });
        let found = match reply {
            Ok(Reply::Keys(found)) => found,
            Ok(_) => return complain(&STRANGE, REFUSED),
            Err(code) => return code,
        };
        page.total = found.total;
        let Some(last) = found.entries.last() else { break };
        after = Some(last.id);
        page.entries.extend(found.entries.into_iter().filter(|key| filter.takes(key, now_ms)));
    }
    say(super::show(args, &Reply::Keys(page)).as_bytes())
}

fn export(args: &Args) -> u8 {
    let mut after = None;
    loop {
        let (lines, next) = match ask(args, KeyCommand::Export { after }) {
            Ok(Reply::Exported(lines, next)) => (lines, next),
            Ok(_) => return complain(&STRANGE, REFUSED),
            Err(code) => return code,
        };
        let text = lines.iter().fold(String::new(), |text, line| text + line + "\n");
        let said = say(text.as_bytes());
        if said != DONE || next.is_none() {
            return said;
        }
        after = next;
    }
}

/// Looks at all lines before any of them is taken.
fn import(args: &Args, file: &Path, check: bool) -> u8 {
    let text = match read(file) {
        Ok(text) => text,
        Err(fault) => return complain(&format_args!("{}: {fault}", file.display()), REFUSED),
    };
    let numbered: Vec<_> =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    let repeated = repeated(&numbered);
    if !repeated.is_empty() {
        for (line, what) in repeated.iter().take(REPEATED_MAX) {
            complain(&format_args!("{}:{line}: {what}", file.display()), REFUSED);
        }
        return REFUSED;
    }
    let mut all = Imported::default();
    for check in if check { &[true][..] } else { &[true, false] } {
        all = Imported::default();
        for lines in chunks(&numbered) {
            let command = KeyCommand::Import {
                lines: lines.iter().map(|(_, line)| (*line).to_owned()).collect(),
                check: *check,
            };
            let part = match ask(args, command) {
                Ok(Reply::Imported(part)) => part,
                Ok(_) => return complain(&STRANGE, REFUSED),
                Err(code) => return code,
            };
            all.added += part.added;
            all.known += part.known;
            all.wrong.extend(part.wrong.into_iter().map(|(n, what)| (lines[n].0 + 1, what)));
        }
        if !all.wrong.is_empty() {
            for (line, what) in &all.wrong {
                complain(&format_args!("{}:{line}: {what}", file.display()), REFUSED);
            }
            return REFUSED;
        }
    }
    if check {
        return say(format!("{} keys can be taken in\n", numbered.len()).as_bytes());
    }
    say(super::show(args, &Reply::Imported(all)).as_bytes())
}

/// Lines whose id or digest an earlier one has. The daemon sees a part of the lines at once, and could tell
/// of some only when it had taken others.
fn repeated(numbered: &[(usize, &str)]) -> Vec<(usize, String)> {
    /// What no two lines may share. What is no key at all, the daemon tells.
    #[derive(Deserialize)]
    struct Line {
        id: KeyId,
        digest: Digest,
    }
    let read = |(n, line): &(usize, &str)| {
        let Line { id, digest } = serde_json::from_str(line).ok()?;
        Some(((id, n + 1), (digest.0, n + 1)))
    };
    let (ids, digests): (Vec<_>, Vec<_>) = numbered.iter().filter_map(read).unzip();
    let ids = twice(ids).into_iter().map(|(id, first, line)| {
        (line, format!("the key {id} is there twice; first on line {first}"))
    });
    // Under two ids one key would be alive after the other was revoked.
    let digests = twice(digests)
        .into_iter()
        .map(|(_, first, line)| (line, format!("line {first} has this digest as well")));
    let mut all: Vec<_> = ids.chain(digests).collect();
    all.sort_unstable();
    all
}

/// What is there twice, and on which lines. Sorted in place: a million digests are 40 MB.
fn twice<T: Copy + Ord>(mut all: Vec<(T, usize)>) -> Vec<(T, usize, usize)> {
    all.sort_unstable();
    let pairs = all.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    pairs.map(|pair| (pair[1].0, pair[0].1, pair[1].1)).collect()
}

/// As many lines at once as a command holds.
fn chunks<'l, 't>(lines: &'l [(usize, &'t str)]) -> Vec<&'l [(usize, &'t str)]> {
    let (mut chunks, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (n, (_, line)) in lines.iter().enumerate() {
        // Quotes double when a line travels as a string.
        let length = 2 * line.len();
        if bytes + length > CHUNK_BYTES && n > start {
            chunks.push(&lines[start..n]);
            (start, bytes) = (n, 0);
        }
        bytes += length;
    }
    chunks.push(&lines[start..]);
    chunks
}

fn read(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(path)
}

pub(super) fn life(text: &str) -> Result<Life, String> {
    if text == "never" { Ok(Life::Forever) } else { duration(text).map(|d| Life::Ms(millis(d))) }
}

/// Bytes of the lines in one command; the command holds some more.
const CHUNK_BYTES: usize = 1 << 20;

/// Lines that are there twice and told.
const REPEATED_MAX: usize = 20;

const STRANGE: &str = "the daemon's answer makes no sense here";
