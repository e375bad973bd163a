//! Certificates from an authority that speaks ACME (RFC 8555), which looks for the proof of a name
//! in a handshake on port 443 (TLS-ALPN-01, RFC 8737).

use std::{collections::BTreeMap, fs, io::Write as _, sync::Arc};

use anyhow::{Context as _, bail};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};

use super::{Front, Pair};
use crate::{config::settings::Acme, saved};

/// The names whose certificates are due at this time: those that have none, and those of whose time
/// a third is left, or less.
#[must_use]
pub fn due(front: &Front, now_s: i64) -> Vec<String> {
    let is_due = |name: &&String| {
        front.fetched(name).is_none_or(|pair| {
            let life = pair.not_after_s.saturating_sub(pair.not_before_s);
            pair.not_after_s.saturating_sub(now_s) <= life / 3
        })
    };
    front.acme().map_or_else(Vec::new, |acme| acme.names.iter().filter(is_due).cloned().collect())
}

/// Fetches a certificate for a name, keeps it on disk and serves it.
///
/// # Errors
/// If the authority cannot be reached or is not convinced, or the disk fails.
pub async fn fetch(front: &Front, name: &str) -> anyhow::Result<()> {
    let acme = front.acme().context("nothing is to be fetched")?;
    saved::folder(&acme.dir)?;
    let account = account(acme).await?;
    let identifiers = [Identifier::Dns(name.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let proved = prove(front, name, &mut order).await;
    front.set_challenge(name, None);
    proved?;
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&RetryPolicy::default()).await?;
    let text = format!("{chain}\n{key}");
    let pair = pair(&text).map_err(anyhow::Error::msg)?;
    if !pair.own.iter().any(|own| own == name) {
        bail!("the certificate is for {}", pair.own.join(", "));
    }
    saved::replace(&file(acme, name), |kept| kept.write_all(text.as_bytes()))
        .context("cannot keep the certificate")?;
    front.adopt(name, pair)?;
    Ok(())
}

/// Shows the authority what it asks for, until it has made up its mind.
async fn prove(front: &Front, name: &str, order: &mut instant_acme::Order) -> anyhow::Result<()> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            status => bail!("the name is {status:?} to the authority"),
        }
        let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
        let mut challenge = challenge.context("the authority takes no proof over TLS")?;
        let digest = challenge.key_authorization().digest().as_ref().to_vec();
        front.set_challenge(name, Some(&Arc::new(proof(name, &digest)?)));
        challenge.set_ready().await?;
    }
    match order.poll_ready(&RetryPolicy::default()).await? {
        OrderStatus::Ready | OrderStatus::Valid => Ok(()),
        _ => bail!("the authority did not find the proof: can it reach port 443 of {name}?"),
    }
}

/// The handshake that is the proof: a certificate with the digest in it, under its own protocol.
fn proof(name: &str, digest: &[u8]) -> anyhow::Result<ServerConfig> {
    if digest.len() != DIGEST {
        bail!("the authority's challenge has a digest of {} bytes", digest.len());
    }
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions.push(CustomExtension::new_acme_identifier(digest));
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(key)?;
    // Not checked against each other: the extension is critical, and the library knows it not.
    let pair = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(pair));
    config.alpn_protocols = vec![PROOF.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The account at this authority: the one that was made before, or a new one.
async fn account(acme: &Acme) -> anyhow::Result<Account> {
    let builder = || match &acme.ca {
        Some(ca) => Account::builder_with_root(ca),
        None => Account::builder(),
    };
    let path = acme.dir.join("account.json");
    if let Ok(text) = fs::read(&path) {
        let kept: KeptAccount = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged: move it away", path.display()))?;
        if kept.directory == acme.directory {
            return Ok(builder()?.from_credentials(kept.credentials).await?);
        }
    }
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let directory = acme.directory.clone();
    let (account, credentials) = builder()?.create(&new, directory.clone(), None).await?;
    let text = serde_json::to_vec(&KeptAccount { directory, credentials })?;
    saved::replace(&path, |kept| kept.write_all(&text)).context("cannot keep the account")?;
    Ok(account)
}

/// An account on disk.
#[derive(serde::Serialize, serde::Deserialize)]
struct KeptAccount {
    directory: String,
    credentials: AccountCredentials,
}

/// The certificates that were fetched before.
pub(super) fn kept(acme: &Acme) -> BTreeMap<String, Arc<Pair>> {
    let read = |name: &String| {
        let path = file(acme, name);
        let text = fs::read_to_string(&path).ok()?;
        match pair(&text) {
            Ok(pair) => Some((name.clone(), Arc::new(pair))),
            Err(why) => {
                let path = path.display();
                tracing::error!(%path, why, "a certificate that was fetched is damaged");
                None
            }
        }
    };
    acme.names.iter().filter_map(read).collect()
}

/// A certificate with its key, in one text.
fn pair(text: &str) -> Result<Pair, String> {
    let chain = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?;
    Pair::new(chain, key).map_err(|(_, why)| why)
}

fn file(acme: &Acme, name: &str) -> std::path::PathBuf {
    acme.dir.join(format!("{name}.pem"))
}

/// The protocol under which the proof is asked for.
pub(super) const PROOF: &[u8] = b"acme-tls/1";
/// Bytes of what is proved: a SHA-256.
const DIGEST: usize = 32;
