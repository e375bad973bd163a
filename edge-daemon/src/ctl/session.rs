//! The caller's own SSH session, which no command of his is to cut off.

use std::{fs, iter, net::IpAddr, process};

/// Where it comes from, if there is one. `sudo` hands its variables to nobody, but the shell that it was called
/// from has them.
pub(super) fn peer() -> Option<IpAddr> {
    let all = iter::successors(Some(process::id()), |pid| {
        parse_parent(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    });
    let mut all = all.take(ANCESTORS_MAX);
    all.find_map(|pid| parse_environment(&fs::read(format!("/proc/{pid}/environ")).ok()?))
}

fn parse_parent(status: &str) -> Option<u32> {
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Both variables begin with the client's address; IPv6 may carry a zone.
fn parse_environment(environment: &[u8]) -> Option<IpAddr> {
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let (name, value) = str::from_utf8(variable).ok()?.split_once('=')?;
        let address = value.split_whitespace().next().filter(|_| VARIABLES.contains(&name))?;
        let address = address.split('%').next()?;
        address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
    })
}

const VARIABLES: [&str; 2] = ["SSH_CONNECTION", "SSH_CLIENT"];
/// So that a table of processes that changes meanwhile is no way without an end.
const ANCESTORS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_the_first_word() {
        let told = |text: &str| parse_environment(text.as_bytes()).map(|peer| peer.to_string());
        let whole = "A=1\0SSH_CONNECTION=198.51.100.7 50000 192.0.2.1 22\0TERM=x\0";
        assert_eq!(told(whole).as_deref(), Some("198.51.100.7"));
        assert_eq!(told("SSH_CLIENT=fe80::1%eth0 50000 22").as_deref(), Some("fe80::1"));
        assert_eq!(told("SSH_CLIENT=::ffff:192.0.2.1 1 22").as_deref(), Some("192.0.2.1"));
        let none = ["", "SSH_CONNECTION=", "SSH_CLIENT=nobody 1 2", "XSSH_CLIENT=192.0.2.1 1 2"];
        assert_eq!(none.map(told), [const { None }; 4]);
        let latin = b"NAME=\xfc\0SSH_CLIENT=192.0.2.1 1 22\0";
        assert!(parse_environment(latin).is_some());
    }

    #[test]
    fn the_first_process_has_no_parent() {
        assert_eq!(parse_parent("Name:\ta PPid: 3\nPid:\t9\nPPid:\t7\nTracerPid:\t0\n"), Some(7));
        assert_eq!((parse_parent("Pid:\t1\nPPid:\t0\n"), parse_parent("")), (None, None));
        assert!(parse_parent(&fs::read_to_string("/proc/self/status").unwrap()).is_some());
    }
}
