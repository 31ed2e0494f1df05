//! What counts as the host of a request. It must not know where the host was written.

use std::net::Ipv6Addr;

use memchr::memchr;

use crate::base::class::{Class, alphanumeric_and, consists_of};

/// `reg-name` of RFC 3986 section 3.2.2.
const HOST: Class = alphanumeric_and(b"-._~!$&'()*+,;=%");

/// `host [":" port]` of RFC 3986 section 3.2.2, without user information; not empty.
pub fn is_authority(value: &[u8]) -> bool {
    let (host, rest) = if value.first() == Some(&b'[') {
        let Some(end) = memchr(b']', value) else { return false };
        let address = std::str::from_utf8(&value[1..end]).unwrap_or_default();
        if address.parse::<Ipv6Addr>().is_err() {
            return false;
        }
        (&value[..=end], &value[end + 1..])
    } else {
        value.split_at(memchr(b':', value).unwrap_or(value.len()))
    };
    let host_is_good =
        host.first() == Some(&b'[') || (!host.is_empty() && consists_of(host, &HOST));
    let port_is_good = match rest.strip_prefix(b":") {
        None => rest.is_empty(),
        Some(digits) => !digits.is_empty() && port(digits).is_some(),
    };
    host_is_good && port_is_good
}

/// The number of a port, in decimal digits.
fn port(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0u16, |port, digit| {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        port.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_hosts() {
        for good in ["a", "a.b-c", "a:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "a_b", "a:0"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", "a b", "a/b", "a?b", "a#b", "a\\b", "a[b", "a<b", "u@a", "a:x", "a:1:2", "a:99999",
            "[::1", "[zz]", "[::1]x",
            // RFC 3986 permits an empty port, which nobody needs.
            "a:",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }
}
