//! Who the client of a request is that came through proxies: `Forwarded` (RFC 7239) and
//! `X-Forwarded-For`, as far as trusted proxies vouch for them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// The header in which trusted proxies name the client. It is one of them alone: a proxy that adds
/// to one passes the other on as the client wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// None: the client is who is connected.
    #[default]
    Off,
    /// `X-Forwarded-For`: addresses, each proxy's own peer last.
    XForwardedFor,
    /// `Forwarded`, RFC 7239.
    Forwarded,
}

/// Whose word on the client's address is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted(Vec<IpNet>);

/// A header that has no meaning in a place where one is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaningless;

/// A station on the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    Address(IpAddr),
    /// The proxy does not tell.
    Hidden,
}

impl Trusted {
    /// Those in any of the networks.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether this address is among them.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The client of a request that came from `peer`: the first address, seen from here, that is
    /// not a trusted proxy's. Where a proxy does not tell its peer, the client is that proxy.
    ///
    /// # Errors
    /// If what a trusted proxy wrote has no meaning. What is beyond the client is not looked at.
    pub fn client(
        &self,
        peer: IpAddr,
        headers: &HeaderMap,
        naming: Naming,
    ) -> Result<IpAddr, Meaningless> {
        let mut proven = peer.to_canonical();
        if naming == Naming::Off || !self.has(proven) {
            return Ok(proven);
        }
        for line in headers.get_all(naming.header()).iter().rev() {
            for part in naming.parts(line.as_bytes())? {
                let text = trim(std::str::from_utf8(part).map_err(|_| Meaningless)?);
                let hop = match naming {
                    _ if text.is_empty() => continue,
                    Naming::Forwarded => element(text)?,
                    _ => node(text)?,
                };
                match hop {
                    Hop::Address(address) if self.has(address) => proven = address,
                    Hop::Address(address) => return Ok(address),
                    Hop::Hidden => return Ok(proven),
                }
            }
        }
        Ok(proven)
    }
}

impl Naming {
    const fn header(self) -> HeaderName {
        match self {
            Self::Forwarded => http::header::FORWARDED,
            _ => HeaderName::from_static("x-forwarded-for"),
        }
    }

    /// What each proxy wrote into a line, the last one first.
    fn parts(self, line: &[u8]) -> Result<Box<dyn Iterator<Item = &[u8]> + '_>, Meaningless> {
        Ok(match self {
            Self::Forwarded => Box::new(elements(line)?.into_iter().rev()),
            _ => Box::new(line.rsplit(|byte| *byte == b',')),
        })
    }
}

/// What is between the commas of a `Forwarded` field. Those in quotes separate nothing, so a quote that is left open
/// leaves nothing to be told apart.
fn elements(line: &[u8]) -> Result<Vec<&[u8]>, Meaningless> {
    let (mut elements, mut begin, mut is_quoted) = (Vec::new(), 0, false);
    let mut bytes = line.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => _ = bytes.next(),
            b',' if !is_quoted => {
                elements.push(&line[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    elements.push(&line[begin..]);
    if is_quoted { Err(Meaningless) } else { Ok(elements) }
}

/// The `for` of an element, which may be there once.
fn element(text: &str) -> Result<Hop, Meaningless> {
    let (mut hop, mut rest) = (None, text);
    loop {
        if !rest.is_empty() && !rest.starts_with(';') {
            let (name, after) = token(rest)?;
            let (value, after) = word(after.strip_prefix('=').ok_or(Meaningless)?)?;
            if name.eq_ignore_ascii_case("for") && hop.replace(node(&value)?).is_some() {
                return Err(Meaningless);
            }
            rest = trim(after);
        }
        match rest.strip_prefix(';') {
            Some(after) => rest = trim(after),
            None if rest.is_empty() => return Ok(hop.unwrap_or(Hop::Hidden)),
            None => return Err(Meaningless),
        }
    }
}

/// A token at the begin, and what follows it.
fn token(text: &str) -> Result<(&str, &str), Meaningless> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    if end == 0 { Err(Meaningless) } else { Ok(text.split_at(end)) }
}

/// A token or a quoted string at the begin, and what follows it.
fn word(text: &str) -> Result<(String, &str), Meaningless> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(token, rest)| (token.to_owned(), rest));
    };
    let (mut word, mut chars) = (String::new(), quoted.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((word, &quoted[at + 1..])),
            '\\' => word.push(chars.next().ok_or(Meaningless)?.1),
            c => word.push(c),
        }
    }
    Err(Meaningless)
}

/// An address with or without port, `unknown`, or a name that hides one.
fn node(text: &str) -> Result<Hop, Meaningless> {
    // The port may be hidden as well.
    let hidden = text.rsplit_once(":_");
    let name = hidden.map_or(text, |(name, _)| name);
    let is_port =
        |port: &str| matches!(port.len(), 1..=5) && port.bytes().all(|b| b.is_ascii_digit());
    let told = match name.split_once(':') {
        Some((told, port)) if hidden.is_none() && is_port(port) => told,
        _ => name,
    };
    if text.starts_with('_') || told.eq_ignore_ascii_case("unknown") {
        return Ok(Hop::Hidden);
    }
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().map(IpAddr::from).ok(),
        None => name.parse().ok(),
    };
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    Ok(Hop::Address(address.ok_or(Meaningless)?.to_canonical()))
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn client(naming: Naming, fields: &[&str]) -> Result<String, Meaningless> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(naming.header(), HeaderValue::from_bytes(field.as_bytes()).unwrap());
        }
        let nets = ["10.0.0.0/8", "2001:db8:f::/48"].map(|net| net.parse().unwrap());
        let trusted = Trusted::new(nets.into());
        let peer = "::ffff:10.0.0.1".parse().unwrap();
        trusted.client(peer, &headers, naming).map(|address| address.to_string())
    }

    #[test]
    fn the_rightmost_untrusted_address_is_the_client() {
        let xff = |fields: &[&str]| client(Naming::XForwardedFor, fields);
        for (fields, expected) in [
            (&[][..], "10.0.0.1"),
            (&["192.0.2.1"], "192.0.2.1"),
            // What the client made up lies to the left of what the proxy saw.
            (&["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
            (&["203.0.113.9", "192.0.2.1"], "192.0.2.1"),
            (&["garbage, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            (&["gärbage", "ü, 192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, 10.0.0.3", "10.0.0.2"], "192.0.2.1"),
            (&["192.0.2.1, , 10.0.0.2,"], "192.0.2.1"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["192.0.2.1:4711"], "192.0.2.1"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["[2001:db8::7]:4711, 2001:db8:f::1"], "2001:db8::7"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
        ] {
            assert_eq!(xff(fields).as_deref(), Ok(expected), "{fields:?}");
        }
        for fields in [&["garbage"][..], &["192.0.2.1, 10.0.0.300"], &["192.0.2.1, x, 10.0.0.2"]] {
            assert_eq!(xff(fields), Err(Meaningless), "{fields:?}");
        }
    }

    #[test]
    fn the_standard_header_is_read() {
        let forwarded = |field: &str| client(Naming::Forwarded, &[field]);
        for (field, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"192.0.2.1:47011\";proto=https;by=203.0.113.43", "192.0.2.1"),
            ("for=203.0.113.9, for=192.0.2.1;host=\"a,b;c\"", "192.0.2.1"),
            ("for=\"[2001:db8::7]\"", "2001:db8::7"),
            ("for=\"[2001:db8::7]:4711\", for=10.0.0.2", "2001:db8::7"),
            ("for=\"192.0.2.1:_port\"", "192.0.2.1"),
            ("for=192.0.2.1, proto=https", "10.0.0.1"),
            ("for=192.0.2.1, for=_hidden, for=10.0.0.2", "10.0.0.2"),
            ("for=unknown", "10.0.0.1"),
            ("for=\"unknown:_port\", for=10.0.0.2", "10.0.0.2"),
            ("for=\"unknown:4711\", for=10.0.0.2", "10.0.0.2"),
            (" ,for=\"192.0.2.\\1\" , ", "192.0.2.1"),
            // What the client made up need not be well-formed, as long as no quote is left open.
            ("for=203.0.113.9:80, for=192.0.2.1", "192.0.2.1"),
            ("ü=\"a, b\"c, =, for=192.0.2.1", "192.0.2.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(forwarded(field).as_deref(), Ok(expected), "{field}");
        }
        for field in [
            "for",
            "for=",
            "for=\"192.0.2.1",
            "for=192.0.2.1 for=192.0.2.2",
            "for=192.0.2.1;for=192.0.2.2",
            "for=192.0.2.1:80",
            "for=nonsense",
            "for=\"192.0.2.1:_a:_b\"",
            "for=\"192.0.2.1:4711:_x\"",
            "for=\"unknown:4711:_x\"",
            "for=\"unknown:_a:_b\"",
            // A quote that the client left open would swallow what the proxy added.
            "for=\"x, for=192.0.2.1",
            "=x",
        ] {
            assert_eq!(forwarded(field), Err(Meaningless), "{field}");
        }
    }

    #[test]
    fn only_trusted_peers_are_believed() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("203.0.113.9"));
        let trusted = Trusted::new(vec!["10.0.0.0/8".parse().unwrap()]);
        for (peer, naming, expected) in [
            ("192.0.2.1", Naming::XForwardedFor, "192.0.2.1"),
            ("10.0.0.1", Naming::XForwardedFor, "203.0.113.9"),
            ("10.0.0.1", Naming::Off, "10.0.0.1"),
            ("10.0.0.1", Naming::Forwarded, "10.0.0.1"),
        ] {
            let client = trusted.client(peer.parse().unwrap(), &headers, naming);
            assert_eq!(client, Ok(expected.parse().unwrap()), "{peer} {naming:?}");
        }
    }

    proptest! {
        #[test]
        fn no_field_is_too_strange(field in "[ -~\\t]{0,80}", forwarded: bool) {
            let naming = if forwarded { Naming::Forwarded } else { Naming::XForwardedFor };
            let _ = client(naming, &[&field]);
        }

        /// However a client begins the header, and whatever host it asks the proxy for, it cannot get past the address
        /// that the proxy saw.
        #[test]
        fn nobody_moves_what_the_proxy_wrote(
            forged in "[ -~]{0,60}|(for=198[.]51[.]100[.]9|[,;=\"\\\\x ]){0,8}",
            host in "[ -~]{0,60}|(for=198[.]51[.]100[.]9|[,;=\"\\\\x ]){0,8}",
            separate: bool,
        ) {
            let host = host.replace('\\', "\\\\").replace('"', "\\\"");
            let seen = format!("for=192.0.2.1;host=\"{host}\";by=\"_x\"");
            for (naming, seen) in [(Naming::XForwardedFor, "192.0.2.1"), (Naming::Forwarded, &*seen)] {
                let joined = format!("{forged}, {seen}");
                let fields = if separate { vec![&*forged, seen] } else { vec![&*joined] };
                let found = client(naming, &fields);
                prop_assert!(found == Err(Meaningless) || found.as_deref() == Ok("192.0.2.1"), "{found:?}");
                prop_assert!(!separate || found.is_ok(), "{fields:?}");
            }
        }
    }
}
