//! Upstreams and their endpoints.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::fault::Report;
use super::super::file;
use super::super::key_path::KeyPath;
use super::super::words::BalanceWord;
use super::{deadline, each, need, or};
use crate::base::files::read_text;
use crate::upstream::rules::{
    Balance, BreakerRules, Check, ConnectionRules, Deadlines, EndpointRules, HealthRules, Http2,
    Scheme, Statuses, Timeouts, UpstreamRules,
};
use crate::upstream::tls::{Authorities, Identity, TlsError, TlsRules};

/// Largest file of certificates or of a key, in bytes; the authorities of a whole system are below it.
const MAX_PEM_FILE: u64 = 4 << 20;

pub(super) fn upstream(
    written: file::Upstream,
    name: &str,
    at: &KeyPath,
    report: &mut Report,
) -> Option<Arc<UpstreamRules>> {
    let timeouts = written.timeouts.unwrap_or_default();
    let endpoints = endpoints(written.endpoints, &at.key("endpoints"), report);
    let http2 = or(written.http2, Http2::Auto);
    check_schemes(&endpoints, http2, &at.key("endpoints"), report);
    let needs_tls = endpoints.iter().any(|endpoint| endpoint.url.scheme == Scheme::Https);
    if written.tls.is_some() && !needs_tls && !endpoints.is_empty() {
        report.fault(
            &at.key("tls"),
            "is for https endpoints, and there are none; write their URLs with https",
        );
    }
    let balance = balance(written.balance, written.hash, at, report);
    let health = written
        .health
        .and_then(|health| self::health(health, &endpoints, &at.key("health"), report));
    let tls = tls(written.tls.unwrap_or_default(), &at.key("tls"), report);
    Some(Arc::new(UpstreamRules {
        name: name.to_owned(),
        endpoints,
        balance,
        slow_start: written.slow_start.map_or(Duration::ZERO, |span| span.0.0),
        connections: ConnectionRules { tls, http2 },
        timeouts: Timeouts {
            connect: deadline(timeouts.connect, 1),
            read: deadline(timeouts.read, 30),
            write: deadline(timeouts.write, 30),
            idle: deadline(timeouts.idle, 60),
            deadlines: Deadlines {
                first_byte: timeouts.first_byte.map(|span| span.0.0),
                total: timeouts.total.and_then(|span| span.0.0),
            },
        },
        retries: super::count(written.retries.map(|n| n.0.0), 2),
        resolve_every: written.resolve_every.map_or(Duration::from_secs(30), |span| span.0.0),
        retry_budget: written.retry_budget.map_or(20, |share| share.0.0),
        breaker: breaker(written.breaker.unwrap_or_default(), &at.key("breaker"), report),
        health,
    }))
}

/// Refuses endpoints whose scheme contradicts `http2`.
fn check_schemes(endpoints: &[EndpointRules], http2: Http2, at: &KeyPath, report: &mut Report) {
    for (i, endpoint) in endpoints.iter().enumerate() {
        let message = match (endpoint.url.scheme, http2) {
            (Scheme::Http, Http2::Always) => {
                "speaks HTTP/1.1, and http2 is always; write h2c:// or https://"
            }
            (Scheme::H2c, Http2::Never) => "speaks HTTP/2, and http2 is never; write http://",
            _ => continue,
        };
        report.fault(&at.index(i), message);
    }
}

/// The rules of TLS. Their files are read here, so that a reload takes new certificates.
fn tls(written: file::UpstreamTls, at: &KeyPath, report: &mut Report) -> TlsRules {
    let file::UpstreamTls { ca, certificate, private_key, server_name } = written;
    let authorities = ca.and_then(|path| {
        of_file(
            &path.0,
            &at.key("ca"),
            report,
            "certificates of authorities",
            Authorities::from_pem,
        )
    });
    let has_key = private_key.is_some();
    let identity = match (certificate, private_key) {
        (Some(certificate), Some(key)) => {
            let at_chain = at.key("certificate");
            let chain = of_file(
                &certificate.0,
                &at_chain,
                report,
                "a certificate",
                Identity::chain_from_pem,
            );
            chain.and_then(|chain| {
                let with_key = |pem: &str| Identity::new(chain, pem);
                of_file(&key.0, &at.key("private_key"), report, "its key", with_key)
            })
        }
        (None, None) => None,
        _ => {
            let (given, missing) = match has_key {
                true => ("private_key", "certificate"),
                false => ("certificate", "private_key"),
            };
            // Nothing is missing where a value was written and refused.
            if !report.is_broken(&at.key(missing)) {
                report.fault(&at.key(given), format!("stands without {missing}; write both"));
            }
            None
        }
    };
    TlsRules::new(authorities, identity, server_name.map(|name| name.0.0))
}

/// What `read` makes of the text of a file, which should be `what`.
fn of_file<T>(
    path: &str,
    at: &KeyPath,
    report: &mut Report,
    what: &str,
    read: impl FnOnce(&str) -> Result<T, TlsError>,
) -> Option<T> {
    let read = match read_text(Path::new(path), MAX_PEM_FILE) {
        Ok(text) => read(&text).map_err(|error| error.to_string()),
        Err(error) => Err(format!("cannot be read: {error}")),
    };
    match read {
        Ok(value) => Some(value),
        Err(reason) => {
            report.fault(at, format!("{path} {reason}; write the path of a PEM file with {what}"));
            None
        }
    }
}

fn balance(
    written: file::Maybe<BalanceWord>,
    hash: Option<file::Hash>,
    at: &KeyPath,
    report: &mut Report,
) -> Balance {
    let is_broken = report.is_broken(&at.key("balance"));
    match (or(written, BalanceWord::RoundRobin), hash) {
        (BalanceWord::Hash, hash) => {
            let at = at.key("hash").key("by");
            need(hash.and_then(|hash| hash.by), &at, report)
                .map_or(Balance::RoundRobin, Balance::Hash)
        }
        (_, Some(_)) if !is_broken => {
            report.fault(&at.key("hash"), "is for balance: hash; write that, too");
            Balance::RoundRobin
        }
        (BalanceWord::LeastConnections, _) => Balance::LeastConnections,
        (BalanceWord::RoundRobin, _) => Balance::RoundRobin,
    }
}

fn health(
    written: file::Health,
    endpoints: &[EndpointRules],
    at: &KeyPath,
    report: &mut Report,
) -> Option<HealthRules> {
    let file::Health { path, grpc, status, interval, timeout, unhealthy_after, healthy_after } =
        written;
    let speaks_http2 = endpoints.iter().all(|endpoint| endpoint.url.scheme != Scheme::Http);
    let check = match (path, grpc, &status) {
        (Some(_), Some(_), _) => {
            report.fault(&at.key("grpc"), "stands beside path; write one of the two");
            return None;
        }
        (None, _, Some(_)) if !report.is_broken(&at.key("path")) => {
            report.fault(&at.key("status"), "is of a check that asks for a path; write path too");
            return None;
        }
        (None, Some(_), None) if !speaks_http2 => {
            report.fault(
                &at.key("grpc"),
                "needs HTTP/2; write the URLs of the endpoints with h2c or https",
            );
            return None;
        }
        (Some(path), None, _) => {
            let statuses = status.map_or(200..=399, |range| range.0.0);
            Check::Http { path: path.0.0, statuses: Statuses(vec![statuses]) }
        }
        (None, Some(service), _) => Check::Grpc { service: service.0.0 },
        (None, None, _) => Check::Connect,
    };
    let count = |written: Option<u64>, default| {
        written.map_or(default, |n| u32::try_from(n).unwrap_or(u32::MAX))
    };
    Some(HealthRules {
        check,
        interval: interval.map_or(Duration::from_secs(5), |span| span.0.0),
        timeout: deadline(timeout, 1),
        unhealthy_after: count(unhealthy_after.map(|n| n.0.0), 3),
        healthy_after: count(healthy_after.map(|n| n.0.0), 2),
    })
}

fn breaker(written: file::Breaker, at: &KeyPath, report: &mut Report) -> BreakerRules {
    let statuses = each(written.statuses, &at.key("statuses"), report);
    let failures = written.failures.map_or(Some(5), |most| most.0.0);
    BreakerRules {
        failures: failures.map(|most| u32::try_from(most).unwrap_or(u32::MAX)),
        open_for: deadline(written.open_for, 10),
        statuses: Statuses(statuses.into_iter().map(|range| range.0).collect()),
    }
}

fn endpoints(
    written: file::List<file::Endpoint>,
    at: &KeyPath,
    report: &mut Report,
) -> Vec<EndpointRules> {
    let written = written.unwrap_or_default();
    if written.is_empty() {
        report.fault(at, "has no endpoint; write at least one, such as [ http://127.0.0.1:3001 ]");
    }
    let mut endpoints: Vec<EndpointRules> = Vec::new();
    for (i, endpoint) in written.into_iter().enumerate() {
        let at = at.index(i);
        let (url, weight) =
            endpoint.map_or((None, None), |endpoint| (endpoint.url, endpoint.weight));
        let Some(url) = need(url, &at.key("url"), report) else {
            continue;
        };
        let weight = weight.map_or(1, |n| u32::try_from(n.0.0).unwrap_or(u32::MAX));
        if endpoints.iter().any(|other| other.url == url) {
            report.fault(
                &at,
                "is the URL of another endpoint; write each URL once, with a weight if it differs",
            );
        }
        endpoints.push(EndpointRules { url, weight });
    }
    endpoints
}
