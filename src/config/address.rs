//! Addresses: listeners, networks, endpoints and Redis.

use std::net::SocketAddr;

use http::uri::PathAndQuery;
use ipnet::IpNet;
use url::Url;

use super::scalar::{Scalar, instead};
use crate::base::secret::Secret;
use crate::store::StoreUrl;
use crate::store::open::{URL_FORMS, is_prefix};
use crate::upstream::rules::{EndpointUrl, Scheme};

impl Scalar for SocketAddr {
    fn allowed() -> String {
        "an IP address and port, such as 0.0.0.0:8080 or [::1]:8080".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| instead::<Self>("is not an address"))
    }
}

/// The address that serves metrics, or none.
pub struct MetricsAddress(pub Option<SocketAddr>);

impl Scalar for MetricsAddress {
    fn allowed() -> String {
        "an IP address and port, such as 127.0.0.1:9090, or none".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => match text.parse() {
                Ok(address) => Ok(Self(Some(address))),
                Err(_) => Err(instead::<Self>("is not an address")),
            },
        }
    }
}

impl Scalar for IpNet {
    fn allowed() -> String {
        "a network such as 10.0.0.0/8, or one address such as 10.1.2.3/32".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let network: Self = text.parse().map_err(|_| instead::<Self>("is not a CIDR"))?;
        if network != network.trunc() {
            return Err(instead::<Self>("has bits set beyond its prefix length"));
        }
        // The addresses of clients are compared in their plain form, so such a network would never match.
        match network.addr().is_ipv6() && network.addr().to_canonical().is_ipv4() {
            true => Err(instead::<Self>("is an IPv4 network that is written as IPv6")),
            false => Ok(network),
        }
    }
}

/// What the names of all keys in Redis start with.
pub struct KeyPrefix(pub String);

impl Scalar for KeyPrefix {
    fn allowed() -> String {
        "up to 64 letters, digits and characters of `:_-./`".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match is_prefix(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(instead::<Self>("is not a prefix")),
        }
    }
}

impl Scalar for EndpointUrl {
    fn allowed() -> String {
        "http://host:port, https://host:port or h2c://host:port".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(instead::<Self>(reason));
        // To the library, h2c is a scheme whose hosts and ports it knows nothing of.
        let h2c = text.strip_prefix("h2c://").map(|rest| format!("http://{rest}"));
        let Ok(url) = Url::parse(h2c.as_deref().unwrap_or(text)) else {
            return wrong("is not a URL");
        };
        let scheme = match url.scheme() {
            "http" if h2c.is_some() => Scheme::H2c,
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return wrong("has another scheme"),
        };
        match &url {
            url if !url.username().is_empty() || url.password().is_some() => {
                wrong("has a user or password")
            }
            url if url.path() != "/" => wrong("has a path"),
            url if url.query().is_some() || url.fragment().is_some() => {
                wrong("has a query or fragment")
            }
            url if url.port() == Some(0) => wrong("has the port 0"),
            url => match (url.host_str(), url.port_or_known_default()) {
                (Some(host), Some(port)) => Ok(Self { host: host.to_owned(), port, scheme }),
                _ => wrong("is not a URL"),
            },
        }
    }
}

/// The path that a health check asks for, with or without a query.
pub struct HealthPath(pub String);

impl Scalar for HealthPath {
    fn allowed() -> String {
        "a path that starts with /, such as /health".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let is_path = text.starts_with('/') && PathAndQuery::try_from(text).is_ok();
        match is_path && !text.contains('#') {
            true => Ok(Self(text.to_owned())),
            false => Err(instead::<Self>("is not a path")),
        }
    }
}

/// The name of a gRPC service; empty for the whole server.
pub struct GrpcService(pub String);

impl Scalar for GrpcService {
    fn allowed() -> String {
        "the name of a gRPC service of up to 100 letters, digits, `_` and `.`, or \"\" for the whole server".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
        match text.len() <= 100 && text.bytes().all(fits) {
            true => Ok(Self(text.to_owned())),
            false => Err(instead::<Self>("is not a name")),
        }
    }
}

/// The name that a certificate must be for.
pub struct ServerName(pub String);

impl Scalar for ServerName {
    fn allowed() -> String {
        "a host name or an IP address, such as users.internal".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match rustls::pki_types::ServerName::try_from(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(instead::<Self>("is not a name")),
        }
    }
}

/// Its messages never show the URL.
impl Scalar for StoreUrl {
    fn allowed() -> String {
        URL_FORMS.into()
    }

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(&Secret::new(text)).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_urls() {
        for text in [
            "http://127.0.0.1:3001",
            "https://users.internal",
            "http://[::1]:80/",
            "h2c://a:50051",
            "h2c://[::1]",
        ] {
            assert!(EndpointUrl::read(text).is_ok(), "{text}");
        }
        for text in [
            "127.0.0.1:3001",
            "localhost",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://a?b",
            "http://a#b",
            "http://u@a",
            "http://:p@a",
            "http://a:0",
            "http://a:99999",
            "h2c://",
            "h2c://a/b",
            "h2c:a",
            "h2://a",
        ] {
            assert!(EndpointUrl::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks() {
        assert!(IpNet::read("10.0.0.0/8").is_ok());
        assert!(IpNet::read("fd00::/8").is_ok());
        for text in ["10.0.0.1/8", "10.0.0.0", "10.0.0.0/33", "localhost"] {
            assert!(IpNet::read(text).is_err(), "{text}");
        }
    }
}
