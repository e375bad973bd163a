//! Which header fields do not pass, by families of names: what is for one hop, what a client claims of
//! itself, what tells of the software behind.
//!
//! Every name is asked for as [`spelled`], so that one spelling stands for all.

use std::borrow::Cow;

/// Whether a field is for one hop only (RFC 9110, 7.6.1), or was in one of its earlier versions.
pub(super) fn is_hop(name: &str) -> bool {
    HOP.has(name)
}

/// Whether a field of a request says who its sender is or may be, from where he came, or what else
/// he has asked for: what only a gateway can know, or nobody.
pub(super) fn is_claim(name: &str) -> bool {
    // As servers call their variables: `HTTP_X_FORWARDED_FOR` is `X-Forwarded-For`.
    let name = name.strip_prefix("http-").unwrap_or(name);
    CLAIMS.has(name)
        || CLAIM_ENDS.iter().any(|end| name.ends_with(end))
        || CLAIM_FAMILIES.begin(name) && !NO_CLAIMS.has(name) && !is_credential(name)
}

/// Whether a route may let this claim of a request's pass: one by whose name the edge itself says nothing,
/// and takes nothing.
#[must_use]
pub fn may_keep(name: &str) -> bool {
    is_claim(name) && !OURS.has(name) && !OUR_FAMILIES.begin(name)
}

/// Whether a name is one of a credential or a signature, which the upstream checks itself, and not of what
/// a gateway has to say.
fn is_credential(name: &str) -> bool {
    CREDENTIAL_ENDS.iter().any(|end| name.ends_with(end))
        && CREDENTIAL_FAMILIES.begin(name)
        && !name.starts_with("x-auth-request-")
}

/// Whether a field of an answer tells of the software behind the edge.
pub(super) fn is_telltale(name: &str) -> bool {
    TELLTALES.has(name) || TELLTALE_FAMILIES.begin(name)
}

/// Whether a field may not come behind the body of an answer: it frames, routes, authenticates, or says
/// what is to become of the answer (RFC 9110, 6.5.1), on which the edge has had its word by then.
pub(super) fn is_for_heads(name: &str) -> bool {
    HEADS.has(name) || HEAD_FAMILIES.begin(name)
}

/// A name as servers know it that turn headers into variables: they make one sign of all that is no
/// letter or digit.
pub(super) fn spelled(name: &str) -> Cow<'_, str> {
    let other = |c: char| !c.is_ascii_alphanumeric();
    if name.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric()) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.replace(other, "-"))
}

/// Whether a name has signs that no field has whose name anybody wrote down for all: gateways hide theirs behind one.
pub(super) fn has_signs(name: &str) -> bool {
    name.bytes().any(|byte| !byte.is_ascii_alphanumeric() && !b"-_.".contains(&byte))
}

/// Names or what they begin with, in their order; for each letter where those that begin with it
/// stand, and the lengths that they have: of most names that are none of them, one look tells.
struct Names<const N: usize> {
    names: [&'static str; N],
    lengths: [u64; 32],
    places: [(u8, u8); 32],
}

impl<const N: usize> Names<N> {
    const fn new(names: [&'static str; N]) -> Self {
        let (mut lengths, mut places) = ([0; 32], [(0, 0); 32]);
        let mut at = 0;
        while at < N {
            let name = names[at].as_bytes();
            let letter = name[0] as usize % 32;
            assert!(name[0].is_ascii_lowercase() && at < 255, "names are in lower case");
            if lengths[letter] == 0 {
                places[letter].0 = at as u8;
            } else {
                assert!(places[letter].1 as usize == at, "names are in their order");
            }
            places[letter].1 = at as u8 + 1;
            lengths[letter] |= 1 << name.len();
            at += 1;
        }
        Self { names, lengths, places }
    }

    /// Those that begin with the same letter.
    fn alike(&self, letter: usize) -> &[&'static str] {
        let (from, to) = self.places[letter];
        &self.names[usize::from(from)..usize::from(to)]
    }

    /// Whether a name is one of them.
    fn has(&self, name: &str) -> bool {
        let letter = letter(name);
        let may_be = name.len() < 64 && self.lengths[letter] >> name.len() & 1 == 1;
        may_be && self.alike(letter).contains(&name)
    }

    /// Whether a name begins with one of them.
    fn begin(&self, name: &str) -> bool {
        self.alike(letter(name)).iter().any(|start| name.starts_with(start))
    }
}

fn letter(name: &str) -> usize {
    name.as_bytes().first().map_or(0, |first| usize::from(*first) % 32)
}

static HOP: Names<12> = Names::new([
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
]);

/// What names of claims begin with; docs/clients.md has them by kinds.
static CLAIM_FAMILIES: Names<86> = Names::new([
    "cf-",
    "client-cert",
    "cloudfront-",
    "fastly-",
    "forwarded",
    "impersonate-",
    "iv-",
    "oam-",
    "oidc-",
    "proxy",
    "remote-",
    "saml-",
    "shib-",
    "sm-",
    "ssl-",
    "tailscale-",
    "teleport-",
    "tls-client-",
    "wl-proxy-",
    "x-admin",
    "x-akamai-",
    "x-amzn-mtls-",
    "x-amzn-oidc-",
    "x-apigateway-api-",
    "x-appengine-",
    "x-arr-",
    "x-auth-",
    "x-authenticated-",
    "x-authentik-",
    "x-azure-",
    "x-cert-",
    "x-claim",
    "x-client-",
    "x-clientcert",
    "x-cluster-",
    "x-consumer-",
    "x-credential-",
    "x-edged-",
    "x-endpoint-api-",
    "x-envoy-",
    "x-forward-",
    "x-forwarded",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-group",
    "x-host",
    "x-http-",
    "x-identity",
    "x-impersonate-",
    "x-jwt-assertion",
    "x-jwt-claim",
    "x-jwt-payload",
    "x-method-",
    "x-ms-client-principal",
    "x-ms-token-",
    "x-mtls-",
    "x-nf-",
    "x-oidc-",
    "x-orig-",
    "x-original-",
    "x-originating-",
    "x-override-",
    "x-peer-",
    "x-permission",
    "x-pomerium-",
    "x-principal",
    "x-proxy",
    "x-real-",
    "x-remote-",
    "x-rewrite-",
    "x-role",
    "x-saml-",
    "x-scope",
    "x-shib-",
    "x-spiffe-",
    "x-ssl-",
    "x-sso-",
    "x-subject",
    "x-tls-",
    "x-token-",
    "x-url-",
    "x-user",
    "x-vercel-",
    "x-verified-",
    "x-vouch-",
    "x-webauth-",
]);

/// What names of claims end in, whatever comes before: addresses, and parts of certificates.
const CLAIM_ENDS: [&str; 8] =
    ["-addr", "-cert", "-dn", "-forward-for", "-forwarded-for", "-ip", "-ipv4", "-ipv6"];

/// Claims of no family, and what is ours.
static CLAIMS: Names<19> = Names::new([
    "front-end-https",
    "via",
    "x-act-as",
    "x-api-key",
    "x-api-secret",
    "x-clientip",
    "x-custom-ip-authorization",
    "x-dn",
    "x-email",
    "x-id-token",
    "x-is-admin",
    "x-on-behalf-of",
    "x-realip",
    "x-request-id",
    "x-run-as",
    "x-scheme",
    "x-sub",
    "x-sudo",
    "x-uid",
]);

/// What begins like a claim and is none: credentials, which the upstream checks itself, and what
/// a client has to say of itself.
static NO_CLAIMS: Names<12> = Names::new([
    "cf-webhook-auth",
    "x-auth-apikey",
    "x-auth-client",
    "x-auth-nonce",
    "x-auth-timestamp",
    "x-scope-orgid",
    "x-user-agent",
    "x-user-lang",
    "x-user-language",
    "x-user-locale",
    "x-user-timezone",
    "x-vercel-signature",
]);

/// Claims that are the edge's to make or to take.
static OURS: Names<4> = Names::new(["via", "x-api-key", "x-api-secret", "x-request-id"]);

/// What names of such claims begin with; `Http-` stands before any of them.
static OUR_FAMILIES: Names<6> =
    Names::new(["forwarded", "http-", "proxy", "x-edged-", "x-forward", "x-real-"]);

/// What names of credentials end in, in families of claims that people and programs share.
const CREDENTIAL_ENDS: [&str; 4] = ["-key", "-secret", "-signature", "-token"];

/// Such families; no gateway tells its upstream of tokens and keys by a name of theirs, but one
/// (`X-Auth-Request-*`).
static CREDENTIAL_FAMILIES: Names<9> = Names::new([
    "x-admin-",
    "x-auth-",
    "x-client-",
    "x-consumer-",
    "x-group-",
    "x-role-",
    "x-sso-",
    "x-subject-",
    "x-user-",
]);

static TELLTALES: Names<24> = Names::new([
    "alt-svc",
    "host-header",
    "microstrategy",
    "powered-by",
    "server",
    "sourcemap",
    "via",
    "x-beserver",
    "x-calculatedbetarget",
    "x-cms",
    "x-diaginfo",
    "x-feserver",
    "x-framework",
    "x-hudson",
    "x-mod-pagespeed",
    "x-page-speed",
    "x-redirect-by",
    "x-request-id",
    "x-runtime",
    "x-server",
    "x-server-name",
    "x-sourcefiles",
    "x-sourcemap",
    "x-version",
]);

/// What names of telltales begin with.
static TELLTALE_FAMILIES: Names<25> = Names::new([
    "liferay-",
    "oraclecommercecloud-",
    "x-aspnet",
    "x-backend",
    "x-backside-",
    "x-cf-powered-",
    "x-debug-",
    "x-drupal-",
    "x-edged-",
    "x-envoy-",
    "x-forwarded",
    "x-generat",
    "x-jenkins",
    "x-joomla-",
    "x-kubernetes-",
    "x-litespeed-",
    "x-owa-",
    "x-php-",
    "x-powered-",
    "x-real-",
    "x-served-",
    "x-server-powered-",
    "x-turbo-charged-",
    "x-umbraco-",
    "x-varnish",
]);

/// Fields of heads alone.
static HEADS: Names<26> = Names::new([
    "age",
    "authentication-info",
    "authorization",
    "cache-control",
    "clear-site-data",
    "cookie",
    "date",
    "expires",
    "host",
    "location",
    "max-forwards",
    "nel",
    "permissions-policy",
    "pragma",
    "range",
    "referrer-policy",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "retry-after",
    "set-cookie",
    "strict-transport-security",
    "vary",
    "warning",
    "www-authenticate",
    "x-frame-options",
]);

/// What names of such fields begin with; `Content-Digest` is made for trailers.
static HEAD_FAMILIES: Names<13> = Names::new([
    "access-control-",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-security-policy",
    "content-type",
    "cross-origin-",
    "ratelimit",
    "x-content-type-options",
    "x-ratelimit",
]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_among_many() {
        for name in HOP.names {
            assert!(HOP.has(name), "{name}");
        }
        for name in CLAIMS.names {
            assert!(is_claim(name) && CLAIMS.has(name), "{name}");
        }
        for name in TELLTALES.names {
            assert!(is_telltale(name), "{name}");
        }
        for start in CLAIM_FAMILIES.names {
            assert!(is_claim(&format!("{start}z")), "{start}");
        }
        for name in NO_CLAIMS.names {
            assert!(!is_claim(name) && CLAIM_FAMILIES.begin(name), "{name}");
        }
        for start in CREDENTIAL_FAMILIES.names {
            assert!(is_claim(&format!("{start}z")), "{start}");
            for end in CREDENTIAL_ENDS {
                assert!(!is_claim(&format!("{start}a{end}")), "{start}{end}");
            }
        }
        for name in ["x-auth-request-access-token", "x-ms-token-aad-id-token", "x-edged-a-token"] {
            assert!(is_claim(name), "{name}");
        }
        for name in HEADS.names.iter().chain(&HEAD_FAMILIES.names) {
            assert!(is_for_heads(name), "{name}");
        }
        let long = "x".repeat(70);
        for name in ["", "t", "tea", "hose", "connectiom", "viaa", "9", "~", &long] {
            assert!(!is_hop(name) && !is_claim(name) && !is_telltale(name), "{name}");
        }
        assert!(is_claim("x-edged-a") && !is_claim("x-edge") && !is_claim("accept"));
    }
}
