//! Routes.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::Route;
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::scalar::Leaf;
use super::super::words::RouteAuth;
use super::fields::{self, Elsewhere, Towards};
use super::{cors, destination, each, limits, need, notices, or};
use crate::base::net::NetworkRules;
use crate::quota::Algorithm;
use crate::route::coding::Coding;
use crate::route::headers::HeaderRules;
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
    // By prefix and host, so that many routes do not take long.
    let mut matchers: HashMap<_, Vec<(usize, Matcher)>> = HashMap::new();
    for (i, route) in written.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(route) = route else {
            report.fault(&at, "is empty; write { prefix, upstream }");
            continue;
        };
        let Some((matcher, route)) = self::route(route, context, &at, report) else {
            continue;
        };
        let alike = matchers.entry((matcher.prefix.clone(), matcher.host.clone())).or_default();
        if let Some((earlier, _)) = alike.iter().find(|(_, other)| overlap(other, &matcher)) {
            report.fault(
                &at,
                format!("serves requests that routes[{earlier}] serves; write another prefix, host or methods"),
            );
        }
        alike.push((i, matcher));
        routes.extend(route);
    }
    routes
}

/// Whether some request would fit both routes, whose prefix and host are the same, equally well.
fn overlap(a: &Matcher, b: &Matcher) -> bool {
    a.methods.is_empty()
        || a.methods.iter().any(|method| b.serves_method(method))
        || b.methods.iter().any(|method| a.serves_method(method))
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
    let destination =
        destination::upstreams(written.upstream, written.split, upstreams, at, report);
    let methods = each(written.methods, &at.key("methods"), report);
    let methods: Vec<String> = methods.into_iter().map(|method| method.0).collect();
    let mirror = written.mirror.and_then(|mirror| {
        let (of, at) = (destination.as_ref(), at.key("mirror"));
        destination::mirror(mirror, upstreams, of, &methods, &at, report)
    });
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
    let elsewhere =
        Elsewhere { cors: written.cors.is_some(), deprecated: written.deprecated.is_some() };
    let [request_headers, response_headers] = written
        .headers
        .map(|headers| header_rules(headers, elsewhere, &at.key("headers"), report))
        .unwrap_or_default();
    let strip_prefix = or(written.strip_prefix, false);
    let (replacement, rewrite_answers) = match written.rewrite {
        Some(rewrite) => replacement(rewrite, strip_prefix, &at.key("rewrite"), report),
        None => (strip_prefix.then(String::new), false),
    };
    let networks = written
        .networks
        .map(|written| networks(written, &at.key("networks"), report))
        .unwrap_or_default();
    let codings = written
        .compress
        .map(|written| codings(written, &at.key("compress"), report))
        .unwrap_or_default();
    let deprecated = written
        .deprecated
        .and_then(|written| notices::deprecated(written, &at.key("deprecated"), report));
    let cors =
        written.cors.and_then(|written| cors::compile(written, &methods, &at.key("cors"), report));
    let matcher = Matcher { prefix: prefix?.0, host: written.host.map(|host| host.0), methods };
    let timeouts = written.timeouts.unwrap_or_default();
    let route = destination.map(|upstreams| Route {
        matcher: matcher.clone(),
        upstreams,
        auth_required,
        networks,
        limits,
        max_in_flight: written.max_in_flight.and_then(|most| most.0.0),
        max_body: written.max_body.map(|size| size.0.0),
        replacement,
        forward_credential: or(written.forward_credential, true),
        rewrite_answers,
        request_headers,
        response_headers,
        deadlines: Deadlines {
            first_byte: timeouts.first_byte.map(|span| span.0.0),
            total: timeouts.total.map(|span| span.0.0),
        },
        idle: timeouts.idle.map(|span| span.0.0),
        deprecated,
        mirror,
        cors,
        codings,
    });
    Some((matcher, route))
}

/// The rules for the fields of requests, and for those of answers.
fn header_rules(
    written: file::RouteHeaders,
    elsewhere: Elsewhere,
    at: &KeyPath,
    report: &mut Report,
) -> [HeaderRules; 2] {
    let sections = [
        (written.request, Towards::Upstream, "request"),
        (written.response, Towards::Client, "response"),
    ];
    sections.map(|(rules, towards, key)| {
        fields::rules(rules.unwrap_or_default(), towards, elsewhere, &at.key(key), report)
    })
}

/// What stands for the prefix, and whether the paths of answers get the prefix back.
fn replacement(
    written: file::Rewrite,
    strip_prefix: bool,
    at: &KeyPath,
    report: &mut Report,
) -> (Option<String>, bool) {
    if strip_prefix && written.prefix.is_some() {
        let fault = "stands beside strip_prefix: true; write one of the two";
        report.fault(&at.key("prefix"), fault);
    }
    if written.prefix.is_none() && written.answers.is_none() && !report.has_fault_within(at) {
        report.fault(at, "changes nothing; write prefix or answers, or leave it out");
    }
    let replacement = written.prefix.map(|prefix| prefix.0.0);
    let replacement = replacement.or_else(|| strip_prefix.then(String::new));
    let answers = or(written.answers, false);
    if answers && replacement.is_none() {
        report.fault(
            &at.key("answers"),
            "puts back a prefix that the route does not change; write rewrite.prefix or strip_prefix: true too",
        );
    }
    (replacement, answers)
}

/// The networks whose clients the route lets in.
fn networks(written: file::Networks, at: &KeyPath, report: &mut Report) -> NetworkRules {
    let at_allow = at.key("allow");
    if written.allow.as_ref().is_some_and(Vec::is_empty) && !report.has_fault_within(&at_allow) {
        report.fault(&at_allow, "lets no client in; write at least one network, or leave it out");
    }
    if written.allow.is_none() && written.deny.is_none() && !report.has_fault_within(at) {
        report.fault(at, "names no network; write allow or deny, or leave it out");
    }
    NetworkRules {
        allow: each(written.allow, &at_allow, report),
        deny: each(written.deny, &at.key("deny"), report),
    }
}

/// The codings of answers, each once.
fn codings(written: Vec<Option<Leaf<Coding>>>, at: &KeyPath, report: &mut Report) -> Vec<Coding> {
    let codings = each(Some(written), at, report);
    if (1..codings.len()).any(|i| codings[..i].contains(&codings[i])) {
        report.fault(at, "names a coding twice; write each once");
    }
    codings
}
