//! What gRPC needs that HTTP does not say: refusals in trailers, the client's deadline, and streams that are quiet for long.
//!
//! A gRPC client reads the outcome of a call from the trailers `grpc-status` and `grpc-message`, and takes any HTTP status
//! but 200 for a broken proxy. This file must not know why a request is refused.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use super::headers::value;
use crate::listener::end::RequestEnd;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The media type of gRPC.
const MEDIA_TYPE: &[u8] = b"application/grpc";

/// What `grpc-message` holds only encoded.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The longest deadline that is kept: a client that names a longer one has none.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Whether the fields are those of a gRPC call. gRPC-Web is ordinary HTTP: its clients read the HTTP status.
pub fn has_media_type(headers: &HeaderMap) -> bool {
    let Some(written) = headers.get(header::CONTENT_TYPE) else { return false };
    let written = written.as_bytes();
    let Some((name, rest)) = written.split_at_checked(MEDIA_TYPE.len()) else { return false };
    name.eq_ignore_ascii_case(MEDIA_TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// Whether `request` is a gRPC call. Calls need HTTP/2.
pub fn is_call(request: &RequestHeader) -> bool {
    request.version == Version::HTTP_2 && has_media_type(&request.headers)
}

/// The time that the client gives a call: at most eight digits and a unit. Anything else says nothing.
pub fn time_limit(headers: &HeaderMap) -> Option<Duration> {
    let written = headers.get(&GRPC_TIMEOUT)?.as_bytes();
    let (unit, digits) = written.split_last()?;
    let is_number = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let number = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit.wrapping_sub(b'0')));
    let limit = match unit {
        _ if !is_number => return None,
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    };
    (limit <= LONGEST).then_some(limit)
}

/// The status of gRPC that stands for `status`, as gRPC maps what proxies answer. Where gRPC has no word for it, the
/// nearest one: a method that is not served is not implemented, and what is too large or too much uses up a resource.
fn code(status: StatusCode) -> u8 {
    match status {
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => 12,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::PAYMENT_REQUIRED => 8,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => 14,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => 4,
        _ => 13,
    }
}

/// Turns the `answer` of HTTP, which says `detail`, into one that has trailers only.
///
/// # Errors
/// When a field cannot be set, which no text used here causes.
pub fn trailers_only(mut answer: ResponseHeader, detail: &str) -> Result<ResponseHeader> {
    let status = answer.status;
    answer.set_status(StatusCode::OK)?;
    answer.remove_header(&header::CONTENT_LENGTH);
    answer.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))?;
    let trailers = trailers(status, detail)?;
    for (name, value) in &trailers {
        answer.insert_header(name, value)?;
    }
    Ok(answer)
}

/// The trailers that end an answer as `status` would.
///
/// # Errors
/// When a field cannot be set, which no text used here causes.
pub fn trailers(status: StatusCode, detail: &str) -> Result<HeaderMap> {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(&GRPC_STATUS, HeaderValue::from(u16::from(code(status))));
    let message = utf8_percent_encode(detail, ENCODED).to_string();
    trailers.insert(&GRPC_MESSAGE, value(&message)?);
    Ok(trailers)
}

/// The status and the text that stand for an answer that was ended early.
pub fn cut(end: RequestEnd) -> (StatusCode, &'static str) {
    match end {
        RequestEnd::Token(_) => (StatusCode::UNAUTHORIZED, "the token does not hold any more"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "nothing has passed for too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(name: &'static str, value: &str) -> HeaderMap {
        [(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())]
            .into_iter()
            .collect()
    }

    #[test]
    fn calls_are_told_by_their_media_type() {
        for (written, is_grpc) in [
            ("application/grpc", true),
            ("Application/gRPC", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/grpc-web-text+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(has_media_type(&fields("content-type", written)), is_grpc, "{written}");
        }
    }

    #[test]
    fn a_time_limit_is_a_number_and_a_unit() {
        for (written, limit) in [
            ("1S", Some(Duration::from_secs(1))),
            ("100m", Some(Duration::from_millis(100))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("2M", Some(Duration::from_secs(120))),
            ("1H", Some(Duration::from_secs(3_600))),
            ("0S", Some(Duration::ZERO)),
            ("99999999H", None),
            ("999999999u", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("1.5S", None),
            ("", None),
        ] {
            assert_eq!(time_limit(&fields("grpc-timeout", written)), limit, "{written}");
        }
    }

    #[test]
    fn a_message_is_ascii() {
        let trailers = trailers(StatusCode::UNAUTHORIZED, "50% of\n\u{e9}").unwrap();
        assert_eq!(trailers["grpc-status"], "16");
        assert_eq!(trailers["grpc-message"], "50%25 of%0A%C3%A9");
    }
}
