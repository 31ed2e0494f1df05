//! Addresses: listeners, networks, endpoints and the Redis server.

use std::net::SocketAddr;

use ipnet::IpNet;
use url::Url;

use super::scalar::{Scalar, instead};
use crate::secret::Secret;

impl Scalar for SocketAddr {
    fn allowed() -> String {
        "an IP address and port, such as 0.0.0.0:8080 or [::1]:8080".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| instead::<Self>("is not an address"))
    }
}

/// Where metrics are served, if anywhere.
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
        match network == network.trunc() {
            true => Ok(network),
            false => Err(instead::<Self>("has bits set beyond its prefix length")),
        }
    }
}

/// The URL of one server of an upstream.
pub struct EndpointUrl(pub Url);

impl Scalar for EndpointUrl {
    fn allowed() -> String {
        "http://host:port or https://host:port".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(instead::<Self>(reason));
        let Ok(url) = Url::parse(text) else {
            return wrong("is not a URL");
        };
        match &url {
            url if !matches!(url.scheme(), "http" | "https") => wrong("has another scheme"),
            url if !url.username().is_empty() || url.password().is_some() => {
                wrong("has a user or password")
            }
            url if url.path() != "/" => wrong("has a path"),
            url if url.query().is_some() || url.fragment().is_some() => {
                wrong("has a query or fragment")
            }
            url if url.port() == Some(0) => wrong("has the port 0"),
            _ => Ok(Self(url)),
        }
    }
}

/// The URL of the Redis server; its messages never show it.
pub struct RedisUrl(pub Secret);

impl Scalar for RedisUrl {
    fn allowed() -> String {
        "redis://[user:password@]host[:port][/database] or rediss://… for TLS".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(instead::<Self>(reason));
        let Ok(url) = Url::parse(text) else {
            return wrong("is not a URL (percent-encode special characters of a password)");
        };
        let database = url.path().trim_start_matches('/');
        match &url {
            url if !matches!(url.scheme(), "redis" | "rediss") => wrong("has another scheme"),
            url if url.host_str().is_none_or(str::is_empty) => wrong("has no host"),
            url if url.query().is_some() || url.fragment().is_some() => {
                wrong("has a query or fragment (percent-encode special characters of a password)")
            }
            _ if !database.is_empty() && database.parse::<u8>().is_err() => {
                wrong("has a path that is not the number of a database")
            }
            _ => Ok(Self(Secret::new(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_urls() {
        for text in ["http://127.0.0.1:3001", "https://users.internal", "http://[::1]:80/"] {
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
        ] {
            assert!(EndpointUrl::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn redis_urls() {
        for text in
            ["redis://redis:6379", "rediss://u:p%40@h", "redis://:p@[::1]:6379/15", "redis://h/"]
        {
            assert!(RedisUrl::read(text).is_ok(), "{text}");
        }
        for text in [
            "redis-cluster://hunter2@h",
            "redis-sentinel://h",
            "http://h",
            "redis:hunter2",
            "redis:///0",
            "redis://:hunter2#x@h",
            "redis://h/hunter2",
            "redis://h/1000",
            "redis://h?password=hunter2",
            "hunter2",
        ] {
            let message =
                RedisUrl::read(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
            assert!(!message.contains("hunter2"), "{message}");
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
