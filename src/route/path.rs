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
    /// An escape for `/`, `\`, NUL or bytes that no UTF-8 text holds, such as an overlong `/`.
    #[error("the path holds an encoded slash, backslash, NUL or invalid byte")]
    ForbiddenEscape,
    /// `.` or `..`, plain or encoded, alone or before a byte that another server may take for the segment's end.
    #[error("the path holds a dot segment")]
    DotSegment,
}

impl<'a> CanonicalPath<'a> {
    /// Brings `raw` (a path without query) into canonical form: escapes of unreserved characters are decoded, other
    /// escapes are written in upper case, characters that browsers send raw are encoded, repeated slashes collapse.
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

/// `pchar` of RFC 3986 without `%`, and `/`.
const PATH: Class = alphanumeric_and(b"-._~/!$&'()*+,;=:@");

/// Characters that RFC 3986 wants encoded and that browsers send raw in a path.
const RAW: &[u8] = b"[]^{|}";

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn rewrite(raw: &str, from: usize) -> Result<String, PathError> {
    let mut path = String::with_capacity(raw.len());
    path.push_str(&raw[..from]);
    let mut rest = raw.as_bytes()[from..].iter().copied();
    // The byte of the escape just before, if there is one.
    let mut escaped = None;
    while let Some(byte) = rest.next() {
        let before = escaped.take();
        match byte {
            b'/' if path.ends_with('/') => {}
            b'%' => {
                let mut digit = || rest.next().and_then(hex::value);
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(PathError::BrokenEscape);
                };
                let byte = high << 4 | low;
                match byte {
                    b'/' | b'\\' | 0 | 0xC0 | 0xC1 | 0xF5.. => {
                        return Err(PathError::ForbiddenEscape);
                    }
                    _ if before.is_some_and(|before| is_no_text(before, byte)) => {
                        return Err(PathError::ForbiddenEscape);
                    }
                    _ if is_unreserved(byte) => path.push(char::from(byte)),
                    _ => push_escape(&mut path, byte),
                }
                escaped = Some(byte);
            }
            byte if PATH[usize::from(byte)] => path.push(char::from(byte)),
            byte if RAW.contains(&byte) => push_escape(&mut path, byte),
            _ => return Err(PathError::RawByte),
        }
    }
    Ok(path)
}

fn push_escape(path: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    path.push('%');
    path.push(char::from(DIGITS[usize::from(byte >> 4)]));
    path.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// Whether no UTF-8 text holds the two bytes in sequence (RFC 3629 section 4): they begin an overlong form, which a
/// sloppy decoder takes for `/` or `.`, a surrogate, or a number beyond Unicode.
fn is_no_text(first: u8, second: u8) -> bool {
    matches!(
        (first, second),
        (0xE0, 0x80..=0x9F) | (0xED, 0xA0..=0xBF) | (0xF0, 0x80..=0x8F) | (0xF4, 0x90..=0xBF)
    )
}

/// `.` or `..`, alone or before anything but a character of a plain name. Another server may end the segment there: at
/// parameters (`..;x`), at an encoded separator, question mark, space or line end. White space
/// before the dots may be dropped too.
fn is_dot_segment(segment: &str) -> bool {
    let mut rest = segment;
    while let Some(after) = without_space(rest) {
        rest = after;
    }
    let Some(rest) = rest.strip_prefix('.') else { return false };
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    !rest.bytes().next().is_some_and(is_unreserved)
}

/// `segment` without the white space at its start: a control character or a space, or one of Unicode's.
fn without_space(segment: &str) -> Option<&str> {
    const UNICODE: [&str; 7] =
        ["%C2%A0", "%C2%85", "%A0", "%85", "%EF%BB%BF", "%E2%80%", "%E3%80%80"];
    let code = segment.strip_prefix('%').and_then(|rest| rest.get(..2));
    match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        Some(..=b' ' | 0x7F) => segment.get(3..),
        Some(_) => UNICODE.iter().find_map(|space| {
            let after = segment.strip_prefix(space)?;
            if space.ends_with('%') { after.get(2..) } else { Some(after) }
        }),
        None => None,
    }
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
            ("/[id]/{x}|^", "/%5Bid%5D/%7Bx%7D%7C%5E"),
            ("/%5bid%5D", "/%5Bid%5D"),
            ("/a%E9b", "/a%E9b"),
            ("/%E2%82%AC%F0%9F%98%80", "/%E2%82%AC%F0%9F%98%80"),
            ("/a%20../b.%20", "/a%20../b.%20"),
            ("/..a/.-/._", "/..a/.-/._"),
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
            ("/a`b", RawByte),
            ("/a\"b", RawByte),
            ("/a<b", RawByte),
            ("/a/..%E0%80%AFb", ForbiddenEscape),
            ("/a/..%F0%80%80%AE", ForbiddenEscape),
            ("/a%E0%80%AFb", ForbiddenEscape),
            ("/%E0%80%AE%E0%80%AE/", ForbiddenEscape),
            ("/%ED%A0%80", ForbiddenEscape),
            ("/%F4%90%80%80", ForbiddenEscape),
            ("/a/..%3F/", DotSegment),
            ("/a/..%20/", DotSegment),
            ("/a/..%0D%0A", DotSegment),
            ("/a/..%09", DotSegment),
            ("/a/.%20/b", DotSegment),
            ("/a/%20../b", DotSegment),
            ("/a/%09%0d./b", DotSegment),
            ("/a/%1f../b", DotSegment),
            ("/a/%C2%A0../b", DotSegment),
            ("/a/%A0..", DotSegment),
            ("/a/..%EF%BC%8Fb", DotSegment),
            ("/a/..%C3%A9", DotSegment),
            ("/a/..:b", DotSegment),
            ("/a/..|b", DotSegment),
            ("/a/..,b", DotSegment),
            ("/a/..@b", DotSegment),
            ("/a/.;/b", DotSegment),
        ] {
            assert_eq!(CanonicalPath::parse(raw).unwrap_err(), error, "{raw}");
        }
    }

    /// What a server that decodes and trims carelessly reads of a segment.
    fn read_carelessly(segment: &str) -> String {
        let mut decoded: Vec<u8> = percent_encoding::percent_decode_str(segment).collect();
        let end =
            decoded.iter().position(|byte| b";?#\0\r\n\t :,|".contains(byte) || *byte >= 0x80);
        decoded.truncate(end.unwrap_or(decoded.len()));
        String::from_utf8_lossy(&decoded).trim().to_owned()
    }

    #[test]
    fn no_careless_server_finds_a_dot_segment_in_a_canonical_path() {
        let mut random = fastrand::Rng::with_seed(10);
        let parts = [
            "/",
            ".",
            "..",
            "%2e",
            "%2E",
            "a",
            ";",
            "%3b",
            "%20",
            "%0d",
            "%0A",
            "%09",
            "%3F",
            "%23",
            "%E0%80%AF",
            "%F0%80%80%AE",
            "%C3%A9",
            ":",
            ",",
            "|",
            "[",
            "%5B",
            "~",
        ];
        let mut accepted = 0;
        for _ in 0..100_000 {
            let path: String =
                (0..random.usize(1..7)).map(|_| parts[random.usize(..parts.len())]).collect();
            let path = format!("/{path}");
            let Ok(canonical) = CanonicalPath::parse(&path) else { continue };
            accepted += 1;
            for segment in canonical.as_str().split('/') {
                let read = read_carelessly(segment);
                assert!(read != "." && read != "..", "{path}: {segment}");
            }
            let again = CanonicalPath::parse(canonical.as_str()).unwrap();
            assert_eq!(again.as_str(), canonical.as_str(), "{path}");
        }
        assert!(accepted > 10_000, "{accepted}");
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
