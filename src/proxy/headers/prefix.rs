//! The prefix that a route replaces, put back into the fields of an answer that hold paths: `Location`,
//! `Content-Location`, and the `Path` of cookies. The upstream knows the paths with the replacement only.
//!
//! Where nothing stands for the prefix, a path that begins with the prefix stays: an upstream that heeds
//! `X-Forwarded-Prefix` has put it there itself. Where something does, a path that does not begin with it stays: the route
//! does not lead there.

use http::{HeaderMap, HeaderValue, header};

/// A prefix, and the names of the server that an answer may call its own.
pub struct Prefix<'a> {
    /// The prefix, without a slash at its end.
    pub prefix: &'a str,
    /// What the upstream sees instead, without a slash at its end.
    pub replacement: &'a str,
    /// The `Host` of the request, which the client knows.
    pub host: Option<&'a str>,
    /// The `host:port` of the endpoint, which the client may not know.
    pub endpoint: Option<&'a str>,
}

impl Prefix<'_> {
    /// Puts the prefix back into the fields of an answer.
    pub fn put_back(&self, headers: &mut HeaderMap) {
        for (name, value) in headers.iter_mut() {
            let changed = if name == header::LOCATION || name == header::CONTENT_LOCATION {
                self.url(value.as_bytes())
            } else if name == header::SET_COOKIE {
                self.cookie(value.as_bytes())
            } else {
                None
            };
            if let Some(changed) = changed.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()) {
                *value = changed;
            }
        }
    }

    /// The URL `url` with the prefix; `None` when it is relative, or another server's.
    fn url(&self, url: &[u8]) -> Option<Vec<u8>> {
        let scheme = match url {
            [b'/', b'/', ..] => 0,
            [b'/', ..] => return Some(self.path(url)),
            _ if starts_with(url, b"http://") => 5,
            _ if starts_with(url, b"https://") => 6,
            _ => return None,
        };
        let rest = &url[scheme + 2..];
        let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let is = |own: Option<&str>| own.is_some_and(|own| is_authority(authority, own));
        if is(self.host) {
            let [prefix, path] = self.outside(path);
            return Some([&url[..scheme + 2], authority, prefix, path].concat());
        }
        // A client cannot be expected to reach the endpoint, so the URL becomes a path of this gateway.
        is(self.endpoint).then(|| self.path(path))
    }

    /// `path` as the client knows it, which stays a path of this gateway: browsers read `//` and `/\` as the beginning of
    /// another server's URL, tabs between the two left out, and nothing as the page that they are on.
    fn path(&self, path: &[u8]) -> Vec<u8> {
        let path = self.outside(path).concat();
        let rest = path.iter().position(|byte| !b"/\\\t".contains(byte)).unwrap_or(path.len());
        [b"/", &path[rest..]].concat()
    }

    /// `path` as the client knows it, in two parts.
    fn outside<'p>(&'p self, path: &'p [u8]) -> [&'p [u8]; 2] {
        let prefix = self.prefix.as_bytes();
        match self.replacement.as_bytes() {
            b"" if rest_of(path, prefix).is_some() => [b"", path],
            b"" => [prefix, path],
            replacement => match rest_of(path, replacement) {
                Some(rest) if prefix.is_empty() && rest.first() != Some(&b'/') => [b"/", rest],
                Some(rest) => [prefix, rest],
                None => [b"", path],
            },
        }
    }

    /// The cookie with the prefix before its path; `None` when it has none. A `__Host-` cookie must keep the path `/`
    /// (RFC 6265bis section 4.1.3.2).
    fn cookie(&self, cookie: &[u8]) -> Option<Vec<u8>> {
        if starts_with(cookie, b"__host-") {
            return None;
        }
        let mut changed = false;
        let attribute = |(nth, attribute): (usize, &[u8])| {
            let (name, path) = match attribute.iter().position(|&byte| byte == b'=') {
                Some(at) => (&attribute[..at], attribute[at + 1..].trim_ascii()),
                None => (attribute, &b""[..]),
            };
            let is_path = nth > 0 && name.trim_ascii().eq_ignore_ascii_case(b"path");
            let [prefix, rest] = self.outside(path);
            if !is_path || path.first() != Some(&b'/') || (prefix.is_empty() && rest == path) {
                return attribute.to_vec();
            }
            changed = true;
            let rest = if rest == b"/" && !prefix.is_empty() { b"" } else { rest };
            [name, b"=", prefix, rest].concat()
        };
        let all: Vec<Vec<u8>> =
            cookie.split(|&byte| byte == b';').enumerate().map(attribute).collect();
        changed.then(|| all.join(&b';'))
    }
}

/// The rest of `path` after the segments of `beginning`; `None` when it does not begin with them.
fn rest_of<'p>(path: &'p [u8], beginning: &[u8]) -> Option<&'p [u8]> {
    let rest = path.strip_prefix(beginning)?;
    matches!(rest.first(), None | Some(b'/' | b'?' | b'#' | b';')).then_some(rest)
}

fn starts_with(value: &[u8], beginning: &[u8]) -> bool {
    value.get(..beginning.len()).is_some_and(|start| start.eq_ignore_ascii_case(beginning))
}

/// Whether `authority` names `own`, whose port may be left out when it is a scheme's own.
fn is_authority(authority: &[u8], own: &str) -> bool {
    let short = own.strip_suffix(":80").or_else(|| own.strip_suffix(":443")).unwrap_or(own);
    [own, short].iter().any(|own| authority.eq_ignore_ascii_case(own.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: Prefix<'_> = Prefix {
        prefix: "/api",
        replacement: "",
        host: Some("shop.test:8080"),
        endpoint: Some("users:80"),
    };

    #[test]
    fn a_replacement_becomes_the_prefix_again() {
        let replaced = Prefix { replacement: "/v2", ..PREFIX };
        for (url, expected) in [
            ("/v2", Some("/api")),
            ("/v2/login?next=/v2", Some("/api/login?next=/v2")),
            ("/v2?x", Some("/api?x")),
            ("/v2x", Some("/v2x")),
            ("/login", Some("/login")),
            ("/api/x", Some("/api/x")),
            ("http://shop.test:8080/v2/x", Some("http://shop.test:8080/api/x")),
            ("http://users/v2/x", Some("/api/x")),
            ("http://users:80/elsewhere", Some("/elsewhere")),
            ("http://other.test/v2", None),
        ] {
            let found = replaced.url(url.as_bytes()).map(|url| String::from_utf8(url).unwrap());
            assert_eq!(found.as_deref(), expected, "{url}");
        }
        for (cookie, expected) in [
            ("a=b; Path=/v2", Some("a=b; Path=/api")),
            ("a=b; Path=/v2/", Some("a=b; Path=/api")),
            ("a=b; Path=/v2/x", Some("a=b; Path=/api/x")),
            ("a=b; Path=/", None),
            ("a=b; Path=/api", None),
        ] {
            let found = replaced.cookie(cookie.as_bytes());
            assert_eq!(found.map(|text| String::from_utf8(text).unwrap()).as_deref(), expected);
        }
        let root = Prefix { prefix: "", ..replaced };
        for (url, expected) in [("/v2", "/"), ("/v2/x", "/x"), ("/v2?x", "/?x"), ("/x", "/x")] {
            assert_eq!(root.url(url.as_bytes()).unwrap(), expected.as_bytes(), "{url}");
        }
        assert_eq!(root.cookie(b"a=b; Path=/v2/").unwrap(), b"a=b; Path=/");
    }

    #[test]
    fn a_path_never_becomes_the_url_of_another_server() {
        let root = Prefix { prefix: "", replacement: "/v2", ..PREFIX };
        let cut = Prefix { prefix: "/api", replacement: "", ..PREFIX };
        for (prefix, url, expected) in [
            (&root, "/v2//evil.test/x", "/evil.test/x"),
            (&root, "/v2/\\evil.test", "/evil.test"),
            (&root, "/v2\\evil.test", "/v2\\evil.test"),
            (&root, "/v2/\t/evil.test", "/evil.test"),
            (&root, "/v2///", "/"),
            (&root, "http://users//evil.test", "/evil.test"),
            (&root, "http://users/\\/evil.test", "/evil.test"),
            (&root, "http://users/v2//evil.test", "/evil.test"),
            (&root, "http://users", "/"),
            (&root, "http://users?x", "/?x"),
            (&root, "//users//evil.test", "/evil.test"),
            (&cut, "http://users//evil.test", "/api//evil.test"),
            (&cut, "http://users", "/api"),
            (&root, "//shop.test:8080/v2//evil.test", "//shop.test:8080//evil.test"),
        ] {
            let found = String::from_utf8(prefix.url(url.as_bytes()).unwrap()).unwrap();
            assert_eq!(found, expected, "{url}");
        }
        for other in ["//evil.test", "http://evil.test//users"] {
            assert_eq!(root.url(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn urls_of_this_server_get_the_prefix() {
        for (url, expected) in [
            ("/", Some("/api/")),
            ("/login?next=/x#y", Some("/api/login?next=/x#y")),
            ("http://shop.test:8080/x", Some("http://shop.test:8080/api/x")),
            ("https://SHOP.test:8080", Some("https://SHOP.test:8080/api")),
            ("//shop.test:8080/x", Some("//shop.test:8080/api/x")),
            ("http://users:80/x", Some("/api/x")),
            ("http://users/x", Some("/api/x")),
            ("http://users?x", Some("/api?x")),
            ("/api", Some("/api")),
            ("/api/x?y", Some("/api/x?y")),
            ("/api;x", Some("/api;x")),
            ("/apis", Some("/api/apis")),
            ("/x/api/y", Some("/api/x/api/y")),
            ("http://shop.test:8080/api?x", Some("http://shop.test:8080/api?x")),
            ("//shop.test:8080/api/x", Some("//shop.test:8080/api/x")),
            ("http://users:80/api/x", Some("/api/x")),
            ("http://other.test/x", None),
            ("//other.test/x", None),
            ("http://shop.test:80801/x", None),
            ("x", None),
            ("../x", None),
            ("?x", None),
            ("", None),
            ("mailto:a@b", None),
        ] {
            let found = PREFIX.url(url.as_bytes()).map(|url| String::from_utf8(url).unwrap());
            assert_eq!(found.as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn cookies_get_the_prefix_before_their_path() {
        for (cookie, expected) in [
            ("a=b; Path=/x; Secure", Some("a=b; Path=/api/x; Secure")),
            ("a=b;path=/", Some("a=b;path=/api")),
            ("a=b; PATH = /x ", Some("a=b; PATH =/api/x")),
            ("a=b", None),
            ("a=b; Path", None),
            ("a=b; Path=x", None),
            ("a=b; Path=/api", None),
            ("a=b; PATH = /api/x ; Secure", None),
            ("a=b; Path=/apis", Some("a=b; Path=/api/apis")),
            ("path=/x", None),
            ("__Host-a=b; Path=/; Secure", None),
        ] {
            let found =
                PREFIX.cookie(cookie.as_bytes()).map(|text| String::from_utf8(text).unwrap());
            assert_eq!(found.as_deref(), expected, "{cookie}");
        }
    }
}
