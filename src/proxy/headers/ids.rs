//! The names that a request is followed by: its request id, and its place in a trace.

use http::{HeaderMap, HeaderName, HeaderValue};
use pingora_core::{ErrorType, OrErr, Result};
use uuid::Builder;

use super::X_REQUEST_ID;
use super::seen::Seen;
use crate::base::clock::UnixTime;
use crate::base::hex;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The request's id: the id that the client sent when it is well formed, else a new UUIDv7 (RFC 9562 section 5.7).
pub fn request_id(headers: &HeaderMap, seen: Seen, now: UnixTime) -> HeaderValue {
    if !seen.request_id {
        return new_request_id(now);
    }
    let mut sent = headers.get_all(&X_REQUEST_ID).iter();
    match (sent.next(), sent.next()) {
        (Some(id), None) if is_well_formed(id.as_bytes()) => id.clone(),
        _ => new_request_id(now),
    }
}

/// A new request id, made at `now`.
pub fn new_request_id(now: UnixTime) -> HeaderValue {
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    let id = Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid();
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = id.hyphenated().encode_lower(&mut text);
    // Every hexadecimal digit and hyphen may stand in a field value.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

fn is_well_formed(id: &[u8]) -> bool {
    (1..=128).contains(&id.len())
        && id.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(&byte))
}

/// Passes a valid `traceparent` on, and starts a trace where there is none (W3C Trace Context,
/// section 3.2).
pub(super) fn set_traceparent(headers: &mut HeaderMap, seen: Seen) -> Result<()> {
    if seen.trace {
        let mut sent = headers.get_all(&TRACEPARENT).iter();
        if let (Some(value), None) = (sent.next(), sent.next())
            && is_traceparent(value.as_bytes())
        {
            return Ok(());
        }
        // A tracestate means nothing without its traceparent.
        headers.remove(&TRACESTATE);
    }
    let mut parent = *b"00-................................-................-00";
    hex::write(fastrand::u64(1..), &mut parent[3..19]);
    hex::write(fastrand::u64(..), &mut parent[19..35]);
    hex::write(fastrand::u64(1..), &mut parent[36..52]);
    let parent = HeaderValue::from_bytes(&parent)
        .or_err(ErrorType::InvalidHTTPHeader, "a value that the gateway made")?;
    headers.insert(&TRACEPARENT, parent);
    Ok(())
}

fn is_traceparent(value: &[u8]) -> bool {
    let digits = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    let zero = |part: &[u8]| part.iter().all(|&byte| byte == b'0');
    value.len() == 55
        && value[2] == b'-'
        && value[35] == b'-'
        && value[52] == b'-'
        && &value[..2] == b"00"
        && digits(&value[3..35])
        && digits(&value[36..52])
        && digits(&value[53..])
        && !zero(&value[3..35])
        && !zero(&value[36..52])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{headers, rewritten};
    use super::*;

    fn id_of(fields: &[(&str, &str)]) -> HeaderValue {
        let headers = headers(fields);
        request_id(&headers, Seen::in_request(&headers), UnixTime::from_secs(1_000_000))
    }

    #[test]
    fn request_ids_are_kept_when_sane() {
        assert_eq!(id_of(&[("x-request-id", "abc-1")]), "abc-1");
        let long = "x".repeat(129);
        for fields in [
            &[][..],
            &[("x-request-id", "")],
            &[("x-request-id", "a b")],
            &[("x-request-id", "a\"b")],
            &[("x-request-id", &long)],
            &[("x-request-id", "a"), ("x-request-id", "b")],
        ] {
            let id = id_of(fields);
            let id = uuid::Uuid::parse_str(id.to_str().unwrap()).unwrap();
            assert_eq!(id.get_version_num(), 7, "{fields:?}");
        }
    }

    #[test]
    fn traces_are_continued_or_begun() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(rewritten(&[("traceparent", valid)], false).headers["traceparent"], valid);
        for bad in ["x", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            let request = rewritten(&[("traceparent", bad), ("tracestate", "a=b")], false);
            assert!(is_traceparent(request.headers["traceparent"].as_bytes()));
            assert!(!request.headers.contains_key("tracestate"));
        }
    }
}
