//! The certificates of a cluster: one authority, which signs servers and clients.

use std::{
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};

/// A certificate authority in a folder.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of a certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority, whose files lie in this folder.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "cluster");
        let key = KeyPair::generate()?;
        fs::write(dir.join("ca.crt"), params.self_signed(&key)?.pem())?;
        Ok(Self { dir: dir.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Signs a server that is reached by these names and addresses.
    ///
    /// # Errors
    /// When a name isn't one, or a file can't be written.
    pub fn server(&self, file: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, file);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(file, params)
    }

    /// Signs a client that is this user, and in this group.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, params)
    }

    fn sign(&self, file: &str, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = self.dir.join(format!("{file}.crt"));
        fs::write(&certificate, params.signed_by(&key, &self.issuer)?.pem())?;
        let key = self.write_key(file, &key)?;
        Ok(Identity { certificate, key })
    }

    /// Makes a key that signs no certificate (the tokens of service accounts), as `FILE.key`, and its
    /// public half, as `FILE.pub`.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn key(&self, file: &str) -> Result<()> {
        let key = KeyPair::generate()?;
        fs::write(self.dir.join(format!("{file}.pub")), key.public_key_pem())?;
        self.write_key(file, &key).map(drop)
    }

    /// Where a key is.
    pub fn key_file(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.key"))
    }

    fn write_key(&self, file: &str, key: &KeyPair) -> Result<PathBuf> {
        let path = self.key_file(file);
        File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut out| out.write_all(key.serialize_pem().as_bytes()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// The signature by a key of an [`Authority`], in the form that tokens have it (RFC 7518, section 3.4: both numbers
/// behind each other).
///
/// # Errors
/// When the file holds no key.
pub fn sign(key: &Path, text: &[u8]) -> Result<Vec<u8>> {
    let pem = fs::read_to_string(key).with_context(|| format!("read {}", key.display()))?;
    let der = KeyPair::from_pem(&pem)?.serialize_der();
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random)
        .map_err(|error| anyhow!("{} can't sign: {error}", key.display()))?;
    let signature = key.sign(&random, text).map_err(|error| anyhow!("sign: {error}"))?;
    Ok(signature.as_ref().to_vec())
}
