//! From written values to valid ones: defaults, and the checks that need more than one value.
//!
//! Values become the types of the rooms that use them. Each function reports every fault it finds under the
//! key's path, and returns `None` for a value it cannot make. Nothing here reads YAML or the environment.

mod auth;
mod cors;
mod destination;
mod fields;
mod limits;
mod listeners;
mod notices;
mod routing;
mod tokens;
mod upstreams;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::fault::Report;
use super::file::{self, File, List, Map, Maybe};
use super::key_path::KeyPath;
use super::matching::Method;
use super::scalar::{Identifier, Leaf, Scalar};
use super::{ClientTimeouts, Config, Listener, LiveConfig, Redis, Server, StartupConfig};
use crate::route::table::serves;
use crate::telemetry::log_output::{LogColor, LogFormat};

/// The valid configuration, unless something was reported on the way.
pub(super) fn compile(file: File, report: &mut Report) -> Option<Config> {
    let (listeners, listener_rules): (Vec<_>, Vec<_>) =
        listeners::compile(file.listeners, report).into_iter().unzip();
    let metrics = metrics(file.metrics.unwrap_or_default(), &listeners, report);
    let written_limits = file.limits.unwrap_or_default();
    let algorithm = limits::algorithm(&written_limits);
    let plans = named(file.plans, &KeyPath::top("plans"), report, |plan, _, at, report| {
        limits::plan(plan, algorithm, at, report)
    });
    let written_auth = file.auth.unwrap_or_default();
    let (auth, token_cache) = auth::compile(written_auth, &plans, algorithm, report);
    let upstreams = named(file.upstreams, &KeyPath::top("upstreams"), report, upstreams::upstream);
    let has_credentials = auth.may_know_a_token() || file.redis.is_some();
    let context = routing::Context { upstreams: &upstreams, has_credentials, algorithm };
    let routes = routing::routes(file.routes, &context, report);
    let limits = limits::compile(written_limits, report);
    let log = file.log.unwrap_or_default();
    let startup = StartupConfig {
        server: server(file.server.unwrap_or_default()),
        listeners,
        metrics,
        log_format: or(log.format, LogFormat::Json),
        log_color: or(log.color, LogColor::Auto),
        redis: file.redis.and_then(|redis| self::redis(redis, report)),
        token_cache,
    };
    let live = LiveConfig {
        log_level: or(log.level, log::LevelFilter::Info),
        access_log: or(log.access, true),
        listeners: listener_rules,
        timeouts: client_timeouts(file.timeouts.unwrap_or_default()),
        max_body: file.max_body.map_or(10 << 20, |size| size.0.0),
        max_connections: count(file.max_connections.map(|n| n.0.0), 10_000),
        max_connections_per_client: file.max_connections_per_client.map_or(Some(1_000), |n| n.0.0),
        trusted_proxies: each(file.trusted_proxies, &KeyPath::top("trusted_proxies"), report),
        pass_fields: each(file.pass_fields, &KeyPath::top("pass_fields"), report)
            .into_iter()
            .map(|field| field.0)
            .collect(),
        fold_paths: or(file.fold_paths, false),
        auth,
        plans: plans.into_iter().filter_map(|(name, limits)| Some((name, limits?))).collect(),
        limits: limits?,
        upstreams: upstreams.into_iter().filter_map(|(name, rules)| Some((name, rules?))).collect(),
        routes,
    };
    Some(Config { startup, live })
}

fn server(written: file::Server) -> Server {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Server {
        threads: match count(written.threads.map(|n| n.0.0), 0) {
            0 => cores(),
            threads => threads,
        },
        grace_period_seconds: written.grace_period_seconds.map_or(5, |n| n.0.0),
        graceful_shutdown_timeout_seconds: written
            .graceful_shutdown_timeout_seconds
            .map_or(10, |n| n.0.0),
        upstream_keepalive_pool_size: count(
            written.upstream_keepalive_pool_size.map(|n| n.0.0),
            1024,
        ),
        upgrade_sock: written.upgrade_sock.map(|path| path.0.0),
    }
}

fn metrics(
    written: file::Metrics,
    listeners: &[Listener],
    report: &mut Report,
) -> Option<SocketAddr> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
    let address = written.address.map_or(Some(default), |address| address.0.0)?;
    if address.port() != 0 && listeners.iter().any(|listener| listener.address == address) {
        let at = KeyPath::top("metrics").key("address");
        report.fault(&at, "is the address of a listener; write an address of its own, or none");
    }
    Some(address)
}

fn client_timeouts(written: file::ClientTimeouts) -> ClientTimeouts {
    ClientTimeouts {
        header: deadline(written.header, 5),
        read: deadline(written.read, 30),
        write: deadline(written.write, 30),
        idle: deadline(written.idle, 60),
        tunnel: deadline(written.tunnel, 600),
    }
}

fn redis(written: file::Redis, report: &mut Report) -> Option<Redis> {
    let url = need(written.url, &KeyPath::top("redis").key("url"), report)?;
    Some(Redis {
        url,
        timeout: written.timeout.map_or(Duration::from_millis(50), |span| span.0.0),
        prefix: written.prefix.map(|prefix| prefix.0.0).unwrap_or_default(),
    })
}

/// The values of a mapping by their names. A name stays when its value has a fault, so that references to it
/// hold.
fn named<W, T>(
    written: Map<W>,
    at: &KeyPath,
    report: &mut Report,
    compile: impl Fn(W, &str, &KeyPath, &mut Report) -> Option<T>,
) -> Vec<(String, Option<T>)> {
    let mut values = Vec::new();
    for (name, value) in written.unwrap_or_default() {
        let at = at.key(&name);
        if let Err(message) = Identifier::read(&name) {
            report.fault(&at, message);
        }
        if value.is_none() {
            report.fault(&at, "is empty; write a mapping");
        }
        let value = value.and_then(|value| compile(value, &name, &at, report));
        values.push((name, value));
    }
    values
}

/// The elements of a list; an empty one is a fault.
fn each<T: Scalar>(written: List<Leaf<T>>, at: &KeyPath, report: &mut Report) -> Vec<T> {
    let written = written.unwrap_or_default().into_iter().enumerate();
    written.filter_map(|(i, leaf)| need(leaf, &at.index(i), report)).collect()
}

/// The methods of a route that are written in a section at `at`, and of which the route, whose own methods are `served`,
/// must serve at least one. `None` where none are written.
fn methods_of(
    written: List<Leaf<Method>>,
    served: &[String],
    at: &KeyPath,
    report: &mut Report,
) -> Option<Vec<String>> {
    let written = written?;
    if written.is_empty() && !report.has_fault_within(at) {
        report.fault(at, "has no method; write at least one, or leave it out");
    }
    let methods = each(Some(written), at, report);
    let methods: Vec<String> = methods.into_iter().map(|method| method.0).collect();
    if !methods.is_empty()
        && !methods.iter().any(|method| serves(served, method))
        && !served.iter().any(|method| serves(&methods, method))
    {
        report.fault(
            at,
            format!("has none of the route's methods; write some of {}", served.join(", ")),
        );
    }
    Some(methods)
}

/// A value that must be written.
fn need<T: Scalar>(written: Maybe<T>, at: &KeyPath, report: &mut Report) -> Option<T> {
    if written.is_none() {
        report.fault(at, super::scalar::instead::<T>("is missing"));
    }
    written.map(|leaf| leaf.0)
}

fn or<T>(written: Maybe<T>, default: T) -> T {
    written.map_or(default, |leaf| leaf.0)
}

fn deadline(written: Maybe<file::Deadline>, default_seconds: u64) -> Duration {
    written.map_or(Duration::from_secs(default_seconds), |span| span.0.0)
}

fn count(written: Option<u64>, default: usize) -> usize {
    written.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// The message for a reference to something that does not exist.
fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known: Vec<_> = known.map(String::as_str).collect();
    match known.as_slice() {
        [] => format!("names the {what} `{name}`, but there are none; write it under {what}s"),
        known => format!(
            "names the {what} `{name}`, which does not exist; write one of {}",
            known.join(", ")
        ),
    }
}
