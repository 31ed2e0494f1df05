//! The request target that an upstream gets: the canonical path, without a prefix that the route strips, and the query
//! as it came, without credentials.

use memchr::memchr;
use pingora_http::RequestHeader;

use crate::auth::sources::Sources;
use crate::policy::Route;
use crate::route::matched::without_prefix;

/// The query of a request, byte for byte.
pub fn query(request: &RequestHeader) -> Option<&[u8]> {
    split(request.raw_path()).1
}

/// The target for the upstream; `None` when the target of `request` can stay. `canonical` is the canonical path, where
/// it differs. `fold` says how the prefix was matched.
pub fn onward(
    request: &RequestHeader,
    canonical: Option<&str>,
    route: &Route,
    fold: bool,
    sources: &Sources,
) -> Option<Vec<u8>> {
    let (path, query) = split(request.raw_path());
    let clean = query.and_then(|query| sources.clean_query(query));
    if canonical.is_none() && !route.strip_prefix && clean.is_none() {
        return None;
    }
    let path = match canonical {
        Some(canonical) => canonical,
        // A path that has a canonical form is ASCII.
        None => std::str::from_utf8(path).unwrap_or("/"),
    };
    let path = match route.strip_prefix {
        true => without_prefix(path, &route.prefix, fold),
        false => path,
    };
    let query = clean.as_deref().or(query).filter(|query| clean.is_none() || !query.is_empty());
    let mut target = Vec::with_capacity(1 + path.len() + 1 + query.map_or(0, <[u8]>::len));
    if !path.starts_with('/') {
        target.push(b'/');
    }
    target.extend_from_slice(path.as_bytes());
    if let Some(query) = query {
        target.push(b'?');
        target.extend_from_slice(query);
    }
    Some(target)
}

fn split(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr(b'?', target) {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}
