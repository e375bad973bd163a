//! The command line of `edgectl`.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use edge_policy::probe::tcp_flags;
use ipnet::IpNet;

use super::{
    authz::AuthzVerb, bans::BanVerb, feeds::FeedVerb, keys::KeyVerb, replay::Replay, sign::Sign,
    tokens::TokenVerb,
};
use crate::{
    config::text,
    control::{
        Command, ListName,
        packets::{Probe, Protocol, Sort, TALKERS_MAX},
        servers::ServerCommand,
    },
    secret::Origin,
};

/// Exit codes, for `--help`.
const EXIT_CODES: &str = "Exit codes:\n  0  done\n  1  refused by the daemon\n  2  the command line makes no sense\n  3  no daemon answered";

/// Controls edged, the edge-protection daemon
#[derive(Debug, Parser)]
#[command(name = "edgectl", version, after_help = EXIT_CODES, subcommand_required = true)]
pub struct Args {
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/edged/control.sock")]
    pub socket: PathBuf,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show how the daemon is doing
    Status,
    /// Show what is in force: listeners, routes and what they ask, issuers, keys, limits, lists
    Overview,
    /// Networks that are never dropped
    #[command(subcommand)]
    Allow(ListVerb),
    /// Networks that are dropped
    #[command(subcommand)]
    Deny(ListVerb),
    /// Clients that are dropped for abuse
    #[command(subcommand)]
    Ban(BanVerb),
    /// Rules by what a packet looks like
    #[command(subcommand)]
    Signature(SignatureVerb),
    /// Tell what would happen to a packet, by default a TCP SYN to the first HTTPS listener, and why
    Explain(Explain),
    /// Show decisions as they are made: bans, penalties, their ends, alarms; with --json one object a line
    Watch,
    /// Tell whom scenarios would have judged, by a recorded event log; no daemon is asked
    Replay(Replay),
    /// Show who sends most, again every second
    Top(Top),
    /// Other people's lists
    #[command(subcommand)]
    Feed(FeedVerb),
    /// API keys
    #[command(subcommand)]
    Key(KeyVerb),
    /// Tokens of issuers that are refused although they are good
    #[command(subcommand)]
    Token(TokenVerb),
    /// The servers behind the edge
    #[command(subcommand)]
    Upstream(UpstreamVerb),
    /// Permissions
    #[command(subcommand)]
    Authz(AuthzVerb),
    /// Sign a request as its client would, and print the curl line that sends it
    Sign(Box<Sign>),
    /// The log of who tried what
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Read the configuration again; a bad one is refused and changes nothing
    Reload,
    /// Take the packet filter off its interfaces and forget its tables
    ///
    /// Done by this program itself, as root, whether a daemon runs or not. One that runs serves on,
    /// unfiltered, until it is started again.
    Detach {
        /// Where the filter is pinned: `kernel.pin_dir`
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/edged")]
        pin_dir: PathBuf,
    },
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
}

/// What to ask about.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// The address that it comes from
    #[arg(value_name = "IP", required_unless_present = "frame", conflicts_with = "frame")]
    address: Option<IpAddr>,
    /// Its protocol [default: tcp]
    #[arg(long)]
    protocol: Option<Protocol>,
    /// Its destination address [default: that of an HTTPS listener, else one of the interface]
    #[arg(long, value_name = "IP")]
    destination: Option<IpAddr>,
    /// Its destination port [default: that of the first HTTPS listener]
    #[arg(long)]
    port: Option<u16>,
    /// Its source port [default: 40000]
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// Its TCP flags: syn,ack; or none [default: syn]
    #[arg(long, value_name = "FLAGS", value_parser = tcp_flags)]
    flags: Option<u8>,
    /// Bytes of the whole frame, from the Ethernet header on [default: its headers]
    #[arg(long, value_name = "BYTES")]
    length: Option<u32>,
    /// The whole frame instead, from the Ethernet header on, in hexadecimal
    #[arg(long, value_name = "HEX", conflicts_with_all = ["protocol", "destination", "port",
        "source_port", "flags", "length"])]
    frame: Option<String>,
    /// The interface that it comes in by [default: the first that is guarded]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

/// How to show who sends most.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// Show it once
    #[arg(long)]
    pub(super) once: bool,
    /// By what to sort
    #[arg(long, value_enum, default_value_t = Sort::Cost)]
    pub(super) sort: Sort,
    /// How many to show
    #[arg(short = 'n', value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u16).range(1..=TALKERS_MAX as i64))]
    pub(super) number: u16,
}

impl Explain {
    pub(super) fn command(&self) -> Command {
        Command::Explain {
            address: self.address.map(|address| address.to_canonical()),
            packet: Box::new(Probe {
                frame: self.frame.clone(),
                interface: self.interface.clone(),
                protocol: self.protocol,
                destination: self.destination,
                port: self.port,
                source_port: self.source_port,
                flags: self.flags,
                length: self.length,
            }),
        }
    }
}

/// What to do with a list.
#[derive(Debug, Subcommand)]
pub enum ListVerb {
    /// Add a network; one that is there already is replaced
    Add {
        /// An address or a network
        #[arg(value_name = "CIDR", value_parser = net)]
        net: IpNet,
        /// Remove it again after this time: 10m, 24h, 90d
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        /// Why, for whoever reads the list
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Only count its packets as if they were dropped
        #[arg(long)]
        monitor: bool,
        /// Deny it even if that locks out your SSH session, the gateway or an upstream; allow it even
        /// if it is wider than any network that was given out
        #[arg(long)]
        force: bool,
    },
    /// Remove a network that was added here
    Remove {
        /// The address or network, as it was added
        #[arg(value_name = "CIDR", value_parser = net)]
        net: IpNet,
    },
    /// Show the entries, those of the configuration included
    List,
}

/// What to do with signatures.
#[derive(Debug, Subcommand)]
pub enum SignatureVerb {
    /// Show the signatures in force, and how many packets matched each
    List,
}

/// What to do with servers.
#[derive(Debug, Subcommand)]
pub enum UpstreamVerb {
    /// Show every server of every upstream: how it stands and how it fared
    List,
    /// Take a server out of the round: it gets no new request
    Drain {
        /// The name of its upstream
        upstream: String,
        /// The server, as `list` shows it
        server: String,
    },
    /// Put a server back
    Enable {
        /// The name of its upstream
        upstream: String,
        /// The server, as `list` shows it
        server: String,
    },
}

impl UpstreamVerb {
    pub(super) fn command(&self) -> Command {
        let drain = |upstream: &String, server: &String, drained| ServerCommand::Drain {
            upstream: upstream.clone(),
            server: server.clone(),
            drained,
        };
        let what = match self {
            Self::List => ServerCommand::List,
            Self::Drain { upstream, server } => drain(upstream, server, true),
            Self::Enable { upstream, server } => drain(upstream, server, false),
        };
        Command::Servers { what }
    }
}

/// What to do with the audit log.
#[derive(Clone, Debug, Subcommand)]
pub enum AuditVerb {
    /// Tell whether it is as it was written, and else the first line that is not
    ///
    /// Done by this program itself; no daemon is asked, and one that writes meanwhile is no hindrance.
    Verify {
        /// The folder of its files: `audit.dir`
        #[arg(long, value_name = "DIR", default_value = "/var/lib/edged/audit")]
        dir: PathBuf,
        /// One file instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// What seals its lines: `audit.key`
        #[arg(long, value_name = "SECRET", default_value = "file:/var/lib/edged/audit.key")]
        key: Origin,
    },
}

/// What a command line comes to.
pub(super) enum Act<'a> {
    /// To ask the daemon.
    Ask(Command),
    /// To ask the daemon what is in force.
    Overview,
    /// To ask the daemon about keys.
    Key(Box<KeyVerb>),
    /// To look at the audit log.
    Audit(AuditVerb),
    /// To replay a log.
    Replay(&'a Replay),
    /// To show decisions as they are made.
    Decisions,
    /// To take the filter away.
    Detach(PathBuf),
    /// To ask the daemon again and again.
    Watch {
        /// What.
        command: Command,
        /// Whether once will do.
        once: bool,
    },
    /// To sign a request.
    Sign(&'a Sign),
    /// To print a completion script.
    Complete(Shell),
}

impl ListVerb {
    pub(super) fn command(
        &self,
        list: ListName,
        ssh_peer: impl FnOnce() -> Option<IpAddr>,
    ) -> Command {
        match self {
            Self::Add { net, ttl, reason, monitor, force } => Command::ListAdd {
                list,
                net: *net,
                ttl_ms: ttl.map(millis),
                reason: reason.clone(),
                monitor: *monitor,
                force: *force,
                ssh_peer: ssh_peer(),
            },
            Self::Remove { net } => Command::ListRemove { list, net: *net },
            Self::List => Command::ListShow { list, from: 0 },
        }
    }
}

/// A network without stray host bits: whoever typed them may have meant another one.
pub(super) fn net(text: &str) -> Result<IpNet, String> {
    match text::net(text)? {
        (net, false) => Ok(net),
        (net, true) => Err(format!("it has bits beyond its prefix; the network is {net}")),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    text::duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("more than nothing".to_owned()),
        duration => Ok(duration),
    })
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::control::keys::{KeyCommand, Life, NewKey, NewSecret, NewSigning};
    use crate::control::tokens::TokenCommand;
    use edge_identity::jwt::denylist::Target;
    use edge_policy::verdict::Culprit;

    fn command(line: &str) -> Command {
        let args = Args::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        match args.verb.act(|| Some("198.51.100.7".parse().unwrap())) {
            Act::Ask(command) | Act::Watch { command, .. } => command,
            Act::Key(verb) => Command::Key(verb.command().unwrap()),
            Act::Decisions
            | Act::Overview
            | Act::Replay(_)
            | Act::Detach(_)
            | Act::Sign(_)
            | Act::Complete(_)
            | Act::Audit(_) => {
                panic!("{line}: no command")
            }
        }
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_manual_names_every_verb_and_option() {
        const MANUAL: &str = include_str!("../../../docs/edgectl.md");
        let top = Args::command();
        for verb in top.get_subcommands() {
            assert!(MANUAL.contains(&format!("edgectl {}", verb.get_name())), "{verb}");
            for option in verb.get_opts().filter_map(clap::Arg::get_long) {
                assert!(MANUAL.contains(&format!("--{option}")), "{verb} --{option}");
            }
            for inner in verb.get_subcommands() {
                let line = format!("edgectl {} {}", verb.get_name(), inner.get_name());
                // The two lists share their examples.
                let shared = line.replace("allow", "deny");
                assert!(MANUAL.contains(&line) || MANUAL.contains(&shared), "{line}");
                for option in inner.get_opts().filter_map(clap::Arg::get_long) {
                    assert!(MANUAL.contains(&format!("--{option}")), "{line} --{option}");
                }
            }
        }
    }

    #[test]
    fn each_line_is_one_command() {
        let net: IpNet = "192.0.2.0/24".parse().unwrap();
        let address: IpAddr = "2001:db8::1".parse().unwrap();
        let host: IpNet = "192.0.2.7/32".parse().unwrap();
        let (allow, deny) = (ListName::Allow, ListName::Deny);
        let add = |list, net, ttl_ms, reason: Option<&str>, force| Command::ListAdd {
            list,
            net,
            ttl_ms,
            reason: reason.map(str::to_owned),
            monitor: false,
            force,
            ssh_peer: Some("198.51.100.7".parse().unwrap()),
        };
        let plain = NewKey {
            name: "ci".to_owned(),
            owner: String::new(),
            scopes: Vec::new(),
            roles: Vec::new(),
            tier: None,
            networks: Vec::new(),
            places: Vec::new(),
            life: Life::Default,
            secret: NewSecret::None,
            signing: NewSigning::None,
        };
        let key = |command| Command::Key(command);
        let create = |new| key(KeyCommand::Create(Box::new(new)));
        let id = "0a1b2c3d4e5f".parse().unwrap();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let explain = |address: Option<IpAddr>, packet| Command::Explain {
            address,
            packet: Box::new(packet),
        };
        let udp = Probe {
            protocol: Some(Protocol::Udp),
            destination: Some("192.0.2.1".parse().unwrap()),
            port: Some(53),
            source_port: Some(5353),
            length: Some(512),
            interface: Some("eth0".to_owned()),
            ..Probe::default()
        };
        let frame = Probe { frame: Some("0200".to_owned()), ..Probe::default() };
        let token = |target, life_ms| {
            let issuer = "main".to_owned();
            Command::Token(TokenCommand::Revoke { target, issuer, life_ms })
        };
        let table = [
            ("edgectl top", Command::Top { sort: Sort::Cost, limit: 10 }),
            ("edgectl top --once --json", Command::Top { sort: Sort::Cost, limit: 10 }),
            ("edgectl top -n 3 --sort drops", Command::Top { sort: Sort::Drops, limit: 3 }),
            (
                "edgectl explain 2001:db8::1 --flags syn,ack",
                explain(Some(address), Probe { flags: Some(18), ..Probe::default() }),
            ),
            (
                "edgectl explain 192.0.2.7 --protocol udp --port 53 --source-port 5353 --length 512 \
                 --interface eth0 --destination 192.0.2.1",
                explain(Some(host.addr()), udp),
            ),
            ("edgectl explain --frame 0200", explain(None, frame)),
            ("edgectl status", Command::Status),
            ("edgectl --json status", Command::Status),
            ("edgectl status --json --socket /x", Command::Status),
            ("edgectl deny add 192.0.2.0/24", add(deny, net, None, None, false)),
            (
                "edgectl deny add 192.0.2.7 --ttl 10m --reason noise --force",
                add(deny, host, Some(600_000), Some("noise"), true),
            ),
            (
                "edgectl allow add 192.0.2.0/24 --ttl 90d",
                add(allow, net, Some(7_776_000_000), None, false),
            ),
            ("edgectl allow remove 192.0.2.0/24", Command::ListRemove { list: allow, net }),
            ("edgectl deny remove 192.0.2.0/24", Command::ListRemove { list: deny, net }),
            ("edgectl deny list", Command::ListShow { list: deny, from: 0 }),
            ("edgectl ban list", Command::BanList),
            (
                "edgectl ban remove 2001:db8::1",
                Command::BanRemove { culprit: Culprit::Source(address.into()), reason: None },
            ),
            (
                "edgectl ban remove 2001:db8::1 --reason jail",
                Command::BanRemove {
                    culprit: Culprit::Source(address.into()),
                    reason: Some("jail".to_owned()),
                },
            ),
            ("edgectl explain 2001:db8::1", explain(Some(address), Probe::default())),
            ("edgectl key create --name ci", create(plain.clone())),
            (
                "edgectl key create --name ci --scopes a,b --scope c --expires never --secret",
                create(NewKey {
                    scopes: words(&["a", "b", "c"]),
                    life: Life::Forever,
                    secret: NewSecret::Random,
                    ..plain.clone()
                }),
            ),
            (
                "edgectl key create --name ci --owner team --roles r --tier gold --expires 1h \
                 --allow-cidr 192.0.2.0/24,2001:db8::1 --routes /v1,a.test/v2",
                create(NewKey {
                    owner: "team".into(),
                    roles: words(&["r"]),
                    tier: Some("gold".into()),
                    networks: vec![net, "2001:db8::1/128".parse().unwrap()],
                    places: vec!["/v1".parse().unwrap(), "a.test/v2".parse().unwrap()],
                    life: Life::Ms(3_600_000),
                    ..plain.clone()
                }),
            ),
            ("edgectl key list --unused 90d", key(KeyCommand::List { after: None })),
            ("edgectl key show 0a1b2c3d4e5f", key(KeyCommand::Show { id })),
            (
                "edgectl key rotate 0a1b2c3d4e5f --grace 2s",
                key(KeyCommand::Rotate {
                    id,
                    grace_ms: Some(2000),
                    life: Life::Default,
                    secret: NewSecret::None,
                    signing: Box::default(),
                }),
            ),
            ("edgectl key revoke 0a1b2c3d4e5f", key(KeyCommand::Revoke { id })),
            ("edgectl key remove 0a1b2c3d4e5f", key(KeyCommand::Remove { id })),
            ("edgectl key export", key(KeyCommand::Export { after: None })),
            (
                "edgectl key import keys.jsonl --check",
                key(KeyCommand::Import { lines: Vec::new(), check: true }),
            ),
            ("edgectl token revoke --jti a --issuer main", token(Target::Jti("a".into()), None)),
            (
                "edgectl token revoke --kid k --issuer main --until 1h",
                token(Target::Kid("k".into()), Some(3_600_000)),
            ),
            (
                "edgectl token remove --sub alice --issuer https://id.example",
                Command::Token(TokenCommand::Remove {
                    target: Target::Sub("alice".into()),
                    issuer: "https://id.example".into(),
                }),
            ),
            ("edgectl token list", Command::Token(TokenCommand::List)),
            ("edgectl token keys", Command::Token(TokenCommand::Keys)),
            ("edgectl reload", Command::Reload),
        ];
        for (line, wanted) in table {
            assert_eq!(command(line), wanted, "{line}");
        }
    }

    #[test]
    fn senseless_lines_are_refused() {
        for line in [
            "edgectl",
            "edgectl frobnicate",
            "edgectl deny",
            "edgectl deny add",
            "edgectl deny add eth0",
            "edgectl deny add 192.0.2.1/24",
            "edgectl deny add 192.0.2.0/24 --ttl 10",
            "edgectl deny add 192.0.2.0/24 --ttl 0s",
            "edgectl deny remove 192.0.2.0/33",
            "edgectl ban remove 192.0.2.0/24",
            "edgectl explain example.com",
            "edgectl explain",
            "edgectl explain 192.0.2.1 --frame 02",
            "edgectl explain --frame 02 --port 3",
            "edgectl explain 192.0.2.1 --flags sin",
            "edgectl explain 192.0.2.1 --protocol sctp",
            "edgectl top -n 0",
            "edgectl top -n 257",
            "edgectl top --sort name",
            "edgectl key create",
            "edgectl key create --name ci --expires soon",
            "edgectl key create --name ci --allow-cidr 192.0.2.1/24",
            "edgectl key create --name ci --routes v1",
            "edgectl key create --name ci --secret --secret-file f",
            "edgectl key revoke 0a1b",
            "edgectl token revoke --issuer main",
            "edgectl token revoke --jti a",
            "edgectl token revoke --jti a --sub b --issuer main",
            "edgectl completions tcsh2",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
