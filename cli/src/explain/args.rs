//! Who connects, and where to, as people write it.

use std::{fmt, net::SocketAddr, str::FromStr};

use clap::ValueEnum;

/// `NAMESPACE/NAME`
#[derive(Clone, Debug)]
pub struct Caller {
    pub namespace: String,
    pub name: String,
}

impl FromStr for Caller {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("expected NAMESPACE/NAME, such as shop/client".to_owned()),
        }
    }
}

/// `HOST:PORT`
#[derive(Clone, Debug)]
pub enum AskedHost {
    Address(SocketAddr),
    Host(String, u16),
}

impl AskedHost {
    /// As a client writes it into the `Host` header: without the port of HTTP.
    pub fn authority(&self) -> String {
        match self {
            Self::Address(at) if at.port() == 80 => at.to_string().trim_end_matches(":80").to_owned(),
            Self::Address(at) => at.to_string(),
            Self::Host(host, 80) => host.clone(),
            Self::Host(host, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for AskedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(at) => at.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for AskedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(['/', ':']));
        let host = parts.and_then(|(host, port)| Some(Self::Host(host.to_owned(), port.parse().ok()?)));
        host.ok_or_else(|| {
            "expected ADDRESS:PORT or HOST:PORT, such as 10.96.0.10:80, [fd00::10]:80 or reviews.shop:80"
                .to_owned()
        })
    }
}

/// A protocol that is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_addresses_or_hosts() {
        for address in ["10.96.0.10:80", "[fd00::10]:80"] {
            assert!(matches!(address.parse(), Ok(AskedHost::Address(_))), "{address}");
        }
        assert!(matches!("reviews.shop:80".parse(), Ok(AskedHost::Host(host, 80)) if host == "reviews.shop"));
        for bad in
            ["reviews", "reviews:", "reviews:http", ":80", "http://reviews:80", "fd00::10:80", "a:70000"]
        {
            assert!(bad.parse::<AskedHost>().is_err(), "{bad}");
        }
        assert!("shop/client".parse::<Caller>().is_ok());
        for bad in ["client", "/client", "shop/", "a/b/c"] {
            assert!(bad.parse::<Caller>().is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_name_their_host_as_clients_do() {
        for (to, authority) in
            [("reviews:80", "reviews"), ("reviews:81", "reviews:81"), ("10.0.0.1:80", "10.0.0.1")]
        {
            assert_eq!(to.parse::<AskedHost>().unwrap().authority(), authority);
        }
    }
}
