//! The command line of `edgectl authz`.

use std::net::{IpAddr, Ipv4Addr};

use clap::Subcommand;

use crate::control::{
    Command,
    access::{Handshake, Question},
};

/// What to ask about permissions.
#[derive(Debug, Subcommand)]
pub enum AuthzVerb {
    /// Tell whether somebody may send a request, and by which rule
    Explain(Box<Explain>),
}

/// Who wants to do what.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// The request's method
    method: String,
    /// Its path, with its query if there is one
    path: String,
    /// Who it is: key:ID, sub:ISSUER:SUBJECT or cert:ID; a key's id alone will do [default: nobody]
    #[arg(long = "as", value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// What people call it
    #[arg(long, requires = "principal")]
    name: Option<String>,
    /// Its plan
    #[arg(long, requires = "principal")]
    tier: Option<String>,
    /// Scopes that it holds
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', requires = "principal")]
    scopes: Vec<String>,
    /// Roles that it is
    #[arg(long, value_name = "ROLES", value_delimiter = ',', requires = "principal")]
    roles: Vec<String>,
    /// What its issuer says of it, in JSON or as text; may be given several times
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim, requires = "principal")]
    claims: Vec<(String, String)>,
    /// The host that the request is for
    #[arg(long, default_value = "localhost")]
    host: String,
    /// Where it comes from
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    from: IpAddr,
    /// A header field that it has: "NAME: VALUE"; may be given several times
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The version of its TLS
    #[arg(long = "tls", value_name = "VERSION", default_value = "TLSv1.3", value_parser = ["TLSv1.3", "TLSv1.2"])]
    version: String,
    /// The name that its handshake asks for [default: the host, if that is a name]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// The JA4 fingerprint of its TLS library
    #[arg(long)]
    ja4: Option<String>,
}

impl AuthzVerb {
    pub(super) fn command(&self) -> Command {
        let Self::Explain(asked) = self;
        let host = asked.host.to_ascii_lowercase();
        let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let by_host = || (!is_address).then(|| host.clone());
        Command::AuthzExplain(Box::new(Question {
            principal: asked.principal.clone(),
            name: asked.name.clone(),
            tier: asked.tier.clone(),
            scopes: asked.scopes.clone(),
            roles: asked.roles.clone(),
            claims: asked.claims.clone(),
            method: asked.method.clone(),
            target: asked.path.clone(),
            tls: Handshake {
                version: asked.version.clone(),
                server_name: asked.server_name.clone().or_else(by_host),
                ja4: asked.ja4.clone(),
            },
            host,
            headers: asked.headers.clone(),
            address: asked.from.to_canonical(),
            at_ms: None,
        }))
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a name, a colon and a value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn claim(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a name, '=' and a value")?;
    Ok((name.to_owned(), value.to_owned()))
}
