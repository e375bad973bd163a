//! The configuration file: read as written, checked whole, handed on as plain data.
//!
//! Reading never stops at the first mistake: whoever repairs a file wants to know them all.

mod access;
mod answers;
mod certificate;
mod crowdsec;
mod feed;
mod files;
mod fleet;
mod geo;
mod identity;
mod issuer;
mod kept;
mod kernel;
mod limit;
pub mod lists;
mod login;
mod mistake;
mod offer;
pub mod policy;
mod reach;
mod reader;
mod route;
mod scenario;
mod sections;
pub mod settings;
pub mod signature;
mod signing;
pub mod text;
mod tls;
mod upstream;
mod value;
mod webhook;
mod whole;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use fleet::host_name;
pub use kept::{keep, kept_as};
use mistake::Source;
pub use mistake::{Mistake, Mistakes, Warnings};
pub use reach::reach;
use reader::{Notes, Table};
pub use settings::Settings;
use toml::de::DeTable;

use crate::regular;

/// The largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads and checks the configuration at `path` and the files it names.
///
/// Relative paths in it are taken from the folder that holds the file.
///
/// # Errors
/// Every mistake that was found, in the order of the file.
pub fn load(path: &Path) -> Result<(Settings, Warnings), Mistakes> {
    load_after(path, None)
}

/// As [`load`], where a list file that is missing or nearly empty now, but is in `former`, stays as
/// it was there.
///
/// # Errors
/// As [`load`].
pub fn reload(path: &Path, former: &Settings) -> Result<(Settings, Warnings), Mistakes> {
    load_after(path, Some(former))
}

fn load_after(path: &Path, former: Option<&Settings>) -> Result<(Settings, Warnings), Mistakes> {
    read(path, &text_of(path)?, |settings, document, notes| {
        let base = path.parent().unwrap_or(Path::new(""));
        files::resolve(settings, base);
        files::inspect(settings, former, base, document, notes);
        tls::inspect(settings, document, notes);
        geo::inspect(settings, document, notes);
    })
}

/// The text of the file.
fn text_of(path: &Path) -> Result<String, Mistakes> {
    regular::text(path, FILE_BYTES_MAX).map_err(|fault| {
        Mistakes(vec![Mistake::of_file(
            path.to_owned(),
            format!("cannot read the configuration: {fault}"),
            "name another file with --config".to_owned(),
        )])
    })
}

/// Reads the configuration at `path` without looking at the files it names.
///
/// # Errors
/// Every mistake in the file itself.
pub fn outline(path: &Path) -> Result<(Settings, Warnings), Mistakes> {
    let base = path.parent().unwrap_or(Path::new(""));
    read(path, &text_of(path)?, |settings, _, _| files::resolve(settings, base))
}

/// Checks a configuration's text alone; the files it names are neither read nor missed.
///
/// # Errors
/// Every mistake that was found, in the order of the file.
pub fn parse(path: &Path, text: &str) -> Result<(Settings, Warnings), Mistakes> {
    read(path, text, |_, _, _| ())
}

fn read(
    path: &Path,
    text: &str,
    outside: impl FnOnce(&mut Settings, &DeTable<'_>, &Notes<'_>),
) -> Result<(Settings, Warnings), Mistakes> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let document = document.get_ref();
    let notes = Notes::new(Source::new(path, text), &syntax);
    let mut settings = Table::document(document, &notes, settings);
    outside(&mut settings, document, &notes);
    whole::check(&settings, document, &notes);
    let (mistakes, warnings) = notes.into_parts();
    if mistakes.is_empty() { Ok((settings, Warnings(warnings))) } else { Err(Mistakes(mistakes)) }
}

fn settings(document: &Table<'_>) -> Settings {
    let upstreams = document.tables("upstream", upstream::upstream);
    let (limits, handshakes, shared) = limit::limits(document);
    let policies = document.tables("policy", policy::policy);
    let server = document.table("server", sections::server);
    let usual = &server.security_headers;
    let mut routes =
        document.tables("route", |table| route::route(table, &upstreams, &policies, usual));
    number(&mut routes);
    let kernel = document.table("kernel", kernel::kernel);
    let client = kernel.client;
    Settings {
        kernel,
        lists: document.table("lists", sections::lists),
        feeds: document.tables("feed", feed::feed),
        crowdsec: document.table("crowdsec", crowdsec::crowdsec),
        fleet: document.table("fleet", |table| fleet::fleet(table, client)),
        webhooks: document.tables("webhook", webhook::webhook),
        geo: document.table("geo", geo::geo),
        server,
        tls: document.table("tls", tls::tls),
        bounds: document.table("bounds", sections::bounds),
        limits,
        handshakes,
        shared,
        keys: document.table("keys", sections::keys),
        issuers: document.tables("issuer", issuer::issuer),
        tokens: document.table("tokens", issuer::tokens),
        signing: document.table("signing", signing::signing),
        routes,
        upstreams,
        resolved: Vec::new(),
        upstream_identity: document.table("upstream_identity", identity::upstream_identity),
        client_certificates: document.tables("client_certificate", certificate::mapping),
        policies,
        roles: document.tables("role", access::role),
        verdicts: scenario::verdicts(document),
        audit: document.table("audit", sections::audit),
        state: document.table("state", sections::state),
        control: document.table("control", sections::control),
        metrics: document.table("metrics", sections::metrics),
        log: document.table("log", sections::log),
    }
}

/// Tells each route's sets of policies which route it is.
fn number(routes: &mut [settings::Route]) {
    for (n, route) in routes.iter_mut().enumerate() {
        for slice in route.needs.iter_mut().flat_map(|needs| &mut needs.policies) {
            slice.route = n;
        }
    }
}
