//! Upstreams, routes and their header rules.

use std::collections::BTreeSet;

use http::header::{self, HeaderName};

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::{Endpoint, HeaderRules, Route, RouteAuth, Upstream, UpstreamTimeouts};
use super::{deadline, each, limits, need, or, unknown};
use crate::quota::Algorithm;

pub(super) fn upstream(
    written: file::Upstream,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Upstream> {
    let timeouts = written.timeouts.unwrap_or_default();
    Some(Upstream {
        endpoints: endpoints(written.endpoints, &at.key("endpoints"), report),
        timeouts: UpstreamTimeouts {
            connect: deadline(timeouts.connect, 1),
            read: deadline(timeouts.read, 30),
            write: deadline(timeouts.write, 30),
            idle: deadline(timeouts.idle, 60),
        },
        retries: super::count(written.retries.map(|n| n.0.0), 2),
    })
}

fn endpoints(
    written: file::List<file::Endpoint>,
    at: &KeyPath,
    report: &mut Report,
) -> Vec<Endpoint> {
    let written = written.unwrap_or_default();
    if written.is_empty() {
        report.fault(at, "has no endpoint; write at least one, such as [ http://127.0.0.1:3001 ]");
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for (i, endpoint) in written.into_iter().enumerate() {
        let at = at.index(i);
        let (url, weight) =
            endpoint.map_or((None, None), |endpoint| (endpoint.url, endpoint.weight));
        let Some(url) = need(url, &at.key("url"), report) else {
            continue;
        };
        if endpoints.iter().any(|other| other.url == url.0) {
            report.fault(
                &at,
                "is the URL of another endpoint; write each URL once, with a weight if it differs",
            );
        }
        let weight = weight.map_or(1, |n| u32::try_from(n.0.0).unwrap_or(u32::MAX));
        endpoints.push(Endpoint { url: url.0, weight });
    }
    endpoints
}

/// What routes refer to.
pub(super) struct Given<'a> {
    /// Upstreams by name; one with a fault has no value.
    pub upstreams: &'a [(String, Option<Upstream>)],
    /// Whether any credential could be valid.
    pub has_credentials: bool,
    /// How limits count that do not say so themselves.
    pub algorithm: Algorithm,
}

pub(super) fn routes(
    written: file::List<file::Route>,
    given: &Given<'_>,
    report: &mut Report,
) -> Vec<Route> {
    let at = KeyPath::top("routes");
    let mut routes: Vec<(usize, Route)> = Vec::new();
    for (i, route) in written.unwrap_or_default().into_iter().enumerate() {
        let at = at.index(i);
        let Some(route) = route else {
            report.fault(&at, "is empty; write { prefix, upstream }");
            continue;
        };
        let Some(route) = self::route(route, given, &at, report) else {
            continue;
        };
        if let Some((earlier, _)) = routes.iter().find(|(_, earlier)| overlap(earlier, &route)) {
            report.fault(
                &at,
                format!("serves requests that routes[{earlier}] serves; write another prefix, host or methods"),
            );
        }
        routes.push((i, route));
    }
    routes.into_iter().map(|(_, route)| route).collect()
}

/// Whether some request would fit both routes equally well. `GET` includes `HEAD`.
fn overlap(a: &Route, b: &Route) -> bool {
    let serves = |route: &Route, method: &str| {
        route.methods.is_empty()
            || route.methods.iter().any(|own| own == method || (own == "GET" && method == "HEAD"))
    };
    let methods = a.methods.is_empty()
        || a.methods.iter().any(|method| serves(b, method))
        || b.methods.iter().any(|method| serves(a, method));
    a.prefix == b.prefix && a.host == b.host && methods
}

fn route(
    written: file::Route,
    given: &Given<'_>,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Route> {
    let Given { upstreams, has_credentials, algorithm } = *given;
    let prefix = need(written.prefix, &at.key("prefix"), report);
    let upstream = need(written.upstream, &at.key("upstream"), report).map(|name| name.0);
    if let Some(name) = &upstream
        && !upstreams.iter().any(|(known, _)| known == name)
        && !report.is_broken(&KeyPath::top("upstreams").key(name))
    {
        let message = unknown("upstream", name, upstreams.iter().map(|(name, _)| name));
        report.fault(&at.key("upstream"), message);
    }
    let auth = or(written.auth, RouteAuth::Required);
    let keys = KeyPath::top("auth").key("jwt").key("keys");
    if auth == RouteAuth::Required && !has_credentials && !report.has_fault_within(&keys) {
        report.fault(
            &at.key("auth"),
            "is required, but no token could be valid; write auth.jwt.keys, auth.tokens with a key_sha256, redis, or auth: none",
        );
    }
    let at_limits = at.key("limits");
    let limits = limits::list(written.limits, algorithm, true, &at_limits, report)?;
    if auth == RouteAuth::None && limits.iter().any(|rule| rule.by().needs_token()) {
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
    Some(Route {
        methods: each(written.methods, &at.key("methods"), report)
            .into_iter()
            .map(|method| method.0)
            .collect(),
        prefix: prefix?.0,
        host: written.host.map(|host| host.0.0),
        upstream: upstream?,
        auth,
        limits,
        max_in_flight: written.max_in_flight.and_then(limits::few),
        strip_prefix: or(written.strip_prefix, false),
        forward_credential: or(written.forward_credential, true),
        request_headers,
        response_headers,
    })
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
    if is_framing(&name) {
        report
            .fault(at, "belongs to the connection, not to the message; write another header field");
    } else if towards == Towards::Upstream && is_identity(&name) {
        report.fault(at, "is a field the gateway writes itself; write another header field");
    }
    Some(name)
}

/// Fields of message framing and of one connection (RFC 9110 section 7.6.1).
fn is_framing(name: &HeaderName) -> bool {
    [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
    ]
    .contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// Fields that tell an upstream who asks, in any spelling an upstream may take for them.
fn is_identity(name: &HeaderName) -> bool {
    let name = name.as_str().replace(['_', '.'], "-");
    matches!(name.as_str(), "x-request-id" | "x-organization-id" | "x-plan-tier" | "x-token-id")
        || name.starts_with("x-forwarded-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_rules_may_not_touch() {
        let name = |text: &str| HeaderName::from_bytes(text.as_bytes()).unwrap();
        for text in ["Connection", "content-length", "Keep-Alive", "TE", "upgrade"] {
            assert!(is_framing(&name(text)), "{text}");
        }
        for text in
            ["X-Request-ID", "x_token_id", "X-Forwarded_For", "x.plan.tier", "X-Forwarded-Port"]
        {
            assert!(is_identity(&name(text)), "{text}");
        }
        for text in ["host", "authorization", "x-forwarded", "x-api-version"] {
            assert!(!is_identity(&name(text)) && !is_framing(&name(text)), "{text}");
        }
    }
}
