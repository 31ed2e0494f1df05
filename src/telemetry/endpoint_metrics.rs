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
    let breaker_open = breaker_open()?;
    let descriptions = breaker_open.desc().into_iter().cloned().collect();
    prometheus::register(Box::new(Endpoints { read, descriptions }))
}

fn breaker_open() -> prometheus::Result<IntGaugeVec> {
    let help = "1 while an endpoint gets no requests because it failed repeatedly";
    let opts = Opts::new("tollgate_upstream_breaker_open", help);
    IntGaugeVec::new(opts, &["upstream", "endpoint"])
}

impl<R: Fn(Show<'_>) + Send + Sync> Collector for Endpoints<R> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(breaker_open) = breaker_open() else { return Vec::new() };
        (self.read)(&mut |reading| {
            let labels = [reading.upstream, reading.endpoint];
            breaker_open.with_label_values(&labels).set(reading.breaker_open.into());
        });
        breaker_open.collect()
    }
}
