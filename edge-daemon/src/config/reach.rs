//! Whether the servers behind the edge can be reached, for whoever checks a configuration.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs as _},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use toml::de::DeTable;

use super::{
    FILE_BYTES_MAX, Warnings,
    mistake::Source,
    reader::Notes,
    settings::{Address, Settings},
    whole::place_of_server,
};
use crate::regular;

/// Tries every server once, all at a time; a doubt for each that cannot be reached.
#[must_use]
pub fn reach(path: &Path, settings: &Settings) -> Warnings {
    let Ok(text) = regular::text(path, FILE_BYTES_MAX) else { return Warnings::default() };
    let (document, syntax) = DeTable::parse_recoverable(&text);
    let notes = Notes::new(Source::new(path, &text), &syntax);
    thread::scope(|scope| {
        let servers = settings.upstreams.iter().enumerate().flat_map(|(n, upstream)| {
            upstream.servers.iter().enumerate().map(move |(m, server)| (n, m, upstream, server))
        });
        let tried: Vec<_> = servers
            .map(|(n, m, upstream, server)| {
                let wait = upstream.connect_timeout.min(WAIT_MAX);
                let tried = scope.spawn(move || connect(&server.address, wait));
                (n, m, &server.address, tried)
            })
            .collect();
        for (n, m, address, tried) in tried {
            if let Ok(Err(fault)) = tried.join() {
                let what = format!("cannot reach {address} now: {fault}");
                notes.doubt(place_of_server(document.get_ref(), n, m), what, "is it running?");
            }
        }
    });
    Warnings(notes.into_parts().1)
}

fn connect(address: &Address, wait: Duration) -> io::Result<()> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).map(drop),
        Address::Ip(address) => TcpStream::connect_timeout(address, wait).map(drop),
        Address::Name(name, port) => {
            let mut last = io::Error::other("the name has no address");
            for address in (name.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, wait) {
                    Ok(_) => return Ok(()),
                    Err(fault) => last = fault,
                }
            }
            Err(last)
        }
    }
}

/// How long a check of the configuration waits for a server.
const WAIT_MAX: Duration = Duration::from_secs(2);
