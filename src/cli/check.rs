//! `tollgate check`: what a configuration amounts to, in the words of the configuration file.
//!
//! It reads values that are valid already; finding faults is the business of `config::file`.

use std::sync::Arc;

use super::limits_text;
use super::{ConfigArguments, Failure};
use crate::base::clock::{Clock, SystemClock};
use crate::config::{Config, Endpoint, JwtIssuer, JwtKey, OnStoreFailure, Route, RouteAuth};
use crate::gateway::{StartError, open_store};
use crate::policy::Policy;
use crate::store::open::shown_url;

/// Loads and compiles the configuration; gives back its summary.
///
/// # Errors
/// [`Failure::Configuration`] with one line per fault: whatever `run` would refuse.
pub fn run(arguments: &ConfigArguments) -> Result<String, Failure> {
    let config = arguments.load()?;
    let name =
        arguments.file.as_ref().map_or("the environment".into(), |file| file.display().to_string());
    compiled(&config).map_err(|error| Failure::Configuration(format!("{name}: {error}")))?;
    Ok(format!("{name} is valid\n\n{}", summary(&config)))
}

/// Puts together what `run` makes of the configuration before it touches the network.
fn compiled(config: &Config) -> Result<(), StartError> {
    Policy::compile(config, None)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    open_store(config, &clock)?;
    Ok(())
}

/// Listeners, store, tokens, plans, upstreams and routes, in aligned columns.
fn summary(config: &Config) -> String {
    let mut rows = Vec::new();
    for listener in &config.listeners {
        rows.push(["listener".into(), listener.address.to_string(), String::new()]);
    }
    if let Some(metrics) = config.metrics {
        rows.push(["metrics".into(), format!("{metrics}"), String::new()]);
    }
    rows.push(store(config));
    rows.push(["tokens".into(), String::new(), tokens(config)]);
    rows.push(["default".into(), String::new(), limits_text(&config.limits.default)]);
    for (name, limits) in &config.plans {
        rows.push(["plan".into(), name.clone(), limits_text(limits)]);
    }
    for (name, upstream) in &config.upstreams {
        let endpoints: Vec<String> = upstream.endpoints.iter().map(endpoint).collect();
        rows.push(["upstream".into(), name.clone(), endpoints.join(", ")]);
    }
    for route in &config.routes {
        rows.push([
            "route".into(),
            pattern(route),
            format!("-> {}, {}{}", route.upstream, auth(route.auth), route_limits(route)),
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
    let away = match config.limits.on_store_failure {
        OnStoreFailure::Local => "local",
        OnStoreFailure::Allow => "allow",
        OnStoreFailure::Deny => "deny",
    };
    match &config.redis {
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
fn tokens(config: &Config) -> String {
    let key = |key: &JwtKey| {
        let kid = key.kid.as_ref().map(|kid| format!(" ({kid})")).unwrap_or_default();
        format!("{}{kid}", key.algorithm.name())
    };
    let issuer = |issuer: &JwtIssuer| {
        let jwks = issuer.jwks.as_ref().map(|jwks| format!("those of {}", jwks.source));
        let keys: Vec<_> = issuer.keys.iter().map(key).chain(jwks).collect();
        let of = issuer.issuer.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        format!("JWT keys{of}: {}", keys.join(", "))
    };
    let issuers: Vec<String> = config.auth.jwt.issuers.iter().map(issuer).collect();
    let keys = if issuers.is_empty() { "no JWT keys".to_owned() } else { issuers.join("; ") };
    format!("{keys}; records in auth.tokens: {}", config.auth.tokens.len())
}

fn endpoint(endpoint: &Endpoint) -> String {
    let url = endpoint.url.as_str().trim_end_matches('/');
    match endpoint.weight {
        1 => url.to_owned(),
        weight => format!("{url} (weight {weight})"),
    }
}

/// What a route matches: methods, host and prefix.
fn pattern(route: &Route) -> String {
    let methods = if route.methods.is_empty() { "*".into() } else { route.methods.join(",") };
    format!("{methods} {}{}", route.host.as_deref().unwrap_or_default(), route.prefix)
}

fn auth(auth: RouteAuth) -> &'static str {
    match auth {
        RouteAuth::Required => "auth required",
        RouteAuth::None => "auth none",
    }
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
        let read = |text: &str| crate::config::parse(text, "t.yaml", &environment).unwrap();
        let refused = |config: &Config| compiled(config).unwrap_err().to_string();

        let encoding = refused(&read("redis: { url: \"redis://:%ff@127.0.0.1\" }"));
        assert!(encoding.starts_with("redis.url: "), "{encoding}");

        let mut config = read("");
        compiled(&config).unwrap();
        let json = r#"{"rate_limit":0}"#.into();
        config.auth.tokens.push(crate::config::StaticToken { id: "a".into(), json });
        let no_rate = refused(&config);
        assert!(no_rate.starts_with("auth.tokens: token a: rate_limit: "), "{no_rate}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bbb", "c"], ["aaa", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "a    bbb  c\naaa  b\n");
    }
}
