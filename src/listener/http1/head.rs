//! The head of an HTTP/1 request, read strictly from its raw bytes (RFC 9112 sections 2 to 7).
//!
//! This file refuses syntax and framing that two servers might read differently, before Pingora or an
//! upstream sees a byte. [`rules`](crate::listener::rules) checks method, target and host. No bytes are
//! copied here.

use std::ops::Range;

use memchr::memchr_iter;

use super::body::Body;
use super::chunks::ChunkedBody;
use crate::base::class::{TOKEN, consists_of, span};
use crate::listener::rules::{
    HeadError, MAX_FIELDS, MAX_HEAD, MAX_TARGET_LINE, QUERY, RequestHead, TARGET, malformed,
};
use crate::route::fields::elements;

/// The length of a complete head, and the body that it announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head, the empty line included.
    pub length: usize,
    /// The body that follows.
    pub body: Body,
}

/// Most options of the `Connection` fields of a request.
const MAX_CONNECTION_OPTIONS: usize = 9;

/// Fields that no `Connection` option may take away.
const KEPT: [&[u8]; 4] = [b"host", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"];

/// Reads a head line by line as its bytes arrive. It keeps ranges of the bytes instead of copies.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// Bytes of whole lines already read.
    read: usize,
    fields: usize,
    request_line: Option<RequestLine>,
    host: Option<Range<usize>>,
    content_length: Option<u64>,
    chunked: bool,
    connection_options: usize,
    connection_upgrade: bool,
    websocket: Option<bool>,
}

#[derive(Clone, Debug)]
struct RequestLine {
    method: Range<usize>,
    target: Range<usize>,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

impl HeadReader {
    /// Reads on in `bytes`, which begin where the head begins. `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`HeadError`] as soon as the bytes cannot begin a head, or when a complete head asks for a service
    /// that the gateway does not offer.
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
            match &self.request_line {
                None if line.len() > MAX_TARGET_LINE => return Err(HeadError::TooLarge),
                None => self.request_line = Some(RequestLine::read(line)?),
                Some(request_line) if line.is_empty() => {
                    request_line.asked(self.host.as_ref(), bytes).check()?;
                    let body = self.body(request_line.version)?;
                    return Ok(Some(Head { length: self.read, body }));
                }
                Some(_) => self.field(line, line_start)?,
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
            // This also refuses a folded line, and white space before the colon.
            return malformed("a header line does not begin with a token and a colon");
        };
        if untrimmed.iter().fold(false, |found, &byte| found | is_control(byte)) {
            return malformed("a header value holds a control character");
        }
        let value = untrimmed.trim_ascii();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let start = line_start + line.len() - untrimmed.trim_ascii_start().len();
                self.host_field(start..start + value.len())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length_field(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.coding_field(value),
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection_field(value),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                // Pingora looks at the first one alone, and both must read the request alike.
                let is_websocket = value.eq_ignore_ascii_case(b"websocket");
                self.websocket.get_or_insert(is_websocket);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn host_field(&mut self, at: Range<usize>) -> Result<(), HeadError> {
        match self.host.replace(at) {
            Some(_) => malformed("there are several Host fields"),
            None => Ok(()),
        }
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

    /// Pingora refuses the same options, but only once it has a connection to an upstream.
    fn connection_field(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for option in elements(value) {
            self.connection_options += 1;
            if self.connection_options > MAX_CONNECTION_OPTIONS {
                return malformed("there are too many Connection options");
            }
            if !consists_of(option, &TOKEN) {
                return malformed("a Connection option is not a token");
            }
            if KEPT.iter().any(|name| option.eq_ignore_ascii_case(name)) {
                return malformed("a Connection option names a field that every request keeps");
            }
            self.connection_upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
        Ok(())
    }

    /// The body that the fields announce; called when all fields are read.
    fn body(&self, version: Version) -> Result<Body, HeadError> {
        let http11 = version == Version::Http11;
        if self.chunked && (self.content_length.is_some() || !http11) {
            return malformed("Transfer-Encoding contradicts Content-Length or HTTP/1.0");
        }
        if self.chunked {
            return Ok(Body::Chunked(ChunkedBody::default()));
        }
        if http11 && self.connection_upgrade && self.websocket == Some(true) {
            return match self.content_length {
                None | Some(0) => Ok(Body::Everything),
                Some(_) => malformed("an upgrade request has a body"),
            };
        }
        Ok(Body::Bytes(self.content_length.unwrap_or(0)))
    }
}

impl RequestLine {
    /// `method SP request-target SP HTTP-version`; the line begins where the head begins.
    fn read(line: &[u8]) -> Result<Self, HeadError> {
        let (method, rest) = span(line, &TOKEN);
        if method.is_empty() {
            return malformed("the method is not a token");
        }
        let Some(rest) = rest.strip_prefix(b" ") else {
            return malformed("the request line is not method, target and version");
        };
        let (path, after) = span(rest, &TARGET);
        let (query, version) = match after.first() {
            Some(b'?') => span(after, &QUERY),
            _ => (&b""[..], after),
        };
        let target = path.len() + query.len();
        let version = match version {
            b" HTTP/1.1" => Version::Http11,
            b" HTTP/1.0" => Version::Http10,
            [b' ', ..] => return malformed("the version is neither HTTP/1.1 nor HTTP/1.0"),
            [] => return malformed("the request line is not method, target and version"),
            _ => {
                return malformed(
                    "the request target holds a character that must be percent-encoded",
                );
            }
        };
        let start = method.len() + 1;
        Ok(Self { method: 0..method.len(), target: start..start + target, version })
    }

    /// The parts that [`rules`](crate::listener::rules) checks. `bytes` are those of the whole head.
    fn asked<'a>(&self, host: Option<&Range<usize>>, bytes: &'a [u8]) -> RequestHead<'a> {
        RequestHead {
            method: &bytes[self.method.clone()],
            target: &bytes[self.target.clone()],
            host: host.map(|at| &bytes[at.clone()]),
            needs_host: self.version == Version::Http11,
        }
    }
}

fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Head>, HeadError> {
        HeadReader::default().read(text.as_bytes())
    }

    fn body(fields: &str) -> Body {
        read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).unwrap().unwrap().body
    }

    #[test]
    fn heads_are_framed() {
        let chunked = Body::Chunked(ChunkedBody::default());
        assert_eq!(body(""), Body::Bytes(0));
        assert_eq!(body("Content-Length: 12\r\n"), Body::Bytes(12));
        assert_eq!(body("Transfer-Encoding: Chunked\r\n"), chunked);
        let upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n";
        assert_eq!(body(upgrade), Body::Everything);
        assert_eq!(body("Upgrade: websocket\r\n"), Body::Bytes(0));
        assert_eq!(body("Connection: upgrade\r\nUpgrade: h2c\r\n"), Body::Bytes(0));
        let second = "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n";
        assert_eq!(body(second), Body::Bytes(0));
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
        assert_eq!(head, Head { length, body: Body::Bytes(3) });
    }

    #[test]
    fn ambiguous_heads_are_refused() {
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
            "GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a?\"b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a?\u{1} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a?\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n",
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
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Host\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: \"Host\"\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: :authority\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e\r\nConnection: f,g,h,i,j\r\n\r\n",
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
        let with_line_of = |length: usize| {
            let around = "GET / HTTP/1.1".len();
            let path = "x".repeat(length - around);
            read(&format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n"))
        };
        assert!(with_line_of(MAX_TARGET_LINE).unwrap().is_some());
        assert_eq!(with_line_of(MAX_TARGET_LINE + 1), Err(HeadError::TooLarge));
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
