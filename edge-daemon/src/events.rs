//! Security events: who did what and why it ended so, one JSON object a line, never a secret.

pub mod access;
mod log;
mod sink;

use std::net::IpAddr;

use edge_policy::{ja4::Ja4, verdict::Culprit};
use serde::Serialize;

pub use self::log::{EventLog, Events};

/// What happened. The variants are the closed list of events; `event` names them in the line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The daemon takes requests.
    Started {
        /// Its version.
        version: &'static str,
    },
    /// The daemon has stopped taking requests.
    Stopped,
    /// A request was refused through the client's fault.
    RequestRefused {
        /// The client's address.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// The id in the client's answer.
        request_id: String,
        /// The request's method.
        method: String,
        /// The request's path, without its query, in which secrets travel.
        path: String,
        /// Who it was from, if that was proved: a key by its public id, a token by its subject.
        #[serde(skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        /// The limit that it hit.
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<String>,
        /// The fingerprint of the client's TLS library.
        #[serde(skip_serializing_if = "Option::is_none")]
        ja4: Option<Ja4>,
        /// What it did not meet, if it may not pass.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
        /// What exactly was wrong, if the reason leaves it open: a token's fault.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'static str>,
    },
    /// A login failed, as its route tells it.
    LoginFailed {
        /// The client's address.
        source: IpAddr,
        /// Whom it claimed to be.
        account: String,
        /// The id in the client's answer.
        request_id: String,
        /// The request's path.
        path: String,
        /// The status of the answer.
        status: u16,
        /// The fingerprint of the client's TLS library.
        #[serde(skip_serializing_if = "Option::is_none")]
        ja4: Option<Ja4>,
    },
    /// A connection ended without a request through the client's fault.
    ConnectionRefused {
        /// The client's address.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// What of a TLS handshake failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<&'static str>,
        /// The fingerprint of the client's TLS library.
        #[serde(skip_serializing_if = "Option::is_none")]
        ja4: Option<Ja4>,
    },
    /// The kernel dropped a packet. A sample: the kernel limits how many it tells of.
    PacketDropped {
        /// The packet's source.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// Destination port, 0 if none was read.
        port: u16,
        /// IP protocol, 0 if none was read.
        protocol: u8,
    },
    /// The kernel would have dropped a packet but for monitor mode, and passed it. Told of like a
    /// drop.
    PacketWouldDrop {
        /// The packet's source.
        source: IpAddr,
        /// Why.
        reason: &'static str,
        /// Destination port, 0 if none was read.
        port: u16,
        /// IP protocol, 0 if none was read.
        protocol: u8,
    },
    /// A client was banned in the kernel.
    Ban {
        /// The client: an address, or an IPv6 prefix's first address.
        source: IpAddr,
        /// The scenario; who decided, if none did.
        scenario: String,
        /// `scenario`, `operator`, `crowdsec` or `fleet`.
        origin: &'static str,
        /// The last signal; the operator's words.
        reason: String,
        /// The request that was the last misdeed.
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// When it ends.
        until: String,
        /// How many verdicts this client has had, this one included.
        strikes: u32,
        /// From the misdeed to the kernel's map, in microseconds; of a scenario's bans.
        #[serde(skip_serializing_if = "Option::is_none")]
        latency_us: Option<u64>,
    },
    /// Requests are delayed or refused from now on.
    Penalty {
        /// Whose.
        culprit: Culprit,
        /// `delay`, `429` or `403`.
        step: &'static str,
        /// The scenario; who decided, if none did.
        scenario: String,
        /// `scenario`, `operator`, `crowdsec` or `fleet`.
        origin: &'static str,
        /// The last signal; the operator's words.
        reason: String,
        /// The request that was the last misdeed.
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// When it ends.
        until: String,
        /// How many verdicts this culprit has had, this one included.
        strikes: u32,
        /// Why it is milder than the scenario says, or about somebody narrower.
        #[serde(skip_serializing_if = "Option::is_none")]
        spared: Option<String>,
    },
    /// A scenario spoke and nothing is done: it only observes, or a guard spares the culprit.
    Observed {
        /// About whom.
        culprit: Culprit,
        /// The scenario.
        scenario: String,
        /// The last signal.
        reason: String,
        /// The request that was the last misdeed.
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
        /// Why the culprit is spared.
        #[serde(skip_serializing_if = "Option::is_none")]
        spared: Option<String>,
    },
    /// A penalty at the request plane ended.
    Lift {
        /// Whose.
        culprit: Culprit,
        /// As of [`Event::Unban`].
        reason: &'static str,
    },
    /// Something asks for a person.
    Alarm {
        /// What.
        why: String,
    },
    /// A ban ended by time, or was lifted by an operator.
    Unban {
        /// The client.
        source: IpAddr,
        /// `expired`, `operator`, `crowdsec`, `fleet`, or `no_room` if a later ban took its place in a
        /// full table.
        reason: &'static str,
    },
    /// A client earned a ban that could not be written.
    BanFailed {
        /// About whom.
        culprit: Culprit,
        /// What failed.
        why: String,
    },
    /// An operator changed a list.
    ListChanged {
        /// `allow` or `deny`.
        list: &'static str,
        /// `add` or `remove`.
        change: &'static str,
        /// The network.
        net: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A key was made.
    KeyCreated {
        /// Its public id.
        key_id: String,
        /// Its name.
        name: String,
        /// Who answers for it.
        owner: String,
        /// When it ends.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<String>,
        /// The operator's user id.
        uid: u32,
    },
    /// A key was rotated.
    KeyRotated {
        /// Its public id.
        key_id: String,
        /// The key that takes its place.
        by: String,
        /// When it ends.
        until: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A key was revoked.
    KeyRevoked {
        /// Its public id.
        key_id: String,
        /// Who answers for it.
        owner: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A certificate or the authorities of clients changed on disk.
    CertificateReload {
        /// The file of the certificate, or the authorities.
        what: String,
        /// `ok`, or `refused`: what was served before still is.
        result: &'static str,
    },
    /// A key that was revoked or had ended was forgotten.
    KeyRemoved {
        /// Its public id.
        key_id: String,
        /// The operator's user id.
        uid: u32,
    },
    /// A key will end soon. Told once after each start.
    KeyExpiring {
        /// Its public id.
        key_id: String,
        /// Its name.
        name: String,
        /// Who answers for it.
        owner: String,
        /// When it ends.
        until: String,
    },
    /// A key has ended by itself.
    KeyExpired {
        /// Its public id.
        key_id: String,
    },
    /// A key was sent where others could read it. Told once.
    KeyExposed {
        /// Its public id.
        key_id: String,
        /// Who answers for it.
        owner: String,
        /// `url`, or `clear` for plain HTTP.
        how: &'static str,
        /// Who sent it.
        source: IpAddr,
    },
    /// The hash of a key in the store is another key's: another hand wrote there.
    KeyForged {
        /// Its public id.
        key_id: String,
    },
    /// A key that was kept under a former pepper is kept under the one in use.
    KeyRenewed {
        /// Its public id.
        key_id: String,
    },
    /// An operator took keys in from elsewhere.
    KeysImported {
        /// How many.
        keys: u64,
        /// The operator's user id.
        uid: u32,
    },
    /// An operator had the keys written out.
    KeysExported {
        /// The operator's user id.
        uid: u32,
    },
    /// An operator denied tokens, or took that back.
    TokenDenied {
        /// `revoke` or `remove`.
        change: &'static str,
        /// `iss` of the tokens.
        issuer: String,
        /// By which of their names: `jti`, `sub`, `sid` or `kid`.
        by: &'static str,
        /// That name.
        value: String,
        /// When it ends, in unix milliseconds; nothing: never.
        until_ms: Option<u64>,
        /// The operator's user id.
        uid: u32,
    },
    /// An operator had tokens let in again although revocations were lost.
    TokenLossAccepted {
        /// When they were lost, in unix milliseconds.
        lost_ms: u64,
        /// The operator's user id.
        uid: u32,
    },
    /// A feed has another list.
    FeedUpdated {
        /// Its name.
        feed: String,
        /// Networks in force.
        networks: u64,
        /// Lines that were left out.
        left_out: u64,
    },
    /// A feed brought nothing; what was in force of it stays. Told once a series.
    FeedFailed {
        /// Its name.
        feed: String,
        /// `failed`: it could not be had; `refused`: what came cannot be the list.
        result: &'static str,
        /// Why.
        why: String,
        /// Networks that stay in force.
        networks: u64,
    },
    /// The server between the edges of a fleet was found, or lost.
    Fleet {
        /// `connected` or `lost`.
        result: &'static str,
        /// Why.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// The configuration was read again.
    Reload {
        /// `ok` or `refused`.
        result: &'static str,
    },
}

impl Event {
    /// Whether clients cause it one by one, so that an attack makes it by the million.
    const fn is_plentiful(&self) -> bool {
        matches!(
            self,
            Self::RequestRefused { .. }
                | Self::ConnectionRefused { .. }
                | Self::Observed { .. }
                | Self::LoginFailed { .. }
                | Self::PacketDropped { .. }
                | Self::PacketWouldDrop { .. }
        )
    }

    /// Whether it belongs into the audit log by itself. A refused request does if its refusal is
    /// about who it is from, which `request/path.rs` knows.
    const fn is_audited(&self) -> bool {
        !self.is_plentiful()
            && !matches!(self, Self::Ban { .. } | Self::Unban { .. } | Self::BanFailed { .. })
    }
}
