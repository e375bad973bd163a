//! Certificates of every kind that a test needs: authorities, servers, clients, revocation lists.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
pub use rcgen::SanType;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
    RevokedCertParams, SerialNumber,
};

/// An authority that signs certificates into a folder.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    dir: PathBuf,
    /// Its own certificate, PEM.
    pub ca: PathBuf,
}

/// A certificate in files.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// PEM.
    pub chain: PathBuf,
    /// PEM, mode 0600.
    pub key: PathBuf,
    /// Its number.
    pub serial: u64,
}

impl Authority {
    /// A new one; its certificate is `NAME-ca.pem`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, format!("{name} authority"));
        let key = KeyPair::generate()?;
        let ca = dir.join(format!("{name}-ca.pem"));
        fs::write(&ca, params.self_signed(&key)?.pem())?;
        Ok(Self { params, key, dir: dir.to_owned(), ca })
    }

    /// Signs a certificate for these names, under a file name, good from `from` to `to` (seconds
    /// from now).
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn sign(&self, file: &str, names: &[&str], from: i64, to: i64) -> Result<Leaf> {
        self.sign_with(file, names, from, to, &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
    }

    /// Signs a certificate with this common name and these other names, good for a day.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn sign_as(&self, file: &str, common_name: &str, names: Vec<SanType>) -> Result<Leaf> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = names;
        params.distinguished_name.push(DnType::CommonName, common_name);
        self.issue(file, params, (-60, DAY), &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
    }

    /// As [`Self::sign`], good for a day, with an RSA key that `openssl` makes.
    ///
    /// # Errors
    /// If the folder cannot be written, or without openssl.
    pub fn sign_rsa(&self, file: &str, names: &[&str]) -> Result<Leaf> {
        let made = std::process::Command::new("openssl").args(["genrsa", "2048"]).output()?;
        let pem = String::from_utf8(made.stdout)?;
        let key = KeyPair::from_pem_and_sign_algo(&pem, &PKCS_RSA_SHA256)?;
        self.sign_with(file, names, -60, DAY, &key)
    }

    fn sign_with(
        &self,
        file: &str,
        names: &[&str],
        from: i64,
        to: i64,
        key: &KeyPair,
    ) -> Result<Leaf> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone())?;
        params
            .distinguished_name
            .push(DnType::CommonName, names.first().cloned().unwrap_or_default());
        self.issue(file, params, (from, to), key)
    }

    fn issue(
        &self,
        file: &str,
        mut params: CertificateParams,
        (from, to): (i64, i64),
        key: &KeyPair,
    ) -> Result<Leaf> {
        let serial = u64::from_be_bytes(key.public_key_raw()[1..9].try_into()?) >> 1;
        params.serial_number = Some(SerialNumber::from(serial));
        (params.not_before, params.not_after) = (at(from).into(), at(to).into());
        let leaf = params.signed_by(key, &Issuer::from_params(&self.params, &self.key))?;
        let (chain, key_path) =
            (self.dir.join(format!("{file}.pem")), self.dir.join(format!("{file}.key")));
        fs::write(&chain, leaf.pem())?;
        fs::write(&key_path, key.serialize_pem())?;
        fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600))?;
        Ok(Leaf { chain, key: key_path, serial })
    }

    /// Writes an OCSP response that says that a certificate is good, as `openssl ocsp` makes it.
    ///
    /// # Errors
    /// Without openssl.
    pub fn respond(&self, leaf: &Leaf, file: &Path) -> Result<()> {
        let (index, key) = (self.dir.join("index.txt"), self.dir.join("responder.key"));
        let serial = format!("{:X}", leaf.serial);
        let serial = if serial.len() % 2 == 0 { serial } else { format!("0{serial}") };
        fs::write(&index, format!("V\t491231235959Z\t\t{serial}\tunknown\t/CN=leaf\n"))?;
        fs::write(&key, self.key.serialize_pem())?;
        let mut openssl = std::process::Command::new("openssl");
        openssl.arg("ocsp").arg("-index").arg(&index).arg("-rsigner").arg(&self.ca);
        openssl.arg("-rkey").arg(&key).arg("-CA").arg(&self.ca).arg("-issuer").arg(&self.ca);
        openssl.arg("-cert").arg(&leaf.chain).arg("-respout").arg(file);
        let done = openssl.args(["-ndays", "1", "-noverify"]).output()?;
        ensure!(file.exists(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// As [`Self::respond`], with another end, so many seconds from now, than what was signed.
    ///
    /// # Errors
    /// As there.
    pub fn respond_until(&self, leaf: &Leaf, file: &Path, seconds: i64) -> Result<()> {
        let made = file.with_extension("whole");
        self.respond(leaf, &made)?;
        let mut bytes = fs::read(made)?;
        // When it was made, from when it holds, until when: each a GeneralizedTime of 15 characters.
        let times = bytes.windows(2).enumerate().filter(|(_, two)| *two == [0x18, 15]);
        let (place, _) = times.clone().nth(2).context("no end")?;
        let since = at(seconds).duration_since(SystemTime::UNIX_EPOCH)?;
        let written = edge_policy::calendar::rfc3339(u64::try_from(since.as_millis())?);
        let digits = written.bytes().filter(u8::is_ascii_digit).take(14).chain(*b"Z");
        bytes[place + 2..place + 17].copy_from_slice(&digits.collect::<Vec<_>>());
        // A file changes at once.
        let new = file.with_extension("new");
        fs::write(&new, bytes)?;
        Ok(fs::rename(new, file)?)
    }

    /// Writes the list of what was revoked.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn revoke(&self, file: &str, revoked: &[&Leaf]) -> Result<PathBuf> {
        self.revoke_until(file, revoked, DAY)
    }

    /// The same, with the next one due so many seconds from now.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn revoke_until(&self, file: &str, revoked: &[&Leaf], seconds: i64) -> Result<PathBuf> {
        let one = |leaf: &&Leaf| RevokedCertParams {
            serial_number: SerialNumber::from(leaf.serial),
            revocation_time: at(-60).into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(-2 * DAY).into(),
            next_update: at(seconds).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(one).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::from_params(&self.params, &self.key))?;
        let path = self.dir.join(file);
        fs::write(&path, list.pem()?)?;
        Ok(path)
    }
}

/// So many seconds from now.
fn at(seconds: i64) -> SystemTime {
    let (now, by) = (SystemTime::now(), Duration::from_secs(seconds.unsigned_abs()));
    if seconds < 0 { now - by } else { now + by }
}

/// Seconds of a day.
pub const DAY: i64 = 86_400;
