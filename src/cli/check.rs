//! `tollgate check`: what a configuration amounts to, in the words of the configuration file.
//!
//! It shows values that are valid already: faults are found in [`config`](crate::config).

use std::sync::Arc;

use super::limits_text;
use super::{ConfigArguments, Failure};
use crate::auth::issuer::{IssuerKey, IssuerRules};
use crate::base::clock::{Clock, SystemClock};
use crate::config::{Config, LiveConfig, Route, StartupConfig};
use crate::gateway::{StartError, open_store};
use crate::limit::ledger::FailurePolicy;
use crate::route::table::Matcher;
use crate::store::open::shown_url;
use crate::upstream::pool::EndpointRules;

/// Loads the configuration; gives back its summary, and warnings about routes that are valid and may surprise.
///
/// # Errors
/// [`Failure::Configuration`] with one line per fault: whatever `run` would refuse.
pub fn run(arguments: &ConfigArguments) -> Result<String, Failure> {
    let config = arguments.load()?;
    let name =
        arguments.file.as_ref().map_or("the environment".into(), |file| file.display().to_string());
    opens_store(&config.startup)
        .map_err(|error| Failure::Configuration(format!("{name}: {error}")))?;
    let warnings = config.live.warnings().into_iter().map(|line| format!("warning: {line}\n"));
    let warnings: String = warnings.collect();
    let gap = if warnings.is_empty() { "" } else { "\n" };
    Ok(format!("{name} is valid\n\n{}{gap}{warnings}", summary(&config)))
}

/// Opens the store as `run` does, without touching the network.
fn opens_store(config: &StartupConfig) -> Result<(), StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    open_store(config, &clock)?;
    Ok(())
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
            format!("-> {}, {}{}", route.upstream.name, auth(route), route_limits(route)),
        ]);
    }
    aligned(&rows)
}

/// What a route adds to the limits of tokens.
fn route_limits(route: &Route) -> String {
    match route.limits.is_empty() {
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
                shown_url(&redis.url),
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
    match endpoint.weight {
        1 => endpoint.to_string(),
        weight => format!("{endpoint} (weight {weight})"),
    }
}

/// What a route matches: methods, host and prefix.
fn pattern(route: &Route) -> String {
    let Matcher { prefix, host, methods } = &route.matcher;
    let methods = if methods.is_empty() { "*".into() } else { methods.join(",") };
    format!("{methods} {}{prefix}", host.as_deref().unwrap_or_default())
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
    fn what_the_loader_lets_pass_and_run_refuses_is_refused() {
        let environment = std::iter::empty::<(String, String)>().collect();
        let open = |text: &str| {
            opens_store(&crate::config::parse(text, "t.yaml", &environment).unwrap().startup)
        };
        let encoding = open("redis: { url: \"redis://:%ff@127.0.0.1\" }").unwrap_err().to_string();
        assert!(encoding.starts_with("redis.url: "), "{encoding}");
        open("").unwrap();
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bbb", "c"], ["aaa", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "a    bbb  c\naaa  b\n");
    }
}
