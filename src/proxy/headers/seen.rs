//! The fields that a request has. All names are looked at once; the hooks ask this value afterwards.

use http::{HeaderMap, header};
use memchr::memmem;

use crate::route::fields;

/// The media type of a stream of events.
const EVENTS: &[u8] = b"text/event-stream";

/// The fields of a request that the hooks ask for. A walk over all names costs less than one look-up in the map,
/// and most requests have none of these fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `Content-Length`.
    pub content_length: bool,
    /// `Accept`.
    pub accept: bool,
    /// `Expect`.
    pub expect: bool,
    /// `Upgrade`.
    pub upgrade: bool,
    /// A field that concerns one connection only (RFC 9110 section 7.6.1).
    pub hop_by_hop: bool,
    pub(super) request_id: bool,
    pub(super) trace: bool,
    /// A field that makes a [claim](fields::Claim), in any spelling.
    pub(super) suspicious: bool,
}

impl Seen {
    /// The value before the names have been looked at: every field may be there.
    pub const ANYTHING: Self = Self::all(true);

    const fn all(seen: bool) -> Self {
        Self {
            content_length: seen,
            accept: seen,
            expect: seen,
            upgrade: seen,
            hop_by_hop: seen,
            request_id: seen,
            trace: seen,
            suspicious: seen,
        }
    }

    /// Looks at the names of `headers`.
    pub fn in_request(headers: &HeaderMap) -> Self {
        let mut seen = Self::all(false);
        for name in headers.keys() {
            match name.as_str() {
                "content-length" => seen.content_length = true,
                "accept" => seen.accept = true,
                "expect" => seen.expect = true,
                // Credentials are looked at anyway.
                fields::API_KEY => {}
                "x-request-id" => seen.request_id = true,
                "traceparent" | "tracestate" => seen.trace = true,
                "upgrade" => (seen.upgrade, seen.hop_by_hop) = (true, true),
                name if fields::is_hop_by_hop(name) => seen.hop_by_hop = true,
                name => seen.suspicious |= fields::claim(name).is_some(),
            }
        }
        seen
    }
}

/// The announced length of a body, in bytes.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether the client asks for a stream of events, as each browser's `EventSource` does.
pub fn accepts_events(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| memmem::find(value.as_bytes(), EVENTS).is_some())
}

/// Whether an answer is a stream of events.
pub fn is_events(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(EVENTS))
}

/// Whether `Connection` names `Upgrade`.
pub fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .any(|value| fields::list_names(value.as_bytes(), b"upgrade"))
}
