//! Answers that the gateway compresses: which, and what changes in their fields.
//!
//! Only text is compressed that a client asked for, that is not compressed yet, and that nobody sealed. A body without a
//! length may be a stream, so each part of it leaves at once. This file must not know how bytes are coded.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use super::headers::seen::content_length;
use crate::route::coding::{Coding, preferred};
use crate::route::cors::vary;
use crate::route::fields::list_names;
use crate::telemetry::metrics::METRICS;

mod encoder;
mod memory;

use encoder::Encoder;
pub use memory::EncoderMemory;
use memory::Room;

/// A smaller body gains nothing, in bytes.
const SMALLEST: u64 = 1_024;

/// Fields with a hash of the bytes that are sent.
static SEALS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// The compression of one answer's body.
pub struct Compression {
    encoder: Encoder,
    /// The bytes of the body that are still to come, where the upstream said how many.
    left: Option<u64>,
    ended: bool,
    _room: Room,
}

impl Compression {
    /// Prepares the answer of a route that offers `codings`: changes its fields, if its body is to be compressed and an encoder
    /// finds room in `memory`. An answer to HEAD, and one that says that nothing has changed, gets the fields of the answer
    /// that it stands for (RFC 9110 sections 9.3.2 and 15.4.5).
    ///
    /// # Errors
    /// When a coding cannot begin, or a field cannot be set, which no value used here causes.
    pub fn begin(
        codings: &[Coding],
        request: &RequestHeader,
        response: &mut ResponseHeader,
        memory: &Arc<EncoderMemory>,
    ) -> Result<Option<Box<Self>>> {
        if !is_suitable(response) {
            return Ok(None);
        }
        // The parts have no reason phrase.
        let reason = response.get_reason_phrase().map(str::to_owned);
        let mut parts = take_parts(response);
        vary(&mut parts.headers, "Accept-Encoding");
        let may = request.version != Version::HTTP_10 && !forbids_transformation(&request.headers);
        let coding = preferred(codings, &request.headers).filter(|_| may);
        let left = content_length(&parts.headers);
        let is_head = request.method == Method::HEAD;
        let mut begun = None;
        match coding {
            None => {}
            Some(_) if parts.status == StatusCode::NOT_MODIFIED => weaken_tag(&mut parts.headers),
            Some(coding) if is_head => set_fields(&mut parts.headers, coding),
            Some(coding) => match memory.take(Encoder::memory(coding)) {
                None => METRICS.compression_skipped.inc(),
                Some(room) => {
                    set_fields(&mut parts.headers, coding);
                    if request.version == Version::HTTP_11 {
                        let chunked = HeaderValue::from_static("chunked");
                        parts.headers.insert(header::TRANSFER_ENCODING, chunked);
                    }
                    begun = Some((coding, room));
                }
            },
        }
        *response = parts.into();
        response.set_reason_phrase(reason.as_deref())?;
        let Some((coding, _room)) = begun else { return Ok(None) };
        let encoder = Encoder::new(coding).or_err(ErrorType::InternalError, "a coding")?;
        Ok(Some(Box::new(Self { encoder, left, ended: false, _room })))
    }

    /// Compresses the next part of the body, which may be the last one.
    ///
    /// # Errors
    /// When the coding fails, which no bytes cause.
    pub fn pass(&mut self, body: &mut Option<Bytes>, last: bool) -> Result<()> {
        if self.ended {
            *body = None;
            return Ok(());
        }
        let input = body.take().unwrap_or_default();
        let whole = self.left.as_mut().is_some_and(|left| {
            *left = left.saturating_sub(input.len() as u64);
            *left == 0
        });
        // Pingora does not always tell with the last bytes that they are the last.
        self.ended = last || whole;
        let output = match (self.ended, self.left) {
            (true, _) => self.encoder.finish(&input),
            (false, Some(_)) => self.encoder.write(&input),
            (false, None) => self.encoder.write_and_flush(&input),
        };
        let output = output.or_err(ErrorType::InternalError, "a coding").map_err(Error::into_in)?;
        // An empty chunk would end the body.
        *body = (!output.is_empty()).then_some(output);
        Ok(())
    }

    /// The last bytes, when the body ended without a last part.
    ///
    /// # Errors
    /// When the coding fails, which no bytes cause.
    pub fn end(&mut self) -> Result<Option<Bytes>> {
        let mut body = None;
        self.pass(&mut body, true)?;
        Ok(body)
    }
}

/// Whether the body of an answer would be compressed for a client that accepts it.
fn is_suitable(response: &ResponseHeader) -> bool {
    let headers = &response.headers;
    let status = response.status;
    let bodiless = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::PARTIAL_CONTENT];
    let is_text = || match headers.get(header::CONTENT_TYPE) {
        Some(kind) => is_text(kind.as_bytes()),
        // It need not repeat the type.
        None => status == StatusCode::NOT_MODIFIED,
    };
    let codings = || headers.get_all(header::CONTENT_ENCODING).iter();
    !status.is_informational()
        && !bodiless.contains(&status)
        && is_text()
        && content_length(headers).is_none_or(|length| length >= SMALLEST)
        && codings().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
        && ![header::CONTENT_RANGE, header::TRAILER]
            .iter()
            .chain(&SEALS)
            .any(|name| headers.contains_key(name))
        && !forbids_transformation(headers)
}

/// Whether the sender of a message wants its content as it is (RFC 9111 sections 5.2.1.6 and 5.2.2.6).
fn forbids_transformation(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CACHE_CONTROL).iter();
    values.map(HeaderValue::as_bytes).any(|value| list_names(value, b"no-transform"))
}

/// Whether a type of content is text, and no stream of events.
fn is_text(kind: &[u8]) -> bool {
    let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    let kind = kind.to_ascii_lowercase();
    match kind.as_slice() {
        b"text/event-stream" => false,
        b"application/json"
        | b"application/xml"
        | b"application/javascript"
        | b"application/x-javascript" => true,
        kind => {
            kind.starts_with(b"text/")
                || (!kind.starts_with(b"application/grpc")
                    && (kind.ends_with(b"+json") || kind.ends_with(b"+xml")))
        }
    }
}

fn take_parts(response: &mut ResponseHeader) -> http::response::Parts {
    let nothing = http::Response::new(()).into_parts().0.into();
    std::mem::replace(response, nothing).into()
}

fn set_fields(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(header::CONTENT_LENGTH);
    // Ranges of the upstream's bytes are none of the bytes that are sent.
    headers.remove(header::ACCEPT_RANGES);
    weaken_tag(headers);
}

/// The bytes are no longer those that a strong tag stands for (RFC 9110 section 8.8.1).
fn weaken_tag(headers: &mut HeaderMap) {
    if let Some(tag) = headers.get(header::ETAG).map(HeaderValue::as_bytes)
        && !tag.starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag].concat())
    {
        headers.insert(header::ETAG, weak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_known_by_its_type() {
        for (kind, text) in [
            ("text/html; charset=utf-8", true),
            ("TEXT/Plain", true),
            ("application/json", true),
            ("application/problem+json;x=y", true),
            ("image/svg+xml", true),
            ("application/javascript", true),
            ("text/event-stream", false),
            ("text/event-stream;charset=utf-8", false),
            ("application/grpc", false),
            ("application/grpc+json", false),
            ("application/grpc-web-text", false),
            ("application/x-ndjson", false),
            ("application/octet-stream", false),
            ("image/png", false),
            ("video/mp4", false),
            ("", false),
        ] {
            assert_eq!(is_text(kind.as_bytes()), text, "{kind}");
        }
    }
}
