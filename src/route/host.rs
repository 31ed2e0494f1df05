//! The one form of a host that is compared with routes, forwarded and logged (RFC 3986 section 3.2.2).
//!
//! Servers read one host in many spellings: a trailing dot, capital letters, escapes, a list. A host that two servers
//! may read differently is refused here, as a path is in [`path`](super::path). This file must not know in which field
//! or target the host was written.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use memchr::memchr;

/// The longest host name, in bytes (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 253;

/// The longest label of a host name, in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// A host in canonical form, and its port.
#[derive(Clone, Debug)]
pub struct Authority<'a> {
    host: Cow<'a, str>,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads `host [":" port]`. Capital letters become small and one trailing dot is dropped; an IPv6 address is
    /// written as RFC 5952 says. `None` when `value` is no host that every server reads alike.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let end = match value.first()? {
            b'[' => memchr(b']', value)? + 1,
            _ => memchr(b':', value).unwrap_or(value.len()),
        };
        let (host, rest) = value.split_at(end);
        let port = match rest.split_first() {
            None => None,
            Some((b':', digits)) => Some(port(digits)?),
            Some(_) => return None,
        };
        let host = match host.first()? {
            b'[' => ipv6(host)?,
            _ => name(host)?,
        };
        Some(Self { host, port })
    }

    /// The host, without port. An IPv6 address keeps its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether a port is written.
    pub fn has_port(&self) -> bool {
        self.port.is_some()
    }

    /// The canonical text, if it differs from `written`, which this was read from.
    pub fn respelled(&self, written: &[u8]) -> Option<String> {
        let host = self.host.as_bytes();
        match self.port {
            None => (host != written).then(|| self.host.to_string()),
            Some(port) => {
                let digits = written.strip_prefix(host).and_then(|rest| rest.strip_prefix(b":"));
                // Only leading zeros give a port a second spelling.
                let same = |digits: &[u8]| digits == b"0" || digits.first() != Some(&b'0');
                (!digits.is_some_and(same)).then(|| format!("{}:{port}", self.host))
            }
        }
    }
}

/// The host of a canonical authority, without its port.
pub fn without_port(authority: &str) -> &str {
    let end = match authority.starts_with('[') {
        true => authority.find(']').map(|end| end + 1),
        false => memchr(b':', authority.as_bytes()),
    };
    end.and_then(|end| authority.get(..end)).unwrap_or(authority)
}

/// The authority of a request target in absolute form, which is an http or https URL (RFC 9112 section 3.2.2).
pub fn of_target(target: &[u8]) -> Option<&[u8]> {
    let rest = [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (beginning, rest) = target.split_at_checked(scheme.len())?;
        beginning.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
    Some(&rest[..end])
}

/// Labels of letters, digits, `-` and `_`, which names of services hold too.
fn name(host: &[u8]) -> Option<Cow<'_, str>> {
    let host = host.strip_suffix(b".").unwrap_or(host);
    let (mut label, mut capital) = (0, false);
    for &byte in host {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            b'A'..=b'Z' => (label, capital) = (label + 1, true),
            b'.' if label > 0 => label = 0,
            _ => return None,
        }
        if label > MAX_LABEL {
            return None;
        }
    }
    if label == 0 || host.len() > MAX_HOST {
        return None;
    }
    let text = std::str::from_utf8(host).ok()?;
    Some(if capital { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) })
}

/// An address in brackets.
fn ipv6(host: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(host).ok()?;
    let address: Ipv6Addr = text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    let canonical = format!("[{address}]");
    Some(if canonical == text { Cow::Borrowed(text) } else { Cow::Owned(canonical) })
}

/// The number of a port, in decimal digits.
fn port(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u16, |port, digit| {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        port.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The canonical text of `written`.
    fn canonical(written: &str) -> Option<String> {
        let authority = Authority::parse(written.as_bytes())?;
        Some(authority.respelled(written.as_bytes()).unwrap_or_else(|| written.to_owned()))
    }

    #[test]
    fn hosts_have_one_form() {
        for (written, expected, host) in [
            ("a", "a", "a"),
            ("a.b-c", "a.b-c", "a.b-c"),
            ("a_b", "a_b", "a_b"),
            ("a:80", "a:80", "a"),
            ("a:0", "a:0", "a"),
            ("a:0080", "a:80", "a"),
            ("a:00", "a:0", "a"),
            ("a.", "a", "a"),
            ("A.Example.", "a.example", "a.example"),
            ("Admin.EXAMPLE.:8080", "admin.example:8080", "admin.example"),
            ("127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1"),
            ("[::1]", "[::1]", "[::1]"),
            ("[::1]:80", "[::1]:80", "[::1]"),
            ("[0:0:0:0:0:0:0:1]:80", "[::1]:80", "[::1]"),
            ("[2001:DB8::A]", "[2001:db8::a]", "[2001:db8::a]"),
        ] {
            assert_eq!(canonical(written).as_deref(), Some(expected), "{written}");
            assert_eq!(Authority::parse(written.as_bytes()).unwrap().host(), host, "{written}");
            assert_eq!(canonical(expected).as_deref(), Some(expected), "a fixed point");
            assert_eq!(without_port(expected), host);
        }
    }

    #[test]
    fn hosts_with_two_readings_are_refused() {
        let long_label = "x".repeat(MAX_LABEL + 1);
        let long_name = ["x"; 128].join(".");
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "a..",
            "a..b",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a[b",
            "a<b",
            "u@a",
            "a:x",
            "a:1:2",
            "a:99999",
            "[::1",
            "[zz]",
            "[::1]x",
            "[::1].",
            "[::1%25eth0]",
            "a%2eb",
            "%61",
            "a,b",
            "a;b",
            "a=b",
            "a&b",
            "a!b",
            "a~b",
            "a*b",
            "(a)",
            "a+b",
            "a'b",
            "a$b",
            "\u{e9}",
            "a\u{3002}b",
            ":80",
            ".:80",
            // RFC 3986 permits an empty port, which no client needs.
            "a:",
            &long_label,
            &long_name,
        ] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }

    #[test]
    fn random_spellings_are_refused_or_have_one_form() {
        let mut random = fastrand::Rng::with_seed(17);
        let alphabet: Vec<char> = "aZ9-_.:[]%,;@/\\ \u{e9}".chars().collect();
        let mut accepted = 0;
        for _ in 0..200_000 {
            let written: String =
                (0..random.usize(1..8)).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            let Some(form) = canonical(&written) else { continue };
            accepted += 1;
            assert_eq!(canonical(&form), Some(form.clone()), "{written}");
            let host = without_port(&form);
            if host.starts_with('[') {
                continue;
            }
            let labels = host.split('.').all(|label| !label.is_empty());
            let plain = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
            };
            assert!(labels && host.bytes().all(plain), "{written} became {form}");
        }
        assert!(accepted > 1_000, "{accepted}");
    }

    #[test]
    fn targets_in_absolute_form_name_an_authority() {
        for (target, authority) in [
            ("http://a", Some("a")),
            ("HTTP://A:80/x", Some("A:80")),
            ("https://a?x", Some("a")),
            ("http:///", Some("")),
            ("http:/a", None),
            ("ftp://a/", None),
            ("/http://a/", None),
        ] {
            assert_eq!(of_target(target.as_bytes()), authority.map(str::as_bytes), "{target}");
        }
    }
}
