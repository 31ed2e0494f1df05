//! Routes by host, path prefix and method: the longest prefix wins.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;

use super::host_pattern::HostPattern;
use super::matched::matched;

/// When a route applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    /// Canonical prefix, matched by whole segments.
    pub prefix: String,
    /// The only hosts; `None` for any.
    pub host: Option<HostPattern>,
    /// The only methods; empty for any. `GET` includes `HEAD` (RFC 9110 section 9.3.2).
    pub methods: Vec<String>,
}

impl Matcher {
    /// Whether requests with `method` are served.
    pub fn serves_method(&self, method: &str) -> bool {
        serves(&self.methods, method)
    }
}

/// Whether `methods` hold `method`, or are empty.
pub fn serves(methods: &[String], method: &str) -> bool {
    methods.is_empty()
        || methods.iter().any(|own| own == method || (own == "GET" && method == "HEAD"))
}

/// Routes, found by the prefixes of a path.
#[derive(Debug)]
pub struct RouteTable<T> {
    by_prefix: HashMap<String, Hosts<T>, RandomState>,
    /// The lengths that prefixes have, the longest first.
    lengths: Vec<usize>,
    fold: bool,
}

/// The routes of one host, each with its methods.
type Routes<T> = Vec<(Vec<String>, T)>;

/// The routes of one prefix, by host.
#[derive(Debug)]
struct Hosts<T> {
    exact: HashMap<String, Routes<T>, RandomState>,
    /// The routes of all hosts beneath a name, by that name.
    beneath: HashMap<String, Routes<T>, RandomState>,
    /// The lengths that these names have, the longest first.
    lengths: Vec<usize>,
    any: Routes<T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::default(),
            beneath: HashMap::default(),
            lengths: Vec::new(),
            any: Vec::new(),
        }
    }
}

impl<T> Hosts<T> {
    fn add(&mut self, matcher: Matcher, route: T) {
        let routes = match matcher.host {
            Some(HostPattern::Exact(host)) => self.exact.entry(host).or_default(),
            Some(HostPattern::Beneath(name)) => self.beneath.entry(name).or_default(),
            None => &mut self.any,
        };
        routes.push((matcher.methods, route));
    }

    /// The routes that serve `host`: those of the host itself, or else of the longest name that it is beneath, or else of any
    /// host. The others do not serve it: they may let in whom these refuse.
    fn serving(&self, host: Option<&str>) -> &Routes<T> {
        let exact = host.and_then(|host| self.exact.get(host));
        let beneath = || {
            self.lengths.iter().find_map(|length| {
                let (labels, name) = host?.split_at_checked(host?.len().checked_sub(*length)?)?;
                labels.ends_with('.').then(|| self.beneath.get(name))?
            })
        };
        exact.or_else(beneath).unwrap_or(&self.any)
    }

    fn names_hosts(&self) -> bool {
        !(self.exact.is_empty() && self.beneath.is_empty())
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        let all = self.exact.values().chain(self.beneath.values()).chain([&self.any]);
        all.flatten().map(|(_, route)| route)
    }
}

/// The lengths of `names`, the longest first.
fn lengths<'n>(names: impl Iterator<Item = &'n String>) -> Vec<usize> {
    let mut lengths: Vec<usize> = names.map(String::len).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
    lengths
}

/// The result of a search in the table.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a, T> {
    /// The route to take.
    Route(&'a T),
    /// Routes have this host and path, but not this method.
    OtherMethods {
        /// The methods that they have, in the order of the alphabet (RFC 9110 section 10.2.1).
        methods: Vec<&'a str>,
        /// The routes, in the order of the table.
        routes: Vec<&'a T>,
    },
    /// No route has this host and path.
    Nothing,
}

impl<T> RouteTable<T> {
    /// A table of `routes`, which compares paths in [their form](matched) with `fold`. Of two routes that match alike, the
    /// earlier route wins.
    pub fn new(routes: impl IntoIterator<Item = (Matcher, T)>, fold: bool) -> Self {
        let mut by_prefix: HashMap<String, Hosts<T>, RandomState> = HashMap::default();
        for (matcher, route) in routes {
            let key = matched(&matcher.prefix, fold).trim_end_matches('/').to_owned();
            by_prefix.entry(key).or_default().add(matcher, route);
        }
        for hosts in by_prefix.values_mut() {
            hosts.lengths = lengths(hosts.beneath.keys());
        }
        let lengths = lengths(by_prefix.keys());
        Self { by_prefix, lengths, fold }
    }

    /// Whether case, and trailing dots and spaces of segments, do not take part in the comparison.
    pub fn folds(&self) -> bool {
        self.fold
    }

    /// The route for a request; `path` is in the form that is compared, `host` is canonical. `host` has no port and is only
    /// asked for where it matters.
    ///
    /// The longest prefix that serves the host decides alone, and within it the routes that name the host closest: the host
    /// itself before the longest name that it is beneath, and that before routes without a host. Neither a shorter prefix nor
    /// a route for more hosts, which may be open to everyone, is searched for a method that these do not have.
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
            let Some(hosts) = self.by_prefix.get(prefix) else { continue };
            let host = if hosts.names_hosts() { host() } else { None };
            let serving = hosts.serving(host);
            if let Some((_, route)) = serving.iter().find(|(methods, _)| serves(methods, method)) {
                return Found::Route(route);
            }
            if !serving.is_empty() {
                let methods: BTreeSet<&str> =
                    serving.iter().flat_map(|(methods, _)| methods).map(String::as_str).collect();
                return Found::OtherMethods {
                    methods: methods.into_iter().collect(),
                    routes: serving.iter().map(|(_, route)| route).collect(),
                };
            }
        }
        Found::Nothing
    }

    /// Every route, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_prefix.values().flat_map(Hosts::iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(prefix: &str, host: Option<&str>, methods: &[&str]) -> Matcher {
        Matcher {
            prefix: prefix.into(),
            host: host.map(|host| HostPattern::parse(host).unwrap()),
            methods: methods.iter().map(ToString::to_string).collect(),
        }
    }

    /// The routes with this host and path have only these methods.
    fn others<'a, T>(methods: &[&'a str], routes: &[&'a T]) -> Found<'a, T> {
        Found::OtherMethods { methods: methods.to_vec(), routes: routes.to_vec() }
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
            (None, "/only", "POST", others(&["GET", "PUT"], &[&4])),
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
        assert_eq!(table.find(|| None, "/a/b", "POST"), others(&["GET", "PUT"], &[&0]));
        assert_eq!(table.find(|| Some("h"), "/a", "DELETE"), Found::Route(&1));
        assert_eq!(table.find(|| None, "/b", "GET"), Found::Nothing);
    }

    #[test]
    fn the_host_itself_comes_before_names_above_it_and_those_before_none() {
        let table = RouteTable::new(
            [
                (matcher("/", None, &[]), "any"),
                (matcher("/", Some("*.example.com"), &[]), "beneath example.com"),
                (matcher("/", Some("*.eu.example.com"), &[]), "beneath eu"),
                (matcher("/", Some("a.eu.example.com"), &[]), "a"),
                (matcher("/", Some("example.com"), &[]), "example.com"),
                (matcher("/get", Some("*.example.com"), &["GET"]), "get"),
                (matcher("/get", Some("a.example.com"), &["PUT"]), "put"),
                (matcher("/get", None, &[]), "all"),
            ],
            false,
        );
        for (host, path, method, found) in [
            (Some("a.eu.example.com"), "/", "GET", Found::Route(&"a")),
            (Some("b.eu.example.com"), "/", "GET", Found::Route(&"beneath eu")),
            (Some("x.b.eu.example.com"), "/", "GET", Found::Route(&"beneath eu")),
            (Some("eu.example.com"), "/", "GET", Found::Route(&"beneath example.com")),
            (Some("www.example.com"), "/x", "GET", Found::Route(&"beneath example.com")),
            (Some("example.com"), "/", "GET", Found::Route(&"example.com")),
            (Some("wwwexample.com"), "/", "GET", Found::Route(&"any")),
            (Some("com"), "/", "GET", Found::Route(&"any")),
            (Some("[::1]"), "/", "GET", Found::Route(&"any")),
            (None, "/", "GET", Found::Route(&"any")),
            // The longest prefix that serves the host decides, whatever its host is.
            (Some("a.eu.example.com"), "/get", "GET", Found::Route(&"get")),
            // The closest host decides alone: a route for more hosts may be open to everyone.
            (Some("a.example.com"), "/get", "GET", others(&["PUT"], &[&"put"])),
            (Some("a.example.com"), "/get", "PUT", Found::Route(&"put")),
            (Some("a.example.com"), "/get", "POST", others(&["PUT"], &[&"put"])),
            (Some("b.example.com"), "/get", "GET", Found::Route(&"get")),
            (Some("b.example.com"), "/get", "PUT", others(&["GET"], &[&"get"])),
            (Some("b.example.com"), "/get", "get", others(&["GET"], &[&"get"])),
            (Some("other"), "/get", "PUT", Found::Route(&"all")),
            (Some("example.com"), "/get", "PUT", Found::Route(&"all")),
        ] {
            assert_eq!(table.find(|| host, path, method), found, "{host:?} {path} {method}");
        }
        assert_eq!(table.iter().count(), 8);
    }

    /// The search as the documentation words it, without an index.
    fn spelled_out<'r>(
        routes: &'r [(Matcher, usize)],
        host: Option<&str>,
        path: &str,
        method: &str,
    ) -> Found<'r, usize> {
        fn prefix(matcher: &Matcher) -> &str {
            matcher.prefix.trim_end_matches('/')
        }
        let host = host.and_then(HostPattern::parse);
        let fits = |(matcher, _): &&(Matcher, usize)| {
            let rest = path.trim_end_matches('/').strip_prefix(prefix(matcher));
            let host_fits = match (&matcher.host, &host) {
                (None, _) => true,
                (Some(own), Some(host)) => own.meets(host),
                (Some(_), None) => false,
            };
            host_fits && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let longest = routes.iter().filter(fits).map(|(matcher, _)| prefix(matcher).len()).max();
        let distance = |matcher: &Matcher| match &matcher.host {
            Some(HostPattern::Exact(_)) => 0,
            Some(HostPattern::Beneath(name)) => 1_000 - name.len(),
            None => 1_001,
        };
        let fits =
            |route: &&(Matcher, usize)| fits(route) && Some(prefix(&route.0).len()) == longest;
        let closest = routes.iter().filter(fits).map(|(matcher, _)| distance(matcher)).min();
        let serving: Vec<_> = routes
            .iter()
            .filter(fits)
            .filter(|(matcher, _)| Some(distance(matcher)) == closest)
            .collect();
        if let Some((_, route)) = serving.iter().find(|(matcher, _)| matcher.serves_method(method))
        {
            return Found::Route(route);
        }
        let methods = serving.iter().flat_map(|(matcher, _)| &matcher.methods).map(String::as_str);
        let methods: BTreeSet<&str> = methods.collect();
        match methods.is_empty() {
            true => Found::Nothing,
            false => Found::OtherMethods {
                methods: methods.into_iter().collect(),
                routes: serving.iter().map(|(_, route)| route).collect(),
            },
        }
    }

    #[test]
    fn the_index_finds_what_a_search_of_all_routes_finds() {
        let mut random = fastrand::Rng::with_seed(9);
        let labels = ["a", "b", "c"];
        let hosts = |random: &mut fastrand::Rng| {
            let labels: Vec<_> =
                (0..random.usize(1..4)).map(|_| labels[random.usize(..3)]).collect();
            labels.join(".")
        };
        let paths = |random: &mut fastrand::Rng| {
            (0..random.usize(0..4))
                .map(|_| ["/x", "/y", "/xy"][random.usize(..3)])
                .collect::<String>()
        };
        let mut found = [0; 3];
        for _ in 0..2_000 {
            let routes: Vec<_> = (0..random.usize(1..12))
                .map(|nth| {
                    let prefix = paths(&mut random);
                    let prefix = if prefix.is_empty() { "/".to_owned() } else { prefix };
                    let host = match random.usize(..3) {
                        0 => None,
                        1 => Some(hosts(&mut random)),
                        _ => Some(format!("*.{}", hosts(&mut random))),
                    };
                    let methods = [&[][..], &["GET"], &["PUT"], &["GET", "PUT"]][random.usize(..4)];
                    (matcher(&prefix, host.as_deref(), methods), nth)
                })
                .collect();
            let table = RouteTable::new(routes.clone(), false);
            for _ in 0..20 {
                let host = hosts(&mut random);
                let host = random.bool().then_some(&*host);
                let path = format!("{}/", paths(&mut random));
                let method = ["GET", "HEAD", "PUT", "POST"][random.usize(..4)];
                let expected = spelled_out(&routes, host, &path, method);
                assert_eq!(
                    table.find(|| host, &path, method),
                    expected,
                    "{routes:?} {host:?} {path} {method}"
                );
                found[match expected {
                    Found::Route(_) => 0,
                    Found::OtherMethods { .. } => 1,
                    Found::Nothing => 2,
                }] += 1;
            }
        }
        assert!(found.iter().all(|count| *count > 1_000), "{found:?}");
    }
}
