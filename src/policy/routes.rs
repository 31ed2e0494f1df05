//! The routes of a policy: each with its upstream, its limits and its counters.

use std::sync::Arc;

use super::upstreams::Upstreams;
use crate::config;
use crate::quota::rule::Group;
use crate::route::headers::HeaderRules;
use crate::route::split::Split;
use crate::route::table::{Matcher, RouteTable};
use crate::telemetry::metrics::RouteMetrics;
use crate::upstream::pool::Upstream;
use crate::upstream::rules::Deadlines;

/// One route, ready to use.
#[derive(Debug)]
pub struct Route {
    /// The host and prefix it serves, for logs and metrics.
    pub label: Arc<str>,
    /// The name its limits and its requests under way are counted by: label and methods, for two routes may
    /// differ in their methods alone.
    pub key: Arc<str>,
    /// The canonical prefix.
    pub prefix: String,
    /// The upstreams of its requests, with their shares.
    pub upstreams: Split<Arc<Upstream>>,
    /// Whether a token is needed.
    pub auth_required: bool,
    /// Whether the prefix is cut off before forwarding.
    pub strip_prefix: bool,
    /// Whether the credential reaches the upstream.
    pub forward_credential: bool,
    /// Whether an answer's paths get the prefix that was cut off.
    pub rewrite_answers: bool,
    /// Changes to the request's fields.
    pub request_headers: HeaderRules,
    /// Changes to the answer's fields.
    pub response_headers: HeaderRules,
    /// Deadlines that narrow those of the upstreams.
    pub deadlines: Deadlines,
    /// Limits that apply besides the token's.
    pub limits: Arc<[Group]>,
    /// Most requests of it at the same time, in this process.
    pub max_in_flight: Option<isize>,
    /// Its counters.
    pub metrics: RouteMetrics,
}

/// The table of `routes`; `fold` is `fold_paths`.
pub(super) fn table(
    routes: Vec<config::Route>,
    fold: bool,
    upstreams: &mut Upstreams,
) -> RouteTable<Arc<Route>> {
    let routes = routes.into_iter().map(|route| {
        let (matcher, route) = self::route(route, upstreams);
        (matcher, Arc::new(route))
    });
    RouteTable::new(routes, fold)
}

fn route(route: config::Route, upstreams: &mut Upstreams) -> (Matcher, Route) {
    let config::Route {
        matcher,
        upstreams: shares,
        auth_required,
        limits,
        max_in_flight,
        strip_prefix,
        forward_credential,
        rewrite_answers,
        request_headers,
        response_headers,
        deadlines,
    } = route;
    let label = format!("{}{}", matcher.host.as_deref().unwrap_or_default(), matcher.prefix);
    let route = Route {
        key: key(&label, &matcher.methods).into(),
        metrics: RouteMetrics::new(&label),
        label: label.into(),
        prefix: matcher.prefix.clone(),
        upstreams: shares.map(|rules| upstreams.of(&rules)),
        auth_required,
        strip_prefix,
        forward_credential,
        rewrite_answers,
        limits: Arc::clone(limits.groups()),
        max_in_flight,
        request_headers,
        response_headers,
        deadlines,
    };
    (matcher, route)
}

/// The key of a route: its label, and its methods in the order of the alphabet.
fn key(label: &str, methods: &[String]) -> String {
    let mut methods: Vec<&str> = methods.iter().map(String::as_str).collect();
    methods.sort_unstable();
    match methods.as_slice() {
        [] => label.to_owned(),
        methods => format!("{label}[{}]", methods.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_route_does_not_depend_on_the_order_of_its_methods() {
        let methods = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(key("api.example/a", &methods(&[])), "api.example/a");
        assert_eq!(key("/a", &methods(&["PUT", "GET"])), "/a[GET,PUT]");
        assert_eq!(key("/a", &methods(&["GET", "PUT"])), "/a[GET,PUT]");
    }
}
