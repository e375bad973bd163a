//! `edgectl sign`: signs a request as a client would, and prints the curl line that sends it. Asks
//! no daemon. The secret comes from a file or the environment, and leaves in no form but signatures.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaKeyPair,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use clap::ValueEnum;
use edge_identity::signed::{self, Algorithm, Message};
use edge_policy::{head::Host, target::Target};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use zeroize::Zeroizing;

use crate::{
    clock,
    secret::{Origin, Secret},
};

/// What to sign, and with what.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The id of the key
    #[arg(long, value_name = "ID")]
    key_id: String,
    /// The file of its secret, in hexadecimal as `edgectl key create --signing` told it, or of its
    /// private key (PEM, PKCS#8)
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "key_env",
        conflicts_with = "key_env"
    )]
    key_file: Option<PathBuf>,
    /// The environment variable that holds either
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// How to sign
    #[arg(long, value_enum, default_value_t = Scheme::V1)]
    scheme: Scheme,
    /// Sign with RSA as PKCS#1 v1.5, for a key that was made with --algorithm rsa-v1_5-sha256
    #[arg(long)]
    rsa_v1_5: bool,
    /// The method
    #[arg(long, short = 'X', default_value = "GET")]
    method: Method,
    /// The URL: https://HOST[:PORT]/PATH[?QUERY]
    #[arg(long)]
    url: Uri,
    /// The body: @FILE, or the text itself
    #[arg(long)]
    body: Option<String>,
    /// A further header, sent and, with rfc9421, signed: "NAME: VALUE"
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    more: Vec<(HeaderName, HeaderValue)>,
    /// Print the headers alone, one a line
    #[arg(long)]
    headers: bool,
}

/// How to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scheme {
    /// X-Signature over the whole request
    V1,
    /// HTTP Message Signatures
    Rfc9421,
}

impl Sign {
    /// What to print.
    ///
    /// # Errors
    /// If the key cannot be used or the URL has no single meaning.
    pub(super) fn print(&self) -> anyhow::Result<String> {
        let origin = match (&self.key_file, &self.key_env) {
            (Some(path), _) => Origin::File(path.clone()),
            (None, name) => Origin::Env(name.clone().unwrap_or_default()),
        };
        let secret = origin.read().with_context(|| format!("cannot use {origin}"))?;
        let signer = Signer::of(&secret, self.rsa_v1_5).with_context(|| origin.to_string())?;
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let nonce = URL_SAFE_NO_PAD.encode(random);
        let request = self.request()?;
        let headers = self.sign(&request, &signer, clock::unix_ms() / 1000, &nonce)?;
        Ok(if self.headers { lines(&headers) } else { self.curl(&request, &headers) })
    }

    fn request(&self) -> anyhow::Result<Request> {
        let url = &self.url;
        if url.scheme_str() != Some("https") {
            bail!("--url must begin with https://");
        }
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let host: Host = authority.parse().with_context(|| format!("'{authority}'"))?;
        let target = url.path_and_query().map_or("/", |target| target.as_str());
        let target = Target::parse(target, usize::MAX)
            .map_err(|_| anyhow::anyhow!("the path or the query has no single meaning"))?;
        let body = match self.body.as_deref() {
            None => None,
            Some(text) => Some(match text.strip_prefix('@') {
                Some(path) => fs::read(path).with_context(|| format!("cannot read {path}"))?,
                None => text.as_bytes().to_vec(),
            }),
        };
        Ok(Request { host, target, body: body.filter(|body| !body.is_empty()) })
    }

    /// The headers to send, those that are given included.
    fn sign(
        &self,
        request: &Request,
        signer: &Signer,
        now_s: u64,
        nonce: &str,
    ) -> anyhow::Result<HeaderMap> {
        let mut headers: HeaderMap = self.more.iter().cloned().collect();
        let now = now_s.to_string();
        match self.scheme {
            Scheme::V1 => {
                let sha256 = signed::sha256_hex(request.body.as_deref().unwrap_or_default());
                let message = request.message(&self.method, &headers);
                let text = signed::canonical(&message, &now, nonce, &sha256, &self.key_id);
                let signature = URL_SAFE_NO_PAD.encode(signer.sign(text.as_bytes())?);
                headers.insert(HeaderName::from_static("x-api-key"), self.key_id.parse()?);
                headers.insert(signed::X_TIMESTAMP, now.parse()?);
                headers.insert(signed::X_NONCE, nonce.parse()?);
                if request.body.is_some() {
                    headers.insert(signed::X_CONTENT_SHA256, sha256.parse()?);
                }
                headers.insert(signed::X_SIGNATURE, format!("v1={signature}").parse()?);
            }
            Scheme::Rfc9421 => {
                if let Some(body) = &request.body {
                    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
                    let digest = format!("sha-256=:{}:", STANDARD.encode(digest));
                    headers.insert(signed::CONTENT_DIGEST, digest.parse()?);
                }
                let fields = headers.keys().map(|name| format!(" \"{name}\"")).collect::<String>();
                let algorithm = signer.algorithm().name();
                let input = format!(
                    "(\"@method\" \"@authority\" \"@path\" \"@query\"{fields});created={now};\
                     nonce=\"{nonce}\";keyid=\"{}\";alg=\"{algorithm}\"",
                    self.key_id
                );
                let message = request.message(&self.method, &headers);
                let base = signed::base(&input, &message).context("--header cannot be signed")?;
                let signature = STANDARD.encode(signer.sign(base.as_bytes())?);
                headers.insert(signed::SIGNATURE_INPUT, format!("sig1={input}").parse()?);
                headers.insert(signed::SIGNATURE, format!("sig1=:{signature}:").parse()?);
            }
        }
        Ok(headers)
    }

    fn curl(&self, request: &Request, headers: &HeaderMap) -> String {
        let method = &self.method;
        let mut line = format!("curl --path-as-is --request {method}");
        for header in lines(headers).lines() {
            line += &format!(" --header {}", quoted(header));
        }
        if let Some(body) = self.body.as_deref().filter(|_| request.body.is_some()) {
            // A text that is none of a file's name must not be taken for one.
            let how = if body.starts_with('@') { "--data-binary" } else { "--data-raw" };
            line += &format!(" {how} {}", quoted(body));
        }
        let Request { host, target, .. } = request;
        let url = format!("https://{host}{}", target.path_and_query());
        format!("{line} {}\n", quoted(&url))
    }
}

/// What is signed: the parts in their normal form, and the body.
struct Request {
    host: Host,
    target: Target,
    body: Option<Vec<u8>>,
}

impl Request {
    fn message<'a>(&'a self, method: &'a Method, headers: &'a HeaderMap) -> Message<'a> {
        let has_body = self.body.is_some();
        Message { method, host: &self.host, target: &self.target, headers, has_body }
    }
}

/// A client's key.
enum Signer {
    Hmac(Box<hmac::Key>),
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair, Algorithm),
    Rsa(RsaKeyPair, Algorithm),
}

impl Signer {
    fn of(secret: &Secret, rsa_v1_5: bool) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(secret.expose()).ok().context("is no text")?;
        if let Some(der) = signed::pem(text, "PRIVATE KEY").map(Zeroizing::new) {
            return Self::of_pkcs8(&der, rsa_v1_5);
        }
        if text.contains("PRIVATE KEY-----") {
            bail!(
                "is a private key in another form than PKCS#8; `openssl pkcs8 -topk8 -nocrypt` makes one"
            );
        }
        let secret = edge_identity::hex::read_any(text.trim()).map(Zeroizing::new);
        let secret = secret.filter(|secret| secret.len() >= crate::secret::BYTES_MIN);
        let secret =
            secret.context("is neither a private key in PEM nor a secret in hexadecimal")?;
        Ok(Self::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &secret))))
    }

    fn of_pkcs8(der: &[u8], rsa_v1_5: bool) -> anyhow::Result<Self> {
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Self::Ed25519(pair));
        }
        for (algorithm, name) in [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::EcdsaP256Sha256),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::EcdsaP384Sha384),
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(algorithm, der) {
                return Ok(Self::Ecdsa(pair, name));
            }
        }
        let algorithm = if rsa_v1_5 { Algorithm::RsaV1_5Sha256 } else { Algorithm::RsaPssSha512 };
        match RsaKeyPair::from_pkcs8(der) {
            Ok(pair) => Ok(Self::Rsa(pair, algorithm)),
            Err(_) => bail!("is neither an Ed25519 key nor ECDSA P-256 or P-384 nor RSA"),
        }
    }

    const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hmac(_) => Algorithm::HmacSha256,
            Self::Ed25519(_) => Algorithm::Ed25519,
            Self::Ecdsa(_, algorithm) | Self::Rsa(_, algorithm) => *algorithm,
        }
    }

    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let random = SystemRandom::new();
        Ok(match self {
            Self::Hmac(key) => hmac::sign(key, message).as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Ecdsa(pair, _) => pair.sign(&random, message)?.as_ref().to_vec(),
            Self::Rsa(pair, algorithm) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let encoding = match algorithm {
                    Algorithm::RsaV1_5Sha256 => &RSA_PKCS1_SHA256,
                    _ => &RSA_PSS_SHA512,
                };
                pair.sign(encoding, &random, message, &mut signature)?;
                signature
            }
        })
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a header is \"NAME: VALUE\"")?;
    let name = name.trim().parse::<HeaderName>().map_err(|fault| fault.to_string())?;
    let value = value.trim().parse::<HeaderValue>().map_err(|fault| fault.to_string())?;
    Ok((name, value))
}

fn lines(headers: &HeaderMap) -> String {
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))
    };
    headers.iter().map(line).collect()
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use edge_identity::signed::{Policy, PublicKey, Verifier};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sign: Sign,
    }

    fn parsed(words: &str) -> Sign {
        let words = format!("sign --key-id 0123456789ab --key-env X {words}");
        Line::try_parse_from(words.split(' ')).unwrap().sign
    }

    const NOW: u64 = 1_800_000_000;

    /// What edged says of what is signed here.
    fn holds(sign: &Sign, signer: &Signer, verifier: &Verifier<'_>) -> bool {
        let request = sign.request().unwrap();
        let headers = sign.sign(&request, signer, NOW, "0123456789abcdef").unwrap();
        let message = request.message(&sign.method, &headers);
        let policy = Policy {
            rfc9421: true,
            v1: true,
            v0: false,
            window_s: 300,
            leeway_s: 30,
            nonce: true,
            label: None,
            tag: None,
            cover: Vec::new(),
        };
        let claimed = signed::read(&message, &policy, NOW).unwrap();
        let Ok(proven) = claimed.prove(&message, "0123456789ab", verifier, b"") else {
            return false;
        };
        proven.body.is_none_or(|mut check| {
            check.see(request.body.as_deref().unwrap_or_default());
            check.holds()
        })
    }

    #[test]
    fn what_it_signs_holds_in_both_schemes_and_with_every_kind_of_key() {
        let hex = "07".repeat(32);
        let secret = Secret::new(format!("{hex}\n").into_bytes());
        let hmac = Signer::of(&secret, false).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let shared = Verifier::Secret(Box::new(key));
        for words in [
            "--url https://a.test/",
            "--url https://A.test:8443/x//y/../z?b=2&a=1 --method POST --body hello -H x-a:b",
            "--url https://a.test/?q= --scheme rfc9421",
            "--url https://a.test/p --scheme rfc9421 -X PUT --body {} -H content-type:a/b",
        ] {
            assert!(holds(&parsed(words), &hmac, &shared), "{words}");
        }
        let random = SystemRandom::new();
        let rsa = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let pairs = [
            (Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref().to_vec(), None),
            (
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                    .unwrap()
                    .as_ref()
                    .to_vec(),
                None,
            ),
            (
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random)
                    .unwrap()
                    .as_ref()
                    .to_vec(),
                None,
            ),
            (der(&rsa), None),
            (der(&rsa), Some(Algorithm::RsaV1_5Sha256)),
        ];
        for (pkcs8, algorithm) in pairs {
            let pem = pem("PRIVATE KEY", &pkcs8);
            let signer = Signer::of(&Secret::new(pem.into_bytes()), algorithm.is_some()).unwrap();
            let public = PublicKey::from_pem(&pem_of_public(&signer), algorithm).unwrap();
            assert_eq!(public.algorithm(), signer.algorithm());
            for words in ["--url https://a.test/", "--url https://a.test/ --scheme rfc9421"] {
                assert!(holds(&parsed(words), &signer, &Verifier::Public(&public)), "{public:?}");
                assert!(!holds(&parsed(words), &hmac, &Verifier::Public(&public)), "{public:?}");
            }
        }
    }

    fn der(pair: &RsaKeyPair) -> Vec<u8> {
        use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        der.as_ref().to_vec()
    }

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    fn pem_of_public(signer: &Signer) -> String {
        use aws_lc_rs::{encoding::AsDer as _, signature::KeyPair as _};
        let der = match signer {
            Signer::Hmac(_) => panic!("has no public key"),
            Signer::Ed25519(pair) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
            Signer::Ecdsa(pair, _) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
            Signer::Rsa(pair, _) => pair.public_key().as_der().unwrap().as_ref().to_vec(),
        };
        pem("PUBLIC KEY", &der)
    }

    #[test]
    fn the_line_is_one_for_a_shell_and_holds_no_secret() {
        let secret = Secret::new("07".repeat(32).into_bytes());
        let signer = Signer::of(&secret, false).unwrap();
        let sign = parsed("--url https://a.test/it's -X POST --body @/dev/null");
        let request = sign.request().unwrap();
        assert!(request.body.is_none(), "an empty file is no body");
        let sign = parsed("--url https://a.test/it's -X POST --body it's");
        let request = sign.request().unwrap();
        let headers = sign.sign(&request, &signer, NOW, "0123456789abcdef").unwrap();
        let line = sign.curl(&request, &headers);
        assert!(
            line.starts_with("curl --path-as-is --request POST --header 'x-api-key: 0123"),
            "{line}"
        );
        assert!(line.contains(r"--data-raw 'it'\''s' 'https://a.test/it'\''s'"), "{line}");
        assert!(!line.contains("0707") && line.contains("x-signature: v1="), "{line}");
    }

    #[test]
    fn what_cannot_be_signed_is_named() {
        let fault = |words: &str| format!("{:#}", parsed(words).request().err().unwrap());
        assert!(fault("--url http://a.test/").contains("https://"));
        assert!(fault("--url https://a.test/%2f").contains("single meaning"));
        assert!(fault("--url https://a.test/ --body @/no/such").contains("/no/such"));
        let key =
            |text: &str| Signer::of(&Secret::new(text.into()), false).err().unwrap().to_string();
        assert!(key("0707").contains("hexadecimal"));
        assert!(key("-----BEGIN EC PRIVATE KEY-----").contains("topk8"));
        assert!(
            key("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----").contains("Ed25519")
        );
    }
}
