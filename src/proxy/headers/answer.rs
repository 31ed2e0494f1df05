//! The fields of an upstream's answer as the client gets them.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;

use super::prefix::Prefix;
use super::rate::set_rate_fields;
use super::route::set_route_fields;
use super::values::Values;
use super::{OWN_FIELDS, X_REQUEST_ID, apply, value};
use crate::admission::Findings;
use crate::limit::headers::RateHeaders;
use crate::policy::Route;
use crate::route::fields;
use crate::tls::client::ClientCertificate;

/// Removes the fields that concern the upstream's connection alone, and leaves one framing.
///
/// # Errors
/// When the framing of the answer has two readings.
pub fn clean_response(response: &mut ResponseHeader) -> Result<()> {
    if response.headers.keys().any(stays_on_its_hop) {
        remove_hop_by_hop(response);
    }
    if response.status == http::StatusCode::NO_CONTENT || response.status.is_informational() {
        response.remove_header(&header::CONTENT_LENGTH);
        response.remove_header(&header::TRANSFER_ENCODING);
    }
    one_length(response)?;
    chunked_once(&response.headers)
}

/// Leaves one `Content-Length` of one number. Pingora has checked that several are equal, on one line or on more.
fn one_length(response: &mut ResponseHeader) -> Result<()> {
    let Some(first) = response.headers.get(header::CONTENT_LENGTH) else { return Ok(()) };
    let list = first.as_bytes();
    let number = list.split(|&byte| byte == b',').next().unwrap_or_default().trim_ascii();
    // In most answers no name comes twice.
    let repeated = response.headers.len() > response.headers.keys_len()
        && response.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some();
    if number.len() == list.len() && !repeated {
        return Ok(());
    }
    let number =
        HeaderValue::from_bytes(number).or_err(ErrorType::InvalidHTTPHeader, "a length")?;
    response.insert_header(header::CONTENT_LENGTH, number)
}

/// Refuses a coding that this gateway does not decode. A client that decodes another number of codings than the gateway
/// would read another body (RFC 9112 section 6.1).
fn chunked_once(headers: &HeaderMap) -> Result<()> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => {
            let error = Error::explain(
                ErrorType::InvalidHTTPHeader,
                "Transfer-Encoding is not chunked alone",
            );
            Err(error.into_up())
        }
    }
}

/// Whether a field of an answer concerns the upstream's connection alone. Pingora handles the framing.
fn stays_on_its_hop(name: &HeaderName) -> bool {
    fields::is_hop_by_hop(name.as_str()) && name != header::TRANSFER_ENCODING
}

fn remove_hop_by_hop(response: &mut ResponseHeader) {
    let switching = response.status == http::StatusCode::SWITCHING_PROTOCOLS;
    let headers = &response.headers;
    let nominated = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Pingora handles the framing, and an upgrade needs its field.
        .filter(|name| {
            *name != header::CONTENT_LENGTH
                && *name != header::TRANSFER_ENCODING
                && *name != header::UPGRADE
        });
    let own = headers
        .keys()
        .filter(|name| stays_on_its_hop(name))
        .filter(|name| !(switching && [header::CONNECTION, header::UPGRADE].contains(name)))
        .cloned();
    let names: Vec<HeaderName> = nominated.chain(own).collect();
    for name in &names {
        response.remove_header(name);
    }
}

/// The gateway's part in an answer.
pub struct Own<'a> {
    /// The version of the request.
    pub client: Version,
    /// The client's address.
    pub client_ip: Option<IpAddr>,
    /// The certificate of the client; `None` where it has shown none.
    pub certificate: Option<&'a ClientCertificate>,
    /// The request's id.
    pub request_id: Option<&'a HeaderValue>,
    /// The decisions about limits.
    pub findings: &'a Findings,
    /// The rate fields that answers carry.
    pub rate_headers: RateHeaders,
    /// The route of the request.
    pub route: &'a Route,
    /// The fields of the request.
    pub request: &'a HeaderMap,
    /// The prefix that is put back into the paths of the answer.
    pub prefix: Option<Prefix<'a>>,
    /// The protocol that is selected when a WebSocket was accepted without one.
    pub subprotocol: Option<&'a str>,
}

/// Sets the fields that every answer carries, applies the route's rules, and sets the fields of the route.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn finish_response(response: &mut ResponseHeader, own: &Own<'_>) -> Result<()> {
    let Own {
        client,
        client_ip,
        certificate,
        request_id,
        findings,
        rate_headers,
        route,
        request,
        prefix,
        subprotocol,
    } = own;
    let rules = &route.response_headers;
    // The version is this hop's, not the upstream's (RFC 9112 section 2.3).
    response.set_version(Version::HTTP_11);
    let usual = response.status.canonical_reason();
    let reason = response.get_reason_phrase().filter(|own| Some(*own) != usual).map(str::to_owned);
    let nothing = http::Response::new(()).into_parts().0.into();
    let mut parts = http::response::Parts::from(std::mem::replace(response, nothing));
    let headers = &mut parts.headers;
    headers.reserve(OWN_FIELDS + rules.set.len() + rules.made.len());
    if *client == Version::HTTP_10 {
        // HTTP/1.0 knows no chunks: the end of the connection ends the body (RFC 9112 section 6.3).
        headers.remove(header::TRANSFER_ENCODING);
    }
    if let Some(id) = request_id {
        headers.insert(&X_REQUEST_ID, (*id).clone());
    }
    set_rate_fields(headers, findings, *rate_headers)?;
    if let Some(prefix) = prefix {
        prefix.put_back(headers);
    }
    if let Some(subprotocol) = subprotocol
        && !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL)
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value(subprotocol)?);
    }
    let values = Values {
        client: *client_ip,
        request_id: *request_id,
        principal: findings.principal.as_ref(),
        host: if rules.made.is_empty() { None } else { request.get(header::HOST) },
        route: &route.label,
        certificate: *certificate,
    };
    apply(rules, headers, &values);
    // After the rules, which may not undo what the route says about other origins and about its end.
    set_route_fields(headers, route, request);
    *response = parts.into();
    if reason.is_some() {
        response.set_reason_phrase(reason.as_deref())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_own_connection_fields_stay_behind() {
        let mut response = ResponseHeader::build(204, None).unwrap();
        for (name, value) in [
            ("Connection", "close, X-Internal"),
            ("X-Internal", "secret"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authenticate", "Basic"),
            ("Trailer", "X-Checksum"),
            ("Content-Length", "0"),
            ("Transfer-Encoding", "chunked"),
            ("X-Public", "stays"),
        ] {
            response.append_header(name, value).unwrap();
        }
        clean_response(&mut response).unwrap();
        let names: Vec<_> = response.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-public"]);
    }

    fn answer(fields: &[(&'static str, &'static str)]) -> ResponseHeader {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in fields {
            response.append_header(*name, *value).unwrap();
        }
        response
    }

    #[test]
    fn an_answer_has_one_length() {
        for lengths in [&["2"][..], &["2, 2"], &["2,2 ,2"], &["2", "2"], &["2, 2", "2"]] {
            let fields: Vec<_> = lengths.iter().map(|length| ("Content-Length", *length)).collect();
            let mut response = answer(&fields);
            clean_response(&mut response).unwrap();
            let left: Vec<_> = response.headers.get_all("content-length").iter().collect();
            assert_eq!(left, ["2"], "{lengths:?}");
        }
    }

    #[test]
    fn an_answer_is_chunked_once() {
        for (codings, passes) in [
            (&["chunked"][..], true),
            (&["Chunked"], true),
            (&["chunked, chunked"], false),
            (&["chunked", "chunked"], false),
            (&["gzip, chunked"], false),
            (&["gzip"], false),
            (&["chunked, gzip"], false),
            (&[""], false),
        ] {
            let fields: Vec<_> =
                codings.iter().map(|coding| ("Transfer-Encoding", *coding)).collect();
            assert_eq!(clean_response(&mut answer(&fields)).is_ok(), passes, "{codings:?}");
        }
    }
}
