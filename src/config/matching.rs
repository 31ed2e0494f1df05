//! What requests are matched by: path prefixes, permitted routes, hosts and methods.

use std::net::Ipv6Addr;

use super::scalar::{Scalar, instead};
use crate::route::path::{CanonicalPath, PathError};
use crate::route::reserved::endpoint_at_or_above;

/// A route's prefix in the canonical form that request paths are brought into before matching.
pub struct Prefix(pub String);

impl Scalar for Prefix {
    fn allowed() -> String {
        "a path such as /api/v1/users, which matches itself and all beneath it".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(instead::<Self>(reason));
        canonical::<Self>(text)?;
        if text.len() > 1 && text.ends_with('/') {
            return wrong("ends with `/`");
        }
        if text.contains('*') {
            return wrong("holds a `*`");
        }
        match endpoint_at_or_above(text) {
            Some(own) => {
                Err(format!("belongs to the gateway's own endpoint {own}; write another path"))
            }
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// A route that a token is permitted.
pub struct PermittedRoute(pub String);

impl Scalar for PermittedRoute {
    fn allowed() -> String {
        "a path, a path with `*` at its end, or `*` for all".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let path = text.strip_suffix('*').unwrap_or(text);
        if text != "*" {
            canonical::<Self>(path)?;
        }
        match path.contains('*') {
            true => Err(instead::<Self>("holds a `*` before its end")),
            false => Ok(Self(text.to_owned())),
        }
    }
}

/// Checks that `path` is in the form that request paths are brought into before they are matched.
fn canonical<T: Scalar>(path: &str) -> Result<(), String> {
    if path.contains(['?', '#']) {
        return Err(instead::<T>("holds a query or fragment"));
    }
    match CanonicalPath::parse(path) {
        Ok(canonical) if canonical.as_str() != path => {
            Err(format!("is not in canonical form; write {}", canonical.as_str()))
        }
        Ok(_) => Ok(()),
        Err(PathError::NotAbsolute) => Err(instead::<T>("does not start with `/`")),
        Err(PathError::RawByte) => {
            Err(instead::<T>("holds a character that must be percent-encoded"))
        }
        Err(PathError::BrokenEscape) => Err(instead::<T>("holds a `%` without two hex digits")),
        Err(PathError::ForbiddenEscape) => {
            Err(instead::<T>("holds an encoded slash, backslash, NUL or invalid byte"))
        }
        Err(PathError::DotSegment) => Err(instead::<T>("holds a dot segment")),
    }
}

/// The host a route serves.
pub struct Host(pub String);

impl Scalar for Host {
    fn allowed() -> String {
        "one host name or IP address without scheme and port, such as api.example.com".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let host = text.to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let ipv6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let valid = match ipv6 {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => host.len() <= 253 && host.split('.').all(label),
        };
        match valid {
            true => Ok(Self(host)),
            false => Err(instead::<Self>("is not a host")),
        }
    }
}

/// A method a route serves, upper case (RFC 9110 section 9.1).
pub struct Method(pub String);

impl Scalar for Method {
    fn allowed() -> String {
        "a method such as GET".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        match http::Method::from_bytes(text.to_ascii_uppercase().as_bytes()) {
            Ok(method) => Ok(Self(method.as_str().to_owned())),
            Err(_) => Err(instead::<Self>("is not a method")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_canonical() {
        for text in ["/", "/api/v1/users", "/a%20b", "/healthz", "/a/health", "/a;v=1/@b:c", "/~x"]
        {
            assert!(Prefix::read(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "api",
            "//",
            "/a//b",
            "/a/",
            "/a/.",
            "/../a",
            "/..;x/a",
            "/.;/a",
            "/a?b",
            "/a#b",
            "/a b",
            "/é",
            "/a%",
            "/a%2",
            "/a%2f",
            "/a%2F",
            "/a%5C",
            "/a%00",
            "/a%41",
            "/%2E%2E/a",
            "/a%7e",
            "/a%c3",
            "/a\\b",
            "/a/*",
            "/health",
            "/health/live",
            "/ready",
            "/ready/x",
            "*",
        ] {
            assert!(Prefix::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn permitted_routes() {
        for text in ["*", "/*", "/api/v1/users/*", "/api/v1/users*", "/api/v1/users", "/a/"] {
            assert!(PermittedRoute::read(text).is_ok(), "{text}");
        }
        for text in ["", "**", "/a/*/b", "api/*", "/a/../b", "/a//b"] {
            assert!(PermittedRoute::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_and_methods() {
        assert_eq!(Host::read("API.example.com").unwrap().0, "api.example.com");
        for text in ["localhost", "10.0.0.1", "[::1]", "my_host"] {
            assert!(Host::read(text).is_ok(), "{text}");
        }
        for text in ["", "a:80", "http://a", "a..b", "a.", "*.a", "[::1", "[::1]:80", "a/b", "a b"]
        {
            assert!(Host::read(text).is_err(), "{text}");
        }
        assert_eq!(Method::read("patch").unwrap().0, "PATCH");
        assert!(Method::read("GET,POST").is_err());
        assert!(Method::read("").is_err());
    }
}
