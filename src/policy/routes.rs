//! The routes of a policy: each with its upstream, its limits and its counters.

use std::sync::Arc;
use std::time::Duration;

use super::upstreams::Upstreams;
use crate::base::net::NetworkRules;
use crate::config;
use crate::quota::rule::Group;
use crate::route::coding::Coding;
use crate::route::cors::Cors;
use crate::route::headers::{Deprecated, HeaderRules};
use crate::route::mirror::Mirror;
use crate::route::split::Split;
use crate::route::table::{Matcher, RouteTable};
use crate::telemetry::configured::{MirrorMetrics, RouteMetrics};
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
    /// The networks whose clients are let in.
    pub networks: NetworkRules,
    /// Largest request body, in bytes.
    pub max_body: u64,
    /// What stands for the prefix when the request is forwarded; `None` for the prefix itself.
    pub replacement: Option<String>,
    /// Whether the credential reaches the upstream.
    pub forward_credential: bool,
    /// Whether an answer's paths get the prefix that was replaced.
    pub rewrite_answers: bool,
    /// Changes to the request's fields.
    pub request_headers: HeaderRules,
    /// Changes to the answer's fields.
    pub response_headers: HeaderRules,
    /// Deadlines that narrow those of the upstreams.
    pub deadlines: Deadlines,
    /// How long nothing may pass in a tunnel or a stream; `None`: as long as everywhere.
    pub idle: Option<Duration>,
    /// What answers tell of the route's end.
    pub deprecated: Option<Deprecated>,
    /// The copies of its requests.
    pub mirror: Option<Arc<RouteMirror>>,
    /// How scripts of other origins may use the route.
    pub cors: Option<Cors>,
    /// The codings in which answers may be sent; empty for none.
    pub codings: Vec<Coding>,
    /// Limits that apply besides the token's.
    pub limits: Arc<[Group]>,
    /// Most requests of it at the same time, in this process.
    pub max_in_flight: Option<isize>,
    /// Its counters.
    pub metrics: RouteMetrics,
}

/// The upstream that gets copies of a route's requests.
#[derive(Debug)]
pub struct RouteMirror {
    /// Which requests are copied, and for whom.
    pub rules: Mirror<Arc<Upstream>>,
    /// What became of the copies.
    pub metrics: MirrorMetrics,
}

impl Route {
    /// The prefix, where it is cut off and nothing stands for it.
    pub fn stripped(&self) -> Option<&str> {
        let nothing = self.replacement.as_ref().is_some_and(String::is_empty);
        (nothing && self.prefix != "/").then_some(&*self.prefix)
    }
}

/// The table of `routes`; `fold` is `fold_paths`, `max_body` holds for routes that do not say otherwise.
pub(super) fn table(
    routes: Vec<config::Route>,
    fold: bool,
    max_body: u64,
    upstreams: &mut Upstreams,
) -> RouteTable<Arc<Route>> {
    let routes = routes.into_iter().map(|route| {
        let (matcher, route) = self::route(route, max_body, upstreams);
        (matcher, Arc::new(route))
    });
    RouteTable::new(routes, fold)
}

fn route(
    route: config::Route,
    max_body_of_all: u64,
    upstreams: &mut Upstreams,
) -> (Matcher, Route) {
    let config::Route {
        matcher,
        upstreams: shares,
        auth_required,
        networks,
        limits,
        max_in_flight,
        max_body,
        replacement,
        forward_credential,
        rewrite_answers,
        request_headers,
        response_headers,
        deadlines,
        idle,
        deprecated,
        mirror,
        cors,
        codings,
    } = route;
    let host = matcher.host.as_ref().map(ToString::to_string).unwrap_or_default();
    let label = format!("{host}{}", matcher.prefix);
    let route = Route {
        key: key(&label, &matcher.methods).into(),
        metrics: RouteMetrics::new(&label),
        label: label.into(),
        prefix: matcher.prefix.clone(),
        upstreams: shares.map(|rules| upstreams.of(&rules)),
        auth_required,
        networks,
        max_body: max_body.unwrap_or(max_body_of_all),
        replacement,
        forward_credential,
        rewrite_answers,
        limits: Arc::clone(limits.groups()),
        max_in_flight,
        request_headers,
        response_headers,
        deadlines,
        idle,
        deprecated,
        mirror: mirror.map(|mirror| {
            let metrics = MirrorMetrics::new(&mirror.upstream.name);
            Arc::new(RouteMirror { metrics, rules: mirror.map(|rules| upstreams.of(&rules)) })
        }),
        cors,
        codings,
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
