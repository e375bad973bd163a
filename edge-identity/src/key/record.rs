//! What the store keeps of a key.

use std::fmt;
use std::net::IpAddr;
use std::str::{self, FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use edge_policy::{head::Host, target::Target};

use super::pepper::{Digest, PepperId};
use crate::hex;
use crate::signed::Signing;

/// The public name of a key in logs and commands: 48 bits, of which two of a million keys share
/// one with a chance below 1 in 500; then the later key is made anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 12]);

impl KeyId {
    pub(super) fn of(bytes: [u8; 6]) -> Self {
        let mut text = [0; 12];
        hex::write(&bytes, &mut text);
        Self(text)
    }

    /// As it is written: twelve hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("digits are ASCII")
    }
}

impl FromStr for KeyId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex::read(text).map(Self::of).ok_or("not a key's id: twelve hexadecimal digits")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A place that a key is confined to: a path and all below it, by whole segments, on one host or on
/// any: `/v1`, `api.example.com/v1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    host: Option<String>,
    path: String,
}

impl Place {
    /// Whether a normalised path on a host, in lower case, lies in it.
    #[must_use]
    pub fn holds(&self, host: &str, path: &str) -> bool {
        let rest = path.strip_prefix(self.path.as_str());
        self.host.as_deref().is_none_or(|own| own == host)
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Place {
    /// What the store may have, whoever wrote it: a path without empty segments, on a host or on any. Some of
    /// them hold nothing.
    fn read(text: &str) -> Result<Self, &'static str> {
        let slash = text.find('/').filter(|_| !text.contains("//"));
        let slash = slash.ok_or("a path, or a host and a path: \"/v1\", \"a.test/v1\"")?;
        let (host, path) = text.split_at(slash);
        let host = (!host.is_empty()).then(|| host.to_ascii_lowercase());
        Ok(Self { host, path: path.strip_suffix('/').unwrap_or(path).to_owned() })
    }
}

/// What keys are given from now on: no request is in any other place.
impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Self { host, path } = Self::read(text)?;
        let is_normal = || Target::parse(&path, text.len()).is_ok_and(|target| target.path == path);
        if !path.is_empty() && !is_normal() {
            return Err(
                "a path in the form that requests are brought into: no query, dots or empty \
                        segments; what needs an escape has it, in capitals, as in /caf%C3%A9",
            );
        }
        match host.map(|host| host.parse()) {
            None => Ok(Self { host: None, path }),
            Some(Ok(Host { name, port: None })) => Ok(Self { host: Some(name), path }),
            Some(_) => Err("a host name before the path, without a port: keys hold on any"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        write!(f, "{}{path}", self.host.as_deref().unwrap_or_default())
    }
}

/// What is text for people and for the store alike.
macro_rules! as_text {
    ($type:ident, $read:path) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                $read(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(KeyId, KeyId::from_str);
as_text!(Place, Place::read);

/// What a key was given. Keys that were given the same share it in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Grants {
    /// What it may do.
    pub scopes: Vec<String>,
    /// What it is; the roles of the configuration say what that grants.
    pub roles: Vec<String>,
    /// Its plan; `None` is the default one.
    pub tier: Option<String>,
    /// Where it may come from; anywhere, if there is none.
    pub networks: Vec<IpNet>,
    /// Where it may go; anywhere, if there is none.
    pub places: Vec<Place>,
}

impl Grants {
    /// Whether a key may come from this address.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.networks.is_empty() || self.networks.iter().any(|net| net.contains(&client))
    }

    /// Whether a key may go to this place.
    #[must_use]
    pub fn reaches(&self, host: &str, path: &str) -> bool {
        self.places.is_empty() || self.places.iter().any(|place| place.holds(host, path))
    }
}

/// How a key came to be known to others than its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leak {
    /// It was sent in a URL, which logs and caches keep.
    Url,
    /// It was sent over plain HTTP, for everyone on the way to read.
    Clear,
}

impl Leak {
    /// The word for it in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Clear => "clear",
        }
    }
}

/// A second secret that comes with the key in `X-API-Secret`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoundSecret {
    /// Random: its digest, made with the key's id.
    Random(Digest),
    /// Somebody's choice, and so perhaps guessable: an Argon2id hash in PHC form.
    Chosen(String),
}

impl BoundSecret {
    /// What is kept of a random secret. Nothing in it can be guessed, so it needs no pepper; the id
    /// makes equal secrets of two keys differ.
    #[must_use]
    pub fn digest(id: &KeyId, secret: &str) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("edged bound secret v1");
        hasher.update(&id.0).update(secret.as_bytes());
        Digest(*hasher.finalize().as_bytes())
    }
}

/// What only some keys have. The store knows them by their order: new ones are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extra {
    /// A second secret.
    Secret(BoundSecret),
    /// It was sent where others could read it, at this unix time in milliseconds.
    Exposed(Leak, u64),
    /// It was rotated: the key that took its place.
    ReplacedBy(KeyId),
    /// It signs requests, and is good for signed ones only.
    Signing(Signing),
}

/// What the store keeps of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its public name.
    pub id: KeyId,
    /// What a presented key is compared with.
    pub digest: Digest,
    /// The pepper under which that was made.
    pub pepper: PepperId,
    /// What its owner calls it.
    pub name: String,
    /// Who answers for it; may be empty.
    pub owner: String,
    /// What it was given.
    pub grants: Grants,
    /// When it was made, in unix milliseconds.
    pub created_ms: u64,
    /// When it ends, in unix milliseconds; `None` is never.
    pub expires_ms: Option<u64>,
    /// When it was revoked, in unix milliseconds.
    pub revoked_ms: Option<u64>,
    /// What only some keys have.
    pub extras: Vec<Extra>,
}

impl KeyRecord {
    /// Its second secret, if one is bound to it.
    #[must_use]
    pub fn secret(&self) -> Option<&BoundSecret> {
        self.extras.iter().find_map(|extra| match extra {
            Extra::Secret(secret) => Some(secret),
            _ => None,
        })
    }

    /// How it signs, if it does.
    #[must_use]
    pub fn signing(&self) -> Option<&Signing> {
        self.extras.iter().find_map(|extra| match extra {
            Extra::Signing(signing) => Some(signing),
            _ => None,
        })
    }

    /// How and when it was exposed first.
    #[must_use]
    pub fn exposed(&self) -> Option<(Leak, u64)> {
        self.extras.iter().find_map(|extra| match extra {
            Extra::Exposed(leak, at_ms) => Some((*leak, *at_ms)),
            _ => None,
        })
    }

    /// The key that took its place.
    #[must_use]
    pub fn replaced_by(&self) -> Option<KeyId> {
        self.extras.iter().find_map(|extra| match extra {
            Extra::ReplacedBy(id) => Some(*id),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> KeyRecord {
        let digest = Digest([7; 32]);
        KeyRecord {
            id: digest.id(),
            digest,
            pepper: PepperId([1, 2, 3, 4]),
            name: "ci".into(),
            owner: "team".into(),
            grants: Grants {
                scopes: vec!["read".into()],
                roles: vec!["editor".into()],
                tier: Some("gold".into()),
                networks: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
                places: vec!["/v1".parse().unwrap(), "A.test/".parse().unwrap()],
            },
            created_ms: 1000,
            expires_ms: Some(2000),
            revoked_ms: None,
            extras: vec![
                Extra::Exposed(Leak::Clear, 5),
                Extra::Secret(BoundSecret::Random(digest)),
            ],
        }
    }

    #[test]
    fn records_survive_the_store_and_the_export() {
        let kept = postcard::to_allocvec(&record()).unwrap();
        assert_eq!(postcard::from_bytes::<KeyRecord>(&kept).unwrap(), record());
        let bare = KeyRecord { grants: Grants::default(), extras: Vec::new(), ..record() };
        let length = postcard::to_allocvec(&bare).unwrap().len();
        assert!(length < 80, "{length} bytes for a record without grants");
        let line = serde_json::to_string(&record()).unwrap();
        assert_eq!(serde_json::from_str::<KeyRecord>(&line).unwrap(), record());
        assert_eq!(record().exposed(), Some((Leak::Clear, 5)));
        assert_eq!(record().replaced_by(), None);
    }

    #[test]
    fn a_record_of_a_place_that_none_is_given_any_more_is_read() {
        for text in ["/users/{id}", "/caf%c3%a9", "a.test:8443/v1", "/%61"] {
            let mut stored = record();
            stored.grants.places.push(Place::read(text).unwrap());
            let kept = postcard::to_allocvec(&stored).unwrap();
            let read = postcard::from_bytes::<KeyRecord>(&kept).unwrap();
            assert_eq!(read, stored);
            assert_eq!(read.grants.places[2].to_string(), text);
            assert!(read.grants.reaches("x", "/v1/y") && !read.grants.reaches("x", "/users/1"));
        }
        // What would be wider when it is read again is none.
        assert!(Place::read("//").is_err() && Place::read("/v1//").is_err());
    }

    #[test]
    fn ids_are_twelve_digits() {
        let id = Digest([7; 32]).id();
        assert_eq!(id.as_str().parse::<KeyId>(), Ok(id));
        for text in ["", "0a1b", "0123456789aB", "0123456789abc", "0123456789ag"] {
            assert!(text.parse::<KeyId>().is_err(), "{text}");
        }
    }

    #[test]
    fn places_are_whole_segments() {
        let holds = |place: &str, host, path| place.parse::<Place>().unwrap().holds(host, path);
        assert!(holds("/v1", "a", "/v1") && holds("/v1/", "a", "/v1/x") && holds("/", "a", "/x"));
        assert!(!holds("/v1", "a", "/v10") && !holds("/v1", "a", "/"));
        assert!(holds("A.test/v1", "a.test", "/v1/x") && !holds("a.test/v1", "b.test", "/v1"));
        for text in [
            "",
            "v1",
            "/v1//",
            "/v1//x",
            "//",
            "/../x",
            "/a?b",
            "/a#b",
            "/a b",
            "h\u{e9}/x",
            "/users/{id}",
            "/caf%c3%a9",
            "/caf\u{e9}",
            "/%61",
            "a.test:8443/v1",
            "[::1]:443/",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
        for text in
            ["/", "/v1", "a.test/", "a.test/v1/x", "[::1]/", "/caf%C3%A9", "/users/%7Bid%7D"]
        {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_confined_may_come_from_and_go_anywhere() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let free = Grants::default();
        assert!(free.admits(address("192.0.2.1")) && free.reaches("a", "/x"));
        let grants = record().grants;
        assert!(grants.admits(address("192.0.2.9")) && grants.admits(address("::ffff:192.0.2.9")));
        assert!(grants.admits(address("2001:db8::1")) && !grants.admits(address("192.0.3.1")));
        assert!(
            grants.reaches("x", "/v1/y")
                && grants.reaches("a.test", "/")
                && !grants.reaches("x", "/")
        );
    }

    #[test]
    fn equal_secrets_of_two_keys_differ() {
        let (a, b) = (Digest([1; 32]).id(), Digest([2; 32]).id());
        assert_ne!(BoundSecret::digest(&a, "s"), BoundSecret::digest(&b, "s"));
        assert_eq!(BoundSecret::digest(&a, "s"), BoundSecret::digest(&a, "s"));
    }
}
