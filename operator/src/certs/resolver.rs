//! The certificate that is shown at the next handshake.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{CertError, authority::Issued};

/// Holds the certificate. Clones hold the same.
#[derive(Clone, Debug, Default)]
pub struct Certificates(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Certificates {
    /// From now on this one is shown.
    pub(crate) fn replace(&self, issued: Issued) -> Result<(), CertError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key));
        let key = ring::sign::any_supported_type(&key)?;
        let certified = CertifiedKey::new(vec![CertificateDer::from(issued.der)], key);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }

    /// A TLS server that shows it.
    ///
    /// # Errors
    /// Where rustls supports no protocol version, which can't be.
    pub fn server_config(&self) -> Result<ServerConfig, CertError> {
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(config.with_no_client_auth().with_cert_resolver(Arc::new(self.clone())))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
