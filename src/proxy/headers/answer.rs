//! The fields of an upstream's answer as the client gets them.

use http::{HeaderName, HeaderValue, Version, header};
use pingora_core::Result;
use pingora_http::ResponseHeader;

use super::rate::set_rate_fields;
use super::{OWN_FIELDS, X_REQUEST_ID, apply};
use crate::admission::Findings;
use crate::limit::headers::RateHeaders;
use crate::route::fields;
use crate::route::headers::HeaderRules;

/// Removes the fields that concern the upstream's connection alone, and leaves one framing.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn clean_response(response: &mut ResponseHeader) -> Result<()> {
    if response.headers.keys().any(stays_on_its_hop) {
        remove_hop_by_hop(response);
    }
    if response.status == http::StatusCode::NO_CONTENT || response.status.is_informational() {
        response.remove_header(&header::CONTENT_LENGTH);
        response.remove_header(&header::TRANSFER_ENCODING);
    }
    // Pingora has checked that several lengths are equal. In most answers no name comes twice.
    let repeated = response.headers.len() > response.headers.keys_len();
    if repeated
        && response.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(length) = response.headers.get(header::CONTENT_LENGTH).cloned()
    {
        response.insert_header(header::CONTENT_LENGTH, length)?;
    }
    Ok(())
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

/// Sets the fields that every answer carries, then applies the route's rules.
///
/// # Errors
/// When a field cannot be set, which no value used here causes.
pub fn finish_response(
    response: &mut ResponseHeader,
    client: Version,
    request_id: Option<&HeaderValue>,
    findings: &Findings,
    rate_headers: RateHeaders,
    rules: &HeaderRules,
) -> Result<()> {
    // The version is this hop's, not the upstream's (RFC 9112 section 2.3).
    response.set_version(Version::HTTP_11);
    let usual = response.status.canonical_reason();
    let reason = response.get_reason_phrase().filter(|own| Some(*own) != usual).map(str::to_owned);
    let nothing = http::Response::new(()).into_parts().0.into();
    let mut parts = http::response::Parts::from(std::mem::replace(response, nothing));
    let headers = &mut parts.headers;
    headers.reserve(OWN_FIELDS + rules.set.len());
    if client == Version::HTTP_10 {
        // HTTP/1.0 knows no chunks: the end of the connection ends the body (RFC 9112 section 6.3).
        headers.remove(header::TRANSFER_ENCODING);
    }
    if let Some(id) = request_id {
        headers.insert(&X_REQUEST_ID, id.clone());
    }
    set_rate_fields(headers, findings, rate_headers)?;
    apply(rules, headers);
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
}
