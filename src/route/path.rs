//! The one form of a path that is matched, checked and forwarded (RFC 3986 sections 3.3 and 6.2.2).
//!
//! A path that an upstream may read differently than the gateway is refused: dot segments in any encoding, encoded
//! separators and NUL, broken escapes. Every path that passes has a single reading.

use std::borrow::Cow;

use crate::base::class::{Class, alphanumeric_and};
use crate::base::hex;

/// A path in canonical form; starts with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

/// Why a path has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The target is `*`, an authority, or relative.
    #[error("the request target must be a path that starts with /")]
    NotAbsolute,
    /// A byte that must be percent-encoded stands raw.
    #[error("the path holds a character that must be percent-encoded")]
    RawByte,
    /// `%` is not followed by two hexadecimal digits.
    #[error("the path holds a broken percent-escape")]
    BrokenEscape,
    /// An escape for `/`, `\`, NUL or a byte that no UTF-8 text holds.
    #[error("the path holds an encoded slash, backslash, NUL or invalid byte")]
    ForbiddenEscape,
    /// `.` or `..`, plain, encoded, or with `;` parameters.
    #[error("the path holds a dot segment")]
    DotSegment,
}

impl<'a> CanonicalPath<'a> {
    /// Brings `raw` (a path without query) into canonical form: escapes of unreserved characters
    /// are decoded, other escapes are written in upper case, repeated slashes collapse.
    ///
    /// Borrows when `raw` is canonical already.
    ///
    /// # Errors
    /// [`PathError`] where `raw` has no unambiguous reading.
    pub fn parse(raw: &'a str) -> Result<Self, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        let path = match first_irregularity(raw.as_bytes()) {
            None => return Ok(Self(Cow::Borrowed(raw))),
            Some(at) => rewrite(raw, at)?,
        };
        if path.split('/').any(is_dot_segment) {
            return Err(PathError::DotSegment);
        }
        // A path may look irregular and be canonical, such as `/.well-known`.
        Ok(Self(if path == raw { Cow::Borrowed(raw) } else { Cow::Owned(path) }))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this differs from what the client sent.
    pub fn was_rewritten(&self) -> bool {
        matches!(self.0, Cow::Owned(_))
    }
}

/// The first byte of `raw` that may not be canonical: an escape, a repeated slash, a segment that starts with a
/// dot, or a byte that may not be there.
fn first_irregularity(raw: &[u8]) -> Option<usize> {
    let mut previous = 0;
    raw.iter().position(|&byte| {
        let regular = PATH[usize::from(byte)] && !(previous == b'/' && matches!(byte, b'/' | b'.'));
        previous = byte;
        !regular
    })
}

/// `pchar` of RFC 3986 without `%`, and `/`. Braces and `|`, which browsers send raw, are let through.
const PATH: Class = alphanumeric_and(b"-._~/!$&'()*+,;=:@{}|");

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn rewrite(raw: &str, from: usize) -> Result<String, PathError> {
    let mut path = String::with_capacity(raw.len());
    path.push_str(&raw[..from]);
    let mut rest = raw.as_bytes()[from..].iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b'/' if path.ends_with('/') => {}
            b'%' => {
                let mut digit = || rest.next().and_then(hex::value);
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(PathError::BrokenEscape);
                };
                match high << 4 | low {
                    b'/' | b'\\' | 0 | 0xC0 | 0xC1 | 0xF5.. => {
                        return Err(PathError::ForbiddenEscape);
                    }
                    decoded if is_unreserved(decoded) => path.push(char::from(decoded)),
                    encoded => {
                        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                        path.push('%');
                        path.push(char::from(DIGITS[usize::from(encoded >> 4)]));
                        path.push(char::from(DIGITS[usize::from(encoded & 15)]));
                    }
                }
            }
            byte if PATH[usize::from(byte)] => path.push(char::from(byte)),
            _ => return Err(PathError::RawByte),
        }
    }
    Ok(path)
}

/// `.` or `..`, also with parameters (`..;x`) and with their `;` encoded, which some servers decode.
fn is_dot_segment(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or_default();
    let name = name.split("%3B").next().unwrap_or_default();
    name == "." || name == ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form() {
        for (raw, canonical) in [
            ("/", "/"),
            ("/api/v1/users", "/api/v1/users"),
            ("/api/%76%31/users", "/api/v1/users"),
            ("/a%7Eb", "/a~b"),
            ("//a///b//", "/a/b/"),
            ("/a%20b%c3%a9", "/a%20b%C3%A9"),
            ("/a;v=1/b,c", "/a;v=1/b,c"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a..b/...", "/a..b/..."),
            ("/%2525", "/%2525"),
        ] {
            assert_eq!(CanonicalPath::parse(raw).unwrap().as_str(), canonical, "{raw}");
        }
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        use PathError::*;
        for (raw, error) in [
            ("", NotAbsolute),
            ("*", NotAbsolute),
            ("a/b", NotAbsolute),
            ("/a/../b", DotSegment),
            ("/a/..", DotSegment),
            ("/./a", DotSegment),
            ("/a/%2e%2e/b", DotSegment),
            ("/a/.%2E/b", DotSegment),
            ("/a/..;x=1/b", DotSegment),
            ("/a/..%3bx/b", DotSegment),
            ("/a//../b", DotSegment),
            ("/a%2fb", ForbiddenEscape),
            ("/a%5Cb", ForbiddenEscape),
            ("/a%00", ForbiddenEscape),
            ("/%c0%ae%c0%ae/", ForbiddenEscape),
            ("/a%", BrokenEscape),
            ("/a%2", BrokenEscape),
            ("/a%zz", BrokenEscape),
            ("/a%u002e", BrokenEscape),
            ("/a\\b", RawByte),
            ("/a b", RawByte),
            ("/a\u{e9}", RawByte),
            ("/a#b", RawByte),
        ] {
            assert_eq!(CanonicalPath::parse(raw).unwrap_err(), error, "{raw}");
        }
    }

    #[test]
    fn the_canonical_form_is_a_fixed_point() {
        for raw in ["/a%20b//c%7e", "/x%C3%a9/;a=b", "//"] {
            let once = CanonicalPath::parse(raw).unwrap();
            let twice = CanonicalPath::parse(once.as_str()).unwrap();
            assert_eq!(once.as_str(), twice.as_str());
        }
    }
}
