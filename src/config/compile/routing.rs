//! Routes and their header rules.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::header::{self, HeaderName};

use super::super::Route;
use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::words::RouteAuth;
use super::{each, limits, need, or, unknown};
use crate::quota::Algorithm;
use crate::route::fields;
use crate::route::headers::HeaderRules;
use crate::route::table::Matcher;
use crate::upstream::rules::UpstreamRules;

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
    let upstream = need(written.upstream, &at.key("upstream"), report).map(|name| {
        let found = upstreams.iter().find(|(existing, _)| *existing == name.0);
        if found.is_none() && !report.is_broken(&KeyPath::top("upstreams").key(&name.0)) {
            let message = unknown("upstream", &name.0, upstreams.iter().map(|(name, _)| name));
            report.fault(&at.key("upstream"), message);
        }
        found.and_then(|(_, rules)| rules.clone())
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
    let headers = written.headers.unwrap_or_default();
    let at_headers = at.key("headers");
    let request_headers = header_rules(
        headers.request.unwrap_or_default(),
        Towards::Upstream,
        &at_headers.key("request"),
        report,
    );
    let response_headers = header_rules(
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
    let route = upstream?.map(|upstream| Route {
        matcher: matcher.clone(),
        upstream,
        auth_required,
        limits,
        max_in_flight: written.max_in_flight.and_then(|most| most.0.0),
        strip_prefix,
        forward_credential: or(written.forward_credential, true),
        rewrite_answers,
        request_headers,
        response_headers,
    });
    Some((matcher, route))
}

/// Which way a header section goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Towards {
    Upstream,
    Client,
}

fn header_rules(
    written: file::HeaderRules,
    towards: Towards,
    at: &KeyPath,
    report: &mut Report,
) -> HeaderRules {
    let mut rules = HeaderRules::default();
    let mut seen = BTreeSet::new();
    for (text, value) in written.set.unwrap_or_default() {
        let at = at.key("set").key(&text);
        let name = field(&text, towards, &at, report);
        if let Some(name) = &name
            && !seen.insert(name.as_str().to_owned())
        {
            report.fault(&at, "is set twice, in different case; write each field once");
        }
        if let (Some(name), Some(value)) = (name, need(value, &at, report)) {
            rules.set.push((name, value));
        }
    }
    let at = at.key("remove");
    for (i, text) in written.remove.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(text) = need(text, &at, report) else {
            continue;
        };
        let Some(name) = field(&text, towards, &at, report) else {
            continue;
        };
        if towards == Towards::Upstream && name == header::HOST {
            report
                .fault(&at, "is host, which every request needs; write it under set to change it");
        }
        rules.remove.push(name);
    }
    rules
}

/// The name of a field that a rule may touch.
fn field(text: &str, towards: Towards, at: &KeyPath, report: &mut Report) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        report.fault(at, "is not the name of a header field; write letters, digits and `-`");
        return None;
    };
    if fields::belongs_to_connection(name.as_str()) {
        report
            .fault(at, "belongs to the connection, not to the message; write another header field");
    } else if towards == Towards::Upstream && fields::is_own(name.as_str()) {
        report.fault(at, "is a field the gateway writes itself; write another header field");
    }
    Some(name)
}
