//! The matchers of a route as they are written: path prefixes, hosts and methods.

use super::scalar::{Scalar, instead};
use crate::route::host_pattern::HostPattern;
use crate::route::reserved::reserved_at_or_above;
use crate::route::written::check_path;

/// A route's prefix in the canonical form that request paths are brought into before matching.
pub struct Prefix(pub String);

impl Scalar for Prefix {
    fn allowed() -> String {
        "a path such as /api/v1/users, which matches itself and all beneath it".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(instead::<Self>(reason));
        check_path(text).map_err(|error| error.instead(&Self::allowed()))?;
        if text.len() > 1 && text.ends_with('/') {
            return wrong("ends with `/`");
        }
        if text.contains('*') {
            return wrong("holds a `*`");
        }
        match reserved_at_or_above(text) {
            Some(own) => {
                Err(format!("belongs to the gateway's own endpoint {own}; write another path"))
            }
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// What stands for the prefix when a request is forwarded, in canonical form and without a slash at its end.
pub struct Replacement(pub String);

impl Scalar for Replacement {
    fn allowed() -> String {
        "a path such as /v2, or \"\" for nothing".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| Err(instead::<Self>(reason));
        if matches!(text, "" | "/") {
            return Ok(Self(String::new()));
        }
        check_path(text).map_err(|error| error.instead(&Self::allowed()))?;
        match text.ends_with('/') {
            true => wrong("ends with `/`"),
            false if text.contains('*') => wrong("holds a `*`"),
            false => Ok(Self(text.to_owned())),
        }
    }
}

/// The hosts that a route serves.
impl Scalar for HostPattern {
    fn allowed() -> String {
        "a host name or IP address without scheme and port, such as api.example.com, or *.example.com for all hosts beneath it".into()
    }

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| instead::<Self>("is not a host"))
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
            // `*` is a method by its characters, and would be read as all of them.
            Ok(method) if method.as_str() != "*" => Ok(Self(method.as_str().to_owned())),
            _ => Err(instead::<Self>("is not a method")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_canonical() {
        for text in ["/", "/api/v1/users", "/a%20b", "/healthz", "/a/health", "/a/@b:c", "/~x"] {
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
            "/a;v=1",
            "/{id}",
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
    fn hosts_and_methods() {
        for text in ["localhost", "10.0.0.1", "[::1]", "my_host", "*.example.com"] {
            assert!(HostPattern::read(text).is_ok(), "{text}");
        }
        for text in ["", "a:80", "http://a", "a..b", "a.", "*", "[::1", "[::1]:80", "a/b", "a b"] {
            assert!(HostPattern::read(text).is_err(), "{text}");
        }
        assert_eq!(Method::read("patch").unwrap().0, "PATCH");
        assert!(Method::read("GET,POST").is_err());
        assert!(Method::read("").is_err());
    }
}
