//! Metrics of endpoints. A reload may add endpoints and remove them, so they are read at each scrape from those that
//! there are, and no series outlives its endpoint.

use pingora_prometheus::prometheus::core::{Collector, Desc};
use pingora_prometheus::prometheus::proto::MetricFamily;
use pingora_prometheus::prometheus::{self, IntGaugeVec, Opts};

/// What there is to say about one endpoint.
pub struct Reading<'a> {
    /// The name of its upstream.
    pub upstream: &'a str,
    /// Its URL.
    pub endpoint: &'a str,
    /// Whether its breaker is open.
    pub breaker_open: bool,
    /// Whether it is healthy; `None` when nobody checks.
    pub healthy: Option<bool>,
}

/// Shows a reading to the collector.
pub type Show<'a> = &'a mut dyn FnMut(Reading<'_>);

/// Asks `read` for the reading of every endpoint.
struct Endpoints<R> {
    read: R,
    descriptions: Vec<Desc>,
}

/// Lets each scrape ask `read` for the readings of all endpoints.
///
/// # Errors
/// When this was called before in this process.
pub fn register(read: impl Fn(Show<'_>) + Send + Sync + 'static) -> prometheus::Result<()> {
    let gauges = Gauges::new()?;
    let all = [&gauges.breaker_open, &gauges.healthy];
    let descriptions = all.into_iter().flat_map(|gauge| gauge.desc()).cloned().collect();
    prometheus::register(Box::new(Endpoints { read, descriptions }))
}

/// The gauges of one scrape.
struct Gauges {
    breaker_open: IntGaugeVec,
    healthy: IntGaugeVec,
}

impl Gauges {
    fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            IntGaugeVec::new(Opts::new(name, help), &["upstream", "endpoint"])
        };
        Ok(Self {
            breaker_open: gauge(
                "tollgate_upstream_breaker_open",
                "1 while an endpoint gets no requests because it failed repeatedly",
            )?,
            healthy: gauge(
                "tollgate_upstream_healthy",
                "0 while an endpoint gets no requests because its health checks failed",
            )?,
        })
    }
}

impl<R: Fn(Show<'_>) + Send + Sync> Collector for Endpoints<R> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(gauges) = Gauges::new() else { return Vec::new() };
        (self.read)(&mut |reading| {
            let labels = [reading.upstream, reading.endpoint];
            gauges.breaker_open.with_label_values(&labels).set(reading.breaker_open.into());
            if let Some(healthy) = reading.healthy {
                gauges.healthy.with_label_values(&labels).set(healthy.into());
            }
        });
        [gauges.breaker_open.collect(), gauges.healthy.collect()].concat()
    }
}
