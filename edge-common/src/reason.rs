//! The one closed list of reasons: why a packet, a connection or a request ended as it did.
//!
//! The same word labels the kernel's counters, the metrics, the event log, `edgectl explain`
//! and `docs/reasons.md`.

/// Where a reason is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// By the XDP program, for a packet.
    Packet,
    /// By the daemon, for a connection that carried no request (yet).
    Connection,
    /// By the daemon, for a request.
    Request,
}

/// Who caused a refusal. Only the client's faults may become abuse signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nothing was refused, or nobody can be held to it.
    Nobody,
    /// The peer that sent the packet or the request.
    Client,
    /// The server behind the edge.
    Upstream,
    /// The edge itself: its capacity, its configuration or a bug.
    Edge,
}

macro_rules! reasons {
    ($($plane:ident { $($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $blame:ident;)+ })+) => {
        /// Why a packet, a connection or a request ended as it did. Each is counted exactly once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($($(#[doc = $doc])+ $variant,)+)+
        }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$($(Self::$variant,)+)+];

            /// The word for this reason, everywhere.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$variant => $name,)+)+ }
            }

            /// Where it is settled.
            pub const fn plane(self) -> Plane {
                match self { $($(Self::$variant => Plane::$plane,)+)+ }
            }

            /// Who caused it.
            pub const fn blame(self) -> Blame {
                match self { $($(Self::$variant => Blame::$blame,)+)+ }
            }

            /// One sentence for a person.
            pub const fn meaning(self) -> &'static str {
                match self { $($(Self::$variant => concat!($($doc),+),)+)+ }
            }
        }
    };
}

reasons! {
    Packet {
        /// No rule spoke against the packet; it was handed to the network stack.
        Pass = "pass", Nobody;
        /// Not IPv4 or IPv6 (ARP, LLDP, ...); handed to the network stack.
        NotIp = "not_ip", Nobody;
        /// The source is on the allow list; no ban or limit was asked, nor anything else if an operator put it there.
        AllowList = "allow_list", Nobody;
        /// The source is on the deny list.
        DenyList = "deny_list", Client;
        /// The source is banned for abuse, until a stated time.
        Ban = "ban", Client;
        /// The source sent more packets than its limit.
        PacketRate = "packet_rate", Client;
        /// The source sent more bytes than its limit.
        ByteRate = "byte_rate", Client;
        /// The source sent more UDP packets than its limit.
        UdpRate = "udp_rate", Client;
        /// The source sent more ICMP packets than its limit.
        IcmpRate = "icmp_rate", Client;
        /// The source opened TCP connections faster than its limit.
        ConnectionRate = "connection_rate", Client;
        /// The wider prefix around the source sent more than several clients may together.
        PrefixRate = "prefix_rate", Client;
        /// The source holds as many open TCP connections as it may.
        OpenConnections = "open_connections", Client;
        /// An operator's signature rule matched.
        Signature = "signature", Client;
        /// Nothing here is offered to the outside on this protocol and port.
        NoService = "no_service", Client;
        /// A fragment, where the policy is to take none.
        Fragment = "fragment", Client;
        /// A TCP packet of no connection and no valid SYN cookie, during a flood.
        Unsolicited = "unsolicited", Client;
        /// A SYN that was answered with a SYN cookie instead of being handed on.
        SynCookie = "syn_cookie", Nobody;
        /// A header is cut short or contradicts itself.
        MalformedPacket = "malformed_packet", Client;
        /// More nested headers than the program follows.
        UnparsedPacket = "unparsed_packet", Client;
    }
    Connection {
        /// The TLS handshake completed.
        Handshake = "handshake", Nobody;
        /// The TLS handshake was broken off or was not TLS at all.
        HandshakeFailed = "handshake_failed", Client;
        /// The TLS handshake did not complete in time.
        HandshakeTimeout = "handshake_timeout", Client;
        /// The connection was closed because no request came in time.
        IdleConnection = "idle_connection", Nobody;
        /// The edge holds as many connections as it may.
        ConnectionsFull = "connections_full", Edge;
    }
    Request {
        /// The upstream's answer was passed on.
        Serve = "serve", Nobody;
        /// Plain HTTP was sent to HTTPS.
        Redirect = "redirect", Nobody;
        /// The request has no single meaning.
        MalformedRequest = "malformed_request", Client;
        /// The request target is longer than the bound.
        UriTooLong = "uri_too_long", Client;
        /// The header section is larger than the bound.
        HeadersTooLarge = "headers_too_large", Client;
        /// The body is larger than the bound.
        BodyTooLarge = "body_too_large", Client;
        /// The request did not arrive in time.
        RequestTimeout = "request_timeout", Client;
        /// The route asks for a credential and none came.
        CredentialMissing = "credential_missing", Client;
        /// The credential is malformed or unknown.
        CredentialInvalid = "credential_invalid", Client;
        /// The credential has expired.
        CredentialExpired = "credential_expired", Client;
        /// The credential was revoked.
        CredentialRevoked = "credential_revoked", Client;
        /// A credential came in the URL, where logs and caches see it.
        CredentialInUrl = "credential_in_url", Client;
        /// The caller is known but may not do this.
        NotPermitted = "not_permitted", Client;
        /// No route serves this host and path.
        NoRoute = "no_route", Client;
        /// The route does not take this method.
        MethodNotAllowed = "method_not_allowed", Client;
        /// The source sent more requests than its limit.
        SourceRate = "source_rate", Client;
        /// The key sent more requests than its limit.
        KeyRate = "key_rate", Client;
        /// Those who are counted together, all clients or strangers, sent more requests than the limit admits.
        GlobalRate = "global_rate", Edge;
        /// The edge holds as many requests in flight as it may.
        Overload = "overload", Edge;
        /// No upstream could be reached.
        UpstreamUnreachable = "upstream_unreachable", Upstream;
        /// The upstream did not answer in time.
        UpstreamTimeout = "upstream_timeout", Upstream;
        /// The upstream's answer was not HTTP or broke off.
        UpstreamInvalid = "upstream_invalid", Upstream;
        /// The client went away before its answer was complete.
        ClientGone = "client_gone", Nobody;
        /// A fault inside the edge.
        InternalError = "internal_error", Edge;
        /// The credential is good, but of a kind that the route does not take.
        CredentialUnfit = "credential_unfit", Client;
        /// A credential came over plain HTTP, where everyone on the way can read it.
        CredentialInClear = "credential_in_clear", Client;
        /// The credential was sent where others could read it, and such are refused.
        CredentialExposed = "credential_exposed", Client;
        /// The key may not be used from this address.
        KeyNetwork = "key_network", Client;
        /// The key may not be used for this host and path.
        KeyPlace = "key_place", Client;
    }
    Connection {
        /// The edge is in as many TLS handshakes as it may be.
        HandshakesFull = "handshakes_full", Edge;
        /// The source began more TLS handshakes than its limit.
        HandshakeRate = "handshake_rate", Client;
        /// The fingerprint of the client's TLS library is on the list of those refused.
        FingerprintDenied = "fingerprint_denied", Client;
        /// A trusted proxy did not begin with a PROXY header, or with one that is malformed.
        ProxyHeaderInvalid = "proxy_header_invalid", Nobody;
        /// Who connects where only trusted proxies may is none.
        ProxyUntrusted = "proxy_untrusted", Client;
        /// The client is banned, and came through a trusted proxy; its connection was closed.
        BannedConnection = "banned_connection", Client;
    }
    Request {
        /// A verdict refuses the client, or what it is told by, at the request plane.
        BannedRequest = "banned_request", Client;
        /// The route asks for a client certificate and the connection came without one.
        CertificateRequired = "certificate_required", Client;
        /// The host is another than the one that the TLS handshake, with its question for a client certificate, was for.
        MisdirectedRequest = "misdirected_request", Nobody;
        /// A trusted proxy named the client in a way that has no meaning.
        ForwardingInvalid = "forwarding_invalid", Nobody;
        /// The request's signature is malformed, covers too little or does not hold.
        BadSignature = "bad_signature", Client;
        /// The request was signed too long ago, or in the future.
        StaleSignature = "stale_signature", Client;
        /// What may come once came again: a nonce, a signature, a proof.
        Replayed = "replayed", Client;
        /// The body is not the one whose digest was signed.
        BodyDigest = "body_digest", Client;
        /// What must not come twice may have come, or there is no room to remember it.
        NoncesFull = "nonces_full", Edge;
        /// A request limit of the operator's was hit.
        RequestLimit = "request_limit", Client;
        /// A browser's question about another site's request was answered.
        Preflight = "preflight", Nobody;
        /// Another site asked for what the route's list does not allow it.
        PreflightRefused = "preflight_refused", Client;
        /// A request with cookies was made by another site's page.
        CrossSite = "cross_site", Client;
        /// A request with cookies does not show that a page of this site made it.
        OriginMismatch = "origin_mismatch", Client;
        /// A request with cookies does not repeat its token.
        CsrfToken = "csrf_token", Client;
        /// Every server of the upstream is down, ejected or drained.
        UpstreamUnhealthy = "upstream_unhealthy", Upstream;
        /// The upstream has as many requests in flight as it may.
        UpstreamBusy = "upstream_busy", Upstream;
        /// Too many requests to the upstream failed; for a while it is not asked.
        CircuitOpen = "circuit_open", Upstream;
        /// The token is good, but meant for another audience.
        TokenAudience = "token_audience", Client;
        /// The token is bound to a key or a certificate, and its sender did not prove to have it.
        TokenUnproved = "token_unproved", Client;
        /// The proof must carry a nonce of ours; the answer tells one.
        ProofNonce = "proof_nonce", Nobody;
        /// The keys of the token's issuer are not known, as it cannot be reached; or revocations are lost.
        IssuerUnavailable = "issuer_unavailable", Upstream;
    }
    Connection {
        /// The connection carried as many requests as one may, and ended with the last answer.
        ConnectionSpent = "connection_spent", Nobody;
        /// The client abused the protocol: resets, pings, settings or empty frames beyond any use.
        ProtocolAbuse = "protocol_abuse", Client;
        /// The source holds as many connections to the edge as it may.
        SourceConnections = "source_connections", Client;
        /// The edge holds as much memory as it may and takes no new connection, and no further stream of one.
        MemoryFull = "memory_full", Edge;
    }
    Request {
        /// The client sent its body more slowly than the least rate.
        BodyTooSlow = "body_too_slow", Client;
        /// The client took its answer more slowly than the least rate, or not at all.
        AnswerNotTaken = "answer_not_taken", Client;
    }
    Connection {
        /// The client asked for more at once than the streams that a connection may have.
        StreamsFull = "streams_full", Nobody;
    }
    Request {
        /// The path is one that only a scanner asks for.
        DecoyPath = "decoy_path", Client;
        /// The credential is a bait that was laid out for thieves.
        CanaryKey = "canary_key", Client;
        /// A verdict has the client wait.
        Throttled = "throttled", Client;
        /// The key that the token names is unknown, and its issuer was not asked for it since the token came.
        TokenKeyUnknown = "token_key_unknown", Nobody;
    }
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether the packet goes on to the network stack.
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Pass | Self::NotIp | Self::AllowList)
    }

    /// Whether the packet is answered here, in the place of the network stack: it is neither passed on
    /// nor lost.
    #[must_use]
    pub const fn answers(self) -> bool {
        matches!(self, Self::SynCookie)
    }

    /// Whether the packet is lost.
    #[must_use]
    pub const fn drops(self) -> bool {
        !self.passes() && !self.answers()
    }

    /// [`Self::passes`], of the packet's reason with this number.
    #[inline(always)]
    #[must_use]
    pub const fn passes_by_number(number: u32) -> bool {
        const PASSING: u64 = {
            let (mut passing, mut i) = (0, 0);
            // Packets' reasons lie below; the shift fails to compile if one that passes does not.
            while i < Reason::COUNT {
                if Reason::ALL[i].passes() {
                    passing |= 1 << i;
                }
                i += 1;
            }
            passing
        };
        PASSING >> (number & 63) & 1 != 0
    }

    /// [`Self::answers`], of the reason with this number.
    #[inline(always)]
    #[must_use]
    pub const fn answers_by_number(number: u32) -> bool {
        number == Self::SynCookie as u32
    }

    /// The reason with this number, as the kernel wrote it into an event.
    #[must_use]
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(index as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_one_to_one() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(Reason::from_index(i as u32), Some(*reason));
            assert_eq!(Reason::ALL.iter().filter(|r| r.name() == reason.name()).count(), 1);
        }
        assert_eq!(Reason::from_index(Reason::COUNT as u32), None);
    }

    /// The pinned tables of a former version are read by these numbers: a new reason takes the
    /// next number, and any other change here needs a new ABI.
    #[test]
    fn numbers_are_part_of_the_abi() {
        let golden = [
            (0, "pass"),
            (1, "not_ip"),
            (2, "allow_list"),
            (3, "deny_list"),
            (4, "ban"),
            (5, "packet_rate"),
            (6, "byte_rate"),
            (7, "udp_rate"),
            (8, "icmp_rate"),
            (9, "connection_rate"),
            (10, "prefix_rate"),
            (11, "open_connections"),
            (12, "signature"),
            (13, "no_service"),
            (14, "fragment"),
            (15, "unsolicited"),
            (16, "syn_cookie"),
            (17, "malformed_packet"),
            (18, "unparsed_packet"),
            (19, "handshake"),
            (20, "handshake_failed"),
            (21, "handshake_timeout"),
            (22, "idle_connection"),
            (23, "connections_full"),
            (24, "serve"),
            (25, "redirect"),
            (26, "malformed_request"),
            (27, "uri_too_long"),
            (28, "headers_too_large"),
            (29, "body_too_large"),
            (30, "request_timeout"),
            (31, "credential_missing"),
            (32, "credential_invalid"),
            (33, "credential_expired"),
            (34, "credential_revoked"),
            (35, "credential_in_url"),
            (36, "not_permitted"),
            (37, "no_route"),
            (38, "method_not_allowed"),
            (39, "source_rate"),
            (40, "key_rate"),
            (41, "global_rate"),
            (42, "overload"),
            (43, "upstream_unreachable"),
            (44, "upstream_timeout"),
            (45, "upstream_invalid"),
            (46, "client_gone"),
            (47, "internal_error"),
            (48, "credential_unfit"),
            (49, "credential_in_clear"),
            (50, "credential_exposed"),
            (51, "key_network"),
            (52, "key_place"),
            (53, "handshakes_full"),
            (54, "handshake_rate"),
            (55, "fingerprint_denied"),
            (56, "proxy_header_invalid"),
            (57, "proxy_untrusted"),
            (58, "banned_connection"),
            (59, "banned_request"),
            (60, "certificate_required"),
            (61, "misdirected_request"),
            (62, "forwarding_invalid"),
            (63, "bad_signature"),
            (64, "stale_signature"),
            (65, "replayed"),
            (66, "body_digest"),
            (67, "nonces_full"),
            (68, "request_limit"),
            (69, "preflight"),
            (70, "preflight_refused"),
            (71, "cross_site"),
            (72, "origin_mismatch"),
            (73, "csrf_token"),
            (74, "upstream_unhealthy"),
            (75, "upstream_busy"),
            (76, "circuit_open"),
            (77, "token_audience"),
            (78, "token_unproved"),
            (79, "proof_nonce"),
            (80, "issuer_unavailable"),
            (81, "connection_spent"),
            (82, "protocol_abuse"),
            (83, "source_connections"),
            (84, "memory_full"),
            (85, "body_too_slow"),
            (86, "answer_not_taken"),
            (87, "streams_full"),
            (88, "decoy_path"),
            (89, "canary_key"),
            (90, "throttled"),
            (91, "token_key_unknown"),
        ];
        let found: Vec<_> = Reason::ALL.iter().map(|r| (*r as usize, r.name())).collect();
        assert_eq!((crate::map::ABI, found.as_slice()), ("v5", golden.as_slice()));
    }

    #[test]
    fn numbers_tell_what_passes() {
        for reason in Reason::ALL.iter().filter(|r| r.plane() == Plane::Packet) {
            assert_eq!(Reason::passes_by_number(*reason as u32), reason.passes());
            assert_eq!(Reason::answers_by_number(*reason as u32), reason.answers());
        }
    }

    #[test]
    fn what_is_not_dropped_blames_nobody() {
        assert!(Reason::ALL.iter().filter(|r| !r.drops()).all(|r| r.blame() == Blame::Nobody));
    }
}
