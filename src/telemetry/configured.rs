//! The metrics of what a configuration names: routes, upstreams, plans. Their counters are found when a configuration is
//! read, and not at each request.

use std::time::Duration;

use parking_lot::RwLock;
use pingora_prometheus::prometheus::{Histogram, IntCounter};

use super::metrics::METRICS;

/// The handles of one route, resolved when a policy is compiled instead of at each request.
pub struct RouteMetrics {
    label: String,
    seconds: Histogram,
    /// By method and status. A route has few pairs, so that a scan is faster than a hash.
    requests: RwLock<Vec<(&'static str, u16, IntCounter)>>,
}

impl RouteMetrics {
    /// The handles of the route called `label`.
    pub fn new(label: &str) -> Self {
        let seconds = METRICS.request_seconds.with_label_values(&[label]);
        Self { label: label.to_owned(), seconds, requests: RwLock::default() }
    }

    /// Counts one answered request.
    pub fn observe(&self, method: &str, status: u16, elapsed: Duration) {
        self.seconds.observe(elapsed.as_secs_f64());
        let method = method_label(method);
        let known = |requests: &[(&'static str, u16, IntCounter)]| {
            let found = requests.iter().find(|(m, s, _)| *m == method && *s == status);
            found.map(|(_, _, counter)| counter.inc()).is_some()
        };
        if known(&self.requests.read()) {
            return;
        }
        let counter =
            METRICS.requests.with_label_values(&[&self.label, method, &status.to_string()]);
        counter.inc();
        let mut requests = self.requests.write();
        if !requests.iter().any(|(m, s, _)| *m == method && *s == status) {
            requests.push((method, status, counter));
        }
    }
}

/// Copies of requests for one upstream, by what became of them.
#[derive(Clone, Debug)]
pub struct MirrorMetrics {
    /// The upstream has answered.
    pub sent: IntCounter,
    /// The upstream has not answered, or not in time.
    pub failed: IntCounter,
    /// The body was too large, or the request ended before it; too many copies were on their way; or no endpoint could get one.
    pub dropped: IntCounter,
}

impl MirrorMetrics {
    /// The handles for copies that go to `upstream`.
    pub fn new(upstream: &str) -> Self {
        let handle = |outcome| METRICS.mirrored.with_label_values(&[upstream, outcome]);
        Self { sent: handle("sent"), failed: handle("failed"), dropped: handle("dropped") }
    }
}

impl std::fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RouteMetrics").field(&self.label).finish()
    }
}

/// The counter of one plan's requests; plans are configured, so there are few.
pub fn plan_requests(plan: &str) -> IntCounter {
    METRICS.plan_requests.with_label_values(&[plan])
}

/// The handles of one upstream.
pub struct UpstreamMetrics {
    /// Time from the choice of an endpoint to the header of its answer.
    pub seconds: Histogram,
    /// Further attempts.
    pub retries: IntCounter,
    /// Further attempts that the budget did not allow.
    pub retries_refused: IntCounter,
}

impl UpstreamMetrics {
    /// The handles of the upstream called `upstream`.
    pub fn new(upstream: &str) -> Self {
        let labels = [upstream];
        Self {
            seconds: METRICS.upstream_seconds.with_label_values(&labels),
            retries: METRICS.upstream_retries.with_label_values(&labels),
            retries_refused: METRICS.upstream_retries_refused.with_label_values(&labels),
        }
    }
}

/// A method as a bounded label.
fn method_label(method: &str) -> &'static str {
    const METHODS: [&str; 8] =
        ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"];
    METHODS.into_iter().find(|known| *known == method).unwrap_or("OTHER")
}

#[cfg(test)]
mod tests {
    use pingora_prometheus::prometheus;

    use super::*;

    #[test]
    fn every_metric_registers_and_labels_are_bounded() {
        let route = RouteMetrics::new("/metrics-test");
        route.observe("GET", 200, Duration::from_millis(1));
        route.observe("GET", 200, Duration::from_millis(1));
        route.observe("BREW", 418, Duration::from_millis(1));
        let text = prometheus::TextEncoder::new().encode_to_string(&prometheus::gather()).unwrap();
        for line in [
            r#"tollgate_requests_total{method="GET",route="/metrics-test",status="200"} 2"#,
            r#"tollgate_requests_total{method="OTHER",route="/metrics-test",status="418"} 1"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
