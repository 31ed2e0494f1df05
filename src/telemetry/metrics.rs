//! Every metric: its name, labels and buckets. No label is a token, a path or an address, because a client
//! could make any number of those.

use std::time::Duration;

use once_cell::sync::Lazy;
use parking_lot::{Mutex, RwLock};
pub use pingora_prometheus::prometheus::Histogram;
use pingora_prometheus::prometheus::{
    self, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
};

use super::outcomes::{ConnectionsRefused, ProxyHeaders, TlsHandshakes, TokenCache};

/// Seconds, from a fast answer on loopback to a long upstream timeout.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// Seconds of one store operation; the usual deadline is 50 ms.
const STORE_SECONDS: [f64; 10] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.25];

/// Requests of one lease.
const LEASES: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 16_384.0, 1_000_000.0];

/// How many limits get a label of their own.
const MAX_LIMIT_NAMES: usize = 100;

/// The handles, registered once with the registry that Pingora's Prometheus service gathers.
pub struct Metrics {
    pub(super) requests: IntCounterVec,
    pub(super) request_seconds: HistogramVec,
    pub(super) upstream_seconds: HistogramVec,
    pub(super) mirrored: IntCounterVec,
    pub(super) upstream_retries: IntCounterVec,
    pub(super) upstream_retries_refused: IntCounterVec,
    /// Answers that the gateway made itself, by code.
    pub rejections: IntCounterVec,
    limit_decisions: IntCounterVec,
    /// By limit: admitted and refused. There are few limits, so that a scan is faster than a hash.
    limits: RwLock<Vec<(String, [IntCounter; 2])>>,
    store_operations: IntCounterVec,
    store_seconds: HistogramVec,
    /// By operation and outcome. There are few pairs, so that a scan is faster than a hash.
    operations: RwLock<Vec<(&'static str, &'static str, IntCounter, Histogram)>>,
    /// Look-ups of token records, by outcome.
    pub token_cache: TokenCache,
    /// Requests of verified tokens that have a plan, by `plan`.
    pub plan_requests: IntCounterVec,
    /// Fetches of issuers' keys, by `outcome`: `ok` or `failed`.
    pub key_fetches: IntCounterVec,
    /// Sources of issuers' keys whose last fetch failed.
    pub key_sources_failing: IntGauge,
    /// Sources of issuers' keys whose last set has no key that can be used.
    pub key_sources_empty: IntGauge,
    /// Requests being served.
    pub in_flight: IntGauge,
    /// Client connections open.
    pub connections: IntGauge,
    /// Client connections refused, by bound.
    pub connections_refused: ConnectionsRefused,
    /// Connections to listeners for proxies, by `outcome` of the header of the PROXY protocol.
    pub proxy_headers: ProxyHeaders,
    /// TLS handshakes with clients, by `outcome`.
    pub tls_handshakes: TlsHandshakes,
    certificate_expiry: IntGaugeVec,
    /// The certificates that have a value.
    certificates: Mutex<Vec<String>>,
    /// Connections and streams of HTTP/2 that were ended because of what the client sent, by `kind`.
    pub http2_protection: IntCounterVec,
    /// How many configurations have taken effect.
    pub config_generation: IntGauge,
    /// 1 when the last reload took effect, 0 when it was refused.
    pub config_last_reload_success: IntGauge,
    /// 1 while the store answers and takes writes.
    pub store_available: IntGauge,
    /// Subjects the ledger keeps.
    pub limit_subjects: IntGauge,
    /// Requests for quota to the store, for which client requests waited.
    pub flights_waited: IntCounter,
    /// Requests for quota to the store, sent before a client request needed the quota.
    pub flights_ahead: IntCounter,
    /// Requests granted by the store.
    pub limit_granted: IntCounter,
    /// Requests given back to the store unused.
    pub limit_returned: IntCounter,
    /// Requests paid for and not yet admitted.
    pub limit_held: IntGauge,
    /// Requests of one lease: the grant without the requests that were waiting.
    pub limit_lease: Histogram,
    /// Connections to the store that are not used at the moment because they failed repeatedly.
    pub store_breakers_open: IntGauge,
    /// Log lines lost because the reader of the log was too slow.
    pub log_lines_dropped: IntCounter,
    /// Answers sent as they are because too many others are being compressed.
    pub compression_skipped: IntCounter,
    build_info: IntGaugeVec,
}

/// The process's metrics.
pub static METRICS: Lazy<Metrics> = Lazy::new(Metrics::register);

impl Metrics {
    // Registration fails only for a malformed or repeated name. All names are below, and a test registers
    // each of them.
    #[allow(clippy::expect_used)]
    fn register() -> Self {
        fn registered<C: prometheus::core::Collector + Clone + 'static>(
            metric: prometheus::Result<C>,
        ) -> C {
            let metric = metric.expect("the name and labels are well-formed");
            prometheus::register(Box::new(metric.clone())).expect("the name is registered once");
            metric
        }
        let counters = |name, help, labels: &[&str]| {
            registered(IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| registered(IntGauge::new(name, help));
        let seconds = |name, help, labels: &[&str], buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(HistogramVec::new(opts, labels))
        };
        let flights = counters(
            "tollgate_limit_flights_total",
            "Questions to the store for quota",
            &["leader"],
        );
        Self {
            requests: counters(
                "tollgate_requests_total",
                "Requests answered",
                &["route", "method", "status"],
            ),
            request_seconds: seconds(
                "tollgate_request_duration_seconds",
                "From the end of the request's header to the end of the answer",
                &["route"],
                &SECONDS,
            ),
            upstream_seconds: seconds(
                "tollgate_upstream_duration_seconds",
                "From choosing an endpoint to the header of its answer",
                &["upstream"],
                &SECONDS,
            ),
            upstream_retries: counters(
                "tollgate_upstream_retries_total",
                "Further attempts of requests whose attempt before failed",
                &["upstream"],
            ),
            upstream_retries_refused: counters(
                "tollgate_upstream_retries_refused_total",
                "Further attempts that the retry budget did not allow",
                &["upstream"],
            ),
            rejections: counters(
                "tollgate_rejections_total",
                "Answers of the gateway's own",
                &["code"],
            ),
            mirrored: counters(
                "tollgate_mirrored_requests_total",
                "Copies of requests, by what became of them",
                &["upstream", "outcome"],
            ),
            limit_decisions: counters(
                "tollgate_limit_decisions_total",
                "Decisions about limits",
                &["limit", "decision"],
            ),
            limits: RwLock::default(),
            store_operations: counters(
                "tollgate_store_operations_total",
                "Operations on the store",
                &["operation", "outcome"],
            ),
            store_seconds: seconds(
                "tollgate_store_duration_seconds",
                "Duration of store operations",
                &["operation"],
                &STORE_SECONDS,
            ),
            operations: RwLock::default(),
            key_fetches: counters(
                "tollgate_key_fetches_total",
                "Fetches of issuers' keys (JWKS), by outcome",
                &["outcome"],
            ),
            key_sources_failing: gauge(
                "tollgate_key_sources_failing",
                "Sources of issuers' keys whose last fetch failed",
            ),
            key_sources_empty: gauge(
                "tollgate_key_sources_empty",
                "Sources of issuers' keys whose last set has no key that can be used",
            ),
            plan_requests: counters(
                "tollgate_plan_requests_total",
                "Requests of verified tokens that have a plan, by plan; `other` is not configured",
                &["plan"],
            ),
            token_cache: TokenCache::new(&counters(
                "tollgate_token_cache_total",
                "Look-ups of token records, by outcome",
                &["outcome"],
            )),
            in_flight: gauge("tollgate_in_flight_requests", "Requests being served"),
            connections: gauge("tollgate_client_connections", "Client connections open"),
            connections_refused: ConnectionsRefused::new(&counters(
                "tollgate_client_connections_refused_total",
                "Client connections closed without an answer, by the bound that was reached",
                &["bound"],
            )),
            proxy_headers: ProxyHeaders::new(&counters(
                "tollgate_proxy_headers_total",
                "Connections to listeners with proxy_protocol, by outcome of the header",
                &["outcome"],
            )),
            tls_handshakes: TlsHandshakes::new(&counters(
                "tollgate_tls_handshakes_total",
                "TLS handshakes with clients, by outcome",
                &["outcome"],
            )),
            certificate_expiry: registered(IntGaugeVec::new(
                Opts::new(
                    "tollgate_certificate_expiry_seconds",
                    "When the certificate of this file expires, in Unix time",
                ),
                &["certificate"],
            )),
            certificates: Mutex::default(),
            http2_protection: counters(
                "tollgate_http2_protection_total",
                "Connections and streams of HTTP/2 that were ended because of what the client sent",
                &["kind"],
            ),
            config_generation: gauge(
                "tollgate_config_generation",
                "Configurations that have taken effect",
            ),
            config_last_reload_success: gauge(
                "tollgate_config_last_reload_success",
                "1 when the last reload took effect, 0 when it was refused",
            ),
            store_available: gauge(
                "tollgate_store_available",
                "1 while the store answers and takes writes",
            ),
            limit_subjects: gauge("tollgate_limit_subjects", "Subjects the ledger keeps"),
            flights_waited: flights.with_label_values(&["waited"]),
            flights_ahead: flights.with_label_values(&["ahead"]),
            limit_granted: registered(IntCounter::new(
                "tollgate_limit_granted_total",
                "Requests granted by the store",
            )),
            limit_returned: registered(IntCounter::new(
                "tollgate_limit_returned_total",
                "Requests given back to the store unused",
            )),
            limit_held: gauge(
                "tollgate_limit_held",
                "Requests paid for at the store and not yet admitted",
            ),
            limit_lease: registered(Histogram::with_opts(
                HistogramOpts::new(
                    "tollgate_limit_lease_requests",
                    "Requests of one lease: what a grant held beyond those that were waiting",
                )
                .buckets(LEASES.to_vec()),
            )),
            store_breakers_open: gauge(
                "tollgate_store_breakers_open",
                "Connections to the store that are not asked because they failed repeatedly",
            ),
            log_lines_dropped: registered(IntCounter::new(
                "tollgate_log_lines_dropped_total",
                "Log lines lost because the reader of the log was too slow",
            )),
            compression_skipped: registered(IntCounter::new(
                "tollgate_compression_skipped_total",
                "Answers sent as they are because too many others were being compressed",
            )),
            build_info: registered(IntGaugeVec::new(
                Opts::new("tollgate_build_info", "1, with the version and commit as labels"),
                &["version", "commit"],
            )),
        }
    }

    /// Sets the version and the commit of this program.
    pub fn set_build_info(&self, version: &str, commit: &str) {
        self.build_info.with_label_values(&[version, commit]).set(1);
    }

    /// Counts one decision of `limit`. Token records may name limits, so the number of labels is bounded:
    /// further names count as `other`.
    pub fn limit_decision(&self, limit: &str, admitted: bool) {
        let count = |limits: &[(String, [IntCounter; 2])], name: &str| {
            let found = limits.iter().find(|(known, _)| known == name);
            found.map(|(_, [admits, refuses])| if admitted { admits.inc() } else { refuses.inc() })
        };
        let known = self.limits.read();
        let name = if known.len() > MAX_LIMIT_NAMES { "other" } else { limit };
        if count(&known, limit).or_else(|| count(&known, name)).is_some() {
            return;
        }
        drop(known);
        let mut limits = self.limits.write();
        let name = if limits.len() < MAX_LIMIT_NAMES { limit } else { "other" };
        if !limits.iter().any(|(known, _)| known == name) {
            let handle = |word| self.limit_decisions.with_label_values(&[name, word]);
            limits.push((name.to_owned(), [handle("admitted"), handle("refused")]));
        }
        count(&limits, name);
    }

    /// Sets the Unix time at which each certificate expires. A certificate that is not among `expiries` any more has none.
    pub fn set_certificate_expiries(&self, expiries: &[(String, u64)]) {
        let mut known = self.certificates.lock();
        for gone in known.iter().filter(|known| !expiries.iter().any(|(name, _)| name == *known)) {
            // An error means that it has gone already.
            let _ = self.certificate_expiry.remove_label_values(&[gone]);
        }
        for (name, seconds) in expiries {
            let seconds = i64::try_from(*seconds).unwrap_or(i64::MAX);
            self.certificate_expiry.with_label_values(&[name]).set(seconds);
        }
        *known = expiries.iter().map(|(name, _)| name.clone()).collect();
    }

    /// Counts one fetch of an issuer's keys.
    pub fn key_fetch(&self, succeeded: bool) {
        let outcome = if succeeded { "ok" } else { "failed" };
        self.key_fetches.with_label_values(&[outcome]).inc();
    }

    /// Counts one store operation.
    pub fn store_operation(
        &self,
        operation: &'static str,
        outcome: &'static str,
        elapsed: Duration,
    ) {
        let known = |operations: &[(&'static str, &'static str, IntCounter, Histogram)]| {
            let found = operations.iter().find(|known| (known.0, known.1) == (operation, outcome));
            found.map(|(_, _, count, seconds)| {
                count.inc();
                seconds.observe(elapsed.as_secs_f64());
            })
        };
        if known(&self.operations.read()).is_some() {
            return;
        }
        let mut operations = self.operations.write();
        if !operations.iter().any(|known| (known.0, known.1) == (operation, outcome)) {
            let count = self.store_operations.with_label_values(&[operation, outcome]);
            let seconds = self.store_seconds.with_label_values(&[operation]);
            operations.push((operation, outcome, count, seconds));
        }
        known(&operations);
    }
}
