//! The hosts that a route serves: one, or all beneath a name. This file must not know how a request names its host.

use std::fmt;

use super::host::Authority;

/// A host as a route names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One host, canonical and without port.
    Exact(String),
    /// `*.NAME`: the hosts that have one or more labels before `.NAME`. Holds the name, which itself is not served.
    Beneath(String),
}

impl HostPattern {
    /// Reads a host without port, or `*.` and a name. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, beneath) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let authority = Authority::parse(host.as_bytes())?;
        if host.ends_with('.') || authority.has_port() {
            return None;
        }
        let host = authority.host().to_owned();
        match beneath {
            false => Some(Self::Exact(host)),
            // Nothing is beneath an address.
            true if host.starts_with('[') || ends_with_number(&host) => None,
            true => Some(Self::Beneath(host)),
        }
    }

    /// Whether there is a host that both serve.
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Exact(host), Self::Beneath(name)) | (Self::Beneath(name), Self::Exact(host)) => {
                is_beneath(host, name)
            }
            (Self::Beneath(a), Self::Beneath(b)) => a == b || is_beneath(a, b) || is_beneath(b, a),
        }
    }

    /// A host that is served.
    pub fn example(&self) -> String {
        match self {
            Self::Exact(host) => host.clone(),
            Self::Beneath(name) => format!("www.{name}"),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Beneath(name) => write!(f, "*.{name}"),
        }
    }
}

/// Whether `host` has labels before `.` and `name`.
fn is_beneath(host: &str, name: &str) -> bool {
    host.strip_suffix(name).is_some_and(|labels| labels.ends_with('.'))
}

/// Whether the last label is a number, as in an IPv4 address.
fn ends_with_number(host: &str) -> bool {
    host.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read() {
        for (text, pattern) in [
            ("API.example.com", Some(HostPattern::Exact("api.example.com".into()))),
            ("[0:0::1]", Some(HostPattern::Exact("[::1]".into()))),
            ("10.0.0.1", Some(HostPattern::Exact("10.0.0.1".into()))),
            ("*.Example.com", Some(HostPattern::Beneath("example.com".into()))),
            ("*.internal", Some(HostPattern::Beneath("internal".into()))),
            ("*", None),
            ("*.", None),
            ("*.*.com", None),
            ("*example.com", None),
            ("a.*.com", None),
            ("*.com:80", None),
            ("*.com.", None),
            ("*.[::1]", None),
            ("*.0.0.1", None),
            ("a:80", None),
            ("a.", None),
            ("", None),
        ] {
            assert_eq!(HostPattern::parse(text), pattern, "{text}");
            if let Some(pattern) = pattern {
                assert_eq!(HostPattern::parse(&pattern.to_string()), Some(pattern), "{text}");
            }
        }
    }

    #[test]
    fn patterns_meet_where_one_host_fits_both() {
        for (a, b, meet) in [
            ("a.test", "a.test", true),
            ("a.test", "b.test", false),
            ("*.test", "a.test", true),
            ("*.test", "a.b.test", true),
            ("*.a.test", "a.test", false),
            ("*.test", "test", false),
            ("*.test", "atest", false),
            ("*.test", "*.test", true),
            ("*.test", "*.a.test", true),
            ("*.a.test", "*.b.test", false),
            ("*.test", "*.atest", false),
        ] {
            let [a, b] = [a, b].map(|text| HostPattern::parse(text).unwrap());
            assert_eq!((a.meets(&b), b.meets(&a)), (meet, meet), "{a} {b}");
        }
    }
}
