//! `tollgate check`: a summary of a configuration, in the words of the configuration file.
//!
//! It shows valid values: [`config`](crate::config) finds the faults.

use std::sync::Arc;

use super::limits_text;
use super::{ConfigArguments, Failure};
use crate::auth::issuer::{IssuerKey, IssuerRules};
use crate::config::{Config, LiveConfig, Route};
use crate::limit::ledger::FailurePolicy;
use crate::route::mirror::Mirror;
use crate::route::table::Matcher;
use crate::upstream::rules::{EndpointRules, UpstreamRules};

/// Loads the configuration and returns its summary, with warnings about routes that are valid and may surprise.
///
/// # Errors
/// [`Failure::Configuration`] with one line per fault.
pub fn run(arguments: &ConfigArguments) -> Result<String, Failure> {
    let config = arguments.load_with_routes()?;
    let name = arguments.source();
    let warnings = config.live.warnings().into_iter().map(|line| format!("warning: {line}\n"));
    let warnings: String = warnings.collect();
    let gap = if warnings.is_empty() { "" } else { "\n" };
    Ok(format!("{name} is valid\n\n{}{gap}{warnings}", summary(&config)))
}

/// Listeners, store, tokens, plans, upstreams and routes, in aligned columns.
fn summary(config: &Config) -> String {
    let Config { startup, live } = config;
    let mut rows = Vec::new();
    for listener in &startup.listeners {
        rows.push(["listener".into(), listener.address.to_string(), String::new()]);
    }
    if let Some(metrics) = startup.metrics {
        rows.push(["metrics".into(), format!("{metrics}"), String::new()]);
    }
    rows.push(store(config));
    rows.push(["tokens".into(), String::new(), tokens(live)]);
    rows.push(["default".into(), String::new(), limits_text(&live.limits.default)]);
    for (name, limits) in &live.plans {
        rows.push(["plan".into(), name.clone(), limits_text(limits)]);
    }
    for (name, upstream) in &live.upstreams {
        let endpoints: Vec<String> = upstream.endpoints.iter().map(endpoint).collect();
        rows.push(["upstream".into(), name.clone(), endpoints.join(", ")]);
    }
    for route in &live.routes {
        rows.push([
            "route".into(),
            pattern(route),
            format!(
                "-> {}, {}{}{}",
                upstreams(route),
                auth(route),
                route_limits(route),
                copies(route)
            ),
        ]);
    }
    aligned(&rows)
}

/// The upstreams of a route, each with its weight where there are several.
fn upstreams(route: &Route) -> String {
    let share = |(rules, weight): (&Arc<UpstreamRules>, Option<u32>)| match weight {
        Some(weight) => format!("{} (weight {weight})", rules.name),
        None => rules.name.clone(),
    };
    route.upstreams.iter().map(share).collect::<Vec<_>>().join(" or ")
}

/// The upstream that gets copies of the requests of a route.
fn copies(route: &Route) -> String {
    let copies =
        |mirror: &Mirror<Arc<UpstreamRules>>| format!(", copies to {}", mirror.upstream.name);
    route.mirror.as_ref().map(copies).unwrap_or_default()
}

/// The limits of a route, which apply besides those of tokens.
fn route_limits(route: &Route) -> String {
    match route.limits.rules().is_empty() {
        true => String::new(),
        false => format!(", {}", limits_text(&route.limits)),
    }
}

/// The store's row.
fn store(config: &Config) -> [String; 3] {
    let away = match config.live.limits.on_store_failure {
        FailurePolicy::Local => "local",
        FailurePolicy::Allow => "allow",
        FailurePolicy::Deny => "deny",
    };
    match &config.startup.redis {
        None => ["store".into(), "embedded".into(), String::new()],
        Some(redis) => {
            let timeout = humantime::format_duration(redis.timeout);
            [
                "store".into(),
                redis.url.shown(),
                format!("timeout {timeout}, on_store_failure {away}"),
            ]
        }
    }
}

/// The keys that verify tokens, and the records the configuration keeps.
fn tokens(config: &LiveConfig) -> String {
    let key = |key: &IssuerKey| {
        let kid = key.kid().map(|kid| format!(" ({kid})")).unwrap_or_default();
        format!("{}{kid}", key.algorithm().name())
    };
    let issuer = |issuer: &IssuerRules| {
        let jwks = issuer.jwks.as_ref().map(|jwks| format!("those of {}", jwks.source));
        let keys: Vec<_> = issuer.keys.iter().map(key).chain(jwks).collect();
        let of = issuer.name.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        format!("JWT keys{of}: {}", keys.join(", "))
    };
    let issuers: Vec<String> = config.auth.jwt.issuers.iter().map(issuer).collect();
    let keys = if issuers.is_empty() { "no JWT keys".to_owned() } else { issuers.join("; ") };
    format!("{keys}; records in auth.tokens: {}", config.auth.tokens.len())
}

fn endpoint(endpoint: &EndpointRules) -> String {
    let EndpointRules { url, weight } = endpoint;
    match weight {
        1 => url.to_string(),
        weight => format!("{url} (weight {weight})"),
    }
}

/// The matcher of a route: methods, host and prefix.
fn pattern(route: &Route) -> String {
    let Matcher { prefix, host, methods } = &route.matcher;
    let methods = if methods.is_empty() { "*".into() } else { methods.join(",") };
    let host = host.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{methods} {host}{prefix}")
}

fn auth(route: &Route) -> &'static str {
    if route.auth_required { "auth required" } else { "auth none" }
}

/// Rows as lines, each column as wide as its widest cell.
fn aligned(rows: &[[String; 3]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let line = |[a, b, c]: &[String; 3]| {
        format!("{}\n", format!("{a:first$}  {b:second$}  {c}").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bbb", "c"], ["aaa", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "a    bbb  c\naaa  b\n");
    }
}
