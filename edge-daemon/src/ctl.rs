//! `edgectl`: what an operator types, turned into one command, and the reply into words.

mod args;
mod authz;
mod bans;
mod feeds;
mod keys;
mod overview;
pub(crate) mod print;
mod replay;
mod session;
mod sign;
mod tokens;
mod top;
mod watch;

use std::{
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
    process::ExitCode,
};

pub use args::Args;
use args::{Act, AuditVerb, SignatureVerb, Verb};
use clap::{CommandFactory as _, Parser as _};

use crate::{
    audit,
    control::{Command, Reply, client},
    kernel,
};

/// The daemon did what was asked.
pub const DONE: u8 = 0;
/// The daemon refused, or the caller may not ask.
pub const REFUSED: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// No daemon answered.
pub const NO_DAEMON: u8 = 3;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    match Args::try_parse() {
        Ok(args) => ExitCode::from(run(&args)),
        Err(told) => {
            // Help and version are answers, and go to standard output.
            let code = if told.use_stderr() { USAGE } else { DONE };
            let _ = told.print();
            ExitCode::from(code)
        }
    }
}

fn run(args: &Args) -> u8 {
    let command = match args.verb.act(session::peer) {
        Act::Ask(command) => command,
        Act::Overview => return overview::run(args),
        Act::Key(verb) => return keys::run(args, &verb),
        Act::Audit(verb) => return verify(args, &verb),
        Act::Detach(pin_dir) => return detach(&pin_dir, args.json),
        Act::Decisions => return watch::run(args),
        Act::Replay(asked) => return replay::run(args, asked),
        Act::Watch { command, once } => return top::watch(args, &command, once),
        Act::Sign(sign) => return say_or_complain(sign.print()),
        Act::Complete(shell) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "edgectl", &mut text);
            return say(&text);
        }
    };
    match answer(args, &command) {
        Ok(reply) => say(show(args, &reply).as_bytes()),
        Err(code) => code,
    }
}

/// The daemon's answer, or what to end with after having said why there is none.
fn answer(args: &Args, command: &Command) -> Result<Reply, u8> {
    match ask(args, command) {
        Ok(Reply::Refused(why)) => Err(complain(&why, REFUSED)),
        // What was made is shown this once, whatever the log says of it.
        Ok(Reply::Unaudited(reply)) => {
            say(show(args, &reply).as_bytes());
            Err(complain(&UNAUDITED, REFUSED))
        }
        Ok(reply) => Ok(reply),
        Err(fault @ client::Fault::NotPermitted(_)) => Err(complain(&fault, REFUSED)),
        Err(fault) => Err(complain(&fault, NO_DAEMON)),
    }
}

/// Takes the filter away. No daemon is asked: one that hangs must not be in the way.
fn detach(pin_dir: &Path, json: bool) -> u8 {
    match kernel::detach(pin_dir) {
        Ok(detached) => say(print::detached(&detached, pin_dir, json).as_bytes()),
        Err(error) => complain(&format_args!("{:#}", anyhow::Error::from(error)), REFUSED),
    }
}

/// Says what was made without a daemon, or why it was not.
fn say_or_complain(made: anyhow::Result<String>) -> u8 {
    match made {
        Ok(text) => say(text.as_bytes()),
        Err(error) => complain(&format_args!("{error:#}"), REFUSED),
    }
}

/// Checks the audit log. No daemon is asked: what it says of its own log proves little.
fn verify(args: &Args, AuditVerb::Verify { dir, file, key }: &AuditVerb) -> u8 {
    match audit::verify::verify(file.as_ref().unwrap_or(dir), key) {
        Ok(verdict) => {
            let said = say(print::verified(&verdict, args.json).as_bytes());
            if verdict.is_ok() { said } else { REFUSED }
        }
        Err(error) => complain(&format_args!("{error:#}"), REFUSED),
    }
}

/// Asks once; for a list, until all of its pages are there.
fn ask(args: &Args, command: &Command) -> Result<Reply, client::Fault> {
    let mut reply = client::ask(&args.socket, command)?;
    if let (Command::ListShow { list, .. }, Reply::List(all)) = (command, &mut reply) {
        while (all.entries.len() as u64) < all.total {
            let next = Command::ListShow { list: *list, from: all.entries.len() as u64 };
            match client::ask(&args.socket, &next)? {
                Reply::List(page) if !page.entries.is_empty() => all.entries.extend(page.entries),
                // It has become shorter meanwhile.
                _ => break,
            }
        }
    }
    Ok(reply)
}

const UNAUDITED: &str = "it is done, but the audit log cannot be written and does not tell of it";

fn show(args: &Args, reply: &Reply) -> String {
    if args.json { print::json(reply) } else { print::text(reply, now_ms()) }
}

/// Writes the answer; a reader that went away early (`| head`) has seen what it wanted.
fn say(text: &[u8]) -> u8 {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(fault) if fault.kind() != io::ErrorKind::BrokenPipe => complain(&fault, REFUSED),
        _ => DONE,
    }
}

fn complain(what: &dyn std::fmt::Display, code: u8) -> u8 {
    // Nothing is left to be done if even this cannot be written.
    let _ = writeln!(io::stderr(), "edgectl: {what}");
    code
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Verb {
    /// What this verb asks of the daemon, or does by itself.
    fn act(&self, ssh_peer: impl FnOnce() -> Option<IpAddr>) -> Act<'_> {
        let command = match self {
            Self::Completions { shell } => return Act::Complete(*shell),
            Self::Audit(verb) => return Act::Audit(verb.clone()),
            Self::Detach { pin_dir } => return Act::Detach(pin_dir.clone()),
            Self::Status => Command::Status,
            Self::Allow(verb) => verb.command(crate::control::ListName::Allow, ssh_peer),
            Self::Deny(verb) => verb.command(crate::control::ListName::Deny, ssh_peer),
            Self::Ban(verb) => verb.command(ssh_peer),
            Self::Signature(SignatureVerb::List) => Command::SignatureList,
            Self::Explain(packet) => packet.command(),
            Self::Top(top) => {
                let command = Command::Top { sort: top.sort, limit: top.number.into() };
                return Act::Watch { command, once: top.once };
            }
            Self::Watch => return Act::Decisions,
            Self::Replay(replay) => return Act::Replay(replay),
            Self::Feed(verb) => Command::Feed(verb.command()),
            Self::Overview => return Act::Overview,
            Self::Key(verb) => return Act::Key(Box::new(verb.clone())),
            Self::Sign(sign) => return Act::Sign(sign),
            Self::Token(verb) => Command::Token(verb.command()),
            Self::Upstream(verb) => verb.command(),
            Self::Authz(verb) => verb.command(),
            Self::Reload => Command::Reload,
        };
        Act::Ask(command)
    }
}
