//! Header fields that the gateway sets, replaces and removes: in the request, before it goes to an upstream, and in
//! the answer, before it goes to the client. These files know no hook of Pingora's.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_core::{ErrorType, OrErr, Result};

use crate::route::fields;
use crate::route::headers::HeaderRules;
use crate::route::host::Authority;

pub mod answer;
pub mod client;
pub mod ids;
pub mod prefix;
pub mod rate;
pub mod request;
pub mod route;
pub mod seen;
pub mod values;

use values::Values;

// The http crate has no constant for this name. A name given as text would be parsed at each use.
static X_REQUEST_ID: HeaderName = HeaderName::from_static(fields::REQUEST_ID);

/// The gateway adds at most this many fields to a request or to an answer.
const OWN_FIELDS: usize = 8;

/// Applies the rules of a route. `values` is only asked where a rule has values of the request.
fn apply(rules: &HeaderRules, headers: &mut HeaderMap, values: &Values<'_>) {
    for name in &rules.remove {
        headers.remove(name);
    }
    for (name, value) in &rules.set {
        headers.insert(name, value.clone());
    }
    for (name, template) in &rules.made {
        match template.make(|variable| values.of(variable)) {
            // A request needs its host, and values of a token need not make one.
            value if name == header::HOST => {
                let is_host = |value: &HeaderValue| Authority::parse(value.as_bytes()).is_some();
                if let Some(value) = value.filter(is_host) {
                    headers.insert(name, value);
                }
            }
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    }
}

/// `text`, which the gateway made, as the value of a field.
pub(super) fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text)
        .or_err(ErrorType::InvalidHTTPHeader, "a value that the gateway made")
}

/// The same for bytes.
fn bytes_value(bytes: &[u8]) -> Result<HeaderValue> {
    HeaderValue::from_bytes(bytes)
        .or_err(ErrorType::InvalidHTTPHeader, "a value that the gateway made")
}

fn number(number: u64) -> Result<HeaderValue> {
    value(itoa::Buffer::new().format(number))
}

#[cfg(test)]
mod tests {
    use pingora_http::RequestHeader;

    use super::request::{Origin, rewrite_request};
    use super::seen::Seen;
    use super::*;
    use crate::auth::sources::{Onward, Sources};

    pub(super) fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    pub(super) fn rewritten(
        fields: &[(&'static str, &'static str)],
        trusted: bool,
    ) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        let id = HeaderValue::from_static("id");
        let origin = Origin {
            seen: Seen::in_request(&request.headers),
            peer: Some("10.0.0.1".parse().unwrap()),
            client: None,
            route: "/",
            trusted,
            credentials: &Sources::default(),
            onward: Onward { verified: true, forward: true, pass: &[] },
            stripped: None,
            endpoint: None,
            scheme: "http",
            request_id: &id,
            principal: None,
            certificate: None,
        };
        rewrite_request(&mut request, &origin, &HeaderRules::default()).unwrap();
        request
    }
}
