//! The head of an HTTP/1 request, read strictly from its raw bytes (RFC 9112 sections 2 to 7).
//!
//! What two servers might frame, route or split differently is refused here, before Pingora or an
//! upstream sees a byte of it. This file knows bytes only.

use std::ops::Range;

use memchr::{memchr, memchr_iter};

use crate::base::class::{Class, alphanumeric_and, consists_of, span};

/// Largest head, request line and all fields, in bytes.
pub const MAX_HEAD: usize = 64 * 1024;

/// Longest request line, in bytes.
pub const MAX_REQUEST_LINE: usize = 16 * 1024;

/// Most header fields of a request.
pub const MAX_FIELDS: usize = 128;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The message is malformed or ambiguous; the text says how.
    #[error("{0}")]
    Malformed(&'static str),
    /// The head or its number of fields is over the bound.
    #[error("the request header is too large")]
    TooLarge,
}

/// Where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes; 0 for no body.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// When the connection ends, should the upgrade that was asked for happen.
    Upgrade,
}

/// What a complete head says about its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head, the empty line included.
    pub length: usize,
    /// Where the body ends.
    pub framing: Framing,
}

/// Reads a head line by line as its bytes arrive.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// Bytes of whole lines already read.
    read: usize,
    fields: usize,
    request_line: Option<Version>,
    host: Option<Range<usize>>,
    /// The authority of a target in absolute form.
    authority: Option<Range<usize>>,
    content_length: Option<u64>,
    chunked: bool,
    connection_upgrade: bool,
    websocket: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

const fn malformed<T>(how: &'static str) -> Result<T, HeadError> {
    Err(HeadError::Malformed(how))
}

impl HeadReader {
    /// Reads on in `bytes`, which begin where the head begins. `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`HeadError`] as soon as the bytes can no longer become an acceptable head.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<Head>, HeadError> {
        let start = self.read;
        for end in memchr_iter(b'\n', &bytes[start..]) {
            let end = start + end;
            let line = &bytes[self.read..end];
            let Some(line) = line.strip_suffix(b"\r") else {
                return malformed("a line does not end with CRLF");
            };
            let line_start = self.read;
            self.read = end + 1;
            if self.read > MAX_HEAD {
                return Err(HeadError::TooLarge);
            }
            if self.request_line.is_none() {
                if line.len() > MAX_REQUEST_LINE {
                    return Err(HeadError::TooLarge);
                }
                let (version, authority) = request_line(line)?;
                (self.request_line, self.authority) = (Some(version), authority);
            } else if line.is_empty() {
                return self.finish(bytes).map(Some);
            } else {
                self.field(line, line_start)?;
            }
        }
        if bytes.len() > MAX_HEAD { Err(HeadError::TooLarge) } else { Ok(None) }
    }

    fn field(&mut self, line: &[u8], line_start: usize) -> Result<(), HeadError> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(HeadError::TooLarge);
        }
        let (name, rest) = span(line, &TOKEN);
        let Some(untrimmed) = rest.strip_prefix(b":").filter(|_| !name.is_empty()) else {
            // This is also what a folded line or white space before the colon comes to.
            return malformed("a header line does not begin with a token and a colon");
        };
        if untrimmed.iter().fold(false, |found, &byte| found | is_control(byte)) {
            return malformed("a header value holds a control character");
        }
        let value = untrimmed.trim_ascii();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let start = line_start + line.len() - untrimmed.trim_ascii_start().len();
                self.host_field(value, start..start + value.len())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length_field(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.coding_field(value),
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection_upgrade |= list_names(value, b"upgrade");
                Ok(())
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.websocket |= value.eq_ignore_ascii_case(b"websocket");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn host_field(&mut self, value: &[u8], at: Range<usize>) -> Result<(), HeadError> {
        if self.host.replace(at).is_some() {
            return malformed("there are several Host fields");
        }
        if is_authority(value) { Ok(()) } else { malformed("the Host field is not a host") }
    }

    fn content_length_field(&mut self, value: &[u8]) -> Result<(), HeadError> {
        let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
        if !digits || self.content_length.is_some() {
            return malformed("Content-Length must be one number");
        }
        let number = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        self.content_length = Some(number);
        Ok(())
    }

    fn coding_field(&mut self, value: &[u8]) -> Result<(), HeadError> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return malformed("Transfer-Encoding must be chunked alone");
        }
        self.chunked = true;
        Ok(())
    }

    fn finish(&self, bytes: &[u8]) -> Result<Head, HeadError> {
        let http11 = self.request_line == Some(Version::Http11);
        if http11 && self.host.is_none() {
            return malformed("there is no Host field");
        }
        // RFC 9112 section 3.2.2: they must agree, and who disagrees means to confuse.
        if let (Some(authority), Some(host)) = (&self.authority, &self.host)
            && !bytes[authority.clone()].eq_ignore_ascii_case(&bytes[host.clone()])
        {
            return malformed("the request target and Host name different hosts");
        }
        if self.chunked && (self.content_length.is_some() || !http11) {
            return malformed("Transfer-Encoding contradicts Content-Length or HTTP/1.0");
        }
        let framing = if self.chunked {
            Framing::Chunked
        } else if http11 && self.connection_upgrade && self.websocket {
            match self.content_length {
                None | Some(0) => Framing::Upgrade,
                Some(_) => return malformed("an upgrade request has a body"),
            }
        } else {
            Framing::Length(self.content_length.unwrap_or(0))
        };
        Ok(Head { length: self.read, framing })
    }
}

/// `method SP request-target SP HTTP-version`, with a target in origin or absolute form, and where in
/// the line the authority of an absolute form stands.
fn request_line(line: &[u8]) -> Result<(Version, Option<Range<usize>>), HeadError> {
    let (method, rest) = span(line, &TOKEN);
    if method.is_empty() || method.len() > 32 {
        return malformed("the method is not a token");
    }
    if method == b"CONNECT" {
        return malformed("CONNECT is not served");
    }
    let Some(rest) = rest.strip_prefix(b" ") else {
        return malformed("the request line is not method, target and version");
    };
    let (target, version) = span(rest, &TARGET);
    let authority = match target.first() {
        Some(b'/') => None,
        _ => Some(authority(target, method.len() + 1)?),
    };
    match version {
        b" HTTP/1.1" => Ok((Version::Http11, authority)),
        b" HTTP/1.0" => Ok((Version::Http10, authority)),
        [b' ', ..] => malformed("the version is neither HTTP/1.1 nor HTTP/1.0"),
        [] => malformed("the request line is not method, target and version"),
        _ => malformed("the request target holds a character that must be percent-encoded"),
    }
}

/// Where in its line the authority of a target in absolute form stands; the target begins at `start`.
fn authority(target: &[u8], start: usize) -> Result<Range<usize>, HeadError> {
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
        let beginning = target.get(..scheme.len());
        beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(scheme))
    });
    let Some(scheme) = scheme else {
        return malformed("the request target must be a path that starts with /");
    };
    let rest = &target[scheme.len()..];
    let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
    // Pingora would refuse a percent-encoded one in words of its own.
    if !is_authority(&rest[..end]) || rest[..end].contains(&b'%') {
        return malformed("the authority of the request target is not a host");
    }
    let start = start + scheme.len();
    Ok(start..start + end)
}

/// `tchar` of RFC 9110 section 5.6.2.
const TOKEN: Class = alphanumeric_and(b"!#$%&'*+-.^_`|~");

/// What a request target is made of; what must be percent-encoded is not among it.
const TARGET: Class = alphanumeric_and(b"!$%&'()*+,-./:;=?@[]_{|}~");

/// `reg-name` of RFC 3986 section 3.2.2.
const HOST: Class = alphanumeric_and(b"-._~!$&'()*+,;=%");

fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// Whether a comma-separated list names `wanted`.
fn list_names(value: &[u8], wanted: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(wanted))
}

/// `host [":" port]` of RFC 3986 section 3.2.2, without user information; not empty.
pub fn is_authority(value: &[u8]) -> bool {
    let (host, rest) = if value.first() == Some(&b'[') {
        let Some(end) = memchr(b']', value) else { return false };
        let address = std::str::from_utf8(&value[1..end]).unwrap_or_default();
        if address.parse::<std::net::Ipv6Addr>().is_err() {
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

    fn read(text: &str) -> Result<Option<Head>, HeadError> {
        HeadReader::default().read(text.as_bytes())
    }

    fn framing(fields: &str) -> Framing {
        read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).unwrap().unwrap().framing
    }

    #[test]
    fn heads_are_framed() {
        assert_eq!(framing(""), Framing::Length(0));
        assert_eq!(framing("Content-Length: 12\r\n"), Framing::Length(12));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Framing::Chunked);
        let upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n";
        assert_eq!(framing(upgrade), Framing::Upgrade);
        assert_eq!(framing("Upgrade: websocket\r\n"), Framing::Length(0));
        assert_eq!(framing("Connection: upgrade\r\nUpgrade: h2c\r\n"), Framing::Length(0));
    }

    #[test]
    fn a_head_arrives_in_any_pieces() {
        let text = "POST /x?y=1 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\nabcGET";
        let mut reader = HeadReader::default();
        let length = text.find("abc").unwrap();
        for end in 0..length {
            assert_eq!(reader.read(&text.as_bytes()[..end]), Ok(None));
        }
        let head = reader.read(text.as_bytes()).unwrap().unwrap();
        assert_eq!(head, Head { length, framing: Framing::Length(3) });
    }

    #[test]
    fn hosts_are_hosts() {
        for good in ["a", "a.b-c", "a:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "a_b", "a:"] {
            let text = format!("GET / HTTP/1.1\r\nHost: {good}\r\n\r\n");
            // A colon without digits is an empty port, which RFC 3986 permits and nobody needs.
            assert_eq!(read(&text).is_ok(), good != "a:", "{good}");
        }
        for bad in [
            "", "a b", "a/b", "a?b", "a#b", "a\\b", "a[b", "a<b", "u@a", "a:x", "a:1:2", "a:99999",
            "[::1", "[zz]", "[::1]x",
        ] {
            let text = format!("GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n");
            assert!(read(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for bad in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\r\nHost: a\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a%20b/ HTTP/1.1\r\nHost: a%20b\r\n\r\n",
            "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ?x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/0.9\r\nHost: a\r\n\r\n",
            "GET / http/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \u{c}a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ] {
            assert!(matches!(read(bad), Err(HeadError::Malformed(_))), "{bad:?}: {:?}", read(bad));
        }
    }

    #[test]
    fn a_head_has_a_bound() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        assert_eq!(read(&long), Err(HeadError::TooLarge));
        assert_eq!(read(&"x".repeat(MAX_HEAD + 1)), Err(HeadError::TooLarge));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS));
        assert_eq!(read(&many), Err(HeadError::TooLarge));
    }

    #[test]
    fn a_target_in_absolute_form_names_the_host_again() {
        for target in ["http://a", "http://A/", "https://a/x?y", "HTTP://a?y"] {
            let text = format!("GET {target} HTTP/1.1\r\nX: y\r\nHost:  a \r\n\r\n");
            assert!(read(&text).unwrap().is_some(), "{target}");
        }
    }

    #[test]
    fn http_1_0_needs_no_host() {
        assert!(read("GET / HTTP/1.0\r\n\r\n").unwrap().is_some());
    }
}
