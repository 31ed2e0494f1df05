//! Routes.

use std::sync::Arc;

use super::super::Route;
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::words::RouteAuth;
use super::fields::{self, Towards};
use super::{destination, each, limits, need, or};
use crate::quota::Algorithm;
use crate::route::table::Matcher;
use crate::upstream::rules::{Deadlines, UpstreamRules};

/// The rest of the configuration, as far as routes refer to it.
pub(super) struct Context<'a> {
    /// Upstreams by name; an upstream with a fault has no value.
    pub upstreams: &'a [(String, Option<Arc<UpstreamRules>>)],
    /// Whether any credential could be valid.
    pub has_credentials: bool,
    /// The algorithm of limits that do not name one themselves.
    pub algorithm: Algorithm,
}

pub(super) fn routes(
    written: file::List<file::Route>,
    context: &Context<'_>,
    report: &mut Report,
) -> Vec<Route> {
    let at = KeyPath::top("routes");
    let mut routes = Vec::new();
    let mut matchers: Vec<(usize, Matcher)> = Vec::new();
    for (i, route) in written.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(route) = route else {
            report.fault(&at, "is empty; write { prefix, upstream }");
            continue;
        };
        let Some((matcher, route)) = self::route(route, context, &at, report) else {
            continue;
        };
        if let Some((earlier, _)) = matchers.iter().find(|(_, other)| overlap(other, &matcher)) {
            report.fault(
                &at,
                format!("serves requests that routes[{earlier}] serves; write another prefix, host or methods"),
            );
        }
        matchers.push((i, matcher));
        routes.extend(route);
    }
    routes
}

/// Whether some request would fit both routes equally well.
fn overlap(a: &Matcher, b: &Matcher) -> bool {
    let methods = a.methods.is_empty()
        || a.methods.iter().any(|method| b.serves_method(method))
        || b.methods.iter().any(|method| a.serves_method(method));
    a.prefix == b.prefix && a.host == b.host && methods
}

/// The requests a route serves, and the route unless its upstream has a fault.
fn route(
    written: file::Route,
    context: &Context<'_>,
    at: &KeyPath,
    report: &mut Report,
) -> Option<(Matcher, Option<Route>)> {
    let Context { upstreams, has_credentials, algorithm } = *context;
    let prefix = need(written.prefix, &at.key("prefix"), report);
    let upstreams = destination::upstreams(written.upstream, written.split, upstreams, at, report);
    let auth_required = or(written.auth, RouteAuth::Required) == RouteAuth::Required;
    let keys = KeyPath::top("auth").key("jwt").key("keys");
    if auth_required && !has_credentials && !report.has_fault_within(&keys) {
        report.fault(
            &at.key("auth"),
            "is required, but no token could be valid; write auth.jwt.keys, auth.tokens with a key_sha256, redis, or auth: none",
        );
    }
    let at_limits = at.key("limits");
    let limits = limits::list(written.limits, algorithm, true, &at_limits, report)?;
    if !auth_required && limits.rules().iter().any(|rule| rule.by().needs_token()) {
        report.fault(
            &at_limits,
            "count by token or organization, and this route needs no token; write by: ip or by: route",
        );
    }
    let headers = written.headers.unwrap_or_default();
    let at_headers = at.key("headers");
    let request_headers = fields::rules(
        headers.request.unwrap_or_default(),
        Towards::Upstream,
        &at_headers.key("request"),
        report,
    );
    let response_headers = fields::rules(
        headers.response.unwrap_or_default(),
        Towards::Client,
        &at_headers.key("response"),
        report,
    );
    let strip_prefix = or(written.strip_prefix, false);
    let rewrite = written.rewrite.unwrap_or_default();
    let rewrite_answers = or(rewrite.answers, false);
    if rewrite_answers && !strip_prefix {
        let at = at.key("rewrite").key("answers");
        report.fault(
            &at,
            "puts back the prefix that strip_prefix cuts off; write strip_prefix: true too",
        );
    }
    let methods = each(written.methods, &at.key("methods"), report);
    let matcher = Matcher {
        prefix: prefix?.0,
        host: written.host.map(|host| host.0.0),
        methods: methods.into_iter().map(|method| method.0).collect(),
    };
    let timeouts = written.timeouts.unwrap_or_default();
    let route = upstreams.map(|upstreams| Route {
        matcher: matcher.clone(),
        upstreams,
        auth_required,
        limits,
        max_in_flight: written.max_in_flight.and_then(|most| most.0.0),
        strip_prefix,
        forward_credential: or(written.forward_credential, true),
        rewrite_answers,
        request_headers,
        response_headers,
        deadlines: Deadlines {
            first_byte: timeouts.first_byte.map(|span| span.0.0),
            total: timeouts.total.map(|span| span.0.0),
        },
    });
    Some((matcher, route))
}
