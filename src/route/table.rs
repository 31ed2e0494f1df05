//! Routes by host, path prefix and method: the longest prefix wins.

use std::collections::HashMap;

use ahash::RandomState;

use super::matched::matched;

/// When a route applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    /// Canonical prefix, matched by whole segments.
    pub prefix: String,
    /// The only host, canonical and without port; `None` for any.
    pub host: Option<String>,
    /// The only methods; empty for any. `GET` includes `HEAD` (RFC 9110 section 9.3.2).
    pub methods: Vec<String>,
}

impl Matcher {
    fn serves_host<'h>(&self, host: impl Fn() -> Option<&'h str>) -> bool {
        let Some(own) = &self.host else { return true };
        host() == Some(own.as_str())
    }

    /// Whether requests with `method` are served.
    pub fn serves_method(&self, method: &str) -> bool {
        self.methods.is_empty()
            || self.methods.iter().any(|own| own == method || (own == "GET" && method == "HEAD"))
    }
}

/// Routes, found by the prefixes of a path.
#[derive(Debug)]
pub struct RouteTable<T> {
    by_prefix: HashMap<String, Vec<(Matcher, T)>, RandomState>,
    /// The lengths that prefixes have, the longest first.
    lengths: Vec<usize>,
    fold: bool,
}

/// The result of a search in the table.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a, T> {
    /// The route to take.
    Route(&'a T),
    /// Routes have this host and path, but not this method. Holds the methods that they have (RFC 9110 section 10.2.1).
    OtherMethods(Vec<&'a str>),
    /// No route has this host and path.
    Nothing,
}

impl<T> RouteTable<T> {
    /// A table of `routes`, which compares paths in [their form](matched) with `fold`. Of two routes that match alike, the route with a host wins, then the earlier route.
    pub fn new(routes: impl IntoIterator<Item = (Matcher, T)>, fold: bool) -> Self {
        let mut by_prefix: HashMap<String, Vec<(Matcher, T)>, RandomState> = HashMap::default();
        for (matcher, route) in routes {
            let key = matched(&matcher.prefix, fold).trim_end_matches('/').to_owned();
            by_prefix.entry(key).or_default().push((matcher, route));
        }
        for routes in by_prefix.values_mut() {
            routes.sort_by_key(|(matcher, _)| matcher.host.is_none());
        }
        let mut lengths: Vec<usize> = by_prefix.keys().map(String::len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { by_prefix, lengths, fold }
    }

    /// Whether case, and trailing dots and spaces of segments, do not take part in the comparison.
    pub fn folds(&self) -> bool {
        self.fold
    }

    /// The route for a request; `path` is in the form that is compared, `host` is canonical. `host` has no port and is only
    /// asked for where it matters.
    ///
    /// The longest prefix that serves the host decides alone. Shorter prefixes, which may be open to everyone, are not
    /// searched for a method that the longest does not have.
    pub fn find<'h>(
        &self,
        host: impl Fn() -> Option<&'h str>,
        path: &str,
        method: &str,
    ) -> Found<'_, T> {
        let path = path.trim_end_matches('/');
        // A prefix ends where a segment ends.
        let ends = |at: usize| at == path.len() || path.as_bytes().get(at) == Some(&b'/');
        for prefix in self.lengths.iter().filter(|at| ends(**at)).map(|at| &path[..*at]) {
            let serving = || {
                let routes = self.by_prefix.get(prefix).into_iter().flatten();
                routes.filter(|(matcher, _)| matcher.serves_host(&host))
            };
            if let Some((_, route)) = serving().find(|(matcher, _)| matcher.serves_method(method)) {
                return Found::Route(route);
            }
            let mut methods: Vec<&str> = serving()
                .flat_map(|(matcher, _)| matcher.methods.iter().map(String::as_str))
                .collect();
            if !methods.is_empty() {
                methods.sort_unstable();
                methods.dedup();
                return Found::OtherMethods(methods);
            }
        }
        Found::Nothing
    }

    /// Every route, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_prefix.values().flatten().map(|(_, route)| route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(prefix: &str, host: Option<&str>, methods: &[&str]) -> Matcher {
        Matcher {
            prefix: prefix.into(),
            host: host.map(Into::into),
            methods: methods.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let table = RouteTable::new(
            [
                (matcher("/", None, &[]), 0),
                (matcher("/api", None, &[]), 1),
                (matcher("/api/v1/users", None, &[]), 2),
                (matcher("/api/v1/users", Some("admin.example"), &[]), 3),
                (matcher("/only", None, &["GET", "PUT"]), 4),
            ],
            false,
        );
        for (host, path, method, found) in [
            (None, "/", "GET", Found::Route(&0)),
            (None, "/x", "GET", Found::Route(&0)),
            (None, "/api", "GET", Found::Route(&1)),
            (None, "/api/", "GET", Found::Route(&1)),
            (None, "/apiX", "GET", Found::Route(&0)),
            (None, "/api/v1/users/7", "GET", Found::Route(&2)),
            (None, "/api/v1/usersX", "GET", Found::Route(&1)),
            (Some("admin.example"), "/api/v1/users", "GET", Found::Route(&3)),
            (Some("other"), "/api/v1/users", "GET", Found::Route(&2)),
            (None, "/only", "HEAD", Found::Route(&4)),
            (None, "/only", "POST", Found::OtherMethods(vec!["GET", "PUT"])),
        ] {
            assert_eq!(table.find(|| host, path, method), found, "{host:?} {path} {method}");
        }
    }

    #[test]
    fn a_folding_table_has_folded_prefixes() {
        let table = RouteTable::new(
            [(matcher("/Admin", None, &[]), 0), (matcher("/", None, &[]), 1)],
            true,
        );
        for (path, found) in [("/ADMIN./x", 0), ("/admin%20", 0), ("/administrator", 1)] {
            let path = matched(path, table.folds());
            assert_eq!(table.find(|| None, &path, "GET"), Found::Route(&found), "{path}");
        }
    }

    #[test]
    fn other_methods_are_named_and_nothing_is_nothing() {
        let table = RouteTable::new(
            [(matcher("/a", None, &["PUT", "GET"]), 0), (matcher("/a", Some("h"), &["DELETE"]), 1)],
            false,
        );
        assert_eq!(table.find(|| None, "/a/b", "POST"), Found::OtherMethods(vec!["GET", "PUT"]));
        assert_eq!(table.find(|| Some("h"), "/a", "DELETE"), Found::Route(&1));
        assert_eq!(table.find(|| None, "/b", "GET"), Found::Nothing);
    }
}
