//! Routes that are valid and may still surprise: an open route over one that needs a token.
//!
//! The open route serves every path that the gateway does not read as the inner prefix. If the upstream reads such a path
//! as the inner prefix, because it ignores case for instance, the path needs no token.

use std::collections::HashMap;

use super::{LiveConfig, Route};
use crate::route::matched::matched;

impl LiveConfig {
    /// A line for each route that needs a token and lies beneath an open route, unless `fold_paths` reads the usual
    /// spellings alike.
    pub fn warnings(&self) -> Vec<String> {
        if self.fold_paths {
            return Vec::new();
        }
        let form =
            |route: &Route| matched(&route.matcher.prefix, true).trim_end_matches('/').to_owned();
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
        ] {
            assert_eq!(warnings(&routes, ""), count, "{routes}");
        }
    }
}
