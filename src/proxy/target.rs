//! The request target that an upstream gets: the canonical path, with another prefix where the route says so, and the
//! query as it came, without credentials.

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
    if canonical.is_none() && route.replacement.is_none() && clean.is_none() {
        return None;
    }
    let path = match canonical {
        Some(canonical) => canonical,
        // A path that has a canonical form is ASCII.
        None => std::str::from_utf8(path).unwrap_or("/"),
    };
    let (before, path) = match &route.replacement {
        Some(replacement) => moved(path, &route.prefix, replacement, fold),
        None => ("", path),
    };
    let query = clean.as_deref().or(query).filter(|query| clean.is_none() || !query.is_empty());
    let length = before.len() + path.len() + 1 + query.map_or(0, <[u8]>::len);
    let mut target = Vec::with_capacity(length);
    target.extend_from_slice(before.as_bytes());
    target.extend_from_slice(path.as_bytes());
    if let Some(query) = query {
        target.push(b'?');
        target.extend_from_slice(query);
    }
    Some(target)
}

/// The two parts of `path`, which begins with `prefix`, when `replacement` stands for the prefix. They are not both empty,
/// and together they are canonical: the first has no slash at its end, and the second begins with one or is empty.
fn moved<'p>(path: &'p str, prefix: &str, replacement: &'p str, fold: bool) -> (&'p str, &'p str) {
    match without_prefix(path, prefix, fold) {
        "" if replacement.is_empty() => ("", "/"),
        rest => (replacement, rest),
    }
}

fn split(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr(b'?', target) {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::matched::matched;
    use crate::route::path::CanonicalPath;

    #[test]
    fn the_replacement_stands_for_the_prefix() {
        for (path, prefix, replacement, expected) in [
            ("/api/users", "/api", "/v2", "/v2/users"),
            ("/api", "/api", "/v2", "/v2"),
            ("/api/", "/api", "/v2", "/v2/"),
            ("/api;x/a;y", "/api", "/v2", "/v2/a;y"),
            ("/users", "/", "/v2", "/v2/users"),
            ("/", "/", "/v2", "/v2/"),
            ("/api/users", "/api", "", "/users"),
            ("/api", "/api", "", "/"),
            ("/", "/", "", "/"),
            ("/a/b/c", "/a", "/a/x", "/a/x/b/c"),
        ] {
            let (before, rest) = moved(path, prefix, replacement, false);
            assert_eq!(format!("{before}{rest}"), expected, "{path}");
        }
    }

    #[test]
    fn a_moved_path_stays_canonical() {
        let mut random = fastrand::Rng::with_seed(23);
        let parts = ["/", ";", "%3B", "a", "B", ".", "%20", "x=1", "%2E", "..", "%C3%A9"];
        let mut moves = 0;
        for _ in 0..100_000 {
            let written: String =
                (0..random.usize(1..9)).map(|_| parts[random.usize(..parts.len())]).collect();
            let written = format!("/{written}");
            let Ok(path) = CanonicalPath::parse(&written) else { continue };
            for fold in [false, true] {
                let form = matched(path.as_str(), fold).into_owned();
                for (end, _) in form.match_indices('/').filter(|(at, _)| *at > 0) {
                    for replacement in ["", "/v2", "/a/.well-known"] {
                        let (before, rest) = moved(path.as_str(), &form[..end], replacement, fold);
                        let target = format!("{before}{rest}");
                        let read = CanonicalPath::parse(&target);
                        assert!(
                            read.is_ok_and(|read| !read.was_rewritten()),
                            "{written}: {target}"
                        );
                        moves += 1;
                    }
                }
            }
        }
        assert!(moves > 1_000, "{moves}");
    }
}
