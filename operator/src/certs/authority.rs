//! The authority as a value, and how it changes with time. No I/O and no clock: time is an argument.
//!
//! ```text
//!  current ------------------------------------------------> signs
//!      at 2/3 of its life: next is made, published in the bundle, signs nothing yet
//!      after the overlap:  next becomes current; the old one stays in the bundle until it expires
//! ```

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A certificate or key can't be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The stored authority isn't one.
    #[error("the stored authority can't be read: {0}; delete the Secret to have a new one made")]
    Stored(String),
    /// rustls refuses it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// How long things last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// An authority.
    pub authority: Duration,
    /// A certificate to serve with.
    pub certificate: Duration,
    /// How long a new authority is published before it signs: agents must have read it by then.
    pub overlap: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3_600);
        Self { authority: HOUR * 24 * 365, certificate: HOUR * 24 * 7, overlap: HOUR * 24 }
    }
}

/// A moment, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(u64);

impl Moment {
    /// The moment of the system's clock.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time.as_secs()))
    }

    /// How long until then; zero when it is over.
    pub fn until(self, then: Self) -> Duration {
        Duration::from_secs(then.0.saturating_sub(self.0))
    }

    fn certificate_time(self) -> Result<time::OffsetDateTime, CertError> {
        i64::try_from(self.0)
            .ok()
            .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(|| CertError::Stored("a moment that can't be".to_owned()))
    }
}

/// Clocks of nodes differ; what is signed now is valid since this long.
const SKEW: Duration = Duration::from_secs(300);

/// One certificate that signs, with its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Signer {
    /// PEM.
    certificate: String,
    /// PEM.
    key: String,
    /// Tells it from other authorities of slotmesh.
    name: String,
    since: Moment,
    until: Moment,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key.
        f.debug_struct("Signer")
            .field("since", &self.since)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl Signer {
    fn params(name: &str, since: Moment, until: Moment) -> Result<CertificateParams, CertError> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = Moment(since.0.saturating_sub(SKEW.as_secs())).certificate_time()?;
        params.not_after = until.certificate_time()?;
        Ok(params)
    }

    fn new(now: Moment, lifetimes: &Lifetimes) -> Result<Self, CertError> {
        let (since, until) = (now, now.plus(lifetimes.authority));
        let key = KeyPair::generate()?;
        // The name in the certificates that it signs: two authorities must not share it.
        let name = format!("slotmesh authority {}", since.0);
        let certificate = Self::params(&name, since, until)?.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem(), name, since, until })
    }
}

/// A certificate that was once used to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    certificate: String,
    until: Moment,
}

/// The authority: what signs now, what will, and what did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    current: Signer,
    /// Published, but signing nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Signer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<Former>,
}

/// A certificate to serve with.
pub(crate) struct Issued {
    /// The certificate.
    pub(crate) der: Vec<u8>,
    /// Its key, PKCS#8.
    pub(crate) key: Vec<u8>,
    pub(crate) renew: Moment,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn new(now: Moment, lifetimes: &Lifetimes) -> Result<Self, CertError> {
        Ok(Self { current: Signer::new(now, lifetimes)?, next: None, former: Vec::new() })
    }

    /// The authority from its stored form.
    ///
    /// # Errors
    /// Where it isn't one.
    pub fn read(stored: &[u8]) -> Result<Self, CertError> {
        serde_json::from_slice(stored).map_err(|error| CertError::Stored(error.to_string()))
    }

    /// The stored form.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn write(&self) -> Result<Vec<u8>, CertError> {
        serde_json::to_vec(self).map_err(|error| CertError::Stored(error.to_string()))
    }

    /// What it has become by now; `None` when nothing has changed.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn step(&self, now: Moment, lifetimes: &Lifetimes) -> Result<Option<Self>, CertError> {
        let mut new = self.clone();
        new.former.retain(|former| former.until > now);
        match &new.next {
            Some(next) if next.since.plus(lifetimes.overlap) <= now || new.current.until <= now => {
                let former = Former { certificate: new.current.certificate, until: new.current.until };
                new.current = next.clone();
                new.next = None;
                if former.until > now {
                    new.former.push(former);
                }
            }
            None if new.renew_at() <= now => new.next = Some(Signer::new(now, lifetimes)?),
            _ => {}
        }
        Ok((new != *self).then_some(new))
    }

    /// When the next one has to be made: after two thirds of its life.
    fn renew_at(&self) -> Moment {
        let life = self.current.since.until(self.current.until);
        self.current.since.plus(life * 2 / 3)
    }

    /// When [`step`](Self::step) has something to do next.
    pub fn next_step(&self, lifetimes: &Lifetimes) -> Moment {
        let own = match &self.next {
            Some(next) => next.since.plus(lifetimes.overlap).min(self.current.until),
            None => self.renew_at(),
        };
        self.former.iter().map(|former| former.until).fold(own, Ord::min)
    }

    /// The certificates that agents have to know, as PEM.
    pub fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| next.certificate.as_str());
        let former = self.former.iter().map(|former| former.certificate.as_str());
        let all = std::iter::once(self.current.certificate.as_str()).chain(next).chain(former);
        all.map(|pem| format!("{}\n", pem.trim_end())).collect()
    }

    /// Signs a certificate to serve with under these names.
    pub(crate) fn issue(
        &self,
        names: &[String],
        now: Moment,
        lifetimes: &Lifetimes,
    ) -> Result<Issued, CertError> {
        let signer = &self.current;
        let issuer = Issuer::new(
            Signer::params(&signer.name, signer.since, signer.until)?,
            KeyPair::from_pem(&signer.key)?,
        );
        let until = now.plus(lifetimes.certificate).min(signer.until);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "slotmesh operator");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = Moment(now.0.saturating_sub(SKEW.as_secs())).certificate_time()?;
        params.not_after = until.certificate_time()?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Issued {
            der: certificate.der().to_vec(),
            key: key.serialize_der(),
            renew: now.plus(now.until(until) * 2 / 3),
        })
    }

    /// Whether a certificate that was signed by `other` is still signed by what signs now.
    pub(crate) fn signs_as(&self, other: &Self) -> bool {
        self.current.certificate == other.current.certificate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);

    fn at(days: u32) -> Moment {
        Moment(1_700_000_000).plus(DAY * days)
    }

    #[test]
    fn a_new_authority_is_published_before_it_signs_and_the_old_one_until_it_expires() {
        let lifetimes = Lifetimes { authority: DAY * 90, certificate: DAY * 7, overlap: DAY };
        let first = Authority::new(at(0), &lifetimes).unwrap();
        assert_eq!(first.step(at(59), &lifetimes).unwrap(), None);
        assert_eq!(first.next_step(&lifetimes), at(60));
        let published = first.step(at(60), &lifetimes).unwrap().unwrap();
        assert!(published.signs_as(&first));
        assert_eq!(published.bundle().matches("BEGIN CERTIFICATE").count(), 2);
        assert!(published.bundle().starts_with(&first.bundle()));
        assert_eq!(published.step(at(60).plus(DAY / 2), &lifetimes).unwrap(), None);
        let second = published.step(at(61), &lifetimes).unwrap().unwrap();
        assert!(!second.signs_as(&first));
        assert!(
            second.bundle().contains(first.bundle().trim_end()),
            "what was signed before is still trusted"
        );
        let alone = second.step(at(90), &lifetimes).unwrap().unwrap();
        assert_eq!(alone.bundle().matches("BEGIN CERTIFICATE").count(), 1);
        assert_eq!(Authority::read(&alone.write().unwrap()).unwrap(), alone);
    }

    #[test]
    fn an_operator_that_was_off_for_years_catches_up_step_by_step() {
        let lifetimes = Lifetimes { authority: DAY * 90, certificate: DAY * 7, overlap: DAY };
        let mut authority = Authority::new(at(0), &lifetimes).unwrap();
        let mut steps = 0;
        while let Some(next) = authority.step(at(1_000), &lifetimes).unwrap() {
            (authority, steps) = (next, steps + 1);
        }
        assert_eq!(steps, 2);
        assert!(authority.next_step(&lifetimes) > at(1_000));
    }

    #[test]
    fn a_stored_authority_that_is_none_is_refused_with_the_remedy() {
        let error = Authority::read(b"{}").unwrap_err().to_string();
        assert!(error.contains("delete the Secret"), "{error}");
        let authority = Authority::new(at(0), &Lifetimes::default()).unwrap();
        assert!(!format!("{authority:?}").contains("PRIVATE KEY"));
    }
}
