//! Checks of a request's head that hold for every protocol. The reader of each protocol calls
//! [`RequestHead::check`] once, before the request is served. This file must not know how a protocol spells
//! a head in bytes.

use crate::base::class::{Class, alphanumeric_and, consists_of, span};
use crate::route::host::{Authority, of_target};

/// Most header fields of a request.
pub const MAX_FIELDS: usize = 128;

/// Largest head, request line and all fields, in bytes.
pub const MAX_HEAD: usize = 64 * 1024;

/// Longest request line, and longest request target where there is no line, in bytes.
pub const MAX_TARGET_LINE: usize = 16 * 1024;

/// Longest method, in bytes.
const MAX_METHOD: usize = 32;

/// The reason to refuse a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The message is malformed or ambiguous; the text says in which way.
    #[error("{0}")]
    Malformed(&'static str),
    /// The head or its number of fields is over the bound.
    #[error("the request header is too large")]
    TooLarge,
}

pub(super) const fn malformed<T>(how: &'static str) -> Result<T, HeadError> {
    Err(HeadError::Malformed(how))
}

/// The method, the target and the host of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a [u8],
    /// The request target as it was sent.
    pub target: &'a [u8],
    /// The value of `Host`, where there is one.
    pub host: Option<&'a [u8]>,
    /// Whether the protocol demands `Host`.
    pub needs_host: bool,
}

impl RequestHead<'_> {
    /// Checks method, target and host.
    ///
    /// # Errors
    /// [`HeadError::Malformed`] where two servers might route the request differently, or where this
    /// gateway serves no such request.
    pub fn check(&self) -> Result<(), HeadError> {
        if self.method.len() > MAX_METHOD {
            return malformed("the method is not a token");
        }
        if self.method == b"CONNECT" {
            return malformed("CONNECT is not served");
        }
        let target = Target::read(self.target)?;
        let Some(host) = self.host else {
            return if self.needs_host { malformed("there is no Host field") } else { Ok(()) };
        };
        if Authority::parse(host).is_none() {
            return malformed("the Host field is not a host");
        }
        match target {
            // RFC 9112 section 3.2.2: they must agree. A client that lets them differ means to confuse.
            Target::Absolute { authority } if !authority.eq_ignore_ascii_case(host) => {
                malformed("the request target and Host name different hosts")
            }
            _ => Ok(()),
        }
    }
}

/// The form of a request target (RFC 9112 section 3.2). Targets of the forms `*` and `host:port` are not
/// served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target<'a> {
    /// A path, with or without a query.
    Origin,
    /// A URL.
    Absolute { authority: &'a [u8] },
}

impl<'a> Target<'a> {
    fn read(target: &'a [u8]) -> Result<Self, HeadError> {
        if target.first() == Some(&b'/') {
            return Ok(Self::Origin);
        }
        let Some(authority) = of_target(target) else {
            return malformed("the request target must be a path that starts with /");
        };
        match Authority::parse(authority) {
            Some(_) => Ok(Self::Absolute { authority }),
            None => malformed("the authority of the request target is not a host"),
        }
    }
}

/// The bytes of a request target before its query: those of RFC 3986, and those that browsers send raw.
pub(super) const TARGET: Class = alphanumeric_and(b"!$%&'()*+,-./:;=@[]^_{|}~");

/// The bytes of a query, with the `?` before it: all but control characters, space, `#`, and the signs that browsers
/// encode. The query goes to the upstream byte for byte.
pub(super) const QUERY: Class = {
    let mut class = alphanumeric_and(b"!$%&'()*+,-./:;=?@[\\]^_`{|}~");
    let mut byte = 0x80;
    while byte < class.len() {
        class[byte] = true;
        byte += 1;
    }
    class
};

/// Whether `target` consists of a path and perhaps a query, of bytes that may stand there raw.
pub(super) fn is_target(target: &[u8]) -> bool {
    let (_, query) = span(target, &TARGET);
    query.is_empty() || (query[0] == b'?' && consists_of(query, &QUERY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, target: &str, host: Option<&str>) -> Result<(), HeadError> {
        let (method, target) = (method.as_bytes(), target.as_bytes());
        RequestHead { method, target, host: host.map(str::as_bytes), needs_host: true }.check()
    }

    #[test]
    fn requests_for_one_host_pass() {
        for (method, target, host) in [
            ("GET", "/", "a"),
            ("GET", "/x?http://b/", "a:80"),
            ("PROPFIND", "http://a", "a"),
            ("GET", "http://A/", "a"),
            ("GET", "https://a/x?y", "A"),
            ("GET", "HTTP://a?y", "a"),
            ("GET", "http://[::1]:80/", "[::1]:80"),
        ] {
            assert_eq!(check(method, target, Some(host)), Ok(()), "{method} {target} {host}");
        }
    }

    #[test]
    fn requests_that_two_servers_might_route_differently_are_refused() {
        let long = "M".repeat(MAX_METHOD + 1);
        for (method, target, host) in [
            ("CONNECT", "a:80", Some("a")),
            ("CONNECT", "/", Some("a")),
            (long.as_str(), "/", Some("a")),
            ("GET", "/", None),
            ("GET", "/", Some("")),
            ("GET", "/", Some("a/b")),
            ("GET", "", Some("a")),
            ("GET", "*", Some("a")),
            ("OPTIONS", "*", Some("a")),
            ("GET", "a:80", Some("a:80")),
            ("GET", "a/b", Some("a")),
            ("GET", "?x", Some("a")),
            ("GET", "http:", Some("a")),
            ("GET", "ftp://a/", Some("a")),
            ("GET", "http:///", Some("a")),
            ("GET", "http://b/", Some("a")),
            ("GET", "http://u@a/", Some("a")),
            ("GET", "http://a:80/", Some("a")),
            ("GET", "http://a%20b/", Some("a%20b")),
            ("GET", "http://a./", Some("a")),
            ("GET", "http://a:080/", Some("a:80")),
            ("GET", "/", Some("a%2eb")),
            ("GET", "/", Some("a..b")),
            ("GET", "/", Some("a,b")),
            ("GET", "/", Some("a;b")),
        ] {
            let refused = check(method, target, host);
            assert!(matches!(refused, Err(HeadError::Malformed(_))), "{method} {target} {host:?}");
        }
    }

    #[test]
    fn a_protocol_that_needs_no_host_still_has_targets_checked() {
        let head = |target| RequestHead { method: b"GET", target, host: None, needs_host: false };
        assert_eq!(head(b"/").check(), Ok(()));
        assert_eq!(head(b"http://a/").check(), Ok(()));
        assert!(head(b"http://a b/").check().is_err());
    }
}
