//! Routes that are valid and may still surprise: an open route over one that needs a token, and an open route that takes
//! paths from a host that needs one.
//!
//! An open route serves every path that the gateway does not read as the inner prefix. If the upstream reads such a path
//! as the inner prefix, because it ignores case for instance, the path needs no token. And the longest prefix wins before
//! the host does, so an open prefix for many hosts is open on a host whose own, shorter prefix needs a token.

use std::collections::{HashMap, HashSet};

use super::{LiveConfig, Route};
use crate::route::host_pattern::HostPattern;
use crate::route::matched::matched;

impl LiveConfig {
    /// A line for each route that needs a token and lies beneath an open route, unless `fold_paths` reads the usual
    /// spellings alike; and a line for each open route that takes paths from a host that needs a token.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = match self.fold_paths {
            true => Vec::new(),
            false => self.beneath_open_routes(),
        };
        warnings.extend(self.open_for_more_hosts());
        warnings
    }

    fn beneath_open_routes(&self) -> Vec<String> {
        let form = |route: &Route| form(route, true);
        let mut open: HashMap<String, Vec<(usize, &Route)>> = HashMap::new();
        for (i, route) in self.routes.iter().enumerate().filter(|(_, route)| !route.auth_required) {
            open.entry(form(route)).or_default().push((i, route));
        }
        let mut warnings = Vec::new();
        for (i, inner) in self.routes.iter().enumerate().filter(|(_, route)| route.auth_required) {
            let inner_form = form(inner);
            let above = inner_form.match_indices('/').filter_map(|(at, _)| inner_form.get(..at));
            let over = above
                .filter_map(|prefix| open.get(prefix))
                .flatten()
                .filter(|(_, outer)| hosts_meet(outer, inner))
                .map(|(outer, _)| *outer)
                .min();
            if let Some(outer) = over {
                warnings.push(format!(
                    "routes[{outer}] needs no token and lies over routes[{i}], which needs one: a server that ignores case or trailing dots reads {} as {}; write fold_paths: true, or keep them on different hosts",
                    respelled(&inner.matcher.prefix),
                    inner.matcher.prefix,
                ));
            }
        }
        warnings
    }

    fn open_for_more_hosts(&self) -> Vec<String> {
        let form = |route: &Route| form(route, self.fold_paths);
        let own: HashSet<_> =
            self.routes.iter().map(|route| (form(route), route.matcher.host.as_ref())).collect();
        let mut protected: HashMap<String, Vec<(usize, &Route)>> = HashMap::new();
        for (i, route) in self.routes.iter().enumerate().filter(|(_, route)| route.auth_required) {
            protected.entry(form(route)).or_default().push((i, route));
        }
        let mut warnings = Vec::new();
        for (i, open) in self.routes.iter().enumerate().filter(|(_, route)| !route.auth_required) {
            let open_form = form(open);
            let above = open_form.match_indices('/').filter_map(|(at, _)| open_form.get(..at));
            let taken = above
                .filter_map(|prefix| protected.get(prefix))
                .flatten()
                .filter(|(_, route)| names_its_host_closer(route, open))
                // The host has a route of its own for this prefix, which comes first.
                .filter(|(_, route)| {
                    !own.contains(&(open_form.clone(), route.matcher.host.as_ref()))
                })
                .map(|(at, _)| *at)
                .min();
            if let Some(from) = taken {
                warnings.push(format!(
                    "routes[{i}] needs no token and takes {} from the host of routes[{from}], which needs one: the longest prefix wins before the host; write {} for that host too, or keep them on different hosts",
                    open.matcher.prefix, open.matcher.prefix,
                ));
            }
        }
        warnings
    }
}

/// The prefix of a route as it is compared.
fn form(route: &Route, fold: bool) -> String {
    matched(&route.matcher.prefix, fold).trim_end_matches('/').to_owned()
}

/// Whether `route` serves hosts of `open`, and names them closer.
fn names_its_host_closer(route: &Route, open: &Route) -> bool {
    match (&route.matcher.host, &open.matcher.host) {
        (Some(_), None) => true,
        (Some(own), Some(wide @ HostPattern::Beneath(name))) => {
            own.meets(wide)
                && match own {
                    HostPattern::Exact(_) => true,
                    HostPattern::Beneath(own) => own.len() > name.len(),
                }
        }
        _ => false,
    }
}

/// Whether one host may be served by both routes.
fn hosts_meet(outer: &Route, inner: &Route) -> bool {
    match (&outer.matcher.host, &inner.matcher.host) {
        (Some(outer), Some(inner)) => outer.meets(inner),
        _ => true,
    }
}

/// Another spelling of `prefix`, as an example.
fn respelled(prefix: &str) -> String {
    let upper = prefix.to_ascii_uppercase();
    if upper == prefix { format!("{prefix}.") } else { upper }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn an_open_route_over_a_protected_one_is_told() {
        let warnings = |routes: &str, more: &str| {
            let text = format!(
                "auth: {{ jwt: {{ keys: [ {{ algorithm: HS256, secret: 0123456789abcdef0123456789abcdef }} ] }} }}
upstreams: {{ u: {{ endpoints: [ http://a ] }} }}\nroutes: [ {routes} ]\n{more}"
            );
            let environment = std::iter::empty::<(String, String)>().collect();
            parse(&text, "t.yaml", &environment).unwrap().live.warnings().len()
        };
        let open = "{ prefix: /, upstream: u, auth: none }";
        let admin = "{ prefix: /admin, upstream: u }";
        assert_eq!(warnings(&format!("{open}, {admin}"), ""), 1);
        assert_eq!(warnings(&format!("{open}, {admin}"), "fold_paths: true"), 0);
        for (routes, count) in [
            (format!("{open}, {{ prefix: /admin, upstream: u, auth: none }}"), 0),
            (format!("{{ prefix: /, upstream: u }}, {admin}"), 0),
            (format!("{{ prefix: /a, upstream: u, auth: none }}, {admin}"), 0),
            (format!("{{ prefix: /, host: a.example, upstream: u, auth: none }}, {admin}"), 1),
            (
                "{ prefix: /, host: a.example, upstream: u, auth: none }, { prefix: /x, host: b.example, upstream: u }"
                    .to_owned(),
                0,
            ),
            (
                "{ prefix: /, host: \"*.example\", upstream: u, auth: none }, { prefix: /x, host: b.example, upstream: u }"
                    .to_owned(),
                1,
            ),
            (
                "{ prefix: /, host: b.example, upstream: u, auth: none }, { prefix: /x, host: \"*.example\", upstream: u }"
                    .to_owned(),
                1,
            ),
            (
                "{ prefix: /, host: \"*.a.example\", upstream: u, auth: none }, { prefix: /x, host: \"*.b.example\", upstream: u }"
                    .to_owned(),
                0,
            ),
            (format!("{open}, {{ prefix: /, host: b.example, upstream: u }}"), 0),
            // The longest prefix wins before the host.
            (
                "{ prefix: /, host: a.example, upstream: u }, { prefix: /public, host: \"*.example\", upstream: u, auth: none }"
                    .to_owned(),
                1,
            ),
            (
                "{ prefix: /, host: \"*.a.example\", upstream: u }, { prefix: /public, upstream: u, auth: none }"
                    .to_owned(),
                1,
            ),
            (
                "{ prefix: /, host: \"*.a.example\", upstream: u }, { prefix: /public, host: \"*.example\", upstream: u, auth: none }"
                    .to_owned(),
                1,
            ),
            (
                "{ prefix: /, host: \"*.example\", upstream: u }, { prefix: /public, host: a.example, upstream: u, auth: none }"
                    .to_owned(),
                0,
            ),
            (
                "{ prefix: /, host: b.test, upstream: u }, { prefix: /public, host: \"*.example\", upstream: u, auth: none }"
                    .to_owned(),
                0,
            ),
            (
                "{ prefix: /, host: a.example, upstream: u }, { prefix: /public, host: a.example, upstream: u }, { prefix: /public, host: \"*.example\", upstream: u, auth: none }"
                    .to_owned(),
                0,
            ),
            ("{ prefix: /, upstream: u }, { prefix: /public, upstream: u, auth: none }".to_owned(), 0),
        ] {
            assert_eq!(warnings(&routes, ""), count, "{routes}");
        }
    }
}
