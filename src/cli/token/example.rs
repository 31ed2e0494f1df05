//! The curl line that tries a token: an address, a path and a method that the gateway serves.

use crate::base::secret::Secret;
use crate::config::{Config, Route};

/// The address of a gateway without a configured listener.
const DEFAULT_BASE: &str = "http://127.0.0.1:8080";

/// A line for a shell that sends one request with `credential` to a path that `allowed` permits,
/// an empty list permitting every path.
pub fn curl(credential: &Secret, config: Option<&Config>, allowed: &[String]) -> String {
    let routes = config.map(|config| config.live.routes.as_slice()).unwrap_or_default();
    let (path, route) = target(routes, allowed);
    let mut words = vec!["curl".to_owned(), "-i".into()];
    if let Some(method) = route.and_then(unusual_method) {
        words.extend(["-X".into(), quoted(method)]);
    }
    if let Some(host) = route.and_then(|route| route.matcher.host.as_ref()) {
        words.extend(["-H".into(), quoted(&format!("Host: {}", host.example()))]);
    }
    words.extend(["-H".into(), quoted(&format!("Authorization: Bearer {}", credential.expose()))]);
    words.push(quoted(&format!("{}{path}", base(config))));
    words.join(" ")
}

/// A path to try, and the route that serves it when there is one.
fn target<'a>(routes: &'a [Route], allowed: &[String]) -> (String, Option<&'a Route>) {
    let pattern = allowed.first().map_or("*", String::as_str);
    let literal = pattern.strip_suffix('*').unwrap_or(pattern);
    if literal.len() < pattern.len() {
        let mut within = routes.iter().filter(|route| route.matcher.prefix.starts_with(literal));
        let first = within.clone().find(|route| route.auth_required).or_else(|| within.next());
        if let Some(route) = first {
            return (route.matcher.prefix.clone(), Some(route));
        }
    }
    let serving = routes
        .iter()
        .filter(|route| covers(&route.matcher.prefix, literal))
        .max_by_key(|route| route.matcher.prefix.len());
    let path = if literal.is_empty() { "/" } else { literal };
    (path.to_owned(), serving)
}

/// Whether `prefix` matches `path` by whole segments.
fn covers(prefix: &str, path: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The method of the request, where the route does not serve GET.
fn unusual_method(route: &Route) -> Option<&str> {
    let methods = &route.matcher.methods;
    if methods.iter().any(|method| method == "GET") {
        return None;
    }
    methods.first().map(String::as_str)
}

/// The first listener, as a client on this machine reaches it.
fn base(config: Option<&Config>) -> String {
    let Some(mut address) =
        config.and_then(|config| config.startup.listeners.first()).map(|listener| listener.address)
    else {
        return DEFAULT_BASE.into();
    };
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    format!("http://{address}")
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::base::net::NetworkRules;
    use crate::quota::rule::LimitSet;
    use crate::route::headers::HeaderRules;
    use crate::route::host_pattern::HostPattern;
    use crate::route::split::Split;
    use crate::route::table::Matcher;
    use crate::upstream::rules::{BreakerRules, Timeouts, UpstreamRules};

    fn route(prefix: &str, methods: &[&str], host: Option<&str>, auth_required: bool) -> Route {
        let second = Duration::from_secs(1);
        let timeouts = Timeouts {
            connect: second,
            read: second,
            write: second,
            idle: second,
            deadlines: Default::default(),
        };
        let breaker =
            BreakerRules { failures: None, open_for: second, statuses: Default::default() };
        let upstream = UpstreamRules {
            name: "u".into(),
            endpoints: Vec::new(),
            balance: Default::default(),
            slow_start: second,
            connections: Default::default(),
            retries: 0,
            retry_budget: 20,
            timeouts,
            breaker,
            resolve_every: second,
            health: None,
        };
        Route {
            limits: LimitSet::default(),
            max_in_flight: None,
            matcher: Matcher {
                prefix: prefix.into(),
                host: host.and_then(HostPattern::parse),
                methods: methods.iter().map(|&method| method.to_owned()).collect(),
            },
            upstreams: Split::whole(Arc::new(upstream)),
            auth_required,
            networks: NetworkRules::default(),
            max_body: None,
            replacement: None,
            rewrite_answers: false,
            forward_credential: true,
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
            deadlines: Default::default(),
            idle: None,
            deprecated: None,
            mirror: None,
            cors: None,
            codings: Vec::new(),
        }
    }

    #[test]
    fn the_path_is_one_that_is_permitted_and_served() {
        let routes = [
            route("/open", &[], None, false),
            route("/api/v1/users", &[], None, true),
            route("/api/v1/users/deep", &[], None, true),
        ];
        for (allowed, path, served_by) in [
            (None, "/api/v1/users", Some("/api/v1/users")),
            (Some("*"), "/api/v1/users", Some("/api/v1/users")),
            (Some("/api/*"), "/api/v1/users", Some("/api/v1/users")),
            (Some("/api/v1/users"), "/api/v1/users", Some("/api/v1/users")),
            (Some("/api/v1/users/*"), "/api/v1/users/deep", Some("/api/v1/users/deep")),
            (Some("/api/v1/users/7/*"), "/api/v1/users/7/", Some("/api/v1/users")),
            (Some("/open*"), "/open", Some("/open")),
            (Some("/elsewhere"), "/elsewhere", None),
        ] {
            let allowed: Vec<String> = allowed.into_iter().map(str::to_owned).collect();
            let (got, route) = target(&routes, &allowed);
            assert_eq!(
                (got.as_str(), route.map(|route| route.matcher.prefix.as_str())),
                (path, served_by),
                "{allowed:?}"
            );
        }
        assert_eq!(target(&[], &[]).0, "/");
    }

    #[test]
    fn the_line_survives_a_shell_and_speaks_to_the_default_address() {
        let line = curl(&Secret::new("a.b.c"), None, &["/it's".into()]);
        assert_eq!(
            line,
            r"curl -i -H 'Authorization: Bearer a.b.c' 'http://127.0.0.1:8080/it'\''s'"
        );
    }

    #[test]
    fn method_follows_the_route() {
        let post = route("/p", &["POST", "PUT"], Some("h"), true);
        assert_eq!(unusual_method(&post), Some("POST"));
        assert_eq!(unusual_method(&route("/p", &["POST", "GET"], None, true)), None);
        assert_eq!(unusual_method(&route("/p", &[], None, true)), None);
    }
}
