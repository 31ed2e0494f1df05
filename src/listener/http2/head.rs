//! The head of an HTTP/2 request, brought into the form in which the rest of the gateway reads requests.
//!
//! h2 has decoded the fields, and has refused what is malformed for every server (RFC 9113 section 8.2): capital letters,
//! fields of the connection, pseudo-fields that are missing, unknown, repeated or late. This file refuses what h2 lets
//! through and HTTP/1 refuses, too. It must not know streams.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri, header};

use crate::base::class::{TOKEN, consists_of};
use crate::listener::rules::{
    HeadError, MAX_FIELDS, MAX_HEAD, MAX_TARGET_LINE, RequestHead, is_target,
};

/// What h2 adds to each field when it measures a list of fields (RFC 9113 section 6.5.2).
const PER_FIELD: usize = 32;

/// The largest list of fields, in h2's measure: the bound of HTTP/1, and the fields' supplements.
pub const MAX_HEADER_LIST: usize = MAX_HEAD + MAX_FIELDS * PER_FIELD;

/// A head that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// RFC 9113 section 8.1.1 wants the stream to be reset.
    Malformed,
    /// The request is answered with an error.
    Refused(HeadError),
}

impl From<HeadError> for Fault {
    fn from(error: HeadError) -> Self {
        Self::Refused(error)
    }
}

fn refused<T>(how: &'static str) -> Result<T, Fault> {
    Err(Fault::Refused(HeadError::Malformed(how)))
}

/// Brings the head of a request, as h2 has decoded it, into the gateway's form: the target is a path, `Host` names the authority, and the crumbs of a
/// cookie are one field.
///
/// # Errors
/// [`Fault`] when the head is malformed, ambiguous or too large.
pub fn read(parts: &mut Parts) -> Result<(), Fault> {
    check_fields(&parts.headers)?;
    join_cookies(&mut parts.headers)?;
    if parts.headers.len() > MAX_FIELDS {
        return Err(HeadError::TooLarge.into());
    }
    let target = match parts.uri.path_and_query() {
        Some(target) => target.clone(),
        None if parts.method == Method::CONNECT => return refused("CONNECT is not served"),
        None => return Err(Fault::Malformed),
    };
    if target.as_str().len() > MAX_TARGET_LINE {
        return Err(HeadError::TooLarge.into());
    }
    // RFC 3986 section 3.1: the case does not matter.
    let is_http =
        |scheme: &str| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    if !parts.uri.scheme_str().is_none_or(is_http) {
        return refused("the scheme is neither http nor https");
    }
    let host = host(parts)?;
    let head = RequestHead {
        method: parts.method.as_str().as_bytes(),
        target: target.as_str().as_bytes(),
        host: host.as_ref().map(HeaderValue::as_bytes),
        needs_host: true,
    };
    head.check()?;
    // The check lets URLs pass, which only HTTP/1 knows as targets.
    if !target.as_str().starts_with('/') {
        return refused("the request target must be a path that starts with /");
    }
    if !is_target(target.as_str().as_bytes()) {
        return refused("the request target holds a character that must be percent-encoded");
    }
    if let Some(host) = host {
        parts.headers.insert(header::HOST, host);
    }
    parts.uri = Uri::from(target);
    parts.extensions.clear();
    Ok(())
}

/// Refuses fields that two servers might read differently.
fn check_fields(headers: &HeaderMap) -> Result<(), Fault> {
    for (name, value) in headers {
        // h2 lets quotation marks pass.
        if !consists_of(name.as_str().as_bytes(), &TOKEN) {
            return refused("the name of a field must be a token");
        }
        let bytes = value.as_bytes();
        // RFC 9113 section 8.2.1.
        let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if is_space(bytes.first()) || is_space(bytes.last()) {
            return Err(Fault::Malformed);
        }
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        let is_number = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        if !is_number || lengths.next().is_some() {
            return refused("Content-Length must be one number");
        }
    }
    Ok(())
}

/// Joins the crumbs of a cookie, which HTTP/1 sends as one field (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Fault> {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return Ok(()) };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    match HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        Ok(joined) => {
            headers.insert(header::COOKIE, joined);
            Ok(())
        }
        // Values of fields make the value of a field.
        Err(_) => Err(Fault::Malformed),
    }
}

/// The host that the request names: its authority, or the field `Host`, which may repeat the authority.
fn host(parts: &Parts) -> Result<Option<HeaderValue>, Fault> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return refused("there are several Host fields");
    }
    let Some(authority) = parts.uri.authority() else { return Ok(host.cloned()) };
    // RFC 9113 section 8.3.1: they must agree. A client that lets them differ means to confuse.
    if host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
    {
        return refused("the authority and Host name different hosts");
    }
    match HeaderValue::from_str(authority.as_str()) {
        Ok(host) => Ok(Some(host)),
        Err(_) => Err(Fault::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use pingora_http::RequestHeader;

    use super::*;

    fn head(method: &str, uri: &str, fields: &[(&str, &str)]) -> Result<RequestHeader, Fault> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        read(&mut parts)?;
        Ok(parts.into())
    }

    #[test]
    fn a_request_reads_as_one_of_http1() {
        let fields = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3; d=4")];
        let request = head("GET", "https://Example.com:80/a/b?c=d", &fields).unwrap();
        assert_eq!(request.raw_path(), b"/a/b?c=d");
        assert_eq!(request.uri.to_string(), "/a/b?c=d");
        assert_eq!(request.headers[header::HOST], "Example.com:80");
        assert_eq!(request.headers[header::COOKIE], "a=1; b=2; c=3; d=4");
        assert_eq!(request.headers.get_all(header::COOKIE).iter().count(), 1);
        let request = head("GET", "/", &[("host", "a")]).unwrap();
        assert_eq!(request.headers[header::HOST], "a");
        let request = head("GET", "http://a/", &[("host", "A")]).unwrap();
        assert_eq!(request.headers[header::HOST], "a");
    }

    #[test]
    fn what_two_servers_might_read_differently_is_refused() {
        let malformed = |result: Result<RequestHeader, Fault>| {
            matches!(result, Err(Fault::Refused(HeadError::Malformed(_))))
        };
        for (method, uri) in [
            ("CONNECT", "a:80"),
            ("GET", "/"),
            ("OPTIONS", "*"),
            ("GET", "ftp://a/"),
            ("GET", "http://u@a/"),
            ("GET", "http://a..b/"),
            ("GET", "http://a:080000/"),
            ("GET", "http://a/\u{e9}"),
            ("GET", "http://a/{x}\""),
        ] {
            assert!(malformed(head(method, uri, &[])), "{method} {uri}");
        }
        // As h2 makes names.
        let name = http::HeaderName::from_lowercase(b"x\"y").unwrap();
        let fields = HeaderMap::from_iter([(name, HeaderValue::from_static("z"))]);
        assert!(check_fields(&fields).is_err(), "a name that is no token");
        assert!(head("GET", "HTTP://a/", &[]).is_ok());
        for fields in [
            &[("host", "b")][..],
            &[("host", "a"), ("host", "a")],
            &[("host", "a:80")],
            &[("content-length", "1"), ("content-length", "1")],
            &[("content-length", "1, 1")],
            &[("content-length", "+1")],
            &[("content-length", "")],
        ] {
            assert!(malformed(head("GET", "http://a/", fields)), "{fields:?}");
        }
        for value in [" x", "x ", "\tx", "x\t", " "] {
            assert_eq!(head("GET", "http://a/", &[("x", value)]).err(), Some(Fault::Malformed));
        }
    }

    #[test]
    fn a_head_has_a_bound() {
        let too_large = Some(Fault::Refused(HeadError::TooLarge));
        let many = vec![("x", "y"); MAX_FIELDS + 1];
        assert_eq!(head("GET", "http://a/", &many).err(), too_large);
        let crumbs = vec![("cookie", "y"); MAX_FIELDS + 1];
        assert!(head("GET", "http://a/", &crumbs).is_ok());
        let long = format!("http://a/{}", "x".repeat(MAX_TARGET_LINE));
        assert_eq!(head("GET", &long, &[]).err(), too_large);
    }
}
