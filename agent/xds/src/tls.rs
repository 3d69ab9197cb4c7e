//! The way to slotmesh's own operator: TLS, and a token that says whose agent this is.
//!
//! The files are read again for each connection: the kubelet replaces the token before it expires, and
//! the bundle of certificates when the operator changes its authority. So neither needs a restart.

use std::{fs, path::PathBuf};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::{BearerToken, ConnectError, Connector, Tcp, connect::Turns};

const CA_REMEDY: &str =
    "mount the ConfigMap that the operator publishes, and name its ca.crt with --operator-ca";
const TOKEN_REMEDY: &str =
    "mount a projected service account token with the operator's audience, and name it with --operator-token";

/// Connects by TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    endpoint: Endpoint,
    ca: PathBuf,
    token: Option<PathBuf>,
    server_name: Option<String>,
    turns: Turns,
}

impl Tls {
    /// Connects to `url` (`https://…`). `ca` is a file with the certificates (PEM) of which one must have
    /// signed the server's.
    ///
    /// # Errors
    /// Where `url` isn't the address of a TLS server.
    pub fn new(url: &str, ca: impl Into<PathBuf>) -> Result<Self, ConnectError> {
        let address = || ConnectError::Address(url.to_owned());
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_invalid| address())?;
        if endpoint.uri().scheme_str() != Some("https") {
            return Err(address());
        }
        Ok(Self { endpoint, ca: ca.into(), token: None, server_name: None, turns: Turns::default() })
    }

    /// Opens streams with the token in this file.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<PathBuf>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Expects the server to be this one, whatever the address says.
    #[must_use]
    pub fn with_server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

impl Connector for Tls {
    async fn connect(&self) -> Result<Channel, ConnectError> {
        let file = |reason: String| ConnectError::File {
            what: "certificates of the operator",
            path: self.ca.clone(),
            reason,
            remedy: CA_REMEDY,
        };
        let bundle = fs::read(&self.ca).map_err(|error| file(error.to_string()))?;
        if !bundle.windows(11).any(|text| text == b"-----BEGIN ") {
            return Err(file("there is no certificate in it".to_owned()));
        }
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(bundle));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        let endpoint = self.endpoint.clone().tls_config(tls)?;
        Tcp::taking_turns(endpoint, self.turns.clone()).connect().await
    }

    fn token(&self) -> Result<Option<BearerToken>, ConnectError> {
        let Some(path) = &self.token else { return Ok(None) };
        let file = |reason: String| ConnectError::File {
            what: "token",
            path: path.clone(),
            reason,
            remedy: TOKEN_REMEDY,
        };
        let text = fs::read_to_string(path).map_err(|error| file(error.to_string()))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(file("it is empty".to_owned()));
        }
        let mut bearer: BearerToken =
            format!("Bearer {token}").parse().map_err(|_invalid| file("it is no token".to_owned()))?;
        bearer.set_sensitive(true);
        Ok(Some(bearer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(dir: &std::path::Path) -> Tls {
        Tls::new("https://operator.test:15010", dir.join("ca.crt")).unwrap().with_token(dir.join("token"))
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_said_with_its_name_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let tls = tls(dir.path());
        let error = tls.connect().await.unwrap_err().to_string();
        assert!(error.contains("ca.crt") && error.contains("--operator-ca"), "{error}");
        fs::write(dir.path().join("ca.crt"), "nothing").unwrap();
        let error = tls.connect().await.unwrap_err().to_string();
        assert!(error.contains("no certificate in it"), "{error}");
        let error = tls.token().unwrap_err().to_string();
        assert!(error.contains("/token") && error.contains("--operator-token"), "{error}");
        fs::write(dir.path().join("token"), "\n").unwrap();
        assert!(tls.token().unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn the_token_is_read_anew_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let tls = tls(dir.path());
        for secret in ["first", "second"] {
            fs::write(dir.path().join("token"), format!("{secret}\n")).unwrap();
            let token = tls.token().unwrap().unwrap();
            assert_eq!(token.to_str().unwrap(), format!("Bearer {secret}"));
            assert!(!format!("{token:?} {tls:?}").contains(secret));
        }
    }

    #[test]
    fn only_tls_addresses_are_taken() {
        let error = Tls::new("http://operator.test:15010", "ca.crt").unwrap_err().to_string();
        assert!(error.contains("http://operator.test:15010"), "{error}");
    }
}
